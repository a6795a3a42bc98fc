// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tap devices (`Documentation/networking/tuntap.rst` of Linux) and macvtap.
//!
//! Frames carry the virtio header as the guest has it, so that 64 KiB segments and checksums that
//! are not summed up pass through untouched. Which of those the kernel may hand out is a property
//! of the device, not of a queue.
//!
//! The kernel spreads flows over the attached queues and remembers which queue a flow was sent on;
//! a queue that nobody reads is therefore to be detached, or the flows on it would be lost.

mod open;

#[cfg(test)]
mod tests;

use std::ffi::c_uint;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::error::{LinkError, system};
use super::transfer::{Transfer, is_frame, not_received, sent};
use super::{Payload, Received, Room, SendLoss, Sent};
use crate::features::Offloads;
use crate::header::{HEADER_BYTES, NetHeader};
use crate::sys;

/// Which tap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TapSpec {
    /// By name: an existing tap or macvtap interface, or a tap that is made for as long as it is
    /// open. The name may have a `%d` for a number.
    Interface {
        /// Up to 15 bytes.
        name: String,
        /// Its network namespace: a path, or a name of `ip netns`. Ours, without one.
        netns: Option<PathBuf>,
    },
    /// Numbers of descriptors that our parent has opened, one per queue pair.
    Descriptors(Vec<i32>),
}

/// A tap, as the control thread has it.
#[derive(Debug)]
pub struct Tap {
    /// One per queue pair.
    queues: Vec<Arc<OwnedFd>>,
    /// Any socket in the network namespace of the interface.
    socket: OwnedFd,
    supported: Offloads,
    /// Which queues are attached; empty where the device has but one.
    attached: Mutex<Vec<bool>>,
}

impl Tap {
    /// Opens a tap with a queue for each queue pair. Frames come complete until
    /// [`set_offloads`](Self::set_offloads).
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn open(spec: &TapSpec, pairs: u16) -> Result<Self, LinkError> {
        let opened = match spec {
            TapSpec::Interface { name, netns } => {
                open::by_name(name, netns.as_deref(), pairs.max(1))?
            }
            TapSpec::Descriptors(numbers) => open::by_descriptors(numbers, pairs)?,
        };
        let attached = if opened.multi_queue {
            vec![true; opened.queues.len()]
        } else {
            Vec::new()
        };
        Ok(Self {
            supported: probe(&opened.queues)?,
            queues: opened.queues.into_iter().map(Arc::new).collect(),
            socket: opened.socket,
            attached: Mutex::new(attached),
        })
    }

    /// A queue. There may be several of one pair, but only one should be used.
    #[must_use]
    pub fn queue(&self, pair: u16) -> Option<TapQueue> {
        let fd = self.queues.get(usize::from(pair))?;
        Some(TapQueue {
            fd: Arc::clone(fd),
            transfer: Transfer::new(),
            gone: false,
        })
    }

    /// What the kernel knows to leave unfinished.
    #[must_use]
    pub fn supported(&self) -> Offloads {
        self.supported
    }

    /// The name of the interface, which may have changed since it was opened.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let of = self
            .queues
            .iter()
            .find_map(|fd| sys::tun_interface(fd).ok())?;
        Some(of.name())
    }

    /// The MTU of the interface in bytes. None where it has gone, and where its descriptors were
    /// passed to us and it is in another network namespace.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        let name = self.name()?;
        let ours = |fd| sys::hardware_address(fd, &name).ok();
        let address = self.queues.iter().find_map(ours)?;
        // Another namespace may have another interface of the same name.
        if sys::hardware_address(&self.socket, &name) != Ok(address) {
            return None;
        }
        sys::interface_mtu(&self.socket, &name).ok()
    }

    /// Says what frames may come with unfinished: `TUNSETOFFLOAD`, for the whole device.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), LinkError> {
        self.on_device("set offloads", |fd| {
            sys::tun_set_offload(fd, kernel_flags(offloads))
        })
    }

    /// Sets whether the interface has a link. Nothing happens where the kernel cannot: before
    /// Linux 5.0, and for macvtap, which has the link of its lower interface.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn set_carrier(&self, up: bool) -> Result<(), LinkError> {
        self.on_device("set the carrier", |fd| match sys::tun_set_carrier(fd, up) {
            Err(Errno::INVAL | Errno::NOTTY) => Ok(()),
            result => result,
        })?;
        if let Some(name) = self.name() {
            // To ask for it has it take effect: else frames of the host are lost for a moment yet,
            // or taken for up to a second. The answer is known.
            let _ = sys::interface_link(&self.socket, &name);
        }
        Ok(())
    }

    /// Attaches a queue, so that flows come to it, or detaches it, which drops what waits there.
    /// A detached queue still sends. Nothing happens where it is so already, and to a device with
    /// one queue.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn attach(&self, pair: u16, attach: bool) -> Result<(), LinkError> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(pair);
        let (Some(fd), Some(now)) = (self.queues.get(index), attached.get_mut(index)) else {
            return Ok(());
        };
        if *now != attach {
            let flags = if attach {
                libc::IFF_ATTACH_QUEUE
            } else {
                libc::IFF_DETACH_QUEUE
            };
            unless_gone(sys::tun_set_queue(fd, flags))
                .map_err(|errno| self.failed("attach or detach a queue", errno))?;
            *now = attach;
        }
        Ok(())
    }

    /// Does something to the device; any of its queues will do.
    fn on_device(
        &self,
        action: &'static str,
        call: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), LinkError> {
        let Some(fd) = self.queues.first() else {
            return Ok(());
        };
        unless_gone(call(fd.as_fd())).map_err(|errno| self.failed(action, errno))
    }

    fn failed(&self, action: &'static str, errno: Errno) -> LinkError {
        let name = self.name().unwrap_or_default();
        system(&format!("tap {name}"), action)(errno)
    }
}

/// An interface that was deleted is as good as set to anything: no frame comes from it.
fn unless_gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::BADFD) => Ok(()),
        result => result,
    }
}

/// Finds out what the kernel knows, and leaves everything off.
fn probe(queues: &[OwnedFd]) -> Result<Offloads, LinkError> {
    let Some(fd) = queues.first() else {
        return Ok(Offloads::empty());
    };
    let usual = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
    let mut supported = Offloads::empty();
    // USO came with Linux 6.2; UFO went and came back.
    for more in [usual, Offloads::USO4 | Offloads::USO6, Offloads::UFO] {
        let flags = kernel_flags(more | Offloads::CSUM);
        if sys::tun_set_offload(fd, flags).is_ok() {
            supported |= more;
        }
    }
    sys::tun_set_offload(fd, 0).map_err(system("tap", "set offloads"))?;
    Ok(supported)
}

/// `TUN_F_` flags, without those that the kernel does not take alone.
fn kernel_flags(offloads: Offloads) -> c_uint {
    let uso = Offloads::USO4 | Offloads::USO6;
    let tso = Offloads::TSO4 | Offloads::TSO6;
    if !offloads.contains(Offloads::CSUM) {
        return 0;
    }
    [
        (true, libc::TUN_F_CSUM),
        (offloads.contains(Offloads::TSO4), libc::TUN_F_TSO4),
        (offloads.contains(Offloads::TSO6), libc::TUN_F_TSO6),
        (
            offloads.contains(Offloads::ECN) && offloads.intersects(tso),
            libc::TUN_F_TSO_ECN,
        ),
        (offloads.contains(uso), libc::TUN_F_USO4 | libc::TUN_F_USO6),
        (offloads.contains(Offloads::UFO), libc::TUN_F_UFO),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag))
    .fold(0, |flags, flag| flags | flag)
}

/// One queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    fd: Arc<OwnedFd>,
    transfer: Transfer,
    gone: bool,
}

impl TapQueue {
    /// What to wait on.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether [`receive`](Self::receive) has found the interface deleted.
    #[must_use]
    #[inline]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether the interface is there. The descriptor of one that was deleted has an error for
    /// ever, without anything to wait for.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let at_once = Timespec::default();
        let found = poll(&mut fds, Some(&at_once)).is_ok();
        let [fd] = fds;
        !(self.gone || found && fd.revents().contains(PollFlags::ERR))
    }

    /// Sends a frame by `writev(2)`. The kernel checks the header: what it does not take is
    /// [`SendLoss::Invalid`].
    #[inline]
    pub fn send(&mut self, header: &NetHeader, payload: Payload<'_>) -> Sent {
        if !is_frame(payload) {
            return Sent::Dropped(SendLoss::Invalid);
        }
        let fd = self.fd.as_fd();
        sent(
            self.transfer
                .send(&header.encode(), payload, |gather| gather.write_to(fd)),
        )
    }

    /// Receives a frame by `readv(2)`. [`Received::Down`] is for ever: the interface was deleted.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        let mut header = [0; HEADER_BYTES];
        let fd = self.fd.as_fd();
        let result = self
            .transfer
            .receive(&mut header, room, |scatter| scatter.read_from(fd));
        match result {
            Ok(bytes) => Received::Frame {
                header: NetHeader::decode(header),
                bytes: bytes.saturating_sub(HEADER_BYTES),
            },
            Err(error) => {
                let received = not_received(&error);
                self.gone |= received == Received::Down;
                received
            }
        }
    }
}
