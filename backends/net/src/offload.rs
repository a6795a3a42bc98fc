// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does in software what a receiver does not take: completes checksums, segments long packets.
//!
//! Frames that one driver left unfinished go to another that may not take them so (virtio 1.3
//! §5.1.6.4), or come from a tap device from before its offloads were reduced. [`finish`] makes of
//! any such frame the frames that this receiver takes, and believes of it only its bytes: a wrong
//! header costs the sender the packet.
//!
//! A segment is the headers of the long packet, with lengths, ids, sequence numbers, flags and
//! checksums of its own, and a piece of the payload. The headers are kept once and changed for each
//! segment; the payload is not copied.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

mod checksum;
mod fault;
mod packet;
mod segment;
#[cfg(test)]
mod tests;

use self::checksum::Sum;
use self::packet::{Destination, Packet};
use self::segment::{Template, write};
use crate::features::Offloads;
use crate::header::{GSO_NONE, NetHeader};

pub use self::fault::{FinishFault, MAX_HEADERS_BYTES, MAX_SEGMENTS};

/// A frame for the receiver, in two pieces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finished<'a> {
    /// Its virtio header, without `num_buffers`.
    pub header: NetHeader,
    /// Its first bytes.
    pub head: &'a [u8],
    /// The rest, perhaps nothing.
    pub payload: &'a [u8],
}

/// Completes a checksum that is left out: the sum of all from `start` to the end of the frame goes
/// to `offset` from there, where the pseudo header's has been.
///
/// # Errors
/// It would go past the frame.
pub fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) -> Result<(), FinishFault> {
    let summed = frame
        .get_mut(start..)
        .ok_or(FinishFault::ChecksumPastFrame)?;
    let checksum = Sum::default().bytes(summed).complete_transport();
    write(summed, offset, checksum).ok_or(FinishFault::ChecksumPastFrame)
}

/// Whether a frame, of which `head` are the first bytes, is such a long packet as its header says,
/// so that another driver may be given both as they are. A frame that is not long is, always.
///
/// The first [`MAX_HEADERS_BYTES`] are enough.
///
/// # Errors
/// It is not.
pub fn check_long(header: &NetHeader, head: &[u8]) -> Result<(), FinishFault> {
    if header.gso_type == GSO_NONE {
        return Ok(());
    }
    Packet::parse(header, head).map(|_| ())
}

/// Makes of a frame the frames that a receiver takes, and gives each to `emit`; returns how many.
///
/// `header` is a link's, or a driver's after [`NetHeader::check_sent`]. `max_frame_bytes` is the
/// receiver's MTU with Ethernet header and tags; it does not bound a long packet that the receiver
/// takes as it is. A checksum may be completed in `frame`.
///
/// # Errors
/// The frame cannot be finished; nothing was emitted.
pub fn finish(
    header: NetHeader,
    frame: &mut [u8],
    receiver: Offloads,
    max_frame_bytes: usize,
    mut emit: impl FnMut(Finished<'_>),
) -> Result<usize, FinishFault> {
    if header.gso_type != GSO_NONE {
        return finish_long(header, frame, receiver, max_frame_bytes, emit);
    }
    let frame_bytes = frame.len();
    if frame_bytes > max_frame_bytes {
        return Err(FinishFault::TooLong {
            frame_bytes,
            max_frame_bytes,
        });
    }
    let header = if let Some(header) = header.for_receiver(receiver) {
        header
    } else {
        complete_checksum(frame, header.csum_start.into(), header.csum_offset.into())?;
        NetHeader::default()
    };
    emit(Finished {
        header,
        head: frame,
        payload: &[],
    });
    Ok(1)
}

fn finish_long(
    header: NetHeader,
    frame: &[u8],
    receiver: Offloads,
    max_frame_bytes: usize,
    mut emit: impl FnMut(Finished<'_>),
) -> Result<usize, FinishFault> {
    let packet = Packet::parse(&header, frame)?;
    if receiver.contains(packet.offloads(&header)) {
        // With all of USO, of which this packet needs one only. Without a checksum left out no
        // receiver takes a long packet.
        if let Some(header) = header.for_receiver(receiver | Offloads::USO) {
            emit(Finished {
                header,
                head: frame,
                payload: &[],
            });
            return Ok(1);
        }
    }
    if packet.destination == Destination::Unknown {
        return Err(FinishFault::OtherProtocol);
    }
    let (headers, payload) = frame
        .split_at_checked(packet.payload_offset)
        .ok_or(FinishFault::Truncated)?;
    let size_bytes = usize::from(header.gso_size_bytes);
    if size_bytes == 0 {
        return Err(FinishFault::SizeZero);
    }
    let frame_bytes = headers.len().saturating_add(size_bytes.min(payload.len()));
    if frame_bytes > max_frame_bytes {
        return Err(FinishFault::TooLong {
            frame_bytes,
            max_frame_bytes,
        });
    }
    // A packet without payload is one segment, too.
    let segments = payload.len().div_ceil(size_bytes).max(1);
    if segments > MAX_SEGMENTS {
        return Err(FinishFault::TooManySegments { segments });
    }
    let mut template = Template::new(packet, headers, receiver.contains(Offloads::CSUM))?;
    let mut rest = payload;
    for index in 1..=segments {
        let (piece, behind) = rest.split_at(size_bytes.min(rest.len()));
        rest = behind;
        let (header, head) = template.segment(piece, index == segments)?;
        emit(Finished {
            header,
            head,
            payload: piece,
        });
    }
    Ok(segments)
}
