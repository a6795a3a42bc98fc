// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loop of a data thread.
//!
//! One turn: commands; a bounded amount of work from each vring; one submit for all the I/O it
//! started; completions and events; one publish and at most one call per vring. While turns find
//! work there is no sleep, but for a short one when much is in flight, and no notification is asked
//! for. When a turn finds none, the thread polls as long as [`AdaptivePoll`] thinks it pays, asks
//! for kicks, looks a last time and sleeps.

mod commands;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::mailbox::{Mailbox, Reply};
use super::poll::AdaptivePoll;
use crate::device::{DeviceWorker, Place, Turn, Vrings, monotonic_ns};
use crate::io::{Driver, Event, IoQueue, Wait, WatchId};
use crate::ring::Ring as _;
use crate::sys::berth::Berth;
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

/// The way to a data thread whose worker is a `W`.
pub(super) type MailboxOf<W> = Mailbox<<W as DeviceWorker>::Seed, <W as DeviceWorker>::Brought>;

/// What a data thread owns, but for the worker: that stays where it was made, while the rest goes to
/// another thread if this one does not come back from an errand.
pub(super) struct DataThread<W: DeviceWorker> {
    io: IoQueue,
    mailbox: Arc<MailboxOf<W>>,
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

/// What a thread has for itself, whatever vrings it has.
pub(super) struct Hand<'a, W: DeviceWorker> {
    pub(super) worker: &'a mut W,
    pub(super) mailbox: &'a MailboxOf<W>,
    pub(super) pulse: &'a Pulse,
    /// Where its vrings are while it is on an errand.
    pub(super) berth: &'a Berth<DataThread<W>>,
}

impl<W: DeviceWorker> DataThread<W> {
    pub(super) fn new(
        mut io: IoQueue,
        mailbox: Arc<MailboxOf<W>>,
        pulse: Arc<Pulse>,
        rest: Rest,
    ) -> io::Result<Self> {
        let mailbox_watch = io.watch(mailbox.fd()?)?;
        Ok(Self {
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

    /// Becomes the calling thread's, which has this engine and pulse.
    ///
    /// # Errors
    /// When the kernel does not watch what is to be watched.
    pub(super) fn move_here(&mut self, driver: Driver, pulse: &Arc<Pulse>) -> io::Result<()> {
        self.pulse = Arc::clone(pulse);
        for place in self.vrings.iter_mut() {
            place.vring.move_to(pulse);
        }
        self.io.move_here(driver)
    }

    /// What the worker works with.
    #[inline]
    fn parts(&mut self) -> Turn<'_, W::Queue> {
        Turn {
            vrings: &mut self.vrings,
            io: &mut self.io,
            now_ns: &mut self.now_ns,
        }
    }

    /// Serves until it is told to end, or another thread has what this one had.
    ///
    /// # Errors
    /// When the kernel takes no more I/O from this thread. Whatever it has started stays as it is.
    pub(super) fn run(mut self: Box<Self>, hand: &mut Hand<'_, W>) -> io::Result<()> {
        loop {
            let served = match self.begin_turn(hand.worker) {
                Ok(Some(served)) => served,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.fail(error)),
            };
            while hand.worker.next_errand(&mut self.parts()) {
                hand.berth.leave(self);
                hand.pulse.errand(|| hand.worker.run_errand());
                match hand.berth.take() {
                    Some(back) => self = back,
                    None => {
                        if let Some(brought) = hand.worker.take_brought() {
                            hand.mailbox.bring(brought);
                        }
                        return Ok(());
                    }
                }
                hand.worker.back(&mut self.parts());
            }
            if let Err(error) = self.end_turn(hand.worker, served) {
                return Err(self.fail(error));
            }
        }
    }

    /// The kernel may still work on what was started: nothing of it may go.
    #[cold]
    fn fail(self: Box<Self>, error: io::Error) -> io::Error {
        Box::leak(self);
        error
    }

    /// Does what is asked for, and begins to serve; returns whether there was anything to serve, and
    /// none to end.
    #[inline]
    fn begin_turn(&mut self, worker: &mut W) -> io::Result<Option<bool>> {
        if self.mailbox.has_letters() && !self.read_letters(worker)? {
            return Ok(None);
        }
        Ok(Some(worker.turn(&mut self.parts())))
    }

    #[inline]
    fn end_turn(&mut self, worker: &mut W, served: bool) -> io::Result<()> {
        self.io.turn(Wait::Batch, &mut self.events)?;
        let progress = served || !self.events.is_empty();
        self.handle_events(worker);
        self.settle(worker)?;
        if progress {
            self.worked = true;
            Ok(())
        } else {
            self.idle(worker)
        }
    }

    fn handle_events(&mut self, worker: &mut W) {
        if self.events.is_empty() {
            return;
        }
        self.now_ns = monotonic_ns();
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Done { token, result } => {
                    let mut turn = self.parts();
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
                        let mut turn = self.parts();
                        worker.ready(&mut turn, watch);
                    }
                }
            }
        }
        self.events = events;
    }

    /// Publishes what was completed, and answers who waits for nothing to be in flight.
    fn settle(&mut self, worker: &mut W) -> io::Result<()> {
        for place in self.vrings.iter_mut() {
            let in_flight = worker.in_flight(&place.queue);
            place.vring.publish(in_flight);
        }
        while let Some(at) = self
            .waiting
            .iter()
            .position(|w| self.is_drained(worker, w.of))
        {
            let Waiting { of, reply_to } = self.waiting.swap_remove(at);
            let reply = match of {
                Who::Slot(slot) => self.let_go(worker, slot)?,
                Who::Session(_) => Reply::Done,
            };
            answer(&reply_to, reply);
        }
        Ok(())
    }

    fn is_drained(&self, worker: &W, who: Who) -> bool {
        let in_flight = |place: &Place<W::Queue>| worker.in_flight(&place.queue);
        let idle = |place: &Place<W::Queue>| in_flight(place) == worker.parked(&place.queue);
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
    fn let_go(&mut self, worker: &mut W, slot: usize) -> io::Result<Reply> {
        let mut turn = self.parts();
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
    fn idle(&mut self, worker: &mut W) -> io::Result<()> {
        if std::mem::take(&mut self.worked) && self.nap_ns > 0 {
            self.io.turn(Wait::For(self.nap_ns), &mut self.events)?;
            self.handle_events(worker);
            return self.settle(worker);
        }
        let start_ns = monotonic_ns();
        let window_ns = self.poll.window_ns();
        let mut now_ns = start_ns;
        while now_ns.wrapping_sub(start_ns) < window_ns {
            if self.has_something(worker) {
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
        if !self.ask_for_kicks(worker) {
            self.io.turn(self.longest_wait(worker), &mut self.events)?;
        }
        for place in self.vrings.iter_mut() {
            place.vring.suppress_kicks();
        }
        self.poll.slept(monotonic_ns().wrapping_sub(start_ns));
        self.handle_events(worker);
        self.settle(worker)
    }

    /// How long the thread may sleep if nothing wakes it.
    fn longest_wait(&self, worker: &W) -> Wait {
        let polled = self.vrings.iter().any(|place| place.vring.is_polled());
        let deadline_ns = worker.deadline_ns();
        let left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(monotonic_ns()));
        match (polled, left_ns) {
            (false, None) => Wait::Event,
            (false, Some(left_ns)) => Wait::For(left_ns),
            (true, left_ns) => Wait::For(left_ns.unwrap_or(u64::MAX).min(POLLED_NAP_NS)),
        }
    }

    fn has_something(&mut self, worker: &mut W) -> bool {
        let mut turn = self.parts();
        worker.has_work(&mut turn) || self.io.is_ready() || self.mailbox.has_letters()
    }

    /// Asks the drivers for kicks where they matter; returns whether one of them was faster.
    fn ask_for_kicks(&mut self, worker: &W) -> bool {
        let mut raced = false;
        for place in self.vrings.iter_mut() {
            let wanted = worker.wants_kicks(&self.io, &place.queue, &place.vring);
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
}

/// The control thread may have given up waiting; then nobody needs the answer.
fn answer(reply_to: &SyncSender<Reply>, reply: Reply) {
    let _ = reply_to.try_send(reply);
}
