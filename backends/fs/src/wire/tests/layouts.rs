// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One of each request, its bytes spelled out as `fuse.h` has the structures.

use super::super::flags::{
    FallocateFlags, InitFlags, IoctlFlags, OpenInFlags, RenameFlags, SetAttrValid, WriteFlags,
    opcode,
};
use super::super::name::Name;
use super::super::operation::{
    CopyFileRange, Forgets, InitIn, IoctlIn, LockIn, LookupName, Mappings, NewFile, Operation,
    ReadIn, Release, SetAttr, Time, WriteIn,
};
use super::{WITH, d, q, s, with_bytes};

/// A request: its number, the bytes of its arguments, what it says, and the least of its reply.
pub(super) type Case = (u32, Vec<u8>, Operation<'static>, usize);

fn name(name: &'static std::ffi::CStr) -> Name<'static> {
    Name::new(name).unwrap()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn entries() -> Vec<Case> {
    let with = with_bytes;
    vec![
        (
            opcode::LOOKUP,
            s(b"ab\0"),
            Operation::Lookup {
                name: LookupName::Child(name(c"ab")),
            },
            128,
        ),
        (
            opcode::SYMLINK,
            [s(b"ln\0to/x\0"), with()].concat(),
            Operation::Symlink {
                name: name(c"ln"),
                target: c"to/x",
                with: WITH,
            },
            128,
        ),
        (
            opcode::MKNOD,
            // mode, rdev, umask, padding
            [d(0o10644), d(2), d(0o22), d(0), s(b"n\0"), with()].concat(),
            Operation::MkNod {
                name: name(c"n"),
                mode: 0o10644,
                rdev: 2,
                umask: 0o22,
                with: WITH,
            },
            128,
        ),
        (
            opcode::MKDIR,
            // mode, umask
            [d(0o755), d(0o27), s(b"dir\0"), with()].concat(),
            Operation::MkDir {
                name: name(c"dir"),
                mode: 0o755,
                umask: 0o27,
                with: WITH,
            },
            128,
        ),
        (
            opcode::CREATE,
            // flags, mode, umask, open_flags
            [d(0x8042), d(0o100_640), d(0o22), d(1), s(b"new\0"), with()].concat(),
            Operation::Create {
                name: name(c"new"),
                file: NewFile {
                    flags: 0x8042,
                    mode: 0o100_640,
                    umask: 0o22,
                    open_flags: OpenInFlags::KILL_SUIDGID,
                },
                with: WITH,
            },
            144,
        ),
        (
            opcode::TMPFILE,
            [d(2), d(0o100_600), d(0o77), d(0), s(b"/\0"), with()].concat(),
            Operation::TmpFile {
                file: NewFile {
                    flags: 2,
                    mode: 0o100_600,
                    umask: 0o77,
                    open_flags: OpenInFlags::empty(),
                },
                with: WITH,
            },
            144,
        ),
        (
            opcode::UNLINK,
            s(b"gone\0"),
            Operation::Unlink {
                name: name(c"gone"),
            },
            0,
        ),
        (
            opcode::RMDIR,
            s(b"\xff\0"),
            Operation::RmDir {
                name: name(c"\xff"),
            },
            0,
        ),
        (
            opcode::RENAME,
            // newdir; old name, new name
            [q(3), s(b"old\0new\0")].concat(),
            Operation::Rename {
                name: name(c"old"),
                new_parent: 3,
                new_name: name(c"new"),
                flags: RenameFlags::empty(),
            },
            0,
        ),
        (
            opcode::RENAME2,
            // newdir, flags, padding
            [q(4), d(2), d(0), s(b"a\0b\0")].concat(),
            Operation::Rename {
                name: name(c"a"),
                new_parent: 4,
                new_name: name(c"b"),
                flags: RenameFlags::EXCHANGE,
            },
            0,
        ),
        (
            opcode::LINK,
            // oldnodeid
            [q(5), s(b"hard\0")].concat(),
            Operation::Link {
                node: 5,
                name: name(c"hard"),
            },
            128,
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn attributes() -> Vec<Case> {
    vec![
        (
            opcode::GETATTR,
            // getattr_flags, dummy, fh
            [d(1), d(0), q(9)].concat(),
            Operation::GetAttr { handle: Some(9) },
            104,
        ),
        (
            opcode::STATX,
            // getattr_flags, reserved, fh, sx_flags, sx_mask
            [d(1), d(0), q(9), d(0x4000), d(0xfff)].concat(),
            Operation::Statx {
                handle: Some(9),
                flags: 0x4000,
                mask: 0xfff,
            },
            288,
        ),
        (
            opcode::SETATTR,
            [
                // valid, padding, fh, size, lock_owner
                [d(0x241), d(0), q(1), q(2), q(3)].concat(),
                // atime, mtime, ctime, and their nanoseconds
                [q(u64::MAX), q(5), q(6), d(7), d(8), d(9)].concat(),
                // mode, unused4, uid, gid, unused5
                [d(10), d(0), d(11), d(12), d(0)].concat(),
            ]
            .concat(),
            Operation::SetAttr(SetAttr {
                valid: SetAttrValid::MODE | SetAttrValid::HANDLE | SetAttrValid::LOCKOWNER,
                handle: 1,
                size_bytes: 2,
                lock_owner: 3,
                atime: Time::new(u64::MAX, 7),
                mtime: Time::new(5, 8),
                ctime: Time::new(6, 9),
                mode: 10,
                uid: 11,
                gid: 12,
            }),
            104,
        ),
        (opcode::READLINK, vec![], Operation::ReadLink, 0),
        (
            opcode::ACCESS,
            // mask, padding
            [d(4), d(0)].concat(),
            Operation::Access { mask: 4 },
            0,
        ),
        (
            opcode::SETXATTR,
            // size, flags, setxattr_flags, padding
            [d(3), d(1), d(1), d(0), s(b"user.x\0val")].concat(),
            Operation::SetXattr {
                name: c"user.x",
                value: b"val",
                flags: 1,
                kills_sgid: true,
            },
            0,
        ),
        (
            opcode::GETXATTR,
            // size, padding
            [d(0), d(0), s(b"user.x\0")].concat(),
            Operation::GetXattr {
                name: c"user.x",
                size_bytes: 0,
            },
            8,
        ),
        (
            opcode::LISTXATTR,
            [d(u32::MAX), d(0)].concat(),
            Operation::ListXattr {
                size_bytes: u32::MAX,
            },
            0,
        ),
        (
            opcode::REMOVEXATTR,
            s(b"user.y\0"),
            Operation::RemoveXattr { name: c"user.y" },
            0,
        ),
        (opcode::FORGET, q(6), Operation::Forget { nlookup: 6 }, 0),
        (
            opcode::BATCH_FORGET,
            // count, dummy; nodeid and nlookup of each
            [d(2), d(0), q(10), q(1), q(11), q(u64::MAX)].concat(),
            Operation::BatchForget {
                forgets: Forgets(&[
                    [[10, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]],
                    [[11, 0, 0, 0, 0, 0, 0, 0], [255; 8]],
                ]),
            },
            0,
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn files() -> Vec<Case> {
    let open = |flags| [d(flags), d(1)].concat();
    let release = || [q(1), d(2), d(3), q(4)].concat();
    let released = Release {
        handle: 1,
        flags: 2,
        release_flags: 3,
        lock_owner: 4,
    };
    // fh, offset, size, read_flags, lock_owner, flags, padding
    let read = || [q(1), q(2), d(3), d(2), q(5), d(6), d(0)].concat();
    let read_in = ReadIn {
        handle: 1,
        offset_bytes: 2,
        size_bytes: 3,
        read_flags: 2,
        lock_owner: 5,
        flags: 6,
    };
    vec![
        (
            opcode::OPEN,
            // flags, open_flags
            open(0x8001),
            Operation::Open {
                flags: 0x8001,
                open_flags: OpenInFlags::KILL_SUIDGID,
            },
            16,
        ),
        (
            opcode::OPENDIR,
            [d(0x10000), d(0)].concat(),
            Operation::OpenDir { flags: 0x10000 },
            16,
        ),
        (opcode::RELEASE, release(), Operation::Release(released), 0),
        (
            opcode::RELEASEDIR,
            release(),
            Operation::ReleaseDir(released),
            0,
        ),
        (opcode::READ, read(), Operation::Read(read_in), 0),
        (opcode::READDIR, read(), Operation::ReadDir(read_in), 0),
        (
            opcode::READDIRPLUS,
            read(),
            Operation::ReadDirPlus(read_in),
            0,
        ),
        (
            opcode::WRITE,
            // fh, offset, size, write_flags, lock_owner, flags, padding
            [q(1), q(2), d(3), d(5), q(4), d(6), d(0)].concat(),
            Operation::Write(WriteIn {
                handle: 1,
                offset_bytes: 2,
                size_bytes: 3,
                write_flags: WriteFlags::CACHE | WriteFlags::KILL_SUIDGID,
                lock_owner: 4,
                flags: 6,
            }),
            8,
        ),
        (
            opcode::FLUSH,
            // fh, unused, padding, lock_owner
            [q(1), d(0), d(0), q(2)].concat(),
            Operation::Flush {
                handle: 1,
                lock_owner: 2,
            },
            0,
        ),
        (
            opcode::FSYNC,
            // fh, fsync_flags, padding
            [q(1), d(1), d(0)].concat(),
            Operation::Fsync {
                handle: 1,
                data_only: true,
            },
            0,
        ),
        (
            opcode::FSYNCDIR,
            [q(2), d(0), d(0)].concat(),
            Operation::FsyncDir {
                handle: 2,
                data_only: false,
            },
            0,
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn ranges() -> Vec<Case> {
    // fh, owner, start, end, type, pid, lk_flags, padding
    let lock = || [q(1), q(2), q(3), q(4), d(5), d(6), d(1), d(0)].concat();
    let lock_in = LockIn {
        handle: 1,
        owner: 2,
        start: 3,
        end: 4,
        kind: 5,
        pid: 6,
        flock: true,
    };
    // fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
    let copy = || [q(1), q(2), q(3), q(4), q(5), q(6), q(7)].concat();
    let copied = |wide| {
        Operation::CopyFileRange(CopyFileRange {
            handle_in: 1,
            offset_in_bytes: 2,
            node_out: 3,
            handle_out: 4,
            offset_out_bytes: 5,
            len_bytes: 6,
            flags: 7,
            wide,
        })
    };
    let set_lock = |waits| Operation::SetLock {
        lock: lock_in,
        waits,
    };
    vec![
        (opcode::GETLK, lock(), Operation::GetLock(lock_in), 24),
        (opcode::SETLK, lock(), set_lock(false), 0),
        (opcode::SETLKW, lock(), set_lock(true), 0),
        (opcode::COPY_FILE_RANGE, copy(), copied(false), 8),
        (opcode::COPY_FILE_RANGE_64, copy(), copied(true), 8),
        (
            opcode::IOCTL,
            // fh, flags, cmd, arg, in_size, out_size
            [q(1), d(0x10), d(3), q(4), d(2), d(6), s(b"in")].concat(),
            Operation::Ioctl(IoctlIn {
                handle: 1,
                flags: IoctlFlags::DIR,
                command: 3,
                argument: 4,
                data: b"in",
                out_size_bytes: 6,
            }),
            16,
        ),
        (
            opcode::FALLOCATE,
            // fh, offset, length, mode, padding
            [q(1), q(2), q(3), d(3), d(0)].concat(),
            Operation::Fallocate {
                handle: 1,
                offset_bytes: 2,
                len_bytes: 3,
                mode: FallocateFlags::from_bits_retain(3),
            },
            0,
        ),
        (
            opcode::LSEEK,
            // fh, offset, whence, padding
            [q(1), q(2), d(99), d(0)].concat(),
            Operation::Lseek {
                handle: 1,
                offset_bytes: 2,
                whence: 99,
            },
            8,
        ),
        (
            opcode::SETUPMAPPING,
            // fh, foffset, len, flags, moffset
            [q(1), q(2), q(3), q(4), q(5)].concat(),
            Operation::SetupMapping {
                handle: 1,
                file_offset_bytes: 2,
                len_bytes: 3,
                flags: 4,
                window_offset_bytes: 5,
            },
            0,
        ),
        (
            opcode::REMOVEMAPPING,
            // count; moffset and len of each
            [d(1), q(6), q(7)].concat(),
            Operation::RemoveMapping {
                mappings: Mappings(&[[[6, 0, 0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0]]]),
            },
            0,
        ),
    ]
}

fn connection() -> Vec<Case> {
    vec![
        (
            opcode::INIT,
            // major, minor, max_readahead, flags, flags2, unused
            [d(7), d(45), d(0x20000), d(0x4000_0001), d(1), s(&[0; 44])].concat(),
            Operation::Init(InitIn {
                major: 7,
                minor: 45,
                max_readahead_bytes: 0x20000,
                flags: InitFlags::ASYNC_READ | InitFlags::INIT_EXT | InitFlags::SECURITY_CTX,
            }),
            64,
        ),
        (opcode::STATFS, vec![], Operation::StatFs, 80),
        (opcode::SYNCFS, q(0), Operation::SyncFs, 0),
        (
            opcode::INTERRUPT,
            q(77),
            Operation::Interrupt { unique: 77 },
            0,
        ),
        (opcode::DESTROY, vec![], Operation::Destroy, 0),
        // dummy1, offset, size, dummy2, dummy3, dummy4
        (opcode::NOTIFY_REPLY, vec![0; 40], Operation::NotifyReply, 0),
    ]
}

/// One of each request.
pub(super) fn cases() -> Vec<Case> {
    [entries(), attributes(), files(), ranges(), connection()].concat()
}
