// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control side of the device: features, configuration space, the end of a session.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringside_common::backchannel::BackChannel;
use ringside_common::device::Device;
use ringside_common::stats::DeviceStats;
use ringside_common::worker::Requests;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::config::FsConfig;
use crate::error::Errno;
use crate::passthrough::{PassThrough, Root};
use crate::serve::FsWorker;
use crate::server::KINDS;
use crate::shared::{FsOptions, Shared};

/// A virtio-fs device.
#[derive(Debug)]
pub struct FsDevice {
    shared: Arc<Shared>,
}

impl FsDevice {
    /// A device that shares `roots`; `proc_self_fd` is the directory `/proc/self/fd`.
    ///
    /// # Errors
    /// What the host said.
    pub fn new(
        config: FsConfig,
        options: FsOptions,
        roots: Vec<Root>,
        proc_self_fd: OwnedFd,
    ) -> io::Result<Self> {
        let own = proc_self_fd.try_clone()?;
        let fs = PassThrough::new(config, roots, own, options.max_files).map_err(|e| match e {
            Errno::OPNOTSUPP => io::Error::other(
                "--inode-file-handles=mandatory: the file system has no file handles, or we may \
                 not open them",
            ),
            other => other.into(),
        })?;
        let shared = Shared {
            fs,
            options,
            proc_self_fd,
            stats: Arc::new(DeviceStats::new("fs", KINDS)),
            indirect: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The shared directories.
    #[must_use]
    pub fn file_system(&self) -> &PassThrough {
        &self.shared.fs
    }
}

impl Device for FsDevice {
    type Worker = Requests<FsWorker>;

    fn num_queues(&self) -> u16 {
        self.shared.options.num_request_queues + 1
    }

    fn max_queue_size(&self) -> u16 {
        self.shared.options.queue_size
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn acked_features(&self, features: u64) {
        let indirect = features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        self.shared.indirect.store(indirect, Ordering::Release);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        // Without a tag the front-end knows it better.
        if self.shared.options.tag.is_some() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        if self.shared.fs.window.size_bytes() > 0 {
            features |= VhostUserProtocolFeatures::SHMEM;
        }
        features
    }

    fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.shared.config_space();
        let start = offset as usize;
        let range = space.get(start..start + size as usize);
        range.unwrap_or_default().to_vec()
    }

    /// `VIRTIO_FS_SHMCAP_ID_CACHE` is region 0, and the only one.
    fn shared_memory_windows(&self) -> VhostUserShMemConfig {
        VhostUserShMemConfig::new(1, &[self.shared.fs.window.size_bytes()])
    }

    fn worker(&self) -> io::Result<Requests<FsWorker>> {
        FsWorker::new(Arc::clone(&self.shared)).map(Requests::new)
    }

    fn seed(&self, _index: u16) {}

    /// virtio 1.3 §5.11.6.1: what goes on in request queues must not hold up the one for urgent
    /// requests.
    fn serves_alone(&self, index: u16) -> bool {
        index == 0
    }

    fn queues_option(&self) -> &'static str {
        "--num-request-queues"
    }

    fn stats(&self) -> &Arc<DeviceStats> {
        &self.shared.stats
    }

    fn config_hint(&self) -> &'static str {
        "; give --tag, for a front-end that learns the tag from here (crosvm)"
    }

    fn back_channel(&self) -> Option<&BackChannel> {
        Some(self.shared.fs.window.channel())
    }

    fn reset(&self) {
        self.shared.fs.reset();
    }

    /// The next guest knows nothing, and has nothing open.
    fn session_ended(&self) {
        self.shared.fs.reset();
        self.shared.fs.window.forget();
    }
}
