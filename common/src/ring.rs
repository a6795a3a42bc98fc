// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split virtqueue (virtio 1.3 §2.7) on cached host pointers.
//!
//! The three parts of a ring are found in guest memory once, when the ring starts or the memory
//! table changes; from then on every access is a plain load or store. The data thread that owns
//! the ring takes a batch, serves it, publishes all used elements with one store of the used
//! index and asks once whether the driver wants to be called.
//!
//! Everything the driver can write is read once into a local copy and checked there. A bad chain
//! is the chain's trouble ([`crate::chain`]); only an index that cannot be (a jump of the
//! available index, a head outside of the table) is a [`RingError`], after which the ring's owner
//! stops it.
//!
//! # Kicks and calls
//! While the owner works it wants no kicks: with `EVENT_IDX` it leaves `avail_event` behind,
//! without it sets `NO_NOTIFY`. Before it sleeps it asks for them again and looks once more
//! ([`Ring::allow_kicks`]). Calls follow `used_event` or `NO_INTERRUPT` (virtio 1.3 §2.7.7,
//! §2.7.10).

mod addresses;
mod ahead;
mod table;

use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::chain::{ChainFault, Walk};
use crate::error::{FrontEndError, RingError};
use crate::memory::{Buffers, Memory};
use addresses::Parts;
pub use addresses::{GuestRing, RingAddresses};
use table::DirectTable;

/// What a worker needs of a virtqueue; a packed ring would be a second implementation.
pub trait Ring {
    /// Takes the next available chain and returns its head.
    ///
    /// # Errors
    /// When the driver broke the ring; nothing more can be taken from it.
    fn next(&mut self) -> Result<Option<u16>, RingError>;

    /// Reads the chain at `head`, which [`next`](Ring::next) returned, into `out`.
    ///
    /// # Errors
    /// [`ChainFault`]; `out` then holds what was sound before the fault.
    fn chain(
        &mut self,
        head: u16,
        memory: &Rc<Memory>,
        out: &mut Buffers,
    ) -> Result<(), ChainFault>;

    /// Reads the chain at `head`, which [`next`](Ring::next) returned, into `out` behind the
    /// device-writable bytes left there.
    ///
    /// # Errors
    /// [`ChainFault`], also for a chain with device-readable buffers; `out` is as before then.
    fn chain_on(
        &mut self,
        head: u16,
        memory: &Rc<Memory>,
        out: &mut Buffers,
    ) -> Result<(), ChainFault>;

    /// Makes the `heads` taken last available again; they must not have been given back.
    fn undo(&mut self, heads: u16);

    /// Adds a used element; the driver does not see it before [`publish`](Ring::publish).
    fn push_used(&mut self, head: u16, len_bytes: u32);

    /// Makes the used elements visible; returns whether the driver wants a call for them.
    fn publish(&mut self) -> bool;

    /// Asks the driver for no kicks.
    fn suppress_kicks(&mut self);

    /// Asks the driver for kicks; returns whether chains came in the meantime.
    fn allow_kicks(&mut self) -> bool;

    /// Whether the driver has published chains not taken yet.
    fn has_available(&self) -> bool;

    /// The position for `GET_VRING_BASE`: the next available entry.
    fn position(&self) -> u16;
}

/// In the flags of the used ring: no kicks are wanted.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the bindings give a 16-bit flag as u32"
)]
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

/// What the driver acknowledged that changes the ring.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RingFeatures {
    /// `INDIRECT_DESC`.
    pub indirect: bool,
    /// `EVENT_IDX`.
    pub event_idx: bool,
}

/// A split virtqueue, device side.
#[derive(Debug)]
pub struct SplitRing {
    parts: Parts,
    /// Keeps the mapping that `parts` point into.
    memory: Rc<Memory>,
    addresses: RingAddresses,
    features: RingFeatures,
    next_avail: u16,
    /// The driver's index as last read.
    avail_idx: u16,
    next_used: u16,
    /// Where `next_used` was at the last publish.
    published: u16,
    /// Whether kicks are asked for at present.
    kicks_allowed: bool,
    hint: usize,
}

impl SplitRing {
    /// Builds the ring at `addresses`, with `next_avail` from `SET_VRING_BASE`, or without one to
    /// go on where the used ring ends.
    ///
    /// The used index is the one in guest memory: it is what the driver has seen of the back-end
    /// that served the ring before.
    ///
    /// # Errors
    /// When the addresses do not pass [`RingAddresses::check`].
    pub fn new(
        index: u32,
        memory: &Rc<Memory>,
        addresses: RingAddresses,
        features: RingFeatures,
        next_avail: Option<u16>,
    ) -> Result<Self, FrontEndError> {
        let (parts, _guest) = addresses.resolve(memory).map_err(|e| e.of_vring(index))?;
        let mut ring = Self {
            parts,
            memory: Rc::clone(memory),
            addresses,
            features,
            next_avail: 0,
            avail_idx: 0,
            next_used: 0,
            published: 0,
            kicks_allowed: true,
            hint: 0,
        };
        ring.next_used = ring.u16_at(ring.parts.used, 2).load(Ordering::Acquire);
        ring.published = ring.next_used;
        ring.next_avail = next_avail.unwrap_or(ring.next_used);
        ring.avail_idx = ring.next_avail;
        Ok(ring)
    }

    /// Finds the ring again in a new memory table, or at new addresses. Positions are kept.
    ///
    /// # Errors
    /// [`RingError::MemoryRemoved`] when it is not all there; the ring stays where it was.
    pub fn relocate(
        &mut self,
        memory: &Rc<Memory>,
        addresses: RingAddresses,
    ) -> Result<(), RingError> {
        let Ok((parts, _guest)) = addresses.resolve(memory) else {
            return Err(RingError::MemoryRemoved);
        };
        self.parts = parts;
        self.addresses = addresses;
        self.memory = Rc::clone(memory);
        self.hint = 0;
        Ok(())
    }

    /// Where the ring is.
    #[must_use]
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// The memory the ring lives in.
    #[must_use]
    pub fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }

    /// Whether a device has given back chains on this ring, or the front-end says that some were
    /// taken. An index that has wrapped to zero tells nothing, but leaves no element untouched.
    #[must_use]
    pub fn was_served(&self) -> bool {
        let last = 4 + 8 * usize::from(self.mask());
        let length_at = last + 4;
        self.next_avail != 0
            || self.next_used != 0
            || [last, length_at]
                .iter()
                .any(|at| self.u16_at(self.parts.used, *at).load(Ordering::Relaxed) != 0)
    }

    /// Goes on at `next_avail`, for a ring that the device walks itself.
    pub(crate) fn go_to(&mut self, next_avail: u16) {
        self.next_avail = next_avail;
        self.avail_idx = next_avail;
    }

    /// The available index, as the driver has it in guest memory.
    pub(crate) fn available_index(&self) -> u16 {
        self.avail_idx_now()
    }

    /// Whether used elements wait for [`Ring::publish`].
    #[must_use]
    #[inline]
    pub fn has_unpublished(&self) -> bool {
        self.published != self.next_used
    }

    #[inline]
    fn mask(&self) -> u16 {
        self.addresses.size - 1
    }

    /// The `index`-th 16-bit field of a ring at `base`, in bytes `offset`.
    #[inline]
    fn u16_at(&self, base: *mut u8, offset: usize) -> &AtomicU16 {
        // SAFETY: `resolve` has checked that `base` is at least 2-aligned and that the extent of
        // its part is mapped; all offsets used are even and within that extent. `self.memory`
        // keeps the mapping while `self` lives.
        #[expect(unsafe_code, reason = "a shared field in guest memory")]
        unsafe {
            AtomicU16::from_ptr(base.wrapping_add(offset).cast())
        }
    }

    #[inline]
    fn avail_idx_now(&self) -> u16 {
        self.u16_at(self.parts.available, 2).load(Ordering::Acquire)
    }

    #[inline]
    fn used_event(&self) -> u16 {
        let offset = 4 + 2 * usize::from(self.addresses.size);
        self.u16_at(self.parts.available, offset)
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn set_avail_event(&self, value: u16) {
        let offset = 4 + 8 * usize::from(self.addresses.size);
        self.u16_at(self.parts.used, offset)
            .store(value, Ordering::Relaxed);
    }

    #[inline]
    fn walk(
        &mut self,
        memory: &Rc<Memory>,
        out: &mut Buffers,
        how: impl FnOnce(&mut Walk<'_>, &DirectTable) -> Result<(), ChainFault>,
    ) -> Result<(), ChainFault> {
        let table = DirectTable::new(self.parts.descriptor, self.addresses.size);
        let mut walk = Walk {
            memory,
            hint: &mut self.hint,
            out,
            indirect: self.features.indirect,
        };
        how(&mut walk, &table)
    }

    fn set_used_flags(&self, value: u16) {
        self.u16_at(self.parts.used, 0)
            .store(value, Ordering::Relaxed);
    }
}

impl Ring for SplitRing {
    #[inline]
    fn next(&mut self) -> Result<Option<u16>, RingError> {
        if self.next_avail == self.avail_idx {
            let avail_idx = self.avail_idx_now();
            let distance = avail_idx.wrapping_sub(self.next_avail);
            if distance == 0 {
                return Ok(None);
            }
            let size = self.addresses.size;
            if distance > size {
                let next_avail = self.next_avail;
                return Err(RingError::AvailableIndex {
                    avail_idx,
                    next_avail,
                    distance,
                    size,
                });
            }
            self.avail_idx = avail_idx;
            self.look_at_batch();
        }
        let slot = 4 + 2 * usize::from(self.next_avail & self.mask());
        let head = self
            .u16_at(self.parts.available, slot)
            .load(Ordering::Relaxed);
        if head >= self.addresses.size {
            return Err(RingError::Head {
                head,
                size: self.addresses.size,
            });
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.look_ahead();
        Ok(Some(head))
    }

    #[inline]
    fn chain(
        &mut self,
        head: u16,
        memory: &Rc<Memory>,
        out: &mut Buffers,
    ) -> Result<(), ChainFault> {
        self.walk(memory, out, |walk, table| walk.run(table, head))
    }

    #[inline]
    fn chain_on(
        &mut self,
        head: u16,
        memory: &Rc<Memory>,
        out: &mut Buffers,
    ) -> Result<(), ChainFault> {
        self.walk(memory, out, |walk, table| walk.run_on(table, head))
    }

    #[inline]
    fn undo(&mut self, heads: u16) {
        self.next_avail = self.next_avail.wrapping_sub(heads);
    }

    #[inline]
    fn push_used(&mut self, head: u16, len_bytes: u32) {
        let slot = 4 + 8 * usize::from(self.next_used & self.mask());
        #[expect(clippy::cast_ptr_alignment, reason = "`resolve` has checked it")]
        let element = self.parts.used.wrapping_add(slot).cast::<u32>();
        // SAFETY: the slot is within the used ring, which `resolve` found mapped and 4-aligned.
        #[expect(unsafe_code, reason = "a store to the used ring")]
        unsafe {
            element.write_volatile(u32::from(head));
        }
        // SAFETY: as above, the second half of the element.
        #[expect(unsafe_code, reason = "a store to the used ring")]
        unsafe {
            element.wrapping_add(1).write_volatile(len_bytes);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let old = self.published;
        let new = self.next_used;
        if old == new {
            return false;
        }
        self.u16_at(self.parts.used, 2)
            .store(new, Ordering::Release);
        self.published = new;
        // The driver writes its wish, then reads the index; we write the index, then read the
        // wish. Without a full fence both could miss the other's store.
        fence(Ordering::SeqCst);
        if self.features.event_idx {
            let event = self.used_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = self.u16_at(self.parts.available, 0).load(Ordering::Relaxed);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    #[inline]
    fn suppress_kicks(&mut self) {
        if !self.kicks_allowed {
            return;
        }
        self.kicks_allowed = false;
        // With EVENT_IDX the old `avail_event` stays behind, which is the same.
        if !self.features.event_idx {
            self.set_used_flags(NO_NOTIFY);
        }
    }

    fn allow_kicks(&mut self) -> bool {
        self.kicks_allowed = true;
        if self.features.event_idx {
            self.set_avail_event(self.next_avail);
        } else {
            self.set_used_flags(0);
        }
        // As in `publish`: our wish must be visible before we look for the last time.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.next_avail != self.avail_idx || self.avail_idx_now() != self.next_avail
    }

    fn position(&self) -> u16 {
        self.next_avail
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests;
