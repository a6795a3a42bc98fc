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
use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::{CopyFileRange, SetAttr};
use ringside_frontend::fuse::{FuseClient, FuseConfig, Request};
use ringside_frontend::ids::request;
use ringside_tests::hostile::{negotiated, wire};
use ringside_tests::process::{Launch, Process, accept, back_end_binary};
use ringside_tests::skip;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Signal, geteuid};

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
fn hangup_is_ignored_and_the_share_served_on() -> TestResult {
    let dir = tempfile::tempdir()?;
    for sandbox in ["auto", "none"] {
        let launch = Launch::back_end(PACKAGE)?;
        let mut process = listening(launch, dir.path(), &["--sandbox", sandbox])?;
        let mut front_end = client(process.connect(PATIENCE)?)?;
        for _ in 0..3 {
            process.signal(Signal::HUP)?;
            front_end.queue().getattr(ROOT_NODE, None)?;
        }
        assert!(process.try_exit()?.is_none(), "{sandbox}");
        assert!(process.terminate(PATIENCE)?.success(), "{sandbox}");
    }
    Ok(())
}

#[test]
fn share_that_is_read_only_is_not_changed_by_any_operation() -> TestResult {
    const FLAGS: u32 = 0x4008_6602;
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("file"), "as it was")?;
    fs::create_dir(dir.path().join("dir"))?;
    let args = ["--sandbox", "none", "--readonly", "--xattr"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    let mut front_end = client(process.connect(PATIENCE)?)?;
    let queue = front_end.queue();
    let file = queue.lookup(ROOT_NODE, "file")?.node;
    let handle = queue.open(file, 0)?.handle;
    assert_eq!(queue.read(file, handle, 0, 64)?, b"as it was");
    let set = SetAttr {
        valid: SetAttrValid::SIZE,
        ..SetAttr::default()
    };
    let copy = CopyFileRange {
        handle_in: handle,
        node_out: file,
        handle_out: handle,
        len_bytes: 1,
        ..CopyFileRange::default()
    };
    let [to_write, to_cut] = [libc::O_RDWR, libc::O_TRUNC].map(i32::cast_unsigned);
    for request in [
        Request::setattr(file, &set),
        Request::symlink(ROOT_NODE, "new", "file"),
        Request::mknod(ROOT_NODE, "new", libc::S_IFREG | 0o644, 0, 0),
        Request::mkdir(ROOT_NODE, "new", 0o755, 0),
        Request::unlink(ROOT_NODE, "file"),
        Request::rmdir(ROOT_NODE, "dir"),
        Request::rename((ROOT_NODE, "file"), (ROOT_NODE, "new"), 0),
        Request::link(file, ROOT_NODE, "new"),
        Request::open(file, to_write),
        Request::open(file, to_cut),
        Request::create(ROOT_NODE, "new", to_write, 0o644, 0),
        Request::tmpfile(ROOT_NODE, to_write, 0o644, 0),
        Request::write(file, handle, 0, 4),
        Request::setxattr(file, "user.a", b"value", 0, false),
        Request::removexattr(file, "user.a"),
        Request::fallocate(file, handle, 0, 4096, 0),
        Request::copy_file_range(file, &copy),
        Request::ioctl(file, handle, FLAGS, &[0; 4], 0),
    ] {
        let refused = queue.call(&request).map_err(|error| error.errno());
        assert_eq!(refused, Err(Some(libc::EROFS)), "{request:?}");
    }
    assert_eq!(fs::read(dir.path().join("file"))?, b"as it was");
    let left: std::io::Result<Vec<_>> = fs::read_dir(dir.path())?.collect();
    assert_eq!(left?.len(), 2);
    Ok(())
}

#[test]
fn guest_is_told_for_how_long_it_may_believe() -> TestResult {
    const DAY_S: u64 = 24 * 60 * 60;
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("file"), "")?;
    for (args, entry_s, attr_s) in [
        (&[][..], 1, 1),
        (&["--cache", "auto"], 1, 1),
        (&["--cache", "always"], DAY_S, DAY_S),
        (&["--cache", "metadata"], DAY_S, DAY_S),
        (&["--cache", "never"], 0, 0),
        (&["--entry-timeout", "7", "--attr-timeout", "9"], 7, 9),
    ] {
        let args = [&["--sandbox", "none"], args].concat();
        let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
        let mut front_end = client(process.connect(PATIENCE)?)?;
        let entry = front_end.queue().lookup(ROOT_NODE, "file")?;
        let told = (entry.entry_timeout.seconds, entry.attr_timeout.seconds);
        assert_eq!(told, (entry_s, attr_s), "{args:?}");
    }
    let args = ["--sandbox", "none", "--negative-timeout", "5"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    let mut front_end = client(process.connect(PATIENCE)?)?;
    let none = front_end.queue().lookup(ROOT_NODE, "none")?;
    assert_eq!((none.node, none.entry_timeout.seconds), (0, 5));
    Ok(())
}

#[test]
fn nodes_beyond_the_most_that_are_wanted_are_refused_until_some_are_forgotten() -> TestResult {
    let dir = tempfile::tempdir()?;
    for number in 0..64 {
        fs::write(dir.path().join(number.to_string()), "")?;
    }
    let args = ["--sandbox", "none", "--max-nodes", "32"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    let mut front_end = client(process.connect(PATIENCE)?)?;
    let queue = front_end.queue();
    let mut known = Vec::new();
    let refused = loop {
        match queue.lookup(ROOT_NODE, known.len().to_string()) {
            Ok(entry) => known.push(entry.node),
            Err(error) => break error.errno(),
        }
    };
    assert_eq!(refused, Some(libc::ENFILE));
    // The root is one as well.
    assert!((30..=32).contains(&known.len()), "{}", known.len());
    queue.forget(known[0], 1)?;
    queue.lookup(ROOT_NODE, "63")?;
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
        Ok(process.expect_served(&expected, PATIENCE)?)
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
    let client = negotiated(process.connect(PATIENCE)?, PATIENCE)?;
    client.request(request::GET_CONFIG, &wire::config(0, 36, 0, &[0; 36]))?;
    client.expect_closed(PATIENCE)?;
    let log = process.stderr();
    assert!(log.contains("GET_CONFIG") && log.contains("--tag"), "{log}");
    // With what it says, it is answered.
    process.terminate(PATIENCE)?;
    let args = ["--sandbox", "none", "--tag", "project"];
    let mut process = listening(Launch::back_end(PACKAGE)?, dir.path(), &args)?;
    let client = negotiated(process.connect(PATIENCE)?, PATIENCE)?;
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
