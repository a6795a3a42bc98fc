// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that sends long frames and takes what its features say.

use std::thread;

use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::net::net_feature::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, MRG_RXBUF,
    OFFLOADS,
};
use ringside_frontend::net::{NetConfig, NetHeader, NetPort, RxConfig, Shape, Start, TxConfig};
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;
use serde_json::Value;

use crate::{OURS, PATIENCE, Result, SILENCE, THEIRS};

/// All that may be left to the device.
pub(crate) const SENDS_LONG: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
/// Long TCP is taken as it is.
pub(crate) const TAKES_LONG: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | MRG_RXBUF;

/// The greatest frame and its header.
const SLOT_BYTES: usize = 66 << 10;

/// See above.
pub(crate) struct Guest {
    pub(crate) port: NetPort,
    merges: bool,
}

impl Guest {
    /// A guest with these features of offloading and merging, and no other of those.
    pub(crate) fn open(back_end: &mut NetBackEnd, port: usize, features: u64) -> Result<Self> {
        let builder = Session::builder()
            .without_features((OFFLOADS | MRG_RXBUF) & !features)
            .require(features)
            .queue_size(256)
            .memory(MemoryLayout::single(32 << 20));
        let merges = features & MRG_RXBUF != 0;
        let config = NetConfig {
            rx: RxConfig {
                buffers: 250,
                // A merged one is filled up several times by each segment.
                buffer_bytes: if merges { 600 } else { 2048 },
                shape: Shape::WHOLE,
                strict: true,
            },
            tx: TxConfig {
                slots: 8,
                slot_bytes: SLOT_BYTES,
                shape: Shape::HEADER_APART,
            },
            start: Start::EnableLast,
            timeout: PATIENCE,
            ..NetConfig::default()
        };
        let mut port = NetPort::open(back_end.connect(port)?, builder, &config)?;
        port.pairs[0].rx.post_all()?;
        Ok(Self { port, merges })
    }

    /// Sends a frame and waits until it is used.
    pub(crate) fn send(&mut self, (header, frame): &(NetHeader, Vec<u8>)) -> Result<()> {
        Ok(self.port.pairs[0].tx.send_now(header, frame, PATIENCE)?)
    }

    /// The next frame.
    pub(crate) fn receive(&mut self) -> Result<(NetHeader, Vec<u8>)> {
        let rx = &mut self.port.pairs[0].rx;
        let mut frame = Vec::new();
        let received = rx.wait(&mut frame, PATIENCE)?;
        rx.post_all()?;
        Ok((received.header, frame))
    }

    /// The next `count` frames, each of which has to be finished.
    pub(crate) fn receive_finished(&mut self, count: usize) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            let (header, frame) = self
                .receive()
                .map_err(|e| format!("frame {} of {count}: {e}", frames.len()))?;
            // A device sets it without merged buffers, too.
            let num_buffers = header.num_buffers;
            let plain = NetHeader {
                num_buffers,
                ..NetHeader::default()
            };
            assert_eq!(header, plain, "an unfinished frame");
            assert!(self.merges || num_buffers == 1, "{num_buffers} buffers");
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Nothing comes for a while.
    pub(crate) fn receives_nothing(&mut self) -> Result<()> {
        thread::sleep(SILENCE);
        let mut frame = Vec::new();
        match self.port.pairs[0].rx.poll(&mut frame)? {
            None => Ok(()),
            Some(received) => Err(format!("{received:?}").into()),
        }
    }
}

/// Two guests on the ports of a switch, which knows where the second is.
pub(crate) fn pair(back_end: &mut NetBackEnd, features: [u64; 2]) -> Result<[Guest; 2]> {
    let mut sender = Guest::open(back_end, 0, features[0])?;
    let mut receiver = Guest::open(back_end, 1, features[1])?;
    receiver.send(&(NetHeader::default(), hello(OURS, THEIRS)))?;
    sender.receive()?;
    Ok([sender, receiver])
}

/// A frame of a protocol for experiments.
pub(crate) fn hello(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.resize(60, 0);
    frame
}

/// How many frames were lost for this reason, on all ports.
pub(crate) fn drops(back_end: &NetBackEnd, reason: &str) -> Result<u64> {
    fn sum(value: &Value, reason: &str) -> u64 {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| match value.as_u64() {
                    Some(count) if name == reason => count,
                    _ => sum(value, reason),
                })
                .sum(),
            Value::Array(items) => items.iter().map(|item| sum(item, reason)).sum(),
            _ => 0,
        }
    }
    let stats = back_end.control("stats", &Value::Null)?;
    Ok(sum(&stats, reason))
}
