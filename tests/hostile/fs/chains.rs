// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! C and D: chains that are malformed, and layouts that are not.

use ringside_frontend::fuse::flags::{ROOT_NODE, opcode};
use ringside_frontend::fuse::{Framing, FuseQueue, Request};
use ringside_frontend::ring::{Descriptor, Segment, desc_flag};
use ringside_frontend::vring::Vring;
use ringside_tests::hostile::{PATIENCE, Result, TestResult};

use crate::scene::{Scene, errno};

/// Where a request to make a directory lies, and room for its reply.
struct Laid {
    request: u64,
    reply: u64,
}

const REQUEST_BYTES: u32 = 53;
const REPLY_BYTES: u32 = 144;

impl Laid {
    fn new(queue: &mut FuseQueue) -> Result<Self> {
        let memory = queue.vring().memory();
        let (request, reply) = (memory.alloc(4096, 4096)?, memory.alloc(4096, 4096)?);
        let bytes = crate::scene::bytes_of(queue, &Request::mkdir(ROOT_NODE, "made", 0o755, 0), 7);
        assert_eq!(bytes.len(), REQUEST_BYTES as usize);
        queue.vring().memory().write(request, &bytes)?;
        Ok(Self { request, reply })
    }

    /// The sound chain, in two descriptors.
    fn segments(&self) -> [Segment; 2] {
        [
            Segment::readable(self.request, REQUEST_BYTES),
            Segment::writable(self.reply, REPLY_BYTES),
        ]
    }
}

/// Publishes a head and waits until it is used; the used length.
fn used(vring: &mut Vring, head: u16) -> Result<u32> {
    vring.publish()?;
    vring.wait_used(PATIENCE)?;
    let used = vring.ring.pop_used()?.ok_or("nothing used")?;
    assert_eq!(used.head, head);
    Ok(used.len)
}

/// How to spoil the chain whose two descriptors have these numbers, in a ring of that size.
type Spoil = fn(&mut Vring, u16, u16);

const SPOILT: [(&str, Spoil); 14] = [
    ("d1 the last leads to itself", |vring, _, last| {
        vring.ring.edit_desc(last, |d| {
            (d.flags, d.next) = (d.flags | desc_flag::NEXT, last);
        });
    }),
    ("d1 the first leads to itself", |vring, head, _| {
        vring.ring.edit_desc(head, |d| d.next = head);
    }),
    ("d2 a circle of two", |vring, head, last| {
        vring.ring.edit_desc(last, |d| {
            (d.flags, d.next) = (d.flags | desc_flag::NEXT, head);
        });
    }),
    ("d3 a circle without bytes", |vring, head, last| {
        for (from, to) in [(head, last), (last, head)] {
            vring.ring.edit_desc(from, |d| {
                (d.len, d.flags, d.next) = (0, desc_flag::NEXT, to);
            });
        }
    }),
    ("d4 next is the size", |vring, head, _| {
        let size = vring.ring.config().size;
        vring.ring.edit_desc(head, |d| d.next = size);
    }),
    ("d4 next is the largest", |vring, head, _| {
        vring.ring.edit_desc(head, |d| d.next = u16::MAX);
    }),
    ("d6 4 GiB", |vring, head, _| {
        vring.ring.edit_desc(head, |d| d.len = u32::MAX);
    }),
    ("d8 readable behind writable", |vring, head, last| {
        vring.ring.edit_desc(head, |d| d.flags |= desc_flag::WRITE);
        vring.ring.edit_desc(last, |d| d.flags = 0);
    }),
    ("d11 indirect that goes on", |vring, head, _| {
        vring
            .ring
            .edit_desc(head, |d| d.flags |= desc_flag::INDIRECT);
    }),
    ("d13 a table of 15 bytes", |vring, head, _| {
        vring.ring.edit_desc(head, |d| {
            (d.flags, d.len) = (desc_flag::INDIRECT, 15);
        });
    }),
    ("d13 a table of no bytes", |vring, head, _| {
        vring.ring.edit_desc(head, |d| {
            (d.flags, d.len) = (desc_flag::INDIRECT, 0);
        });
    }),
    ("d14 a table in a hole", |vring, head, _| {
        vring.ring.edit_desc(head, |d| {
            (d.flags, d.len, d.addr) = (desc_flag::INDIRECT, 32, 1 << 60);
        });
    }),
    ("d17 an end beyond all addresses", |vring, head, _| {
        vring.ring.edit_desc(head, |d| d.addr = u64::MAX - 7);
    }),
    ("d18 a request in a hole", |vring, head, _| {
        vring.ring.edit_desc(head, |d| d.addr = 1 << 60);
    }),
];

#[test]
fn d_malformed_chains_are_not_served_and_the_ring_goes_on() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    for (name, spoil) in SPOILT {
        let vring = queue.vring_mut();
        let head = vring.ring.add(&laid.segments(), &[])?;
        let last = vring.ring.desc(head).next;
        spoil(vring, head, last);
        let len = used(vring, head)?;
        // An error where the way to the reply is sound, else nothing.
        assert!([0, 16].contains(&len), "{name}: {len} bytes");
        if len == 16 {
            let mut reply = [0; 16];
            vring.memory().read(laid.reply, &mut reply)?;
            assert_ne!(reply[4..8], [0; 4], "{name}: a success");
        }
        assert!(!scene.host("made").exists(), "{name} was served");
        assert_eq!(errno(queue.getattr(ROOT_NODE, None)), 0, "{name}");
    }
    scene.check(client)
}

/// An error is told where its place is sound, and nowhere else.
#[test]
fn d18_reply_goes_to_its_front_or_nowhere() -> TestResult {
    const HOLE: u64 = 1 << 60;
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    let whole = Segment::readable(laid.request, REQUEST_BYTES);
    let header = Segment::readable(laid.request, 40);
    let front = Segment::writable(laid.reply, 16);
    let behind = Segment::writable(laid.reply + 16, 128);
    let cases: [(&str, &[Segment], u32); 4] = [
        (
            "the end of the reply",
            &[whole, front, Segment::writable(HOLE, 128)],
            16,
        ),
        (
            "the front of the reply",
            &[whole, Segment::writable(HOLE, 16), behind],
            0,
        ),
        (
            "the arguments",
            &[header, Segment::readable(HOLE, 13), front, behind],
            16,
        ),
        (
            "the header",
            &[Segment::readable(HOLE, 40), whole, front, behind],
            0,
        ),
    ];
    for (name, segments, used_bytes) in cases {
        let vring = queue.vring_mut();
        vring.memory().write(laid.reply, &[0; 144])?;
        let head = vring.ring.add(segments, &[])?;
        assert_eq!(used(vring, head)?, used_bytes, "{name}");
        let mut reply = [0; 144];
        vring.memory().read(laid.reply, &mut reply)?;
        let mut wanted = [0; 144];
        if used_bytes != 0 {
            wanted[0] = 16;
            wanted[4..8].copy_from_slice(&(-libc::EIO).to_le_bytes());
            wanted[8] = 7;
        }
        assert_eq!(reply, wanted, "{name}");
        assert!(!scene.host("made").exists(), "{name}");
    }
    scene.check(client)
}

#[test]
fn d9_flags_unknown_are_not_served_or_ignored() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    let vring = queue.vring_mut();
    let head = vring.ring.add(&laid.segments(), &[])?;
    vring.ring.edit_desc(head, |d| d.flags |= 0xfff8);
    let len = used(vring, head)?;
    assert!([0, 16, REPLY_BYTES].contains(&len), "{len} bytes");
    assert_eq!(scene.host("made").exists(), len == REPLY_BYTES);
    scene.check(client)
}

#[test]
fn d12_table_within_a_table_is_not_served() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    let memory = queue.vring().memory();
    let inner = memory.alloc(4096, 16)?;
    let table: Vec<Descriptor> = laid.segments().into_iter().map(Descriptor::from).collect();
    ringside_frontend::ring::write_table(memory, inner, &table)?;
    let outer = Segment {
        gpa: inner,
        len: 32,
        flags: desc_flag::INDIRECT,
    };
    let vring = queue.vring_mut();
    let head = vring.ring.add(&[], &[outer])?;
    assert_eq!(used(vring, head)?, 0);
    assert!(!scene.host("made").exists());
    scene.check(client)
}

#[test]
fn d22_chains_without_anything_to_write_or_to_read_come_back() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    let empty = Segment::readable(laid.request, 0);
    let cases: [(&str, &[Segment]); 5] = [
        ("one descriptor without bytes", &[empty]),
        ("many of them", &[empty; 20]),
        ("only room", &[Segment::writable(laid.reply, REPLY_BYTES)]),
        (
            "only a request",
            &[Segment::readable(laid.request, REQUEST_BYTES)],
        ),
        (
            "room for a part of the header",
            &[
                Segment::readable(laid.request, REQUEST_BYTES),
                Segment::writable(laid.reply, 15),
            ],
        ),
    ];
    for (name, segments) in cases {
        let vring = queue.vring_mut();
        let head = vring.ring.add(segments, &[])?;
        assert_eq!(used(vring, head)?, 0, "{name}");
        assert!(!scene.host("made").exists(), "{name}");
    }
    scene.check(client)
}

/// D16, D19: whatever the arrangement, it is the same request (virtio 1.3 §2.7.4).
#[test]
fn d19_requests_in_any_arrangement_are_served() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    for framing in [
        Framing::Contiguous,
        Framing::Chunks(1),
        Framing::Chunks(3),
        Framing::Chunks(39),
        Framing::Chunks(41),
    ] {
        for indirect in [false, true] {
            let queue = client.queue();
            queue.config_mut().framing = framing;
            queue.config_mut().indirect = indirect;
            let dir = queue.mkdir(ROOT_NODE, "dir", 0o755)?;
            assert_eq!(queue.lookup(ROOT_NODE, "dir")?.node, dir.node);
            let set = queue.setxattr(dir.node, "user.a", b"value", 0);
            assert_eq!(errno(set), 0, "{framing:?}");
            assert_eq!(queue.getxattr(dir.node, "user.a", 64)?, b"value");
            queue.rmdir(ROOT_NODE, "dir")?;
            queue.forget(dir.node, 2)?;
        }
    }
    client.queue().config_mut().framing = Framing::Kernel;
    let queue = client.queue();
    let laid = Laid::new(queue)?;
    let vring = queue.vring_mut();
    let [request, reply] = laid.segments();
    let part = |from: u32, len| Segment::readable(laid.request + u64::from(from), len);
    assert_eq!(request, part(0, REQUEST_BYTES));
    // Some direct, the rest in a table.
    let rest = [part(30, REQUEST_BYTES - 30), reply];
    let head = vring.ring.add(&[part(0, 30)], &rest)?;
    assert_eq!(used(vring, head)?, REPLY_BYTES);
    assert!(scene.host("made").is_dir());
    scene.check(client)
}

#[test]
fn c3_available_index_out_of_range_stops_that_queue_alone() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let vring = client.queues[0].vring_mut();
    let idx = vring.ring.avail_idx();
    vring.ring.set_avail_idx(idx.wrapping_add(300));
    vring.kick()?;
    vring.wait_err(PATIENCE)?;
    crate::scene::serves(&mut client.queues[1], &scene.host(""))?;
    assert_eq!(errno(client.hiprio.getattr(ROOT_NODE, None)), 0);
    drop(client);
    scene.check_gone()
}

/// Requests are read once: what the guest changes meanwhile changes nothing that was checked.
#[test]
fn c12_request_rewritten_while_it_is_served_is_one_of_the_two() -> TestResult {
    let scene = Scene::start(&[])?;
    let before = scene.outside_told()?;
    let mut client = scene.client()?;
    let queue = client.queue();
    let mut flipping = Request::lookup(ROOT_NODE, "xx/x");
    assert_eq!(flipping.opcode, opcode::LOOKUP);
    flipping.args = b"..yx\0".to_vec();
    let memory = std::sync::Arc::clone(queue.vring().memory());
    let laid = Laid::new(queue)?;
    let bytes = crate::scene::bytes_of(queue, &flipping, 7);
    memory.write(laid.request, &bytes)?;
    let place = memory.slice(laid.request, 64)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                place.write(42, b"/");
                place.write(42, b"y");
            }
        });
        let mut answers = std::collections::BTreeSet::new();
        let len = u32::try_from(bytes.len())?;
        for _ in 0..20_000 {
            let vring = queue.vring_mut();
            let segments = [
                Segment::readable(laid.request, len),
                Segment::writable(laid.reply, REPLY_BYTES),
            ];
            let head = vring.ring.add(&segments, &[])?;
            assert_eq!(used(vring, head)?, 16);
            let mut reply = [0; 16];
            vring.memory().read(laid.reply, &mut reply)?;
            answers.insert(i32::from_le_bytes([reply[4], reply[5], reply[6], reply[7]]));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        answers.retain(|&answer| ![-libc::ENOENT, -libc::EINVAL].contains(&answer));
        assert!(answers.is_empty(), "{answers:?}");
        Ok(())
    })?;
    assert_eq!(scene.outside_told()?, before);
    scene.check(client)
}
