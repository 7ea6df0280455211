//! What a distribution's kernel package has to be taken apart for: the ELF kernel inside the
//! bzImage, and modules without their compression.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ruzstd::decoding::StreamingDecoder;

use crate::process::output;

/// Offsets in the header of a bzImage (the kernel's `Documentation/arch/x86/boot.rst`).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// How a zstd frame begins (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Writes the ELF kernel that is inside a bzImage; false if it is not there in a form that we read.
/// The ELF boots a second faster under emulation, since the guest need not unpack it.
pub(crate) fn extract_vmlinux(image: &[u8], into: &Path) -> Result<bool> {
    let Some(payload) = payload(image).filter(|payload| payload.starts_with(&ZSTD_MAGIC)) else {
        return Ok(false);
    };
    let mut decoder = StreamingDecoder::new(payload).context("the kernel's zstd frame")?;
    let mut out = File::create(into)?;
    std::io::copy(&mut decoder, &mut out).context("unpacking the kernel")?;
    out.flush()?;
    Ok(true)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    // Zero means four, for compatibility with the oldest kernels.
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + usize::try_from(word(PAYLOAD_OFFSET)?).ok()?;
    let length = usize::try_from(word(PAYLOAD_LENGTH)?).ok()?;
    image.get(start..start.checked_add(length)?)
}

/// A module's contents, or `None` if the folder has no such module (it may be built in).
pub(crate) fn module(modules: &Path, name: &str, busybox: &Path) -> Result<Option<Vec<u8>>> {
    let Some(path) = find_module(modules, name)? else {
        return Ok(None);
    };
    let unpacked = match path.extension().and_then(|end| end.to_str()) {
        Some("ko") => fs::read(&path)?,
        Some("xz") => output(Command::new(busybox).args(["xz", "-dc"]).arg(&path))?,
        Some("gz") => output(Command::new(busybox).args(["gzip", "-dc"]).arg(&path))?,
        Some("zst") => {
            let mut unpacked = Vec::new();
            StreamingDecoder::new(File::open(&path)?)?.read_to_end(&mut unpacked)?;
            unpacked
        }
        _ => bail!("{} is compressed in an unknown way", path.display()),
    };
    Ok(Some(unpacked))
}

/// Looks for `NAME.ko`, `NAME.ko.xz`, …; `-` and `_` are the same in a module's name.
fn find_module(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
            continue;
        }
        let file = entry.file_name().to_string_lossy().replace('_', "-");
        let stem = file.split_once(".ko").map(|(stem, _)| stem);
        if stem == Some(name.replace('_', "-").as_str()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = u8::try_from(payload.len()).unwrap();
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_where_the_boot_protocol_says() {
        assert_eq!(payload(&image(b"elf")), Some(&b"elf"[..]));
    }

    #[test]
    fn what_is_no_kernel_or_cut_short_has_no_payload() {
        assert_eq!(payload(b"short"), None);
        let mut cut = image(b"elf");
        cut.pop();
        assert_eq!(payload(&cut), None);
    }

    #[test]
    fn a_kernel_compressed_in_another_way_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("vmlinux");
        assert!(!extract_vmlinux(&image(b"\x1f\x8bgzip"), &into).unwrap());
        assert!(!into.exists());
    }

    #[test]
    fn a_module_is_found_under_either_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("kernel/drivers");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("virtio-rng.ko"), b"module").unwrap();
        let busybox = Path::new("busybox");
        let found = module(folder.path(), "virtio_rng", busybox).unwrap();
        assert_eq!(found.as_deref(), Some(&b"module"[..]));
        assert_eq!(module(folder.path(), "virtio_blk", busybox).unwrap(), None);
    }
}
