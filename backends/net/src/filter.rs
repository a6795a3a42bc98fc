// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which frames the driver wants to see.
