// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files in the window of the guest: what is written through it is in the file and the other way
//! round, and neither a guest nor a front-end that misbehaves gets further than its own request.

use std::error::Error;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use ringside_frontend::fuse::flags::{AttrFlags, InitFlags, ROOT_NODE};
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseResult, Request};
use ringside_frontend::window::{Manner, Window};
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{
    FrontendReqHandler, HandlerResult, VhostUserFrontend as _, VhostUserFrontendReqHandlerMut,
    VhostUserProtocolFeatures,
};

type TestResult = Result<(), Box<dyn Error>>;

const MIB: u64 = 1 << 20;
const WINDOW_BYTES: u64 = 64 * MIB;
const NO_HANDLE: u64 = u64::MAX;
/// `FUSE_SETUPMAPPING_FLAG_*`
const WRITE: u64 = 1;
const READ: u64 = 2;
const DAX: InitFlags = InitFlags::MAP_ALIGNMENT.union(InitFlags::HAS_INODE_DAX);

/// A share with a large file and a small one, who serves it, and the connection.
struct Bench {
    share: tempfile::TempDir,
    back_end: FsBackEnd,
    client: FuseClient,
    window: Window,
    node: u64,
}

fn config() -> FuseConfig {
    let mut config = FuseConfig {
        request_queues: 2,
        ..FuseConfig::default()
    };
    config.init_flags |= DAX;
    config
}

/// Byte `at` of the large file.
fn pattern(at: u64) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

fn share() -> Result<tempfile::TempDir, Box<dyn Error>> {
    let share = tempfile::tempdir()?;
    let large: Vec<u8> = (0..8 * MIB).map(pattern).collect();
    fs::write(share.path().join("large"), large)?;
    fs::write(share.path().join("small"), [0; 32767])?;
    Ok(share)
}

fn start(share: &tempfile::TempDir, args: &[&str]) -> Result<FsBackEnd, Box<dyn Error>> {
    let args = [&["--dax-window", "64M", "--cache", "auto"], args].concat();
    let program = FsProgram::Ringside;
    Ok(FsBackEnd::start_program(program, share.path(), &args)?)
}

/// Connects, and serves the window.
fn connect(back_end: &FsBackEnd) -> Result<(FuseClient, Window), Box<dyn Error>> {
    let config = config();
    let stream = UnixStream::connect(back_end.socket())?;
    let mut client = FuseClient::without_init(stream, &config)?;
    let channel = client.session.take_back_channel();
    let window = Window::serve(channel.ok_or("no back-channel")?, WINDOW_BYTES);
    client.initialise(config.init_flags)?;
    Ok((client, window))
}

fn bench(args: &[&str]) -> Result<Bench, Box<dyn Error>> {
    let share = share()?;
    let back_end = start(&share, args)?;
    let (mut client, window) = connect(&back_end)?;
    let node = client.queue().lookup(ROOT_NODE, "large")?.node;
    Ok(Bench {
        share,
        back_end,
        client,
        window,
        node,
    })
}

impl Bench {
    /// Maps by node: offset in the file, length, offset in the window.
    fn map(&mut self, flags: u64, range: (u64, u64, u64)) -> FuseResult<()> {
        let request = Request::set_up_mapping(self.node, NO_HANDLE, flags, range);
        self.client.queue().call_empty(&request)
    }

    fn unmap(&mut self, mappings: &[(u64, u64)]) -> FuseResult<()> {
        let request = Request::remove_mapping(self.node, mappings);
        self.client.queue().call_empty(&request)
    }

    fn map_errno(&mut self, flags: u64, range: (u64, u64, u64)) -> Option<i32> {
        errno(self.map(flags, range))
    }
}

/// What the device answered, if it was an errno.
fn errno<T>(result: FuseResult<T>) -> Option<i32> {
    result.err().and_then(|error| error.errno())
}

#[test]
fn window_is_announced_as_the_protocol_has_it() -> TestResult {
    let mut bench = bench(&[])?;
    assert!(bench.client.init.flags.contains(DAX));
    let page = rustix::param::page_size();
    assert_eq!(1 << bench.client.init.map_alignment, page);
    let regions = bench.client.session.frontend_mut().get_shmem_config()?;
    assert_eq!(
        (regions.nregions, regions.memory_sizes[0]),
        (1, WINDOW_BYTES)
    );
    assert_eq!(regions.memory_sizes[1..], [0; 255]);
    let queue = bench.client.queue();
    let flags = queue.lookup(ROOT_NODE, "large")?.attr.flags;
    assert_eq!(flags, AttrFlags::DAX);
    assert_eq!(queue.getattr(bench.node, None)?.0.flags, AttrFlags::DAX);
    let small = queue.lookup(ROOT_NODE, "small")?.attr.flags;
    assert_eq!(small, AttrFlags::empty());
    let root = queue.getattr(ROOT_NODE, None)?.0.flags;
    assert_eq!(root, AttrFlags::empty());
    Ok(())
}

#[test]
fn bytes_go_both_ways_through_the_window() -> TestResult {
    let mut bench = bench(&[])?;
    bench.map(READ | WRITE, (2 * MIB, 2 * MIB, 0))?;
    bench.map(READ, (4 * MIB, 2 * MIB, 6 * MIB))?;
    let two_mib = 2 << 20;
    let mapped = [(0, two_mib, true), (6 * MIB, two_mib, false)];
    assert_eq!(bench.window.mapped(), mapped);
    let expected: Vec<u8> = (2 * MIB..2 * MIB + 10_000).map(pattern).collect();
    assert_eq!(bench.window.read(0, 10_000), Some(expected));
    let expected: Vec<u8> = (5 * MIB..5 * MIB + 100).map(pattern).collect();
    assert_eq!(bench.window.read(7 * MIB, 100), Some(expected));

    bench
        .window
        .write(5000, b"from the guest")
        .ok_or("not mapped")?;
    let path = bench.share.path().join("large");
    let mut seen = [0; 14];
    fs::File::open(&path)?.read_exact_at(&mut seen, 2 * MIB + 5000)?;
    assert_eq!(&seen, b"from the guest");
    let file = fs::File::options().write(true).open(&path)?;
    file.write_all_at(b"from the host", 4 * MIB + 77)?;
    let seen = bench.window.read(6 * MIB + 77, 13);
    assert_eq!(seen.as_deref(), Some(&b"from the host"[..]));

    bench.unmap(&[(6 * MIB, 2 * MIB), (0, 2 * MIB)])?;
    assert_eq!(bench.window.mapped(), []);
    assert_eq!(bench.window.faults(), [""; 0]);
    Ok(())
}

#[test]
fn range_that_is_mapped_can_be_mapped_anew_but_not_overlapped() -> TestResult {
    let mut bench = bench(&[])?;
    bench.map(READ, (0, 2 * MIB, 2 * MIB))?;
    bench.map(READ | WRITE, (2 * MIB, 2 * MIB, 2 * MIB))?;
    assert_eq!(bench.window.mapped(), [(2 * MIB, 2 << 20, true)]);
    assert_eq!(bench.window.read(2 * MIB, 1), Some(vec![pattern(2 * MIB)]));
    for (len, at) in [
        (MIB, 2 * MIB),
        (2 * MIB, MIB),
        (2 * MIB, 3 * MIB),
        (8 * MIB, 0),
    ] {
        let refused = bench.map_errno(READ, (0, len, at));
        assert_eq!(refused, Some(libc::EINVAL), "{len:#x} {at:#x}");
    }
    bench.map(READ, (0, MIB, MIB))?;
    bench.map(READ, (0, MIB, 4 * MIB))?;
    assert_eq!(bench.window.faults(), [""; 0]);
    Ok(())
}

#[test]
fn ranges_that_cannot_be_are_refused_without_asking_the_front_end() -> TestResult {
    let mut bench = bench(&[])?;
    let page = rustix::param::page_size() as u64;
    let last = u64::MAX - page + 1;
    let past_files = (i64::MAX.cast_unsigned() + 1) - page;
    for range in [
        (0, 0, 0),
        (1, page, 0),
        (0, page + 1, 0),
        (0, page, 1),
        (0, page, WINDOW_BYTES),
        (0, 2 * page, WINDOW_BYTES - page),
        (0, page, last),
        (0, last, page),
        (last, page, 0),
        (past_files, page, 0),
        (0, WINDOW_BYTES + page, 0),
    ] {
        assert_eq!(
            bench.map_errno(READ, range),
            Some(libc::EINVAL),
            "{range:x?}"
        );
    }
    for flags in [0, 4, READ | 8, u64::MAX - WRITE] {
        let refused = bench.map_errno(flags, (0, page, 0));
        assert_eq!(refused, Some(libc::EINVAL), "{flags:#x}");
    }
    bench.map(READ, (0, page, WINDOW_BYTES - page))?;
    assert_eq!(bench.window.messages(), 1);
    for mapping in [
        (0, page),
        (WINDOW_BYTES - page, 2 * page),
        (WINDOW_BYTES - page, 0),
        (last, page),
        (0, u64::MAX),
    ] {
        assert_eq!(errno(bench.unmap(&[mapping])), Some(libc::EINVAL));
    }
    assert_eq!(bench.window.messages(), 1);
    bench.unmap(&[(WINDOW_BYTES - page, page)])?;
    let again = bench.unmap(&[(WINDOW_BYTES - page, page)]);
    assert_eq!(errno(again), Some(libc::EINVAL));
    Ok(())
}

#[test]
fn mapping_by_handle_is_for_what_it_was_opened_for() -> TestResult {
    let mut bench = bench(&[])?;
    let node = bench.node;
    let queue = bench.client.queue();
    let mut errno_of = |node, handle, flags, at| {
        let request = Request::set_up_mapping(node, handle, flags, (0, 2 * MIB, at));
        errno(queue.call_empty(&request))
    };
    assert_eq!(errno_of(node, 12345, READ, 0), Some(libc::EBADF));
    assert_eq!(errno_of(ROOT_NODE, NO_HANDLE, READ, 0), Some(libc::ENODEV));
    assert_eq!(errno_of(98765, NO_HANDLE, READ, 0), Some(libc::ENOENT));
    let queue = bench.client.queue();
    let reads = queue.open(node, libc::O_RDONLY.cast_unsigned())?.handle;
    let writes = queue.open(node, libc::O_WRONLY.cast_unsigned())?.handle;
    let both = queue.open(node, libc::O_RDWR.cast_unsigned())?.handle;
    let mut errno_of = |handle, flags, at| {
        let request = Request::set_up_mapping(node, handle, flags, (0, 2 * MIB, at));
        errno(queue.call_empty(&request))
    };
    assert_eq!(errno_of(reads, READ | WRITE, 0), Some(libc::EACCES));
    assert_eq!(errno_of(writes, READ, 0), Some(libc::EACCES));
    assert_eq!(errno_of(reads, READ, 0), None);
    assert_eq!(errno_of(both, READ | WRITE, 2 * MIB), None);
    let mapped = [(0, 2 << 20, false), (2 * MIB, 2 << 20, true)];
    assert_eq!(bench.window.mapped(), mapped);
    Ok(())
}

#[test]
fn share_that_is_read_only_is_mapped_to_read() -> TestResult {
    let mut bench = bench(&["--readonly"])?;
    let page = rustix::param::page_size() as u64;
    assert_eq!(
        bench.map_errno(READ | WRITE, (0, page, 0)),
        Some(libc::EROFS)
    );
    bench.map(READ, (page, page, 0))?;
    assert_eq!(
        bench.window.mapped(),
        [(0, rustix::param::page_size(), false)]
    );
    Ok(())
}

#[test]
fn end_of_a_session_takes_the_mappings_with_it() -> TestResult {
    let mut bench = bench(&[])?;
    bench.map(READ, (0, 2 * MIB, 0))?;
    bench.map(READ, (0, 2 * MIB, 8 * MIB))?;
    bench.client.queue().destroy()?;
    assert_eq!(bench.window.mapped(), []);
    assert_eq!(bench.map_errno(READ, (0, 2 * MIB, 0)), Some(libc::ENOSYS));

    bench.client.initialise(config().init_flags)?;
    bench.node = bench.client.queue().lookup(ROOT_NODE, "large")?.node;
    bench.map(READ, (0, 2 * MIB, 4 * MIB))?;
    bench.client.initialise(config().init_flags)?;
    assert_eq!(bench.window.mapped(), []);

    bench.node = bench.client.queue().lookup(ROOT_NODE, "large")?.node;
    bench.map(READ, (0, 2 * MIB, 4 * MIB))?;
    bench.client.session.frontend_mut().reset_device()?;
    assert_eq!(bench.window.mapped(), [(4 * MIB, 2 << 20, false)]);
    assert_eq!(bench.window.faults(), [""; 0]);

    // The window of the next front-end is empty.
    drop(bench.client);
    (bench.client, bench.window) = connect(&bench.back_end)?;
    assert_eq!(bench.window.messages(), 0);
    bench.node = bench.client.queue().lookup(ROOT_NODE, "large")?.node;
    let refused = bench.unmap(&[(4 * MIB, 2 * MIB)]);
    assert_eq!(errno(refused), Some(libc::EINVAL));
    bench.map(READ, (0, 2 * MIB, 4 * MIB))?;
    assert_eq!(bench.window.faults(), [""; 0]);
    Ok(())
}

#[test]
fn front_end_that_refuses_maps_nothing() -> TestResult {
    let mut bench = bench(&[])?;
    bench.map(READ, (0, 2 * MIB, 0))?;
    bench.window.set_manner(Manner::Refusing);
    let refused = bench.map_errno(READ, (0, 2 * MIB, 2 * MIB));
    assert_eq!(refused, Some(libc::EIO));
    assert_eq!(errno(bench.unmap(&[(0, 2 * MIB)])), Some(libc::EIO));
    bench.window.set_manner(Manner::Obliging);
    for gone in [(2 * MIB, 2 * MIB), (0, 2 * MIB)] {
        assert_eq!(errno(bench.unmap(&[gone])), Some(libc::EINVAL));
    }
    bench.map(READ, (0, 2 * MIB, 2 * MIB))?;
    assert_eq!(bench.window.faults(), [""; 0]);
    Ok(())
}

#[test]
fn range_that_cannot_be_written_stays_mapped_to_be_read() -> TestResult {
    let mut bench = bench(&[])?;
    bench.map(READ, (0, 2 * MIB, 2 * MIB))?;
    bench.window.set_manner(Manner::ReadOnly);
    let refused = bench.map_errno(READ | WRITE, (0, 2 * MIB, 2 * MIB));
    assert_eq!(refused, Some(libc::EIO));
    assert_eq!(bench.window.mapped(), [(2 * MIB, 2 << 20, false)]);
    assert_eq!(bench.window.read(2 * MIB + 7, 1), Some(vec![pattern(7)]));
    // Another part of the file is not what was there.
    let refused = bench.map_errno(READ | WRITE, (2 * MIB, 2 * MIB, 2 * MIB));
    assert_eq!(refused, Some(libc::EIO));
    assert_eq!(bench.window.mapped(), []);
    assert_eq!(bench.window.faults(), [""; 0]);
    Ok(())
}

#[test]
fn front_end_that_is_silent_holds_up_nothing_else() -> TestResult {
    let mut bench = bench(&[])?;
    bench.window.set_manner(Manner::Silent);
    let request = Request::set_up_mapping(bench.node, NO_HANDLE, READ, (0, 2 * MIB, 0));
    let queue = bench.client.queue();
    let slot = queue.acquire()?;
    queue.submit(slot, &request)?;
    queue.publish()?;
    // Both on the other queue and on the same one, which completes out of order.
    bench.client.queues[1].lookup(ROOT_NODE, "small")?;
    let queue = bench.client.queue();
    let other = queue.acquire()?;
    queue.submit(other, &Request::getattr(ROOT_NODE, None))?;
    queue.publish()?;
    let first = queue.wait()?;
    assert_eq!(first.slot, other);
    queue.release(other);
    let second = queue.wait()?;
    assert_eq!(second.slot, slot);
    assert_eq!(errno(queue.reply(second)), Some(libc::EIO));
    queue.release(slot);

    // As long as it owes an answer it is not asked again.
    assert_eq!(bench.map_errno(READ, (0, 2 * MIB, 0)), Some(libc::EIO));
    assert_eq!(bench.window.messages(), 1);
    bench.client.queue().destroy()?;

    // Nor does one hold up the end of the session.
    drop(bench.client);
    (bench.client, bench.window) = connect(&bench.back_end)?;
    bench.node = bench.client.queue().lookup(ROOT_NODE, "large")?.node;
    bench.window.set_manner(Manner::Silent);
    let queue = bench.client.queue();
    let slot = queue.acquire()?;
    let request = Request::set_up_mapping(bench.node, NO_HANDLE, READ, (0, 2 * MIB, 0));
    queue.submit(slot, &request)?;
    queue.publish()?;
    drop(bench.client);
    (bench.client, bench.window) = connect(&bench.back_end)?;
    bench.node = bench.client.queue().lookup(ROOT_NODE, "large")?.node;
    bench.map(READ, (0, 2 * MIB, 0))?;
    assert_eq!(bench.window.mapped(), [(0, 2 << 20, false)]);
    Ok(())
}

#[test]
fn without_the_protocol_feature_there_is_no_mapping() -> TestResult {
    let share = share()?;
    let back_end = start(&share, &[])?;
    for missing in [
        VhostUserProtocolFeatures::SHMEM,
        VhostUserProtocolFeatures::REPLY_ACK,
        VhostUserProtocolFeatures::BACKEND_REQ,
    ] {
        let mut config = config();
        config.session = config.session.without_protocol_features(missing);
        let client = FuseClient::connect(&back_end.socket(), &config)?;
        expect_none(client)?;
    }
    Ok(())
}

#[test]
fn without_the_option_there_is_no_window() -> TestResult {
    let share = share()?;
    let back_end = FsBackEnd::start_program(FsProgram::Ringside, share.path(), &[])?;
    let client = FuseClient::connect(&back_end.socket(), &config())?;
    let offered = client.session.negotiated().offered_protocol;
    assert!(!offered.contains(VhostUserProtocolFeatures::SHMEM));
    expect_none(client)
}

fn expect_none(mut client: FuseClient) -> TestResult {
    assert_eq!(client.init.flags & DAX, InitFlags::empty());
    assert_eq!(client.init.map_alignment, 0);
    let queue = client.queue();
    let file = queue.lookup(ROOT_NODE, "large")?;
    assert_eq!(file.attr.flags, AttrFlags::empty());
    let map = Request::set_up_mapping(file.node, NO_HANDLE, READ, (0, 2 * MIB, 0));
    assert_eq!(errno(queue.call_empty(&map)), Some(libc::ENOSYS));
    let unmap = Request::remove_mapping(file.node, &[(0, 2 * MIB)]);
    assert_eq!(errno(queue.call_empty(&unmap)), Some(libc::ENOSYS));
    Ok(())
}

/// What the front-end of the vhost crate was asked for.
#[derive(Default)]
struct Recorder(Vec<(&'static str, VhostUserMMap)>);

impl VhostUserFrontendReqHandlerMut for Recorder {
    fn shmem_map(&mut self, request: &VhostUserMMap, _file: &dyn AsRawFd) -> HandlerResult<u64> {
        self.0.push(("map", *request));
        Ok(0)
    }

    fn shmem_unmap(&mut self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.0.push(("unmap", *request));
        Ok(0)
    }
}

#[test]
fn front_end_of_the_vhost_crate_understands_the_messages() -> TestResult {
    let mut bench = bench(&[])?;
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let mut handler = FrontendReqHandler::new(Arc::clone(&recorder))?;
    handler.set_reply_ack_flag(true);
    let theirs = handler.get_tx_raw_fd();
    let frontend = bench.client.session.frontend_mut();
    frontend.set_backend_request_fd(&theirs)?;
    // Which is not answered; what is answered after it is done after it.
    frontend.get_shmem_config()?;
    let served = std::thread::spawn(move || {
        let answers = [handler.handle_request(), handler.handle_request()];
        answers.map(|answer| answer.map_err(|error| error.to_string()))
    });
    bench.map(READ | WRITE, (2 * MIB, MIB, 4 * MIB))?;
    bench.unmap(&[(4 * MIB, MIB)])?;
    assert_eq!(served.join().unwrap(), [Ok(0), Ok(0)]);
    let seen = &recorder.lock().unwrap().0;
    let fields: Vec<_> = seen
        .iter()
        .map(|(what, m)| {
            (
                *what,
                m.shmid,
                { m.fd_offset },
                { m.shm_offset },
                { m.len },
                { m.flags },
            )
        })
        .collect();
    let expected = [
        ("map", 0, 2 * MIB, 4 * MIB, MIB, 1),
        ("unmap", 0, 0, 4 * MIB, MIB, 0),
    ];
    assert_eq!(fields, expected);
    Ok(())
}
