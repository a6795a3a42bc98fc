// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-fs driver on the rings of one vhost-user connection (virtio 1.3 §5.11).
//!
//! [`FuseClient`] is a connection: the high-priority queue, the request queues, and what `INIT`
//! agreed on. [`FuseQueue`] is one queue with preallocated slots. The asynchronous way is
//! `acquire` a slot, fill its data, `submit` (several times), `publish`, `poll` or `wait` for
//! completions, and `release` or `submit` the slot again; none of it allocates, as long as the
//! [`Request`] is kept. The methods in `fuse::sync` (`lookup`, `read`, ...) do all of it for one
//! request and hand out what the reply says. [`FuseQueue::submit_bytes`] sends anything.
//!
//! Requests are encoded and replies decoded here by hand from `fuse.h`, not by the code of the
//! device: a mistake there must not hide itself.

mod client;
mod decode;
mod error;
pub mod flags;
mod framing;
mod many;
mod queue;
mod request;
mod slot;
mod sync;
mod sync_file;
pub mod types;

pub use client::{FuseClient, FuseConfig};
pub use decode::{DirEntry, FileLock, StatFs};
pub use error::{FuseError, FuseResult};
pub use framing::Framing;
pub use queue::{Caller, Completion, FuseQueue, QueueConfig};
pub use request::Request;
pub use slot::{FuseSlot, ReplyHeader};
