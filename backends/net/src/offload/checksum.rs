// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Internet checksum (RFC 1071): a ones' complement sum of 16-bit words.
//!
//! It does not depend on the byte order in which words are read, as long as it is written in the
//! same one, and carries may be added up at the end; so the sum is made of native 32-bit words.

/// A sum so far. Whatever is added begins at an even offset of what is summed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// With these bytes; only the last to be added may be of an odd number.
    #[must_use]
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        // 64 bits hold the sum of four billion words, and frames have a few thousand.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum = words.iter().fold(self.0, |sum, word| {
            sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)))
        });
        let mut last = [0; 4];
        for (byte, from) in last.iter_mut().zip(rest) {
            *byte = *from;
        }
        Self(sum.wrapping_add(u64::from(u32::from_ne_bytes(last))))
    }

    /// With this field of a header.
    #[must_use]
    pub(super) fn field(self, field: u16) -> Self {
        let word = u16::from_ne_bytes(field.to_be_bytes());
        Self(self.0.wrapping_add(u64::from(word)))
    }

    /// The bytes of the sum as it is, for a checksum field that someone else completes.
    #[must_use]
    pub(super) fn partial(self) -> [u8; 2] {
        let mut sum = self.0;
        // Each round adds the carries; four leave none of 64 bits.
        for _ in 0..4 {
            sum = (sum & 0xffff).wrapping_add(sum >> 16);
        }
        let [.., high, low] = sum.to_be_bytes();
        u16::from_be_bytes([high, low]).to_ne_bytes()
    }

    /// The bytes of the complete checksum.
    #[must_use]
    pub(super) fn complete(self) -> [u8; 2] {
        let [high, low] = self.partial();
        [!high, !low]
    }

    /// The same, with the other one of the two zeroes: UDP takes only that for a checksum
    /// (RFC 768), and TCP either.
    #[must_use]
    pub(super) fn complete_transport(self) -> [u8; 2] {
        match self.complete() {
            [0, 0] => [0xff, 0xff],
            complete => complete,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn example_of_rfc_1071_sums_up() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
        assert_eq!(sum.complete(), [0x22, 0x0d]);
    }

    #[test]
    fn fields_and_an_odd_byte_sum_up_as_bytes() {
        let sum = Sum::default().field(0x1234).field(0xfff0).bytes(&[0x56]);
        let bytes = Sum::default().bytes(&[0x12, 0x34, 0xff, 0xf0, 0x56]);
        assert_eq!(sum.partial(), bytes.partial());
        assert_eq!(sum.partial(), [0x68, 0x25]);
    }

    #[test]
    fn transport_checksum_is_never_the_zero_that_means_none() {
        let zero = Sum::default().field(0xffff);
        assert_eq!(zero.complete(), [0, 0]);
        assert_eq!(zero.complete_transport(), [0xff, 0xff]);
        assert_eq!(Sum::default().complete_transport(), [0xff, 0xff]);
        assert_eq!(
            Sum::default().field(0xfffe).complete_transport(),
            [0x00, 0x01]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn sum_is_that_of_the_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let words = bytes.chunks(2).map(|pair| [pair[0], *pair.get(1).unwrap_or(&0)]);
            let expected = words.map(u16::from_be_bytes).fold(0, |sum: u16, word| {
                let (sum, carry) = sum.overflowing_add(word);
                sum.wrapping_add(carry.into())
            });
            let sum = u16::from_be_bytes(Sum::default().bytes(&bytes).partial());
            prop_assert_eq!(sum, expected);
        }
    }
}
