// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nothing is left over: of operations that succeed and fail in every way, of callers that threads
//! have acted as, of front-ends that have left.
//!
//! 100 000 operations and 200 sessions; with `RINGSIDE_FULL_MATRIX=1` a million and 1000.

mod mixed;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::types::LockIn;
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseQueue, Request};
use ringside_tests::covering::FULL_VARIABLE;
use ringside_tests::fs_back_end::FsBackEnd;
use ringside_tests::host_fs::HostFs;
use ringside_tests::skip;

use mixed::Mix;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

const ARGS: [&str; 4] = [
    "--xattr",
    "--security-label=always",
    "--posix-lock",
    "--flock",
];

fn is_full() -> bool {
    std::env::var_os(FULL_VARIABLE).is_some()
}

/// Whom the threads of a process act as, and with what: the same lines of `/proc/<pid>/status`, by
/// the names of threads without their numbers.
fn credentials(pid: u32) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = |label: &str| status.lines().find(|line| line.starts_with(label));
        let name = line("Name:").unwrap_or_default();
        let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let lines = [
            "Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "Umask:",
        ];
        let lines: Vec<_> = lines.into_iter().filter_map(line).collect();
        assert_eq!(lines.len(), 8, "{status}");
        all.entry(name.to_owned())
            .or_default()
            .insert(lines.join("\n"));
    }
    Ok(all)
}

/// A share that is soon full, with a directory that is open to all.
fn mixed_share() -> Result<HostFs> {
    let share = HostFs::tmpfs("size=4m,nr_inodes=300,mode=755")?;
    let open = share.path().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    Ok(share)
}

#[test]
fn mixed_operations_leave_no_descriptor_no_memory_and_no_changed_thread() -> TestResult {
    let share = match mixed_share() {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    let back_end = FsBackEnd::start(&share.path(), &ARGS)?;
    let pid = back_end.process().id();
    let mut client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
    let mut mix = Mix::new(client.queue(), 1)?;
    let total = if is_full() { 1_000_000 } else { 100_000 };
    // What is set up at the first use is set up.
    while mix.done() < total / 5 {
        mix.step(client.queue())?;
    }
    mix.let_go(client.queue())?;
    let (before, initial) = (back_end.process().sample()?, credentials(pid)?);
    for (name, credentials) in &initial {
        assert_eq!(credentials.len(), 1, "{name}: {credentials:?}");
    }
    while mix.done() < total {
        mix.step(client.queue())?;
        if mix.chance(20) {
            assert_eq!(credentials(pid)?, initial);
        }
    }
    mix.let_go(client.queue())?;
    let after = back_end.process().sample()?;
    assert_eq!(credentials(pid)?, initial);
    assert_eq!(after.fds, before.fds);
    // Blocking threads come as there is work for them, up to a bound.
    assert!(after.threads <= before.threads.min(4) + 16, "{after:?}");
    let most = before.rss_anon_kib + 512;
    assert!(after.rss_anon_kib <= most, "{before:?} {after:?}");
    mix.assert_all_happened();
    Ok(())
}

#[test]
fn two_queues_at_the_same_time_leave_no_descriptor() -> TestResult {
    let share = match mixed_share() {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    let back_end = FsBackEnd::start(&share.path(), &ARGS)?;
    let config = FuseConfig {
        request_queues: 2,
        ..FuseConfig::default()
    };
    let mut client = FuseClient::connect(&back_end.socket(), &config)?;
    let total = if is_full() { 500_000 } else { 20_000 };
    let before = back_end.process().sample()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1_u64..)
            .zip(&mut client.queues)
            .map(|(seed, queue)| {
                scope.spawn(move || {
                    let mut run = || -> TestResult {
                        let mut mix = Mix::new(queue, seed)?;
                        while mix.done() < total {
                            mix.step(queue)?;
                        }
                        mix.let_go(queue)
                    };
                    run().map_err(|error| error.to_string())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_panic| "a queue has panicked")??;
        }
        TestResult::Ok(())
    })?;
    // The queues keep "open" and two files each that they have locked.
    let known = 1 + 2 * client.queues.len();
    assert_eq!(back_end.process().sample()?.fds, before.fds + known);
    Ok(())
}

#[test]
fn each_operation_that_creates_fails_without_leaving_anything() -> TestResult {
    let share = match HostFs::tmpfs("size=4m,nr_inodes=300,mode=755") {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    let back_end = FsBackEnd::start(&share.path(), &ARGS)?;
    let mut client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
    let before = back_end.process().sample()?;
    for make in mixed::CREATING {
        for (label, value, errno) in [
            ("bogus.label", &b"x"[..], libc::EOPNOTSUPP),
            ("security.capability", b"x", libc::EINVAL),
            ("user.label", &[0; 65_537], libc::E2BIG),
        ] {
            let request = mixed::labelled(make(ROOT_NODE, "new"), Some((label, value)), None);
            let error = client.queue().call(&request).map(drop).err();
            let error = error.and_then(|error| error.errno());
            assert_eq!(error, Some(errno), "{label} of opcode {}", request.opcode);
        }
    }
    assert_eq!(fs::read_dir(share.path())?.count(), 0);
    assert_eq!(back_end.process().sample()?.fds, before.fds);
    Ok(())
}

/// A session that takes and leaves all that there is; its lock that waits never ends.
fn session(client: &mut FuseClient, files: usize) -> TestResult {
    let queue = client.queue();
    let dir = queue.opendir(ROOT_NODE)?.handle;
    let entries = queue.readdirplus(ROOT_NODE, dir, 0, 128 << 10)?;
    assert_eq!(entries.len(), files + 2);
    let nodes: Vec<u64> = entries
        .iter()
        .filter_map(|entry| Some(entry.entry?.node))
        .collect();
    let file = *nodes.iter().find(|node| **node != 0).ok_or("no file")?;
    let handles = [queue.open(file, 2)?.handle, queue.open(file, 2)?.handle];
    let mut lock = LockIn {
        handle: handles[0],
        owner: 1,
        start: 0,
        end: i64::MAX.cast_unsigned(),
        kind: 1,
        pid: 1,
        flock: false,
    };
    queue.setlk(file, &lock, false)?;
    lock.flock = true;
    queue.setlk(file, &lock, false)?;
    queue.fsync(file, handles[1], false)?;
    for flock in [false, true] {
        let lock = LockIn {
            handle: handles[1],
            owner: 2,
            flock,
            ..lock
        };
        let slot = queue.acquire()?;
        queue.submit(slot, &Request::setlk(file, &lock, true))?;
    }
    queue.publish()?;
    // It is served once the others are.
    getattr_behind(queue, file)
}

/// A `GETATTR` while others of the same queue are outstanding.
fn getattr_behind(queue: &mut FuseQueue, node: u64) -> TestResult {
    let slot = queue.acquire()?;
    queue.submit(slot, &Request::getattr(node, None))?;
    queue.publish()?;
    let completion = queue.wait()?;
    assert_eq!(completion.slot, slot);
    queue.reply(completion)?;
    queue.release(slot);
    Ok(())
}

#[test]
fn sessions_one_after_the_other_leave_no_descriptor_thread_mapping_or_memory() -> TestResult {
    const FILES: usize = 300;
    let share = match HostFs::tmpfs("size=4m,mode=755") {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    for file in 0..FILES {
        fs::File::create(share.path().join(file.to_string()))?;
    }
    let back_end = FsBackEnd::start(&share.path(), &ARGS)?;
    let config = FuseConfig {
        request_queues: 2,
        ..FuseConfig::default()
    };
    let sessions = if is_full() { 1000 } else { 200 };
    let mut samples = Vec::new();
    for at in 0..=sessions {
        let mut client = FuseClient::connect(&back_end.socket(), &config)?;
        session(&mut client, FILES)?;
        if at == sessions / 10 || at == sessions {
            samples.push(back_end.process().sample()?);
        }
    }
    let (early, late) = (samples[0], samples[1]);
    assert_eq!((late.fds, late.threads), (early.fds, early.threads));
    // The allocator may have spread a little.
    assert!(late.maps <= early.maps + 8, "{early:?} {late:?}");
    assert!(
        late.rss_anon_kib <= early.rss_anon_kib + 1024,
        "{early:?} {late:?}"
    );
    Ok(())
}
