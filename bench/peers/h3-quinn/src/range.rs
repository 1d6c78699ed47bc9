//! `Range: bytes=…` of one part (RFC 9110, section 14). Pure.

/// What a `Range` asks for of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// All of it: no range, or one that may be ignored.
    Whole,
    /// From `first` to `last`, both within the blob.
    Part {
        /// The first byte.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Nothing that is there.
    Unsatisfiable,
}

/// Reads the value of `Range` for a blob of `size` bytes. Several parts, other units and what is not
/// well formed are ignored, as a server may.
pub fn parse(value: &[u8], size: u64) -> Range {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.strip_prefix("bytes="));
    let Some((first, last)) = text.and_then(|text| text.split_once('-')) else {
        return Range::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    match (number(first), number(last)) {
        (None, Some(count)) if first.is_empty() => match count.min(size) {
            0 => Range::Unsatisfiable,
            count => Range::Part { first: size - count, last: size - 1 },
        },
        (Some(first), to) if to.is_some() || last.is_empty() => {
            if to.is_some_and(|last| last < first) {
                return Range::Whole;
            }
            match size.checked_sub(1) {
                Some(end) if first <= end => {
                    Range::Part { first, last: to.unwrap_or(end).min(end) }
                }
                _ => Range::Unsatisfiable,
            }
        }
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_is_read_in_its_three_forms() {
        assert_eq!(parse(b"bytes=0-0", 10), Range::Part { first: 0, last: 0 });
        assert_eq!(parse(b"bytes=5-", 10), Range::Part { first: 5, last: 9 });
        assert_eq!(parse(b"bytes=5-99", 10), Range::Part { first: 5, last: 9 });
        assert_eq!(parse(b"bytes=-3", 10), Range::Part { first: 7, last: 9 });
        assert_eq!(parse(b"bytes=-30", 10), Range::Part { first: 0, last: 9 });
    }

    #[test]
    fn what_is_not_there_cannot_be_had() {
        for (value, size) in [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)] {
            assert_eq!(parse(value.as_bytes(), size), Range::Unsatisfiable, "{value}");
        }
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        let values =
            ["", "bytes=", "bytes=-", "bytes=1", "bytes=4-2", "items=0-1", "bytes=0-1,3-4"];
        for value in values {
            assert_eq!(parse(value.as_bytes(), 10), Range::Whole, "{value}");
        }
    }
}
