// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! [`Bounce`] on a layer in memory that checks alignment and fails on demand.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

/// What the next calls of a [`FakeDisk`] do instead of all they are asked for.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Fail(Errno),
    Short(usize),
}

/// Bytes in memory behind an `O_DIRECT`-like interface.
#[derive(Debug)]
struct FakeDisk {
    bytes: Mutex<Vec<u8>>,
    faults: Mutex<VecDeque<Fault>>,
    num_calls: AtomicUsize,
    can_zero: AtomicBool,
    /// What ranges to zero must keep to.
    clear_granule_bytes: u32,
    /// What is said where they cannot be zeroed.
    refusal: Errno,
    align: Alignment,
}

impl FakeDisk {
    fn new(bytes: Vec<u8>, offset_bytes: u32, block_bytes: u32) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            faults: Mutex::default(),
            num_calls: AtomicUsize::new(0),
            can_zero: AtomicBool::new(false),
            clear_granule_bytes: 1,
            refusal: Errno::OPNOTSUPP,
            align: Alignment {
                memory_bytes: offset_bytes,
                offset_bytes,
                block_bytes,
            },
        }
    }

    fn fail_next(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    /// The length to serve, once alignment and faults are dealt with.
    fn admit(&self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        self.num_calls.fetch_add(1, Ordering::Relaxed);
        let address = bytes.as_ptr().addr();
        assert!(
            self.align.fits_memory(address, bytes.len()),
            "{address:#x} {}",
            bytes.len()
        );
        assert!(
            self.align.fits_range(offset, bytes.len() as u64),
            "{offset}"
        );
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            Some(Fault::Fail(errno)) => Err(errno),
            Some(Fault::Short(len)) => Ok(len.min(bytes.len())),
            None => Ok(bytes.len()),
        }
    }
}

impl Layer for FakeDisk {
    fn alignment(&self) -> Alignment {
        self.align
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let len = self.admit(bytes, offset)?;
        let disk = self.bytes.lock().unwrap();
        let from = disk.get(usize_of(offset)..).unwrap_or_default();
        let len = len.min(from.len());
        bytes[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64, _: ReadWriteFlags) -> Result<usize, Errno> {
        let len = self.admit(bytes, offset)?;
        let mut disk = self.bytes.lock().unwrap();
        let end = usize_of(offset) + len;
        let grown = disk.len().max(end);
        disk.resize(grown, 0);
        disk[usize_of(offset)..end].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn clear_granule_bytes(&self) -> u32 {
        self.clear_granule_bytes
    }

    fn zero_range(&self, offset: u64, len_bytes: u64, _: bool) -> Result<(), Errno> {
        if !self.can_zero.load(Ordering::Relaxed) {
            return Err(self.refusal);
        }
        let granule = u64::from(self.clear_granule_bytes);
        assert!(offset.is_multiple_of(granule) && len_bytes.is_multiple_of(granule));
        let range = usize_of(offset)..usize_of(offset + len_bytes);
        self.bytes.lock().unwrap()[range].fill(0);
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(self.refusal)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0_u8..251).cycle().take(len).collect()
}

fn read(disk: &FakeDisk, offset: u64, len_bytes: u64) -> Result<Vec<u8>, BounceError> {
    let locks = Arc::default();
    let mut read = Vec::new();
    Bounce::new(disk, &locks).read(offset, len_bytes, &mut |position, bytes| {
        assert_eq!(position, read.len() as u64);
        read.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(read)
}

fn write(disk: &FakeDisk, offset: u64, bytes: &[u8]) -> Result<(), BounceError> {
    let (locks, flags) = (Arc::default(), ReadWriteFlags::empty());
    let path = Bounce::new(disk, &locks);
    path.write(offset, bytes.len() as u64, flags, &mut |position, to| {
        let start = usize_of(position);
        to.copy_from_slice(&bytes[start..start + to.len()]);
        Ok(())
    })
}

const EDGES: [u64; 13] = [
    0, 1, 511, 512, 513, 4095, 4096, 4097, 5000, 8191, 8192, 9000, 12288,
];

#[test]
fn read_of_any_range_gives_its_bytes() {
    let bytes = pattern(12288);
    let disk = FakeDisk::new(bytes.clone(), 4096, 4096);
    for start in EDGES {
        for end in EDGES.into_iter().filter(|end| *end >= start) {
            let expected = &bytes[usize_of(start)..usize_of(end)];
            assert_eq!(
                read(&disk, start, end - start).unwrap(),
                expected,
                "{start}..{end}"
            );
        }
    }
}

#[test]
fn write_of_any_range_changes_nothing_else() {
    for align in [1, 512, 4096] {
        for start in EDGES {
            for end in EDGES.into_iter().filter(|end| *end >= start) {
                let disk = FakeDisk::new(pattern(12288), align, 4096);
                let range = usize_of(start)..usize_of(end);
                let mut expected = pattern(12288);
                expected[range.clone()].fill(0xee);
                write(&disk, start, &vec![0xee; range.len()]).unwrap();
                assert_eq!(
                    *disk.bytes.lock().unwrap(),
                    expected,
                    "{start}..{end} by {align}"
                );
            }
        }
    }
}

#[test]
fn chunked_request_crosses_chunks_whole() {
    let len = 3 * usize_of(CHUNK_BYTES) + 8192;
    let disk = FakeDisk::new(vec![1; len], 4096, 4096);
    let bytes = pattern(len - 1024);
    write(&disk, 512, &bytes).unwrap();
    assert_eq!(read(&disk, 512, bytes.len() as u64).unwrap(), bytes);
    assert_eq!(read(&disk, 0, 512).unwrap(), [1; 512]);
    assert_eq!(read(&disk, (len - 512) as u64, 512).unwrap(), [1; 512]);
}

#[test]
fn aligned_write_reads_nothing() {
    let disk = FakeDisk::new(vec![0; 8192], 4096, 4096);
    write(&disk, 4096, &[7; 4096]).unwrap();
    assert_eq!(disk.num_calls.load(Ordering::Relaxed), 1);
}

#[test]
fn e11_read_zero_fills_the_last_block_and_fails_beyond_it() {
    for (align, len) in [
        (4096, 4096 + 100),
        (4096, 8191),
        (1, 4097),
        (1, 8191),
        (512, 4600),
    ] {
        let disk = FakeDisk::new(vec![9; len], align, 4096);
        let mut expected = vec![9; len];
        expected.resize(8192, 0);
        assert_eq!(read(&disk, 0, 8192).unwrap(), expected);
        assert_eq!(read(&disk, 7680, 512).unwrap(), expected[7680..]);
        let beyond = Err(BounceError::EndOfImage { offset: 8192 });
        assert_eq!(read(&disk, 7680, 1024), beyond, "{align} {len}");
        assert_eq!(read(&disk, 8192, 512), beyond, "{align} {len}");
    }
}

#[test]
fn e11_read_far_behind_a_shrunk_end_fails() {
    let disk = FakeDisk::new(vec![9; 100], 1, 4096);
    let missing = Err(BounceError::EndOfImage { offset: 8192 });
    assert_eq!(read(&disk, 8192 + 512, 512), missing);
    assert_eq!(read(&disk, 512, 512).unwrap(), [0; 512]);
}

#[test]
fn write_into_the_unaligned_tail_leaves_zeroes_around_it() {
    let disk = FakeDisk::new(vec![9; 4096 + 100], 4096, 4096);
    write(&disk, 4096 + 512, &[5; 512]).unwrap();
    let mut expected = vec![9; 4096 + 100];
    expected.resize(4096 + 512, 0);
    expected.resize(4096 + 1024, 5);
    expected.resize(8192, 0);
    assert_eq!(*disk.bytes.lock().unwrap(), expected);
}

#[test]
fn j4_short_and_interrupted_calls_are_resumed() {
    let faults = || {
        let fail = [Errno::INTR, Errno::AGAIN].map(Fault::Fail);
        fail.into_iter().chain([
            Fault::Short(4096),
            Fault::Fail(Errno::INTR),
            Fault::Short(8192),
        ])
    };
    let disk = FakeDisk::new(pattern(32768), 4096, 4096);
    faults().for_each(|fault| disk.fail_next(fault));
    assert_eq!(
        read(&disk, 100, 32768 - 200).unwrap(),
        pattern(32768)[100..32668]
    );
    faults().for_each(|fault| disk.fail_next(fault));
    // A count inside a block, as a full disk gives: go on from the block's start.
    disk.fail_next(Fault::Short(4097));
    write(&disk, 0, &[3; 32768]).unwrap();
    assert_eq!(*disk.bytes.lock().unwrap(), [3; 32768]);
}

#[test]
fn j1_j2_failed_call_fails_the_request_with_its_error() {
    let disk = FakeDisk::new(pattern(8192), 4096, 4096);
    let failed = |offset, source| Err(BounceError::Io { offset, source });
    disk.fail_next(Fault::Fail(Errno::IO));
    assert_eq!(
        read(&disk, 4096, 512),
        failed(4096, Errno::IO).map(|()| vec![])
    );
    disk.fail_next(Fault::Fail(Errno::IO));
    assert_eq!(
        write(&disk, 4096 + 512, &[0; 512]),
        failed(4096, Errno::IO),
        "reading the block"
    );
    disk.fail_next(Fault::Short(4096));
    disk.fail_next(Fault::Fail(Errno::NOSPC));
    assert_eq!(write(&disk, 0, &[0; 8192]), failed(4096, Errno::NOSPC));
    disk.fail_next(Fault::Short(0));
    assert_eq!(
        write(&disk, 0, &[0; 4096]),
        failed(0, Errno::IO),
        "no progress"
    );
}

#[test]
fn callback_failure_ends_the_request() {
    let disk = FakeDisk::new(pattern(8192), 4096, 4096);
    let locks = Arc::default();
    let path = Bounce::new(&disk, &locks);
    let fault = Err(BounceError::GuestMemory);
    assert_eq!(path.read(0, 512, &mut |_, _| fault), fault);
    assert_eq!(
        path.write(0, 512, ReadWriteFlags::empty(), &mut |_, _| fault),
        fault
    );
    assert_eq!(*disk.bytes.lock().unwrap(), pattern(8192));
    assert!(locks.try_lock_shared(0..u64::MAX).is_some(), "no lock left");
}

#[test]
fn range_beyond_any_file_is_refused() {
    let disk = FakeDisk::new(vec![], 4096, 4096);
    for (offset, len_bytes) in [
        (u64::MAX, 1),
        (u64::MAX - 1, 1),
        (1 << 63, 512),
        (512, u64::MAX),
    ] {
        assert_eq!(
            read(&disk, offset, len_bytes),
            Err(BounceError::Range { offset, len_bytes })
        );
    }
}

#[test]
fn write_zeroes_writes_what_cannot_be_zeroed() {
    for can_zero in [false, true] {
        let disk = FakeDisk::new(pattern(16384), 4096, 4096);
        disk.can_zero.store(can_zero, Ordering::Relaxed);
        let locks = Arc::default();
        let path = Bounce::new(&disk, &locks);
        path.write_zeroes(512, 9000, true, ReadWriteFlags::empty())
            .unwrap();
        let mut expected = pattern(16384);
        expected[512..9512].fill(0);
        assert_eq!(*disk.bytes.lock().unwrap(), expected);
        assert_eq!(disk.num_calls.load(Ordering::Relaxed) == 0, can_zero);
    }
}

/// What file systems and filters of system calls say that have no such call.
const NOT_SUPPORTED: [Errno; 6] = [
    Errno::OPNOTSUPP,
    Errno::INVAL,
    Errno::NOSYS,
    Errno::NODEV,
    Errno::NOTTY,
    Errno::PERM,
];

#[test]
fn f6_2_zeroes_that_the_file_system_has_no_call_for_are_written() {
    for refusal in NOT_SUPPORTED {
        let mut disk = FakeDisk::new(pattern(16384), 4096, 4096);
        disk.refusal = refusal;
        let locks = Arc::default();
        let path = Bounce::new(&disk, &locks);
        let done = path.write_zeroes(512, 9000, true, ReadWriteFlags::empty());
        assert_eq!(done, Ok(()), "{refusal}");
        let mut expected = pattern(16384);
        expected[512..9512].fill(0);
        assert_eq!(*disk.bytes.lock().unwrap(), expected, "{refusal}");
    }
    for refusal in [Errno::IO, Errno::NOSPC, Errno::ROFS] {
        let mut disk = FakeDisk::new(pattern(16384), 4096, 4096);
        disk.refusal = refusal;
        let locks = Arc::default();
        let path = Bounce::new(&disk, &locks);
        let failed = BounceError::Io {
            offset: 512,
            source: refusal,
        };
        let done = path.write_zeroes(512, 9000, true, ReadWriteFlags::empty());
        assert_eq!(done, Err(failed));
        assert_eq!(path.discard(512, 9000), Err(failed));
    }
}

#[test]
fn f6_1_zeroes_of_parts_of_blocks_are_written_and_whole_ones_are_not() {
    for start in EDGES {
        for end in EDGES.into_iter().filter(|end| *end > start) {
            let mut disk = FakeDisk::new(pattern(12288), 1, 512);
            disk.clear_granule_bytes = 4096;
            disk.can_zero.store(true, Ordering::Relaxed);
            let locks = Arc::default();
            let path = Bounce::new(&disk, &locks);
            path.write_zeroes(start, end - start, false, ReadWriteFlags::empty())
                .unwrap();
            let mut expected = pattern(12288);
            expected[usize_of(start)..usize_of(end)].fill(0);
            assert_eq!(*disk.bytes.lock().unwrap(), expected, "{start}..{end}");
            let aligned = start.is_multiple_of(4096) && end.is_multiple_of(4096);
            let written = disk.num_calls.load(Ordering::Relaxed);
            assert_eq!(written == 0, aligned, "{start}..{end}");
        }
    }
}

#[test]
fn f6_2_discard_that_is_impossible_changes_nothing() {
    for refusal in NOT_SUPPORTED {
        let mut disk = FakeDisk::new(pattern(4096), 4096, 4096);
        disk.refusal = refusal;
        let locks = Arc::default();
        assert_eq!(Bounce::new(&disk, &locks).discard(0, 4096), Ok(()));
        assert_eq!(*disk.bytes.lock().unwrap(), pattern(4096));
    }
}

#[test]
fn e12_unaligned_writes_to_halves_of_one_block_lose_no_update() {
    const ROUNDS: u32 = 10_000;
    let disk = FakeDisk::new(vec![0; 4096], 4096, 4096);
    let locks = Arc::default();
    thread::scope(|scope| {
        for half in 0..2_u64 {
            let path = Bounce::new(&disk, &locks);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let own = half * 2048;
                    let flags = ReadWriteFlags::empty();
                    path.write(own, 2048, flags, &mut |_, bytes| {
                        bytes
                            .chunks_mut(4)
                            .for_each(|c| c.copy_from_slice(&round.to_le_bytes()));
                        Ok(())
                    })
                    .unwrap();
                    path.read(own, 2048, &mut |_, bytes| {
                        assert!(bytes.chunks(4).all(|c| c == round.to_le_bytes()), "{round}");
                        Ok(())
                    })
                    .unwrap();
                }
            });
        }
    });
    let disk = disk.bytes.lock().unwrap();
    assert!(disk.chunks(4).all(|c| c == ROUNDS.to_le_bytes()));
    assert!(locks.entries().list.is_empty());
}
