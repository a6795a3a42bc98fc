// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ring against another's: random rings, sound and broken, are given to [`SplitRing`] and to
//! `virtio-queue`, over the same memory.
//!
//! `virtio-queue` shows most faults of a chain as its normal end, so what it yields counts as a
//! whole chain only if its last descriptor has no NEXT and every buffer is guest memory. A whole
//! chain must come out of both with the same bytes at the same host addresses, any other must be a
//! fault here. Where this crate is stricter (unknown flags, order, INDIRECT where it may not be,
//! very long tables), the fault must name something that a plain look at the descriptors finds.

use std::fs::File;
use std::rc::Rc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions, VolatileSlice,
};

use super::*;
use crate::chain::Descriptor;
use crate::memory::{Region, RegionSpec};

/// Guest address and length; the first two touch.
const REGIONS: [(u64, u64); 4] = [
    (0x1_0000, 0x1_0000),
    (0x2_0000, 0x8000),
    (0x10_0000, 0x1_0000),
    (0x8000_0000_0000, 0x4000),
];
const BORDER: u64 = 0x2_0000;
/// Between guest and front-end addresses.
const USER_OFFSET: u64 = 0x1000_0000_0000;
/// In the third region; the rest of it is for buffers.
const DESCRIPTORS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x10_1000;
const USED: u64 = 0x10_2000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Random rings; a tenth without optimization.
const CASES: u64 = if cfg!(debug_assertions) {
    25_000
} else {
    250_000
};

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    pub(super) fn u16(&mut self, bound: u16) -> u16 {
        u16::try_from(self.below(u64::from(bound))).unwrap()
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One memory, seen by both.
pub(super) struct Bench {
    memory: Rc<Memory>,
    pub(super) guest: GuestMemoryMmap<()>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let regions = REGIONS.map(|(guest_address, size_bytes)| {
            let fd = memfd_create("reference", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, size_bytes).unwrap();
            let spec = RegionSpec {
                guest_address,
                size_bytes,
                user_address: guest_address + USER_OFFSET,
                file_offset_bytes: 0,
            };
            Region::map(spec, File::from(fd)).unwrap()
        });
        let memory = Memory::new(regions.to_vec()).unwrap();
        Self {
            guest: memory.to_guest_memory(),
            memory: Rc::new(memory),
        }
    }

    pub(super) fn ring(&self, size: u16, features: RingFeatures, next_avail: u16) -> SplitRing {
        let addresses = RingAddresses {
            size,
            descriptor: DESCRIPTORS + USER_OFFSET,
            available: AVAILABLE + USER_OFFSET,
            used: USED + USER_OFFSET,
        };
        SplitRing::new(0, &self.memory, addresses, features, Some(next_avail)).unwrap()
    }

    pub(super) fn queue(&self, size: u16, event_idx: bool, next_avail: u16) -> Queue {
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(u32::try_from(DESCRIPTORS).unwrap()), Some(0));
        queue.set_avail_ring_address(Some(u32::try_from(AVAILABLE).unwrap()), Some(0));
        queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_next_avail(next_avail);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.guest));
        queue
    }

    pub(super) fn put_u16(&self, at: u64, value: u16) {
        self.guest.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(super) fn get_u16(&self, at: u64) -> u16 {
        self.guest.read_obj(GuestAddress(at)).unwrap()
    }

    fn descriptor(&self, at: u64) -> Option<Descriptor> {
        let bytes: [u8; 16] = self.guest.read_obj(GuestAddress(at)).ok()?;
        Some(Descriptor {
            addr: u64::from_le_bytes(*bytes.first_chunk()?),
            len_bytes: u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
            flags: u16::from_le_bytes(*bytes.get(12..)?.first_chunk()?),
            next: u16::from_le_bytes(*bytes.get(14..)?.first_chunk()?),
        })
    }

    fn used_ring(&self, size: u16) -> Vec<u8> {
        let mut bytes = vec![0; 6 + 8 * usize::from(size)];
        self.guest
            .read_slice(&mut bytes, GuestAddress(USED))
            .unwrap();
        bytes
    }
}

pub(super) fn avail_flags() -> u64 {
    AVAILABLE
}

pub(super) fn avail_idx() -> u64 {
    AVAILABLE + 2
}

pub(super) fn used_event(size: u16) -> u64 {
    AVAILABLE + 4 + 2 * u64::from(size)
}

pub(super) fn used_flags() -> u64 {
    USED
}

pub(super) fn used_idx() -> u64 {
    USED + 2
}

/// A random ring: most of its chains sound, or sound but for one field.
struct Generator<'a> {
    random: Random,
    bench: &'a Bench,
}

impl Generator<'_> {
    fn fill(&mut self, size: u16) {
        let mut table: Vec<_> = (0..size).map(|_| self.any_descriptor(size)).collect();
        let mut free: Vec<u16> = (0..size).collect();
        for at in (1..free.len()).rev() {
            free.swap(at, self.random.index(at + 1));
        }
        let mut heads = Vec::new();
        while !free.is_empty() {
            let most = free.len().min(6);
            let len = 1 + self.random.index(most);
            let chain = free.split_off(free.len() - len);
            heads.push(chain[0]);
            self.sound_chain(&mut table, &chain);
        }
        if self.random.one_in(2) {
            let at = self.random.index(table.len());
            self.spoil(&mut table, at, size);
        }
        self.write_table(DESCRIPTORS, &table);
        for slot in 0..u64::from(size) {
            let head = match self.random.below(40) {
                0 => size.wrapping_add(self.random.u16(3)),
                1..=4 => self.random.u16(size),
                _ => heads[self.random.index(heads.len())],
            };
            self.bench.put_u16(AVAILABLE + 4 + 2 * slot, head);
        }
    }

    fn write_table(&self, at: u64, table: &[Descriptor]) {
        let mut bytes = Vec::with_capacity(table.len() * 16);
        for d in table {
            bytes.extend_from_slice(&d.addr.to_le_bytes());
            bytes.extend_from_slice(&d.len_bytes.to_le_bytes());
            bytes.extend_from_slice(&d.flags.to_le_bytes());
            bytes.extend_from_slice(&d.next.to_le_bytes());
        }
        // A table that ends outside of memory is wanted as well.
        let _ = self.bench.guest.write(&bytes, GuestAddress(at));
    }

    /// Writes a chain over `indices`, the last of which may lead to an indirect table.
    fn sound_chain(&mut self, table: &mut [Descriptor], indices: &[u16]) {
        let readable = self.random.index(indices.len() + 1);
        for (at, pair) in indices.iter().zip(indices.iter().skip(1)).enumerate() {
            let (index, next) = pair;
            table[usize::from(*index)] = self.sound(at >= readable, Some(*next));
        }
        let last = indices.len() - 1;
        let end = if self.random.one_in(3) {
            self.indirect(readable <= last)
        } else {
            self.sound(readable <= last, None)
        };
        table[usize::from(indices[last])] = end;
    }

    fn indirect(&mut self, writable: bool) -> Descriptor {
        let entries = if self.random.one_in(200) {
            1020 + self.random.index(8)
        } else {
            1 + self.random.index(12)
        };
        let addr = match self.random.below(8) {
            0 => BORDER - 16 * self.random.below(entries as u64 + 1),
            1 => BORDER - self.random.below(16 * entries as u64),
            2 => 0x1_4000 + self.random.below(0x4000),
            3 => self.address(),
            _ => 0x1_4000 + 16 * self.random.below(0x400),
        };
        let size = u16::try_from(entries).unwrap();
        let readable = if writable {
            0
        } else {
            self.random.u16(size + 1)
        };
        let mut table: Vec<_> = (0..size)
            .map(|at| self.sound(at >= readable, (at + 1 < size).then_some(at + 1)))
            .collect();
        if self.random.one_in(4) {
            let at = self.random.index(entries);
            self.spoil(&mut table, at, size);
        }
        self.write_table(addr, &table);
        Descriptor {
            addr,
            len_bytes: u32::from(size) * 16,
            flags: INDIRECT | if self.random.one_in(4) { WRITE } else { 0 },
            next: self.random.u16(u16::MAX),
        }
    }

    fn sound(&mut self, writable: bool, next: Option<u16>) -> Descriptor {
        let len_bytes = u32::try_from(self.random.below(0x2000)).unwrap();
        let addr = match self.random.below(4) {
            0 => BORDER - self.random.below(u64::from(len_bytes) + 1),
            1 => 0x1_8000 + self.random.below(0x6000),
            2 => 0x10_4000 + self.random.below(0xa000),
            _ => 0x8000_0000_0000 + self.random.below(0x2000),
        };
        Descriptor {
            addr,
            len_bytes,
            flags: if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 },
            next: next.unwrap_or_else(|| self.random.u16(u16::MAX)),
        }
    }

    fn spoil(&mut self, table: &mut [Descriptor], at: usize, size: u16) {
        let any = self.any_descriptor(size);
        let d = &mut table[at];
        match self.random.below(5) {
            0 => d.addr = any.addr,
            1 => d.len_bytes = any.len_bytes,
            2 => d.flags = any.flags,
            3 => d.next = any.next,
            _ => *d = any,
        }
    }

    fn address(&mut self) -> u64 {
        let (base, len) = REGIONS[self.random.index(REGIONS.len())];
        match self.random.below(5) {
            0 => base.wrapping_sub(self.random.below(0x100)),
            1 => base + len - self.random.below(0x100),
            2 => u64::MAX - self.random.below(0x2000),
            3 => self.random.next(),
            _ => base + self.random.below(len),
        }
    }

    fn any_descriptor(&mut self, size: u16) -> Descriptor {
        let len = match self.random.below(8) {
            0 => 0,
            1 => u64::from(u32::MAX) - self.random.below(16),
            2 => 16 * self.random.below(0x1_0002),
            _ => self.random.below(0x4000),
        };
        let flags = match self.random.below(16) {
            0 => 1 << self.random.below(16),
            1 => self.random.u16(8),
            _ => self.random.u16(4),
        };
        let next = match self.random.below(8) {
            0 => size.wrapping_add(self.random.u16(2)),
            _ => self.random.u16(size),
        };
        Descriptor {
            addr: self.address(),
            len_bytes: u32::try_from(len).unwrap_or(u32::MAX),
            flags,
            next,
        }
    }
}

/// Host addresses and lengths, touching ones joined.
#[derive(Debug, Default, PartialEq)]
struct Segments {
    readable: Vec<(usize, usize)>,
    writable: Vec<(usize, usize)>,
}

fn join(into: &mut Vec<(usize, usize)>, start: usize, len: usize) {
    match into.last_mut() {
        _ if len == 0 => {}
        Some((at, have)) if *at + *have == start => *have += len,
        _ => into.push((start, len)),
    }
}

impl Segments {
    fn of(buffers: &Buffers) -> Self {
        let mut segments = Self::default();
        for iov in buffers.readable() {
            join(&mut segments.readable, iov.iov_base.addr(), iov.iov_len);
        }
        for iov in buffers.writable() {
            join(&mut segments.writable, iov.iov_base.addr(), iov.iov_len);
        }
        segments
    }
}

/// What `virtio-queue` makes of a chain: its segments, if it is whole. Order is not looked at.
fn reference(
    guest: &GuestMemoryMmap<()>,
    chain: virtio_queue::DescriptorChain<&GuestMemoryMmap<()>>,
) -> Option<Segments> {
    let mut segments = Segments::default();
    let mut ended = false;
    for descriptor in chain {
        let writable = descriptor.is_write_only();
        let len = usize::try_from(descriptor.len()).unwrap();
        let slices = guest
            .get_slices(descriptor.addr(), len, Permissions::ReadWrite)
            .ok()?;
        for slice in slices {
            let slice: VolatileSlice<'_, ()> = slice.ok()?;
            let start = slice.ptr_guard_mut().as_ptr().addr();
            let list = if writable {
                &mut segments.writable
            } else {
                &mut segments.readable
            };
            join(list, start, slice.len());
        }
        ended = !descriptor.has_next();
    }
    ended.then_some(segments)
}

/// What a plain walk of a chain that `virtio-queue` takes for whole finds strange in it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Oddity {
    UnknownFlags,
    Order,
    Indirect,
    IndirectNext,
    LongTable,
}

impl Oddity {
    /// Whether it has to be a fault.
    fn is_fault(self, features: RingFeatures) -> bool {
        self != Self::Indirect || !features.indirect
    }
}

impl Bench {
    fn oddities(&self, head: u16) -> Vec<Oddity> {
        let mut odd = Vec::new();
        let (mut table, mut index, mut written) = (DESCRIPTORS, head, false);
        // Bounded by the longest direct part and the longest table.
        for _ in 0..0x2_0000 {
            let Some(d) = self.descriptor(table.wrapping_add(16 * u64::from(index))) else {
                break;
            };
            if d.flags & !(NEXT | WRITE | INDIRECT) != 0 {
                odd.push(Oddity::UnknownFlags);
            }
            if d.flags & INDIRECT != 0 {
                if d.flags & NEXT != 0 {
                    odd.push(Oddity::IndirectNext);
                }
                if d.len_bytes / 16 > crate::chain::MAX_INDIRECT {
                    odd.push(Oddity::LongTable);
                }
                if odd.contains(&Oddity::Indirect) {
                    break;
                }
                odd.push(Oddity::Indirect);
                (table, index) = (d.addr, 0);
                continue;
            }
            if written && d.flags & WRITE == 0 {
                odd.push(Oddity::Order);
            }
            written = d.flags & WRITE != 0;
            if d.flags & NEXT == 0 {
                break;
            }
            index = d.next;
        }
        odd
    }
}

/// How often each thing was seen.
#[derive(Debug, Default)]
struct Tally {
    whole: u64,
    faults: u64,
    stricter: u64,
    broken_rings: u64,
}

fn compare_chain(
    bench: &Bench,
    ring: &mut SplitRing,
    head: u16,
    want: Option<Segments>,
    tally: &mut Tally,
) {
    let mut buffers = Buffers::default();
    let got = ring.chain(head, &bench.memory, &mut buffers);
    match (got, want) {
        (Ok(()), Some(want)) => {
            assert_eq!(Segments::of(&buffers), want, "head {head}");
            let odd = bench.oddities(head);
            let fault = odd.iter().any(|odd| odd.is_fault(ring.features));
            assert!(!fault, "head {head}: {odd:?}");
            tally.whole += 1;
        }
        (Ok(()), None) => panic!("head {head}: a fault was served"),
        (Err(_), None) => tally.faults += 1,
        (Err(fault), Some(_)) => {
            let odd = bench.oddities(head);
            let has = |oddity| odd.contains(&oddity);
            let justified = match fault {
                ChainFault::Flags { .. } => has(Oddity::UnknownFlags),
                ChainFault::Order { .. } => has(Oddity::Order),
                ChainFault::Indirect { .. } if ring.features.indirect => has(Oddity::IndirectNext),
                ChainFault::Indirect { .. } => has(Oddity::Indirect),
                ChainFault::IndirectLength { .. } => has(Oddity::LongTable),
                _ => false,
            };
            assert!(justified, "head {head}: {fault} but {odd:?}");
            tally.stricter += 1;
        }
    }
}

/// Takes everything from one ring on both sides.
fn compare_ring(bench: &Bench, random: &mut Random, size: u16, tally: &mut Tally) {
    let features = RingFeatures {
        indirect: !random.one_in(8),
        event_idx: false,
    };
    let next_avail = match random.below(2) {
        0 => u16::MAX - random.u16(4),
        _ => random.u16(u16::MAX),
    };
    let count = match random.below(30) {
        0 => size + 1 + random.u16(3),
        _ => random.u16(size.min(8) + 1),
    };
    bench.put_u16(avail_idx(), next_avail.wrapping_add(count));
    let mut ring = bench.ring(size, features, next_avail);
    let mut queue = bench.queue(size, false, next_avail);
    let Ok(theirs) = queue.iter(&bench.guest) else {
        let got = ring.next();
        assert!(
            matches!(got, Err(RingError::AvailableIndex { distance, .. }) if distance == count)
        );
        tally.broken_rings += 1;
        return;
    };
    for chain in theirs {
        let head = chain.head_index();
        if head >= size {
            let error = ring.next().unwrap_err();
            assert_eq!(
                error.to_string(),
                RingError::Head { head, size }.to_string()
            );
            tally.broken_rings += 1;
            return;
        }
        assert_eq!(ring.next().unwrap(), Some(head));
        let want = reference(&bench.guest, chain);
        compare_chain(bench, &mut ring, head, want, tally);
    }
    assert_eq!(ring.next().unwrap(), None);
    assert_eq!(ring.position(), queue.next_avail());
}

#[test]
fn random_rings_give_the_chains_that_virtio_queue_gives() {
    let bench = Bench::new();
    let mut generator = Generator {
        random: Random::new(1),
        bench: &bench,
    };
    let mut tally = Tally::default();
    for _ in 0..CASES {
        let size = 1 << generator.random.below(7).min(generator.random.below(7));
        generator.fill(size);
        compare_ring(&bench, &mut generator.random, size, &mut tally);
    }
    // Each kind is there in numbers, or the generator is not worth its name.
    assert!(tally.whole > CASES / 2, "{tally:?}");
    assert!(tally.faults > CASES / 20, "{tally:?}");
    assert!(tally.stricter > CASES / 100, "{tally:?}");
    assert!(tally.broken_rings > CASES / 100, "{tally:?}");
}

#[test]
fn random_progress_gives_the_calls_and_kicks_that_virtio_queue_gives() {
    let bench = Bench::new();
    let mut random = Random::new(2);
    for _ in 0..CASES / 10 {
        let size = 1 << random.below(7);
        let features = RingFeatures {
            indirect: true,
            event_idx: true,
        };
        // Close to the wrap of the 16-bit index more often than not.
        let start = 0_u16.wrapping_sub(random.u16(3 * size + 1));
        bench.put_u16(used_idx(), start);
        let mut ring = bench.ring(size, features, start);
        let mut queue = bench.queue(size, true, start);
        queue.set_next_used(start);
        let mut available = start;
        let heads = vec![0; 2 * usize::from(size)];
        let ring_start = GuestAddress(AVAILABLE + 4);
        bench.guest.write_slice(&heads, ring_start).unwrap();
        bench.put_u16(avail_idx(), start);
        for _ in 0..10 {
            let event = queue.next_used().wrapping_add(random.u16(2 * size + 2));
            let event = event.wrapping_sub(random.u16(size + 1));
            bench.put_u16(used_event(size), event);
            let used: Vec<_> = (0..random.u16(size + 1))
                .map(|_| (random.u16(size), u32::from(random.u16(u16::MAX))))
                .collect();
            for (head, len) in &used {
                ring.push_used(*head, *len);
            }
            let call = ring.publish();
            let ours = bench.used_ring(size);
            for (head, len) in &used {
                queue.add_used(&bench.guest, *head, *len).unwrap();
            }
            assert_eq!(ours, bench.used_ring(size));
            assert_eq!(call, queue.needs_notification(&bench.guest).unwrap());

            if random.one_in(2) {
                available = available.wrapping_add(1);
            }
            bench.put_u16(avail_idx(), available);
            let raced = ring.allow_kicks();
            let ours = bench.used_ring(size);
            assert_eq!(raced, queue.enable_notification(&bench.guest).unwrap());
            assert_eq!(ours, bench.used_ring(size));
            ring.suppress_kicks();
            queue.disable_notification(&bench.guest).unwrap();
            assert_eq!(ours, bench.used_ring(size));
            if random.one_in(2) || available.wrapping_sub(ring.position()) == size {
                while ring.next().unwrap().is_some() {}
                queue.iter(&bench.guest).unwrap().for_each(drop);
            }
        }
    }
}
