// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each structure of `fuse.h` spelled out, and what the tests share.

mod client;
mod fuzz;
mod layouts;
mod malformed;
mod replies;
mod requests;
mod round_trip;

use super::error::ParseError;
use super::flags::{InitFlags, opcode};
use super::header::InHeader;
use super::operation::{Creation, Operation};

/// All that changes the layout of a request.
const ALL: InitFlags = InitFlags::SETXATTR_EXT
    .union(InitFlags::SECURITY_CTX)
    .union(InitFlags::CREATE_SUPP_GROUP);

/// A `uint64_t`.
fn q(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A `uint32_t`.
fn d(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A `uint16_t`.
fn w(value: u16) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// Characters.
fn s(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn header(opcode: u32, extensions_bytes: u32) -> InHeader {
    InHeader {
        opcode,
        extensions_bytes,
        ..InHeader::default()
    }
}

fn parse(opcode: u32, args: &[u8]) -> Result<Operation<'_>, ParseError> {
    Operation::parse(&header(opcode, 0), args, ALL)
}

fn errno(opcode: u32, args: &[u8]) -> i32 {
    parse(opcode, args).unwrap_err().errno()
}

/// A label and a group, and their 48 bytes.
const WITH: Creation<'static> = Creation {
    security: Some((c"a.b", b"label")),
    group: Some(7),
};

fn with_bytes() -> Vec<u8> {
    [
        // fuse_secctx_header: size, nr_secctx
        d(32),
        d(1),
        // fuse_secctx: size, padding; then the name and the label
        d(5),
        d(0),
        s(b"a.b\0label"),
        s(&[0; 7]),
        // fuse_ext_header: size, type; fuse_supp_groups: nr_groups, groups
        d(16),
        d(32),
        d(1),
        d(7),
    ]
    .concat()
}
const WITH_BYTES: u32 = 48;

/// All operations that are served.
const SERVED: [u32; 49] = [
    opcode::LOOKUP,
    opcode::FORGET,
    opcode::GETATTR,
    opcode::SETATTR,
    opcode::READLINK,
    opcode::SYMLINK,
    opcode::MKNOD,
    opcode::MKDIR,
    opcode::UNLINK,
    opcode::RMDIR,
    opcode::RENAME,
    opcode::LINK,
    opcode::OPEN,
    opcode::READ,
    opcode::WRITE,
    opcode::STATFS,
    opcode::RELEASE,
    opcode::FSYNC,
    opcode::SETXATTR,
    opcode::GETXATTR,
    opcode::LISTXATTR,
    opcode::REMOVEXATTR,
    opcode::FLUSH,
    opcode::INIT,
    opcode::OPENDIR,
    opcode::READDIR,
    opcode::RELEASEDIR,
    opcode::FSYNCDIR,
    opcode::GETLK,
    opcode::SETLK,
    opcode::SETLKW,
    opcode::ACCESS,
    opcode::CREATE,
    opcode::INTERRUPT,
    opcode::DESTROY,
    opcode::IOCTL,
    opcode::NOTIFY_REPLY,
    opcode::BATCH_FORGET,
    opcode::FALLOCATE,
    opcode::READDIRPLUS,
    opcode::RENAME2,
    opcode::LSEEK,
    opcode::COPY_FILE_RANGE,
    opcode::SETUPMAPPING,
    opcode::REMOVEMAPPING,
    opcode::SYNCFS,
    opcode::TMPFILE,
    opcode::STATX,
    opcode::COPY_FILE_RANGE_64,
];
