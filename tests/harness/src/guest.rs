//! A real guest in QEMU: a stock kernel, busybox, and the vhost-user devices that a test gives it.
//! It starts no back-end (see [`crate::Vudev`]) and knows nothing of how one is made.
//!
//! The guest has two serial ports. The first carries what the kernel says before it has its real
//! console, into a log file; the second is QEMU's standard input and output, and carries a test's
//! script: what it prints comes between `@@begin` and `@@exit STATUS`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, str};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::archive::Archive;
use crate::child::describe;
use crate::programs;
use crate::{Assets, Child, Lines};

/// The guest's `/init`.
const INIT: &str = include_str!("init.sh");

/// The guest's `/bin/give-to-vfio`.
const GIVE_TO_VFIO: &str = include_str!("give-to-vfio.sh");

/// Under software emulation a boot takes 4 s on an idle machine; a busy one is far slower.
const DEADLINE: Duration = Duration::from_secs(120);

/// Names the accelerators for QEMU's `-accel`. Software emulation is the default, because a stock
/// kernel does not run under every `/dev/kvm` (a paravirtual-only one fails in its decompressor).
const ACCELERATOR_VARIABLE: &str = "VUDEV_ACCEL";

/// One thread for all processors. With one for each, a processor now and then runs an instruction
/// that another is just patching (static keys), and the kernel dies of `Oops: int3`: one guest in
/// ninety with two processors, on a busy machine. On two cores it takes no longer.
const ACCELERATOR: &str = "tcg,thread=single";

/// Software emulation copies a byte at a time where the processor says that its string instructions
/// are fast, and the kernel believes it: a guest that moves data takes twice the time.
const PROCESSOR: &str = "max,-erms,-fsrm";

/// Guests are small: enough for a kernel, busybox and a page cache that a test can overflow.
const MEMORY_MIB: u32 = 256;

/// How long QEMU waits before it connects again to a back-end that has gone.
const RECONNECT_MS: u32 = 100;

/// The first slot of bus 0 for functions that a vfio-user server has; q35 has its own below it, and
/// QEMU gives the lower ones to others.
const FUNCTION_SLOT: usize = 0x10;

/// How much of a log an error repeats.
const TAIL_LINES: usize = 20;

/// A guest that is being described.
#[derive(Debug)]
pub struct Guest {
    assets: Assets,
    devices: Vec<String>,
    back_ends: usize,
    virtio_console: bool,
    functions: usize,
    memory_mib: u32,
    memory_file: Option<PathBuf>,
    reconnects: bool,
    script: Option<String>,
    programs: Vec<PathBuf>,
    deadline: Duration,
    reboots: bool,
    processors: u32,
}

impl Guest {
    /// A guest without devices that would give a shell on its first serial port.
    pub fn new(assets: &Assets) -> Self {
        Self {
            assets: assets.clone(),
            devices: Vec::new(),
            back_ends: 0,
            virtio_console: false,
            functions: 0,
            memory_mib: MEMORY_MIB,
            memory_file: None,
            reconnects: false,
            script: None,
            programs: Vec::new(),
            deadline: DEADLINE,
            reboots: false,
            processors: 1,
        }
    }

    /// Runs this shell script instead of a shell, and switches off after it.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Adds a program of ours to the guest's `/bin`, built as the running one is: it brings the
    /// libraries that this one has loaded.
    pub fn program(mut self, path: &Path) -> Self {
        self.programs.push(path.to_owned());
        self
    }

    /// Adds a disk whose back-end listens at `socket`; the guest calls the first one `/dev/vda`.
    pub fn block(mut self, socket: &Path, queues: u16) -> Self {
        let chardev = self.chardev(socket);
        let device = format!("vhost-user-blk-pci,chardev={chardev},num-queues={queues}");
        self.devices.extend(["-device".to_owned(), device]);
        self
    }

    /// Adds a console whose back-end listens at `socket`. The first one becomes the kernel's
    /// console, `/dev/hvc0`.
    pub fn console(self, socket: &Path) -> Self {
        self.console_with(socket, 2)
    }

    /// Adds a console of several ports.
    pub fn console_ports(self, socket: &Path, ports: u16) -> Self {
        // Two queues for each port, and two to tell of ports (virtio 1.3, 5.3.2).
        self.console_with(socket, 2 + 2 * ports)
    }

    fn console_with(mut self, socket: &Path, queues: u16) -> Self {
        let chardev = self.chardev(socket);
        // QEMU has no console front-end of its own; this one is for any device type: 3 is a
        // console, which has 12 bytes of configuration space (virtio 1.3, 5.3.4).
        let device = format!(
            "vhost-user-test-device-pci,chardev={chardev},virtio-id=3,num_vqs={queues},\
             config_size=12"
        );
        self.devices.extend(["-device".to_owned(), device]);
        self.virtio_console = true;
        self
    }

    /// Adds a network card with so many pairs of queues, whose back-end listens at `socket`. QEMU
    /// keeps its configuration space and its control queue to itself; `options` are more of
    /// virtio-net-pci's, each with a comma before it.
    pub fn net(mut self, socket: &Path, pairs: u16, options: &str) -> Self {
        let chardev = self.chardev(socket);
        let vectors = 2 * pairs + 2;
        let back_end = format!("vhost-user,id=n-{chardev},chardev={chardev},queues={pairs}");
        let device = format!("virtio-net-pci,netdev=n-{chardev},mq=on,vectors={vectors}{options}");
        self.devices
            .extend(["-netdev".to_owned(), back_end, "-device".to_owned(), device]);
        self
    }

    /// Adds a network card of which everything is the back-end's.
    pub fn bare_net(mut self, socket: &Path, pairs: u16) -> Self {
        let chardev = self.chardev(socket);
        // 1 is a network card, which has 24 bytes of configuration space (virtio 1.3, 5.1.4), and
        // a control queue behind its pairs.
        let device = format!(
            "vhost-user-test-device-pci,chardev={chardev},virtio-id=1,num_vqs={},vq_size=256,\
             config_size=24",
            2 * pairs + 1
        );
        self.devices.extend(["-device".to_owned(), device]);
        self
    }

    /// Adds an entropy device whose back-end listens at `socket`; the guest calls the first one
    /// `virtio_rng.0`.
    pub fn rng(mut self, socket: &Path) -> Self {
        let chardev = self.chardev(socket);
        let device = format!("vhost-user-rng-pci,chardev={chardev}");
        self.devices.extend(["-device".to_owned(), device]);
        self
    }

    /// Adds sockets to the host, whose back-end listens at `socket`.
    pub fn vsock(mut self, socket: &Path) -> Self {
        let chardev = self.chardev(socket);
        let device = format!("vhost-user-vsock-pci,chardev={chardev}");
        self.devices.extend(["-device".to_owned(), device]);
        self
    }

    /// Adds a PCI function that a vfio-user server at `socket` has, behind an IOMMU that the guest
    /// uses: programs in it drive such functions, once `give-to-vfio ADDRESS…` has run there. The
    /// first one's address is `00:10.0`, the next one's `00:11.0`.
    pub fn vfio_user(mut self, socket: &Path) -> Self {
        if self.functions == 0 {
            // The IOMMU comes before what is behind it.
            let iommu = ["-device", "intel-iommu,caching-mode=on,intremap=on"];
            self.devices.extend(iommu.map(str::to_owned));
        }
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "addr": format!("{:x}.0", FUNCTION_SLOT + self.functions),
            "socket": { "type": "unix", "path": socket.to_string_lossy() },
        });
        self.devices
            .extend(["-device".to_owned(), device.to_string()]);
        self.functions += 1;
        self
    }

    /// Adds a disk of QEMU's own, an image.
    pub fn own_disk(mut self, image: &Path) -> Self {
        let drive = format!("if=virtio,format=raw,cache=unsafe,file={}", value(image));
        self.devices.extend(["-drive".to_owned(), drive]);
        self
    }

    /// How much memory the guest has.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The file that is the guest's memory. QEMU makes it as long as it must be.
    pub fn memory_file(mut self, path: &Path) -> Self {
        self.memory_file = Some(path.to_owned());
        self
    }

    /// Lets QEMU connect again to back-ends that have gone; for devices that are added after this.
    pub fn reconnects(mut self) -> Self {
        self.reconnects = true;
        self
    }

    /// How many processors the guest has.
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Lets the guest reboot, which otherwise ends the run.
    pub fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// How long the whole run may take.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Boots the guest, runs its script to the end and reports. Not ending in time is an error.
    pub fn run(self) -> Result<Report> {
        self.start()?.finish()
    }

    /// Boots the guest.
    pub fn start(self) -> Result<RunningGuest> {
        let folder = tempfile::Builder::new().prefix("vudev-guest-").tempdir()?;
        self.write_initramfs(&folder.path().join("initramfs"))?;
        let command = self.command(folder.path())?;
        let errors = File::create(folder.path().join("qemu.log"))?;
        let mut qemu = Child::start_with("QEMU", &command, |command| {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(errors);
        })?;
        let lines = Lines::new(qemu.take_stdout().context("QEMU's output")?);
        let input = qemu.take_stdin();
        let deadline = Instant::now() + self.deadline;
        Ok(RunningGuest {
            qemu,
            lines,
            input,
            folder,
            deadline,
            output: String::new(),
        })
    }

    fn chardev(&mut self, socket: &Path) -> String {
        let name = format!("c{}", self.back_ends);
        self.back_ends += 1;
        let path = value(socket);
        let reconnect = match self.reconnects {
            true => format!(",reconnect-ms={RECONNECT_MS}"),
            false => String::new(),
        };
        self.devices.extend([
            "-chardev".to_owned(),
            format!("socket,id={name},path={path}{reconnect}"),
        ]);
        name
    }

    fn command(&self, folder: &Path) -> Result<Command> {
        let mut qemu = self.assets.qemu()?;
        let size = format!("id=m0,size={}M,share=on", self.memory_mib);
        let memory = match &self.memory_file {
            Some(path) => format!("memory-backend-file,{size},mem-path={}", value(path)),
            None => format!("memory-backend-memfd,{size}"),
        };
        let accelerator = env::var(ACCELERATOR_VARIABLE).unwrap_or_else(|_| ACCELERATOR.to_owned());
        qemu.args(["-M", "q35,memory-backend=m0", "-object", &memory])
            .args([
                "-accel",
                &accelerator,
                "-cpu",
                PROCESSOR,
                "-m",
                &self.memory_mib.to_string(),
            ])
            .args(["-smp", &self.processors.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-kernel")
            .arg(self.assets.kernel())
            .arg("-initrd")
            .arg(folder.join("initramfs"))
            .args(["-append", &self.kernel_command_line()])
            .arg("-serial")
            .arg(format!("file:{}", folder.join("serial.log").display()))
            .args([
                "-chardev",
                "stdio,id=script,signal=off",
                "-serial",
                "chardev:script",
            ])
            .args(&self.devices);
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
        Ok(qemu)
    }

    fn kernel_command_line(&self) -> String {
        // The early console says why a guest never got as far as its real one.
        let console = if self.virtio_console {
            "console=hvc0 earlycon=uart8250,io,0x3f8,115200"
        } else {
            "console=ttyS0"
        };
        let iommu = match self.functions {
            0 => "",
            // The timer is tried for so many turns of a loop, behind the IOMMU without another
            // chance: not enough on a host that is very busy.
            _ => " intel_iommu=on no_timer_check",
        };
        format!("{console} panic=-1 loglevel=4 random.trust_cpu=on{iommu}")
    }

    /// The initramfs that all guests have, and after it the files of this one.
    fn write_initramfs(&self, path: &Path) -> Result<()> {
        let common = self.assets.initramfs();
        fs::copy(&common, path).with_context(|| format!("copying {}", common.display()))?;
        let mut own = Archive::new(Vec::new());
        own.program("init", INIT.as_bytes())?;
        own.program("bin/give-to-vfio", GIVE_TO_VFIO.as_bytes())?;
        if let Some(script) = &self.script {
            own.file("script", script.as_bytes())?;
        }
        programs::add(&mut own, &self.programs)?;
        OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(&own.finish()?)?;
        Ok(())
    }
}

/// What a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The exit status of its script; `None` if the guest ended without saying.
    pub status: Option<i32>,
    /// What the script printed, without empty lines.
    pub output: String,
}

/// A guest that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct RunningGuest {
    qemu: Child,
    lines: Lines,
    input: Option<ChildStdin>,
    folder: TempDir,
    deadline: Instant,
    output: String,
}

impl RunningGuest {
    /// Waits until the script has printed a line that contains `wanted`.
    pub fn wait_for(&mut self, wanted: &str) -> Result<String> {
        loop {
            let next = self.lines.next(self.deadline);
            let next = next.with_context(|| format!("waiting for {wanted:?}"));
            let Some(line) = self.explain(next)? else {
                return self.explain(Err(anyhow::anyhow!("ended without {wanted:?}")));
            };
            self.keep(&line);
            if line.contains(wanted) {
                return Ok(line);
            }
        }
    }

    /// Sends a line to the script's standard input.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("QEMU has no input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Waits until the guest has switched itself off, and reports what its script did.
    pub fn finish(mut self) -> Result<Report> {
        let mut status = None;
        loop {
            let next = self.lines.next(self.deadline);
            let Some(line) = self.explain(next)? else {
                break;
            };
            if let Some(code) = line.strip_prefix("@@exit ") {
                status = code.trim().parse().ok();
            }
            self.keep(&line);
        }
        let limit = self.deadline.saturating_duration_since(Instant::now());
        let ended = self.qemu.wait(limit);
        let ended = self.explain(ended)?;
        if !ended.success() {
            let ended = describe(ended);
            self.explain(Err(anyhow::anyhow!("QEMU ended with {ended}")))?;
        }
        Ok(Report {
            status,
            output: std::mem::take(&mut self.output),
        })
    }

    /// Waits until QEMU has ended by itself; for guests without a script.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let ended = self.qemu.wait(limit);
        match self.explain(ended)? {
            status if status.success() => Ok(()),
            status => self.explain(Err(anyhow::anyhow!("QEMU ended with {}", describe(status)))),
        }
    }

    /// The file into which the guest's first serial port goes.
    pub fn serial_log(&self) -> PathBuf {
        self.folder.path().join("serial.log")
    }

    fn keep(&mut self, line: &str) {
        // Neither what the harness says to itself nor an empty line is the script's result.
        if !line.starts_with("@@") && !line.is_empty() {
            self.output.push_str(line);
            self.output.push('\n');
        }
    }

    /// Adds to an error what the guest and QEMU said last.
    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let serial = tail(&self.serial_log());
        let qemu = tail(&self.folder.path().join("qemu.log"));
        bail!(
            "{error:#}\n-- script --\n{}-- serial --\n{serial}-- QEMU --\n{qemu}",
            self.output
        )
    }
}

impl Drop for RunningGuest {
    /// Of several guests the one that fails a test is not always the one that knows why.
    fn drop(&mut self) {
        if std::thread::panicking() {
            while let Ok(Some(line)) = self.lines.next(Instant::now()) {
                self.keep(&line);
            }
            if let Err(error) = self.explain::<()>(Err(anyhow::anyhow!("a guest is given up"))) {
                eprintln!("{error}");
            }
        }
    }
}

/// A path in QEMU's options, where a comma inside a value is written twice.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines[start..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}
