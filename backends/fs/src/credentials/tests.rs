// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What threads act as, and that they come back from it.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::testing::{as_root, context};

const CALLER: Caller = Caller {
    uid: 1234,
    gid: 2345,
    group: Some(3456),
    keeps_dac_override: false,
};

fn effective() -> CapabilitySet {
    capabilities(None).unwrap().effective
}

/// A directory that everybody may write to.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    directory
}

/// Takes capabilities from the calling thread, for good or not.
fn without(capability: CapabilitySet, for_good: bool) {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(capability);
    if for_good {
        sets.permitted.remove(capability);
    }
    set_capabilities(None, sets).unwrap();
}

#[test]
fn thread_set_up_has_a_directory_and_umask_of_its_own() {
    let before = std::env::current_dir().unwrap();
    let of_thread = std::thread::spawn(|| {
        let context = context();
        assert!(context.is_initial());
        let mask = umask(Mode::empty());
        (std::env::current_dir().unwrap(), mask)
    });
    let (directory, mask) = of_thread.join().unwrap();
    let fds = format!("/proc/{}/fd", std::process::id());
    assert_eq!(directory.to_str(), Some(&*fds));
    assert_eq!(mask, Mode::empty());
    assert_eq!(std::env::current_dir().unwrap(), before);
}

#[test]
fn thread_as_caller_creates_what_is_the_callers_and_comes_back() {
    as_root(|| {
        let mut context = context();
        let directory = directory();
        let path = directory.path().join("file");
        let all = effective();
        let inside = context.as_caller(CALLER, |context| {
            File::create(&path).unwrap();
            assert!(!context.is_initial());
            (getgroups().unwrap(), effective())
        });
        assert_eq!(
            inside,
            Ok((vec![Gid::from_raw(3456)], CapabilitySet::empty()))
        );
        assert!(context.is_initial());
        assert_eq!(getgroups(), Ok(vec![]));
        assert_eq!(effective(), all);
        let created = std::fs::metadata(&path).unwrap();
        assert_eq!((created.uid(), created.gid()), (1234, 2345));
    });
}

#[test]
fn thread_as_caller_of_another_group_only_keeps_its_capabilities() {
    as_root(|| {
        let mut context = context();
        let all = effective();
        let caller = Caller {
            gid: 2345,
            ..Caller::default()
        };
        let inside = context.as_caller(caller, |_| (geteuid(), getegid(), effective()));
        assert_eq!(inside, Ok((Uid::ROOT, Gid::from_raw(2345), all)));
        assert!(context.is_initial());
    });
}

#[test]
fn thread_as_caller_who_is_root_stays_as_it_is() {
    as_root(|| {
        let mut context = context();
        let inside = context.as_caller(Caller::default(), ThreadContext::is_initial);
        assert_eq!(inside, Ok(true));
    });
}

#[test]
fn thread_as_caller_of_unknown_groups_may_access_all() {
    as_root(|| {
        let mut context = context();
        let caller = Caller {
            group: None,
            keeps_dac_override: true,
            ..CALLER
        };
        let inside = context.as_caller(caller, |_| (getgroups().unwrap(), effective()));
        assert_eq!(inside, Ok((vec![], CapabilitySet::DAC_OVERRIDE)));
        assert!(context.is_initial());
    });
}

#[test]
fn thread_as_caller_that_is_none_is_refused_and_unchanged() {
    as_root(|| {
        let mut context = context();
        let none = u32::MAX;
        for caller in [
            Caller {
                uid: none,
                ..CALLER
            },
            Caller {
                gid: none,
                ..CALLER
            },
            Caller {
                group: Some(none),
                ..CALLER
            },
        ] {
            assert_eq!(context.as_caller(caller, |_| ()), Err(Errno::INVAL));
            assert!(context.is_initial());
        }
    });
}

#[test]
fn thread_as_caller_refused_half_way_comes_back() {
    as_root(|| {
        without(CapabilitySet::SETUID, true);
        let mut context = context();
        assert_eq!(context.as_caller(CALLER, |_| ()), Err(Errno::PERM));
        assert!(context.is_initial());
        assert_eq!(getegid(), Gid::ROOT);
        assert_eq!(getgroups(), Ok(vec![]));
    });
}

#[test]
fn thread_as_caller_that_panics_comes_back() {
    as_root(|| {
        let mut context = context();
        let act = AssertUnwindSafe(|| context.as_caller(CALLER, |_| panic!("as it should")));
        catch_unwind(act).unwrap_err();
        assert!(context.is_initial());
    });
}

#[test]
fn thread_with_fewer_effective_capabilities_than_permitted_comes_back_to_them() {
    as_root(|| {
        without(CapabilitySet::SYS_ADMIN | CapabilitySet::FSETID, false);
        let mut context = context();
        context.as_caller(CALLER, |_| ()).unwrap();
        assert!(context.is_initial());
        assert!(!effective().contains(CapabilitySet::SYS_ADMIN));
        context.use_fsetid(true).unwrap();
        assert!(!effective().contains(CapabilitySet::FSETID));
    });
}

#[test]
fn thread_that_is_not_root_acts_as_itself_for_root_and_as_nobody_else() {
    let directory = directory();
    let path = directory.path().join("file");
    as_root(move || {
        let (uid, gid) = (Uid::from_raw(1234), Gid::from_raw(2345));
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        let mut context = context();
        let create = |_: &ThreadContext| drop(File::create(&path).unwrap());
        context.as_caller(Caller::default(), create).unwrap();
        let created = std::fs::metadata(&path).unwrap();
        assert_eq!((created.uid(), created.gid()), (1234, 2345));
        assert_eq!(context.as_caller(CALLER, |_| 5), Ok(5));
        let other = Caller { uid: 1, ..CALLER };
        assert_eq!(context.as_caller(other, |_| ()), Err(Errno::PERM));
        assert!(context.is_initial());
        context.use_fsetid(false).unwrap();
        assert!(context.is_initial());
    });
}

#[test]
fn thread_in_groups_of_the_host_leaves_them() {
    as_root(|| {
        set_thread_groups(&[Gid::from_raw(5)]).unwrap();
        let context = context();
        assert_eq!(getgroups(), Ok(vec![]));
        assert!(context.is_initial());
    });
}

#[test]
fn umask_of_the_guest_holds_for_one_call() {
    std::thread::spawn(|| {
        let context = context();
        let directory = directory();
        let create = |name| {
            let path = directory.path().join(name);
            File::create(&path).unwrap().metadata().unwrap().mode() & 0o7777
        };
        assert_eq!(context.with_umask(0o27, || create("masked")), 0o640);
        assert_eq!(context.with_umask(u32::MAX, || create("shut")), 0);
        assert_eq!(create("open"), 0o666);
    })
    .join()
    .unwrap();
}

#[test]
fn fsetid_decides_whether_writing_takes_set_user_id_bits() {
    as_root(|| {
        let mut context = context();
        let directory = directory();
        let mut file = File::create(directory.path().join("file")).unwrap();
        let mut mode_after_write = || {
            file.set_permissions(Permissions::from_mode(0o6777))
                .unwrap();
            file.write_all(b"data").unwrap();
            file.metadata().unwrap().mode() & 0o7777
        };
        assert_eq!(mode_after_write(), 0o6777);
        context.use_fsetid(false).unwrap();
        assert_eq!(mode_after_write(), 0o777);
        assert!(context.is_initial());
        // Being root again brings it back, and that is known.
        context.as_caller(CALLER, |_| ()).unwrap();
        assert!(context.is_initial());
        assert_eq!(mode_after_write(), 0o6777);
        context.use_fsetid(false).unwrap();
        assert_eq!(mode_after_write(), 0o777);
        context.use_fsetid(true).unwrap();
        assert_eq!(mode_after_write(), 0o6777);
    });
}
