// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is at the other end of a link: somebody who sends frames in and sees what comes out.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use ringside_common::memory::Buffers;
use ringside_net::header::NetHeader;
use ringside_net::link::{Link, LinkQueue, LinkSpec, Payload, Received, Room, SPARE_BYTES, Sent};
use ringside_tests::vm::Network;
use tempfile::TempDir;

use crate::uplink::Uplink;
use crate::{Result, TestResult};

/// A kind of link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Stream,
    Dgram,
    Tap,
    Macvtap,
    Packet,
}

impl Kind {
    /// Those that anybody may use.
    pub(crate) const SOCKETS: [Self; 2] = [Self::Stream, Self::Dgram];
    /// Those in a network namespace.
    pub(crate) const INTERFACES: [Self; 3] = [Self::Tap, Self::Macvtap, Self::Packet];
}

/// The address of a macvtap interface, which is its guest's.
pub(crate) const GUEST: &str = "02:00:00:00:00:01";

/// See above.
pub(crate) struct Outside {
    /// The link as the command line has it.
    pub(crate) spec: String,
    pub(crate) kind: Kind,
    end: End,
    pub(crate) network: Option<Network>,
    _dir: TempDir,
}

enum End {
    Stream(UnixListener, Option<Uplink>),
    Dgram(UnixDatagram, PathBuf),
    /// A packet socket, at the other end of the cable or on the tap itself.
    Interface(Box<LinkQueue>),
}

impl Outside {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        let (spec, end, network) = match kind {
            Kind::Stream => {
                let listener = UnixListener::bind(path("peer"))?;
                let spec = format!("stream:{}", path("peer").display());
                (spec, End::Stream(listener, None), None)
            }
            Kind::Dgram => {
                let socket = UnixDatagram::bind(path("peer"))?;
                socket.set_nonblocking(true)?;
                let (peer, local) = (path("peer"), path("local"));
                let spec = format!("dgram:{},local={}", peer.display(), local.display());
                (spec, End::Dgram(socket, local), None)
            }
            Kind::Tap | Kind::Macvtap | Kind::Packet => {
                let network = Network::new()?;
                let (name, station) = interfaces(&network, kind)?;
                let netns = Some(network.path());
                let interface = station.to_owned();
                let link = Link::open(&LinkSpec::Packet { interface, netns }, 1)?;
                let queue = link.queue(0).ok_or("no queue")?;
                let word = match kind {
                    Kind::Tap => "tap",
                    Kind::Macvtap => "macvtap",
                    _ => "packet",
                };
                let spec = format!("{word}:{name},netns={}", network.path().display());
                (spec, End::Interface(Box::new(queue)), Some(network))
            }
        };
        Ok(Self {
            spec,
            kind,
            end,
            network,
            _dir: dir,
        })
    }

    /// To be called when a guest is there: takes the connection, or waits for the carrier.
    pub(crate) fn meet(&mut self) -> TestResult {
        match &mut self.end {
            End::Stream(listener, uplink) if uplink.is_none() => {
                *uplink = Some(Uplink::accept(listener)?);
            }
            End::Stream(..) | End::Dgram(..) => {}
            End::Interface(..) => {
                let device = match self.kind {
                    Kind::Packet => "w0",
                    Kind::Macvtap => "mv0",
                    _ => "tap0",
                };
                crate::eventually("the interface", || self.is_up(device))?;
            }
        }
        Ok(())
    }

    /// Whether an interface passes frames.
    pub(crate) fn is_up(&self, device: &str) -> Result<bool> {
        let said = self.ip(&format!("-o link show dev {device}"))?;
        Ok(said.contains("LOWER_UP") && said.contains("state UP") && !said.contains("qdisc noop "))
    }

    /// Runs `ip` with these words where the interfaces are.
    pub(crate) fn ip(&self, words: &str) -> Result<String> {
        let words: Vec<_> = words.split(' ').collect();
        let network = self.network.as_ref().ok_or("no network")?;
        Ok(network.run("ip", &words)?)
    }

    /// Sends a frame in.
    pub(crate) fn send(&mut self, frame: &[u8]) -> TestResult {
        match &mut self.end {
            End::Stream(_, Some(uplink)) => uplink.send(frame)?,
            End::Stream(_, None) => return Err("not connected".into()),
            End::Dgram(socket, to) => {
                socket.send_to(frame, &*to)?;
            }
            End::Interface(queue) => {
                let sent = queue.send(&NetHeader::default(), Payload::Bytes(frame));
                assert_eq!(sent, Sent::Done);
            }
        }
        Ok(())
    }

    /// The frames that have come out since.
    pub(crate) fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        match &mut self.end {
            End::Stream(_, Some(uplink)) => return uplink.frames(),
            End::Stream(_, None) => {}
            End::Dgram(socket, _) => {
                let mut frame = vec![0; SPARE_BYTES];
                while let Ok(bytes) = socket.recv(&mut frame) {
                    frames.push(frame[..bytes].to_vec());
                }
            }
            End::Interface(queue) => {
                let mut spare = vec![0; SPARE_BYTES];
                loop {
                    let room = Room {
                        window: &Buffers::default(),
                        skip_bytes: 0,
                        limit_bytes: 0,
                        spare: &mut spare,
                    };
                    let Received::Frame { bytes, .. } = queue.receive(room) else {
                        break;
                    };
                    frames.push(spare[..bytes].to_vec());
                }
            }
        }
        Ok(frames)
    }
}

/// Makes the interfaces of a link; returns its name and where a station can be.
fn interfaces(network: &Network, kind: Kind) -> Result<(String, &'static str)> {
    // Device nodes are named by the index, for all namespaces together.
    static INDEX: AtomicU32 = AtomicU32::new(0);
    let ip = |words: &str| network.run("ip", &words.split(' ').collect::<Vec<_>>());
    // Nothing is said unasked.
    network.run(
        "sh",
        &["-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"],
    )?;
    if kind == Kind::Tap {
        network.tap("tap0", 1, &[])?;
        return Ok(("tap0".to_owned(), "tap0"));
    }
    ip("link add w0 type veth peer name p0")?;
    ip("link set w0 up")?;
    ip("link set p0 up")?;
    if kind == Kind::Packet {
        return Ok(("w0".to_owned(), "p0"));
    }
    let index = 2_000_000 + 100 * (std::process::id() % 10_000_000);
    let index = index + INDEX.fetch_add(1, Ordering::Relaxed);
    ip(&format!(
        "link add link w0 name mv0 index {index} address {GUEST} type macvtap mode bridge"
    ))?;
    ip("link set mv0 up")?;
    Ok(("mv0".to_owned(), "p0"))
}
