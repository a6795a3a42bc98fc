// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data threads.
//!
//! A vring belongs to one data thread from start to stop; nobody else touches it. The control
//! thread changes it by command and goes on only when the owner has acknowledged. That rule makes
//! `GET_VRING_BASE` an exact drain and a move of the ring safe. Threads are made for started vrings,
//! up to a bound, and end with the sessions they serve.
//!
//! A pool has the threads of a process. Sessions that have to do with each other, such as the
//! ports of a switch, share it: a group of vrings
//! ([`Device::group`](crate::device::Device::group)) is served by one thread, whichever session they
//! belong to.

mod data;
mod mailbox;
mod options;
mod poll;
mod pool;
mod requests;
mod thread;
mod workers;

pub use crate::device::{DeviceWorker, Place, Turn, Vring, Vrings, WhileAway, monotonic_ns};
pub(crate) use mailbox::{Command, Reply, VringStart};
pub use options::WorkerOptions;
pub(crate) use pool::Pool;
pub use requests::{Brought, Counted, RequestCx, RequestQueue, RequestWorker, Requests};
pub(crate) use workers::Workers;
