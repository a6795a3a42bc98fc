// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How `tests/vm/install` finds the archive in apt's configuration.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

const DEB822: &str = "\
# the archive
Types: deb
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/security.gpg
";

const STANZA: &str = "\
Types: deb
URIs: http://archive.example/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// What the script would add beside these files, or `None` when it would add nothing.
fn backports(files: &[(&str, &str)], codename: &str) -> Result<Option<String>, Box<dyn Error>> {
    let etc = tempfile::tempdir()?;
    fs::create_dir(etc.path().join("sources.list.d"))?;
    for (name, text) in files {
        fs::write(etc.path().join(name), text)?;
    }
    let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/install");
    let output = Command::new(install)
        .arg("--print-backports")
        .arg(etc.path())
        .arg(codename)
        .output()?;
    let errors = String::from_utf8(output.stderr)?;
    if !errors.is_empty() {
        return Err(errors.into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(output.status.success().then_some(text))
}

#[test]
fn deb822_source_gives_archive_and_key() -> Result<(), Box<dyn Error>> {
    let found = backports(&[("sources.list.d/debian.sources", DEB822)], "bookworm")?;
    assert_eq!(found.as_deref(), Some(STANZA));
    Ok(())
}

#[test]
fn one_line_source_gives_archive_and_key() -> Result<(), Box<dyn Error>> {
    let list = "\
# deb http://wrong.example/debian bookworm main
deb-src http://wrong.example/debian bookworm main
deb http://wrong.example/other bookworm contrib
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
http://archive.example/debian bookworm main contrib # the archive
";
    let found = backports(&[("sources.list", list)], "bookworm")?;
    assert_eq!(found.as_deref(), Some(STANZA));
    Ok(())
}

#[test]
fn one_line_source_without_key_gives_none() -> Result<(), Box<dyn Error>> {
    let list = "deb http://archive.example/debian trixie main\n";
    let found = backports(&[("sources.list", list)], "trixie")?;
    let expected = "\
Types: deb
URIs: http://archive.example/debian
Suites: trixie-backports
Components: main
";
    assert_eq!(found.as_deref(), Some(expected));
    Ok(())
}

#[test]
fn inline_key_is_copied_with_its_lines() -> Result<(), Box<dyn Error>> {
    let source = "\
Types: deb deb-src
URIs: http://archive.example/debian
Suites: bookworm
Components: main non-free-firmware
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEZ
";
    let found = backports(&[("sources.list.d/a.sources", source)], "bookworm")?;
    let found = found.unwrap_or_default();
    let key = "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEZ\n";
    assert!(found.ends_with(key), "{found}");
    Ok(())
}

#[test]
fn present_backports_add_nothing() -> Result<(), Box<dyn Error>> {
    let files = [
        ("sources.list.d/debian.sources", DEB822),
        ("sources.list.d/own.sources", STANZA),
    ];
    assert_eq!(backports(&files, "bookworm")?, None);
    let list = "deb http://archive.example/debian bookworm-backports main\n";
    let files = [
        ("sources.list.d/debian.sources", DEB822),
        ("sources.list", list),
    ];
    assert_eq!(backports(&files, "bookworm")?, None);
    Ok(())
}

#[test]
fn disabled_or_foreign_sources_add_nothing() -> Result<(), Box<dyn Error>> {
    let disabled = format!("Enabled: no\n{STANZA}").replace("-backports", "");
    assert_eq!(
        backports(&[("sources.list.d/a.sources", &disabled)], "bookworm")?,
        None
    );
    assert_eq!(
        backports(&[("sources.list.d/debian.sources", DEB822)], "trixie")?,
        None
    );
    assert_eq!(backports(&[], "bookworm")?, None);
    Ok(())
}
