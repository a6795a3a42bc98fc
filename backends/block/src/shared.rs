// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control side and the data side of the device share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use ringside_common::limited;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::engine::Engine;
use crate::request::{ID_BYTES, Limits, Request, SegmentLimits, device_id};
use crate::storage::CacheMode;
use crate::syncs::{Ended, Sync, Syncs};
use crate::write_cache::WriteCache;

/// 1 GiB a segment: no more than bookkeeping for a file system.
pub(crate) const DISCARD: SegmentLimits = SegmentLimits {
    max_sectors: 1 << 21,
    max_segments: 256,
};
/// 16 MiB a segment, since zeroes may have to be written.
pub(crate) const WRITE_ZEROES: SegmentLimits = SegmentLimits {
    max_sectors: 1 << 15,
    max_segments: 256,
};

/// What the control thread and the data threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    engine: Arc<dyn Engine>,
    id: [u8; ID_BYTES],
    acked_features: AtomicU64,
    write_cache: WriteCache,
    syncs: Arc<Syncs>,
    /// The errno of a sync that failed and may have lost what others wrote; 0 if none did.
    lost_errno: AtomicI32,
}

impl Shared {
    pub(crate) fn new(engine: Arc<dyn Engine>, serial: &str, cache: CacheMode) -> Self {
        Self {
            engine,
            id: device_id(serial),
            acked_features: AtomicU64::new(0),
            write_cache: WriteCache::new(cache),
            syncs: Arc::default(),
            lost_errno: AtomicI32::new(0),
        }
    }

    #[inline]
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    #[inline]
    pub(crate) fn write_cache(&self) -> &WriteCache {
        &self.write_cache
    }

    #[inline]
    pub(crate) fn has_lost_writes(&self) -> bool {
        self.lost_errno.load(Ordering::Acquire) != 0
    }

    /// The error of the sync that has lost writes.
    pub(crate) fn lost_writes_error(&self) -> Option<io::Error> {
        let errno = self.lost_errno.load(Ordering::Acquire);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    /// Lets flushes succeed again after lost writes. Returns whether there were any.
    pub(crate) fn clear_lost_writes(&self) -> bool {
        let errno = self.lost_errno.swap(0, Ordering::AcqRel);
        if errno != 0 {
            log::warn!("the failed sync is forgotten, as asked for: flushes can succeed again");
        }
        errno != 0
    }

    /// Syncs that have ended well and wait for those that were under way beside them.
    pub(crate) fn waiting_syncs(&self) -> usize {
        self.syncs.waiting()
    }

    /// The driver has acknowledged these features.
    pub(crate) fn acknowledge(&self, features: u64) {
        self.acked_features.store(features, Ordering::Release);
        self.write_cache.acknowledge(
            self.acked(VIRTIO_BLK_F_FLUSH),
            self.acked(VIRTIO_BLK_F_CONFIG_WCE),
        );
    }

    /// The device is reset; its session goes on.
    pub(crate) fn reset(&self) {
        self.acked_features.store(0, Ordering::Release);
        self.write_cache.reset();
    }

    pub(crate) fn session_ended(&self) {
        self.acked_features.store(0, Ordering::Release);
        self.write_cache.session_ended();
    }

    /// A sync is about to begin; `None` where each sync is told of its own errors only.
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

    /// A request has failed with `errno`; `synced` says whether it promised stability. Returns what
    /// that means for other syncs.
    pub(crate) fn note_failure(&self, request: Request, errno: i32, synced: bool) -> Ended {
        let is_sync = synced
            && match request {
                // A bad address of guest memory fails before anything is synced.
                Request::Out { .. } => errno != libc::EFAULT,
                // So does a range that cannot be cleared; if the sync fails, an engine says EIO.
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

    /// A sync has failed. Where the host caches writes, the error may concern any write that was
    /// answered before it was stable, and the kernel reports it only once. Elsewhere it concerns
    /// the request alone.
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
    pub(crate) fn flush_now(&self) -> io::Result<()> {
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
}
