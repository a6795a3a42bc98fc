// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run of a machine: QEMU's arguments, the conversation with the guest, the end.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::accel::Accel;
use super::child::{Child, POLL, Place, tail};
use super::control::Control;
use super::device::QemuVersion;
use super::error::VmError;
use super::kernel::Kernel;
use super::machine::{
    Files, QEMU, environment, kernel_command_line, machine_arguments, nonce, qemu_version,
};
use super::program::find_program;
use super::qmp::{Qmp, would_block};
use super::{Boot, Guest, Outcome, cache_dir, initramfs};

const RESULTS: &str = "result port";

/// What QEMU 10.0 with several TCG threads does wrong at times. Nothing of the test has happened by
/// then, so the boot is tried again, and said aloud.
const EMULATOR_FAULTS: [&str; 3] = [
    // While the firmware or the kernel moves the windows of PCI devices: seen once in a dozen boots
    // with 16 processors.
    "iotlb_to_section: Assertion",
    // What `guest/init` says of a processor that gets neither its timer nor most other interrupts
    // from the start: seen once in 200 boots of a loaded host.
    "init: no timer on processor",
    // The kernel changes its own code by a breakpoint that it takes out again (jump labels). QEMU
    // may run what it translated while the breakpoint was there: seen twice in some 300 boots of a
    // loaded host, of 7.2 and of 10.0.
    "Oops: int3",
];

const EMULATOR_ATTEMPTS: u32 = 3;

/// How long QEMU may take to connect to us, and to end after the guest has powered off.
const QEMU_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for bytes of the guest before looking whether QEMU is still there.
const READ_SLICE: Duration = Duration::from_millis(100);

pub(super) fn run(mut guest: Guest<'_>) -> Result<Outcome, VmError> {
    let program = guest.qemu.clone().map_or_else(|| find_program(QEMU), Ok)?;
    let qemu = qemu_version(&program)?;
    let cache = cache_dir();
    let accel = guest.accel.unwrap_or_else(|| Accel::best(&cache, qemu));
    let dir = tempfile::tempdir().map_err(VmError::file(std::env::temp_dir()))?;
    let files = Files::new(&dir);
    let nonce = nonce()?;
    let mut args = machine_arguments(&guest, &files, accel, qemu);
    if let Boot::Script(script) = &guest.boot {
        let kernel = Kernel::open(&cache.join("kernel"))?;
        let env = environment(&guest, &nonce);
        let run_files = [("env", env.as_str()), ("script", script.as_str())];
        initramfs::write(
            &files.initramfs,
            &cache,
            &kernel,
            &guest.programs,
            &run_files,
        )?;
        args.extend(["-kernel".into(), kernel.image().display().to_string()]);
        args.extend(["-initrd".into(), files.initramfs.display().to_string()]);
        let command_line = kernel_command_line(guest.machine, accel)?;
        args.extend(["-append".into(), command_line]);
    }

    let mut attempt = 1;
    loop {
        match run_once(&mut guest, &files, &nonce, (&program, &args), qemu) {
            Err(VmError::Emulator { log }) if attempt < EMULATOR_ATTEMPTS => {
                attempt += 1;
                writeln!(
                    io::stderr(),
                    "RINGSIDE-RETRY: QEMU failed before the guest began: {log}"
                )
                .unwrap_or_default();
                for socket in [&files.qmp, &files.results] {
                    fs::remove_file(socket).map_err(VmError::file(socket))?;
                }
            }
            ended => return ended.map(|outcome| Outcome { accel, ..outcome }),
        }
    }
}

/// One life of QEMU.
fn run_once(
    guest: &mut Guest<'_>,
    files: &Files,
    nonce: &str,
    command: (&Path, &[String]),
    qemu: QemuVersion,
) -> Result<Outcome, VmError> {
    let started = Instant::now();
    let mut session = Session::start(guest, files, nonce, command, qemu)?;
    let exit_code = session.converse()?;
    session.finish()?;
    let log = session.child.log();
    let Session { output, boots, .. } = session;
    let console = fs::read(&files.console).map_err(VmError::file(&files.console))?;
    let console = String::from_utf8_lossy(&console).into_owned();
    let elapsed = started.elapsed();
    Ok(Outcome {
        exit_code,
        output,
        console,
        log,
        boots,
        accel: Accel::Tcg,
        elapsed,
    })
}

/// A running machine and its conversation so far.
struct Session<'g, 'h> {
    guest: &'g mut Guest<'h>,
    child: Child,
    control: Control,
    results: UnixStream,
    unread: Vec<u8>,
    nonce: &'g str,
    console: PathBuf,
    output: String,
    deadline: Instant,
    boots: u32,
    announced_reboots: u32,
    exit_code: Option<i32>,
}

impl<'g, 'h> Session<'g, 'h> {
    fn start(
        guest: &'g mut Guest<'h>,
        files: &Files,
        nonce: &'g str,
        (program, args): (&Path, &[String]),
        qemu: QemuVersion,
    ) -> Result<Self, VmError> {
        let bind = |path: &Path| UnixListener::bind(path).map_err(VmError::file(path));
        let (qmp, results) = (bind(&files.qmp)?, bind(&files.results)?);
        log::debug!("{} {}", program.display(), args.join(" "));
        let place = Place {
            namespace: guest.namespace.clone(),
            unprivileged: false,
        };
        let mut child = Child::spawn_at(&place, program, args, &files.log)?;
        let results = accept(&results, &mut child)?;
        results
            .set_read_timeout(Some(READ_SLICE))
            .map_err(VmError::channel(RESULTS))?;
        let qmp = accept(&qmp, &mut child)?;
        let qmp = Qmp::negotiate(qmp).or_else(|error| {
            // QEMU hangs up when it refuses an argument: what it says tells more.
            let status = child.wait(QEMU_LIMIT).map_err(|_unending| error)?;
            Err(child.ended(status))
        })?;
        let ports = (0..guest.hotplug_ports)
            .map(|port| format!("port{port}"))
            .collect();
        Ok(Self {
            deadline: Instant::now() + guest.timeout,
            guest,
            child,
            control: Control::new(qmp, qemu, ports),
            results,
            unread: Vec::new(),
            nonce,
            console: files.console.clone(),
            output: String::new(),
            boots: 0,
            announced_reboots: 0,
            exit_code: None,
        })
    }

    /// Listens to the guest until it is done, and gives the exit status of its script.
    fn converse(&mut self) -> Result<i32, VmError> {
        loop {
            if let Boot::Firmware(text) = &self.guest.boot
                && tail(&self.console).contains(text)
            {
                return Ok(0);
            }
            let connected = self.receive()?;
            while let Some(line) = self.next_line() {
                self.line(&line)?;
            }
            if let Some(code) = self.exit_code {
                return Ok(code);
            }
            if !connected {
                let status = self.child.wait(QEMU_LIMIT)?;
                let error = self.with_console(self.child.ended(status));
                return Err(if self.boots == 0 {
                    emulator_fault(error)
                } else {
                    error
                });
            }
            if Instant::now() >= self.deadline {
                return Err(self.timeout("the guest's script"));
            }
        }
    }

    /// Ends the machine: a guest that said goodbye powers off by itself.
    fn finish(&mut self) -> Result<(), VmError> {
        if matches!(self.guest.boot, Boot::Firmware(_)) {
            self.control.qmp().execute("quit", json!({}))?;
        }
        let status = self.child.wait(QEMU_LIMIT)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.child.ended(status))
        }
    }

    /// Takes what the guest has sent; false when QEMU has closed the port.
    fn receive(&mut self) -> Result<bool, VmError> {
        let mut buffer = [0; 4096];
        match self.results.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.unread
                    .extend_from_slice(buffer.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(error) if would_block(&error) => Ok(true),
            Err(error) => Err(VmError::channel(RESULTS)(error)),
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.unread.drain(..=end).collect();
        Some(
            String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
        )
    }

    /// A line of output, or a message, perhaps after output that did not end its line.
    fn line(&mut self, line: &str) -> Result<(), VmError> {
        let Some((before, message)) = line.split_once(self.nonce) else {
            self.print(line);
            return Ok(());
        };
        if !before.is_empty() {
            self.print(before);
        }
        log::debug!("guest message:{message}");
        let words: Vec<&str> = message.split_whitespace().collect();
        match words[..] {
            ["boot"] => self.boot(),
            ["mark", name] => self.mark(name),
            ["reboot"] => {
                self.announced_reboots += 1;
                Ok(())
            }
            ["exit", code] => {
                let code = code.parse().ok();
                self.exit_code = Some(code.ok_or_else(|| VmError::Message(message.to_owned()))?);
                Ok(())
            }
            _ => Err(VmError::Message(message.to_owned())),
        }
    }

    /// Keeps a line of the script's output.
    fn print(&mut self, line: &str) {
        log::debug!("guest: {line}");
        if let Some(watcher) = &mut self.guest.watcher {
            watcher(line);
        }
        self.output.push_str(line);
        self.output.push('\n');
    }

    fn boot(&mut self) -> Result<(), VmError> {
        self.boots += 1;
        let asked = self.announced_reboots + self.control.resets();
        if self.boots > 1 + asked.min(self.guest.reboots) {
            let console = tail(&self.console);
            return Err(VmError::UnexpectedBoot {
                boot: self.boots,
                console,
            });
        }
        let boot = self.boots.to_string();
        self.answer(&boot)
    }

    fn mark(&mut self, name: &str) -> Result<(), VmError> {
        let handler = self.guest.handlers.get_mut(name);
        let handler = handler.ok_or_else(|| VmError::Message(format!("mark {name}")))?;
        handler(&mut self.control).map_err(|source| VmError::Handler {
            name: name.to_owned(),
            source,
        })?;
        self.answer("ok")
    }

    fn answer(&mut self, text: &str) -> Result<(), VmError> {
        self.results
            .write_all(format!("{text}\n").as_bytes())
            .map_err(VmError::channel(RESULTS))
    }

    fn timeout(&self, what: &str) -> VmError {
        let what = format!("{what} (output so far: {})", self.output);
        VmError::Timeout {
            what,
            limit: self.guest.timeout,
            console: tail(&self.console),
        }
    }

    /// Adds the console to the log of a QEMU that ended early: a panic shows only there.
    fn with_console(&self, error: VmError) -> VmError {
        match error {
            VmError::Ended { name, status, log } => {
                let console = tail(&self.console);
                let log = format!("{log}; output: {}; console: {console}", self.output);
                VmError::Ended { name, status, log }
            }
            other => other,
        }
    }
}

/// Tells QEMU's own faults from other early ends.
fn emulator_fault(error: VmError) -> VmError {
    match error {
        VmError::Ended { log, .. } if EMULATOR_FAULTS.iter().any(|fault| log.contains(fault)) => {
            VmError::Emulator { log }
        }
        other => other,
    }
}

/// Takes QEMU's connection.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream, VmError> {
    listener
        .set_nonblocking(true)
        .map_err(VmError::channel(RESULTS))?;
    let deadline = Instant::now() + QEMU_LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream
                    .set_nonblocking(false)
                    .map_err(VmError::channel(RESULTS))?;
                return Ok(stream);
            }
            Err(error) if would_block(&error) => {}
            Err(error) => return Err(VmError::channel(RESULTS)(error)),
        }
        child.still_running()?;
        if Instant::now() >= deadline {
            let (what, limit) = ("QEMU to connect".to_owned(), QEMU_LIMIT);
            return Err(VmError::Timeout {
                what,
                limit,
                console: child.log_tail(),
            });
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn ended(log: &str) -> VmError {
        VmError::Ended {
            name: QEMU.to_owned(),
            status: ExitStatus::from_raw(0),
            log: log.to_owned(),
        }
    }

    #[test]
    fn only_what_is_known_of_the_emulator_is_its_fault() {
        for fault in EMULATOR_FAULTS {
            let error = emulator_fault(ended(&format!("[   17.0] {fault} 1\n")));
            assert!(matches!(error, VmError::Emulator { .. }), "{error}");
        }
        let error = emulator_fault(ended("Kernel panic - not syncing"));
        assert!(matches!(error, VmError::Ended { .. }), "{error}");
        // The second is said by a script.
        assert!(include_str!("guest/init").contains(EMULATOR_FAULTS[1]));
    }
}
