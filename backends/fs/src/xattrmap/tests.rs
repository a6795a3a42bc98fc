// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules, what they do to names, and what is refused.

use super::*;

fn map(text: &str) -> XattrMap {
    text.parse().unwrap()
}

fn refused(text: &str) -> XattrMapError {
    text.parse::<XattrMap>().unwrap_err()
}

fn to_host(map: &XattrMap, name: &CStr) -> Result<String> {
    map.to_host(name)
        .map(|name| name.to_str().unwrap().to_owned())
}

fn listed(map: &XattrMap, list: &[u8]) -> Vec<u8> {
    let mut list = list.to_vec();
    map.list_to_guest(&mut list);
    list
}

#[test]
fn map_with_all_prefixed_hides_the_rest() {
    for text in [
        ":prefix:all::user.virtiofs.::bad:all:::",
        ":map::user.virtiofs.:",
        " \n ,map,,user.virtiofs., ",
    ] {
        let map = map(text);
        assert_eq!(
            to_host(&map, c"trusted.a"),
            Ok("user.virtiofs.trusted.a".to_owned())
        );
        assert_eq!(
            listed(&map, b"user.virtiofs.trusted.a\0user.b\0security.c\0"),
            b"trusted.a\0"
        );
    }
}

#[test]
fn map_with_some_prefixed_passes_the_rest() {
    for text in [
        "/prefix/all/trusted./user.virtiofs./
         /bad/server//trusted./
         /bad/client/user.virtiofs.//
         /ok/all///",
        "/map/trusted./user.virtiofs./",
    ] {
        let map = map(text);
        assert_eq!(
            to_host(&map, c"trusted.a"),
            Ok("user.virtiofs.trusted.a".to_owned())
        );
        assert_eq!(to_host(&map, c"user.virtiofs.a"), Err(Errno::PERM));
        assert_eq!(to_host(&map, c"user.a"), Ok("user.a".to_owned()));
        assert_eq!(
            listed(&map, b"trusted.hidden\0user.virtiofs.trusted.a\0user.b\0"),
            b"trusted.a\0user.b\0"
        );
    }
}

#[test]
fn map_with_separators_and_types_mixed_obeys_the_first_match() {
    let map = map(":unsupported:client:security.:: /bad/server//security./ ,ok,all,,,");
    assert_eq!(to_host(&map, c"security.selinux"), Err(Errno::OPNOTSUPP));
    assert_eq!(to_host(&map, c"user.a"), Ok("user.a".to_owned()));
    assert_eq!(listed(&map, b"security.selinux\0user.a\0"), b"user.a\0");
    assert_eq!(listed(&map, b""), b"");
}

#[test]
fn map_that_leaves_nothing_of_a_name_hides_it() {
    let map = map(":map::user.virtiofs.:");
    assert_eq!(listed(&map, b"user.virtiofs.\0user.virtiofs.a\0"), b"a\0");
}

#[test]
fn map_of_capabilities_is_known() {
    assert_eq!(
        map(":map::user.virtiofs.:").capability(),
        Some(c"user.virtiofs.security.capability")
    );
    assert_eq!(map(":map:trusted.:user.virtiofs.:").capability(), None);
    assert_eq!(
        map(":bad:all:security.:security.::ok:all:::").capability(),
        None
    );
    assert_eq!(map(":prefix:client::::ok:all:::").capability(), None);
}

#[test]
fn map_with_faults_is_refused_with_what_is_wrong() {
    assert_eq!(refused("  "), XattrMapError::Empty);
    assert_eq!(refused(":prefix:client:hi"), XattrMapError::Incomplete(1));
    assert_eq!(
        refused(":ok:all::: :ok:all::"),
        XattrMapError::Incomplete(2)
    );
    assert_eq!(
        refused(":okay:all:::").to_string(),
        "rule 1: \"okay\" is none of prefix, ok, bad, unsupported and map"
    );
    assert_eq!(
        refused(":ok:host:::").to_string(),
        "rule 1: \"host\" is none of client, server and all"
    );
    assert_eq!(refused(":ok:all:\0::"), XattrMapError::Nul(1));
    assert_eq!(
        refused(":ok:all::::map:a:b::ok:all:::"),
        XattrMapError::MapNotLast(2)
    );
}

#[test]
fn map_that_leaves_names_open_refuses_and_hides_those_alone() {
    let open = map(":ok:client:user.:: :ok:server::trusted.:");
    assert!(!open.decides_all_of_guest() && !open.decides_all_of_host());
    assert_eq!(to_host(&open, c"user.a"), Ok("user.a".to_owned()));
    assert_eq!(to_host(&open, c"trusted.a"), Err(Errno::PERM));
    assert_eq!(listed(&open, b"user.a\0trusted.a\0"), b"trusted.a\0");
    let of_guest = map(":ok:client:::");
    assert!(of_guest.decides_all_of_guest() && !of_guest.decides_all_of_host());
    let of_all = map(":map::user.virtiofs.:");
    assert!(of_all.decides_all_of_guest() && of_all.decides_all_of_host());
}
