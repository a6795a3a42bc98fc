// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work as people do it.

use std::fs;
use std::path::Path;

use super::support::{TestResult, alone, command, mount, needs_or_skip, run, scratch};

/// A repository of the sources of these tests, with three commits.
fn repository(dir: &Path) -> TestResult {
    fs::create_dir(dir)?;
    let git = |words: &[&str]| git(dir, words);
    git(&["init", "--quiet"])?;
    for part in ["frontend", "vm", "net"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        run(command("cp")?.arg("-r").arg(source).arg(dir))?;
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", part])?;
    }
    Ok(())
}

fn git(dir: &Path, words: &[&str]) -> TestResult<String> {
    let identity = ["user.name=Ringside", "user.email=ringside@localhost"];
    run(command("git")?
        .arg("-C")
        .arg(dir)
        .args(identity.iter().flat_map(|word| ["-c", word]))
        .args(["-c", "safe.directory=*"])
        .args(words))
}

#[test]
fn git_works_on_the_mount_and_host_and_mount_agree() -> TestResult {
    needs_or_skip!("git", "cp");
    let _alone = alone();
    let (own, share) = (scratch()?, scratch()?);
    let origin = own.path().join("origin");
    repository(&origin)?;
    for args in [
        &["--cache", "auto"][..],
        &["--cache", "always", "--writeback"],
    ] {
        let mount = mount(share.path(), args, 180)?;
        let clone = mount.join("clone");
        run(command("git")?
            .args([
                "-c",
                "safe.directory=*",
                "clone",
                "--quiet",
                "--no-hardlinks",
            ])
            .arg(&origin)
            .arg(&clone))?;
        assert_eq!(git(&clone, &["status", "--porcelain"])?, "");
        fs::write(clone.join("new"), b"new")?;
        git(&clone, &["add", "new"])?;
        git(&clone, &["commit", "--quiet", "--message", "new"])?;
        git(&clone, &["checkout", "--quiet", "HEAD~2"])?;
        git(&clone, &["gc", "--quiet", "--prune=now"])?;
        git(&clone, &["checkout", "--quiet", "-"])?;
        git(&clone, &["fsck", "--strict"])?;
        assert_eq!(git(&clone, &["status", "--porcelain"])?, "");
        drop(mount);
        let on_host = share.path().join("clone");
        assert_eq!(git(&on_host, &["status", "--porcelain"])?, "");
        assert_eq!(fs::read(on_host.join("new"))?, b"new");
        fs::remove_dir_all(on_host)?;
    }
    Ok(())
}

#[test]
fn archives_come_out_as_they_went_in() -> TestResult {
    needs_or_skip!("tar", "diff", "cp");
    let _alone = alone();
    let (own, share) = (scratch()?, scratch()?);
    let source = own.path().join("source");
    run(command("cp")?
        .arg("-r")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .arg(&source))?;
    let archive = own.path().join("source.tar");
    run(command("tar")?
        .arg("-C")
        .arg(&source)
        .arg("-cf")
        .arg(&archive)
        .arg("."))?;
    let mount = mount(share.path(), &[], 120)?;
    let unpacked = mount.join("unpacked");
    fs::create_dir(&unpacked)?;
    run(command("tar")?
        .arg("-C")
        .arg(&unpacked)
        .arg("-xpf")
        .arg(&archive))?;
    run(command("diff")?.arg("-r").arg(&source).arg(&unpacked))?;
    run(command("tar")?
        .arg("-C")
        .arg(&unpacked)
        .arg("--compare")
        .arg("-f")
        .arg(&archive))?;
    run(command("diff")?
        .arg("-r")
        .arg(&source)
        .arg(share.path().join("unpacked")))?;
    fs::remove_dir_all(&unpacked)?;
    assert_eq!(fs::read_dir(share.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_program_is_built_and_run_on_the_mount() -> TestResult {
    needs_or_skip!("cargo");
    let _alone = alone();
    let share = scratch()?;
    let mount = mount(share.path(), &["--cache", "auto"], 180)?;
    let package = mount.join("hello");
    run(command("cargo")?
        .args(["new", "--quiet", "--vcs", "none"])
        .arg(&package))?;
    let build = || -> TestResult<String> {
        run(command("cargo")?
            .args(["run", "--quiet", "--offline"])
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(&package))
    };
    assert_eq!(build()?, "Hello, world!\n");
    fs::write(
        package.join("src/main.rs"),
        "fn main() { println!(\"again\"); }",
    )?;
    assert_eq!(build()?, "again\n");
    Ok(())
}
