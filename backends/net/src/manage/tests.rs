// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Mutex;

use tempfile::TempDir;

use super::*;

/// Three ports that remember what was done to them.
struct Fake {
    names: Vec<String>,
    limits: Mutex<[[Limits; 2]; 3]>,
    done: Mutex<Vec<String>>,
    has_switch: bool,
}

impl Fake {
    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }

    fn needs_switch(&self) -> Result<(), ManageError> {
        let reason = "there is no switch";
        let error = ManageError::Unavailable { reason };
        self.has_switch.then_some(()).ok_or(error)
    }
}

fn slot(direction: Direction) -> usize {
    usize::from(direction == Direction::Tx)
}

impl Ports for Fake {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn info(&self) -> Value {
        json!({ "backend": "switch" })
    }

    fn state(&self, port: usize) -> PortState {
        match port {
            0 => PortState {
                connected: true,
                link_up: true,
                queue_pairs: 2,
                mac: Some([0x52, 0x54, 0, 0, 0, 1]),
                mtu: Some(1500),
                vlan: Some(7),
                features: 0x1_0000_0020,
            },
            _ => PortState::default(),
        }
    }

    fn set_link(&self, port: usize, up: bool) -> Result<(), ManageError> {
        self.note(format!("link {port} {up}"));
        Ok(())
    }

    fn limits(&self, port: usize, direction: Direction) -> Limits {
        self.limits.lock().unwrap()[port][slot(direction)]
    }

    fn set_limits(
        &self,
        port: usize,
        direction: Direction,
        limits: Limits,
    ) -> Result<(), ManageError> {
        self.note(format!("limit {port} {}", direction.name()));
        self.limits.lock().unwrap()[port][slot(direction)] = limits;
        Ok(())
    }

    fn mac_table(&self) -> Result<Vec<MacEntry>, ManageError> {
        self.needs_switch()?;
        Ok(vec![MacEntry {
            mac: [0x52, 0x54, 0, 0, 0, 0xfe],
            vlan: 0,
            port: 2,
            age_s: 12,
            configured: false,
        }])
    }

    fn flush_macs(&self, port: Option<usize>) -> Result<usize, ManageError> {
        self.needs_switch()?;
        self.note(format!("flush {port:?}"));
        Ok(5)
    }
}

struct Fixture {
    fake: Arc<Fake>,
    capture: Arc<CaptureControl>,
    management: NetManagement,
}

impl Fixture {
    fn new(has_switch: bool) -> Self {
        let names = ["vm0", "vm1", "uplink"].map(String::from).to_vec();
        let capture = Arc::new(CaptureControl::new(names.clone()));
        let fake = Arc::new(Fake {
            names,
            limits: Mutex::default(),
            done: Mutex::default(),
            has_switch,
        });
        let ports = Arc::clone(&fake);
        Self {
            management: NetManagement::new(ports, Arc::clone(&capture)),
            fake,
            capture,
        }
    }

    fn call(&self, method: &str, params: &Value) -> Value {
        let result = self.management.call(method, params);
        result.unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    fn error(&self, method: &str, params: &Value) -> String {
        let result = self.management.call(method, params);
        let error = result.map(|_| format!("{method} {params}")).unwrap_err();
        error.to_string()
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.done.lock().unwrap())
    }
}

#[test]
fn every_method_of_the_list_is_served() {
    let fixture = Fixture::new(true);
    for info in fixture.management.methods() {
        let result = fixture.management.call(info.name, &Value::Null);
        let unknown = matches!(result, Err(ManageError::UnknownMethod));
        assert!(!unknown, "{}", info.name);
    }
    assert_eq!(fixture.error("resize", &Value::Null), "unknown method");
}

#[test]
fn parameters_that_a_method_does_not_have_are_refused() {
    let fixture = Fixture::new(true);
    for info in fixture.management.methods() {
        let error = fixture.error(info.name, &json!({ "prot": 0 }));
        assert_eq!(error, "unknown parameter prot", "{}", info.name);
    }
    assert_eq!(fixture.done(), [""; 0]);
}

#[test]
fn info_and_ports_tell_what_there_is() {
    let fixture = Fixture::new(true);
    assert_eq!(
        fixture.call("info", &Value::Null),
        json!({"backend": "switch"})
    );
    let limit = json!({"port": "vm0", "direction": "tx", "packets": 9});
    fixture.call("limit", &limit);
    let ports = fixture.call("ports", &json!({}));
    let expected = json!({
        "port": "vm0", "connected": true, "link": "up", "queue_pairs": 2,
        "mac": "52:54:00:00:00:01", "mtu": 1500, "vlan": 7, "features": "0x100000020",
        "limits": {"rx": {}, "tx": {"packets": 9}},
    });
    assert_eq!(ports[0], expected);
    let expected = json!({
        "port": "uplink", "connected": false, "link": "down", "queue_pairs": 0,
        "mac": null, "mtu": null, "vlan": null, "features": "0x0",
        "limits": {"rx": {}, "tx": {}},
    });
    assert_eq!(ports[2], expected);
}

#[test]
fn link_is_set_by_name_or_index() {
    let fixture = Fixture::new(true);
    let reply = fixture.call("link", &json!({"port": "vm1", "state": "down"}));
    assert_eq!(reply, json!({"link": "down"}));
    let reply = fixture.call("link", &json!({"port": 0, "state": "up"}));
    assert_eq!(reply, json!({"link": "up"}));
    assert_eq!(fixture.done(), ["link 1 false", "link 0 true"]);
    for (params, expected) in [
        (json!({"state": "up"}), "parameter port is missing"),
        (json!({"port": 0}), "parameter state is missing"),
        (
            json!({"port": 0, "state": true}),
            "parameter state: expected up or down",
        ),
        (
            json!({"port": 0, "state": "UP"}),
            "parameter state: expected up or down",
        ),
    ] {
        assert_eq!(fixture.error("link", &params), expected);
    }
    for port in [
        json!(3),
        json!(-1),
        json!("vm2"),
        json!("0"),
        json!(0.5),
        json!(null),
    ] {
        let error = fixture.error("link", &json!({"port": port, "state": "up"}));
        let expected = "parameter port: expected the name or the index of a port; see ports";
        assert_eq!(error, expected, "{port}");
    }
    assert_eq!(fixture.done(), [""; 0]);
}

#[test]
fn limit_changes_what_is_given_and_tells_the_result() {
    let fixture = Fixture::new(true);
    let limit = |more: Value| {
        let mut params = json!({"port": 1, "direction": "rx"});
        params
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        fixture.call("limit", &params)
    };
    for (more, expected) in [
        (json!({}), json!({})),
        (json!({"bytes": "10M"}), json!({"bytes": 10_000_000})),
        (
            json!({"burst_bytes": "64K", "packets": 500}),
            json!({"bytes": 10_000_000, "burst_bytes": 64_000, "packets": 500}),
        ),
        // A new rate has a new burst.
        (json!({"bytes": 5, "packets": "off"}), json!({"bytes": 5})),
        (
            json!({"bytes": 6, "burst_bytes": 0}),
            json!({"bytes": 6, "burst_bytes": 0}),
        ),
        (json!({}), json!({"bytes": 6, "burst_bytes": 0})),
        (
            json!({"bytes": 0, "packets": 7, "burst_packets": 8}),
            json!({"packets": 7, "burst_packets": 8}),
        ),
    ] {
        assert_eq!(limit(more.clone()), expected, "{more}");
    }
    // What only asks changes nothing.
    assert_eq!(fixture.done(), ["limit 1 rx"; 5]);
    assert!(fixture.fake.limits(1, Direction::Tx).is_none());
    fixture.call(
        "limit",
        &json!({"port": "uplink", "direction": "tx", "packets": 1}),
    );
    assert!(!fixture.fake.limits(2, Direction::Tx).is_none());
}

#[test]
fn limit_that_makes_no_sense_changes_nothing() {
    let fixture = Fixture::new(true);
    for (more, name) in [
        (json!({}), "direction"),
        (json!({"direction": "both"}), "direction"),
        (json!({"direction": "rx", "bytes": -1}), "bytes"),
        (json!({"direction": "rx", "bytes": "fast"}), "bytes"),
        (json!({"direction": "rx", "bytes": "51G"}), "bytes"),
        (json!({"direction": "rx", "bytes": 1.5}), "bytes"),
        (json!({"direction": "rx", "packets": "101M"}), "packets"),
        (json!({"direction": "rx", "burst_bytes": 5}), "burst_bytes"),
        (
            json!({"direction": "rx", "bytes": "off", "burst_bytes": 5}),
            "burst_bytes",
        ),
        (
            json!({"direction": "rx", "bytes": 5, "burst_bytes": "x"}),
            "burst_bytes",
        ),
        (
            json!({"direction": "rx", "bytes": 5, "burst_packets": 5}),
            "burst_packets",
        ),
    ] {
        let mut params = more;
        params["port"] = json!(0);
        let error = fixture.error("limit", &params);
        assert!(
            error.starts_with(&format!("parameter {name}")),
            "{params}: {error}"
        );
    }
    assert_eq!(fixture.done(), [""; 0]);
}

#[test]
fn capture_is_started_and_stopped() {
    let fixture = Fixture::new(true);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.pcapng");
    let stopped = "not possible now: no capture is running";
    assert_eq!(fixture.error("capture-stop", &Value::Null), stopped);
    let params = json!({"path": path, "port": "vm1", "snaplen": 100});
    let reply = fixture.call("capture-start", &params);
    let usual = json!({"path": path, "snaplen": 100, "max_bytes": 250_000_000, "files": 4});
    assert_eq!(reply, usual);
    let running = "not possible now: a capture is running already";
    assert_eq!(fixture.error("capture-start", &params), running);
    for port in [0, 1] {
        let capture = fixture.capture.capture();
        capture.frame(port, Direction::Rx, 0, 60, |_, to| to.len());
    }
    let reply = fixture.call("capture-stop", &Value::Null);
    assert_eq!(reply, json!({"frames": 1, "dropped": 0}));
    let params = json!({"path": path, "max_bytes": "1M", "files": 2});
    let reply = fixture.call("capture-start", &params);
    assert_eq!(reply["snaplen"], 65_558);
    assert_eq!(
        (&reply["max_bytes"], &reply["files"]),
        (&json!(1_000_000), &json!(2))
    );
    fixture.call("capture-stop", &Value::Null);
    let params = json!({"path": path, "max_bytes": "off"});
    let reply = fixture.call("capture-start", &params);
    assert_eq!(
        (&reply["max_bytes"], &reply["files"]),
        (&Value::Null, &json!(1))
    );
}

#[test]
fn capture_that_cannot_be_started_says_why() {
    let fixture = Fixture::new(true);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c");
    let bad_path = "parameter path: expected an absolute path";
    let bad_bytes = "parameter max_bytes: expected a number of bytes from 100K, or off";
    let bad_files = "parameter files: expected a number from 1 to 1000";
    let bad_length = "parameter snaplen: expected a number of bytes from 1 to 65558";
    for (params, expected) in [
        (json!({}), "parameter path is missing"),
        (json!({"path": "c.pcapng"}), bad_path),
        (json!({"path": 5}), bad_path),
        (json!({"path": path, "snaplen": 0}), bad_length),
        (json!({"path": path, "snaplen": 65_559}), bad_length),
        (json!({"path": path, "max_bytes": 99_999}), bad_bytes),
        (json!({"path": path, "max_bytes": "none"}), bad_bytes),
        (json!({"path": path, "files": 0}), bad_files),
        (json!({"path": path, "files": 1001}), bad_files),
        (
            json!({"path": path, "files": 2, "max_bytes": "off"}),
            "parameter files: expected 1 without a bound",
        ),
        (
            json!({"path": "/dev/null"}),
            "/dev/null: is not a regular file",
        ),
    ] {
        assert_eq!(
            fixture.error("capture-start", &params),
            expected,
            "{params}"
        );
    }
    let error = fixture.error("capture-start", &json!({"path": path, "port": "vm9"}));
    assert!(error.starts_with("parameter port:"), "{error}");
    assert!(!path.exists());
}

#[test]
fn mac_table_is_shown_and_flushed_where_there_is_a_switch() {
    let fixture = Fixture::new(true);
    let expected = json!([
        {"mac": "52:54:00:00:00:fe", "vlan": 0, "port": "uplink", "age_s": 12, "configured": false},
    ]);
    assert_eq!(fixture.call("mac-table", &Value::Null), expected);
    let flushed = json!({"flushed": 5});
    assert_eq!(fixture.call("mac-flush", &Value::Null), flushed);
    assert_eq!(fixture.call("mac-flush", &json!({"port": "vm1"})), flushed);
    assert_eq!(fixture.done(), ["flush None", "flush Some(1)"]);
    let without = Fixture::new(false);
    for method in ["mac-table", "mac-flush"] {
        let error = without.error(method, &Value::Null);
        assert_eq!(error, "not possible now: there is no switch");
    }
}
