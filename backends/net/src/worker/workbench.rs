// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames that cannot pass as they are: a receiver that takes no offloads, a link without headers,
//! a VLAN tag to be put in. They are copied once more, and changed on the way.

use ringside_common::device::Vring;
use ringside_common::limited;

use super::passage::{Frame, Passage, captured};
use super::rx_queue::RxQueue;
use crate::counters::{Direction, DropReason};
use crate::features::Offloads;
use crate::frame::{ETHERNET_HEADER_BYTES, Ethernet, TAGGED_HEADER_BYTES, VLAN_TAG_BYTES, tagged};
use crate::header::{MAX_FRAME_BYTES, NetHeader};
use crate::hub::Hub;
use crate::link::{LinkQueue, Payload, SPARE_BYTES, Sent};
use crate::offload::{FinishFault, finish};

/// A frame that was copied to where it can be changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) header: NetHeader,
    pub(super) bytes: usize,
}

/// Room for a frame, and for one segment of it.
#[derive(Debug)]
pub(super) struct Workbench {
    frame: Box<[u8]>,
    segment: Vec<u8>,
}

impl Workbench {
    pub(super) fn new() -> Self {
        Self {
            frame: vec![0; SPARE_BYTES + VLAN_TAG_BYTES].into_boxed_slice(),
            segment: Vec::with_capacity(MAX_FRAME_BYTES),
        }
    }

    /// Where a frame of `bytes` goes for [`give`](Self::give); none for one that is too long.
    pub(super) fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        self.frame.get_mut(..bytes)
    }

    /// Gives a guest the frame that is in the room, finished as far as its driver needs.
    ///
    /// With [`Passage::Waits`] the guest has nothing of it. One that gets buffers for some segments
    /// only loses the others.
    pub(super) fn give(
        &mut self,
        hub: &Hub,
        vring: &mut Vring,
        rx: &mut RxQueue,
        now_ns: u64,
        Loaded { header, bytes }: Loaded,
    ) -> Passage {
        let takes = rx.negotiated.takes;
        let max_frame_bytes = rx.port.max_frame_bytes();
        let Some(frame) = self.frame.get_mut(..bytes) else {
            return Passage::Lost(DropReason::MtuExceeded);
        };
        let segment = &mut self.segment;
        let mut result = Passage::Passed;
        let mut some_arrived = false;
        let finished = finish(header, frame, takes, max_frame_bytes, |part| {
            if result != Passage::Passed {
                return;
            }
            segment.clear();
            segment.extend_from_slice(part.head);
            segment.extend_from_slice(part.payload);
            let cut = Frame::of(part.header, segment);
            result = rx.give(vring, now_ns, part.header, &cut);
            match result {
                Passage::Passed => {
                    some_arrived = true;
                    captured(hub, rx.port.id, Direction::Rx, now_ns, cut.payload);
                }
                // The frame is not sent again.
                Passage::Waits if some_arrived => result = Passage::Lost(DropReason::NoBuffer),
                Passage::Waits | Passage::Lost(_) => {}
            }
        });
        match finished {
            Ok(_) => result,
            Err(fault) => Passage::Lost(loss_of(fault)),
        }
    }

    /// Sends a frame out, tagged with `vlan` unless that is 0, and finished if the link needs it.
    pub(super) fn send(
        &mut self,
        link: &mut LinkQueue,
        vlan: u16,
        mut header: NetHeader,
        payload: Payload<'_>,
    ) -> Result<Sent, DropReason> {
        let bytes = payload.bytes();
        let room = self.frame.get_mut(..bytes + VLAN_TAG_BYTES);
        let room = room.ok_or(DropReason::MtuExceeded)?;
        payload.copy_to(0, room.get_mut(VLAN_TAG_BYTES..).unwrap_or_default());
        let frame = if vlan == 0 {
            room.get_mut(VLAN_TAG_BYTES..).unwrap_or_default()
        } else {
            let (frame, moved) = put_tag(room, vlan, header).ok_or(DropReason::Malformed)?;
            header = moved;
            frame
        };
        if link.supports_headers() {
            return Ok(link.send(&header, Payload::Bytes(frame)));
        }
        let segment = &mut self.segment;
        let mut first = None;
        finish(header, frame, Offloads::empty(), MAX_FRAME_BYTES, |part| {
            segment.clear();
            segment.extend_from_slice(part.head);
            segment.extend_from_slice(part.payload);
            let header = NetHeader::default();
            let sent = link.send(&header, Payload::Bytes(segment));
            // The first stands for all: what does not fit after it is lost, as on any full link.
            first.get_or_insert(sent);
        })
        .map_err(loss_of)?;
        Ok(first.unwrap_or(Sent::Done))
    }
}

/// How a frame that cannot be finished is counted; why not is for a log of this level.
#[cold]
fn loss_of(fault: FinishFault) -> DropReason {
    limited!(debug, "a frame cannot be finished: {fault}");
    match fault {
        FinishFault::TooLong { .. } => DropReason::MtuExceeded,
        _ => DropReason::Offload,
    }
}

/// Puts a frame into a VLAN: behind [`VLAN_TAG_BYTES`] of room a tag goes in, or the one it has, of
/// a priority alone, says the VLAN from then on.
fn put_tag(room: &mut [u8], vlan: u16, header: NetHeader) -> Option<(&mut [u8], NetHeader)> {
    let plain = room.get(VLAN_TAG_BYTES..)?;
    if let Some(tag) = Ethernet::parse(plain)?.tag {
        let addresses = *plain.first_chunk::<ETHERNET_HEADER_BYTES>()?;
        let frame = room.get_mut(VLAN_TAG_BYTES..)?;
        // The tag ends where it would if it were put in; what follows stays.
        let front = tagged(addresses, tag.moved_to(vlan).control);
        let (front, _) = front.split_last_chunk::<2>()?;
        frame.get_mut(..front.len())?.copy_from_slice(front);
        return Some((frame, header));
    }
    let plain = plain.first_chunk::<ETHERNET_HEADER_BYTES>()?;
    let tagged = tagged(*plain, vlan);
    room.get_mut(..TAGGED_HEADER_BYTES)?
        .copy_from_slice(&tagged);
    Some((room, header.moved(4)?))
}
