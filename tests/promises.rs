// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What docs/promises.md says is proved by a test is so by one that exists.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Adds the tests of all sources below `dir`.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            tests_below(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                match line
                    .strip_prefix("fn ")
                    .and_then(|rest| rest.split_once('('))
                {
                    Some((name, _)) if is_test => _ = names.insert(name.to_owned()),
                    _ => {}
                }
                // Other attributes may stand between.
                is_test = line == "#[test]" || (is_test && line.starts_with("#["));
            }
        }
    }
    Ok(())
}

#[test]
fn promises_name_tests_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut names = BTreeSet::new();
    for dir in ["tests", "common", "backends"] {
        tests_below(&root.join(dir), &mut names)?;
    }
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
