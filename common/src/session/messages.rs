// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each message does, and what it is answered with.
//!
//! Bodies are numbers in the byte order of the machine (vhost-user.rst "Message Specification"), which
//! is little-endian.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vm_memory::ByteValued as _;

use super::body::Body;
use super::inbox::{Header, Message};
use super::received::Received;
use super::record::{VringRecord, duplicate, eventfd};
use super::{PROTOCOL_FEATURES, Session, SessionError, narrow};
use crate::device::vring::VringId;
use crate::device::{Device, DeviceMessage, SeedOf};
use crate::error::{FrontEndError, MessageName};
use crate::memory::{MAX_SLOTS, Memory, Region, RegionSpec};
use crate::ring::RingAddresses;
use crate::worker::Command;

/// What this layer implements; a device can offer no more than this.
fn implemented() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::STATUS
        | VhostUserProtocolFeatures::SHMEM
}

/// `SET_DEVICE_STATE_FD`: failed in bits 0-7, no descriptor in bit 8.
const DEVICE_STATE_FAILED: u64 = 0x101;

/// What a message is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// That it was done, where that is asked for.
    Done,
    /// That it was refused, where that is asked for; the connection goes on.
    Ignored(SessionError),
    /// That it was refused, where that is asked for; else the connection ends.
    Refused(SessionError),
    /// This number.
    Number(u64),
    /// This body.
    Bytes(Vec<u8>),
}

/// Whether a message has an answer of its own, and so none that says it was done.
pub(super) fn answers_by_itself(header: Header) -> bool {
    matches!(
        header.kind(),
        None | Some(
            FrontendReq::GET_FEATURES
                | FrontendReq::GET_PROTOCOL_FEATURES
                | FrontendReq::GET_QUEUE_NUM
                | FrontendReq::GET_VRING_BASE
                | FrontendReq::GET_CONFIG
                | FrontendReq::GET_MAX_MEM_SLOTS
                | FrontendReq::GET_STATUS
                | FrontendReq::GET_SHMEM_CONFIG
                | FrontendReq::SET_DEVICE_STATE_FD
                | FrontendReq::CHECK_DEVICE_STATE
        )
    )
}

/// The feature a message belongs to, with its name; none for those that are always there.
fn feature_of(request: FrontendReq) -> Option<(VhostUserProtocolFeatures, &'static str)> {
    Some(match request {
        FrontendReq::GET_QUEUE_NUM => (VhostUserProtocolFeatures::MQ, "MQ"),
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => {
            (VhostUserProtocolFeatures::CONFIG, "CONFIG")
        }
        FrontendReq::RESET_DEVICE => (VhostUserProtocolFeatures::RESET_DEVICE, "RESET_DEVICE"),
        FrontendReq::SET_BACKEND_REQ_FD => (VhostUserProtocolFeatures::BACKEND_REQ, "BACKEND_REQ"),
        FrontendReq::GET_MAX_MEM_SLOTS | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => (
            VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            "CONFIGURE_MEM_SLOTS",
        ),
        FrontendReq::GET_SHMEM_CONFIG => (VhostUserProtocolFeatures::SHMEM, "SHMEM"),
        FrontendReq::SEND_RARP => (VhostUserProtocolFeatures::RARP, "RARP"),
        FrontendReq::NET_SET_MTU => (VhostUserProtocolFeatures::MTU, "MTU"),
        FrontendReq::SET_STATUS | FrontendReq::GET_STATUS => {
            (VhostUserProtocolFeatures::STATUS, "STATUS")
        }
        _ => return None,
    })
}

impl<D: Device> Session<D> {
    /// Does what the message asks for. `connection` is where it came from.
    ///
    /// # Errors
    /// What the connection is to be closed for.
    pub(super) fn answer(
        &mut self,
        message: Message,
        connection: &UnixStream,
    ) -> Result<Answer, SessionError> {
        let name = message.header.name();
        let unknown = FrontEndError::UnknownMessage { message: name };
        let Some(request) = message.header.kind() else {
            return Err(unknown.into());
        };
        self.check_negotiated(request, name)?;
        let body = Body::new(name, &message.body);
        let fds = message.descriptors;
        match request {
            FrontendReq::SET_MEM_TABLE => return self.set_mem_table(body, fds),
            FrontendReq::ADD_MEM_REG => return self.add_mem_region(body, fds),
            // "the back-end MUST close it without using it otherwise" (vhost-user.rst).
            FrontendReq::REM_MEM_REG if fds.len() <= 1 => return self.remove_mem_region(body),
            FrontendReq::SET_VRING_KICK => return self.set_vring_kick(body, fds),
            FrontendReq::SET_VRING_CALL => {
                let place = |vring: &mut VringRecord, fd| vring.call = fd;
                return self.vring_fd(body, fds, "call", place, Command::SetCall);
            }
            FrontendReq::SET_VRING_ERR => {
                let place = |vring: &mut VringRecord, fd| vring.err = fd;
                return self.vring_fd(body, fds, "err", place, Command::SetErr);
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                return self.set_back_channel(body, fds, connection);
            }
            // Never offered; the specification has an answer for what fails.
            FrontendReq::SET_DEVICE_STATE_FD if fds.len() == 1 => {
                body.pair()?;
                return Ok(Answer::Number(DEVICE_STATE_FAILED));
            }
            _ if !fds.is_empty() => {
                return Err(FrontEndError::Descriptors { message: name }.into());
            }
            _ => {}
        }
        match request {
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_ADDR
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE => self.vring_message(request, body),
            FrontendReq::GET_CONFIG
            | FrontendReq::SET_CONFIG
            | FrontendReq::SEND_RARP
            | FrontendReq::NET_SET_MTU
            | FrontendReq::SET_STATUS
            | FrontendReq::GET_STATUS
            | FrontendReq::GET_SHMEM_CONFIG => self.device_message(request, body),
            FrontendReq::GET_FEATURES
            | FrontendReq::SET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::SET_PROTOCOL_FEATURES
            | FrontendReq::SET_OWNER
            | FrontendReq::RESET_OWNER
            | FrontendReq::RESET_DEVICE
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_MAX_MEM_SLOTS => self.session_message(request, body),
            FrontendReq::CHECK_DEVICE_STATE => Ok(Answer::Number(1)),
            _ => Err(unknown.into()),
        }
    }

    fn check_negotiated(
        &self,
        request: FrontendReq,
        message: MessageName,
    ) -> Result<(), FrontEndError> {
        let Some((bit, feature)) = feature_of(request) else {
            return Ok(());
        };
        if self.protocol_features & bit.bits() != 0 {
            return Ok(());
        }
        let hint = match bit {
            VhostUserProtocolFeatures::CONFIG => self.device.config_hint(),
            _ => "",
        };
        Err(FrontEndError::NotNegotiated {
            message,
            feature,
            hint,
        })
    }

    fn session_message(
        &mut self,
        request: FrontendReq,
        body: Body<'_>,
    ) -> Result<Answer, SessionError> {
        match request {
            FrontendReq::SET_FEATURES => {
                let [features] = body.numbers()?;
                self.set_features(features)?;
                return Ok(Answer::Done);
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let [features] = body.numbers()?;
                self.set_protocol_features(features)?;
                return Ok(Answer::Done);
            }
            _ => body.empty()?,
        }
        match request {
            FrontendReq::GET_FEATURES => return Ok(Answer::Number(self.offered_features())),
            FrontendReq::GET_PROTOCOL_FEATURES => {
                return Ok(Answer::Number(self.offered_protocol_features()));
            }
            FrontendReq::GET_QUEUE_NUM => return Ok(Answer::Number(self.vrings.len() as u64)),
            FrontendReq::GET_MAX_MEM_SLOTS => return Ok(Answer::Number(MAX_SLOTS as u64)),
            FrontendReq::SET_OWNER => {
                if std::mem::replace(&mut self.owned, true) {
                    return Err(FrontEndError::OwnedAlready.into());
                }
            }
            FrontendReq::RESET_OWNER => {
                self.owned = false;
                self.reset_rings()?;
            }
            _ => {
                self.reset_rings()?;
                self.status = 0;
                self.device.reset();
            }
        }
        Ok(Answer::Done)
    }

    fn offered_protocol_features(&self) -> u64 {
        let mut offered = self.device.protocol_features() & implemented();
        if self.device.back_channel().is_none() {
            offered.remove(VhostUserProtocolFeatures::BACKEND_REQ);
        }
        (offered | VhostUserProtocolFeatures::REPLY_ACK).bits()
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), FrontEndError> {
        let excess = features & !self.offered_protocol_features();
        if excess != 0 {
            return Err(FrontEndError::UnofferedFeatures { bits: excess });
        }
        self.protocol_features = features;
        Ok(())
    }

    fn vring_message(
        &mut self,
        request: FrontendReq,
        body: Body<'_>,
    ) -> Result<Answer, SessionError> {
        if request == FrontendReq::SET_VRING_ADDR {
            self.set_vring_addr(body)?;
            return Ok(Answer::Done);
        }
        let (index, number) = body.pair()?;
        match request {
            FrontendReq::SET_VRING_NUM => {
                let max = self.device.max_queue_size();
                self.vring(u64::from(index))?.set_size(index, number, max)?;
            }
            FrontendReq::SET_VRING_BASE => self.vring(u64::from(index))?.set_base(index, number)?,
            FrontendReq::SET_VRING_ENABLE => self.set_vring_enable(index, number, body)?,
            _ => {
                let next_avail = self.stop(index)?;
                let state = [index, u32::from(next_avail)];
                return Ok(Answer::Bytes(state.map(u32::to_le_bytes).concat()));
            }
        }
        Ok(Answer::Done)
    }

    /// QEMU's network device sends it before the features it depends on.
    fn set_vring_enable(
        &mut self,
        index: u32,
        enable: u32,
        body: Body<'_>,
    ) -> Result<(), SessionError> {
        if enable > 1 {
            return Err(body.bad(u64::from(enable)).into());
        }
        if self
            .features
            .is_some_and(|features| features & PROTOCOL_FEATURES == 0)
        {
            return Err(FrontEndError::NotNegotiated {
                message: body.message(),
                feature: "PROTOCOL_FEATURES",
                hint: "",
            }
            .into());
        }
        self.enable(u64::from(index), enable == 1)
    }

    fn set_vring_addr(&mut self, body: Body<'_>) -> Result<(), SessionError> {
        let [start, descriptor, used, available, _log] = body.numbers()?;
        let (index, flags) = (start & 0xffff_ffff, start >> 32);
        if flags != 0 {
            let message = "a log of the used ring";
            return Err(FrontEndError::Unsupported { message }.into());
        }
        let memory = Arc::clone(&self.memory);
        let vring = self.vring(index)?;
        let addresses = RingAddresses {
            size: vring.addresses.size,
            descriptor,
            available,
            used,
        };
        addresses.check(u32::from(narrow(index)), &memory)?;
        vring.addresses = addresses;
        self.tell(narrow(index), |id| Command::SetAddresses(id, addresses))
    }

    fn device_message(
        &mut self,
        request: FrontendReq,
        body: Body<'_>,
    ) -> Result<Answer, SessionError> {
        match request {
            FrontendReq::GET_CONFIG => {
                let config = body.config()?;
                let space = self.device.read_config(config.offset, config.size);
                let whole = space.len() == config.payload.len();
                Ok(Answer::Bytes(config.answer(whole.then_some(&space))))
            }
            FrontendReq::SET_CONFIG => {
                let config = body.config()?;
                // What a guest writes to its configuration space is handed on as it is; it must not
                // be able to take its device away.
                Ok(
                    match self.device.write_config(config.offset, config.payload) {
                        Ok(()) => Answer::Done,
                        Err(error) => Answer::Ignored(SessionError::Device(error)),
                    },
                )
            }
            FrontendReq::SEND_RARP => {
                let [mac] = body.numbers()?;
                let [m0, m1, m2, m3, m4, m5, ..] = mac.to_le_bytes();
                let mac = [m0, m1, m2, m3, m4, m5];
                Ok(self.tell_device(DeviceMessage::SendRarp { mac }))
            }
            FrontendReq::NET_SET_MTU => {
                let [mtu] = body.numbers()?;
                Ok(self.tell_device(DeviceMessage::NetSetMtu { mtu }))
            }
            FrontendReq::SET_STATUS => {
                let [status] = body.numbers()?;
                self.status = status;
                Ok(Answer::Done)
            }
            FrontendReq::GET_STATUS => {
                body.empty()?;
                Ok(Answer::Number(self.status))
            }
            _ => {
                let windows = self.device.shared_memory_windows();
                Ok(Answer::Bytes(windows.as_slice().to_vec()))
            }
        }
    }

    fn tell_device(&self, message: DeviceMessage) -> Answer {
        match self.device.message(message) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(error.into()),
        }
    }

    fn region(&self, spec: RegionSpec, fd: Received) -> Result<Arc<Region>, FrontEndError> {
        let file = fd
            .into_memory(self.workers.takes_file_memory())
            .map_err(|reason| FrontEndError::MemoryRegion {
                guest_address: spec.guest_address,
                size_bytes: spec.size_bytes,
                reason,
            })?;
        Region::map(spec, file)
    }

    fn set_mem_table(
        &mut self,
        body: Body<'_>,
        fds: Vec<Received>,
    ) -> Result<Answer, SessionError> {
        let regions = body.regions()?;
        if regions.len() != fds.len() {
            return Err(body.wrong_descriptors().into());
        }
        let mapped = regions
            .into_iter()
            .zip(fds)
            .map(|(spec, fd)| self.region(spec, fd))
            .collect::<Result<Vec<_>, _>>()?;
        self.install_memory(Memory::new(mapped)?)?;
        Ok(Answer::Done)
    }

    fn add_mem_region(
        &mut self,
        body: Body<'_>,
        fds: Vec<Received>,
    ) -> Result<Answer, SessionError> {
        let spec = body.single_region()?;
        let fd = only(fds).ok_or_else(|| body.wrong_descriptors())?;
        let memory = self.memory.with(self.region(spec, fd)?)?;
        if memory.regions().len() > self.memory.regions().len() {
            self.install_memory(memory)?;
        }
        Ok(Answer::Done)
    }

    fn remove_mem_region(&mut self, body: Body<'_>) -> Result<Answer, SessionError> {
        let memory = self.memory.without(&body.single_region()?);
        if memory.regions().len() < self.memory.regions().len() {
            self.install_memory(memory)?;
        }
        Ok(Answer::Done)
    }

    /// Whom to call on our own account. Where nothing that we would say was negotiated it stays open
    /// all the same: QEMU takes its end for an error.
    fn set_back_channel(
        &self,
        body: Body<'_>,
        fds: Vec<Received>,
        connection: &UnixStream,
    ) -> Result<Answer, SessionError> {
        body.empty()?;
        let fd = only(fds).ok_or_else(|| body.wrong_descriptors())?;
        let socket = fd.into_stream().ok_or(FrontEndError::NotAStream)?;
        if leads_to(&socket, connection) {
            return Err(FrontEndError::OwnConnection.into());
        }
        let features = VhostUserProtocolFeatures::from_bits_truncate(self.protocol_features);
        if let Some(back_channel) = self.device.back_channel() {
            back_channel.set(socket.into(), features);
        }
        Ok(Answer::Done)
    }

    fn set_vring_kick(
        &mut self,
        body: Body<'_>,
        fds: Vec<Received>,
    ) -> Result<Answer, SessionError> {
        let index = body.vring_index(&fds)?;
        let started = self.vring(u64::from(index))?.started;
        let place = |vring: &mut VringRecord, fd| vring.kick = fd;
        let done = self.vring_fd(body, fds, "kick", place, Command::SetKick)?;
        if started {
            // The data thread has its own; the record's is for the next start, which brings one.
            self.vring(u64::from(index))?.kick = None;
            return Ok(done);
        }
        self.start(index)?;
        Ok(Answer::Done)
    }

    /// `SET_VRING_KICK`, `SET_VRING_CALL` and `SET_VRING_ERR` in one.
    fn vring_fd(
        &mut self,
        body: Body<'_>,
        fds: Vec<Received>,
        what: &'static str,
        place: fn(&mut VringRecord, Option<OwnedFd>),
        command: fn(VringId, Option<OwnedFd>) -> Command<SeedOf<D>>,
    ) -> Result<Answer, SessionError> {
        let index = body.vring_index(&fds)?;
        let fd = eventfd(index, what, fds.into_iter().next())?;
        let vring = self.vring(u64::from(index))?;
        let theirs = if vring.started {
            Some(duplicate(fd.as_ref())?)
        } else {
            None
        };
        place(vring, fd);
        if let Some(theirs) = theirs {
            self.tell(narrow(u64::from(index)), |id| command(id, theirs))?;
        }
        Ok(Answer::Done)
    }
}

fn only(fds: Vec<Received>) -> Option<Received> {
    let mut fds = fds.into_iter();
    let first = fds.next()?;
    // The rest is closed with the iterator.
    fds.next().is_none().then_some(first)
}

/// Whether `other` is the other end of a connection to our socket, by its name. We would hold this
/// connection open ourselves, and never learn that the front-end has gone.
fn leads_to(other: &UnixStream, connection: &UnixStream) -> bool {
    let (Ok(to), Ok(here)) = (other.peer_addr(), connection.local_addr()) else {
        return false;
    };
    to.as_pathname()
        .is_some_and(|path| Some(path) == here.as_pathname())
}
