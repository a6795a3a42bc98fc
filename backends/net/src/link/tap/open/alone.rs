// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a tap is ours alone. The kernel gives queues of one interface to whoever may open it,
//! and spreads its flows over all of them; neither of two processes would know why flows are
//! missing.
//!
//! Of a tap the kernel tells how many queues are open, whoever opened them, so that nothing is left
//! behind by a process that was killed. It does not of a macvtap interface: there the device node
//! is locked for as long as its queues are open.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, flock, fstat, major, minor};
use rustix::io::Errno;

use crate::link::error::{LinkError, system};
use crate::link::namespace::Namespace;
use crate::link::netlink::Netlink;
use crate::sys;

/// The numbers of `/dev/net/tun` (`Documentation/admin-guide/devices.txt`).
const TUN_NODE: (u32, u32) = (10, 200);

/// Refuses an interface of which more queues are attached than ours.
pub(super) fn check(netlink: &Netlink, name: &str, ours: usize) -> Result<(), LinkError> {
    let found = netlink.interface(name);
    let found = found.map_err(system(name, "ask for the interface"))?;
    let queues = found.and_then(|interface| interface.queues);
    let Some(queues) = queues else {
        return Ok(());
    };
    let (attached, detached) = (u64::from(queues.attached), u64::from(queues.detached));
    let ours = ours as u64;
    if attached > ours {
        let name = name.to_owned();
        return Err(LinkError::InUse { name });
    }
    if attached + detached < ours {
        let name = name.to_owned();
        return Err(LinkError::SameQueue { name });
    }
    Ok(())
}

/// The same of descriptors that were passed to us, as far as their namespace is within reach.
pub(super) fn check_descriptors(name: &str, queues: &[OwnedFd]) -> Result<(), LinkError> {
    let Some(first) = queues.first() else {
        return Ok(());
    };
    let node = fstat(first).map_err(system(name, "query the device node"))?;
    if (major(node.st_rdev), minor(node.st_rdev)) != TUN_NODE {
        return lock_node(name, first);
    }
    let look = || {
        let netlink = Netlink::open().map_err(system("netlink socket", "make one"))?;
        let socket = super::any_socket()?;
        // Another namespace may have another interface of the same name.
        if sys::hardware_address(&socket, name) == sys::hardware_address(first, name) {
            check(&netlink, name, queues.len())?;
        }
        Ok(())
    };
    match sys::tun_namespace(first).map(Namespace::of) {
        // Whoever may not enter it may not ask.
        Ok(namespace) => match namespace.within(look) {
            Err(LinkError::Namespace { .. }) => look(),
            looked => looked,
        },
        Err(_) => look(),
    }
}

/// Locks the device node of a macvtap interface. All queues go with the process, and so does the
/// lock.
pub(super) fn lock_node(name: &str, queue: &OwnedFd) -> Result<(), LinkError> {
    match flock(queue, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN) => Err(LinkError::InUse {
            name: name.to_owned(),
        }),
        Err(errno) => Err(system(name, "lock the device node")(errno)),
    }
}
