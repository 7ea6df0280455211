//! A daemon that answers in capitals, in a jail of its own; `docs/jailing-a-daemon.md` goes through
//! it. `shout PATH` serves at a socket, `shout --demo` shows what one that was taken over can do.
#![expect(unsafe_code, reason = "a ring's entries point at memory")]

use std::error::Error;
use std::io::{self, Read, Write, stderr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::{env, fs, ptr};

use io_uring::{IoUring, opcode, squeue, types::Fd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use vudev_jail::policy::Policy;
use vudev_jail::spawn::keep_exit_statuses;
use vudev_jail::{Arch, Child, Jail, RingList, SigsysReport, Spawn, own_program};

/// `argv[0]` of the daemon's process, and where it finds its descriptors.
pub(crate) const DAEMON: &str = "shout-daemon";
const CHANNEL: i32 = 3;
const LISTENER: i32 = 4;
/// Before the report of a forbidden call.
const FORBIDDEN: u8 = b'!';

/// The loop, memory, the end of a connection (debug builds look at it first), and the report.
const POLICY: &str = "io_uring_enter: 1\n\
                      {brk, munmap}: 1\nmmap: arg2 in PROT_READ|PROT_WRITE\n\
                      close: 1\nfcntl: arg1 == F_GETFD\n\
                      {sendto, exit_group}: 1\n";
const RING_LIST: &str = "{IORING_OP_ACCEPT, IORING_OP_RECV, IORING_OP_SEND}: 1\n";

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result {
    let mut arguments = env::args();
    match (arguments.next().as_deref(), arguments.next().as_deref()) {
        (Some(DAEMON), _) => daemon(),
        (_, Some("--demo")) => demo(),
        (_, Some(path)) => start(path).and_then(|(daemon, channel)| attend(&daemon, &channel)),
        _ => Err("usage: shout PATH | --demo".into()),
    }
}

/// The supervisor: opens what is needed, and keeps just that for the daemon.
fn start(path: &str) -> Result<(Child, OwnedFd)> {
    keep_exit_statuses();
    let listener = UnixListener::bind(path)?;
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
    let daemon = Spawn::new(own_program()?.as_fd(), DAEMON)?
        .keep(stderr().as_fd(), 2)
        .keep(theirs.as_fd(), CHANNEL)
        .keep(listener.as_fd(), LISTENER)
        .spawn()?;
    Ok((daemon, ours))
}

/// Waits for the daemon's end, and says why it came.
fn attend(daemon: &Child, channel: &OwnedFd) -> Result {
    let mut packet = [0; SigsysReport::SIZE + 1];
    let (_, length) = recv(channel, &mut packet, RecvFlags::empty())?;
    if let Some((&FORBIDDEN, report)) = packet[..length].split_first()
        && let Some(call) = SigsysReport::from_bytes(report)
    {
        println!("forbidden: {}", call.name().unwrap_or("an unknown call"));
    }
    let end = waitid(WaitId::PidFd(daemon.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    println!("status: {:?}", end.and_then(|end| end.exit_status()));
    Ok(())
}

/// The daemon: what it needs, then the jail, then its clients one after another.
fn daemon() -> Result {
    let (begun, [channel, listener]) = Jail::begin([CHANNEL, LISTENER])?;
    let arch = Arch::HOST.ok_or("no policies for this processor")?;
    let policy = Policy::from_text(POLICY, arch)?.compile()?;
    let mut ring = IoUring::builder().setup_r_disabled().build(1)?;
    RingList::from_text(RING_LIST)?.restrict(&ring)?;
    let jail = begun.policy(&policy);
    let enable = || ring.submitter().register_enable_rings();
    jail.enter(channel.as_fd(), FORBIDDEN, enable)?;
    loop {
        let listener = Fd(listener.as_raw_fd());
        let accept = opcode::Accept::new(listener, ptr::null_mut(), ptr::null_mut());
        let connection = complete(&mut ring, &accept.build())?;
        // SAFETY: it is new, and nobody else's.
        let connection = unsafe { OwnedFd::from_raw_fd(connection) };
        let _ = serve(&mut ring, Fd(connection.as_raw_fd()));
    }
}

/// One client. What it says is answered, or an order to misbehave.
fn serve(ring: &mut IoUring, client: Fd) -> io::Result<()> {
    let mut said = [0; 256];
    loop {
        let receive = opcode::Recv::new(client, said.as_mut_ptr(), 256).build();
        let length = usize::try_from(complete(ring, &receive)?).unwrap_or(0);
        let answer = match &said[..length] {
            [] => return Ok(()),
            b"!ring" => {
                let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr());
                format!("{:?}", complete(ring, &open.build())).into_bytes()
            }
            b"!call" => format!("{:?}", fs::File::open("/etc/passwd")).into_bytes(),
            said => said.to_ascii_uppercase(),
        };
        let length = u32::try_from(answer.len()).unwrap_or(0);
        let send = opcode::Send::new(client, answer.as_ptr(), length);
        complete(ring, &send.build())?;
    }
}

fn complete(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: what an entry points at is a local of a caller that waits here.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map_or(0, |done| done.result()) {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        result => Ok(result),
    }
}

/// A client, and what the jail does when it finds a way to give orders.
fn demo() -> Result {
    let path = env::temp_dir().join(format!("shout-{}", std::process::id()));
    let (daemon, channel) = start(path.to_str().ok_or("a strange folder")?)?;
    let client = UnixStream::connect(&path);
    fs::remove_file(&path)?;
    let mut client = client?;
    for said in ["hello", "!ring", "!call"] {
        client.write_all(said.as_bytes())?;
        let mut answer = [0; 256];
        let length = client.read(&mut answer)?;
        println!(
            "{said:?} -> {:?}",
            String::from_utf8_lossy(&answer[..length])
        );
    }
    attend(&daemon, &channel)
}
