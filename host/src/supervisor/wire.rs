//! What a device's front-ends come through, as the supervisor makes it before there is a process:
//! a socket is bound, a virtio-vhost-user function opened. Both are the device's alone once it has
//! been started: a function is reset when its last descriptor is closed.

use std::os::fd::OwnedFd;

use vudev_transports::vvu;

use crate::channel::Transport;
use crate::listen::{Claim, SocketGuard};
use crate::options::{OptionError, POLL_US, VHOST, VVU_MEMORY, Values, Vhost};

/// A wire that can be had, with nothing bound yet.
pub(super) struct Opening<'a> {
    values: &'a Values,
    transport: Transport,
    opened: Opened<'a>,
}

enum Opened<'a> {
    Socket(Claim<'a>),
    Function(vvu::Opened),
}

/// A wire to be sent to its device.
pub(super) struct Wire {
    pub(super) transport: Transport,
    /// Where front-ends connect, for the log.
    pub(super) place: String,
    /// As a role takes them.
    pub(super) descriptors: Vec<OwnedFd>,
    /// Removes the name of a socket.
    pub(super) guard: Option<SocketGuard>,
}

/// Which wire a device's options ask for.
pub(super) fn transport(values: &Values) -> Transport {
    match values.vhost() {
        Vhost::Socket(_) => Transport::VhostUser,
        Vhost::Function(_) => Transport::Vvu(values.vvu_memory()),
    }
}

impl<'a> Opening<'a> {
    /// Opens the function, or looks whether the socket can be bound.
    ///
    /// # Errors
    /// Either cannot be had: with the column of `vhost=` and what to do.
    pub(super) fn open(values: &'a Values) -> Result<Self, OptionError> {
        check_memory(values)?;
        check_further(values)?;
        let opened = match values.vhost() {
            Vhost::Socket(_) => Opened::Socket(Claim::check(values, VHOST.name)?),
            Vhost::Function(address) => {
                let opened = vvu::Opened::open(address);
                Opened::Function(opened.map_err(|error| values.error(VHOST.name, error))?)
            }
        };
        Ok(Self {
            values,
            transport: transport(values),
            opened,
        })
    }

    /// Binds what is to be bound.
    ///
    /// # Errors
    /// As [`Claim::bind`].
    pub(super) fn finish(self) -> Result<Wire, OptionError> {
        let (descriptors, guard) = match self.opened {
            Opened::Socket(claim) => {
                let bound = claim.bind()?;
                (vec![bound.descriptor], Some(bound.guard))
            }
            Opened::Function(vvu::Opened {
                container,
                group,
                device,
            }) => (vec![container, group, device], None),
        };
        Ok(Wire {
            transport: self.transport,
            place: match self.values.vhost() {
                Vhost::Socket(path) => format!("{path:?}"),
                Vhost::Function(address) => address.to_string(),
            },
            descriptors,
            guard,
        })
    }
}

/// The layout of memory is a function's.
fn check_memory(values: &Values) -> Result<(), OptionError> {
    let key = VVU_MEMORY.name;
    let given = |values: &&Values| values.knows(key) && values.is_given(key);
    if let Vhost::Socket(_) = values.vhost()
        && let Some(values) = std::iter::once(values).chain(values.further()).find(given)
    {
        let error = values.error(key, "vhost= is no PCI address, but a socket");
        return Err(error.remedy("leave it out"));
    }
    Ok(())
}

/// What is one for all flags of a device is said in the first one, and in others as there.
fn check_further(values: &Values) -> Result<(), OptionError> {
    for key in [VVU_MEMORY.name, POLL_US.name] {
        let given = |values: &Values| values.knows(key) && values.is_given(key);
        let other = |further: &&Values| given(further) && !further.agrees(values, key);
        if let Some(further) = values.further().iter().find(other) {
            let (problem, remedy) = match values.is_given(key) {
                true => (
                    "the first flag of this device says something else",
                    "leave it out here",
                ),
                false => (
                    "is one for all flags of this device",
                    "give it at the first, or there too",
                ),
            };
            return Err(further.error(key, problem).remedy(remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::DeviceKind;
    use crate::kinds::Serial;

    fn refused(argument: &str, further: &[&str]) -> String {
        let parse = |argument: &str| Values::parse(Serial::table(), argument).expect("lawful");
        let mut values = parse(argument);
        further.iter().for_each(|text| values.join(parse(text)));
        let refused = Opening::open(&values).err().expect("refused");
        refused.to_string()
    }

    #[test]
    fn a_function_that_is_not_there_is_refused_at_its_column() {
        let error = refused("type=sink,vhost=ffff:ff:1f.7", &[]);
        let expected = "--serial: vhost: column 17: there is no PCI function ffff:ff:1f.7: ";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.contains("lspci"), "{error}");
    }

    #[test]
    fn the_layout_of_memory_is_said_of_a_function_and_once() {
        assert_eq!(
            refused("type=sink,vhost=s,vvu-memory=files", &[]),
            "--serial: vvu-memory: column 30: vhost= is no PCI address, but a socket: leave it out"
        );
        let (first, further) = (
            "vhost=ffff:ff:1f.7",
            "vhost=ffff:ff:1f.7,vvu-memory=regions",
        );
        let error = refused(first, &[first, further]);
        let expected = "is one for all flags of this device: give it at the first, or there too";
        assert!(error.ends_with(expected), "{error}");
        let error = refused(
            "vhost=ffff:ff:1f.7,poll-us=5",
            &["vhost=ffff:ff:1f.7,poll-us=auto"],
        );
        let expected = "--serial: poll-us: column 28: the first flag of this device says \
                        something else: leave it out here";
        assert_eq!(error, expected);
        let first = "vhost=ffff:ff:1f.7,vvu-memory=regions";
        let error = refused(first, &["vhost=ffff:ff:1f.7", further]);
        assert!(error.contains("there is no PCI function"), "{error}");
    }
}
