// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What of the messages the bridge has to know: which have no reply, how much room the others need,
//! and what of `INIT` may not pass.

use ringside_frontend::fuse::flags::{IN_HEADER_BYTES, OUT_HEADER_BYTES};
use ringside_frontend::fuse::flags::{InitFlags, opcode};

/// Bytes of a request that are looked at: the header and the fields behind it.
pub(crate) const LOOK_BYTES: usize = IN_HEADER_BYTES + 40;

/// The most data of a `WRITE` or a `READ`: what Linux asks for at most.
pub(crate) const MAX_DATA_BYTES: usize = 1 << 20;

/// Where the flags of a request's `fuse_init_in` are, and those of a reply's `fuse_init_out`.
const INIT_IN_FLAGS: [usize; 2] = [IN_HEADER_BYTES + 12, IN_HEADER_BYTES + 16];
const INIT_OUT_FLAGS: [usize; 2] = [OUT_HEADER_BYTES + 12, OUT_HEADER_BYTES + 32];
const INIT_OUT_MAX_BACKGROUND: usize = OUT_HEADER_BYTES + 16;
const INIT_OUT_CONGESTION: usize = OUT_HEADER_BYTES + 18;
const INIT_OUT_MAX_WRITE: usize = OUT_HEADER_BYTES + 20;
const INIT_OUT_MAX_PAGES: usize = OUT_HEADER_BYTES + 28;
/// Bytes of a whole reply to `INIT`.
pub(crate) const INIT_REPLY_BYTES: usize = OUT_HEADER_BYTES + 64;

/// What the kernel may not offer to the back-end: it would be between the two, past the bridge.
const UNOFFERED: InitFlags = InitFlags::PASSTHROUGH
    .union(InitFlags::OVER_IO_URING)
    .union(InitFlags::HAS_RESEND);

/// What the back-end may not switch on, since `/dev/fuse` does not have it.
const UNANSWERED: InitFlags = InitFlags::SUBMOUNTS
    .union(InitFlags::HAS_INODE_DAX)
    .union(InitFlags::MAP_ALIGNMENT);

/// What the bridge reads of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    /// Bytes of arguments, between the header and the data.
    pub(crate) args_bytes: usize,
    /// Bytes of data.
    pub(crate) data_bytes: usize,
    /// Bytes of the reply between its header and its data.
    pub(crate) reply_args_bytes: usize,
    /// Bytes of data in the reply.
    pub(crate) reply_data_bytes: usize,
}

impl Look {
    /// Looks at a request of `len` bytes that begins with `start`; none if it is no request.
    pub(crate) fn at(start: &[u8; LOOK_BYTES], len: usize) -> Option<Self> {
        let body = len.checked_sub(IN_HEADER_BYTES)?;
        let opcode = u32_at(start, 4);
        let args_bytes = if opcode == opcode::WRITE {
            body.min(LOOK_BYTES - IN_HEADER_BYTES)
        } else {
            body
        };
        let (reply_args_bytes, reply_data_bytes) = reply_room(opcode, start);
        Some(Self {
            opcode,
            unique: u64_at(start, 8),
            args_bytes,
            data_bytes: body - args_bytes,
            reply_args_bytes,
            reply_data_bytes: reply_data_bytes.min(MAX_DATA_BYTES),
        })
    }

    /// Whether the request goes to the high-priority queue and has no reply.
    pub(crate) fn is_one_way(self) -> bool {
        matches!(
            self.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        )
    }

    /// Bytes of the longest reply.
    pub(crate) fn reply_bytes(self) -> usize {
        OUT_HEADER_BYTES + self.reply_args_bytes + self.reply_data_bytes
    }
}

/// Room for what a reply carries, arguments and data, as Linux' driver gives it.
fn reply_room(code: u32, start: &[u8; LOOK_BYTES]) -> (usize, usize) {
    let field = |offset: usize| u32_at(start, IN_HEADER_BYTES + offset) as usize;
    match code {
        opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => (128, 0),
        opcode::CREATE | opcode::TMPFILE => (144, 0),
        opcode::GETATTR | opcode::SETATTR => (104, 0),
        opcode::STATX => (288, 0),
        opcode::OPEN | opcode::OPENDIR => (16, 0),
        opcode::STATFS => (80, 0),
        opcode::INIT => (64, 0),
        opcode::GETLK => (24, 0),
        opcode::WRITE
        | opcode::LSEEK
        | opcode::BMAP
        | opcode::POLL
        | opcode::COPY_FILE_RANGE
        | opcode::COPY_FILE_RANGE_64 => (8, 0),
        opcode::GETXATTR | opcode::LISTXATTR => match field(0) {
            0 => (8, 0),
            size => (size.min(MAX_DATA_BYTES), 0),
        },
        opcode::READLINK => (0, 4096),
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => (0, field(16)),
        opcode::IOCTL => (16, field(28)),
        _ => (0, 0),
    }
}

/// Takes out of a request's `INIT` what the bridge cannot carry, and returns what it then offers.
pub(crate) fn strip_init_request(request: &mut [u8]) -> InitFlags {
    let offered = flags(request, INIT_IN_FLAGS).difference(UNOFFERED);
    set_flags(request, INIT_IN_FLAGS, offered);
    offered
}

/// Takes out of the reply what was not offered, or is not to be had through `/dev/fuse`.
pub(crate) fn strip_init_reply(
    reply: &mut [u8; INIT_REPLY_BYTES],
    offered: InitFlags,
    max_background: Option<u16>,
) {
    let answered = flags(reply, INIT_OUT_FLAGS)
        .intersection(offered)
        .difference(UNANSWERED);
    set_flags(reply, INIT_OUT_FLAGS, answered);
    let max_write = u32_at(reply, INIT_OUT_MAX_WRITE).min(1 << 20);
    put(reply, INIT_OUT_MAX_WRITE, &max_write.to_le_bytes());
    let max_pages = u16_at(reply, INIT_OUT_MAX_PAGES).min(256);
    put(reply, INIT_OUT_MAX_PAGES, &max_pages.to_le_bytes());
    if let Some(background) = max_background {
        put(reply, INIT_OUT_MAX_BACKGROUND, &background.to_le_bytes());
        // The share at which the kernel counts the connection as congested, as it has it itself.
        let congestion = background / 4 * 3 + background % 4 * 3 / 4;
        put(reply, INIT_OUT_CONGESTION, &congestion.to_le_bytes());
    }
}

/// A reply that says nothing but that the request failed.
pub(crate) fn error_reply(unique: u64, errno: i32) -> [u8; OUT_HEADER_BYTES] {
    let mut reply = [0; OUT_HEADER_BYTES];
    put(&mut reply, 0, &16_u32.to_le_bytes());
    put(&mut reply, 4, &errno.wrapping_neg().to_le_bytes());
    put(&mut reply, 8, &unique.to_le_bytes());
    reply
}

/// A `DESTROY`: for other file systems than those on block devices the kernel sends none.
pub(crate) fn destroy(unique: u64) -> [u8; IN_HEADER_BYTES] {
    let mut request = [0; IN_HEADER_BYTES];
    put(&mut request, 0, &40_u32.to_le_bytes());
    put(&mut request, 4, &opcode::DESTROY.to_le_bytes());
    put(&mut request, 8, &unique.to_le_bytes());
    request
}

fn flags(bytes: &[u8], [low, high]: [usize; 2]) -> InitFlags {
    let bits = u64::from(u32_at(bytes, low)) | u64::from(u32_at(bytes, high)) << 32;
    InitFlags::from_bits_retain(bits)
}

fn set_flags(bytes: &mut [u8], at: [usize; 2], flags: InitFlags) {
    let halves = flags.bits().to_le_bytes();
    for (at, half) in at.into_iter().zip(halves.chunks(4)) {
        put(bytes, at, half);
    }
}

/// Past the end nothing is changed.
fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

/// Zero past the end.
fn field_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(opcode: u32, field_at: usize, field: u32) -> [u8; LOOK_BYTES] {
        let mut start = [0; LOOK_BYTES];
        put(&mut start, 4, &opcode.to_le_bytes());
        put(&mut start, 8, &7_u64.to_le_bytes());
        put(&mut start, IN_HEADER_BYTES + field_at, &field.to_le_bytes());
        start
    }

    #[test]
    fn data_and_room_are_told_apart() {
        let write = Look::at(&start(opcode::WRITE, 16, 5000), 5080).unwrap();
        assert_eq!((write.args_bytes, write.data_bytes), (40, 5000));
        assert_eq!((write.reply_args_bytes, write.reply_data_bytes), (8, 0));
        let read = Look::at(&start(opcode::READ, 16, 5000), 80).unwrap();
        assert_eq!((read.args_bytes, read.data_bytes), (40, 0));
        assert_eq!((read.reply_bytes(), read.unique), (5016, 7));
        let big = Look::at(&start(opcode::READ, 16, u32::MAX), 80).unwrap();
        assert_eq!(big.reply_data_bytes, MAX_DATA_BYTES);
        let ioctl = Look::at(&start(opcode::IOCTL, 28, 4), 72).unwrap();
        assert_eq!((ioctl.reply_args_bytes, ioctl.reply_data_bytes), (16, 4));
        assert!(
            Look::at(&start(opcode::FORGET, 0, 0), 48)
                .unwrap()
                .is_one_way()
        );
        assert_eq!(Look::at(&start(opcode::READ, 0, 0), 39), None);
    }

    #[test]
    fn init_is_stripped_of_what_the_bridge_cannot_carry() {
        let mut request = [0; 104];
        let sent = InitFlags::PASSTHROUGH | InitFlags::POSIX_LOCKS | InitFlags::MAX_PAGES;
        set_flags(&mut request, INIT_IN_FLAGS, sent);
        let offered = strip_init_request(&mut request);
        assert_eq!(offered, InitFlags::POSIX_LOCKS | InitFlags::MAX_PAGES);
        assert_eq!(flags(&request, INIT_IN_FLAGS), offered);
        let mut reply = [0; INIT_REPLY_BYTES];
        let answered = InitFlags::POSIX_LOCKS | InitFlags::SUBMOUNTS | InitFlags::WRITEBACK_CACHE;
        set_flags(&mut reply, INIT_OUT_FLAGS, answered);
        put(&mut reply, INIT_OUT_MAX_WRITE, &(2_u32 << 20).to_le_bytes());
        put(&mut reply, INIT_OUT_MAX_PAGES, &512_u16.to_le_bytes());
        strip_init_reply(&mut reply, offered, Some(65_535));
        assert_eq!(flags(&reply, INIT_OUT_FLAGS), InitFlags::POSIX_LOCKS);
        assert_eq!(u32_at(&reply, INIT_OUT_MAX_WRITE), 1 << 20);
        assert_eq!(u16_at(&reply, INIT_OUT_MAX_PAGES), 256);
        assert_eq!(u16_at(&reply, INIT_OUT_MAX_BACKGROUND), 65_535);
        assert_eq!(u16_at(&reply, INIT_OUT_CONGESTION), 49_151);
    }
}
