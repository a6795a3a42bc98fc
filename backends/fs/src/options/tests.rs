// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::num::NonZeroUsize;

use clap::error::ErrorKind;
use log::LevelFilter;
use ringside_common::cli::Endpoint;
use ringside_common::program::Program as _;
use ringside_common::sandbox::CapabilitySet;

use super::*;
use crate::config::FsConfig;

const NEEDED: [&str; 4] = ["--socket-path", "/run/fs.sock", "--shared-dir", "/srv"];

fn parse(args: &[&str]) -> Result<Options, clap::Error> {
    Options::read(std::iter::once("ringside-fs").chain(args.iter().copied()))
}

fn with_needed(args: &[&str]) -> Options {
    parse(&[&NEEDED[..], args].concat()).unwrap()
}

fn config(args: &[&str]) -> Result<Config, OptionsError> {
    with_needed(args).into_config()
}

fn fs(args: &[&str]) -> FsConfig {
    config(args).unwrap().fs
}

fn refused(args: &[&str]) -> ErrorKind {
    parse(args).unwrap_err().kind()
}

#[test]
fn discovery_file_and_capabilities_tell_the_same_features() {
    let shipped = include_str!("../../../../dist/50-ringside-fs.json");
    let shipped: serde_json::Value = serde_json::from_str(shipped).unwrap();
    let told: serde_json::Value = serde_json::from_str(Options::CAPABILITIES).unwrap();
    assert_eq!(shipped["type"], "fs");
    assert_eq!(shipped["binary"], "/usr/bin/ringside-fs");
    assert_eq!(shipped["features"], told["features"]);
    let features = serde_json::json!([
        "posix-acl-negotiation-mode",
        "security-label-negotiation-mode",
        "separate-options"
    ]);
    assert_eq!(
        told,
        serde_json::json!({"type": "fs", "features": features})
    );
    assert!(
        parse(&["--print-capabilities"])
            .unwrap()
            .common
            .print_capabilities
    );
}

#[test]
fn needed_options_alone_give_the_defaults_of_virtiofsd() {
    let config = config(&[]).unwrap();
    assert!(matches!(config.endpoint, Endpoint::Listen { .. }));
    let share = Share {
        name: None,
        path: "/srv".into(),
    };
    assert_eq!(config.shares, [share]);
    assert_eq!(config.tag, None);
    assert_eq!(config.common.num_queues, config.num_request_queues + 1);
    let fs = config.fs;
    assert_eq!(fs.cache, CachePolicy::Auto);
    let second = Duration::from_secs(1);
    assert_eq!((fs.timeouts.entry, fs.timeouts.attr), (second, second));
    assert_eq!(fs.timeouts.negative, Duration::ZERO);
    assert_eq!(fs.inode_file_handles, InodeHandles::Prefer);
    assert_eq!(fs.posix_acl, Negotiation::Never);
    assert_eq!(fs.security_label, Negotiation::Never);
    assert!(fs.announce_submounts && fs.readdirplus);
    assert_eq!(fs.dax_window_bytes, 0);
    let off = [
        fs.writeback,
        fs.allow_direct_io,
        fs.allow_mmap,
        fs.xattr,
        fs.killpriv_v2,
        fs.readonly,
        fs.preserve_noatime,
        fs.posix_locks,
        fs.flocks,
        fs.no_open,
        fs.export,
    ];
    assert_eq!(off, [false; 11]);
    assert_eq!(config.confinement.sandbox, Mode::Auto);
    assert_eq!(config.confinement.seccomp, SeccompAction::Kill);
    assert_eq!(config.confinement.max_open_files, None);
}

#[test]
fn command_line_of_libvirt_is_taken() {
    let line = "--socket-path=/run/fs.sock --shared-dir /srv --cache always --sandbox namespace \
                --xattr --posix-acl=auto --thread-pool-size 16 --rlimit-nofile 4096 \
                --inode-file-handles=mandatory --announce-submounts --log-level debug --readonly \
                --translate-uid map:0:1000:1 --uid-map :0:100000:65536: --gid-map :0:100000:65536:";
    let words: Vec<&str> = line.split_whitespace().collect();
    let options = parse(&words).unwrap();
    assert!(matches!(
        options.into_config(),
        Err(OptionsError::TranslatedAcl)
    ));
    let words: Vec<&str> = words
        .into_iter()
        .filter(|word| *word != "--posix-acl=auto")
        .collect();
    let config = parse(&words).unwrap().into_config().unwrap();
    assert_eq!(config.fs.pool_threads.map(NonZeroUsize::get), Some(16));
    assert_eq!(config.confinement.max_open_files, Some(4096));
    assert_eq!(config.confinement.sandbox, Mode::Namespace);
    let map = IdRange {
        inside: 0,
        outside: 100_000,
        count: 65_536,
    };
    assert_eq!(config.confinement.uid_map, [map]);
    assert_eq!(config.confinement.gid_map, [map]);
    assert_eq!(config.fs.inode_file_handles, InodeHandles::Mandatory);
    assert!(config.fs.xattr && config.fs.readonly);
}

#[test]
fn command_line_of_older_libvirt_is_taken() {
    // qemuVirtioFSBuildCommandLine of libvirt 9.0.
    let list = "source=/srv/a,,b,cache=none,sandbox=chroot,xattr,flock,no_posix_lock";
    let args = ["--fd=9", "-o", list, "--thread-pool-size=16", "-d"];
    let options = parse(&args).unwrap();
    assert_eq!(options.common.fd, Some(9));
    assert_eq!(options.log_level(), LevelFilter::Debug);
    // There is no descriptor 9.
    let mut with_socket = args;
    with_socket[0] = "--socket-path=/run/fs.sock";
    let config = parse(&with_socket).unwrap().into_config().unwrap();
    let share = Share {
        name: None,
        path: "/srv/a,b".into(),
    };
    assert_eq!(config.shares, [share]);
    assert_eq!(config.fs.cache, CachePolicy::Never);
    assert_eq!(config.confinement.sandbox, Mode::Chroot);
    assert!(config.fs.xattr && config.fs.flocks && !config.fs.posix_locks);
    assert_eq!(config.fs.pool_threads.map(NonZeroUsize::get), Some(16));
}

#[test]
fn lists_of_options_set_what_the_options_do_and_count_more() {
    let list = "writeback,allow_direct_io,no_readdirplus,killpriv_v2,posix_acl,security_label,\
                posix_lock,announce_submounts,cache=always,loglevel=err,modcaps=+sys_admin,\
                xattrmap=:map::user.virtiofs.:";
    let before = ["--cache=never", "--no-announce-submounts", "-o", list];
    let options = with_needed(&before);
    assert_eq!(options.log_level(), LevelFilter::Error);
    let config = options.into_config().unwrap();
    let kept = config.confinement.capabilities;
    assert!(kept.contains(CapabilitySet::SYS_ADMIN));
    let fs = config.fs;
    let on = [
        fs.writeback,
        fs.allow_direct_io,
        fs.killpriv_v2,
        fs.posix_locks,
        fs.announce_submounts,
        fs.xattrmap.is_some(),
        !fs.readdirplus,
    ];
    assert_eq!(on, [true; 7]);
    assert_eq!(fs.cache, CachePolicy::Always);
    assert_eq!(
        (fs.posix_acl, fs.security_label),
        (Negotiation::Always, Negotiation::Always)
    );
    let taken_back = [
        "--xattr",
        "-o",
        "no_xattr,no_writeback",
        "-ono_security_label",
    ];
    assert!(!self::fs(&taken_back).xattr);
}

#[test]
fn lists_of_options_that_mean_nothing_are_refused() {
    for (list, expected) in [
        ("", ErrorKind::UnknownArgument),
        ("xattr,", ErrorKind::UnknownArgument),
        ("no_announce_submounts", ErrorKind::UnknownArgument),
        ("timeout=1", ErrorKind::UnknownArgument),
        ("cache=some", ErrorKind::InvalidValue),
        ("sandbox=jail", ErrorKind::InvalidValue),
        ("loglevel=loud", ErrorKind::InvalidValue),
        ("modcaps=chown", ErrorKind::InvalidValue),
        ("xattrmap=:", ErrorKind::InvalidValue),
        ("source=", ErrorKind::InvalidValue),
    ] {
        let args = [&NEEDED[..], &["-o", list]].concat();
        assert_eq!(refused(&args), expected, "{list}");
    }
    let nothing = ["--socket-path=/s", "-o", "xattr"];
    assert_eq!(refused(&nothing), ErrorKind::MissingRequiredArgument);
    let both = ["--socket-path=/s", "--share=a=/b", "-osource=/c"];
    assert_eq!(refused(&both), ErrorKind::ArgumentConflict);
}

#[test]
fn deprecated_name_of_the_socket_is_unknown() {
    let args = ["--socket=/s", "--shared-dir=/srv"];
    assert_eq!(refused(&args), ErrorKind::UnknownArgument);
}

#[test]
fn socket_path_given_twice_is_the_last_one() {
    let config = config(&["--socket-path=/run/other.sock"]).unwrap();
    let Endpoint::Listen { path, .. } = config.endpoint else {
        panic!("{:?}", config.endpoint);
    };
    assert_eq!(path.to_str(), Some("/run/other.sock"));
}

#[test]
fn numbers_of_virtiofsd_beyond_ours_are_taken() {
    let threads = |n: &str| {
        let config = config(&["--thread-pool-size", n]).unwrap();
        config.fs.pool_threads.map(NonZeroUsize::get)
    };
    assert_eq!(
        ["0", "1", "256", "1000000"].map(threads),
        [None, Some(1), Some(256), Some(256)]
    );
    // It is no number of data threads, as it is none in virtiofsd.
    let both = config(&["--threads=2", "--thread-pool-size=7"]).unwrap();
    assert_eq!(both.common.threads.get(), 2);
    config(&["--xattrmap=:ok:client:user.::"]).unwrap();
}

#[test]
fn negotiation_takes_its_word_behind_an_equals_sign_only() {
    for (args, expected) in [
        (&["--posix-acl"][..], Negotiation::Always),
        (&["--posix-acl=auto"], Negotiation::Auto),
        (&["--posix-acl=never"], Negotiation::Never),
        (&["--posix-acl=always"], Negotiation::Always),
        (
            &["--posix-acl=always", "--posix-acl=never"],
            Negotiation::Never,
        ),
    ] {
        let fs = fs(args);
        assert_eq!(fs.posix_acl, expected, "{args:?}");
        assert_eq!(fs.xattr, expected != Negotiation::Never, "{args:?}");
    }
    let label = fs(&["--security-label"]);
    assert_eq!(label.security_label, Negotiation::Always);
    assert!(label.xattr);
    let spaced = [&NEEDED[..], &["--posix-acl", "auto"]].concat();
    // Taken for a subcommand.
    assert_eq!(refused(&spaced), ErrorKind::ArgumentConflict);
    let unknown = [&NEEDED[..], &["--posix-acl=maybe"]].concat();
    assert_eq!(refused(&unknown), ErrorKind::ValueValidation);
}

#[test]
fn switches_with_an_opposite_follow_the_last_one() {
    let killpriv = |args: &[&str]| fs(args).killpriv_v2;
    assert!(killpriv(&["--killpriv-v2"]));
    assert!(killpriv(&["--no-killpriv-v2", "--killpriv-v2"]));
    assert!(!killpriv(&["--killpriv-v2", "--no-killpriv-v2"]));
    let submounts = |args: &[&str]| fs(args).announce_submounts;
    assert!(submounts(&["--announce-submounts"]));
    assert!(!submounts(&[
        "--announce-submounts",
        "--no-announce-submounts"
    ]));
    assert!(submounts(&[
        "--no-announce-submounts",
        "--announce-submounts"
    ]));
}

#[test]
fn cache_policy_sets_timeouts_that_are_not_given() {
    let day = Duration::from_secs(86_400);
    for (policy, timeout, readdirplus) in [
        ("auto", Duration::from_secs(1), true),
        ("always", day, true),
        ("METADATA", day, true),
        ("never", Duration::ZERO, false),
    ] {
        let fs = fs(&["--cache", policy]);
        assert_eq!(fs.timeouts.entry, timeout, "{policy}");
        assert_eq!(fs.timeouts.attr, timeout, "{policy}");
        assert_eq!(fs.readdirplus, readdirplus, "{policy}");
    }
    let fs = fs(&[
        "--entry-timeout",
        "0.25",
        "--negative-timeout=3",
        "--no-readdirplus",
    ]);
    assert_eq!(fs.timeouts.entry, Duration::from_millis(250));
    assert_eq!(fs.timeouts.attr, Duration::from_secs(1));
    assert_eq!(fs.timeouts.negative, Duration::from_secs(3));
    assert!(!fs.readdirplus);
}

#[test]
fn values_that_mean_nothing_are_refused() {
    let long_tag = "x".repeat(37);
    for args in [
        ["--cache", "none"],
        ["--attr-timeout=-1", "--xattr"],
        ["--attr-timeout", "NaN"],
        ["--attr-timeout", "1e300"],
        ["--tag", ""],
        ["--tag", &long_tag],
        ["--inode-file-handles", "always"],
        ["--translate-uid", "map:0"],
        ["--uid-map", "0:0:1"],
        ["--modcaps", "chown"],
        ["--xattrmap", ":nonsense:"],
        ["--num-request-queues", "0"],
        ["--num-request-queues", "64"],
    ] {
        let args = [&NEEDED[..], &args].concat();
        assert_eq!(refused(&args), ErrorKind::ValueValidation, "{args:?}");
    }
    for args in [["--sandbox", "jail"], ["--seccomp", "allow"]] {
        let args = [&NEEDED[..], &args].concat();
        assert_eq!(refused(&args), ErrorKind::InvalidValue, "{args:?}");
    }
}

#[test]
fn shares_with_names_take_the_place_of_the_one_directory() {
    let several = [
        "--socket-path=/run/fs.sock",
        "--share=src=/home/me/src",
        "--share=etc=/etc=x",
    ];
    let config = parse(&several).unwrap().into_config().unwrap();
    let share = |name: &str, path: &str| Share {
        name: Some(name.to_owned()),
        path: path.into(),
    };
    assert_eq!(
        config.shares,
        [share("src", "/home/me/src"), share("etc", "/etc=x")]
    );
    let both = [&NEEDED[..], &["--share=a=/b"]].concat();
    assert_eq!(refused(&both), ErrorKind::ArgumentConflict);
    let none = ["--socket-path=/run/fs.sock"];
    assert_eq!(refused(&none), ErrorKind::MissingRequiredArgument);
    let twice = [&several[..], &["--share=src=/srv"]].concat();
    let error = parse(&twice).unwrap().into_config().unwrap_err();
    assert!(matches!(error, OptionsError::ShareTwice { name } if name == "src"));
    for value in ["/srv", "a=", "=b", "a/b=/c", "..=/c", ".=/c"] {
        let args = ["--socket-path=/run/fs.sock", "--share", value];
        assert_eq!(refused(&args), ErrorKind::ValueValidation, "{value}");
    }
}

#[test]
fn capabilities_are_those_of_virtiofsd_and_immutable_as_changed() {
    let kept = |args: &[&str]| config(args).unwrap().confinement.capabilities;
    let plain = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::LINUX_IMMUTABLE;
    assert_eq!(kept(&["--inode-file-handles=never"]), plain);
    assert_eq!(kept(&[]), plain | CapabilitySet::DAC_READ_SEARCH);
    assert_eq!(
        kept(&["--modcaps=+sys_admin:-mknod"]),
        (plain | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_ADMIN) - CapabilitySet::MKNOD
    );
    assert_eq!(
        kept(&["--modcaps", "-chown", "--inode-file-handles=never"]),
        plain - CapabilitySet::CHOWN
    );
    let error = config(&["--modcaps=-dac_read_search"]).unwrap_err();
    assert!(matches!(error, OptionsError::HandlesWithoutCapability));
}

#[test]
fn log_level_of_the_short_switch_is_debug() {
    assert_eq!(with_needed(&[]).log_level(), LevelFilter::Info);
    assert_eq!(with_needed(&["-d", "-f"]).log_level(), LevelFilter::Debug);
    assert_eq!(
        with_needed(&["--log-level", "off"]).log_level(),
        LevelFilter::Off
    );
}

#[test]
fn options_that_contradict_are_refused() {
    let migration = ["--migration-mode=file-handles", "--migration-confirm-paths"];
    assert!(matches!(
        config(&migration),
        Err(OptionsError::MigrationChecks)
    ));
    config(&["--migration-mode=find-paths", "--migration-verify-handles"]).unwrap();
    let strict = ["--sandbox=strict", "--seccomp=log"];
    assert!(matches!(
        config(&strict),
        Err(OptionsError::StrictWithoutSeccomp)
    ));
    for also in [
        "--flock",
        "--posix-lock",
        "--inode-file-handles=mandatory",
        "--cache=auto",
    ] {
        let unasked = ["--cache=always", "--no-open", also];
        let refused = config(&unasked);
        assert!(matches!(refused, Err(OptionsError::NoOpen)), "{also}");
    }
}

#[test]
fn request_queues_and_the_one_for_high_priority_are_the_vrings() {
    let config = config(&["--num-request-queues", "63"]).unwrap();
    assert_eq!(config.num_request_queues, 63);
    assert_eq!(config.common.num_queues, 64);
}

#[test]
fn window_is_a_power_of_two_with_room_for_a_mapping() {
    assert_eq!(fs(&["--dax-window", "8G"]).dax_window_bytes, 8 << 30);
    assert_eq!(fs(&["--dax-window", "2M"]).dax_window_bytes, 2 << 20);
    assert_eq!(fs(&["--dax-window", "0"]).dax_window_bytes, 0);
    for bad in ["1M", "3M", "8X", "", "-2M"] {
        let option = format!("--dax-window={bad}");
        let refused = refused(&[&NEEDED[..], &[&option]].concat());
        assert_eq!(refused, ErrorKind::ValueValidation, "{bad}");
    }
}

#[test]
fn f7_4_request_queues_offered_are_as_many_as_there_can_be_on_any_machine() {
    let config = config(&[]).unwrap();
    assert_eq!(config.num_request_queues, 63);
    assert_eq!(config.common.num_queues, 64);
}
