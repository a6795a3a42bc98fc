// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that does nothing, for measuring everything around it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringside_common::io::Engine as IoEngine;
use ringside_common::worker::RequestCx;

use super::{Engine, Ranges, Started, Target};

/// Reads leave the buffer as it is, writes are dropped, everything is done at once.
#[derive(Clone, Copy, Debug)]
pub struct NullEngine {
    capacity_sectors: u64,
}

impl NullEngine {
    /// A disk of so many sectors.
    #[must_use]
    pub fn new(capacity_sectors: u64) -> Self {
        Self { capacity_sectors }
    }
}

fn all(bytes: u64) -> Started {
    Started::Done(i32::try_from(bytes).unwrap_or(i32::MAX))
}

impl Engine for NullEngine {
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }

    fn io_engine(&self) -> IoEngine {
        IoEngine::Uring
    }

    fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn read(&self, cx: &mut RequestCx<'_>, target: Target) -> Started {
        all(cx
            .buffers(target.head)
            .map_or(0, |buffers| buffers.writable_bytes()))
    }

    fn write(&self, cx: &mut RequestCx<'_>, target: Target, _stable: bool) -> Started {
        all(cx
            .buffers(target.head)
            .map_or(0, |buffers| buffers.readable_bytes()))
    }

    fn flush(&self, _cx: &mut RequestCx<'_>, _target: Target) -> Started {
        Started::Done(0)
    }

    fn clear(&self, _cx: &mut RequestCx<'_>, _target: Target, _ranges: Ranges) -> Started {
        Started::Done(0)
    }

    fn flush_now(&self) -> io::Result<()> {
        Ok(())
    }

    fn refresh(&self) -> io::Result<u64> {
        Ok(self.capacity_sectors)
    }
}
