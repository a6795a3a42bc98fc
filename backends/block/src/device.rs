// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of the device: features, configuration space, the write cache.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringside_common::backchannel::BackChannel;
use ringside_common::device::{Device, EVENT_RELOAD};
use ringside_common::io::Engine as IoEngine;
use ringside_common::logging::LogLimiter;
use ringside_common::stats::DeviceStats;
use ringside_common::worker::Requests;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::config_space::{ConfigSpace, ConfigSpaceError};
use crate::engine::Engine;
use crate::image::CacheMode;
use crate::request::{ID_BYTES, Limits, Request, SegmentLimits, device_id};
use crate::serve::{BlockWorker, KINDS};

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

static IO_ERROR: LogLimiter = LogLimiter::new();
static IGNORED_WRITE: LogLimiter = LogLimiter::new();

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
    /// The `writeback` field of the configuration space.
    wce: AtomicBool,
    /// Whether the write cache is on, all features considered. Read for each request.
    writeback: AtomicBool,
    /// A sync has failed.
    lost_writes: AtomicBool,
    stats: Arc<DeviceStats>,
    back_channel: BackChannel,
    /// One change of size at a time.
    resizing: Mutex<()>,
}

impl Shared {
    #[inline]
    pub(crate) fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn has_lost_writes(&self) -> bool {
        self.lost_writes.load(Ordering::Acquire)
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

    /// Takes note of a failed request: `errno`, and whether it was to be stable.
    pub(crate) fn note_failure(&self, request: Request, errno: i32, synced: bool) {
        // A full disk fails the write, not the sync of what was written before.
        let full = matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EFBIG);
        // Nor does memory that the guest should not have named.
        let guest = matches!(errno, libc::EFAULT | libc::EINVAL | libc::ENXIO);
        if request == Request::Flush || (synced && !full && !guest) {
            self.note_lost_writes(&io::Error::from_raw_os_error(errno));
        }
        if let Some(suppressed) = IO_ERROR.allow() {
            log::warn!("{request:?} failed: errno {errno} ({suppressed} more not shown)");
        }
    }

    /// A sync has failed.
    fn note_lost_writes(&self, error: &io::Error) {
        if !self.lost_writes.swap(true, Ordering::AcqRel) {
            log::error!(
                "a sync of the image has failed ({error}); written data may be lost, so every \
                 flush fails from now on"
            );
        }
    }

    /// Makes everything written so far stable, waiting for it.
    fn flush_now(&self) -> io::Result<()> {
        let synced = self.engine.flush_now();
        if let Err(error) = &synced {
            self.note_lost_writes(error);
        } else if self.has_lost_writes() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        synced
    }

    fn acked(&self, bit: u32) -> bool {
        self.acked_features.load(Ordering::Acquire) & (1 << bit) != 0
    }

    /// virtio 1.3 §5.2.5.2: which of the two the driver can tell about decides.
    fn update_writeback(&self) {
        let on = if self.acked(VIRTIO_BLK_F_CONFIG_WCE) {
            self.wce.load(Ordering::Acquire)
        } else {
            // A driver that cannot flush must not need to.
            self.acked(VIRTIO_BLK_F_FLUSH) && self.options.cache != CacheMode::Writethrough
        };
        self.writeback.store(
            on || self.options.cache == CacheMode::Unsafe,
            Ordering::Release,
        );
    }

    fn reset(&self) {
        self.acked_features.store(0, Ordering::Release);
        self.wce.store(
            self.options.cache != CacheMode::Writethrough,
            Ordering::Release,
        );
        self.update_writeback();
    }

    fn config_space(&self) -> ConfigSpace {
        let read_only = self.engine.is_read_only();
        ConfigSpace {
            capacity_sectors: self.engine.capacity_sectors(),
            size_max_bytes: SIZE_MAX_BYTES,
            seg_max: (self.options.seg_max)
                .min(u32::from(self.options.queue_size).saturating_sub(2).max(1)),
            topology: self.engine.topology(),
            writeback: self.wce.load(Ordering::Acquire),
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

    /// Does `change`, and tells the driver if the capacity is another afterwards.
    fn change_capacity(
        &self,
        change: impl FnOnce(&dyn Engine) -> io::Result<u64>,
    ) -> io::Result<u64> {
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(after)
    }
}

impl BlockDevice {
    /// A device on `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, options: BlockOptions) -> Self {
        let shared = Shared {
            engine,
            id: device_id(&options.serial),
            options,
            acked_features: AtomicU64::new(0),
            wce: AtomicBool::new(true),
            writeback: AtomicBool::new(false),
            lost_writes: AtomicBool::new(false),
            stats: Arc::new(DeviceStats::new("blk", KINDS)),
            back_channel: BackChannel::default(),
            resizing: Mutex::default(),
        };
        shared.reset();
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Looks at the size of the storage again and tells the driver of a change. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn refresh(&self) -> io::Result<u64> {
        self.shared.change_capacity(|engine| engine.refresh())
    }

    /// Changes the size of the storage and tells the driver. Returns sectors.
    ///
    /// # Errors
    /// What the host says.
    pub fn resize(&self, size_bytes: u64) -> io::Result<u64> {
        self.shared
            .change_capacity(|engine| engine.resize(size_bytes))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl VhostUserBackend for BlockDevice {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        usize::from(self.shared.options.num_queues)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.shared.options.queue_size)
    }

    fn features(&self) -> u64 {
        self.shared.features()
    }

    fn acked_features(&self, features: u64) {
        let shared = &self.shared;
        shared.acked_features.store(features, Ordering::Release);
        // virtio 1.3 §5.2.5.2: with CONFIG_WCE and without FLUSH the cache starts switched off.
        if shared.acked(VIRTIO_BLK_F_CONFIG_WCE) && !shared.acked(VIRTIO_BLK_F_FLUSH) {
            shared.wce.store(false, Ordering::Release);
        }
        shared.update_writeback();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.shared.reset();
    }

    /// The ring knows; there is nothing for the device to do.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.shared
            .config_space()
            .read(offset, size)
            .unwrap_or_default()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut config = self.shared.config_space();
        match config.write(offset, bytes) {
            Ok(_) if self.shared.acked(VIRTIO_BLK_F_CONFIG_WCE) => {
                self.shared.wce.store(config.writeback, Ordering::Release);
                self.shared.update_writeback();
            }
            // The byte is the driver's: front-ends hand on whatever it writes, and an error would
            // end the connection.
            Ok(_) | Err(ConfigSpaceError::BadWriteback { .. }) => {
                if let Some(suppressed) = IGNORED_WRITE.allow() {
                    log::debug!("writeback {bytes:?} ignored ({suppressed} more not shown)");
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    /// Data threads have their own snapshot of memory.
    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap<()>>) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        _vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        if device_event == EVENT_RELOAD {
            self.refresh()?;
        }
        Ok(())
    }
}

impl Device for BlockDevice {
    type Worker = Requests<BlockWorker>;

    fn seed(&self, _index: u16) {}

    fn worker(&self) -> Requests<BlockWorker> {
        Requests(BlockWorker::new(Arc::clone(&self.shared)))
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

    fn back_channel(&self) -> &BackChannel {
        &self.shared.back_channel
    }

    fn session_ended(&self) {
        self.shared.reset();
    }

    fn flush(&self) -> io::Result<()> {
        self.shared.flush_now()
    }

    /// Firmware drives a transitional device as a legacy one (OVMF does), and VMMs have disks that
    /// are nothing else (QEMU's microvm). Requests look the same (virtio 1.3 §5.2.6, "Legacy Interface"); what a legacy
    /// driver has in the byte order of the guest is little-endian here if the host is.
    fn serves_legacy_drivers(&self) -> bool {
        cfg!(target_endian = "little")
    }
}
