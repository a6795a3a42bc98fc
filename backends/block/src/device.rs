// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of the device: features, configuration space, the write cache.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringside_common::backchannel::BackChannel;
use ringside_common::device::Device;
use ringside_common::io::Engine as IoEngine;
use ringside_common::limited;
use ringside_common::stats::DeviceStats;
use ringside_common::worker::Requests;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::config_space::{ConfigSpace, ConfigSpaceError};
use crate::engine::Engine;
use crate::request::KINDS;
use crate::serve::BlockWorker;
use crate::shared::{DISCARD, Shared, WRITE_ZEROES};
use crate::storage::CacheMode;

/// Longest segment asked for. Longer ones are served too; this only keeps drivers reasonable.
const SIZE_MAX_BYTES: u32 = 1 << 20;
/// What the device is made of.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Queues offered.
    pub num_queues: u16,
    /// Largest queue accepted.
    pub queue_size: u16,
    /// Most segments of a read or write that drivers are asked for. Without indirect tables they
    /// must fit into a ring together with header and status, and Linux does not check that.
    pub seg_max: u32,
    /// What `GET_ID` answers; cut to 20 bytes.
    pub serial: String,
    /// How writes become stable.
    pub cache: CacheMode,
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct BlockDevice {
    options: BlockOptions,
    shared: Arc<Shared>,
    stats: Arc<DeviceStats>,
    back_channel: BackChannel,
    /// One change of size at a time.
    resizing: Mutex<()>,
}

impl BlockDevice {
    /// A device on `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, options: BlockOptions) -> Self {
        Self {
            shared: Arc::new(Shared::new(engine, &options.serial, options.cache)),
            options,
            stats: Arc::new(DeviceStats::new("blk", KINDS)),
            back_channel: BackChannel::default(),
            resizing: Mutex::default(),
        }
    }

    /// Looks at the size of the storage again and tells the driver of a change. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn refresh(&self) -> io::Result<u64> {
        let _one_at_a_time = self.resizing();
        self.change_capacity(|engine| engine.refresh())
    }

    /// Makes the storage larger and tells the driver. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn resize(&self, size_bytes: u64) -> io::Result<u64> {
        let _one_at_a_time = self.resizing();
        self.change_capacity(|engine| engine.resize(size_bytes))
    }

    /// Makes the storage smaller: tells the driver, waits for what is in flight behind the new end,
    /// cuts. Returns sectors.
    ///
    /// `while_drained` calls its argument while no request is in flight, or returns false if it
    /// could not.
    ///
    /// # Errors
    /// What the host says, or that requests stay in flight; the disk is then as large as before.
    pub fn shrink(
        &self,
        size_bytes: u64,
        while_drained: impl FnOnce(&mut dyn FnMut()) -> bool,
    ) -> io::Result<u64> {
        let _one_at_a_time = self.resizing();
        self.change_capacity(|engine| engine.announce(size_bytes))?;
        let mut cut = Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the requests in flight did not end in time, or could not be made stable",
        ));
        while_drained(&mut || cut = self.change_capacity(|engine| engine.cut(size_bytes)));
        if cut.is_err() {
            self.change_capacity(|engine| engine.refresh())?;
        }
        cut
    }

    /// Lets flushes succeed again after lost writes, once somebody has dealt with the loss.
    /// Returns whether there were any.
    #[must_use]
    pub fn clear_error(&self) -> bool {
        self.shared.clear_lost_writes()
    }

    /// Syncs that have ended well and are answered when those end that were under way beside them.
    #[must_use]
    pub fn waiting_syncs(&self) -> usize {
        self.shared.waiting_syncs()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn config_space(&self) -> ConfigSpace {
        let engine = self.shared.engine();
        let read_only = engine.is_read_only();
        ConfigSpace {
            capacity_sectors: engine.capacity_sectors(),
            size_max_bytes: SIZE_MAX_BYTES,
            seg_max: (self.options.seg_max)
                .min(u32::from(self.options.queue_size).saturating_sub(2).max(1)),
            topology: engine.topology(),
            writeback: self.shared.write_cache().field(),
            num_queues: self.options.num_queues,
            discard: engine.can_discard().then_some(DISCARD),
            write_zeroes: (!read_only).then_some(WRITE_ZEROES),
            write_zeroes_may_unmap: engine.can_discard(),
        }
    }

    /// Does `change`, and tells the driver if the capacity differs afterwards. The caller holds
    /// `resizing`.
    fn change_capacity(
        &self,
        change: impl FnOnce(&dyn Engine) -> io::Result<u64>,
    ) -> io::Result<u64> {
        let engine = self.shared.engine();
        let before = engine.capacity_sectors();
        let after = change(&**engine)?;
        if after != before {
            let told = self.back_channel.config_changed();
            let who = if told {
                "the front-end was told"
            } else {
                "no front-end to tell"
            };
            log::info!("the disk has {after} sectors instead of {before}; {who}");
        }
        if after == 0 {
            log::error!("the disk has no sectors: every request of the guest fails");
        }
        Ok(after)
    }

    /// One change of size at a time.
    fn resizing(&self) -> MutexGuard<'_, ()> {
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for BlockDevice {
    type Worker = Requests<BlockWorker>;

    fn num_queues(&self) -> u16 {
        self.options.num_queues
    }

    fn max_queue_size(&self) -> u16 {
        self.options.queue_size
    }

    fn features(&self) -> u64 {
        let engine = self.shared.engine();
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ,
        ];
        if engine.is_read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.push(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        if engine.can_discard() {
            bits.push(VIRTIO_BLK_F_DISCARD);
        }
        bits.into_iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn acked_features(&self, features: u64) {
        self.shared.acknowledge(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config_space().read(offset, size).unwrap_or_default()
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut config = self.config_space();
        match config.write(offset, bytes) {
            Ok(_) if self.shared.write_cache().set_field(config.writeback) => {}
            // The byte is the driver's: front-ends pass on whatever it writes, and an error would
            // end the connection.
            Ok(_) | Err(ConfigSpaceError::BadWriteback { .. }) => {
                limited!(debug, "writeback {bytes:?} ignored");
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn seed(&self, _index: u16) {}

    fn worker(&self) -> io::Result<Requests<BlockWorker>> {
        Ok(Requests::new(BlockWorker::new(Arc::clone(&self.shared))))
    }

    fn files(&self) -> Vec<Arc<OwnedFd>> {
        self.shared.engine().files()
    }

    fn engine(&self) -> IoEngine {
        self.shared.engine().io_engine()
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.stats
    }

    fn back_channel(&self) -> Option<&BackChannel> {
        Some(&self.back_channel)
    }

    fn reset(&self) {
        self.shared.reset();
    }

    fn session_ended(&self) {
        self.shared.session_ended();
    }

    fn reload(&self) -> io::Result<()> {
        // The thread that makes the disk smaller waits for this one, and looks at the size itself.
        let Ok(_one_at_a_time) = self.resizing.try_lock() else {
            return Ok(());
        };
        self.change_capacity(|engine| engine.refresh())?;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.shared.flush_now()
    }

    /// Firmware drives a transitional device as a legacy one (OVMF does), and some VMMs have legacy
    /// disks only (QEMU's microvm). Requests look the same (virtio 1.3 §5.2.6, "Legacy Interface").
    /// The fields that a legacy driver writes in the byte order of the guest are little-endian if
    /// the host is.
    fn serves_legacy_drivers(&self) -> bool {
        cfg!(target_endian = "little")
    }
}
