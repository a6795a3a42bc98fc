// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::IntoRawFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use rustix::event::PollFlags;

use super::*;
use crate::header::NetHeader;
use crate::link::tap::{Tap, TapSpec};
use crate::link::testing::{
    PATIENCE, Peer, in_network, ip, is_plain, plain_frame, received, received_all, run, skip, up,
    wait,
};
use crate::link::{Link, LinkSpec, Payload, Received, Sent};

fn named(name: &str) -> TapSpec {
    TapSpec::named(name)
}

fn descriptors(numbers: &[i32]) -> TapSpec {
    TapSpec::Descriptors {
        numbers: numbers.to_vec(),
        shared: false,
    }
}

/// A queue opened as somebody else would.
fn raw_queue(name: &str, flags: i32) -> OwnedFd {
    let fd = open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
    let request = InterfaceRequest::new(name).with_flags(flags);
    sys::tun_set_interface(&fd, request).unwrap();
    fd
}

#[test]
fn descriptors_serve_a_process_that_may_nothing() {
    let test = "descriptors_serve_a_process_that_may_nothing";
    in_network(test, || {
        ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
        ip("link set tap0 up");
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let numbers = (0..2).map(|_| raw_queue("tap0", flags).into_raw_fd());
        let numbers: Vec<_> = numbers.collect();
        let peer = Peer::on("tap0");
        let nobody = rustix::fs::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();

        let by_name = Tap::open(&named("tap1"), 1);
        assert!(matches!(by_name, Err(LinkError::TapPermission { .. })));

        let tap = Tap::open(&descriptors(&numbers), 2).unwrap();
        tap.set_offloads(tap.supported()).unwrap();
        assert_eq!(tap.name().as_deref(), Some("tap0"));
        assert_eq!(tap.mtu(), Some(1500));
        tap.attach(1, false).unwrap();
        tap.attach(1, true).unwrap();
        let frame = plain_frame(60);
        for pair in 0..2 {
            let mut queue = tap.queue(pair).unwrap();
            assert_eq!(
                queue.send(&NetHeader::default(), Payload::Bytes(&frame)),
                Sent::Done
            );
            assert_eq!(peer.receive(is_plain), frame);
            // Not to wait was not said when it was opened.
            received_all(|room| queue.receive(room));
            assert_eq!(received(|room| queue.receive(room)).0, Received::Empty);
        }
    });
}

#[test]
fn f5_10_tap_of_which_anybody_has_queues_is_in_use() {
    in_network("f5_10_tap_of_which_anybody_has_queues_is_in_use", || {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
        let other = raw_queue("tap0", flags);
        for pairs in [1, 4] {
            let by_name = Tap::open(&named("tap0"), pairs).unwrap_err();
            assert!(matches!(by_name, LinkError::InUse { .. }), "{by_name}");
        }
        let number = raw_queue("tap0", flags).into_raw_fd();
        let passed = Tap::open(&descriptors(&[number]), 1).unwrap_err();
        assert!(matches!(passed, LinkError::InUse { .. }), "{passed}");
        let shared = TapSpec::Interface {
            name: "tap0".to_owned(),
            netns: None,
            shared: true,
        };
        drop(Tap::open(&shared, 2).unwrap());
        let numbers = vec![raw_queue("tap0", flags).into_raw_fd()];
        let shared = TapSpec::Descriptors {
            numbers,
            shared: true,
        };
        drop(Tap::open(&shared, 1).unwrap());
        // As soon as the other has gone, whatever became of it.
        drop(other);
        drop(Tap::open(&named("tap0"), 4).unwrap());
        // All that there are may have been passed, some detached.
        let numbers: Vec<_> = (0..3).map(|_| raw_queue("tap0", flags)).collect();
        sys::tun_set_queue(&numbers[1], libc::IFF_DETACH_QUEUE).unwrap();
        let numbers: Vec<_> = numbers.into_iter().map(IntoRawFd::into_raw_fd).collect();
        drop(Tap::open(&descriptors(&numbers), 3).unwrap());
        // One queue under two numbers would be read by two threads.
        let queue = raw_queue("tap0", flags);
        let same = queue.try_clone().unwrap().into_raw_fd();
        let twice = Tap::open(&descriptors(&[queue.into_raw_fd(), same]), 2).unwrap_err();
        assert!(matches!(twice, LinkError::SameQueue { .. }), "{twice}");
    });
}

#[test]
fn f5_10_device_node_is_locked_by_one_at_a_time() {
    let node = tempfile::NamedTempFile::new().unwrap();
    let open = || OwnedFd::from(std::fs::File::open(node.path()).unwrap());
    let (first, second) = (open(), open());
    alone::lock_node("mvt0", &first).unwrap();
    let copy = first.try_clone().unwrap();
    drop(first);
    let error = alone::lock_node("mvt0", &second).unwrap_err();
    assert!(matches!(error, LinkError::InUse { .. }), "{error}");
    drop(copy);
    alone::lock_node("mvt0", &second).unwrap();
}

#[test]
fn descriptors_of_another_kind_are_refused() {
    in_network("descriptors_of_another_kind_are_refused", || {
        let refusal = |numbers: &[i32], pairs| {
            Tap::open(&descriptors(numbers), pairs)
                .expect_err("not a usable tap")
                .to_string()
        };
        let complaint = |fd: OwnedFd| {
            let number = fd.into_raw_fd();
            refusal(&[number], 1).replace(&number.to_string(), "N")
        };

        let file = open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
        let text = "file descriptor N: not an open queue of a tap";
        assert_eq!(complaint(file), text);
        let fresh = open("/dev/net/tun", OFlags::RDWR, Mode::empty()).unwrap();
        assert_eq!(complaint(fresh), text);
        let text = "file descriptor N: opened without IFF_VNET_HDR, which has to be given to \
                    TUNSETIFF";
        let no_header = raw_queue("a", libc::IFF_TAP | libc::IFF_NO_PI);
        assert_eq!(complaint(no_header), text);
        let text = "file descriptor N: opened without IFF_NO_PI";
        assert_eq!(
            complaint(raw_queue("b", libc::IFF_TAP | libc::IFF_VNET_HDR)),
            text
        );
        let text = "file descriptor N: opened as a tun, of IP packets (IFF_TUN), not as a tap \
                    (IFF_TAP)";
        assert_eq!(complaint(raw_queue("c", libc::IFF_TUN)), text);

        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let numbers = ["d", "e"].map(|name| raw_queue(name, flags).into_raw_fd());
        let text = "1 tap descriptors for 2 queue pairs";
        assert_eq!(refusal(&numbers[..1], 2), text);
        let text = "opened without IFF_MULTI_QUEUE, which more than one queue pair needs";
        assert!(refusal(&numbers, 2).ends_with(text));
        let many = flags | libc::IFF_MULTI_QUEUE;
        let numbers = ["f", "g"].map(|name| raw_queue(name, many).into_raw_fd());
        assert!(refusal(&numbers, 2).ends_with("a queue of g, unlike the first one, of f"));
        assert!(refusal(&[i32::MAX], 1).ends_with("cannot be taken over"));
    });
}

#[test]
fn tap_of_a_process_that_is_ending_is_waited_for() {
    in_network("tap_of_a_process_that_is_ending_is_waited_for", || {
        ip("tuntap add one0 mode tap");
        let held = Tap::open(&named("one0"), 1).unwrap();
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        Tap::open(&named("one0"), 1).unwrap();
        ending.join().unwrap();
    });
}

#[test]
fn names_that_cannot_be_had_are_explained() {
    in_network("names_that_cannot_be_had_are_explained", || {
        let _tap = Tap::open(&named("tap0"), 1).unwrap();
        let error = |name: &str, pairs| Tap::open(&named(name), pairs).unwrap_err();
        assert!(matches!(error("tap0", 1), LinkError::Busy { .. }));
        assert!(matches!(
            error("tap0", 2),
            LinkError::SingleQueue { pairs: 2, .. }
        ));
        ip("tuntap add one0 mode tap");
        assert!(matches!(
            error("one0", 4),
            LinkError::SingleQueue { pairs: 4, .. }
        ));
        ip("link add veth0 type veth peer name veth1");
        for pairs in [1, 2] {
            assert!(matches!(error("veth0", pairs), LinkError::NotTap { .. }));
        }
        for name in ["", "sixteen-bytes-it", "a/b", "a b"] {
            assert!(matches!(error(name, 1), LinkError::Name { .. }), "{name:?}");
        }
    });
}

#[test]
fn taps_that_exist_are_taken_as_they_are() {
    in_network("taps_that_exist_are_taken_as_they_are", || {
        ip("tuntap add one0 mode tap");
        ip("tuntap add many0 mode tap multi_queue");
        for (name, pairs) in [("one0", 1), ("many0", 1), ("many0", 4), ("new%d", 3)] {
            let tap = Tap::open(&named(name), pairs).unwrap();
            let real = tap.name().unwrap();
            assert_eq!(real, name.replace("%d", "0"));
            ip(&format!("link set {real} up mtu 9000"));
            assert_eq!(tap.mtu(), Some(9000));
            for pair in 0..pairs {
                let mut queue = tap.queue(pair).unwrap();
                let frame = plain_frame(60);
                assert_eq!(
                    queue.send(&NetHeader::default(), Payload::Bytes(&frame)),
                    Sent::Done
                );
            }
            assert!(tap.queue(pairs).is_none());
        }
    });
}

#[test]
fn tap_is_opened_in_another_namespace_from_outside() {
    in_network("tap_is_opened_in_another_namespace_from_outside", || {
        let (path_to, path_from) = channel();
        let (end_to, end_from) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                sys::unshare_network().unwrap();
                let thread = rustix::thread::gettid().as_raw_nonzero();
                path_to
                    .send(format!("/proc/self/task/{thread}/ns/net"))
                    .unwrap();
                end_from.recv().unwrap();
                ip("link set tap0 mtu 4000 up");
                end_from.recv().unwrap();
            });
            // Dropped when an assertion fails here, so that the other thread ends.
            let end_to = end_to;
            let spec = TapSpec::Interface {
                name: "tap0".to_owned(),
                netns: Some(path_from.recv().unwrap().into()),
                shared: false,
            };
            let tap = Tap::open(&spec, 2).unwrap();
            assert!(run("ip link show tap0").is_err());
            end_to.send(()).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while tap.mtu() != Some(4000) {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            end_to.send(()).unwrap();
        });
    });
}

#[test]
fn descriptors_from_another_namespace_have_no_known_mtu() {
    in_network(
        "descriptors_from_another_namespace_have_no_known_mtu",
        || {
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            let number = raw_queue("tap0", flags).into_raw_fd();
            sys::unshare_network().unwrap();
            // Of the same name, and not the same.
            ip("tuntap add tap0 mode tap");
            let tap = Tap::open(&descriptors(&[number]), 1).unwrap();
            assert_eq!(tap.mtu(), None);
        },
    );
}

#[test]
fn macvtap_is_found_by_its_name() {
    let test = "macvtap_is_found_by_its_name";
    in_network(test, || {
        ip("link add veth0 type veth peer name veth1");
        // Device nodes are named by the index, for all namespaces together.
        let index = 1_000_000 + std::process::id();
        let add = format!("link add link veth0 name mvt0 index {index} type macvtap mode bridge");
        if let Err(reason) = run(&format!("ip {add}")) {
            return skip(test, &reason);
        }
        if !Path::new(&format!("/dev/tap{index}")).exists() {
            return skip(test, "no device nodes are made in this /dev");
        }
        up(&["veth0", "veth1", "mvt0"]);
        let link = Link::open(&LinkSpec::Tap(named("mvt0")), 2).unwrap();
        let peer = Peer::on("veth1");
        link.set_carrier(false).unwrap();
        link.set_offloads(link.supported()).unwrap();
        assert_eq!(link.mtu(), Some(1500));
        let mut queue = link.queue(0).unwrap();
        let frame = plain_frame(60);
        assert_eq!(
            queue.send(&NetHeader::default(), Payload::Bytes(&frame)),
            Sent::Done
        );
        assert_eq!(peer.receive(is_plain), frame);

        link.attach(1, false).unwrap();
        let mut broadcast = frame;
        broadcast[..6].fill(0xff);
        peer.send(&broadcast);
        assert!(wait(queue.descriptor().unwrap(), PollFlags::IN, PATIENCE));
        let frames = received_all(|room| queue.receive(room));
        assert!(frames.iter().any(|(_, frame)| *frame == broadcast));
    });
}
