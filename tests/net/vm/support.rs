// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of this suite share: a file to fetch, and a place where two guests meet.

use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ringside_tests::vm::BoxError;

/// How long one guest waits for the other: a whole boot and more, on a loaded machine.
const MEETING_LIMIT: Duration = Duration::from_secs(180);

/// A file of random bytes, which no compression, pattern or luck can make up.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) contents: Vec<u8>,
    pub(crate) sha256: String,
}

impl File {
    pub(crate) fn random(mib: usize) -> Result<Self, BoxError> {
        use std::io::Read;
        let mut contents = vec![0; mib << 20];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut contents)?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &contents)?;
        let output = Command::new("sha256sum").arg(file.path()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let sha256 = text.split(' ').next().unwrap_or_default().to_owned();
        Ok(Self { contents, sha256 })
    }
}

/// Where the two guests of a test wait for each other, again and again.
#[derive(Debug, Default)]
pub(crate) struct Meeting {
    arrivals: Mutex<u32>,
    changed: Condvar,
}

impl Meeting {
    /// Waits until both guests are here.
    ///
    /// # Errors
    /// When the other does not come in time: it may have failed.
    pub(crate) fn wait(&self) -> Result<(), BoxError> {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        *arrivals += 1;
        let both = arrivals.next_multiple_of(2);
        self.changed.notify_all();
        let (arrivals, _) = self
            .changed
            .wait_timeout_while(arrivals, MEETING_LIMIT, |arrivals| *arrivals < both)
            .unwrap_or_else(PoisonError::into_inner);
        if *arrivals < both {
            return Err("the other guest did not come".into());
        }
        Ok(())
    }
}
