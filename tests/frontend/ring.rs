// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of a split virtqueue (virtio 1.3 §2.7).
//!
//! [`SplitRing`] keeps its own copy of everything it must remember (free list, chain ends), so that
//! neither a broken back-end nor a test writing raw values into the ring confuses it. Adding a
//! chain, publishing and reaping allocate nothing. Who wakes whom is in `ring::notify`; the raw
//! setters live in `ring::raw`.

mod desc;
mod notify;
mod raw;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use desc::{Descriptor, RingLayout, Segment, desc_flag};
pub use notify::need_event;
pub use raw::{UsedElem, write_table};

use super::error::{FrontendError, Result};
use super::memory::{GuestMemory, GuestSlice};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no calls.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device wants no kicks.
pub const USED_NO_NOTIFY: u16 = 1;

/// Marks a head that is not outstanding.
const NOT_OUTSTANDING: u16 = 0;

/// Whether the driver wants to be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallMode {
    /// Calls are wanted whenever [`SplitRing::arm_call`] was the last word.
    #[default]
    Wanted,
    /// The driver polls the used ring and wants none.
    Never,
}

/// What a ring is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors: a power of two up to 32768.
    pub size: u16,
    /// Whether `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Descriptors per indirect table (one table per head); 0 for none.
    pub indirect_len: u16,
    /// Whether calls are wanted at the start.
    pub calls: CallMode,
}

/// A completed chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head that was returned by [`SplitRing::add`].
    pub head: u16,
    /// Bytes the device claims to have written.
    pub len: u32,
}

/// The driver side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    config: RingConfig,
    layout: RingLayout,
    desc: GuestSlice,
    avail: GuestSlice,
    used: GuestSlice,
    /// The indirect tables, one after the other; empty window without indirect descriptors.
    tables: Option<GuestSlice>,
    tables_gpa: u64,
    /// Free list and chains: the descriptor that follows.
    next: Vec<u16>,
    /// Per head: number of direct descriptors of its chain, or [`NOT_OUTSTANDING`].
    chain_len: Vec<u16>,
    /// Per head: the last direct descriptor of its chain.
    chain_end: Vec<u16>,
    free_head: u16,
    free_len: u16,
    next_avail: u16,
    published: u16,
    next_used: u16,
    /// The used idx last seen, so that the shared line is read once per batch.
    seen_used: u16,
    /// The last `used_event` written to keep calls away.
    far_event: u16,
}

impl SplitRing {
    /// Allocates and clears a ring in guest memory.
    ///
    /// # Errors
    ///
    /// When the size is no power of two or memory runs out.
    pub fn new(memory: &Arc<GuestMemory>, config: RingConfig) -> Result<Self> {
        let layout = RingLayout::alloc(memory, config.size)?;
        Self::at(memory, config, layout)
    }

    /// A ring at chosen addresses; each part must lie in one region and be aligned to 8 bytes
    /// (descriptor table) or 4.
    ///
    /// # Errors
    ///
    /// When an address is not mapped or memory for indirect tables runs out.
    pub fn at(memory: &Arc<GuestMemory>, config: RingConfig, layout: RingLayout) -> Result<Self> {
        let size = usize::from(config.size);
        if !size.is_power_of_two() {
            return Err(FrontendError::Unusable {
                what: "ring size",
                value: u64::from(config.size),
            });
        }
        let tables_bytes = size * usize::from(config.indirect_len) * Descriptor::BYTES;
        let (tables, tables_gpa) = if tables_bytes == 0 {
            (None, 0)
        } else {
            let gpa = memory.alloc(tables_bytes, Descriptor::BYTES)?;
            (Some(memory.slice(gpa, tables_bytes)?), gpa)
        };
        let mut ring = Self {
            config,
            layout,
            desc: memory.slice(layout.desc_gpa, RingLayout::desc_bytes(config.size))?,
            avail: memory.slice(layout.avail_gpa, RingLayout::avail_bytes(config.size))?,
            used: memory.slice(layout.used_gpa, RingLayout::used_bytes(config.size))?,
            tables,
            tables_gpa,
            next: vec![0; size],
            chain_len: vec![NOT_OUTSTANDING; size],
            chain_end: vec![0; size],
            free_head: 0,
            free_len: 0,
            next_avail: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
            far_event: 0,
        };
        ring.reset(0);
        Ok(ring)
    }

    /// Clears the ring and starts all indices at `base`; outstanding chains are forgotten.
    ///
    /// Only sound while the back-end does not run the ring.
    pub fn reset(&mut self, base: u16) {
        for part in [&self.desc, &self.avail, &self.used] {
            part.fill(0, part.len_bytes(), 0);
        }
        self.chain_len.fill(NOT_OUTSTANDING);
        for (index, next) in (1..=self.config.size).zip(&mut self.next) {
            *next = index;
        }
        self.free_head = 0;
        self.free_len = self.config.size;
        self.next_avail = base;
        self.published = base;
        self.next_used = base;
        self.seen_used = base;
        self.set_avail_idx(base);
        self.set_used_idx(base);
        self.set_call_mode(self.config.calls);
    }

    /// Writes a chain and puts its head into the available ring, unpublished.
    ///
    /// `direct` segments become descriptors of the ring; `indirect` ones go to the head's indirect
    /// table, which is the last descriptor. Either may be empty.
    ///
    /// # Errors
    ///
    /// When there are too few free descriptors or the table is too short.
    #[inline]
    pub fn add(&mut self, direct: &[Segment], indirect: &[Segment]) -> Result<u16> {
        let needed = direct.len() + usize::from(!indirect.is_empty());
        if needed == 0 || needed > usize::from(self.free_len) {
            let free = usize::from(self.free_len);
            return Err(FrontendError::RingFull { needed, free });
        }
        let head = self.free_head;
        let table = if indirect.is_empty() {
            None
        } else {
            Some(self.write_table(head, indirect)?)
        };
        let mut index = head;
        let mut last = head;
        for (rest, segment) in (0..needed).rev().zip(direct.iter().chain(table.as_ref())) {
            let next = self.next[usize::from(index)];
            let mut descriptor = Descriptor::from(*segment);
            if rest > 0 {
                descriptor.flags |= desc_flag::NEXT;
                descriptor.next = next;
            }
            descriptor.store(&self.desc, index);
            (last, index) = (index, next);
        }
        // `needed` is at most the ring size, which is a u16.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "bounded by free_len, a u16, above"
        )]
        let chain_len = needed as u16;
        self.chain_len[usize::from(head)] = chain_len;
        self.chain_end[usize::from(head)] = last;
        self.free_head = index;
        self.free_len -= chain_len;
        self.push_head(head);
        Ok(head)
    }

    /// Puts a head into the next slot of the available ring, unpublished and unremembered.
    #[inline]
    pub fn push_head(&mut self, head: u16) {
        self.set_avail_slot(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes everything added since the last time; `true` when the device wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        // Release: the device sees the idx only after the descriptors and slots.
        self.avail.u16(2).store(new.to_le(), Ordering::Release);
        self.published = new;
        // virtio 1.3 §2.7.13.4.1: the idx must be visible before the suppression state is read.
        fence(Ordering::SeqCst);
        if self.config.event_idx {
            need_event(self.avail_event(), new, old)
        } else {
            self.used_flags() & USED_NO_NOTIFY == 0
        }
    }

    /// Takes the next completed chain and frees its descriptors.
    ///
    /// # Errors
    ///
    /// When the back-end has broken the used ring: an idx too far ahead, or a head not outstanding.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used>> {
        let Some(elem) = self.peek_used()? else {
            return Ok(None);
        };
        let head = u16::try_from(elem.id).unwrap_or(u16::MAX);
        let outstanding = self.chain_len.get(usize::from(head)).copied();
        let Some(chain_len @ 1..) = outstanding.filter(|_| u32::from(head) == elem.id) else {
            return Err(FrontendError::UnknownHead { id: elem.id });
        };
        self.chain_len[usize::from(head)] = NOT_OUTSTANDING;
        self.next[usize::from(self.chain_end[usize::from(head)])] = self.free_head;
        self.free_head = head;
        self.free_len += chain_len;
        self.advance_used();
        Ok(Some(Used {
            head,
            len: elem.len,
        }))
    }

    /// The next used element, left in place.
    ///
    /// # Errors
    ///
    /// When the used idx is further ahead than the ring is long.
    #[inline]
    pub fn peek_used(&mut self) -> Result<Option<UsedElem>> {
        if self.seen_used == self.next_used {
            // Acquire: the entries are read after the idx that publishes them.
            let used_idx = u16::from_le(self.used.u16(2).load(Ordering::Acquire));
            let ahead = used_idx.wrapping_sub(self.next_used);
            if ahead > self.config.size {
                return Err(FrontendError::UsedIdxJump {
                    used_idx,
                    next_used: self.next_used,
                    ahead,
                });
            }
            self.seen_used = used_idx;
            if ahead == 0 {
                return Ok(None);
            }
        }
        Ok(Some(self.used_elem(self.next_used)))
    }

    /// Steps over the next used element without freeing anything, for heads pushed by hand.
    #[inline]
    pub fn advance_used(&mut self) {
        self.next_used = self.next_used.wrapping_add(1);
        if self.config.calls == CallMode::Never {
            self.keep_event_far();
        }
    }

    /// What the ring is made of.
    #[must_use]
    pub fn config(&self) -> RingConfig {
        self.config
    }

    /// Where the ring lies.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Number of free descriptors.
    #[must_use]
    pub fn free_len(&self) -> u16 {
        self.free_len
    }

    /// The slot the next head goes to, as a free-running index.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used element expected next, as a free-running index.
    #[must_use]
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Writes the indirect table of `head` and returns the segment that refers to it.
    #[inline]
    fn write_table(&self, head: u16, segments: &[Segment]) -> Result<Segment> {
        let (Some(tables), true) = (
            &self.tables,
            segments.len() <= usize::from(self.config.indirect_len),
        ) else {
            return Err(FrontendError::RingFull {
                needed: segments.len(),
                free: usize::from(self.config.indirect_len),
            });
        };
        let first = usize::from(head) * usize::from(self.config.indirect_len);
        let mut count = 0_u16;
        for segment in segments {
            let mut descriptor = Descriptor::from(*segment);
            let index = count;
            count += 1;
            if usize::from(count) < segments.len() {
                descriptor.flags |= desc_flag::NEXT;
                descriptor.next = count;
            }
            descriptor.store_at(tables, (first + usize::from(index)) * Descriptor::BYTES);
        }
        Ok(Segment {
            gpa: self.tables_gpa + (first * Descriptor::BYTES) as u64,
            len: u32::from(count) * Descriptor::LEN,
            flags: desc_flag::INDIRECT,
        })
    }
}

#[cfg(test)]
mod tests;
