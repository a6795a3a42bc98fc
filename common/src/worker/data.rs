// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loop of a data thread.
//!
//! One turn: commands; a bounded amount of work from each vring; one submit for all the I/O it
//! started; completions and events; one publish and at most one call per vring. While turns find
//! work there is no sleep, but for a short one when much is in flight, and no notification is asked
//! for. When a turn finds none, the thread polls as long as [`AdaptivePoll`] thinks it pays, asks
//! for kicks, looks a last time and sleeps.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::mailbox::{Command, Letter, Mailbox, Reply, VringId, VringStart};
use super::poll::AdaptivePoll;
use super::turn::{DeviceWorker, Place, Turn, Vrings, monotonic_ns};
use super::vring::{Around, Health, Vring};
use crate::io::{Event, IoQueue, Wait, WatchId};
use crate::limited;
use crate::memory::Memory;
use crate::ring::{Ring as _, SplitRing};
use crate::watchdog::Pulse;

/// How long a thread sleeps whose driver does not kick: a request waits for half of that on average,
/// and an idle ring takes a few hundredths of a processor.
const POLLED_NAP_NS: u64 = 100_000;

/// Events for which there is room from the start.
const EVENTS: usize = 64;

/// A question that is answered when nothing is in flight any more.
struct Waiting {
    of: Who,
    reply_to: SyncSender<Reply>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Who {
    /// The vring in this slot, which then stops.
    Slot(usize),
    /// All of a session.
    Session(u32),
}

/// What a data thread does when there is nothing to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// The longest it polls before it sleeps.
    pub(super) max_poll_ns: u64,
    /// How long it sleeps after work, see [`DataThread::nap_ns`].
    pub(super) nap_ns: u64,
}

/// One data thread.
pub(super) struct DataThread<'m, W: DeviceWorker> {
    worker: W,
    io: IoQueue,
    mailbox: &'m Mailbox<W::Seed>,
    mailbox_watch: WatchId,
    pulse: Arc<Pulse>,
    vrings: Vrings<W::Queue>,
    events: Vec<Event>,
    poll: AdaptivePoll,
    /// How long it sleeps after work before it looks whether there is more, unless it is woken by
    /// something else than a kick; zero: not at all.
    nap_ns: u64,
    /// There was work since it slept.
    worked: bool,
    waiting: Vec<Waiting>,
    now_ns: u64,
}

impl<'m, W: DeviceWorker> DataThread<'m, W> {
    pub(super) fn new(
        worker: W,
        mut io: IoQueue,
        mailbox: &'m Mailbox<W::Seed>,
        pulse: Arc<Pulse>,
        rest: Rest,
    ) -> io::Result<Self> {
        let mailbox_watch = io.watch(mailbox.fd()?)?;
        Ok(Self {
            worker,
            io,
            mailbox,
            mailbox_watch,
            pulse,
            vrings: Vrings::default(),
            events: Vec::with_capacity(EVENTS),
            poll: AdaptivePoll::new(rest.max_poll_ns),
            nap_ns: rest.nap_ns,
            worked: false,
            waiting: Vec::new(),
            now_ns: monotonic_ns(),
        })
    }

    /// The worker, and what it works with.
    #[inline]
    fn parts(&mut self) -> (&mut W, Turn<'_, W::Queue>) {
        let turn = Turn {
            vrings: &mut self.vrings,
            io: &mut self.io,
            now_ns: &mut self.now_ns,
        };
        (&mut self.worker, turn)
    }

    /// Serves until it is told to end.
    ///
    /// # Errors
    /// When the kernel takes no more I/O from this thread.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            if self.mailbox.has_letters() && !self.read_letters()? {
                return Ok(());
            }
            let (worker, mut turn) = self.parts();
            let served = worker.turn(&mut turn);
            self.io.turn(Wait::Batch, &mut self.events)?;
            let progress = served || !self.events.is_empty();
            self.handle_events();
            self.settle()?;
            if progress {
                self.worked = true;
            } else {
                self.idle()?;
            }
        }
    }

    fn handle_events(&mut self) {
        if self.events.is_empty() {
            return;
        }
        self.now_ns = monotonic_ns();
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Done { token, result } => {
                    let (worker, mut turn) = self.parts();
                    worker.io_done(&mut turn, token, result);
                }
                Event::Signalled(watch) if watch == self.mailbox_watch => {}
                // Every turn looks at every ring; the kick has served its purpose by waking us.
                Event::Signalled(watch) => {
                    let mut kicked = false;
                    for place in self.vrings.iter() {
                        if place.vring.kick == Some(watch) {
                            place.vring.stats.add_kick();
                            kicked = true;
                        }
                    }
                    if !kicked {
                        let (worker, mut turn) = self.parts();
                        worker.ready(&mut turn, watch);
                    }
                }
            }
        }
        self.events = events;
    }

    /// Publishes what was completed, and answers who waits for nothing to be in flight.
    fn settle(&mut self) -> io::Result<()> {
        for place in self.vrings.iter_mut() {
            let in_flight = self.worker.in_flight(&place.queue);
            place.vring.publish(in_flight);
        }
        while let Some(at) = self.waiting.iter().position(|w| self.is_drained(w.of)) {
            let Waiting { of, reply_to } = self.waiting.swap_remove(at);
            let reply = match of {
                Who::Slot(slot) => self.let_go(slot)?,
                Who::Session(_) => Reply::Done,
            };
            answer(&reply_to, reply);
        }
        Ok(())
    }

    fn is_drained(&self, who: Who) -> bool {
        let in_flight = |place: &Place<W::Queue>| self.worker.in_flight(&place.queue);
        let idle = |place: &Place<W::Queue>| in_flight(place) == self.worker.parked(&place.queue);
        match who {
            Who::Slot(slot) => self
                .vrings
                .get(slot)
                .is_none_or(|place| in_flight(place) == 0),
            Who::Session(session) => self
                .vrings
                .iter()
                .filter(|place| place.vring.id.session == session)
                .all(idle),
        }
    }

    /// Ends the service of a vring with nothing in flight.
    fn let_go(&mut self, slot: usize) -> io::Result<Reply> {
        let (worker, mut turn) = self.parts();
        worker.stopped(&mut turn, slot);
        let Some(Place { mut vring, .. }) = self.vrings.remove(slot) else {
            return Ok(Reply::Stopped { next_avail: 0 });
        };
        if let Some(watch) = vring.kick {
            self.io.unwatch(watch)?;
        }
        vring.allow_kicks();
        Ok(Reply::Stopped {
            next_avail: vring.ring.position(),
        })
    }

    /// Nothing to do: polls for a while, then sleeps.
    fn idle(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.worked) && self.nap_ns > 0 {
            self.io.turn(Wait::For(self.nap_ns), &mut self.events)?;
            self.handle_events();
            return self.settle();
        }
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
        if !self.ask_for_kicks() {
            self.io.turn(self.longest_wait(), &mut self.events)?;
        }
        for place in self.vrings.iter_mut() {
            place.vring.suppress_kicks();
        }
        self.poll.slept(monotonic_ns().wrapping_sub(start_ns));
        self.handle_events();
        self.settle()
    }

    /// How long the thread may sleep if nothing wakes it.
    fn longest_wait(&self) -> Wait {
        let polled = self.vrings.iter().any(|place| place.vring.is_polled());
        let deadline_ns = self.worker.deadline_ns();
        let left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(monotonic_ns()));
        match (polled, left_ns) {
            (false, None) => Wait::Event,
            (false, Some(left_ns)) => Wait::For(left_ns),
            (true, left_ns) => Wait::For(left_ns.unwrap_or(u64::MAX).min(POLLED_NAP_NS)),
        }
    }

    fn has_something(&mut self) -> bool {
        let (worker, mut turn) = self.parts();
        worker.has_work(&mut turn) || self.io.is_ready() || self.mailbox.has_letters()
    }

    /// Asks the drivers for kicks where they matter; returns whether one of them was faster.
    fn ask_for_kicks(&mut self) -> bool {
        let mut raced = false;
        for place in self.vrings.iter_mut() {
            let wanted = self
                .worker
                .wants_kicks(&self.io, &place.queue, &place.vring);
            if wanted {
                raced |= place.vring.allow_kicks();
            }
        }
        raced || self.mailbox.has_letters()
    }

    fn count_poll(&self, hit: bool) {
        for place in self.vrings.iter() {
            if !hit {
                place.vring.stats.add_poll_miss();
            } else if place.vring.has_work() {
                place.vring.stats.add_poll_hit();
            }
        }
    }

    /// Does what the control threads have asked for; false to end.
    fn read_letters(&mut self) -> io::Result<bool> {
        let mut letters: VecDeque<Letter<W::Seed>> = self.mailbox.take();
        while let Some((command, reply_to)) = letters.pop_front() {
            let reply = match command {
                Command::Exit => {
                    answer(&reply_to, Reply::Done);
                    return Ok(false);
                }
                Command::Stop(id) => {
                    self.stop(id, reply_to);
                    continue;
                }
                Command::Pause { session, paused } => {
                    self.pause(session, paused);
                    if paused {
                        let of = Who::Session(session);
                        self.waiting.push(Waiting { of, reply_to });
                        continue;
                    }
                    Reply::Done
                }
                Command::Start(start, health) => self.start(*start, health)?,
                Command::SetMemory { session, memory } => self.set_memory(session, &memory),
                Command::SetKick(id, fd) => self.set_kick(id, fd),
                Command::Enable(id, enabled) => self.enable(id, enabled),
                Command::SetCall(id, fd) => self.change(id, |vring| {
                    vring.call = fd;
                    // The last call may have gone to the old one.
                    vring.call_anyway();
                }),
                Command::SetErr(id, fd) => self.change(id, |vring| vring.err = fd),
                Command::SetAddresses(id, addresses) => {
                    self.release(|vring| vring.id == id);
                    self.change(id, |vring| vring.relocate(addresses))
                }
            };
            answer(&reply_to, reply);
        }
        Ok(true)
    }

    fn start(&mut self, start: VringStart<W::Seed>, health: Arc<Health>) -> io::Result<Reply> {
        let memory = self.memory_of(&start.memory);
        let id = start.id;
        let ring = SplitRing::new(
            u32::from(id.index),
            &memory,
            start.addresses,
            start.features,
            (!start.in_order).then_some(start.next_avail),
        );
        let ring = match ring {
            Ok(ring) => ring,
            Err(error) => return Ok(Reply::Refused(error)),
        };
        if ring.position() != start.next_avail {
            let (base, used) = (start.next_avail, ring.position());
            limited!(
                info,
                "vring {}: the front-end says {base}, the used ring says {used} and is believed",
                id.index
            );
        }
        let restarted = ring.position() != 0;
        let around = Around {
            stats: start.stats,
            health,
            pulse: Arc::clone(&self.pulse),
        };
        let mut vring = Vring::new(id, ring, around);
        vring.enabled = start.enabled;
        vring.paused = start.paused;
        vring.call = start.call;
        vring.err = start.err;
        if let Some(kick) = start.kick {
            match self.io.watch(kick) {
                Ok(watch) => vring.kick = Some(watch),
                Err(error) => return Ok(Reply::Failed(error)),
            }
        }
        vring.ring.suppress_kicks();
        if restarted {
            vring.call_anyway();
        }
        let queue = self.worker.start_queue(start.seed, &vring);
        let slot = self.vrings.insert(Place { vring, queue });
        let (worker, mut turn) = self.parts();
        if let Err(error) = worker.started(&mut turn, slot) {
            self.let_go(slot)?;
            return Ok(Reply::Failed(error));
        }
        Ok(Reply::Done)
    }

    /// The thread's own handle of the snapshot: one for all of its vrings, so that requests count
    /// their references without touching a cache line of another thread.
    fn memory_of(&self, memory: &Arc<Memory>) -> Rc<Memory> {
        let same = self
            .vrings
            .iter()
            .map(|place| place.vring.ring.memory())
            .find(|have| {
                let (have, want) = (have.regions(), memory.regions());
                have.len() == want.len() && have.iter().zip(want).all(|(a, b)| Arc::ptr_eq(a, b))
            });
        same.map_or_else(|| Rc::new(Memory::clone(memory)), Rc::clone)
    }

    fn set_memory(&mut self, session: u32, memory: &Arc<Memory>) -> Reply {
        self.release(|vring| vring.id.session == session);
        let memory = Rc::new(Memory::clone(memory));
        for place in self.vrings.iter_mut() {
            if place.vring.id.session == session {
                place.vring.set_memory(&memory);
            }
        }
        Reply::Done
    }

    /// Has the device let go of what it has taken from some vrings and does not work on.
    fn release(&mut self, of: impl Fn(&Vring) -> bool) {
        for slot in 0..self.vrings.len() {
            if self.vrings.get(slot).is_some_and(|place| of(&place.vring)) {
                let (worker, mut turn) = self.parts();
                worker.release(&mut turn, slot);
            }
        }
    }

    fn set_kick(&mut self, id: VringId, fd: Option<OwnedFd>) -> Reply {
        let watch = match fd.map(|fd| self.io.watch(fd)).transpose() {
            Ok(watch) => watch,
            Err(error) => return Reply::Failed(error),
        };
        let mut old = None;
        let reply = self.change(id, |vring| {
            old = std::mem::replace(&mut vring.kick, watch);
        });
        if let Some(old) = old
            && let Err(error) = self.io.unwatch(old)
        {
            return Reply::Failed(error);
        }
        reply
    }

    fn slot_of(&self, id: VringId) -> Option<usize> {
        (0..self.vrings.len()).find(|slot| {
            self.vrings
                .get(*slot)
                .is_some_and(|place| place.vring.id == id)
        })
    }

    fn stop(&mut self, id: VringId, reply_to: SyncSender<Reply>) {
        self.release(|vring| vring.id == id);
        let slot = self.slot_of(id);
        match slot.and_then(|slot| Some((slot, self.vrings.get_mut(slot)?))) {
            Some((slot, place)) => {
                place.vring.stopping = true;
                // For who tells what is waited for.
                let in_flight = self.worker.in_flight(&place.queue);
                place.vring.stats.set_in_flight(u64::from(in_flight));
                let (worker, mut turn) = self.parts();
                worker.stopping(&mut turn, slot);
                // Answered by `settle`, at once if there is nothing in flight.
                let of = Who::Slot(slot);
                self.waiting.push(Waiting { of, reply_to });
            }
            None => answer(&reply_to, Reply::Stopped { next_avail: 0 }),
        }
    }

    fn enable(&mut self, id: VringId, enabled: bool) -> Reply {
        let Some(slot) = self.slot_of(id) else {
            return Reply::Done;
        };
        let reply = self.change(id, |vring| vring.enabled = enabled);
        let (worker, mut turn) = self.parts();
        worker.enabled(&mut turn, slot);
        reply
    }

    fn pause(&mut self, session: u32, paused: bool) {
        for place in self.vrings.iter_mut() {
            if place.vring.id.session == session {
                place.vring.paused = paused;
            }
        }
    }

    fn change(&mut self, id: VringId, change: impl FnOnce(&mut Vring)) -> Reply {
        if let Some(place) = self.vrings.iter_mut().find(|place| place.vring.id == id) {
            change(&mut place.vring);
        }
        Reply::Done
    }
}

/// The control thread may have given up waiting; then nobody needs the answer.
fn answer(reply_to: &SyncSender<Reply>, reply: Reply) {
    let _ = reply_to.try_send(reply);
}
