// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is offered, and what an acknowledged set means for the data side.
