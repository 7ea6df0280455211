//! `--net`: its keys, and the opening and setting up of its tap. What a tap is asked by ioctl is
//! `vudev_devices::net::tap`'s; what is refused, and what to do about it, is told here.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use vudev_devices::net::{self, MTU_MAX, MTU_MIN, Mac, NetConfig, PAIRS_MAX, tap};

use super::{PACKED_QUEUE, PCI_ADDRESS};
use crate::kind::{CreateError, DeviceKind, Given, Notice, Opened};
use crate::options::{FRONT_ENDS, Key, Kind, OptionError, Table, Values, reason, repeat};

/// The kind of `--net`.
#[derive(Debug)]
pub struct Net;

/// IFNAMSIZ, less the NUL.
const NAME_MAX: usize = 15;

/// What a tap is called that is made here.
const NEW_NAME: &str = "vmtap%d";

/// The keys of which one says where the tap comes from.
const SOURCES: [&str; 3] = ["tap-name", "tap-fd", "host-ip"];

static TABLE: Table = Table {
    device: "net",
    about: "a network card (virtio-net) on a tap",
    keys: &[
        Key::new(
            "tap-name",
            Kind::Text { max: NAME_MAX },
            "the tap, which there is already: ip tuntap add NAME mode tap",
        )
        .exclusive(),
        Key::new(
            "tap-fd",
            Kind::Numbers {
                min: 0,
                max: i32::MAX as u64,
            },
            "the descriptor of a tap that vudev was started with; one for each pair of queues",
        )
        .exclusive(),
        Key::new(
            "host-ip",
            Kind::Text { max: 15 },
            "make a tap, and give the host's end this IPv4 address",
        ),
        Key::new(
            "netmask",
            Kind::Text { max: 15 },
            "the netmask that goes with host-ip",
        ),
        Key::new(
            "mac",
            Kind::Text { max: 17 },
            "the guest's hardware address; without it the guest makes its own",
        ),
        Key::new(
            "vq-pairs",
            Kind::Number {
                min: 1,
                max: PAIRS_MAX as u64,
            },
            "how many pairs of queues there are; more than 1 needs a tap of several queues",
        )
        .default("1"),
        Key::new(
            "mtu",
            Kind::Number {
                min: MTU_MIN as u64,
                max: MTU_MAX as u64,
            },
            "the greatest packet, set on the tap and told to the guest; else as the tap has it",
        ),
        Key::new(
            "mrg-rxbuf",
            Kind::Flag,
            "offer that a frame lies in several receive buffers",
        )
        .default("true"),
        PACKED_QUEUE,
        Key::flag("vhost-net", "let the kernel's vhost-net move the frames").refused(
            "it works on the guest's memory in the kernel, outside of the device's jail; frames go \
             through the device's own ring, without a copy",
        ),
        PCI_ADDRESS,
    ],
    front_ends: FRONT_ENDS,
    joins: false,
    example: "tap-name=tap0,vhost=/tmp/vu-net",
};

impl DeviceKind for Net {
    const NAME: &'static str = "net";
    const POLICY: &'static str = "net";

    type Description = NetConfig;
    type Device = net::Net;

    fn table() -> &'static Table {
        &TABLE
    }

    fn open(values: &Values) -> Result<Opened<NetConfig>, OptionError> {
        let mac = values
            .optional_text("mac")
            .map(|text| parse_mac(values, text))
            .transpose()?;
        let Taps {
            name,
            descriptors,
            multi_queue,
        } = taps(values)?;
        let mut offloads = 0;
        for descriptor in &descriptors {
            let set_up =
                tap::use_virtio_header(descriptor).and_then(|()| tap::offloads(descriptor));
            offloads = set_up
                .map_err(|error| tap_error(values, source(values), &name, "set up", error))?;
        }
        let mtu = mtu(values, &name)?;
        let mut notes = values.notes();
        if tap::is_up(&name).is_ok_and(|up| !up) {
            notes.push(format!(
                "--net: {name} is down, and takes no frame before `ip link set {name} up`"
            ));
        }
        let made = values
            .is_given("host-ip")
            .then(|| format!("its tap is {name}"));
        let config = NetConfig {
            mac,
            mtu,
            pairs: u16::try_from(descriptors.len()).unwrap_or(u16::MAX),
            multi_queue,
            mergeable: values.flag("mrg-rxbuf"),
            offloads,
        };
        Ok(Opened {
            notes,
            made: made.into_iter().collect(),
            ..Opened::new(config, descriptors)
        })
    }

    fn operations(description: &NetConfig) -> u32 {
        description.operations()
    }

    fn create(given: Given<NetConfig>) -> Result<net::Net, CreateError> {
        net::Net::new(&given.handle, given.description, given.descriptors)
            .map_err(|error| CreateError::Description(error.to_string()))
    }

    /// A tap that was put elsewhere is known there once its guest has said something.
    fn hear(device: &net::Net, notice: Notice) {
        match notice {
            Notice::Refresh => device.announce(),
            Notice::Window { .. } => {}
        }
    }
}

/// The queues of one tap.
struct Taps {
    name: String,
    descriptors: Vec<OwnedFd>,
    multi_queue: bool,
}

/// The key that says where the tap comes from.
fn source(values: &Values) -> &'static str {
    let given = SOURCES.into_iter().find(|key| values.is_given(key));
    given.unwrap_or(SOURCES[0])
}

fn taps(values: &Values) -> Result<Taps, OptionError> {
    let given: Vec<_> = SOURCES
        .into_iter()
        .filter(|key| values.is_given(key))
        .collect();
    if values.is_given("netmask") && !values.is_given("host-ip") {
        let error = values.error("netmask", "goes with host-ip");
        return Err(error.remedy("add host-ip=ADDRESS, or leave it out"));
    }
    match given[..] {
        ["tap-name"] => named(values),
        ["tap-fd"] => inherited(values),
        [_] => made(values),
        [] => {
            let error = values.error("tap-name", "nothing says which tap it is");
            Err(error.remedy("add tap-name=NAME, tap-fd=NUMBER, or host-ip= and netmask="))
        }
        [first, second, ..] => {
            let error = values.error(second, format!("another tap than that of {first}"));
            Err(error.remedy("leave one of them out"))
        }
    }
}

fn pairs(values: &Values) -> usize {
    values.number_as("vq-pairs")
}

/// A tap that is there.
fn named(values: &Values) -> Result<Taps, OptionError> {
    let name = values.text("tap-name");
    let fail = |error| tap_error(values, "tap-name", name, "open", error);
    // Asked first: the kernel would make a tap of a name that is mistyped.
    tap::is_up(name).map_err(fail)?;
    let several = pairs(values) > 1;
    let (first, multi_queue) = match tap::open(name, several) {
        // A tap of several queues is one for all who open it.
        Err(error) if is(&error, Errno::INVAL) && !several => {
            (tap::open(name, true).map_err(fail)?, true)
        }
        Err(error) if is(&error, Errno::INVAL) => {
            let problem = format!("{} is no tap of several queues", repeat(name));
            let remedy = format!("make it so: ip tuntap add {name} mode tap multi_queue");
            return Err(values.error("vq-pairs", problem).remedy(remedy));
        }
        opened => (opened.map_err(fail)?, several),
    };
    let further = (1..pairs(values)).map(|_| tap::open(name, true));
    let descriptors = std::iter::once(Ok(first)).chain(further);
    Ok(Taps {
        name: name.to_owned(),
        descriptors: descriptors.collect::<Result<_, _>>().map_err(fail)?,
        multi_queue,
    })
}

/// A tap that somebody else has opened.
fn inherited(values: &Values) -> Result<Taps, OptionError> {
    let numbers = values.numbers("tap-fd");
    let error = |problem: String| values.error("tap-fd", problem);
    if values.is_given("vq-pairs") && pairs(values) != numbers.len() {
        let problem = format!("{} descriptors for {} pairs", numbers.len(), pairs(values));
        return Err(error(problem).remedy("write one for each pair: tap-fd=[3,4]"));
    }
    if !(1..=usize::from(PAIRS_MAX)).contains(&numbers.len()) {
        let problem = format!("{} descriptors", numbers.len());
        return Err(error(problem).remedy(format!("write 1 to {PAIRS_MAX} of them")));
    }
    let mut taps: Option<Taps> = None;
    for &number in numbers {
        let number = i32::try_from(number).unwrap_or(-1);
        let (descriptor, interface) = tap::inherited(number)
            .and_then(|descriptor| {
                let interface = tap::interface(&descriptor)?;
                // The ring would give EAGAIN where it should wait.
                let set = rustix::fs::fcntl_getfl(&descriptor)?;
                rustix::fs::fcntl_setfl(&descriptor, set - OFlags::NONBLOCK)?;
                Ok((descriptor, interface))
            })
            .map_err(|failed| not_a_tap(values, number, &failed))?;
        if !interface.fits {
            let problem = format!("{} passes frames in another form", repeat(&interface.name));
            let remedy = "open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
            return Err(error(problem).remedy(remedy));
        }
        let taps = taps.get_or_insert_with(|| Taps {
            name: interface.name.clone(),
            descriptors: Vec::new(),
            multi_queue: interface.multi_queue,
        });
        if taps.name != interface.name || !taps.descriptors.is_empty() && !taps.multi_queue {
            let problem = format!("descriptor {number} is no further queue of {}", taps.name);
            return Err(error(problem).remedy("open each with IFF_MULTI_QUEUE and one name"));
        }
        taps.descriptors.push(descriptor);
    }
    taps.ok_or_else(|| error("no descriptor".to_owned()))
}

fn not_a_tap(values: &Values, number: i32, error: &std::io::Error) -> OptionError {
    let problem = match Errno::from_io_error(error) {
        Some(Errno::BADF) => format!("there is no descriptor {number}"),
        _ => format!("descriptor {number} is no tap"),
    };
    let error = values.error("tap-fd", problem);
    error.remedy("start vudev with the tap open, not close-on-exec, at this number")
}

/// A tap of our own, which goes when we do.
fn made(values: &Values) -> Result<Taps, OptionError> {
    let address = parse_address(values, "host-ip")?;
    if !values.is_given("netmask") {
        let error = values.error("netmask", "is missing beside host-ip");
        return Err(error.remedy("add netmask=255.255.255.0, say"));
    }
    let netmask = parse_address(values, "netmask")?;
    let bits = u32::from(netmask);
    if bits.leading_ones() + bits.trailing_zeros() != u32::BITS {
        let error = values.error("netmask", format!("{netmask} is no netmask"));
        return Err(error.remedy("write ones, then zeros: 255.255.255.0"));
    }
    let fail = |error| tap_error(values, "host-ip", NEW_NAME, "make", error);
    let multi_queue = pairs(values) > 1;
    let first = tap::open(NEW_NAME, multi_queue).map_err(fail)?;
    let name = tap::interface(&first).map_err(fail)?.name;
    let further = (1..pairs(values)).map(|_| tap::open(&name, true));
    let descriptors = std::iter::once(Ok(first)).chain(further);
    let descriptors = descriptors.collect::<Result<_, _>>().map_err(fail)?;
    tap::set_address(&name, address, netmask)
        .map_err(|error| tap_error(values, "host-ip", &name, "give an address to", error))?;
    Ok(Taps {
        name,
        descriptors,
        multi_queue,
    })
}

/// The tap's MTU, after it was set if that was asked for.
fn mtu(values: &Values, name: &str) -> Result<u16, OptionError> {
    let has = tap::mtu(name)
        .map_err(|error| tap_error(values, source(values), name, "ask for the MTU of", error))?;
    if !values.is_given("mtu") {
        return Ok(u16::try_from(has).unwrap_or(MTU_MAX).max(MTU_MIN));
    }
    let wanted: u16 = values.number_as("mtu");
    if u32::from(wanted) != has {
        tap::set_mtu(name, wanted.into()).map_err(|error| {
            tap_error(values, "mtu", name, "set the MTU of", error).remedy(format!(
                "let someone do it who may: ip link set {name} mtu {wanted}"
            ))
        })?;
    }
    Ok(wanted)
}

fn parse_address(values: &Values, key: &str) -> Result<Ipv4Addr, OptionError> {
    values.text(key).parse().map_err(|_| {
        let problem = format!("{} is no IPv4 address", repeat(values.text(key)));
        values
            .error(key, problem)
            .remedy("write four numbers: 192.168.10.1")
    })
}

fn parse_mac(values: &Values, text: &str) -> Result<Mac, OptionError> {
    let remedy = "write six bytes: 02:00:00:00:00:01";
    let mut mac = Mac::default();
    let mut bytes = text.split(':');
    for place in &mut mac {
        let byte = bytes.next().filter(|byte| byte.len() == 2);
        let parsed = byte.and_then(|byte| u8::from_str_radix(byte, 16).ok());
        let whole = format!("{} is no hardware address", repeat(text));
        *place = parsed.ok_or_else(|| values.error("mac", whole).remedy(remedy))?;
    }
    if bytes.next().is_some() || !tap::is_unicast(mac) {
        let problem = format!("{} is no address of a single machine", repeat(text));
        return Err(values.error("mac", problem).remedy(remedy));
    }
    Ok(mac)
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

/// What went wrong with a tap, and the likely way out.
fn tap_error(
    values: &Values,
    key: &str,
    name: &str,
    verb: &str,
    error: std::io::Error,
) -> OptionError {
    let errno = Errno::from_io_error(&error);
    let why = reason(error);
    let what = match name {
        NEW_NAME => "a tap".to_owned(),
        name => repeat(name),
    };
    let error = values.error(key, format!("cannot {verb} {what}: {why}"));
    match errno {
        Some(Errno::NODEV) => {
            let problem = format!("make it: ip tuntap add {name} mode tap user USER");
            error.remedy(problem)
        }
        Some(Errno::NOENT | Errno::NXIO) => error.remedy("the kernel has no taps: modprobe tun"),
        Some(Errno::ACCESS) => error.remedy("start as a user who may open /dev/net/tun"),
        Some(Errno::PERM) if key == "tap-name" => error.remedy(format!(
            "start as root, or as its owner: ip tuntap add {name} mode tap user USER"
        )),
        Some(Errno::PERM) => {
            error.remedy("start as root, or have a tap made beforehand and give tap-name=")
        }
        Some(Errno::BUSY) => error.remedy("end whoever uses it"),
        Some(Errno::INVAL) => error.remedy("write the name of a tap"),
        _ => error.remedy("write another one"),
    }
}
