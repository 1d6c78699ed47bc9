//! PackStream 1: how Bolt writes values ("PackStream Specification", Neo4j). Pure.

/// A value of a parameter or an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
    /// A structure: a message, or a node, a relationship, a date.
    Struct(u8, Vec<Self>),
}

/// Lists in lists that are read; what we ask for has two.
const DEPTH_MAX: usize = 16;

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value that cannot be read")]
pub(super) struct Unreadable;

impl From<u64> for Value {
    /// All numbers here are far below 2^63: they are bounded where they come in.
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Bool(is)
    }
}

impl<T: Into<Self>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        Self::List(all.into_iter().map(Into::into).collect())
    }
}

impl Value {
    /// Appends it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0xC0),
            Self::Bool(false) => out.push(0xC2),
            Self::Bool(true) => out.push(0xC3),
            Self::Int(number) => write_int(*number, out),
            Self::Float(number) => {
                out.push(0xC1);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Text(text) => write_text(text, out),
            Self::List(all) => {
                write_length(all.len(), 0x90, [0xD4, 0xD5, 0xD6], out);
                all.iter().for_each(|value| value.write(out));
            }
            Self::Map(all) => {
                write_length(all.len(), 0xA0, [0xD8, 0xD9, 0xDA], out);
                for (name, value) in all {
                    write_text(name, out);
                    value.write(out);
                }
            }
            Self::Struct(tag, fields) => {
                // Ours have at most three fields.
                out.push(0xB0 | (fields.len() & 15) as u8);
                out.push(*tag);
                fields.iter().for_each(|value| value.write(out));
            }
        }
    }

    /// Reads one value that is all of `bytes`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader { rest: bytes };
        let value = reader.value(0)?;
        if reader.rest.is_empty() { Ok(value) } else { Err(Unreadable) }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(is) => Some(*is),
            _ => None,
        }
    }

    pub(super) fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(all) => Some(all),
            _ => None,
        }
    }

    /// A member of a map.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(all) => all.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

fn write_int(number: i64, out: &mut Vec<u8>) {
    if let Ok(byte) = i8::try_from(number) {
        if byte < -16 {
            out.push(0xC8);
        }
        out.push(byte as u8);
    } else if let Ok(short) = i16::try_from(number) {
        out.push(0xC9);
        out.extend_from_slice(&short.to_be_bytes());
    } else if let Ok(long) = i32::try_from(number) {
        out.push(0xCA);
        out.extend_from_slice(&long.to_be_bytes());
    } else {
        out.push(0xCB);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    write_length(text.len(), 0x80, [0xD0, 0xD1, 0xD2], out);
    out.extend_from_slice(text.as_bytes());
}

/// Lengths are below 4 GiB: batches and queries are bounded far below.
fn write_length(length: usize, tiny: u8, markers: [u8; 3], out: &mut Vec<u8>) {
    if length < 16 {
        out.push(tiny | length as u8);
    } else if let Ok(length) = u8::try_from(length) {
        out.extend_from_slice(&[markers[0], length]);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(markers[1]);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(markers[2]);
        out.extend_from_slice(&(length as u32).to_be_bytes());
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Unreadable> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Unreadable)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable)
    }

    /// A length of 1, 2 or 4 bytes.
    fn length(&mut self, bytes: u8) -> Result<usize, Unreadable> {
        Ok(match bytes {
            0 => usize::from(u8::from_be_bytes(self.number()?)),
            1 => usize::from(u16::from_be_bytes(self.number()?)),
            _ => u32::from_be_bytes(self.number()?) as usize,
        })
    }

    fn text(&mut self, length: usize) -> Result<String, Unreadable> {
        std::str::from_utf8(self.take(length)?).map(str::to_owned).map_err(|_| Unreadable)
    }

    /// Grows with what is there, not with what a length claims.
    fn list(&mut self, length: usize, depth: usize) -> Result<Vec<Value>, Unreadable> {
        let mut all = Vec::new();
        for _ in 0..length {
            all.push(self.value(depth + 1)?);
        }
        Ok(all)
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Value, Unreadable> {
        let mut all = Vec::new();
        for _ in 0..length {
            let Value::Text(name) = self.value(depth + 1)? else { return Err(Unreadable) };
            all.push((name, self.value(depth + 1)?));
        }
        Ok(Value::Map(all))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Unreadable> {
        if depth > DEPTH_MAX {
            return Err(Unreadable);
        }
        let [marker] = self.number()?;
        let tiny = usize::from(marker & 15);
        Ok(match marker {
            0x00..=0x7F => Value::Int(i64::from(marker)),
            0xF0..=0xFF => Value::Int(i64::from(marker as i8)),
            0x80..=0x8F => Value::Text(self.text(tiny)?),
            0x90..=0x9F => Value::List(self.list(tiny, depth)?),
            0xA0..=0xAF => self.map(tiny, depth)?,
            0xB0..=0xBF => {
                let [tag] = self.number()?;
                Value::Struct(tag, self.list(tiny, depth)?)
            }
            0xC0 => Value::Null,
            0xC1 => Value::Float(f64::from_be_bytes(self.number()?)),
            0xC2 => Value::Bool(false),
            0xC3 => Value::Bool(true),
            0xC8 => Value::Int(i64::from(i8::from_be_bytes(self.number()?))),
            0xC9 => Value::Int(i64::from(i16::from_be_bytes(self.number()?))),
            0xCA => Value::Int(i64::from(i32::from_be_bytes(self.number()?))),
            0xCB => Value::Int(i64::from_be_bytes(self.number()?)),
            0xD0..=0xD2 => {
                let length = self.length(marker - 0xD0)?;
                Value::Text(self.text(length)?)
            }
            0xD4..=0xD6 => {
                let length = self.length(marker - 0xD4)?;
                Value::List(self.list(length, depth)?)
            }
            0xD8..=0xDA => {
                let length = self.length(marker - 0xD8)?;
                self.map(length, depth)?
            }
            _ => return Err(Unreadable),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let long = "é".repeat(40_000);
        let numbers =
            [0, 1, -1, -16, -17, 127, 128, -128, -129, 32_767, 32_768, i64::MIN, i64::MAX];
        let all = vec![
            Value::Null,
            true.into(),
            Value::Float(1.5),
            numbers.into_iter().map(Value::Int).collect(),
            "".into(),
            long.into(),
            (0_u64..300).collect(),
            Value::Map(vec![("a".into(), Value::List(vec![])), ("b".into(), 5_u64.into())]),
            Value::Struct(0x71, vec![7_u64.into()]),
        ];
        let mut out = Vec::new();
        let value = Value::List(all);
        value.write(&mut out);
        assert_eq!(Value::read(&out), Ok(value));
        for cut in [0, 1, out.len() / 2, out.len() - 1] {
            assert_eq!(Value::read(&out[..cut]), Err(Unreadable));
        }
    }

    #[test]
    fn written_bytes_are_those_of_the_specification() {
        let written = |value: Value| {
            let mut out = Vec::new();
            value.write(&mut out);
            out
        };
        assert_eq!(written(Value::Int(-17)), [0xC8, 0xEF]);
        assert_eq!(written(1234_u64.into()), [0xC9, 0x04, 0xD2]);
        assert_eq!(written("abc".into()), [0x83, b'a', b'b', b'c']);
        assert_eq!(written(Value::Map(vec![("k".into(), 1_u64.into())])), [0xA1, 0x81, b'k', 1]);
    }

    #[test]
    fn hostile_values_end_early() {
        for bytes in [
            &[0x91; 100_000][..],
            &[0xD6, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0xD2, 0xFF, 0xFF, 0xFF, 0xFF, b'a'],
            &[0xDA, 0xFF, 0xFF, 0xFF, 0xFF, 0x81, b'a', 0x01],
            &[0xA1, 0x01, 0x01],
            &[0x81, 0xFF],
            &[0xC4],
            &[0x01, 0x01],
        ] {
            assert_eq!(Value::read(bytes), Err(Unreadable));
        }
    }
}
