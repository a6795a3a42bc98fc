// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the connection to the mount, and back.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ringside_frontend::memory::MemoryLayout;
use ringside_frontend::session::Session;
use ringside_frontend::{FrontendError, Result as FrontendResult};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::channel::{Channel, Next, SLOT_BYTES, Shared};
use super::lane::{Lane, Tag};
use super::options::Options;
use super::sys::{clone_fuse, open_fuse};

/// Descriptors per queue: the most that QEMU gives a device.
const QUEUE_SIZE: u16 = 1024;
/// Descriptors per chain: two headers, two times arguments, and 1 MiB in pages.
const CHAIN_LEN: u16 = 264;
/// How long the end may take.
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome = Result<(), Box<dyn Error>>;

/// Everything that the threads share.
struct Bridge {
    channels: Vec<Channel>,
    lanes: Vec<Lane>,
    hiprio: Lane,
    shared: Shared,
    /// How it ended, by the first thread that saw it.
    end: Mutex<Option<FrontendResult<()>>>,
    /// Written to at the end.
    ended: OwnedFd,
}

/// A mount; gone with the value, unless it is gone already.
struct Mount<'a> {
    mountpoint: &'a Path,
}

impl Mount<'_> {
    /// Takes the file system out of the tree; it goes on until nobody uses it.
    fn detach(&self) {
        // Fails if somebody else has unmounted it, and then there is nothing to do.
        let _ = umount2(self.mountpoint, MntFlags::MNT_DETACH);
    }
}

/// Mounts, serves and unmounts.
pub(crate) fn run(options: &Options) -> Outcome {
    // Before any thread, so that all of them have them blocked.
    let signals = block_signals()?;
    let stream = UnixStream::connect(&options.socket_path).map_err(io_error("connect"))?;
    let (mut session, lanes) = connect(options, stream.try_clone()?)?;
    let fuse = open_fuse().map_err(io_error("open of /dev/fuse"))?;
    let mount = mount_fuse(options, &fuse)?;
    let served = serve(options, &session, lanes, fuse)
        .and_then(|bridge| wait(&bridge, &mount, &signals, &stream).map(|()| bridge));
    if served.is_err() {
        mount.detach();
    }
    let bridge = served?;
    finish(&bridge)?;
    for index in 0..=usize::from(options.queues) {
        session.stop(index)?;
    }
    Ok(())
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)
}

fn connect(options: &Options, stream: UnixStream) -> FrontendResult<(Session, Vec<Lane>)> {
    let queues = usize::from(options.queues) + 1;
    let rings_bytes = queues * usize::from(QUEUE_SIZE) * usize::from(CHAIN_LEN) * 16;
    let slots_bytes = usize::from(options.queues) * usize::from(options.depth) * SLOT_BYTES;
    let bytes = (rings_bytes + queues * (64 << 10) + slots_bytes).next_multiple_of(2 << 20);
    let mut session = Session::builder()
        .queues(queues)
        .queue_size(QUEUE_SIZE)
        .indirect_len(CHAIN_LEN)
        .memory(MemoryLayout::single(bytes))
        .from_stream(stream)?;
    let lanes = session.start_all()?.into_iter().map(Lane::new);
    let lanes = lanes.collect::<FrontendResult<_>>()?;
    Ok((session, lanes))
}

fn mount_fuse<'a>(options: &'a Options, fuse: &File) -> FrontendResult<Mount<'a>> {
    let data = options.data(fuse.as_raw_fd());
    mount(
        Some("vhost-user-fs"),
        &options.mountpoint,
        Some("fuse.vhost-user-fs"),
        options.flags(),
        Some(data.as_str()),
    )
    .map_err(|errno| io_error("mount")(errno.into()))?;
    Ok(Mount {
        mountpoint: &options.mountpoint,
    })
}

/// Starts all threads.
fn serve(
    options: &Options,
    session: &Session,
    mut lanes: Vec<Lane>,
    fuse: File,
) -> Result<Arc<Bridge>, Box<dyn Error>> {
    let lanes_of_requests = lanes.split_off(1);
    let hiprio = lanes.pop().ok_or("no queues")?;
    let mut files = Vec::new();
    for _ in 1..options.queues {
        files.push(clone_fuse(fuse.as_fd()).map_err(io_error("clone of /dev/fuse"))?);
    }
    files.push(fuse);
    let channels = files
        .into_iter()
        .enumerate()
        .map(|(index, file)| Channel::new(session.memory(), index, file, options.depth))
        .collect::<FrontendResult<_>>()?;
    let bridge = Arc::new(Bridge {
        channels,
        lanes: lanes_of_requests,
        hiprio,
        shared: Shared::new(options.max_background),
        end: Mutex::new(None),
        ended: eventfd(0, EventfdFlags::CLOEXEC)?,
    });
    for index in 0..bridge.channels.len() {
        spawn(&bridge, format!("read-{index}"), move |bridge| {
            bridge.read_requests(index)
        })?;
        spawn(&bridge, format!("reply-{index}"), move |bridge| {
            bridge.write_replies(bridge.lanes.get(index))
        })?;
    }
    spawn(&bridge, "hiprio".into(), |bridge| {
        bridge.write_replies(Some(&bridge.hiprio))
    })?;
    Ok(bridge)
}

fn spawn(
    bridge: &Arc<Bridge>,
    name: String,
    work: impl FnOnce(&Bridge) -> FrontendResult<()> + Send + 'static,
) -> std::io::Result<()> {
    let bridge = Arc::clone(bridge);
    let body = move || {
        let end = work(&bridge);
        bridge.end(end);
    };
    thread::Builder::new().name(name).spawn(body).map(|_| ())
}

impl Bridge {
    fn read_requests(&self, index: usize) -> FrontendResult<()> {
        let (Some(channel), Some(lane)) = (self.channels.get(index), self.lanes.get(index)) else {
            return Ok(());
        };
        while channel.carry_request(&self.shared, lane, &self.hiprio)? == Next::More {}
        Ok(())
    }

    /// Goes on after the file system is unmounted, for the requests that are still in flight.
    fn write_replies(&self, lane: Option<&Lane>) -> FrontendResult<()> {
        let Some(lane) = lane else { return Ok(()) };
        let mut done = Vec::new();
        loop {
            lane.reap(&mut done)?;
            for (Tag { channel, slot }, used_len) in done.drain(..) {
                if let Some(channel) = self.channels.get(channel) {
                    channel.carry_reply(&self.shared, slot, used_len)?;
                }
            }
        }
    }

    fn end(&self, how: FrontendResult<()>) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_none() {
            *end = Some(how);
            // An eventfd takes far more than one write.
            let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
        }
    }
}

/// Waits until the file system is unmounted, by whomever.
fn wait(bridge: &Bridge, mount: &Mount<'_>, signals: &SignalFd, stream: &UnixStream) -> Outcome {
    let mut deadline: Option<Instant> = None;
    loop {
        let mut fds = [
            PollFd::new(&bridge.ended, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            // Only its end is of interest.
            PollFd::new(stream, PollFlags::RDHUP),
        ];
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| left.try_into().unwrap_or_default());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Err("the file system is still in use; given up on".into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let [ended, signal, stream] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            let mut end = bridge.end.lock().unwrap_or_else(PoisonError::into_inner);
            return end.take().unwrap_or(Ok(())).map_err(Into::into);
        }
        if stream {
            return Err("the back-end has closed the connection".into());
        }
        if signal {
            signals.read_signal()?;
            if deadline.is_some() {
                return Err("ended by a second signal".into());
            }
            mount.detach();
            deadline = Some(Instant::now() + PATIENCE);
        }
    }
}

/// Lets what is in flight come to its end, and closes the session of the device.
fn finish(bridge: &Bridge) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    if !bridge
        .channels
        .iter()
        .all(|channel| channel.wait_idle(left()))
    {
        return Err("requests are still in flight".into());
    }
    if let (Some(channel), Some(lane)) = (bridge.channels.first(), bridge.lanes.first())
        && !channel.destroy(lane, left())?
    {
        return Err("no answer to DESTROY".into());
    }
    Ok(())
}

fn io_error(action: &'static str) -> impl FnOnce(std::io::Error) -> FrontendError {
    move |source| FrontendError::Io { action, source }
}
