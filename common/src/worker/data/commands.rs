// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What control threads ask of a data thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::{DataThread, Waiting, Who, answer};
use crate::device::vring::{Around, Closed, Health, VringId};
use crate::device::{DeviceWorker, Place, Vring, monotonic_ns};
use crate::error::HostError;
use crate::io::WatchId;
use crate::limited;
use crate::memory::Memory;
use crate::ring::{Ring as _, SplitRing};
use crate::worker::mailbox::{Command, Letter, Reply, VringStart};

impl<W: DeviceWorker> DataThread<W> {
    /// Does what the control threads have asked for; false to end.
    pub(super) fn read_letters(&mut self, worker: &mut W) -> io::Result<bool> {
        let (mut letters, brought): (VecDeque<Letter<W::Seed>>, _) = self.mailbox.take();
        for brought in brought {
            self.now_ns = monotonic_ns();
            worker.brought(&mut self.parts(), brought);
        }
        while let Some((command, reply_to)) = letters.pop_front() {
            let reply = match command {
                Command::Exit => {
                    answer(&reply_to, Reply::Done);
                    return Ok(false);
                }
                Command::Stop(id) => {
                    self.stop(worker, id, reply_to);
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
                Command::Start(start, health) => self.start(worker, *start, health)?,
                Command::SetMemory { session, memory } => self.set_memory(worker, session, &memory),
                Command::SetKick(id, fd) => self.set_kick(id, fd),
                Command::Enable(id, enabled) => self.enable(worker, id, enabled),
                Command::SetCall(id, fd) => self.change(id, |vring| {
                    vring.call = fd;
                    // The last call may have gone to the old one.
                    vring.call_anyway();
                }),
                Command::SetErr(id, fd) => self.change(id, |vring| vring.err = fd),
                Command::SetAddresses(id, addresses) => {
                    self.release(worker, |vring| vring.id == id);
                    let reply = self.change(id, |vring| vring.relocate(addresses));
                    self.moved(worker, |vring| vring.id == id);
                    reply
                }
            };
            answer(&reply_to, reply);
        }
        Ok(true)
    }

    fn start(
        &mut self,
        worker: &mut W,
        start: VringStart<W::Seed>,
        health: Arc<Health>,
    ) -> io::Result<Reply> {
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
        vring.close(Closed::Disabled, !start.enabled);
        vring.close(Closed::Paused, start.paused);
        vring.call = start.call;
        vring.err = start.err;
        if let Some(kick) = start.kick {
            match self.watch(kick) {
                Ok(watch) => vring.kick = Some(watch),
                Err(error) => return Ok(Reply::Failed(error)),
            }
        }
        vring.ring.suppress_kicks();
        if restarted {
            vring.call_anyway();
        }
        let queue = worker.start_queue(start.seed, &vring);
        let slot = self.vrings.insert(Place { vring, queue });
        let mut turn = self.parts();
        if let Err(error) = worker.started(&mut turn, slot) {
            self.let_go(worker, slot)?;
            let host = HostError::of("starting to serve a vring");
            return Ok(Reply::Failed(host(error)));
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

    fn set_memory(&mut self, worker: &mut W, session: u32, memory: &Arc<Memory>) -> Reply {
        self.release(worker, |vring| vring.id.session == session);
        let memory = Rc::new(Memory::clone(memory));
        for place in self.vrings.iter_mut() {
            if place.vring.id.session == session {
                place.vring.set_memory(&memory);
            }
        }
        self.moved(worker, |vring| vring.id.session == session);
        Reply::Done
    }

    /// Has the device let go of what it has taken from some vrings and does not work on.
    fn release(&mut self, worker: &mut W, of: impl Fn(&Vring) -> bool) {
        for slot in self.slots_of(of) {
            worker.release(&mut self.parts(), slot);
        }
    }

    /// Tells the device that some vrings are elsewhere.
    fn moved(&mut self, worker: &mut W, of: impl Fn(&Vring) -> bool) {
        for slot in self.slots_of(of) {
            worker.moved(&mut self.parts(), slot);
        }
    }

    fn slots_of(&self, of: impl Fn(&Vring) -> bool) -> Vec<usize> {
        let is_one = |slot: &usize| self.vrings.get(*slot).is_some_and(|p| of(&p.vring));
        (0..self.vrings.len()).filter(is_one).collect()
    }

    fn set_kick(&mut self, id: VringId, fd: Option<OwnedFd>) -> Reply {
        let watch = match fd.map(|fd| self.watch(fd)).transpose() {
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
            let host = HostError::of("taking back the watch of a kick eventfd");
            return Reply::Failed(host(error));
        }
        reply
    }

    fn watch(&mut self, kick: OwnedFd) -> Result<WatchId, HostError> {
        let host = HostError::of("watching a kick eventfd");
        self.io.watch(kick).map_err(host)
    }

    fn slot_of(&self, id: VringId) -> Option<usize> {
        (0..self.vrings.len()).find(|slot| {
            self.vrings
                .get(*slot)
                .is_some_and(|place| place.vring.id == id)
        })
    }

    fn stop(&mut self, worker: &mut W, id: VringId, reply_to: SyncSender<Reply>) {
        self.release(worker, |vring| vring.id == id);
        let slot = self.slot_of(id);
        match slot.and_then(|slot| Some((slot, self.vrings.get_mut(slot)?))) {
            Some((slot, place)) => {
                place.vring.close(Closed::Stopping, true);
                // For who tells what is waited for.
                let in_flight = worker.in_flight(&place.queue);
                place.vring.stats.set_in_flight(u64::from(in_flight));
                let mut turn = self.parts();
                worker.stopping(&mut turn, slot);
                // Answered by `settle`, at once if there is nothing in flight.
                let of = Who::Slot(slot);
                self.waiting.push(Waiting { of, reply_to });
            }
            None => answer(&reply_to, Reply::Stopped { next_avail: 0 }),
        }
    }

    fn enable(&mut self, worker: &mut W, id: VringId, enabled: bool) -> Reply {
        let Some(slot) = self.slot_of(id) else {
            return Reply::Done;
        };
        let reply = self.change(id, |vring| vring.close(Closed::Disabled, !enabled));
        let mut turn = self.parts();
        worker.enabled(&mut turn, slot);
        reply
    }

    fn pause(&mut self, session: u32, paused: bool) {
        for place in self.vrings.iter_mut() {
            if place.vring.id.session == session {
                place.vring.close(Closed::Paused, paused);
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
