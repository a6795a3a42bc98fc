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
//! | word | is |
//! |---|---|
//! | port | one guest: its network card, and its place on a switch |
//! | hub | what all ports of a process share |
//! | fabric | where the frames of a hub go: by a wire, a switch, nowhere, or back |
//! | wire | the fabric of one port and its link |
//! | switch | the fabric of several ports, and of their uplink if they have one |
//! | link | the way out of the process: a tap, a socket; it has one or more queues |
//! | uplink | the link of a switch |
//! | attachment | the hold of a data thread on a queue of the link |
//! | passage | what becomes of a frame at one station of its way |
//!
//! A turn serves each vring and each link for a bounded number of frames, beginning with another
//! one every time, so that no flood in one direction or of one guest starves the others.

mod announce;
mod attachment;
mod carrier;
mod commands;
mod held;
mod links;
mod passage;
mod patience;
mod queue;
mod receive;
mod rx_queue;
mod slot;
mod switch;
mod switch_port;
mod transmit;
mod tx_queue;
mod uplink;
mod waiting;
mod window;
mod workbench;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringside_common::device::{DeviceWorker, Vring};
use ringside_common::io::{IoQueue, Readiness, WatchId};
use ringside_common::memory::Buffers;
use rustix::io::dup;

use crate::counters::DropReason;
use crate::hub::Hub;
use crate::link::SPARE_BYTES;
use crate::offload::MAX_HEADERS_BYTES;
use attachment::Attachment;
pub use queue::{NetQueue, Seed};
use queue::{NetTurn, Side, Slots as _};
use slot::Slot;
use switch::Switch;

/// Frames moved from one vring or link before the next one has its turn.
const BUDGET_FRAMES: usize = 64;
/// Bytes likewise.
const BUDGET_BYTES: usize = 512 << 10;
/// Descriptors likewise: a chain may have a thousand of them and be no good.
const BUDGET_DESCRIPTORS: u32 = 1024;

/// Frames dropped at once that have waited for a guest that was not there: more than a queue of the
/// host holds, and few enough to end while senders go on.
const MOST_OLD_FRAMES: usize = 1 << 14;

/// The data side of all ports that one data thread serves.
#[derive(Debug)]
pub struct NetWorker {
    hub: Arc<Hub>,
    switch: Switch,
    /// Queues of the link, by number; none where this thread does not have it.
    attachments: Vec<Option<Attachment>>,
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
            switch: Switch::new(Arc::clone(&hub)),
            attachments: (0..hub.link_count()).map(|_| None).collect(),
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
        seed.into()
    }

    fn started(&mut self, turn: &mut NetTurn<'_>, slot: usize) -> io::Result<()> {
        if self.outbox.is_none() {
            let wake: OwnedFd = dup(self.hub.wake_fd())?;
            self.outbox = Some(turn.io.watch_for(wake, Readiness::Readable)?);
        }
        let Some(slot) = turn.vrings.kind(slot) else {
            return Ok(());
        };
        if let Slot::Receive(slot) = slot
            && let Some((_, rx)) = turn.vrings.rx(slot)
        {
            self.switch.set_receiver(rx.port.id, rx.pair, Some(slot));
            rx.port.pair_started();
        }
        self.start_link(turn, slot)?;
        if let Slot::Receive(slot) = slot {
            self.follow_serving(turn, slot);
        }
        self.send_announcements(turn);
        Ok(())
    }

    fn release(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        if let Some(Slot::Receive(slot)) = turn.vrings.kind(slot)
            && let Some((vring, rx)) = turn.vrings.rx_mut(slot)
        {
            rx.window.release(vring);
            rx.starved = false;
        }
    }

    fn enabled(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        if let Some(Slot::Receive(slot)) = turn.vrings.kind(slot) {
            self.follow_enabled(turn, slot);
            self.follow_serving(turn, slot);
        }
    }

    fn stopped(&mut self, turn: &mut NetTurn<'_>, slot: usize) {
        match turn.vrings.kind(slot) {
            Some(Slot::Receive(slot)) => {
                self.set_serving(turn, slot, false);
                if let Some((_, rx)) = turn.vrings.rx_mut(slot) {
                    let pair = rx.pair;
                    self.switch.set_receiver(rx.port.id, pair, None);
                    rx.port.pair_stopped();
                    rx.lose_held();
                    if rx.pending.take().is_some() {
                        rx.counters.count_drop(DropReason::LinkDown);
                    }
                    self.detach(pair);
                    self.stop_link(turn, pair);
                }
            }
            Some(Slot::Transmit(slot)) => {
                if let Some((_, tx)) = turn.vrings.tx(slot) {
                    self.stop_link(turn, tx.pair);
                }
            }
            Some(Slot::Control(_)) | None => {}
        }
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
            moved |= match turn.vrings.kind(slot) {
                Some(Slot::Transmit(slot)) => self.transmit(turn, slot),
                Some(Slot::Receive(slot)) => self.receive(turn, slot),
                Some(Slot::Control(slot)) => commands::serve(turn, slot),
                None => false,
            };
        }
        moved |= self.serve_uplink(turn);
        self.tend_links(turn);
        moved
    }

    fn has_work(&mut self, turn: &mut NetTurn<'_>) -> bool {
        if self.deadline_ns.is_some_and(|at| at <= turn.tick()) {
            return true;
        }
        turn.vrings.iter().any(|place| match &place.queue.0 {
            Side::Transmit(tx) => {
                place.vring.is_open()
                    && place.vring.has_available()
                    && self.may_take(turn.vrings, tx)
            }
            Side::Receive(rx) => self.has_something_for(&place.vring, rx),
            Side::Control(_) => place.vring.has_work(),
        }) || self.uplink_has_work()
    }

    fn wants_kicks(&self, _io: &IoQueue, queue: &NetQueue, vring: &Vring) -> bool {
        match &queue.0 {
            // A disabled one is emptied, too.
            Side::Transmit(tx) => vring.is_open() && tx.is_free(&self.attachments),
            Side::Receive(rx) => vring.is_live() && self.waits_for_buffers(rx),
            Side::Control(_) => vring.is_live(),
        }
    }

    fn ready(&mut self, turn: &mut NetTurn<'_>, watch: WatchId) {
        if self.outbox == Some(watch) {
            self.send_announcements(turn);
            self.follow_cables(turn);
        } else {
            for attachment in self.attachments.iter_mut().flatten() {
                attachment.ready(turn.io, watch);
            }
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }
}
