// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the client's side writes is what the server's side reads.

use std::ffi::CString;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, proptest};
use proptest::{array, prop_assert_eq};

use super::super::flags::{
    FallocateFlags, InitFlags, IoctlFlags, OpenInFlags, RenameFlags, SetAttrValid, WriteFlags,
};
use super::super::header::{IN_HEADER_BYTES, InHeader};
use super::super::name::Name;
use super::super::operation::{
    CopyFileRange, Creation, Forgets, InitIn, IoctlIn, LockIn, LookupName, Mappings, NewFile,
    Operation, ReadIn, Release, SetAttr, Time, WriteIn,
};
use super::client::encode_request;
use super::{ALL, SERVED};

/// What an operation is made of.
#[derive(Clone, Debug)]
struct Parts {
    wide: [u64; 8],
    narrow: [u32; 8],
    names: [CString; 2],
    target: CString,
    value: Vec<u8>,
    pairs: Vec<[[u8; 8]; 2]>,
    yes: bool,
    labelled: bool,
}

fn string(max_bytes: usize) -> impl Strategy<Value = CString> {
    vec(1_u8..=255, 1..=max_bytes).prop_map(|bytes| CString::new(bytes).unwrap())
}

fn names() -> impl Strategy<Value = [CString; 2]> {
    array::uniform2(string(255).prop_map(|name| {
        let bytes = name.as_bytes().iter().map(|byte| match byte {
            b'/' | b'.' => b'_',
            byte => *byte,
        });
        CString::new(bytes.collect::<Vec<_>>()).unwrap()
    }))
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        any::<([u64; 8], [u32; 8], bool, bool)>(),
        names(),
        string(4095),
        vec(any::<u8>(), 0..1000),
        vec(any::<[[u8; 8]; 2]>(), 0..20),
    )
        .prop_map(
            |((wide, narrow, yes, labelled), names, target, value, pairs)| Parts {
                wide,
                narrow,
                names,
                target,
                value,
                pairs,
                yes,
                labelled,
            },
        )
}

impl Parts {
    fn name(&self, which: usize) -> Name<'_> {
        Name::new(&self.names[which]).unwrap()
    }

    fn lookup_name(&self) -> LookupName<'_> {
        match (self.yes, self.labelled) {
            (true, _) => LookupName::Child(self.name(0)),
            (false, true) => LookupName::Itself,
            (false, false) => LookupName::Parent,
        }
    }

    fn creation(&self) -> Creation<'_> {
        Creation {
            security: self.labelled.then_some((&self.names[1], &self.value)),
            group: self.yes.then_some(self.narrow[7]),
        }
    }

    fn handle(&self) -> Option<u64> {
        self.yes.then_some(self.wide[0])
    }

    fn read(&self) -> ReadIn {
        let ([handle, offset_bytes, lock_owner, ..], [size_bytes, read_flags, flags, ..]) =
            (self.wide, self.narrow);
        ReadIn {
            handle,
            offset_bytes,
            size_bytes,
            read_flags,
            lock_owner,
            flags,
        }
    }

    fn release(&self) -> Release {
        Release {
            handle: self.wide[0],
            flags: self.narrow[0],
            release_flags: self.narrow[1],
            lock_owner: self.wide[1],
        }
    }

    fn lock(&self) -> LockIn {
        LockIn {
            handle: self.wide[0],
            owner: self.wide[1],
            start: self.wide[2],
            end: self.wide[3],
            kind: self.narrow[0],
            pid: self.narrow[1],
            flock: self.labelled,
        }
    }

    fn set_attr(&self) -> SetAttr {
        SetAttr {
            valid: SetAttrValid::from_bits_retain(self.narrow[0]),
            handle: self.wide[0],
            size_bytes: self.wide[1],
            lock_owner: self.wide[2],
            atime: Time::new(self.wide[3], self.narrow[1]),
            mtime: Time::new(self.wide[4], self.narrow[2]),
            ctime: Time::new(self.wide[5], self.narrow[3]),
            mode: self.narrow[4],
            uid: self.narrow[5],
            gid: self.narrow[6],
        }
    }

    /// The operations with names.
    fn entry(&self, which: u32) -> Option<Operation<'_>> {
        let [mode, umask, flags, rdev, ..] = self.narrow;
        let open_flags = OpenInFlags::from_bits_retain(self.narrow[4]);
        let name = self.name(0);
        let with = self.creation();
        Some(match which {
            1 => Operation::Lookup {
                name: self.lookup_name(),
            },
            6 => Operation::Symlink {
                name,
                target: &self.target,
                with,
            },
            8 => Operation::MkNod {
                name,
                mode,
                rdev,
                umask,
                with,
            },
            9 => Operation::MkDir {
                name,
                mode,
                umask,
                with,
            },
            10 => Operation::Unlink { name },
            11 => Operation::RmDir { name },
            12 | 45 => Operation::Rename {
                name,
                new_parent: self.wide[0],
                new_name: self.name(1),
                flags: RenameFlags::from_bits_retain(if which == 12 { 0 } else { flags | 1 }),
            },
            13 => Operation::Link {
                node: self.wide[0],
                name,
            },
            35 | 51 => {
                let file = NewFile {
                    flags,
                    mode,
                    umask,
                    open_flags,
                };
                if which == 35 {
                    Operation::Create { name, file, with }
                } else {
                    Operation::TmpFile { file, with }
                }
            }
            _ => return None,
        })
    }

    /// The operations on attributes and on the file system.
    fn attribute(&self, which: u32) -> Option<Operation<'_>> {
        let [flags, mask, size_bytes, ..] = self.narrow;
        Some(match which {
            2 => Operation::Forget {
                nlookup: self.wide[0],
            },
            3 => Operation::GetAttr {
                handle: self.handle(),
            },
            4 => Operation::SetAttr(self.set_attr()),
            5 => Operation::ReadLink,
            17 => Operation::StatFs,
            21 => Operation::SetXattr {
                name: &self.names[0],
                value: &self.value,
                flags,
                kills_sgid: self.yes,
            },
            22 => Operation::GetXattr {
                name: &self.names[0],
                size_bytes,
            },
            23 => Operation::ListXattr { size_bytes },
            24 => Operation::RemoveXattr {
                name: &self.names[0],
            },
            26 => Operation::Init(InitIn {
                major: 7,
                minor: mask,
                max_readahead_bytes: size_bytes,
                flags: InitFlags::from_bits_retain(self.wide[0]) | InitFlags::INIT_EXT,
            }),
            34 => Operation::Access { mask },
            36 => Operation::Interrupt {
                unique: self.wide[0],
            },
            38 => Operation::Destroy,
            41 => Operation::NotifyReply,
            42 => Operation::BatchForget {
                forgets: Forgets(&self.pairs),
            },
            49 => Operation::RemoveMapping {
                mappings: Mappings(&self.pairs),
            },
            50 => Operation::SyncFs,
            52 => Operation::Statx {
                handle: self.handle(),
                flags,
                mask,
            },
            _ => return None,
        })
    }

    /// The operations on open files.
    fn file(&self, which: u32) -> Operation<'_> {
        let [handle, offset_bytes, len_bytes, lock_owner, ..] = self.wide;
        let [flags, whence, mode, ..] = self.narrow;
        let data_only = self.yes;
        match which {
            14 => Operation::Open {
                flags,
                open_flags: OpenInFlags::from_bits_retain(mode),
            },
            15 => Operation::Read(self.read()),
            16 => self.write(),
            18 => Operation::Release(self.release()),
            20 => Operation::Fsync { handle, data_only },
            25 => Operation::Flush { handle, lock_owner },
            27 => Operation::OpenDir { flags },
            28 => Operation::ReadDir(self.read()),
            29 => Operation::ReleaseDir(self.release()),
            30 => Operation::FsyncDir { handle, data_only },
            31 => Operation::GetLock(self.lock()),
            32 | 33 => Operation::SetLock {
                lock: self.lock(),
                waits: which == 33,
            },
            39 => self.ioctl(),
            43 => Operation::Fallocate {
                handle,
                offset_bytes,
                len_bytes,
                mode: FallocateFlags::from_bits_retain(mode),
            },
            44 => Operation::ReadDirPlus(self.read()),
            46 => Operation::Lseek {
                handle,
                offset_bytes,
                whence,
            },
            47 | 53 => self.copy(which == 53),
            48 => Operation::SetupMapping {
                handle,
                file_offset_bytes: offset_bytes,
                len_bytes,
                flags: self.wide[4],
                window_offset_bytes: self.wide[5],
            },
            other => panic!("{other} is not served"),
        }
    }

    fn write(&self) -> Operation<'_> {
        Operation::Write(WriteIn {
            handle: self.wide[0],
            offset_bytes: self.wide[1],
            size_bytes: self.narrow[0],
            write_flags: WriteFlags::from_bits_retain(self.narrow[1]),
            lock_owner: self.wide[2],
            flags: self.narrow[2],
        })
    }

    fn ioctl(&self) -> Operation<'_> {
        Operation::Ioctl(IoctlIn {
            handle: self.wide[0],
            flags: IoctlFlags::from_bits_retain(self.narrow[0]),
            command: self.narrow[1],
            argument: self.wide[1],
            data: &self.value,
            out_size_bytes: self.narrow[2],
        })
    }

    fn copy(&self, wide: bool) -> Operation<'_> {
        let [handle_in, offset_in_bytes, node_out, handle_out, ..] = self.wide;
        let [.., offset_out_bytes, len_bytes, flags] = self.wide;
        Operation::CopyFileRange(CopyFileRange {
            handle_in,
            offset_in_bytes,
            node_out,
            handle_out,
            offset_out_bytes,
            len_bytes,
            flags,
            wide,
        })
    }

    fn operation(&self, which: u32) -> Operation<'_> {
        self.entry(which)
            .or_else(|| self.attribute(which))
            .unwrap_or_else(|| self.file(which))
    }
}

proptest! {
    #[test]
    fn request_that_is_written_is_read_as_it_was(
        parts in parts(),
        header in any::<[u8; IN_HEADER_BYTES]>(),
    ) {
        let header = InHeader::parse(&header);
        for opcode in SERVED {
            let operation = parts.operation(opcode);
            let bytes = encode_request(&header, &operation, ALL);
            let (head, args) = bytes.split_first_chunk().unwrap();
            let sent = InHeader::parse(head);
            prop_assert_eq!(sent.opcode, opcode);
            prop_assert_eq!((sent.unique, sent.node), (header.unique, header.node));
            prop_assert_eq!((sent.uid, sent.gid, sent.pid), (header.uid, header.gid, header.pid));
            prop_assert_eq!(Operation::parse(&sent, args, ALL), Ok(operation));
        }
    }
}
