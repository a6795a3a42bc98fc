// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making files, directories, links and special files, as the process of the guest that asks.
//!
//! A security label belongs to what is created. A file gets it before it has its name: it is made
//! without one and linked in. What cannot be made so is taken away again if it cannot be labelled.
//! So is everything that the guest cannot be told, for lack of room. A name may lead elsewhere by
//! then: the other file is neither labelled nor taken away.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringside_common::limited;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, XattrFlags, makedev};

use super::handles::Reserved;
use super::{Cx, PassThrough};
use crate::attr::device_parts;
use crate::credentials::ThreadContext;
use crate::error::{Errno, Result};
use crate::sys::{self, HOLD, OPEN, by_number};
use crate::tables::{For, Found, Key, Node};
use crate::wire::flags::{InitFlags, OpenOutFlags};
use crate::wire::name::Name;
use crate::wire::operation::{Creation, NewFile};
use crate::wire::reply::{Created, Entry, Opened};

/// What is made.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A directory.
    Directory {
        /// Its permissions.
        mode: u32,
    },
    /// A regular file without content, a FIFO, a socket or a device.
    Node {
        /// Kind and permissions.
        mode: u32,
        /// Which device.
        rdev: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: &'a CStr,
    },
}

impl Kind<'_> {
    fn make(self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        match self {
            Self::Directory { mode } => rustix::fs::mkdirat(dir, name, permissions(mode)),
            Self::Node { mode, rdev } => {
                let (major, minor) = device_parts(rdev);
                let kind = FileType::from_raw_mode(mode);
                rustix::fs::mknodat(dir, name, kind, permissions(mode), makedev(major, minor))
            }
            Self::Symlink { target } => rustix::fs::symlinkat(target, dir, name),
        }
    }

    /// Whether it can be what was made.
    fn is(self, stat: &Statx) -> bool {
        let made = match self {
            Self::Directory { .. } => FileType::Directory,
            Self::Node { mode, .. } => match FileType::from_raw_mode(mode) {
                // `mknod(2)` takes a mode without a kind for that of a regular file.
                FileType::Unknown if mode & libc::S_IFMT == 0 => FileType::RegularFile,
                kind => kind,
            },
            Self::Symlink { .. } => FileType::Symlink,
        };
        made == FileType::from_raw_mode(stat.stx_mode.into())
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

impl PassThrough {
    /// `MKDIR`, `MKNOD` and `SYMLINK`
    pub fn make(
        &self,
        cx: &mut Cx<'_>,
        name: Name<'_>,
        kind: Kind<'_>,
        umask: u32,
        with: &Creation<'_>,
    ) -> Result<Entry> {
        let parent = self.node(cx)?;
        let dir = self.nodes.fd(&parent)?;
        let dir = dir.as_fd();
        self.as_creator(cx, umask, with, || kind.make(dir, name.as_c_str()))?;
        let open = || sys::open_beneath(dir, name.as_c_str(), HOLD, Mode::empty());
        let fd = self.nodes.opening(open).inspect_err(left)?;
        let made = sys::statx_of(fd.as_fd())?;
        if !kind.is(&made) {
            // A process of the host has put another thing there: the guest must look again.
            return Err(Errno::STALE);
        }
        let found = self
            .label(cx.thread, fd.as_fd(), with)
            .and_then(|()| self.nodes.adopt_known(fd, made, parent.mount()))
            .inspect_err(|_| take_away(dir, name, &made))?;
        Ok(self.entry(&parent, &found))
    }

    /// `CREATE`
    ///
    /// # Errors
    /// Errors of the host, and ESTALE when there is such a file by now.
    pub fn create(
        &self,
        cx: &mut Cx<'_>,
        name: Name<'_>,
        file: NewFile,
        with: &Creation<'_>,
    ) -> Result<Created> {
        let parent = self.node(cx)?;
        let room = self.reserve_new()?;
        let dir = self.nodes.fd(&parent)?;
        let made = if with.security.is_some() {
            self.create_labelled(cx, dir.as_fd(), name, file, with)
        } else {
            self.open_new(cx, dir.as_fd(), name, file, with)
        };
        let fd = match made {
            Ok(fd) => fd,
            // A process of the host was faster. The guest takes the file for new and would not
            // check permissions: it must look again.
            Err(Errno::EXIST) if file.flags & libc::O_EXCL.cast_unsigned() == 0 => {
                return Err(Errno::STALE);
            }
            Err(error) => return Err(error),
        };
        let found = self.nodes.adopt_open(fd.as_fd(), parent.mount());
        let found = found.inspect_err(|_| take_away_open(dir.as_fd(), name, fd.as_fd()))?;
        self.created(&parent, &found, room, fd, file.flags)
    }

    /// `TMPFILE`: a file without a name, in the file system of a directory.
    pub fn create_nameless(
        &self,
        cx: &mut Cx<'_>,
        file: NewFile,
        with: &Creation<'_>,
    ) -> Result<Created> {
        let parent = self.node(cx)?;
        let room = self.reserve_new()?;
        let dir = self.nodes.fd(&parent)?;
        // The guest links it in later if it likes, unless it says that it will not.
        let excl = OFlags::from_bits_retain(file.flags) & OFlags::EXCL;
        let fd = self.open_nameless(cx, dir.as_fd(), file, excl, with)?;
        self.label(cx.thread, fd.as_fd(), with)?;
        let found = self.nodes.adopt_open(fd.as_fd(), parent.mount())?;
        self.created(&parent, &found, room, fd, file.flags)
    }

    /// Room for the handle of a new file. A guest that opens files without telling us tells us
    /// nothing of closing them either, not even of those it has made: they get no handle.
    fn reserve_new(&self) -> Result<Option<Reserved<'_>>> {
        if self.negotiated().contains(InitFlags::NO_OPEN_SUPPORT) {
            return Ok(None);
        }
        self.reserve(For::File).map(Some)
    }

    /// The reply for a new file, which `fd` has open. Without a handle it is closed: its node has a
    /// descriptor of it then, whether it has a name or not.
    fn created(
        &self,
        parent: &Node,
        found: &Found,
        room: Option<Reserved<'_>>,
        fd: OwnedFd,
        flags: u32,
    ) -> Result<Created> {
        let opened = match room {
            // As Linux has it of a file that it opens by itself.
            None => Opened {
                handle: 0,
                flags: OpenOutFlags::KEEP_CACHE,
            },
            Some(room) => {
                let handle = room.fill(&found.node, fd, self.host_flags(flags));
                let handle = handle.inspect_err(|_| self.nodes.unremember(&found.node))?;
                Opened {
                    handle: handle.number(),
                    flags: self.open_out_flags(flags),
                }
            }
        };
        Ok(Created {
            entry: self.entry(parent, found),
            opened,
        })
    }

    /// Makes a file that was not there.
    fn open_new(
        &self,
        cx: &mut Cx<'_>,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        file: NewFile,
        with: &Creation<'_>,
    ) -> Result<OwnedFd> {
        let flags = self.host_flags(file.flags) | OFlags::CREATE | OFlags::EXCL | OPEN;
        let mode = permissions(file.mode);
        let open = || sys::open_beneath(dir, name.as_c_str(), flags, mode);
        self.as_creator(cx, file.umask, with, || self.nodes.opening(open))
    }

    fn open_nameless(
        &self,
        cx: &mut Cx<'_>,
        dir: BorrowedFd<'_>,
        file: NewFile,
        excl: OFlags,
        with: &Creation<'_>,
    ) -> Result<OwnedFd> {
        let mut flags = self.host_flags(file.flags);
        if flags & OFlags::RWMODE == OFlags::RDONLY {
            // The kernel makes none that cannot be written.
            flags |= OFlags::RDWR;
        }
        let flags = (flags | OFlags::TMPFILE | excl | OPEN) - OFlags::NOFOLLOW - OFlags::TRUNC;
        let mode = permissions(file.mode);
        let open = || sys::open_beneath(dir, c".", flags, mode);
        self.as_creator(cx, file.umask, with, || self.nodes.opening(open))
    }

    /// A file that has its label before it has its name.
    fn create_labelled(
        &self,
        cx: &mut Cx<'_>,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        file: NewFile,
        with: &Creation<'_>,
    ) -> Result<OwnedFd> {
        match self.open_nameless(cx, dir, file, OFlags::empty(), with) {
            Ok(fd) => {
                self.label(cx.thread, fd.as_fd(), with)?;
                by_number::link(cx.thread, fd.as_fd(), dir, name.as_c_str())?;
                Ok(fd)
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let fd = self.open_new(cx, dir, name, file, with)?;
                self.label(cx.thread, fd.as_fd(), with)
                    .inspect_err(|_| take_away_open(dir, name, fd.as_fd()))?;
                Ok(fd)
            }
            Err(error) => Err(error),
        }
    }

    /// Acts as the caller, and with the permissions that it masks.
    fn as_creator<T>(
        &self,
        cx: &mut Cx<'_>,
        umask: u32,
        with: &Creation<'_>,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let caller = self.caller(cx, with)?;
        // Else the guest has masked the mode itself.
        let masks = self.negotiated().contains(InitFlags::DONT_MASK) && umask != 0;
        cx.thread.as_caller(caller, |thread| {
            if masks {
                thread.with_umask(umask, act)
            } else {
                act()
            }
        })?
    }

    fn label(&self, thread: &ThreadContext, fd: BorrowedFd<'_>, with: &Creation<'_>) -> Result<()> {
        let Some((name, value)) = with.security else {
            return Ok(());
        };
        let name = match &self.config.xattrmap {
            Some(map) => map.to_host(name)?,
            None => Cow::Borrowed(name),
        };
        by_number::setxattr(thread, fd, &name, value, XattrFlags::empty())
    }
}

/// Removes what was just made and cannot be as it should, unless its name leads elsewhere by now.
pub(super) fn take_away(dir: BorrowedFd<'_>, name: Name<'_>, made: &Statx) {
    let removed = sys::statx_at(dir, name.as_c_str()).and_then(|there| {
        if Key::of(&there) != Key::of(made) {
            return Err(Errno::STALE);
        }
        let flags = match FileType::from_raw_mode(made.stx_mode.into()) {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        rustix::fs::unlinkat(dir, name.as_c_str(), flags)
    });
    if let Err(error) = removed {
        left(&error);
    }
}

/// As [`take_away`], of what is open.
fn take_away_open(dir: BorrowedFd<'_>, name: Name<'_>, fd: BorrowedFd<'_>) {
    match sys::statx_of(fd) {
        Ok(made) => take_away(dir, name, &made),
        Err(error) => left(&error),
    }
}

fn left(error: &Errno) {
    limited!(warn, "a file that was made in vain is left: {error}");
}
