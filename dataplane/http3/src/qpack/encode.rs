//! Encoding of field sections: entries of the static table where there are any, else literals.

use crate::huffman;
use crate::qpack::table;

/// Whether literals are written as Huffman code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strings {
    /// As they are: a fourth longer, and nothing to compute.
    #[default]
    Plain,
    /// As Huffman code where that is shorter.
    Shortest,
}

/// Begins a section: its prefix says that no dynamic table is needed.
pub fn begin(section: &mut Vec<u8>) {
    section.extend_from_slice(&[0, 0]);
}

/// Appends an entry of the static table, name and value. `index` is below [`table::LEN`].
pub fn indexed(section: &mut Vec<u8>, index: u8) {
    debug_assert!(index < table::LEN);
    integer(section, 0xc0, 6, usize::from(index));
}

/// Appends a value with the name of an entry of the static table. `index` is below [`table::LEN`].
pub fn named(section: &mut Vec<u8>, index: u8, value: &[u8], strings: Strings) {
    debug_assert!(index < table::LEN);
    integer(section, 0x50, 4, usize::from(index));
    string(section, 0, 7, value, strings);
}

/// Appends a field, in the shortest way that the static table offers. `name` is in lower case and of a field that
/// is no pseudo-header field.
pub fn field(section: &mut Vec<u8>, name: &str, value: &[u8], strings: Strings) {
    match table::find_name(name) {
        Some(index) => match table::find_value(index, value) {
            Some(index) => indexed(section, index),
            None => named(section, index, value, strings),
        },
        None => {
            string(section, 0x20, 3, name.as_bytes(), strings);
            string(section, 0, 7, value, strings);
        }
    }
}

/// An integer with a prefix of so many bits, behind bits that are set (RFC 7541 section 5.1).
pub(crate) fn integer(section: &mut Vec<u8>, before: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        section.push(before | value as u8);
        return;
    }
    section.push(before | mask as u8);
    let mut value = value - mask;
    while value >= 0x80 {
        section.push(value as u8 | 0x80);
        value >>= 7;
    }
    section.push(value as u8);
}

fn string(section: &mut Vec<u8>, before: u8, prefix: u32, text: &[u8], strings: Strings) {
    if strings == Strings::Shortest {
        let len = huffman::encoded_len(text);
        if len < text.len() {
            integer(section, before | 1 << prefix, prefix, len);
            huffman::encode(text, section);
            return;
        }
    }
    integer(section, before, prefix, text.len());
    section.extend_from_slice(text);
}
