// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of one request slot.

use std::sync::atomic::Ordering;

use super::BlkConfig;
use super::request::{BlkRequest, HEADER_BYTES, status};
use super::shape::{Arrangement, SlotPlaces};
use crate::error::Result;
use crate::memory::{GuestMemory, GuestSlice};

/// Data lies on pages of its own, so that it is fit for `O_DIRECT`.
const PAGE_BYTES: usize = 4096;

/// Header and status byte of a slot share a cache line, the status after the header.
pub(super) const META_BYTES: usize = 64;
const META_STATUS: usize = 32;

/// One request's memory and what is in flight with it.
#[derive(Debug)]
pub(super) struct SlotState {
    places: SlotPlaces,
    /// Header and status byte.
    meta: GuestSlice,
    data: GuestSlice,
    /// The data with the margins around it.
    wide: GuestSlice,
    /// The request in flight or completed last.
    request: BlkRequest,
    /// Where the status byte of that request lies in `wide`; otherwise it is in `meta`.
    merged_status: Option<usize>,
}

impl SlotState {
    pub(super) fn new(memory: &GuestMemory, config: &BlkConfig, meta_gpa: u64) -> Result<Self> {
        // Merged shapes put the header right before the data or the status right after it.
        let margin = if config.shape.is_merged() {
            PAGE_BYTES
        } else {
            0
        };
        let data_bytes = config.slot_bytes.next_multiple_of(PAGE_BYTES);
        let gpa = memory.alloc(data_bytes + 2 * margin, PAGE_BYTES)?;
        let wide = memory.slice(gpa, data_bytes + 2 * margin)?;
        Ok(Self {
            places: SlotPlaces {
                header_gpa: meta_gpa,
                status_gpa: meta_gpa + META_STATUS as u64,
                data_gpa: gpa + margin as u64,
                margin,
            },
            meta: memory.slice(meta_gpa, META_BYTES)?,
            data: wide.sub(margin, data_bytes),
            wide,
            request: BlkRequest::flush(),
            merged_status: None,
        })
    }

    /// Writes the header and marks the status byte as untouched.
    #[inline]
    pub(super) fn prepare(&mut self, request: &BlkRequest, arrangement: &Arrangement) {
        let words = [
            u64::from(request.kind) | u64::from(request.reserved) << 32,
            request.sector,
        ];
        if arrangement.header_merged {
            let before = self.places.margin - HEADER_BYTES as usize;
            for (word, at) in words.iter().zip([before, before + 8]) {
                self.wide.write(at, &word.to_le_bytes());
            }
        } else {
            for (word, at) in words.iter().zip([0, 8]) {
                self.meta.u64(at).store(word.to_le(), Ordering::Relaxed);
            }
        }
        let after = self.places.margin + request.data_bytes as usize;
        self.merged_status = arrangement.status_merged.then_some(after);
        self.request = *request;
        let (window, at) = self.status_place();
        window.u8(at).store(status::UNTOUCHED, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn status(&self) -> u8 {
        let (window, at) = self.status_place();
        window.u8(at).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn request(&self) -> BlkRequest {
        self.request
    }

    #[inline]
    pub(super) fn places(&self) -> SlotPlaces {
        self.places
    }

    #[inline]
    pub(super) fn data(&self) -> &GuestSlice {
        &self.data
    }

    #[inline]
    fn status_place(&self) -> (&GuestSlice, usize) {
        match self.merged_status {
            Some(at) => (&self.wide, at),
            None => (&self.meta, META_STATUS),
        }
    }
}
