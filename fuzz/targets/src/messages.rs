//! Bytes of messages as peers of vfio-user and vhost-user send them. What they say is chosen by
//! the targets.

/// 32-bit words, then 64-bit ones.
pub(crate) fn payload(words: &[u32], longs: &[u64]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    words
        .chain(longs.iter().flat_map(|long| long.to_ne_bytes()))
        .collect()
}

/// A message of vhost-user: its header, and what follows.
pub(crate) fn framed(number: u32, flags: u32, content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).expect("short");
    let mut bytes = payload(&[number, flags, size], &[]);
    bytes.extend_from_slice(content);
    bytes
}
