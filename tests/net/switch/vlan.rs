// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which VLAN a frame is in, whatever tags it has: the first that says one decides, as it does in a
//! kernel out there.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use ringside_frontend::net::net_feature::MRG_RXBUF;
use ringside_frontend::net::{NetConfig, NetHeader, NetPort, TxConfig, header_flag};
use ringside_frontend::session::Session;
use ringside_tests::net_back_end::NetBackEnd;

use crate::{PATIENCE, Result, TestResult, config, mac, open_listening};

const C: u16 = 0x8100;
const S: u16 = 0x88a8;
const EVERYBODY: [u8; 6] = [0xff; 6];

/// A frame with these tags, which `mark` tells from others.
fn tagged(source: u8, tags: &[(u16, u16)], mark: u8) -> Vec<u8> {
    let mut frame = [EVERYBODY, mac(source)].concat();
    for (protocol, control) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend([0x88, 0xb5, mark]);
    frame.resize(100, 0);
    frame
}

/// A switch whose uplink is a stream that the test has the other end of.
struct Scene {
    back_end: NetBackEnd,
    uplink: UnixStream,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn start(ports: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("uplink.sock");
        let listener = UnixListener::bind(&path)?;
        let uplink = format!("stream:{}", path.display());
        let args = ["--backend", "switch", "--uplink", &uplink];
        let mut back_end = NetBackEnd::start_ports(ports, &args)?;
        // The uplink is connected with the first guest.
        let first = open_listening(&mut back_end, 0)?;
        let (uplink, _) = listener.accept()?;
        drop(first);
        uplink.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            back_end,
            uplink,
            _dir: dir,
        })
    }

    /// A guest at a port, which may leave checksums undone.
    fn guest(&mut self, port: usize) -> Result<NetPort> {
        let builder = Session::builder();
        let mut port = NetPort::open(self.back_end.connect(port)?, builder, &config())?;
        port.pairs[0].rx.post_all()?;
        Ok(port)
    }

    /// The next frame that leaves by the uplink.
    fn left(&mut self) -> Result<Vec<u8>> {
        let mut length = [0; 4];
        self.uplink.read_exact(&mut length)?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        self.uplink.read_exact(&mut frame)?;
        Ok(frame)
    }

    /// Has a frame come by the uplink.
    fn comes(&mut self, frame: &[u8]) -> TestResult {
        let length = u32::try_from(frame.len())?.to_be_bytes();
        Ok(self.uplink.write_all(&[&length, frame].concat())?)
    }
}

fn send(port: &mut NetPort, frame: &[u8]) -> TestResult {
    send_as(port, &NetHeader::default(), frame)
}

fn send_as(port: &mut NetPort, header: &NetHeader, frame: &[u8]) -> TestResult {
    Ok(port.pairs[0].tx.send_now(header, frame, PATIENCE)?)
}

fn receive(port: &mut NetPort) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let rx = &mut port.pairs[0].rx;
    rx.wait(&mut frame, PATIENCE)?;
    rx.post_all()?;
    Ok(frame)
}

/// Ports: one of no VLAN, and access ports of 10, two, and of 20.
const PORTS: [&str; 4] = ["", ",vlan=10", ",vlan=10", ",vlan=20"];

#[test]
fn f5_1_frame_of_a_stack_of_tags_does_not_hop_into_a_vlan_by_the_uplink() -> TestResult {
    let mut scene = Scene::start(&PORTS)?;
    let mut plain = scene.guest(0)?;
    let mut access = scene.guest(1)?;
    let stacks: [&[(u16, u16)]; 12] = [
        &[(C, 10)],
        &[(S, 10)],
        &[(C, 0), (C, 10)],
        &[(C, 0xe000), (C, 0xe00a)],
        &[(S, 0), (C, 10)],
        &[(C, 0), (S, 10)],
        &[(S, 0), (S, 0), (C, 20)],
        &[(C, 0), (S, 0), (C, 0), (S, 0), (C, 0), (C, 10)],
        &[(C, 0); 15],
        // More than a frame is looked at for.
        &[(C, 0); 20],
        &[(C, 10), (C, 0)],
        &[(C, 20), (C, 10)],
    ];
    for (number, tags) in stacks.iter().enumerate() {
        let hops = number != 8;
        let mark = u8::try_from(number)?;
        send(&mut plain, &tagged(1, tags, 0))?;
        send(&mut plain, &tagged(1, &[], mark))?;
        if !hops {
            // Of a priority alone: it may leave as it is.
            assert_eq!(scene.left()?, tagged(1, tags, 0));
        }
        let left = scene.left()?;
        assert_eq!(left, tagged(1, &[], mark), "{tags:?} has left");
    }
    // Nor is anyone else's VLAN open to an access port, which may say a priority only.
    for tags in [
        &[(C, 20)][..],
        &[(C, 0), (C, 20)],
        &[(S, 0), (S, 5)],
        &[(C, 10)],
    ] {
        send(&mut access, &tagged(2, tags, 0))?;
        send(&mut access, &tagged(2, &[], 99))?;
        let expected = &tagged(2, &[(C, 10)], 99)[..30];
        assert_eq!(&scene.left()?[..30], expected, "{tags:?}");
    }
    // What is no port's may pass.
    for tags in [&[(C, 30)][..], &[(S, 0), (C, 30)], &[(S, 5), (C, 10)]] {
        send(&mut plain, &tagged(1, tags, 7))?;
        assert_eq!(scene.left()?, tagged(1, tags, 7), "{tags:?}");
    }
    Ok(())
}

/// A checksum that is left out is filled in by whoever is out there: not where a tag is.
#[test]
fn f5_1_checksum_that_would_make_a_tag_is_dropped() -> TestResult {
    let mut scene = Scene::start(&PORTS)?;
    let mut plain = scene.guest(0)?;
    // The type of what follows, an id, and the type behind that.
    for (tags, at) in [
        (&[(C, 0)][..], 14),
        (&[(C, 0)], 16),
        (&[(C, 0), (C, 0)], 18),
        (&[(C, 0), (C, 0)], 20),
    ] {
        let header = NetHeader {
            flags: header_flag::NEEDS_CSUM,
            csum_start: at,
            csum_offset: 0,
            ..NetHeader::default()
        };
        send_as(&mut plain, &header, &tagged(1, tags, 0))?;
        send(&mut plain, &tagged(1, &[], 1))?;
        assert_eq!(scene.left()?, tagged(1, &[], 1), "{tags:?}, {at}");
    }
    Ok(())
}

#[test]
fn f5_2_only_a_customer_tag_from_the_uplink_selects_an_access_vlan() -> TestResult {
    let mut scene = Scene::start(&PORTS)?;
    let mut plain = scene.guest(0)?;
    let mut access = scene.guest(1)?;
    let cases: [(&[(u16, u16)], bool); 8] = [
        (&[], false),
        (&[(S, 10)], false),
        (&[(C, 0xe000)], false),
        (&[(S, 0), (S, 10)], false),
        (&[(C, 30)], false),
        (&[(C, 0xe00a)], true),
        (&[(C, 0), (C, 10)], true),
        (&[(S, 0), (C, 0), (C, 10)], true),
    ];
    for (tags, is_of_vlan) in cases {
        scene.comes(&tagged(9, tags, 3))?;
        // A frame for each behind it tells that there is no other in front.
        scene.comes(&tagged(9, &[], 4))?;
        scene.comes(&tagged(9, &[(C, 10)], 5))?;
        let mut frame = Vec::new();
        if is_of_vlan {
            // Without the tags.
            frame = receive(&mut access)?;
            assert_eq!(frame[..15], tagged(9, &[], 3)[..15], "{tags:?}");
            assert_eq!(frame.len(), 100 - 4 * tags.len());
        } else {
            assert_eq!(receive(&mut plain)?, tagged(9, tags, 3), "{tags:?}");
        }
        assert_eq!(receive(&mut plain)?, tagged(9, &[], 4), "{tags:?}");
        frame.clear();
        frame.extend(receive(&mut access)?);
        assert_eq!(frame[..15], tagged(9, &[], 5)[..15], "{tags:?}");
    }
    Ok(())
}

#[test]
fn f5_3_priority_tagged_frames_of_an_access_port_are_of_its_vlan() -> TestResult {
    let mut scene = Scene::start(&PORTS)?;
    let mut plain = scene.guest(0)?;
    let mut access = scene.guest(1)?;
    let mut neighbour = scene.guest(2)?;
    let mut stranger = scene.guest(3)?;
    for (tags, outside) in [
        (&[(C, 0xa000)][..], &[(C, 0xa00a)][..]),
        (&[(S, 0x7000)], &[(C, 0x700a)]),
        (&[(C, 0xe000), (S, 0x2000)], &[(C, 0xe00a), (S, 0x2000)]),
        (&[(C, 0)], &[(C, 10)]),
    ] {
        send(&mut access, &tagged(2, tags, 6))?;
        assert_eq!(scene.left()?, tagged(2, outside, 6), "{tags:?}");
        assert_eq!(receive(&mut neighbour)?, tagged(2, tags, 6), "{tags:?}");
    }
    // Nobody else has had any of them.
    scene.comes(&tagged(9, &[], 7))?;
    scene.comes(&tagged(9, &[(C, 20)], 7))?;
    assert_eq!(receive(&mut plain)?, tagged(9, &[], 7));
    assert_eq!(receive(&mut stranger)?[..15], tagged(9, &[], 7)[..15]);
    // And none is the port's fault.
    let stats = scene.back_end.control("stats", &serde_json::Value::Null)?;
    assert!(!stats.to_string().contains("\"filtered\":1"), "{stats}");
    Ok(())
}

/// A guest of frames of any length.
fn large(scene: &mut Scene, port: usize) -> Result<NetPort> {
    let config = NetConfig {
        tx: TxConfig {
            slots: 4,
            slot_bytes: 66 << 10,
            ..TxConfig::default()
        },
        ..config()
    };
    let builder = Session::builder().require(MRG_RXBUF);
    let mut port = NetPort::open(scene.back_end.connect(port)?, builder, &config)?;
    port.pairs[0].rx.post_all()?;
    Ok(port)
}

/// With tags of its own or one that is put in, in and out and between guests.
#[test]
fn f5_14_longest_ip_packets_pass_behind_a_tag() -> TestResult {
    let mut scene = Scene::start(&["", "", ",vlan=10"])?;
    let mut left = large(&mut scene, 0)?;
    let mut right = large(&mut scene, 1)?;
    let mut access = large(&mut scene, 2)?;
    for ip_bytes in [65_532, 65_533, 65_534, 65_535] {
        for tags in [&[][..], &[(C, 30)], &[(S, 30), (C, 5)]] {
            let mut frame = tagged(1, tags, 1);
            frame.resize(14 + 4 * tags.len() + ip_bytes, 0x5a);
            send(&mut left, &frame)?;
            assert!(scene.left()? == frame, "{ip_bytes}, {tags:?}: out");
            assert!(
                receive(&mut right)? == frame,
                "{ip_bytes}, {tags:?}: across"
            );
            scene.comes(&frame)?;
            assert!(receive(&mut right)? == frame, "{ip_bytes}, {tags:?}: in");
            assert!(receive(&mut left)? == frame, "{ip_bytes}, {tags:?}: in");
        }
        let mut frame = tagged(2, &[], 1);
        frame.resize(14 + ip_bytes, 0x5a);
        send(&mut access, &frame)?;
        let mut outside = tagged(2, &[(C, 10)], 1);
        outside.resize(18 + ip_bytes, 0x5a);
        let out = scene.left()?;
        assert_eq!(out.len(), outside.len());
        assert!(out[..19] == outside[..19], "{ip_bytes}: out of a VLAN");
        scene.comes(&outside)?;
        assert_eq!(receive(&mut access)?.len(), frame.len());
    }
    Ok(())
}
