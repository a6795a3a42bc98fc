// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages, as the `vhost` crate delivers them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::record::{VringRecord, duplicate, eventfd};
use super::{Session, SessionError, narrow};
use crate::device::Device;
use crate::error::FrontEndError;
use crate::memory::{MAX_SLOTS, Memory, Region, RegionSpec};
use crate::ring::RingAddresses;
use crate::worker::{Command, SeedOf, VringId};

/// What this layer implements; a device can offer no more than this.
pub(super) fn implemented() -> VhostUserProtocolFeatures {
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

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

impl From<FrontEndError> for Error {
    fn from(error: FrontEndError) -> Self {
        SessionError::from(error).into()
    }
}

fn unsupported<T>(message: &'static str) -> Result<T> {
    Err(FrontEndError::Unsupported { message }.into())
}

fn device_error(error: io::Error) -> Error {
    SessionError::Device(error).into()
}

fn spec_of(guest: u64, size_bytes: u64, user: u64, file_offset_bytes: u64) -> RegionSpec {
    RegionSpec {
        guest_address: guest,
        size_bytes,
        user_address: user,
        file_offset_bytes,
    }
}

fn single_spec(region: &VhostUserSingleMemoryRegion) -> RegionSpec {
    spec_of(
        region.guest_phys_addr,
        region.memory_size,
        region.user_addr,
        region.mmap_offset,
    )
}

impl<D: Device> Session<D> {
    /// `SET_VRING_KICK`, `SET_VRING_CALL` and `SET_VRING_ERR` in one.
    fn vring_fd(
        &mut self,
        index: u8,
        what: &'static str,
        file: Option<File>,
        place: fn(&mut VringRecord) -> &mut Option<OwnedFd>,
        command: fn(VringId, Option<OwnedFd>) -> Command<SeedOf<D>>,
    ) -> Result<()> {
        let fd = eventfd(u32::from(index), what, file)?;
        let vring = self.vring(u64::from(index))?;
        let theirs = if vring.started {
            Some(duplicate(fd.as_ref()).map_err(SessionError::from)?)
        } else {
            None
        };
        *place(vring) = fd;
        if let Some(theirs) = theirs {
            self.tell(u16::from(index), |id| command(id, theirs))?;
        }
        Ok(())
    }
}

impl<D: Device> VhostUserBackendReqHandlerMut for Session<D> {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(FrontEndError::OwnedAlready.into());
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        self.reset_rings()?;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_rings()?;
        self.device.reset_device();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(Session::set_features(self, features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mapped = regions
            .iter()
            .zip(files)
            .map(|(region, file)| {
                let spec = spec_of(
                    region.guest_phys_addr,
                    region.memory_size,
                    region.user_addr,
                    region.mmap_offset,
                );
                Region::map(spec, file)
            })
            .collect::<std::result::Result<Vec<_>, _>>()?;
        self.install_memory(Memory::new(mapped)?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.vring(u64::from(index))?.set_size(index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return unsupported("a log of the used ring");
        }
        let memory = std::sync::Arc::clone(&self.memory);
        let vring = self.vring(u64::from(index))?;
        let addresses = RingAddresses {
            size: vring.addresses.size,
            descriptor,
            available,
            used,
        };
        let guest = addresses.check(index, &memory)?;
        vring.addresses = addresses;
        vring.note_place(guest);
        let index = narrow(u64::from(index));
        Ok(self.tell(index, |id| Command::SetAddresses(id, addresses))?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.vring(u64::from(index))?.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next_avail = self.stop(index)?;
        Ok(VhostUserVringState::new(index, u32::from(next_avail)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        if file.is_none() {
            return unsupported("a ring without a kick descriptor");
        }
        let started = self.vring(u64::from(index))?.started;
        self.vring_fd(
            index,
            "kick",
            file,
            |vring| &mut vring.kick,
            Command::SetKick,
        )?;
        if started {
            // The data thread has its own; the record's is for the next start, which brings one.
            self.vring(u64::from(index))?.kick = None;
            return Ok(());
        }
        Ok(self.start(u32::from(index))?)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring_fd(
            index,
            "call",
            file,
            |vring| &mut vring.call,
            Command::SetCall,
        )
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring_fd(index, "err", file, |vring| &mut vring.err, Command::SetErr)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.device.protocol_features() & implemented())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()? | VhostUserProtocolFeatures::REPLY_ACK;
        let excess = features & !offered.bits();
        if excess != 0 {
            return Err(FrontEndError::UnofferedFeatures { bits: excess }.into());
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.enable(u64::from(index), enable)?)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(self.device.get_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.device.set_config(offset, buf).map_err(device_error)
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self.device.set_backend_req_fd(backend);
    }

    fn set_gpu_socket(&mut self, gpu_backend: GpuBackend) -> Result<()> {
        self.device
            .set_gpu_socket(gpu_backend)
            .map_err(device_error)
    }

    fn get_shared_object(&mut self, uuid: VhostUserSharedMsg) -> Result<File> {
        self.device.get_shared_object(uuid).map_err(device_error)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported("SET_INFLIGHT_FD")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let region = Region::map(single_spec(region), fd)?;
        self.install_memory(self.memory.with(region)?)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory.without(&single_spec(region))?;
        Ok(self.install_memory(memory)?)
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        fd: File,
    ) -> Result<Option<File>> {
        self.device
            .set_device_state_fd(direction, phase, fd)
            .map_err(device_error)
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.device.check_device_state().map_err(device_error)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.device.get_shmem_config().map_err(device_error)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported("SET_LOG_BASE")
    }
}
