// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A message of the front-end: from its bytes and descriptors to a value, or to what is wrong with
//! it. Nothing here knows a session or a socket.
//!
//! What is checked here is what a message alone can tell: its length, its descriptors, values that
//! no such message has. What it means for the session is in [`messages`](super::messages).

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::fields::{ConfigPart, Fields};
use crate::device::DeviceMessage;
use crate::error::{FrontEndError, MessageName};
use crate::memory::RegionSpec;
use crate::ring::RingAddresses;

/// Bytes of a message header: request, flags, size.
pub(super) const HEADER_BYTES: usize = 12;
/// Largest body the protocol's messages have.
const MAX_BODY_BYTES: u32 = 4096;

/// Version 1 in bits 0-1, the reply bit 2 clear, `NEED_REPLY` in bit 3, nothing above.
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// The header of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    request: u32,
    flags: u32,
    pub(super) size_bytes: u32,
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrontEndError> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let header = Self {
            request: u32::from_le_bytes([r0, r1, r2, r3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            size_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
        };
        let flags_ok = header.flags & !FLAG_NEED_REPLY == VERSION;
        if flags_ok && header.size_bytes <= MAX_BODY_BYTES {
            return Ok(header);
        }
        Err(FrontEndError::Header {
            message: header.name(),
            flags: header.flags,
            size_bytes: header.size_bytes,
        })
    }

    /// The answer to this message.
    pub(super) fn reply(self, body: &[u8]) -> Vec<u8> {
        let [s0, s1, s2, s3, ..] = (body.len() as u64).to_le_bytes();
        let fields = [self.request, VERSION | FLAG_REPLY].map(u32::to_le_bytes);
        [fields.as_flattened(), &[s0, s1, s2, s3], body].concat()
    }

    pub(super) fn needs_reply(self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    pub(super) fn name(self) -> MessageName {
        MessageName(self.request)
    }

    /// None for a number that no message has.
    pub(super) fn request(self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }
}

/// The messages of features that are never offered, as a pattern.
macro_rules! never_offered {
    () => {
        FrontendReq::SET_LOG_BASE
            | FrontendReq::SET_LOG_FD
            | FrontendReq::IOTLB_MSG
            | FrontendReq::SET_VRING_ENDIAN
            | FrontendReq::CREATE_CRYPTO_SESSION
            | FrontendReq::CLOSE_CRYPTO_SESSION
            | FrontendReq::POSTCOPY_ADVISE
            | FrontendReq::POSTCOPY_LISTEN
            | FrontendReq::POSTCOPY_END
            | FrontendReq::GET_INFLIGHT_FD
            | FrontendReq::SET_INFLIGHT_FD
            | FrontendReq::GPU_SET_SOCKET
            | FrontendReq::VRING_KICK
            | FrontendReq::GET_SHARED_OBJECT
    };
}

/// Which eventfd of a vring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum VringFd {
    /// The driver has made chains available.
    Kick,
    /// The device has used chains.
    Call,
    /// The ring is broken.
    Err,
}

/// A message, with descriptors of type `F`.
#[derive(Debug)]
pub(super) enum Message<'a, F> {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetMaxMemSlots,
    SetOwner,
    ResetOwner,
    ResetDevice,
    SetMemTable(Vec<(RegionSpec, F)>),
    AddMemReg(RegionSpec, F),
    RemMemReg(RegionSpec),
    SetVringNum {
        index: u32,
        size: u32,
    },
    SetVringAddr {
        index: u32,
        flags: u32,
        /// Without the size.
        addresses: RingAddresses,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringEnable {
        index: u32,
        enabled: bool,
    },
    /// `SET_VRING_KICK`, `SET_VRING_CALL` or `SET_VRING_ERR`.
    SetVringFd {
        which: VringFd,
        index: u32,
        fd: Option<F>,
    },
    GetConfig(ConfigPart),
    SetConfig(ConfigPart, &'a [u8]),
    SetBackendReqFd(F),
    SetStatus(u64),
    GetStatus,
    GetShmemConfig,
    SetDeviceStateFd,
    CheckDeviceState,
    /// One that concerns one type of device only.
    Device(DeviceMessage),
}

impl<'a, F> Message<'a, F> {
    /// The message `request` with this body and these descriptors.
    #[expect(clippy::too_many_lines, reason = "one arm for each message")]
    pub(super) fn parse(
        request: FrontendReq,
        body: &'a [u8],
        fds: Vec<F>,
    ) -> Result<Self, FrontEndError> {
        let name = MessageName::from(request);
        let fields = Fields::new(name, body);
        let mut fds = Descriptors { name, fds };
        let message = match request {
            FrontendReq::GET_FEATURES => fields.none(Self::GetFeatures)?,
            FrontendReq::SET_FEATURES => Self::SetFeatures(fields.number()?),
            FrontendReq::GET_PROTOCOL_FEATURES => fields.none(Self::GetProtocolFeatures)?,
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(fields.number()?),
            FrontendReq::GET_QUEUE_NUM => fields.none(Self::GetQueueNum)?,
            FrontendReq::GET_MAX_MEM_SLOTS => fields.none(Self::GetMaxMemSlots)?,
            FrontendReq::SET_OWNER => fields.none(Self::SetOwner)?,
            FrontendReq::RESET_OWNER => fields.none(Self::ResetOwner)?,
            FrontendReq::RESET_DEVICE => fields.none(Self::ResetDevice)?,
            FrontendReq::SET_MEM_TABLE => {
                let regions = fields.regions()?;
                let files = fds.take(regions.len())?;
                Self::SetMemTable(regions.into_iter().zip(files).collect())
            }
            FrontendReq::ADD_MEM_REG => Self::AddMemReg(fields.single_region()?, fds.take_one()?),
            FrontendReq::REM_MEM_REG => {
                // "the back-end MUST close it without using it otherwise" (vhost-user.rst).
                if fds.count() == 1 {
                    fds.take_one()?;
                }
                Self::RemMemReg(fields.single_region()?)
            }
            FrontendReq::SET_VRING_NUM => {
                let (index, size) = fields.pair()?;
                Self::SetVringNum { index, size }
            }
            FrontendReq::SET_VRING_ADDR => {
                let (index, flags, addresses) = fields.vring_addresses()?;
                Self::SetVringAddr {
                    index,
                    flags,
                    addresses,
                }
            }
            FrontendReq::SET_VRING_BASE => {
                let (index, base) = fields.pair()?;
                Self::SetVringBase { index, base }
            }
            FrontendReq::GET_VRING_BASE => {
                let (index, _) = fields.pair()?;
                Self::GetVringBase { index }
            }
            FrontendReq::SET_VRING_ENABLE => {
                let (index, enabled) = fields.pair()?;
                if enabled > 1 {
                    return Err(fields.bad(u64::from(enabled)));
                }
                let enabled = enabled == 1;
                Self::SetVringEnable { index, enabled }
            }
            FrontendReq::SET_VRING_KICK => fds.for_vring(VringFd::Kick, fields)?,
            FrontendReq::SET_VRING_CALL => fds.for_vring(VringFd::Call, fields)?,
            FrontendReq::SET_VRING_ERR => fds.for_vring(VringFd::Err, fields)?,
            FrontendReq::GET_CONFIG => Self::GetConfig(fields.config()?.0),
            FrontendReq::SET_CONFIG => {
                let (part, bytes) = fields.config()?;
                Self::SetConfig(part, bytes)
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                fields.none(())?;
                Self::SetBackendReqFd(fds.take_one()?)
            }
            FrontendReq::SET_STATUS => Self::SetStatus(fields.number()?),
            FrontendReq::GET_STATUS => fields.none(Self::GetStatus)?,
            FrontendReq::SEND_RARP => {
                let [m0, m1, m2, m3, m4, m5, ..] = fields.number()?.to_le_bytes();
                let mac = [m0, m1, m2, m3, m4, m5];
                Self::Device(DeviceMessage::SendRarp { mac })
            }
            FrontendReq::NET_SET_MTU => {
                let mtu = fields.number()?;
                Self::Device(DeviceMessage::NetSetMtu { mtu })
            }
            FrontendReq::SET_DEVICE_STATE_FD => {
                fields.pair()?;
                fds.take_one()?;
                Self::SetDeviceStateFd
            }
            // What their bodies say, if they have one, is of no use.
            FrontendReq::GET_SHMEM_CONFIG => Self::GetShmemConfig,
            FrontendReq::CHECK_DEVICE_STATE => Self::CheckDeviceState,
            never_offered!() => {
                return Err(FrontEndError::UnknownMessage { message: name });
            }
        };
        fds.none_left()?;
        Ok(message)
    }
}

/// The descriptors of a message.
struct Descriptors<F> {
    name: MessageName,
    fds: Vec<F>,
}

impl<F> Descriptors<F> {
    fn count(&self) -> usize {
        self.fds.len()
    }

    fn wrong(&self) -> FrontEndError {
        let message = self.name;
        FrontEndError::Descriptors { message }
    }

    /// All of them, which are `count`.
    fn take(&mut self, count: usize) -> Result<Vec<F>, FrontEndError> {
        if self.fds.len() != count {
            return Err(self.wrong());
        }
        Ok(std::mem::take(&mut self.fds))
    }

    /// The only one.
    fn take_one(&mut self) -> Result<F, FrontEndError> {
        self.take(1)?.pop().ok_or_else(|| self.wrong())
    }

    fn none_left(&self) -> Result<(), FrontEndError> {
        if self.fds.is_empty() {
            Ok(())
        } else {
            Err(self.wrong())
        }
    }

    /// The one for a vring, or none where the body says so.
    fn for_vring<'a>(
        &mut self,
        which: VringFd,
        fields: Fields<'a>,
    ) -> Result<Message<'a, F>, FrontEndError> {
        let (index, has_fd) = fields.vring_fd()?;
        let fd = has_fd.then(|| self.take_one()).transpose()?;
        Ok(Message::SetVringFd { which, index, fd })
    }
}

/// What the protocol says of a message, whatever is in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Rules {
    /// The feature that it belongs to; none for those that are always there.
    pub(super) feature: VhostUserProtocolFeatures,
    /// Whether it has an answer of its own, and so none that says it was done.
    pub(super) has_answer: bool,
}

impl Rules {
    /// The rules of `request`.
    pub(super) fn of(request: FrontendReq) -> Self {
        const ALWAYS: VhostUserProtocolFeatures = VhostUserProtocolFeatures::empty();
        let (feature, has_answer) = match request {
            FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::SET_DEVICE_STATE_FD
            | FrontendReq::CHECK_DEVICE_STATE => (ALWAYS, true),
            FrontendReq::SET_FEATURES
            | FrontendReq::SET_PROTOCOL_FEATURES
            | FrontendReq::SET_OWNER
            | FrontendReq::RESET_OWNER
            | FrontendReq::SET_MEM_TABLE
            | FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_ADDR
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE
            | FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => (ALWAYS, false),
            FrontendReq::GET_QUEUE_NUM => (VhostUserProtocolFeatures::MQ, true),
            FrontendReq::GET_CONFIG => (VhostUserProtocolFeatures::CONFIG, true),
            FrontendReq::SET_CONFIG => (VhostUserProtocolFeatures::CONFIG, false),
            FrontendReq::RESET_DEVICE => (VhostUserProtocolFeatures::RESET_DEVICE, false),
            FrontendReq::SET_BACKEND_REQ_FD => (VhostUserProtocolFeatures::BACKEND_REQ, false),
            FrontendReq::GET_MAX_MEM_SLOTS => {
                (VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, true)
            }
            FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => {
                (VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, false)
            }
            FrontendReq::GET_SHMEM_CONFIG => (VhostUserProtocolFeatures::SHMEM, true),
            FrontendReq::SEND_RARP => (VhostUserProtocolFeatures::RARP, false),
            FrontendReq::NET_SET_MTU => (VhostUserProtocolFeatures::MTU, false),
            FrontendReq::GET_STATUS => (VhostUserProtocolFeatures::STATUS, true),
            FrontendReq::SET_STATUS => (VhostUserProtocolFeatures::STATUS, false),
            // Refused, whatever was negotiated.
            never_offered!() => (ALWAYS, false),
        };
        Self {
            feature,
            has_answer,
        }
    }
}

#[cfg(test)]
mod tests;
