// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for calls that want their buffers aligned.

use ringside_common::num::usize_of;

/// Zeroed memory at an aligned address.
pub struct AlignedBuf {
    memory: Box<[u8]>,
    start: usize,
    len_bytes: usize,
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}

impl AlignedBuf {
    /// `len_bytes` at a multiple of `align_bytes`.
    #[must_use]
    pub fn new(len_bytes: usize, align_bytes: u32) -> Self {
        let align = usize_of(align_bytes.max(1).into());
        let memory = vec![0; len_bytes + align - 1].into_boxed_slice();
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(align) - address;
        Self {
            memory,
            start,
            len_bytes,
        }
    }

    /// The memory.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len_bytes)
            .unwrap_or_default()
    }

    /// The memory.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.len_bytes)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_buf_is_aligned_and_zero() {
        for align in [1, 4, 512, 4096, 65536] {
            for len in [0, 1, 511, 4096] {
                let mut buffer = AlignedBuf::new(len, align);
                assert_eq!(buffer.as_slice(), vec![0; len]);
                assert!(
                    buffer
                        .as_mut_slice()
                        .as_ptr()
                        .addr()
                        .is_multiple_of(usize_of(align.into()))
                );
            }
        }
    }
}
