// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A link of any kind, and the lending of its queues.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::dgram::DgramQueue;
use super::error::LinkError;
use super::frame::{Payload, Received, Room, SendLoss, Sent};
use super::packet::{Packet, PacketQueue};
use super::stream::StreamQueue;
use super::tap::{Tap, TapQueue, TapSpec};
use crate::features::Offloads;
use crate::header::NetHeader;

/// Which link is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkSpec {
    /// A tap or macvtap interface.
    Tap(TapSpec),
    /// A connection with QEMU's stream protocol.
    Stream {
        /// Of the Unix socket that the peer listens on.
        path: PathBuf,
    },
    /// Unix datagrams.
    Dgram {
        /// Of the peer's socket.
        path: PathBuf,
        /// Of our own; without one, the peer can still answer to where a frame came from.
        local: Option<PathBuf>,
    },
    /// A packet socket.
    Packet {
        /// Name of the interface.
        interface: String,
        /// Its network namespace: a path, or a name of `ip netns`. Ours, without one.
        netns: Option<PathBuf>,
    },
}

#[derive(Debug)]
enum Device {
    Tap(Tap),
    Packet(Packet),
    /// All there is to it is the connection.
    Socket,
}

/// Where a queue rests while nobody has it.
type Shelf = Arc<Mutex<Option<End>>>;

/// A link, as the control thread has it.
#[derive(Debug)]
pub struct Link {
    device: Device,
    shelves: Vec<Shelf>,
}

impl Link {
    /// Opens a link for a number of queue pairs. Sockets connect later, by [`LinkQueue::retry`].
    ///
    /// # Errors
    /// See [`LinkError`]. All links but a tap have one queue pair.
    pub fn open(spec: &LinkSpec, pairs: u16) -> Result<Self, LinkError> {
        if pairs != 1 && !matches!(spec, LinkSpec::Tap(_)) {
            return Err(LinkError::OnePair { pairs });
        }
        let (device, ends) = match spec {
            LinkSpec::Tap(spec) => {
                let tap = Tap::open(spec, pairs)?;
                let ends = (0..pairs).filter_map(|pair| tap.queue(pair).map(End::Tap));
                let ends = ends.collect();
                (Device::Tap(tap), ends)
            }
            LinkSpec::Packet { interface, netns } => {
                let packet = Packet::open(interface, netns.as_deref())?;
                let end = End::Packet(packet.queue());
                (Device::Packet(packet), vec![end])
            }
            LinkSpec::Stream { path } => {
                (Device::Socket, vec![End::Stream(StreamQueue::new(path)?)])
            }
            LinkSpec::Dgram { path, local } => {
                let queue = DgramQueue::open(path, local.as_deref())?;
                (Device::Socket, vec![End::Dgram(queue)])
            }
        };
        let shelf = |end| Arc::new(Mutex::new(Some(end)));
        Ok(Self {
            device,
            shelves: ends.into_iter().map(shelf).collect(),
        })
    }

    /// How many queues it has.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.shelves.len()
    }

    /// Lends a queue. None where there is no such queue, or while it is lent already.
    #[must_use]
    pub fn queue(&self, pair: u16) -> Option<LinkQueue> {
        let shelf = self.shelves.get(usize::from(pair))?;
        let end = shelf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let mut end = end;
        match &mut end {
            // Nobody may have looked since it was deleted.
            End::Tap(queue) => _ = queue.check(),
            End::Packet(queue) => _ = queue.check(),
            End::Stream(_) | End::Dgram(_) => {}
        }
        Some(LinkQueue {
            end: Some(end),
            shelf: Arc::clone(shelf),
        })
    }

    /// Whether its interface is there, as far as anybody has noticed; true where it has none.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match &self.device {
            Device::Tap(tap) => tap.is_there(),
            Device::Packet(packet) => packet.is_there(),
            Device::Socket => true,
        }
    }

    /// Has `observer` told when its interface goes or is there again, on the thread that notices,
    /// which must not wait.
    pub fn observe(&self, observer: impl Fn() + Send + Sync + 'static) {
        match &self.device {
            Device::Tap(tap) => tap.observe(observer),
            Device::Packet(packet) => packet.observe(observer),
            Device::Socket => {}
        }
    }

    /// The longest packet behind an Ethernet header in bytes, as the host has it set now; none
    /// where nothing sets one.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        match &self.device {
            Device::Tap(tap) => tap.mtu(),
            Device::Packet(packet) => packet.mtu(),
            Device::Socket => None,
        }
    }

    /// What may be left unfinished in frames that are sent, and what
    /// [`set_offloads`](Self::set_offloads) takes.
    #[must_use]
    pub fn supported(&self) -> Offloads {
        match &self.device {
            Device::Tap(tap) => tap.supported(),
            Device::Packet(packet) => packet.supported(),
            Device::Socket => Offloads::empty(),
        }
    }

    /// Says what may be left unfinished in frames that are received. Those that wait already are
    /// as they are.
    ///
    /// # Errors
    /// What the host said.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), LinkError> {
        match &self.device {
            Device::Tap(tap) => tap.set_offloads(offloads),
            Device::Packet(_) | Device::Socket => Ok(()),
        }
    }

    /// Whether frames come as [`set_offloads`](Self::set_offloads) says. A packet socket gets what
    /// its interface has, which may be long and without a checksum.
    #[must_use]
    pub fn obeys_offloads(&self) -> bool {
        !matches!(self.device, Device::Packet(_))
    }

    /// Shows the host whether the guest is there, where there is a way to.
    ///
    /// # Errors
    /// What the host said.
    pub fn set_carrier(&self, up: bool) -> Result<(), LinkError> {
        match &self.device {
            Device::Tap(tap) => tap.set_carrier(up),
            Device::Packet(_) | Device::Socket => Ok(()),
        }
    }

    /// Says whether the guest serves a queue pair; see [`Tap::attach`].
    ///
    /// # Errors
    /// What the host said.
    pub fn attach(&self, pair: u16, attached: bool) -> Result<(), LinkError> {
        match &self.device {
            Device::Tap(tap) => tap.attach(pair, attached),
            Device::Packet(_) | Device::Socket => Ok(()),
        }
    }
}

#[derive(Debug)]
enum End {
    Tap(TapQueue),
    Packet(PacketQueue),
    Stream(StreamQueue),
    Dgram(DgramQueue),
}

/// One queue of a link, lent to one data thread; dropped, it goes back to the [`Link`].
#[derive(Debug)]
pub struct LinkQueue {
    /// Taken by the drop only.
    end: Option<End>,
    shelf: Shelf,
}

impl Drop for LinkQueue {
    fn drop(&mut self) {
        *self.shelf.lock().unwrap_or_else(PoisonError::into_inner) = self.end.take();
    }
}

impl LinkQueue {
    /// What to wait on: readable when there is a frame, writable when one may be sent. None while
    /// there is no connection, or no interface: its descriptor would be ready all the time.
    #[must_use]
    pub fn descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        match self.end.as_mut()? {
            End::Tap(queue) => queue.check().then(|| queue.descriptor()),
            End::Packet(queue) => (!queue.is_lost()).then(|| queue.descriptor()),
            End::Stream(queue) => queue.descriptor(),
            End::Dgram(queue) => Some(queue.descriptor()),
        }
    }

    /// Grows when [`descriptor`](Self::descriptor) is another one.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        match &self.end {
            Some(End::Stream(queue)) => queue.generation(),
            Some(End::Tap(queue)) => queue.generation(),
            Some(End::Packet(queue)) => queue.generation(),
            Some(End::Dgram(queue)) => queue.generation(),
            None => 0,
        }
    }

    /// Whether its interface was deleted, and if so, whether one of its name will be opened.
    #[must_use]
    pub fn is_lost(&self) -> Option<bool> {
        match &self.end {
            Some(End::Tap(queue)) => queue.is_lost(),
            Some(End::Packet(queue)) => queue.is_lost().then_some(true),
            _ => None,
        }
    }

    /// Whether frames have a virtio header; where not, they are sent and received complete.
    #[must_use]
    pub fn supports_headers(&self) -> bool {
        matches!(self.end, Some(End::Tap(_) | End::Packet(_)))
    }

    /// Sends a frame. The header is for links that have one; its `num_buffers` is ignored.
    #[inline]
    pub fn send(&mut self, header: &NetHeader, payload: Payload<'_>) -> Sent {
        match &mut self.end {
            Some(End::Tap(queue)) => queue.send(header, payload),
            Some(End::Packet(queue)) => queue.send(header, payload),
            Some(End::Stream(queue)) => queue.send(payload),
            Some(End::Dgram(queue)) => queue.send(payload),
            None => Sent::Dropped(SendLoss::Down),
        }
    }

    /// Receives a frame.
    ///
    /// A stream may have frames that its descriptor does not tell of: wait on the
    /// descriptor only after [`Received::Empty`].
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        match &mut self.end {
            Some(End::Tap(queue)) => queue.receive(room),
            Some(End::Packet(queue)) => queue.receive(room),
            Some(End::Stream(queue)) => queue.receive(room),
            Some(End::Dgram(queue)) => queue.receive(room),
            None => Received::Down,
        }
    }

    /// Whether a part of a frame that was sent is still here, for [`flush`](Self::flush) when the
    /// descriptor is writable.
    #[must_use]
    #[inline]
    pub fn has_unsent(&self) -> bool {
        matches!(&self.end, Some(End::Stream(queue)) if queue.has_unsent())
    }

    /// Sends what is left of a frame: [`Sent::Done`] when nothing is.
    #[inline]
    pub fn flush(&mut self) -> Sent {
        match &mut self.end {
            Some(End::Stream(queue)) => queue.flush(),
            _ => Sent::Done,
        }
    }

    /// When to [`retry`](Self::retry), on the owner's clock; 0 is at once. None while the link is
    /// there, and where it will not come back.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        match &self.end {
            Some(End::Stream(queue)) => queue.retry_at_ns(),
            Some(End::Dgram(queue)) => queue.retry_at_ns(),
            Some(End::Tap(queue)) => queue.retry_at_ns(),
            Some(End::Packet(queue)) => queue.retry_at_ns(),
            None => None,
        }
    }

    /// Tries to connect, or has the interface opened again, unless it is too early or not needed;
    /// returns whether there is a link.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        match &mut self.end {
            Some(End::Stream(queue)) => queue.retry(now_ns),
            Some(End::Dgram(queue)) => queue.retry(now_ns),
            Some(End::Tap(queue)) => queue.retry(now_ns),
            Some(End::Packet(queue)) => queue.retry(now_ns),
            None => true,
        }
    }
}

#[cfg(test)]
mod tests;
