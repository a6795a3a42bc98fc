// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests are read as `fuse.h` has them.

use super::super::flags::{InitFlags, opcode};
use super::super::header::{InHeader, OutHeader, out_header};
use super::super::limits::{args_limit_bytes, has_reply};
use super::super::operation::{Creation, InitIn, LookupName, Operation};
use super::client::encode_request;
use super::layouts::cases;
use super::{ALL, SERVED, WITH, WITH_BYTES, d, header, parse, q, s, with_bytes};

fn extensions_bytes(operation: &Operation<'_>) -> u32 {
    match operation {
        Operation::Symlink { .. }
        | Operation::MkNod { .. }
        | Operation::MkDir { .. }
        | Operation::Create { .. }
        | Operation::TmpFile { .. } => WITH_BYTES,
        _ => 0,
    }
}

#[test]
fn request_of_each_operation_has_the_layout_of_fuse_h() {
    let mut seen: Vec<u32> = Vec::new();
    for (opcode, args, operation, reply_bytes) in cases() {
        let header = InHeader {
            len_bytes: 40 + u32::try_from(args.len()).unwrap(),
            unique: 1,
            node: 2,
            ..header(opcode, extensions_bytes(&operation))
        };
        let parsed = Operation::parse(&header, &args, ALL);
        assert_eq!(parsed, Ok(operation.clone()), "{opcode}");
        assert_eq!(operation.reply_bytes(), reply_bytes, "{opcode}");
        assert!(args_limit_bytes(opcode) >= args.len(), "{opcode}");

        let mut sent = encode_request(&header, &operation, ALL);
        let mut expected = [&header.to_bytes()[..], &args].concat();
        if opcode == opcode::WRITE {
            // Its three bytes of data are behind.
            expected[0] += 3;
        }
        assert_eq!(sent.split_off(40), args, "{opcode}");
        assert_eq!(sent, expected[..40], "{opcode}");
        seen.push(opcode);
    }
    seen.sort_unstable();
    assert_eq!(seen, {
        let mut all = SERVED.to_vec();
        all.sort_unstable();
        all
    });
}

#[test]
fn request_of_each_operation_cut_or_longer_is_refused() {
    for (opcode, mut args, operation, _) in cases() {
        if matches!(
            opcode,
            opcode::READLINK | opcode::STATFS | opcode::DESTROY | opcode::NOTIFY_REPLY
        ) {
            continue;
        }
        let header = header(opcode, extensions_bytes(&operation));
        for len in 0..args.len() {
            let cut = Operation::parse(&header, &args[..len], ALL);
            assert_eq!(cut.unwrap_err().errno(), libc::EINVAL, "{opcode} {len}");
        }
        args.push(0);
        let longer = Operation::parse(&header, &args, ALL);
        if opcode == opcode::INIT {
            assert_eq!(longer, Ok(operation));
        } else {
            assert_eq!(longer.unwrap_err().errno(), libc::EINVAL, "{opcode}");
        }
    }
}

#[test]
fn operations_without_arguments_ignore_some() {
    let junk = [0xab; 260];
    assert_eq!(parse(opcode::READLINK, &junk), Ok(Operation::ReadLink));
    assert_eq!(parse(opcode::STATFS, &junk), Ok(Operation::StatFs));
    assert_eq!(parse(opcode::DESTROY, &junk), Ok(Operation::Destroy));
    assert_eq!(parse(opcode::NOTIFY_REPLY, &[]), Ok(Operation::NotifyReply));
}

#[test]
fn request_header_has_the_layout_of_fuse_h() {
    // len, opcode, unique, nodeid, uid, gid, pid, total_extlen in units of 8 bytes, padding
    let parts = [d(40), d(3), q(5), q(6), d(7), d(8), d(9), d(0xdead_0002)];
    let bytes: [u8; 40] = parts.concat().try_into().unwrap();
    let header = InHeader::parse(&bytes);
    assert_eq!(
        header,
        InHeader {
            len_bytes: 40,
            opcode: 3,
            unique: 5,
            node: 6,
            uid: 7,
            gid: 8,
            pid: 9,
            extensions_bytes: 16,
        }
    );
    assert_eq!(header.to_bytes()[..38], bytes[..38]);
}

#[test]
fn reply_header_has_the_layout_of_fuse_h() {
    // len, error, unique
    let parts = [d(16), s(&(-22_i32).to_le_bytes()), q(5)];
    let bytes = out_header(16, -libc::EINVAL, 5);
    assert_eq!(bytes.to_vec(), parts.concat());
    let header = OutHeader {
        len_bytes: 16,
        error: -22,
        unique: 5,
    };
    assert_eq!(OutHeader::parse(&bytes), header);
}

#[test]
fn setxattr_without_the_extension_has_eight_bytes() {
    let args = [d(3), d(2), s(b"user.x\0val")].concat();
    let none = InitFlags::empty();
    assert_eq!(
        Operation::parse(&header(opcode::SETXATTR, 0), &args, none),
        Ok(Operation::SetXattr {
            name: c"user.x",
            value: b"val",
            flags: 2,
            kills_sgid: false,
        })
    );
}

#[test]
fn init_without_the_extension_has_sixteen_bytes() {
    let args = [d(7), d(31), d(4096), d(1 << 15)].concat();
    let init = InitIn {
        major: 7,
        minor: 31,
        max_readahead_bytes: 4096,
        flags: InitFlags::ASYNC_DIO,
    };
    assert_eq!(parse(opcode::INIT, &args), Ok(Operation::Init(init)));
}

#[test]
fn init_of_another_major_version_is_read_as_far_as_the_version() {
    let args = [d(8), d(1)].concat();
    let init = InitIn {
        major: 8,
        minor: 1,
        ..InitIn::default()
    };
    assert_eq!(parse(opcode::INIT, &args), Ok(Operation::Init(init)));
}

#[test]
fn getattr_without_the_flag_has_no_handle() {
    let args = [d(0xffff_fffe), d(0), q(9)].concat();
    let operation = Operation::GetAttr { handle: None };
    assert_eq!(parse(opcode::GETATTR, &args), Ok(operation));
}

#[test]
fn lookup_of_dots_is_of_itself_and_of_the_parent() {
    let lookup = |name| Ok(Operation::Lookup { name });
    assert_eq!(parse(opcode::LOOKUP, b".\0"), lookup(LookupName::Itself));
    assert_eq!(parse(opcode::LOOKUP, b"..\0"), lookup(LookupName::Parent));
}

#[test]
fn getxattr_with_a_size_has_no_fixed_reply() {
    let args = [d(u32::MAX), d(0), s(b"a.b\0")].concat();
    assert_eq!(parse(opcode::GETXATTR, &args).unwrap().reply_bytes(), 0);
    let probe = [d(0), d(0)].concat();
    assert_eq!(parse(opcode::LISTXATTR, &probe).unwrap().reply_bytes(), 8);
}

#[test]
fn forgets_and_mappings_are_pairs_of_numbers() {
    let args = [d(2), d(0), q(10), q(1), q(11), q(u64::MAX)].concat();
    let Ok(Operation::BatchForget { forgets }) = parse(opcode::BATCH_FORGET, &args) else {
        panic!("not forgets");
    };
    assert_eq!(
        forgets.iter().collect::<Vec<_>>(),
        [(10, 1), (11, u64::MAX)]
    );
    let args = [d(1), q(6), q(7)].concat();
    let Ok(Operation::RemoveMapping { mappings }) = parse(opcode::REMOVEMAPPING, &args) else {
        panic!("not mappings");
    };
    assert_eq!(mappings.iter().collect::<Vec<_>>(), [(6, 7)]);
}

#[test]
fn only_four_operations_have_no_reply() {
    let silent: Vec<u32> = (0..100).filter(|opcode| !has_reply(*opcode)).collect();
    assert_eq!(silent, [2, 36, 41, 42]);
}

/// Parses a `MKDIR` with `extensions`; `None` expects an error.
fn check_mkdir(
    extensions: &[u8],
    extensions_bytes: u32,
    negotiated: InitFlags,
    expected: Option<Creation<'_>>,
) {
    let args = [&d(0), &d(0), b"x\0".as_slice(), extensions].concat();
    let header = header(opcode::MKDIR, extensions_bytes);
    let with = match Operation::parse(&header, &args, negotiated) {
        Ok(Operation::MkDir { with, .. }) => Some(with),
        _ => None,
    };
    assert_eq!(with, expected);
}

#[test]
fn security_context_of_linux_before_6_3_has_no_length_in_the_header() {
    let label = &with_bytes()[..32];
    check_mkdir(
        label,
        0,
        InitFlags::SECURITY_CTX,
        Some(Creation {
            group: None,
            ..WITH
        }),
    );
}

#[test]
fn security_contexts_that_are_none_are_none() {
    let none = [d(8), d(0)].concat();
    check_mkdir(&none, 8, ALL, Some(Creation::default()));
    check_mkdir(&[], 0, ALL, Some(Creation::default()));
    let no_groups = [d(16), d(32), d(0), d(0)].concat();
    check_mkdir(&no_groups, 16, ALL, Some(Creation::default()));
}

#[test]
fn supplementary_group_without_a_label_is_found() {
    let group = &with_bytes()[32..];
    check_mkdir(
        group,
        16,
        InitFlags::CREATE_SUPP_GROUP,
        Some(Creation {
            security: None,
            ..WITH
        }),
    );
}

#[test]
fn length_of_extensions_that_were_not_agreed_is_padding() {
    let none = InitFlags::empty();
    check_mkdir(&[], 0xffff * 8, none, Some(Creation::default()));
    check_mkdir(&with_bytes(), WITH_BYTES, none, None);
}
