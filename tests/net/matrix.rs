// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames through `ringside-net` in a closed loop, the content of each checked: on a loop and from
//! port to port, for combinations of merged buffers, order, notification, queues, ring lengths,
//! frame lengths and layouts of chains.
//!
//! By default so few combinations are run that every pair of values meets;
//! `RINGSIDE_FULL_MATRIX=1` runs all.

#[path = "exchange.rs"]
mod exchange;

use std::error::Error;
use std::time::Duration;

use ringside_frontend::ids::feature;
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::net::net_feature::{MRG_RXBUF, OFFLOADS};
use ringside_frontend::net::{Flow, NetConfig, NetPort, RxConfig, Shape, Start, TxConfig};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::covering;
use ringside_tests::net_back_end::NetBackEnd;

use exchange::{OURS, Plan, THEIRS, exchange, exchange_with_loop};

type TestResult = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(20);
/// Frames of each pair in each case.
const FRAMES: u64 = 1000;

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Case {
    merges: bool,
    in_order: bool,
    /// `EVENT_IDX`, with calls; or neither, and polling.
    called: bool,
    pairs: usize,
    queue_size: u16,
    bytes: usize,
    shape: Shape,
}

impl Case {
    const VALUES: [usize; 7] = [2, 2, 2, 3, 3, 4, 4];

    fn of([merges, in_order, called, pairs, queue_size, bytes, shape]: [usize; 7]) -> Self {
        Self {
            merges: merges == 1,
            in_order: in_order == 1,
            called: called == 1,
            pairs: [1, 2, 4][pairs],
            queue_size: [64, 256, 1024][queue_size],
            bytes: [60, 64, 1500, 9000][bytes],
            shape: [
                Shape::WHOLE,
                Shape::HEADER_APART,
                Shape::CUT,
                Shape::CUT.in_table(),
            ][shape],
        }
    }

    fn builder(&self) -> SessionBuilder {
        let mut unwanted = OFFLOADS;
        let mut wanted = 0;
        for (is_wanted, bit) in [(self.merges, MRG_RXBUF), (self.in_order, feature::IN_ORDER)] {
            if is_wanted {
                wanted |= bit;
            } else {
                unwanted |= bit;
            }
        }
        Session::builder()
            .require(wanted)
            .without_features(unwanted)
            .event_idx(self.called)
            .queue_size(self.queue_size)
            .memory(MemoryLayout::single(128 << 20))
            .calls(if self.called {
                CallMode::Wanted
            } else {
                CallMode::Never
            })
    }

    fn config(&self) -> NetConfig {
        let buffer_bytes = if self.merges { 1024 } else { 9600 };
        NetConfig {
            pairs: self.pairs,
            rx: RxConfig {
                buffers: self.queue_size.min(256),
                buffer_bytes,
                // Chains of many descriptors would leave a short ring without room for a frame.
                shape: if self.merges {
                    Shape::WHOLE
                } else {
                    self.shape
                },
                strict: true,
            },
            tx: TxConfig {
                slots: 32,
                slot_bytes: 9600,
                shape: self.shape,
            },
            // As QEMU and as others, evenly over the cases.
            start: if self.bytes == 64 {
                Start::EnableFirst
            } else {
                Start::EnableLast
            },
            timeout: PATIENCE,
            ..NetConfig::default()
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            frames: FRAMES,
            bytes: self.bytes,
            // All under way find buffers.
            in_flight: if self.bytes > 1500 { 3 } else { 16 },
            timeout: PATIENCE,
        }
    }

    fn open(&self, back_end: &mut NetBackEnd, port: usize) -> Result<NetPort, Box<dyn Error>> {
        let opened = NetPort::open(back_end.connect(port)?, self.builder(), &self.config());
        Ok(opened.map_err(|e| format!("{self:?}: {e}"))?)
    }
}

#[test]
fn every_frame_comes_back_from_a_loop_unchanged() -> TestResult {
    let mut back_end = NetBackEnd::start(1, &["--backend", "loopback"])?;
    for choice in covering::cases(Case::VALUES) {
        let case = Case::of(choice);
        let mut port = case.open(&mut back_end, 0)?;
        for pair in &mut port.pairs {
            exchange_with_loop(pair, &case.plan()).map_err(|e| format!("{case:?}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_frame_crosses_the_switch_unchanged() -> TestResult {
    let mut back_end = NetBackEnd::start(2, &["--backend", "switch"])?;
    for choice in covering::cases(Case::VALUES) {
        // Which queue a frame arrives on is the switch's choice: one pair, so that it has none.
        let case = Case {
            pairs: 1,
            ..Case::of(choice)
        };
        let mut left = case.open(&mut back_end, 0)?;
        let mut right = case.open(&mut back_end, 1)?;
        let there = Flow::new(OURS, THEIRS, 1);
        let back = Flow::new(THEIRS, OURS, 2);
        for (from, to, flow) in [(0, 1, &there), (1, 0, &back), (0, 1, &there)] {
            let [left, right] = [&mut left, &mut right].map(|port| &mut port.pairs[0]);
            let (tx, rx) = match (from, to) {
                (0, _) => (&mut left.tx, &mut right.rx),
                _ => (&mut right.tx, &mut left.rx),
            };
            exchange((tx, rx), flow, &mut flow.clone(), &case.plan())
                .map_err(|e| format!("{case:?}, {from} to {to}: {e}"))?;
        }
    }
    Ok(())
}
