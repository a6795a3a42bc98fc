// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Goes into the sandbox as its arguments say and there tries one act, whose outcome it prints:
//! `sandbox-probe MODE SECCOMP CAPABILITIES SOCKET ACT SHARE...`.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use ringside_common::daemon::Control;
use ringside_common::sandbox::seccomp::{Action, AllowList};
use ringside_common::sandbox::{
    CapabilitySet, IdRange, Inside, Mode, Sandbox, Side, forbid_core_dumps, harden,
    keep_capabilities,
};
use ringside_common::socket::BoundSocket;

mod acts;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            let _ = writeln!(io::stdout(), "refused: {error}: {cause:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<u8, Box<dyn Error>> {
    let [mode, seccomp, kept, socket, act, shares @ ..] = args else {
        return Err("MODE SECCOMP CAPABILITIES SOCKET ACT SHARE...".into());
    };
    let shares: Vec<PathBuf> = shares.iter().map(PathBuf::from).collect();
    if mode == "bare" {
        acts::hide_landlock()?;
    }
    let (mode, uid_map, gid_map) = mode_of(mode)?;
    let sandbox = Sandbox {
        mode,
        shares: &shares,
        uid_map: &uid_map,
        gid_map: &gid_map,
        ..Sandbox::default()
    };
    let _control = Control::new()?;
    acts::watch_termination()?;
    let _socket = BoundSocket::bind(socket.as_ref(), 0o600, None)?;
    forbid_core_dumps()?;
    let inside = match sandbox.enter()? {
        Side::Outside { status } => return Ok(status),
        Side::Inside(inside) => inside,
    };
    let kept = kept.split('+').filter_map(CapabilitySet::from_name);
    keep_capabilities(kept.fold(CapabilitySet::empty(), CapabilitySet::union))?;
    harden()?;
    allow_list()?.install(action_of(seccomp)?)?;
    attempt(act, &Arc::new(inside))
}

/// As a device that works on files.
fn allow_list() -> Result<AllowList, Box<dyn Error>> {
    let mut list = AllowList::common()?;
    list.allow(&[libc::SYS_openat, libc::SYS_getdents64, libc::SYS_capget]);
    Ok(list)
}

fn attempt(act: &str, inside: &Arc<Inside>) -> Result<u8, Box<dyn Error>> {
    let outcome = match act.split_once(':').unwrap_or((act, "")) {
        ("wait", _) => return Ok(acts::wait_for_termination()?),
        ("stay", _) => return Ok(acts::stay()?),
        ("panic", _) => fail(),
        ("read", path) => told(std::fs::read(path)),
        ("shares", _) => acts::list_shares(inside)?,
        ("level", _) => inside.level.to_string(),
        ("capabilities", _) => acts::capabilities()?,
        ("connect", address) => told(std::net::TcpStream::connect(address)),
        ("mount", _) => told(acts::mount()),
        ("ptrace", _) => told(acts::attach_to_parent()),
        ("exec", path) => told(std::process::Command::new(path).status()),
        ("device", name) => told(acts::open_device(inside, name)),
        ("namespace", _) => told(acts::new_user_namespace()),
        ("executable", _) => told(acts::map_executable()),
        ("thread", _) => acts::thread_and_ring()?,
        ("landlock", _) => told(acts::landlock()),
        ("limits", _) => acts::limits(),
        ("identity", _) => acts::identity(),
        (act, _) => return Err(format!("no act {act}").into()),
    };
    writeln!(io::stdout(), "{outcome}")?;
    Ok(0)
}

/// A mode, and maps of users and groups.
type Terms = (Mode, Vec<IdRange>, Vec<IdRange>);

fn mode_of(word: &str) -> Result<Terms, String> {
    let many = vec![IdRange {
        inside: 0,
        outside: 100_000,
        count: 65_536,
    }];
    let plain = |mode| Ok((mode, Vec::new(), Vec::new()));
    match word {
        "auto" | "bare" => plain(Mode::Auto),
        "strict" => plain(Mode::Strict),
        "none" => plain(Mode::None),
        "namespace" => plain(Mode::Namespace),
        "users" => Ok((Mode::Namespace, many, Vec::new())),
        "groups" => Ok((Mode::Namespace, Vec::new(), many)),
        "chroot" => plain(Mode::Chroot),
        _ => Err(format!("no mode {word}")),
    }
}

fn action_of(word: &str) -> Result<Action, String> {
    match word {
        "none" => Ok(Action::None),
        "kill" => Ok(Action::Kill),
        "log" => Ok(Action::Log),
        "trap" => Ok(Action::Trap),
        _ => Err(format!("no action {word}")),
    }
}

#[expect(clippy::panic, reason = "this is about what becomes of one")]
fn fail() -> ! {
    panic!("as asked for")
}

fn told<T, E: Into<io::Error>>(result: Result<T, E>) -> String {
    match result.map_err(Into::into) {
        Ok(_) => "done".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => rustix::io::Errno::from_raw_os_error(number).to_string(),
            None => error.to_string(),
        },
    }
}
