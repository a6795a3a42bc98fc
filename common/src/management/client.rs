// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client side of the control socket: the subcommand `ctl`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::socket::{SocketError, check_path};

/// Longer than a drain may take; it ends the wait for a back-end that is stuck.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// More than the counters of 256 queues take.
const MAX_REPLY_BYTES: u64 = 16 << 20;

/// Why a call did not succeed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CtlError {
    /// No back-end answers there.
    #[error("{path}: cannot connect to the control socket")]
    Connect {
        /// The path of the control socket.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// No socket can have that path.
    #[error(transparent)]
    Path(#[from] SocketError),
    /// A parameter is not written as `key=value`.
    #[error("parameter {number} is not written as key=value")]
    Parameter {
        /// Which, counted from one.
        number: usize,
    },
    /// The connection broke.
    #[error("the connection to the back-end broke")]
    Io(#[from] io::Error),
    /// The back-end closed the connection without a reply, or after half of one.
    #[error("the back-end closed the connection without a whole reply")]
    NoReply,
    /// The reply is not what the protocol says.
    #[error("the reply of the back-end was not understood")]
    Reply(#[from] serde_json::Error),
    /// The back-end answered with an error.
    #[error("{message} (error {code})")]
    Remote {
        /// The error code, as in JSON-RPC 2.0.
        code: i64,
        /// What the back-end says about it.
        message: String,
    },
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    result: Value,
    error: Option<RemoteError>,
}

#[derive(Deserialize)]
struct RemoteError {
    code: i64,
    message: String,
}

/// Calls `method` of the back-end whose control socket is at `path` and returns the result as
/// indented JSON.
///
/// Each of `args` is `key=value`; a value that is valid JSON is sent as such, anything else as a
/// string.
///
/// # Errors
///
/// [`CtlError`] if the back-end cannot be reached or answers with an error.
pub fn ctl(path: &Path, method: &str, args: &[String]) -> Result<String, CtlError> {
    let request = json!({ "id": 1, "method": method, "params": params(args)? });
    check_path(path)?;
    let mut stream = UnixStream::connect(path).map_err(|source| CtlError::Connect {
        path: path.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    stream.write_all(format!("{request}\n").as_bytes())?;

    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REPLY_BYTES)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(CtlError::NoReply);
    }
    let reply: Reply = serde_json::from_slice(&line)?;
    match reply.error {
        Some(RemoteError { code, message }) => Err(CtlError::Remote { code, message }),
        None => Ok(serde_json::to_string_pretty(&reply.result)?),
    }
}

fn params(args: &[String]) -> Result<Value, CtlError> {
    let mut params = Map::new();
    for (index, arg) in args.iter().enumerate() {
        let (key, value) = arg
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or(CtlError::Parameter { number: index + 1 })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        params.insert(key.to_owned(), value);
    }
    Ok(params.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_are_json_where_they_can_be() {
        let args = ["size=1024", "name=a=b", "on=true", "level=debug", "empty="];
        let expected =
            json!({"size": 1024, "name": "a=b", "on": true, "level": "debug", "empty": ""});
        assert_eq!(params(&args.map(String::from)).unwrap(), expected);
    }

    #[test]
    fn params_without_key_or_sign_are_refused() {
        for args in [["a=1", "b"], ["a=1", "=2"]] {
            let error = params(&args.map(String::from)).unwrap_err();
            assert!(
                matches!(error, CtlError::Parameter { number: 2 }),
                "{error}"
            );
        }
    }
}
