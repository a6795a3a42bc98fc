// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VM runner: boots a real Linux guest (or just firmware) in QEMU on the devices under test.
//!
//! [`Guest`] describes a machine and what to do in it; [`Guest::run`] boots it, runs the shell
//! script given and gives back its [`Outcome`]. Nothing but Debian packages is needed, see
//! `tests/vm/install`: the kernel is that of a Debian package, the root file system is put
//! together from this machine's programs (`initramfs.rs`).
//!
//! The guest has two serial ports. The first is the console and belongs to firmware and kernel.
//! The second is a line to the runner: what the script prints arrives there unmixed, and lines
//! that carry a random word known to this run only are messages (`guest/init`, `guest/lib.sh`,
//! `session.rs`):
//!
//! | message | meaning | answer |
//! |---|---|---|
//! | `boot` | the script is about to start | number of this boot |
//! | `mark NAME` | call the handler NAME and wait | `ok` |
//! | `reboot` | the script restarts the machine | |
//! | `exit CODE` | the script has ended, power goes off | |

mod accel;
mod backend;
mod bare_metal;
mod child;
mod control;
mod device;
mod error;
mod initramfs;
mod kernel;
mod machine;
mod needs;
mod network;
mod nic;
mod program;
mod qmp;
mod session;
mod share;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use accel::Accel;
pub use backend::{BackEnd, Disk, DiskOptions};
pub use bare_metal::BareMetal;
pub use control::Control;
pub use device::{Device, QemuVersion};
pub use error::{BoxError, VmError};
pub use machine::old_qemu;
pub use needs::{needs, skip};
pub use network::{
    Capture, DhcpOptions, DhcpServer, EchoServer, HttpServer, Network, Passt, Service,
    network_needs,
};
pub use nic::{Nic, NicOptions};
pub use qmp::Qmp;
pub use share::{Share, ShareOptions, ShareServer, git, tree_digest};

/// A boot takes 8 to 14 seconds under TCG on an idle machine; several tests may share one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(240);

const DEFAULT_MEMORY_MIB: u64 = 512;

/// What the runner calls when the guest asks for it.
type Handler<'h> = Box<dyn FnMut(&mut Control) -> Result<(), BoxError> + 'h>;

/// What the runner shows the script's output to.
type Watcher<'h> = Box<dyn FnMut(&str) + 'h>;

/// What the machine boots.
#[derive(Clone, Debug)]
enum Boot {
    /// The packaged kernel, which runs this script.
    Script(String),
    /// Whatever the firmware finds, until this text appears on the console.
    Firmware(String),
}

/// The kind of machine that QEMU makes.
#[derive(Clone, Copy, Debug)]
enum Machine {
    /// A PC with PCI.
    Q35,
    /// A machine without PCI: its virtio devices are on virtio-mmio, by default as legacy devices.
    Microvm,
}

impl Machine {
    fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }
}

/// A machine to be run.
pub struct Guest<'h> {
    accel: Option<Accel>,
    boot: Boot,
    cpus: u32,
    devices: Vec<Device>,
    env: BTreeMap<String, String>,
    extra: Vec<String>,
    handlers: BTreeMap<String, Handler<'h>>,
    hotplug_ports: u32,
    machine: Machine,
    memory_mib: u64,
    memory_slots: Option<(u32, u64)>,
    namespace: Option<PathBuf>,
    numa_nodes: u32,
    programs: Vec<String>,
    qemu: Option<PathBuf>,
    reboots: u32,
    timeout: Duration,
    watcher: Option<Watcher<'h>>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit status of the script; 0 for a firmware boot that showed its text.
    pub exit_code: i32,
    /// What the script printed.
    pub output: String,
    /// What firmware and kernel printed to the console.
    pub console: String,
    /// What QEMU printed.
    pub log: String,
    /// How often the guest booted.
    pub boots: u32,
    /// How the processors were run.
    pub accel: Accel,
    /// From the start of QEMU to its end.
    pub elapsed: Duration,
}

impl<'h> Guest<'h> {
    /// A machine with one processor and 512 MiB of shared memory, no devices and an empty script.
    #[must_use]
    pub fn new() -> Self {
        Self {
            accel: None,
            boot: Boot::Script(String::new()),
            cpus: 1,
            devices: Vec::new(),
            env: BTreeMap::new(),
            extra: Vec::new(),
            handlers: BTreeMap::new(),
            hotplug_ports: 0,
            machine: Machine::Q35,
            memory_mib: DEFAULT_MEMORY_MIB,
            memory_slots: None,
            namespace: None,
            numa_nodes: 0,
            programs: Vec::new(),
            qemu: None,
            reboots: 0,
            timeout: DEFAULT_TIMEOUT,
            watcher: None,
        }
    }

    /// The shell script to run in the guest (busybox's `sh`, with the functions of
    /// `guest/lib.sh`).
    #[must_use]
    pub fn script(mut self, text: &str) -> Self {
        self.boot = Boot::Script(text.to_owned());
        self
    }

    /// Boots no kernel: the firmware boots from a device. The run is over, and good, when `text`
    /// is on the console.
    #[must_use]
    pub fn firmware_until(mut self, text: &str) -> Self {
        self.boot = Boot::Firmware(text.to_owned());
        self
    }

    /// Sets a variable of the script.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    /// Makes it QEMU's microvm, whose devices are on virtio-mmio ([`Device::mmio`]).
    #[must_use]
    pub fn microvm(mut self) -> Self {
        self.machine = Machine::Microvm;
        self
    }

    /// Brings a program of this machine, with its libraries, into the guest: a name, or a path at
    /// which the guest has it too.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push(name.to_owned());
        self
    }

    /// The number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The memory at start.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Splits the memory at start into this many NUMA nodes, each a file of its own, so that the
    /// back-end sees several memory regions.
    #[must_use]
    pub fn numa_nodes(mut self, nodes: u32) -> Self {
        self.numa_nodes = nodes;
        self
    }

    /// Leaves room to plug memory in: this many DIMMs, and this much memory in all.
    #[must_use]
    pub fn memory_slots(mut self, slots: u32, max_mib: u64) -> Self {
        self.memory_slots = Some((slots, max_mib));
        self
    }

    /// Adds a device.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.devices.push(device);
        self
    }

    /// Runs QEMU in this network, for its own tap devices ([`Device::tap`]).
    #[must_use]
    pub fn network(mut self, network: &Network) -> Self {
        self.namespace = Some(network.path());
        self
    }

    /// Adds empty ports for [`Control::plug`].
    #[must_use]
    pub fn hotplug_ports(mut self, ports: u32) -> Self {
        self.hotplug_ports = ports;
        self
    }

    /// Calls `handler` when the script says `host NAME`; the script waits meanwhile.
    #[must_use]
    pub fn on(
        mut self,
        name: &str,
        handler: impl FnMut(&mut Control) -> Result<(), BoxError> + 'h,
    ) -> Self {
        self.handlers.insert(name.to_owned(), Box::new(handler));
        self
    }

    /// Shows each line of the script's output to `watcher` as it comes.
    #[must_use]
    pub fn watch(mut self, watcher: impl FnMut(&str) + 'h) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Allows the guest to be restarted this often; otherwise a restart ends the run as failed.
    #[must_use]
    pub fn reboots(mut self, reboots: u32) -> Self {
        self.reboots = reboots;
        self
    }

    /// Runs in this QEMU, not in the installed one.
    #[must_use]
    pub fn qemu(mut self, program: &Path) -> Self {
        self.qemu = Some(program.to_owned());
        self
    }

    /// Adds an argument of QEMU.
    #[must_use]
    pub fn qemu_arg(mut self, arg: impl Into<String>) -> Self {
        self.extra.push(arg.into());
        self
    }

    /// The time the whole run may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Chooses how processors are run, instead of the best way that works.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Boots the machine and stays until it has powered off.
    ///
    /// # Errors
    /// When the machine cannot be started, does not reach its end in time, restarts unasked, or a
    /// handler fails. A script that ends with a status other than 0 is no error here: see
    /// [`Outcome::exit_code`].
    pub fn run(self) -> Result<Outcome, VmError> {
        session::run(self)
    }
}

impl Default for Guest<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("boot", &self.boot)
            .field("cpus", &self.cpus)
            .field("devices", &self.devices)
            .field("handlers", &self.handlers.keys())
            .field("memory_mib", &self.memory_mib)
            .finish_non_exhaustive()
    }
}

/// Where the guest kernel and the cached archives are: `RINGSIDE_VM_CACHE`, or `target/vm` of the
/// repository. `tests/vm/install` uses the same.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("RINGSIDE_VM_CACHE").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/vm")),
        PathBuf::from,
    )
}
