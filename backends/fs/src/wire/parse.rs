// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parser of requests: what the driver wrote, as an [`Operation`].
//!
//! Nothing is allocated, and nothing that the driver claims is believed beyond the bytes that are
//! there. A request has exactly the bytes that its operation has in `fuse.h`: one byte more or less
//! is an error, because it would mean that the two sides disagree about the layout. There are
//! these exceptions: what has no arguments may bring some all the same (the driver of Windows adds
//! bytes to `READLINK`); `INIT` may be longer than known, for it tells what the two sides agree
//! about; `NOTIFY_REPLY` is never awaited, so nobody looks at it; an extension may end in up to
//! seven bytes of padding. Unknown flags are kept as they come, and fields that only pad ignored.
//!
//! The four most frequent requests are told first, by one comparison each; the others by theme.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

mod arguments;

use arguments::{
    batch_forget, copy_file_range, create, fallocate, flush, fsync, get_attr, init, ioctl,
    last_name, last_xattr_name, lock_in, lookup, lseek, mkdir, mknod, read_in, release,
    remove_mapping, rename, set_attr, set_xattr, setup_mapping, statx, symlink, tmp_file, write_in,
};

use super::bytes::Reader;
use super::error::ParseError;
use super::flags::{InitFlags, OpenInFlags, RenameFlags, opcode};
use super::header::InHeader;
use super::operation::Operation;

impl<'a> Operation<'a> {
    /// Parses `args`, all bytes behind `header`, but without the data of `WRITE`.
    ///
    /// `negotiated` is what `INIT` agreed about; some layouts depend on it. The length that the
    /// header claims is not looked at.
    ///
    /// # Errors
    /// What is wrong with the request.
    #[inline]
    pub fn parse(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        match header.opcode {
            opcode::LOOKUP => lookup(args),
            opcode::GETATTR => Reader::exact::<16, _>(args, get_attr),
            opcode::READ => Reader::exact::<40, _>(args, read_in).map(Self::Read),
            opcode::WRITE => Reader::exact::<40, _>(args, write_in).map(Self::Write),
            _ => Self::parse_other(header, args, negotiated),
        }
    }

    /// All but those that a guest sends most often.
    #[expect(
        clippy::too_many_lines,
        reason = "one line for each number that a request may have"
    )]
    fn parse_other(
        header: &InHeader,
        args: &'a [u8],
        negotiated: InitFlags,
    ) -> Result<Self, ParseError> {
        let mut args_left = Reader::new(args);
        let fields = &mut args_left;
        match header.opcode {
            opcode::OPEN => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Open {
                    flags: fields.u32()?,
                    open_flags: OpenInFlags::from_bits_retain(fields.u32()?),
                })
            }),
            opcode::OPENDIR => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::OpenDir {
                    flags: fields.u32()?,
                })
            }),
            opcode::RELEASE => Reader::exact::<24, _>(args, release).map(Self::Release),
            opcode::RELEASEDIR => Reader::exact::<24, _>(args, release).map(Self::ReleaseDir),
            opcode::READDIR => Reader::exact::<40, _>(args, read_in).map(Self::ReadDir),
            opcode::READDIRPLUS => Reader::exact::<40, _>(args, read_in).map(Self::ReadDirPlus),
            opcode::FLUSH => Reader::exact::<24, _>(args, flush),
            opcode::FSYNC => Reader::exact::<16, _>(args, fsync)
                .map(|(handle, data_only)| Self::Fsync { handle, data_only }),
            opcode::FSYNCDIR => Reader::exact::<16, _>(args, fsync)
                .map(|(handle, data_only)| Self::FsyncDir { handle, data_only }),
            opcode::LSEEK => Reader::exact::<24, _>(args, lseek),
            opcode::FALLOCATE => Reader::exact::<32, _>(args, fallocate),
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
                let wide = header.opcode == opcode::COPY_FILE_RANGE_64;
                Reader::exact::<56, _>(args, |fields| copy_file_range(fields, wide))
            }
            opcode::GETLK => Reader::exact::<48, _>(args, lock_in).map(Self::GetLock),
            opcode::SETLK | opcode::SETLKW => {
                let waits = header.opcode == opcode::SETLKW;
                Reader::exact::<48, _>(args, lock_in).map(|lock| Self::SetLock { lock, waits })
            }
            opcode::IOCTL => ioctl(args),
            opcode::SETUPMAPPING => Reader::exact::<40, _>(args, setup_mapping),
            opcode::REMOVEMAPPING => remove_mapping(args),
            opcode::CREATE => create(header, fields, negotiated),
            opcode::TMPFILE => tmp_file(header, fields, negotiated),
            opcode::MKNOD => mknod(header, fields, negotiated),
            opcode::MKDIR => mkdir(header, fields, negotiated),
            opcode::SYMLINK => symlink(header, fields, negotiated),
            opcode::UNLINK => last_name(fields).map(|name| Self::Unlink { name }),
            opcode::RMDIR => last_name(fields).map(|name| Self::RmDir { name }),
            opcode::RENAME => {
                let new_parent = fields.u64()?;
                rename(fields, new_parent, RenameFlags::empty())
            }
            opcode::RENAME2 => {
                let new_parent = fields.u64()?;
                let flags = RenameFlags::from_bits_retain(fields.u32()?);
                fields.u32()?;
                rename(fields, new_parent, flags)
            }
            opcode::LINK => Ok(Self::Link {
                node: fields.u64()?,
                name: last_name(fields)?,
            }),
            opcode::FORGET => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Forget {
                    nlookup: fields.u64()?,
                })
            }),
            opcode::BATCH_FORGET => batch_forget(args),
            opcode::SETATTR => Reader::exact::<88, _>(args, set_attr),
            opcode::STATX => Reader::exact::<24, _>(args, statx),
            opcode::ACCESS => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Access {
                    mask: fields.u32()?,
                })
            }),
            opcode::SETXATTR => set_xattr(fields, negotiated),
            opcode::GETXATTR => {
                let size_bytes = fields.u32()?;
                fields.u32()?;
                let name = last_xattr_name(fields)?;
                Ok(Self::GetXattr { name, size_bytes })
            }
            opcode::LISTXATTR => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::ListXattr {
                    size_bytes: fields.u32()?,
                })
            }),
            opcode::REMOVEXATTR => last_xattr_name(fields).map(|name| Self::RemoveXattr { name }),
            opcode::READLINK => Ok(Self::ReadLink),
            opcode::STATFS => Ok(Self::StatFs),
            opcode::SYNCFS => Reader::exact::<8, _>(args, |_| Ok(Self::SyncFs)),
            opcode::INTERRUPT => Reader::exact::<8, _>(args, |fields| {
                Ok(Self::Interrupt {
                    unique: fields.u64()?,
                })
            }),
            opcode::INIT => init(args),
            opcode::DESTROY => Ok(Self::Destroy),
            opcode::NOTIFY_REPLY => Ok(Self::NotifyReply),
            opcode => Err(ParseError::Unsupported { opcode }),
        }
    }
}
