//! Random policies in the running kernel: interpreter and evaluator share their author, the kernel
//! does not. Each rule answers with an errno of its own, so that a verdict is a number and nothing
//! happens; the calls take no arguments, so that any will do.
//!
//! Filters stack and never go away, but each thread has its own: a process is started for some
//! policies, and a thread in it for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::os::fd::OwnedFd;

use vudev_jail::policy::{self, Action, Arch, Call};

use crate::Test;
use crate::role::{call, load_filter, tell};
use crate::support::{End, Role};

pub(crate) const TESTS: &[Test] = &[(
    "the_kernel_answers_what_a_policy_means",
    the_kernel_answers_what_a_policy_means,
)];

const POLICIES: u64 = 2_000;
/// Of one process.
const BATCH: u64 = 100;
const CALLS: u32 = 120;

fn the_kernel_answers_what_a_policy_means() {
    for first in (1..=POLICIES).step_by(usize::try_from(BATCH).unwrap()) {
        let role = Role::start_with("verdicts", &first.to_string(), false, &[]);
        assert_eq!(role.hear_text(), "agreed", "seeds from {first}");
        assert_eq!(role.end(), End::Code(0), "seeds from {first}");
    }
}

/// The role's side: one thread after the other loads a policy and asks the kernel about it.
pub(crate) fn role(channel: &OwnedFd, first: &str) {
    let first: u64 = first.parse().unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    for seed in first..first + BATCH {
        #[expect(
            clippy::disallowed_methods,
            reason = "a filter is a thread's, and nothing takes it away"
        )]
        let thread = std::thread::spawn(move || ask_the_kernel(seed));
        assert!(thread.join().is_ok(), "seed {seed}");
    }
    tell(channel, "agreed");
}

fn ask_the_kernel(seed: u64) {
    let mut random = Random(seed);
    let text = random.policy();
    let arch = Arch::HOST.unwrap();
    let source = BTreeMap::from([(format!("{arch}/a_device.policy"), text.clone())]);
    let policy = policy::read("a_device", arch, &source).unwrap();
    let program = policy.compile().unwrap();
    load_filter(&program);
    for _ in 0..CALLS {
        let name = random.of(&SUBJECTS);
        let args = [0; 6].map(|_| random.word());
        let number = arch.syscall_number(name).unwrap();
        let meant = policy.evaluate(&Call {
            number,
            arch: arch.audit(),
            args,
        });
        let result = call(number.into(), args);
        let errno = std::io::Error::last_os_error().raw_os_error();
        let agree = match meant {
            Action::Allow => result >= 0,
            Action::Errno(wanted) => result == -1 && errno == Some(wanted.into()),
            other => panic!("no rule here says {other:?}"),
        };
        assert!(
            agree,
            "{name} {args:#x?}: {result} {errno:?}, meant {meant:?}\n{text}"
        );
    }
}

/// Calls without arguments or effect.
const SUBJECTS: [&str; 6] = [
    "getpid", "getppid", "getuid", "geteuid", "getgid", "getegid",
];
const OPERATORS: [&str; 8] = ["==", "!=", "<", "<=", ">", ">=", "&", "in"];

/// xorshift64: a seed is a policy.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.below(list.len())]
    }

    /// Words, signs and their edges.
    fn word(&mut self) -> u64 {
        const EDGES: [u64; 9] = [
            0,
            1,
            2,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 32,
            1 << 63,
            u64::MAX,
        ];
        match self.below(4) {
            0 => 1 << self.below(64),
            1 => self.next(),
            _ => EDGES[self.below(EDGES.len())],
        }
    }

    fn policy(&mut self) -> String {
        let mut text = String::from("# The thread's own needs.\n");
        // Its end, the allocator, and what formats a failure.
        text.push_str(
            "{write, exit, exit_group, sigaltstack, rt_sigprocmask, munmap, mmap, mremap, brk, \
             mprotect, madvise, close, futex, fcntl}: 1\n",
        );
        let mut errnos = 200..4096;
        for name in SUBJECTS {
            // One condition with two errnos would be a contradiction.
            let conditions: BTreeSet<_> = (0..=self.below(6)).map(|_| self.condition()).collect();
            for (condition, errno) in conditions.into_iter().zip(errnos.by_ref()) {
                writeln!(text, "{name}: {condition}; return {errno}").unwrap();
            }
            match self.below(2) {
                0 => writeln!(text, "{name}: allow").unwrap(),
                _ => writeln!(text, "{name}: return {}", errnos.next().unwrap()).unwrap(),
            }
        }
        text
    }

    fn condition(&mut self) -> String {
        let mut text = String::new();
        for clause in 0..=self.below(3) {
            text.push_str(if clause == 0 { "" } else { " || " });
            for atom in 0..=self.below(3) {
                text.push_str(if atom == 0 { "" } else { " && " });
                let (argument, operator) = (self.below(6), self.of(&OPERATORS));
                write!(text, "arg{argument} {operator} {:#x}", self.word()).unwrap();
            }
        }
        text
    }
}
