// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A22: random messages that look valid.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ringside_frontend::ids::request;
use ringside_frontend::load::Rng;
use ringside_frontend::raw::{Header, RawClient};
use ringside_tests::hostile::wire::{
    self, RegionBody, config, mem_region, mem_table, vring_addr, vring_state, words,
};
use ringside_tests::hostile::{PATIENCE, TestResult, Victim};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;

/// The bound of A22 for a hang.
const HANG: Duration = Duration::from_secs(2);
const MESSAGES: u32 = 1000;
/// Regions are cut out of this much memory, full of random bytes.
const MEMORY_BYTES: usize = 1 << 20;
const UVA: u64 = 0x7000_0000_0000;

struct Fuzzer {
    rng: Rng,
    memory: OwnedFd,
    event: OwnedFd,
    null: OwnedFd,
    socket: OwnedFd,
}

/// What goes with a message.
#[derive(Clone, Copy)]
enum Fd {
    None,
    Memory,
    Event,
    Socket,
    Any,
}

impl Fuzzer {
    fn new(seed: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let mut rng = Rng::new(seed);
        let memory = rustix::fs::memfd_create("ringside-fuzz", MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(memory);
        let noise: Vec<u8> = (0..MEMORY_BYTES / 8)
            .flat_map(|_| (rng.next_u64() & rng.next_u64()).to_ne_bytes())
            .collect();
        file.write_all(&noise)?;
        Ok(Self {
            rng,
            memory: file.into(),
            event: eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            null: std::fs::File::open("/dev/null")?.into(),
            socket: std::os::unix::net::UnixStream::pair()?.0.into(),
        })
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    /// Mostly what is asked for, now and then a number that is on an edge.
    fn number(&mut self, sound: u64) -> u64 {
        const EDGES: [u64; 12] = [
            0,
            1,
            0xff,
            0x100,
            0xffff,
            0x1_0000,
            0x7fff_ffff,
            0xffff_ffff,
            1 << 32,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX,
        ];
        if !self.one_in(24) {
            return sound;
        }
        let at = usize::try_from(self.rng.below(EDGES.len() as u64)).unwrap_or(0);
        EDGES[at]
    }

    fn small(&mut self, sound: u64) -> u32 {
        u32::try_from(self.number(sound) & 0xffff_ffff).unwrap_or(0)
    }

    fn index(&mut self) -> u32 {
        let index = self.rng.below(4);
        self.small(index)
    }

    fn region(&mut self) -> RegionBody {
        let pages = 1 + self.rng.below(256);
        let slot = self.rng.below(4) << 20;
        RegionBody {
            gpa: self.number(slot),
            bytes: self.number(pages * 4096),
            uva: self.number(UVA + slot),
            offset: self.number(0),
        }
    }

    fn address(&mut self, align: u64) -> u64 {
        let sound = UVA + self.rng.below(1 << 19) / align * align;
        self.number(sound)
    }

    /// One message: request, body, what goes with it.
    #[expect(clippy::too_many_lines, reason = "a table of messages, one arm each")]
    fn message(&mut self) -> (u32, Vec<u8>, Fd) {
        let index = self.index();
        match self.rng.below(22) {
            0 => (request::GET_FEATURES, Vec::new(), Fd::None),
            1 => {
                let bits = self.number(1 << 32 | 1 << 30 | 1 << 29 | 1 << 28);
                (request::SET_FEATURES, words(&[bits]), Fd::None)
            }
            2 => {
                let bits = self.number(1 << 3 | 1);
                (request::SET_PROTOCOL_FEATURES, words(&[bits]), Fd::None)
            }
            3 | 4 => {
                let region = self.region();
                (request::SET_MEM_TABLE, mem_table(1, &[region]), Fd::Memory)
            }
            5 => (request::ADD_MEM_REG, mem_region(&self.region()), Fd::Memory),
            6 => (request::REM_MEM_REG, mem_region(&self.region()), Fd::None),
            7 | 8 => {
                let size = 1 << self.rng.below(8);
                let num = self.small(size);
                (request::SET_VRING_NUM, vring_state(index, num), Fd::None)
            }
            9 => {
                let base = self.rng.below(1 << 16);
                let num = self.small(base);
                (request::SET_VRING_BASE, vring_state(index, num), Fd::None)
            }
            10 | 11 => {
                let (desc, used, avail) = (self.address(16), self.address(4), self.address(2));
                let body = vring_addr(index, desc, used, avail);
                (request::SET_VRING_ADDR, body, Fd::None)
            }
            12 => (request::GET_VRING_BASE, vring_state(index, 0), Fd::None),
            13 | 14 => (
                request::SET_VRING_KICK,
                words(&[u64::from(index)]),
                Fd::Event,
            ),
            15 => (
                request::SET_VRING_CALL,
                words(&[u64::from(index)]),
                Fd::Event,
            ),
            16 => (
                request::SET_VRING_ERR,
                words(&[u64::from(index)]),
                Fd::Event,
            ),
            17 => {
                let enable = self.rng.below(2);
                let num = self.small(enable);
                (request::SET_VRING_ENABLE, vring_state(index, num), Fd::None)
            }
            18 => {
                let (offset, bytes) = (self.small(0), self.rng.below(64));
                let size = self.small(bytes);
                let payload = vec![0; usize::try_from(bytes).unwrap_or(0)];
                (
                    request::GET_CONFIG,
                    config(offset, size, 0, &payload),
                    Fd::None,
                )
            }
            19 => {
                let offset = self.small(32);
                let body = config(offset, 1, 1, &[1]);
                (request::SET_CONFIG, body, Fd::None)
            }
            20 => (request::SET_BACKEND_REQ_FD, Vec::new(), Fd::Socket),
            _ => {
                let id = u32::try_from(self.rng.below(48)).unwrap_or(0);
                let bytes = 8 * self.rng.below(6);
                let body = (0..bytes)
                    .map(|_| self.rng.next_u64().to_ne_bytes()[0])
                    .collect();
                (id, body, Fd::Any)
            }
        }
    }

    /// Sends one; false when the connection is no more.
    fn send(&mut self, client: &RawClient) -> bool {
        let (id, body, mut fd) = self.message();
        let mut header = wire::header(id, &body);
        if self.one_in(8) {
            header = header.need_reply();
        }
        if self.one_in(48) {
            fd = Fd::Any;
        }
        let all = [&self.null, &self.event, &self.memory, &self.socket];
        let any = usize::try_from(self.rng.below(5)).unwrap_or(0);
        let fds: Vec<BorrowedFd<'_>> = match fd {
            Fd::None => Vec::new(),
            Fd::Memory => vec![self.memory.as_fd()],
            Fd::Event => vec![self.event.as_fd()],
            Fd::Socket => vec![self.socket.as_fd()],
            Fd::Any => all.iter().skip(any).take(1).map(|fd| fd.as_fd()).collect(),
        };
        client.send(header, &body, &fds).is_ok()
    }
}

/// Whether the connection still answers; when it does not it has to be closed.
fn answers(client: &RawClient, seed: u64, number: u32) -> Result<bool, String> {
    if client.request(request::GET_FEATURES, &[]).is_err() {
        return Ok(false);
    }
    loop {
        match client.recv(HANG) {
            Ok(message) if message.header.request == request::GET_FEATURES => return Ok(true),
            Ok(_) => {}
            Err(error @ ringside_frontend::FrontendError::Timeout { .. }) => {
                return Err(format!("seed {seed}, message {number}: hangs: {error}"));
            }
            Err(_) => return Ok(false),
        }
    }
}

/// A connection that has come as far as memory and a ring of 16 entries, half of the time.
fn prepared(
    victim: &mut Victim,
    fuzzer: &mut Fuzzer,
) -> Result<RawClient, Box<dyn std::error::Error>> {
    let client = victim.negotiated()?;
    let region = RegionBody {
        gpa: 0,
        bytes: MEMORY_BYTES as u64,
        uva: UVA,
        offset: 0,
    };
    let table = mem_table(1, &[region]);
    let header = wire::header(request::SET_MEM_TABLE, &table);
    client.send(header, &table, &[fuzzer.memory.as_fd()])?;
    if fuzzer.one_in(2) {
        for (id, body) in [
            (request::SET_VRING_NUM, vring_state(0, 16)),
            (
                request::SET_VRING_ADDR,
                vring_addr(0, UVA, UVA + 8192, UVA + 4096),
            ),
            (request::SET_VRING_ENABLE, vring_state(0, 1)),
        ] {
            client.request(id, &body)?;
        }
        let kick = Header::new(request::SET_VRING_KICK, 8);
        client.send(kick, &words(&[0]), &[fuzzer.event.as_fd()])?;
    }
    Ok(client)
}

#[test]
fn a22_random_messages_neither_crash_nor_hang_nor_leak() -> TestResult {
    let mut victim = Victim::memory()?;
    let anon_before = victim.process().sample()?.rss_anon_kib;
    for seed in [1, 2, 3, 0xdead_beef, 0x5eed_5eed] {
        writeln!(std::io::stdout(), "A22: seed {seed:#x}")?;
        let mut fuzzer = Fuzzer::new(seed)?;
        let mut sent = 0;
        let mut connections = 0;
        while sent < MESSAGES {
            let client = prepared(&mut victim, &mut fuzzer)?;
            connections += 1;
            loop {
                let open = fuzzer.send(&client);
                sent += 1;
                if !open || !answers(&client, seed, sent)? || sent >= MESSAGES {
                    break;
                }
            }
        }
        writeln!(std::io::stdout(), "A22: {connections} connections")?;
        victim.check()?;
    }
    let anon = victim.process().sample()?.rss_anon_kib;
    assert!(
        anon < anon_before + 1024,
        "{anon_before} KiB, now {anon} KiB"
    );
    assert!(victim.raw()?.is_alive(PATIENCE));
    victim.check()
}
