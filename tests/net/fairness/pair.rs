// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two well-behaved ports of one switch that send to each other.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringside_frontend::Result;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{
    Flow, Mac, NetConfig, NetFault, NetHeader, NetPort, RxConfig, RxQueue, TxConfig, TxQueue,
};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;

const LEFT: Mac = [2, 0, 0, 0, 0, 1];
const RIGHT: Mac = [2, 0, 0, 0, 0, 2];
const BROADCAST: Mac = [0xff; 6];
/// One frame of so many is for all, so that every port has something to receive.
const BROADCAST_EVERY: u64 = 16;
/// Receive buffers: more than can come while the driver is not looking.
const BUFFERS: u16 = 1024;
/// After so long without a frame, those under way are lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Both ports, driven by one thread.
pub(crate) struct GoodPair {
    ports: [NetPort; 2],
    ways: [Way; 2],
    frame: Vec<u8>,
}

/// One direction.
struct Way {
    from: Mac,
    sent: [Flow; 2],
    bytes: usize,
    /// The number of the next frame to send, and of the next to come.
    next: u64,
    due: u64,
    lost: u64,
    heard: Instant,
}

impl GoodPair {
    /// Connects both; frames are `bytes` long.
    pub(crate) fn open(streams: [UnixStream; 2], bytes: usize) -> Result<Self> {
        let config = NetConfig {
            rx: RxConfig {
                buffers: BUFFERS,
                buffer_bytes: 512,
                ..RxConfig::default()
            },
            tx: TxConfig {
                slots: 256,
                slot_bytes: 512,
                ..TxConfig::default()
            },
            timeout: Duration::from_secs(20),
            ..NetConfig::default()
        };
        let open = |stream| {
            let builder = Session::builder()
                .without_features(OFFLOADS)
                .queue_size(BUFFERS)
                .calls(CallMode::Never);
            let mut port = NetPort::open(stream, builder, &config)?;
            port.pairs[0].rx.post_all()?;
            Ok::<_, ringside_frontend::FrontendError>(port)
        };
        let [left, right] = streams;
        Ok(Self {
            ports: [open(left)?, open(right)?],
            ways: [Way::new(LEFT, RIGHT, bytes), Way::new(RIGHT, LEFT, bytes)],
            frame: Vec::new(),
        })
    }

    /// Has up to `in_flight` frames under way in each direction, and takes what has come.
    pub(crate) fn turn(&mut self, in_flight: u64) -> Result<()> {
        let goals = [0, 1].map(|way: usize| self.ways[way].due + in_flight);
        self.advance(goals)
    }

    /// Sends up to the frame with that number in each direction; else as [`turn`](Self::turn).
    pub(crate) fn advance(&mut self, goals: [u64; 2]) -> Result<()> {
        let [left, right] = &mut self.ports;
        let (left, right) = (&mut left.pairs[0], &mut right.pairs[0]);
        let queues = [(&mut left.tx, &mut right.rx), (&mut right.tx, &mut left.rx)];
        for (((tx, rx), way), goal) in queues.into_iter().zip(&mut self.ways).zip(goals) {
            way.send(tx, goal, &mut self.frame)?;
            way.receive(rx, &mut self.frame)?;
            tx.reap()?;
        }
        Ok(())
    }

    /// Frames sent so far in each direction.
    pub(crate) fn sent(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.ways[way].next)
    }

    /// Frames that have arrived so far in each direction.
    pub(crate) fn arrived(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.ways[way].due - self.ways[way].lost)
    }

    /// Frames that have not arrived although later ones have, or nothing has for long.
    pub(crate) fn lost(&self) -> u64 {
        self.ways.iter().map(|way| way.lost).sum()
    }
}

impl Way {
    fn new(from: Mac, to: Mac, bytes: usize) -> Self {
        let flow = |to| Flow::new(from, to, u64::from(from[5]));
        Self {
            from,
            sent: [flow(to), flow(BROADCAST)],
            bytes,
            next: 0,
            due: 0,
            lost: 0,
            heard: Instant::now(),
        }
    }

    fn send(&mut self, tx: &mut TxQueue, goal: u64, frame: &mut Vec<u8>) -> Result<()> {
        let before = self.next;
        while self.next < goal {
            let flow = &self.sent[usize::from(self.next.is_multiple_of(BROADCAST_EVERY))];
            flow.make(self.next, self.bytes, frame);
            if !tx.send(&NetHeader::default(), frame)? {
                break;
            }
            self.next += 1;
        }
        if self.next > before {
            if before == self.due {
                self.heard = Instant::now();
            }
            tx.publish()?;
        }
        Ok(())
    }

    fn receive(&mut self, rx: &mut RxQueue, frame: &mut Vec<u8>) -> Result<()> {
        let (mut arrived, mut taken) = (false, false);
        while rx.poll(frame)?.is_some() {
            taken = true;
            if frame.get(6..12) != Some(&self.from[..]) {
                continue;
            }
            let flow = usize::from(frame.first() == Some(&0xff));
            let found = self.sent[flow].check(frame, self.bytes)?;
            if found < self.due || found >= self.next {
                let expected = self.due;
                return Err(NetFault::Sequence { found, expected }.into());
            }
            self.lost += found - self.due;
            self.due = found + 1;
            arrived = true;
        }
        if taken {
            rx.post_all()?;
        }
        if arrived {
            self.heard = Instant::now();
        } else if self.due < self.next && self.heard.elapsed() > LOST_AFTER {
            self.lost += self.next - self.due;
            self.due = self.next;
        }
        Ok(())
    }
}
