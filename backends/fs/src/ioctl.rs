// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `FUSE_IOCTL`: what `chattr(1)` and `lsattr(1)` need, and nothing else.
//!
//! Linux sends the argument of such a call by value, as long as its number says, except that the
//! `long` of the flags is 32 bits. Everything else is answered with `ENOTTY`, as a file system
//! does that does not know a call: an ioctl of a guest must not reach a driver of the host.
//! Changing the immutable and append-only flags takes `CAP_LINUX_IMMUTABLE`. Projects, which
//! quotas of directories go by, are the host's alone.

use std::os::fd::BorrowedFd;

use crate::error::{Errno, Result};
use crate::sys::inode_flags::{
    FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC32_GETFLAGS,
    FS_IOC32_SETFLAGS, FS_PROJINHERIT_FL, FS_XFLAG_PROJINHERIT, FSXATTR_BYTES, Fsxattr, get_flags,
    get_fsxattr, set_flags, set_fsxattr,
};
use crate::wire::flags::IoctlFlags;
use crate::wire::operation::IoctlIn;
use ringside_common::num::usize_of;

/// A call that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ioctl {
    /// `FS_IOC_GETFLAGS`
    GetFlags,
    /// `FS_IOC_SETFLAGS`
    SetFlags(u32),
    /// `FS_IOC_FSGETXATTR`
    GetXattr,
    /// `FS_IOC_FSSETXATTR`
    SetXattr(Fsxattr),
}

/// What goes back behind `struct fuse_ioctl_out`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IoctlReply {
    /// Nothing.
    Empty,
    /// Flags.
    Flags([u8; 4]),
    /// `struct fsxattr`.
    Xattr(Fsxattr),
}

impl Ioctl {
    /// What a request asks for.
    ///
    /// # Errors
    /// `ENOTTY` for a call that is not known, or whose argument is not all there.
    pub fn decode(request: &IoctlIn<'_>) -> Result<Self> {
        if request.flags.contains(IoctlFlags::UNRESTRICTED) {
            return Err(Errno::NOTTY);
        }
        // What a 64-bit kernel passes on of 32-bit programs is said to be such. By these numbers
        // from others come calls that it has not looked at, not even at whose file it is.
        let narrow = matches!(request.command, FS_IOC32_GETFLAGS | FS_IOC32_SETFLAGS);
        if narrow && !request.flags.contains(IoctlFlags::BITS_32) {
            return Err(Errno::NOTTY);
        }
        let room = usize_of(request.out_size_bytes.into());
        match request.command {
            FS_IOC_GETFLAGS | FS_IOC32_GETFLAGS if room >= size_of::<u32>() => Ok(Self::GetFlags),
            FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS => {
                argument(request.data).map(|bytes| Self::SetFlags(u32::from_ne_bytes(bytes)))
            }
            FS_IOC_FSGETXATTR if room >= FSXATTR_BYTES => Ok(Self::GetXattr),
            FS_IOC_FSSETXATTR => argument(request.data).map(Self::SetXattr),
            _ => Err(Errno::NOTTY),
        }
    }

    /// Whether it changes something, which is not for a share that is read-only.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::SetFlags(_) | Self::SetXattr(_))
    }

    /// Does it on an open file or directory; `O_PATH` is not enough.
    ///
    /// # Errors
    /// Of `ioctl(2)`; `EPERM` for what would change whose project the file is in.
    pub fn run(self, file: BorrowedFd<'_>) -> Result<IoctlReply> {
        match self {
            Self::GetFlags => get_flags(file).map(|flags| IoctlReply::Flags(flags.to_ne_bytes())),
            Self::SetFlags(flags) => {
                let changes = get_flags(file)? ^ flags;
                keep_project(changes & FS_PROJINHERIT_FL == 0)?;
                set_flags(file, flags).map(|()| IoctlReply::Empty)
            }
            Self::GetXattr => get_fsxattr(file).map(IoctlReply::Xattr),
            Self::SetXattr(value) => {
                let now = get_fsxattr(file)?;
                let changes = number(&now, FSX_XFLAGS) ^ number(&value, FSX_XFLAGS);
                let same = number(&now, FSX_PROJID) == number(&value, FSX_PROJID);
                keep_project(same && changes & FS_XFLAG_PROJINHERIT == 0)?;
                set_fsxattr(file, value).map(|()| IoctlReply::Empty)
            }
        }
    }
}

impl IoctlReply {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Flags(bytes) => bytes,
            Self::Xattr(bytes) => bytes,
        }
    }
}

/// Where `fsx_xflags` is in `struct fsxattr`.
const FSX_XFLAGS: usize = 0;
/// Where `fsx_projid` is.
const FSX_PROJID: usize = 12;

fn number(xattr: &Fsxattr, at: usize) -> u32 {
    let bytes = xattr.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().map_or(0, u32::from_ne_bytes)
}

/// A share may be the directory of a project, with a quota that the guest must not
/// escape. The kernel would let it, since we may set quotas.
fn keep_project(kept: bool) -> Result<()> {
    if kept { Ok(()) } else { Err(Errno::PERM) }
}

/// The argument at the front of the data.
fn argument<const N: usize>(data: &[u8]) -> Result<[u8; N]> {
    data.first_chunk().copied().ok_or(Errno::NOTTY)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    const FS_NODUMP_FL: u32 = 0x40;
    const FS_XFLAG_NODUMP: u32 = 0x80;

    fn request(command: u32, data: &[u8], out_size_bytes: u32) -> IoctlIn<'_> {
        IoctlIn {
            command,
            data,
            out_size_bytes,
            // As from a kernel of 32 bits, which may use all numbers.
            flags: IoctlFlags::BITS_32,
            ..IoctlIn::default()
        }
    }

    #[test]
    fn ioctl_numbers_are_those_of_fs_h() {
        assert_eq!(FS_IOC_GETFLAGS, 0x8008_6601);
        assert_eq!(FS_IOC_SETFLAGS, 0x4008_6602);
        assert_eq!(FS_IOC32_GETFLAGS, 0x8004_6601);
        assert_eq!(FS_IOC32_SETFLAGS, 0x4004_6602);
        assert_eq!(FS_IOC_FSGETXATTR, 0x801c_581f);
        assert_eq!(FS_IOC_FSSETXATTR, 0x401c_5820);
    }

    #[test]
    fn ioctl_known_is_decoded() {
        let flags = 0x1234_5678_u32.to_ne_bytes();
        let decode = |command, data, room| Ioctl::decode(&request(command, data, room));
        for command in [FS_IOC_GETFLAGS, FS_IOC32_GETFLAGS] {
            assert_eq!(decode(command, &[], 4), Ok(Ioctl::GetFlags));
            assert_eq!(decode(command, &[], 3), Err(Errno::NOTTY));
        }
        for command in [FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS] {
            assert_eq!(decode(command, &flags, 0), Ok(Ioctl::SetFlags(0x1234_5678)));
            assert_eq!(decode(command, &flags[..3], 4), Err(Errno::NOTTY));
        }
        assert_eq!(decode(FS_IOC_FSGETXATTR, &[], 28), Ok(Ioctl::GetXattr));
        assert_eq!(decode(FS_IOC_FSGETXATTR, &[], 27), Err(Errno::NOTTY));
        assert_eq!(
            decode(FS_IOC_FSSETXATTR, &[7; 28], 0),
            Ok(Ioctl::SetXattr([7; 28]))
        );
        assert_eq!(decode(FS_IOC_FSSETXATTR, &[7; 27], 0), Err(Errno::NOTTY));
    }

    #[test]
    fn ioctl_unknown_or_unrestricted_is_refused() {
        const BLKDISCARD: u32 = 0x1277;
        let unknown = request(BLKDISCARD, &[0; 16], 16);
        assert_eq!(Ioctl::decode(&unknown), Err(Errno::NOTTY));
        let unrestricted = IoctlIn {
            flags: IoctlFlags::UNRESTRICTED,
            ..request(FS_IOC_GETFLAGS, &[], 4)
        };
        assert_eq!(Ioctl::decode(&unrestricted), Err(Errno::NOTTY));
    }

    #[test]
    fn ioctl_by_a_number_of_32_bits_is_for_programs_of_32_bits_alone() {
        let flags = 1_u32.to_ne_bytes();
        let mut request = IoctlIn {
            command: FS_IOC32_SETFLAGS,
            data: &flags,
            ..IoctlIn::default()
        };
        assert_eq!(Ioctl::decode(&request), Err(Errno::NOTTY));
        request.flags = IoctlFlags::BITS_32;
        assert_eq!(Ioctl::decode(&request), Ok(Ioctl::SetFlags(1)));
    }

    #[test]
    fn ioctl_that_sets_flags_writes() {
        assert!(Ioctl::SetFlags(0).writes());
        assert!(Ioctl::SetXattr([0; FSXATTR_BYTES]).writes());
        assert!(!Ioctl::GetFlags.writes());
        assert!(!Ioctl::GetXattr.writes());
    }

    #[test]
    fn ioctl_sets_what_it_gets() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        let run = |ioctl: Ioctl| ioctl.run(file.as_fd());
        let flags = match run(Ioctl::GetFlags) {
            Ok(IoctlReply::Flags(flags)) => u32::from_ne_bytes(flags),
            Err(error) => {
                let reason = format!("no flags on {directory:?}: {error}");
                return crate::testing::skip("ioctl_sets_what_it_gets", &reason);
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(flags & FS_NODUMP_FL, 0);
        assert_eq!(
            run(Ioctl::SetFlags(flags | FS_NODUMP_FL)),
            Ok(IoctlReply::Empty)
        );
        let Ok(IoctlReply::Flags(now)) = run(Ioctl::GetFlags) else {
            panic!()
        };
        assert_eq!(u32::from_ne_bytes(now), flags | FS_NODUMP_FL);

        let Ok(IoctlReply::Xattr(mut xattr)) = run(Ioctl::GetXattr) else {
            panic!()
        };
        let xflags = u32::from_ne_bytes(*xattr.first_chunk().unwrap());
        assert_eq!(xflags & FS_XFLAG_NODUMP, FS_XFLAG_NODUMP);
        xattr[..4].copy_from_slice(&(xflags & !FS_XFLAG_NODUMP).to_ne_bytes());
        assert_eq!(run(Ioctl::SetXattr(xattr)), Ok(IoctlReply::Empty));
        assert_eq!(
            run(Ioctl::GetFlags),
            Ok(IoctlReply::Flags(flags.to_ne_bytes()))
        );
    }

    #[test]
    fn ioctl_that_would_change_the_project_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::open(directory.path()).unwrap();
        let run = |ioctl: Ioctl| ioctl.run(file.as_fd());
        let (Ok(IoctlReply::Flags(flags)), Ok(IoctlReply::Xattr(before))) =
            (run(Ioctl::GetFlags), run(Ioctl::GetXattr))
        else {
            let reason = format!("no flags on {directory:?}");
            return crate::testing::skip("ioctl_that_would_change_the_project_is_refused", &reason);
        };
        let flags = u32::from_ne_bytes(flags);
        let inherits = Ioctl::SetFlags(flags ^ FS_PROJINHERIT_FL);
        assert_eq!(run(inherits), Err(Errno::PERM));
        for (at, bits) in [(FSX_XFLAGS, FS_XFLAG_PROJINHERIT), (FSX_PROJID, 1)] {
            let mut other = before;
            let changed = number(&before, at) ^ bits;
            other[at..at + 4].copy_from_slice(&changed.to_ne_bytes());
            assert_eq!(run(Ioctl::SetXattr(other)), Err(Errno::PERM), "{at}");
        }
        assert_eq!(run(Ioctl::GetXattr), Ok(IoctlReply::Xattr(before)));
        assert_eq!(run(Ioctl::SetXattr(before)), Ok(IoctlReply::Empty));
    }
}
