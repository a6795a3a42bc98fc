// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loop of a data thread.
//!
//! One turn: commands; a bounded batch of chains from each vring; one submit for all the I/O they
//! started; completions; one publish and at most one call per vring. While turns find work there
//! is no sleep, but for a short one when much is in flight, and no notification is asked for. When a turn finds none, the thread polls as long
//! as [`AdaptivePoll`] thinks it pays, asks for kicks, looks a last time and sleeps.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::time::{ClockId, clock_gettime};

use super::mailbox::{Command, Letter, Mailbox, Reply, VringStart};
use super::poll::AdaptivePoll;
use super::vring::{RequestCx, Token, Vring};
use crate::device::DeviceWorker;
use crate::io::{Event, IoQueue, Wait, WatchId};
use crate::memory::Memory;
use crate::ring::{Ring as _, SplitRing};

/// Chains taken from one vring before the next one has its turn: enough for a batch to pay, few
/// enough that the others wait for microseconds.
const BUDGET: usize = 64;

/// A vring and what the device keeps for it.
struct Slot<Q> {
    vring: Vring,
    queue: Q,
    /// Who asked for the stop.
    stop: Option<SyncSender<Reply>>,
}

/// One data thread.
pub(super) struct DataThread<W: DeviceWorker> {
    worker: W,
    io: IoQueue,
    mailbox: Arc<Mailbox>,
    mailbox_watch: WatchId,
    slots: Vec<Option<Slot<W::Queue>>>,
    events: Vec<Event>,
    poll: AdaptivePoll,
    /// No chains are taken; the second is who waits for those in flight.
    paused: bool,
    pause: Option<SyncSender<Reply>>,
    now_ns: u64,
}

impl<W: DeviceWorker> DataThread<W> {
    pub(super) fn new(
        worker: W,
        mut io: IoQueue,
        mailbox: Arc<Mailbox>,
        max_poll_ns: u64,
    ) -> io::Result<Self> {
        let mailbox_watch = io.watch(mailbox.fd()?)?;
        Ok(Self {
            worker,
            io,
            mailbox,
            mailbox_watch,
            slots: Vec::new(),
            events: Vec::with_capacity(BUDGET),
            poll: AdaptivePoll::new(max_poll_ns),
            paused: false,
            pause: None,
            now_ns: monotonic_ns(),
        })
    }

    /// Serves until it is told to end.
    ///
    /// # Errors
    /// When the kernel takes no more I/O from this thread.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if self.mailbox.has_letters() && !self.read_letters()? {
                return Ok(());
            }
            let served = self.serve_all();
            self.io.turn(Wait::Batch, &mut self.events)?;
            let progress = served || !self.events.is_empty();
            self.handle_events();
            self.settle()?;
            if !progress {
                self.idle()?;
            }
        }
    }

    /// Takes chains from every vring that has some, up to the budget of each.
    fn serve_all(&mut self) -> bool {
        if !self.may_take() {
            return false;
        }
        let mut served = false;
        for (index, slot) in (0_u16..).zip(&mut self.slots) {
            let Some(slot) = slot else { continue };
            if !slot.vring.has_work() {
                continue;
            }
            if !served {
                self.now_ns = monotonic_ns();
            }
            let mut taken = 0;
            while taken < BUDGET && self.io.may_start() && slot.vring.is_live() {
                let Some((head, chain)) = slot.vring.take(self.now_ns) else {
                    break;
                };
                taken += 1;
                let mut cx = RequestCx {
                    vring: &mut slot.vring,
                    io: &mut self.io,
                    slot: index,
                    now_ns: self.now_ns,
                };
                self.worker.request(&mut slot.queue, &mut cx, head, chain);
            }
            slot.vring.stats.add_chains(taken as u64);
            served = true;
        }
        served
    }

    fn handle_events(&mut self) {
        if self.events.is_empty() {
            return;
        }
        self.now_ns = monotonic_ns();
        for event in self.events.drain(..) {
            match event {
                Event::Done { token, result } => {
                    let Token {
                        slot: index,
                        head,
                        tag,
                    } = Token::unpack(token);
                    let slot = self
                        .slots
                        .get_mut(usize::from(index))
                        .and_then(Option::as_mut);
                    let Some(slot) = slot else { continue };
                    slot.vring.io_ended(head);
                    let mut cx = RequestCx {
                        vring: &mut slot.vring,
                        io: &mut self.io,
                        slot: index,
                        now_ns: self.now_ns,
                    };
                    self.worker
                        .io_done(&mut slot.queue, &mut cx, head, tag, result);
                }
                Event::Signalled(watch) if watch == self.mailbox_watch => {}
                // Every turn looks at every ring; the kick has served its purpose by waking us.
                Event::Signalled(watch) => {
                    for slot in self.slots.iter().flatten() {
                        if slot.vring.kick == Some(watch) {
                            slot.vring.stats.add_kick();
                        }
                    }
                }
            }
        }
    }

    /// Publishes what was completed, and answers who waits for a vring to become empty.
    fn settle(&mut self) -> io::Result<()> {
        let mut in_flight = 0;
        for place in &mut self.slots {
            let Some(slot) = place else { continue };
            slot.vring.publish();
            in_flight += slot.vring.in_flight();
            if slot.stop.is_some() && slot.vring.in_flight() == 0 {
                if let Some(watch) = slot.vring.kick {
                    self.io.unwatch(watch)?;
                }
                slot.vring.ring.allow_kicks();
                let reply = Reply::Stopped {
                    next_avail: slot.vring.ring.position(),
                };
                answer(slot.stop.take(), reply);
                *place = None;
            }
        }
        if in_flight == 0 && self.pause.is_some() {
            answer(self.pause.take(), Reply::Done);
        }
        Ok(())
    }

    /// Nothing to do: polls for a while, then sleeps.
    fn idle(&mut self) -> io::Result<()> {
        let start_ns = monotonic_ns();
        let window_ns = self.poll.window_ns();
        let mut now_ns = start_ns;
        while now_ns.wrapping_sub(start_ns) < window_ns {
            if self.has_something() {
                self.poll.hit();
                self.count_poll(true);
                return Ok(());
            }
            std::hint::spin_loop();
            now_ns = monotonic_ns();
        }
        if window_ns > 0 {
            self.count_poll(false);
        }
        if !self.may_take() || !self.ask_for_kicks() {
            self.io.turn(Wait::Event, &mut self.events)?;
        }
        for slot in self.slots.iter_mut().flatten() {
            slot.vring.ring.suppress_kicks();
        }
        self.poll.slept(monotonic_ns().wrapping_sub(start_ns));
        self.handle_events();
        self.settle()
    }

    fn has_something(&mut self) -> bool {
        let work = self.may_take()
            && self
                .slots
                .iter()
                .flatten()
                .any(|slot| slot.vring.has_work());
        work || self.io.is_ready() || self.mailbox.has_letters()
    }

    /// Asks all drivers for kicks; returns whether one of them was faster.
    fn ask_for_kicks(&mut self) -> bool {
        let mut raced = false;
        for slot in self.slots.iter_mut().flatten() {
            if slot.vring.is_live() {
                raced |= slot.vring.ring.allow_kicks();
            }
        }
        raced || self.mailbox.has_letters()
    }

    /// Whether chains are taken at all: not while paused, and not while as much I/O is in flight
    /// as completions can be held for. What is left waits in the rings.
    fn may_take(&self) -> bool {
        !self.paused && self.io.has_room(1)
    }

    fn count_poll(&self, hit: bool) {
        for slot in self.slots.iter().flatten() {
            if !hit {
                slot.vring.stats.add_poll_miss();
            } else if slot.vring.has_work() {
                slot.vring.stats.add_poll_hit();
            }
        }
    }

    /// Does what the control thread has asked for; false to end.
    fn read_letters(&mut self) -> io::Result<bool> {
        let mut letters: VecDeque<Letter> = self.mailbox.take();
        while let Some((command, reply_to)) = letters.pop_front() {
            let reply = match command {
                Command::Exit => {
                    answer(Some(reply_to), Reply::Done);
                    return Ok(false);
                }
                Command::Stop { index } => {
                    self.stop(index, reply_to);
                    continue;
                }
                Command::Pause(true) => {
                    self.paused = true;
                    self.pause = Some(reply_to);
                    continue;
                }
                Command::Pause(false) => {
                    self.paused = false;
                    Reply::Done
                }
                Command::Start(start) => self.start(*start),
                Command::SetMemory(memory) => self.set_memory(&memory),
                Command::SetKick { index, fd } => self.set_kick(index, fd),
                Command::Enable { index, enabled } => {
                    self.change(index, |vring| vring.enabled = enabled)
                }
                Command::SetCall { index, fd } => self.change(index, |vring| vring.call = fd),
                Command::SetErr { index, fd } => self.change(index, |vring| vring.err = fd),
                Command::SetAddresses { index, addresses } => self.change(index, |vring| {
                    let memory = Rc::clone(vring.ring.memory());
                    if let Err(error) = vring.ring.relocate(&memory, addresses) {
                        vring.break_ring(error);
                    }
                }),
            };
            answer(Some(reply_to), reply);
        }
        Ok(true)
    }

    fn start(&mut self, start: VringStart) -> Reply {
        let memory = self.memory_of(&start.memory);
        let index = start.index;
        let ring = SplitRing::new(
            u32::from(index),
            &memory,
            start.addresses,
            start.features,
            start.next_avail,
        );
        let ring = match ring {
            Ok(ring) => ring,
            Err(error) => return Reply::Refused(error),
        };
        let restarted = ring.position() != 0;
        let mut vring = Vring::new(index, ring, start.stats);
        vring.enabled = start.enabled;
        vring.call = start.call;
        vring.err = start.err;
        if let Some(kick) = start.kick {
            match self.io.watch(kick) {
                Ok(watch) => vring.kick = Some(watch),
                Err(error) => return Reply::Failed(error),
            }
        }
        vring.ring.suppress_kicks();
        if restarted {
            vring.call_anyway();
        }
        let queue = self.worker.start_queue(index, start.addresses.size);
        let slot = Some(Slot {
            vring,
            queue,
            stop: None,
        });
        match self.slots.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        Reply::Done
    }

    /// The thread's own handle of the snapshot: one for all of its vrings, so that requests count
    /// their references without touching a cache line of another thread.
    fn memory_of(&self, memory: &Arc<Memory>) -> Rc<Memory> {
        let same = self
            .slots
            .iter()
            .flatten()
            .map(|slot| slot.vring.ring.memory())
            .find(|have| {
                let (have, want) = (have.regions(), memory.regions());
                have.len() == want.len() && have.iter().zip(want).all(|(a, b)| Arc::ptr_eq(a, b))
            });
        same.map_or_else(|| Rc::new(Memory::clone(memory)), Rc::clone)
    }

    fn set_memory(&mut self, memory: &Arc<Memory>) -> Reply {
        let memory = Rc::new(Memory::clone(memory));
        for slot in self.slots.iter_mut().flatten() {
            slot.vring.set_memory(&memory);
        }
        Reply::Done
    }

    fn set_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Reply {
        let watch = match fd.map(|fd| self.io.watch(fd)).transpose() {
            Ok(watch) => watch,
            Err(error) => return Reply::Failed(error),
        };
        let mut old = None;
        let reply = self.change(index, |vring| {
            old = std::mem::replace(&mut vring.kick, watch);
        });
        if let Some(old) = old
            && let Err(error) = self.io.unwatch(old)
        {
            return Reply::Failed(error);
        }
        reply
    }

    fn stop(&mut self, index: u16, reply_to: SyncSender<Reply>) {
        match self
            .slots
            .iter_mut()
            .flatten()
            .find(|slot| slot.vring.index == index)
        {
            Some(slot) => {
                slot.vring.stopping = true;
                // Answered by `settle`, at once if there is nothing in flight.
                slot.stop = Some(reply_to);
            }
            None => answer(Some(reply_to), Reply::Stopped { next_avail: 0 }),
        }
    }

    fn change(&mut self, index: u16, change: impl FnOnce(&mut Vring)) -> Reply {
        if let Some(slot) = self
            .slots
            .iter_mut()
            .flatten()
            .find(|s| s.vring.index == index)
        {
            change(&mut slot.vring);
        }
        Reply::Done
    }
}

/// The control thread may have given up waiting; then nobody needs the answer.
fn answer(reply_to: Option<SyncSender<Reply>>, reply: Reply) {
    if let Some(reply_to) = reply_to {
        let _ = reply_to.try_send(reply);
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)
}
