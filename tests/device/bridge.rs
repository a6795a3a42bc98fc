// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the release of `vhost-user-backend` that a stranger was written for to the one that Ringside
//! has. The two have the same methods, on types that the compiler takes for different ones. A device
//! written for the same release needs none of this.

use std::fs::File;
use std::io;
use std::sync::OnceLock;

use old_backend::{
    VhostUserBackend as OldBackend, VringMutex as OldVring, VringT as _, bitmap::BitmapMmapRegion,
};
use old_memory::{
    FileOffset, GuestAddress as OldAddress, GuestMemoryAtomic as OldAtomic,
    GuestMemoryMmap as OldMmap, GuestRegionMmap as OldRegion,
};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{
    VhostUserBackend, VringMutex, VringStateGuard, VringStateMutGuard, VringT,
};
use virtio_queue::Error as QueueError;
use vm_memory::{
    GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _,
};
use vmm_sys_util::epoll::EventSet;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;
type OldMemory = OldAtomic<OldMmap<BitmapMmapRegion>>;

/// The memory of the device, of which there is one in a process: its vrings are made from the new
/// kind of memory, and that tells nothing of the old one.
static OLD_MEMORY: OnceLock<OldMemory> = OnceLock::new();

fn old_memory() -> &'static OldMemory {
    OLD_MEMORY.get_or_init(|| OldMemory::new(OldMmap::new()))
}

/// A device of the old release as one of the new.
pub(crate) struct Bridge<T>(T);

impl<T> Bridge<T> {
    pub(crate) fn new(device: T) -> Self {
        Self(device)
    }
}

/// The same files, mapped as the old release wants them.
fn map(memory: &Memory) -> io::Result<OldMmap<BitmapMmapRegion>> {
    let mut regions = Vec::new();
    for region in memory.memory().iter() {
        let file = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
        let file = FileOffset::from_arc(file.arc().clone(), file.start());
        let size = usize::try_from(region.len()).map_err(io::Error::other)?;
        let start = OldAddress(region.start_addr().0);
        regions.push(OldRegion::from_range(start, size, Some(file)).map_err(io::Error::other)?);
    }
    if regions.is_empty() {
        return Ok(OldMmap::new());
    }
    OldMmap::from_regions(regions).map_err(io::Error::other)
}

impl<T> VhostUserBackend for Bridge<T>
where
    T: OldBackend<Bitmap = BitmapMmapRegion, Vring = OldVring<OldMemory>>,
{
    type Bitmap = ();
    type Vring = BridgedVring;

    fn num_queues(&self) -> usize {
        self.0.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.0.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn acked_features(&self, features: u64) {
        self.0.acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::from_bits_truncate(self.0.protocol_features().bits())
    }

    fn reset_device(&self) {
        self.0.reset_device();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_idx(enabled);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.0.get_config(offset, size)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.set_config(offset, bytes)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let guard = old_memory().lock().map_err(|_e| io::ErrorKind::Other)?;
        guard.replace(map(&memory)?);
        self.0.update_memory(old_memory().clone())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        self.0.queues_per_thread()
    }

    fn handle_event(
        &self,
        event: u16,
        set: EventSet,
        vrings: &[BridgedVring],
        thread: usize,
    ) -> io::Result<()> {
        let vrings: Vec<_> = vrings.iter().map(|vring| vring.old.clone()).collect();
        self.0.handle_event(event, set, &vrings, thread)
    }
}

/// A vring of the old release, and an idle one of the new that lends its state where one is asked
/// for.
#[derive(Clone)]
pub(crate) struct BridgedVring {
    old: OldVring<OldMemory>,
    idle: VringMutex,
}

impl<'a> VringStateGuard<'a, Memory> for BridgedVring {
    type G = <VringMutex as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for BridgedVring {
    type G = <VringMutex as VringStateMutGuard<'a, Memory>>::G;
}

fn refused<E>(_error: E) -> QueueError {
    QueueError::QueueNotReady
}

impl VringT<Memory> for BridgedVring {
    fn new(memory: Memory, max_size: u16) -> Result<Self, QueueError> {
        let old = OldVring::new(old_memory().clone(), max_size).map_err(refused)?;
        let idle = VringMutex::new(memory, max_size)?;
        Ok(Self { old, idle })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.idle.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.idle.get_mut()
    }

    fn add_used(&self, head: u16, bytes: u32) -> Result<(), QueueError> {
        self.old.add_used(head, bytes).map_err(refused)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.old.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.old.enable_notification().map_err(refused)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.old.disable_notification().map_err(refused)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.old.needs_notification().map_err(refused)
    }

    fn set_enabled(&self, enabled: bool) {
        self.old.set_enabled(enabled);
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.old
            .set_queue_info(table, available, used)
            .map_err(refused)
    }

    fn queue_next_avail(&self) -> u16 {
        self.old.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.old.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.old.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.old.queue_used_idx().map_err(refused)
    }

    fn set_queue_size(&self, size: u16) {
        self.old.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.old.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.old.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.old.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.old.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        self.old.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.old.set_err(file);
    }
}
