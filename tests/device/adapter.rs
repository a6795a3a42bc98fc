// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The adapter for rust-vmm devices, with a small device that is written as its framework wants it:
//! each chain is filled with the number of the vring, as the thread that serves it counts.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringside_common::adapter::Adapter;
use ringside_common::device::Device as _;
use ringside_frontend::memory::{MemoryLayout, RegionSpec};
use ringside_frontend::ring::Segment;
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::in_process::Served;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT as _};
use virtio_queue::{DescriptorChain, QueueOwnedT as _};
use vm_memory::{Bytes as _, GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

type TestResult = Result<(), Box<dyn Error>>;
type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// The wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Four vrings on two threads: 0 and 2 on the first, 1 and 3 on the second.
#[derive(Default)]
struct Numbers {
    memory: Mutex<Option<Memory>>,
    /// Chains that are left in the ring at each event.
    kept: AtomicUsize,
    stopped: Mutex<Vec<u32>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostUserBackend for Numbers {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        4
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        // VERSION_1, EVENT_IDX, INDIRECT_DESC, PROTOCOL_FEATURES, and LOG_ALL, which is not served.
        1 << 32 | 1 << 29 | 1 << 28 | 1 << 30 | 1 << 26
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::all()
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        (offset..offset + size)
            .map(|at| at.to_le_bytes()[0])
            .collect()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *locked(&self.memory) = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![0b0101, 0b1010]
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        locked(&self.stopped).push(index);
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        thread: usize,
    ) -> io::Result<()> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let memory = locked(&self.memory).clone().ok_or_else(missing)?.memory();
        let vring = vrings.get(usize::from(event)).ok_or_else(missing)?;
        let number = u8::try_from(usize::from(event) * 2 + thread).map_err(io::Error::other)?;
        let mut state = vring.get_mut();
        let chains: Vec<DescriptorChain<_>> = state
            .get_queue_mut()
            .iter(memory.clone())
            .map_err(io::Error::other)?
            .collect();
        let serve = chains
            .len()
            .saturating_sub(self.kept.load(Ordering::Relaxed));
        for chain in chains.iter().take(serve) {
            let head = chain.head_index();
            let buffer = chain.clone().next().ok_or_else(missing)?;
            let bytes = vec![number; buffer.len() as usize];
            memory
                .write_slice(&bytes, buffer.addr())
                .map_err(io::Error::other)?;
            state
                .add_used(head, buffer.len())
                .map_err(io::Error::other)?;
        }
        let queue = state.get_queue_mut();
        for _ in serve..chains.len() {
            queue.go_to_previous_position();
        }
        if serve > 0 && state.needs_notification().map_err(io::Error::other)? {
            state.signal_used_queue()?;
        }
        Ok(())
    }
}

/// Asks for `count` buffers and returns what is in them when all are back.
fn ask(vring: &mut Vring, count: usize) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut buffers = Vec::new();
    for _ in 0..count {
        let buffer = vring.memory().alloc(64, 16)?;
        vring.ring.add(&[Segment::writable(buffer, 64)], &[])?;
        buffers.push(buffer);
    }
    vring.publish()?;
    for _ in 0..count {
        vring.wait_used(PATIENCE)?;
        let used = vring.ring.pop_used()?.ok_or("no used element")?;
        assert_eq!(used.len, 64);
    }
    let mut contents = Vec::new();
    for buffer in buffers {
        contents.push(vring.memory().read_vec(buffer, 64)?);
    }
    Ok(contents)
}

fn device() -> Result<Served<Adapter<Numbers>>, Box<dyn Error>> {
    let device = Adapter::new("numbers", Numbers::default())?;
    Ok(Served::of(std::sync::Arc::new(device), 4)?)
}

#[test]
fn vrings_are_served_on_their_threads_for_one_front_end_after_the_other() -> TestResult {
    let mut served = device()?;
    for event_idx in [true, false, true] {
        let builder = Session::builder()
            .queues(4)
            .queue_size(64)
            .event_idx(event_idx);
        let mut session = served.connect(builder)?;
        let mut vrings = session.start_all()?;
        for _ in 0..100 {
            for (number, vring) in vrings.iter_mut().enumerate() {
                let number = u8::try_from(number)?;
                assert_eq!(ask(vring, 3)?, vec![vec![number; 64]; 3]);
            }
        }
        // The ring goes on where it has stopped, 300 chains further.
        assert_eq!(session.stop(2)?, 300);
        session.start(&vrings[2], 300)?;
        assert_eq!(ask(&mut vrings[2], 1)?, [vec![2; 64]]);
        drop((session, vrings));
        served.wait_end()?;
    }
    let stopped = locked(&served.device().device().stopped).len();
    assert_eq!(stopped, 3 * 5);
    let stats = served.device().stats().snapshot();
    let chains: Vec<u64> = stats.queues.iter().map(|queue| queue.chains).collect();
    assert_eq!(chains, [900, 900, 903, 900]);
    Ok(())
}

#[test]
fn features_that_are_not_served_are_not_offered() -> TestResult {
    let mut served = device()?;
    let mut session = served.connect(Session::builder().queues(1))?;
    let negotiated = *session.negotiated();
    assert_eq!(negotiated.offered & (1 << 26 | 1 << 34), 0);
    let has = negotiated.offered_protocol;
    for feature in [
        VhostUserProtocolFeatures::BACKEND_REQ,
        VhostUserProtocolFeatures::DEVICE_STATE,
        VhostUserProtocolFeatures::INFLIGHT_SHMFD,
        VhostUserProtocolFeatures::LOG_SHMFD,
    ] {
        assert!(!has.contains(feature), "{feature:?}");
    }
    assert_eq!(session.config(3, 4)?, [3, 4, 5, 6]);
    Ok(())
}

#[test]
fn chains_that_the_device_leaves_are_served_later() -> TestResult {
    let mut served = device()?;
    let mut session = served.connect(Session::builder().queues(1).queue_size(64))?;
    let mut vring = session.start_all()?.remove(0);
    served.device().device().kept.store(2, Ordering::Relaxed);
    for _ in 0..2 {
        let buffer = vring.memory().alloc(64, 16)?;
        vring.ring.add(&[Segment::writable(buffer, 64)], &[])?;
    }
    vring.publish()?;
    // Two are left in the ring, and the device is told of the third.
    let buffer = vring.memory().alloc(64, 16)?;
    vring.ring.add(&[Segment::writable(buffer, 64)], &[])?;
    vring.publish()?;
    vring.wait_used(PATIENCE)?;
    assert!(vring.ring.pop_used()?.is_some());
    assert_eq!(session.stop(0)?, 1);
    Ok(())
}

#[test]
fn memory_that_changes_is_the_device_s_too() -> TestResult {
    let mut served = device()?;
    let layout = MemoryLayout::of(vec![
        RegionSpec::new(0, 1 << 20),
        RegionSpec::new(1 << 30, 1 << 20),
    ]);
    let mut session = served.connect(Session::builder().queues(1).queue_size(64).memory(layout))?;
    let mut vring = session.start_all()?.remove(0);
    assert_eq!(ask(&mut vring, 2)?, vec![vec![0; 64]; 2]);
    let memory = session.memory().clone();
    session.set_mem_table(&memory)?;
    assert_eq!(ask(&mut vring, 2)?, vec![vec![0; 64]; 2]);
    Ok(())
}
