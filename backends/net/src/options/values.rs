// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parsers of single values.

use std::num::NonZeroU64;
use std::path::PathBuf;

use ringside_common::limit::{MAX_BYTES_PER_S, MAX_OPERATIONS_PER_S, Rate};
use thiserror::Error;

use crate::capture::{MAX_FILES, MIN_FILE_BYTES};

/// virtio 1.3 §5.1.4.1: the least MTU that a device may tell.
const MIN_MTU: u16 = 68;
/// An Ethernet header.
const MIN_FRAME_BYTES: usize = 14;
/// The largest segment of a guest, with a VLAN tag.
const MAX_FRAME_BYTES: usize = 65_550;
/// `IFNAMSIZ` without the final zero.
const MAX_INTERFACE_BYTES: usize = 15;
/// As long as anybody wants to read it in every line of the metrics.
const MAX_PORT_NAME_BYTES: usize = 32;

/// Why a value was not understood.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ValueError {
    /// Not six bytes.
    #[error("not a MAC address like 52:54:00:12:34:56")]
    Mac,
    /// Zero, or a group.
    #[error("not the MAC address of one device: it is zero, or has the group bit set")]
    MacOfNobody,
    /// Not a VLAN ID.
    #[error("not a VLAN ID, 1 to 4094")]
    Vlan,
    /// Not an MTU.
    #[error("not an MTU in bytes, {MIN_MTU} to 65535")]
    Mtu,
    /// Not the length of a frame.
    #[error("not the length of a frame, {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} bytes")]
    FrameBytes,
    /// Not a number.
    #[error("not a whole number, perhaps with K, M or G for powers of 1000")]
    Number,
    /// A rate that cannot be kept; to have no limit, none is given.
    #[error("not a rate from 1 to {max} a second; leave it out for no limit")]
    Rate {
        /// The highest.
        max: u64,
    },
    /// Something else than the burst behind a rate.
    #[error("not RATE or RATE,burst=N")]
    Limit,
    /// Not an interface name.
    #[error("not the name of an interface: 1 to 15 bytes without slash, colon and space")]
    Interface,
    /// Not a name for a port.
    #[error("not the name of a port: 1 to 32 letters, digits, '.', '-', '_', not only digits")]
    PortName,
    /// Not a descriptor.
    #[error("not the number of an open file descriptor")]
    Descriptor,
    /// No path.
    #[error("not a path")]
    Path,
    /// Not the length of a file.
    #[error("not a number of bytes from {MIN_FILE_BYTES}, perhaps with K, M or G, or off")]
    CaptureBytes,
    /// Not so many files.
    #[error("not a number of files, 1 to {MAX_FILES}")]
    CaptureFiles,
    /// Neither kind of network namespace.
    #[error("neither the name of a network namespace nor a path with a slash")]
    Netns,
}

/// A number of anything, with K, M and G for powers of 1000.
pub(crate) fn number(text: &str) -> Result<u64, ValueError> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1), 1_000),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 1_000_000),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 1_000_000_000),
        _ => (Some(text), 1),
    };
    digits
        // `parse` would take a sign.
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(factor))
        .ok_or(ValueError::Number)
}

/// A rate of bytes.
pub(crate) fn bytes_rate(per_s: u64) -> Result<NonZeroU64, ValueError> {
    rate(per_s, MAX_BYTES_PER_S)
}

/// A rate of packets.
pub(crate) fn packets_rate(per_s: u64) -> Result<NonZeroU64, ValueError> {
    rate(per_s, MAX_OPERATIONS_PER_S)
}

fn rate(per_s: u64, max: u64) -> Result<NonZeroU64, ValueError> {
    NonZeroU64::new(per_s)
        .filter(|per_s| per_s.get() <= max)
        .ok_or(ValueError::Rate { max })
}

/// The value of an option that limits bytes.
pub(super) fn bytes_limit(text: &str) -> Result<Rate, ValueError> {
    limit(text, bytes_rate)
}

/// The value of an option that limits packets.
pub(super) fn packets_limit(text: &str) -> Result<Rate, ValueError> {
    limit(text, packets_rate)
}

fn limit(text: &str, rate: fn(u64) -> Result<NonZeroU64, ValueError>) -> Result<Rate, ValueError> {
    let (per_s, burst) = match text.split_once(',') {
        None => (text, None),
        Some((per_s, more)) => {
            let burst = more.strip_prefix("burst=").ok_or(ValueError::Limit)?;
            (per_s, Some(number(burst)?))
        }
    };
    Ok(Rate {
        per_s: rate(number(per_s)?)?,
        burst,
    })
}

pub(super) fn mac(text: &str) -> Result<[u8; 6], ValueError> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or(ValueError::Mac)?;
    }
    if parts.next().is_some() {
        return Err(ValueError::Mac);
    }
    let [first, ..] = mac;
    if mac == [0; 6] || first & 1 != 0 {
        return Err(ValueError::MacOfNobody);
    }
    Ok(mac)
}

/// As [`mac`] reads it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

pub(super) fn mtu(text: &str) -> Result<u16, ValueError> {
    text.parse()
        .ok()
        .filter(|mtu| *mtu >= MIN_MTU)
        .ok_or(ValueError::Mtu)
}

/// A VLAN ID (IEEE 802.1Q §9.6): 0 is none, and 4095 is reserved.
pub(super) fn vlan(text: &str) -> Result<u16, ValueError> {
    text.parse()
        .ok()
        .filter(|vlan| (1..=4094).contains(vlan))
        .ok_or(ValueError::Vlan)
}

/// Stations.
pub(super) fn mac_limit(text: &str) -> Result<u32, ValueError> {
    u32::try_from(number(text)?).map_err(|_too_many| ValueError::Number)
}

/// What a file of a capture is bounded to.
pub(super) fn capture_bytes(text: &str) -> Result<Option<u64>, ValueError> {
    match text {
        "off" => Ok(None),
        text => match number(text) {
            Ok(bytes @ MIN_FILE_BYTES..) => Ok(Some(bytes)),
            _ => Err(ValueError::CaptureBytes),
        },
    }
}

pub(super) fn capture_files(text: &str) -> Result<u32, ValueError> {
    text.parse()
        .ok()
        .filter(|files| (1..=MAX_FILES).contains(files))
        .ok_or(ValueError::CaptureFiles)
}

pub(super) fn frame_bytes(text: &str) -> Result<usize, ValueError> {
    text.parse()
        .ok()
        .filter(|bytes| (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(bytes))
        .ok_or(ValueError::FrameBytes)
}

/// The rules of the kernel's `dev_valid_name`.
pub(super) fn interface(text: &str) -> Result<String, ValueError> {
    let bad = |byte: u8| matches!(byte, b'/' | b':') || byte.is_ascii_whitespace();
    let valid = (1..=MAX_INTERFACE_BYTES).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.bytes().any(bad);
    valid.then(|| text.to_owned()).ok_or(ValueError::Interface)
}

/// A number would be taken for the index of a port.
pub(super) fn port_name(text: &str) -> Result<String, ValueError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let valid = (1..=MAX_PORT_NAME_BYTES).contains(&text.len())
        && text.bytes().all(good)
        && !text.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| text.to_owned()).ok_or(ValueError::PortName)
}

pub(super) fn descriptor(text: &str) -> Result<i32, ValueError> {
    text.parse()
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or(ValueError::Descriptor)
}

pub(super) fn path(text: &str) -> Result<PathBuf, ValueError> {
    if text.is_empty() {
        return Err(ValueError::Path);
    }
    Ok(PathBuf::from(text))
}
