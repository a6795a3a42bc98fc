// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unix sockets: binding one without surprises, and taking over one that was handed to us.
//!
//! [`BoundSocket::bind`] follows these rules:
//! - A socket file without a listener (left over by a crash) is replaced. One with a live listener,
//!   a regular file, a directory or a symbolic link is refused.
//! - The mode is never wider than asked for, not even between `bind` and `chmod`, whatever the
//!   umask: the socket starts with the owner's bits only, then gets its group, then its mode.
//! - Two back-ends started at once with one path cannot both win: the steps are done under a lock
//!   of the directory.
//! - At drop the file is removed if it is still the one we made.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, warn};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, chmod, chownat, fchmod, flock,
    fstat, lstat, open, unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};
use thiserror::Error;

use crate::inherited::take_over;

/// Connections the kernel holds for us until we accept them. One front-end at a time is the rule;
/// the rest is for those that retry while we drain.
const BACKLOG: i32 = 16;

/// The longest path of a Unix socket: `sun_path` less the zero at its end, see unix(7).
pub const MAX_PATH_BYTES: usize = 107;

/// How long to wait for another back-end that binds in the same directory.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Why a socket could not be bound or taken over.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A live process listens on the path.
    #[error("{path}: another process listens on this socket")]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path exists and is no socket.
    #[error("{path}: exists and is {kind}, not a socket; not replaced")]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
        /// What is there instead.
        kind: &'static str,
    },
    /// The kernel has no room for the path.
    #[error(
        "{path}: the path of a socket has at most {MAX_PATH_BYTES} bytes, this one has {bytes}"
    )]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A system call failed.
    #[error("{path}: cannot {action}")]
    System {
        /// The path asked for.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// An inherited file descriptor could not be used.
    #[error("file descriptor {fd}: cannot be taken over")]
    Inherited {
        /// Its number.
        fd: i32,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// An inherited file descriptor is something else.
    #[error("file descriptor {fd}: not a Unix stream socket")]
    WrongType {
        /// Its number.
        fd: i32,
    },
    /// An inherited socket is neither listening nor connected.
    #[error("file descriptor {fd}: neither listening nor connected")]
    NotConnected {
        /// Its number.
        fd: i32,
    },
}

/// Refuses a path that no socket can have; the kernel's own word for it does not tell the limit.
///
/// # Errors
/// [`SocketError::PathTooLong`].
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_PATH_BYTES {
        let path = path.to_owned();
        return Err(SocketError::PathTooLong { path, bytes });
    }
    Ok(())
}

/// A listening Unix socket that we bound and whose file we remove at drop.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Refers to the socket file. While it is open its inode number cannot be given to another.
    inode: OwnedFd,
}

impl BoundSocket {
    /// Binds `path` with exactly the permission bits `mode` and, if given, the group `group`, and
    /// listens on it.
    ///
    /// # Errors
    ///
    /// See [`SocketError`]: the path is taken, or a system call failed.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, SocketError> {
        check_path(path)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let _lock = lock_directory(path);
        let (socket, inode) = bind_replacing_stale(path, mode)?;
        // Made before the steps that can fail, so that its drop removes the file.
        let bound = Self {
            listener: UnixListener::from(socket),
            path: path.to_owned(),
            inode,
        };
        bound.set_owner_and_mode(mode, group)?;
        listen(&bound.listener, BACKLOG).map_err(system(path, "listen"))?;
        Ok(bound)
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The path it was bound to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Group first, wider mode second: never is the wrong group let in. Both through the inode, so
    /// that no process can slip another file under the path in between.
    fn set_owner_and_mode(&self, mode: Mode, group: Option<u32>) -> Result<(), SocketError> {
        if let Some(group) = group {
            chownat(
                &self.inode,
                "",
                None,
                Some(Gid::from_raw(group)),
                AtFlags::EMPTY_PATH,
            )
            .map_err(system(&self.path, "set the group"))?;
        }
        let stat = fstat(&self.inode).map_err(system(&self.path, "stat"))?;
        if permissions(&stat) != mode {
            chmod(format!("/proc/self/fd/{}", self.inode.as_raw_fd()), mode)
                .map_err(system(&self.path, "set the mode"))?;
        }
        Ok(())
    }

    fn is_still_ours(&self) -> bool {
        match (fstat(&self.inode), lstat(&self.path)) {
            (Ok(ours), Ok(there)) => same_inode(&ours, &there),
            _ => false,
        }
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if !self.is_still_ours() {
            debug!("{}: no longer our socket, left alone", self.path.display());
        } else if let Err(error) = unlink(&self.path) {
            warn!("{}: cannot remove the socket: {error}", self.path.display());
        }
    }
}

/// A socket that our parent opened for us.
#[derive(Debug)]
pub enum InheritedSocket {
    /// It listens; front-ends will connect to it.
    Listening(UnixListener),
    /// It is one connection to a front-end.
    Connected(UnixStream),
}

impl InheritedSocket {
    /// Takes over file descriptor `fd`, which our parent left open for us.
    ///
    /// To be called at start, before this process opens descriptors of its own, see
    /// [`inherited`](crate::inherited).
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it is not open, not a Unix stream socket, or not connected.
    pub fn from_number(fd: RawFd) -> Result<Self, SocketError> {
        let owned = take_over(fd).map_err(|source| SocketError::Inherited { fd, source })?;
        Self::from_owned(owned, fd)
    }

    /// Tells a listening socket from a connected one. `number` is for error messages.
    fn from_owned(socket: OwnedFd, number: RawFd) -> Result<Self, SocketError> {
        let is_unix_stream = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        if !is_unix_stream {
            return Err(SocketError::WrongType { fd: number });
        }
        let listens =
            sockopt::socket_acceptconn(&socket).map_err(|errno| SocketError::Inherited {
                fd: number,
                source: errno.into(),
            })?;
        if listens {
            return Ok(Self::Listening(UnixListener::from(socket)));
        }
        let stream = UnixStream::from(socket);
        match stream.peer_addr() {
            Ok(_) => Ok(Self::Connected(stream)),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(SocketError::NotConnected { fd: number })
            }
            Err(source) => Err(SocketError::Inherited { fd: number, source }),
        }
    }
}

/// Locks the directory of `path` against other back-ends that bind there.
///
/// Anyone who may read the directory may hold this lock, so it must not be able to stop us: after
/// [`LOCK_WAIT`] we go on without. It only orders back-ends that start at the same moment.
fn lock_directory(path: &Path) -> Option<File> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or_else(|| Path::new("."))).ok()?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(_) => return None,
        }
    }
}

/// Binds, once more after removing a stale socket. Returns the socket and its file.
fn bind_replacing_stale(path: &Path, mode: Mode) -> Result<(OwnedFd, OwnedFd), SocketError> {
    match bind_private(path, mode) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path)?;
            bind_private(path, mode)
        }
        bound => bound,
    }
    .map_err(system(path, "bind"))
}

/// Binds a socket whose file carries at most the owner's bits of `mode`.
///
/// Linux takes the mode of the file from the unbound socket, less the umask. That is tighter than
/// setting the umask, which belongs to all threads of the process.
fn bind_private(path: &Path, mode: Mode) -> Result<(OwnedFd, OwnedFd), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    fchmod(&socket, mode & Mode::RWXU)?;
    bind(&socket, &address)?;
    let inode = open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if FileType::from_raw_mode(fstat(&inode)?.st_mode) != FileType::Socket {
        // Another process that may write the directory has swapped the file already.
        return Err(Errno::EXIST);
    }
    Ok((socket, inode))
}

/// Removes the socket file at `path` if it has no listener.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let before = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(system(path, "stat")(errno)),
    };
    match FileType::from_raw_mode(before.st_mode) {
        FileType::Socket => (),
        other => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
                kind: kind(other),
            });
        }
    }
    if has_listener(path).map_err(system(path, "probe"))? {
        return Err(SocketError::InUse {
            path: path.to_owned(),
        });
    }
    let after = lstat(path).map_err(system(path, "stat"))?;
    if !same_inode(&before, &after) {
        return Err(SocketError::InUse {
            path: path.to_owned(),
        });
    }
    debug!("{}: replacing a stale socket", path.display());
    unlink(path).map_err(system(path, "remove the stale socket"))
}

/// Whether a socket is bound to `path`, in whatever network namespace.
///
/// A listener must not take us for a front-end, so we ask as a datagram socket: the kernel then
/// says that the type is wrong, and the listener does not notice. Only a plain refusal means that
/// there is no listener; a missing permission is a sign of life.
fn has_listener(path: &Path) -> Result<bool, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok(connect(&probe, &address) != Err(Errno::CONNREFUSED))
}

fn same_inode(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o777)
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "a device node",
        _ => "of an unknown kind",
    }
}

fn system(path: &Path, action: &'static str) -> impl FnOnce(Errno) -> SocketError {
    move |errno| SocketError::System {
        path: path.to_owned(),
        action,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests;
