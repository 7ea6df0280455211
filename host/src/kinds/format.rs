//! Recognises images of formats that are not raw, by what they begin with (a fixed VHD: end with).
//! It reads none of them any further.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, fcntl_setfl, seek};
use rustix::io::{Errno, pread};

/// How many bytes of the beginning are looked at.
const HEAD: usize = 512;

/// Where and how the formats begin that QEMU and crosvm know by name.
const MAGICS: &[(&str, usize, &[u8])] = &[
    ("qcow2", 0, b"QFI\xfb"),
    ("QED", 0, b"QED\0"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHDX", 0, b"vhdxfile"),
    ("VHD", 0, b"conectix"),
    ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
    ("crosvm composite", 0, b"composite_disk\x1d"),
    ("Android sparse", 0, b"\x3a\xff\x26\xed"),
];

/// How the last 512 bytes of a VHD of fixed size begin; all before them is raw.
const VHD_FOOTER: &[u8] = b"conectix";

/// The name of the format that an image seems to have, if it is not raw.
pub(super) fn recognise(image: &OwnedFd) -> Result<Option<&'static str>, Errno> {
    // Direct access would want aligned memory, for the sake of a few bytes.
    let flags = fcntl_getfl(image)?;
    let direct = flags.contains(OFlags::DIRECT);
    if direct {
        fcntl_setfl(image, flags - OFlags::DIRECT)?;
    }
    let found = look(image);
    if direct {
        fcntl_setfl(image, flags)?;
    }
    found
}

fn look(image: &OwnedFd) -> Result<Option<&'static str>, Errno> {
    let mut bytes = [0; HEAD];
    let length = fill(image, &mut bytes, 0)?;
    let head = &bytes[..length];
    let begins = |&&(_, at, magic): &&(&str, usize, &[u8])| {
        head.get(at..).is_some_and(|rest| rest.starts_with(magic))
    };
    if let Some((name, _, _)) = MAGICS.iter().find(begins) {
        return Ok(Some(name));
    }
    let Some(last) = seek(image, SeekFrom::End(0))?.checked_sub(HEAD as u64) else {
        return Ok(None);
    };
    let length = fill(image, &mut bytes, last)?;
    Ok(bytes[..length].starts_with(VHD_FOOTER).then_some("VHD"))
}

/// Reads until the buffer is full or the file ends.
fn fill(image: &OwnedFd, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut length = 0;
    while length < into.len() {
        match pread(image, &mut into[length..], offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}
