// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of the device: features, configuration space, the write cache.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
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
use crate::image::CacheMode;
use crate::request::{ID_BYTES, Limits, Request, SegmentLimits, device_id};
use crate::serve::{BlockWorker, KINDS};
use crate::syncs::{Ended, Sync, Syncs};
use crate::write_cache::WriteCache;

/// Longest segment asked for. Longer ones are served too; this only keeps drivers reasonable.
const SIZE_MAX_BYTES: u32 = 1 << 20;
/// 1 GiB a segment: no more than bookkeeping for a file system.
const DISCARD: SegmentLimits = SegmentLimits {
    max_sectors: 1 << 21,
    max_segments: 256,
};
/// 16 MiB a segment, since zeroes may have to be written.
const WRITE_ZEROES: SegmentLimits = SegmentLimits {
    max_sectors: 1 << 15,
    max_segments: 256,
};

/// What the device is made of.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Queues offered.
    pub num_queues: u16,
    /// Largest queue accepted.
    pub queue_size: u16,
    /// Most segments of a read or write that drivers are asked for. Without indirect tables they
    /// have to fit a ring, with header and status, and Linux does not look whether they do.
    pub seg_max: u32,
    /// What `GET_ID` answers; cut to 20 bytes.
    pub serial: String,
    /// How writes become stable.
    pub cache: CacheMode,
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct BlockDevice {
    shared: Arc<Shared>,
}

/// What the control thread and the data threads share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    options: BlockOptions,
    id: [u8; ID_BYTES],
    acked_features: AtomicU64,
    write_cache: WriteCache,
    syncs: Arc<Syncs>,
    /// What a sync has failed with that may have lost what others wrote; 0: none has.
    lost_errno: AtomicI32,
    stats: Arc<DeviceStats>,
    back_channel: BackChannel,
    /// One change of size at a time.
    resizing: Mutex<()>,
}

impl Shared {
    #[inline]
    pub(crate) fn write_cache(&self) -> &WriteCache {
        &self.write_cache
    }

    #[inline]
    pub(crate) fn has_lost_writes(&self) -> bool {
        self.lost_errno.load(Ordering::Acquire) != 0
    }

    /// What the sync that has lost writes failed with.
    pub(crate) fn lost_writes_error(&self) -> Option<io::Error> {
        let errno = self.lost_errno.load(Ordering::Acquire);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    /// A sync is about to begin; `None` where each is told its own errors.
    pub(crate) fn begin_sync(&self) -> Option<Sync> {
        self.engine.caches_writes().then(|| self.syncs.begin())
    }

    pub(crate) fn id(&self) -> [u8; ID_BYTES] {
        self.id
    }

    /// What a queue that starts now may ask for.
    pub(crate) fn limits(&self) -> Limits {
        let acked = |bit: u32| self.acked(bit);
        Limits {
            capacity_sectors: self.engine.capacity_sectors(),
            read_only: self.engine.is_read_only(),
            flush: acked(VIRTIO_BLK_F_FLUSH) || acked(VIRTIO_BLK_F_CONFIG_WCE),
            discard: acked(VIRTIO_BLK_F_DISCARD).then_some(DISCARD),
            write_zeroes: acked(VIRTIO_BLK_F_WRITE_ZEROES).then_some(WRITE_ZEROES),
            write_zeroes_may_unmap: self.engine.can_discard(),
        }
    }

    /// Takes note of a failed request: `errno`, and whether it was to be stable. Returns what that
    /// means for other syncs.
    pub(crate) fn note_failure(&self, request: Request, errno: i32, synced: bool) -> Ended {
        let is_sync = synced
            && match request {
                // Memory that the guest should not have named fails before anything is synced.
                Request::Out { .. } => errno != libc::EFAULT,
                // Nor does a range that could not be cleared; an engine says EIO for its sync.
                Request::Discard { .. } | Request::WriteZeroes { .. } => !matches!(
                    errno,
                    libc::ENOSPC
                        | libc::EDQUOT
                        | libc::EFBIG
                        | libc::EFAULT
                        | libc::EINVAL
                        | libc::ENXIO
                        | libc::ECANCELED
                ),
                _ => true,
            };
        if is_sync {
            self.note_failed_sync(errno);
        }
        limited!(warn, "{request:?} failed: errno {errno}");
        if is_sync { Ended::Failed } else { Ended::Void }
    }

    /// A sync has failed. Where the host caches writes, `errno` may be that of any that was answered
    /// and not stable, and nobody will be told of it again. Else it is that of the request alone.
    fn note_failed_sync(&self, errno: i32) {
        if !self.engine.caches_writes() || !self.write_cache.has_volatile_writes() {
            return;
        }
        let first = self
            .lost_errno
            .compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            log::error!(
                "a sync of the image has failed ({}); written data may be lost, so every flush and \
                 every stable write fails from now on, until a restart or `ctl clear-error`",
                io::Error::from_raw_os_error(errno)
            );
        }
    }

    /// Makes everything written so far stable, waiting for it.
    fn flush_now(&self) -> io::Result<()> {
        let sync = self.begin_sync();
        let synced = self.engine.flush_now();
        if let Err(error) = &synced {
            self.note_failed_sync(error.raw_os_error().unwrap_or(libc::EIO));
        }
        let good = sync.is_none_or(|sync| {
            sync.end_and_wait(if synced.is_ok() {
                Ended::Well
            } else {
                Ended::Failed
            })
        });
        synced?;
        if good && !self.has_lost_writes() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    fn acked(&self, bit: u32) -> bool {
        self.acked_features.load(Ordering::Acquire) & (1 << bit) != 0
    }

    fn config_space(&self) -> ConfigSpace {
        let read_only = self.engine.is_read_only();
        ConfigSpace {
            capacity_sectors: self.engine.capacity_sectors(),
            size_max_bytes: SIZE_MAX_BYTES,
            seg_max: (self.options.seg_max)
                .min(u32::from(self.options.queue_size).saturating_sub(2).max(1)),
            topology: self.engine.topology(),
            writeback: self.write_cache.field(),
            num_queues: self.options.num_queues,
            discard: self.engine.can_discard().then_some(DISCARD),
            write_zeroes: (!read_only).then_some(WRITE_ZEROES),
            write_zeroes_may_unmap: self.engine.can_discard(),
        }
    }

    fn features(&self) -> u64 {
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
        if self.engine.is_read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.push(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        if self.engine.can_discard() {
            bits.push(VIRTIO_BLK_F_DISCARD);
        }
        bits.into_iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    /// Does `change`, and tells the driver if the capacity is another afterwards. Who calls it holds
    /// `resizing`.
    fn change_capacity(
        &self,
        change: impl FnOnce(&dyn Engine) -> io::Result<u64>,
    ) -> io::Result<u64> {
        let before = self.engine.capacity_sectors();
        let after = change(&*self.engine)?;
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

impl BlockDevice {
    /// A device on `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, options: BlockOptions) -> Self {
        let shared = Shared {
            engine,
            id: device_id(&options.serial),
            write_cache: WriteCache::new(options.cache),
            options,
            acked_features: AtomicU64::new(0),
            syncs: Arc::default(),
            lost_errno: AtomicI32::new(0),
            stats: Arc::new(DeviceStats::new("blk", KINDS)),
            back_channel: BackChannel::default(),
            resizing: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Looks at the size of the storage again and tells the driver of a change. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn refresh(&self) -> io::Result<u64> {
        let _one_at_a_time = self.shared.resizing();
        self.shared.change_capacity(|engine| engine.refresh())
    }

    /// Makes the storage larger and tells the driver. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn resize(&self, size_bytes: u64) -> io::Result<u64> {
        let _one_at_a_time = self.shared.resizing();
        self.shared
            .change_capacity(|engine| engine.resize(size_bytes))
    }

    /// Makes the storage smaller: tells the driver, waits for what is in flight behind the new end,
    /// cuts. Returns sectors.
    ///
    /// `while_drained` calls what it is given while no request is in flight, or says that it could
    /// not.
    ///
    /// # Errors
    /// What the host says, or that requests stay in flight; the disk is then as large as before.
    pub fn shrink(
        &self,
        size_bytes: u64,
        while_drained: impl FnOnce(&mut dyn FnMut()) -> bool,
    ) -> io::Result<u64> {
        let _one_at_a_time = self.shared.resizing();
        let shared = &self.shared;
        shared.change_capacity(|engine| engine.announce(size_bytes))?;
        let mut cut = Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the requests in flight did not end in time, or could not be made stable",
        ));
        while_drained(&mut || cut = shared.change_capacity(|engine| engine.cut(size_bytes)));
        if cut.is_err() {
            shared.change_capacity(|engine| engine.refresh())?;
        }
        cut
    }

    /// Lets flushes succeed again after lost writes, for someone who has seen to what was lost.
    /// Returns whether there were any.
    #[must_use]
    pub fn clear_error(&self) -> bool {
        let errno = self.shared.lost_errno.swap(0, Ordering::AcqRel);
        if errno != 0 {
            log::warn!("the failed sync is forgotten, as asked for: flushes can succeed again");
        }
        errno != 0
    }

    /// Syncs that have ended well, and are answered when those have ended that they were under way
    /// with.
    #[must_use]
    pub fn waiting_syncs(&self) -> usize {
        self.shared.syncs.waiting()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Device for BlockDevice {
    type Worker = Requests<BlockWorker>;

    fn num_queues(&self) -> u16 {
        self.shared.options.num_queues
    }

    fn max_queue_size(&self) -> u16 {
        self.shared.options.queue_size
    }

    fn features(&self) -> u64 {
        self.shared.features()
    }

    fn acked_features(&self, features: u64) {
        let shared = &self.shared;
        shared.acked_features.store(features, Ordering::Release);
        shared.write_cache.acknowledge(
            shared.acked(VIRTIO_BLK_F_FLUSH),
            shared.acked(VIRTIO_BLK_F_CONFIG_WCE),
        );
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.shared
            .config_space()
            .read(offset, size)
            .unwrap_or_default()
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut config = self.shared.config_space();
        match config.write(offset, bytes) {
            Ok(_) if self.shared.write_cache.set_field(config.writeback) => {}
            // The byte is the driver's: front-ends hand on whatever it writes, and an error would
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
        self.shared.engine.files()
    }

    fn engine(&self) -> IoEngine {
        self.shared.engine.io_engine()
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.shared.stats
    }

    fn back_channel(&self) -> Option<&BackChannel> {
        Some(&self.shared.back_channel)
    }

    fn reset(&self) {
        self.shared.acked_features.store(0, Ordering::Release);
        self.shared.write_cache.reset();
    }

    fn session_ended(&self) {
        self.shared.acked_features.store(0, Ordering::Release);
        self.shared.write_cache.session_ended();
    }

    fn reload(&self) -> io::Result<()> {
        // The thread that makes the disk smaller waits for this one, and looks at the size itself.
        let Ok(_one_at_a_time) = self.shared.resizing.try_lock() else {
            return Ok(());
        };
        self.shared.change_capacity(|engine| engine.refresh())?;
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.shared.flush_now()
    }

    /// Firmware drives a transitional device as a legacy one (OVMF does), and VMMs have disks that
    /// are nothing else (QEMU's microvm). Requests look the same (virtio 1.3 §5.2.6, "Legacy
    /// Interface"); what a legacy driver has in the byte order of the guest is little-endian here if
    /// the host is.
    fn serves_legacy_drivers(&self) -> bool {
        cfg!(target_endian = "little")
    }
}
