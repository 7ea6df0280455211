//! One message of a Unix socket: bytes, and the descriptors that travel with them.

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{cmsghdr, iovec, msghdr};

/// The most descriptors a message may carry (`VHOST_USER_MAX_FDS` of the peers). A message with
/// more is [`Message::truncated`].
pub const MAX_DESCRIPTORS: usize = 32;

/// Bytes of a control message with [`MAX_DESCRIPTORS`]: the kernel tells of those that do not fit.
const CONTROL_BYTES: usize = {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "128, and `try_from` is not const"
    )]
    let payload = (MAX_DESCRIPTORS * size_of::<RawFd>()) as u32;
    // SAFETY: CMSG_SPACE only computes.
    #[expect(unsafe_code, reason = "a libc macro that is marked unsafe")]
    let space = unsafe { libc::CMSG_SPACE(payload) };
    space as usize
};

/// A reusable buffer for messages. Descriptors that nobody takes are closed with it.
///
/// Whoever receives from a peer drops its files, those too for which there was no room: the kernel
/// does so in the receiving thread, and to drop the last reference to a file may take as long as
/// the peer has seen to (a TCP socket that lingers). Without control data nothing is gained: who
/// must not be held up by a peer has to look (`MSG_PEEK`) before it receives.
pub struct Message {
    parts: Box<Parts>,
}

/// What the kernel is pointed at: on the heap, so that it does not move.
struct Parts {
    header: msghdr,
    piece: iovec,
    /// In words, so that the header in it is aligned.
    control: [u64; CONTROL_BYTES.div_ceil(8)],
    bytes: Box<[u8]>,
    /// How many of `bytes` were received, or are to be sent.
    len: usize,
    receive_limit: usize,
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

impl Message {
    /// Room for `bytes` bytes and [`MAX_DESCRIPTORS`] descriptors.
    pub fn with_capacity(bytes: usize) -> Self {
        // SAFETY: all-zero is a valid msghdr: no name, no pieces, no control data.
        #[expect(unsafe_code, reason = "a C structure with private padding")]
        let header: msghdr = unsafe { mem::zeroed() };
        let parts = Parts {
            header,
            piece: iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            },
            control: [0; CONTROL_BYTES.div_ceil(8)],
            bytes: vec![0; bytes].into_boxed_slice(),
            len: 0,
            receive_limit: bytes,
            descriptors: Vec::with_capacity(MAX_DESCRIPTORS),
            truncated: false,
        };
        Self {
            parts: Box::new(parts),
        }
    }

    /// What was received, or is to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.parts.bytes[..self.parts.len]
    }

    /// How many bytes it has room for.
    pub fn capacity(&self) -> usize {
        self.parts.bytes.len()
    }

    /// Sets what is to be sent.
    ///
    /// # Panics
    ///
    /// If it does not fit: a message has [`Message::capacity`] bytes and [`MAX_DESCRIPTORS`].
    pub fn set(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        assert!(
            descriptors.len() <= MAX_DESCRIPTORS,
            "too many descriptors to send"
        );
        self.parts.bytes[..bytes.len()].copy_from_slice(bytes);
        self.parts.len = bytes.len();
        self.parts.descriptors = descriptors;
    }

    /// Takes at most `limit` bytes by the next receive.
    ///
    /// # Panics
    ///
    /// If there is no room for them.
    pub fn receive_limit(&mut self, limit: usize) {
        assert!(limit <= self.capacity(), "no room for {limit} bytes");
        self.parts.receive_limit = limit;
    }

    /// Whether the kernel had more bytes of this message, or more descriptors, than there was room
    /// for. Those are lost.
    pub fn truncated(&self) -> bool {
        self.parts.truncated
    }

    /// The descriptors received, in their order; all are close-on-exec.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.parts.descriptors)
    }

    /// Points the header at everything to be received into.
    pub(crate) fn header_to_receive(&mut self) -> *mut msghdr {
        self.header_with_control(CONTROL_BYTES)
    }

    /// Points the header at bytes only: a look at descriptors would make new ones.
    pub(crate) fn header_to_peek(&mut self) -> *mut msghdr {
        self.header_with_control(0)
    }

    fn header_with_control(&mut self, control_len: usize) -> *mut msghdr {
        let parts = &mut *self.parts;
        parts.descriptors.clear();
        parts.len = 0;
        parts.truncated = false;
        let len = parts.receive_limit;
        parts.point(len, control_len);
        &raw mut parts.header
    }

    /// Points the header at what is to be sent.
    pub(crate) fn header_to_send(&mut self) -> *const msghdr {
        let parts = &mut *self.parts;
        let control_len = parts.encode_descriptors();
        let len = parts.len;
        parts.point(len, control_len);
        &raw const parts.header
    }

    /// Takes in what the kernel received: `len` bytes.
    pub(crate) fn received(&mut self, len: usize) {
        let parts = &mut *self.parts;
        parts.truncated = parts.header.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0;
        parts.decode_descriptors();
        parts.len = len.min(parts.receive_limit);
    }

    /// Closes what was sent: the kernel has its own references.
    pub(crate) fn sent(&mut self) {
        self.parts.descriptors.clear();
    }
}

impl Parts {
    fn point(&mut self, len: usize, control_len: usize) {
        self.piece = iovec {
            iov_base: self.bytes.as_mut_ptr().cast(),
            iov_len: len,
        };
        self.header.msg_iov = &raw mut self.piece;
        self.header.msg_iovlen = 1;
        self.header.msg_control = if control_len == 0 {
            ptr::null_mut()
        } else {
            self.control.as_mut_ptr().cast()
        };
        self.header.msg_controllen = control_len as _;
        self.header.msg_flags = 0;
    }

    /// Writes the control message; its length, 0 without descriptors.
    #[expect(
        unsafe_code,
        reason = "CMSG macros on an aligned buffer of sufficient size"
    )]
    fn encode_descriptors(&mut self) -> usize {
        if self.descriptors.is_empty() {
            return 0;
        }
        let payload = size_of::<RawFd>() * self.descriptors.len();
        let payload = u32::try_from(payload).expect("at most 32 descriptors");
        // SAFETY: `control` is aligned for a cmsghdr and holds CMSG_SPACE of MAX_DESCRIPTORS,
        // and `set` bounds how many there are.
        unsafe {
            let header: *mut cmsghdr = self.control.as_mut_ptr().cast();
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            let data: *mut RawFd = libc::CMSG_DATA(header).cast();
            for (i, fd) in self.descriptors.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_raw_fd());
            }
            libc::CMSG_SPACE(payload) as usize
        }
    }

    /// Takes every descriptor of every control message, so that none leaks.
    #[expect(unsafe_code, reason = "walks control messages that the kernel wrote")]
    fn decode_descriptors(&mut self) {
        // SAFETY: the kernel filled `control` and set `msg_controllen`; the macros stay within it.
        // Each number in an SCM_RIGHTS message is a new descriptor that nobody else owns.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const self.header);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET
                    && (*header).cmsg_type == libc::SCM_RIGHTS
                {
                    let payload =
                        ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                    let data: *const RawFd = libc::CMSG_DATA(header).cast();
                    for i in 0..payload / size_of::<RawFd>() {
                        let fd = data.add(i).read_unaligned();
                        self.descriptors.push(OwnedFd::from_raw_fd(fd));
                    }
                }
                header = libc::CMSG_NXTHDR(&raw const self.header, header);
            }
        }
    }
}
