// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of the control queue (virtio 1.3 §5.1.6.5).
//!
//! The driver's bytes are read once, and never more of them than a [`Command`] keeps. What parsed
//! may be carried out as it stands and answered with [`OK`]; every fault is answered with [`ERR`],
//! and nothing has changed then. Bytes behind those of the command are ignored.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::as_conversions
)]

use thiserror::Error;
use virtio_bindings::bindings::virtio_net as net;

use crate::features::{Offloads, guest_offloads, has, taken_by_driver};
use crate::filter::{FilterChange, MAC_TABLE_ENTRIES, MacTable, RxModes, VLAN_IDS};
use crate::frame::is_multicast;

/// `VIRTIO_NET_OK`.
pub const OK: u8 = 0;
/// `VIRTIO_NET_ERR`.
pub const ERR: u8 = 1;

/// Bytes in front of a command's data: class and command.
pub const HEADER_BYTES: usize = 2;

/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;
/// Bytes of the number in front of a table of addresses.
const ENTRIES_BYTES: usize = 4;

/// What commands depend on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Context {
    /// The acknowledged features.
    pub features: u64,
    /// Queue pairs that the configuration space says.
    pub max_pairs: u16,
    /// The configuration space asks for an announcement.
    pub announcing: bool,
}

/// What the driver wants to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Something about what it receives.
    Filter(FilterChange),
    /// The announcement it was asked for is on its way: the configuration space asks no longer.
    Announced,
    /// It uses this many queue pairs, at least one and at most [`Context::max_pairs`].
    Pairs(u16),
    /// From now on it takes this, no more than it acknowledged.
    GuestOffloads(Offloads),
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ControlFault {
    /// No such command, or one of a feature that was not acknowledged.
    #[error("class {class} command {command} is unknown or was not negotiated")]
    Unknown {
        /// The class.
        class: u8,
        /// The command.
        command: u8,
    },
    /// Less data than the command has, or says to have.
    #[error("too little data")]
    TooShort,
    /// Neither 0 nor 1 where a mode is turned off or on.
    #[error("{value} is neither off nor on")]
    NotASwitch {
        /// The byte.
        value: u8,
    },
    /// An address that is no station's.
    #[error("an address that is no station's")]
    NotAStation,
    /// A VLAN that cannot be.
    #[error("VLAN {id}")]
    VlanOutOfRange {
        /// Its id.
        id: u16,
    },
    /// No pairs, or more than there are.
    #[error("{pairs} queue pairs of {max_pairs}")]
    PairsOutOfRange {
        /// How many were asked for.
        pairs: u16,
        /// How many there are.
        max_pairs: u16,
    },
    /// There is no announcement to acknowledge.
    #[error("no announcement is asked for")]
    NotAnnouncing,
    /// Offloads that were not acknowledged.
    #[error("offloads {offloads:#x} were not negotiated")]
    OffloadsNotNegotiated {
        /// The bits.
        offloads: u64,
    },
}

impl Command {
    /// The command that these two bytes and their data are.
    ///
    /// `read_at` copies from an offset of the data and returns how many bytes there were, like
    /// `Buffers::read_at`.
    ///
    /// # Errors
    /// To be answered with [`ERR`].
    pub fn parse(
        [class, command]: [u8; HEADER_BYTES],
        read_at: impl Fn(usize, &mut [u8]) -> usize,
        context: &Context,
    ) -> Result<Self, ControlFault> {
        let unknown = ControlFault::Unknown { class, command };
        let data = Data { read_at };
        let has = |feature| has(context.features, feature);
        match (u32::from(class), u32::from(command)) {
            (net::VIRTIO_NET_CTRL_RX, mode) => {
                let mode = rx_mode(mode).filter(|(_, feature)| has(*feature));
                let (mode, _) = mode.ok_or(unknown)?;
                Ok(Self::Filter(FilterChange::Modes(mode, data.switch()?)))
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET)
                if has(net::VIRTIO_NET_F_CTRL_RX) =>
            {
                data.mac_tables().map(Self::Filter)
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_ADDR_SET)
                if has(net::VIRTIO_NET_F_CTRL_MAC_ADDR) || has(net::VIRTIO_NET_F_CTRL_RX) =>
            {
                Ok(Self::Filter(FilterChange::Mac(data.station()?)))
            }
            (net::VIRTIO_NET_CTRL_VLAN, net::VIRTIO_NET_CTRL_VLAN_ADD)
                if has(net::VIRTIO_NET_F_CTRL_VLAN) =>
            {
                Ok(Self::Filter(FilterChange::VlanAdded(data.vlan()?)))
            }
            (net::VIRTIO_NET_CTRL_VLAN, net::VIRTIO_NET_CTRL_VLAN_DEL)
                if has(net::VIRTIO_NET_F_CTRL_VLAN) =>
            {
                Ok(Self::Filter(FilterChange::VlanRemoved(data.vlan()?)))
            }
            (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK)
                if has(net::VIRTIO_NET_F_GUEST_ANNOUNCE) =>
            {
                let announced = context.announcing.then_some(Self::Announced);
                announced.ok_or(ControlFault::NotAnnouncing)
            }
            (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
                if has(net::VIRTIO_NET_F_MQ) =>
            {
                data.pairs(context.max_pairs).map(Self::Pairs)
            }
            (net::VIRTIO_NET_CTRL_GUEST_OFFLOADS, net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                data.offloads(context.features).map(Self::GuestOffloads)
            }
            _ => Err(unknown),
        }
    }
}

/// The mode that a command of the class `VIRTIO_NET_CTRL_RX` sets, and the feature it is part of.
fn rx_mode(command: u32) -> Option<(RxModes, u32)> {
    Some(match command {
        net::VIRTIO_NET_CTRL_RX_PROMISC => (RxModes::PROMISCUOUS, net::VIRTIO_NET_F_CTRL_RX),
        net::VIRTIO_NET_CTRL_RX_ALLMULTI => (RxModes::ALL_MULTICAST, net::VIRTIO_NET_F_CTRL_RX),
        net::VIRTIO_NET_CTRL_RX_ALLUNI => (RxModes::ALL_UNICAST, net::VIRTIO_NET_F_CTRL_RX_EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOMULTI => (RxModes::NO_MULTICAST, net::VIRTIO_NET_F_CTRL_RX_EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOUNI => (RxModes::NO_UNICAST, net::VIRTIO_NET_F_CTRL_RX_EXTRA),
        net::VIRTIO_NET_CTRL_RX_NOBCAST => (RxModes::NO_BROADCAST, net::VIRTIO_NET_F_CTRL_RX_EXTRA),
        _ => return None,
    })
}

/// The data of a command.
struct Data<R> {
    read_at: R,
}

impl<R: Fn(usize, &mut [u8]) -> usize> Data<R> {
    fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N], ControlFault> {
        let mut bytes = [0; N];
        if (self.read_at)(offset, &mut bytes) < N {
            return Err(ControlFault::TooShort);
        }
        Ok(bytes)
    }

    fn switch(&self) -> Result<bool, ControlFault> {
        match self.read(0)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [value] => Err(ControlFault::NotASwitch { value }),
        }
    }

    fn station(&self) -> Result<[u8; MAC_BYTES], ControlFault> {
        let mac = self.read(0)?;
        if is_multicast(mac) || mac == [0; MAC_BYTES] {
            return Err(ControlFault::NotAStation);
        }
        Ok(mac)
    }

    fn vlan(&self) -> Result<u16, ControlFault> {
        let id = u16::from_le_bytes(self.read(0)?);
        if id >= VLAN_IDS {
            return Err(ControlFault::VlanOutOfRange { id });
        }
        Ok(id)
    }

    fn pairs(&self, max_pairs: u16) -> Result<u16, ControlFault> {
        let pairs = u16::from_le_bytes(self.read(0)?);
        if pairs == 0 || pairs > max_pairs {
            return Err(ControlFault::PairsOutOfRange { pairs, max_pairs });
        }
        Ok(pairs)
    }

    fn offloads(&self, features: u64) -> Result<Offloads, ControlFault> {
        let offloads = u64::from_le_bytes(self.read(0)?);
        if offloads & !(features & guest_offloads()) != 0 {
            return Err(ControlFault::OffloadsNotNegotiated { offloads });
        }
        Ok(taken_by_driver(offloads))
    }

    fn mac_tables(&self) -> Result<FilterChange, ControlFault> {
        let (unicast, behind) = self.mac_table(0)?;
        let (multicast, _) = self.mac_table(behind)?;
        Ok(FilterChange::Tables { unicast, multicast })
    }

    /// The table at `offset`, and where it ends.
    fn mac_table(&self, offset: usize) -> Result<(MacTable, usize), ControlFault> {
        let entries = u32::from_le_bytes(self.read(offset)?);
        let entries = usize::try_from(entries).or(Err(ControlFault::TooShort))?;
        let start = offset.checked_add(ENTRIES_BYTES);
        let bytes = entries.checked_mul(MAC_BYTES);
        let (Some(start), Some(bytes)) = (start, bytes) else {
            return Err(ControlFault::TooShort);
        };
        let end = start.checked_add(bytes).ok_or(ControlFault::TooShort)?;
        if entries > MAC_TABLE_ENTRIES {
            // The last byte is there if all are.
            let [_last] = self.read(end.saturating_sub(1))?;
            return Ok((MacTable::All, end));
        }
        let mut macs = [0; MAC_TABLE_ENTRIES.saturating_mul(MAC_BYTES)];
        let macs = macs.get_mut(..bytes).ok_or(ControlFault::TooShort)?;
        if (self.read_at)(start, macs) < bytes {
            return Err(ControlFault::TooShort);
        }
        let (macs, _) = macs.as_chunks();
        Ok((MacTable::Listed(macs.to_vec()), end))
    }
}

#[cfg(test)]
mod tests;
