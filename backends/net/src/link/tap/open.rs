// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening the queues of a tap: by name, on `/dev/net/tun` or the device node of a macvtap
//! interface, or from descriptors that our parent has opened.
//!
//! Everything needed is set here, in whatever way a queue was had: frames with a header of 12
//! bytes, little-endian, and no waiting. `IFF_NAPI` stays off: it makes single frames slower.

mod alone;

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use ringside_common::inherited::take_over;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::header::HEADER_BYTES;
use crate::link::error::{LinkError, system};
use crate::link::namespace::Namespace;
use crate::link::netlink::Netlink;
use crate::sys::{self, InterfaceRequest};

const TUN: &str = "/dev/net/tun";
/// Ethernet frames, without the 4 bytes of `struct tun_pi`, with the virtio header. Since Linux 6.0
/// a queue is attached without a moment's carrier.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_NO_CARRIER;
/// The bytes of a name that a kernel takes.
const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// How long a tap that another process holds is waited for: the kernel lets go of what an
/// `io_uring` watched a moment after its process has ended, and who starts the next one may be
/// quicker.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(1);
const PREDECESSOR_STEP: Duration = Duration::from_millis(10);

/// Where an interface is found again.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) pairs: u16,
    /// Whether others may have queues of it.
    pub(super) shared: bool,
}

/// The queues of a tap.
pub(super) struct Opened {
    /// Of the interface.
    pub(super) name: String,
    /// One per queue pair.
    pub(super) queues: Vec<OwnedFd>,
    /// A socket in the network namespace of the interface.
    pub(super) socket: OwnedFd,
    /// Whether queues can be attached and detached.
    pub(super) multi_queue: bool,
}

/// Opens the queues of an interface, which is made if there is none.
pub(super) fn by_name(
    name: &str,
    namespace: &Namespace,
    pairs: u16,
    shared: bool,
) -> Result<Opened, LinkError> {
    let bad = |byte: u8| byte == b'/' || byte == 0 || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.bytes().any(bad) {
        return Err(LinkError::Name {
            name: name.to_owned(),
        });
    }
    namespace.within(|| {
        let opener = Opener::new(name, pairs, shared)?;
        let queues = opener.open_after_predecessor()?;
        opener.finish(queues)
    })
}

/// Opens the queues of an interface that has been there before; nothing if it is not there, for it
/// is not ours to be made. One that was made for one queue this time has one.
pub(super) fn again(origin: &Origin) -> Result<Option<Opened>, LinkError> {
    origin.namespace.within(|| {
        let mut opener = Opener::new(&origin.name, origin.pairs, origin.shared)?;
        let Some(index) = opener.index()? else {
            return Ok(None);
        };
        let queues = match opener.open() {
            Err(LinkError::SingleQueue { .. }) => {
                opener.pairs = 1;
                opener.open()
            }
            opened => opened,
        }?;
        // One that was deleted meanwhile was made by us, and goes with its queues.
        if opener.index()? != Some(index) {
            return Ok(None);
        }
        opener.finish(queues).map(Some)
    })
}

/// Takes over queues that are open already.
pub(super) fn by_descriptors(
    numbers: &[i32],
    pairs: u16,
    shared: bool,
) -> Result<Opened, LinkError> {
    if numbers.len() != usize::from(pairs) {
        return Err(LinkError::DescriptorCount {
            given: numbers.len(),
            pairs,
        });
    }
    let mut queues = Vec::new();
    let mut first: Option<String> = None;
    for &fd in numbers {
        let source = |errno: Errno| LinkError::Descriptor {
            fd,
            source: errno.into(),
        };
        let queue = take_over(fd).map_err(|source| LinkError::Descriptor { fd, source })?;
        let of = sys::tun_interface(&queue).or(Err(LinkError::DescriptorKind { fd }))?;
        check_flags(fd, of.flags(), pairs)?;
        let name = of.name();
        let first = first.get_or_insert_with(|| name.clone());
        if *first != name {
            let first = first.clone();
            return Err(LinkError::DescriptorInterface { fd, name, first });
        }
        let flags = fcntl_getfl(&queue).map_err(source)?;
        fcntl_setfl(&queue, flags | OFlags::NONBLOCK).map_err(source)?;
        queues.push(queue);
    }
    let name = first.unwrap_or_default();
    let multi_queue = set_up(&name, &queues)?;
    for (queue, &fd) in queues.iter().zip(numbers) {
        if sys::tun_has_packet_information(queue, HEADER_BYTES) {
            let problem = "without IFF_NO_PI";
            return Err(LinkError::DescriptorFlags { fd, problem });
        }
    }
    if !shared {
        alone::check_descriptors(&name, &queues)?;
    }
    Ok(Opened {
        name,
        queues,
        socket: any_socket()?,
        multi_queue,
    })
}

fn check_flags(fd: i32, flags: i32, pairs: u16) -> Result<(), LinkError> {
    let problem = if flags & libc::IFF_TAP == 0 {
        "as a tun, of IP packets (IFF_TUN), not as a tap (IFF_TAP)"
    } else if flags & libc::IFF_VNET_HDR == 0 {
        "without IFF_VNET_HDR, which has to be given to TUNSETIFF"
    } else if pairs > 1 && flags & libc::IFF_MULTI_QUEUE == 0 {
        "without IFF_MULTI_QUEUE, which more than one queue pair needs"
    } else {
        return Ok(());
    };
    Err(LinkError::DescriptorFlags { fd, problem })
}

/// Says how frames look; returns whether queues can be attached and detached.
fn set_up(name: &str, queues: &[OwnedFd]) -> Result<bool, LinkError> {
    let failed = |action| system(name, action);
    let mut multi_queue = true;
    for queue in queues {
        sys::tun_set_header_bytes(queue, HEADER_BYTES).map_err(failed("set the header"))?;
        sys::tun_set_little_endian(queue).map_err(failed("set the byte order"))?;
        let of = sys::tun_interface(queue).map_err(failed("query the queue"))?;
        multi_queue &= of.flags() & libc::IFF_MULTI_QUEUE != 0;
    }
    Ok(multi_queue)
}

/// A socket to ask about interfaces with.
fn any_socket() -> Result<OwnedFd, LinkError> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(system("socket", "make one"))
}

/// Why a queue was not had.
enum Refusal {
    /// The device node was not opened.
    Node(Errno),
    /// The interface was not given.
    Interface(Errno),
}

fn queue_of(node: &str, name: &str, flags: i32) -> Result<OwnedFd, Refusal> {
    let mode = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = open(node, mode, Mode::empty()).map_err(Refusal::Node)?;
    let request = InterfaceRequest::new(name).with_flags(flags);
    sys::tun_set_interface(&queue, request).map_err(Refusal::Interface)?;
    Ok(queue)
}

/// What the interface of a queue is called; of the one that was asked for as `name`.
fn name_of(name: &str, queue: Option<&OwnedFd>) -> Result<String, LinkError> {
    let of = queue.map_or(Err(Errno::BADFD), sys::tun_interface);
    let of = of.map_err(system(name, "query the queue"))?;
    Ok(of.name())
}

struct Opener<'a> {
    name: &'a str,
    pairs: u16,
    /// Whether others may have queues of it.
    shared: bool,
    socket: OwnedFd,
    netlink: Netlink,
}

impl<'a> Opener<'a> {
    fn new(name: &'a str, pairs: u16, shared: bool) -> Result<Self, LinkError> {
        Ok(Self {
            name,
            pairs,
            shared,
            socket: any_socket()?,
            netlink: Netlink::open().map_err(system("netlink socket", "make one"))?,
        })
    }

    /// The number of the interface, if there is one.
    fn index(&self) -> Result<Option<u32>, LinkError> {
        let found = self.netlink.interface(self.name);
        let found = found.map_err(system(self.name, "ask for the interface"))?;
        Ok(found.map(|interface| interface.index))
    }

    fn finish(self, queues: Vec<OwnedFd>) -> Result<Opened, LinkError> {
        let multi_queue = set_up(self.name, &queues)?;
        Ok(Opened {
            name: name_of(self.name, queues.first())?,
            queues,
            socket: self.socket,
            multi_queue,
        })
    }

    /// Opens the queues, when need be after a killed process has let go of them.
    fn open_after_predecessor(&self) -> Result<Vec<OwnedFd>, LinkError> {
        let deadline = Instant::now() + PREDECESSOR_LIMIT;
        // Two that start together see each other's queues; not in the same steps for long.
        let own = Duration::from_millis(u64::from(std::process::id() % 16));
        loop {
            match self.open() {
                Err(LinkError::Busy { .. } | LinkError::InUse { .. })
                    if Instant::now() < deadline =>
                {
                    thread::sleep(PREDECESSOR_STEP + own);
                }
                ended => return ended,
            }
        }
    }

    /// Opens the queues, unless somebody else has some: flows would go to both of us in turns.
    fn open(&self) -> Result<Vec<OwnedFd>, LinkError> {
        if self.shared {
            return self.open_queues();
        }
        // Not a moment of another's flows is taken if it can be seen before.
        alone::check(&self.netlink, self.name, 0)?;
        let queues = self.open_queues()?;
        let name = name_of(self.name, queues.first())?;
        alone::check(&self.netlink, &name, queues.len())?;
        Ok(queues)
    }

    fn open_queues(&self) -> Result<Vec<OwnedFd>, LinkError> {
        let many = FLAGS | libc::IFF_MULTI_QUEUE;
        let flags = if self.pairs > 1 { many } else { FLAGS };
        match queue_of(TUN, self.name, flags) {
            Ok(first) => self.more(TUN, first, flags),
            Err(Refusal::Interface(Errno::INVAL)) => self.open_other_kind(),
            Err(refusal) => Err(self.explain(&refusal)),
        }
    }

    /// The kernel says EINVAL for each: one queue asked of many, many of one, and no tap at all.
    fn open_other_kind(&self) -> Result<Vec<OwnedFd>, LinkError> {
        let many = FLAGS | libc::IFF_MULTI_QUEUE;
        if self.pairs == 1 {
            match queue_of(TUN, self.name, many) {
                Ok(only) => return Ok(vec![only]),
                Err(Refusal::Interface(Errno::INVAL)) => {}
                Err(refusal) => return Err(self.explain(&refusal)),
            }
        } else if matches!(
            queue_of(TUN, self.name, FLAGS),
            Ok(_) | Err(Refusal::Interface(Errno::BUSY))
        ) {
            return Err(LinkError::SingleQueue {
                name: self.name.to_owned(),
                pairs: self.pairs,
            });
        }
        // Which has no carrier of its own.
        self.open_macvtap(many & !libc::IFF_NO_CARRIER)
    }

    /// A macvtap interface has a device node with its index for a number.
    fn open_macvtap(&self, flags: i32) -> Result<Vec<OwnedFd>, LinkError> {
        let not_tap = || LinkError::NotTap {
            name: self.name.to_owned(),
        };
        let index = name_to_index(&self.socket, self.name).map_err(|_errno| not_tap())?;
        let node = format!("/dev/tap{index}");
        let first = match queue_of(&node, self.name, flags) {
            Ok(first) => first,
            Err(Refusal::Node(Errno::ACCESS | Errno::PERM)) => {
                return Err(LinkError::TapPermission {
                    name: self.name.to_owned(),
                });
            }
            Err(_) => return Err(not_tap()),
        };
        // An interface of another network namespace may have the same index, even the same name.
        let of = sys::tun_interface(&first).map_err(system(self.name, "query the queue"))?;
        let theirs = sys::hardware_address(&first, self.name);
        let ours = sys::hardware_address(&self.socket, self.name);
        if of.name() != self.name || theirs != ours {
            return Err(not_tap());
        }
        if !self.shared {
            alone::lock_node(self.name, &first)?;
        }
        self.more(&node, first, flags)
    }

    /// The queues behind the first one. That has the name by now, where only a pattern was given.
    fn more(&self, node: &str, first: OwnedFd, flags: i32) -> Result<Vec<OwnedFd>, LinkError> {
        let name = name_of(self.name, Some(&first))?;
        let mut queues = vec![first];
        for _ in 1..self.pairs {
            queues.push(queue_of(node, &name, flags).map_err(|refusal| self.explain(&refusal))?);
        }
        Ok(queues)
    }

    fn explain(&self, refusal: &Refusal) -> LinkError {
        let name = self.name.to_owned();
        match *refusal {
            Refusal::Node(errno) => LinkError::TunDevice {
                source: errno.into(),
            },
            Refusal::Interface(Errno::BUSY | Errno::TOOBIG) => LinkError::Busy { name },
            Refusal::Interface(Errno::PERM | Errno::ACCESS) => LinkError::TapPermission { name },
            Refusal::Interface(errno) => system(self.name, "open a queue")(errno),
        }
    }
}

#[cfg(test)]
mod tests;
