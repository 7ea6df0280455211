//! The language of policies: texts of several files, of which the first is read and the others may
//! be included. The program that is compiled must say of every call what the policy says.

use std::io;

use vudev_jail::policy::{self, Arch, Call, Policy};
use vudev_jail::{Program, RingList, Source};

use crate::input::Input;

/// Between two files: no letter of the language.
const NEXT_FILE: u8 = 0;

/// The one that is read, and those that may be included.
const NAMES: [&str; 3] = [
    "a_device_vhost_user.policy",
    "common_device.policy",
    "b.frequency",
];

/// Files by the end of their names, in whatever folder.
struct Files(Vec<String>);

impl Source for Files {
    fn read(&self, name: &str) -> io::Result<String> {
        let place = NAMES.iter().position(|known| name.ends_with(known));
        let text = place.and_then(|place| self.0.get(place));
        text.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

pub(crate) fn language(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let arch = input.of(&Arch::ALL);
    let rest = input.rest();
    let files = rest.splitn(NAMES.len(), |byte| *byte == NEXT_FILE);
    let files = Files(
        files
            .map(|file| String::from_utf8_lossy(file).into())
            .collect(),
    );
    let text = &files.0[0];
    match RingList::from_text(text) {
        Ok(list) => drop(list.forbidden()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Err(error) = Policy::from_text(text, arch) {
        assert!(!error.to_string().is_empty());
    }
    match policy::read("a_device_vhost_user", arch, &files) {
        Ok(policy) => {
            drop((policy::missing(&policy), policy::violations(&policy)));
            // One that is too long is refused.
            if let Ok(program) = policy.compile() {
                compare(&policy, &program);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Calls that the rules speak of, at the values that they compare with and beside them.
fn compare(policy: &Policy, program: &Program) {
    let check = |number: u32, arch: u32, args: [u64; 6]| {
        let call = Call { number, arch, args };
        assert_eq!(program.run(&call), Some(policy.evaluate(&call)), "{call:?}");
    };
    let arch = policy.arch.audit();
    for number in [0, 1, 59, 0x4000_0000, u32::MAX] {
        check(number, arch, [0; 6]);
        check(number, !arch, [0; 6]);
    }
    for (&number, rule) in policy.rules.iter().take(16) {
        check(number, arch, [0; 6]);
        check(number, arch, [u64::MAX; 6]);
        let clauses = rule
            .filters
            .iter()
            .filter_map(|filter| filter.condition.as_ref());
        for atom in clauses.flatten().flatten().take(16) {
            for value in [
                atom.value,
                atom.value.wrapping_add(1),
                atom.value.wrapping_sub(1),
                !atom.value,
                atom.value ^ 1 << 32,
            ] {
                let mut args = [0; 6];
                args[usize::from(atom.argument)] = value;
                check(number, arch, args);
                check(number, arch, [value; 6]);
            }
        }
    }
}
