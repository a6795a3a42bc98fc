// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where metrics are served: `9100`, `127.0.0.1:9100`, `[::1]:9100` or a path with a slash.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The value of `--metrics` was not understood.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("neither PORT, ADDRESS:PORT nor a path with a slash")]
pub struct MetricsAddressError;

/// An address on which metrics are served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MetricsAddress {
    /// A TCP port; of the loopback interface unless an address was written.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = MetricsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Self::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        text.parse().map(Self::Tcp).or(Err(MetricsAddressError))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_a_port_alone_is_loopback() {
        for (text, expected) in [
            ("9100", "127.0.0.1:9100"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:9100", "[::1]:9100"),
        ] {
            let expected = MetricsAddress::Tcp(expected.parse().unwrap());
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn address_with_a_slash_is_a_path() {
        for text in ["/run/m", "./9100", "a/b"] {
            assert_eq!(
                text.parse(),
                Ok(MetricsAddress::Unix(PathBuf::from(text))),
                "{text}"
            );
        }
    }

    #[test]
    fn address_of_neither_kind_is_refused() {
        for text in ["", ":9100", "65536", "localhost:9100", "metrics", "1.2.3.4"] {
            assert_eq!(
                text.parse::<MetricsAddress>(),
                Err(MetricsAddressError),
                "{text}"
            );
        }
    }
}
