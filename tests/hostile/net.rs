// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group F of the hostile cases: what a guest can do to a network device.
//!
//! The guest is one port of a switch. Two others exchange frames with known content all the time,
//! and after each case: the process lives, they go on, and the hostile port is served again.

#[path = "net/calls.rs"]
mod calls;
#[path = "net/control.rs"]
mod control;
#[path = "net/receive.rs"]
mod receive;
#[path = "net/regions.rs"]
mod regions;
#[path = "net/scene.rs"]
mod scene;
#[path = "net/transmit.rs"]
mod transmit;
