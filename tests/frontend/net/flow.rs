// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames whose every byte follows from their sequence number.

use super::fault::NetFault;
use crate::error::Result;
use crate::load::fill_pattern;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// `ethertype` for local experiments: nothing on a host answers to it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Where the sequence number starts: after the Ethernet header.
const SEQUENCE_AT: usize = 14;
/// Addresses, type and sequence number.
pub const SMALLEST_FRAME_BYTES: usize = SEQUENCE_AT + 8;

/// Frames from one address to another.
#[derive(Clone, Debug)]
pub struct Flow {
    source: Mac,
    destination: Mac,
    seed: u64,
    /// What a frame should be, for comparison.
    scratch: Vec<u8>,
}

impl Flow {
    /// A flow; the seed tells its frames from those of another.
    #[must_use]
    pub fn new(source: Mac, destination: Mac, seed: u64) -> Self {
        Self {
            source,
            destination,
            seed,
            scratch: Vec::new(),
        }
    }

    /// Makes the frame with this number: at least [`SMALLEST_FRAME_BYTES`] bytes.
    pub fn make(&self, sequence: u64, bytes: usize, frame: &mut Vec<u8>) {
        frame.clear();
        frame.extend_from_slice(&self.destination);
        frame.extend_from_slice(&self.source);
        frame.extend_from_slice(&ETHERTYPE);
        frame.extend_from_slice(&sequence.to_be_bytes());
        frame.resize(bytes.max(SMALLEST_FRAME_BYTES), 0);
        fill_pattern(self.seed, sequence, &mut frame[SMALLEST_FRAME_BYTES..]);
    }

    /// Checks that this is a frame of the flow, `bytes` long, and returns its number.
    ///
    /// # Errors
    ///
    /// When it belongs to another flow, or differs from what was sent.
    pub fn check(&mut self, frame: &[u8], bytes: usize) -> Result<u64> {
        let number = frame.get(SEQUENCE_AT..).and_then(<[u8]>::first_chunk);
        let ours = frame.get(..6) == Some(&self.destination[..])
            && frame.get(6..12) == Some(&self.source[..])
            && frame.get(12..SEQUENCE_AT) == Some(&ETHERTYPE[..]);
        let (Some(number), true) = (number, ours) else {
            let bytes = frame.len();
            return Err(NetFault::Stranger { bytes }.into());
        };
        let sequence = u64::from_be_bytes(*number);
        let mut expected = std::mem::take(&mut self.scratch);
        self.make(sequence, bytes, &mut expected);
        self.scratch = expected;
        if frame.len() != self.scratch.len() {
            return Err(NetFault::FrameLength {
                found: frame.len(),
                expected: self.scratch.len(),
            }
            .into());
        }
        let pairs = frame.iter().zip(&self.scratch).enumerate();
        match pairs.into_iter().find(|(_, (found, sent))| found != sent) {
            None => Ok(sequence),
            Some((offset, (found, expected))) => Err(NetFault::Content {
                sequence,
                offset,
                found: *found,
                expected: *expected,
            }
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrontendError;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn frame_of_the_flow_is_known_again_and_any_other_is_not() {
        let mut flow = Flow::new(A, B, 7);
        let mut frame = Vec::new();
        flow.make(41, 100, &mut frame);
        assert_eq!(flow.check(&frame, 100).unwrap(), 41);

        let found = flow.check(&frame, 99).unwrap_err();
        let expected = NetFault::FrameLength {
            found: 100,
            expected: 99,
        };
        assert!(matches!(found, FrontendError::Net(fault) if fault == expected));
        frame[60] ^= 1;
        let found = flow.check(&frame, 100).unwrap_err();
        assert!(
            matches!(
                found,
                FrontendError::Net(NetFault::Content { offset: 60, .. })
            ),
            "{found}"
        );
        let found = Flow::new(B, A, 7).check(&frame, 100).unwrap_err();
        let expected = NetFault::Stranger { bytes: 100 };
        assert!(matches!(found, FrontendError::Net(fault) if fault == expected));
    }
}
