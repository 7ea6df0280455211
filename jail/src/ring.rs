//! Ring allow-lists: which io_uring operations and submission flags a device may use. Seccomp sees
//! only that a ring is entered, not what it carries out, so this is the other half of a policy.
//! The ring is made and restricted by the executor; this says with what.
//!
//! The files are `seccomp/ring/*.ring`, in the language of the policies (`IORING_OP_READV: 1`,
//! `IOSQE_CQE_SKIP_SUCCESS: 1`, `@include ./common_device.ring`), named by the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use crate::policy::load::{PolicyError, check_loadable, walk};
use crate::policy::parse::Statement;
use crate::policy::token::{Position, SyntaxError};
use crate::policy::{Action, Arch, Filter, Place};
use crate::source::{Embedded, Source, Text};
use crate::suggest::nearest;

/// What a ring is restricted to (`IORING_REGISTER_RESTRICTIONS`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingList {
    /// `IORING_OP_*`, ascending.
    pub opcodes: Vec<u8>,
    /// `IOSQE_*` bits.
    pub flags: u8,
}

impl RingList {
    /// Reads a list that a program has in itself, under whatever name. Errors call it
    /// `<ring list>`, and it can include nothing: what is made of several files is for
    /// [`allow_list`].
    ///
    /// # Errors
    ///
    /// Where the text is no list, and what was expected there.
    pub fn from_text(text: &str) -> Result<Self, PolicyError> {
        const NAME: &str = "<ring list>";
        let source = Text {
            name: NAME,
            text,
            instead: "ring::allow_list",
        };
        Ok(merged(read(NAME, &source)?))
    }

    /// What it names of [`FORBIDDEN`].
    pub fn forbidden(&self) -> Vec<&'static str> {
        let number = |name: &&str| OPCODES.iter().find(|(known, _)| known == name);
        let allows = |name: &&&str| number(name).is_some_and(|(_, n)| self.opcodes.contains(n));
        FORBIDDEN.iter().filter(allows).copied().collect()
    }

    /// What the embedded part `part` (such as `common_device`) allows and this list does not, by
    /// the kernel's names: what a list lacks that has forgotten to include it.
    ///
    /// # Errors
    ///
    /// If there is no such part.
    pub fn missing(&self, part: &str) -> Result<Vec<&'static str>, PolicyError> {
        let entries = read(&format!("ring/{part}.ring"), &Embedded)?;
        let missing = entries.into_iter().filter_map(|entry| match entry.names {
            Named::Opcode(opcode) if self.opcodes.contains(&opcode) => None,
            Named::Opcode(opcode) => opcode_name(opcode),
            Named::Flag(flag) if self.flags & flag != 0 => None,
            Named::Flag(flag) => flag_name(flag),
        });
        Ok(missing.collect())
    }

    /// Restricts a ring that was made disabled (`IORING_SETUP_R_DISABLED`). Once it is enabled,
    /// whatever the list does not name completes with EACCES, and so does every registration.
    ///
    /// Nothing notices that this was forgotten: a ring that is enabled without it carries out
    /// everything. A test should submit what the list does not name.
    ///
    /// # Errors
    ///
    /// EBADFD if the ring was not made disabled or is enabled, EBUSY if it is restricted already.
    pub fn restrict(&self, ring: &IoUring) -> io::Result<()> {
        let opcodes = self.opcodes.iter().copied().map(Restriction::sqe_op);
        let flags = Restriction::sqe_flags_allowed(self.flags);
        let mut restrictions: Vec<_> = opcodes.chain([flags]).collect();
        ring.submitter().register_restrictions(&mut restrictions)
    }
}

/// Reads the list `name` (such as `block_device_vhost_user`): the file `ring/NAME.ring`, and what
/// it includes.
pub fn allow_list(name: &str, source: &dyn Source) -> Result<RingList, PolicyError> {
    Ok(merged(entries(name, source)?))
}

fn merged(entries: Vec<Entry>) -> RingList {
    let mut opcodes = BTreeSet::new();
    let mut flags = 0;
    for entry in entries {
        match entry.names {
            Named::Opcode(opcode) => _ = opcodes.insert(opcode),
            Named::Flag(flag) => flags |= flag,
        }
    }
    RingList {
        opcodes: opcodes.into_iter().collect(),
        flags,
    }
}

/// A line of a list. Two parts may name the same operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it allows.
    pub names: Named,
    /// Where it stands.
    pub place: Place,
}

/// What a line of a list allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// `IORING_OP_*`
    Opcode(u8),
    /// One `IOSQE_*` bit.
    Flag(u8),
}

/// Reads all lines of the list `name` and of the parts that it includes.
pub fn entries(name: &str, source: &dyn Source) -> Result<Vec<Entry>, PolicyError> {
    let path = format!("ring/{name}.ring");
    check_loadable(name, &source.label(&path))?;
    read(&path, source)
}

fn read(path: &str, source: &dyn Source) -> Result<Vec<Entry>, PolicyError> {
    let mut entries = Vec::new();
    // Two parts may need the same operation; a file that says it twice is a slip.
    let mut seen = BTreeMap::new();
    // Operation numbers are the same everywhere: the architecture plays no role.
    walk(path, Arch::X86_64, source, &mut |file, statement| {
        let Some((name, at)) = allowed_name(statement)? else {
            return Ok(());
        };
        if let Some(first) = seen.insert((file.to_owned(), name.clone()), at) {
            let message = format!("`{name}` is on line {} already", first.line);
            return Err(SyntaxError::new(at, message));
        }
        let names = match (opcode(&name), flag(&name)) {
            (Some(opcode), _) => Named::Opcode(opcode),
            (None, Some(flag)) => Named::Flag(flag),
            (None, None) => {
                let known = OPCODES.iter().map(|(known, _)| *known);
                let meant = nearest(&name, known.chain(FLAGS.map(|(known, _)| known)));
                let meant = meant.map(|meant| format!(": did you mean `{meant}`?"));
                let message = format!(
                    "`{name}` is no IORING_OP_* or IOSQE_* that we know{}",
                    meant.unwrap_or_default()
                );
                return Err(SyntaxError::new(at, message));
            }
        };
        entries.push(Entry {
            names,
            place: Place::new(file, at),
        });
        Ok(())
    })?;
    Ok(entries)
}

/// The name that a line of a list allows; `None` of a line that only leads elsewhere.
fn allowed_name(statement: Statement) -> Result<Option<(String, Position)>, SyntaxError> {
    let (name, filter, at) = match statement {
        Statement::Rule { name, filter, at } => (name, filter, at),
        Statement::Include { .. } => return Ok(None),
        Statement::Default { at, .. } => {
            return Err(SyntaxError::new(
                at,
                "a ring list has no `@default`: what it does not name completes with EACCES",
            ));
        }
        Statement::Frequency { at, .. } => {
            return Err(SyntaxError::new(
                at,
                "a ring list has no `@frequency`: the kernel looks operations up in a bit map",
            ));
        }
    };
    let allowed = Filter {
        condition: None,
        action: Action::Allow,
    };
    if filter != allowed {
        let message = format!("expected `{name}: 1`: a ring looks at no arguments");
        return Err(SyntaxError::new(at, message));
    }
    Ok(Some((name, at)))
}

/// Operations that no device's list may have: each opens, connects, makes or hands on a descriptor,
/// reads or changes a file system by path, waits for processes, sends a command to a driver or to
/// another ring, or gives the kernel memory to write to later.
pub const FORBIDDEN: &[&str] = &[
    "IORING_OP_OPENAT",
    "IORING_OP_OPENAT2",
    "IORING_OP_CONNECT",
    "IORING_OP_SOCKET",
    "IORING_OP_BIND",
    "IORING_OP_LISTEN",
    "IORING_OP_STATX",
    "IORING_OP_RENAMEAT",
    "IORING_OP_UNLINKAT",
    "IORING_OP_MKDIRAT",
    "IORING_OP_SYMLINKAT",
    "IORING_OP_LINKAT",
    "IORING_OP_SETXATTR",
    "IORING_OP_GETXATTR",
    "IORING_OP_URING_CMD",
    "IORING_OP_MSG_RING",
    "IORING_OP_EPOLL_CTL",
    "IORING_OP_FILES_UPDATE",
    "IORING_OP_FIXED_FD_INSTALL",
    "IORING_OP_PROVIDE_BUFFERS",
    "IORING_OP_WAITID",
    "IORING_OP_PIPE",
];

macro_rules! opcodes {
    ($($name:ident = $operation:ident),* $(,)?) => {
        &[$((concat!("IORING_OP_", stringify!($name)), opcode::$operation::CODE)),*]
    };
}

/// Kernel names; the numbers are those of crate `io-uring`.
#[rustfmt::skip]
static OPCODES: &[(&str, u8)] = opcodes![
    NOP = Nop, READV = Readv, WRITEV = Writev, FSYNC = Fsync, READ_FIXED = ReadFixed,
    WRITE_FIXED = WriteFixed, POLL_ADD = PollAdd, POLL_REMOVE = PollRemove,
    SYNC_FILE_RANGE = SyncFileRange, SENDMSG = SendMsg, RECVMSG = RecvMsg, TIMEOUT = Timeout,
    TIMEOUT_REMOVE = TimeoutRemove, ACCEPT = Accept, ASYNC_CANCEL = AsyncCancel,
    LINK_TIMEOUT = LinkTimeout, CONNECT = Connect, FALLOCATE = Fallocate, OPENAT = OpenAt,
    CLOSE = Close, FILES_UPDATE = FilesUpdate, STATX = Statx, READ = Read, WRITE = Write,
    FADVISE = Fadvise, MADVISE = Madvise, SEND = Send, RECV = Recv, OPENAT2 = OpenAt2,
    EPOLL_CTL = EpollCtl, SPLICE = Splice, PROVIDE_BUFFERS = ProvideBuffers,
    REMOVE_BUFFERS = RemoveBuffers, TEE = Tee, SHUTDOWN = Shutdown, RENAMEAT = RenameAt,
    UNLINKAT = UnlinkAt, MKDIRAT = MkDirAt, SYMLINKAT = SymlinkAt, LINKAT = LinkAt,
    MSG_RING = MsgRingData, FSETXATTR = FSetXattr, SETXATTR = SetXattr, FGETXATTR = FGetXattr,
    GETXATTR = GetXattr, SOCKET = Socket, URING_CMD = UringCmd16, SEND_ZC = SendZc,
    SENDMSG_ZC = SendMsgZc, READ_MULTISHOT = ReadMulti, WAITID = WaitId, FUTEX_WAIT = FutexWait,
    FUTEX_WAKE = FutexWake, FUTEX_WAITV = FutexWaitV, FIXED_FD_INSTALL = FixedFdInstall,
    FTRUNCATE = Ftruncate, BIND = Bind, LISTEN = Listen, RECV_ZC = RecvZc, EPOLL_WAIT = EpollWait,
    READV_FIXED = ReadvFixed, WRITEV_FIXED = WritevFixed, PIPE = Pipe,
];

/// The number of an operation by its kernel name.
pub fn opcode(name: &str) -> Option<u8> {
    OPCODES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, code)| *code)
}

/// The kernel name of an operation.
pub fn opcode_name(opcode: u8) -> Option<&'static str> {
    OPCODES
        .iter()
        .find(|(_, code)| *code == opcode)
        .map(|(name, _)| *name)
}

/// Submission flags by their kernel names.
const FLAGS: [(&str, squeue::Flags); 7] = [
    ("IOSQE_FIXED_FILE", squeue::Flags::FIXED_FILE),
    ("IOSQE_IO_DRAIN", squeue::Flags::IO_DRAIN),
    ("IOSQE_IO_LINK", squeue::Flags::IO_LINK),
    ("IOSQE_IO_HARDLINK", squeue::Flags::IO_HARDLINK),
    ("IOSQE_ASYNC", squeue::Flags::ASYNC),
    ("IOSQE_BUFFER_SELECT", squeue::Flags::BUFFER_SELECT),
    ("IOSQE_CQE_SKIP_SUCCESS", squeue::Flags::SKIP_SUCCESS),
];

/// The bit of a submission flag by its kernel name.
fn flag(name: &str) -> Option<u8> {
    let found = FLAGS.iter().find(|(known, _)| *known == name);
    found.map(|(_, flag)| flag.bits())
}

/// The kernel name of a submission flag's bit.
fn flag_name(bit: u8) -> Option<&'static str> {
    let found = FLAGS.iter().find(|(_, flag)| flag.bits() == bit);
    found.map(|(name, _)| *name)
}
