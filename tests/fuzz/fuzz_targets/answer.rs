//! The head of an upstream's answer and the body of a token service's: a line for each header.
#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use outrider_uplink::{
    ContentRange, FetchMethod, FetchRange, content_range, head, retry_after, token,
};

fuzz_target!(|bytes: &[u8]| {
    token::parse_answer(bytes);
    let Some((status, rest)) = bytes.split_first_chunk::<2>() else { return };
    let status = u16::from_le_bytes(*status) % 1000;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut headers = HeaderMap::new();
    for line in rest.split(|byte| *byte == b'\n').take(32) {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(at);
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.get(1..).unwrap_or_default()),
        ) {
            headers.append(name, value);
        }
        let Ok(text) = std::str::from_utf8(value) else { continue };
        retry_after::parse(text, now);
        content_range::parse_unsatisfied(text);
        if let Some(range) = ContentRange::parse(text) {
            assert!(range.first <= range.last && range.bytes() >= 1);
            assert!(range.total.is_none_or(|total| range.last < total));
        }
    }
    for asked in [
        None,
        Some(FetchRange { first: 100, last: Some(199) }),
        Some(FetchRange { first: 5, last: None }),
    ] {
        for method in [FetchMethod::Get, FetchMethod::Head] {
            let Ok(head) = head::check(method, asked, status, &headers, now) else { continue };
            assert!(matches!(status, 200 | 206), "{status} is no success");
            if let Some(range) = head.range {
                let asked = asked.expect("a part comes only when one was asked for");
                assert_eq!(range.first, asked.first);
                assert!(asked.last.is_none_or(|last| range.last <= last));
                assert!(head.length.is_none_or(|length| length == range.bytes()));
            }
        }
    }
});
