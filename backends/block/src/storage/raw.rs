// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image: its bytes are the bytes of the disk.

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::alignment::Alignment;
use super::image::{Image, Kind};
use super::layer::{Layer, is_not_supported};
use super::sys;

impl Layer for Image {
    fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
        rustix::io::pread(&self.fd, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64, flags: ReadWriteFlags) -> Result<usize, Errno> {
        let written =
            rustix::io::pwritev2(&self.fd, &[std::io::IoSlice::new(bytes)], offset, flags)?;
        self.cut_rounding(offset + written as u64);
        Ok(written)
    }

    fn clear_granule_bytes(&self) -> u32 {
        self.clear_granule_bytes
    }

    fn zero_range(&self, offset: u64, len_bytes: u64, unmap: bool) -> Result<(), Errno> {
        self.note_edges(offset, len_bytes);
        let fallocate = |flags: FallocateFlags| {
            let flags = flags | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.fd, flags, offset, len_bytes)
        };
        if unmap && self.can_discard {
            match fallocate(FallocateFlags::PUNCH_HOLE) {
                Err(errno) if is_not_supported(errno) => {}
                punched => return punched,
            }
        }
        fallocate(FallocateFlags::ZERO_RANGE)
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Errno> {
        match self.kind {
            Kind::RegularFile => {
                self.note_edges(offset, len_bytes);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.fd, flags, offset, len_bytes)
            }
            Kind::BlockDevice => sys::block_device_discard(&self.fd, offset, len_bytes),
        }
    }
}
