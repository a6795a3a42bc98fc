// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network device's connection with its queues.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::control::ControlQueue;
use super::messages::NetMessages;
use super::net_feature::{CTRL_VQ, MQ};
use super::receive::{RxConfig, RxQueue};
use super::transmit::{TxConfig, TxQueue};
use crate::error::{FrontendError, Result};
use crate::session::{Session, SessionBuilder};
use crate::vring::Vring;

/// When vrings are enabled.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Start {
    /// Each after it was started.
    #[default]
    EnableLast,
    /// Before features are set, with an answer each time, and not again: QEMU.
    EnableFirst,
    /// Started and left disabled.
    Disabled,
}

/// How the queues look.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Pairs of queues.
    pub pairs: usize,
    /// Receive queues.
    pub rx: RxConfig,
    /// Transmit queues.
    pub tx: TxConfig,
    /// Whether to start the control queue where there is one.
    pub control: bool,
    /// When vrings are enabled.
    pub start: Start,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            pairs: 1,
            rx: RxConfig::default(),
            tx: TxConfig::default(),
            control: false,
            start: Start::EnableLast,
            timeout: Duration::from_secs(10),
        }
    }
}

/// A receive queue and its transmit queue.
#[derive(Debug)]
pub struct Pair {
    /// Device to driver.
    pub rx: RxQueue,
    /// Driver to device.
    pub tx: TxQueue,
}

/// A connection to a network device, its queues started.
#[derive(Debug)]
pub struct NetPort {
    /// The connection.
    pub session: Session,
    /// The pairs. All receive buffers are still to be posted.
    pub pairs: Vec<Pair>,
    /// The control queue, if asked for and agreed on.
    pub control: Option<ControlQueue>,
    /// More messages on the same connection.
    pub messages: NetMessages,
}

impl NetPort {
    /// Protocol features a network driver wants besides the usual ones.
    #[must_use]
    pub fn protocol_features() -> Protocol {
        Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::MTU
            | Protocol::RARP
            | Protocol::CONFIG
            | Protocol::STATUS
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS
    }

    /// Negotiates and starts everything.
    ///
    /// # Errors
    ///
    /// When a message is refused or guest memory runs out.
    pub fn open(stream: UnixStream, builder: SessionBuilder, config: &NetConfig) -> Result<Self> {
        let (session, messages) = Self::negotiate(stream, builder, config)?;
        let mut port = Self::with_queues(session, messages, config)?;
        port.start(config.start)?;
        Ok(port)
    }

    /// Negotiates only.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn negotiate(
        stream: UnixStream,
        builder: SessionBuilder,
        config: &NetConfig,
    ) -> Result<(Session, NetMessages)> {
        Self::negotiate_with(stream, builder, config, Self::protocol_features())
    }

    /// The same with other protocol features.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn negotiate_with(
        stream: UnixStream,
        builder: SessionBuilder,
        config: &NetConfig,
        protocol: Protocol,
    ) -> Result<(Session, NetMessages)> {
        let messages = NetMessages::beside(&stream, config.timeout)?;
        let vrings = 2 * config.pairs;
        let mut builder = builder
            .queues(vrings)
            .protocol_features(protocol)
            .timeout(config.timeout);
        if config.start == Start::EnableFirst {
            builder = builder.early_enable((0..).take(vrings));
        }
        Ok((builder.from_stream(stream)?, messages))
    }

    /// Creates the queues; nothing is sent.
    ///
    /// # Errors
    ///
    /// When guest memory or descriptors run out.
    pub fn with_queues(
        session: Session,
        messages: NetMessages,
        config: &NetConfig,
    ) -> Result<Self> {
        let features = session.negotiated().features;
        let pairs = (0..config.pairs)
            .map(|pair| {
                let rx = session.create_vring(2 * pair)?;
                let tx = session.create_vring(2 * pair + 1)?;
                Ok(Pair {
                    rx: RxQueue::new(rx, config.rx, features)?,
                    tx: TxQueue::new(tx, config.tx, features)?,
                })
            })
            .collect::<Result<_>>()?;
        let control = if config.control && features & CTRL_VQ != 0 {
            let vring = session.create_vring(control_index(&session))?;
            Some(ControlQueue::new(vring)?)
        } else {
            None
        };
        Ok(Self {
            session,
            pairs,
            control,
            messages,
        })
    }

    /// Starts all vrings where their driver sides are: also those of a connection before this one.
    ///
    /// # Errors
    ///
    /// When a message is refused.
    pub fn start(&mut self, start: Start) -> Result<()> {
        let control = self.control.as_ref().map(ControlQueue::vring);
        let vrings = self
            .pairs
            .iter()
            .flat_map(|pair| [pair.rx.vring(), pair.tx.vring()])
            .chain(control);
        for vring in vrings {
            start_one(&mut self.session, vring, vring.ring.next_used(), start)?;
        }
        self.set_driver_ok()
    }

    /// Tells the back-end that the driver is there, if it wants to know.
    ///
    /// # Errors
    ///
    /// When it refuses.
    pub fn set_driver_ok(&self) -> Result<()> {
        /// `ACKNOWLEDGE`, `DRIVER`, `DRIVER_OK` and `FEATURES_OK` (virtio 1.3 §2.1).
        const DRIVER_OK: u64 = 1 | 2 | 4 | 8;
        let agreed = self.session.negotiated().protocol;
        if agreed.contains(Protocol::STATUS) && !self.messages.set_status(DRIVER_OK)? {
            return Err(FrontendError::Refused {
                message: "SET_STATUS",
            });
        }
        Ok(())
    }

    /// Bytes of the header in front of every frame.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        super::header::NetHeader::bytes_under(self.session.negotiated().features)
    }
}

fn start_one(session: &mut Session, vring: &Vring, base: u16, start: Start) -> Result<()> {
    if start == Start::EnableLast {
        return session.start(vring, base);
    }
    session.set_up(vring, base)?;
    session.set_kick(vring)
}

/// The control queue comes after all pairs the device has (virtio 1.3 §5.1.2).
fn control_index(session: &Session) -> usize {
    let agreed = session.negotiated();
    if agreed.features & MQ == 0 {
        return 2;
    }
    usize::try_from(agreed.max_queues.saturating_sub(1)).unwrap_or(usize::MAX)
}
