// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all ports of a process share: where frames go, and the links out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use ringside_common::limit::Rate;
use ringside_common::limited;
use rustix::event::{EventfdFlags, eventfd};

use crate::capture::Capture;
use crate::counters::PortCounters;
use crate::frame::BROADCAST;
use crate::link::Link;
use crate::mac_table::{MacTable, PortId};
use crate::port::Port;

/// Where frames go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fabric {
    /// Between the one port and its link, each queue pair to a queue of its own where the link has
    /// several.
    Wire,
    /// Between ports, by address, and to the link if there is one.
    Switch,
    /// Nowhere; with `generate`, guests are sent frames of that many bytes as fast as they take
    /// them.
    Null {
        /// Bytes of a frame.
        generate: Option<usize>,
    },
    /// Back to the guest that sent them.
    Loopback,
}

/// What all ports of a process share.
#[derive(Debug)]
pub struct Hub {
    fabric: Fabric,
    link: Option<Link>,
    link_count: usize,
    /// Whether the host was told of a carrier.
    carrier: Mutex<bool>,
    /// All ports, by number.
    ports: Vec<Arc<Port>>,
    table: MacTable,
    flood_limit: Option<Rate>,
    /// What passes.
    pub(crate) capture: Arc<Capture>,
    uplink_counters: Option<Arc<PortCounters>>,
    generated: Vec<u8>,
    /// Written to when data threads have something to do, and never read: every data thread watches
    /// it.
    wake: OwnedFd,
}

impl Hub {
    /// A hub of `ports`, whose floods have a limit, with at most one `link`, which has no carrier
    /// yet.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(
        fabric: Fabric,
        link: Option<Link>,
        ports: Vec<Arc<Port>>,
        table: MacTable,
        flood_limit: Option<Rate>,
        capture: Arc<Capture>,
    ) -> io::Result<Arc<Self>> {
        let generated = match fabric {
            Fabric::Null {
                generate: Some(bytes),
            } => made_up_frame(bytes),
            _ => Vec::new(),
        };
        if let Some(link) = &link
            && let Err(error) = link.set_carrier(false)
        {
            limited!(warn, "the host sees a carrier without a guest: {error}");
        }
        let hub = Arc::new(Self {
            fabric,
            carrier: Mutex::new(false),
            link_count: link.as_ref().map_or(0, Link::queues),
            uplink_counters: match (fabric, &link) {
                (Fabric::Switch, Some(_)) => Some(Arc::default()),
                _ => None,
            },
            link,
            ports,
            table,
            flood_limit,
            capture,
            generated,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        if let Some(link) = hub.link() {
            let observer = Arc::downgrade(&hub);
            link.observe(move || {
                if let Some(hub) = observer.upgrade() {
                    hub.link_changed();
                }
            });
        }
        Ok(hub)
    }

    /// Whether what a port is plugged into is there: the interface of its link. A switch is.
    #[must_use]
    pub fn has_link(&self) -> bool {
        self.fabric != Fabric::Wire || self.link.as_ref().is_none_or(Link::is_there)
    }

    /// The interface of the link has gone, or is there again.
    fn link_changed(&self) {
        if self.fabric == Fabric::Wire {
            for port in &self.ports {
                port.back_channel.config_changed();
            }
        }
        self.wake();
    }

    /// Where frames go.
    #[must_use]
    #[inline]
    pub fn fabric(&self) -> Fabric {
        self.fabric
    }

    /// The way out, if there is one.
    #[must_use]
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Shows the host whether a guest is behind the link: whether one has a receive queue that
    /// serves, and its cable in. To be called whenever that may have changed.
    pub fn follow_carrier(&self) {
        let Some(link) = &self.link else {
            return;
        };
        let mut carrier = self.carrier.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: the last caller has seen all changes.
        let is_served = self.ports.iter().any(|port| port.cable.is_served());
        if *carrier == is_served {
            return;
        }
        match link.set_carrier(is_served) {
            Ok(()) => *carrier = is_served,
            Err(error) => limited!(warn, "the host's view of the carrier: {error}"),
        }
    }

    /// Queues of the link.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.link_count
    }

    /// All ports.
    #[must_use]
    pub fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    /// Where stations are.
    #[must_use]
    #[inline]
    pub fn table(&self) -> &MacTable {
        &self.table
    }

    /// Copies a second that what one port sends to several may make.
    #[must_use]
    pub fn flood_limit(&self) -> Option<Rate> {
        self.flood_limit
    }

    /// The queue of the link that a queue pair uses.
    #[must_use]
    pub fn link_of(&self, pair: u16) -> u16 {
        if self.link_count > 1 { pair } else { 0 }
    }

    /// The number that the uplink of a switch has among its ports.
    #[must_use]
    pub fn uplink_id(&self) -> PortId {
        // There are fewer ports than numbers: the command line sees to it.
        PortId(u16::try_from(self.ports.len()).unwrap_or(u16::MAX))
    }

    /// Counters of what is sent by the uplink, and of what comes by it.
    #[must_use]
    pub fn uplink_counters(&self) -> Option<&Arc<PortCounters>> {
        self.uplink_counters.as_ref()
    }

    /// The frame that guests are sent where they are made up.
    #[must_use]
    pub(crate) fn generated(&self) -> &[u8] {
        &self.generated
    }

    /// Has all data threads look what they have to do.
    pub fn wake(&self) {
        // Full means that a wake-up is due already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A broadcast frame of `bytes`, of a type for experiments.
fn made_up_frame(bytes: usize) -> Vec<u8> {
    const TYPE: [u8; 2] = 0x88b5_u16.to_be_bytes();
    let mut frame = Vec::with_capacity(bytes);
    frame.extend(BROADCAST);
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(TYPE);
    frame.resize(bytes, 0);
    frame
}
