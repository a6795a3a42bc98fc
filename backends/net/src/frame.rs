// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ethernet frames: what a switch and a filter look at, and the RARP of `SEND_RARP`.
