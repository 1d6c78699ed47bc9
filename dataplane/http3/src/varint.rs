//! Integers of variable length (RFC 9000 section 16).

/// The largest that can be written.
pub const MAX: u64 = (1 << 62) - 1;

/// The integer at the front, and its length in bytes: nothing if it is not all there.
pub fn get(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let mut value = u64::from(first & 0x3f);
    for byte in bytes.get(1..len)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, len))
}

/// Bytes that `value` takes.
pub const fn size(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Appends `value` in its shortest form. A value above [`MAX`] is written as that.
pub fn put(bytes: &mut Vec<u8>, value: u64) {
    let value = value.min(MAX);
    match size(value) {
        1 => bytes.push(value as u8),
        2 => bytes.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        4 => bytes.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => bytes.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1() {
        assert_eq!(
            get(&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]).unwrap().0,
            151_288_809_941_952_652
        );
        assert_eq!(get(&[0x9d, 0x7f, 0x3e, 0x7d]), Some((494_878_333, 4)));
        assert_eq!(get(&[0x7b, 0xbd]), Some((15_293, 2)));
        assert_eq!(get(&[0x25]), Some((37, 1)));
        assert_eq!(get(&[0x40, 0x25]), Some((37, 2)));
        assert_eq!(get(&[0x40]), None);
        assert_eq!(get(&[]), None);
    }

    proptest! {
        #[test]
        fn integers_come_back(value in 0..=MAX, shift in 0u32..62) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            prop_assert_eq!(bytes.len(), size(value));
            prop_assert_eq!(get(&bytes), Some((value, bytes.len())));
            bytes.pop();
            prop_assert_eq!(get(&bytes), None);
        }
    }
}
