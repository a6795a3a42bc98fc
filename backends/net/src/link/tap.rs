// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tap devices (`Documentation/networking/tuntap.rst` of Linux) and macvtap.
//!
//! Frames carry the virtio header as the guest has it, so that 64 KiB segments and checksums that
//! are not summed up pass through untouched. Which of those the kernel may hand out is a property
//! of the device, not of a queue.
//!
//! The kernel spreads flows over the attached queues and remembers which queue a flow was sent on;
//! a queue that is not read must therefore be detached, or the flows on it would be lost.
//!
//! An interface that was deleted is opened again as soon as there is one of its name, and set up as
//! the one before. Descriptors that were passed to us have no way back.

mod open;
mod queue;

#[cfg(test)]
mod tests;

use std::ffi::c_uint;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::open::Origin;
pub use self::queue::TapQueue;
use super::error::{LinkError, system};
use super::namespace::Namespace;
use super::presence::{Presence, Reopen};
use crate::features::Offloads;
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
        /// Whether others may have queues of it.
        shared: bool,
    },
    /// Descriptors that our parent has opened.
    Descriptors {
        /// Their numbers, one per queue pair.
        numbers: Vec<i32>,
        /// Whether others may have queues of the same interface.
        shared: bool,
    },
}

impl TapSpec {
    /// An interface of our namespace that nobody else has.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::Interface {
            name: name.to_owned(),
            netns: None,
            shared: false,
        }
    }
}

/// A tap, as the control thread has it.
#[derive(Debug)]
pub struct Tap {
    device: Arc<Device>,
}

/// What a tap and its queues share.
#[derive(Debug)]
struct Device {
    /// The name it was opened by.
    name: String,
    /// How it is opened again; not at all where its descriptors were passed to us.
    origin: Option<Origin>,
    /// Any socket in the network namespace of the interface.
    socket: OwnedFd,
    supported: Offloads,
    presence: Presence,
    state: Mutex<State>,
}

/// What is replaced together with the interface, and the settings that a new one gets.
#[derive(Debug)]
struct State {
    /// One per queue pair.
    queues: Vec<Arc<OwnedFd>>,
    /// Whether queues can be attached and detached.
    multi_queue: bool,
    /// Which queues the kernel must have attached.
    attached: Vec<bool>,
    offloads: Offloads,
    carrier: Option<bool>,
}

impl Tap {
    /// Opens a tap with a queue for each queue pair. Frames come complete until
    /// [`set_offloads`](Self::set_offloads).
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn open(spec: &TapSpec, pairs: u16) -> Result<Self, LinkError> {
        let (opened, origin) = match spec {
            TapSpec::Interface {
                name,
                netns,
                shared,
            } => {
                let namespace = Namespace::open(netns.as_deref())?;
                let opened = open::by_name(name, &namespace, pairs.max(1), *shared)?;
                let origin = Origin {
                    name: opened.name.clone(),
                    namespace,
                    pairs: pairs.max(1),
                    shared: *shared,
                };
                (opened, Some(origin))
            }
            TapSpec::Descriptors { numbers, shared } => {
                (open::by_descriptors(numbers, pairs, *shared)?, None)
            }
        };
        let device = Device {
            name: opened.name,
            origin,
            socket: opened.socket,
            supported: probe(&opened.queues)?,
            presence: Presence::default(),
            state: Mutex::new(State {
                attached: vec![true; opened.queues.len()],
                queues: opened.queues.into_iter().map(Arc::new).collect(),
                multi_queue: opened.multi_queue,
                offloads: Offloads::empty(),
                carrier: None,
            }),
        };
        Ok(Self {
            device: Arc::new(device),
        })
    }

    /// A queue. There may be several of one pair, but only one should be used.
    #[must_use]
    pub fn queue(&self, pair: u16) -> Option<TapQueue> {
        TapQueue::new(&self.device, pair)
    }

    /// Whether the interface is there, as far as anybody has noticed.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.device.presence.is_there()
    }

    /// Has `observer` told when the interface goes or is there again, on the thread that notices,
    /// which must not wait.
    pub fn observe(&self, observer: impl Fn() + Send + Sync + 'static) {
        self.device.presence.observe(Box::new(observer));
    }

    /// What the kernel knows to leave unfinished.
    #[must_use]
    pub fn supported(&self) -> Offloads {
        self.device.supported
    }

    /// The name of the interface, which may have changed since it was opened.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let state = self.device.state();
        let of = state
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
        let address = self.device.state().queues.iter().find_map(ours)?;
        let socket = &self.device.socket;
        // Another namespace may have another interface of the same name.
        if sys::hardware_address(socket, &name) != Ok(address) {
            return None;
        }
        sys::interface_mtu(socket, &name).ok()
    }

    /// Says what frames may come with unfinished: `TUNSETOFFLOAD`, for the whole device.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), LinkError> {
        let mut state = self.device.state();
        state.offloads = offloads;
        let result = state.unless_gone(state.apply_offloads());
        self.device.say(result, "set offloads")
    }

    /// Sets whether the interface has a link. Nothing happens where the kernel cannot: before
    /// Linux 5.0, and for macvtap, which has the link of its lower interface.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn set_carrier(&self, up: bool) -> Result<(), LinkError> {
        let mut state = self.device.state();
        state.carrier = Some(up);
        let result = state.unless_gone(state.apply_carrier(&self.device.socket));
        self.device.say(result, "set the carrier")
    }

    /// Attaches a queue, so that flows come to it, or detaches it, which drops what waits there.
    /// A detached queue still sends. Nothing happens where it is so already, and to a device with
    /// one queue.
    ///
    /// # Errors
    /// [`LinkError::System`].
    pub fn attach(&self, pair: u16, attach: bool) -> Result<(), LinkError> {
        let mut state = self.device.state();
        let index = usize::from(pair);
        if state.attached.get(index).is_none_or(|now| *now == attach) {
            return Ok(());
        }
        let result = state.unless_gone(state.apply_attached(index, attach));
        self.device.say(result, "attach or detach a queue")?;
        if let Some(now) = state.attached.get_mut(index) {
            *now = attach;
        }
        Ok(())
    }
}

impl Device {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fd(&self, pair: u16) -> Option<Arc<OwnedFd>> {
        self.state().queues.get(usize::from(pair)).map(Arc::clone)
    }

    fn say(&self, result: Result<(), Errno>, action: &'static str) -> Result<(), LinkError> {
        result.map_err(system(&format!("tap {}", self.name), action))
    }
}

impl State {
    /// Of the device; any of its queues will do.
    fn first(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.queues.first().map(AsFd::as_fd).ok_or(Errno::BADFD)
    }

    /// An interface that was deleted is as good as set to anything: no frame comes from it, and the
    /// next one is told.
    fn unless_gone(&self, result: Result<(), Errno>) -> Result<(), Errno> {
        result.or_else(|errno| match self.first().and_then(sys::tun_interface) {
            Ok(_) => Err(errno),
            Err(_) => Ok(()),
        })
    }

    fn apply_offloads(&self) -> Result<(), Errno> {
        sys::tun_set_offload(self.first()?, kernel_flags(self.offloads))
    }

    /// `socket` is in the network namespace of the interface.
    fn apply_carrier(&self, socket: &OwnedFd) -> Result<(), Errno> {
        let Some(up) = self.carrier else {
            return Ok(());
        };
        let first = self.first()?;
        match sys::tun_set_carrier(first, up) {
            Err(Errno::INVAL | Errno::NOTTY) => Ok(()),
            result => result,
        }?;
        if let Ok(interface) = sys::tun_interface(first) {
            // To ask for it has it take effect: else frames of the host are lost for a moment yet,
            // or taken for up to a second. The answer is known.
            let _ = sys::interface_link(socket, &interface.name());
        }
        Ok(())
    }

    fn apply_attached(&self, index: usize, attach: bool) -> Result<(), Errno> {
        let flags = if attach {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        match self.queues.get(index) {
            Some(fd) if self.multi_queue => sys::tun_set_queue(fd, flags),
            _ => Ok(()),
        }
    }
}

/// The interface has its own queues again; all that was said to the one before is said to it.
impl Reopen for Device {
    fn presence(&self) -> &Presence {
        &self.presence
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn reopen(&self, done: &dyn Fn()) -> Result<bool, LinkError> {
        let Some(origin) = &self.origin else {
            return Ok(false);
        };
        let Some(opened) = open::again(origin)? else {
            return Ok(false);
        };
        let mut state = self.state();
        let mut queues: Vec<_> = opened.queues.into_iter().map(Arc::new).collect();
        // Made for one queue by now: all pairs have that one.
        if let Some(first) = queues.first().map(Arc::clone) {
            queues.resize(state.queues.len(), first);
        }
        let before = mem::replace(&mut state.queues, queues);
        state.multi_queue = opened.multi_queue;
        let mut detached = (0..)
            .zip(&state.attached)
            .filter(|(_, attached)| !**attached);
        let applied = detached
            .try_for_each(|(index, _)| state.apply_attached(index, false))
            .and_then(|()| state.apply_offloads())
            .and_then(|()| state.apply_carrier(&self.socket));
        if let Err(errno) = applied {
            // As if it were not there yet.
            state.queues = before;
            return Err(system(&format!("tap {}", self.name), "set up queues")(
                errno,
            ));
        }
        done();
        Ok(true)
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
