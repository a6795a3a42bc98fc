// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! placeholder
pub mod logging;
pub mod socket;
pub mod stats;
