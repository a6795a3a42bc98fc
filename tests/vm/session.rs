// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run of a machine: QEMU's arguments, the conversation with the guest, the end.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::accel::Accel;
use super::child::{Child, POLL, tail};
use super::control::Control;
use super::device::QemuVersion;
use super::error::VmError;
use super::kernel::{Kernel, run_program};
use super::qmp::{Qmp, would_block};
use super::{Boot, Guest, Outcome, cache_dir, initramfs};

const QEMU: &str = "qemu-system-x86_64";
const RESULTS: &str = "result port";

/// QEMU 10.0 with several TCG threads can lose a race while the firmware or the kernel moves the
/// windows of PCI devices, and abort on this assertion: seen once in a dozen boots with 16 processors.
/// Nothing of the test has happened by then, so the boot is tried again, and said aloud.
const EMULATOR_RACE: &str = "iotlb_to_section: Assertion";

const EMULATOR_ATTEMPTS: u32 = 3;

/// How long QEMU may take to connect to us, and to end after the guest has powered off.
const QEMU_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for bytes of the guest before looking whether QEMU is still there.
const READ_SLICE: Duration = Duration::from_millis(100);

/// The kernel keeps to errors so that the console stays short; a panic reboots at once, which
/// ends QEMU (`-no-reboot`) or is seen as an unexpected boot.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 memhp_default_state=online";

pub(super) fn run(mut guest: Guest<'_>) -> Result<Outcome, VmError> {
    let qemu = qemu_version()?;
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
        args.extend(["-append".into(), KERNEL_COMMAND_LINE.into()]);
    }

    let mut attempt = 1;
    loop {
        match run_once(&mut guest, &files, &nonce, &args, qemu) {
            Err(VmError::Emulator { log }) if attempt < EMULATOR_ATTEMPTS => {
                attempt += 1;
                writeln!(
                    io::stderr(),
                    "RINGSIDE-RETRY: QEMU aborted before the guest began: {log}"
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
    args: &[String],
    qemu: QemuVersion,
) -> Result<Outcome, VmError> {
    let started = Instant::now();
    let mut session = Session::start(guest, files, nonce, args, qemu)?;
    let exit_code = session.converse()?;
    session.finish()?;
    let Session { output, boots, .. } = session;
    let console = fs::read(&files.console).map_err(VmError::file(&files.console))?;
    let console = String::from_utf8_lossy(&console).into_owned();
    let elapsed = started.elapsed();
    Ok(Outcome {
        exit_code,
        output,
        console,
        boots,
        accel: Accel::Tcg,
        elapsed,
    })
}

/// The files of one run.
#[derive(Debug)]
struct Files {
    qmp: PathBuf,
    results: PathBuf,
    console: PathBuf,
    log: PathBuf,
    initramfs: PathBuf,
}

impl Files {
    fn new(dir: &TempDir) -> Self {
        let path = |name: &str| dir.path().join(name);
        Self {
            qmp: path("qmp"),
            results: path("results"),
            console: path("console"),
            log: path("qemu.log"),
            initramfs: path("initramfs"),
        }
    }
}

/// QEMU's arguments, but for what it boots.
fn machine_arguments(
    guest: &Guest<'_>,
    files: &Files,
    accel: Accel,
    qemu: QemuVersion,
) -> Vec<String> {
    let mut args: Vec<String> = accel.arguments().map(String::from).into();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let memory_slots = guest.memory_slots.map_or(String::new(), |(n, max)| {
        format!(",slots={n},maxmem={max}M")
    });
    add("-m", format!("{}M{memory_slots}", guest.memory_mib));
    add("-smp", guest.cpus.to_string());
    if guest.numa_nodes == 0 {
        add("-machine", "q35,memory-backend=mem0".into());
        add("-object", memory_object(0, guest.memory_mib));
    } else {
        add("-machine", "q35".into());
        for node in 0..guest.numa_nodes {
            add(
                "-object",
                memory_object(node, guest.memory_mib / u64::from(guest.numa_nodes)),
            );
            add("-numa", format!("node,nodeid={node},memdev=mem{node}"));
        }
    }
    add("-display", "none".into());
    add("-serial", format!("file:{}", files.console.display()));
    add(
        "-chardev",
        format!("socket,id=results,path={}", files.results.display()),
    );
    add("-serial", "chardev:results".into());
    add(
        "-chardev",
        format!("socket,id=qmp,path={}", files.qmp.display()),
    );
    add("-mon", "chardev=qmp,mode=control".into());
    for port in 0..guest.hotplug_ports {
        add(
            "-device",
            format!("pcie-root-port,id=port{port},chassis={port},slot={port}"),
        );
    }
    args.extend(
        guest
            .devices
            .iter()
            .flat_map(|device| device.arguments(qemu)),
    );
    args.push("-nodefaults".into());
    if guest.reboots == 0 {
        args.push("-no-reboot".into());
    }
    args.extend(guest.extra.iter().cloned());
    args
}

fn memory_object(index: u32, mib: u64) -> String {
    format!("memory-backend-memfd,id=mem{index},size={mib}M,share=on")
}

/// The file of shell variables the guest starts with.
fn environment(guest: &Guest<'_>, nonce: &str) -> String {
    let mut text = format!("export NONCE={nonce}\n");
    for (name, value) in &guest.env {
        let quoted = value.replace('\'', r"'\''");
        text.push_str(&format!("export {name}='{quoted}'\n"));
    }
    text
}

/// A word that nothing else prints.
fn nonce() -> Result<String, VmError> {
    let source = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(source).map_err(VmError::file(source))?;
    Ok(format!("@{}", uuid.trim()))
}

fn qemu_version() -> Result<QemuVersion, VmError> {
    static VERSION: OnceLock<Option<QemuVersion>> = OnceLock::new();
    let version = *VERSION.get_or_init(|| {
        let text = run_program(QEMU, &["--version"]).ok()?;
        QemuVersion::parse(&String::from_utf8_lossy(&text))
    });
    version.ok_or_else(|| VmError::Start {
        program: QEMU.into(),
        source: io::ErrorKind::NotFound.into(),
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
        args: &[String],
        qemu: QemuVersion,
    ) -> Result<Self, VmError> {
        let bind = |path: &Path| UnixListener::bind(path).map_err(VmError::file(path));
        let (qmp, results) = (bind(&files.qmp)?, bind(&files.results)?);
        log::debug!("{QEMU} {}", args.join(" "));
        let program = run_program("sh", &["-c", &format!("command -v {QEMU}")])?;
        let program = String::from_utf8_lossy(&program).trim().to_owned();
        let mut child = Child::spawn(Path::new(&program), args, &files.log)?;
        let results = accept(&results, &mut child)?;
        results
            .set_read_timeout(Some(READ_SLICE))
            .map_err(VmError::channel(RESULTS))?;
        let qmp = Qmp::negotiate(accept(&qmp, &mut child)?)?;
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
                let error = self.child.ended(status);
                return Err(if self.boots == 0 {
                    emulator_race(error)
                } else {
                    error
                })
                .map_err(|error| self.with_console(error));
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

/// Tells QEMU's own race from other early ends.
fn emulator_race(error: VmError) -> VmError {
    match error {
        VmError::Ended { log, .. } if log.contains(EMULATOR_RACE) => VmError::Emulator { log },
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
