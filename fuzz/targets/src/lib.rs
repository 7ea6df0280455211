//! What foreign bytes are tried on: each target is a function of bytes that returns, whatever the
//! bytes, and panics if a promise is broken. `fuzz/` runs them under a fuzzer that learns, and
//! `tests/` here on random bytes and on all inputs of `fuzz/inputs/`. Not a test by itself.
//!
//! A target depends on nothing but its bytes, so that an input that fails does so again.

mod capabilities;
mod chain;
mod descriptors;
mod executor;
mod front_end;
mod function;
mod input;
mod messages;
mod options;
mod peer;
mod policy;
mod proxy;
mod vfio_user;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its file in `fuzz/fuzz_targets/` and its folder in
    /// `fuzz/inputs/`.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
    /// Bytes beyond which it looks at nothing new.
    pub bytes_max: usize,
}

const fn target(name: &'static str, run: fn(&[u8]), bytes_max: usize) -> Target {
    Target {
        name,
        run,
        bytes_max,
    }
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    target("vfio_user_codec", vfio_user::codec, 256),
    target("vfio_user_proxy", proxy::proxy, 4096),
    target("capability_walk", capabilities::walk, 304),
    target("vhost_user_codec", front_end::codec, 512),
    target("vvu_function", function::function, 4096),
    target("chain_walk", chain::walk, 2048),
    target("option_grammar", options::grammar, 256),
    target("policy_language", policy::language, 2048),
];

/// Runs a target by its name.
///
/// # Panics
///
/// If there is none of this name, and if the bytes break a promise.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("{name} is no target"));
    (target.run)(bytes);
}
