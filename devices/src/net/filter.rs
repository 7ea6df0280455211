//! Which frames a driver wants (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3): receive modes, tables of
//! addresses, VLANs. Not the commands that set them: those are `control`'s.
//!
//! A driver that has said nothing gets everything, so that a front-end which keeps the control
//! queue for itself (QEMU's `-netdev vhost-user`) filters by itself.

/// A hardware address.
pub type Mac = [u8; 6];

/// Addresses that a table holds. A driver that wants more gets every frame of the kind, as it does
/// from QEMU: filtering is best effort.
pub(super) const TABLE_MAX: usize = 64;

/// VLANs that there can be.
pub(super) const VLANS: u16 = 4096;

/// The bytes of a frame that decide: both addresses, a VLAN tag.
pub(super) const LOOKED_AT: usize = 16;

/// Tags that Linux and QEMU filter by (802.1Q).
const VLAN_ETHERTYPE: [u8; 2] = [0x81, 0x00];

/// Addresses of one kind that a driver wants.
#[derive(Clone, Debug)]
pub(super) struct AddressTable {
    addresses: [Mac; TABLE_MAX],
    len: usize,
    overflown: bool,
}

impl AddressTable {
    pub(super) const EMPTY: Self = Self {
        addresses: [[0; 6]; TABLE_MAX],
        len: 0,
        overflown: false,
    };

    /// Adds an address; one too many opens the table to all.
    pub(super) fn add(&mut self, address: Mac) {
        match self.addresses.get_mut(self.len) {
            Some(place) => {
                *place = address;
                self.len += 1;
            }
            None => self.overflown = true,
        }
    }

    /// Opens the table to all.
    pub(super) fn overflow(&mut self) {
        self.overflown = true;
    }

    fn has(&self, address: Mac) -> bool {
        self.overflown || self.addresses[..self.len].contains(&address)
    }
}

/// A receive mode, each on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

/// What a driver wants.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    /// `None` as long as nobody said what it is: a driver may have made it up.
    pub(super) address: Option<Mac>,
    pub(super) unicast: AddressTable,
    pub(super) multicast: AddressTable,
    /// `None` as long as VLANs are not filtered.
    vlans: Option<[u64; VLANS as usize / 64]>,
}

impl Filter {
    /// Everything passes.
    pub(super) fn open(address: Option<Mac>) -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            address,
            unicast: AddressTable::EMPTY,
            multicast: AddressTable::EMPTY,
            vlans: None,
        }
    }

    pub(super) fn set(&mut self, mode: Mode, on: bool) {
        let place = match mode {
            Mode::Promiscuous => &mut self.promiscuous,
            Mode::AllMulticast => &mut self.all_multicast,
            Mode::AllUnicast => &mut self.all_unicast,
            Mode::NoMulticast => &mut self.no_multicast,
            Mode::NoUnicast => &mut self.no_unicast,
            Mode::NoBroadcast => &mut self.no_broadcast,
        };
        *place = on;
    }

    /// From now on only the VLANs that are named pass.
    pub(super) fn filter_vlans(&mut self) {
        self.vlans.get_or_insert([0; VLANS as usize / 64]);
    }

    /// Lets a VLAN pass, or not. `id` is below [`VLANS`].
    pub(super) fn set_vlan(&mut self, id: u16, passes: bool) {
        self.filter_vlans();
        let (word, bit) = (usize::from(id / 64), 1 << (id % 64));
        if let Some(word) = self.vlans.as_mut().and_then(|vlans| vlans.get_mut(word)) {
            *word = if passes { *word | bit } else { *word & !bit };
        }
    }

    /// Whether nothing is looked at.
    pub(super) fn is_open(&self) -> bool {
        self.promiscuous
    }

    /// Whether a frame that begins with these bytes is for the driver.
    pub(super) fn passes(&self, begin: &[u8; LOOKED_AT]) -> bool {
        self.promiscuous || self.vlan_passes(begin) && self.address_passes(begin)
    }

    fn vlan_passes(&self, begin: &[u8; LOOKED_AT]) -> bool {
        let [.., type_high, type_low, tag_high, tag_low] = *begin;
        let Some(vlans) = &self.vlans else {
            return true;
        };
        if [type_high, type_low] != VLAN_ETHERTYPE {
            return true;
        }
        let id = u16::from_be_bytes([tag_high, tag_low]) % VLANS;
        vlans[usize::from(id / 64)] & 1 << (id % 64) != 0
    }

    fn address_passes(&self, begin: &[u8; LOOKED_AT]) -> bool {
        let [a, b, c, d, e, f, ..] = *begin;
        let to = [a, b, c, d, e, f];
        if to == [0xff; 6] {
            return !self.no_broadcast;
        }
        if to[0] & 1 != 0 {
            return !self.no_multicast && (self.all_multicast || self.multicast.has(to));
        }
        let ours = self.address.is_none_or(|address| address == to);
        !self.no_unicast && (self.all_unicast || ours || self.unicast.has(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];
    const ALL: Mac = [0xff; 6];

    fn frame(to: Mac) -> [u8; LOOKED_AT] {
        let mut begin = [0; LOOKED_AT];
        begin[..6].copy_from_slice(&to);
        begin
    }

    fn tagged(to: Mac, id: u16) -> [u8; LOOKED_AT] {
        let mut begin = frame(to);
        begin[12..14].copy_from_slice(&VLAN_ETHERTYPE);
        begin[14..].copy_from_slice(&(id | 0x6000).to_be_bytes());
        begin
    }

    fn closed() -> Filter {
        let mut filter = Filter::open(Some(OURS));
        filter.set(Mode::Promiscuous, false);
        filter
    }

    fn passing(filter: &Filter) -> [bool; 4] {
        [OURS, OTHER, GROUP, ALL].map(|to| filter.passes(&frame(to)))
    }

    #[test]
    fn a_driver_that_said_nothing_gets_everything() {
        let filter = Filter::open(Some(OURS));
        assert_eq!(passing(&filter), [true; 4]);
        assert!(filter.passes(&tagged(OTHER, 7)));
    }

    #[test]
    fn each_mode_does_what_it_says() {
        assert_eq!(passing(&closed()), [true, false, false, true]);
        for (mode, expected) in [
            (Mode::AllUnicast, [true, true, false, true]),
            (Mode::AllMulticast, [true, false, true, true]),
            (Mode::NoUnicast, [false, false, false, true]),
            (Mode::NoMulticast, [true, false, false, true]),
            (Mode::NoBroadcast, [true, false, false, false]),
            (Mode::Promiscuous, [true; 4]),
        ] {
            let mut filter = closed();
            filter.set(mode, true);
            assert_eq!(passing(&filter), expected, "{mode:?}");
            filter.set(mode, false);
            assert_eq!(passing(&filter), passing(&closed()), "{mode:?}");
        }
        let mut filter = closed();
        filter.set(Mode::AllMulticast, true);
        filter.set(Mode::NoMulticast, true);
        assert!(!filter.passes(&frame(GROUP)), "the refusal is stronger");
    }

    #[test]
    fn an_address_that_nobody_said_is_any() {
        let mut filter = closed();
        filter.address = None;
        assert_eq!(passing(&filter), [true, true, false, true]);
    }

    #[test]
    fn tables_add_addresses_and_one_too_many_opens_them() {
        let mut filter = closed();
        filter.unicast.add(OTHER);
        filter.multicast.add(GROUP);
        assert_eq!(passing(&filter), [true; 4]);
        assert!(!filter.passes(&frame([4; 6])));
        (0..TABLE_MAX).for_each(|_| filter.unicast.add(OURS));
        assert!(filter.passes(&frame([4; 6])));
        assert!(!filter.passes(&frame([5; 6])), "that one is for a group");
    }

    #[test]
    fn vlans_pass_by_their_number() {
        let mut filter = closed();
        assert!(filter.passes(&tagged(OURS, 4095)));
        filter.filter_vlans();
        assert!(filter.passes(&frame(OURS)) && !filter.passes(&tagged(OURS, 4095)));
        filter.set_vlan(4095, true);
        assert!(filter.passes(&tagged(OURS, 4095)) && !filter.passes(&tagged(OURS, 4094)));
        assert!(!filter.passes(&tagged(OTHER, 4095)), "both must pass");
        filter.set_vlan(4095, false);
        assert!(!filter.passes(&tagged(OURS, 4095)));
    }
}
