// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every Ringside back-end shares: sessions with front-ends, guest memory, virtqueues and the
//! threads that serve them. A back-end implements [`device::Device`] and calls [`daemon::serve`],
//! or [`daemon::serve_all`] with several devices.
//!
//! | module | does |
//! |---|---|
//! | [`daemon`] | the life of the process: sockets, sessions one after the other, signals |
//! | `session` | one front-end connection: features, memory table, vrings |
//! | [`memory`] | checks, maps and translates guest memory |
//! | [`ring`] | the split virtqueue on cached pointers |
//! | [`chain`] | a checked walk of a descriptor chain |
//! | [`worker`] | data threads, which own their vrings, and the pool that sessions share |
//! | [`io`] | what a data thread waits on: `io_uring`, or epoll and blocking threads |
//! | `watchdog` | writes that wait, waits without an end |
//! | [`limit`] | bytes and operations per second |
//! | [`device`] | what a device is: a control side and a data side |
//! | [`adapter`] | devices written for rust-vmm, unchanged |
//! | [`backchannel`] | messages to the front-end |
//! | [`error`] | errors by culprit |
//! | [`stats`], [`management`] | counters, control socket, metrics |
//! | [`sandbox`] | layers between a guest and the host |
//! | [`program`] | a back-end as a program: from its command line to its exit status |
//! | [`cli`], [`socket`], [`inherited`], [`logging`] | options, sockets, passed descriptors and logs of every back-end |
//! | [`num`] | numbers that change their type and keep their value |
//!
//! Begin with [`device`], which is the contract, and with the example `entropy`
//! (`docs/writing-a-device.md`); then [`worker`] for the engine, `session` for the messages, and
//! [`ring`], [`chain`] and [`memory`] for what is untrusted. How they work together is in
//! `docs/architecture.md`, and words are in `docs/glossary.md`.

#[cfg(target_endian = "big")]
compile_error!("virtio is little-endian; this crate reads its fields as they are");
#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "lengths and offsets of guest memory have 64 bits; so must an address of this process"
);

pub mod adapter;
pub mod backchannel;
pub mod chain;
pub mod cli;
pub mod daemon;
mod descriptors;
pub mod device;
pub mod error;
pub mod inherited;
pub mod io;
pub mod limit;
pub mod logging;
pub mod management;
pub mod memory;
pub mod num;
pub mod program;
pub mod ring;
pub mod sandbox;
mod session;
pub mod socket;
pub mod stats;
mod sys;
mod watchdog;
pub mod worker;
