//! Turns a guest's request header into a request that this disk can carry out. Pure: it neither
//! reads guest memory nor touches the file.
//!
//! A [`Request`] is right by construction: its kind is known and negotiated, its data lies in the
//! right direction, on whole sectors and before the end of the disk, and it does not write where
//! writing is not allowed. Everything else is a [`Status`] that the guest is told. Ranges to
//! discard or to zero are data, and [`super::ranges`] reads them.

use std::ops::Range;

use super::ranges::Purpose;

/// The unit of a request's sector number and of the capacity, whatever the block size is
/// (virtio 1.3, 5.2.4).
pub(super) const SECTOR_SIZE: u64 = 512;

/// How many bytes a header has: type, reserved, sector (virtio 1.3, 5.2.6).
pub(super) const HEADER_SIZE: usize = 16;

/// How many bytes an answer to GET_ID has, padded with NUL (virtio 1.3, 5.2.6).
pub(super) const ID_SIZE: usize = 20;

/// VIRTIO_BLK_T_*: virtio 1.3, 5.2.6.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// VIRTIO_BLK_S_*: the last byte a guest can be told (virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not known to be done.
    IoError = 1,
    /// Not a request of this device.
    Unsupported = 2,
}

/// What a disk lets a guest do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// The disk's length in bytes.
    pub(super) capacity: u64,
    /// Whether writes are refused.
    pub(super) read_only: bool,
    /// Whether FLUSH was negotiated: else each write must be durable. It is carried out anyway.
    pub(super) flush: bool,
    /// Whether DISCARD was negotiated.
    pub(super) discard: bool,
    /// Whether WRITE_ZEROES was negotiated.
    pub(super) write_zeroes: bool,
}

/// How much data came with a header: neither the header nor the status byte is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    /// Bytes for the device to read.
    pub(super) readable: usize,
    /// Bytes for the device to write.
    pub(super) writable: usize,
}

/// Something to do, with offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the writable bytes from `offset` on.
    Read {
        /// Where in the file.
        offset: u64,
    },
    /// Store the readable bytes from `offset` on.
    Write {
        /// Where in the file.
        offset: u64,
    },
    /// Make completed writes durable.
    Flush,
    /// Tell the disk's name.
    Identify,
    /// Give ranges back, or make them zero: the readable bytes say which.
    Change {
        /// What to do with them.
        purpose: Purpose,
    },
}

impl Request {
    /// Reads `header`, or says what its sender is told.
    pub(super) fn parse(
        header: &[u8; HEADER_SIZE],
        payload: Payload,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            TYPE_IN => {
                refuse_unless(payload.readable == 0)?;
                let place = limits.place(sector, bytes(payload.writable)?)?;
                Ok(Self::Read {
                    offset: place.start,
                })
            }
            TYPE_OUT => {
                refuse_unless(!limits.read_only && payload.writable == 0)?;
                let place = limits.place(sector, bytes(payload.readable)?)?;
                Ok(Self::Write {
                    offset: place.start,
                })
            }
            TYPE_FLUSH => {
                refuse_unless(payload.readable == 0 && payload.writable == 0)?;
                Ok(Self::Flush)
            }
            TYPE_GET_ID => {
                refuse_unless(payload.readable == 0 && payload.writable >= ID_SIZE)?;
                Ok(Self::Identify)
            }
            TYPE_DISCARD if limits.discard => Self::change(Purpose::Discard, payload),
            TYPE_WRITE_ZEROES if limits.write_zeroes => Self::change(Purpose::WriteZeroes, payload),
            _ => Err(Status::Unsupported),
        }
    }

    fn change(purpose: Purpose, payload: Payload) -> Result<Self, Status> {
        refuse_unless(payload.writable == 0 && payload.readable <= purpose.bytes_max())?;
        Ok(Self::Change { purpose })
    }
}

impl Limits {
    /// Where `length` bytes from `sector` on are, if they are whole sectors of this disk.
    pub(super) fn place(&self, sector: u64, length: u64) -> Result<Range<u64>, Status> {
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        refuse_unless(end <= self.capacity)?;
        refuse_unless(length.is_multiple_of(SECTOR_SIZE))?;
        Ok(offset..end)
    }
}

fn bytes(length: usize) -> Result<u64, Status> {
    u64::try_from(length).map_err(|_| Status::IoError)
}

/// The status of a request that is known but cannot be carried out as it is.
fn refuse_unless(lawful: bool) -> Result<(), Status> {
    if lawful { Ok(()) } else { Err(Status::IoError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        capacity: 8 * SECTOR_SIZE,
        read_only: false,
        flush: true,
        discard: true,
        write_zeroes: true,
    };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        // The reserved word (once a priority) means nothing.
        bytes[4..8].copy_from_slice(&[0xff; 4]);
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn parse(kind: u32, sector: u64, readable: usize, writable: usize) -> Result<Request, Status> {
        let payload = Payload { readable, writable };
        Request::parse(&header(kind, sector), payload, &LIMITS)
    }

    #[test]
    fn a_read_and_a_write_up_to_the_last_sector_are_placed_in_bytes() {
        assert_eq!(
            parse(TYPE_IN, 7, 0, 512),
            Ok(Request::Read { offset: 3584 })
        );
        assert_eq!(
            parse(TYPE_OUT, 0, 4096, 0),
            Ok(Request::Write { offset: 0 })
        );
    }

    #[test]
    fn an_empty_transfer_is_lawful_up_to_the_end() {
        assert_eq!(parse(TYPE_IN, 8, 0, 0), Ok(Request::Read { offset: 4096 }));
        assert_eq!(parse(TYPE_IN, 9, 0, 0), Err(Status::IoError));
    }

    #[test]
    fn what_reaches_beyond_the_end_is_an_error_even_when_the_sum_overflows() {
        assert_eq!(parse(TYPE_IN, 8, 0, 512), Err(Status::IoError));
        assert_eq!(parse(TYPE_IN, 7, 0, 1024), Err(Status::IoError));
        assert_eq!(parse(TYPE_OUT, u64::MAX, 512, 0), Err(Status::IoError));
        let last = u64::MAX / SECTOR_SIZE;
        assert_eq!(parse(TYPE_OUT, last, 512, 0), Err(Status::IoError));
    }

    #[test]
    fn a_length_that_is_not_whole_sectors_is_an_error() {
        assert_eq!(parse(TYPE_IN, 0, 0, 511), Err(Status::IoError));
        assert_eq!(parse(TYPE_OUT, 0, 513, 0), Err(Status::IoError));
    }

    #[test]
    fn data_in_the_wrong_direction_is_an_error() {
        assert_eq!(parse(TYPE_IN, 0, 512, 0), Err(Status::IoError));
        assert_eq!(parse(TYPE_IN, 0, 512, 512), Err(Status::IoError));
        assert_eq!(parse(TYPE_OUT, 0, 0, 512), Err(Status::IoError));
        assert_eq!(parse(TYPE_FLUSH, 0, 1, 0), Err(Status::IoError));
        assert_eq!(parse(TYPE_GET_ID, 0, 20, 0), Err(Status::IoError));
    }

    #[test]
    fn a_name_needs_twenty_bytes_of_room() {
        assert_eq!(parse(TYPE_GET_ID, 0, 0, 20), Ok(Request::Identify));
        assert_eq!(parse(TYPE_GET_ID, 0, 0, 19), Err(Status::IoError));
    }

    #[test]
    fn a_read_only_disk_refuses_writes_and_nothing_else() {
        let limits = Limits {
            read_only: true,
            ..LIMITS
        };
        let parse = |kind, readable, writable| {
            Request::parse(&header(kind, 0), Payload { readable, writable }, &limits)
        };
        assert_eq!(parse(TYPE_OUT, 512, 0), Err(Status::IoError));
        assert_eq!(parse(TYPE_IN, 0, 512), Ok(Request::Read { offset: 0 }));
        assert_eq!(parse(TYPE_FLUSH, 0, 0), Ok(Request::Flush));
    }

    #[test]
    fn ranges_are_no_longer_than_the_longest_list_and_readable() {
        let change = |purpose| Ok(Request::Change { purpose });
        assert_eq!(parse(TYPE_DISCARD, 0, 256, 0), change(Purpose::Discard));
        assert_eq!(parse(TYPE_DISCARD, 0, 272, 0), Err(Status::IoError));
        assert_eq!(parse(TYPE_DISCARD, 0, 16, 1), Err(Status::IoError));
        let zeroes = change(Purpose::WriteZeroes);
        assert_eq!(parse(TYPE_WRITE_ZEROES, 0, 16, 0), zeroes);
        assert_eq!(parse(TYPE_WRITE_ZEROES, 0, 32, 0), Err(Status::IoError));
    }

    #[test]
    fn what_was_not_negotiated_is_unsupported_but_for_a_flush() {
        let limits = Limits {
            flush: false,
            discard: false,
            write_zeroes: false,
            ..LIMITS
        };
        let parse = |kind, readable| {
            let payload = Payload {
                readable,
                writable: 0,
            };
            Request::parse(&header(kind, 0), payload, &limits)
        };
        assert_eq!(parse(TYPE_DISCARD, 16), Err(Status::Unsupported));
        assert_eq!(parse(TYPE_WRITE_ZEROES, 16), Err(Status::Unsupported));
        assert_eq!(parse(TYPE_FLUSH, 0), Ok(Request::Flush));
    }

    #[test]
    fn an_unknown_type_is_unsupported() {
        for kind in [2, 3, 5, 7, 9, 12, 14, u32::MAX] {
            assert_eq!(parse(kind, 0, 0, 0), Err(Status::Unsupported));
        }
    }
}
