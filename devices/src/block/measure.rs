//! What a file or block device says of itself, asked before the jail closes: its size, its blocks,
//! and what direct access needs.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType, OFlags, SeekFrom, StatxFlags, fcntl_getfl, fstat, ioctl_blkpbszget, seek,
    statx,
};

/// Where nobody tells, and where a file system names more than a page, which is a wish about
/// transfers and not the size of its blocks.
const PAGE: u32 = 4096;

/// What a file or block device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its length in bytes.
    pub capacity: u64,
    /// What it writes as a whole, in bytes: a power of two.
    pub physical_block_size: u32,
    /// What O_DIRECT wants buffers, offsets and lengths to be multiples of, if it is open so. Of
    /// another file what it would want; `None` if that cannot be told.
    pub direct_alignment: Option<u32>,
}

/// Measures an open file or block device. Its stream position moves.
pub fn measure(file: impl AsFd) -> io::Result<Measure> {
    Ok(Measure {
        // Seeking finds the length of block devices too, without an ioctl.
        capacity: seek(&file, SeekFrom::End(0))?,
        physical_block_size: physical_block_size(&file)?,
        direct_alignment: direct_alignment(&file)?,
    })
}

fn physical_block_size(file: &impl AsFd) -> io::Result<u32> {
    let stat = fstat(file)?;
    let told = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => ioctl_blkpbszget(file)?,
        _ => u32::try_from(stat.st_blksize).map_or(PAGE, |size| size.min(PAGE)),
    };
    Ok(if told.is_power_of_two() { told } else { PAGE })
}

fn direct_alignment(file: &impl AsFd) -> io::Result<Option<u32>> {
    let statx = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let wanted = statx.stx_dio_mem_align.max(statx.stx_dio_offset_align);
    let told = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && wanted != 0;
    if told || !fcntl_getfl(file)?.contains(OFlags::DIRECT) {
        return Ok(told.then_some(wanted));
    }
    Ok([512, PAGE]
        .into_iter()
        .find(|&alignment| reads(file, alignment)))
}

/// Whether a read at this alignment, and at no greater one, succeeds.
fn reads(file: &impl AsFd, alignment: u32) -> bool {
    let (size, greater) = (alignment as usize, alignment as usize * 2);
    let mut bytes = vec![0; size + 2 * greater];
    let start = bytes.as_ptr().align_offset(greater) + size;
    rustix::io::pread(file, &mut bytes[start..start + size], u64::from(alignment)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_measured_by_its_length() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(12_345).unwrap();
        let measured = measure(&file).unwrap();
        assert_eq!(measured.capacity, 12_345);
        assert!((512..=PAGE).contains(&measured.physical_block_size));
    }

    #[test]
    fn where_the_file_system_does_not_tell_direct_reads_are_tried() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(1 << 16).unwrap();
        let mut options = std::fs::File::options();
        let Ok(direct) = options
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(named.path())
        else {
            println!("SKIPPED: needs a temporary folder with direct access");
            return;
        };
        let told = measure(&direct).unwrap().direct_alignment.unwrap();
        // The trial finds as much, or a read of less was good enough.
        let tried = [512, PAGE].into_iter().find(|&size| reads(&direct, size));
        assert!(tried.unwrap() <= told.max(512), "{tried:?} {told}");
    }
}
