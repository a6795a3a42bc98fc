// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of a guest's network: a scratch network namespace with what a test puts into it.
//!
//! The namespace belongs to this process alone. No name is given to it and no process keeps it: a
//! thread makes it and ends, an open descriptor holds it, and programs enter it through
//! `/proc/PID/fd/N`. So it vanishes with the test, even by SIGKILL, and nothing is ever seen in the
//! host's own namespace.

mod capture;
mod dhcp;
mod echo;
mod http;
mod passt;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use super::child::{Child, Place};
use super::error::{BoxError, VmError};
use super::program::{find_program, give_to_nobody, run_command};

pub use capture::Capture;
pub use dhcp::{DhcpOptions, DhcpServer};
pub use echo::EchoServer;
pub use http::HttpServer;
pub use passt::Passt;

/// Why no network can be made here; `None` when all is there.
#[must_use]
pub fn network_needs() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root: no network namespace can be made".into());
    }
    let tun = "/dev/net/tun";
    if let Err(error) = OpenOptions::new().read(true).write(true).open(tun) {
        return Some(format!("{tun}: {error}"));
    }
    namespace()
        .err()
        .map(|error| format!("no network namespace: {error}"))
}

/// A network namespace of a test's own; it ends with the value and the programs in it.
#[derive(Debug)]
pub struct Network {
    namespace: Arc<File>,
    dir: TempDir,
}

impl Network {
    /// An empty namespace whose loopback is up.
    ///
    /// # Errors
    /// When this process may not make one.
    pub fn new() -> Result<Self, VmError> {
        let namespace = namespace().map_err(VmError::channel("network namespace"))?;
        let network = Self {
            namespace: Arc::new(namespace),
            dir: tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?,
        };
        network.run("ip", &["link", "set", "lo", "up"])?;
        Ok(network)
    }

    /// A path by which programs find the namespace while this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let (pid, fd) = (process::id(), self.namespace.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }

    /// Makes a tap device, gives it addresses (`10.0.0.1/24`) and sets it up. It stays when the
    /// program that uses it ends, so that another can take over. `queues` decides whether programs
    /// must open it with `IFF_MULTI_QUEUE` (Linux: `networking/tuntap.rst`).
    ///
    /// # Errors
    /// When the name or an address is taken.
    pub fn tap(&self, name: &str, queues: u16, addresses: &[&str]) -> Result<(), VmError> {
        let mut args = vec!["tuntap", "add", "dev", name, "mode", "tap"];
        if queues > 1 {
            args.push("multi_queue");
        }
        self.run("ip", &args)?;
        for address in addresses {
            // Without duplicate address detection an IPv6 address can be used at once.
            let nodad: &[&str] = if address.contains(':') {
                &["nodad"]
            } else {
                &[]
            };
            let args = [&["address", "add", *address, "dev", name], nodad].concat();
            self.run("ip", &args)?;
        }
        self.run("ip", &["link", "set", name, "up"])?;
        Ok(())
    }

    /// Sets the MTU of a device in the namespace, in bytes.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn set_mtu(&self, device: &str, mtu_bytes: u16) -> Result<(), VmError> {
        let mtu_bytes = mtu_bytes.to_string();
        self.run("ip", &["link", "set", device, "mtu", &mtu_bytes])?;
        Ok(())
    }

    /// Runs a program in the namespace to its end and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started, or fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, VmError> {
        let path = find_program(program)?;
        let output = run_command(program, self.place().command(&path).args(args))?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// An `iperf3` server on all addresses, which serves one client after the other.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn iperf3_server(&self) -> Result<Service, VmError> {
        let mut child = self.spawn("iperf3", &["--server", "--forceflush"])?;
        child.wait_for_text("Server listening", super::backend::START_LIMIT)?;
        Ok(Service(child))
    }

    /// User-mode networking for one guest, which will have `address` (with its prefix length) and
    /// reach the namespace's loopback as `router`.
    ///
    /// # Errors
    /// When `passt` does not start.
    pub fn passt(&self, address: &str, router: &str) -> Result<Passt, VmError> {
        Passt::start(self, address, router)
    }

    /// Starts a program in the namespace.
    pub(crate) fn spawn(&self, program: &str, args: &[&str]) -> Result<Child, VmError> {
        let log = tempfile::Builder::new()
            .prefix(program)
            .suffix(".log")
            .tempfile_in(self.dir.path())
            .and_then(|file| file.keep().map_err(io::Error::from))
            .map_err(VmError::file(self.dir.path()))?
            .1;
        Child::spawn_at(&self.place(), &find_program(program)?, args, &log)
    }

    /// A new directory that the user `nobody` owns.
    fn dir_of_nobody(&self) -> Result<PathBuf, VmError> {
        let dir = self.dir.path().join("nobody");
        fs::create_dir(&dir).map_err(VmError::file(&dir))?;
        // The way there must be open to all, too.
        give_to_nobody(self.dir.path())?;
        give_to_nobody(&dir)?;
        Ok(dir)
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            namespace: Some(self.path()),
            unprivileged: false,
        }
    }

    /// Runs `open` in a thread that has entered the namespace, for the sockets that belong there.
    ///
    /// # Errors
    /// As `open`, and when the namespace cannot be entered.
    pub fn open<T: Send>(&self, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let namespace = Arc::clone(&self.namespace);
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                open()
            });
            inside
                .join()
                .map_err(|_panic| io::Error::other("a panic"))?
        })
    }
}

/// A program that serves the namespace until it is dropped.
#[derive(Debug)]
pub struct Service(Child);

impl Service {
    /// What the program printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }
}

/// Makes a namespace. Only the calling thread can move to a new one, so that one is spent on it.
fn namespace() -> io::Result<File> {
    let maker = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    });
    maker.join().map_err(|_panic| io::Error::other("a panic"))?
}

/// A thread that serves a socket; told to stop and waited for when dropped.
#[derive(Debug)]
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `serve` is called again and again; it must not wait long.
    fn new(mut serve: impl FnMut() -> Result<(), BoxError> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = serve() {
                    log::warn!("server of a test: {error}");
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::warn!("a server of a test panicked");
        }
    }
}
