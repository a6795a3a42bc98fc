// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A place where the two guests of a test meet.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ringside_tests::vm::BoxError;

/// How long one guest waits for the other: a whole boot and more, on a loaded machine.
const MEETING_LIMIT: Duration = Duration::from_secs(180);

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
