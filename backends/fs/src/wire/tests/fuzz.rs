// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random and damaged requests, the same ones in each run: none makes the parser panic, and what
//! it takes is sound.

use super::super::flags::InitFlags;
use super::super::header::{IN_HEADER_BYTES, InHeader};
use super::super::limits::args_limit_bytes;
use super::super::name::Name;
use super::super::operation::{LookupName, Operation};
use super::client::encode_request;
use super::layouts::cases;
use super::{ALL, SERVED, WITH_BYTES};

/// A test without optimization takes fewer.
const REQUESTS: u32 = if cfg!(debug_assertions) {
    200_000
} else {
    10_000_000
};

/// The generator `xorshift64*`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap() % end.max(1)
    }

    /// A number as attackers like them.
    fn number(&mut self) -> u64 {
        let interesting = [
            0,
            1,
            7,
            8,
            16,
            0xff,
            0x100,
            0xffff,
            0x7fff_ffff,
            0xffff_ffff,
        ];
        match self.below(4) {
            0 => self.next(),
            1 => u64::MAX - self.next() % 64,
            2 => 1 << self.below(64),
            _ => interesting[self.below(interesting.len())],
        }
    }
}

/// Changes `bytes` a little.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => {
            let more = random.below(40);
            bytes.extend((0..more).map(|_| random.next().to_le_bytes()[0]));
        }
        2 => {
            let value = random.number().to_le_bytes();
            let len = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        3 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        4 if !bytes.is_empty() => bytes[at] = *b"\0/.\xff".get(random.below(4)).unwrap(),
        5 => {
            // A part of it again.
            let part = bytes[at..].to_vec();
            bytes.extend(part);
        }
        _ => (),
    }
    bytes.truncate(4096);
}

fn check_name(name: Name<'_>) {
    let bytes = name.to_bytes();
    assert!((1..=4095).contains(&bytes.len()));
    assert!(!bytes.contains(&b'/') && bytes != b"." && bytes != b"..");
}

/// What a server relies on.
fn check(operation: &Operation<'_>) {
    match operation {
        Operation::Lookup {
            name: LookupName::Child(name),
        }
        | Operation::MkDir { name, .. }
        | Operation::MkNod { name, .. }
        | Operation::Create { name, .. }
        | Operation::Unlink { name }
        | Operation::RmDir { name }
        | Operation::Link { name, .. } => check_name(*name),
        Operation::Rename { name, new_name, .. } => {
            check_name(*name);
            check_name(*new_name);
        }
        Operation::Symlink { name, target, .. } => {
            check_name(*name);
            assert!((1..=4095).contains(&target.count_bytes()));
        }
        Operation::SetXattr { name, value, .. } => {
            assert!((1..=255).contains(&name.count_bytes()));
            assert!(value.len() <= 65536);
        }
        Operation::BatchForget { forgets } => assert!(forgets.iter().len() * 16 <= 4096),
        _ => (),
    }
}

#[test]
fn random_and_damaged_requests_are_refused_or_sound() {
    let corpus = cases();
    let mut random = Random(0x5269_6e67_7369_6465);
    let mut args = Vec::with_capacity(8192);
    let (mut taken, mut refused) = (0_u32, 0_u32);
    for round in 0..REQUESTS {
        let (opcode, sound, ..) = &corpus[random.below(corpus.len())];
        args.clear();
        let mut header = InHeader {
            opcode: *opcode,
            extensions_bytes: [0, 0, WITH_BYTES, 8][random.below(4)],
            ..InHeader::default()
        };
        if random.below(8) == 0 {
            let len = random.below(200);
            args.extend((0..len).map(|_| random.next().to_le_bytes()[0]));
            header.opcode = u32::try_from(random.below(60)).unwrap();
        } else {
            args.extend_from_slice(sound);
            for _ in 0..random.below(4) {
                damage(&mut args, &mut random);
            }
            if random.below(16) == 0 {
                header.opcode = SERVED[random.below(SERVED.len())];
            }
        }
        let negotiated = if random.below(2) == 0 {
            ALL
        } else {
            InitFlags::from_bits_retain(random.next())
        };
        args.truncate(args_limit_bytes(header.opcode));
        match Operation::parse(&header, &args, negotiated) {
            Ok(operation) => {
                taken += 1;
                check(&operation);
                if round % 64 == 0 {
                    read_again(&operation, negotiated);
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.errno() > 0);
            }
        }
    }
    // Enough of both, or the test would show nothing.
    assert!(
        taken > REQUESTS / 8 && refused > REQUESTS / 8,
        "{taken} {refused}"
    );
}

/// What was taken is taken again when the client's side writes it.
fn read_again(operation: &Operation<'_>, negotiated: InitFlags) {
    let bytes = encode_request(&InHeader::default(), operation, negotiated);
    let (head, args) = bytes.split_first_chunk::<IN_HEADER_BYTES>().unwrap();
    let again = Operation::parse(&InHeader::parse(head), args, negotiated);
    assert_eq!(again.as_ref(), Ok(operation));
}
