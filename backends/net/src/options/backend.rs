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
mod tests;
