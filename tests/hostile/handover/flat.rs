// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Regions that come and go leave no mapping behind, whatever file they are in and however they end.

use std::fs::{File, read_to_string};
use std::os::fd::{AsFd as _, OwnedFd};

use ringside_frontend::ids::request;
use ringside_frontend::load::Rng;
use ringside_frontend::raw::RawClient;
use ringside_frontend::session::Session;
use ringside_tests::covering::FULL_VARIABLE;
use ringside_tests::hostile::wire::{self, RegionBody, mem_region};
use ringside_tests::hostile::{HugePages, PATIENCE, Result, TestResult};
use ringside_tests::skip;
use rustix::fs::MemfdFlags;

use super::Target;

/// `ADD_MEM_REG` and `REM_MEM_REG` of one region each, for every device: 10 000 of them, and with
/// `RINGSIDE_FULL_MATRIX=1` more than a process may have mappings.
fn rounds() -> u64 {
    match std::env::var_os(FULL_VARIABLE) {
        Some(_) => 100_000,
        None => 10_000,
    }
}

/// A file, and the bytes of its pages.
type Memory = (OwnedFd, u64);

/// Two regions one after the other in the same file, so that the kernel may make one mapping of
/// both: each of any size that begins in its page or in the next.
fn regions(rng: &mut Rng, page_bytes: u64) -> [RegionBody; 2] {
    let mut size = || match rng.below(8) {
        0 => 1,
        1 => 511,
        2 => 4095,
        3 => 4097,
        4 => page_bytes - 1,
        5 => page_bytes,
        6 => page_bytes + 1,
        _ => 1 + rng.below(2 * page_bytes),
    };
    let (low, high) = (size(), size());
    let after = low.next_multiple_of(page_bytes);
    let offset = page_bytes * (low % 2);
    [(0, low), (after, high)].map(|(start, bytes)| RegionBody {
        gpa: (1 << 40) + start,
        bytes,
        uva: (1 << 44) + start,
        offset: offset + start,
    })
}

fn tell(client: &RawClient, id: u32, region: &RegionBody, file: &OwnedFd) -> TestResult {
    let body = mem_region(region);
    let fds = [file.as_fd()];
    let fds = match id {
        request::ADD_MEM_REG => &fds[..],
        _ => &[],
    };
    Ok(client.send(wire::header(id, &body), &body, fds)?)
}

fn mappings(target: &Target) -> Result<usize> {
    let maps = read_to_string(format!("/proc/{}/maps", target.process.id()))?;
    Ok(maps.lines().count())
}

/// While its queues are served, in as many rounds.
fn stays_flat(target: &mut Target, files: &[Memory], rounds: u64) -> TestResult {
    let (mut guest, client) = target.guest(Session::builder())?;
    target.works(&mut guest)?;
    let mut rng = Rng::new(14);
    let mut held = None;
    for round in 0..rounds / 2 {
        let which = usize::try_from(round % files.len() as u64)?;
        let (file, page_bytes) = &files[which];
        let [low, high] = regions(&mut rng, *page_bytes);
        tell(&client, request::ADD_MEM_REG, &low, file)?;
        tell(&client, request::ADD_MEM_REG, &high, file)?;
        let [first, last] = if rng.below(2) == 0 {
            [low, high]
        } else {
            [high, low]
        };
        tell(&client, request::REM_MEM_REG, &first, file)?;
        tell(&client, request::REM_MEM_REG, &last, file)?;
        if round % 1000 == 999 {
            assert!(client.is_alive(PATIENCE), "closed before {round}");
            let now = mappings(target)?;
            assert_eq!(*held.get_or_insert(now), now, "after {round}");
        }
    }
    target.works(&mut guest)?;
    Ok(())
}

#[test]
fn f1_4_mappings_are_flat_after_many_regions_of_odd_sizes() -> TestResult {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let memfd = rustix::fs::memfd_create("flat", MemfdFlags::CLOEXEC)?;
    let tmpfs = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("memory"))?;
    let page_bytes = rustix::param::page_size() as u64;
    let files = [memfd, tmpfs.into()].map(|file| (file, page_bytes));
    for (file, page_bytes) in &files {
        rustix::fs::ftruncate(file, 8 * page_bytes)?;
    }
    for mut target in Target::all()? {
        stays_flat(&mut target, &files, rounds())?;
        target.ends()?;
    }
    Ok(())
}

#[test]
fn f1_4_mappings_are_flat_after_many_regions_of_odd_sizes_on_huge_pages() -> TestResult {
    let pages = match HugePages::with_free(8) {
        Ok(pages) => pages,
        Err(reason) => skip!("{reason}"),
    };
    let files = [(pages.memfd(8)?, pages.page_bytes())];
    for mut target in Target::all()? {
        stays_flat(&mut target, &files, rounds())?;
        target.ends()?;
    }
    Ok(())
}
