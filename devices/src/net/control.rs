//! The control queue (virtio 1.3, 5.1.6.5): each command is checked whole before it does anything,
//! and acknowledged with OK or ERR. What a command changes is [`super::Net`]'s.
//!
//! ERR is the answer to a command that is unknown, was not negotiated, is too short or too long, or
//! names what there is not. A chain without room for the answer is completed with nothing done.

use vudev_virtio::{Chain, GuestBuffers, ShortBuffers};

use super::Net;
use super::filter::{AddressTable, Mac, Mode, TABLE_MAX, VLANS};
use super::spec::{ack, ctrl, feature};

/// A command that was understood.
#[derive(Clone, Debug)]
enum Command {
    Mode { mode: Mode, on: bool },
    Tables(Box<[AddressTable; 2]>),
    Address(Mac),
    Vlan { id: u16, passes: bool },
    Announced,
    Pairs(u16),
    Offloads(u64),
}

/// It is not carried out.
struct Refused;

impl From<ShortBuffers> for Refused {
    fn from(_: ShortBuffers) -> Self {
        Self
    }
}

/// Carries out a chain's command, and answers; the bytes written to the chain.
pub(super) fn answer(net: &Net, chain: &mut Chain) -> u32 {
    if chain.writable.is_empty() {
        return 0;
    }
    let done = Command::parse(&mut chain.readable, net.features.get())
        .and_then(|command| net.carry_out(command));
    let told = match done {
        Ok(()) => ack::OK,
        Err(Refused) => ack::ERR,
    };
    match chain.writable.write(&[told]) {
        Ok(()) => 1,
        Err(_) => 0,
    }
}

impl Command {
    /// The command in these bytes, if it is one and was negotiated.
    fn parse(bytes: &mut GuestBuffers, features: u64) -> Result<Self, Refused> {
        let [class, command] = bytes.read_array()?;
        let (needed, parsed) = match (class, command) {
            (ctrl::RX, command) => mode(command, bytes)?,
            (ctrl::MAC, ctrl::MAC_TABLE_SET) => (feature::CTRL_RX, tables(bytes)?),
            (ctrl::MAC, ctrl::MAC_ADDR_SET) => (feature::CTRL_MAC_ADDR, address(bytes)?),
            (ctrl::VLAN, ctrl::VLAN_ADD) => (feature::CTRL_VLAN, vlan(true, bytes)?),
            (ctrl::VLAN, ctrl::VLAN_DEL) => (feature::CTRL_VLAN, vlan(false, bytes)?),
            (ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK) => (feature::GUEST_ANNOUNCE, Self::Announced),
            (ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(bytes.read_array()?);
                (feature::MQ, Self::Pairs(pairs))
            }
            (ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET) => {
                let offloads = u64::from_le_bytes(bytes.read_array()?);
                (feature::CTRL_GUEST_OFFLOADS, Self::Offloads(offloads))
            }
            _ => return Err(Refused),
        };
        let needed = needed | feature::CTRL_VQ;
        if features & needed != needed || !bytes.is_empty() {
            return Err(Refused);
        }
        Ok(parsed)
    }
}

/// A receive mode, and the feature that it needs.
fn mode(command: u8, bytes: &mut GuestBuffers) -> Result<(u64, Command), Refused> {
    let (needed, mode) = match command {
        ctrl::RX_PROMISC => (feature::CTRL_RX, Mode::Promiscuous),
        ctrl::RX_ALLMULTI => (feature::CTRL_RX, Mode::AllMulticast),
        ctrl::RX_ALLUNI => (feature::CTRL_RX_EXTRA, Mode::AllUnicast),
        ctrl::RX_NOMULTI => (feature::CTRL_RX_EXTRA, Mode::NoMulticast),
        ctrl::RX_NOUNI => (feature::CTRL_RX_EXTRA, Mode::NoUnicast),
        ctrl::RX_NOBCAST => (feature::CTRL_RX_EXTRA, Mode::NoBroadcast),
        _ => return Err(Refused),
    };
    match bytes.read_array()? {
        [on @ 0..=1] => Ok((needed, Command::Mode { mode, on: on == 1 })),
        _ => Err(Refused),
    }
}

/// Both tables, unicast first: a count and so many addresses each. Of a longer one than we keep
/// only the length is looked at.
fn tables(bytes: &mut GuestBuffers) -> Result<Command, Refused> {
    let mut tables = Box::new([AddressTable::EMPTY, AddressTable::EMPTY]);
    for (table, group) in tables.iter_mut().zip([false, true]) {
        let entries = u32::from_le_bytes(bytes.read_array()?) as usize;
        if entries > TABLE_MAX {
            bytes.advance(entries.checked_mul(6).ok_or(Refused)?)?;
            table.overflow();
            continue;
        }
        for _ in 0..entries {
            let address: Mac = bytes.read_array()?;
            if (address[0] & 1 != 0) != group {
                return Err(Refused);
            }
            table.add(address);
        }
    }
    Ok(Command::Tables(tables))
}

fn address(bytes: &mut GuestBuffers) -> Result<Command, Refused> {
    let address: Mac = bytes.read_array()?;
    if super::tap::is_unicast(address) {
        Ok(Command::Address(address))
    } else {
        Err(Refused)
    }
}

fn vlan(passes: bool, bytes: &mut GuestBuffers) -> Result<Command, Refused> {
    match u16::from_le_bytes(bytes.read_array()?) {
        id if id < VLANS => Ok(Command::Vlan { id, passes }),
        _ => Err(Refused),
    }
}

impl Net {
    fn carry_out(&self, command: Command) -> Result<(), Refused> {
        log::debug!("{command:?}");
        match command {
            Command::Mode { mode, on } => self.filter.borrow_mut().set(mode, on),
            Command::Tables(tables) => {
                let [unicast, multicast] = *tables;
                let mut filter = self.filter.borrow_mut();
                (filter.unicast, filter.multicast) = (unicast, multicast);
            }
            Command::Address(address) => self.filter.borrow_mut().address = Some(address),
            Command::Vlan { id, passes } => self.filter.borrow_mut().set_vlan(id, passes),
            // 5.1.6.5.4: an acknowledgement of what was not asked is none.
            Command::Announced if !self.announce.replace(false) => return Err(Refused),
            Command::Announced => {}
            Command::Pairs(pairs) if !(1..=self.config.pairs).contains(&pairs) => {
                return Err(Refused);
            }
            Command::Pairs(pairs) => self.use_pairs(pairs),
            Command::Offloads(offloads) => {
                let agreed = self.features.get() & feature::GUEST_OFFLOADS;
                if offloads & !agreed != 0 {
                    return Err(Refused);
                }
                self.use_offloads(offloads).map_err(|_| Refused)?;
            }
        }
        Ok(())
    }
}
