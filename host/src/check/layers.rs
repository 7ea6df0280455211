//! Each layer of the report, from the facts that were heard and the settings that explain them.

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use vudev_jail::Namespace;
use vudev_jail::probe::{SECCOMP_ACTIONS, seccomp_action};
use vudev_jail::spawn::{STEP_CLONE, STEP_IDENTITY};

use super::facts::{Facts, Found, Tried};
use super::layer::Layer;
use super::setting;
use super::trial::{NamespaceTrials, NotStarted, STEP_PROGRAM, Trial};
use crate::remedy::of_step;

/// The oldest kernel with all that a ring needs (DEFER_TASKRUN).
const KERNEL_MIN: (u32, u32) = (6, 1);

const NEWER_KERNEL: &str = "Linux 6.1 or later has it";

/// What the ring of a disk with the default queues is counted as, where a kernel counts rings:
/// 4096 entries of 64 bytes, 8192 completions of 16, and some pages. So 8 MiB are for 20 disks.
const RING_BYTES: u64 = 400 << 10;

/// What the supervisor opens for itself, and while it starts a device.
const FILES: u64 = 20;

/// What it keeps open for each device, whichever it is: a process, a channel, sockets' folders.
const FILES_OF_DEVICE: u64 = 4;

/// In the order of the report.
pub(super) fn all(
    facts: &Facts,
    namespaces: &NamespaceTrials,
    jailed: Result<&Trial, &NotStarted>,
) -> Vec<Layer> {
    let release = setting("/proc/sys/kernel/osrelease").unwrap_or_default();
    let context = Context { facts, jailed };
    let mut layers = vec![kernel(&release), start(jailed), context.ring()];
    for (name, tried) in [
        ("io_uring.flags", Tried::RingFlags),
        ("io_uring.features", Tried::RingFeatures),
        ("io_uring.opcodes", Tried::RingOpcodes),
        ("io_uring.restrictions", Tried::RingRestrictions),
    ] {
        layers.push(context.layer(name, tried, NEWER_KERNEL));
    }
    layers.extend(Namespace::ALL.map(|kind| namespace(namespaces, kind)));
    layers.push(context.identity());
    let mounts = "the container's profile must allow mount, fsopen, move_mount and pivot_root";
    layers.push(context.layer("root", Tried::EmptyRoot, mounts));
    layers.push(context.landlock());
    let prctl = "the container's profile must allow prctl and capset";
    layers.push(context.layer("capabilities", Tried::Capabilities, prctl));
    layers.push(context.layer("process", Tried::Process, prctl));
    layers.extend(SECCOMP_ACTIONS.map(|(action, number)| seccomp(action, number)));
    let filters = "a kernel with CONFIG_SECCOMP_FILTER, and a container that allows seccomp";
    layers.push(context.layer("seccomp.filter", Tried::Filter, filters));
    layers.push(open_files());
    layers.push(memlock());
    layers
}

/// A process: not what it may do then. What keeps it from its namespaces or ids is told of those.
pub(super) fn start(jailed: Result<&Trial, &NotStarted>) -> Layer {
    let name = "start";
    let (step, errno) = match jailed {
        Ok(_) => return Layer::there(name, "a device's process can be started"),
        Err(error) if is_told_elsewhere(error) => {
            return Layer::there(name, "only its namespaces or ids keep a device from it");
        }
        Err(&NotStarted { step, errno }) => (step, errno),
    };
    let remedy = match (step, errno) {
        (STEP_PROGRAM, Errno::NOENT) => "mount /proc".to_owned(),
        _ => of_step(step, errno).unwrap_or_else(|| "see the other lines".to_owned()),
    };
    Layer::not_there(name, format!("{step}: {errno}"), remedy)
}

/// Whether the layers of namespaces and ids say why a process could not be started.
fn is_told_elsewhere(error: &NotStarted) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE, Errno::AGAIN];
    let theirs = error.step == STEP_CLONE || STEPS_OF_IDENTITY.contains(&error.step);
    theirs && !limits.contains(&error.errno)
}

/// The layer that `seccomp-mode=log` is made of.
pub(super) fn require_listener(layers: &mut [Layer]) {
    let listener = layers.iter_mut().find(|layer| layer.name == USER_NOTIFY);
    if let Some(layer) = listener {
        layer.required = true;
    }
}

struct Context<'a> {
    facts: &'a Facts,
    jailed: Result<&'a Trial, &'a NotStarted>,
}

impl Context<'_> {
    fn layer(&self, name: &'static str, tried: Tried, remedy: &str) -> Layer {
        match self.facts.of(tried) {
            Some(Found::There(detail)) => Layer::there(name, detail),
            Some(Found::Lacks(missing)) => {
                let detail = format!("not there: {}", missing.join(", "));
                Layer::not_there(name, detail, remedy).missing(missing)
            }
            Some(Found::Failed(step, errno)) => {
                let errno = Errno::from_raw_os_error(*errno);
                let remedy = of_step(step, errno).unwrap_or_else(|| remedy.to_owned());
                Layer::not_there(name, format!("{step}: {errno}"), remedy)
            }
            None => self.untried(name),
        }
    }

    /// Nothing was heard of it: because of another layer, which has its own remedy.
    fn untried(&self, name: &'static str) -> Layer {
        let cause = match self.jailed {
            Err(error) => {
                let cause = format!("not tried, for {} failed", error.step);
                let see = match is_told_elsewhere(error) {
                    true => "see the other lines",
                    false => "see start",
                };
                return Layer::not_there(name, cause, see);
            }
            Ok(Trial {
                death: Some(death), ..
            }) => {
                format!("not tried: a step before it failed, {death}")
            }
            Ok(_) => "not tried: a step before it failed".to_owned(),
        };
        Layer::not_there(name, cause, "see the other lines")
    }

    fn ring(&self) -> Layer {
        let disabled = setting("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        let remedy = match self.facts.of(Tried::Ring) {
            Some(Found::Failed(_, libc::ENOSYS)) => "a kernel with CONFIG_IO_URING, or a \
                container whose seccomp profile allows io_uring_setup"
                .to_owned(),
            Some(Found::Failed(_, libc::ENOMEM)) => {
                "raise the limit of locked memory (ulimit -l)".to_owned()
            }
            _ if ["1", "2"].contains(&disabled.as_str()) => {
                format!("sysctl -w kernel.io_uring_disabled=0 (it is {disabled})")
            }
            _ => "the container's seccomp profile must allow io_uring_setup, \
                  io_uring_register and io_uring_enter"
                .to_owned(),
        };
        self.layer("io_uring", Tried::Ring, &remedy)
    }

    fn identity(&self) -> Layer {
        let name = "id_mapping";
        let started = who();
        match (self.facts.of(Tried::Identity), self.jailed) {
            (Some(Found::There(detail)), _) => Layer::there(name, format!("{started}; {detail}")),
            (_, Err(error)) if STEPS_OF_IDENTITY.contains(&error.step) => {
                let detail = format!("{started}; {}: {}", error.step, error.errno);
                let remedy = of_step(error.step, error.errno);
                Layer::not_there(
                    name,
                    detail,
                    remedy.unwrap_or_else(|| "see start".to_owned()),
                )
            }
            _ => self.untried(name),
        }
    }

    /// A kernel without it is not refused.
    fn landlock(&self) -> Layer {
        let lsm = setting("/sys/kernel/security/lsm");
        let enabled = lsm.map_or_else(String::new, |lsm| format!(" (lsm={lsm} now)"));
        let remedy = format!(
            "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in lsm= of its command \
             line{enabled}; the other layers refuse the same without it"
        );
        let layer = self.layer("landlock", Tried::Landlock, &remedy);
        match self.facts.of(Tried::Landlock) {
            Some(Found::Lacks(_)) => layer.optional(),
            _ => layer,
        }
    }
}

/// Steps of a process's start that give it its ids; by then it is there, with its namespaces.
const STEPS_OF_IDENTITY: [&str; 7] = [
    STEP_IDENTITY,
    "write setgroups",
    "write uid_map",
    "write gid_map",
    "setgroups",
    "setresgid",
    "setresuid",
];

/// Who asks, as far as it matters for what a device becomes.
fn who() -> &'static str {
    let root = rustix::process::geteuid().is_root();
    let map = setting("/proc/self/uid_map").unwrap_or_default();
    let outermost = map.split_whitespace().eq(["0", "0", "4294967295"]);
    match (root, outermost) {
        (true, true) => "started as root",
        (true, false) => "started as root of a user namespace (a container)",
        (false, true) => "started as an ordinary user",
        (false, false) => "started as an ordinary user in a user namespace (a container)",
    }
}

fn kernel(release: &str) -> Layer {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version >= KERNEL_MIN {
        true => Layer::there("kernel", release),
        false => Layer::not_there("kernel", release, "Linux 6.1 or later is needed"),
    }
}

/// Its own trial, for clone3 does not say which kind it refuses. All are made inside of a user
/// namespace, so without that one nothing can be told of the others.
fn namespace(namespaces: &NamespaceTrials, namespace: Namespace) -> Layer {
    let name = match namespace {
        Namespace::User => "namespace.user",
        Namespace::Pid => "namespace.pid",
        Namespace::Mount => "namespace.mnt",
        Namespace::Network => "namespace.net",
        Namespace::Ipc => "namespace.ipc",
        Namespace::Uts => "namespace.uts",
    };
    let refused = |wanted| {
        let mut trials = namespaces.iter();
        trials.find_map(|(kind, tried)| tried.as_ref().err().filter(|_| *kind == wanted))
    };
    let not_made = |error: &&NotStarted| error.step == STEP_CLONE;
    match refused(namespace) {
        Some(error) if error.step == STEP_IDENTITY => {
            Layer::not_there(name, "not tried: no id to be mapped", "see id_mapping")
        }
        Some(error) if error.step == STEP_CLONE => {
            let user = refused(Namespace::User).filter(not_made);
            if user.is_some() && namespace != Namespace::User {
                let cause = "not tried: it is made inside of a user namespace";
                return Layer::not_there(name, cause, "see namespace.user");
            }
            let (step, errno) = (error.step, error.errno);
            let remedy = of_step(step, errno)
                .unwrap_or_else(|| "a kernel with this kind of CONFIG_NAMESPACES".to_owned());
            Layer::not_there(name, format!("{step}: {errno}"), remedy)
        }
        Some(error) if error.errno == Errno::MFILE => {
            let cause = format!("not tried, for {} failed", error.step);
            Layer::not_there(name, cause, "see start")
        }
        // Or it was made, and its ids could not be mapped: a layer of its own.
        _ => Layer::there(name, "can be made"),
    }
}

const USER_NOTIFY: &str = "seccomp.user-notify";

fn seccomp(action: &'static str, number: u32) -> Layer {
    // The names of the layers; what no policy needs by default is for other modes.
    let (name, required) = match action {
        "trap" => ("seccomp.trap", true),
        "errno" => ("seccomp.errno", true),
        "kill-process" => ("seccomp.kill-process", true),
        "log" => ("seccomp.log", false),
        _ => (USER_NOTIFY, false),
    };
    let layer = match seccomp_action(number) {
        Ok(()) => Layer::there(name, "the kernel has it"),
        Err(errno) => Layer::not_there(
            name,
            format!("seccomp: {errno}"),
            "a kernel with CONFIG_SECCOMP_FILTER, and a container that allows seccomp",
        ),
    };
    match required {
        true => layer,
        false => layer.optional(),
    }
}

/// What `vudev` has after it raised its limit.
fn open_files() -> Layer {
    let name = "open_files";
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Layer::there(name, "unlimited");
    };
    let devices = limit.saturating_sub(FILES) / FILES_OF_DEVICE;
    let text = format!("{limit}: for {devices} devices");
    match devices {
        0 => Layer::not_there(name, text, "raise it: ulimit -n, LimitNOFILE= of systemd"),
        _ => Layer::there(name, text),
    }
}

/// What `vudev` has after it raised its limit. Whether this kernel counts rings is not known.
fn memlock() -> Layer {
    let name = "memlock";
    let layer = match getrlimit(Resource::Memlock).current {
        None => Layer::there(name, "unlimited"),
        Some(bytes) => {
            let (kib, rings) = (bytes >> 10, bytes / RING_BYTES);
            let text = format!("{kib} KiB: for {rings} disks, where the kernel counts rings");
            match rings {
                0 => Layer::not_there(name, text, "raise it: ulimit -l, LimitMEMLOCK= of systemd"),
                _ => Layer::there(name, text),
            }
        }
    };
    layer.optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_first_two_numbers() {
        for (release, available) in [
            ("6.1.0-18-amd64", true),
            ("6.18", true),
            ("10.0-rc1", true),
            ("6.0.19", false),
            ("5.15.0", false),
            ("", false),
        ] {
            assert_eq!(kernel(release).available, available, "{release}");
        }
    }

    #[test]
    fn what_was_not_heard_of_is_not_available() {
        let facts = Facts::default();
        let trial = Trial {
            heard: Vec::new(),
            death: Some("it was killed by signal 31".to_owned()),
        };
        let context = Context {
            facts: &facts,
            jailed: Ok(&trial),
        };
        let layer = context.layer("root", Tried::EmptyRoot, "do it");
        assert!(!layer.available && layer.detail.contains("killed by signal 31"));
    }
}
