// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Captures of what passes, as pcapng files.
