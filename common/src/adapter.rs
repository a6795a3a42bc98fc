// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a device written for rust-vmm, unchanged, under Ringside's daemon.
//!
//! An [`Adapter`] makes a [`Device`] of any [`VhostUserBackend`]. The device keeps what it has from
//! its own framework: vrings of the `vhost-user-backend` crate, guest memory of `vm-memory`, one
//! `handle_event` for each kick. It gains what every Ringside back-end has: checked memory tables,
//! one front-end after the other, data threads that poll before they sleep, drains, counters, and
//! the management socket.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ringside_common::{adapter::Adapter, daemon, worker::WorkerOptions};
//! # use vhost_user_backend::{VhostUserBackend, VringRwLock};
//! # fn run<T>(entropy: T, source: daemon::Source, options: &WorkerOptions)
//! # -> Result<(), Box<dyn std::error::Error>>
//! # where T: VhostUserBackend<Bitmap = (), Vring = VringRwLock> + 'static {
//! let device = Arc::new(Adapter::new("entropy", entropy)?);
//! daemon::serve(&device, source, options, &daemon::Control::new()?)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What the device sees
//! * `handle_event(index, EventSet::IN, vrings, thread)` when the driver has made chains available
//!   that the device was not told of, and once when a vring starts or is enabled. `thread`, `index`
//!   and `vrings` are those of `queues_per_thread`; the vrings of one such thread are served by one
//!   data thread.
//! * Its calls go to an eventfd of ours, and from there to the driver: a call eventfd of the
//!   front-end that blocks keeps no thread of the device waiting.
//! * With `EVENT_IDX` the data thread asks for kicks as well as the device. The driver then kicks
//!   more often than it has to, never less.
//!
//! # What an adapted device does not have
//! * **Checked chains.** The device walks descriptors itself, by the `virtio-queue` crate. What it
//!   makes of a hostile chain is its own affair. A panic ends the process.
//! * **An exact drain.** What the device does on threads of its own goes on while a `drain` lasts,
//!   and nobody knows how many requests are in flight. A vring that stops waits for `stop_vring`.
//! * **Fairness.** One `handle_event` takes as long as the device likes, and the vrings of the same
//!   data thread wait meanwhile.
//! * **Protocol features** beyond `MQ`, `CONFIG`, `REPLY_ACK`, `CONFIGURE_MEM_SLOTS` and
//!   `RESET_DEVICE`: it gets no back-channel, no GPU socket, no shared objects, no dirty log, and its
//!   state cannot be saved.
//! * **`exit_event` and listeners of its own** (`VringEpollHandler`): data threads end with the vrings
//!   that they serve, and only Ringside wakes them.
//! * **Memory that outlives the front-end.** A file that the front-end truncates is noticed, as for
//!   every device, while the region is in the memory table. A device that keeps guest memory on a
//!   thread of its own longer than that may end with SIGBUS.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::device::{Device, DeviceWorker, Place, Turn, Vring};
use crate::error::{HostError, RingError};
use crate::io::{IoQueue, WatchId};
use crate::limited;
use crate::memory::Memory;
use crate::ring::Ring as _;
use crate::stats::DeviceStats;

/// Guest memory as `vhost-user-backend` hands it to devices.
type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// `VHOST_F_LOG_ALL` (vhost-user.rst).
const LOG_ALL: u64 = 1 << 26;

/// What a device may offer of the protocol. The rest needs a part of the device's framework that is
/// not here.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// The first group of vrings of the next adapter: groups are the process's, so no two adapters may
/// have the same.
static NEXT_GROUP: AtomicU32 = AtomicU32::new(1 << 31);

/// A rust-vmm device as a [`Device`].
pub struct Adapter<T: VhostUserBackend> {
    shared: Arc<Shared<T>>,
    first_group: u32,
    stats: Arc<DeviceStats>,
}

/// What both sides use.
struct Shared<T: VhostUserBackend> {
    device: T,
    num_queues: u16,
    max_queue_size: u16,
    memory: GuestMemory,
    /// The vrings by their index.
    vrings: Vec<T::Vring>,
    /// The vrings of each thread of `queues_per_thread`.
    threads: Vec<Vec<T::Vring>>,
    /// The thread of each vring, and its place there.
    places: Vec<(usize, u16)>,
}

impl<T: VhostUserBackend> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = &self.places;
        f.debug_struct("Shared")
            .field("places", places)
            .finish_non_exhaustive()
    }
}

impl<T: VhostUserBackend> fmt::Debug for Adapter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter")
            .field("shared", &self.shared)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<T> Adapter<T>
where
    T: VhostUserBackend<Bitmap = ()>,
    T::Vring: Clone,
{
    /// Adapts `device`, which metrics call `kind`.
    ///
    /// # Errors
    /// When its vrings cannot be made: the largest queue size must be a power of two, up to 32768.
    pub fn new(kind: &'static str, device: T) -> Result<Self, HostError> {
        let too_many = |_e| io::Error::from(io::ErrorKind::InvalidInput);
        let failed = HostError::of("making the vrings of an adapted device");
        let memory = GuestMemory::new(GuestMemoryMmap::new());
        let (num_queues, max_queue_size) = (device.num_queues(), device.max_queue_size());
        let made = || -> io::Result<(u16, u16, Vec<T::Vring>)> {
            let num_queues = u16::try_from(num_queues).map_err(too_many)?;
            let max_queue_size = u16::try_from(max_queue_size).map_err(too_many)?;
            let vrings = (0..num_queues)
                .map(|_| T::Vring::new(memory.clone(), max_queue_size).map_err(io::Error::other))
                .collect::<io::Result<_>>()?;
            Ok((num_queues, max_queue_size, vrings))
        };
        let (num_queues, max_queue_size, vrings) = made().map_err(failed)?;
        let mut threads = Vec::new();
        let mut places = vec![(usize::MAX, 0); vrings.len()];
        for (thread, mask) in device.queues_per_thread().into_iter().enumerate() {
            let mut of_thread = Vec::new();
            let mut event = 0;
            for (index, (vring, place)) in vrings.iter().zip(&mut places).enumerate() {
                if index < 64 && mask >> index & 1 != 0 {
                    *place = (thread, event);
                    of_thread.push(vring.clone());
                    event += 1;
                }
            }
            threads.push(of_thread);
        }
        // Clamped: more groups than the number can tell would need as many threads.
        let groups = u32::try_from(threads.len()).unwrap_or(u32::MAX);
        Ok(Self {
            shared: Arc::new(Shared {
                device,
                num_queues,
                max_queue_size,
                memory,
                vrings,
                threads,
                places,
            }),
            first_group: NEXT_GROUP.fetch_add(groups, Ordering::Relaxed),
            stats: Arc::new(DeviceStats::new(kind, &[])),
        })
    }

    /// The device.
    pub fn device(&self) -> &T {
        &self.shared.device
    }
}

impl<T: VhostUserBackend<Bitmap = ()>> Shared<T> {
    /// Has the device and its vrings use `memory`.
    fn set_memory(&self, memory: &Memory) {
        if let Ok(guard) = self.memory.lock() {
            guard.replace(memory.to_guest_memory());
        }
        if let Err(error) = self.device.update_memory(self.memory.clone()) {
            limited!(error, "the device does not take new memory: {error}");
        }
    }

    /// Puts the vring of the device to where `vring` is.
    fn locate(&self, vring: &Vring) {
        let addresses = vring.ring.addresses();
        let index = vring.index();
        let memory = vring.memory();
        let (Some(own), Ok(guest)) = (self.vring(index), addresses.check(u32::from(index), memory))
        else {
            return;
        };
        own.set_queue_size(addresses.size);
        if let Err(error) = own.set_queue_info(guest.descriptor, guest.available, guest.used) {
            limited!(error, "vring {index} of the device is not taken: {error}");
        }
    }

    fn vring(&self, index: u16) -> Option<&T::Vring> {
        self.vrings.get(usize::from(index))
    }

    /// Has the device do what there is to do on the vring with this index.
    fn handle(&self, index: u16) -> io::Result<()> {
        let place = self.places.get(usize::from(index));
        let Some((thread, event)) = place.copied() else {
            return Ok(());
        };
        let Some(vrings) = self.threads.get(thread) else {
            return Ok(());
        };
        self.device
            .handle_event(event, EventSet::IN, vrings, thread)
    }
}

impl<T> Device for Adapter<T>
where
    T: VhostUserBackend<Bitmap = ()> + 'static,
    T::Vring: Send + Sync + 'static,
{
    type Worker = AdapterWorker<T>;

    fn num_queues(&self) -> u16 {
        self.shared.num_queues
    }

    fn max_queue_size(&self) -> u16 {
        self.shared.max_queue_size
    }

    fn features(&self) -> u64 {
        self.shared.device.features() & !(LOG_ALL | 1 << VIRTIO_F_RING_PACKED)
    }

    fn acked_features(&self, features: u64) {
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for vring in &self.shared.vrings {
            vring.set_queue_event_idx(event_idx);
        }
        self.shared.device.set_event_idx(event_idx);
        self.shared.device.acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.shared.device.protocol_features() & PROTOCOL_FEATURES
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.shared.device.get_config(offset, size)
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.shared.device.set_config(offset, bytes)
    }

    fn serves_legacy_drivers(&self) -> bool {
        self.shared.device.features() & (1 << VIRTIO_F_VERSION_1) == 0
    }

    fn worker(&self) -> io::Result<AdapterWorker<T>> {
        Ok(AdapterWorker(Arc::clone(&self.shared)))
    }

    fn seed(&self, _index: u16) {}

    fn group(&self, index: u16) -> Option<u32> {
        let (thread, _) = self.shared.places.get(usize::from(index))?;
        Some(self.first_group.wrapping_add(u32::try_from(*thread).ok()?))
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.stats
    }

    fn reset(&self) {
        self.shared.device.reset_device();
    }

    fn session_ended(&self) {
        // The memory of a front-end that has left must not stay mapped.
        self.shared.set_memory(&Memory::default());
    }
}

/// The data side of an [`Adapter`].
#[derive(Debug)]
pub struct AdapterWorker<T: VhostUserBackend>(Arc<Shared<T>>);

/// What the data side keeps of a vring.
#[derive(Debug)]
pub struct AdaptedQueue {
    /// The device is called whatever the ring says: the vring has started, or was enabled.
    is_due: bool,
    /// Where the calls of the device arrive.
    calls: Option<WatchId>,
}

fn has_work(place: &Place<AdaptedQueue>) -> bool {
    place.vring.is_live() && (place.queue.is_due || place.vring.has_available())
}

impl<T: VhostUserBackend<Bitmap = ()>> AdapterWorker<T> {
    fn start(&self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) -> io::Result<()> {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return Ok(());
        };
        let vring = &place.vring;
        let Some(own) = self.0.vring(vring.index()) else {
            return Ok(());
        };
        self.0.set_memory(vring.memory());
        self.0.locate(vring);
        let calls = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        place.queue.calls = Some(turn.io.watch(calls.try_clone()?)?);
        own.set_call(Some(File::from(calls)));
        own.set_queue_next_avail(vring.ring.position());
        own.set_queue_next_used(own.queue_used_idx().map_err(io::Error::other)?);
        own.set_enabled(vring.is_enabled());
        own.set_queue_ready(true);
        Ok(())
    }
}

impl<T: VhostUserBackend<Bitmap = ()>> DeviceWorker for AdapterWorker<T> {
    type Seed = ();
    type Queue = AdaptedQueue;
    type Brought = ();

    fn start_queue(&mut self, (): (), _vring: &Vring) -> AdaptedQueue {
        AdaptedQueue {
            is_due: true,
            calls: None,
        }
    }

    fn started(&mut self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) -> io::Result<()> {
        self.start(turn, slot)
    }

    fn moved(&mut self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) {
        if let Some(place) = turn.vrings.get(slot) {
            self.0.set_memory(place.vring.memory());
            self.0.locate(&place.vring);
        }
    }

    fn enabled(&mut self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return;
        };
        place.queue.is_due = true;
        if let Some(own) = self.0.vring(place.vring.index()) {
            own.set_enabled(place.vring.is_enabled());
        }
    }

    fn stopping(&mut self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) {
        let Some(place) = turn.vrings.get(slot) else {
            return;
        };
        let index = place.vring.index();
        if let Some(own) = self.0.vring(index) {
            own.set_queue_ready(false);
        }
        if let Err(error) = self.0.device.stop_vring(u32::from(index)) {
            limited!(error, "the device does not stop vring {index}: {error}");
        }
    }

    fn stopped(&mut self, turn: &mut Turn<'_, AdaptedQueue>, slot: usize) {
        let Some(place) = turn.vrings.get_mut(slot) else {
            return;
        };
        let Some(own) = self.0.vring(place.vring.index()) else {
            return;
        };
        own.set_call(None);
        place.vring.ring.go_to(own.queue_next_avail());
        if let Some(calls) = place.queue.calls.take()
            && let Err(error) = turn.io.unwatch(calls)
        {
            limited!(error, "an eventfd is still watched: {error}");
        }
        // What the device said last may not have been handed on.
        place.vring.call_anyway();
    }

    fn turn(&mut self, turn: &mut Turn<'_, AdaptedQueue>) -> bool {
        let mut served = false;
        for place in turn.vrings.iter_mut().filter(|place| has_work(place)) {
            served = true;
            place.queue.is_due = false;
            let vring = &mut place.vring;
            // The device is told of all that is there; it may leave some of it for later.
            let told = vring.ring.available_index();
            let new = told.wrapping_sub(vring.ring.position());
            vring.stats.add_chains(u64::from(new));
            vring.ring.go_to(told);
            if let Err(error) = self.0.handle(vring.index()) {
                limited!(warn, "the device: {error}");
                vring.break_ring(RingError::Device);
            }
        }
        served
    }

    fn has_work(&mut self, turn: &mut Turn<'_, AdaptedQueue>) -> bool {
        turn.vrings.iter().any(has_work)
    }

    fn wants_kicks(&self, _io: &IoQueue, _queue: &AdaptedQueue, vring: &Vring) -> bool {
        vring.is_live()
    }

    /// The device has called.
    fn ready(&mut self, turn: &mut Turn<'_, AdaptedQueue>, watch: WatchId) {
        let place = turn
            .vrings
            .iter()
            .find(|place| place.queue.calls == Some(watch));
        if let Some(place) = place {
            place.vring.stats.add_call();
            place.vring.call_anyway();
        }
    }
}
