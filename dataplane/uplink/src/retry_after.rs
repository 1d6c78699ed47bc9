//! `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date. Pure; the clock is an argument.

use std::time::{Duration, SystemTime};

/// The longest value that is looked at; a date has 29 bytes, and old forms a few more.
const VALUE_BYTES_MAX: usize = 64;

/// How long the upstream wants to be left alone. `None` for what cannot be read; a date in the past
/// is zero. Not capped: that is the breaker's business.
pub fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if value.is_empty() || value.len() > VALUE_BYTES_MAX {
        return None;
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean "very long", not "nothing said".
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    // Some write a fraction, against the standard; the whole seconds and one more do it justice.
    if let Some((whole, fraction)) = value.split_once('.') {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits(whole) && digits(fraction) {
            return Some(Duration::from_secs(whole.parse().unwrap_or(u64::MAX).saturating_add(1)));
        }
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(unix_s: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s)
    }

    #[test]
    fn seconds_and_dates_are_both_understood() {
        assert_eq!(parse("120", at(0)), Some(Duration::from_secs(120)));
        assert_eq!(parse(" 0 ", at(0)), Some(Duration::ZERO));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(parse(date, at(784_111_770)), Some(Duration::from_secs(7)));
        assert_eq!(parse(date, at(784_111_778)), Some(Duration::ZERO), "it is over");
        assert_eq!(parse("1.5", at(0)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_number_that_does_not_fit_is_long_and_what_is_no_number_is_nothing() {
        assert!(parse("99999999999999999999999", at(0)).unwrap() > Duration::from_secs(1 << 60));
        for wrong in ["", "-1", "soon", "+5", "1.5.2", "1,5", &"9".repeat(65)] {
            assert_eq!(parse(wrong, at(0)), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,70}", now in 0u64..1 << 40) {
            let _ = parse(&text, at(now));
        }
    }
}
