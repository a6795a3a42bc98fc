// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries by number, read without a lock.
//!
//! A number is the place of the entry and, in its upper half, how often that place was used
//! before: the number of an entry that is gone leads nowhere. Places lie in segments that double
//! in size and stay where they are. Free places are kept in parts, one for each of a few threads;
//! a thread that has none takes some of another's: the threads that look up are not always those
//! that forget.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringside_common::num::usize_of;

use arc_swap::{ArcSwapOption, Guard};

/// Places of the first segment.
const FIRST: u32 = 1 << 10;
/// Segments: 2^10 places, then as many, then 2^11, and so on up to 2^31.
const SEGMENTS: usize = 22;
/// Parts of the list of free places.
const PARTS: usize = 16;
/// Places a part takes from the end at a time.
const TAKEN: u32 = 32;

/// What knows its own number.
pub trait Identified {
    /// The number that the slab has given it.
    fn id(&self) -> u64;
}

/// Entries by number.
pub struct Slab<T> {
    segments: [OnceLock<Box<[Slot<T>]>>; SEGMENTS],
    free: [Mutex<Free>; PARTS],
    /// The first place that no part has.
    end: AtomicU32,
    len: AtomicUsize,
    /// How often all places but the first claim to have been used at the start: the numbers of
    /// another process, which a guest may still have, lead nowhere.
    first_generation: u32,
}

struct Slot<T> {
    generation: AtomicU32,
    entry: ArcSwapOption<T>,
}

#[derive(Debug, Default)]
struct Free {
    places: Vec<u32>,
}

/// An entry that was looked up. It stays what it is even if it is removed meanwhile.
pub struct SlabRef<T>(Guard<Option<Arc<T>>>);

impl<T> Deref for SlabRef<T> {
    type Target = Arc<T>;

    #[inline]
    fn deref(&self) -> &Arc<T> {
        match &*self.0 {
            Some(entry) => entry,
            // `get` makes no other.
            None => unreachable!("a reference to nothing"),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for SlabRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            segments: std::array::from_fn(|_| OnceLock::new()),
            free: std::array::from_fn(|_| Mutex::default()),
            end: AtomicU32::new(0),
            len: AtomicUsize::new(0),
            // All 32 bits that are left.
            first_generation: u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or(0),
        }
    }
}

impl<T: Identified> Slab<T> {
    /// The entry with this number.
    #[inline]
    pub fn get(&self, id: u64) -> Option<SlabRef<T>> {
        let slot = self.slot(place_of(id)?)?;
        let entry = slot.entry.load();
        if entry.as_ref()?.id() != id {
            return None;
        }
        Some(SlabRef(entry))
    }

    /// Adds the entry that `make` makes of its number; none when there are too many.
    pub fn insert(&self, make: impl FnOnce(u64) -> T) -> Option<Arc<T>> {
        let place = self.take_place()?;
        let slot = self.slot(place)?;
        let used = slot.generation.load(Ordering::Acquire);
        let first = if place == 0 { 0 } else { self.first_generation };
        let generation = used.wrapping_add(first);
        let entry = Arc::new(make(id_of(place, generation)));
        slot.entry.store(Some(Arc::clone(&entry)));
        self.len.fetch_add(1, Ordering::Relaxed);
        Some(entry)
    }

    /// Takes the entry with this number out.
    pub fn remove(&self, id: u64) -> Option<Arc<T>> {
        let place = place_of(id)?;
        let slot = self.slot(place)?;
        let found = slot.entry.load_full()?;
        if found.id() != id {
            return None;
        }
        let before = slot.entry.compare_and_swap(&Some(Arc::clone(&found)), None);
        // Someone else was faster.
        if !before.as_ref().is_some_and(|b| Arc::ptr_eq(b, &found)) {
            return None;
        }
        slot.generation.fetch_add(1, Ordering::AcqRel);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.part().places.push(place);
        Some(found)
    }

    /// The numbers of all entries there are now.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        (0..self.end.load(Ordering::Acquire))
            .filter_map(|place| self.slot(place)?.entry.load().as_ref().map(|e| e.id()))
    }
}

impl<T> Slab<T> {
    /// Entries.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn slot(&self, place: u32) -> Option<&Slot<T>> {
        let (segment, at) = segment_of(place);
        self.segments.get(segment)?.get()?.get(at)
    }

    /// The part of the list of free places that this thread uses.
    fn part(&self) -> MutexGuard<'_, Free> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PARTS;
        }
        let at = MINE.with(|mine| *mine);
        // `at` is below the number of parts.
        locked(self.free.get(at).unwrap_or(&self.free[0]))
    }

    fn take_place(&self) -> Option<u32> {
        let own = self.part().places.pop();
        own.or_else(|| self.take_from_others())
            .or_else(|| self.take_from_end())
    }

    /// Takes half of what another part has, if so much is free that it pays to look.
    fn take_from_others(&self) -> Option<u32> {
        const FEW: usize = 2 * PARTS * TAKEN as usize;
        let places = usize_of(self.end.load(Ordering::Relaxed).into());
        if places.saturating_sub(self.len()) <= FEW {
            return None;
        }
        // No two parts are locked at a time.
        let mut taken = self.free.iter().find_map(|part| {
            let places = &mut locked(part).places;
            (!places.is_empty()).then(|| places.split_off(places.len() / 2))
        })?;
        let place = taken.pop();
        self.part().places.append(&mut taken);
        place
    }

    fn take_from_end(&self) -> Option<u32> {
        let mut part = self.part();
        let take = |end: u32| end.checked_add(TAKEN).filter(|end| *end < 1 << 31);
        let start = self
            .end
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()?;
        let (segment, _) = segment_of(start);
        let cell = self.segments.get(segment)?;
        let slots = FIRST << segment.saturating_sub(1);
        cell.get_or_init(|| (0..slots).map(|_| Slot::default()).collect());
        // The lowest first. A batch never crosses the end of a segment.
        part.places.extend((start..start + TAKEN).rev());
        part.places.pop()
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            generation: AtomicU32::new(0),
            entry: ArcSwapOption::empty(),
        }
    }
}

fn locked(part: &Mutex<Free>) -> MutexGuard<'_, Free> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Segment and index within it.
#[inline]
fn segment_of(place: u32) -> (usize, usize) {
    let segment = (place / FIRST).checked_ilog2().map_or(0, |log| log + 1);
    let start = if segment == 0 {
        0
    } else {
        FIRST << (segment - 1)
    };
    (segment as usize, (place - start) as usize)
}

#[inline]
fn id_of(place: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(place + 1)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the lower half")]
fn place_of(id: u64) -> Option<u32> {
    (id as u32).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug)]
    struct Thing(u64);

    impl Identified for Thing {
        fn id(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn segments_cover_all_places_once() {
        assert_eq!(segment_of(0), (0, 0));
        assert_eq!(segment_of(1023), (0, 1023));
        assert_eq!(segment_of(1024), (1, 0));
        assert_eq!(segment_of(2047), (1, 1023));
        assert_eq!(segment_of(2048), (2, 0));
        assert_eq!(segment_of(4095), (2, 2047));
        assert_eq!(segment_of((1 << 31) - 1), (21, (1 << 30) - 1));
    }

    #[test]
    fn first_entry_has_number_one_and_is_found() {
        let slab = Slab::default();
        let thing = slab.insert(Thing).unwrap();
        assert_eq!(thing.id(), 1);
        assert_eq!(slab.get(1).unwrap().id(), 1);
        assert!(slab.get(0).is_none());
        assert!(slab.get(2).is_none());
        assert!(slab.get(u64::MAX).is_none());
    }

    #[test]
    fn number_of_removed_entry_leads_nowhere_even_when_its_place_is_used_again() {
        let slab = Slab::default();
        let old = slab.insert(Thing).unwrap().id();
        assert!(slab.remove(old).is_some());
        assert!(slab.remove(old).is_none());
        let new = slab.insert(Thing).unwrap().id();
        assert_eq!(new, 1 << 32 | 1);
        assert!(slab.get(old).is_none());
        assert_eq!(slab.get(new).unwrap().id(), new);
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn places_freed_by_another_thread_are_used_again() {
        let slab = Slab::default();
        for _ in 0..100 {
            let ids: Vec<_> = (0..10_000)
                .map(|_| slab.insert(Thing).unwrap().id())
                .collect();
            std::thread::scope(|scope| {
                scope.spawn(|| ids.iter().for_each(|id| drop(slab.remove(*id).unwrap())));
            });
        }
        assert!(slab.is_empty());
        let places = slab.end.load(Ordering::Relaxed);
        assert!(places <= 12_000, "{places}");
    }

    #[test]
    fn many_threads_get_numbers_of_their_own() {
        let slab = Slab::default();
        let all = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    for round in 0..5000 {
                        mine.push(slab.insert(Thing).unwrap().id());
                        if round % 3 == 0 {
                            let gone = mine.swap_remove(mine.len() / 2);
                            assert!(slab.remove(gone).is_some());
                        }
                    }
                    for id in &mine {
                        assert_eq!(slab.get(*id).unwrap().id(), *id);
                    }
                    all.lock().unwrap().extend(mine);
                });
            }
        });
        let all = all.into_inner().unwrap();
        assert_eq!(all.len(), slab.len());
        assert_eq!(slab.ids().collect::<BTreeSet<_>>(), all);
    }
}
