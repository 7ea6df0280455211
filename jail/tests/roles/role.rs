//! The role's side: what a device process does, up to the event loop, and then what the scenario
//! asks for. An outcome is told over the channel, a failed assertion by exit status 101.
#![expect(unsafe_code, reason = "system calls that no wrapper would make")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};
use rustix::net::{SendFlags, send};
use vudev_jail::role::{self, Confinement, Limits};
use vudev_jail::{Arch, Embedded, StepError, policy, ring};

/// `argv[0]` of a role.
pub(crate) const NAME: &str = "test-role";
/// The control channel's number.
pub(crate) const CHANNEL: i32 = 3;
/// First byte of a SIGSYS report.
pub(crate) const TAG: u8 = 0xee;
/// RLIMIT_NOFILE of a role.
pub(crate) const OPEN_FILES: u64 = 100;
/// Exit status when the supervisor was found dead.
pub(crate) const ORPHAN: i32 = 7;

/// What a role is jailed with.
pub(crate) const POLICY: &str = "block_device_vhost_user";

pub(crate) fn main(arguments: &[String]) -> ! {
    let [scenario, argument] = arguments else {
        std::process::exit(2)
    };
    let before = open_descriptors();
    let kept: Vec<i32> = match &**scenario {
        "descriptors" => vec![CHANNEL, 9],
        "stay" => vec![CHANNEL, 4],
        _ => vec![CHANNEL],
    };
    let mut descriptors = role::inherit(&kept).unwrap();
    let channel = descriptors.remove(0);
    role::new_session().unwrap();
    match &**scenario {
        "descriptors" => {
            let text = format!("{before:?} {:?}", open_descriptors());
            tell(&channel, &text);
        }
        "root" => tell(&channel, &look_at_root()),
        "landlock" => tell(&channel, &only_landlock(&channel)),
        "orphan" => wait_until_orphan(&channel),
        "denials" => crate::denials::role(&channel, argument),
        "verdicts" => crate::verdicts::role(&channel, argument),
        "facts" => tell(&channel, &facts(&channel)),
        _ => jailed(&channel, scenario, argument),
    }
    std::process::exit(0)
}

/// The whole way, then one attempt.
fn jailed(channel: &OwnedFd, scenario: &str, argument: &str) {
    let mut ring = restricted_ring();
    let program = policy::compile(POLICY, Arch::HOST.unwrap(), &Embedded).unwrap();
    confine(channel, true).unwrap();
    ring.submitter().register_enable_rings().unwrap();
    role::load_filter(&program).unwrap();
    match scenario {
        "ring" => crate::attempts::by_ring(&mut ring, channel),
        "forbidden" => crate::attempts::forbidden(argument),
        "abort" => std::process::abort(),
        "fault" => crate::attempts::fault(),
        "full" => {
            crate::attempts::fill(channel);
            crate::attempts::forbidden(argument);
        }
        _ => {}
    }
    tell(channel, "ready");
    if scenario == "stay" {
        stay(&mut ring);
    }
    wait_for_supervisor(&mut ring, channel);
}

fn confine(channel: &OwnedFd, namespaces: bool) -> Result<role::Confined, StepError> {
    let limits = Limits {
        open_files: OPEN_FILES,
        locked_memory: None,
    };
    let channel = channel.as_fd();
    role::confine(&Confinement {
        namespaces,
        channel,
        sigsys_tag: TAG,
        limits,
    })
}

fn restricted_ring() -> IoUring {
    let list = ring::allow_list(POLICY, &Embedded).unwrap();
    let ring = IoUring::builder().setup_r_disabled().build(8).unwrap();
    let mut restrictions: Vec<_> = list
        .opcodes
        .iter()
        .map(|op| Restriction::sqe_op(*op))
        .collect();
    restrictions.push(Restriction::sqe_flags_allowed(list.flags));
    ring.submitter()
        .register_restrictions(&mut restrictions)
        .unwrap();
    ring
}

/// Until the other end of the channel is closed, or says something.
fn wait_for_supervisor(ring: &mut IoUring, channel: &OwnedFd) {
    let channel = types::Fd(channel.as_raw_fd());
    complete(
        ring,
        &opcode::PollAdd::new(channel, libc::POLLIN.cast_unsigned().into()).build(),
    );
}

/// For ever: a pipe's write end never becomes readable.
fn stay(ring: &mut IoUring) {
    complete(
        ring,
        &opcode::PollAdd::new(types::Fd(4), libc::POLLIN.cast_unsigned().into()).build(),
    );
}

/// Submits one entry and gives its result.
pub(crate) fn complete(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
    // SAFETY: whatever an entry points at is a local of a caller that waits right here.
    unsafe { ring.submission().push(entry).unwrap() };
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().unwrap().result()
}

pub(crate) fn tell(channel: &OwnedFd, text: &str) {
    send(channel, text.as_bytes(), SendFlags::NOSIGNAL).unwrap();
}

/// A system call by number, without a wrapper that would do something else first.
pub(crate) fn call(number: libc::c_long, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the calls made here touch no memory: pointers are null or of static strings.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

fn open_descriptors() -> Vec<i32> {
    // SAFETY: a system call on numbers.
    (0..1024)
        .filter(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0)
        .collect()
}

/// What the empty root looks like with no other layer over it.
fn look_at_root() -> String {
    role::empty_root().unwrap();
    let entries = std::fs::read_dir("/").unwrap().count();
    let above = std::fs::read_dir("/..").unwrap().count();
    let create = std::fs::write("/file", "x").unwrap_err().raw_os_error();
    let mkdir = std::fs::create_dir("/d").unwrap_err().raw_os_error();
    let proc = std::fs::metadata("/proc").unwrap_err().raw_os_error();
    let here = std::env::current_dir().unwrap();
    format!(
        "{entries} {above} {create:?} {mkdir:?} {proc:?} {}",
        here.display()
    )
}

/// Landlock without a mount namespace: the host's root is there, and refused.
fn only_landlock(channel: &OwnedFd) -> String {
    let confined = confine(channel, false).unwrap();
    let open = std::fs::File::open("/proc/self/status").map_err(|error| error.raw_os_error());
    format!("{} {:?}", confined.landlock.abi, open.err().flatten())
}

/// The supervisor closes its end first; the step must notice.
fn wait_until_orphan(channel: &OwnedFd) {
    crate::support::wait(channel.as_fd(), "the supervisor's end");
    let error = role::die_with_parent(channel.as_fd()).unwrap_err();
    assert_eq!(error.errno, rustix::io::Errno::PIPE, "{error}");
    std::process::exit(ORPHAN)
}

/// What only the process itself can say, after all layers but the filter.
fn facts(channel: &OwnedFd) -> String {
    use rustix::process::{Resource, getgid, getgroups, getpid, getrlimit, getsid, getuid};
    confine(channel, true).unwrap();
    let limit = |resource| getrlimit(resource).current;
    let (uid, gid, groups) = (
        getuid().as_raw(),
        getgid().as_raw(),
        getgroups().unwrap().len(),
    );
    let leader = getsid(None).unwrap() == getpid();
    let pid = getpid();
    let securebits = rustix::thread::capabilities_secure_bits().unwrap().bits();
    let limits = [
        limit(Resource::Nofile),
        limit(Resource::Core),
        limit(Resource::Nproc),
    ];
    let environment = std::env::vars_os().count();
    format!("{uid} {gid} {pid} {leader} {securebits:#x} {limits:?} {environment} {groups}")
}
