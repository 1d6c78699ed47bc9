//! Sizes and durations as people write them: `"20GiB"`, `"60s"`.
//!
//! Pure parsing and printing. A bare number of seconds is refused, because nobody can see from
//! `ttl = 60` whether it means seconds or minutes; a bare number of bytes is taken as bytes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The units of [`Size`], the longest suffix first so that `GiB` is not taken for `B`.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// The units of [`Span`] in nanoseconds, two-letter suffixes first so that `ms` is not taken for `s`.
const SPAN_UNITS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// Why a text is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("{0:?} is not a size: write a number and a unit, for example \"512MiB\" or \"20GiB\"")]
    Size(String),
    /// Not a duration.
    #[error(
        "{0:?} is not a duration: write a number and a unit (us, ms, s, m, h, d), for example \"60s\" or \"7d\""
    )]
    Span(String),
}

/// A number of bytes; in TOML a text such as `"20GiB"`, or an integer number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// So many times 2^20 bytes.
    #[must_use]
    pub const fn mib(count: u64) -> Size {
        Size(count << 20)
    }

    /// So many times 2^30 bytes.
    #[must_use]
    pub const fn gib(count: u64) -> Size {
        Size(count << 30)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let refuse = || UnitError::Size(text.to_owned());
        let trimmed = text.trim();
        let (number, unit) = SIZE_UNITS
            .iter()
            .find_map(|&(suffix, unit)| trimmed.strip_suffix(suffix).map(|n| (n, unit)))
            .unwrap_or((trimmed, 1));
        scale(number.trim_end(), unit).map(Size).ok_or_else(refuse)
    }
}

impl fmt::Display for Size {
    /// The largest binary unit in which the number is at least 1; exact where it divides, else with
    /// one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, unit) in
            [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        {
            if self.0 >= unit {
                return if self.0.is_multiple_of(unit) {
                    write!(f, "{}{suffix}", self.0 / unit)
                } else {
                    let tenths = u128::from(self.0) * 10 / u128::from(unit);
                    write!(f, "{}.{}{suffix}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"20GiB\", or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom(UnitError::Size(bytes.to_string())))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A duration; in TOML a text such as `"60s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many milliseconds.
    #[must_use]
    pub const fn ms(count: u64) -> Span {
        Span(Duration::from_millis(count))
    }

    /// So many seconds.
    #[must_use]
    pub const fn s(count: u64) -> Span {
        Span(Duration::from_secs(count))
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Span, UnitError> {
        let trimmed = text.trim();
        SPAN_UNITS
            .iter()
            .find_map(|&(suffix, unit)| trimmed.strip_suffix(suffix).map(|n| (n, unit)))
            .and_then(|(number, unit)| scale(number.trim_end(), unit))
            .map(|ns| Span(Duration::from_nanos(ns)))
            .ok_or_else(|| UnitError::Span(text.to_owned()))
    }
}

impl fmt::Display for Span {
    /// The largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        for &(suffix, unit) in SPAN_UNITS.iter().rev() {
            if ns >= unit && ns.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", ns / unit);
            }
        }
        if ns == 0 { f.write_str("0s") } else { write!(f, "{:?}", self.0) }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, such as \"60s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `number` (digits, with at most one decimal point) times `unit`; None when it is not a number or
/// does not fit. Integer arithmetic only, so that "0.1GiB" gives the same on every machine.
fn scale(number: &str, unit: u64) -> Option<u64> {
    /// More decimals than this cannot matter in any unit here.
    const DECIMALS_MAX: usize = 9;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty()
        || !digits(whole)
        || !digits(fraction)
        || fraction.len() > DECIMALS_MAX
        || (number.contains('.') && fraction.is_empty())
    {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut total = u128::from(whole) * u128::from(unit);
    if !fraction.is_empty() {
        let parts: u128 = fraction.parse().ok()?;
        total += parts * u128::from(unit) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    }
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("512KiB", 512 << 10),
            ("512 MiB", 512 << 20),
            ("20GiB", 20 << 30),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("20GB", 20_000_000_000),
            ("1kB", 1000),
        ] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in
            ["", "GiB", "20G", "20gib", "-1GiB", "1.GiB", ".5GiB", "1e3", "99999999TiB", "1 2"]
        {
            assert_eq!(text.parse::<Size>(), Err(UnitError::Size(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("60s".parse::<Span>(), Ok(Span::s(60)));
        assert_eq!("50us".parse::<Span>(), Ok(Span(Duration::from_micros(50))));
        assert_eq!("1.5s".parse::<Span>(), Ok(Span::ms(1500)));
        assert_eq!("20m".parse::<Span>(), Ok(Span::s(1200)));
        assert_eq!("7d".parse::<Span>(), Ok(Span::s(7 * 86_400)));
        for text in ["60", "", "s", "1w", "-1s", "1h30m", "999999999999d"] {
            assert_eq!(text.parse::<Span>(), Err(UnitError::Span(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for size in [0, 1, 1023, 1024, 20 << 30, 3 << 20] {
            assert_eq!(Size(size).to_string().parse::<Size>(), Ok(Size(size)));
        }
        for span in [Span::s(0), Span::ms(1), Span::s(60), Span::s(61), Span::s(7 * 86_400)] {
            assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }
        assert_eq!(Size((3 << 29) + 1).to_string(), "1.5GiB");
    }
}
