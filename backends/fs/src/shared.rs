// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control side and the data sides of the device share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringside_common::stats::DeviceStats;

use crate::passthrough::PassThrough;
use crate::wire::header::InHeader;
use crate::wire::operation::Operation;

/// Bytes of the tag in the configuration space (virtio 1.3 §5.11.4).
pub const TAG_BYTES: usize = 36;

/// The options of the device, apart from those of its files.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// The name by which the guest mounts it, if it is not for the front-end to say; up to 36
    /// bytes.
    pub tag: Option<String>,
    /// Request queues offered; there is one more, for urgent requests.
    pub num_request_queues: u16,
    /// Largest queue accepted.
    pub queue_size: u16,
    /// Descriptors that the process may have.
    pub max_files: usize,
}

/// What the control thread and the data threads share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) fs: PassThrough,
    pub(crate) options: FsOptions,
    pub(crate) proc_self_fd: OwnedFd,
    pub(crate) stats: Arc<DeviceStats>,
    /// Whether the driver puts chains into indirect tables.
    pub(crate) indirect: AtomicBool,
}

impl Shared {
    /// Whether a chain takes one descriptor of the ring (virtio 1.3 §2.7.5.3).
    pub(crate) fn has_indirect(&self) -> bool {
        self.indirect.load(Ordering::Acquire)
    }

    /// `/proc/self/fd`.
    pub(crate) fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.proc_self_fd.as_fd()
    }

    /// Does what has no reply.
    pub(crate) fn serve_silent(&self, header: &InHeader, op: &Operation<'_>) {
        match op {
            Operation::Forget { nlookup } => self.fs.nodes.forget(header.node, *nlookup),
            Operation::BatchForget { forgets } => self.fs.batch_forget(forgets),
            // It may have been answered already.
            Operation::Interrupt { unique } => {
                self.fs.locks.interrupt(*unique);
            }
            _ => {}
        }
    }

    /// virtio 1.3 §5.11.4.
    pub(crate) fn config_space(&self) -> Vec<u8> {
        let mut space = vec![0; TAG_BYTES];
        let tag = self.options.tag.as_deref().unwrap_or_default();
        for (to, from) in space.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        space.extend(u32::from(self.options.num_request_queues).to_le_bytes());
        space
    }
}
