// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::IntoRawFd;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use tempfile::TempDir;

use super::*;

/// A device for tests.
#[derive(Debug, Parser)]
#[command(name = "ringside-test", version)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
}

fn parse(args: &[&str]) -> Result<CommonArgs, clap::Error> {
    let args = std::iter::once("ringside-test").chain(args.iter().copied());
    Cli::try_parse_from(args).map(|cli| cli.common)
}

fn config(args: &[&str]) -> Result<(CommonConfig, Endpoint), CliError> {
    parse(args).unwrap().into_config_with(&[])
}

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
    assert_eq!(
        Cli::command().get_about().unwrap().to_string(),
        "A device for tests"
    );
}

#[test]
fn defaults_are_as_documented() {
    let (config, endpoint) = config(&["--socket-path", "/run/s"]).unwrap();
    let Endpoint::Listen { path, mode, group } = endpoint else {
        panic!("{endpoint:?}");
    };
    assert_eq!((path, mode, group), (PathBuf::from("/run/s"), 0o600, None));
    assert_eq!((config.num_queues, config.queue_size), (256, 32768));
    assert_eq!(
        config.threads,
        std::thread::available_parallelism().unwrap()
    );
    assert_eq!(config.poll, Duration::from_micros(50));
    assert_eq!(config.cpus, Vec::<usize>::new());
    assert_eq!((config.control_socket, config.metrics), (None, None));
}

#[test]
fn every_option_reaches_the_config() {
    let (config, endpoint) = config(&[
        "--socket-path=s",
        "--socket-mode=0660",
        "--socket-group=1234",
        "--num-queues=4",
        "--queue-size=2048",
        "--threads=3",
        "--cpus=0-1,4",
        "--poll-us=0",
        "--control-socket=c",
        "--metrics=9100",
        "--log-level=trace",
    ])
    .unwrap();
    let Endpoint::Listen { path, mode, group } = endpoint else {
        panic!("{endpoint:?}");
    };
    assert_eq!((path, mode, group), (PathBuf::from("s"), 0o660, Some(1234)));
    assert_eq!(
        (config.num_queues, config.queue_size, config.threads.get()),
        (4, 2048, 3)
    );
    assert_eq!((config.cpus, config.poll), (vec![0, 1, 4], Duration::ZERO));
    assert_eq!(config.control_socket, Some(PathBuf::from("c")));
    let expected = MetricsAddress::Tcp("127.0.0.1:9100".parse().unwrap());
    assert_eq!(config.metrics, Some(expected));
}

#[test]
fn endpoints_exclude_each_other() {
    for args in [
        ["--socket-path=a", "--connect=b"],
        ["--socket-path=a", "--fd=3"],
        ["--fd=3", "--connect=b"],
    ] {
        assert_eq!(
            parse(&args).unwrap_err().kind(),
            ErrorKind::ArgumentConflict,
            "{args:?}"
        );
    }
}

#[test]
fn no_endpoint_is_an_error_but_not_for_print_capabilities() {
    assert!(matches!(config(&[]).unwrap_err(), CliError::NoEndpoint));
    assert!(parse(&["--print-capabilities"]).unwrap().print_capabilities);
    assert!(parse(&["--print-man"]).unwrap().print_man);
}

#[test]
fn socket_path_given_twice_is_for_devices_of_many_front_ends() {
    let args = ["--socket-path=a", "--socket-path=b", "--socket-mode=660"];
    let error = config(&args).unwrap_err();
    assert!(
        matches!(error, CliError::TooManySocketPaths { count: 2 }),
        "{error}"
    );
    let many = |args: &[&str]| {
        let config = parse(args).unwrap().into_config_of_many_with(&[]);
        let (_, endpoints) = config.unwrap();
        endpoints
    };
    let paths: Vec<_> = many(&args)
        .into_iter()
        .map(|endpoint| match endpoint {
            Endpoint::Listen { path, mode, group } => (path, mode, group),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = ["a", "b"].map(|path| (PathBuf::from(path), 0o660, None));
    assert_eq!(paths, expected);
    assert!(many(&[]).is_empty());
    assert!(matches!(many(&["--connect=c"])[..], [Endpoint::Connect(_)]));
}

#[test]
fn socket_with_a_group_lets_the_group_in_unless_told_otherwise() {
    for (args, expected) in [
        (&["--socket-path=a"][..], 0o600),
        (&["--socket-path=a", "--socket-group=1234"], 0o770),
        (
            &[
                "--socket-path=a",
                "--socket-group=1234",
                "--socket-mode=640",
            ],
            0o640,
        ),
        (&["--socket-path=a", "--socket-mode=666"], 0o666),
    ] {
        let Endpoint::Listen { mode, .. } = config(args).unwrap().1 else {
            panic!("{args:?}");
        };
        assert_eq!(mode, expected, "{args:?}");
    }
}

#[test]
fn log_level_in_any_case_is_understood() {
    for (text, expected) in [("DEBUG", LogLevel::Debug), ("Off", LogLevel::Off)] {
        let args = parse(&["--socket-path=a", "--log-level", text]).unwrap();
        assert_eq!(args.log_level, expected, "{text}");
    }
}

#[test]
fn socket_options_without_socket_path_are_refused() {
    for option in ["--socket-mode=660", "--socket-group=0"] {
        let error = parse(&[option]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument, "{option}");
        for endpoint in ["--connect=a", "--fd=3"] {
            let error = parse(&[endpoint, option]).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ArgumentConflict,
                "{endpoint} {option}"
            );
        }
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for option in [
        "--num-queues=0",
        "--num-queues=257",
        "--queue-size=0",
        "--queue-size=1",
        "--queue-size=1000",
        "--queue-size=65536",
        "--queue-size=x",
        "--threads=0",
        "--threads=257",
        "--cpus=",
        "--cpus=2-1",
        "--poll-us=10001",
        "--poll-us=-1",
        "--socket-mode=888",
        "--socket-mode=1777",
        "--socket-mode=+600",
        "--socket-mode=",
        "--socket-group=no-such-group-here",
        "--socket-group=4294967295",
        "--fd=-1",
        "--metrics=",
        "--metrics=70000",
        "--log-level=loud",
    ] {
        let error = parse(&["--socket-path=a", option])
            .map(|_| option)
            .unwrap_err();
        let expected = [ErrorKind::ValueValidation, ErrorKind::InvalidValue];
        // An --fd beside --socket-path would conflict, were its value sound.
        assert!(expected.contains(&error.kind()), "{option}: {error}");
    }
}

#[test]
fn socket_group_by_name_is_looked_up() {
    assert_eq!(
        parse(&["--socket-path=a", "--socket-group=root"])
            .unwrap()
            .socket_group,
        Some(0)
    );
}

#[test]
fn fd_is_told_apart_by_what_it_is() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("s"))
        .unwrap()
        .into_raw_fd();
    let (_, listening) = config(&[&format!("--fd={listener}")]).unwrap();
    assert!(matches!(listening, Endpoint::ListenFd(_)), "{listening:?}");

    let (_ours, theirs) = UnixStream::pair().unwrap();
    let (_, connected) = config(&[&format!("--fd={}", theirs.into_raw_fd())]).unwrap();
    assert!(
        matches!(connected, Endpoint::ConnectedFd(_)),
        "{connected:?}"
    );

    let error = config(&["--fd=987654"]).unwrap_err();
    let is_expected = matches!(
        error,
        CliError::Socket(SocketError::Inherited { fd: 987_654, .. })
    );
    assert!(is_expected, "{error}");
}

#[test]
fn sizes_have_suffixes() {
    assert_eq!(size("512").unwrap(), 512);
    assert_eq!(size("3K").unwrap(), 3 << 10);
    assert_eq!(size("2G").unwrap(), 2 << 30);
    for bad in ["", "G", "0", "1.5G", "-1", "99999999999999T"] {
        assert!(size(bad).is_err(), "{bad}");
    }
}
