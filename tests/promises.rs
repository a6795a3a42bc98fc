// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What docs/promises.md says is proved by a test is so by one that exists; and what holds for
//! every place in the sources.

#[path = "promises/shipped.rs"]
mod shipped;

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Adds the path below the root, and the text, of all sources in `dir`, which is below it.
fn read_sources(root: &Path, dir: &Path, sources: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let path = dir.join(entry?.file_name());
        if root.join(&path).is_dir() {
            read_sources(root, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(root.join(&path))?;
            sources.push((path.to_string_lossy().into_owned(), text));
        }
    }
    Ok(())
}

fn sources(dirs: &[&str]) -> Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    for dir in dirs {
        read_sources(&root, Path::new(dir), &mut sources)?;
    }
    Ok(sources)
}

/// The names of the tests in a source.
fn tests_in(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let function = line.strip_prefix("fn ");
        if let Some((name, _)) = function.and_then(|rest| rest.split_once('('))
            && is_test
        {
            names.push(name);
        }
        // Other attributes may stand between.
        is_test = line == "#[test]" || (is_test && line.starts_with("#["));
    }
    names
}

fn all_tests(sources: &[(String, String)]) -> BTreeSet<&str> {
    let texts = sources.iter().map(|(_, text)| text);
    texts.flat_map(|text| tests_in(text)).collect()
}

#[test]
fn promises_name_tests_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = sources(&["tests", "common", "backends"])?;
    let names = all_tests(&sources);
    let table = fs::read_to_string(root.join("docs/promises.md"))?;
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let mut promises = 0;
    for row in rows.filter(|row| *row != "| promise | test |") {
        let cells: Vec<&str> = row.trim_matches('|').rsplitn(2, '|').collect();
        let tests: Vec<&str> = cells[0].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            assert!(names.contains(test), "{test} does not exist: {row}");
        }
        promises += 1;
    }
    assert!(promises > 40, "{promises}");
    Ok(())
}

/// The number of a hostile case in the name of a test; none for faults that users found, which have
/// two numbers (`f5_7_...`), and for everything else.
fn hostile_case(name: &str) -> Option<String> {
    let (case, rest) = name.split_once('_')?;
    let (letter, number) = case.split_at_checked(1)?;
    let is_case = matches!(letter, "a" | "b" | "c" | "d" | "e" | "f" | "g" | "i" | "j")
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit());
    let second = rest.split('_').next()?.trim_end_matches(char::is_lowercase);
    let is_fault = letter == "f" && !second.is_empty();
    (is_case && !is_fault).then(|| case.to_uppercase())
}

#[test]
fn hostile_cases_and_their_tests_are_listed() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = sources(&["tests", "common", "backends"])?;
    let names = all_tests(&sources);
    let list = fs::read_to_string(root.join("docs/hostile-cases.md"))?;
    let mut listed = BTreeSet::new();
    for line in list.lines() {
        let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
        let (Some(case), Some(test)) = (cells.next(), cells.last()) else {
            continue;
        };
        let test = test.trim_end_matches([' ', '|']).trim_matches('`');
        if names.contains(test) {
            assert!(test.to_uppercase().contains(case), "{case}: {test}");
            listed.insert(case.to_owned());
        }
    }
    let tested: BTreeSet<_> = names.iter().filter_map(|name| hostile_case(name)).collect();
    // Some tests are of several cases, and are named by the first.
    let missing: Vec<_> = tested.difference(&listed).collect();
    assert!(
        missing.is_empty(),
        "not in docs/hostile-cases.md: {missing:?}"
    );
    assert!(listed.len() > 100, "{}", listed.len());
    Ok(())
}

/// Lines of the log that are not limited: where, how many, and why nobody but the operator, or none
/// but once, causes them.
const UNLIMITED: &[(&str, usize, &str)] = &[
    ("backends/block/src/device.rs", 2, "ctl, SIGHUP"),
    ("backends/block/src/program.rs", 1, "start"),
    (
        "backends/block/src/shared.rs",
        2,
        "ctl; a lost sync, once until ctl clears it",
    ),
    ("backends/block/src/storage/create.rs", 2, "start"),
    ("backends/block/src/storage/lock.rs", 1, "start"),
    ("backends/block/src/storage/size.rs", 3, "start"),
    (
        "backends/fs/src/credentials.rs",
        1,
        "the process ends with it",
    ),
    ("backends/fs/src/locks/waiters.rs", 1, "end"),
    ("backends/fs/src/options/config.rs", 5, "start"),
    ("backends/fs/src/tables/budget.rs", 1, "said once"),
    ("backends/net/src/capture.rs", 3, "end"),
    (
        "backends/net/src/capture/writer.rs",
        1,
        "ctl: once for a capture",
    ),
    ("backends/net/src/network.rs", 2, "start; ctl"),
    ("common/src/daemon.rs", 2, "end"),
    ("common/src/logging.rs", 3, "start; what `limited!` calls"),
    ("common/src/management.rs", 4, "start; end"),
    ("common/src/management/protocol.rs", 1, "ctl"),
    ("common/src/program/confinement.rs", 2, "start"),
    ("common/src/program/exit.rs", 1, "the process ends with it"),
    ("common/src/program/mod.rs", 2, "start"),
    ("common/src/sandbox/limits.rs", 2, "start"),
    ("common/src/sandbox/mod.rs", 2, "start"),
    (
        "common/src/sandbox/parent.rs",
        5,
        "start; the process ends with it",
    ),
    ("common/src/socket.rs", 3, "start; end"),
    (
        "common/src/watchdog.rs",
        3,
        "one a second for each wait; the process ends with it",
    ),
];

/// What writes to the log, or past it, or gets another name to do so.
const WRITERS: &str = "error! warn! info! debug! trace! log! print! println! eprint! eprintln! \
                       dbg! stderr() log::logger() log::__";

/// How often a source that is no test writes to the log without `limited!`.
fn unlimited(text: &str) -> usize {
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    let lines = text.unwrap_or_default().lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let writes = |line: &str| -> usize {
        let found = WRITERS
            .split(' ')
            .flat_map(|writer| line.match_indices(writer));
        let whole = found.filter(|(at, _)| !line[..*at].ends_with(is_name));
        whole.count() + usize::from(line.contains("use log::") && line.contains(" as "))
    };
    code.map(writes).sum()
}

#[test]
fn f2_6_every_line_of_the_log_is_limited_or_has_a_reason_not_to_be() -> Result<()> {
    let sources = sources(&["common/src", "backends"])?;
    let is_test = |path: &str| {
        let ends = ["/tests.rs", "/testing.rs"];
        path.contains("/tests/") || ends.iter().any(|end| path.ends_with(end))
    };
    let found: BTreeSet<(&str, usize)> = sources
        .iter()
        .filter(|(path, _)| path.contains("/src/") && !is_test(path))
        .map(|(path, text)| (path.as_str(), unlimited(text)))
        .filter(|(_, lines)| *lines > 0)
        .collect();
    let expected = UNLIMITED.iter().map(|(path, lines, _)| (*path, *lines));
    let expected: BTreeSet<_> = expected.collect();
    let differ: Vec<_> = found.symmetric_difference(&expected).collect();
    assert!(
        differ.is_empty(),
        "use `limited!`, or, where only the operator causes a line, say so in UNLIMITED: {differ:?}"
    );
    let limited: usize = sources
        .iter()
        .map(|(_, text)| text.matches("limited!(").count())
        .sum();
    assert!(limited > 40, "{limited}");
    Ok(())
}

#[test]
fn lines_that_are_not_limited_are_found() {
    let plain = "log::warn!(a);\nif x { error!(b) } else { log::log!(c) }\nuse log::warn as w;\n";
    assert_eq!(unlimited(plain), 4);
    let limited = "limited!(warn, \"a\");\n// log::warn!(\"b\");\nlet debug = my_debug!(1);\n";
    assert_eq!(unlimited(limited), 0);
    let test = "\n#[cfg(test)]\nmod tests {\n    log::info!(\"a\");\n}\n";
    assert_eq!(unlimited(test), 0);
}
