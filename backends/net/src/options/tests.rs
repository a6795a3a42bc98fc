// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use clap::CommandFactory as _;
use clap::error::ErrorKind;
use ringside_common::cli::Endpoint;
use tempfile::TempDir;

use super::*;
use crate::limit::Limits;

fn parse(args: &[&str]) -> Result<Options, clap::Error> {
    Options::try_parse_from(std::iter::once("ringside-net").chain(args.iter().copied()))
}

fn config(args: &[&str]) -> Result<NetConfig, OptionsError> {
    parse(args).unwrap().into_config()
}

fn refusal(args: &[&str]) -> String {
    config(args).unwrap_err().to_string()
}

fn backend(text: &str) -> Result<BackendSpec, SpecError> {
    text.parse()
}

fn port(text: &str) -> Result<PortSpec, SpecError> {
    text.parse()
}

fn rate(per_s: u64, burst: Option<u64>) -> Option<Rate> {
    let per_s = per_s.try_into().unwrap();
    Some(Rate { per_s, burst })
}

fn value_error(key: &str, value: &str, error: ValueError) -> SpecError {
    SpecError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        error,
    }
}

#[test]
fn command_line_is_consistent() {
    Options::command().debug_assert();
}

#[test]
fn man_page_that_is_shipped_is_the_one_of_this_command_line() {
    let shipped = include_str!("../../../../dist/ringside-net.1");
    let made = ringside_common::cli::man_page(Options::command()).unwrap();
    assert_eq!(
        shipped,
        String::from_utf8(made).unwrap(),
        "see dist/README.md"
    );
}

#[test]
fn discovery_file_and_capabilities_are_for_a_network_device() {
    let shipped = include_str!("../../../../dist/60-ringside-net.json");
    let shipped: serde_json::Value = serde_json::from_str(shipped).unwrap();
    assert_eq!(shipped["type"], "net");
    assert_eq!(shipped["binary"], "/usr/bin/ringside-net");
    let told: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
    assert_eq!(told, serde_json::json!({"type": "net"}));
    assert!(
        parse(&["--print-capabilities"])
            .unwrap()
            .common
            .print_capabilities
    );
}

#[test]
fn queues_are_counted_in_pairs_and_num_queues_is_unknown() {
    let error = parse(&["--socket-path=a", "--num-queues=2"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownArgument);
    for (args, pairs, vrings) in [
        (&["--socket-path=a"][..], 8, 17),
        (&["--socket-path=a", "--queue-pairs=1"], 1, 3),
        (&["--socket-path=a", "--queue-pairs=127"], 127, 255),
        (&["--socket-path=a", "--backend=tap:fd=7:8"], 2, 5),
        (
            &["--socket-path=a", "--backend=tap:fd=7:8", "--queue-pairs=1"],
            1,
            3,
        ),
    ] {
        let config = config(args).unwrap();
        let got = (config.queue_pairs, config.common.num_queues);
        assert_eq!(got, (pairs, vrings), "{args:?}");
    }
}

#[test]
fn defaults_are_a_switch_between_the_sockets_given() {
    let config = config(&["--socket-path=a", "--socket-path=b"]).unwrap();
    assert_eq!(config.backend, BackendSpec::Switch { name: None });
    assert_eq!((&config.uplink, &config.capture), (&None, &None));
    assert!(config.offloads);
    assert_eq!(config.speed_mbps, None);
    assert_eq!(config.mac_table_size, 8192);
    assert_eq!(config.mac_ageing, Duration::from_secs(300));
    let names: Vec<_> = config.ports.iter().map(|port| &port.name).collect();
    assert_eq!(names, ["port0", "port1"]);
    for port in &config.ports {
        assert_eq!(port.properties, PortProperties::default());
        let Endpoint::Listen { mode, group, .. } = &port.endpoint else {
            panic!("{port:?}");
        };
        assert_eq!((*mode, *group), (0o600, None));
    }
}

#[test]
fn every_option_reaches_the_config() {
    let config = config(&[
        "--port=socket=a,mac=52:54:00:00:00:01,mtu=9000,limit-rx-bytes=5M",
        "--socket-mode=660",
        "--queue-size=256",
        "--backend=switch:lab",
        "--uplink=tap:up0",
        "--mtu=1500",
        "--speed-mbps=40000",
        "--no-offloads",
        "--limit-rx-bytes=1G,burst=2M",
        "--limit-rx-packets=10K",
        "--limit-tx-bytes=7",
        "--limit-tx-packets=8,burst=9",
        "--mac-table-size=100",
        "--mac-ageing-s=5",
        "--capture=c",
        "--control-socket=ctl",
    ])
    .unwrap();
    let name = Some("lab".to_owned());
    assert_eq!(config.backend, BackendSpec::Switch { name });
    let uplink = LinkSpec::Tap {
        name: "up0".to_owned(),
        netns: None,
    };
    assert_eq!(config.uplink, Some(uplink));
    assert_eq!(config.speed_mbps, Some(40_000));
    assert!(!config.offloads);
    assert_eq!(config.mac_table_size, 100);
    assert_eq!(config.mac_ageing, Duration::from_secs(5));
    assert_eq!(config.capture, Some(PathBuf::from("c")));
    assert_eq!(config.common.queue_size, 256);
    assert_eq!(config.common.control_socket, Some(PathBuf::from("ctl")));
    let properties = PortProperties {
        mac: Some([0x52, 0x54, 0, 0, 0, 1]),
        mtu: Some(9000),
        rx: Limits {
            bytes: rate(5_000_000, None),
            packets: rate(10_000, None),
        },
        tx: Limits {
            bytes: rate(7, None),
            packets: rate(8, Some(9)),
        },
        ..PortProperties::default()
    };
    assert_eq!(config.ports[0].properties, properties);
    let Endpoint::Listen { path, mode, .. } = &config.ports[0].endpoint else {
        panic!("{:?}", config.ports);
    };
    assert_eq!((path, *mode), (&PathBuf::from("a"), 0o660));
}

#[test]
fn mac_and_mtu_of_the_only_guest_may_be_options_of_their_own() {
    let config = config(&["--socket-path=a", "--mac=02:00:00:00:00:aB", "--mtu=68"]).unwrap();
    let properties = &config.ports[0].properties;
    assert_eq!(properties.mac, Some([2, 0, 0, 0, 0, 0xab]));
    assert_eq!(properties.mtu, Some(68));
}

#[test]
fn ports_of_all_kinds_come_in_order() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let fd = format!("--port=fd={},name=inherited", listener.into_raw_fd());
    let config = config(&[
        "--port=connect=b",
        "--socket-path=a",
        &fd,
        "--port=socket=c,,d,isolated",
    ])
    .unwrap();
    let names: Vec<_> = config.ports.iter().map(|port| &port.name).collect();
    assert_eq!(names, ["port0", "port1", "inherited", "port3"]);
    let [a, b, inherited, c] = &config.ports[..] else {
        panic!("{:?}", config.ports);
    };
    assert!(matches!(&a.endpoint, Endpoint::Listen { path, .. } if path.as_os_str() == "a"));
    assert!(matches!(&b.endpoint, Endpoint::Connect(path) if path.as_os_str() == "b"));
    assert!(matches!(&inherited.endpoint, Endpoint::ListenFd(_)));
    assert!(matches!(&c.endpoint, Endpoint::Listen { path, .. } if path.as_os_str() == "c,d"));
    assert!(c.properties.isolated && !a.properties.isolated);
}

#[test]
fn backend_is_read_in_all_its_forms() {
    let name = |name: &str| name.to_owned();
    let named = |text: &str| Some(Netns::Name(text.to_owned()));
    let at = |text: &str| Some(Netns::Path(PathBuf::from(text)));
    let link = BackendSpec::Link;
    for (text, expected) in [
        ("switch", BackendSpec::Switch { name: None }),
        (
            "switch:lab",
            BackendSpec::Switch {
                name: Some(name("lab")),
            },
        ),
        ("null", BackendSpec::Null { fill_bytes: None }),
        (
            "null:64",
            BackendSpec::Null {
                fill_bytes: Some(64),
            },
        ),
        ("loopback", BackendSpec::Loopback),
        (
            "tap:tap0",
            link(LinkSpec::Tap {
                name: name("tap0"),
                netns: None,
            }),
        ),
        (
            "tap:vm%d,netns=lab",
            link(LinkSpec::Tap {
                name: name("vm%d"),
                netns: named("lab"),
            }),
        ),
        (
            "tap:t,netns=/proc/7/ns/net",
            link(LinkSpec::Tap {
                name: name("t"),
                netns: at("/proc/7/ns/net"),
            }),
        ),
        ("tap:fd=5", link(LinkSpec::TapFds { fds: vec![5] })),
        (
            "tap:fd=5:7:6",
            link(LinkSpec::TapFds { fds: vec![5, 7, 6] }),
        ),
        (
            "macvtap:m0",
            link(LinkSpec::Macvtap {
                name: name("m0"),
                netns: None,
            }),
        ),
        (
            "macvtap:m,netns=n",
            link(LinkSpec::Macvtap {
                name: name("m"),
                netns: named("n"),
            }),
        ),
        (
            "packet:eth0",
            link(LinkSpec::Packet {
                interface: name("eth0"),
                netns: None,
            }),
        ),
        (
            "packet:eth0,netns=./n",
            link(LinkSpec::Packet {
                interface: name("eth0"),
                netns: at("./n"),
            }),
        ),
        (
            "stream:/run/passt",
            link(LinkSpec::Stream {
                path: "/run/passt".into(),
            }),
        ),
        (
            "stream:a,,b=c:d",
            link(LinkSpec::Stream {
                path: "a,b=c:d".into(),
            }),
        ),
        (
            "dgram:/a",
            link(LinkSpec::Dgram {
                path: "/a".into(),
                local: None,
            }),
        ),
        (
            "dgram:/a,local=/b",
            link(LinkSpec::Dgram {
                path: "/a".into(),
                local: Some("/b".into()),
            }),
        ),
    ] {
        assert_eq!(backend(text), Ok(expected), "{text}");
    }
}

#[test]
fn backend_that_is_none_says_what_could_be() {
    for text in ["", "bridge", "tun:tun0", "TAP:tap0", "fd=5", ":"] {
        let error = backend(text).unwrap_err();
        assert!(
            matches!(error, SpecError::Unknown { .. }),
            "{text}: {error}"
        );
        assert!(error.to_string().contains("expected tap:"), "{error}");
    }
    for text in ["tap", "macvtap", "packet", "stream", "dgram"] {
        let key = text.to_owned();
        assert_eq!(backend(text), Err(SpecError::NoValue { key }), "{text}");
    }
    let interface = ValueError::Interface;
    for (text, key, value, error) in [
        ("tap:", "tap", "", interface),
        ("tap:sixteen-bytes-xx", "tap", "sixteen-bytes-xx", interface),
        ("tap:a/b", "tap", "a/b", interface),
        ("tap:a:b", "tap", "a:b", interface),
        ("tap:a b", "tap", "a b", interface),
        ("tap:..", "tap", "..", interface),
        ("packet:,netns=x", "packet", "", interface),
        ("tap:fd=", "tap", "", ValueError::Descriptor),
        ("tap:fd=1:", "tap", "1:", ValueError::Descriptor),
        ("tap:fd=-1", "tap", "-1", ValueError::Descriptor),
        (
            "tap:fd=1,netns=a",
            "tap",
            "1,netns=a",
            ValueError::Descriptor,
        ),
        ("tap:t,netns=", "netns", "", ValueError::Netns),
        ("tap:t,netns=..", "netns", "..", ValueError::Netns),
        ("stream:", "stream", "", ValueError::Path),
        ("dgram:,local=a", "dgram", "", ValueError::Path),
        ("dgram:a,local=", "local", "", ValueError::Path),
        ("null:13", "null", "13", ValueError::FrameBytes),
        ("null:65551", "null", "65551", ValueError::FrameBytes),
        ("null:x", "null", "x", ValueError::FrameBytes),
        ("switch:", "switch", "", ValueError::PortName),
        ("switch:a b", "switch", "a b", ValueError::PortName),
    ] {
        let got = backend(text).map_err(|error| match error {
            SpecError::Value { key, value, error } => (key, value, error),
            other => panic!("{text}: {other}"),
        });
        assert_eq!(
            got,
            Err((key.to_owned(), value.to_owned(), error)),
            "{text}"
        );
    }
    for (text, key) in [
        ("tap:t,mtu=5", "mtu"),
        ("stream:a,b", "b"),
        ("dgram:a,remote=b", "remote"),
        ("macvtap:m,", ""),
    ] {
        let error = backend(text).unwrap_err();
        assert!(
            matches!(&error, SpecError::Unknown { key: got, .. } if got == key),
            "{error}"
        );
    }
    let key = "netns".to_owned();
    let twice = backend("tap:t,netns=a,netns=b");
    assert_eq!(twice, Err(SpecError::Twice { key }));
    let key = "loopback".to_owned();
    assert_eq!(
        backend("loopback:1"),
        Err(SpecError::UnexpectedValue { key })
    );
}

#[test]
fn uplink_is_a_link_that_carries_all_addresses() {
    for text in ["tap:t", "tap:fd=9", "packet:eth0", "stream:/s"] {
        let expected = backend(text).map(|spec| match spec {
            BackendSpec::Link(link) => link,
            other => panic!("{other:?}"),
        });
        assert_eq!(backend::uplink(text), expected, "{text}");
    }
    for text in ["macvtap:m", "dgram:/d", "switch", "null", "loopback"] {
        assert_eq!(backend::uplink(text), Err(SpecError::NoUplink), "{text}");
    }
}

#[test]
fn port_is_read_with_all_its_properties() {
    let text = "socket=/run/vm0,name=vm0,mac=52:54:00:12:34:56,mtu=1500,vlan=4094,isolated,\
                anti-spoof,limit-rx-bytes=1M,burst=64K,limit-rx-packets=1K,\
                limit-tx-bytes=2G,limit-tx-packets=3,burst=0";
    let expected = PortSpec {
        endpoint: PortEndpoint::Socket("/run/vm0".into()),
        name: Some("vm0".to_owned()),
        properties: PortProperties {
            mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            mtu: Some(1500),
            vlan: Some(4094),
            isolated: true,
            anti_spoof: true,
            rx: Limits {
                bytes: rate(1_000_000, Some(64_000)),
                packets: rate(1_000, None),
            },
            tx: Limits {
                bytes: rate(2_000_000_000, None),
                packets: rate(3, Some(0)),
            },
        },
    };
    assert_eq!(port(text), Ok(expected));
    let endpoint = |text| port(text).unwrap().endpoint;
    assert_eq!(endpoint("connect=c"), PortEndpoint::Connect("c".into()));
    assert_eq!(endpoint("fd=0"), PortEndpoint::Fd(0));
}

#[test]
fn port_with_a_fault_says_where() {
    assert_eq!(port("vlan=1"), Err(SpecError::NoEndpoint));
    for text in ["socket=a,connect=b", "socket=a,fd=1", "fd=1,connect=a"] {
        assert_eq!(port(text), Err(SpecError::TwoEndpoints), "{text}");
    }
    let burst = port("socket=a,burst=5");
    assert_eq!(burst, Err(SpecError::BurstWithoutLimit));
    for (text, key) in [
        ("socket=a,socket=b", "socket"),
        ("socket=a,vlan=1,vlan=1", "vlan"),
        ("socket=a,isolated,isolated", "isolated"),
        (
            "socket=a,limit-tx-bytes=1,limit-tx-bytes=1",
            "limit-tx-bytes",
        ),
        ("socket=a,limit-tx-bytes=1,burst=1,burst=1", "burst"),
    ] {
        let key = key.to_owned();
        assert_eq!(port(text), Err(SpecError::Twice { key }), "{text}");
    }
    for (text, key) in [
        ("", ""),
        ("/run/s", "/run/s"),
        ("socket=a,", ""),
        ("path=a", "path"),
    ] {
        let error = port(text).unwrap_err();
        assert!(
            matches!(&error, SpecError::Unknown { key: got, .. } if got == key),
            "{error}"
        );
    }
    for (text, key) in [("socket", "socket"), ("socket=a,vlan", "vlan")] {
        let key = key.to_owned();
        assert_eq!(port(text), Err(SpecError::NoValue { key }), "{text}");
    }
    let key = "isolated".to_owned();
    let flag = port("socket=a,isolated=on");
    assert_eq!(flag, Err(SpecError::UnexpectedValue { key }));
}

#[test]
fn values_out_of_range_are_refused() {
    let bytes_rate = ValueError::Rate {
        max: 50_000_000_000,
    };
    let packets_rate = ValueError::Rate { max: 100_000_000 };
    for (key, value, error) in [
        ("socket", "", ValueError::Path),
        ("fd", "-1", ValueError::Descriptor),
        ("fd", "x", ValueError::Descriptor),
        ("name", "", ValueError::PortName),
        ("name", "12", ValueError::PortName),
        ("name", "a b", ValueError::PortName),
        (
            "name",
            "a-name-that-is-longer-than-32-bytes",
            ValueError::PortName,
        ),
        ("mac", "52:54:00:00:00", ValueError::Mac),
        ("mac", "52:54:00:00:00:01:02", ValueError::Mac),
        ("mac", "52-54-00-00-00-01", ValueError::Mac),
        ("mac", "52:54:00:00:00:+1", ValueError::Mac),
        ("mac", "52:54:00:00:00:1", ValueError::Mac),
        ("mac", "00:00:00:00:00:00", ValueError::MacOfNobody),
        ("mac", "01:00:5e:00:00:01", ValueError::MacOfNobody),
        ("mac", "ff:ff:ff:ff:ff:ff", ValueError::MacOfNobody),
        ("mtu", "67", ValueError::Mtu),
        ("mtu", "65536", ValueError::Mtu),
        ("vlan", "0", ValueError::Vlan),
        ("vlan", "4095", ValueError::Vlan),
        ("limit-rx-bytes", "0", bytes_rate),
        ("limit-rx-bytes", "51G", bytes_rate),
        ("limit-rx-bytes", "", ValueError::Number),
        ("limit-rx-bytes", "G", ValueError::Number),
        ("limit-rx-bytes", "+5", ValueError::Number),
        ("limit-rx-bytes", "1.5M", ValueError::Number),
        ("limit-rx-bytes", "99999999999G", ValueError::Number),
        ("limit-tx-packets", "0", packets_rate),
        ("limit-tx-packets", "101M", packets_rate),
    ] {
        let text = format!("{key}={value},connect=c");
        assert_eq!(port(&text), Err(value_error(key, value, error)), "{text}");
    }
    for option in [
        "--queue-pairs=0",
        "--queue-pairs=128",
        "--mac=x",
        "--mtu=67",
        "--speed-mbps=0",
        "--speed-mbps=2147483648",
        "--limit-rx-bytes=0",
        "--limit-rx-bytes=1M,5",
        "--limit-rx-bytes=1M,burst=",
        "--limit-tx-packets=1,burst=1,burst=2",
        "--mac-table-size=15",
        "--mac-ageing-s=0",
        "--backend=bridge:br0",
        "--uplink=switch",
        "--port=mac=52:54:00:00:00:01",
    ] {
        let error = parse(&["--socket-path=a", option]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ValueValidation,
            "{option}: {error}"
        );
    }
}

#[test]
fn highest_and_lowest_rates_are_taken() {
    for (text, expected) in [
        ("1", rate(1, None)),
        ("50G", rate(50_000_000_000, None)),
        ("2k,burst=3m", rate(2_000, Some(3_000_000))),
    ] {
        assert_eq!(values::bytes_limit(text).ok(), expected, "{text}");
    }
    assert_eq!(values::packets_limit("100M").ok(), rate(100_000_000, None));
}

#[test]
fn options_that_do_not_go_together_say_what_to_do() {
    let two = ["--socket-path=a", "--socket-path=b"];
    for link in [
        "tap:t",
        "tap:fd=9",
        "macvtap:m",
        "packet:p",
        "stream:s",
        "dgram:d",
    ] {
        let backend = format!("--backend={link}");
        let error = config(&[two[0], two[1], &backend]).unwrap_err();
        assert!(
            matches!(error, OptionsError::OneGuest { ports: 2, .. }),
            "{error}"
        );
        config(&[two[0], &backend]).unwrap();
    }
    for backend in ["--backend=null", "--backend=loopback", "--backend=switch"] {
        assert_eq!(config(&[two[0], two[1], backend]).unwrap().ports.len(), 2);
    }
    for (args, expected) in [
        (
            &["--backend=tap:t", "--uplink=tap:u", two[0]][..],
            "--uplink belongs to a switch: leave out --backend, or --uplink",
        ),
        (
            &["--backend=tap:t", "--port=socket=a,vlan=1"],
            "port port0: vlan needs a switch, which is what --backend is by default",
        ),
        (
            &["--backend=null", "--port=socket=a,name=x,isolated"],
            "port x: isolated needs a switch, which is what --backend is by default",
        ),
        (
            &[two[0], two[1], "--mac=52:54:00:00:00:01"],
            "--mac is for one guest, and 2 are given: write --port ...,mac=ADDR for each",
        ),
        (
            &["--port=socket=a,anti-spoof"],
            "port port0: anti-spoof needs to know the address of the guest: add mac=ADDR",
        ),
        (
            &["--port=socket=a,name=x", "--port=socket=b,name=x"],
            "two ports are called x: give one of them another name=",
        ),
        (
            &["--port=socket=a,name=port1", "--port=socket=b"],
            "two ports are called port1: give one of them another name=",
        ),
        (
            &["--port=socket=a,name=uplink"],
            "two ports are called uplink: give one of them another name=",
        ),
        (
            &[
                "--port=socket=a,mac=52:54:00:00:00:0a",
                "--port=socket=b,mac=52:54:00:00:00:0A",
            ],
            "two ports have the address 52:54:00:00:00:0a: a switch cannot tell them apart",
        ),
        (
            &[two[0], "--port=socket=a"],
            "a: two ports cannot share a socket",
        ),
        (
            &["--port=connect=a", "--port=connect=a"],
            "a: two ports cannot share a socket",
        ),
        (
            &["--port=fd=900", "--port=fd=900"],
            "descriptor 900 is given twice",
        ),
        (
            &["--fd=900", "--backend=tap:fd=900"],
            "descriptor 900 is given twice",
        ),
        (
            &[two[0], "--backend=tap:fd=9:9"],
            "descriptor 9 is given twice",
        ),
        (
            &["--port=fd=9", "--uplink=tap:fd=9"],
            "descriptor 9 is given twice",
        ),
        (
            &[],
            "one of --socket-path, --port, --fd and --connect is needed, or sockets passed by \
             the service manager",
        ),
    ] {
        assert_eq!(refusal(args), expected, "{args:?}");
    }
    let anti_spoof = ["--port=socket=a,anti-spoof", "--mac=52:54:00:00:00:01"];
    assert!(config(&anti_spoof).unwrap().ports[0].properties.anti_spoof);
}

#[test]
fn descriptor_that_is_no_socket_is_refused() {
    let error = config(&["--port=fd=987654"]).unwrap_err();
    assert!(matches!(error, OptionsError::Common(_)), "{error}");
}

#[test]
fn mode_and_group_of_sockets_go_with_ports_that_listen() {
    parse(&["--port=socket=a", "--socket-mode=660"]).unwrap();
    let error = parse(&["--socket-mode=660"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn mac_is_written_as_it_is_read() {
    let text = "52:54:00:0a:bc:ff";
    assert_eq!(mac_text(values::mac(text).unwrap()), text);
}
