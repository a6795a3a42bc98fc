// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user block device back-end.

pub mod config_space;
pub mod image;
pub mod request;
pub mod slow_path;
mod sys;
