// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--backend` and `--uplink`: where packets go.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::items::{Item, SpecError, items};
use super::values::{self, ValueError};

const BACKENDS: &str =
    "tap:, macvtap:, packet:, stream:, dgram:, switch[:NAME], loopback or null[:BYTES]";

/// What is behind the ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BackendSpec {
    /// One way out of the process, for one guest.
    Link(LinkSpec),
    /// A switch between all guests.
    Switch {
        /// What it is called in logs and `info`.
        name: Option<String>,
    },
    /// What a guest sends is lost.
    Null {
        /// The length of the frames that its receive queues are filled with; `None`: they are not.
        fill_bytes: Option<usize>,
    },
    /// What a guest sends comes back to it.
    Loopback,
}

/// A way out of the process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkSpec {
    /// A tap device by name, made if there is none.
    Tap {
        /// Its name.
        name: String,
        /// Where it is, if not here.
        netns: Option<Netns>,
        /// Whether others may have queues of it.
        shared: bool,
    },
    /// Open descriptors of one tap device, at least one, each its own queue.
    TapFds {
        /// Their numbers, each once.
        fds: Vec<i32>,
        /// Whether others may have queues of the device.
        shared: bool,
    },
    /// The character device of a macvtap interface.
    Macvtap {
        /// The name of the interface.
        name: String,
        /// Where it is, if not here.
        netns: Option<Netns>,
        /// Whether others may have queues of it.
        shared: bool,
    },
    /// A packet socket on an interface.
    Packet {
        /// The name of the interface.
        interface: String,
        /// Where it is, if not here.
        netns: Option<Netns>,
    },
    /// A stream socket: the peer listens.
    Stream {
        /// Its path.
        path: PathBuf,
    },
    /// A datagram socket.
    Dgram {
        /// The path of the peer.
        path: PathBuf,
        /// The path we bind to, so that the peer can answer.
        local: Option<PathBuf>,
    },
}

/// A network namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Netns {
    /// Of `ip netns`.
    Name(String),
    /// A file like `/proc/PID/ns/net`.
    Path(PathBuf),
}

/// As it was written, for the line that tells what is served.
impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind())?;
        let (netns, shared) = match self {
            Self::Tap {
                name,
                netns,
                shared,
            }
            | Self::Macvtap {
                name,
                netns,
                shared,
            } => {
                f.write_str(name)?;
                (netns, *shared)
            }
            Self::Packet { interface, netns } => {
                f.write_str(interface)?;
                (netns, false)
            }
            Self::TapFds { fds, shared } => {
                let fds: Vec<String> = fds.iter().map(ToString::to_string).collect();
                write!(f, "fd={}", fds.join(":"))?;
                (&None, *shared)
            }
            Self::Stream { path } => return path.display().fmt(f),
            Self::Dgram { path, local } => {
                path.display().fmt(f)?;
                return match local {
                    Some(local) => write!(f, ",local={}", local.display()),
                    None => Ok(()),
                };
            }
        };
        match netns {
            Some(Netns::Name(name)) => write!(f, ",netns={name}"),
            Some(Netns::Path(path)) => write!(f, ",netns={}", path.display()),
            None => Ok(()),
        }?;
        if shared {
            f.write_str(",shared")
        } else {
            Ok(())
        }
    }
}

impl FromStr for BackendSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        match (kind, rest) {
            ("switch", None) => Ok(Self::Switch { name: None }),
            ("switch", Some(name)) => {
                let name = Some(of_kind(kind, name, values::port_name)?);
                Ok(Self::Switch { name })
            }
            ("null", None) => Ok(Self::Null { fill_bytes: None }),
            ("null", Some(bytes)) => {
                let fill_bytes = Some(of_kind(kind, bytes, values::frame_bytes)?);
                Ok(Self::Null { fill_bytes })
            }
            ("loopback", None) => Ok(Self::Loopback),
            ("loopback", Some(_)) => Err(SpecError::UnexpectedValue {
                key: kind.to_owned(),
            }),
            _ => link(kind, rest).map(Self::Link),
        }
    }
}

/// The value of `--uplink`.
pub(super) fn uplink(text: &str) -> Result<LinkSpec, SpecError> {
    match text.parse()? {
        BackendSpec::Link(
            link @ (LinkSpec::Tap { .. }
            | LinkSpec::TapFds { .. }
            | LinkSpec::Packet { .. }
            | LinkSpec::Stream { .. }
            | LinkSpec::Dgram { .. }),
        ) => Ok(link),
        _ => Err(SpecError::NoUplink),
    }
}

fn link(kind: &str, rest: Option<&str>) -> Result<LinkSpec, SpecError> {
    if !matches!(kind, "tap" | "macvtap" | "packet" | "stream" | "dgram") {
        return Err(SpecError::Unknown {
            key: kind.to_owned(),
            expected: BACKENDS,
        });
    }
    let rest = rest.ok_or_else(|| SpecError::NoValue {
        key: kind.to_owned(),
    })?;
    if let Some(fds) = rest.strip_prefix("fd=").filter(|_| kind == "tap") {
        let alone = fds.strip_suffix(",shared");
        let shared = alone.is_some();
        let fds = of_kind(kind, alone.unwrap_or(fds), descriptors)?;
        return Ok(LinkSpec::TapFds { fds, shared });
    }
    let items = items(rest);
    let (first, more) = items
        .split_first()
        .map_or((None, &[][..]), |(first, more)| (Some(first), more));
    // An equals sign does no harm in a name.
    let first = first.map_or_else(String::new, Item::text);
    match kind {
        "stream" => {
            only(more, "no more behind the path")?;
            let path = of_kind(kind, &first, values::path)?;
            Ok(LinkSpec::Stream { path })
        }
        "dgram" => {
            let path = of_kind(kind, &first, values::path)?;
            let mut local = None;
            for item in more {
                match item.key.as_str() {
                    "local" => item.parse_into(&mut local, values::path)?,
                    _ => return Err(item.unknown("local=PATH")),
                }
            }
            Ok(LinkSpec::Dgram { path, local })
        }
        _ => {
            let name = of_kind(kind, &first, values::interface)?;
            let mut shared = false;
            let may_share = kind != "packet";
            let netns = netns_of(more, may_share.then_some(&mut shared))?;
            Ok(match kind {
                "tap" => LinkSpec::Tap {
                    name,
                    netns,
                    shared,
                },
                "macvtap" => LinkSpec::Macvtap {
                    name,
                    netns,
                    shared,
                },
                _ => LinkSpec::Packet {
                    interface: name,
                    netns,
                },
            })
        }
    }
}

/// What stands directly behind a kind of back-end.
fn of_kind<T>(
    kind: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Result<T, SpecError> {
    parse(text).map_err(|error| SpecError::Value {
        key: kind.to_owned(),
        value: text.to_owned(),
        error,
    })
}

fn only(more: &[Item], expected: &'static str) -> Result<(), SpecError> {
    match more.first() {
        None => Ok(()),
        Some(item) => Err(item.unknown(expected)),
    }
}

/// What stands behind an interface: its namespace, and whether it is shared where that can be said.
fn netns_of(more: &[Item], mut shared: Option<&mut bool>) -> Result<Option<Netns>, SpecError> {
    let mut netns = None;
    for item in more {
        match (item.key.as_str(), &mut shared) {
            ("netns", _) => item.parse_into(&mut netns, parse_netns)?,
            ("shared", Some(shared)) => item.set(shared)?,
            (_, Some(_)) => return Err(item.unknown("netns=NAME, netns=PATH or shared")),
            (_, None) => return Err(item.unknown("netns=NAME or netns=PATH")),
        }
    }
    Ok(netns)
}

fn parse_netns(text: &str) -> Result<Netns, ValueError> {
    match text {
        "" | "." | ".." => Err(ValueError::Netns),
        path if path.contains('/') => Ok(Netns::Path(PathBuf::from(path))),
        name => Ok(Netns::Name(name.to_owned())),
    }
}

fn descriptors(text: &str) -> Result<Vec<i32>, ValueError> {
    text.split(':').map(values::descriptor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(text: &str) -> Result<BackendSpec, SpecError> {
        text.parse()
    }

    fn named(text: &str) -> Option<Netns> {
        Some(Netns::Name(text.to_owned()))
    }

    fn at(text: &str) -> Option<Netns> {
        Some(Netns::Path(PathBuf::from(text)))
    }

    #[test]
    fn backend_that_is_no_link_is_read() {
        let switch = |name: Option<&str>| {
            let name = name.map(str::to_owned);
            BackendSpec::Switch { name }
        };
        let null = |fill_bytes| BackendSpec::Null { fill_bytes };
        for (text, expected) in [
            ("switch", switch(None)),
            ("switch:lab", switch(Some("lab"))),
            ("null", null(None)),
            ("null:14", null(Some(14))),
            ("null:65550", null(Some(65_550))),
            ("loopback", BackendSpec::Loopback),
        ] {
            assert_eq!(backend(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn backend_on_an_interface_is_read() {
        for (rest, interface, netns) in [
            ("t0", "t0", None),
            ("vm%d,netns=lab", "vm%d", named("lab")),
            ("a=b,netns=/proc/7/ns/net", "a=b", at("/proc/7/ns/net")),
            ("fifteen-bytes-x,netns=./n", "fifteen-bytes-x", at("./n")),
        ] {
            let name = interface.to_owned();
            let (of_tap, of_macvtap) = (name.clone(), name.clone());
            let (n1, n2, n3) = (netns.clone(), netns.clone(), netns);
            for (kind, expected) in [
                (
                    "tap",
                    LinkSpec::Tap {
                        name: of_tap,
                        netns: n1,
                        shared: false,
                    },
                ),
                (
                    "macvtap",
                    LinkSpec::Macvtap {
                        name: of_macvtap,
                        netns: n2,
                        shared: false,
                    },
                ),
                (
                    "packet",
                    LinkSpec::Packet {
                        interface: name,
                        netns: n3,
                    },
                ),
            ] {
                assert_eq!(expected.kind(), kind);
                let text = format!("{kind}:{rest}");
                assert_eq!(backend(&text), Ok(BackendSpec::Link(expected)), "{text}");
            }
        }
    }

    #[test]
    fn backend_on_descriptors_or_sockets_is_read() {
        let fds = |fds: &[i32]| LinkSpec::TapFds {
            fds: fds.to_vec(),
            shared: false,
        };
        let stream = |path: &str| LinkSpec::Stream { path: path.into() };
        let dgram = |path: &str, local: Option<&str>| LinkSpec::Dgram {
            path: path.into(),
            local: local.map(PathBuf::from),
        };
        for (text, expected) in [
            ("tap:fd=0", fds(&[0])),
            ("tap:fd=5:7:6", fds(&[5, 7, 6])),
            ("stream:/run/passt", stream("/run/passt")),
            ("stream:a,,b=c:d", stream("a,b=c:d")),
            ("dgram:/a", dgram("/a", None)),
            ("dgram:/a,local=/b", dgram("/a", Some("/b"))),
        ] {
            assert_eq!(backend(text), Ok(BackendSpec::Link(expected)), "{text}");
        }
    }

    #[test]
    fn f5_10_tap_that_is_shared_is_said_to_be() {
        for text in [
            "tap:t0,shared",
            "tap:t0,netns=lab,shared",
            "macvtap:m0,netns=/n,shared",
            "tap:fd=3:4,shared",
        ] {
            let Ok(BackendSpec::Link(link)) = backend(text) else {
                panic!("{text}");
            };
            let is_shared = match link {
                LinkSpec::Tap { shared, .. }
                | LinkSpec::Macvtap { shared, .. }
                | LinkSpec::TapFds { shared, .. } => shared,
                _ => false,
            };
            assert!(is_shared, "{text}");
            assert_eq!(link.to_string(), text);
        }
        let error = backend("packet:e0,shared").unwrap_err();
        assert!(matches!(error, SpecError::Unknown { .. }), "{error}");
        let error = backend("tap:t0,shared,shared").unwrap_err();
        assert!(matches!(error, SpecError::Twice { .. }), "{error}");
    }

    #[test]
    fn backend_that_is_none_says_what_could_be() {
        for text in ["", "bridge", "tun:tun0", "TAP:tap0", "fd=5", ":"] {
            let error = backend(text).unwrap_err();
            let is_unknown = matches!(error, SpecError::Unknown { .. });
            assert!(is_unknown, "{text}: {error}");
            assert!(error.to_string().contains("expected tap:"), "{error}");
        }
        for text in ["tap", "macvtap", "packet", "stream", "dgram"] {
            let key = text.to_owned();
            assert_eq!(backend(text), Err(SpecError::NoValue { key }), "{text}");
        }
        let key = "loopback".to_owned();
        let loopback = backend("loopback:1");
        assert_eq!(loopback, Err(SpecError::UnexpectedValue { key }));
    }

    #[test]
    fn backend_with_a_bad_value_says_which() {
        use ValueError::{Descriptor, FrameBytes, Interface, Path, PortName};

        for (text, key, value, error) in [
            ("tap:", "tap", "", Interface),
            ("tap:sixteen-bytes-xx", "tap", "sixteen-bytes-xx", Interface),
            ("tap:a/b", "tap", "a/b", Interface),
            ("macvtap:a:b", "macvtap", "a:b", Interface),
            ("tap:a b", "tap", "a b", Interface),
            ("tap:..", "tap", "..", Interface),
            ("packet:,netns=x", "packet", "", Interface),
            ("packet:fd=5:6", "packet", "fd=5:6", Interface),
            ("tap:fd=", "tap", "", Descriptor),
            ("tap:fd=1:", "tap", "1:", Descriptor),
            ("tap:fd=-1", "tap", "-1", Descriptor),
            ("tap:fd=1,netns=a", "tap", "1,netns=a", Descriptor),
            ("tap:t,netns=", "netns", "", ValueError::Netns),
            ("tap:t,netns=..", "netns", "..", ValueError::Netns),
            ("stream:", "stream", "", Path),
            ("dgram:,local=a", "dgram", "", Path),
            ("dgram:a,local=", "local", "", Path),
            ("null:13", "null", "13", FrameBytes),
            ("null:65551", "null", "65551", FrameBytes),
            ("null:x", "null", "x", FrameBytes),
            ("switch:", "switch", "", PortName),
            ("switch:a b", "switch", "a b", PortName),
        ] {
            let expected = SpecError::Value {
                key: key.to_owned(),
                value: value.to_owned(),
                error,
            };
            assert_eq!(backend(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn backend_with_more_than_it_takes_is_refused() {
        for (text, key) in [
            ("tap:t,mtu=5", "mtu"),
            ("stream:a,b", "b"),
            ("dgram:a,remote=b", "remote"),
            ("macvtap:m,", ""),
        ] {
            let error = backend(text).unwrap_err();
            let is_expected = matches!(&error, SpecError::Unknown { key: got, .. } if got == key);
            assert!(is_expected, "{text}: {error}");
        }
        for (text, key) in [
            ("tap:t,netns=a,netns=b", "netns"),
            ("dgram:a,local=b,local=b", "local"),
        ] {
            let key = key.to_owned();
            assert_eq!(backend(text), Err(SpecError::Twice { key }), "{text}");
        }
    }

    #[test]
    fn uplink_is_a_link_that_carries_all_addresses() {
        for text in ["tap:t", "tap:fd=9", "packet:eth0", "stream:/s", "dgram:/d"] {
            let link = uplink(text).unwrap();
            assert_eq!(backend(text), Ok(BackendSpec::Link(link)), "{text}");
        }
        for text in ["macvtap:m", "switch", "null", "loopback"] {
            assert_eq!(uplink(text), Err(SpecError::NoUplink), "{text}");
        }
    }
}
