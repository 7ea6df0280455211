//! The list of device kinds that a binary offers. It erases their types, so that neither the
//! command line nor the processes name a device; it decides nothing by itself.

use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vudev_jail::Embedded;
use vudev_virtio::Device;

use crate::kind::{CreateError, DeviceKind, Given, Opened};
use crate::kinds::vvu_proxy::VvuProxy;
use crate::options::{OptionError, Table, Values};
use crate::role::serve::{Served, Serving};

/// The kinds of devices that a binary offers, in the order of its help text.
///
/// Each device's process runs `main` too, with an empty environment and no arguments, and looks
/// its kind and policies up there: a registry is the same whenever it is made.
///
/// ```no_run
/// use vudev_host::Registry;
/// use vudev_host::kinds::{Block, Serial};
///
/// fn main() -> std::process::ExitCode {
///     vudev_host::run(&Registry::new().with::<Serial>().with::<Block>())
/// }
/// ```
#[derive(Default)]
pub struct Registry {
    program: Option<&'static str>,
    entries: Vec<Entry>,
    policies: Vec<PolicySource>,
}

/// What a program is called that nobody gave a name to.
const PROGRAM: &str = "vudev";

/// A policy file by its name, as seen from `seccomp/`, and its text: say
/// `x86_64/mydev_device_vhost_user.policy`, `ring/mydev_device_vhost_user.ring`.
pub type PolicySource = (&'static str, &'static str);

impl Registry {
    /// No device at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// And this name for the program, in its help and on its log lines. Without it, it is the one
    /// that it is called by.
    #[must_use]
    pub fn named(mut self, program: &'static str) -> Self {
        self.program = Some(program);
        self
    }

    /// And this kind of device.
    ///
    /// # Panics
    /// Two kinds of one name: the second one's option could never be given. Or a kind whose table
    /// has another name than itself.
    #[must_use]
    pub fn with<K: DeviceKind>(self) -> Self {
        self.add::<K>()
    }

    /// And the device side of virtio-vhost-user, `--vvu-proxy`, by which a device VM serves the
    /// front-ends of other VMs.
    ///
    /// # Panics
    /// As [`Registry::with`].
    #[must_use]
    pub fn with_vvu_proxy(self) -> Self {
        self.add::<VvuProxy>()
    }

    fn add<K: ProcessKind>(mut self) -> Self {
        assert!(
            self.find(K::NAME).is_none(),
            "two device kinds are called {}",
            K::NAME
        );
        assert_eq!(
            K::table().device,
            K::NAME,
            "a kind and its table are called the same"
        );
        self.entries.push(Entry::of::<K>());
        self
    }

    /// And these policy files, for kinds whose policies are not embedded in `vudev-jail`. They
    /// may include the embedded ones, and cannot replace them.
    ///
    /// # Panics
    /// A file that would never be read: there is one of its name already, embedded or added
    /// before, or it is neither `ring/NAME.ring` nor `ARCHITECTURE/NAME.policy`.
    #[must_use]
    pub fn with_policies(mut self, sources: &[PolicySource]) -> Self {
        for source @ (name, _) in sources {
            assert!(
                is_policy_name(name),
                "policy file {name}: neither ring/NAME.ring nor ARCHITECTURE/NAME.policy"
            );
            let known = Embedded.names().any(|embedded| embedded == *name);
            let added = self.policies.iter().any(|(added, _)| added == name);
            assert!(!known && !added, "policy file {name}: there is one already");
            self.policies.push(*source);
        }
        self
    }

    /// The kinds in the order they were added.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The kind of this name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The program's name; `called` is what its caller says that it is.
    pub(crate) fn program(&self, called: Option<&OsStr>) -> String {
        let file = called.and_then(|called| Path::new(called).file_name()?.to_str());
        let plain = file.filter(|name| name.chars().all(|c| c.is_ascii_graphic()));
        self.program.or(plain).unwrap_or(PROGRAM).to_owned()
    }

    /// The policy files added by [`Registry::with_policies`].
    pub(crate) fn policies(&self) -> &[PolicySource] {
        &self.policies
    }
}

/// Whether a file of this name is ever looked for.
fn is_policy_name(name: &str) -> bool {
    match name.split_once('/') {
        Some(("ring", file)) => file.ends_with(".ring"),
        Some((_, file)) => file.ends_with(".policy"),
        None => false,
    }
}

/// A kind of processes that serve front-ends: each kind of device is one. As for [`DeviceKind`],
/// `table` and `open` run in the supervisor, and the others in the process before its jail closes.
pub(crate) trait ProcessKind: 'static {
    /// [`DeviceKind::NAME`].
    const NAME: &'static str;
    /// [`DeviceKind::POLICY`].
    const POLICY: &'static str;
    /// [`DeviceKind::Description`].
    type Description: Serialize + DeserializeOwned + 'static;

    /// [`DeviceKind::table`].
    fn table() -> &'static Table;

    /// [`DeviceKind::open`].
    fn open(values: &Values) -> Result<Opened<Self::Description>, OptionError>;

    /// [`DeviceKind::operations`].
    fn operations(description: &Self::Description) -> u32;

    /// Makes what serves.
    fn create(given: Given<Self::Description>) -> Created;
}

impl<K: DeviceKind> ProcessKind for K {
    const NAME: &'static str = K::NAME;
    const POLICY: &'static str = K::POLICY;
    type Description = K::Description;

    fn table() -> &'static Table {
        K::table()
    }

    fn open(values: &Values) -> Result<Opened<Self::Description>, OptionError> {
        K::open(values)
    }

    fn operations(description: &Self::Description) -> u32 {
        K::operations(description)
    }

    fn create(given: Given<Self::Description>) -> Created {
        let device = K::create(given)?;
        device.identity().check()?;
        Ok(Rc::new(Serving::<K>::new(device)))
    }
}

/// A kind of processes without its types.
pub struct Entry {
    name: &'static str,
    policy: &'static str,
    table: fn() -> &'static Table,
    open: fn(&Values) -> Result<Opened<Value>, OptionError>,
    operations: fn(&Value) -> Result<u32, CreateError>,
    create: fn(Given<Value>) -> Created,
}

/// What serves without its type, or why there is none.
pub(crate) type Created = Result<Rc<dyn Served>, CreateError>;

impl Entry {
    fn of<K: ProcessKind>() -> Self {
        Self {
            name: K::NAME,
            policy: K::POLICY,
            table: K::table,
            open: open::<K>,
            operations: operations::<K>,
            create: create::<K>,
        }
    }

    /// [`DeviceKind::NAME`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// [`DeviceKind::table`].
    pub fn table(&self) -> &'static Table {
        (self.table)()
    }

    /// [`DeviceKind::open`], the description as JSON.
    ///
    /// # Errors
    /// Those of the kind.
    pub fn open(&self, values: &Values) -> Result<Opened<Value>, OptionError> {
        (self.open)(values)
    }

    /// [`DeviceKind::POLICY`].
    pub(crate) fn policy(&self) -> &'static str {
        self.policy
    }

    /// [`DeviceKind::operations`].
    pub(crate) fn operations(&self, description: &Value) -> Result<u32, CreateError> {
        (self.operations)(description)
    }

    /// [`DeviceKind::create`].
    pub(crate) fn create(&self, given: Given<Value>) -> Created {
        (self.create)(given)
    }
}

fn open<K: ProcessKind>(values: &Values) -> Result<Opened<Value>, OptionError> {
    let opened = K::open(values)?;
    Ok(opened.map(|description| {
        serde_json::to_value(description).expect("a description is plain data, which JSON can hold")
    }))
}

fn operations<K: ProcessKind>(description: &Value) -> Result<u32, CreateError> {
    parse::<K>(description.clone()).map(|description| K::operations(&description))
}

fn create<K: ProcessKind>(given: Given<Value>) -> Created {
    let Given {
        handle,
        description,
        descriptors,
        broker,
    } = given;
    K::create(Given {
        handle,
        description: parse::<K>(description)?,
        descriptors,
        broker,
    })
}

fn parse<K: ProcessKind>(description: Value) -> Result<K::Description, CreateError> {
    serde_json::from_value(description).map_err(|error| CreateError::Description(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_called_what_it_is_named_or_as_its_file() {
        let called = |name: &str| Registry::new().program(Some(OsStr::new(name)));
        assert_eq!(called("/usr/bin/entropyd"), "entropyd");
        assert_eq!(called("./vudev"), "vudev");
        for strange in ["", "/", "a\nb", "a b"] {
            assert_eq!(called(strange), PROGRAM);
        }
        assert_eq!(Registry::new().program(None), PROGRAM);
        let named = Registry::new().named("mine");
        assert_eq!(named.program(Some(OsStr::new("other"))), "mine");
    }
}
