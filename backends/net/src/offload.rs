// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checksums and segmentation in software, for a receiver that did not take the offload.
