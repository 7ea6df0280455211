//! Choices out of bytes. When they are used up, all choices are 0.

/// Bytes that are not yet used.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// As many bytes as there are, at most `count`.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes whose number stands before them, at most `most`.
    pub(crate) fn counted(&mut self, most: usize) -> &'a [u8] {
        let count = usize::from(self.u16()) % (most + 1);
        self.bytes(count)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of a list.
    pub(crate) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.u8()) % list.len()]
    }

    /// A number that is as likely near a power of two, or near the end of all numbers, as small.
    pub(crate) fn number(&mut self) -> u64 {
        let kind = self.u8();
        let shifted = |bits: u8| 1_u64.checked_shl(u32::from(bits)).unwrap_or(0);
        let near = i64::from(self.u8().cast_signed());
        match kind {
            0..=63 => shifted(kind).wrapping_add_signed(near),
            64..=95 => near.cast_unsigned(),
            96..=191 => self.u16().into(),
            _ => self.u64(),
        }
    }
}
