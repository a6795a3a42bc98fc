// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest whose network stack is the kernel of a namespace: what that sends on a tap goes into the
//! vrings, and back.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringside_common::memory::Buffers;
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{NetConfig, NetHeader, NetPort, Pair, RxConfig, Shape, TxConfig};
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_net::features::Offloads;
use ringside_net::header::NetHeader as LinkHeader;
use ringside_net::link::tap::{Tap, TapQueue, TapSpec};
use ringside_net::link::{Payload, Received, Room, SPARE_BYTES};
use ringside_tests::vm::Network;

use crate::{PATIENCE, Result};

/// Between two looks at vrings and tap when there is nothing.
const PAUSE: Duration = Duration::from_micros(100);

/// See above.
pub(crate) struct Guest {
    network: Network,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// A guest with the address 10.9.0.`number`, which leaves checksums and segments to the device,
    /// and takes them unfinished, or not.
    pub(crate) fn start(stream: UnixStream, number: u8, offloads: bool) -> Result<Self> {
        let network = Network::new()?;
        network.tap("eth0", 1, &[&format!("10.9.0.{number}/24")])?;
        let spec = TapSpec::Interface {
            name: "eth0".to_owned(),
            netns: Some(network.path()),
            shared: false,
        };
        let tap = Tap::open(&spec, 1)?;
        // A tap is opened without one.
        tap.set_carrier(true)?;
        if offloads {
            tap.set_offloads(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6)?;
        }
        let builder = Session::builder()
            .without_features(if offloads { 0 } else { OFFLOADS })
            .queue_size(256)
            .calls(CallMode::Never)
            .memory(MemoryLayout::single(32 << 20));
        let config = NetConfig {
            rx: RxConfig {
                buffers: 250,
                ..RxConfig::default()
            },
            tx: TxConfig {
                slots: 128,
                slot_bytes: 66 << 10,
                shape: Shape::HEADER_APART,
            },
            timeout: PATIENCE,
            ..NetConfig::default()
        };
        let mut port = NetPort::open(stream, builder, &config)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let queue = tap.queue(0).ok_or("no queue of the tap")?;
        let thread = thread::spawn(move || {
            let mut stack = Stack::new(queue);
            while !stopped.load(Ordering::Relaxed) {
                match stack.turn(&mut port.pairs[0]) {
                    Ok(true) => {}
                    Ok(false) => thread::sleep(PAUSE),
                    // The back-end has gone; what was asked of the guest fails.
                    Err(_) => return,
                }
            }
            // The connection is the guest's as long as it runs.
            drop((port, tap));
        });
        Ok(Self {
            network,
            stop,
            thread: Some(thread),
        })
    }

    /// Where programs of the guest run.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Stack {
    queue: TapQueue,
    /// From the kernel, if it did not fit into the ring yet.
    sent: Option<NetHeader>,
    frame: Vec<u8>,
    received: Vec<u8>,
}

impl Stack {
    fn new(queue: TapQueue) -> Self {
        Self {
            queue,
            sent: None,
            frame: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Moves what is there; returns whether there was something.
    fn turn(&mut self, pair: &mut Pair) -> Result<bool> {
        let mut moved = pair.tx.reap()? > 0;
        while self.next() {
            let Some(header) = self.sent else { break };
            if !pair.tx.send(&header, &self.frame)? {
                break;
            }
            self.sent = None;
            moved = true;
        }
        pair.tx.publish()?;
        while let Some(received) = pair.rx.poll(&mut self.received)? {
            let header = LinkHeader::decode(received.header.to_bytes());
            let payload = Payload::Bytes(&self.received);
            self.queue.send(&header, payload);
            moved = true;
        }
        pair.rx.post_all()?;
        Ok(moved)
    }

    /// Whether there is a frame of the kernel's, read now or before.
    fn next(&mut self) -> bool {
        if self.sent.is_some() {
            return true;
        }
        self.frame.resize(SPARE_BYTES, 0);
        let window = Buffers::default();
        let received = self.queue.receive(Room {
            window: &window,
            skip_bytes: 0,
            limit_bytes: 0,
            spare: &mut self.frame,
        });
        let Received::Frame { header, bytes } = received else {
            return false;
        };
        self.frame.truncate(bytes);
        self.sent = Some(NetHeader::from_bytes(header.encode()));
        true
    }
}
