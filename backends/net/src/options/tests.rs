// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use ringside_common::cli::Endpoint;
use ringside_common::limit::Limits;
use ringside_common::program::Program as _;
use tempfile::TempDir;

use super::*;
use crate::capture::Rotation;

fn parse(args: &[&str]) -> Result<Options, clap::Error> {
    Options::try_parse_from(std::iter::once("ringside-net").chain(args.iter().copied()))
}

fn config(args: &[&str]) -> Result<NetConfig, OptionsError> {
    parse(args).unwrap().into_config()
}

fn rate(per_s: u64, burst: Option<u64>) -> Option<Rate> {
    let per_s = per_s.try_into().unwrap();
    Some(Rate { per_s, burst })
}

#[test]
fn discovery_file_and_capabilities_are_for_a_network_device() {
    let shipped = include_str!("../../../../dist/60-ringside-net.json");
    let shipped: serde_json::Value = serde_json::from_str(shipped).unwrap();
    assert_eq!(shipped["type"], "net");
    assert_eq!(shipped["binary"], "/usr/bin/ringside-net");
    let told: serde_json::Value = serde_json::from_str(Options::CAPABILITIES).unwrap();
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
    assert_eq!(config.endpoints.len(), config.ports.len());
    for (port, endpoint) in config.ports.iter().zip(&config.endpoints) {
        assert_eq!(port.properties, PortProperties::default());
        let Endpoint::Listen { mode, group, .. } = endpoint else {
            panic!("{endpoint:?}");
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
        "--capture=c,max-bytes=1M,files=3",
        "--control-socket=ctl",
    ])
    .unwrap();
    let name = Some("lab".to_owned());
    assert_eq!(config.backend, BackendSpec::Switch { name });
    let uplink = LinkSpec::Tap {
        name: "up0".to_owned(),
        netns: None,
        shared: false,
    };
    assert_eq!(config.uplink, Some(uplink));
    assert_eq!(config.speed_mbps, Some(40_000));
    assert!(!config.offloads);
    assert_eq!(config.mac_table_size, 100);
    assert_eq!(config.mac_ageing, Duration::from_secs(5));
    let capture = CaptureSpec {
        path: "c".into(),
        rotation: Rotation {
            max_bytes: Some(1_000_000),
            files: 3,
        },
    };
    assert_eq!(config.capture, Some(capture));
    assert_eq!(config.common.queue_size, 256);
    assert_eq!(config.common.control_socket, Some(PathBuf::from("ctl")));
    let properties = PortProperties {
        mac: Some([0x52, 0x54, 0, 0, 0, 1]),
        mtu: Some(9000),
        rx: Limits {
            bytes: rate(5_000_000, None),
            operations: rate(10_000, None),
        },
        tx: Limits {
            bytes: rate(7, None),
            operations: rate(8, Some(9)),
        },
        ..PortProperties::default()
    };
    assert_eq!(config.ports[0].properties, properties);
    let Endpoint::Listen { path, mode, .. } = &config.endpoints[0] else {
        panic!("{:?}", config.endpoints);
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
    let [a, b, inherited, c] = &config.endpoints[..] else {
        panic!("{:?}", config.endpoints);
    };
    assert!(matches!(a, Endpoint::Listen { path, .. } if path.as_os_str() == "a"));
    assert!(matches!(b, Endpoint::Connect(path) if path.as_os_str() == "b"));
    assert!(matches!(inherited, Endpoint::ListenFd(_)));
    assert!(matches!(c, Endpoint::Listen { path, .. } if path.as_os_str() == "c,d"));
    let [a, _, _, c] = &config.ports[..] else {
        panic!("{:?}", config.ports);
    };
    assert!(c.properties.isolated && !a.properties.isolated);
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

/// Asserts that each command line is refused with these words.
fn assert_refused(cases: &[(&[&str], &str)]) {
    for (args, expected) in cases {
        let error = config(args).unwrap_err().to_string();
        assert_eq!(error, *expected, "{args:?}");
    }
}

#[test]
fn link_is_for_one_guest_and_other_backends_for_several() {
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
        let is_expected = matches!(error, OptionsError::OneGuest { ports: 2, .. });
        assert!(is_expected, "{link}: {error}");
        assert_eq!(config(&[two[0], &backend]).unwrap().ports.len(), 1);
    }
    for backend in ["--backend=null", "--backend=loopback", "--backend=switch"] {
        assert_eq!(config(&[two[0], two[1], backend]).unwrap().ports.len(), 2);
    }
}

#[test]
fn options_that_do_not_go_together_say_what_to_do() {
    let needs_switch = "needs a switch, which is what --backend is by default";
    assert_refused(&[
        (
            &["--backend=tap:t", "--uplink=tap:u", "--socket-path=a"],
            "--uplink belongs to a switch: leave out --backend, or --uplink",
        ),
        (
            &["--backend=tap:t", "--port=socket=a,vlan=1"],
            &format!("port port0: vlan {needs_switch}"),
        ),
        (
            &["--backend=null", "--port=socket=a,name=x,isolated"],
            &format!("port x: isolated {needs_switch}"),
        ),
        (
            &[
                "--socket-path=a",
                "--socket-path=b",
                "--mac=52:54:00:00:00:01",
            ],
            "--mac is for one guest, and 2 are given: write --port ...,mac=ADDR for each",
        ),
        (
            &["--port=socket=a,anti-spoof"],
            "port port0: anti-spoof needs to know the address of the guest: add mac=ADDR",
        ),
        (
            &[],
            "one of --socket-path, --port, --fd and --connect is needed, or sockets passed by \
             the service manager",
        ),
    ]);
    let anti_spoof = ["--port=socket=a,anti-spoof", "--mac=52:54:00:00:00:01"];
    assert!(config(&anti_spoof).unwrap().ports[0].properties.anti_spoof);
}

#[test]
fn what_must_differ_between_ports_does() {
    let (mac_a, mac_b) = (
        "--port=socket=a,mac=52:54:00:00:00:0a",
        "--port=socket=b,mac=52:54:00:00:00:0A",
    );
    let same_mac = "two ports have the address 52:54:00:00:00:0a: a switch cannot tell them apart";
    let rename = "give one of them another name=";
    let same_socket = "a: two ports cannot share a socket";
    let same_descriptor = "descriptor 900 is given twice";
    assert_refused(&[
        (
            &["--port=socket=a,name=x", "--port=socket=b,name=x"],
            &format!("two ports are called x: {rename}"),
        ),
        (
            &["--port=socket=a,name=port1", "--port=socket=b"],
            &format!("two ports are called port1: {rename}"),
        ),
        (
            &["--port=socket=a,name=uplink"],
            &format!("two ports are called uplink: {rename}"),
        ),
        (&[mac_a, mac_b], same_mac),
        (&["--socket-path=a", "--port=socket=a"], same_socket),
        (&["--port=connect=a", "--port=connect=a"], same_socket),
        (&["--port=fd=900", "--port=fd=900"], same_descriptor),
        (&["--fd=900", "--backend=tap:fd=900"], same_descriptor),
        (
            &["--socket-path=a", "--backend=tap:fd=900:900"],
            same_descriptor,
        ),
        (&["--port=fd=900", "--uplink=tap:fd=900"], same_descriptor),
    ]);
    assert_eq!(
        config(&[mac_a, mac_b, "--backend=null"])
            .unwrap()
            .ports
            .len(),
        2
    );
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

#[test]
fn values_out_of_range_are_refused() {
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
