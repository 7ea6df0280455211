//! `--vvu-proxy`: the options of the device side of virtio-vhost-user, and how it is made of them.
//! It is no device, and knows none: a device VM serves front-ends through it. What it does is
//! `vudev-proxy`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};
use vudev_proxy::pci::Identity;
use vudev_proxy::{OPERATIONS, Parts, Proxy, ProxyError, SharedMemory};

use super::{Open, open};
use crate::kind::{CreateError, Given, Listen, Opened};
use crate::listen::describe;
use crate::options::{
    Key, Kind, OptionError, Table, VHOST, Values, is_like_pci_address, repeat, shown,
};
use crate::registry::{Created, ProcessKind};

/// The kind of `--vvu-proxy`.
#[derive(Debug)]
pub(crate) struct VvuProxy;

/// What a proxy is made of, beside the descriptors: of its memory, if that is a file, and of its
/// socket for the device VM's VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VvuProxyDescription {
    memory: Memory,
    vendor: u16,
    device: u16,
    uuid: [u8; 16],
}

/// How the device VM sees the driver VM's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Memory {
    /// As the file that it lies in.
    RamFile,
    /// By accesses that trap, in a BAR of this size.
    Trapped { bytes: u64 },
}

const RAM_FILE: &str = "ram-file";
const BAR_SIZE: &str = "bar-size";
const PCI_ID: &str = "pci-id";
const UUID: &str = "uuid";

/// Bytes of a BAR that is not the RAM file's: 40 bits of addresses are what small processors have.
const BAR_SIZE_MAX: u64 = 1 << 40;

const SLOW: &str = "--vvu-proxy: without ram-file each access of the device VM to the driver VM's \
                    memory moves 8 bytes and stops a virtual CPU meanwhile: for trying out only";

static TABLE: Table = Table {
    device: "vvu-proxy",
    about: "virtio-vhost-user, for a VM that serves another VM",
    keys: &[
        Key::new(
            "socket",
            Kind::Path,
            "where the device VM's VMM connects: that of QEMU's -device vfio-user-pci",
        )
        .required()
        .exclusive(),
        Key::new(
            RAM_FILE,
            Kind::Path,
            "the driver VM's memory: the file of its memory-backend-file,share=on. It is there \
             already, and as large as that memory: the driver VM's QEMU makes it, or truncate -s. \
             Several proxies may name one",
        ),
        Key::new(
            BAR_SIZE,
            Kind::Size {
                min: 4096,
                max: BAR_SIZE_MAX,
            },
            "without ram-file, and very slow: how much memory the driver VM has at most, a power \
             of two",
        )
        .default("4G"),
        Key::new(
            PCI_ID,
            Kind::Text { max: 9 },
            "VENDOR:DEVICE of the PCI device, in hexadecimal; no number is official",
        )
        .default("1af4:107d"),
        Key::new(
            UUID,
            Kind::Text { max: 36 },
            "which device of several it is, for the device VM to tell",
        )
        .default("00000000-0000-0000-0000-000000000000"),
    ],
    front_ends: &[Key::new(
        VHOST.name,
        Kind::Path,
        "where the driver VM's front-end connects: the path of the Unix socket to listen on",
    )
    .required()
    .exclusive()],
    joins: false,
    example: "socket=/tmp/vfio,vhost=/tmp/vu,ram-file=/dev/shm/vm",
};

impl ProcessKind for VvuProxy {
    const NAME: &'static str = "vvu-proxy";
    const POLICY: &'static str = "vvu_proxy";

    type Description = VvuProxyDescription;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<VvuProxyDescription>, OptionError> {
        check_front_ends(values)?;
        let identity = pci_id(values)?;
        let uuid = uuid(values)?;
        let mut notes = values.notes();
        let (memory, descriptors) = match values.is_given(RAM_FILE) {
            true => (Memory::RamFile, vec![ram_file(values)?]),
            false => {
                notes.push(SLOW.to_owned());
                let bytes = bar_size(values)?;
                (Memory::Trapped { bytes }, Vec::new())
            }
        };
        let description = VvuProxyDescription {
            memory,
            vendor: identity.vendor,
            device: identity.device,
            uuid,
        };
        Ok(Opened {
            listens: vec![Listen {
                part: 0,
                key: "socket",
            }],
            notes,
            ..Opened::new(description, descriptors)
        })
    }

    fn operations(_description: &VvuProxyDescription) -> u32 {
        OPERATIONS
    }

    fn create(mut given: Given<VvuProxyDescription>) -> Created {
        let VvuProxyDescription {
            memory,
            vendor,
            device,
            uuid,
        } = given.description;
        let (shared_memory, clients) = match memory {
            Memory::RamFile => {
                let [file, clients] = given.take_descriptors()?;
                (SharedMemory::RamFile(file), clients)
            }
            Memory::Trapped { bytes } => {
                let [clients] = given.take_descriptors()?;
                (SharedMemory::Trapped { bytes }, clients)
            }
        };
        let parts = Parts {
            clients,
            shared_memory,
            identity: Identity { vendor, device },
            uuid,
        };
        Ok(Rc::new(Proxy::new(&given.handle, parts)?))
    }
}

impl From<ProxyError> for CreateError {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Guard(source) => Self::Io {
                step: "install the SIGBUS guard",
                source,
            },
            ProxyError::SharedMemory(error) => Self::Description(error.to_string()),
        }
    }
}

/// A path that looks like a PCI address is one elsewhere.
fn check_front_ends(values: &Values) -> Result<(), OptionError> {
    let path = values.text(VHOST.name);
    if !is_like_pci_address(path) {
        return Ok(());
    }
    let problem = format!(
        "{path} is a PCI address, and a proxy is the other side of such a device: it serves \
         front-ends of the machine that it runs on"
    );
    let remedy = format!("write the path of a socket; ./{path} for one of this name");
    Err(values.error(VHOST.name, problem).remedy(remedy))
}

/// The driver VM's memory. Its size is checked here, for a BAR's cannot change later.
fn ram_file(values: &Values) -> Result<OwnedFd, OptionError> {
    if values.is_given(BAR_SIZE) {
        let problem = format!("the BAR has the size of {RAM_FILE}");
        return Err(values.error(BAR_SIZE, problem).remedy("leave it out"));
    }
    let path = values.path(RAM_FILE);
    let make_it = || {
        format!(
            "make it with truncate -s SIZE {0}, SIZE being that of the driver VM's memory, whose \
             QEMU takes it with memory-backend-file,mem-path={0},share=on",
            path.display()
        )
    };
    if fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        let problem = format!("there is no {} yet", shown(path));
        return Err(values.error(RAM_FILE, problem).remedy(make_it()));
    }
    let Open {
        descriptor,
        file_type,
    } = open(values, RAM_FILE, OFlags::RDWR)?;
    if file_type != FileType::RegularFile {
        let problem = format!("{} is {}, and no memory", shown(path), describe(file_type));
        let remedy = "write the path of the driver VM's memory-backend-file";
        return Err(values.error(RAM_FILE, problem).remedy(remedy));
    }
    let size = rustix::fs::fstat(&descriptor).map(|stat| stat.st_size);
    if size.is_ok_and(|size| size <= 0) {
        let problem = format!("{} is empty: its size is not known yet", shown(path));
        return Err(values.error(RAM_FILE, problem).remedy(make_it()));
    }
    Ok(descriptor)
}

fn bar_size(values: &Values) -> Result<u64, OptionError> {
    let bytes = values.number(BAR_SIZE);
    if bytes.is_power_of_two() {
        return Ok(bytes);
    }
    let problem = format!("{bytes} bytes are no power of two, as those of a BAR are");
    // The table allows nothing near the greatest number.
    let next = bytes.next_power_of_two();
    Err(values
        .error(BAR_SIZE, problem)
        .remedy(format!("write {next}")))
}

fn pci_id(values: &Values) -> Result<Identity, OptionError> {
    let text = values.text(PCI_ID);
    let number = |text: &str| {
        let digits = text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u16::from_str_radix(text, 16).ok())?;
        // None of these is anybody's: all ones is no device at all.
        number.filter(|number| *number != u16::MAX)
    };
    let parsed = text.split_once(':').and_then(|(vendor, device)| {
        Some(Identity {
            vendor: number(vendor)?,
            device: number(device)?,
        })
    });
    parsed.ok_or_else(|| {
        let problem = format!("{} is no PCI id", repeat(text));
        let remedy = "write VENDOR:DEVICE in hexadecimal, 1af4:107d say";
        values.error(PCI_ID, problem).remedy(remedy)
    })
}

fn uuid(values: &Values) -> Result<[u8; 16], OptionError> {
    let text = values.text(UUID);
    parse_uuid(text).ok_or_else(|| {
        let problem = format!("{} is no UUID", repeat(text));
        values
            .error(UUID, problem)
            .remedy("write 32 hexadecimal digits, as uuidgen prints them")
    })
}

/// With hyphens in their places, or without any; in the order that it is written in.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    if groups != [8, 4, 4, 4, 12] && groups != [32] {
        return None;
    }
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        if !pair.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn opened(argument: &str) -> Result<Opened<VvuProxyDescription>, String> {
        let values = Values::parse(&TABLE, &format!("socket=s,vhost=v{argument}"));
        let opened = values.and_then(|values| VvuProxy::open(&values));
        opened.map_err(|error| error.to_string())
    }

    fn refused(argument: &str, expected: &str) {
        let error = opened(argument).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{argument}: {error}");
    }

    fn with_file(path: &Path) -> String {
        format!(",ram-file={}", path.display())
    }

    #[test]
    fn without_a_file_there_is_a_bar_whose_accesses_trap_and_a_note_of_it() {
        let Opened {
            description,
            descriptors,
            listens,
            notes,
            ..
        } = opened("").unwrap();
        let bytes = 4 << 30;
        assert_eq!(description.memory, Memory::Trapped { bytes });
        assert_eq!((description.vendor, description.device), (0x1af4, 0x107d));
        assert_eq!(description.uuid, [0; 16]);
        assert!(descriptors.is_empty());
        assert_eq!(
            (listens.len(), notes.as_slice()),
            (1, &[SLOW.to_owned()][..])
        );
        let small = opened(",bar-size=64k").unwrap().description;
        assert_eq!(small.memory, Memory::Trapped { bytes: 1 << 16 });
        refused(",bar-size=5000", "bar-size: column 27: 5000 bytes are no");
        refused(",bar-size=5000", ": write 8192");
        refused(",bar-size=1", "bar-size: column 27: \"1\" is less than 4k");
    }

    #[test]
    fn a_file_is_there_with_its_size_or_the_remedy_says_how_it_comes_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ram");
        let make_it = format!(": make it with truncate -s SIZE {}, SIZE", path.display());
        refused(&with_file(&path), "there is no ");
        refused(&with_file(&path), &make_it);
        let file = fs::File::create(&path).unwrap();
        refused(&with_file(&path), "is empty: its size is not known yet");
        refused(&with_file(&path), &make_it);
        file.set_len(1 << 20).unwrap();
        let open = opened(&with_file(&path)).unwrap();
        assert_eq!(open.description.memory, Memory::RamFile);
        assert_eq!((open.descriptors.len(), open.notes.len()), (1, 0));
        refused(&with_file(folder.path()), "Is a directory");
        refused(
            ",ram-file=/dev/null",
            "is a character device, and no memory",
        );
        let both = format!("{},bar-size=1M", with_file(&path));
        refused(&both, "bar-size: column ");
        refused(&both, "the BAR has the size of ram-file: leave it out");
    }

    #[test]
    fn front_ends_come_to_a_socket_and_not_to_a_pci_address() {
        for (path, expected) in [
            ("00:05.0", "a proxy is the other side of such a device"),
            ("00:20.0", "./00:20.0 for one of this name"),
        ] {
            let values = Values::parse(&TABLE, &format!("socket=s,vhost={path}")).unwrap();
            let error = VvuProxy::open(&values).unwrap_err().to_string();
            assert!(
                error.starts_with("--vvu-proxy: vhost: column 16: "),
                "{error}"
            );
            assert!(error.contains(expected), "{error}");
        }
        let values = Values::parse(&TABLE, "socket=s,vhost=./00:05.0").unwrap();
        assert!(VvuProxy::open(&values).is_ok());
        let error = Values::parse(&TABLE, "socket=s,vhost=v,vvu-memory=files").unwrap_err();
        assert!(error.to_string().contains("unknown key"), "{error}");
    }

    #[test]
    fn an_id_and_a_uuid_are_read_as_they_are_written() {
        let description = opened(",pci-id=1AF4:1060,uuid=00112233-4455-6677-8899-aabbccddeeff");
        let description = description.unwrap().description;
        assert_eq!((description.vendor, description.device), (0x1af4, 0x1060));
        let bytes = (0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128).to_be_bytes();
        assert_eq!(description.uuid, bytes);
        let plain = opened(",uuid=00112233445566778899AABBCCDDEEFF").unwrap();
        assert_eq!(plain.description.uuid, bytes);
        for id in [
            "1af4",
            "1af4:",
            ":1060",
            "ffff:1",
            "1af4:10600",
            "+af4:1060",
        ] {
            refused(&format!(",pci-id={id}"), "pci-id: column ");
        }
        for uuid in [
            "00112233",
            "0011223-34455-6677-8899-aabbccddeeff",
            "0011223344556677-8899-aabbccddeeff",
            "+0112233445566778899aabbccddeeff",
            "é0112233445566778899aabbccddeef",
        ] {
            refused(&format!(",uuid={uuid}"), "is no UUID: write 32 hexadecimal");
        }
    }
}
