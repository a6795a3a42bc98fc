// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packet sockets on an interface of the host.
