// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the serving of a request has ended, for now.

use super::blocking::Job;
use super::route::To;
use crate::wire::header::InHeader;
use crate::wire::operation::LockIn;

/// How a request ended.
pub(super) enum Outcome {
    /// The reply is in the scratch buffer.
    Reply,
    /// That number of bytes is behind the place of the header.
    Data(usize),
    /// There is none.
    NoReply,
    /// It will come.
    Later(Box<Later>),
}

/// A request that is not done yet.
#[derive(Debug)]
pub struct Later {
    pub(super) header: InHeader,
    pub(super) kind: usize,
    pub(super) on: On,
}

/// What it waits for.
#[derive(Debug)]
pub(super) enum On {
    /// A thread that may wait.
    Thread(Job, To),
    /// A lock, to be tried by such a thread if there is one.
    Lock(LockIn, Option<To>),
}
