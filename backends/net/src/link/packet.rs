// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packet sockets on an interface of the host (packet(7)), with the virtio header
//! (`PACKET_VNET_HDR`).
//!
//! The header has 10 bytes here, on every kernel: what `PACKET_VNET_HDR_SZ` could add is
//! `num_buffers`, which says nothing on a socket.
//!
//! What is received is what the interface has: its offloads decide whether frames come long and
//! without a checksum. The kernel takes the VLAN tag out of each frame and tells of it apart
//! (`PACKET_AUXDATA`); it is put back here, so a received frame goes through a buffer of ours. A
//! frame that is sent does not.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::error::{LinkError, system};
use super::frame::{Payload, Received, Room, SPARE_BYTES, SendLoss, Sent};
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::presence::{Presence, Reopen, Sight, seek};
use super::transfer::{Transfer, is_frame, not_received, sent};
use crate::features::Offloads;
use crate::header::{GSO_NONE, HEADER_BYTES, LEGACY_HEADER_BYTES, NEEDS_CSUM, NetHeader};
use crate::sys::{self, AUXDATA_BYTES};

/// Bytes of the addresses at the front of a frame.
const ADDRESSES_BYTES: usize = 12;
/// Bytes of a VLAN tag.
const TAG_BYTES: usize = 4;
/// `ETH_P_8021Q`, for kernels that do not say which kind of tag it was.
const CUSTOMER_TAG: u16 = 0x8100;
/// Frames of 64 KiB that wait in the kernel count with their overhead; the usual 208 KiB would be
/// two of them.
const QUEUE_BYTES: usize = 4 << 20;

/// An interface of the host, as the control thread has it.
#[derive(Debug)]
pub struct Packet {
    device: Arc<Device>,
}

/// What an interface and its queue share.
#[derive(Debug)]
struct Device {
    interface: String,
    namespace: Namespace,
    supported: Offloads,
    presence: Presence,
    /// Another one when the interface is.
    socket: Mutex<Arc<OwnedFd>>,
}

impl Packet {
    /// Opens a packet socket on `interface` of the network namespace `netns`, and has the
    /// interface take frames for every address.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn open(interface: &str, netns: Option<&Path>) -> Result<Self, LinkError> {
        let namespace = Namespace::open(netns)?;
        let (socket, supported) = namespace.within(|| open(interface))?;
        let device = Device {
            interface: interface.to_owned(),
            namespace,
            supported,
            presence: Presence::default(),
            socket: Mutex::new(Arc::new(socket)),
        };
        Ok(Self {
            device: Arc::new(device),
        })
    }

    /// The queue. There may be several, but only one should be used.
    #[must_use]
    pub fn queue(&self) -> PacketQueue {
        let socket = self.device.socket();
        PacketQueue {
            device: Arc::clone(&self.device),
            socket: Arc::clone(&socket),
            sight: Sight::new(&self.device.presence),
            down: false,
            transfer: Transfer::new(),
            frame: vec![0; TAG_BYTES + SPARE_BYTES],
        }
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

    /// What may be left unfinished in frames that are sent.
    #[must_use]
    pub fn supported(&self) -> Offloads {
        self.device.supported
    }

    /// The MTU of the interface in bytes; none if it has gone.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        let socket = Arc::clone(&self.device.socket());
        sys::interface_mtu(&socket, &self.device.interface).ok()
    }
}

impl Device {
    fn socket(&self) -> MutexGuard<'_, Arc<OwnedFd>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reopen for Device {
    fn presence(&self) -> &Presence {
        &self.presence
    }

    fn name(&self) -> &str {
        &self.interface
    }

    fn reopen(&self, done: &dyn Fn()) -> Result<bool, LinkError> {
        match self.namespace.within(|| open(&self.interface)) {
            Ok((socket, _)) => {
                let mut current = self.socket();
                *current = Arc::new(socket);
                done();
                Ok(true)
            }
            Err(LinkError::NoInterface { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Opens a socket on an interface of the namespace of the thread; with what may be left unfinished.
fn open(interface: &str) -> Result<(OwnedFd, Offloads), LinkError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a protocol until it is bound: no frame of another interface gets in.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None);
    let socket = socket.map_err(|errno| match errno {
        Errno::PERM | Errno::ACCESS => LinkError::PacketPermission {
            name: interface.to_owned(),
        },
        errno => system(interface, "make a packet socket")(errno),
    })?;
    let netlink = Netlink::open().map_err(system("netlink socket", "make one"))?;
    let found = netlink.interface(interface);
    let found = found.map_err(system(interface, "ask for the interface"))?;
    let index = found.and_then(|found| c_int::try_from(found.index).ok());
    let index = index.ok_or_else(|| LinkError::NoInterface {
        name: interface.to_owned(),
    })?;
    let supported = set_up(&socket, index).map_err(system(interface, "set up a socket"))?;
    Ok((socket, supported))
}

/// Sets the options, then binds; returns what may be left unfinished in frames.
fn set_up(socket: &OwnedFd, index: c_int) -> Result<Offloads, Errno> {
    let mut supported =
        Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN | Offloads::UFO;
    let header_bytes = c_int::try_from(LEGACY_HEADER_BYTES).or(Err(Errno::INVAL))?;
    if sys::packet_set(socket, libc::PACKET_VNET_HDR_SZ, header_bytes).is_ok() {
        // That option is younger than USO, of which no option tells.
        supported |= Offloads::USO4 | Offloads::USO6;
    } else {
        sys::packet_set(socket, libc::PACKET_VNET_HDR, 1)?;
    }
    sys::packet_set(socket, libc::PACKET_AUXDATA, 1)?;
    sys::packet_set(socket, libc::PACKET_IGNORE_OUTGOING, 1)?;
    sys::packet_set_promiscuous(socket, index)?;
    // More than the usual limit takes CAP_NET_ADMIN; what can be had without will do.
    if sockopt::set_socket_recv_buffer_size_force(socket, QUEUE_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, QUEUE_BYTES)?;
    }
    sockopt::set_socket_send_buffer_size(socket, QUEUE_BYTES)?;
    sys::packet_bind(socket, index)?;
    Ok(supported)
}

/// The queue of a packet socket.
#[derive(Debug)]
pub struct PacketQueue {
    device: Arc<Device>,
    socket: Arc<OwnedFd>,
    sight: Sight,
    /// The interface went down, which is all that is told of one that is deleted next.
    down: bool,
    transfer: Transfer,
    /// A frame, with space in front for its tag.
    frame: Vec<u8>,
}

impl PacketQueue {
    /// What to wait on.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Grows when the interface is found to have gone, and when there is another one.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.sight.generation()
    }

    /// Whether the interface was deleted.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.sight.is_gone()
    }

    /// Whether the interface is there; a socket of one that was deleted is bound to none.
    pub fn check(&mut self) -> bool {
        let is_unbound = || sys::packet_index(&self.socket).is_ok_and(|index| index < 0);
        if !self.sight.is_gone() && is_unbound() {
            self.sight.lose(&self.device.presence);
        }
        !self.sight.is_gone()
    }

    /// When to [`retry`](Self::retry); none while the interface is there and up.
    #[must_use]
    #[inline]
    pub fn retry_at_ns(&self) -> Option<u64> {
        let is_down = || self.down.then(|| self.sight.look_at_ns());
        self.sight
            .retry_at_ns(&self.device.presence)
            .or_else(is_down)
    }

    /// Has somebody look for an interface of the name, if it is time, or takes the socket of the
    /// one that was found; returns whether there is one.
    pub fn retry(&mut self, now_ns: u64) -> bool {
        if self.sight.is_same(&self.device.presence) {
            return !(self.down && self.sight.is_due(now_ns)) || self.check();
        }
        let found = self.sight.follow(&self.device.presence, || {
            self.socket = Arc::clone(&self.device.socket());
            true
        });
        if found {
            self.down = false;
        } else if self.sight.is_due(now_ns) {
            seek(&self.device);
        }
        found
    }

    /// Sends a frame by `sendmsg(2)`. The kernel checks the header, and that the frame is no longer
    /// than the MTU allows: what it does not take is [`SendLoss::Invalid`].
    #[inline]
    pub fn send(&mut self, header: &NetHeader, payload: Payload<'_>) -> Sent {
        if !is_frame(payload) {
            return Sent::Dropped(SendLoss::Invalid);
        }
        let header = header.encode();
        let header = header.get(..LEGACY_HEADER_BYTES).unwrap_or_default();
        let socket = self.socket.as_fd();
        let result = self
            .transfer
            .send(header, payload, |gather| gather.send_to(socket));
        if let Err(error) = &result
            && Errno::from_io_error(error) == Some(Errno::NXIO)
        {
            self.check();
        }
        sent(result)
    }

    /// Receives a frame by `recvmsg(2)`.
    #[inline]
    pub fn receive(&mut self, room: Room<'_>) -> Received {
        let mut header = [0; HEADER_BYTES];
        let (Some(head), Some(body)) = (
            header.get_mut(..LEGACY_HEADER_BYTES),
            self.frame.get_mut(TAG_BYTES..),
        ) else {
            return Received::Down;
        };
        let space_bytes = body.len();
        let (bytes, auxdata) = match sys::packet_receive(self.socket.as_fd(), head, body) {
            Ok(received) => received,
            // Told once when the interface goes down; it may come up again.
            Err(Errno::NETDOWN) if self.check() => {
                self.down = true;
                return Received::Empty;
            }
            Err(errno) => return not_received(&errno.into()),
        };
        self.down = false;
        let mut header = NetHeader::decode(header);
        let bytes = bytes.saturating_sub(LEGACY_HEADER_BYTES).min(space_bytes);
        let tag = auxdata.and_then(|auxdata| vlan_tag(&auxdata));
        let frame = match tag {
            Some(tag) if bytes >= ADDRESSES_BYTES => {
                put_tag_back(&mut self.frame, tag);
                shift(&mut header);
                self.frame.get(..TAG_BYTES + bytes)
            }
            _ => self.frame.get(TAG_BYTES..TAG_BYTES + bytes),
        };
        let frame = frame.unwrap_or_default();
        self.transfer.deliver(room, frame);
        Received::Frame {
            header,
            bytes: frame.len(),
        }
    }
}

/// The bytes of the VLAN tag that `struct tpacket_auxdata` tells of.
fn vlan_tag(auxdata: &[u8; AUXDATA_BYTES]) -> Option<[u8; TAG_BYTES]> {
    // `tp_status` first, `tp_vlan_tci` and `tp_vlan_tpid` last.
    let [s0, s1, s2, s3, .., i0, i1, p0, p1] = *auxdata;
    let status = u32::from_ne_bytes([s0, s1, s2, s3]);
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let kind = if status & libc::TP_STATUS_VLAN_TPID_VALID == 0 {
        CUSTOMER_TAG
    } else {
        u16::from_ne_bytes([p0, p1])
    };
    let [p0, p1] = kind.to_be_bytes();
    let [i0, i1] = u16::from_ne_bytes([i0, i1]).to_be_bytes();
    Some([p0, p1, i0, i1])
}

/// Moves the addresses into the space in front of the frame, and the tag behind them.
fn put_tag_back(frame: &mut [u8], tag: [u8; TAG_BYTES]) {
    if frame.len() >= ADDRESSES_BYTES + TAG_BYTES {
        frame.copy_within(TAG_BYTES..TAG_BYTES + ADDRESSES_BYTES, 0);
        for (to, from) in frame.iter_mut().skip(ADDRESSES_BYTES).zip(tag) {
            *to = from;
        }
    }
}

/// Tells in the header that all behind the addresses has moved by a tag.
fn shift(header: &mut NetHeader) {
    const BY: u16 = 4;
    if header.flags & NEEDS_CSUM != 0 {
        header.csum_start = header.csum_start.saturating_add(BY);
    }
    if header.gso_type != GSO_NONE {
        header.hdr_len_bytes = header.hdr_len_bytes.saturating_add(BY);
    }
}

#[cfg(test)]
mod tests;
