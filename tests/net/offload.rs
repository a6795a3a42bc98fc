// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is left undone in a frame is done for a receiver that does not take it so: segments of long
//! packets, and checksums.
//!
//! Whether a segment is right is judged by others than the code that makes them: by a parser of the
//! tests' own ([`packet`]), by the kernel of a scratch network namespace, which counts what it
//! takes and what it does not ([`kernel`]), and by `tcpdump`.

#[path = "offload/connection.rs"]
mod connection;
#[path = "offload/guest.rs"]
mod guest;
#[path = "offload/kernel.rs"]
mod kernel;
#[path = "offload/packet.rs"]
mod packet;
#[path = "offload/passing.rs"]
mod passing;
#[path = "offload/sample.rs"]
mod sample;
#[path = "offload/segments.rs"]
mod segments;
#[path = "offload/sockets.rs"]
mod sockets;
#[path = "offload/tcpdump.rs"]
mod tcpdump;
#[path = "offload/vlan.rs"]
mod vlan;

use std::error::Error;
use std::time::Duration;

use ringside_frontend::net::Mac;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something that must not happen is waited for.
const SILENCE: Duration = Duration::from_millis(200);

/// The address of the guest that sends.
const OURS: Mac = [2, 0, 0, 0, 0, 0xa1];
/// The address of the receiver: another guest, or a device of the namespace.
const THEIRS: Mac = [2, 0, 0, 0, 0, 0xb2];
