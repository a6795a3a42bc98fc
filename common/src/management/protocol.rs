// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One line of the control protocol in, one line out; no I/O.

use std::sync::Arc;

use log::LevelFilter;
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::Devices;
use super::manage::{Manage, ManageError, MethodInfo};
use crate::error::chain;

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;

/// A method that every back-end has: what it does, and how.
type CommonMethod = (
    MethodInfo,
    fn(&Services, &Value) -> Result<Value, ManageError>,
);

/// The methods every back-end has.
static COMMON_METHODS: [CommonMethod; 4] = [
    (
        MethodInfo {
            name: "help",
            params: "",
            help: "list the methods",
        },
        |services, _| Ok(services.help()),
    ),
    (
        MethodInfo {
            name: "log-level",
            params: "level=off|error|warn|info|debug|trace",
            help: "change the log level; without parameter: tell it",
        },
        |_, params| log_level(params),
    ),
    (
        MethodInfo {
            name: "stats",
            params: "",
            help: "counters and latencies of every vring",
        },
        |services, _| {
            let counters = services.devices.to_json();
            counters.map_err(|error| ManageError::Failed(error.into()))
        },
    ),
    (
        MethodInfo {
            name: "version",
            params: "",
            help: "name and version of the back-end",
        },
        |services, _| Ok(json!({ "name": services.program, "version": services.version })),
    ),
];

/// What the management thread shows, and the methods that it calls.
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
        to_line(&error_reply(
            &self.id,
            error.code(),
            &chain(error).to_string(),
        ))
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
    match services.waiting(&request) {
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
        Err(error) => error_reply(id, error.code(), &chain(&error).to_string()),
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

impl Services {
    fn call(&self, request: &Request) -> Result<Value, ManageError> {
        let Request { method, params } = request;
        if !request.has_sound_params() {
            return Err(ManageError::InvalidParam {
                name: "params",
                expected: "an object",
            });
        }
        match common_method(method) {
            Some((_, run)) => run(self, params),
            None => self
                .with_method(method)
                .ok_or(ManageError::UnknownMethod)?
                .call(method, params),
        }
    }

    fn with_method(&self, method: &str) -> Option<&Arc<dyn Manage>> {
        self.manage
            .iter()
            .find(|manage| manage.methods().iter().any(|info| info.name == method))
    }

    /// Whose method a request calls, if it may wait.
    fn waiting(&self, request: &Request) -> Option<Arc<dyn Manage>> {
        let Request { method, .. } = request;
        if common_method(method).is_some() || !request.has_sound_params() {
            return None;
        }
        self.with_method(method)
            .filter(|manage| manage.may_wait(method))
            .cloned()
    }

    fn help(&self) -> Value {
        let added = self.manage.iter().flat_map(|manage| manage.methods());
        let common = COMMON_METHODS.iter().map(|(info, _)| info);
        json!(common.chain(added).collect::<Vec<_>>())
    }
}

fn common_method(name: &str) -> Option<&'static CommonMethod> {
    COMMON_METHODS.iter().find(|(info, _)| info.name == name)
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

    use super::super::manage::{INVALID_PARAMS, METHOD_NOT_FOUND};
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
