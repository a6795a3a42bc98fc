// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space, to the byte (virtio 1.3 §5.1.4).
