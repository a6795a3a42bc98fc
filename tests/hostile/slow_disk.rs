// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that is slow, without a special file system and without stopping anybody.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{DISK_BYTES, Result, TestResult};

/// Writes long stretches of the image all the time: the lock of its inode is taken for as long,
/// and every write of the back-end to the same file waits for its turn.
///
/// The upper half of the disk is overwritten.
#[derive(Debug)]
pub struct SlowDisk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl SlowDisk {
    /// Starts to be in the way.
    ///
    /// # Errors
    ///
    /// When the image cannot be opened.
    pub fn start(image: &Path) -> Result<Self> {
        let file = File::options().write(true).open(image)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let junk = vec![0; 32 << 20];
            while !told.load(Ordering::Relaxed) {
                file.write_all_at(&junk, DISK_BYTES / 2)?;
            }
            Ok(())
        });
        Ok(Self { stop, thread })
    }

    /// Lets the disk be fast again.
    ///
    /// # Errors
    ///
    /// When writing failed.
    pub fn finish(self) -> TestResult {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self
            .thread
            .join()
            .map_err(|_panic| "the slow disk has panicked")??)
    }
}
