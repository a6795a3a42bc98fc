// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every message, with every number of descriptors and bytes of every length.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Zeroes, which are sound in most bodies.
fn parse(
    request: FrontendReq,
    size_bytes: usize,
    fds: usize,
) -> Result<Message<'static, usize>, FrontEndError> {
    static ZEROES: [u8; 64] = [0; 64];
    Message::parse(request, &ZEROES[..size_bytes], (0..fds).collect())
}

#[test]
fn message_has_one_length_and_one_number_of_descriptors() {
    for (request, size_bytes, fds) in [
        (FrontendReq::GET_FEATURES, 0, 0),
        (FrontendReq::SET_FEATURES, 8, 0),
        (FrontendReq::SET_OWNER, 0, 0),
        (FrontendReq::RESET_OWNER, 0, 0),
        (FrontendReq::SET_VRING_NUM, 8, 0),
        (FrontendReq::SET_VRING_ADDR, 40, 0),
        (FrontendReq::SET_VRING_BASE, 8, 0),
        (FrontendReq::GET_VRING_BASE, 8, 0),
        (FrontendReq::SET_VRING_KICK, 8, 1),
        (FrontendReq::SET_VRING_CALL, 8, 1),
        (FrontendReq::SET_VRING_ERR, 8, 1),
        (FrontendReq::GET_PROTOCOL_FEATURES, 0, 0),
        (FrontendReq::SET_PROTOCOL_FEATURES, 8, 0),
        (FrontendReq::GET_QUEUE_NUM, 0, 0),
        (FrontendReq::SET_VRING_ENABLE, 8, 0),
        (FrontendReq::SEND_RARP, 8, 0),
        (FrontendReq::NET_SET_MTU, 8, 0),
        (FrontendReq::SET_BACKEND_REQ_FD, 0, 1),
        (FrontendReq::RESET_DEVICE, 0, 0),
        (FrontendReq::GET_MAX_MEM_SLOTS, 0, 0),
        (FrontendReq::ADD_MEM_REG, 40, 1),
        (FrontendReq::SET_STATUS, 8, 0),
        (FrontendReq::GET_STATUS, 0, 0),
        (FrontendReq::SET_DEVICE_STATE_FD, 8, 1),
    ] {
        for size in 0..64 {
            for count in 0..4 {
                let fits = (size, count) == (size_bytes, fds);
                let parsed = parse(request, size, count);
                assert_eq!(
                    parsed.is_ok(),
                    fits,
                    "{request:?} {size} {count} {parsed:?}"
                );
            }
        }
    }
}

#[test]
fn region_is_removed_with_or_without_its_descriptor() {
    for (fds, fits) in [(0, true), (1, true), (2, false)] {
        assert_eq!(parse(FrontendReq::REM_MEM_REG, 40, fds).is_ok(), fits);
    }
}

#[test]
fn each_region_of_a_table_has_a_descriptor() {
    for regions in 0_u64..40 {
        for fds in 0..40 {
            let mut body = regions.to_le_bytes().to_vec();
            body.resize(8 + 32 * usize::try_from(regions).unwrap(), 0);
            let parsed = Message::parse(FrontendReq::SET_MEM_TABLE, &body, (0..fds).collect());
            let fits = (1..=32).contains(&regions) && fds == regions;
            assert_eq!(parsed.is_ok(), fits, "{regions} {fds}");
        }
    }
}

#[test]
fn vring_without_a_descriptor_says_so() {
    for (value, fds, expected) in [
        (3_u64, 1, Some((3, Some(0)))),
        (0x103, 0, Some((3, None))),
        (3, 0, None),
        (0x103, 1, None),
        (0x203, 1, None),
    ] {
        let body = value.to_le_bytes();
        let parsed = Message::parse(FrontendReq::SET_VRING_CALL, &body, (0..fds).collect());
        let found = match parsed {
            Ok(Message::SetVringFd { which, index, fd }) => {
                assert_eq!(which, VringFd::Call);
                Some((index, fd))
            }
            _ => None,
        };
        assert_eq!(found, expected, "{value:#x} {fds}");
    }
}

#[test]
fn message_of_a_feature_that_is_never_offered_is_refused_by_its_name() {
    let error = parse(FrontendReq::GPU_SET_SOCKET, 0, 1).unwrap_err();
    assert_eq!(error.to_string(), "GPU_SET_SOCKET is not supported");
}

#[test]
fn reply_has_the_flags_and_the_length_of_one() {
    let header = Header::parse([1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(header.needs_reply());
    assert_eq!(
        header.reply(&[7; 3]),
        [1, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 7, 7, 7]
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_message_or_an_error(
        number in 1_u32..45,
        body in vec(any::<u8>(), 0..300),
        fds in 0_usize..40,
    ) {
        let request = FrontendReq::try_from(number).unwrap();
        // All descriptors are in the message, or were let go.
        let kept = std::rc::Rc::new(());
        let given = vec![std::rc::Rc::clone(&kept); fds];
        let parsed = Message::parse(request, &body, given);
        let held = std::rc::Rc::strong_count(&kept) - 1;
        match parsed {
            Ok(Message::SetMemTable(regions)) => prop_assert_eq!(held, regions.len()),
            Ok(_) => prop_assert!(held <= 1),
            Err(_) => prop_assert_eq!(held, 0),
        }
    }

    #[test]
    fn arbitrary_header_is_sound_or_an_error(bytes in any::<[u8; HEADER_BYTES]>()) {
        if let Ok(header) = Header::parse(bytes) {
            prop_assert!(header.size_bytes <= MAX_BODY_BYTES);
            prop_assert_eq!(bytes[4] & !8, 1);
        }
    }
}
