// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the write cache is on, and who has said so.
//!
//! The features that the driver acknowledged decide, and the `writeback` field of the configuration
//! space (virtio 1.3 §5.2.5.2). The field is the driver's, but front-ends hand a write to it on
//! once: QEMU repeats it neither when it connects anew, nor when the guest boots, which then reads
//! QEMU's copy. A driver that believes in write-through never flushes, and writes that were
//! answered too early would be lost without a word. So there is *doubt*:
//!
//! * after a session, or before a reset of the device, in which the driver had switched the cache
//!   off: also the next driver may have read that it is off;
//! * on a ring that has been served before, which a new session takes over: nobody knows what its
//!   driver was told.
//!
//! In doubt every write is stable before its answer, and the field says so. The driver ends it by
//! writing the field, or by a FLUSH, which it would not send without a cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::CacheMode;

/// The write cache of a device.
#[derive(Debug)]
pub(crate) struct WriteCache {
    mode: CacheMode,
    /// Read for each request.
    is_on: AtomicBool,
    /// A copy of `state.doubt` that is read without the lock.
    in_doubt: AtomicBool,
    /// A write was started that need not be stable when it is answered, or may have been by a
    /// process before this one. Read for each such write, and written once.
    wrote_volatile: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "what has been said, each by another message"
)]
struct State {
    flush_acked: bool,
    config_acked: bool,
    /// The field as the driver has left it.
    field: bool,
    doubt: bool,
    /// The driver of this session has shown that it knows, by the field or by a flush.
    told: bool,
    /// A ring was started in this session, or in one before it.
    started: bool,
    started_before: bool,
}

impl WriteCache {
    pub(crate) fn new(mode: CacheMode) -> Self {
        let cache = Self {
            mode,
            is_on: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            wrote_volatile: AtomicBool::new(false),
            state: Mutex::new(State {
                flush_acked: false,
                config_acked: false,
                field: mode != CacheMode::Writethrough,
                doubt: false,
                told: false,
                started: false,
                started_before: false,
            }),
        };
        cache.publish(&cache.lock());
        cache
    }

    /// Whether a write that starts now may be answered before it is stable.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The field as the configuration space shows it.
    pub(crate) fn field(&self) -> bool {
        let state = self.lock();
        state.field && !state.doubt
    }

    /// A write starts that need not be stable when it is answered.
    #[inline]
    pub(crate) fn note_volatile_write(&self) {
        if !self.wrote_volatile.load(Ordering::Relaxed) {
            self.wrote_volatile.store(true, Ordering::Release);
        }
    }

    /// Whether there may be writes that were answered and are not stable.
    pub(crate) fn has_volatile_writes(&self) -> bool {
        self.wrote_volatile.load(Ordering::Acquire)
    }

    /// `SET_FEATURES`.
    pub(crate) fn acknowledge(&self, flush: bool, config: bool) {
        let mut state = self.lock();
        state.flush_acked = flush;
        state.config_acked = config;
        // virtio 1.3 §5.2.5.2: with CONFIG_WCE and without FLUSH the cache starts switched off.
        if config && !flush {
            state.field = false;
        }
        self.publish(&state);
    }

    /// The driver has written the field; returns whether it has one.
    pub(crate) fn set_field(&self, on: bool) -> bool {
        let mut state = self.lock();
        if state.config_acked {
            state.field = on;
            state.doubt = false;
            state.told = true;
            self.publish(&state);
        }
        state.config_acked
    }

    /// The driver has sent a FLUSH.
    #[inline]
    pub(crate) fn flush_came(&self) {
        if self.in_doubt.load(Ordering::Relaxed) {
            let mut state = self.lock();
            state.doubt = false;
            state.told = true;
            self.publish(&state);
        }
    }

    /// A ring has started; `served` says whether it had been served before.
    pub(crate) fn ring_started(&self, served: bool) {
        let mut state = self.lock();
        if served && !state.told {
            state.doubt = true;
        }
        if served && !state.started_before {
            // Another process has, and may have answered writes before they were stable.
            self.wrote_volatile.store(true, Ordering::Release);
        }
        state.started = true;
        self.publish(&state);
    }

    /// The device is reset; its session goes on, perhaps with another driver.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        self.begin_anew(&mut state);
        self.publish(&state);
    }

    /// The session has ended.
    pub(crate) fn session_ended(&self) {
        let mut state = self.lock();
        self.begin_anew(&mut state);
        state.started_before |= state.started;
        state.started = false;
        self.publish(&state);
    }

    fn begin_anew(&self, state: &mut State) {
        // Without FLUSH it was the features that switched it off, and the next driver has its own.
        state.doubt |= state.config_acked && state.flush_acked && !state.field;
        state.field = self.mode != CacheMode::Writethrough;
        state.flush_acked = false;
        state.config_acked = false;
        state.told = false;
    }

    /// virtio 1.3 §5.2.5.2: which of the two the driver can tell about decides.
    fn publish(&self, state: &State) {
        let on = if state.config_acked {
            state.field
        } else {
            // A driver that cannot flush must not need to.
            state.flush_acked && self.mode != CacheMode::Writethrough
        };
        let on = (on && !state.doubt) || self.mode == CacheMode::Unsafe;
        self.in_doubt.store(state.doubt, Ordering::Release);
        self.is_on.store(on, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
