// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is known of requests by their number alone, and how large replies are at least.

use super::extension;
use super::flags::opcode;
use super::lengths::{
    NAME_MAX_BYTES, TARGET_MAX_BYTES, XATTR_NAME_MAX_BYTES, XATTR_VALUE_MAX_BYTES,
};
use super::operation::Operation;

/// Bytes of the arguments of `WRITE`; the data follow.
pub const WRITE_ARGS_BYTES: usize = 40;
/// The most data that an `IOCTL` brings (`_IOC_SIZE` has 14 bits).
pub const IOCTL_IN_MAX_BYTES: usize = 1 << 14;
/// The most entries of a `BATCH_FORGET`: 1 MiB of them, more than Linux' `/dev/fuse` hands out.
pub const BATCH_FORGET_MAX: usize = 1 << 16;
/// The most entries of a `REMOVEMAPPING` (`FUSE_REMOVEMAPPING_MAX_ENTRY`).
pub const REMOVEMAPPING_MAX: usize = 256;

/// Bytes of a pair of numbers of `BATCH_FORGET` and `REMOVEMAPPING`.
const PAIR_BYTES: usize = 16;
/// The longest structure before a name or on its own (`struct fuse_setattr_in`).
const FIELDS_BYTES: usize = 88;
/// Room for a name and its NUL.
const NAME_BYTES: usize = NAME_MAX_BYTES + 1;

/// How many bytes of arguments the server need copy at most, behind the header.
///
/// But for `WRITE` it is more than the largest request that is served, so that of a longer one
/// this many bytes are enough for the parser to refuse it (or to ignore what it would ignore).
#[must_use]
pub const fn args_limit_bytes(opcode: u32) -> usize {
    const CREATION_BYTES: usize = FIELDS_BYTES + NAME_BYTES + extension::MAX_BYTES + 1;
    match opcode {
        opcode::WRITE => WRITE_ARGS_BYTES,
        opcode::SYMLINK => CREATION_BYTES + TARGET_MAX_BYTES + 1,
        opcode::MKNOD | opcode::MKDIR | opcode::CREATE | opcode::TMPFILE => CREATION_BYTES,
        opcode::SETXATTR => FIELDS_BYTES + XATTR_NAME_MAX_BYTES + 1 + XATTR_VALUE_MAX_BYTES + 1,
        opcode::BATCH_FORGET => 8 + BATCH_FORGET_MAX * PAIR_BYTES + 1,
        opcode::REMOVEMAPPING => 4 + REMOVEMAPPING_MAX * PAIR_BYTES + 1,
        opcode::IOCTL => 32 + IOCTL_IN_MAX_BYTES + 1,
        _ => FIELDS_BYTES + 2 * NAME_BYTES + 1,
    }
}

/// Whether a request is answered; if not, neither are errors of it.
#[must_use]
pub const fn has_reply(opcode: u32) -> bool {
    !matches!(
        opcode,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY
    )
}

impl Operation<'_> {
    /// Bytes that a successful reply has at least behind its header: those of its fixed part.
    ///
    /// Data of up to the size asked for may follow, or take their place: of `READ`, `READDIR`,
    /// `READLINK`, `IOCTL`, and of `GETXATTR` and `LISTXATTR` unless they ask for the size.
    #[must_use]
    pub const fn reply_bytes(&self) -> usize {
        match self {
            Self::Lookup { .. }
            | Self::Symlink { .. }
            | Self::MkNod { .. }
            | Self::MkDir { .. }
            | Self::Link { .. } => 128,
            Self::GetAttr { .. } | Self::SetAttr(_) => 104,
            Self::Statx { .. } => 288,
            Self::Create { .. } | Self::TmpFile { .. } => 144,
            Self::Open { .. } | Self::OpenDir { .. } | Self::Ioctl(_) => 16,
            Self::Write(_)
            | Self::CopyFileRange(_)
            | Self::Lseek { .. }
            | Self::GetXattr { size_bytes: 0, .. }
            | Self::ListXattr { size_bytes: 0 } => 8,
            Self::StatFs => 80,
            Self::Init(_) => 64,
            Self::GetLock(_) => 24,
            Self::Forget { .. }
            | Self::BatchForget { .. }
            | Self::Interrupt { .. }
            | Self::NotifyReply
            | Self::ReadLink
            | Self::Unlink { .. }
            | Self::RmDir { .. }
            | Self::Rename { .. }
            | Self::Read(_)
            | Self::Release(_)
            | Self::ReleaseDir(_)
            | Self::Fsync { .. }
            | Self::FsyncDir { .. }
            | Self::SyncFs
            | Self::Flush { .. }
            | Self::SetXattr { .. }
            | Self::GetXattr { .. }
            | Self::ListXattr { .. }
            | Self::RemoveXattr { .. }
            | Self::ReadDir(_)
            | Self::ReadDirPlus(_)
            | Self::SetLock { .. }
            | Self::Access { .. }
            | Self::Destroy
            | Self::Fallocate { .. }
            | Self::SetupMapping { .. }
            | Self::RemoveMapping { .. } => 0,
        }
    }
}
