//! Decoding of field sections. What refers to a dynamic table cannot be decoded, since there is none.

use std::ops::Range;

use crate::huffman::{self, HuffmanError};
use crate::qpack::table;

/// Why a field section cannot be decoded: QPACK_DECOMPRESSION_FAILED, which ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends inside of a line.
    #[error("a field section ends inside of a field line")]
    Truncated,
    /// An integer of more than 62 bits.
    #[error("an integer in a field section is too large")]
    Integer,
    /// It needs a dynamic table, whose capacity is 0.
    #[error("a field section refers to the dynamic table, which has no entries")]
    Dynamic,
    /// There is no such entry in the static table.
    #[error("a field section refers to an entry that the static table does not have")]
    Static,
    /// A string is not Huffman code.
    #[error("a field section has wrong Huffman code")]
    Huffman(#[from] HuffmanError),
}

impl DecodeError {
    /// The text of the error.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "a field section ends inside of a field line",
            Self::Integer => "an integer in a field section is too large",
            Self::Dynamic => "a field section refers to the dynamic table, which has no entries",
            Self::Static => {
                "a field section refers to an entry that the static table does not have"
            }
            Self::Huffman(_) => "a field section has wrong Huffman code",
        }
    }
}

/// One field. Ranges are of the text that [`Decoder::next_line`] appends to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// An entry of the static table, name and value.
    Indexed(u8),
    /// The name of an entry of the static table, and a value.
    Named(u8, Range<usize>),
    /// A name and a value.
    Literal(Range<usize>, Range<usize>),
}

impl Line {
    /// Name and value.
    pub fn resolve<'a>(&self, text: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        match self {
            Self::Indexed(index) => {
                let (name, value) = table::TABLE[usize::from(*index)];
                (name.as_bytes(), value.as_bytes())
            }
            Self::Named(index, value) => {
                (table::TABLE[usize::from(*index)].0.as_bytes(), &text[value.clone()])
            }
            Self::Literal(name, value) => (&text[name.clone()], &text[value.clone()]),
        }
    }

    /// Bytes of name and value.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Indexed(index) => {
                let (name, value) = table::TABLE[usize::from(*index)];
                name.len() + value.len()
            }
            Self::Named(index, value) => table::TABLE[usize::from(*index)].0.len() + value.len(),
            Self::Literal(name, value) => name.len() + value.len(),
        }
    }
}

/// Goes through a field section.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads the prefix of a section (RFC 9204 section 4.5.1).
    ///
    /// # Errors
    /// [`DecodeError::Dynamic`] for a section that needs entries of a dynamic table.
    pub fn new(section: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = section;
        let (_, required_insert_count) = integer(&mut rest, 8)?;
        if required_insert_count != 0 {
            return Err(DecodeError::Dynamic);
        }
        let (sign, _delta_base) = integer(&mut rest, 7)?;
        if sign & 1 == 1 {
            // The base would be negative (section 4.5.1.2).
            return Err(DecodeError::Dynamic);
        }
        Ok(Self { rest })
    }

    /// The next field; literals are appended to `text`. At most 8/5 of the section's length is appended in all.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing more can be read then.
    pub fn next_line(&mut self, text: &mut Vec<u8>) -> Result<Option<Line>, DecodeError> {
        let Some(first) = self.rest.first().copied() else { return Ok(None) };
        let rest = &mut self.rest;
        let line = if first & 0x80 != 0 {
            // Indexed field line: 1 T index(6+).
            let (bits, index) = integer(rest, 6)?;
            Line::Indexed(entry(bits & 1 == 1, index)?)
        } else if first & 0x40 != 0 {
            // Literal with name reference: 01 N T index(4+).
            let (bits, index) = integer(rest, 4)?;
            let name = entry(bits & 1 == 1, index)?;
            Line::Named(name, string(rest, 7, text)?)
        } else if first & 0x20 != 0 {
            // Literal with literal name: 001 N H length(3+).
            let name = string(rest, 3, text)?;
            Line::Literal(name, string(rest, 7, text)?)
        } else {
            // 0001 and 0000: post-base index, always of the dynamic table.
            return Err(DecodeError::Dynamic);
        };
        Ok(Some(line))
    }
}

fn entry(is_static: bool, index: u64) -> Result<u8, DecodeError> {
    if !is_static {
        return Err(DecodeError::Dynamic);
    }
    u8::try_from(index).ok().filter(|index| *index < table::LEN).ok_or(DecodeError::Static)
}

/// An integer with a prefix of so many bits (RFC 7541 section 5.1), and the bits before the prefix.
pub(crate) fn integer(rest: &mut &[u8], prefix: u32) -> Result<(u8, u64), DecodeError> {
    let (first, mut tail) = rest.split_first().ok_or(DecodeError::Truncated)?;
    let mask = (1_u16 << prefix) - 1;
    let before = (u16::from(*first) >> prefix) as u8;
    let mut value = u64::from(u16::from(*first) & mask);
    if value == u64::from(mask) {
        let mut shift = 0;
        loop {
            let (byte, after) = tail.split_first().ok_or(DecodeError::Truncated)?;
            tail = after;
            // Nine groups of 7 bits: no sum above 2^63 + 2^8 can come of that.
            if shift > 56 {
                return Err(DecodeError::Integer);
            }
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if value > crate::varint::MAX {
            return Err(DecodeError::Integer);
        }
    }
    *rest = tail;
    Ok((before, value))
}

/// A string whose length has a prefix of so many bits, behind a bit that says whether it is Huffman code.
fn string(rest: &mut &[u8], prefix: u32, text: &mut Vec<u8>) -> Result<Range<usize>, DecodeError> {
    let (before, len) = integer(rest, prefix)?;
    let len = usize::try_from(len).map_err(|_| DecodeError::Truncated)?;
    let (string, tail) = rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *rest = tail;
    let start = text.len();
    if before & 1 == 1 {
        huffman::decode(string, text)?;
    } else {
        text.extend_from_slice(string);
    }
    Ok(start..text.len())
}
