// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-fs` as a process: what it inherits, how it meets its front-end, and what its sandbox
//! leaves it.

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use ringside_fs::wire::flags::ROOT_NODE;
use ringside_tests::frontend::fuse::{FuseClient, FuseConfig};
use ringside_tests::frontend::ids::request;
use ringside_tests::frontend::raw::RawClient;
use ringside_tests::hostile::wire;
use ringside_tests::process::{Launch, Process, accept, back_end_binary};
use ringside_tests::skip;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::geteuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

const PACKAGE: &str = "ringside-fs";
const PATIENCE: Duration = Duration::from_secs(20);
/// `access(2)`.
const X_OK: u32 = 1;

macro_rules! root_or_skip {
    () => {
        if !geteuid().is_root() {
            skip!("not root");
        }
    };
}

/// A back-end that listens, with what `launch` has so far before its arguments.
fn listening(launch: Launch, share: &Path, args: &[&str]) -> Result<Process> {
    let socket = launch.socket();
    let mut process = launch
        .arg("--socket-path")
        .arg(socket)
        .arg("--shared-dir")
        .arg(share)
        .args(args)
        .spawn()?;
    process.wait_listening(PATIENCE)?;
    Ok(process)
}

fn client(stream: UnixStream) -> Result<FuseClient> {
    Ok(FuseClient::from_stream(stream, &FuseConfig::default())?)
}

/// Who has a lock of fcntl(2) on a file.
fn holder(path: &Path) -> Result<Option<u32>> {
    let file = File::options().write(true).open(path)?;
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK)?,
        l_whence: i16::try_from(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    if lock.l_type == i16::try_from(libc::F_UNLCK)? {
        return Ok(None);
    }
    Ok(Some(u32::try_from(lock.l_pid)?))
}

/// The process that serves, which the one that was started waits for.
fn serving(process: &Process) -> Result<u32> {
    let id = process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let child = children.split_whitespace().next().ok_or("no child")?;
    Ok(child.parse()?)
}

fn has_open(process: u32, path: &Path) -> Result<bool> {
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        if fs::read_link(entry?.path()).is_ok_and(|target| target == path) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn lock_left_by_libvirt_is_held_by_the_process_that_was_started_alone() -> TestResult {
    root_or_skip!();
    for sandbox in ["none", "namespace"] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().canonicalize()?.join("fs.pid");
        fs::write(&file, "")?;
        let left = dir.path().join("left.sock");
        let listener = UnixListener::bind(&left)?;
        let launch = Launch::program(env!("CARGO_BIN_EXE_descriptor-leaver"))?
            .arg(&file)
            .arg(&left)
            .arg(back_end_binary(PACKAGE)?);
        let mut process = listening(launch, dir.path(), &["--sandbox", sandbox])?;
        // Whoever is answered is served by a process in the sandbox.
        let front_end = client(process.connect(PATIENCE)?)?;
        assert_eq!(holder(&file)?, Some(process.id()), "{sandbox}");
        // Of sockets the other end is told.
        let mut other_end = accept(&listener, PATIENCE)?;
        other_end.set_read_timeout(Some(PATIENCE))?;
        assert_eq!(other_end.read(&mut [0])?, 0, "{sandbox}");
        assert!(has_open(process.id(), &file)?, "{sandbox}");
        if sandbox == "namespace" {
            assert!(!has_open(serving(&process)?, &file)?);
        }
        drop(front_end);
        assert_eq!(process.terminate(PATIENCE)?.code(), Some(0), "{sandbox}");
        assert_eq!(holder(&file)?, None, "{sandbox}");
    }
    Ok(())
}

#[test]
fn socket_that_is_passed_in_a_sandbox_is_served() -> TestResult {
    root_or_skip!();
    // As systemd does, and as libvirt does; one that nobody speaks of lies between.
    for (script, args) in [
        (
            r#"exec 4<&0 3<&0 </dev/null
            LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@""#,
            &[][..],
        ),
        (
            r#"exec 5</dev/null 9<&0 </dev/null; exec "$@""#,
            &["--fd=9"],
        ),
    ] {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("passed.sock");
        let listener = UnixListener::bind(&path)?;
        let mut launch = Launch::program("sh")?
            .args(["-c", script, "sh"])
            .arg(back_end_binary(PACKAGE)?)
            .arg("--shared-dir")
            .arg(dir.path())
            .args(args);
        launch
            .command_mut()
            .stdin(Stdio::from(OwnedFd::from(listener)));
        let mut process = launch.spawn()?;
        for _ in 0..2 {
            let mut front_end = client(UnixStream::connect(&path)?)?;
            front_end.queue().lookup(ROOT_NODE, "passed.sock")?;
        }
        assert_eq!(process.terminate(PATIENCE)?.code(), Some(0), "{args:?}");
    }
    Ok(())
}

#[test]
fn front_end_that_listens_is_connected_to_again_under_seccomp() -> TestResult {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("file"), "")?;
    let launch = Launch::back_end(PACKAGE)?;
    let path = launch.path("front-end.sock");
    let listener = UnixListener::bind(&path)?;
    let mut process = launch
        .arg("--connect")
        .arg(&path)
        .arg("--shared-dir")
        .arg(dir.path())
        .args(["--sandbox", "none", "--seccomp", "kill"])
        .spawn()?;
    for _ in 0..3 {
        let mut front_end = client(accept(&listener, PATIENCE)?)?;
        front_end.queue().lookup(ROOT_NODE, "file")?;
    }
    assert_eq!(process.terminate(PATIENCE)?.code(), Some(0));
    Ok(())
}

#[test]
fn file_that_may_be_executed_is_so_in_a_sandbox() -> TestResult {
    root_or_skip!();
    let dir = tempfile::tempdir()?;
    if statvfs(dir.path())?
        .f_flag
        .contains(StatVfsMountFlags::NOEXEC)
    {
        skip!("nothing may be executed in the directory for temporary files");
    }
    for (name, mode) in [("program", 0o755), ("text", 0o644)] {
        let path = dir.path().join(name);
        fs::write(&path, "")?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for sandbox in ["auto", "namespace", "chroot", "none"] {
        let launch = Launch::back_end(PACKAGE)?;
        let mut process = listening(launch, dir.path(), &["--sandbox", sandbox])?;
        let mut front_end = client(process.connect(PATIENCE)?)?;
        let queue = front_end.queue();
        let program = queue.lookup(ROOT_NODE, "program")?;
        queue.access(program.node, X_OK)?;
        let text = queue.lookup(ROOT_NODE, "text")?;
        let refused = queue.access(text.node, X_OK).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EACCES), "{sandbox}");
    }
    Ok(())
}

#[test]
fn limit_of_files_that_is_to_be_left_alone_is() -> TestResult {
    let dir = tempfile::tempdir()?;
    let script = r#"ulimit -S -n 600; exec "$@""#;
    let launch = Launch::program("sh")?
        .args(["-c", script, "sh"])
        .arg(back_end_binary(PACKAGE)?);
    let args = ["--sandbox", "none", "--rlimit-nofile", "0"];
    let mut process = listening(launch, dir.path(), &args)?;
    let _front_end = client(process.connect(PATIENCE)?)?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id()))?;
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .ok_or("no limit")?;
    assert_eq!(files.split_whitespace().next(), Some("600"));
    Ok(())
}

#[test]
fn f6_8_shared_file_is_refused_with_what_to_do_instead() -> TestResult {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    for sandbox in ["none", "auto"] {
        let launch = Launch::back_end(PACKAGE)?;
        let socket = launch.socket();
        let mut process = launch
            .arg("--socket-path")
            .arg(socket)
            .arg("--shared-dir")
            .arg(&file)
            .args(["--sandbox", sandbox])
            .spawn()?;
        assert_ne!(process.wait_exit(PATIENCE)?.code(), Some(0), "{sandbox}");
        let told = process.stderr();
        assert!(told.contains("not a directory"), "{told}");
        assert!(told.contains("--share NAME=PATH"), "{told}");
    }
    Ok(())
}

#[test]
fn f7_4_front_end_with_more_queues_than_offered_is_told_of_by_the_option_of_this_program()
-> TestResult {
    let dir = tempfile::tempdir()?;
    let args = ["--sandbox", "none", "--num-request-queues", "1"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    // SET_VRING_NUM of vring 9: request, flags, size; index, entries.
    let message: Vec<u8> = [8_u32, 1, 8, 9, 128]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    let mut stream = process.connect(PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&message)?;
    assert_eq!(stream.read(&mut [0])?, 0);
    process.terminate(PATIENCE)?;
    let log = process.stderr();
    assert!(log.contains("see --num-request-queues"), "{log}");
    assert!(
        !log.contains("--num-queues") && !log.contains("--queue-pairs"),
        "{log}"
    );
    Ok(())
}

#[test]
fn f6_8_start_says_what_is_served_and_how_it_is_caged() -> TestResult {
    root_or_skip!();
    let share = tempfile::tempdir()?;
    let start = |args: &[&str], what: &str, cage: &str| -> TestResult {
        let mut process = listening(Launch::back_end(PACKAGE)?, share.path(), args)?;
        let expected = format!(
            "serving {}{what}, on socket {} (mode 600), sandbox: {cage}",
            share.path().display(),
            process.socket().display(),
        );
        let log = process.poll_until("the line", PATIENCE, |process| {
            let log = process.stderr();
            Ok(log.contains("serving ").then_some(log))
        })?;
        let told: Vec<_> = log
            .lines()
            .filter(|line| line.contains("serving"))
            .collect();
        assert!(
            matches!(told[..], [line] if line.contains("INFO") && line.ends_with(&expected)),
            "{expected}, not {told:?}"
        );
        Ok(())
    };
    start(
        &["--sandbox", "chroot", "--tag", "work", "--readonly"],
        " with the tag work, read-only",
        "chroot, seccomp: kill",
    )?;
    start(
        &["--sandbox", "none", "--seccomp", "none"],
        ", read-write",
        "none, seccomp: none",
    )
}

/// crosvm asks for the tag whether or not it is offered.
#[test]
fn f7_5_front_end_that_asks_for_a_tag_that_was_not_given_is_told_to_give_it() -> TestResult {
    let dir = tempfile::tempdir()?;
    let mut process = listening(
        Launch::back_end(PACKAGE)?,
        dir.path(),
        &["--sandbox", "none"],
    )?;
    let client = wire::negotiate(RawClient::from_stream(process.connect(PATIENCE)?)?)?;
    client.request(request::GET_CONFIG, &wire::config(0, 36, 0, &[0; 36]))?;
    client.expect_closed(PATIENCE)?;
    let log = process.stderr();
    assert!(log.contains("GET_CONFIG") && log.contains("--tag"), "{log}");
    // With what it says, it is answered.
    process.terminate(PATIENCE)?;
    let args = ["--sandbox", "none", "--tag", "project"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    let client = wire::negotiate(RawClient::from_stream(process.connect(PATIENCE)?)?)?;
    let body = wire::config(0, 36, 0, &[0; 36]);
    let answer = client.call(request::GET_CONFIG, &body, PATIENCE)?;
    assert!(answer.body[12..].starts_with(b"project\0"), "{answer:?}");
    Ok(())
}

/// The lines of the README for crosvm have what crosvm needs.
#[test]
fn f7_5_readme_gives_a_tag_to_crosvm() {
    let readme = include_str!("../../README.md");
    let folders = readme.split("## Share a folder").nth(1);
    let crosvm = folders.and_then(|text| text.split("### crosvm").nth(1));
    let lines = crosvm.and_then(|text| text.split("###").next());
    let line = lines.and_then(|text| text.lines().find(|line| line.contains("ringside-fs --")));
    assert!(line.is_some_and(|line| line.contains("--tag ")), "{line:?}");
}
