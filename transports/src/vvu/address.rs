//! How a PCI function is named: `[DOMAIN:]BUS:DEVICE.FUNCTION`, in hexadecimal, as `lspci` has it.

use std::fmt;
use std::str::FromStr;

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    /// PCI domain, mostly 0; beyond ffff for what is behind some host bridges (VMD).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device: 5 bits.
    pub device: u8,
    /// Function: 3 bits.
    pub function: u8,
}

/// What is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not even its shape.
    #[error("not a PCI address: [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal, such as 0000:00:05.0")]
    Shape,
    /// It has the shape of one, and a field that no function has.
    #[error("not a PCI address: {0}")]
    OutOfRange(&'static str),
}

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (front, function) = text.rsplit_once('.').ok_or(AddressError::Shape)?;
        let mut fields = front.rsplit(':');
        let (device, bus, domain) = (fields.next(), fields.next(), fields.next());
        let (Some(device), Some(bus), None) = (device, bus, fields.next()) else {
            return Err(AddressError::Shape);
        };
        let [domain, bus, device, function] = [domain.unwrap_or("0"), bus, device, function];
        let [domain, bus, device, function] = [
            number(domain)?,
            number(bus)?,
            number(device)?,
            number(function)?,
        ];
        let byte = |value: Option<u32>, most: u8, beyond| {
            let value = value.and_then(|value| u8::try_from(value).ok());
            let value = value.filter(|value| *value <= most);
            value.ok_or(AddressError::OutOfRange(beyond))
        };
        Ok(Self {
            domain: domain.ok_or(AddressError::OutOfRange("its domain is over ffffffff"))?,
            bus: byte(bus, 0xff, "its bus is over ff")?,
            device: byte(device, 0x1f, "its device is over 1f")?,
            function: byte(function, 7, "its function is over 7")?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A number, or nothing if it is greater than any.
fn number(text: &str) -> Result<Option<u32>, AddressError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(AddressError::Shape);
    }
    Ok(u32::from_str_radix(text, 16).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_its_domain() {
        let address = PciAddress {
            domain: 0xabcd,
            bus: 0x0f,
            device: 0x1f,
            function: 7,
        };
        assert_eq!("abcd:0F:1f.7".parse(), Ok(address));
        assert_eq!(address.to_string(), "abcd:0f:1f.7");
        let behind: PciAddress = "10000:e1:00.0".parse().unwrap();
        assert_eq!(behind.to_string(), "10000:e1:00.0");
        let short: PciAddress = "00:05.0".parse().unwrap();
        assert_eq!(short.to_string(), "0000:00:05.0");
    }

    #[test]
    fn what_has_no_shape_of_an_address_is_told_from_what_is_out_of_range() {
        let refused = |text: &str| text.parse::<PciAddress>().unwrap_err();
        for text in [
            "",
            "00:05",
            "05.0",
            "00:05.",
            "0000:0000:00:05.0",
            "+000:00:05.0",
            "0000:00:05.-",
            "g0:05.0",
            "./00:05.0",
            "/run/0000:00:05.0",
            " 00:05.0",
        ] {
            assert_eq!(refused(text), AddressError::Shape, "{text}");
        }
        for (text, what) in [
            ("123456789:00:05.0", "its domain is over ffffffff"),
            ("100:1f.0", "its bus is over ff"),
            ("00:20.0", "its device is over 1f"),
            ("00:05.8", "its function is over 7"),
            ("00:05.123456789", "its function is over 7"),
        ] {
            assert_eq!(refused(text), AddressError::OutOfRange(what), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_shown_address_reads_back(
            domain in any::<u32>(), bus in any::<u8>(), device in 0u8..32, function in 0u8..8,
        ) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
