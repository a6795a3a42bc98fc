// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A switch with a hostile port and two that are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringside_frontend::FrontendError;
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{
    Flow, Mac, NetConfig, NetHeader, NetPort, Received, RxQueue, TxQueue,
};
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, wait_until};
use ringside_tests::net_back_end::NetBackEnd;

pub(crate) const HOSTILE: Mac = [2, 0, 0, 0, 0, 0xee];
const LEFT: Mac = [2, 0, 0, 0, 0, 1];
const RIGHT: Mac = [2, 0, 0, 0, 0, 2];
const BYTES: usize = 300;

/// The switch, its bystanders, and what the process held before the case.
pub(crate) struct Scene {
    pub(crate) back_end: NetBackEnd,
    bystander: Bystander,
}

struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<std::result::Result<(), String>>,
}

/// A driver without offloads.
pub(crate) fn builder() -> SessionBuilder {
    Session::builder().without_features(OFFLOADS)
}

pub(crate) fn config() -> NetConfig {
    NetConfig {
        timeout: PATIENCE,
        control: true,
        ..NetConfig::default()
    }
}

impl Scene {
    /// Port 0 is the hostile one's.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(1)
    }

    /// So many ports are hostile ones', from 0 on.
    pub(crate) fn start_with(hostile: usize) -> Result<Self> {
        let mut back_end = NetBackEnd::start(hostile + 2, &["--backend", "switch"])?;
        let plain = NetConfig {
            control: false,
            ..config()
        };
        let left = NetPort::open(back_end.connect(hostile)?, builder(), &plain)?;
        let right = NetPort::open(back_end.connect(hostile + 1)?, builder(), &plain)?;
        let bystander = Bystander::start(left, right);
        let scene = Self {
            back_end,
            bystander,
        };
        scene.goes_on()?;
        Ok(scene)
    }

    /// A hostile port, of which nothing is expected yet.
    pub(crate) fn port(&mut self) -> Result<NetPort> {
        self.port_as(builder(), &config())
    }

    pub(crate) fn port_as(
        &mut self,
        builder: SessionBuilder,
        config: &NetConfig,
    ) -> Result<NetPort> {
        Ok(NetPort::open(self.back_end.connect(0)?, builder, config)?)
    }

    /// The bystanders exchange a hundred frames more.
    pub(crate) fn goes_on(&self) -> TestResult {
        let target = self.bystander.rounds.load(Ordering::Relaxed) + 100;
        let (thread, rounds) = (&self.bystander.thread, &self.bystander.rounds);
        wait_until("frames of the bystanders", || {
            Ok(thread.is_finished() || rounds.load(Ordering::Relaxed) >= target)
        })
    }

    /// The common check after a case, the hostile port having been dropped.
    pub(crate) fn check(mut self) -> TestResult {
        self.goes_on()?;
        let mut port = self.port()?;
        serves(&mut port)?;
        drop(port);
        self.bystander.stop.store(true, Ordering::Relaxed);
        let joined = self.bystander.thread.join();
        joined.map_err(|_panic| "the bystanders have panicked")??;
        if let Some(status) = self.back_end.process().try_exit()? {
            return Err(format!("the process has ended: {status}").into());
        }
        if self.back_end.process().stderr().contains("panicked") {
            return Err("a panic was printed".into());
        }
        let status = self.back_end.terminate()?;
        if !status.success() {
            return Err(format!("ended with {status}").into());
        }
        Ok(())
    }
}

/// The port sends, and hears a frame that comes from the bystanders' side: a broadcast.
pub(crate) fn serves(port: &mut NetPort) -> TestResult {
    let mut frame = Vec::new();
    // To itself, which the switch keeps from others.
    Flow::new(HOSTILE, HOSTILE, 9).make(0, 100, &mut frame);
    for _ in 0..100 {
        let header = NetHeader::default();
        port.pairs[0].tx.send_now(&header, &frame, PATIENCE)?;
    }
    port.pairs[0].rx.post_all()?;
    hears(port).map(drop)
}

/// Waits for the next broadcast of the bystanders.
pub(crate) fn hears(port: &mut NetPort) -> Result<Received> {
    let mut frame = Vec::new();
    let mut flow = Flow::new(LEFT, [0xff; 6], 1);
    let received = port.pairs[0].rx.wait(&mut frame, PATIENCE)?;
    flow.check(&frame, BYTES)?;
    Ok(received)
}

impl Bystander {
    fn start(mut left: NetPort, mut right: NetPort) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let round = count.load(Ordering::Relaxed);
                exchange(&mut left, &mut right, round)
                    .map_err(|e| format!("bystanders, round {round}: {e}"))?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self {
            stop,
            rounds,
            thread,
        }
    }
}

/// A frame there, one back, and a broadcast now and then; what the hostile port sends in between is
/// passed over.
fn exchange(left: &mut NetPort, right: &mut NetPort, round: u64) -> ringside_frontend::Result<()> {
    let mut frame = Vec::new();
    let header = NetHeader::default();
    let broadcast = Flow::new(LEFT, [0xff; 6], 1);
    if round.is_multiple_of(16) {
        broadcast.make(round, BYTES, &mut frame);
        left.pairs[0].tx.send_now(&header, &frame, PATIENCE)?;
    }
    right.pairs[0].rx.post_all()?;
    left.pairs[0].rx.post_all()?;
    for (there, source, destination) in [(true, LEFT, RIGHT), (false, RIGHT, LEFT)] {
        let (tx, rx) = if there {
            (&mut left.pairs[0].tx, &mut right.pairs[0].rx)
        } else {
            (&mut right.pairs[0].tx, &mut left.pairs[0].rx)
        };
        let mut flow = Flow::new(source, destination, 2);
        arrives(tx, rx, &mut flow, round)?;
    }
    Ok(())
}

/// A frame may be lost where the hostile port has filled the receiver's buffers; it is then sent
/// again. What arrives is checked, late ones are passed over.
fn arrives(
    tx: &mut TxQueue,
    rx: &mut RxQueue,
    flow: &mut Flow,
    round: u64,
) -> ringside_frontend::Result<()> {
    const AGAIN: Duration = Duration::from_millis(200);
    let (mut sent, mut frame) = (Vec::new(), Vec::new());
    flow.make(round, BYTES, &mut sent);
    let start = Instant::now();
    loop {
        tx.send_now(&NetHeader::default(), &sent, PATIENCE)?;
        loop {
            match rx.wait(&mut frame, AGAIN) {
                Err(FrontendError::Timeout { .. }) if start.elapsed() < PATIENCE => break,
                other => drop(other?),
            }
            rx.post_all()?;
            let is_ours = frame.get(..12) == sent.get(..12);
            if is_ours && flow.check(&frame, BYTES)? == round {
                return Ok(());
            }
        }
        rx.post_all()?;
    }
}
