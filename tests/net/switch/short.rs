// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Receive chains that are too short, on every path that fills receive queues.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use ringside_frontend::net::net_feature::{MRG_RXBUF, OFFLOADS};
use ringside_frontend::net::{NetHeader, NetPort};
use ringside_frontend::ring::Segment;
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;

use crate::{PATIENCE, Result, TestResult, alone, config, frame, mac, open};

/// Where frames for the guest come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Path {
    /// Another port of a switch.
    Switch,
    /// The uplink of a switch.
    Uplink,
    /// The link of a lone port.
    Wire,
    /// The guest itself.
    Loopback,
    /// They are made up.
    Null,
}

const PATHS: [Path; 5] = [
    Path::Switch,
    Path::Uplink,
    Path::Wire,
    Path::Loopback,
    Path::Null,
];

const FRAME_BYTES: usize = 60;

/// A guest, and a way for frames to it.
struct Scene {
    path: Path,
    back_end: NetBackEnd,
    guest: NetPort,
    other: Option<NetPort>,
    stream: Option<UnixStream>,
}

impl Scene {
    fn start(path: Path, merges: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("link.sock");
        let listener = UnixListener::bind(&socket)?;
        let link = format!("stream:{}", socket.display());
        let (ports, args) = match path {
            Path::Switch => (2, vec!["--backend", "switch"]),
            Path::Uplink => (1, vec!["--backend", "switch", "--uplink", &link]),
            Path::Wire => (1, vec!["--backend", &link]),
            Path::Loopback => (1, vec!["--backend", "loopback"]),
            Path::Null => (1, vec!["--backend", "null:60"]),
        };
        let mut back_end = NetBackEnd::start(ports, &args)?;
        let without = if merges { 0 } else { MRG_RXBUF };
        let builder = Session::builder().without_features(OFFLOADS | without);
        let builder = builder.require(MRG_RXBUF & !without);
        let guest = NetPort::open(back_end.connect(0)?, builder, &config())?;
        let other = match path {
            Path::Switch => Some(open(&mut back_end, 1)?),
            _ => None,
        };
        let stream = match path {
            Path::Uplink | Path::Wire => Some(listener.accept()?.0),
            _ => None,
        };
        Ok(Self {
            path,
            back_end,
            guest,
            other,
            stream,
        })
    }

    /// Has a frame come.
    fn comes(&mut self, bytes: usize) -> TestResult {
        let frame = &frame(mac(9), [0xff; 6], FRAME_BYTES)[..bytes];
        let header = NetHeader::default();
        match (&mut self.stream, &mut self.other) {
            (Some(stream), _) => {
                let length = u32::try_from(bytes)?.to_be_bytes();
                stream.write_all(&[&length, frame].concat())?;
            }
            (None, other) => {
                let sender = other.as_mut().unwrap_or(&mut self.guest);
                let tx = &mut sender.pairs[0].tx;
                // It may stay there until there are buffers for it.
                if self.path != Path::Null && !tx.send(&header, frame)? {
                    return Err("no room to send".into());
                }
                tx.publish()?;
            }
        }
        Ok(())
    }

    /// Posts chains of these lengths.
    fn post(&mut self, lengths: &[u32]) -> TestResult {
        let vring = self.guest.pairs[0].rx.vring_mut();
        for length in lengths {
            let gpa = vring.memory().alloc(2048, 64)?;
            vring.ring.add(&[Segment::writable(gpa, *length)], &[])?;
        }
        vring.publish()?;
        Ok(())
    }

    /// The lengths of the next used elements.
    fn used(&mut self, count: usize) -> Result<Vec<u32>> {
        let vring = self.guest.pairs[0].rx.vring_mut();
        let mut lengths = Vec::new();
        while lengths.len() < count {
            vring.wait_used(PATIENCE)?;
            while let Some(used) = vring.ring.pop_used()? {
                lengths.push(used.len);
            }
        }
        Ok(lengths)
    }

    /// The processor time that the process takes in a while in which nothing is to be done.
    fn idle_time(&mut self) -> Result<Duration> {
        const WHILE: Duration = Duration::from_millis(500);
        // What was being done is done by then.
        std::thread::sleep(WHILE / 5);
        let before = self.back_end.process().sample()?.cpu;
        std::thread::sleep(WHILE);
        Ok(self.back_end.process().sample()?.cpu.saturating_sub(before))
    }
}

#[test]
fn f2_4_chain_too_short_for_any_frame_is_given_back_and_the_queue_lives_on() -> TestResult {
    for path in PATHS {
        for short in [12, 13, 25] {
            let mut scene = Scene::start(path, false)?;
            scene.post(&[short])?;
            scene.comes(FRAME_BYTES)?;
            assert_eq!(scene.used(1)?, [0], "{path:?}, {short}");
            scene.post(&[1526, short, 1526])?;
            scene.comes(FRAME_BYTES)?;
            scene.comes(FRAME_BYTES)?;
            assert_eq!(scene.used(3)?, [72, 0, 72], "{path:?}, {short}");
        }
    }
    Ok(())
}

#[test]
fn f2_4_chain_of_an_ethernet_header_holds_that_and_is_in_no_other_frames_way() -> TestResult {
    for path in PATHS {
        let mut scene = Scene::start(path, false)?;
        if path != Path::Null {
            scene.post(&[26])?;
            scene.comes(14)?;
            assert_eq!(scene.used(1)?, [26], "{path:?}");
        }
        scene.post(&[12, 13, 25, 26, 1526])?;
        scene.comes(FRAME_BYTES)?;
        assert_eq!(scene.used(5)?, [0, 0, 0, 0, 72], "{path:?}");
    }
    Ok(())
}

#[test]
fn f2_4_chains_of_any_length_from_a_header_on_are_merged() -> TestResult {
    for path in PATHS {
        let mut scene = Scene::start(path, true)?;
        scene.post(&[12, 13, 25, 26, 1526])?;
        scene.comes(FRAME_BYTES)?;
        assert_eq!(scene.used(4)?[..4], [12, 13, 25, 22], "{path:?}");
        scene.comes(FRAME_BYTES)?;
        if path != Path::Null {
            assert_eq!(scene.used(1)?, [72], "{path:?}");
        }
    }
    Ok(())
}

#[test]
fn f2_4_driver_that_posts_short_chains_only_costs_no_processor_time() -> TestResult {
    let _alone = alone();
    for path in PATHS {
        for (merges, lengths) in [
            (false, &[12, 12][..]),
            (false, &[26]),
            (false, &[40; 20]),
            (true, &[12]),
            (true, &[12, 12, 40]),
        ] {
            let mut scene = Scene::start(path, merges)?;
            scene.post(lengths)?;
            scene.comes(FRAME_BYTES)?;
            let time = scene.idle_time()?;
            let bound = Duration::from_millis(100);
            assert!(time < bound, "{path:?}, {lengths:?}: {time:?}");
        }
    }
    Ok(())
}
