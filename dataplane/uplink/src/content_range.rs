//! `Content-Range` of a 206 or a 416 (RFC 9110, section 14.4). Pure.

/// Which bytes of the whole a 206 brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub first: u64,
    /// The last byte; at least `first`.
    pub last: u64,
    /// The length of the whole, unless the upstream left it open; more than `last`.
    pub total: Option<u64>,
}

impl ContentRange {
    /// How many bytes the range has.
    pub const fn bytes(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Parses the header's value. `None` for anything but `bytes FIRST-LAST/TOTAL` whose numbers
    /// fit each other.
    pub fn parse(value: &str) -> Option<Self> {
        let (range, total) = spec(value)?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        // A last byte of u64::MAX would make the length overflow.
        let fits = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
        fits.then_some(Self { first, last, total })
    }
}

/// The length of the whole from the `Content-Range` of a 416: `bytes */TOTAL`.
pub fn parse_unsatisfied(value: &str) -> Option<u64> {
    number(spec(value)?.strip_prefix("*/")?)
}

/// What follows the unit `bytes`, which is written in any case.
fn spec(value: &str) -> Option<&str> {
    let (unit, rest) = value.trim().split_once(' ')?;
    unit.eq_ignore_ascii_case("bytes").then(|| rest.trim_start())
}

/// Digits and nothing else: `str::parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_standard_writes_them() {
        assert_eq!(
            ContentRange::parse("bytes 42-1233/1234"),
            Some(ContentRange { first: 42, last: 1233, total: Some(1234) })
        );
        assert_eq!(
            ContentRange::parse("Bytes 0-0/*"),
            Some(ContentRange { first: 0, last: 0, total: None })
        );
        assert_eq!(parse_unsatisfied("bytes */1234"), Some(1234));
    }

    #[test]
    fn ranges_that_contradict_themselves_are_none() {
        for wrong in [
            "",
            "bytes",
            "bytes 1-0/5",
            "bytes 0-5/5",
            "bytes 0-/5",
            "bytes -5/5",
            "bytes 0-4",
            "bytes +0-4/5",
            "bytes 0-4/+5",
            "bytes 0-4/5, 6-7/8",
            "items 0-4/5",
            "bytes */5",
            "bytes 0-18446744073709551615/*",
            "bytes 0-18446744073709551616/*",
            "bytes0-4/5",
        ] {
            assert_eq!(ContentRange::parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse_unsatisfied("bytes 0-4/5"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(first in 0u64..1 << 62, more in 0u64..1 << 61, rest in 1u64..1 << 61) {
            let last = first + more;
            let range = ContentRange { first, last, total: Some(last + rest) };
            prop_assert_eq!(ContentRange::parse(&format!("bytes {first}-{last}/{}", last + rest)), Some(range));
            prop_assert_eq!(range.bytes(), more + 1);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}", numbers in "bytes [0-9*/ -]{0,60}") {
            for text in [text, numbers] {
                if let Some(range) = ContentRange::parse(&text) {
                    prop_assert!(range.first <= range.last && range.bytes() > 0);
                }
                let _ = parse_unsatisfied(&text);
            }
        }
    }
}
