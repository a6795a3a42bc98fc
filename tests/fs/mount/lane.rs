// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue that several threads post to and one reaps.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringside_frontend::ring::Segment;
use ringside_frontend::vring::{Event, Vring};
use ringside_frontend::{FrontendError, Result};

/// How long a sleeper does without looking.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Whose request it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Which clone of `/dev/fuse`.
    pub(crate) channel: usize,
    /// Which of its buffers.
    pub(crate) slot: usize,
}

#[derive(Debug)]
struct Ring {
    vring: Vring,
    by_head: Vec<Tag>,
}

/// A virtqueue.
#[derive(Debug)]
pub(crate) struct Lane {
    ring: Mutex<Ring>,
    /// Notified when descriptors come free.
    room: Condvar,
    call: Event,
}

impl Lane {
    pub(crate) fn new(vring: Vring) -> Result<Self> {
        let size = usize::from(vring.ring.config().size);
        Ok(Self {
            call: vring.call.try_clone()?,
            ring: Mutex::new(Ring {
                vring,
                by_head: vec![Tag::default(); size],
            }),
            room: Condvar::new(),
        })
    }

    /// Posts a chain, as soon as there is room for it, and kicks if the device wants it.
    ///
    /// # Errors
    ///
    /// When it does not fit into an empty ring either, or the kick fails.
    pub(crate) fn post(&self, tag: Tag, segments: &[Segment]) -> Result<()> {
        let mut ring = self.lock();
        let config = ring.vring.ring.config();
        let (direct, indirect) = if segments.len() <= usize::from(config.indirect_len) {
            (&[][..], segments)
        } else {
            (segments, &[][..])
        };
        let head = loop {
            match ring.vring.ring.add(direct, indirect) {
                Ok(head) => break head,
                Err(FrontendError::RingFull { .. }) if ring.vring.ring.free_len() < config.size => {
                    let waited = self.room.wait_timeout(ring, LOOK_INTERVAL);
                    ring = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(place) = ring.by_head.get_mut(usize::from(head)) {
            *place = tag;
        }
        ring.vring.publish()?;
        Ok(())
    }

    /// Waits for completions, if only for a while, and appends them with their used lengths.
    ///
    /// # Errors
    ///
    /// When the back-end has broken the used ring.
    pub(crate) fn reap(&self, into: &mut Vec<(Tag, u32)>) -> Result<()> {
        let mut ring = self.lock();
        loop {
            while let Some(used) = ring.vring.ring.pop_used()? {
                let tag = ring.by_head.get(usize::from(used.head)).copied();
                into.push((tag.unwrap_or_default(), used.len));
            }
            if !into.is_empty() {
                self.room.notify_all();
                return Ok(());
            }
            if !ring.vring.ring.arm_call() {
                break;
            }
        }
        drop(ring);
        match self.call.wait("call", LOOK_INTERVAL) {
            Ok(_) | Err(FrontendError::Timeout { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
