// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two rings that are compared, over the same kind of memory.

#![expect(
    clippy::expect_used,
    reason = "a bench that cannot go on has nobody else to tell"
)]

use std::fs::File;
use std::hint::black_box;
use std::rc::Rc;

use ringside_common::memory::{Buffers, Memory, Region, RegionSpec};
use ringside_common::ring::{Ring as _, RingAddresses, RingFeatures, SplitRing};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryMmap, Permissions};

const QUEUE_SIZE: u16 = 256;
const REGION_BYTES: u64 = 1 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
/// The buffers of a region start here in it.
const BUFFERS: u64 = 0x1_0000;

/// What the chains look like.
pub(crate) struct Setup {
    pub(crate) descriptors: u16,
    pub(crate) regions: u64,
    memory: Rc<Memory>,
}

impl Setup {
    pub(crate) fn new(descriptors: u16, regions: u64) -> Self {
        let memory = Rc::new(memory(regions));
        let setup = Self {
            descriptors,
            regions,
            memory,
        };
        setup.fill(&setup.memory.to_guest_memory());
        setup
    }

    /// Chains in a batch: as many as the table holds.
    pub(crate) fn chains(&self) -> u32 {
        u32::from(QUEUE_SIZE / self.descriptors)
    }

    fn fill(&self, guest: &GuestMemoryMmap<()>) {
        let put = |at, bytes: &[u8]| {
            guest
                .write_slice(bytes, GuestAddress(at))
                .expect("guest memory");
        };
        let mut buffer = 0;
        for chain in 0..QUEUE_SIZE / self.descriptors {
            for part in 0..self.descriptors {
                let index = chain * self.descriptors + part;
                let last = part + 1 == self.descriptors;
                // Header, data, status, as a read has them.
                let len: u32 = match part {
                    0 => 16,
                    _ if last => 1,
                    _ => 4096,
                };
                let flags = u16::from(!last) | if part == 0 { 0 } else { 2 };
                let region = u64::from(index) % self.regions;
                let addr = region * 2 * REGION_BYTES + BUFFERS + buffer;
                // With a gap: buffers that touch would be one.
                buffer = (buffer + 0x1100) % (REGION_BYTES - BUFFERS - 0x2000);
                let at = DESCRIPTORS + 16 * u64::from(index);
                put(at, &addr.to_le_bytes());
                put(at + 8, &len.to_le_bytes());
                put(at + 12, &flags.to_le_bytes());
                put(at + 14, &(index + 1).to_le_bytes());
            }
        }
        for slot in 0..QUEUE_SIZE {
            let head = slot % (QUEUE_SIZE / self.descriptors) * self.descriptors;
            put(AVAILABLE + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        }
    }
}

fn memory(regions: u64) -> Memory {
    let regions = (0..regions).map(|index| {
        let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, REGION_BYTES).expect("room for a memfd");
        let spec = RegionSpec {
            // Apart, so that no two regions touch.
            guest_address: index * 2 * REGION_BYTES,
            size_bytes: REGION_BYTES,
            user_address: index * 2 * REGION_BYTES,
            file_offset_bytes: 0,
        };
        Region::map(spec, File::from(fd)).expect("a sound region")
    });
    Memory::new(regions.collect()).expect("a sound table")
}

/// The driver's part: publishes a batch.
struct Driver {
    guest: GuestMemoryMmap<()>,
    chains: u16,
    avail_idx: u16,
}

impl Driver {
    fn new(setup: &Setup) -> Self {
        Self {
            guest: setup.memory.to_guest_memory(),
            chains: QUEUE_SIZE / setup.descriptors,
            avail_idx: 0,
        }
    }

    fn publish(&mut self) {
        self.avail_idx = self.avail_idx.wrapping_add(self.chains);
        self.guest
            .write_obj(self.avail_idx, GuestAddress(AVAILABLE + 2))
            .expect("guest memory");
    }
}

/// This project's ring.
pub(crate) struct Ours {
    driver: Driver,
    memory: Rc<Memory>,
    ring: SplitRing,
    /// By head, as a device keeps them.
    buffers: Vec<Buffers>,
}

impl Ours {
    pub(crate) fn new(setup: &Setup) -> Self {
        let memory = Rc::clone(&setup.memory);
        let addresses = RingAddresses {
            size: QUEUE_SIZE,
            descriptor: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
        };
        let features = RingFeatures {
            indirect: true,
            event_idx: true,
        };
        Self {
            driver: Driver::new(setup),
            ring: SplitRing::new(0, &memory, addresses, features, Some(0)).expect("a sound ring"),
            buffers: (0..QUEUE_SIZE).map(|_| Buffers::default()).collect(),
            memory,
        }
    }

    /// Serves a batch; returns a sum over what was found.
    pub(crate) fn batch(&mut self) -> usize {
        self.driver.publish();
        let mut sum: usize = 0;
        while let Some(head) = self.ring.next().expect("a sound ring") {
            let buffers = &mut self.buffers[usize::from(head)];
            self.ring
                .chain(head, &self.memory, buffers)
                .expect("a sound chain");
            for iov in buffers.readable().iter().chain(buffers.writable()) {
                sum = sum.wrapping_add(black_box(iov.iov_base).addr() ^ iov.iov_len);
            }
            self.ring.push_used(head, 1);
        }
        black_box(self.ring.publish());
        sum
    }
}

/// The ring of `virtio-queue`.
pub(crate) struct Theirs {
    driver: Driver,
    guest: GuestMemoryMmap<()>,
    queue: Queue,
}

impl Theirs {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a sound size");
        let low = |address| u32::try_from(address).ok();
        queue.set_desc_table_address(low(DESCRIPTORS), None);
        queue.set_avail_ring_address(low(AVAILABLE), None);
        queue.set_used_ring_address(low(USED), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        let guest = setup.memory.to_guest_memory();
        assert!(queue.is_valid(&guest), "a sound ring");
        Self {
            driver: Driver::new(setup),
            guest,
            queue,
        }
    }

    /// As [`Ours::batch`].
    pub(crate) fn batch(&mut self) -> usize {
        self.driver.publish();
        let mut sum: usize = 0;
        while let Some(chain) = self.queue.iter(&self.guest).expect("a sound ring").next() {
            let head = chain.head_index();
            for descriptor in chain {
                let len = descriptor.len() as usize;
                let slices = self
                    .guest
                    .get_slices(descriptor.addr(), len, Permissions::ReadWrite)
                    .expect("a sound buffer");
                for slice in slices {
                    let slice = slice.expect("a sound buffer");
                    let start = black_box(slice.ptr_guard_mut().as_ptr());
                    sum = sum.wrapping_add(start.addr() ^ slice.len());
                }
            }
            self.queue
                .add_used(&self.guest, head, 1)
                .expect("a sound head");
        }
        black_box(self.queue.needs_notification(&self.guest).expect("memory"));
        sum
    }
}
