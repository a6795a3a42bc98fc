// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each sector of a part of the disk is to hold.

use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_frontend::{FrontendError, Result};

pub(crate) const SECTOR_BYTES: usize = 512;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Zeroes,
    /// The pattern of this generation.
    Pattern(u64),
    /// Discarded: anything.
    Anything,
}

/// The sectors from `first` on. Sector numbers below count from there.
pub(crate) struct Content {
    first: u64,
    held: Vec<Held>,
    generation: u64,
    scratch: Vec<u8>,
}

impl Content {
    /// A part of a fresh disk: zeroes.
    pub(crate) fn new(first: u64, sectors: u64) -> Self {
        Self {
            first,
            held: vec![Held::Zeroes; position(sectors)],
            generation: 0,
            scratch: Vec::new(),
        }
    }

    pub(crate) fn first_sector(&self) -> u64 {
        self.first
    }

    /// The data to write, of a new generation; taken for written from now on.
    pub(crate) fn write(&mut self, sector: u64, sectors: u64) -> &[u8] {
        self.generation += 1;
        self.set(sector, sectors, Held::Pattern(self.generation));
        let bytes = position(sectors) * SECTOR_BYTES;
        self.scratch.resize(bytes, 0);
        fill_pattern(self.generation, self.first + sector, &mut self.scratch);
        &self.scratch
    }

    pub(crate) fn set_zero(&mut self, sector: u64, sectors: u64) {
        self.set(sector, sectors, Held::Zeroes);
    }

    pub(crate) fn forget(&mut self, sector: u64, sectors: u64) {
        self.set(sector, sectors, Held::Anything);
    }

    /// Compares data that was read with what was written.
    pub(crate) fn check(&self, sector: u64, data: &[u8]) -> Result<()> {
        for (part, at) in data.chunks(SECTOR_BYTES).zip(sector..) {
            let held = self.held[position(at)];
            match held {
                Held::Anything => {}
                Held::Pattern(generation) => check_pattern(generation, self.first + at, part)?,
                Held::Zeroes => {
                    if let Some(offset) = part.iter().position(|byte| *byte != 0) {
                        return Err(FrontendError::Mismatch {
                            sector: self.first + at,
                            offset,
                            found: part[offset],
                            expected: 0,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, sector: u64, sectors: u64, held: Held) {
        let (start, count) = (position(sector), position(sectors));
        self.held[start..start + count].fill(held);
    }
}

/// An index; one that is none is found by the bounds check.
fn position(sector: u64) -> usize {
    usize::try_from(sector).unwrap_or(usize::MAX)
}

#[test]
fn content_that_differs_is_found() {
    let mut content = Content::new(8, 16);
    let mut data = content.write(2, 3).to_vec();
    content.check(2, &data).unwrap();
    data[700] ^= 1;
    assert!(matches!(
        content.check(2, &data),
        Err(FrontendError::Mismatch {
            sector: 11,
            offset: 188,
            ..
        })
    ));
    assert!(content.check(0, &[1; 512]).is_err());
    content.forget(2, 3);
    content.check(2, &data).unwrap();
}
