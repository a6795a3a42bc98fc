// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for calls that want their buffers aligned.

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
        let align = usize::try_from(align_bytes.max(1)).unwrap_or(usize::MAX);
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
