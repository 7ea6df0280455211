//! Messages of vfio-user by hand, numbers as they stand in the specification.

/// A header of vfio-user as it stands in the specification.
pub fn header(id: u16, command: u16, size: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&id.to_ne_bytes());
    bytes[2..4].copy_from_slice(&command.to_ne_bytes());
    bytes[4..8].copy_from_slice(&size.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// A command with its payload.
pub fn command(id: u16, number: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).expect("a message is short");
    [&header(id, number, size, 0), payload].concat()
}

/// 32-bit words in a row.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// 64-bit words in a row.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// DMA_MAP's payload.
pub fn dma_map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[offset, address, size])].concat()
}

/// DMA_UNMAP's payload.
pub fn dma_unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[24, flags]), longs(&[address, size])].concat()
}

/// REGION_READ's payload, and what REGION_WRITE's begins with.
pub fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

/// VERSION's payload.
pub fn version(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
    [&major.to_ne_bytes()[..], &minor.to_ne_bytes(), data].concat()
}
