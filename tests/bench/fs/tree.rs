// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shared directory that the cases work on.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;

use crate::Result;

/// Files `f0`, `f1` and so on at the root.
pub(crate) const FILES: usize = 64;
/// Of `big`, which is what is read and written.
pub(crate) const BIG_BYTES: u64 = 64 << 20;
/// Files in `many`.
pub(crate) const MANY: usize = 100_000;
/// An attribute of `f0`.
pub(crate) const XATTR: &str = "user.bench";

/// The directory; it vanishes when dropped.
pub(crate) struct Tree {
    dir: TempDir,
}

impl Tree {
    /// Makes it under `place`, with or without `many`.
    pub(crate) fn new(place: &Path, with_many: bool) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ringside-bench-")
            .tempdir_in(place)?;
        for file in 0..FILES {
            fs::write(dir.path().join(format!("f{file}")), [b'x'; 4096])?;
        }
        let f0 = dir.path().join("f0");
        setxattr(f0, XATTR, b"sixteen bytes ..", XattrFlags::empty())?;
        let mut big = fs::File::create(dir.path().join("big"))?;
        for chunk in 0..BIG_BYTES >> 20 {
            big.write_all(&vec![u8::try_from(chunk)?; 1 << 20])?;
        }
        big.sync_all()?;
        if with_many {
            let many = dir.path().join("many");
            fs::create_dir(&many)?;
            for file in 0..MANY {
                fs::write(many.join(format!("file-{file:06}")), [])?;
            }
        }
        Ok(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}
