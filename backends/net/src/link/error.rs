// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a link cannot be had, said so that the operator knows what to do.

use std::io;
use std::path::{Path, PathBuf};

use ringside_common::socket::{SocketError, check_path};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use thiserror::Error;

/// How long a connection that could not be made, or broke at once, is left alone.
pub const RETRY_NS: u64 = 250_000_000;

/// Why a link was not opened, or did not do as asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The name is no name of an interface.
    #[error("{name:?} is no interface name: 1 to 15 bytes without spaces and slashes")]
    Name {
        /// As given.
        name: String,
    },
    /// There is no `/dev/net/tun` to be opened.
    #[error("cannot open /dev/net/tun, which a tap needs")]
    TunDevice {
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// Someone else has the queue, or all of them.
    #[error(
        "tap {name}: another process holds it, so that it is in use; a single-queue tap serves one \
         at a time, a multi-queue one has 256 queues"
    )]
    Busy {
        /// Of the interface.
        name: String,
    },
    /// Someone else has some of its queues.
    #[error(
        "tap {name}: in use: another process holds queues of it, and each would get a part of its \
         flows; \",shared\" behind the name insists"
    )]
    InUse {
        /// Of the interface.
        name: String,
    },
    /// One queue was passed twice.
    #[error("tap {name}: two of its descriptors are the same queue")]
    SameQueue {
        /// Of the interface.
        name: String,
    },
    /// The tap was made for one queue.
    #[error(
        "tap {name}: made for one queue, but {pairs} queue pairs are asked for; make it with \
         \"ip tuntap add {name} mode tap vnet_hdr multi_queue\""
    )]
    SingleQueue {
        /// Of the interface.
        name: String,
        /// As asked for.
        pairs: u16,
    },
    /// The interface is something else.
    #[error("{name}: neither a tap nor a macvtap interface")]
    NotTap {
        /// Of the interface.
        name: String,
    },
    /// The process may not.
    #[error(
        "tap {name}: not permitted; give the back-end CAP_NET_ADMIN, make the tap beforehand with \
         \"ip tuntap add {name} mode tap vnet_hdr user UID\", or pass it open descriptors"
    )]
    TapPermission {
        /// Of the interface.
        name: String,
    },
    /// The process may not.
    #[error("packet socket on {name}: not permitted without CAP_NET_RAW")]
    PacketPermission {
        /// Of the interface.
        name: String,
    },
    /// There is no such interface.
    #[error("{name}: no such interface in this network namespace")]
    NoInterface {
        /// As given.
        name: String,
    },
    /// The network namespace cannot be entered.
    #[error("network namespace {path}: cannot be entered, which takes CAP_SYS_ADMIN")]
    Namespace {
        /// Where it was looked for.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// A descriptor is not open.
    #[error("file descriptor {fd}: cannot be taken over")]
    Descriptor {
        /// Its number.
        fd: i32,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// A descriptor is something else.
    #[error("file descriptor {fd}: not an open queue of a tap")]
    DescriptorKind {
        /// Its number.
        fd: i32,
    },
    /// A descriptor was opened in another way than is needed.
    #[error("file descriptor {fd}: opened {problem}")]
    DescriptorFlags {
        /// Its number.
        fd: i32,
        /// With or without which flag.
        problem: &'static str,
    },
    /// Descriptors are queues of different interfaces.
    #[error("file descriptor {fd}: a queue of {name}, unlike the first one, of {first}")]
    DescriptorInterface {
        /// Its number.
        fd: i32,
        /// Its interface.
        name: String,
        /// That of the first descriptor.
        first: String,
    },
    /// One descriptor is needed for each queue pair.
    #[error("{given} tap descriptors for {pairs} queue pairs")]
    DescriptorCount {
        /// How many were given.
        given: usize,
        /// How many are needed.
        pairs: u16,
    },
    /// There is one queue pair, whatever is asked for.
    #[error("{pairs} queue pairs are asked for, but this kind of link has one")]
    OnePair {
        /// As asked for.
        pairs: u16,
    },
    /// A live process has the path.
    #[error("{path}: another process has this socket")]
    PathInUse {
        /// As given.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{what}: cannot {action}")]
    System {
        /// The interface or path.
        what: String,
        /// What was attempted.
        action: &'static str,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// No socket can have that path.
    #[error(transparent)]
    Path(#[from] SocketError),
}

/// Turns the error of a system call on `what` into one of a link.
pub(super) fn system(what: &str, action: &'static str) -> impl FnOnce(Errno) -> LinkError {
    move |errno| LinkError::System {
        what: what.to_owned(),
        action,
        source: errno.into(),
    }
}

/// The address of the socket at `path`.
pub(super) fn address_of(path: &Path) -> Result<SocketAddrUnix, LinkError> {
    check_path(path)?;
    let what = path.display().to_string();
    SocketAddrUnix::new(path).map_err(system(&what, "be the path of a socket"))
}
