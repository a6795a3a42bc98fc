// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An entropy device (virtio 1.3 §5.4): `entropy SOCKET`. See docs/writing-a-device.md.

use std::{env, error::Error, fs::File, io, os::fd::OwnedFd, sync::Arc};

use ringside_common::chain::ChainFault;
use ringside_common::daemon::{Control, Source, serve};
use ringside_common::device::Device;
use ringside_common::worker::{Counted, RequestCx, RequestWorker, Requests, WorkerOptions};
use ringside_common::{io::FileId, stats::DeviceStats};

#[derive(Debug)]
struct Entropy {
    source: Arc<OwnedFd>,
    stats: Arc<DeviceStats>,
}

impl Device for Entropy {
    type Worker = Requests<Reader>;
    fn stats(&self) -> &Arc<DeviceStats> {
        &self.stats
    }
    fn files(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.source)]
    }
    fn worker(&self) -> io::Result<Requests<Reader>> {
        Ok(Requests::new(Reader))
    }
    fn seed(&self, _index: u16) {}
}

struct Reader;

impl RequestWorker for Reader {
    type Queue = ();
    type Later = ();
    fn start_queue(&mut self, _index: u16, _size: u16) {}
    fn request(&mut self, (): &mut (), cx: &mut RequestCx<'_>, head: u16, chain: Checked) {
        if chain.is_err() || cx.read(head, 0, FileId::new(0), 0).is_err() {
            cx.complete(head, 0, Counted::new(0, 0, false));
        }
    }
    fn io_done(&mut self, (): &mut (), cx: &mut RequestCx<'_>, head: u16, _tag: u16, result: i32) {
        let bytes = u32::try_from(result).unwrap_or(0); // A negative errno is clamped to no bytes.
        cx.complete(head, bytes, Counted::new(0, bytes.into(), result >= 0));
    }
}

type Checked = Result<(), ChainFault>;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = env::args_os().nth(1).ok_or("usage: entropy SOCKET")?;
    let source = Arc::new(File::open("/dev/urandom")?.into());
    let stats = Arc::new(DeviceStats::new("entropy", &["read"]));
    let device = Arc::new(Entropy { source, stats });
    let (options, control) = (WorkerOptions::default(), Control::new()?);
    Ok(serve(&device, Source::bind(socket)?, &options, &control)?)
}
