// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One line of the control protocol in, one line out; no I/O.

use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use log::LevelFilter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::devices::Devices;

/// A method as `help` shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// Its parameters, for people to read, like `size=BYTES`; empty: none.
    pub params: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
}

/// Methods that a device or the daemon adds to the control protocol.
///
/// They run on the management thread, one at a time, but those that [may wait](Self::may_wait): what
/// takes long there holds up other clients.
pub trait Manage: Send + Sync {
    /// The methods, for `help` and to find who serves a call.
    fn methods(&self) -> &[MethodInfo];

    /// Whether a call of this method may wait for a device: it then has a thread of its own, beside
    /// others.
    fn may_wait(&self, _method: &str) -> bool {
        false
    }

    /// Serves a call of one of [`methods`](Self::methods).
    ///
    /// # Errors
    ///
    /// [`ManageError`], which becomes the error reply.
    fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError>;
}

/// Why a method was not carried out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManageError {
    /// There is no such method.
    #[error("unknown method")]
    UnknownMethod,
    /// A parameter is missing.
    #[error("parameter {name} is missing")]
    MissingParam {
        /// Its name.
        name: &'static str,
    },
    /// A parameter that the method does not have.
    #[error("unknown parameter {name}")]
    UnknownParam {
        /// Its name.
        name: String,
    },
    /// A parameter has the wrong type or value.
    #[error("parameter {name}: expected {expected}")]
    InvalidParam {
        /// Its name.
        name: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// Not possible in the present state.
    #[error("not possible now: {reason}")]
    Unavailable {
        /// Why not.
        reason: &'static str,
    },
    /// It was tried and failed.
    #[error(transparent)]
    Failed(#[from] Box<dyn Error + Send + Sync>),
}

impl ManageError {
    /// The codes of JSON-RPC 2.0, and two of the range it leaves to servers.
    fn code(&self) -> i64 {
        match self {
            Self::UnknownMethod => METHOD_NOT_FOUND,
            Self::MissingParam { .. } | Self::UnknownParam { .. } | Self::InvalidParam { .. } => {
                INVALID_PARAMS
            }
            Self::Failed(_) => FAILED,
            Self::Unavailable { .. } => UNAVAILABLE,
        }
    }
}

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const FAILED: i64 = -32000;
const UNAVAILABLE: i64 = -32001;

/// The methods every back-end has.
const COMMON_METHODS: &[MethodInfo] = &[
    MethodInfo {
        name: "help",
        params: "",
        help: "list the methods",
    },
    MethodInfo {
        name: "log-level",
        params: "level=off|error|warn|info|debug|trace",
        help: "change the log level; without parameter: tell it",
    },
    MethodInfo {
        name: "stats",
        params: "",
        help: "counters and latencies of every vring",
    },
    MethodInfo {
        name: "version",
        params: "",
        help: "name and version of the back-end",
    },
];

/// What the management thread tells and whom it asks.
#[derive(Clone)]
pub struct Services {
    /// The name of the program.
    pub program: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The devices and their counters.
    pub devices: Devices,
    /// Methods of the device and the daemon; the first that knows a method serves it.
    pub manage: Vec<Arc<dyn Manage>>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Deserialize)]
struct Request {
    method: String,
    #[serde(default)]
    params: Value,
}

impl Request {
    fn has_sound_params(&self) -> bool {
        self.params.is_object() || self.params.is_null()
    }
}

/// What becomes of a line.
pub(super) enum Answer {
    /// The reply; it ends with a newline, that to an empty line is empty.
    Reply(Vec<u8>),
    /// A call that may wait.
    Call(Call),
}

/// A call that may wait, ready to be run anywhere.
#[derive(Clone)]
pub(super) struct Call {
    id: Value,
    request: Request,
    manage: Arc<dyn Manage>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.request.method)
            .finish_non_exhaustive()
    }
}

impl Call {
    /// Runs it and returns the reply.
    pub(super) fn run(&self) -> Vec<u8> {
        let Request { method, params } = &self.request;
        reply_of(&self.id, self.manage.call(method, params))
    }

    /// The reply when it is not run.
    pub(super) fn refusal(&self, error: &ManageError) -> Vec<u8> {
        to_line(&error_reply(&self.id, error.code(), &with_sources(error)))
    }
}

/// Answers one request, or says that it may wait.
pub(super) fn answer(services: &Services, line: &[u8]) -> Answer {
    if line.trim_ascii().is_empty() {
        return Answer::Reply(Vec::new());
    }
    let (id, request) = match serde_json::from_slice::<Value>(line) {
        Ok(value) => {
            let id = value.get("id").cloned().unwrap_or_default();
            (id, Request::deserialize(value))
        }
        Err(error) => {
            let message = format!("not JSON: {error}");
            return Answer::Reply(to_line(&error_reply(&Value::Null, PARSE_ERROR, &message)));
        }
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            let message = format!("not a request: {error}");
            return Answer::Reply(to_line(&error_reply(&id, INVALID_REQUEST, &message)));
        }
    };
    match services.who_waits_for(&request) {
        Some(manage) => Answer::Call(Call {
            id,
            request,
            manage,
        }),
        None => Answer::Reply(reply_of(&id, services.call(&request))),
    }
}

fn reply_of(id: &Value, result: Result<Value, ManageError>) -> Vec<u8> {
    to_line(&match result {
        Ok(result) => json!({ "id": id, "result": result }),
        Err(error) => error_reply(id, error.code(), &with_sources(&error)),
    })
}

/// The reply to a line longer than `limit`.
pub(super) fn too_long(limit: usize) -> Vec<u8> {
    let message = format!("the line is longer than {limit} bytes");
    to_line(&error_reply(&Value::Null, INVALID_REQUEST, &message))
}

fn to_line(reply: &Value) -> Vec<u8> {
    let mut line = reply.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn error_reply(id: &Value, code: i64, message: &str) -> Value {
    json!({ "id": id, "error": { "code": code, "message": message } })
}

/// The message of an error and of what caused it.
fn with_sources(error: &ManageError) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(message, ": {cause}");
        source = cause.source();
    }
    message
}

impl Services {
    fn call(&self, request: &Request) -> Result<Value, ManageError> {
        let Request { method, params } = request;
        if !request.has_sound_params() {
            return Err(ManageError::InvalidParam {
                name: "params",
                expected: "an object",
            });
        }
        match method.as_str() {
            "help" => Ok(self.help()),
            "log-level" => log_level(params),
            "stats" => self
                .devices
                .to_json()
                .map_err(|error| ManageError::Failed(error.into())),
            "version" => Ok(json!({ "name": self.program, "version": self.version })),
            other => self
                .who_has(other)
                .ok_or(ManageError::UnknownMethod)?
                .call(other, params),
        }
    }

    fn who_has(&self, method: &str) -> Option<&Arc<dyn Manage>> {
        self.manage
            .iter()
            .find(|manage| manage.methods().iter().any(|info| info.name == method))
    }

    /// Who serves a request that may wait.
    fn who_waits_for(&self, request: &Request) -> Option<Arc<dyn Manage>> {
        let Request { method, .. } = request;
        if COMMON_METHODS.iter().any(|info| info.name == method) || !request.has_sound_params() {
            return None;
        }
        self.who_has(method)
            .filter(|manage| manage.may_wait(method))
            .cloned()
    }

    fn help(&self) -> Value {
        let added = self.manage.iter().flat_map(|manage| manage.methods());
        json!(COMMON_METHODS.iter().chain(added).collect::<Vec<_>>())
    }
}

fn log_level(params: &Value) -> Result<Value, ManageError> {
    if let Some(level) = params.get("level") {
        let level: LevelFilter = level.as_str().and_then(|level| level.parse().ok()).ok_or(
            ManageError::InvalidParam {
                name: "level",
                expected: "off, error, warn, info, debug or trace",
            },
        )?;
        log::set_max_level(level);
        log::info!("log level set to {level}");
    }
    Ok(json!({ "level": log::max_level().as_str().to_ascii_lowercase() }))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;

    use super::*;
    use crate::stats::DeviceStats;

    /// A device that echoes its parameters, fails, or is busy.
    pub(in crate::management) struct TestDevice;

    impl Manage for TestDevice {
        fn methods(&self) -> &[MethodInfo] {
            const NONE: MethodInfo = MethodInfo {
                name: "",
                params: "",
                help: "",
            };
            const {
                &[
                    MethodInfo {
                        name: "echo",
                        ..NONE
                    },
                    MethodInfo {
                        name: "fail",
                        ..NONE
                    },
                    MethodInfo {
                        name: "busy",
                        ..NONE
                    },
                    MethodInfo {
                        name: "big",
                        ..NONE
                    },
                ]
            }
        }

        fn call(&self, method: &str, params: &Value) -> Result<Value, ManageError> {
            match method {
                "echo" => Ok(params.clone()),
                "big" => Ok("x".repeat(4 << 20).into()),
                "busy" => Err(ManageError::Unavailable { reason: "draining" }),
                _ => Err(ManageError::Failed(Box::new(io::Error::other(
                    "disk on fire",
                )))),
            }
        }
    }

    pub(in crate::management) fn services() -> Services {
        Services {
            program: "ringside-test",
            version: "1.2.3",
            devices: Devices::Single(Arc::new(DeviceStats::new("blk", &["read", "write"])).into()),
            manage: vec![Arc::new(TestDevice)],
        }
    }

    /// The answer to what does not wait.
    fn replied(services: &Services, line: &[u8]) -> Vec<u8> {
        match answer(services, line) {
            Answer::Reply(reply) => reply,
            Answer::Call(call) => panic!("{call:?}"),
        }
    }

    impl Services {
        /// The counters of the device of [`services`].
        pub(in crate::management) fn stats(&self) -> &DeviceStats {
            let (_, device) = self.devices.iter().next().unwrap();
            &device.stats
        }
    }

    fn ask(line: &str) -> Value {
        let reply = replied(&services(), line.as_bytes());
        assert_eq!(
            reply.iter().filter(|byte| **byte == b'\n').count(),
            1,
            "one line"
        );
        serde_json::from_slice(&reply).unwrap()
    }

    fn error_code(line: &str) -> i64 {
        let reply = ask(line);
        assert!(reply.get("result").is_none(), "{reply}");
        reply["error"]["code"].as_i64().unwrap()
    }

    #[test]
    fn call_returns_the_id_unchanged() {
        for id in [json!(1), json!("x"), json!(null), json!({"a": [1]})] {
            let reply = ask(&json!({"id": id, "method": "version"}).to_string());
            let expected = json!({"name": "ringside-test", "version": "1.2.3"});
            assert_eq!(reply, json!({"id": id, "result": expected}));
        }
    }

    #[test]
    fn call_of_device_method_passes_params_and_result() {
        let reply = ask(r#"{"id":7,"method":"echo","params":{"size":5}}"#);
        assert_eq!(reply, json!({"id": 7, "result": {"size": 5}}));
    }

    #[test]
    fn call_that_fails_tells_why() {
        let reply = ask(r#"{"id":7,"method":"fail"}"#);
        let error = json!({"code": -32000, "message": "disk on fire"});
        assert_eq!(reply, json!({"id": 7, "error": error}));
        let reply = ask(r#"{"id":8,"method":"busy"}"#);
        let error = json!({"code": -32001, "message": "not possible now: draining"});
        assert_eq!(reply, json!({"id": 8, "error": error}));
    }

    #[test]
    fn garbage_gets_the_code_of_its_kind() {
        assert_eq!(error_code("garbage"), PARSE_ERROR);
        assert_eq!(error_code("{\"id\":1"), PARSE_ERROR);
        assert_eq!(error_code(&"[".repeat(60_000)), PARSE_ERROR);
        assert_eq!(error_code("\u{0}"), PARSE_ERROR);
        for line in ["1", "[]", "{}", "null", r#"{"method":1}"#, r#"{"id":1}"#] {
            assert_eq!(error_code(line), INVALID_REQUEST, "{line}");
        }
        assert_eq!(error_code(r#"{"method":"nope"}"#), METHOD_NOT_FOUND);
        assert_eq!(
            error_code(r#"{"method":"echo","params":[1]}"#),
            INVALID_PARAMS
        );
        assert_eq!(
            error_code(r#"{"method":"log-level","params":{"level":9}}"#),
            INVALID_PARAMS
        );
        let bytes = replied(&services(), b"\xff\xfe");
        assert_eq!(
            serde_json::from_slice::<Value>(&bytes).unwrap()["error"]["code"],
            PARSE_ERROR
        );
    }

    #[test]
    fn invalid_request_still_returns_its_id() {
        assert_eq!(ask(r#"{"id":5,"method":[]}"#)["id"], 5);
    }

    #[test]
    fn empty_line_has_no_reply() {
        assert_eq!(replied(&services(), b" \r\n"), b"");
    }

    #[test]
    fn log_level_is_set_and_told() {
        let before = log::max_level();
        let set = ask(r#"{"method":"log-level","params":{"level":"debug"}}"#);
        let level = log::max_level();
        let told = ask(r#"{"method":"log-level"}"#);
        log::set_max_level(before);
        assert_eq!(level, LevelFilter::Debug);
        assert_eq!(set["result"], json!({"level": "debug"}));
        assert_eq!(told["result"], json!({"level": "debug"}));
    }

    #[test]
    fn help_lists_common_and_added_methods() {
        let reply = ask(r#"{"method":"help"}"#);
        let names: Vec<_> = reply["result"]
            .as_array()
            .unwrap()
            .iter()
            .map(|info| &info["name"])
            .collect();
        let expected = [
            "help",
            "log-level",
            "stats",
            "version",
            "echo",
            "fail",
            "busy",
            "big",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn stats_shows_what_was_counted() {
        let services = services();
        services.stats().queue(2).record(1, 512, true, 1000);
        let reply: Value =
            serde_json::from_slice(&replied(&services, br#"{"method":"stats"}"#)).unwrap();
        let queue = &reply["result"]["queues"][0];
        assert_eq!(queue["queue"], 2);
        assert_eq!(queue["operations"][0]["op"], "write");
        assert_eq!(queue["operations"][0]["latency"]["p99_ns"], 1000);
    }
}
