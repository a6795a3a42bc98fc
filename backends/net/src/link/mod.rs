// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways out of the process: tap devices, packet sockets, stream and datagram sockets.

pub mod dgram;
pub mod packet;
pub mod stream;
pub mod tap;
