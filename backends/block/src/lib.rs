// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user block device back-end: virtio-blk (virtio 1.3 §5.2) on raw files, host block
//! devices and memory.
//!
//! | module | does |
//! |---|---|
//! | [`options`], [`program`] | the command line, checked; what is opened for it |
//! | [`device`] | features, configuration space, size: the control side |
//! | [`serve`] | from a descriptor chain to its answer: the data side |
//! | `shared` | what the two sides share |
//! | [`request`] | what a request asks for, from its bytes alone |
//! | [`config_space`] | the configuration space, to the byte |
//! | `write_cache` | whether a write is stable before its answer |
//! | `syncs` | what a failed sync means for those beside it |
//! | [`engine`] | where checked requests go |
//! | [`storage`] | files and block devices: locks, sizes, alignment, bounce buffers |
//! | [`manage`] | methods of the control socket |
//!
//! How it works, and why, is in `docs/block.md`.

pub mod config_space;
pub mod device;
pub mod engine;
pub mod manage;
pub mod options;
pub mod program;
pub mod request;
pub mod serve;
mod shared;
pub mod storage;
mod syncs;
mod write_cache;
