// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which queues of the link a data thread has.
//!
//! A queue is taken from the hub with the first vring that uses it and put back with the last, so
//! that a tap keeps its descriptor and a stream its connection from one front-end to the next. A
//! queue of a tap is attached while its pair has a receive vring that is enabled and has had
//! buffers: the kernel spreads flows over the attached ones, and what is sent to a queue that is
//! not emptied is lost. The first is always attached.

use std::io;

use ringside_common::memory::Buffers;

use super::attachment::{Attachment, complain};
use super::queue::{NetTurn, Slots as _};
use super::slot::{RxSlot, Slot};
use super::{BUDGET_BYTES, BUDGET_FRAMES, MOST_OLD_FRAMES, NetWorker};
use crate::counters::DropReason;
use crate::hub::Fabric;
use crate::link::{Received, Room};

impl NetWorker {
    /// Takes the link queue that a pair uses, for one more vring. Returns its number where the
    /// frames of the vring go there, and nowhere else.
    fn take_link_queue(&mut self, turn: &mut NetTurn<'_>, pair: u16) -> io::Result<Option<usize>> {
        let Some(link) = self.hub.link() else {
            return Ok(None);
        };
        let number = self.hub.link_of(pair);
        let index = usize::from(number);
        let Some(place) = self.attachments.get_mut(index) else {
            return Ok(None);
        };
        let attachment = match place {
            Some(attachment) => attachment,
            None => {
                let queue = link.queue(number).ok_or_else(|| {
                    io::Error::other("the link queue is in use by another thread")
                })?;
                let mut attachment = Attachment::new(queue, turn.io)?;
                if self.hub.fabric() == Fabric::Switch {
                    // There was no guest for it.
                    for _ in 0..attachment.lose_waiting(&mut self.spare, MOST_OLD_FRAMES) {
                        self.switch.lose_from_uplink(DropReason::LinkDown);
                    }
                }
                place.insert(attachment)
            }
        };
        attachment.users += 1;
        Ok((self.hub.fabric() == Fabric::Wire).then_some(index))
    }

    /// A vring has started: takes the link queue it uses.
    pub(super) fn start_link(&mut self, turn: &mut NetTurn<'_>, slot: Slot) -> io::Result<()> {
        match slot {
            Slot::Receive(slot) => {
                if let Some(pair) = turn.vrings.rx(slot).map(|(_, rx)| rx.pair) {
                    let link_queue = self.take_link_queue(turn, pair)?;
                    if let Some((_, rx)) = turn.vrings.rx_mut(slot) {
                        rx.link_queue = link_queue;
                    }
                }
            }
            Slot::Transmit(slot) => {
                if let Some(pair) = turn.vrings.tx(slot).map(|(_, tx)| tx.pair) {
                    let link_queue = self.take_link_queue(turn, pair)?;
                    if let Some((_, tx)) = turn.vrings.tx_mut(slot) {
                        tx.link_queue = link_queue;
                    }
                }
            }
            Slot::Control(_) => {}
        }
        Ok(())
    }

    /// A vring of a pair leaves: puts the link queue it used back if it was the last.
    pub(super) fn stop_link(&mut self, turn: &mut NetTurn<'_>, pair: u16) {
        let index = usize::from(self.hub.link_of(pair));
        let Some(place) = self.attachments.get_mut(index) else {
            return;
        };
        let Some(attachment) = place else { return };
        attachment.users = attachment.users.saturating_sub(1);
        if attachment.users == 0
            && let Some(mut attachment) = place.take()
        {
            attachment.unwatch(turn.io);
        }
    }

    /// A receive vring was enabled or disabled.
    pub(super) fn follow_enabled(&mut self, turn: &mut NetTurn<'_>, slot: RxSlot) {
        if let Some((vring, rx)) = turn.vrings.rx_mut(slot)
            && !vring.is_enabled()
        {
            rx.window.release(vring);
            rx.used = false;
            self.detach(rx.pair);
        }
    }

    /// The driver uses a pair: frames may come to its link queue.
    pub(super) fn attach(&mut self, pair: u16) {
        self.set_attached(pair, true);
    }

    /// The driver does not use a pair.
    pub(super) fn detach(&mut self, pair: u16) {
        self.set_attached(pair, false);
    }

    fn set_attached(&mut self, pair: u16, attached: bool) {
        let index = usize::from(self.hub.link_of(pair));
        if self.hub.fabric() != Fabric::Wire || index == 0 {
            return;
        }
        let attachment = self.attachments.get_mut(index);
        let (Some(link), Some(Some(attachment))) = (self.hub.link(), attachment) else {
            return;
        };
        if attachment.attached == attached {
            return;
        }
        match link.attach(pair, attached) {
            Ok(()) => {
                attachment.attached = attached;
                attachment.set_readable();
            }
            Err(error) => complain("attaching a queue of the link", &error),
        }
    }

    /// Follows connections that were lost or made.
    pub(super) fn tend_links(&mut self, turn: &mut NetTurn<'_>) {
        let now_ns = turn.now_ns();
        let mut next_ns = None;
        for attachment in self.attachments.iter_mut().flatten() {
            if let Some(at_ns) = attachment.tend(turn.io, now_ns) {
                next_ns = Some(next_ns.map_or(at_ns, |earlier: u64| earlier.min(at_ns)));
            }
        }
        if let Some(at_ns) = next_ns {
            self.wake_at(at_ns);
        }
    }

    /// Whether the uplink may have frames.
    pub(super) fn uplink_has_work(&self) -> bool {
        self.hub.fabric() == Fabric::Switch
            && matches!(self.attachments.first(), Some(Some(first)) if first.is_readable())
    }

    /// Takes what has come by the uplink.
    pub(super) fn serve_uplink(&mut self, turn: &mut NetTurn<'_>) -> bool {
        if !self.uplink_has_work() {
            return false;
        }
        let nowhere = Buffers::default();
        let mut frames = 0;
        let mut moved = 0;
        while frames < BUDGET_FRAMES && moved < BUDGET_BYTES {
            let Some(Some(attachment)) = self.attachments.first_mut() else {
                break;
            };
            let room = Room {
                window: &nowhere,
                skip_bytes: 0,
                limit_bytes: 0,
                spare: &mut self.spare,
            };
            let Received::Frame { header, bytes } = attachment.queue.receive(room) else {
                attachment.set_drained();
                break;
            };
            frames += 1;
            moved += bytes;
            let spare = &mut self.spare;
            self.switch
                .send_from_uplink(turn, &mut self.attachments, header, spare, bytes);
        }
        frames > 0
    }
}
