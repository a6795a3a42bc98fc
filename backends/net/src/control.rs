// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of the control queue (virtio 1.3 §5.1.6.5), from their bytes alone.
