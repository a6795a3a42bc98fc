// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The handshake a [`SessionBuilder`] describes.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};

use super::{MemoryMessages, Negotiated, Session, SessionBuilder};
use crate::back_channel::BackChannel;
use crate::error::{FrontendError, Result};
use crate::ids::{feature, request};
use crate::memory::GuestMemory;
use crate::raw::{Header, RawClient};

impl SessionBuilder {
    /// Connects to a listening back-end and shakes hands.
    ///
    /// # Errors
    ///
    /// When nobody listens, a message is refused or something required is not offered.
    pub fn connect(self, path: &Path) -> Result<Session> {
        let stream = UnixStream::connect(path).map_err(FrontendError::io("connect"))?;
        self.from_stream(stream)
    }

    /// Shakes hands on a connected stream.
    ///
    /// # Errors
    ///
    /// When a message is refused or something required is not offered.
    pub fn from_stream(self, stream: UnixStream) -> Result<Session> {
        // The vhost crate blocks for ever on a silent back-end; the socket itself must not.
        for result in [
            stream.set_read_timeout(Some(self.timeout)),
            stream.set_write_timeout(Some(self.timeout)),
        ] {
            result.map_err(FrontendError::io("socket timeout"))?;
        }
        let memory = match &self.existing_memory {
            Some(memory) => Arc::clone(memory),
            None => GuestMemory::new(&self.layout)?,
        };
        let early = stream.try_clone().map_err(FrontendError::io("dup"))?;
        let mut frontend = Frontend::from_stream(stream, self.queues as u64);
        let negotiated = self.negotiate(&mut frontend)?;
        let back_channel = back_channel(&mut frontend, &negotiated)?;
        frontend
            .set_owner()
            .map_err(FrontendError::message("SET_OWNER"))?;
        self.enable_early(early)?;
        frontend
            .set_features(negotiated.features)
            .map_err(FrontendError::message("SET_FEATURES"))?;
        let mut ring_config = self.ring;
        ring_config.event_idx = negotiated.features & feature::EVENT_IDX != 0;
        if negotiated.features & feature::INDIRECT_DESC == 0 {
            ring_config.indirect_len = 0;
        }
        let mut session = Session {
            frontend,
            memory,
            negotiated,
            ring_config,
            queues: self.queues,
            back_channel,
        };
        session.share_memory(self.memory_messages)?;
        Ok(session)
    }

    /// Features, protocol features and what they unlock, in QEMU's order.
    fn negotiate(&self, frontend: &mut Frontend) -> Result<Negotiated> {
        let offered = frontend
            .get_features()
            .map_err(FrontendError::message("GET_FEATURES"))?;
        let mut negotiated = Negotiated {
            offered,
            features: offered & self.wanted_features(),
            offered_protocol: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            max_queues: self.queues as u64,
            max_mem_slots: 0,
        };
        let missing = self.required & !negotiated.features;
        if missing != 0 {
            return Err(FrontendError::MissingFeatures { missing });
        }
        if negotiated.features & feature::PROTOCOL_FEATURES != 0 {
            self.negotiate_protocol(frontend, &mut negotiated)?;
        }
        let missing = self.required_protocol.difference(negotiated.protocol);
        if !missing.is_empty() {
            let missing = missing.bits();
            return Err(FrontendError::MissingProtocolFeatures { missing });
        }
        if negotiated.max_queues < self.queues as u64 {
            return Err(FrontendError::TooFewQueues {
                asked: self.queues,
                offered: negotiated.max_queues,
            });
        }
        Ok(negotiated)
    }

    fn negotiate_protocol(&self, frontend: &mut Frontend, agreed: &mut Negotiated) -> Result<()> {
        agreed.offered_protocol = frontend
            .get_protocol_features()
            .map_err(FrontendError::message("GET_PROTOCOL_FEATURES"))?;
        agreed.protocol = agreed.offered_protocol.intersection(self.protocol);
        frontend
            .set_protocol_features(agreed.protocol)
            .map_err(FrontendError::message("SET_PROTOCOL_FEATURES"))?;
        // Only from here on: REPLY_ACK is not agreed on before.
        if self.need_reply
            && agreed
                .protocol
                .contains(VhostUserProtocolFeatures::REPLY_ACK)
        {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if agreed.protocol.contains(VhostUserProtocolFeatures::MQ) {
            agreed.max_queues = frontend
                .get_queue_num()
                .map_err(FrontendError::message("GET_QUEUE_NUM"))?;
        }
        let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if agreed.protocol.contains(slots) {
            agreed.max_mem_slots = frontend
                .get_max_mem_slots()
                .map_err(FrontendError::message("GET_MAX_MEM_SLOTS"))?;
        }
        Ok(())
    }

    /// By hand, since the vhost crate refuses to send it so early.
    fn enable_early(&self, stream: UnixStream) -> Result<()> {
        let client = RawClient::from_stream(stream)?;
        for vring in &self.early_enable {
            let body = [vring.to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
            let header = Header::new(request::SET_VRING_ENABLE, 8).need_reply();
            client.send(header, &body, &[])?;
            let answer = client.recv(self.timeout)?;
            if answer.u64_at(0) != Some(0) {
                return Err(FrontendError::Refused {
                    message: "early SET_VRING_ENABLE",
                });
            }
        }
        Ok(())
    }

    fn wanted_features(&self) -> u64 {
        let mut wanted = self.wanted;
        if !self.ring.event_idx {
            wanted &= !feature::EVENT_IDX;
        }
        if !self.indirect {
            wanted &= !feature::INDIRECT_DESC;
        }
        wanted
    }
}

/// Gives the back-end its end of a back-channel where that is agreed on.
fn back_channel(frontend: &mut Frontend, agreed: &Negotiated) -> Result<Option<BackChannel>> {
    if !agreed
        .protocol
        .contains(VhostUserProtocolFeatures::BACKEND_REQ)
    {
        return Ok(None);
    }
    let (ours, theirs) = BackChannel::pair()?;
    frontend
        .set_backend_request_fd(&theirs)
        .map_err(FrontendError::message("SET_BACKEND_REQ_FD"))?;
    Ok(Some(ours))
}

impl Session {
    fn share_memory(&mut self, messages: MemoryMessages) -> Result<()> {
        let memory = Arc::clone(&self.memory);
        match messages {
            MemoryMessages::Table => self.set_mem_table(&memory),
            MemoryMessages::Slots => memory.regions().iter().try_for_each(|r| self.add_region(r)),
            MemoryMessages::None => Ok(()),
        }
    }
}
