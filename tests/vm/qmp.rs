// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small QMP client: commands and events of QEMU and of qemu-storage-daemon.
//!
//! Messages are JSON objects, one a line (QEMU's `docs/interop/qmp-spec.rst`). Events that arrive
//! while a reply is awaited are kept for [`Qmp::wait_event`].

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::VmError;

/// How long a command may take. QEMU runs `device_add` of a vhost-user device synchronously, and
/// a loaded machine under TCG is slow.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

const CHANNEL: &str = "QMP socket";

/// A connection to a QMP monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    partial: String,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes a fresh connection through the greeting.
    ///
    /// # Errors
    /// When the peer does not greet, or refuses.
    pub fn negotiate(stream: UnixStream) -> Result<Self, VmError> {
        let mut qmp = Self {
            stream: BufReader::new(stream),
            partial: String::new(),
            events: VecDeque::new(),
        };
        let greeting = qmp.read("greeting", Instant::now() + COMMAND_LIMIT)?;
        if greeting.get("QMP").is_none() {
            return Err(VmError::Qmp {
                command: "greeting".into(),
                reply: greeting.to_string(),
            });
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returned.
    ///
    /// # Errors
    /// When the command fails, or the connection does.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers build the arguments in place"
    )]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, VmError> {
        let mut message = json!({ "execute": command, "arguments": arguments }).to_string();
        message.push('\n');
        self.stream
            .get_mut()
            .write_all(message.as_bytes())
            .map_err(VmError::channel(CHANNEL))?;
        let deadline = Instant::now() + COMMAND_LIMIT;
        loop {
            let mut reply = self.read(command, deadline)?;
            if reply.get("event").is_some() {
                self.events.push_back(reply);
            } else if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            } else {
                return Err(VmError::Qmp {
                    command: command.to_owned(),
                    reply: reply.to_string(),
                });
            }
        }
    }

    /// Waits for the event `name` whose `data.device` is `device` (any when `None`), and gives its
    /// data. Other events that arrive meanwhile are kept.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_event(
        &mut self,
        name: &str,
        device: Option<&str>,
        limit: Duration,
    ) -> Result<Value, VmError> {
        let deadline = Instant::now() + limit;
        let matches = |event: &Value| {
            event["event"] == name && device.is_none_or(|id| event["data"]["device"] == id)
        };
        loop {
            if let Some(index) = self.events.iter().position(matches) {
                let mut event = self.events.remove(index).unwrap_or_default();
                return Ok(event["data"].take());
            }
            let message = self.read(name, deadline)?;
            self.events.push_back(message);
        }
    }

    /// Reads one message.
    fn read(&mut self, awaited: &str, deadline: Instant) -> Result<Value, VmError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VmError::Timeout {
                    what: format!("QMP {awaited}"),
                    limit: COMMAND_LIMIT,
                    console: String::new(),
                });
            }
            let stream = self.stream.get_ref();
            stream
                .set_read_timeout(Some(left))
                .map_err(VmError::channel(CHANNEL))?;
            match self.stream.read_line(&mut self.partial) {
                Ok(0) => {
                    return Err(VmError::channel(CHANNEL)(
                        io::ErrorKind::UnexpectedEof.into(),
                    ));
                }
                Ok(_) => break,
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(VmError::channel(CHANNEL)(error)),
            }
        }
        let line = std::mem::take(&mut self.partial);
        serde_json::from_str(&line).map_err(|error| VmError::channel(CHANNEL)(error.into()))
    }
}

/// Whether a read with a timeout merely found nothing.
pub(crate) fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
