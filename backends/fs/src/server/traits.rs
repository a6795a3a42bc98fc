// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is known of an operation before it is served: one table, with a line for each.

use crate::ioctl::Ioctl;
use crate::pool::Work;
use crate::wire::flags::{MappingFlags, SetAttrValid};
use crate::wire::operation::{LookupName, Operation};

/// The kinds of operations that are counted apart.
pub const KINDS: &[&str] = &[
    "lookup",
    "metadata",
    "open",
    "read",
    "write",
    "directory",
    "sync",
    "other",
];

// Indexes of `KINDS`.
const LOOKUP: usize = 0;
const METADATA: usize = 1;
const OPEN: usize = 2;
const READ: usize = 3;
const WRITE: usize = 4;
const DIRECTORY: usize = 5;
const SYNC: usize = 6;
const OTHER: usize = 7;

/// For how long an operation may wait for a disk of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// Not for long.
    Short,
    /// Longer than others may wait with it.
    Long,
    /// For long if files are mapped into guests: what is mapped must be taken away.
    LongIfMapped,
    /// For long if the file is cut to this size and has much behind it.
    LongIfCut(u64),
}

/// What is known of an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Traits {
    /// Which of [`KINDS`] it is.
    pub kind: usize,
    /// What it is for the threads that may serve it.
    pub work: Work,
    /// For how long it may wait.
    pub wait: Wait,
    /// Whether it changes what is shared. A share that is read-only refuses it.
    pub changes: bool,
    /// Whether it opens a file of the host although it is not long. EAGAIN then says that another
    /// process has a lease on the file, and that a thread must wait for it.
    pub opens: bool,
}

impl Traits {
    /// It asks something that is answered soon.
    const fn asks(kind: usize) -> Self {
        Self {
            kind,
            work: Work::Reads,
            wait: Wait::Short,
            changes: false,
            opens: false,
        }
    }

    /// It changes what is shared.
    const fn changes(kind: usize) -> Self {
        Self {
            work: Work::Changes,
            changes: true,
            ..Self::asks(kind)
        }
    }

    /// It makes something stable, closes it, or locks it: the share itself stays as it is.
    const fn settles(kind: usize) -> Self {
        Self {
            work: Work::Changes,
            ..Self::asks(kind)
        }
    }

    const fn waits(self, wait: Wait) -> Self {
        Self { wait, ..self }
    }

    const fn opens(self) -> Self {
        Self {
            opens: true,
            ..self
        }
    }
}

impl Operation<'_> {
    /// What is known of it.
    #[must_use]
    #[inline]
    pub fn traits(&self) -> Traits {
        match self {
            // It goes all the way up, over whatever mounts there are.
            Self::Lookup {
                name: LookupName::Parent,
            } => Traits::asks(LOOKUP).waits(Wait::Long),
            Self::Lookup {
                name: LookupName::Child(_) | LookupName::Itself,
            }
            | Self::Forget { .. }
            | Self::BatchForget { .. } => Traits::asks(LOOKUP),
            Self::GetAttr { .. }
            | Self::Statx { .. }
            | Self::ReadLink
            | Self::GetXattr { .. }
            | Self::ListXattr { .. } => Traits::asks(METADATA),
            Self::SetAttr(set) if set.valid.contains(SetAttrValid::SIZE) => {
                Traits::changes(METADATA).waits(Wait::LongIfCut(set.size_bytes))
            }
            Self::SetAttr(_)
            | Self::Symlink { .. }
            | Self::MkNod { .. }
            | Self::MkDir { .. }
            | Self::Unlink { .. }
            | Self::RmDir { .. }
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. } => Traits::changes(METADATA),
            Self::Open { flags, .. } => open(*flags),
            Self::Create { .. } | Self::TmpFile { .. } => Traits::changes(OPEN),
            Self::Release(_) | Self::Flush { .. } => Traits::settles(OPEN),
            Self::Read(_) => Traits::asks(READ),
            Self::Write(_) => Traits::changes(WRITE),
            Self::OpenDir { .. } | Self::ReadDir(_) | Self::ReadDirPlus(_) => {
                Traits::asks(DIRECTORY)
            }
            Self::ReleaseDir(_) => Traits::settles(DIRECTORY),
            Self::Fsync { .. } | Self::FsyncDir { .. } | Self::SyncFs => {
                Traits::settles(SYNC).waits(Wait::Long)
            }
            Self::Fallocate { .. } | Self::CopyFileRange(_) => {
                Traits::changes(OTHER).waits(Wait::Long)
            }
            Self::SetupMapping { flags, .. } => Traits {
                changes: flags & MappingFlags::WRITE.bits() != 0,
                ..Traits::settles(OTHER).waits(Wait::Long)
            },
            Self::RemoveMapping { .. } => Traits::settles(OTHER).waits(Wait::Long),
            Self::Init(_) | Self::Destroy => Traits::asks(OTHER).waits(Wait::LongIfMapped),
            Self::SetLock { .. } => Traits::settles(OTHER),
            Self::Ioctl(request) if Ioctl::decode(request).is_ok_and(|ioctl| ioctl.writes()) => {
                Traits::changes(OTHER).opens()
            }
            Self::Ioctl(_) => Traits::asks(OTHER).opens(),
            Self::Lseek { .. } => Traits::asks(OTHER).opens(),
            Self::StatFs
            | Self::GetLock(_)
            | Self::Access { .. }
            | Self::Interrupt { .. }
            | Self::NotifyReply => Traits::asks(OTHER),
        }
    }
}

fn open(flags: u32) -> Traits {
    const TRUNCATES: u32 = libc::O_TRUNC.cast_unsigned();
    const WRITES: u32 = libc::O_ACCMODE.cast_unsigned() | TRUNCATES;
    let traits = if flags & WRITES == 0 {
        Traits::asks(OPEN)
    } else {
        Traits::changes(OPEN)
    };
    let wait = if flags & TRUNCATES == 0 {
        Wait::Short
    } else {
        Wait::LongIfCut(0)
    };
    traits.opens().waits(wait)
}
