//! What becomes of the calls that a policy denies, where whoever loads it wants another answer
//! than the one in its files. Pure; [`crate::role`] loads the result.

use std::os::fd::RawFd;

use rustix::io::Errno;

use crate::policy::{Action, Atom, Filter, Operator, Policy, Rule};

/// The answer to a call that a policy denies by a signal: its default, and each `trap`,
/// `kill-thread` and `kill-process`. An errno that a rule returns is an answer that the device
/// counts on, and stays; and calls of a foreign architecture kill the process in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Denials {
    /// What the files say; a trap where they say nothing.
    #[default]
    AsWritten,
    /// The process ends at once, by a SIGSYS that no handler sees.
    Kill,
    /// The call is not carried out and gives this errno; the process goes on. For a daemon whose
    /// libraries try what they can do without.
    Errno(Errno),
    /// Trapped, and so told to a supervisor by [`Jail::listen`](crate::Jail::listen). The one
    /// message that hands the listener over is allowed, on this channel, and the close of the
    /// listener after it: they are the jail's and not the daemon's. Nothing is reported from
    /// inside then, so `sendto` and `exit_group`, which the report needs, are never told of: see
    /// [`missing`](crate::policy::missing). And it is about system calls alone: an operation that
    /// is not on the ring's list fails as ever.
    Notify {
        /// The control channel, by its number in the role.
        channel: RawFd,
    },
}

/// The `sendmsg` that hands the listener over, as the policy recognises it.
pub(crate) const HAND_OVER_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// The second argument, which `close` does not have, of the one that follows it: so the policy
/// recognises it, and no other close of the daemon's.
pub(crate) const HANDED_OVER: u32 = 0x6c74_736e;

impl Denials {
    /// The policy with this answer.
    #[must_use]
    pub fn apply(self, mut policy: Policy) -> Policy {
        let answer = match self {
            Self::AsWritten => return policy,
            Self::Kill => Action::KillProcess,
            Self::Errno(errno) => Action::Errno(number_of(errno)),
            Self::Notify { .. } => Action::Trap,
        };
        let answered = |action: Action| {
            let stays = action.permits() || matches!(action, Action::Errno(_));
            if stays { action } else { answer }
        };
        policy.default = answered(policy.default);
        let filters = policy.rules.values_mut().flat_map(|rule| &mut rule.filters);
        filters.for_each(|filter| filter.action = answered(filter.action));
        if let Self::Notify { channel } = self {
            allow_hand_over(&mut policy, channel);
        }
        policy
    }
}

fn number_of(errno: Errno) -> u16 {
    u16::try_from(errno.raw_os_error()).map_or(Action::ERRNO_MAX, |n| n.min(Action::ERRNO_MAX))
}

fn allow_hand_over(policy: &mut Policy, channel: RawFd) {
    let equals = |argument, value: u32| Atom {
        argument,
        operator: Operator::Equal,
        value: u64::from(value),
    };
    let channel = equals(0, channel.cast_unsigned());
    let message = [channel, equals(2, HAND_OVER_FLAGS.cast_unsigned())];
    allow_first(policy, "sendmsg", &message);
    allow_first(policy, "close", &[equals(1, HANDED_OVER)]);
}

/// Before every other filter of the call.
fn allow_first(policy: &mut Policy, name: &str, condition: &[Atom]) {
    let Some(number) = policy.arch.syscall_number(name) else {
        return;
    };
    let rule = policy.rules.entry(number).or_insert_with(|| Rule {
        name: name.to_owned(),
        filters: Vec::new(),
    });
    let allowed = Filter {
        condition: Some(vec![condition.to_vec()]),
        action: Action::Allow,
    };
    rule.filters.insert(0, allowed);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Arch;
    use crate::policy::{self, Call};

    const ARCH: Arch = Arch::X86_64;

    fn policy() -> Policy {
        let text = "read: 1\nopenat: return ENOENT\nptrace: kill-process\nclose: arg0 == 5\n\
                    sendmsg: arg0 == 9\n";
        let name = format!("{ARCH}/x_device.policy");
        let source = BTreeMap::from([(name, text.to_owned())]);
        policy::read("x_device", ARCH, &source).unwrap()
    }

    /// By evaluation and by the compiled program alike.
    fn verdict(policy: &Policy, name: &str, args: [u64; 6]) -> Action {
        let call = Call {
            number: ARCH.syscall_number(name).unwrap(),
            arch: ARCH.audit(),
            args,
        };
        let verdict = policy.evaluate(&call);
        assert_eq!(policy.compile().unwrap().run(&call), Some(verdict));
        verdict
    }

    #[test]
    fn each_answer_is_given_to_what_a_signal_would_have_ended_and_to_nothing_else() {
        let channel = 3;
        for (denials, default, written) in [
            (Denials::AsWritten, Action::Trap, Action::KillProcess),
            (Denials::Kill, Action::KillProcess, Action::KillProcess),
            (
                Denials::Errno(Errno::PERM),
                Action::Errno(1),
                Action::Errno(1),
            ),
            (Denials::Notify { channel }, Action::Trap, Action::Trap),
        ] {
            let policy = denials.apply(policy());
            assert_eq!(verdict(&policy, "socket", [0; 6]), default);
            assert_eq!(verdict(&policy, "close", [6, 0, 0, 0, 0, 0]), default);
            assert_eq!(verdict(&policy, "ptrace", [0; 6]), written);
            assert_eq!(verdict(&policy, "close", [5, 0, 0, 0, 0, 0]), Action::Allow);
            assert_eq!(verdict(&policy, "read", [0; 6]), Action::Allow);
            assert_eq!(verdict(&policy, "openat", [0; 6]), Action::Errno(2));
            let foreign = Call {
                number: 0,
                arch: Arch::Arm.audit(),
                args: [0; 6],
            };
            assert_eq!(policy.evaluate(&foreign), Action::KillProcess);
        }
    }

    #[test]
    fn only_what_hands_the_listener_over_is_allowed_beside_the_policy() {
        let policy = Denials::Notify { channel: 3 }.apply(policy());
        let flags = u64::from(HAND_OVER_FLAGS.cast_unsigned());
        let sendmsg = |channel, flags| verdict(&policy, "sendmsg", [channel, 1, flags, 0, 0, 0]);
        assert_eq!(sendmsg(3, flags), Action::Allow);
        assert_eq!(sendmsg(9, 0), Action::Allow);
        assert_eq!(sendmsg(3, 0), Action::Trap);
        assert_eq!(sendmsg(4, flags), Action::Trap);
        let close = |mark| verdict(&policy, "close", [6, mark, 0, 0, 0, 0]);
        assert_eq!(close(u64::from(HANDED_OVER)), Action::Allow);
        assert_eq!(close(0), Action::Trap);
    }
}
