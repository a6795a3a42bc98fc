// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data side: frames between vrings, and between vrings and links.
//!
//! A frame is looked at, sent on and done with in one go. From a guest it goes straight from its
//! chain to the link or into the chains of another guest, copied once; then its chain is given
//! back. One that cannot go now is not taken: [`Vring::undo`](ringside_common::worker::Vring::undo)
//! leaves it in the ring until the link is writable, the rate limit allows it, or the receiver has
//! buffers. To a guest it is read from the link into the chains that wait for it (`window`).
//! Chains are therefore given back in the order they were taken, and none is held when a vring
//! stops, but for those of a window, which go back to the ring as if never taken.
//!
//! A turn serves each vring and each link for a bounded number of frames, beginning with another
//! one every time, so that no flood in one direction or of one guest starves the others.

mod announce;
mod carrier;
mod commands;
mod held;
mod lan;
mod patience;
mod receive;
mod standing;
mod transmit;
mod uplink;
mod waiting;
mod window;
mod wire;
mod workbench;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringside_common::io::{IoQueue, Readiness, WatchId};
use ringside_common::memory::Buffers;
use ringside_common::worker::{DeviceWorker, Turn, Vring, Vrings};
use rustix::io::dup;

use crate::counters::{Direction, DropReason, PacketCounters};
use crate::hub::Hub;
use crate::link::{Payload, SPARE_BYTES};
use crate::mac_table::PortId;
use crate::offload::MAX_HEADERS_BYTES;
use crate::port::{Negotiated, Port, Role};
use lan::Lan;
use receive::RxQueue;
use transmit::TxQueue;
use wire::Wire;

/// Frames moved from one vring or link before the next one has its turn.
const BUDGET_FRAMES: usize = 64;
/// Bytes likewise.
const BUDGET_BYTES: usize = 512 << 10;
/// Descriptors likewise: a chain may have a thousand of them and be no good.
const BUDGET_DESCRIPTORS: u32 = 1024;

/// What the control side hands over when a vring starts.
#[derive(Debug)]
pub struct Seed {
    pub(crate) port: Arc<Port>,
    pub(crate) role: Role,
    pub(crate) negotiated: Negotiated,
    pub(crate) counters: Arc<PacketCounters>,
}

/// What is kept for a started vring.
#[derive(Debug)]
pub struct NetQueue {
    port: Arc<Port>,
    counters: Arc<PacketCounters>,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Receive(Box<RxQueue>),
    Transmit(TxQueue),
    Control(Buffers),
}

type NetTurn<'a> = Turn<'a, NetQueue>;
type NetVrings = Vrings<NetQueue>;

/// The data side of all ports that one data thread serves.
#[derive(Debug)]
pub struct NetWorker {
    hub: Arc<Hub>,
    lan: Lan,
    wires: Vec<Option<Wire>>,
    /// The frame that is being moved.
    frame: Buffers,
    /// Its first bytes, as far as they were looked at.
    front: [u8; MAX_HEADERS_BYTES],
    /// Room for one that came from a link and did not fit.
    spare: Box<[u8]>,
    /// Wakes us for what the control side asks for.
    outbox: Option<WatchId>,
    /// Which slot begins.
    first: usize,
    deadline_ns: Option<u64>,
}

impl NetWorker {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            lan: Lan::new(Arc::clone(&hub)),
            wires: (0..hub.link_count()).map(|_| None).collect(),
            hub,
            frame: Buffers::default(),
            front: [0; MAX_HEADERS_BYTES],
            spare: vec![0; SPARE_BYTES].into_boxed_slice(),
            outbox: None,
            first: 0,
            deadline_ns: None,
        }
    }

    /// Something will have to be done at `at_ns`.
    fn wake_at(&mut self, at_ns: u64) {
        self.deadline_ns = Some(self.deadline_ns.map_or(at_ns, |earlier| earlier.min(at_ns)));
    }
}

impl DeviceWorker for NetWorker {
    type Seed = Seed;
    type Queue = NetQueue;
    type Brought = ();

    fn start_queue(&mut self, seed: Seed, _vring: &Vring) -> NetQueue {
        let side = match seed.role {
            Role::Receive { pair } => Side::Receive(Box::new(RxQueue::new(pair, seed.negotiated))),
            Role::Transmit { pair } => Side::Transmit(TxQueue::new(pair, seed.negotiated)),
            Role::Control => Side::Control(Buffers::default()),
        };
        NetQueue {
            port: seed.port,
            counters: seed.counters,
            side,
        }
    }

    fn started(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> io::Result<()> {
        if self.outbox.is_none() {
            let wake: OwnedFd = dup(self.hub.wake_fd())?;
            self.outbox = Some(turn.io.watch_for(wake, Readiness::Readable)?);
        }
        if let Some(place) = turn.vrings.get(slot) {
            self.lan.add(slot, &place.queue);
            if matches!(place.queue.side, Side::Receive(_)) {
                place.queue.port.pair_started();
            }
        }
        self.start_wire(turn, slot)?;
        self.follow_serving(turn, slot);
        self.send_announcements(turn);
        Ok(())
    }

    fn release(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        if let Some(place) = turn.vrings.get_mut(slot)
            && let Side::Receive(rx) = &mut place.queue.side
        {
            rx.window.release(&mut place.vring);
            rx.starved = false;
        }
    }

    fn enabled(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        self.follow_enabled(turn, slot);
        self.follow_serving(turn, slot);
    }

    fn stopped(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        self.set_serving(turn, slot, false);
        if let Some(place) = turn.vrings.get_mut(slot) {
            self.lan.remove(&place.queue);
            let queue = &mut place.queue;
            if let Side::Receive(rx) = &mut queue.side {
                queue.port.pair_stopped();
                rx.lose_held(&queue.counters);
                if rx.pending.take().is_some() {
                    queue.counters.count_drop(DropReason::LinkDown);
                }
            }
        }
        self.stop_wire(turn, slot);
    }

    fn turn(&mut self, turn: &mut NetTurn<'_>) -> bool {
        turn.tick();
        self.deadline_ns = None;
        let slots = turn.vrings.len();
        self.first = if self.first + 1 < slots {
            self.first + 1
        } else {
            0
        };
        let mut moved = false;
        for slot in (self.first..slots).chain(0..self.first) {
            let Some(place) = turn.vrings.get(slot) else {
                continue;
            };
            moved |= match &place.queue.side {
                Side::Transmit(_) => self.transmit(turn, slot),
                Side::Receive(_) => self.receive(turn, slot),
                Side::Control(_) => commands::serve(turn, slot),
            };
        }
        moved |= self.serve_uplink(turn);
        self.tend_wires(turn);
        moved
    }

    fn has_work(&mut self, turn: &mut NetTurn<'_>) -> bool {
        if self.deadline_ns.is_some_and(|at| at <= turn.tick()) {
            return true;
        }
        turn.vrings.iter().any(|place| match &place.queue.side {
            Side::Transmit(tx) => {
                place.vring.is_open()
                    && place.vring.has_available()
                    && tx.may_take(turn.vrings, &self.wires)
            }
            Side::Receive(rx) => self.has_something_for(&place.vring, &place.queue.port, rx),
            Side::Control(_) => place.vring.has_work(),
        }) || self.uplink_has_work()
    }

    fn wants_kicks(&self, _io: &IoQueue, queue: &NetQueue, vring: &Vring) -> bool {
        match &queue.side {
            // A disabled one is emptied, too.
            Side::Transmit(tx) => vring.is_open() && tx.is_free(&self.wires),
            Side::Receive(rx) => vring.is_live() && self.waits_for_buffers(rx),
            Side::Control(_) => vring.is_live(),
        }
    }

    fn ready(&mut self, turn: &mut NetTurn<'_>, watch: WatchId) {
        if self.outbox == Some(watch) {
            self.send_announcements(turn);
            self.follow_cables(turn);
        } else {
            self.wire_ready(turn, watch);
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }
}

/// Shows a frame that passes to a capture, if one runs.
#[inline]
fn captured(hub: &Hub, port: PortId, direction: Direction, now_ns: u64, payload: Payload<'_>) {
    if hub.capture.is_on() {
        let bytes = payload.bytes();
        hub.capture
            .frame(port.0, direction, now_ns, bytes, |at, to| {
                payload.copy_to(at, to)
            });
    }
}
