// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng), bytes out; no I/O.
//!
//! Every block is its type, its length, its body in units of four bytes, and its length again.
//! Numbers are little-endian, which the section header says; times are nanoseconds since 1970.

use crate::counters::Direction;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// The length of the section is not told.
const LENGTH_UNKNOWN: u64 = u64::MAX;
const LINKTYPE_ETHERNET: u16 = 1;
/// Times are in units of 10^-9 s.
const TSRESOL_NS: u8 = 9;

const OPT_END: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Direction bits of `epb_flags`.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A captured frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// The index of its interface description.
    pub(super) interface: u32,
    pub(super) unix_ns: u64,
    pub(super) direction: Direction,
    /// The length of the frame.
    pub(super) frame_bytes: u32,
    /// As much of it as is kept.
    pub(super) data: &'a [u8],
}

/// What became of the frames of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    pub(super) interface: u32,
    pub(super) start_unix_ns: u64,
    pub(super) end_unix_ns: u64,
    /// Frames that were to be captured.
    pub(super) received: u64,
    /// Of those, frames that are not in the file.
    pub(super) dropped: u64,
}

/// Appends the block a file begins with.
pub(super) fn section_header(out: &mut Vec<u8>, application: &str) {
    block(out, SECTION_HEADER, |out| {
        put(out, BYTE_ORDER_MAGIC.to_le_bytes());
        let (major, minor) = (1_u16, 0_u16);
        put(out, major.to_le_bytes());
        put(out, minor.to_le_bytes());
        put(out, LENGTH_UNKNOWN.to_le_bytes());
        option(out, SHB_USERAPPL, application.as_bytes());
        option(out, OPT_END, &[]);
    });
}

/// Appends the description of the next interface; they are numbered from 0.
pub(super) fn interface(out: &mut Vec<u8>, name: &str, snaplen_bytes: u32) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        put(out, LINKTYPE_ETHERNET.to_le_bytes());
        put(out, [0, 0]);
        put(out, snaplen_bytes.to_le_bytes());
        option(out, IF_NAME, name.as_bytes());
        option(out, IF_TSRESOL, &[TSRESOL_NS]);
        option(out, OPT_END, &[]);
    });
}

/// Appends a frame. What the guest sends comes in at the port.
pub(super) fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        put(out, packet.interface.to_le_bytes());
        put(out, time(packet.unix_ns));
        put(out, length(packet.data).to_le_bytes());
        put(out, packet.frame_bytes.to_le_bytes());
        out.extend_from_slice(packet.data);
        pad(out, packet.data.len());
        let flags = match packet.direction {
            Direction::Tx => INBOUND,
            Direction::Rx => OUTBOUND,
        };
        option(out, EPB_FLAGS, &flags.to_le_bytes());
        option(out, OPT_END, &[]);
    });
}

/// The length of [`statistics`].
pub(super) const STATISTICS_BYTES: usize = 76;

/// Appends the statistics of an interface.
pub(super) fn statistics(out: &mut Vec<u8>, statistics: &Statistics) {
    block(out, INTERFACE_STATISTICS, |out| {
        put(out, statistics.interface.to_le_bytes());
        put(out, time(statistics.end_unix_ns));
        option(out, ISB_STARTTIME, &time(statistics.start_unix_ns));
        option(out, ISB_ENDTIME, &time(statistics.end_unix_ns));
        option(out, ISB_IFRECV, &statistics.received.to_le_bytes());
        option(out, ISB_IFDROP, &statistics.dropped.to_le_bytes());
        option(out, OPT_END, &[]);
    });
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    /// The type, and the length at both ends.
    const FRAME_BYTES: u32 = 12;
    put(out, kind.to_le_bytes());
    let length_at = out.len();
    put(out, [0; 4]);
    let start = out.len();
    body(out);
    let body = out.get(start..).map_or(0, length);
    let total = body.saturating_add(FRAME_BYTES).to_le_bytes();
    if let Some(length) = out.get_mut(length_at..start) {
        length.copy_from_slice(&total);
    }
    put(out, total);
}

/// Appends an option; one that is too long for its length field is left out.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len()) else {
        return;
    };
    put(out, code.to_le_bytes());
    put(out, length.to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// The upper half comes first, whatever the byte order.
fn time(unix_ns: u64) -> [u8; 8] {
    unix_ns.rotate_left(32).to_le_bytes()
}

fn put<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    out.extend_from_slice(&bytes);
}

fn pad(out: &mut Vec<u8>, bytes: usize) {
    let rest = bytes.next_multiple_of(4) - bytes;
    out.extend(std::iter::repeat_n(0, rest));
}

/// No block or option of ours is as long as that.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn section_header_is_as_the_draft_has_it() {
        #[rustfmt::skip]
        let expected = [
            0x0a, 0x0d, 0x0d, 0x0a, 44, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0,
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            4, 0, 6, 0, b'r', b'i', b'n', b'g', b'e', b'r', 0, 0, 0, 0, 0, 0,
            44, 0, 0, 0,
        ];
        assert_eq!(bytes(|out| section_header(out, "ringer")), expected);
    }

    #[test]
    fn interface_has_its_name_and_counts_nanoseconds() {
        #[rustfmt::skip]
        let expected = [
            1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0x00, 0x01, 0, 0,
            2, 0, 3, 0, b'v', b'm', b'0', 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0,
            40, 0, 0, 0,
        ];
        assert_eq!(bytes(|out| interface(out, "vm0", 256)), expected);
    }

    #[test]
    fn packet_has_both_lengths_its_time_and_its_direction() {
        let frame = Packet {
            interface: 2,
            unix_ns: 0x0102_0304_0506_0708,
            direction: Direction::Rx,
            frame_bytes: 1514,
            data: &[0xaa, 0xbb, 0xcc, 0xdd, 0xee],
        };
        #[rustfmt::skip]
        let mut expected = [
            6, 0, 0, 0, 52, 0, 0, 0, 2, 0, 0, 0,
            4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 0xea, 0x05, 0, 0,
            0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0, 0, 0,
            2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0,
        ];
        assert_eq!(bytes(|out| packet(out, &frame)), expected);
        let frame = Packet {
            direction: Direction::Tx,
            ..frame
        };
        expected[40] = 1;
        assert_eq!(bytes(|out| packet(out, &frame)), expected);
    }

    #[test]
    fn packet_without_bytes_is_whole() {
        let frame = Packet {
            interface: 0,
            unix_ns: 0,
            direction: Direction::Tx,
            frame_bytes: 60,
            data: &[],
        };
        assert_eq!(bytes(|out| packet(out, &frame)).len(), 44);
    }

    #[test]
    fn statistics_tell_what_was_received_and_dropped() {
        let numbers = Statistics {
            interface: 1,
            start_unix_ns: 1 << 32,
            end_unix_ns: (1 << 32) + 5,
            received: 7,
            dropped: 3,
        };
        #[rustfmt::skip]
        let expected = [
            5, 0, 0, 0, 76, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0,
            2, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 8, 0, 1, 0, 0, 0, 5, 0, 0, 0,
            4, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 76, 0, 0, 0,
        ];
        let written = bytes(|out| statistics(out, &numbers));
        assert_eq!(written, expected);
        assert_eq!(written.len(), STATISTICS_BYTES);
    }

    #[test]
    fn option_too_long_is_left_out() {
        let name = "x".repeat(70_000);
        let without = bytes(|out| interface(out, &name, 64));
        assert_eq!(without.len(), 32);
    }
}
