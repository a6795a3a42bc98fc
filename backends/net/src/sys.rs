// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that no safe wrapper covers.
