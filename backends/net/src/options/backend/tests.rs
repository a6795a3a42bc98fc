// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

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
