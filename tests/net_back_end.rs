// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running `ringside-net`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Launch, Process, ProcessError, Result, old_back_end_binary};

const PACKAGE: &str = "ringside-net";

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The process and where it listens.
#[derive(Debug)]
pub struct NetBackEnd {
    process: Process,
    sockets: Vec<PathBuf>,
}

impl NetBackEnd {
    /// Starts one that listens on `ports` sockets.
    ///
    /// # Errors
    ///
    /// When it does not build or start.
    pub fn start(ports: usize, args: &[&str]) -> Result<Self> {
        Self::listen(Launch::back_end(PACKAGE)?, ports, args)
    }

    /// The same of the binary from before a change, where the environment says where it is.
    ///
    /// # Errors
    ///
    /// As [`NetBackEnd::start`].
    pub fn start_old(ports: usize, args: &[&str]) -> Result<Self> {
        match old_back_end_binary(PACKAGE) {
            Some(old) => Self::listen(Launch::program(old)?, ports, args),
            None => Self::start(ports, args),
        }
    }

    fn listen(launch: Launch, ports: usize, args: &[&str]) -> Result<Self> {
        let launch = Self::prepare(launch);
        let sockets: Vec<_> = (0..ports)
            .map(|port| Self::socket_of(&launch, port))
            .collect();
        let mut launch = launch;
        for socket in &sockets {
            launch = launch.arg("--socket-path").arg(socket);
        }
        Self::spawn(launch.args(args), sockets)
    }

    /// Starts one whose ports are described one by one: what follows `socket=PATH` of each, with
    /// its comma.
    ///
    /// # Errors
    ///
    /// As [`NetBackEnd::start`].
    pub fn start_ports(ports: &[&str], args: &[&str]) -> Result<Self> {
        let mut launch = Self::prepare(Launch::back_end(PACKAGE)?);
        let mut sockets = Vec::with_capacity(ports.len());
        for (number, options) in ports.iter().enumerate() {
            let socket = Self::socket_of(&launch, number);
            let port = format!("socket={}{options}", socket.display());
            launch = launch.args(["--port", &port]);
            sockets.push(socket);
        }
        Self::spawn(launch.args(args), sockets)
    }

    /// Starts one that connects to a front-end that listens.
    ///
    /// # Errors
    ///
    /// As [`NetBackEnd::start`].
    pub fn connecting(socket: &Path, args: &[&str]) -> Result<Self> {
        let launch = Self::prepare(Launch::back_end(PACKAGE)?);
        Self::spawn(launch.arg("--connect").arg(socket).args(args), Vec::new())
    }

    fn prepare(launch: Launch) -> Launch {
        launch.env(
            // As for the block device: mappings are then the back-end's own.
            "GLIBC_TUNABLES",
            "glibc.malloc.arena_max=1:glibc.pthread.stack_cache_size=0",
        )
    }

    fn socket_of(launch: &Launch, port: usize) -> PathBuf {
        launch.path(&format!("net-{port}.sock"))
    }

    fn spawn(launch: Launch, sockets: Vec<PathBuf>) -> Result<Self> {
        let control = launch.path("control.sock");
        let process = launch.arg("--control-socket").arg(control).spawn()?;
        let mut back_end = Self { process, sockets };
        for port in 0..back_end.sockets.len() {
            let socket = back_end.sockets[port].clone();
            back_end
                .process
                .poll_until("listening socket", PATIENCE, |_| {
                    Ok(socket.exists().then_some(()))
                })?;
        }
        Ok(back_end)
    }

    /// Connects to a port.
    ///
    /// # Errors
    ///
    /// When it does not accept, or the process has ended.
    pub fn connect(&mut self, port: usize) -> Result<UnixStream> {
        let socket = self.sockets[port].clone();
        self.process.poll_until("connection", PATIENCE, |_| {
            Ok(UnixStream::connect(&socket).ok())
        })
    }

    /// Where a port listens.
    #[must_use]
    pub fn socket(&self, port: usize) -> &Path {
        &self.sockets[port]
    }

    /// The result of a method of the control socket.
    ///
    /// # Errors
    ///
    /// When it does not answer in JSON, or with an error.
    pub fn control(&self, method: &str, params: &Value) -> std::result::Result<Value, String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.process.path("control.sock"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut call = json!({"jsonrpc": "2.0", "id": 1, "method": method});
            if !params.is_null() {
                call["params"] = params.clone();
            }
            writeln!(stream, "{call}")?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        };
        let line = ask().map_err(|error| format!("control socket: {error}"))?;
        let reply: Value =
            serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        match reply.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(line),
        }
    }

    /// The number of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it and says how.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn terminate(&mut self) -> std::result::Result<std::process::ExitStatus, ProcessError> {
        self.process.terminate(PATIENCE)
    }
}
