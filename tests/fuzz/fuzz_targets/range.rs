//! Range headers of downloads and uploads, entity tags: 8 bytes of length, then the header.
#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use outrider_artifact::Digest;
use outrider_gateway::protocol::conditional;
use outrider_gateway::protocol::range::{self, ResolvedRange};

fuzz_target!(|bytes: &[u8]| {
    let Some((size, header)) = bytes.split_first_chunk::<8>() else { return };
    let size = u64::from_le_bytes(*size);
    let Ok(header) = HeaderValue::from_bytes(header) else { return };
    if let Some(asked) = range::parse_range(&header) {
        match asked.resolve(size) {
            ResolvedRange::Part(part) => {
                assert!(part.first <= part.last && part.last < size);
                assert!(part.len() >= 1 && part.len() <= size);
                range::content_range(part, Some(size));
            }
            ResolvedRange::Whole => {}
            ResolvedRange::Unsatisfiable => {
                assert!(range::unsatisfiable(size).status().is_client_error());
            }
        }
    }
    if let Ok(Some(part)) = range::parse_upload_range(Some(&header)) {
        assert!(part.first <= part.last);
        // An empty range cannot be said, and the length of this one fits.
        assert!(part.len() >= 1);
    }
    let digest = Digest::sha256(b"content");
    for name in ["if-none-match", "if-range"] {
        let mut headers = HeaderMap::new();
        headers.insert(name, header.clone());
        conditional::if_none_match(&headers, &digest);
        conditional::if_range(&headers, &digest);
    }
});
