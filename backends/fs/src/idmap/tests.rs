// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules, what they do to numbers, and what is refused.

use super::*;

fn rules(texts: &[&str]) -> Vec<IdTranslation> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn maps(uid: &[&str], gid: &[&str]) -> IdMaps {
    IdMaps::new(&rules(uid), &rules(gid)).unwrap()
}

fn refused(uid: &[&str]) -> IdMapError {
    IdMaps::new(&rules(uid), &[]).unwrap_err()
}

#[test]
fn translation_of_each_kind_is_parsed() {
    let span = Span {
        from: 1,
        to: 2,
        count: 3,
    };
    assert_eq!("guest:1:2:3".parse(), Ok(IdTranslation::Guest(span)));
    assert_eq!("host:1:2:3".parse(), Ok(IdTranslation::Host(span)));
    assert_eq!(
        "squash-guest:1:2:3".parse(),
        Ok(IdTranslation::SquashGuest(span))
    );
    assert_eq!(
        "squash-host:1:2:3".parse(),
        Ok(IdTranslation::SquashHost(span))
    );
    assert_eq!("map:1:2:3".parse(), Ok(IdTranslation::Map(span)));
    assert_eq!(
        "forbid-guest:1:3".parse(),
        Ok(IdTranslation::ForbidGuest(Span { to: 0, ..span }))
    );
    assert_eq!("MAP/1/2/3".parse(), Ok(IdTranslation::Map(span)));
}

#[test]
fn translation_with_faults_is_refused_with_what_is_wrong() {
    let error = |text: &str| text.parse::<IdTranslation>().unwrap_err().to_string();
    assert_eq!(
        error("maps:1:2:3"),
        "\"maps\" is none of guest, host, squash-guest, squash-host, forbid-guest and map, with a \
         separator behind it"
    );
    assert_eq!(
        "1000".parse::<IdTranslation>(),
        Err(IdMapError::Kind("1000".into()))
    );
    assert_eq!(error("map:1:2"), "map takes 3 numbers, not 2");
    assert_eq!(
        error("forbid-guest:1:2:3"),
        "forbid-guest takes 2 numbers, not 3"
    );
    assert_eq!(
        error("map:1:x:3"),
        "\"x\" is no number of a user or group: invalid digit found in string"
    );
    assert_eq!(
        error("map:1:2/3"),
        "\"2/3\" is no number of a user or group: invalid digit found in string"
    );
}

#[test]
fn ids_without_rules_stay() {
    let maps = IdMaps::default();
    for id in [0, 1000, u32::MAX] {
        assert_eq!(maps.uid_to_host(id), Ok(id));
        assert_eq!(maps.gid_to_host(id), Ok(id));
        assert_eq!(maps.uid_to_guest(id), id);
        assert_eq!(maps.gid_to_guest(id), id);
    }
}

#[test]
fn ids_of_one_direction_stay_in_the_other() {
    let maps = maps(&["guest:0:1000:10"], &["host:1000:0:10"]);
    assert_eq!(maps.uid_to_host(9), Ok(1009));
    assert_eq!(maps.uid_to_host(10), Ok(10));
    assert_eq!(maps.uid_to_guest(1009), 1009);
    assert_eq!(maps.gid_to_guest(1009), 9);
    assert_eq!(maps.gid_to_guest(1010), 1010);
    assert_eq!(maps.gid_to_host(9), Ok(9));
}

#[test]
fn ids_of_map_go_both_ways() {
    let maps = maps(&["map:5:100:2", "map:0:50:1"], &[]);
    for (guest, host) in [(5, 100), (6, 101), (0, 50), (7, 7)] {
        assert_eq!(maps.uid_to_host(guest), Ok(host));
        assert_eq!(maps.uid_to_guest(host), guest);
    }
}

#[test]
fn ids_squashed_as_in_the_manual_of_virtiofsd_become_one() {
    let maps = maps(
        &["squash-guest:0:1001:4294967295", "host:1001:1000:1"],
        &["squash-guest:0:100:4294967295", "squash-host:0:7:10"],
    );
    assert_eq!(maps.uid_to_host(0), Ok(1001));
    assert_eq!(maps.uid_to_host(u32::MAX - 1), Ok(1001));
    assert_eq!(maps.uid_to_host(u32::MAX), Ok(u32::MAX));
    assert_eq!(maps.uid_to_guest(1001), 1000);
    assert_eq!(maps.gid_to_host(3), Ok(100));
    assert_eq!(maps.gid_to_guest(9), 7);
}

#[test]
fn id_forbidden_is_refused() {
    let maps = maps(&["forbid-guest:10:5", "guest:15:0:1"], &[]);
    assert_eq!(maps.uid_to_host(9), Ok(9));
    assert_eq!(maps.uid_to_host(10), Err(Errno::PERM));
    assert_eq!(maps.uid_to_host(14), Err(Errno::PERM));
    assert_eq!(maps.uid_to_host(15), Ok(0));
}

#[test]
fn rules_that_overlap_are_refused() {
    assert_eq!(
        refused(&["guest:0:0:10", "map:9:100:1"]),
        IdMapError::Twice(9)
    );
    assert_eq!(
        refused(&["guest:5:0:1", "forbid-guest:0:10"]),
        IdMapError::Twice(5)
    );
    assert_eq!(refused(&["host:0:0:2", "map:7:1:1"]), IdMapError::Twice(1));
    assert_eq!(
        maps(&["guest:0:5:0", "guest:0:6:1"], &[]).uid_to_host(0),
        Ok(6)
    );
}

#[test]
fn rules_beyond_32_bits_are_refused() {
    let overflow = |first, count| IdMapError::Overflow { first, count };
    assert_eq!(
        refused(&["forbid-guest:1:4294967295"]),
        overflow(1, u32::MAX)
    );
    assert_eq!(refused(&["guest:0:1:4294967295"]), overflow(1, u32::MAX));
    assert_eq!(refused(&["map:4294967295:0:1"]), overflow(u32::MAX, 1));
}
