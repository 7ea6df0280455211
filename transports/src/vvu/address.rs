//! How a PCI function is named: `[DOMAIN:]BUS:DEVICE.FUNCTION`, in hexadecimal, as `lspci` has it.

use std::fmt;
use std::ops::RangeInclusive;
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
#[error("not a PCI address: [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal, such as 0000:00:05.0")]
pub struct AddressError;

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (buses, function) = text.rsplit_once('.').ok_or(AddressError)?;
        let (buses, device) = buses.rsplit_once(':').ok_or(AddressError)?;
        let (domain, bus) = match buses.split_once(':') {
            Some((domain, bus)) => (number(domain, 4..=8, u32::MAX)?, bus),
            None => (0, buses),
        };
        let byte = |text, digits, most| {
            let value = number(text, digits..=digits, most)?;
            u8::try_from(value).map_err(|_| AddressError)
        };
        let (bus, device) = (byte(bus, 2, 0xff)?, byte(device, 2, 0x1f)?);
        let function = byte(function, 1, 7)?;
        Ok(Self {
            domain,
            bus,
            device,
            function,
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

/// A number of so many hexadecimal digits.
fn number(text: &str, digits: RangeInclusive<usize>, most: u32) -> Result<u32, AddressError> {
    let lawful = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = u32::from_str_radix(text, 16).map_err(|_| AddressError)?;
    if lawful && value <= most {
        Ok(value)
    } else {
        Err(AddressError)
    }
}

#[cfg(test)]
mod tests {
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
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "00:05",
            "05.0",
            "0:5.0",
            "00:20.0",
            "00:05.8",
            "00:05.00",
            "000:00:05.0",
            "000000000:00:05.0",
            "0000:0000:00:05.0",
            "+000:00:05.0",
            "0000:00:05.-",
            "g0:05.0",
            "/run/0000:00:05.0",
            " 00:05.0",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(AddressError), "{text}");
        }
    }
}
