// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! placeholder
pub mod cli;
pub mod logging;
pub mod management;
pub mod socket;
pub mod stats;
