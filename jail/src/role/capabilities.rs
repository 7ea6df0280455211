//! No capability, not even in our own namespace, and no way to get one.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};

use super::StepError;

pub(super) const STEP_SECUREBITS: &str = "PR_SET_SECUREBITS";
pub(super) const STEP_BOUNDING_SET: &str = "PR_CAPBSET_DROP";

/// The kernel's capability sets are 64 bits wide.
const CAPABILITY_END: u32 = 64;

/// Locks the secure bits, then empties the bounding, ambient, inheritable, permitted and effective
/// sets. The first two need CAP_SETPCAP, so the last comes last.
pub(super) fn drop_capabilities() -> Result<(), StepError> {
    // An id of 0 means nothing any more, and changing ids gives nothing back; all of it for good.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).map_err(StepError::at(STEP_SECUREBITS))?;
    empty_bounding_set().map_err(StepError::at(STEP_BOUNDING_SET))?;
    clear_ambient_capability_set().map_err(StepError::at("PR_CAP_AMBIENT_CLEAR_ALL"))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets).map_err(StepError::at("capset"))
}

/// Asks the kernel how many there are, which may be more than we know of.
fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..CAPABILITY_END {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
