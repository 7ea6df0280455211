//! The other answers to a denied call, given by the running kernel: an errno, and a supervisor
//! that lets it go on.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use vudev_jail::listener::{self, Received};
use vudev_jail::{Arch, Begun, Denials, Embedded, policy};

use crate::role::{CHANNEL, POLICY, TAG, call, tell};
use crate::support::{End, Role, wait};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_denied_call_gives_the_errno_that_a_library_asked_for",
        a_denied_call_gives_the_errno_that_a_library_asked_for,
    ),
    (
        "a_denied_call_is_told_and_goes_on",
        a_denied_call_is_told_and_goes_on,
    ),
];

fn a_denied_call_gives_the_errno_that_a_library_asked_for() {
    let role = Role::start("denials", "errno");
    assert_eq!(role.hear_text(), format!("-1 {}", libc::ENOSYS));
    assert_eq!(role.end(), End::Code(0));
}

fn a_denied_call_is_told_and_goes_on() {
    let role = Role::start("denials", "notify");
    let (packet, listener) = role.hear_with_descriptor();
    assert_eq!(packet, [TAG]);
    let listener = listener.unwrap();
    let mut names = Vec::new();
    loop {
        wait(listener.as_fd(), "a denied call, or the end");
        match listener::receive(listener.as_fd()).unwrap() {
            Received::Call(call) => {
                names.extend(call.call.name());
                listener::let_go_on(listener.as_fd(), &call).unwrap();
            }
            Received::Nothing => {}
            Received::Ended => break,
        }
    }
    assert!(names.contains(&"setsid"), "{names:?}");
    // The leader of a session: the kernel's own answer, and no filter's.
    assert_eq!(role.hear_text(), format!("-1 {}", libc::EPERM));
    assert_eq!(role.end(), End::Code(0));
}

/// Loads the policy and makes a call that it denies.
pub(crate) fn role(begun: Begun, channel: &OwnedFd, answer: &str) {
    let policy = policy::read(POLICY, Arch::HOST.unwrap(), &Embedded).unwrap();
    let program = |denials: Denials| denials.apply(policy).compile().unwrap();
    match answer {
        "errno" => {
            begun
                .policy(&program(Denials::Errno(Errno::NOSYS)))
                .enter(channel.as_fd(), TAG, || Ok(()))
        }
        _ => begun
            .policy(&program(Denials::Notify { channel: CHANNEL }))
            .listen(TAG)
            .enter(channel.as_fd(), TAG, || Ok(())),
    }
    .unwrap();
    let result = call(libc::SYS_setsid, [0; 6]);
    let errno = std::io::Error::last_os_error().raw_os_error();
    tell(channel, &format!("{result} {}", errno.unwrap_or(0)));
}
