// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header in front of each packet (virtio 1.3 §5.1.6).
