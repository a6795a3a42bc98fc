// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user device of the guest, on QEMU's command line or plugged in through QMP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// A device whose back-end listens on a socket: a character device for the socket and a PCI device
/// in front of it.
#[derive(Clone, Debug)]
pub struct Device {
    id: String,
    socket: PathBuf,
    reconnect: Option<Duration>,
    properties: Map<String, Value>,
}

impl Device {
    /// A disk (`vhost-user-blk-pci`) called `id` whose back-end listens on `socket`.
    #[must_use]
    pub fn block(id: &str, socket: &Path) -> Self {
        let mut properties = Map::new();
        properties.insert("driver".into(), "vhost-user-blk-pci".into());
        properties.insert("id".into(), id.into());
        properties.insert("chardev".into(), chardev_id(id).into());
        Self {
            id: id.to_owned(),
            socket: socket.to_owned(),
            reconnect: None,
            properties,
        }
    }

    /// Sets any property of QEMU's device, for example `config-wce`.
    #[must_use]
    pub fn property(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.properties.insert(name.to_owned(), value.into());
        self
    }

    /// The number of request queues; QEMU's default is one per processor.
    #[must_use]
    pub fn num_queues(self, queues: u16) -> Self {
        self.property("num-queues", queues)
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

    /// The firmware's boot order, from 0.
    #[must_use]
    pub fn boot_index(self, index: u32) -> Self {
        self.property("bootindex", index)
    }

    /// Makes QEMU connect again when the back-end went away, trying at this interval.
    #[must_use]
    pub fn reconnect(mut self, interval: Duration) -> Self {
        self.reconnect = Some(interval);
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
        let mut chardev = format!(
            "socket,id={},path={}",
            self.chardev(),
            self.socket.display()
        );
        if let Some((name, value)) = self.reconnect_option(qemu) {
            chardev.push_str(&format!(",{name}={value}"));
        }
        let device = Value::Object(self.properties.clone()).to_string();
        vec!["-chardev".into(), chardev, "-device".into(), device]
    }

    /// Arguments of `chardev-add`.
    pub(crate) fn chardev_add(&self, qemu: QemuVersion) -> Value {
        let path = self.socket.to_string_lossy();
        let address = json!({ "type": "unix", "data": { "path": path } });
        let mut data = json!({ "addr": address, "server": false });
        if let Some((name, value)) = self.reconnect_option(qemu) {
            data[name] = value.into();
        }
        json!({ "id": self.chardev(), "backend": { "type": "socket", "data": data } })
    }

    /// Arguments of `device_add` for the root port `bus`.
    pub(crate) fn device_add(&self, bus: &str) -> Value {
        let mut properties = self.properties.clone();
        properties.insert("bus".into(), bus.into());
        Value::Object(properties)
    }

    /// QEMU 9.2 renamed the option and gave it a finer unit.
    fn reconnect_option(&self, qemu: QemuVersion) -> Option<(&'static str, u64)> {
        let interval_ms = u64::try_from(self.reconnect?.as_millis()).unwrap_or(u64::MAX);
        Some(if qemu >= QemuVersion(9, 2) {
            ("reconnect-ms", interval_ms.max(1))
        } else {
            ("reconnect", interval_ms.div_ceil(1000).max(1))
        })
    }
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

    #[test]
    fn reconnect_option_follows_the_version() {
        let disk = Device::block("d", Path::new("/s")).reconnect(Duration::from_millis(100));
        assert_eq!(
            disk.reconnect_option(QemuVersion(10, 0)),
            Some(("reconnect-ms", 100))
        );
        assert_eq!(
            disk.reconnect_option(QemuVersion(7, 2)),
            Some(("reconnect", 1))
        );
    }
}
