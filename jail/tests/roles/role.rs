//! The role's side: what a device process does, up to the event loop, and then what the scenario
//! asks for. An outcome is told over the channel, a failed assertion by exit status 101.
#![expect(unsafe_code, reason = "system calls that no wrapper would make")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::net::{SendFlags, send};
use vudev_jail::role::Step;
use vudev_jail::{Arch, Begun, Embedded, Jail, Limits, Program, policy, ring};

/// `argv[0]` of a role.
pub(crate) const NAME: &str = "test-role";
/// The control channel's number.
pub(crate) const CHANNEL: i32 = 3;
/// First byte of a SIGSYS report.
pub(crate) const TAG: u8 = 0xee;
/// RLIMIT_NOFILE of a role.
pub(crate) const OPEN_FILES: u64 = 100;
/// What a role of the scenario "stay" keeps beside its channel.
const STAY: i32 = 4;
/// Exit status when the supervisor was found dead.
pub(crate) const ORPHAN: i32 = 7;

/// What a role is jailed with.
pub(crate) const POLICY: &str = "block_device_vhost_user";

pub(crate) fn main(arguments: &[String]) -> ! {
    let [scenario, argument] = arguments else {
        std::process::exit(2)
    };
    let before = open_descriptors();
    let (begun, channel, _kept) = match &**scenario {
        "descriptors" => begin_with(9),
        "stay" => begin_with(STAY),
        _ => {
            let (begun, [channel]) = Jail::begin([CHANNEL]).unwrap();
            (begun, channel, None)
        }
    };
    match &**scenario {
        "descriptors" => {
            let text = format!("{before:?} {:?}", open_descriptors());
            tell(&channel, &text);
        }
        "root" => tell(&channel, &look_at_root(begun, &channel)),
        "landlock" => tell(&channel, &only_landlock(begun, &channel)),
        "orphan" => wait_until_orphan(begun, &channel),
        "denials" => crate::denials::role(begun, &channel, argument),
        "verdicts" => crate::verdicts::role(&channel, argument),
        "facts" => tell(&channel, &facts(begun, &channel)),
        _ => jailed(begun, &channel, scenario, argument),
    }
    std::process::exit(0)
}

fn begin_with(number: i32) -> (Begun, OwnedFd, Option<OwnedFd>) {
    let (begun, [channel, other]) = Jail::begin([CHANNEL, number]).unwrap();
    (begun, channel, Some(other))
}

/// The whole way, then one attempt.
fn jailed(begun: Begun, channel: &OwnedFd, scenario: &str, argument: &str) {
    let mut ring = restricted_ring();
    let program = policy::compile(POLICY, Arch::HOST.unwrap(), &Embedded).unwrap();
    let enable_ring = || ring.submitter().register_enable_rings();
    let entered = begun
        .policy(&program)
        .limits(LIMITS)
        .enter(channel.as_fd(), TAG, enable_ring);
    entered.unwrap();
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

const LIMITS: Limits = Limits {
    open_files: OPEN_FILES,
    locked_memory: None,
    data: None,
};

fn restricted_ring() -> IoUring {
    let list = ring::allow_list(POLICY, &Embedded).unwrap();
    let ring = IoUring::builder().setup_r_disabled().build(8).unwrap();
    list.restrict(&ring).unwrap();
    ring
}

/// Loads a policy for this thread alone: a jail is entered once, by a process.
pub(crate) fn load_filter(program: &Program) {
    let mut instructions: Vec<_> = program
        .instructions()
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: instructions.len().try_into().unwrap(),
        filter: instructions.as_mut_ptr(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies `len` instructions, which live through the call.
    let loaded = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
    assert_eq!(loaded, 0, "{}", std::io::Error::last_os_error());
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
        &opcode::PollAdd::new(types::Fd(STAY), libc::POLLIN.cast_unsigned().into()).build(),
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

/// What the empty root looks like, before another layer is over it.
fn look_at_root(begun: Begun, channel: &OwnedFd) -> String {
    let mut seen = String::new();
    let look = |step| {
        if step == Step::EmptyRoot {
            seen = describe_root();
        }
    };
    let jail = begun.without_policy();
    jail.enter_step_by_step(channel.as_fd(), TAG, || Ok(()), look)
        .unwrap();
    seen
}

fn describe_root() -> String {
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
fn only_landlock(begun: Begun, channel: &OwnedFd) -> String {
    let mut abi = 0;
    let look = |step| {
        if let Step::Landlock(landlock) = step {
            abi = landlock.abi;
        }
    };
    let jail = begun.without_policy().namespaces(false);
    jail.enter_step_by_step(channel.as_fd(), TAG, || Ok(()), look)
        .unwrap();
    let open = std::fs::File::open("/proc/self/status").map_err(|error| error.raw_os_error());
    format!("{abi} {:?}", open.err().flatten())
}

/// The supervisor closes its end first; the step must notice.
fn wait_until_orphan(begun: Begun, channel: &OwnedFd) {
    crate::support::wait(channel.as_fd(), "the supervisor's end");
    let jail = begun.without_policy();
    let error = jail
        .enter(channel.as_fd(), TAG, || Ok(()))
        .expect_err("nobody is there");
    assert_eq!(error.errno, rustix::io::Errno::PIPE, "{error}");
    std::process::exit(ORPHAN)
}

/// What only the process itself can say, after all layers but the filter.
fn facts(begun: Begun, channel: &OwnedFd) -> String {
    use rustix::process::{Resource, getgid, getgroups, getpid, getrlimit, getsid, getuid};
    let jail = begun.without_policy().limits(LIMITS);
    jail.enter(channel.as_fd(), TAG, || Ok(())).unwrap();
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
