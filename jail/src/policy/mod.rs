//! Seccomp policies: minijail's policy language (`minijail0(5)`), read, merged and compiled to
//! classic BPF. Nothing here touches the kernel; [`crate::Jail::enter`] loads the result.
//!
//! The way of a policy: `token` splits a file, `parse` makes statements of it, `load` follows
//! `@include` and merges same-name rules into a [`Policy`], [`compile()`] makes a [`Program`].
//! [`Policy::evaluate`] says what a policy means without any BPF, [`Program::run`] what a program
//! does without any kernel; tests hold one against the other.
//!
//! Naming rules of the files: `seccomp/README.md`.

mod arch;
mod assemble;
mod ast;
mod bpf;
mod compile;
mod constants;
mod forbidden;
pub(crate) mod load;
mod needed;
pub(crate) mod parse;
pub(crate) mod token;

use crate::source::{Source, Text};

pub use self::arch::Arch;
pub use self::ast::{Action, Atom, Call, Clause, Decision, Filter, Operator, Policy, Rule};
pub use self::bpf::{Instruction, Program, ProgramError};
pub use self::constants::constant;
pub use self::forbidden::{Violation, violations};
pub use self::load::{INCLUDE_DEPTH_MAX, Place, Places, PolicyError, is_loadable};
pub use self::needed::missing;

/// Reads the policy `name` (such as `block_device_vhost_user`) of `arch` from `source`: the file
/// `ARCH/NAME.policy`, and what it includes. The name must end as that of a policy does
/// ([`is_loadable`]).
pub fn read(name: &str, arch: Arch, source: &dyn Source) -> Result<Policy, PolicyError> {
    Ok(load::policy(name, arch, source)?.0)
}

/// As [`read`], and where each of its filters stands; with [`Policy::decide`], what a call is
/// allowed by.
pub fn read_with_places(
    name: &str,
    arch: Arch,
    source: &dyn Source,
) -> Result<(Policy, Places), PolicyError> {
    load::policy(name, arch, source)
}

/// Reads and compiles a policy. What no rule names is trapped, unless the file says otherwise by
/// `@default`.
pub fn compile(name: &str, arch: Arch, source: &dyn Source) -> Result<Program, PolicyError> {
    read(name, arch, source)?
        .compile()
        .map_err(|error| PolicyError::whole_file(&load::policy_path(name, arch), &error))
}

impl Policy {
    /// Reads a policy that a program has in itself, under whatever name. Errors call it
    /// `<policy>`, and it can include nothing: what is made of several files is for [`read`], from
    /// a [`Directory`](crate::Directory) or from texts by name.
    ///
    /// # Errors
    ///
    /// Where the text is no policy, and what was expected there.
    pub fn from_text(text: &str, arch: Arch) -> Result<Self, PolicyError> {
        const NAME: &str = "<policy>";
        let source = Text {
            name: NAME,
            text,
            instead: "policy::read",
        };
        Ok(load::file(NAME, arch, &source)?.0)
    }

    /// Compiles it; fails only when the program would be longer than the kernel accepts.
    pub fn compile(&self) -> Result<Program, ProgramError> {
        compile::compile(self)
    }
}

#[cfg(test)]
mod tests;
