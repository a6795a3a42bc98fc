// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors by culprit.
//!
//! Who broke the rules decides what happens, so the type of an error is its policy:
//!
//! | type | culprit | action |
//! |---|---|---|
//! | [`FrontEndError`] | the peer on the socket | that connection is closed, the next one is accepted |
//! | [`RingError`] | the guest's driver, in the ring itself | that vring stops, its error eventfd is signalled |
//! | [`ChainFault`](crate::chain::ChainFault) | the guest's driver, in one chain | the request is answered with an error |
//! | [`HostError`] | a resource of ours | reported; at start-up the process exits |

use std::error::Error;
use std::{fmt, io};

use thiserror::Error;
use vhost::vhost_user::message::FrontendReq;

/// The exit status after a data thread has failed: what it serves is served by nobody else.
pub const EXIT_DATA_THREAD: u8 = 3;
/// The exit status of a process that gave up waiting for requests, see `--stop-timeout`.
pub const EXIT_STUCK: u8 = 4;

/// Shows an error and, behind it, what has caused it.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    struct Chain<'a>(&'a (dyn Error + 'static));

    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut error = self.0;
            write!(f, "{error}")?;
            while let Some(cause) = error.source() {
                write!(f, ": {cause}")?;
                error = cause;
            }
            Ok(())
        }
    }

    Chain(error)
}

/// The front-end broke the vhost-user protocol. The connection is closed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrontEndError {
    /// An eventfd to which a write would wait.
    #[error("a write to a call or error eventfd had to be called off: it blocks, and is full")]
    CallBlocks,
    /// An MTU that cannot be had.
    #[error("an MTU of {mtu} bytes, of at most {most}")]
    Mtu {
        /// What was asked for.
        mtu: u64,
        /// The most there is.
        most: u64,
    },
    /// A vring index beyond the queues offered.
    #[error("vring index {index} of {count} offered; see {option}")]
    VringIndex {
        /// The index asked for.
        index: u32,
        /// The number of queues offered.
        count: u16,
        /// The option of this back-end that says how many.
        option: &'static str,
    },
    /// A queue size that is zero, no power of two, or above the limit.
    #[error("vring {index}: size {size} is not a power of two up to {max}")]
    VringSize {
        /// The vring.
        index: u32,
        /// The size asked for.
        size: u32,
        /// The largest size accepted.
        max: u32,
    },
    /// A start without a size.
    #[error("vring {index}: started before its size was set")]
    VringSizeUnset {
        /// The vring.
        index: u32,
    },
    /// A part of a vring that is misaligned, or not within one memory region.
    #[error("vring {index}: {part} at {address:#x} is misaligned or outside of guest memory")]
    VringAddress {
        /// The vring.
        index: u32,
        /// Which of the three parts.
        part: RingPart,
        /// The front-end's address of it.
        address: u64,
    },
    /// The parts of a vring overlap.
    #[error("vring {index}: descriptor table and rings overlap")]
    VringOverlap {
        /// The vring.
        index: u32,
    },
    /// A message that needs a stopped vring came for a started one.
    #[error("vring {index}: {message} while the ring is started")]
    VringStarted {
        /// The vring.
        index: u32,
        /// The message.
        message: &'static str,
    },
    /// A file descriptor that is not an eventfd where one is needed.
    #[error("vring {index}: the {what} descriptor is not an eventfd")]
    NotAnEventFd {
        /// The vring.
        index: u32,
        /// kick, call or err.
        what: &'static str,
    },
    /// An index that does not fit its field.
    #[error("vring {index}: base {base:#x} does not fit 16 bits")]
    VringBase {
        /// The vring.
        index: u32,
        /// The base.
        base: u32,
    },
    /// Feature bits that were not offered.
    #[error("feature bits {bits:#x} were not offered")]
    UnofferedFeatures {
        /// The excess bits.
        bits: u64,
    },
    /// The driver is a legacy one and this device does not serve it.
    #[error("the driver did not acknowledge VERSION_1")]
    LegacyDriver,
    /// `SET_OWNER` came twice.
    #[error("SET_OWNER on a session that has an owner")]
    OwnedAlready,
    /// A memory region that cannot be accepted.
    #[error("memory region {guest_address:#x}+{size_bytes:#x}: {reason}")]
    MemoryRegion {
        /// Guest address of the region.
        guest_address: u64,
        /// Its size.
        size_bytes: u64,
        /// What is wrong with it.
        reason: RegionFault,
    },
    /// More memory regions than slots.
    #[error("more than {max} memory regions")]
    TooManyRegions {
        /// The number of slots.
        max: usize,
    },
    /// A header whose version, flags or size are not those of the protocol.
    #[error("{message}: flags {flags:#x}, size {size_bytes}")]
    Header {
        /// The message.
        message: MessageName,
        /// Flags.
        flags: u32,
        /// Size of the body.
        size_bytes: u32,
    },
    /// A body the message cannot have.
    #[error("{message}: bad payload {value:#x}")]
    Payload {
        /// The message.
        message: MessageName,
        /// The offending value.
        value: u64,
    },
    /// A body of another length than the message has.
    #[error("{message}: a body of {size_bytes} bytes")]
    Length {
        /// The message.
        message: MessageName,
        /// Its length.
        size_bytes: usize,
    },
    /// Descriptors with a message that takes none, or another number than it takes.
    #[error("{message}: not the descriptors it takes")]
    Descriptors {
        /// The message.
        message: MessageName,
    },
    /// More descriptors than any message has.
    #[error("more descriptors than any message has")]
    TooManyDescriptors,
    /// More files that cannot be closed than are kept open for one socket.
    #[error("too many descriptors were handed over that are of no use")]
    TooManyKept,
    /// A message that belongs to a feature which was not negotiated.
    #[error("{message}: {feature} was not negotiated{hint}")]
    NotNegotiated {
        /// The message.
        message: MessageName,
        /// The feature, by its name in the specification.
        feature: &'static str,
        /// What to do about it, if that is known.
        hint: &'static str,
    },
    /// A message that is not known here, or that belongs to a feature which is never offered.
    #[error("{message} is not supported")]
    UnknownMessage {
        /// The message.
        message: MessageName,
    },
    /// A back-channel that is no stream socket of the Unix domain.
    #[error("the back-channel is not a Unix stream socket")]
    NotAStream,
    /// A back-channel that leads to our own socket.
    #[error("the back-channel is a connection to this back-end")]
    OwnConnection,
    /// The device has no use for the message.
    #[error("{message} is not supported by this device")]
    Unsupported {
        /// The message.
        message: &'static str,
    },
    /// A write to the config space that no driver may make.
    #[error("config space: write of {size_bytes} bytes at {offset} refused")]
    ConfigWrite {
        /// Offset of the write.
        offset: u32,
        /// Its length.
        size_bytes: usize,
    },
    /// The file behind guest memory was truncated below its mapping.
    #[error("the file behind guest memory was truncated")]
    MemoryTruncated,
}

/// A message of the front-end, shown by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MessageName(pub u32);

impl From<FrontendReq> for MessageName {
    fn from(request: FrontendReq) -> Self {
        Self(request.into())
    }
}

impl fmt::Display for MessageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FrontendReq::try_from(self.0) {
            Ok(request) => write!(f, "{request:?}"),
            Err(_) => write!(f, "message {}", self.0),
        }
    }
}

/// The three parts of a split virtqueue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RingPart {
    /// The descriptor table.
    DescriptorTable,
    /// The available ring.
    AvailableRing,
    /// The used ring.
    UsedRing,
}

impl fmt::Display for RingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DescriptorTable => "descriptor table",
            Self::AvailableRing => "available ring",
            Self::UsedRing => "used ring",
        })
    }
}

/// Why a memory region is refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RegionFault {
    /// Zero bytes, or an offset that is not a multiple of the page size.
    #[error("it is empty, or its offset is not a multiple of {page_bytes} bytes")]
    Unaligned {
        /// Page size of this machine.
        page_bytes: u64,
    },
    /// An address range that runs past the end of the address space.
    #[error("its addresses overflow")]
    Overflow,
    /// The file is too short for the region.
    #[error("it ends past the end of its file of {file_bytes} bytes")]
    BeyondFile {
        /// Length of the file.
        file_bytes: u64,
    },
    /// Not a regular file.
    #[error("its descriptor is not a regular file")]
    NotAFile,
    /// A file whose pages are not in memory: a thread that touches one may wait for a disk, without
    /// end.
    #[error(
        "it is not a memfd, nor a file on tmpfs or hugetlbfs (--allow-file-memory takes one of a \
         file system on a local disk)"
    )]
    NotMemory,
    /// The kernel would not map it, for example because it is read-only.
    #[error("it cannot be mapped (errno {errno})")]
    Map {
        /// What the kernel said.
        errno: i32,
    },
    /// It overlaps another region by guest address.
    #[error("it overlaps another region in guest addresses")]
    GuestOverlap,
    /// It overlaps another region by front-end address.
    #[error("it overlaps another region in front-end addresses")]
    FrontEndOverlap,
}

/// The driver broke the ring itself. The vring stops; others go on.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RingError {
    /// More available entries than the ring has.
    #[error("available index {avail_idx} is {distance} ahead of {next_avail}, the ring has {size}")]
    AvailableIndex {
        /// The index the driver published.
        avail_idx: u16,
        /// Where we are.
        next_avail: u16,
        /// The distance.
        distance: u16,
        /// The size of the queue.
        size: u16,
    },
    /// A head outside of the descriptor table.
    #[error("available entry names descriptor {head} of {size}")]
    Head {
        /// The head.
        head: u16,
        /// The size of the queue.
        size: u16,
    },
    /// A head that the device still holds.
    #[error("descriptor {head} is in flight already")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// The memory the ring lives in was taken away.
    #[error("the ring's memory was removed")]
    MemoryRemoved,
    /// A device that walks the ring itself has given up.
    #[error("the device does not go on with it")]
    Device,
}

/// A resource of the host failed. It is shown with its cause, wherever it is shown.
#[derive(Debug, Error)]
#[error("{what}: {}", chain(.cause))]
pub struct HostError {
    what: &'static str,
    cause: io::Error,
}

impl HostError {
    /// A mapper for `map_err` that says what was tried.
    pub fn of<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self {
            what,
            cause: cause.into(),
        }
    }

    /// A data thread takes no more commands: the kernel takes no more I/O from it.
    pub(crate) fn data_thread_ended() -> Self {
        Self {
            what: DATA_THREAD_ENDED,
            cause: io::ErrorKind::BrokenPipe.into(),
        }
    }

    /// Whether it is that.
    pub(crate) fn is_of_data_thread(&self) -> bool {
        self.what == DATA_THREAD_ENDED
    }
}

const DATA_THREAD_ENDED: &str = "a data thread has ended";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_error_is_shown_with_its_cause_once() {
        let error: HostError = HostError::of("duplicating an eventfd")(rustix::io::Errno::MFILE);
        let shown = "duplicating an eventfd: Too many open files (os error 24)";
        assert_eq!(error.to_string(), shown);
        assert_eq!(chain(&error).to_string(), shown);
    }

    #[test]
    fn message_has_its_name_and_an_unknown_one_its_number() {
        assert_eq!(MessageName(8).to_string(), "SET_VRING_NUM");
        assert_eq!(MessageName(99).to_string(), "message 99");
    }
}
