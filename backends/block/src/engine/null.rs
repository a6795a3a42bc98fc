// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that does nothing, for measuring everything around it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringside_common::io::{Engine as IoEngine, FileId};
use ringside_common::worker::RequestCx;

use super::{Engine, EngineQueue, Ranges, Step, Target};

/// Reads leave the buffer as it is, writes are dropped, everything is done at once.
#[derive(Clone, Copy, Debug)]
pub struct NullEngine {
    capacity_sectors: u64,
}

impl NullEngine {
    /// A disk of this many sectors.
    #[must_use]
    pub fn new(capacity_sectors: u64) -> Self {
        Self { capacity_sectors }
    }
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

    fn start_queue(
        self: Arc<Self>,
        _size: u16,
        _file: &dyn Fn(u32) -> FileId,
    ) -> Box<dyn EngineQueue> {
        Box::new(NullQueue)
    }

    fn flush_now(&self) -> io::Result<()> {
        Ok(())
    }

    fn refresh(&self) -> io::Result<u64> {
        Ok(self.capacity_sectors)
    }
}

/// Its operations; they have no state.
#[derive(Debug)]
struct NullQueue;

impl EngineQueue for NullQueue {
    fn read(&mut self, cx: &mut RequestCx<'_>, target: Target) -> Step {
        let buffers = cx.buffers(target.head);
        all(buffers.map_or(0, |buffers| buffers.writable_bytes()))
    }

    fn write(&mut self, cx: &mut RequestCx<'_>, target: Target, _stable: bool) -> Step {
        let buffers = cx.buffers(target.head);
        all(buffers.map_or(0, |buffers| buffers.readable_bytes()))
    }

    fn flush(&mut self, _cx: &mut RequestCx<'_>, _target: Target) -> Step {
        Step::Done(0)
    }

    fn clear(&mut self, _cx: &mut RequestCx<'_>, _target: Target, _ranges: Ranges) -> Step {
        Step::Done(0)
    }
}

/// A transfer of all bytes; of more than a result can tell, it is a short one and goes on.
fn all(bytes: u64) -> Step {
    Step::Done(i32::try_from(bytes).unwrap_or(i32::MAX))
}
