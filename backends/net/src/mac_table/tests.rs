// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn mac(n: u32) -> [u8; 6] {
    let [a, b, c, d] = n.to_be_bytes();
    [2, 0, a, b, c, d]
}

#[test]
fn station_is_found_where_it_was_seen_and_only_in_its_vlan() {
    let table = MacTable::new(64, 4, 300);
    table.learn(7, mac(1), PortId(3), 100);
    assert_eq!(table.find(7, mac(1), 100), Some(PortId(3)));
    assert_eq!(table.find(0, mac(1), 100), None);
    assert_eq!(table.find(7, mac(2), 100), None);
}

#[test]
fn station_ages_unless_it_is_heard_of() {
    let table = MacTable::new(64, 4, 300);
    table.learn(0, mac(1), PortId(0), 100);
    table.learn(0, mac(2), PortId(0), 100);
    table.learn(0, mac(2), PortId(0), 300);
    assert_eq!(table.find(0, mac(1), 401), None);
    assert_eq!(table.find(0, mac(2), 401), Some(PortId(0)));
    assert_eq!(table.stations(401).len(), 1);
}

#[test]
fn station_moves_but_not_twice_at_once() {
    let table = MacTable::new(64, 4, 300);
    table.learn(0, mac(1), PortId(0), 100);
    table.learn(0, mac(1), PortId(1), 100);
    assert_eq!(table.find(0, mac(1), 100), Some(PortId(0)));
    table.learn(0, mac(1), PortId(1), 102);
    assert_eq!(table.find(0, mac(1), 102), Some(PortId(1)));
}

#[test]
fn port_that_invents_stations_displaces_no_other() {
    let table = MacTable::new(1024, 4, 300);
    for n in 0..64 {
        table.learn(0, mac(n), PortId(0), 100);
    }
    for n in 1000..200_000 {
        table.learn(0, mac(n), PortId(1), 101);
    }
    for n in 0..64 {
        assert_eq!(table.find(0, mac(n), 101), Some(PortId(0)), "{n}");
    }
    let invented = table.stations(101).len() - 64;
    assert!(invented <= 1024 / SHARE, "{invented}");
    // Where a bucket is full, one that was invented goes.
    let news = 300_000..300_032;
    for n in news.clone() {
        table.learn(0, mac(n), PortId(2), 102);
    }
    for n in news {
        assert_eq!(table.find(0, mac(n), 102), Some(PortId(2)), "{n}");
    }
    for n in 0..64 {
        assert_eq!(table.find(0, mac(n), 102), Some(PortId(0)), "{n}");
    }
}

#[test]
fn f5_5_late_station_is_learned_although_two_ports_have_filled_the_table() {
    let table = MacTable::new(1024, 4, 300);
    let flood = |from: u32, now_s| {
        for n in from..from + 50_000 {
            table.learn(0, mac(n), PortId(u16::try_from(n % 2).unwrap()), now_s);
        }
    };
    flood(1_000_000, 100);
    for n in 0..200 {
        table.learn(0, mac(n), PortId(2), 101);
        flood(2_000_000 + 50_000 * n, 101);
        assert_eq!(table.find(0, mac(n), 101), Some(PortId(2)), "{n}");
    }
    // The others are there still.
    for n in 0..200 {
        assert_eq!(table.find(0, mac(n), 101), Some(PortId(2)), "{n}");
    }
    let counted = |port| {
        let behind = |station: &Station| station.port == PortId(port);
        table.stations(101).into_iter().filter(behind).count()
    };
    for port in 0..3 {
        let count = table.count_of(PortId(port));
        assert_eq!(counted(port), usize::try_from(count).unwrap(), "{port}");
    }
}

#[test]
fn f5_5_port_learns_no_more_stations_than_its_limit() {
    for limit in [0, 1, 5] {
        let table = MacTable::new(1024, 2, 300).with_limit(PortId(0), limit);
        for n in 0..1000 {
            table.learn(0, mac(n), PortId(0), 100);
            table.learn(0, mac(5000 + n), PortId(1), 100);
        }
        let stations = table.stations(100);
        let of = |port| stations.iter().filter(|s| s.port == PortId(port)).count();
        assert_eq!(of(0), usize::try_from(limit).unwrap());
        assert!(of(1) > 400, "{}", of(1));
        // One that was there moves only within the limit.
        for n in 5000..6000 {
            table.learn(0, mac(n), PortId(0), 200);
        }
        let stations = table.stations(200);
        let behind = stations.iter().filter(|s| s.port == PortId(0)).count();
        assert!(behind <= usize::try_from(limit).unwrap(), "{behind}");
    }
}

#[test]
fn f5_5_pinned_station_is_where_it_was_configured_whatever_is_heard() {
    let pins: Vec<_> = (0..100)
        .map(|n| (u16::try_from(n % 3).unwrap(), mac(n), PortId(7)))
        .collect();
    let table = MacTable::new(16, 8, 300).with_pinned(&pins);
    for n in 0..100 {
        let vlan = u16::try_from(n % 3).unwrap();
        table.learn(vlan, mac(n), PortId(1), 100);
        assert_eq!(table.find(vlan, mac(n), 10_000), Some(PortId(7)), "{n}");
        assert_eq!(table.pinned(vlan, mac(n)), Some(PortId(7)));
        // In another VLAN it is another station.
        assert_eq!(table.pinned(vlan + 3, mac(n)), None);
        assert_eq!(table.find(vlan + 3, mac(n), 100), None);
    }
    // They take no place of others, and stay when others are forgotten.
    table.learn(0, mac(1000), PortId(1), 100);
    assert_eq!(table.find(0, mac(1000), 100), Some(PortId(1)));
    assert_eq!(table.flush(None, 100), 1);
    assert_eq!(table.stations(101).len(), 100);
    assert!(table.stations(101).iter().all(|station| station.pinned));
}

#[test]
fn flush_forgets_and_the_counts_follow() {
    let table = MacTable::new(16, 2, 300);
    for n in 0..1000 {
        table.learn(0, mac(n), PortId(0), 100);
    }
    assert!(table.flush(None, 100) > 0);
    assert!(table.stations(101).is_empty());
    for n in 0..1000 {
        table.learn(0, mac(n), PortId(0), 101);
    }
    assert!(!table.stations(101).is_empty());
}
