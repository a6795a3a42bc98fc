// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port that does its worst, a little at a time and without ever waiting.

use std::os::unix::net::UnixStream;

use ringside_frontend::Result;
use ringside_frontend::memory::GuestSlice;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{HEADER_MODERN_BYTES, Mac, NetConfig, NetPort};
use ringside_frontend::ring::{CallMode, Segment, desc_flag};
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;

/// Its address.
pub(crate) const HOSTILE: Mac = [2, 0, 0, 0, 0, 0xee];
/// In no region of its memory.
const NOWHERE: u64 = 0xdead_0000_0000;
/// Descriptors of its rings: as many as a chain may have.
const RING: u16 = 1024;
/// What one descriptor of the longest chain has; together they are a frame.
const PIECE_BYTES: u32 = 60;
/// A frame of the flood.
const FLOOD_BYTES: u32 = 64;
/// Chains or kicks at a time.
const BURST: usize = 64;

/// What it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Malice {
    /// Chains that loop, lead nowhere, are too short or cannot be read.
    MalformedChains,
    /// Frames in chains of 1024 descriptors.
    LongChains,
    /// Broadcasts, as many as it can.
    Broadcasts,
    /// Receive buffers too small, not to be written, or nowhere.
    UselessBuffers,
    /// Kicks of both queues, without anything to do.
    Kicks,
}

impl Malice {
    pub(crate) const ALL: [Self; 5] = [
        Self::MalformedChains,
        Self::LongChains,
        Self::Broadcasts,
        Self::UselessBuffers,
        Self::Kicks,
    ];
}

/// The port.
pub(crate) struct Hostile {
    malice: Malice,
    port: NetPort,
    /// Where its frames are.
    gpa: u64,
    pieces: Vec<Segment>,
}

impl Hostile {
    pub(crate) fn open(stream: UnixStream, malice: Malice) -> Result<Self> {
        let builder = Session::builder()
            .without_features(OFFLOADS)
            .queue_size(RING)
            .calls(CallMode::Never);
        let port = NetPort::open(stream, builder, &NetConfig::default())?;
        let memory = port.pairs[0].tx.vring().memory();
        let bytes = usize::from(RING) * PIECE_BYTES as usize;
        let gpa = memory.alloc(bytes, 64)?;
        let to = match malice {
            // A switch keeps it from everybody: it costs what the chain does.
            Malice::LongChains => HOSTILE,
            _ => [0xff; 6],
        };
        write_frame(&memory.slice(gpa, bytes)?, to);
        let pieces = (0..u64::from(RING))
            .map(|at| Segment::readable(gpa + at * u64::from(PIECE_BYTES), PIECE_BYTES))
            .collect();
        Ok(Self {
            malice,
            port,
            gpa,
            pieces,
        })
    }

    /// Does some more of it, and returns how many chains or kicks the device was given.
    pub(crate) fn act(&mut self) -> Result<usize> {
        let (gpa, pair) = (self.gpa, &mut self.port.pairs[0]);
        match self.malice {
            Malice::Kicks => {
                for _ in 0..BURST {
                    pair.tx.vring_mut().kick()?;
                    pair.rx.vring_mut().kick()?;
                }
                Ok(2 * BURST)
            }
            Malice::LongChains => give(pair.tx.vring_mut(), 1, |_| self.pieces.clone()),
            Malice::Broadcasts => give(pair.tx.vring_mut(), BURST, |_| {
                let bytes = FLOOD_BYTES + header_bytes();
                vec![Segment::readable(gpa, bytes)]
            }),
            Malice::UselessBuffers => give(pair.rx.vring_mut(), BURST, |at| match at % 4 {
                0 => vec![Segment::readable(gpa, 2048)],
                1 => vec![Segment::writable(NOWHERE, 2048)],
                2 => vec![Segment::writable(gpa, 1)],
                _ => vec![Segment::writable(gpa, header_bytes() + 1)],
            }),
            Malice::MalformedChains => malformed(pair.tx.vring_mut(), gpa),
        }
    }
}

fn header_bytes() -> u32 {
    u32::try_from(HEADER_MODERN_BYTES).unwrap_or(u32::MAX)
}

/// An empty header and a frame to that address.
fn write_frame(window: &GuestSlice, to: Mac) {
    let frame = [&to[..], &HOSTILE, &[0x88, 0xb6]].concat();
    window.write(HEADER_MODERN_BYTES, &frame);
}

/// Takes back what has been used, and adds up to `count` chains.
fn give(
    vring: &mut Vring,
    count: usize,
    mut chain: impl FnMut(usize) -> Vec<Segment>,
) -> Result<usize> {
    while vring.ring.pop_used()?.is_some() {}
    let mut given = 0;
    while given < count {
        let segments = chain(given);
        if segments.len() > usize::from(vring.ring.free_len()) {
            break;
        }
        vring.ring.add(&segments, &[])?;
        given += 1;
    }
    if given > 0 {
        vring.publish()?;
    }
    Ok(given)
}

fn malformed(vring: &mut Vring, gpa: u64) -> Result<usize> {
    let given = give(vring, BURST, |at| match at % 4 {
        0 => vec![Segment::readable(gpa, header_bytes() - 1)],
        1 => vec![Segment::readable(gpa, 64), Segment::readable(NOWHERE, 2000)],
        2 => vec![Segment::writable(gpa, 2000)],
        _ => vec![Segment::readable(gpa, 64), Segment::readable(gpa, u32::MAX)],
    })?;
    if vring.ring.free_len() == 0 {
        return Ok(given);
    }
    // Published only after it has become a loop.
    let head = vring.ring.add(&[Segment::readable(gpa, 64)], &[])?;
    vring.ring.edit_desc(head, |descriptor| {
        (descriptor.flags, descriptor.next) = (desc_flag::NEXT, head);
    });
    vring.publish()?;
    Ok(given + 1)
}
