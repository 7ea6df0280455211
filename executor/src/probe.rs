//! What this kernel's io_uring has of what this crate needs, each by its kernel name: for a program
//! that explains a host. A [`crate::Ring`] is made without asking first.

use std::io;

use io_uring::{Builder, IoUring, Parameters, Probe};

use crate::OPCODES;
use crate::ring::{Allowed, Config, Ring, RingError};

/// What there is, `false` beside what is missing.
#[derive(Clone, Debug)]
pub struct Support {
    /// `IORING_SETUP_*` flags of a [`Ring`].
    pub flags: Vec<(&'static str, bool)>,
    /// `IORING_FEAT_*` that its loop relies on.
    pub features: Vec<(&'static str, bool)>,
    /// [`OPCODES`], by `IORING_REGISTER_PROBE`.
    pub opcodes: Vec<(u8, bool)>,
    /// Whether a [`Ring`] can be made with an allow-list.
    pub restrictions: bool,
}

/// Asks the kernel.
///
/// # Errors
///
/// There is no ring at all, or none may be made here.
pub fn support() -> Result<Support, RingError> {
    let plain = IoUring::builder()
        .build(1)
        .map_err(|error| RingError::new(error, 1))?;
    let config = Config {
        allowed: Some(Allowed {
            opcodes: OPCODES.to_vec(),
            flags: 0,
        }),
        ..Config::new(1)
    };
    Ok(Support {
        flags: FLAGS.iter().map(|(name, set)| (*name, has(*set))).collect(),
        features: features(plain.params()),
        opcodes: opcodes(&plain)?,
        restrictions: Ring::new(&config).is_ok(),
    })
}

/// A flag on a builder, with those that the kernel wants beside it.
type Set = fn(&mut Builder) -> &mut Builder;

const FLAGS: [(&str, Set); 7] = [
    ("IORING_SETUP_CQSIZE", |ring| ring.setup_cqsize(4)),
    ("IORING_SETUP_CLAMP", |ring| ring.setup_clamp()),
    ("IORING_SETUP_R_DISABLED", |ring| ring.setup_r_disabled()),
    ("IORING_SETUP_SUBMIT_ALL", |ring| ring.setup_submit_all()),
    ("IORING_SETUP_SINGLE_ISSUER", |ring| {
        ring.setup_single_issuer()
    }),
    ("IORING_SETUP_DEFER_TASKRUN", |ring| {
        ring.setup_single_issuer().setup_defer_taskrun()
    }),
    ("IORING_SETUP_TASKRUN_FLAG", |ring| {
        ring.setup_coop_taskrun().setup_taskrun_flag()
    }),
];

fn has(set: Set) -> bool {
    let mut builder = IoUring::builder();
    set(&mut builder).build(1).is_ok()
}

fn features(parameters: &Parameters) -> Vec<(&'static str, bool)> {
    vec![
        ("IORING_FEAT_NODROP", parameters.is_feature_nodrop()),
        ("IORING_FEAT_EXT_ARG", parameters.is_feature_ext_arg()),
        (
            "IORING_FEAT_CQE_SKIP",
            parameters.is_feature_skip_cqe_on_success(),
        ),
    ]
}

fn opcodes(ring: &IoUring) -> Result<Vec<(u8, bool)>, RingError> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error: io::Error| RingError::new(error, 1))?;
    Ok(OPCODES
        .iter()
        .map(|&opcode| (opcode, probe.is_supported(opcode)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_tests_run_everything_is_there() {
        let support = support().unwrap();
        let Support {
            flags,
            features,
            opcodes,
            restrictions,
        } = support;
        assert!(flags.iter().chain(&features).all(|(_, there)| *there));
        assert!(opcodes.iter().all(|(_, there)| *there) && restrictions);
    }
}
