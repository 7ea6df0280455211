//! `--vsock`: its keys, and the making of the socket device. Its own socket is bound by the
//! supervisor, which also connects it to the others.

use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};
use vudev_devices::vsock::{self, Connect};

use super::MAX_QUEUE_SIZES;
use crate::kind::{CreateError, DeviceKind, Given, Listen, Opened, Target};
use crate::listen::PATH_MAX;
use crate::options::{FRONT_ENDS, Key, Kind, OptionError, Table, Values};

/// The kind of `--vsock`.
#[derive(Debug)]
pub struct Vsock;

/// What a socket device is made of, beside the descriptor of its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockDescription {
    /// The guest's context identifier.
    pub cid: u32,
}

/// The place of `uds-path_PORT` in the device's reach.
const PORTS: u8 = 0;

/// A port's socket has an underscore and up to ten digits more.
const UDS_PATH_MAX: usize = PATH_MAX - 11;

const NO_KERNEL: &str = "this device is in user space, and uses no vhost-vsock of the kernel, \
                         whose calls a jailed process may not make";

static TABLE: Table = Table {
    device: "vsock",
    about: "sockets between guest and host (virtio-vsock): AF_VSOCK of a Linux guest",
    keys: &[
        Key::new(
            "cid",
            Kind::Number {
                // 0 to 2 and the last one are reserved or the host's (virtio 1.3, 5.10.4).
                min: 3,
                max: u32::MAX as u64 - 1,
            },
            "the guest's context identifier, 3 or more (2 is the host)",
        )
        .aliases(&["guest-cid"])
        .required()
        .exclusive(),
        Key::new(
            "uds-path",
            Kind::Path,
            "host programs connect here and say `CONNECT PORT`; for a guest that connects to port \
             P of the host they listen at this path with _P behind it",
        )
        .aliases(&["socket"])
        .required()
        .exclusive(),
        Key::new("device", Kind::Path, "the kernel's vhost-vsock").refused(NO_KERNEL),
        MAX_QUEUE_SIZES,
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "cid=3,uds-path=/tmp/vsock,vhost=/tmp/vu-vsock",
};

impl DeviceKind for Vsock {
    const NAME: &'static str = "vsock";
    const POLICY: &'static str = "vsock";

    type Description = VsockDescription;
    type Device = vsock::Vsock;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<VsockDescription>, OptionError> {
        let path = values.path("uds-path");
        let length = path.as_os_str().as_bytes().len();
        if length > UDS_PATH_MAX {
            let problem = format!(
                "the path has {length} bytes, more than {UDS_PATH_MAX}: those of ports are longer"
            );
            let error = values.error("uds-path", problem);
            return Err(
                error.remedy("use a shorter path, or one relative to the directory you are in")
            );
        }
        let cid = values.number_as("cid");
        Ok(Opened {
            listens: vec![Listen {
                part: 0,
                key: "uds-path",
            }],
            reach: vec![Target::NumberedStream(path.to_owned())],
            notes: values.notes(),
            ..Opened::new(VsockDescription { cid }, Vec::new())
        })
    }

    fn operations(_description: &VsockDescription) -> u32 {
        vsock::OPERATIONS
    }

    fn create(mut given: Given<VsockDescription>) -> Result<vsock::Vsock, CreateError> {
        let [listener] = given.take_descriptors()?;
        let VsockDescription { cid } = given.description;
        let broker = given.broker;
        let connect: Connect = Box::new(move |port| Box::pin(broker.connect(PORTS, port)));
        Ok(vsock::Vsock::new(&given.handle, cid, listener, connect))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn open(argument: &str) -> Result<Opened<VsockDescription>, String> {
        let values = Values::parse(&TABLE, &format!("{argument},vhost=s"));
        let opened = values.and_then(|values| Vsock::open(&values));
        opened.map_err(|error| error.to_string())
    }

    #[test]
    fn a_socket_device_listens_at_its_path_and_reaches_the_numbered_ones() {
        for argument in ["cid=3,uds-path=v", "guest_cid=3,socket=v"] {
            let opened = open(argument).unwrap();
            assert_eq!(opened.description, VsockDescription { cid: 3 });
            assert!(opened.descriptors.is_empty());
            assert_eq!(opened.listens.len(), 1);
            assert_eq!(opened.reach, [Target::NumberedStream(PathBuf::from("v"))]);
        }
    }

    #[test]
    fn a_reserved_cid_the_kernels_device_and_a_path_without_room_for_ports_are_refused() {
        let long = "x".repeat(UDS_PATH_MAX + 1);
        let cases = [
            ("cid=2,uds-path=v", "cid: column 5: "),
            ("cid=4294967295,uds-path=v", "cid: column 5: "),
            ("uds-path=v", "cid: column"),
            ("cid=3", "uds-path: column"),
            (
                "cid=3,uds-path=v,device=/dev/vhost-vsock",
                "device: column 25: is not available: this device is in user space",
            ),
            (
                &format!("cid=3,uds-path={long}"),
                "uds-path: column 16: the path has 97 bytes, more than 96",
            ),
        ];
        for (argument, problem) in cases {
            let error = open(argument).map(|_| ()).unwrap_err();
            assert!(error.contains(problem), "{argument}: {error}");
        }
    }

    #[test]
    fn the_sizes_of_queues_are_accepted_and_noted() {
        let opened = open("cid=3,uds-path=v,max-queue-sizes=[256,256,256]").unwrap();
        assert_eq!(opened.notes.len(), 1, "{:?}", opened.notes);
    }
}
