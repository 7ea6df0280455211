//! A device VM that a test types commands into, and functions of it whose front-ends are the
//! test's own. It knows no device.

#![allow(dead_code, reason = "each suite uses its part of what they share")]
#![allow(
    clippy::unwrap_used,
    reason = "a suite whose own set-up fails has nothing to test"
)]

use std::path::Path;

use tempfile::TempDir;
use vudev_frontend::{Builder, FrontEnd, Parked};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::Running;
use vudev_tests::{Guest, RunningGuest};

/// Does what it is told, line by line.
const SCRIPT: &str = "
    echo @listening
    while read -r line; do eval \"$line\"; echo \"@done $?\"; done
";

/// A function: its proxy, and the front-end that is to come through it.
pub(crate) struct Function {
    proxy: Running,
    _folder: TempDir,
}

impl Function {
    /// Its front-end's memory is the function's.
    pub(crate) fn new(set_up: impl FnOnce(Builder) -> Builder) -> (Self, Parked) {
        let folder = tempfile::Builder::new().prefix("vudev-").tempdir().unwrap();
        let front = set_up(FrontEnd::connect(folder.path().join("vhost")));
        let front = front.prepare().unwrap();
        let ram = front
            .memory()
            .with_region(0, |_, file| file.try_clone_to_owned());
        let proxy = Running::start_in(folder.path(), SharedMemory::RamFile(ram.unwrap()));
        let this = Self {
            proxy,
            _folder: folder,
        };
        (this, front)
    }

    /// Adds it to a guest.
    pub(crate) fn plug(&self, guest: Guest) -> Guest {
        guest.vfio_user(&self.proxy.vfio())
    }
}

/// A guest that waits for commands.
pub(crate) struct DeviceVm(RunningGuest);

impl DeviceVm {
    pub(crate) fn start(guest: Guest, programs: &[&Path]) -> Self {
        let add = |guest: Guest, program: &&Path| guest.program(program);
        let guest = programs.iter().fold(guest, add);
        let mut this = Self(guest.script(SCRIPT).start().unwrap());
        // What comes before that is lost: nobody has opened the port yet.
        this.0.wait_for("@listening").unwrap();
        this
    }

    /// Runs a line of shell and tells its status.
    pub(crate) fn status(&mut self, line: &str) -> i32 {
        self.0.send(line).unwrap();
        let done = self.0.wait_for("@done ").unwrap();
        let (_, status) = done.split_once("@done ").unwrap();
        status.parse().unwrap()
    }

    /// Runs a line of shell that must succeed.
    pub(crate) fn run(&mut self, line: &str) {
        assert_eq!(self.status(line), 0, "{line}");
    }

    /// Starts a `vudev` in the background, as `$vudev`, and waits until its devices are ready.
    pub(crate) fn start_vudev(&mut self, arguments: &str, devices: usize) {
        self.start_program("vudev", arguments, devices);
    }

    /// The same of another program that is one.
    pub(crate) fn start_program(&mut self, program: &str, arguments: &str, devices: usize) {
        self.run(&format!("{program} {arguments} 2>/log & vudev=$!"));
        let ready = match devices {
            1 => "1 device is ready".to_owned(),
            many => format!("{many} devices are ready"),
        };
        self.logged(&ready);
    }

    /// Waits until the `vudev` in the background has said this. It says so to a file, as two
    /// programs that write to the port at a time would tear each other's lines.
    pub(crate) fn logged(&mut self, said: &str) {
        let status = self.status(&format!(
            "until grep -q '{said}' /log; do [ -d /proc/$vudev ] || break; usleep 10000; done; \
             grep -q '{said}' /log"
        ));
        if status != 0 {
            panic!(
                "vudev has not said: {said}, but:\n{}",
                self.output("cat /log")
            );
        }
    }

    /// Starts a `vudev` that is refused for this reason.
    pub(crate) fn refuses(&mut self, arguments: &str, reason: &str) {
        self.ends(2, arguments, reason);
    }

    /// Starts a `vudev` whose device fails for this reason before it is ready.
    pub(crate) fn fails(&mut self, arguments: &str, reason: &str) {
        self.ends(1, arguments, reason);
        self.run("! grep -q ready /refused");
    }

    fn ends(&mut self, expected: i32, arguments: &str, reason: &str) {
        let status = self.status(&format!("vudev {arguments} 2>/refused"));
        if status != expected || self.status(&format!("grep -qFe '{reason}' /refused")) != 0 {
            panic!(
                "status {status}, without {reason}: {}",
                self.output("cat /refused")
            );
        }
    }

    /// What a line of shell prints.
    fn output(&mut self, line: &str) -> String {
        self.0.send(line).unwrap();
        let mut lines = String::new();
        loop {
            let line = self.0.wait_for("").unwrap();
            if line.contains("@done ") {
                return lines;
            }
            lines.push_str(&line);
            lines.push('\n');
        }
    }

    /// Switches it off.
    pub(crate) fn end(mut self) {
        self.0.send("exit 0").unwrap();
        let report = self.0.finish().unwrap();
        assert_eq!(report.status, Some(0), "{}", report.output);
    }
}
