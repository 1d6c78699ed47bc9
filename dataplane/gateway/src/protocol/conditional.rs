//! Conditions of a request: entity tags, and what may be asked elsewhere. The tag of content is its digest in
//! quotes, and it is strong: one digest is one content (RFC 9110, section 8.8.3).

use http::HeaderValue;
use http::header::{CACHE_CONTROL, GetAll, IF_NONE_MATCH, IF_RANGE, RANGE};
use outrider_artifact::Digest;

/// The longest `If-None-Match` or `If-Range` line that is read, in bytes. A longer one matches
/// nothing, so that its sender gets the content.
pub const CONDITION_BYTES_MAX: usize = 4096;

/// `ETag` of this content. Allocates.
pub fn etag(digest: &Digest) -> HeaderValue {
    HeaderValue::try_from(format!("\"{digest}\"")).expect("a digest has no control characters")
}

/// The headers that say which part of a content is to be answered, and whether. Allocates.
pub fn selecting(headers: &http::HeaderMap) -> http::HeaderMap {
    let mut chosen = http::HeaderMap::new();
    for name in [RANGE, IF_RANGE, IF_NONE_MATCH, CACHE_CONTROL] {
        for line in headers.get_all(&name) {
            chosen.append(name.clone(), line.clone());
        }
    }
    chosen
}

/// Whether only what is here is to be answered, and nobody else is to be asked (`Cache-Control:
/// only-if-cached`, RFC 9111, section 5.2.1.7).
pub fn only_if_cached(headers: &http::HeaderMap) -> bool {
    let mut lines = headers.get_all(CACHE_CONTROL).iter().peekable();
    lines.peek().is_some()
        && lines.filter_map(|line| line.to_str().ok()).any(|line| {
            line.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
        })
}

/// Whether the client already has this content, and is answered 304.
pub fn if_none_match(headers: &http::HeaderMap, digest: &Digest) -> bool {
    any_matches(headers.get_all(IF_NONE_MATCH), digest)
}

fn any_matches(lines: GetAll<'_, HeaderValue>, digest: &Digest) -> bool {
    let mut lines = lines.iter().peekable();
    if lines.peek().is_none() {
        return false;
    }
    let wanted = digest.to_string();
    lines.any(|line| {
        let text = if line.len() > CONDITION_BYTES_MAX { "" } else { line.to_str().unwrap_or("") };
        // A comma within a tag splits it into parts that match no digest.
        text.split(',').map(str::trim).any(|tag| tag == "*" || is_tag(tag, &wanted))
    })
}

/// The weak comparison (RFC 9110, section 8.8.3.2).
fn is_tag(text: &str, wanted: &str) -> bool {
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) == Some(wanted)
}

/// Whether a `Range` beside this `If-Range` is to be honoured. Without the header it is; with a date,
/// a weak tag or another tag the whole is to be answered (RFC 9110, section 13.1.5).
pub fn if_range(headers: &http::HeaderMap, digest: &Digest) -> bool {
    let mut lines = headers.get_all(IF_RANGE).iter();
    match (lines.next(), lines.next()) {
        (None, _) => true,
        (Some(line), None) => {
            line.len() <= CONDITION_BYTES_MAX
                && line.to_str().is_ok_and(|text| {
                    let text = text.trim();
                    !text.starts_with("W/") && is_tag(text, &digest.to_string())
                })
        }
        (Some(_), Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName};
    use proptest::prelude::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn only_if_cached_is_one_of_the_directives() {
        assert!(!only_if_cached(&HeaderMap::new()));
        for (values, is) in [
            (vec!["only-if-cached"], true),
            (vec!["max-age=0, Only-If-Cached"], true),
            (vec!["no-store", "only-if-cached"], true),
            (vec!["only-if-cached=1"], false),
            (vec!["no-cache"], false),
        ] {
            assert_eq!(only_if_cached(&headers(CACHE_CONTROL, &values)), is, "{values:?}");
        }
    }

    #[test]
    fn the_tag_of_content_is_its_digest_in_quotes() {
        let digest = Digest::sha256(b"");
        assert_eq!(etag(&digest), format!("\"{digest}\"").as_str());
    }

    #[test]
    fn content_that_the_client_has_is_recognised() {
        let digest = Digest::sha256(b"");
        let matches = |values: &[&str]| if_none_match(&headers(IF_NONE_MATCH, values), &digest);
        let (own, weak) = (format!("\"{digest}\""), format!("W/\"{digest}\""));
        assert!(matches(&[&own]));
        assert!(matches(&[&weak]));
        assert!(matches(&["*"]));
        assert!(matches(&[&format!("\"a\", {own}")]));
        assert!(matches(&["\"a\"", &own]));
        assert!(!matches(&[]));
        assert!(!matches(&["\"a\""]));
        assert!(!matches(&[&digest.to_string()]));
        assert!(!matches(&["\"\"", "\"", ""]));
        assert!(!matches(&[&format!("{}{own}", "\"a\",".repeat(CONDITION_BYTES_MAX / 4))]));
    }

    #[test]
    fn a_range_of_other_content_is_not_honoured() {
        let digest = Digest::sha256(b"");
        let honoured = |values: &[&str]| if_range(&headers(IF_RANGE, values), &digest);
        let (own, weak) = (format!("\"{digest}\""), format!("W/\"{digest}\""));
        assert!(honoured(&[]));
        assert!(honoured(&[&own]));
        assert!(!honoured(&[&weak]));
        assert!(!honoured(&["\"a\""]));
        assert!(!honoured(&["Wed, 21 Oct 2015 07:28:00 GMT"]));
        assert!(!honoured(&[&own, &own]));
    }

    proptest! {
        #[test]
        fn no_header_makes_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let map = HeaderMap::from_iter([(IF_NONE_MATCH, value.clone()), (IF_RANGE, value)]);
                let _ = if_none_match(&map, &Digest::sha256(b""));
                let _ = if_range(&map, &Digest::sha256(b""));
            }
        }
    }
}
