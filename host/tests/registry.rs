//! What a registry tells its author at once, and not a user later on.

use vudev_host::kinds::Block;
use vudev_host::options::{OptionError, Table, Values};
use vudev_host::{CreateError, DeviceKind, Given, Opened, Registry};

#[test]
fn policies_of_new_names_are_taken() {
    let registry = Registry::new().with_policies(&[
        ("x86_64/mine_device_vhost_user.policy", ""),
        ("ring/mine_device_vhost_user.ring", ""),
    ]);
    assert!(registry.entries().is_empty());
}

#[test]
#[should_panic(expected = "ring/serial.ring: there is one already")]
fn an_embedded_policy_cannot_be_replaced() {
    let _ = Registry::new().with_policies(&[("ring/serial.ring", "")]);
}

#[test]
#[should_panic(expected = "ring/mine.ring: there is one already")]
fn a_policy_cannot_be_given_twice() {
    let _ = Registry::new().with_policies(&[("ring/mine.ring", ""), ("ring/mine.ring", "")]);
}

#[test]
#[should_panic(expected = "neither ring/NAME.ring nor ARCHITECTURE/NAME.policy")]
fn a_policy_that_would_never_be_read_is_told() {
    let _ = Registry::new().with_policies(&[("mine_device_vhost_user.policy", "")]);
}

#[test]
#[should_panic(expected = "two device kinds are called block")]
fn two_kinds_of_one_name_are_told() {
    let _ = Registry::new().with::<Block>().with::<Block>();
}

/// A disk under a name that its table has not.
struct Renamed;

impl DeviceKind for Renamed {
    const NAME: &'static str = "renamed";
    const POLICY: &'static str = Block::POLICY;
    type Description = <Block as DeviceKind>::Description;
    type Device = <Block as DeviceKind>::Device;

    fn table() -> &'static Table {
        Block::table()
    }

    fn open(values: &Values) -> Result<Opened<Self::Description>, OptionError> {
        Block::open(values)
    }

    fn operations(description: &Self::Description) -> u32 {
        Block::operations(description)
    }

    fn create(given: Given<Self::Description>) -> Result<Self::Device, CreateError> {
        Block::create(given)
    }
}

#[test]
#[should_panic(expected = "a kind and its table are called the same")]
fn a_kind_with_anothers_table_is_told() {
    let _ = Registry::new().with::<Renamed>();
}
