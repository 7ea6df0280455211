//! The typed requests of a front-end, one method a message; the order is the caller's business.

use std::os::fd::{AsFd, BorrowedFd};

use crate::{
    Connection, Error, RegionLayout,
    connection::bad,
    message::{NO_DESCRIPTOR, long_words, request, u32_at, u64_at, words},
};

/// The three areas of a ring, as *user* addresses (those of the memory table, not the guest's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring, written by the driver.
    pub available: u64,
    /// Used ring, written by the device.
    pub used: u64,
}

impl Connection {
    /// `GET_FEATURES`.
    pub fn features(&self) -> Result<u64, Error> {
        self.ask_u64(request::GET_FEATURES)
    }

    /// `SET_FEATURES`.
    pub fn set_features(&self, features: u64) -> Result<(), Error> {
        self.tell(request::SET_FEATURES, &long_words(&[features]), &[])
    }

    /// `GET_PROTOCOL_FEATURES`.
    pub fn protocol_features(&self) -> Result<u64, Error> {
        self.ask_u64(request::GET_PROTOCOL_FEATURES)
    }

    /// `SET_PROTOCOL_FEATURES`.
    pub fn set_protocol_features(&self, features: u64) -> Result<(), Error> {
        self.tell(
            request::SET_PROTOCOL_FEATURES,
            &long_words(&[features]),
            &[],
        )
    }

    /// `SET_OWNER`.
    pub fn set_owner(&self) -> Result<(), Error> {
        self.tell(request::SET_OWNER, &[], &[])
    }

    /// `RESET_OWNER`.
    pub fn reset_owner(&self) -> Result<(), Error> {
        self.tell(request::RESET_OWNER, &[], &[])
    }

    /// `RESET_DEVICE`.
    pub fn reset_device(&self) -> Result<(), Error> {
        self.tell(request::RESET_DEVICE, &[], &[])
    }

    /// `SET_MEM_TABLE`, one descriptor a region.
    pub fn set_memory_table(
        &self,
        regions: &[(RegionLayout, BorrowedFd<'_>)],
    ) -> Result<(), Error> {
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        let mut payload = words(&[count, 0]);
        let mut fds = Vec::with_capacity(regions.len());
        for (layout, fd) in regions {
            payload.extend_from_slice(&region(layout));
            fds.push(*fd);
        }
        self.tell(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// `GET_MAX_MEM_SLOTS`.
    pub fn memory_slots_max(&self) -> Result<u64, Error> {
        self.ask_u64(request::GET_MAX_MEM_SLOTS)
    }

    /// `ADD_MEM_REG`.
    pub fn add_memory_region(
        &self,
        layout: &RegionLayout,
        fd: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        self.tell(request::ADD_MEM_REG, &single_region(layout), &[fd])
    }

    /// `REM_MEM_REG`; the specification lets a front-end send a descriptor, which is to be closed.
    pub fn remove_memory_region(
        &self,
        layout: &RegionLayout,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        self.tell(request::REM_MEM_REG, &single_region(layout), fd.as_slice())
    }

    /// `GET_QUEUE_NUM`.
    pub fn queue_count(&self) -> Result<u64, Error> {
        self.ask_u64(request::GET_QUEUE_NUM)
    }

    /// `SET_BACKEND_REQ_FD` with one end of a new socket pair; the other is returned, see
    /// [`Connection::backend_request`].
    pub fn backend_channel(&self) -> Result<Self, Error> {
        let (ours, theirs) = Self::pair()?;
        self.set_backend_channel(theirs.as_fd())?;
        Ok(ours)
    }

    /// `SET_BACKEND_REQ_FD` with whatever it is given.
    pub fn set_backend_channel(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.tell(request::SET_BACKEND_REQ_FD, &[], &[socket])
    }

    /// `SET_VRING_NUM`: the ring's size.
    pub fn set_ring_size(&self, ring: u32, size: u32) -> Result<(), Error> {
        self.tell(request::SET_VRING_NUM, &words(&[ring, size]), &[])
    }

    /// `SET_VRING_ADDR`.
    pub fn set_ring_addresses(&self, ring: u32, addresses: &RingAddresses) -> Result<(), Error> {
        let RingAddresses {
            descriptors,
            available,
            used,
        } = *addresses;
        let mut payload = words(&[ring, 0]);
        payload.extend(long_words(&[descriptors, used, available, 0]));
        self.tell(request::SET_VRING_ADDR, &payload, &[])
    }

    /// `SET_VRING_BASE`: the next available index that the device looks at.
    pub fn set_ring_base(&self, ring: u32, base: u16) -> Result<(), Error> {
        self.tell(request::SET_VRING_BASE, &words(&[ring, base.into()]), &[])
    }

    /// `GET_VRING_BASE`: stops the ring and tells where it stopped.
    pub fn ring_base(&self, ring: u32) -> Result<u16, Error> {
        let code = request::GET_VRING_BASE;
        let payload = self.ask(code, &words(&[ring, 0]), &[])?;
        let (Some(index), Some(base), 8) =
            (u32_at(&payload, 0), u32_at(&payload, 4), payload.len())
        else {
            return Err(bad(code, format!("answer of {} bytes", payload.len())));
        };
        if index != ring {
            return Err(bad(code, format!("answered for ring {index}, not {ring}")));
        }
        u16::try_from(base).map_err(|_| bad(code, format!("base {base:#x} is no ring index")))
    }

    /// `SET_VRING_KICK`; without a descriptor the device polls the ring.
    pub fn set_ring_kick(&self, ring: u8, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.set_ring_event(request::SET_VRING_KICK, ring, fd)
    }

    /// `SET_VRING_CALL`; without a descriptor the driver polls the ring.
    pub fn set_ring_call(&self, ring: u8, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.set_ring_event(request::SET_VRING_CALL, ring, fd)
    }

    /// `SET_VRING_ERR`.
    pub fn set_ring_error(&self, ring: u8, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.set_ring_event(request::SET_VRING_ERR, ring, fd)
    }

    /// `SET_VRING_ENABLE`.
    pub fn set_ring_enable(&self, ring: u32, enable: bool) -> Result<(), Error> {
        self.tell(
            request::SET_VRING_ENABLE,
            &words(&[ring, enable.into()]),
            &[],
        )
    }

    /// `GET_CONFIG`: `length` bytes of the configuration space from `offset` on.
    pub fn config(&self, offset: u32, length: u32) -> Result<Vec<u8>, Error> {
        let code = request::GET_CONFIG;
        let mut payload = words(&[offset, length, 0]);
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        payload.resize(payload.len().saturating_add(wanted), 0);
        let mut answer = self.ask(code, &payload, &[])?;
        if answer.len() != payload.len() || u32_at(&answer, 4) != Some(length) {
            return Err(bad(code, format!("answer of {} bytes", answer.len())));
        }
        Ok(answer.split_off(12))
    }

    /// `SET_CONFIG`.
    pub fn set_config(&self, offset: u32, flags: u32, bytes: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut payload = words(&[offset, length, flags]);
        payload.extend_from_slice(bytes);
        self.tell(request::SET_CONFIG, &payload, &[])
    }

    fn ask_u64(&self, code: u32) -> Result<u64, Error> {
        let payload = self.ask(code, &[], &[])?;
        match u64_at(&payload, 0) {
            Some(value) if payload.len() == 8 => Ok(value),
            _ => Err(bad(code, format!("answer of {} bytes", payload.len()))),
        }
    }

    fn set_ring_event(&self, code: u32, ring: u8, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let flag = if fd.is_none() { NO_DESCRIPTOR } else { 0 };
        self.tell(code, &long_words(&[u64::from(ring) | flag]), fd.as_slice())
    }
}

/// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
pub fn single_region(layout: &RegionLayout) -> Vec<u8> {
    let mut payload = long_words(&[0]);
    payload.extend_from_slice(&region(layout));
    payload
}

/// A region description as it is on the wire.
pub fn region(layout: &RegionLayout) -> Vec<u8> {
    let RegionLayout {
        guest_address,
        user_address,
        size,
        offset,
    } = *layout;
    long_words(&[guest_address, size, user_address, offset])
}
