// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test front-end, VM runner and the suites that drive the Ringside back-ends.

pub mod vm;
