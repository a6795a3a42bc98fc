// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running `ringside-blk` that hostile things are done to.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{PATIENCE, Result, TestResult, wait_until};
use crate::process::{Launch, Process};
use ringside_frontend::blk::{BlkConfig, BlkDriver};
use ringside_frontend::ids::{feature, request};
use ringside_frontend::load::{Verify, check_content, write_pattern};
use ringside_frontend::raw::{Header, Message, RawClient};
use ringside_frontend::session::{Session, SessionBuilder};

/// Length of the victim's disk.
pub const DISK_BYTES: u64 = 64 << 20;
/// Queues the victim offers: few, so that one index more is out of range.
pub const QUEUES: u16 = 4;

/// A client that has negotiated all that is offered, each answer having come within `bound`.
///
/// # Errors
///
/// When negotiation fails.
pub fn negotiated(stream: UnixStream, bound: Duration) -> Result<RawClient> {
    let client = RawClient::from_stream(stream)?;
    let ask = |id| -> Result<u64> {
        let answer = client.call(id, &[], bound)?;
        Ok(answer.u64_at(0).ok_or("short answer")?)
    };
    let features = ask(request::GET_FEATURES)?;
    let protocol = ask(request::GET_PROTOCOL_FEATURES)?;
    client.request(request::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes())?;
    client.request(request::SET_OWNER, &[])?;
    let features = features & !feature::LOG_ALL;
    client.request(request::SET_FEATURES, &features.to_ne_bytes())?;
    Ok(client)
}

/// What the process holds on to, counted exactly.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Footprint {
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings of guest memory, and any other shared mapping.
    pub shared_maps: usize,
    /// All mappings.
    pub maps: usize,
}

/// The back-end, and what it held before the case.
#[derive(Debug)]
pub struct Victim {
    process: Process,
    before: Footprint,
    file_backed: bool,
}

impl Victim {
    /// Serves memory.
    ///
    /// # Errors
    ///
    /// When it does not start or does not serve.
    pub fn memory() -> Result<Self> {
        Self::memory_with(&[])
    }

    /// Serves memory, with more arguments.
    ///
    /// # Errors
    ///
    /// As [`Victim::memory`].
    pub fn memory_with(args: &[&str]) -> Result<Self> {
        let launch = Launch::back_end("ringside-blk")?.args(["--memory", "--size", "64M"]);
        Self::launch(launch, args, false)
    }

    /// Serves the file `disk.img` in the directory of the process.
    ///
    /// # Errors
    ///
    /// As [`Victim::memory`].
    pub fn file(args: &[&str]) -> Result<Self> {
        let launch = Launch::back_end("ringside-blk")?;
        let disk = launch.file("disk.img", DISK_BYTES)?;
        let launch = launch.arg("--blk-file").arg(disk);
        Self::launch(launch, args, true)
    }

    fn launch(launch: Launch, args: &[&str], file_backed: bool) -> Result<Self> {
        let socket = launch.socket();
        let queues = QUEUES.to_string();
        let mut process = launch
            .args(["--num-queues", &queues])
            .arg("--socket-path")
            .arg(socket)
            .args(args)
            // The C library keeps stacks and arenas of threads that have ended. Without those, the
            // number of mappings says what the back-end itself holds on to.
            .env(
                "GLIBC_TUNABLES",
                "glibc.malloc.arena_max=1:glibc.pthread.stack_cache_size=0",
            )
            .spawn()?;
        process.wait_listening(PATIENCE)?;
        let mut victim = Self {
            before: footprint(&process)?,
            process,
            file_backed,
        };
        // What a first session allocates for good (heap, log buffers) is not the case's.
        victim.serve_verified()?;
        let silent = victim.silent()?;
        wait_until("the threads of the first session gone", || {
            victim.before = footprint(&victim.process)?;
            Ok((victim.before.threads, victim.before.shared_maps) == (1, 0))
        })?;
        drop(silent);
        Ok(victim)
    }

    /// A connection that only shows, by being served, that the one before is over: footprints are
    /// taken while there is one, before the case and after it.
    fn silent(&mut self) -> Result<RawClient> {
        let client = self.raw()?;
        if !client.is_alive(PATIENCE) {
            return Err("a new front-end is not served".into());
        }
        Ok(client)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A connection on which nothing was said yet.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn stream(&mut self) -> Result<UnixStream> {
        Ok(self.process.connect(PATIENCE)?)
    }

    /// A client on such a connection.
    ///
    /// # Errors
    ///
    /// As [`Victim::stream`].
    pub fn raw(&mut self) -> Result<RawClient> {
        Ok(RawClient::from_stream(self.stream()?)?)
    }

    /// A client that has negotiated all that is offered, without memory or rings.
    ///
    /// # Errors
    ///
    /// When negotiation fails.
    pub fn negotiated(&mut self) -> Result<RawClient> {
        negotiated(self.stream()?, PATIENCE)
    }

    /// A sound session.
    ///
    /// # Errors
    ///
    /// When the back-end does not take it.
    pub fn session(&mut self, builder: SessionBuilder) -> Result<Session> {
        Ok(builder.from_stream(self.stream()?)?)
    }

    /// A sound session, and a second hand on the same connection.
    ///
    /// # Errors
    ///
    /// As [`Victim::session`].
    pub fn session_and_raw(&mut self, builder: SessionBuilder) -> Result<(Session, RawClient)> {
        let stream = self.stream()?;
        let raw = RawClient::from_stream(stream.try_clone()?)?;
        Ok((builder.from_stream(stream)?, raw))
    }

    /// A session and a driver on each of its queues, which are started.
    ///
    /// # Errors
    ///
    /// As [`Victim::session`].
    pub fn drivers(
        &mut self,
        builder: SessionBuilder,
        config: BlkConfig,
    ) -> Result<(Session, Vec<BlkDriver>)> {
        let mut session = self.session(builder)?;
        let drivers = session
            .start_all()?
            .into_iter()
            .map(|vring| BlkDriver::new(vring, config))
            .collect::<std::result::Result<_, _>>()?;
        Ok((session, drivers))
    }

    /// What the process holds on to at the moment.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn footprint(&self) -> Result<Footprint> {
        footprint(&self.process)
    }

    /// What it held before the case, with one silent connection.
    #[must_use]
    pub fn before(&self) -> Footprint {
        self.before
    }

    /// A number of `/proc/<pid>/status`, in KiB where it is a size.
    ///
    /// # Errors
    ///
    /// When there is no such line.
    pub fn status_number(&self, label: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(label));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        Ok(number.ok_or("no such line of status")?.parse()?)
    }

    /// Processor time over `time` in which nothing is asked of the process.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn cpu_over(&self, time: Duration) -> Result<Duration> {
        let before = self.process.sample()?.cpu;
        let start = Instant::now();
        while start.elapsed() < time {
            std::thread::sleep(time.saturating_sub(start.elapsed()));
        }
        Ok(self.process.sample()?.cpu.saturating_sub(before))
    }

    /// Sends one message on a fresh, negotiated connection, which has to be closed for it.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn closes_on(
        &mut self,
        header: Header,
        body: &[u8],
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> TestResult {
        let client = self.negotiated()?;
        client.send(header, body, fds)?;
        client
            .expect_closed(PATIENCE)
            .map(|_| ())
            .map_err(|e| format!("{header:?} {body:02x?} with {} fds: {e}", fds.len()).into())
    }

    /// The common check after a case: the process lives, serves a new front-end 100 verified
    /// requests, holds no more than before, and no panic was printed.
    ///
    /// # Errors
    ///
    /// When one of these is not so.
    pub fn check(&mut self) -> TestResult {
        self.serve_verified()?;
        let silent = self.silent()?;
        let (process, before) = (&self.process, self.before);
        let settled = wait_until("descriptors, threads and mappings as before", || {
            Ok(footprint(process)?.is_back_at(&before))
        });
        settled.map_err(|e| format!("{e}: {before:?}, now {:?}", self.footprint()))?;
        drop(silent);
        if let Some(status) = self.process.try_exit()? {
            return Err(format!("the process has ended: {status}").into());
        }
        let log = self.process.stderr();
        if log.contains("panicked") {
            return Err("a panic was printed".into());
        }
        Ok(())
    }

    /// A whole session with 50 writes and 50 reads of what was written.
    fn serve_verified(&mut self) -> TestResult {
        let builder = Session::builder().queues(2).timeout(PATIENCE);
        let config = BlkConfig {
            depth: 16,
            timeout: PATIENCE,
            ..BlkConfig::default()
        };
        let (_session, mut drivers) = self.drivers(builder, config)?;
        for (driver, first_sector) in drivers.iter_mut().zip([0, 8192]) {
            let plan = Verify {
                depth: 16,
                block_bytes: 4096,
                first_sector,
                blocks: 25,
                seed: first_sector + 1,
            };
            write_pattern(driver, &plan)?;
            check_content(driver, &plan)?;
        }
        Ok(())
    }

    /// Whether the disk is a file, served by `io_uring`.
    #[must_use]
    pub fn is_file_backed(&self) -> bool {
        self.file_backed
    }
}

impl Footprint {
    /// Threads that have ended may leave a heap or two of the C library behind; nothing else is
    /// allowed to stay.
    fn is_back_at(&self, before: &Self) -> bool {
        const SPARE_MAPS: usize = 4;
        (self.fds, self.threads, self.shared_maps)
            == (before.fds, before.threads, before.shared_maps)
            && self.maps <= before.maps + SPARE_MAPS
    }
}

/// The answer to a request that fails with `NEED_REPLY` set: 1, and then the end.
///
/// # Errors
///
/// When the answer is another, or the connection stays open.
pub fn expect_refusal(client: &RawClient) -> TestResult {
    let answer: Message = client.recv(PATIENCE)?;
    if answer.u64_at(0) != Some(1) {
        return Err(format!("not refused: {answer:?}").into());
    }
    client.expect_closed(PATIENCE)?;
    Ok(())
}

fn footprint(process: &Process) -> Result<Footprint> {
    let sample = process.sample()?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.id()))?;
    let is_shared = |line: &&str| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|p| p.ends_with('s'))
    };
    Ok(Footprint {
        fds: sample.fds,
        threads: sample.threads,
        shared_maps: maps.lines().filter(is_shared).count(),
        maps: maps.lines().count(),
    })
}
