// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::cli::Endpoint;
use crate::daemon::Source;
use crate::management::{self, ManagementSockets, MetricsAddress};

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

/// Leaves a socket file behind that nobody listens on.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
}

#[test]
fn bind_sets_exactly_the_mode_asked_for_under_any_umask() {
    let dir = TempDir::new().unwrap();
    // Not restored on a failed assertion: the process is about to end then.
    let before = rustix::process::umask(Mode::empty());
    for (umask, mode) in [
        (0, 0o600),
        (0, 0o660),
        (0o077, 0o666),
        (0o777, 0o600),
        (0, 0o400),
    ] {
        rustix::process::umask(Mode::from_raw_mode(umask));
        let path = dir.path().join(format!("{umask:o}-{mode:o}"));
        let bound = BoundSocket::bind(&path, mode, None).unwrap();
        assert_eq!(mode_of(bound.path()), mode, "umask {umask:o}");
    }
    rustix::process::umask(Mode::empty());
    let path = dir.path().join("private");
    let private = bind_private(&path, Mode::from_raw_mode(0o666));
    rustix::process::umask(before);
    private.unwrap();
    assert_eq!(mode_of(&path), 0o600, "before the group is set");
}

#[test]
fn bind_sets_the_group() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    // Only root may give a file to any group; others to their own.
    let group = if rustix::process::geteuid().is_root() {
        12_345
    } else {
        rustix::process::getegid().as_raw()
    };
    let _bound = BoundSocket::bind(&path, 0o660, Some(group)).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (group, 0o660));
}

#[test]
fn bind_accepts_connections() {
    let dir = TempDir::new().unwrap();
    let bound = BoundSocket::bind(&dir.path().join("s"), 0o600, None).unwrap();
    let mut client = UnixStream::connect(bound.path()).unwrap();
    client.write_all(b"x").unwrap();
    let (mut server, _) = bound.listener().accept().unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn i5_bind_on_stale_socket_replaces_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    leave_stale(&path);
    let bound = BoundSocket::bind(&path, 0o600, None).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(bound);
    assert!(!path.exists());
}

#[test]
fn i5_bind_on_live_socket_is_refused_and_leaves_it_alive() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let first = BoundSocket::bind(&path, 0o600, None).unwrap();
    let error = BoundSocket::bind(&path, 0o600, None).unwrap_err();
    assert!(matches!(error, SocketError::InUse { path: at } if at == path));
    UnixStream::connect(&path).unwrap();
    drop(first);
}

#[test]
fn i5_bind_on_socket_with_full_backlog_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let first = BoundSocket::bind(&path, 0o600, None).unwrap();
    let address = SocketAddrUnix::new(&path).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(errno) => break assert_eq!(errno, Errno::AGAIN),
        }
    }
    let error = BoundSocket::bind(&path, 0o600, None).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    drop(first);
}

#[test]
fn i5_bind_on_bound_datagram_socket_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let _alive = UnixDatagram::bind(&path).unwrap();
    let error = BoundSocket::bind(&path, 0o600, None).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
}

#[test]
fn i5_bind_on_anything_but_a_socket_is_refused_and_leaves_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let stale = dir.path().join("stale");
    leave_stale(&stale);
    let link = dir.path().join("link");
    symlink(&stale, &link).unwrap();
    let dangling = dir.path().join("dangling");
    symlink(dir.path().join("nowhere"), &dangling).unwrap();

    let cases = [
        (file.as_path(), "a regular file"),
        (dir.path(), "a directory"),
        (&link, "a symbolic link"),
        (&dangling, "a symbolic link"),
    ];
    for (path, expected) in cases {
        let error = BoundSocket::bind(path, 0o600, None).unwrap_err();
        match error {
            SocketError::NotASocket { path: at, kind } => {
                assert_eq!((at.as_path(), kind), (path, expected));
            }
            other => panic!("{}: {other}", path.display()),
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(fs::symlink_metadata(&link).is_ok() && fs::symlink_metadata(&stale).is_ok());
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn i5_bind_at_once_has_one_winner() {
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        leave_stale(&path);
        let start = Barrier::new(4);
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        BoundSocket::bind(&path, 0o600, None)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn bind_waits_for_the_lock_of_its_directory_but_not_for_ever() {
    let dir = TempDir::new().unwrap();
    let lock = lock_directory(&dir.path().join("s")).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| BoundSocket::bind(&dir.path().join("s"), 0o600, None));
        thread::sleep(LOCK_WAIT / 4);
        assert!(
            !dir.path().join("s").exists(),
            "bound under the lock of another"
        );
        waiting.join().unwrap().unwrap();
    });
    assert!(start.elapsed() >= LOCK_WAIT);
    drop(lock);
}

#[test]
fn f6_8_socket_path_that_is_too_long_is_refused_with_the_limit() {
    let dir = TempDir::new().unwrap();
    let of_length = |bytes: usize| {
        let name = bytes - dir.path().as_os_str().len() - 1;
        dir.path().join("x".repeat(name))
    };
    // The longest that is told to be possible is.
    let longest = of_length(107);
    let bound = BoundSocket::bind(&longest, 0o600, None).unwrap();
    UnixStream::connect(bound.path()).unwrap();
    for bytes in [108, 109, 205] {
        let path = of_length(bytes);
        let bind = BoundSocket::bind(&path, 0o600, None).unwrap_err();
        let connect = Source::of(Endpoint::Connect(path.clone())).unwrap_err();
        let metrics = MetricsAddress::Unix(path.clone());
        let control = ManagementSockets::bind(Some(&path), None).unwrap_err();
        let metrics = ManagementSockets::bind(None, Some(&metrics)).unwrap_err();
        let ctl = management::ctl(&path, "help", &[]).unwrap_err();
        let expected = format!("has at most 107 bytes, this one has {bytes}");
        for error in [
            bind.to_string(),
            connect.to_string(),
            control.to_string(),
            metrics.to_string(),
            ctl.to_string(),
        ] {
            assert!(error.ends_with(&expected), "{error}");
        }
    }
}

#[test]
fn f6_9_probe_of_a_live_listener_is_not_heard_by_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let live = UnixListener::bind(&path).unwrap();
    live.set_nonblocking(true).unwrap();
    for _ in 0..3 {
        let error = remove_stale(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        let error = BoundSocket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    }
    // Who accepts once, as a one-shot back-end does, finds nobody.
    let heard = live.accept().unwrap_err();
    assert_eq!(heard.kind(), io::ErrorKind::WouldBlock);
    // And then its front-end, which is the first.
    let mut front_end = UnixStream::connect(&path).unwrap();
    front_end.write_all(b"x").unwrap();
    let (mut first, _) = live.accept().unwrap();
    first.set_nonblocking(false).unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    // What it leaves behind is replaced.
    drop((first, live));
    let bound = BoundSocket::bind(&path, 0o600, None).unwrap();
    UnixStream::connect(bound.path()).unwrap();
}

#[test]
fn drop_removes_the_file_only_if_it_is_still_ours() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let first = BoundSocket::bind(&path, 0o600, None).unwrap();
    fs::remove_file(&path).unwrap();
    let second = BoundSocket::bind(&path, 0o600, None).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    drop(second);
    assert_eq!(lstat(&path).map(|_| ()), Err(Errno::NOENT));
}

#[test]
fn inherited_sockets_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap().into_raw_fd();
    let Ok(InheritedSocket::Listening(listener)) = InheritedSocket::from_number(listener) else {
        panic!("not taken as listening");
    };
    UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    let Ok(InheritedSocket::Connected(theirs)) = InheritedSocket::from_number(theirs.into_raw_fd())
    else {
        panic!("not taken as connected");
    };
    let flags = rustix::io::fcntl_getfd(&theirs).unwrap();
    assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
    // There is no copy: dropping it ends the connection.
    drop(theirs);
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
}

#[test]
fn inherited_non_sockets_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let error = InheritedSocket::from_number(file.into_raw_fd()).unwrap_err();
    assert!(matches!(error, SocketError::WrongType { .. }), "{error}");

    let unbound = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    );
    let error = InheritedSocket::from_number(unbound.unwrap().into_raw_fd()).unwrap_err();
    assert!(matches!(error, SocketError::NotConnected { .. }), "{error}");

    let datagram = UnixDatagram::unbound().unwrap();
    let error = InheritedSocket::from_number(datagram.into_raw_fd()).unwrap_err();
    assert!(matches!(error, SocketError::WrongType { .. }), "{error}");

    for fd in [-1, 1_000_000] {
        let error = InheritedSocket::from_number(fd).unwrap_err();
        assert!(
            matches!(error, SocketError::Inherited { fd: at, .. } if at == fd),
            "{error}"
        );
    }
}
