// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that no sound driver writes.

use super::super::error::{NameError, ParseError};
use super::super::flags::{InitFlags, opcode};
use super::super::limits::args_limit_bytes;
use super::super::name::Name;
use super::super::operation::Operation;
use super::{ALL, SERVED, d, errno, header, parse, q, s, with_bytes};

#[test]
fn g1_requests_of_no_argument_bytes_are_refused() {
    for opcode in SERVED {
        let result = parse(opcode, &[]);
        let sound = matches!(
            opcode,
            opcode::READLINK | opcode::STATFS | opcode::DESTROY | opcode::NOTIFY_REPLY
        );
        match result {
            Ok(_) => assert!(sound, "{opcode}"),
            Err(error) => assert_eq!((error.errno(), sound), (libc::EINVAL, false), "{opcode}"),
        }
    }
}

#[test]
fn g2_unknown_operations_are_not_implemented() {
    for opcode in (0..200).chain([4096, 1 << 20, 436_207_616, u32::MAX]) {
        if !SERVED.contains(&opcode) {
            assert_eq!(
                parse(opcode, &[0; 40]),
                Err(ParseError::Unsupported { opcode })
            );
            assert_eq!(errno(opcode, &[0; 40]), libc::ENOSYS);
        }
    }
}

#[test]
fn g3_counts_that_are_not_the_number_of_entries_are_refused() {
    for (count, entries) in [(u32::MAX, 1), (0x1000_0000, 0), (1, 0), (0, 1), (2, 3)] {
        let pairs = [q(1), q(2)].concat().repeat(entries);
        let len_bytes = pairs.len();
        let error = Err(ParseError::Count { count, len_bytes });
        let forgets = [d(count), d(0), pairs.clone()].concat();
        assert_eq!(parse(opcode::BATCH_FORGET, &forgets), error);
        let mappings = [d(count), pairs].concat();
        assert_eq!(parse(opcode::REMOVEMAPPING, &mappings), error);
    }
}

#[test]
fn g3_half_an_entry_is_refused() {
    for odd in 1..16 {
        let args = [d(1), d(0), q(1), q(2), vec![0; odd]].concat();
        assert_eq!(errno(opcode::BATCH_FORGET, &args), libc::EINVAL);
    }
}

/// Arguments with `name` (which has its NUL, or not) where the operation wants the first name.
fn with_name(opcode: u32, name: &[u8]) -> Vec<u8> {
    let fields: &[u8] = match opcode {
        opcode::MKDIR | opcode::RENAME | opcode::LINK => &[0; 8],
        opcode::MKNOD | opcode::CREATE | opcode::RENAME2 => &[0; 16],
        _ => &[],
    };
    let behind: &[u8] = match opcode {
        opcode::SYMLINK | opcode::RENAME | opcode::RENAME2 => b"x\0",
        _ => &[],
    };
    [fields, name, behind].concat()
}

const NAMED: [u32; 10] = [
    opcode::LOOKUP,
    opcode::UNLINK,
    opcode::RMDIR,
    opcode::MKDIR,
    opcode::MKNOD,
    opcode::CREATE,
    opcode::SYMLINK,
    opcode::LINK,
    opcode::RENAME,
    opcode::RENAME2,
];

#[test]
fn g4_names_that_no_entry_can_have_are_refused() {
    let bad: [(&[u8], NameError); 4] = [
        (b"\0", NameError::Empty),
        (b"a/b\0", NameError::Slash),
        (b"/\0", NameError::Slash),
        (b"../x\0", NameError::Slash),
    ];
    for opcode in NAMED {
        for (name, error) in bad {
            let args = with_name(opcode, name);
            assert_eq!(parse(opcode, &args), Err(error.into()), "{opcode}");
            assert_eq!(errno(opcode, &args), libc::EINVAL);
        }
        for dots in [b".\0".as_slice(), b"..\0"] {
            let args = with_name(opcode, dots);
            match parse(opcode, &args) {
                Ok(_) => assert_eq!(opcode, opcode::LOOKUP),
                Err(error) => assert_eq!(error, NameError::Dots.into(), "{opcode}"),
            }
        }
    }
}

#[test]
fn g4_f6_7_names_of_4095_bytes_are_taken_and_longer_ones_too_long() {
    for opcode in NAMED {
        for len in [255, 256, 765, 1024, 4095] {
            let name = [vec![b'n'; len], vec![0]].concat();
            parse(opcode, &with_name(opcode, &name)).unwrap();
        }
        for len in [4096, 10_000] {
            let name = [vec![b'n'; len], vec![0]].concat();
            let args = with_name(opcode, &name);
            assert_eq!(parse(opcode, &args), Err(NameError::TooLong.into()));
            let cut = args_limit_bytes(opcode).min(args.len());
            assert_eq!(errno(opcode, &args[..cut]), libc::ENAMETOOLONG);
        }
    }
}

#[test]
fn g4_names_without_nul_or_with_one_inside_are_refused() {
    for opcode in NAMED {
        let unended = with_name(opcode, b"");
        let fields = &unended[..unended.len() - unended.len() % 8];
        let args = [fields, b"name"].concat();
        assert_eq!(parse(opcode, &args), Err(ParseError::NoNul), "{opcode}");
        let args = with_name(opcode, b"na\0me\0");
        assert_eq!(errno(opcode, &args), libc::EINVAL, "{opcode}");
    }
}

#[test]
fn g4_second_names_are_checked_as_well() {
    for opcode in [opcode::RENAME, opcode::RENAME2] {
        let first = &with_name(opcode, b"")[..if opcode == opcode::RENAME { 8 } else { 16 }];
        let rename = |second: &[u8]| errno(opcode, &[first, b"ok\0", second].concat());
        assert_eq!(rename(b"..\0"), libc::EINVAL);
        assert_eq!(rename(b"\0"), libc::EINVAL);
        assert_eq!(rename(b"a/b\0"), libc::EINVAL);
        assert_eq!(rename(b"unended"), libc::EINVAL);
        assert_eq!(rename(&[b'n'; 4097]), libc::ENAMETOOLONG);
    }
}

#[test]
fn targets_of_symlinks_have_1_to_4095_bytes() {
    let symlink = |len: usize| [s(b"ln\0"), vec![b't'; len], vec![0]].concat();
    assert_eq!(
        parse(opcode::SYMLINK, &symlink(0)),
        Err(ParseError::TargetEmpty)
    );
    parse(opcode::SYMLINK, &symlink(1)).unwrap();
    parse(opcode::SYMLINK, &symlink(4095)).unwrap();
    let long = symlink(4096);
    assert_eq!(
        parse(opcode::SYMLINK, &long),
        Err(ParseError::TargetTooLong)
    );
    assert_eq!(errno(opcode::SYMLINK, &long), libc::ENAMETOOLONG);
}

#[test]
fn g9_sizes_and_offsets_are_kept_as_they_come() {
    let args = [q(1), q(1 << 63), d(u32::MAX), d(0), q(0), d(0), d(0)].concat();
    let Ok(Operation::Read(read)) = parse(opcode::READ, &args) else {
        panic!("not a read");
    };
    assert_eq!((read.offset_bytes, read.size_bytes), (1 << 63, u32::MAX));
    let args = [q(1), q(u64::MAX), q(u64::MAX), d(u32::MAX), d(0)].concat();
    let Ok(Operation::Fallocate { mode, .. }) = parse(opcode::FALLOCATE, &args) else {
        panic!("not an allocation");
    };
    assert_eq!(mode.bits(), u32::MAX);
}

#[test]
fn g9_ioctl_data_have_the_size_that_is_claimed() {
    let ioctl = |size: u32| [q(1), d(0), d(3), q(4), d(size), d(0), s(b"data")].concat();
    parse(opcode::IOCTL, &ioctl(4)).unwrap();
    for size in [0, 3, 5, u32::MAX] {
        assert_eq!(errno(opcode::IOCTL, &ioctl(size)), libc::EINVAL);
    }
}

fn setxattr(size: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&d(size), &d(0), &d(0), &d(0), name, value].concat()
}

#[test]
fn g11_setxattr_of_another_size_than_there_is_is_refused() {
    for size in [0, 3, 5, 65536] {
        let args = setxattr(size, b"user.x\0", b"four");
        assert_eq!(errno(opcode::SETXATTR, &args), libc::EINVAL);
    }
}

#[test]
fn g11_setxattr_of_64_kib_is_taken_and_more_too_big() {
    let value = vec![7; 65537];
    let name = [vec![b'n'; 255], vec![0]].concat();
    let args = setxattr(65536, &name, &value[..65536]);
    parse(opcode::SETXATTR, &args).unwrap();
    assert!(args.len() < args_limit_bytes(opcode::SETXATTR));
    for size in [65537, u32::MAX] {
        let args = setxattr(size, b"user.x\0", &value);
        assert_eq!(
            parse(opcode::SETXATTR, &args),
            Err(ParseError::ValueTooLong)
        );
        assert_eq!(errno(opcode::SETXATTR, &args), libc::E2BIG);
    }
}

#[test]
fn g11_names_of_attributes_have_1_to_255_bytes() {
    let long = [vec![b'n'; 256], vec![0]].concat();
    for name in [b"\0".as_slice(), &long] {
        let get = [&d(0), &d(0), name].concat();
        for (opcode, args) in [
            (opcode::GETXATTR, get.as_slice()),
            (opcode::REMOVEXATTR, name),
            (opcode::SETXATTR, &setxattr(0, name, b"")),
        ] {
            assert_eq!(parse(opcode, args), Err(ParseError::XattrName), "{opcode}");
            assert_eq!(errno(opcode, args), libc::ERANGE);
        }
    }
    assert_eq!(errno(opcode::REMOVEXATTR, b"user.x"), libc::EINVAL);
    assert_eq!(errno(opcode::REMOVEXATTR, b"user.x\0y\0"), libc::EINVAL);
}

fn mkdir(extensions: &[u8], extensions_bytes: u32, negotiated: InitFlags) -> Option<ParseError> {
    let args = [&[0; 8], b"x\0".as_slice(), extensions].concat();
    Operation::parse(&header(opcode::MKDIR, extensions_bytes), &args, negotiated).err()
}

#[test]
fn extensions_that_are_malformed_are_refused() {
    let label = with_bytes()[..32].to_vec();
    let group = with_bytes()[32..].to_vec();
    let bad = [
        // Twice.
        label.repeat(2),
        group.repeat(2),
        // Sizes: none, less than the header, odd, beyond the end.
        [d(0), d(0)].concat(),
        [d(4), d(0)].concat(),
        [d(12), d(32), d(0)].concat(),
        [d(24), d(32), d(1), d(7)].concat(),
        [d(u32::MAX), d(32), d(1), d(7)].concat(),
        // A part of a header.
        d(8),
        // An unknown type; two labels; two groups.
        [d(8), d(33)].concat(),
        [d(32), d(2), label[8..].to_vec()].concat(),
        [d(24), d(32), d(2), d(7), d(8), d(0)].concat(),
        // A group without one; one with too much behind it.
        [d(16), d(32), d(1)].concat(),
        [d(24), d(32), d(1), d(7), q(0)].concat(),
        // No label where one is claimed, and one where none is.
        [d(8), d(1)].concat(),
        [d(32), d(0), label[8..].to_vec()].concat(),
        // A label larger than the extension, and one much smaller.
        [d(32), d(1), d(13), d(0), label[16..].to_vec()].concat(),
        [d(32), d(1), d(0), d(0), label[16..].to_vec()].concat(),
        // A name without an end, and an empty one.
        [d(24), d(1), d(0), d(0), vec![b'n'; 8]].concat(),
    ];
    for extensions in &bad {
        let error = mkdir(extensions, 0, ALL).map(|error| error.errno());
        assert_eq!(error, Some(libc::EINVAL), "{extensions:?}");
    }
    let nameless = [d(24), d(1), d(7), d(0), vec![0; 8]].concat();
    assert_eq!(mkdir(&nameless, 0, ALL), Some(ParseError::XattrName));
    let huge = [d(24), d(1), d(65537), d(0), s(b"a.b\0    ")].concat();
    assert_eq!(mkdir(&huge, 0, ALL), Some(ParseError::ValueTooLong));
}

#[test]
fn extensions_of_another_length_than_the_header_says_are_refused() {
    let extensions = with_bytes();
    assert_eq!(mkdir(&extensions, 48, ALL), None);
    for said in [8, 40, 56, 0xffff * 8] {
        let error = mkdir(&extensions, said, ALL);
        assert_eq!(error, Some(ParseError::Extension));
    }
    assert_eq!(mkdir(&[], 8, ALL), Some(ParseError::Extension));
}

#[test]
fn extensions_that_were_not_agreed_are_refused() {
    let label = &with_bytes()[..32];
    let group = &with_bytes()[32..];
    let error = Some(ParseError::Extension);
    assert_eq!(mkdir(label, 32, InitFlags::CREATE_SUPP_GROUP), error);
    assert_eq!(mkdir(group, 16, InitFlags::SECURITY_CTX), error);
    assert_eq!(mkdir(&[d(8), d(0)].concat(), 0, InitFlags::empty()), error);
}

#[test]
fn longest_requests_are_within_their_limits() {
    let name = [vec![b'n'; 255], vec![0]].concat();
    let extensions = [
        d(16 + 256 + 65536),
        d(1),
        d(65536),
        d(0),
        name.clone(),
        vec![b'l'; 65536],
        with_bytes()[32..].to_vec(),
    ]
    .concat();
    let target = [vec![b't'; 4095], vec![0]].concat();
    for (opcode, args) in [
        (opcode::SYMLINK, [name.clone(), target].concat()),
        (opcode::CREATE, [vec![0; 16], name.clone()].concat()),
        (opcode::MKNOD, [vec![0; 16], name.clone()].concat()),
    ] {
        let args = [args, extensions.clone()].concat();
        parse(opcode, &args).unwrap();
        assert!(args.len() < args_limit_bytes(opcode), "{opcode}");
    }
    let rename = [vec![0; 16], name.repeat(2)].concat();
    parse(opcode::RENAME2, &rename).unwrap();
    assert!(rename.len() < args_limit_bytes(opcode::RENAME2));
    assert_eq!(args_limit_bytes(opcode::WRITE), 40);
}

#[test]
fn names_checked_on_their_own_say_what_is_wrong() {
    assert_eq!(Name::new(c""), Err(NameError::Empty));
    assert_eq!(Name::new(c".."), Err(NameError::Dots));
    assert_eq!(Name::new(c"...").map(Name::to_bytes), Ok(b"...".as_slice()));
}
