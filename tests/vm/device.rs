// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the guest under test, on QEMU's command line or plugged in through QMP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// What carries a device's requests out of QEMU.
#[derive(Clone, Debug)]
enum Carrier {
    /// A vhost-user back-end at the other end of a socket.
    Socket {
        path: PathBuf,
        /// Whether QEMU listens, and the back-end connects.
        listens: bool,
        reconnect: Option<Duration>,
    },
    /// A tap device that QEMU serves itself.
    Tap { name: String },
}

/// A device of the guest: a PCI device, and in QEMU what stands behind it.
#[derive(Clone, Debug)]
pub struct Device {
    id: String,
    carrier: Carrier,
    /// Queue pairs of a network device; `None` for any other.
    queue_pairs: Option<u16>,
    properties: Map<String, Value>,
}

impl Device {
    /// A disk (`vhost-user-blk-pci`) called `id` whose back-end listens on `socket`.
    #[must_use]
    pub fn block(id: &str, socket: &Path) -> Self {
        let disk = Self::new(id, "vhost-user-blk-pci", Carrier::socket(socket), None);
        disk.property("chardev", chardev_id(id))
    }

    /// A file system (`vhost-user-fs-pci`) called `id` whose back-end listens on `socket`; the guest
    /// mounts it by `tag`. It has one request queue.
    #[must_use]
    pub fn fs(id: &str, socket: &Path, tag: &str) -> Self {
        Self::new(id, "vhost-user-fs-pci", Carrier::socket(socket), None)
            .property("chardev", chardev_id(id))
            .property("tag", tag)
    }

    /// A source of randomness (`vhost-user-rng-pci`) called `id` whose back-end listens on `socket`.
    #[must_use]
    pub fn entropy(id: &str, socket: &Path) -> Self {
        Self::new(id, "vhost-user-rng-pci", Carrier::socket(socket), None)
            .property("chardev", chardev_id(id))
    }

    /// A network device (`virtio-net-pci`) called `id` whose vhost-user back-end listens on
    /// `socket`, with one queue pair and no boot ROM.
    #[must_use]
    pub fn net(id: &str, socket: &Path) -> Self {
        Self::nic(id, Carrier::socket(socket))
    }

    /// A network device called `id` that QEMU itself connects to the tap device `tap` of its
    /// network namespace (see [`Guest::network`](super::Guest::network)).
    #[must_use]
    pub fn tap(id: &str, tap: &str) -> Self {
        Self::nic(id, Carrier::Tap { name: tap.into() })
    }

    fn nic(id: &str, carrier: Carrier) -> Self {
        Self::new(id, "virtio-net-pci", carrier, Some(1))
            .property("netdev", netdev_id(id))
            .property("romfile", "")
    }

    fn new(id: &str, driver: &str, carrier: Carrier, queue_pairs: Option<u16>) -> Self {
        let mut properties = Map::new();
        properties.insert("driver".into(), driver.into());
        properties.insert("id".into(), id.into());
        Self {
            id: id.to_owned(),
            carrier,
            queue_pairs,
            properties,
        }
    }

    /// Puts a device on virtio-mmio instead of PCI.
    #[must_use]
    pub fn mmio(mut self) -> Self {
        let driver = match self.properties.get("driver").and_then(Value::as_str) {
            Some("vhost-user-blk-pci") => "vhost-user-blk",
            Some("vhost-user-fs-pci") => "vhost-user-fs-device",
            _ => "virtio-net-device",
        };
        // There is no ROM and there are no vectors.
        self.properties.remove("romfile");
        self.properties.remove("vectors");
        self.property("driver", driver)
    }

    /// Sets any property of QEMU's device, for example `config-wce`.
    #[must_use]
    pub fn property(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.properties.insert(name.to_owned(), value.into());
        self
    }

    /// The number of request queues of a disk; QEMU's default is one per processor.
    #[must_use]
    pub fn num_queues(self, queues: u16) -> Self {
        self.property("num-queues", queues)
    }

    /// The number of request queues of a file system, beside its queue of priority.
    #[must_use]
    pub fn request_queues(self, queues: u16) -> Self {
        self.property("num-request-queues", queues)
    }

    /// The number of entries of each queue; QEMU's default is 128.
    #[must_use]
    pub fn queue_size(self, entries: u16) -> Self {
        self.property("queue-size", entries)
    }

    /// Whether packed virtqueues are offered to the driver.
    #[must_use]
    pub fn packed(self, packed: bool) -> Self {
        self.property("packed", packed)
    }

    /// Whether the driver may switch the write cache.
    #[must_use]
    pub fn config_wce(self, config_wce: bool) -> Self {
        self.property("config-wce", config_wce)
    }

    /// The number of queue pairs of a network device.
    #[must_use]
    pub fn queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = Some(pairs);
        // One vector for each queue, one for the configuration and one for the control queue.
        let vectors = u32::from(pairs) * 2 + 2;
        self.property("mq", pairs > 1).property("vectors", vectors)
    }

    /// The address of a network device, for example `52:54:00:00:00:01`.
    #[must_use]
    pub fn mac(self, mac: &str) -> Self {
        self.property("mac", mac)
    }

    /// The MTU that a network device tells the driver, and the back-end.
    #[must_use]
    pub fn host_mtu(self, bytes: u16) -> Self {
        self.property("host_mtu", bytes)
    }

    /// The firmware's boot order, from 0. A network device gets QEMU's boot ROM.
    #[must_use]
    pub fn boot_index(mut self, index: u32) -> Self {
        self.properties.remove("romfile");
        self.property("bootindex", index)
    }

    /// Makes QEMU connect again when the back-end went away, trying at this interval.
    #[must_use]
    pub fn reconnect(mut self, interval: Duration) -> Self {
        if let Carrier::Socket { reconnect, .. } = &mut self.carrier {
            *reconnect = Some(interval);
        }
        self
    }

    /// Makes QEMU listen on the socket, and wait at its start for a back-end that connects.
    #[must_use]
    pub fn listen(mut self) -> Self {
        if let Carrier::Socket { listens, .. } = &mut self.carrier {
            *listens = true;
        }
        self
    }

    /// The name QEMU knows the device by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Name of the character device.
    pub(crate) fn chardev(&self) -> String {
        chardev_id(&self.id)
    }

    /// Arguments of QEMU that create the device at start.
    pub(crate) fn arguments(&self, qemu: QemuVersion) -> Vec<String> {
        let mut arguments = self.carrier.chardev_argument(&self.chardev(), qemu);
        arguments.extend(self.netdev_argument());
        let device = Value::Object(self.properties.clone()).to_string();
        arguments.extend(["-device".into(), device]);
        arguments
    }

    /// Arguments of QEMU that create what stands behind a network device; none for any other.
    fn netdev_argument(&self) -> Vec<String> {
        let Some(pairs) = self.queue_pairs else {
            return Vec::new();
        };
        let carrier = match &self.carrier {
            Carrier::Socket { .. } => format!("vhost-user,chardev={}", self.chardev()),
            Carrier::Tap { name } => {
                format!("tap,ifname={name},script=no,downscript=no,vhost=off")
            }
        };
        let id = netdev_id(&self.id);
        vec![
            "-netdev".into(),
            format!("{carrier},id={id},queues={pairs}"),
        ]
    }

    /// Arguments of `chardev-add`; `None` for a device without a socket.
    pub(crate) fn chardev_add(&self, qemu: QemuVersion) -> Option<Value> {
        let Carrier::Socket { path, listens, .. } = &self.carrier else {
            return None;
        };
        let address = json!({ "type": "unix", "data": { "path": path.to_string_lossy() } });
        let mut data = json!({ "addr": address, "server": listens });
        if let Some((name, value)) = self.carrier.reconnect_option(qemu) {
            data[name] = value.into();
        }
        Some(json!({ "id": self.chardev(), "backend": { "type": "socket", "data": data } }))
    }

    /// Arguments of `netdev_add`; `None` without a network device.
    pub(crate) fn netdev_add(&self) -> Option<Value> {
        let id = netdev_id(&self.id);
        let pairs = self.queue_pairs?;
        Some(match &self.carrier {
            Carrier::Socket { .. } => json!({ "type": "vhost-user", "id": id, "queues": pairs,
                "chardev": self.chardev() }),
            Carrier::Tap { name } => json!({ "type": "tap", "id": id, "queues": pairs,
                "ifname": name, "script": "no", "downscript": "no", "vhost": false }),
        })
    }

    /// Arguments of `device_add` for the root port `bus`.
    pub(crate) fn device_add(&self, bus: &str) -> Value {
        let mut properties = self.properties.clone();
        properties.insert("bus".into(), bus.into());
        Value::Object(properties)
    }
}

impl Carrier {
    fn socket(path: &Path) -> Self {
        Self::Socket {
            path: path.to_owned(),
            listens: false,
            reconnect: None,
        }
    }

    /// Arguments of QEMU that create the socket's character device; none without a socket.
    fn chardev_argument(&self, id: &str, qemu: QemuVersion) -> Vec<String> {
        let Self::Socket { path, listens, .. } = self else {
            return Vec::new();
        };
        let mut chardev = format!("socket,id={id},path={}", path.display());
        if *listens {
            chardev.push_str(",server=on,wait=off");
        }
        if let Some((name, value)) = self.reconnect_option(qemu) {
            chardev.push_str(&format!(",{name}={value}"));
        }
        vec!["-chardev".into(), chardev]
    }

    /// QEMU 9.2 renamed the option and gave it a finer unit.
    fn reconnect_option(&self, qemu: QemuVersion) -> Option<(&'static str, u64)> {
        let Self::Socket { reconnect, .. } = self else {
            return None;
        };
        let interval_ms = u64::try_from((*reconnect)?.as_millis()).unwrap_or(u64::MAX);
        Some(if qemu >= QemuVersion(9, 2) {
            ("reconnect-ms", interval_ms.max(1))
        } else {
            ("reconnect", interval_ms.div_ceil(1000).max(1))
        })
    }
}

fn netdev_id(id: &str) -> String {
    format!("net-{id}")
}

fn chardev_id(id: &str) -> String {
    format!("socket-{id}")
}

/// QEMU's version: major and minor number.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct QemuVersion(pub u32, pub u32);

impl QemuVersion {
    /// Reads the first line of `qemu-system-x86_64 --version`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("version ")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_debian_and_plain_builds() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)";
        assert_eq!(QemuVersion::parse(debian), Some(QemuVersion(10, 0)));
        assert_eq!(
            QemuVersion::parse("QEMU emulator version 7.2"),
            Some(QemuVersion(7, 2))
        );
        assert_eq!(QemuVersion::parse("something else"), None);
    }

    const NEW: QemuVersion = QemuVersion(10, 0);
    const OLD: QemuVersion = QemuVersion(7, 2);

    #[test]
    fn disk_reconnects_by_the_option_of_the_version() {
        let disk = Device::block("d", Path::new("/s")).reconnect(Duration::from_millis(100));
        let arguments = |qemu| disk.arguments(qemu);
        assert_eq!(
            arguments(NEW),
            [
                "-chardev",
                "socket,id=socket-d,path=/s,reconnect-ms=100",
                "-device",
                r#"{"chardev":"socket-d","driver":"vhost-user-blk-pci","id":"d"}"#,
            ]
        );
        assert_eq!(arguments(OLD)[1], "socket,id=socket-d,path=/s,reconnect=1");
    }

    #[test]
    fn share_has_its_tag_and_request_queues() {
        let share = Device::fs("f", Path::new("/s"), "myfs")
            .request_queues(2)
            .queue_size(1024);
        assert_eq!(
            share.arguments(NEW),
            [
                "-chardev",
                "socket,id=socket-f,path=/s",
                "-device",
                concat!(
                    r#"{"chardev":"socket-f","driver":"vhost-user-fs-pci","id":"f","#,
                    r#""num-request-queues":2,"queue-size":1024,"tag":"myfs"}"#
                ),
            ]
        );
    }

    #[test]
    fn nic_with_queues_and_qemu_listening_has_a_netdev_between() {
        let nic = Device::net("n", Path::new("/s")).listen().queue_pairs(4);
        assert_eq!(
            nic.arguments(NEW),
            [
                "-chardev",
                "socket,id=socket-n,path=/s,server=on,wait=off",
                "-netdev",
                "vhost-user,chardev=socket-n,id=net-n,queues=4",
                "-device",
                concat!(
                    r#"{"driver":"virtio-net-pci","id":"n","mq":true,"netdev":"net-n","#,
                    r#""romfile":"","vectors":10}"#
                ),
            ]
        );
    }

    #[test]
    fn tap_nic_to_boot_from_has_no_socket_and_keeps_its_rom() {
        let nic = Device::tap("n", "tap0").boot_index(1);
        assert_eq!(
            nic.arguments(NEW),
            [
                "-netdev",
                "tap,ifname=tap0,script=no,downscript=no,vhost=off,id=net-n,queues=1",
                "-device",
                r#"{"bootindex":1,"driver":"virtio-net-pci","id":"n","netdev":"net-n"}"#,
            ]
        );
    }
}
