// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each layer of the sandbox against the act that it forbids, tried by a process inside; and what
//! a back-end must still be able to do there.

#![cfg(test)]

mod scene;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};

use ringside_common::sandbox::CapabilitySet;
use ringside_tests::skip;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use scene::{KILLED_BY_SECCOMP, NAMESPACE, NONE, STRICT, Scene, Terms, said};

const CHROOT: Terms = Terms {
    mode: "chroot",
    ..NAMESPACE
};
const AUTO: Terms = Terms {
    mode: "auto",
    ..NAMESPACE
};
/// For what comes at once if it comes.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// Root that may do nothing special.
const WITHOUT_CAPABILITIES: &[&str] = &["--bounding-set=-all", "--inh-caps=-all"];
/// Anybody.
const NOBODY: &[&str] = &["--reuid=65534", "--regid=65534", "--clear-groups"];

const NOT_FOUND: &str = "No such file or directory (os error 2)";
const NOT_PERMITTED: &str = "Operation not permitted (os error 1)";

/// Modes that only root has are tried as root.
macro_rules! root_or_skip {
    () => {
        if !geteuid().is_root() {
            skip!("not root");
        }
    };
}

#[test]
fn file_outside_of_the_shares_in_a_new_root_is_not_there() {
    root_or_skip!();
    let scene = Scene::new();
    let outside = format!("read:{}", scene.path("outside").display());
    for act in ["read:/etc/passwd", &outside] {
        assert_eq!(scene.outcome(NONE, act), "done", "{act}");
        assert_eq!(scene.outcome(NAMESPACE, act), NOT_FOUND, "{act}");
        assert_eq!(scene.outcome(CHROOT, act), NOT_FOUND, "{act}");
        assert_eq!(scene.outcome(STRICT, act), NOT_FOUND, "{act}");
    }
}

#[test]
fn shares_in_every_mode_are_opened_through_proc_self_fd() {
    root_or_skip!();
    let scene = Scene::new();
    for terms in [NONE, NAMESPACE, CHROOT, STRICT, AUTO] {
        assert_eq!(scene.outcome(terms, "shares"), "inside", "{terms:?}");
    }
    for terms in [NONE, NAMESPACE, STRICT, AUTO] {
        let mut command = scene.command(terms, "shares");
        let output = command.arg(scene.path("single")).output().unwrap();
        assert_eq!(said(&output), "inside;file", "{terms:?}");
    }
}

#[test]
fn share_that_is_the_root_directory_is_served() {
    root_or_skip!();
    let scene = Scene::new();
    let output = scene
        .command(NAMESPACE, "shares")
        .arg("/")
        .output()
        .unwrap();
    let said = said(&output);
    let (_, root) = said.split_once(';').unwrap();
    assert!(root.split(',').any(|name| name == "etc"), "{root}");
}

#[test]
fn share_that_is_not_there_fails_the_start() {
    root_or_skip!();
    let scene = Scene::new();
    for terms in [NONE, NAMESPACE, AUTO] {
        let mut command = scene.command(terms, "shares");
        let output = command.arg(scene.path("nothing")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{terms:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("nothing: cannot"), "{text}");
        assert!(!scene.socket().exists());
    }
}

#[test]
fn connection_over_the_network_from_namespaces_has_no_way() {
    root_or_skip!();
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let act = format!("connect:{}", listener.local_addr().unwrap());
    assert_eq!(scene.outcome(NONE, &act), "done");
    let unreachable = "Network is unreachable (os error 101)";
    assert_eq!(scene.outcome(NAMESPACE, &act), unreachable);
    assert_eq!(scene.end(STRICT, &act).code(), Some(KILLED_BY_SECCOMP));
}

#[test]
fn forbidden_calls_under_seccomp_end_the_process() {
    root_or_skip!();
    let scene = Scene::new();
    let acts = [
        "mount",
        "ptrace",
        "exec:/bin/true",
        "namespace",
        "executable",
        "connect:127.0.0.1:9",
    ];
    for act in acts {
        for seccomp in ["kill", "trap"] {
            let terms = Terms { seccomp, ..STRICT };
            let end = scene.end(terms, act);
            assert_eq!(end.code(), Some(KILLED_BY_SECCOMP), "{seccomp} {act}");
        }
    }
}

#[test]
fn forbidden_calls_without_seccomp_are_refused_for_lack_of_capabilities() {
    root_or_skip!();
    let scene = Scene::new();
    for (act, outcome) in [
        ("mount", NOT_PERMITTED),
        ("ptrace", "No such process (os error 3)"),
        ("exec:/bin/true", NOT_FOUND),
    ] {
        assert_eq!(scene.outcome(NAMESPACE, act), outcome, "{act}");
        let logged = Terms {
            seccomp: "log",
            ..NAMESPACE
        };
        assert_eq!(scene.outcome(logged, act), outcome, "{act}, logged");
    }
    assert_eq!(scene.outcome(NONE, "executable"), "done");
}

#[test]
fn device_node_in_a_share_is_not_opened_from_namespaces() {
    root_or_skip!();
    let scene = Scene::new();
    let node = scene.path("share/null");
    let made = Command::new("mknod")
        .arg(&node)
        .args(["c", "1", "3"])
        .status();
    assert!(made.unwrap().success());
    let denied = "Permission denied (os error 13)";
    assert_eq!(scene.outcome(NAMESPACE, "device:null"), denied);
    let own = Terms {
        kept: "DAC_OVERRIDE+MKNOD+SYS_ADMIN",
        ..NAMESPACE
    };
    assert_eq!(scene.outcome(own, "device:null"), denied);
}

#[test]
fn capabilities_are_the_set_asked_for_and_no_other() {
    root_or_skip!();
    let scene = Scene::new();
    let kept = CapabilitySet::CHOWN | CapabilitySet::FOWNER | CapabilitySet::SETUID;
    for mode in ["none", "namespace", "chroot", "strict"] {
        let terms = Terms {
            mode,
            seccomp: "none",
            kept: "CHOWN+FOWNER+SETUID",
        };
        let bits = kept.bits();
        let expected = format!("{bits:#x} {bits:#x} 0x0 {bits:#x}");
        assert_eq!(scene.outcome(terms, "capabilities"), expected, "{mode}");
        let none = Terms { kept: "", ..terms };
        assert_eq!(scene.outcome(none, "capabilities"), "0x0 0x0 0x0 0x0");
    }
}

#[test]
fn process_inside_leaves_no_core_is_not_dumpable_and_gets_no_privileges() {
    root_or_skip!();
    let scene = Scene::new();
    let expected = "Some(0) Ok(NotDumpable) Ok(true)";
    for terms in [NONE, NAMESPACE] {
        assert_eq!(scene.outcome(terms, "limits"), expected, "{terms:?}");
    }
}

#[test]
fn threads_and_rings_under_seccomp_are_made() {
    root_or_skip!();
    let scene = Scene::new();
    let unsealed = scene.outcome(NAMESPACE, "thread");
    if unsealed != "true ring" {
        skip!("no io_uring here: {unsealed}");
    }
    assert_eq!(scene.outcome(STRICT, "thread"), "true ring");
}

#[test]
fn panic_under_seccomp_is_told_and_ends_the_process_as_ever() {
    root_or_skip!();
    let scene = Scene::new();
    let output = scene.command(STRICT, "panic").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("as asked for"), "{text}");
    // What unwinding ends with, and what panic=abort does; the first process of a namespace has no
    // signal but for SIGKILL and faults, so that abort(3) ends it by a fault.
    let ends = [101, 128 + libc::SIGABRT, 128 + libc::SIGSEGV].map(Some);
    assert!(ends.contains(&output.status.code()), "{}", output.status);
    assert!(!scene.socket().exists());
}

/// A probe that has said that it is ready, and what it says.
fn started(scene: &Scene, terms: Terms, act: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = scene.command(terms, act);
    let mut probe = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(probe.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (probe, lines)
}

#[test]
fn parent_with_sigterm_passes_it_on_and_removes_the_socket() {
    root_or_skip!();
    for terms in [NAMESPACE, CHROOT, STRICT] {
        let scene = Scene::new();
        let (mut probe, _lines) = started(&scene, terms, "wait");
        assert!(scene.socket().exists());
        kill_process(Pid::from_child(&probe), Signal::TERM).unwrap();
        assert_eq!(probe.wait().unwrap().code(), Some(7), "{terms:?}");
        assert!(!scene.socket().exists(), "{terms:?}");
    }
}

#[test]
fn parent_that_is_killed_takes_the_serving_process_with_it() {
    root_or_skip!();
    // The latter does not end by SIGTERM.
    for act in ["wait", "stay"] {
        let scene = Scene::new();
        let (mut probe, lines) = started(&scene, STRICT, act);
        probe.kill().unwrap();
        probe.wait().unwrap();
        // The other end of the pipe is closed when the last of both has ended.
        let mut ended = [PollFd::new(lines.get_ref(), PollFlags::empty())];
        assert_eq!(poll(&mut ended, Some(&PATIENCE)), Ok(1), "{act}");
    }
}

#[test]
fn maps_of_users_or_groups_alone_leave_no_number_unmapped() {
    root_or_skip!();
    let scene = Scene::new();
    // Root by one number only, for who is root by both has a map with root of either kind.
    let as_group = &["--regid=1000", "--clear-groups"];
    let identity = |mode| {
        let terms = Terms { mode, ..NAMESPACE };
        let mut command = scene.command_with(as_group, terms, "identity");
        said(&command.output().unwrap())
    };
    assert_eq!(identity("users"), "[0, 0] [1000, 1000]");
    assert_eq!(identity("groups"), "[0, 0] [0, 0]");
}

#[test]
fn auto_with_privileges_is_namespaces() {
    root_or_skip!();
    let scene = Scene::new();
    assert_eq!(scene.outcome(AUTO, "level"), "namespaces");
    assert_eq!(scene.outcome(NONE, "level"), "none");
    assert_eq!(scene.outcome(CHROOT, "level"), "chroot");
}

#[test]
fn auto_without_privileges_is_a_user_namespace() {
    root_or_skip!();
    let scene = Scene::new();
    let as_nobody = |terms, act: &str| {
        let mut command = scene.command_with(NOBODY, terms, act);
        command.output().unwrap()
    };
    let level = as_nobody(NAMESPACE, "level");
    if !level.status.success() {
        skip!("{}", String::from_utf8_lossy(&level.stdout).trim());
    }
    assert_eq!(said(&level), "namespaces, of users too");
    assert_eq!(said(&as_nobody(AUTO, "read:/etc/passwd")), NOT_FOUND);
    assert_eq!(said(&as_nobody(STRICT, "shares")), "inside");
    let chroot = as_nobody(CHROOT, "level");
    assert_eq!(chroot.status.code(), Some(1));
}

#[test]
fn auto_where_nothing_is_to_be_had_is_refused() {
    root_or_skip!();
    let scene = Scene::new();
    let bare = Terms {
        mode: "bare",
        ..NAMESPACE
    };
    assert_eq!(scene.outcome(bare, "level"), "namespaces");
    let mut command = scene.command_with(WITHOUT_CAPABILITIES, bare, "level");
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stdout);
    assert!(
        text.contains("only --sandbox none serves without"),
        "{text}"
    );
    assert!(!scene.socket().exists());
}

#[test]
fn auto_where_namespaces_are_forbidden_is_landlock() {
    root_or_skip!();
    let scene = Scene::new();
    let without = |terms, act: &str| {
        let mut command = scene.command_with(WITHOUT_CAPABILITIES, terms, act);
        command.output().unwrap()
    };
    for terms in [NAMESPACE, CHROOT, STRICT] {
        let refused = without(terms, "level");
        assert_eq!(refused.status.code(), Some(1), "{terms:?}");
    }
    let level = without(AUTO, "level");
    if scene.outcome(NONE, "landlock") != "done" {
        skip!("this kernel has no Landlock");
    }
    assert_eq!(said(&level), "landlock");
    assert_eq!(said(&without(AUTO, "shares")), "inside");
    let denied = "Permission denied (os error 13)";
    assert_eq!(said(&without(AUTO, "read:/etc/passwd")), denied);
}
