// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is offered, and what an acknowledged set means for the data side.

bitflags::bitflags! {
    /// What a receiver of packets takes unfinished.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub struct Offloads: u8 {
        /// Checksums that are not complete; all others need it.
        const CSUM = 1;
        /// Long TCP over IPv4.
        const TSO4 = 2;
        /// Long TCP over IPv6.
        const TSO6 = 4;
        /// Long TCP with congestion marks.
        const ECN = 8;
        /// Long UDP over IPv4, to be segmented.
        const USO4 = 16;
        /// Long UDP over IPv6, to be segmented.
        const USO6 = 32;
        /// Long UDP, to be fragmented.
        const UFO = 64;
    }
}
