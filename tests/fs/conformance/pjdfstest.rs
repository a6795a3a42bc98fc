// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! pjdfstest: what system calls do and what they fail with, 398 cases.

use std::collections::BTreeMap;
use std::path::Path;

use ringside_tests::covering;

use super::support::{
    TestResult, alone, command, mount_with_queues, needs_or_skip, queue_counts, scratch, text,
};

/// Two users that every Debian has, and what Linux has of what file systems may lack.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

const CASES: usize = 398;

/// Skipped on any FUSE mount: the C library knows the limit by the kind of file system.
const UNKNOWN_LIMIT: &str = "link::link_count_max";

const CACHES: [&str; 4] = ["never", "metadata", "auto", "always"];
const HANDLES: [&str; 2] = ["never", "prefer"];

/// How each case ended: "ok", "skipped" or something else.
fn outcomes(dir: &Path) -> TestResult<BTreeMap<String, String>> {
    let own = scratch()?;
    let configuration = own.path().join("pjdfstest.toml");
    std::fs::write(&configuration, CONFIGURATION)?;
    // On another file system, as its name in the suite says.
    let second = Path::new("/dev/shm");
    let output = command("pjdfstest")?
        .arg("-c")
        .arg(configuration)
        .arg("-s")
        .arg(second)
        .arg("-p")
        .arg(dir)
        .output()?;
    let text = text(&output);
    let cases: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| name.contains("::"))
        .map(|(name, outcome)| (name.to_owned(), outcome.trim().to_owned()))
        .collect();
    if cases.len() == CASES {
        Ok(cases)
    } else {
        Err(format!("{} cases in:\n{text}", cases.len()).into())
    }
}

#[test]
fn pjdfstest_over_the_bridge_passes_what_the_host_passes() -> TestResult {
    needs_or_skip!("pjdfstest");
    let _alone = alone();
    let host = scratch()?;
    let mut expected = outcomes(host.path())?;
    expected.insert(UNKNOWN_LIMIT.into(), "skipped".into());
    let counts = queue_counts();
    let mut wrong = Vec::new();
    for [cache, handles, queues] in covering::cases([CACHES.len(), HANDLES.len(), counts.len()]) {
        let (cache, handles, queues) = (CACHES[cache], HANDLES[handles], counts[queues]);
        let share = scratch()?;
        let handles = format!("--inode-file-handles={handles}");
        let args = ["--cache", cache, &handles];
        let mount = mount_with_queues(share.path(), &args, queues, 300)?;
        for (name, outcome) in outcomes(mount.path())? {
            let host = expected.get(&name);
            if host != Some(&outcome) {
                wrong.push(format!(
                    "cache {cache}, {handles}, {queues} queues: {name}: {outcome}, \
                     on the host {host:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(expected.values().all(|how| how == "ok" || how == "skipped"));
    Ok(())
}
