// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each message does, and what it is answered with.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vm_memory::ByteValued as _;

use super::eventfds::{accept, duplicate};
use super::fields::ConfigPart;
use super::inbox::Arrived;
use super::message::{Message, Rules, VringFd};
use super::received::Received;
use super::{PROTOCOL_FEATURES, Session, SessionError};
use crate::device::{Device, DeviceMessage};
use crate::error::FrontEndError;
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

impl<D: Device> Session<D> {
    /// Does what the message asks for. `connection` is where it came from.
    ///
    /// # Errors
    /// Why the connection must be closed.
    #[expect(
        clippy::too_many_lines,
        clippy::cognitive_complexity,
        reason = "one arm for each message"
    )]
    pub(super) fn answer(
        &mut self,
        arrived: Arrived,
        connection: &UnixStream,
    ) -> Result<Answer, SessionError> {
        let message = arrived.header.name();
        let unknown = FrontEndError::UnknownMessage { message };
        let request = arrived.header.request().ok_or(unknown)?;
        self.check_negotiated(request)?;
        match Message::parse(request, &arrived.body, arrived.descriptors)? {
            Message::GetFeatures => return Ok(Answer::Number(self.offered_features())),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::GetProtocolFeatures => {
                return Ok(Answer::Number(self.offered_protocol_features().bits()));
            }
            Message::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            Message::GetQueueNum => {
                return Ok(Answer::Number(u64::from(self.device.num_queues())));
            }
            Message::GetMaxMemSlots => return Ok(Answer::Number(MAX_SLOTS as u64)),
            Message::SetOwner => {
                if std::mem::replace(&mut self.state.owned, true) {
                    return Err(FrontEndError::OwnedAlready.into());
                }
            }
            Message::ResetOwner => {
                self.state.owned = false;
                self.reset_rings()?;
            }
            Message::ResetDevice => {
                self.reset_rings()?;
                self.state.status = 0;
                self.device.reset();
            }
            Message::SetMemTable(regions) => self.set_mem_table(regions)?,
            Message::AddMemReg(spec, fd) => self.add_mem_region(spec, fd)?,
            Message::RemMemReg(spec) => self.remove_mem_region(&spec)?,
            Message::SetVringNum { index, size } => {
                let (queue, max) = (self.queue(index)?, self.device.max_queue_size());
                self.vring(queue).set_size(index, size, max)?;
            }
            Message::SetVringAddr {
                index,
                flags,
                addresses,
            } => self.set_vring_addr(index, flags, addresses)?,
            Message::SetVringBase { index, base } => {
                let queue = self.queue(index)?;
                self.vring(queue).set_base(index, base)?;
            }
            Message::GetVringBase { index } => {
                let next_avail = self.stop(self.queue(index)?)?;
                let state = [index, u32::from(next_avail)];
                return Ok(Answer::Bytes(state.map(u32::to_le_bytes).concat()));
            }
            Message::SetVringEnable { index, enabled } => self.set_vring_enable(index, enabled)?,
            Message::SetVringFd { which, index, fd } => self.set_vring_fd(which, index, fd)?,
            Message::GetConfig(part) => {
                let bytes = self.device.read_config(part.offset, part.size);
                return Ok(Answer::Bytes(part.answer(&bytes)));
            }
            Message::SetConfig(part, bytes) => return Ok(self.set_config(part, bytes)),
            Message::SetBackendReqFd(fd) => self.set_back_channel(fd, connection)?,
            Message::SetStatus(status) => self.state.status = status,
            Message::GetStatus => return Ok(Answer::Number(self.state.status)),
            Message::GetShmemConfig => {
                let windows = self.device.shared_memory_windows();
                return Ok(Answer::Bytes(windows.as_slice().to_vec()));
            }
            // The feature is never offered; the specification has an answer for what fails.
            Message::SetDeviceStateFd => return Ok(Answer::Number(DEVICE_STATE_FAILED)),
            Message::CheckDeviceState => return Ok(Answer::Number(1)),
            Message::Device(message) => return Ok(self.tell_device(message)),
        }
        Ok(Answer::Done)
    }

    fn check_negotiated(&self, request: FrontendReq) -> Result<(), FrontEndError> {
        let missing = Rules::of(request).feature - self.state.protocol_features();
        let Some((feature, bit)) = missing.iter_names().next() else {
            return Ok(());
        };
        let hint = if bit == VhostUserProtocolFeatures::CONFIG {
            self.device.config_hint()
        } else {
            ""
        };
        Err(FrontEndError::NotNegotiated {
            message: request.into(),
            feature,
            hint,
        })
    }

    fn offered_protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut offered = self.device.protocol_features() & implemented();
        if self.device.back_channel().is_none() {
            offered.remove(VhostUserProtocolFeatures::BACKEND_REQ);
        }
        offered | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), FrontEndError> {
        let excess = features & !self.offered_protocol_features().bits();
        if excess != 0 {
            return Err(FrontEndError::UnofferedFeatures { bits: excess });
        }
        self.state.protocol_features = features;
        Ok(())
    }

    /// QEMU's network device sends it before the features it depends on.
    fn set_vring_enable(&mut self, index: u32, enabled: bool) -> Result<(), SessionError> {
        let features = self.state.features;
        if features.is_some_and(|features| features & PROTOCOL_FEATURES == 0) {
            return Err(FrontEndError::NotNegotiated {
                message: FrontendReq::SET_VRING_ENABLE.into(),
                feature: "PROTOCOL_FEATURES",
                hint: "",
            }
            .into());
        }
        self.enable(self.queue(index)?, enabled)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: u32,
        addresses: RingAddresses,
    ) -> Result<(), SessionError> {
        if flags != 0 {
            let message = "a log of the used ring";
            return Err(FrontEndError::Unsupported { message }.into());
        }
        let queue = self.queue(index)?;
        let size = self.vring(queue).addresses.size;
        let addresses = RingAddresses { size, ..addresses };
        addresses.check(index, &self.memory)?;
        self.vring(queue).addresses = addresses;
        self.tell(queue, |id| Command::SetAddresses(id, addresses))
    }

    /// A guest's write to its configuration space comes as it is. It must not be able to take its
    /// device away, so the connection goes on whatever the guest writes.
    fn set_config(&self, part: ConfigPart, bytes: &[u8]) -> Answer {
        match self.device.write_config(part.offset, bytes) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Ignored(SessionError::Device(error)),
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

    fn set_mem_table(&mut self, regions: Vec<(RegionSpec, Received)>) -> Result<(), SessionError> {
        let mapped = regions
            .into_iter()
            .map(|(spec, fd)| self.region(spec, fd))
            .collect::<Result<Vec<_>, _>>()?;
        self.install_memory(Memory::new(mapped)?)
    }

    fn add_mem_region(&mut self, spec: RegionSpec, fd: Received) -> Result<(), SessionError> {
        let memory = self.memory.with(self.region(spec, fd)?)?;
        if memory.regions().len() > self.memory.regions().len() {
            self.install_memory(memory)?;
        }
        Ok(())
    }

    fn remove_mem_region(&mut self, spec: &RegionSpec) -> Result<(), SessionError> {
        let memory = self.memory.without(spec);
        if memory.regions().len() < self.memory.regions().len() {
            self.install_memory(memory)?;
        }
        Ok(())
    }

    /// The socket for messages of our own. It stays open even where no such message was negotiated:
    /// QEMU takes its end for an error.
    fn set_back_channel(&self, fd: Received, connection: &UnixStream) -> Result<(), FrontEndError> {
        let socket = fd.into_stream().ok_or(FrontEndError::NotAStream)?;
        if leads_to(&socket, connection) {
            return Err(FrontEndError::OwnConnection);
        }
        if let Some(back_channel) = self.device.back_channel() {
            back_channel.set(socket.into(), self.state.protocol_features());
        }
        Ok(())
    }

    /// A kick descriptor starts a vring that is stopped. The data thread of a started one gets its
    /// own duplicate of the others, which stay for the next start.
    fn set_vring_fd(
        &mut self,
        which: VringFd,
        index: u32,
        fd: Option<Received>,
    ) -> Result<(), SessionError> {
        let queue = self.queue(index)?;
        let fd = accept(index, which, fd)?;
        let started = self.vring(queue).started;
        match which {
            VringFd::Kick if started => self.tell(queue, |id| Command::SetKick(id, fd)),
            VringFd::Kick => self.start(queue, fd),
            VringFd::Call => {
                let theirs = duplicate(fd.as_ref().filter(|_| started))?;
                self.vring_fds.entry(queue).or_default().call = fd;
                self.tell(queue, |id| Command::SetCall(id, theirs))
            }
            VringFd::Err => {
                let theirs = duplicate(fd.as_ref().filter(|_| started))?;
                self.vring_fds.entry(queue).or_default().err = fd;
                self.tell(queue, |id| Command::SetErr(id, theirs))
            }
        }
    }
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
