// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that no safe wrapper covers: ioctls of tap devices and interfaces, and the
//! options, address and control messages of packet sockets.
#![expect(unsafe_code, reason = "raw ioctls and socket calls, one per block")]

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

/// Bytes of an interface name with the zero behind it.
const NAME_BYTES: usize = libc::IFNAMSIZ;
/// Bytes of the union in `struct ifreq`.
const VALUE_BYTES: usize = size_of::<libc::ifreq>() - NAME_BYTES;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_uint>(b'T', 208);
const TUNGETIFF: Opcode = opcode::read::<c_uint>(b'T', 210);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETQUEUE: Opcode = opcode::write::<c_int>(b'T', 217);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);
const TUNSETCARRIER: Opcode = opcode::write::<c_int>(b'T', 226);
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCGIFHWADDR: Opcode = 0x8927;
const SIOCETHTOOL: Opcode = 0x8946;
const SIOCGSKNS: Opcode = 0x894c;
/// How the index of an interface is found by its name.
const SIOCGIFINDEX: Opcode = 0x8933;

/// All commands of ioctl(2) that serving takes.
pub(crate) const IOCTLS: [Opcode; 12] = [
    TUNSETIFF,
    TUNSETOFFLOAD,
    TUNGETIFF,
    TUNSETVNETHDRSZ,
    TUNSETQUEUE,
    TUNSETVNETLE,
    TUNSETCARRIER,
    SIOCGIFMTU,
    SIOCGIFHWADDR,
    SIOCETHTOOL,
    SIOCGSKNS,
    SIOCGIFINDEX,
];

/// `struct ifreq`: the name of an interface and one value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    value: [u8; VALUE_BYTES],
}

impl InterfaceRequest {
    /// For the interface `name`, of which as much is kept as the kernel takes.
    pub(crate) fn new(name: &str) -> Self {
        let mut request = Self {
            name: [0; NAME_BYTES],
            value: [0; VALUE_BYTES],
        };
        for (to, from) in request
            .name
            .iter_mut()
            .take(NAME_BYTES - 1)
            .zip(name.bytes())
        {
            *to = from;
        }
        request
    }

    /// With `IFF_` flags as its value.
    pub(crate) fn with_flags(mut self, flags: c_int) -> Self {
        for (to, from) in self.value.iter_mut().zip(flags.to_ne_bytes()).take(2) {
            *to = from;
        }
        self
    }

    /// The name in it.
    pub(crate) fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0);
        let name = self.name.get(..end.unwrap_or(NAME_BYTES));
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }

    /// Its value as `IFF_` flags.
    pub(crate) fn flags(&self) -> c_int {
        let [low, high, ..] = self.value;
        c_int::from(u16::from_ne_bytes([low, high]))
    }

    /// Its value as a number.
    pub(crate) fn number(&self) -> c_int {
        let [a, b, c, d, ..] = self.value;
        c_int::from_ne_bytes([a, b, c, d])
    }

    /// Its value as an Ethernet address, which follows a 16-bit address family.
    pub(crate) fn hardware_address(&self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f, ..] = self.value;
        [a, b, c, d, e, f]
    }
}

/// Only for codes whose argument is one `struct ifreq`.
fn interface_call<const CODE: Opcode>(
    fd: BorrowedFd<'_>,
    request: &mut InterfaceRequest,
) -> Result<(), Errno> {
    // SAFETY: (1) each code used with this function reads and writes at most one `struct ifreq`;
    // (2) `InterfaceRequest` has its size and layout.
    let updater = unsafe { Updater::<'_, CODE, InterfaceRequest>::new(request) };
    // SAFETY: the updater describes the call; a descriptor of another kind fails with an error.
    unsafe { ioctl(fd, updater) }
}

/// Only for codes whose argument points to one C int that is read.
fn number_call<const CODE: Opcode>(fd: BorrowedFd<'_>, number: c_int) -> Result<(), Errno> {
    // SAFETY: each code used with this function reads one C int and writes no memory.
    let setter = unsafe { Setter::<CODE, c_int>::new(number) };
    // SAFETY: as in `interface_call`.
    unsafe { ioctl(fd, setter) }
}

/// `TUNSETIFF`: makes the descriptor a queue of the interface named, with the flags given.
pub(crate) fn tun_set_interface(fd: impl AsFd, mut of: InterfaceRequest) -> Result<(), Errno> {
    interface_call::<TUNSETIFF>(fd.as_fd(), &mut of)
}

/// `TUNGETIFF`: the interface that the descriptor is a queue of, and its flags.
pub(crate) fn tun_interface(fd: impl AsFd) -> Result<InterfaceRequest, Errno> {
    let mut request = InterfaceRequest::new("");
    interface_call::<TUNGETIFF>(fd.as_fd(), &mut request)?;
    Ok(request)
}

/// `TUNSETQUEUE`: `IFF_ATTACH_QUEUE` or `IFF_DETACH_QUEUE`.
pub(crate) fn tun_set_queue(fd: impl AsFd, flags: c_int) -> Result<(), Errno> {
    let mut request = InterfaceRequest::new("").with_flags(flags);
    interface_call::<TUNSETQUEUE>(fd.as_fd(), &mut request)
}

/// `TUNSETOFFLOAD`: `TUN_F_` flags of what the reader takes.
pub(crate) fn tun_set_offload(fd: impl AsFd, flags: c_uint) -> Result<(), Errno> {
    let flags = usize::try_from(flags).or(Err(Errno::INVAL))?;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let setter = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags) };
    // SAFETY: as in `interface_call`.
    unsafe { ioctl(fd, setter) }
}

/// `TUNSETVNETHDRSZ`: bytes of the header in front of each frame.
pub(crate) fn tun_set_header_bytes(fd: impl AsFd, bytes: usize) -> Result<(), Errno> {
    let bytes = c_int::try_from(bytes).map_err(|_too_many| Errno::INVAL)?;
    number_call::<TUNSETVNETHDRSZ>(fd.as_fd(), bytes)
}

/// `TUNSETVNETLE`: the header's fields are little-endian, whatever the host.
pub(crate) fn tun_set_little_endian(fd: impl AsFd) -> Result<(), Errno> {
    number_call::<TUNSETVNETLE>(fd.as_fd(), 1)
}

/// `TUNSETCARRIER`: whether the interface has a link.
pub(crate) fn tun_set_carrier(fd: impl AsFd, up: bool) -> Result<(), Errno> {
    number_call::<TUNSETCARRIER>(fd.as_fd(), c_int::from(up))
}

/// `SIOCGSKNS`: the network namespace in which the descriptor of a tap was opened. Takes
/// `CAP_NET_ADMIN` there.
pub(crate) fn tun_namespace(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call has no argument; a descriptor of another kind fails with an error.
    let number = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCGSKNS.into()) };
    if number < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this number, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a tap wants 4 bytes of `struct tun_pi` in front of each header of `header_bytes`.
///
/// `TUNGETIFF` does not tell: its flag for "no packet information" is also that for "no filter".
/// So a frame is written that has as many bytes as there must be without those 4. The kernel says
/// EINVAL if they are too few. If they are enough it goes on to read them, and the last ones have
/// no address, so that nothing is ever sent.
pub(crate) fn tun_has_packet_information(fd: impl AsFd, header_bytes: usize) -> bool {
    const ETHERNET_HEADER_BYTES: usize = 14;
    const INFORMATION_BYTES: usize = 4;
    let mut start = vec![0_u8; header_bytes + INFORMATION_BYTES];
    let iovecs = [
        libc::iovec {
            iov_base: start.as_mut_ptr().cast(),
            iov_len: start.len(),
        },
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: ETHERNET_HEADER_BYTES - INFORMATION_BYTES,
        },
    ];
    // SAFETY: (1) the kernel only reads; (2) it reads `start`, which lives, and at null, where it
    // finds no mapping and says EFAULT.
    let written = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), 2) };
    written < 0 && last_errno() == Errno::INVAL
}

/// `TUNSETSNDBUF`: bytes that may be on their way before a write would block.
#[cfg(test)]
pub(crate) fn tun_set_send_buffer(fd: impl AsFd, bytes: c_int) -> Result<(), Errno> {
    const TUNSETSNDBUF: Opcode = opcode::write::<c_int>(b'T', 212);
    number_call::<TUNSETSNDBUF>(fd.as_fd(), bytes)
}

/// The Ethernet address of the interface `name`; of its own one where `fd` is a tap.
pub(crate) fn hardware_address(fd: impl AsFd, name: &str) -> Result<[u8; 6], Errno> {
    let mut request = InterfaceRequest::new(name);
    interface_call::<SIOCGIFHWADDR>(fd.as_fd(), &mut request)?;
    Ok(request.hardware_address())
}

/// The MTU in bytes of the interface `name` in the network namespace of the socket `fd`.
pub(crate) fn interface_mtu(fd: impl AsFd, name: &str) -> Result<u32, Errno> {
    let mut request = InterfaceRequest::new(name);
    interface_call::<SIOCGIFMTU>(fd.as_fd(), &mut request)?;
    u32::try_from(request.number()).or(Err(Errno::RANGE))
}

/// `ETHTOOL_GLINK`: whether the interface `name` in the network namespace of the socket `fd` has a
/// link. Since Linux 6.8 the kernel does first what a change of the carrier has left for later.
pub(crate) fn interface_link(fd: impl AsFd, name: &str) -> Result<bool, Errno> {
    const ETHTOOL_GLINK: u32 = 0x0a;
    // `struct ethtool_value`: the command, and its answer.
    let mut command = [ETHTOOL_GLINK, 0];
    let mut request = InterfaceRequest::new(name);
    let address = command.as_mut_ptr().expose_provenance();
    for (to, from) in request.value.iter_mut().zip(address.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: (1) the code reads one `struct ifreq`, of whose size and layout `InterfaceRequest`
    // is; (2) the pointer in it leads to `command`, which is as long as the command reads and
    // writes.
    let updater = unsafe { Updater::<'_, SIOCETHTOOL, InterfaceRequest>::new(&mut request) };
    // SAFETY: as in `interface_call`.
    unsafe { ioctl(fd.as_fd(), updater) }?;
    let [_, has_link] = command;
    Ok(has_link != 0)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn done(returned: c_int) -> Result<(), Errno> {
    if returned == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// Sets an option of a packet socket.
fn packet_option<T: Copy>(fd: BorrowedFd<'_>, option: c_int, value: &T) -> Result<(), Errno> {
    let value: *const T = value;
    // SAFETY: the kernel reads `len_of::<T>()` bytes from `value`, which is that long, and fails
    // with EINVAL if the option is of another size.
    done(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            value.cast(),
            len_of::<T>(),
        )
    })
}

/// Sets an option of a packet socket that is a number.
pub(crate) fn packet_set(fd: impl AsFd, option: c_int, value: c_int) -> Result<(), Errno> {
    packet_option(fd.as_fd(), option, &value)
}

/// Has the interface take frames for every address for as long as the socket lives.
pub(crate) fn packet_set_promiscuous(fd: impl AsFd, index: c_int) -> Result<(), Errno> {
    let membership = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: u16::try_from(libc::PACKET_MR_PROMISC).or(Err(Errno::INVAL))?,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    packet_option(fd.as_fd(), libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Binds a packet socket to all protocols of the interface.
pub(crate) fn packet_bind(fd: impl AsFd, index: c_int) -> Result<(), Errno> {
    let all = u16::try_from(libc::ETH_P_ALL).or(Err(Errno::INVAL))?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).or(Err(Errno::INVAL))?,
        sll_protocol: all.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let pointer: *const libc::sockaddr_ll = &raw const address;
    // SAFETY: the kernel reads one `sockaddr_ll` from `pointer`, which is one.
    done(unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            pointer.cast(),
            len_of::<libc::sockaddr_ll>(),
        )
    })
}

/// The index of the interface that a packet socket is bound to; negative once that was deleted.
pub(crate) fn packet_index(fd: impl AsFd) -> Result<c_int, Errno> {
    // SAFETY: all zeroes is an address of no interface.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut bytes = len_of::<libc::sockaddr_ll>();
    let pointer: *mut libc::sockaddr_ll = &raw mut address;
    // SAFETY: the kernel writes at most `bytes` to `pointer`, which has as many, and how many there
    // were to `bytes`.
    done(unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), pointer.cast(), &raw mut bytes) })?;
    Ok(address.sll_ifindex)
}

/// Bytes of `struct tpacket_auxdata`.
pub(crate) const AUXDATA_BYTES: usize = size_of::<libc::tpacket_auxdata>();

/// `recvmsg(2)` that does not wait, with the control message of `PACKET_AUXDATA`: the length of
/// the whole packet, and the message's bytes.
#[inline]
pub(crate) fn packet_receive(
    fd: BorrowedFd<'_>,
    header: &mut [u8],
    frame: &mut [u8],
) -> Result<(usize, Option<[u8; AUXDATA_BYTES]>), Errno> {
    let part = |bytes: &mut [u8]| libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut iovecs = [part(header), part(frame)];
    // Of u64 for the alignment of `cmsghdr`.
    let mut control = [0_u64; 8];
    // SAFETY: all zeroes is a message of nothing, from nobody.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: (1) the two iovecs are `header` and `frame`, borrowed for the call; (2) `control` is
    // as long as the message says.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let bytes = usize::try_from(received).map_err(|_negative| last_errno())?;
    Ok((bytes, auxdata(&message)))
}

/// The bytes of the control message of `PACKET_AUXDATA`, if that is the first one.
fn auxdata(message: &libc::msghdr) -> Option<[u8; AUXDATA_BYTES]> {
    // SAFETY: the kernel has set `msg_controllen` to what it wrote of the buffer at `msg_control`.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or within that buffer, which is aligned for it.
    let header = unsafe { first.as_ref() }?;
    let is_auxdata = header.cmsg_level == libc::SOL_PACKET
        && header.cmsg_type == libc::PACKET_AUXDATA
        && header.cmsg_len >= AUXDATA_BYTES + size_of::<libc::cmsghdr>();
    if !is_auxdata {
        return None;
    }
    // SAFETY: `first` is the header of a message.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: the message is long enough by its own length, which the kernel wrote.
    Some(unsafe { data.cast::<[u8; AUXDATA_BYTES]>().read_unaligned() })
}

/// Moves the calling thread into a new network namespace.
#[cfg(test)]
pub(crate) fn unshare_network() -> Result<(), Errno> {
    // SAFETY: the table of descriptors stays shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// Has the kernel cut what is written to a UDP socket into datagrams of one size.
#[cfg(test)]
pub(crate) fn udp_set_segment(fd: impl AsFd, bytes: c_int) -> Result<(), Errno> {
    let pointer: *const c_int = &raw const bytes;
    // SAFETY: the kernel reads one C int from `pointer`.
    done(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            pointer.cast(),
            len_of::<c_int>(),
        )
    })
}
