// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel says of an interface by its name (rtnetlink(7)), without loading a module for a
//! name that nobody has, as the ioctls do.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const MESSAGE_HEADER_BYTES: usize = 16;
/// `struct ifinfomsg`.
const LINK_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// More than a link has to be told of.
const ANSWER_BYTES: usize = 32 << 10;

const REQUEST: u16 = 1;
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const TUN_QUEUES: u16 = 8;
const TUN_DETACHED_QUEUES: u16 = 9;
/// Flags of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// An interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Interface {
    /// Its number, which no other of the namespace has had if nobody chose it.
    pub(super) index: u32,
    /// The open queues of a multi-queue tap. None for any other interface, and where the kernel
    /// does not tell.
    pub(super) queues: Option<Queues>,
}

/// Queues of a multi-queue tap.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Queues {
    pub(super) attached: u32,
    pub(super) detached: u32,
}

/// A way to ask about the interfaces of the namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is `NETLINK_ROUTE`.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).map(Self)
    }

    /// The interface of this name, if there is one.
    pub(super) fn interface(&self, name: &str) -> Result<Option<Interface>, Errno> {
        send(&self.0, &question(name)?, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES];
        // The kernel has answered by now.
        let (bytes, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        match parse(answer.get(..bytes).unwrap_or(&answer)) {
            Ok(interface) => Ok(Some(interface)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

fn question(name: &str) -> Result<Vec<u8>, Errno> {
    let attribute_bytes = ATTRIBUTE_HEADER_BYTES + name.len() + 1;
    let bytes = MESSAGE_HEADER_BYTES + LINK_BYTES + attribute_bytes.next_multiple_of(4);
    let too_long = |_| Errno::NAMETOOLONG;
    let mut message = Vec::with_capacity(bytes);
    message.extend(u32::try_from(bytes).map_err(too_long)?.to_ne_bytes());
    message.extend(GET_LINK.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.resize(MESSAGE_HEADER_BYTES + LINK_BYTES, 0);
    let attribute_bytes = u16::try_from(attribute_bytes).map_err(too_long)?;
    message.extend(attribute_bytes.to_ne_bytes());
    message.extend(NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(bytes, 0);
    Ok(message)
}

fn parse(answer: &[u8]) -> Result<Interface, Errno> {
    let kind = number16(answer, 4).ok_or(Errno::BADMSG)?;
    let body = answer.get(MESSAGE_HEADER_BYTES..).unwrap_or_default();
    if kind == ERROR {
        let code = number32(body, 0).unwrap_or(0);
        let code = i32::from_ne_bytes(code.to_ne_bytes());
        return Err(Errno::from_raw_os_error(code.saturating_neg()));
    }
    if kind != NEW_LINK {
        return Err(Errno::BADMSG);
    }
    let index = number32(body, 4).ok_or(Errno::BADMSG)?;
    let link_info = attribute(body.get(LINK_BYTES..).unwrap_or_default(), LINK_INFO);
    let link_info = link_info.unwrap_or_default();
    let is_tun = attribute(link_info, INFO_KIND).is_some_and(|kind| kind.starts_with(b"tun\0"));
    let data = attribute(link_info, INFO_DATA).filter(|_| is_tun);
    let count = |of| number32(attribute(data?, of)?, 0);
    let queues = count(TUN_QUEUES).map(|attached| Queues {
        attached,
        detached: count(TUN_DETACHED_QUEUES).unwrap_or(0),
    });
    Ok(Interface { index, queues })
}

/// What the first attribute of a type says.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let bytes = usize::from(number16(attributes, 0)?);
        let found = number16(attributes, 2)? & TYPE_MASK;
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..bytes)?;
        if found == wanted {
            return Some(value);
        }
        attributes = attributes.get(bytes.next_multiple_of(4)..)?;
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::tap::{Tap, TapSpec};
    use crate::link::testing::{in_network, ip};

    #[test]
    fn f5_10_queues_of_a_tap_are_counted_by_the_kernel() {
        in_network("f5_10_queues_of_a_tap_are_counted_by_the_kernel", || {
            let netlink = Netlink::open().unwrap();
            assert_eq!(netlink.interface("tap0"), Ok(None));
            let lo = netlink.interface("lo").unwrap().unwrap();
            assert_eq!((lo.index, lo.queues), (1, None));
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            ip("tuntap add tap1 mode tap vnet_hdr");
            let queues = |name| netlink.interface(name).unwrap().unwrap().queues;
            let counted = |attached, detached| Some(Queues { attached, detached });
            assert_eq!(queues("tap0"), counted(0, 0));
            assert_eq!(queues("tap1"), None);
            let tap = Tap::open(&TapSpec::named("tap0"), 3).unwrap();
            assert_eq!(queues("tap0"), counted(3, 0));
            tap.attach(2, false).unwrap();
            assert_eq!(queues("tap0"), counted(2, 1));
            drop(tap);
            assert_eq!(queues("tap0"), counted(0, 0));
        });
    }

    #[test]
    fn answers_cut_anywhere_say_nothing_or_less() {
        let mut answer = vec![0; MESSAGE_HEADER_BYTES + LINK_BYTES];
        answer[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
        answer[20] = 7;
        // Of a length that leads nowhere.
        answer.extend([0, 0, 3, 0, 255, 255, 18, 0]);
        for bytes in 0..answer.len() {
            let found = parse(&answer[..bytes]);
            assert_eq!(found.is_ok(), bytes >= 24, "{bytes}");
        }
    }
}
