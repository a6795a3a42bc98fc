// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a handler may do to the running machine.

use std::time::Duration;

use serde_json::{Value, json};

use super::device::{Device, QemuVersion};
use super::error::VmError;
use super::qmp::Qmp;

/// How long the guest may take to give a device back. Linux waits five seconds after the request
/// (the time of the attention button), and TCG is slow.
const UNPLUG_LIMIT: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// The running machine, as a handler given to [`Guest::on`](super::Guest::on) sees it.
#[derive(Debug)]
pub struct Control {
    qmp: Qmp,
    qemu: QemuVersion,
    free_ports: Vec<String>,
    used_ports: Vec<(String, String)>,
    dimms: u32,
    resets: u32,
}

impl Control {
    pub(crate) fn new(qmp: Qmp, qemu: QemuVersion, free_ports: Vec<String>) -> Self {
        Self {
            qmp,
            qemu,
            free_ports,
            used_ports: Vec::new(),
            dimms: 0,
            resets: 0,
        }
    }

    /// The monitor, for any other command or event.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Plugs a device into a free port (see [`Guest::hotplug_ports`](super::Guest::hotplug_ports)).
    ///
    /// # Errors
    /// When QEMU refuses, or no port is free.
    pub fn plug(&mut self, device: &Device) -> Result<(), VmError> {
        let port = self.free_ports.pop().ok_or_else(|| VmError::Qmp {
            command: "device_add".into(),
            reply: "no hot-plug port is free".into(),
        })?;
        if let Some(chardev) = device.chardev_add(self.qemu) {
            self.qmp.execute("chardev-add", chardev)?;
        }
        if let Some(netdev) = device.netdev_add() {
            self.qmp.execute("netdev_add", netdev)?;
        }
        self.qmp.execute("device_add", device.device_add(&port))?;
        self.used_ports.push((device.id().to_owned(), port));
        Ok(())
    }

    /// Asks the guest for a device and waits until QEMU has deleted it.
    ///
    /// # Errors
    /// When QEMU refuses, or the guest keeps the device.
    pub fn unplug(&mut self, device: &Device) -> Result<(), VmError> {
        self.qmp
            .execute("device_del", json!({ "id": device.id() }))?;
        self.qmp
            .wait_event("DEVICE_DELETED", Some(device.id()), UNPLUG_LIMIT)?;
        // A netdev takes its character device with it.
        if let Some(netdev) = device.netdev_add() {
            self.qmp
                .execute("netdev_del", json!({ "id": netdev["id"] }))?;
        } else {
            self.qmp
                .execute("chardev-remove", json!({ "id": device.chardev() }))?;
        }
        if let Some(index) = self.used_ports.iter().position(|(id, _)| id == device.id()) {
            self.free_ports.push(self.used_ports.swap_remove(index).1);
        }
        Ok(())
    }

    /// Plugs a DIMM of `mib` MiB of shared memory into a free slot.
    ///
    /// # Errors
    /// When QEMU refuses, for example for want of a slot.
    pub fn plug_memory(&mut self, mib: u64) -> Result<(), VmError> {
        let (memory, dimm) = (format!("hot{}", self.dimms), format!("dimm{}", self.dimms));
        self.dimms += 1;
        self.qmp.execute(
            "object-add",
            json!({ "qom-type": "memory-backend-memfd", "id": memory, "size": mib * MIB,
                    "share": true }),
        )?;
        self.qmp.execute(
            "device_add",
            json!({ "driver": "pc-dimm", "id": dimm, "memdev": memory }),
        )?;
        Ok(())
    }

    /// Makes QEMU announce the addresses of all network devices, once, as it does at the end of a
    /// migration. For a guest that cannot do so itself it asks the back-end (`SEND_RARP`).
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn announce_self(&mut self) -> Result<(), VmError> {
        self.qmp.execute(
            "announce-self",
            json!({ "initial": 50, "max": 50, "rounds": 1, "step": 0 }),
        )?;
        Ok(())
    }

    /// Resets the machine, as its reset button would.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn system_reset(&mut self) -> Result<Value, VmError> {
        self.resets += 1;
        self.qmp.execute("system_reset", json!({}))
    }

    /// How often [`system_reset`](Self::system_reset) was called.
    pub(crate) fn resets(&self) -> u32 {
        self.resets
    }
}
