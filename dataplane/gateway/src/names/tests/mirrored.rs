//! What is remembered of upstreams, and that a repository is hosted or mirrored, never both.

use super::*;

#[test]
fn a_mirrored_tag_is_remembered_as_it_was_seen() {
    let mut one = NamesBox::new();
    one.remember(mirrored("library/alpine", "3.20", "index", 1000)).unwrap();
    for _ in 0..2 {
        let upstream: Arc<str> = "docker.io".into();
        assert_eq!(
            one.repository("library/alpine"),
            Repository::Mirrored { upstream: upstream.clone() }
        );
        let record = one.tag("library/alpine", "3.20").unwrap();
        assert_eq!((record.digest, record.size_bytes), (digest("index"), 5));
        let origin = TagOrigin::Mirrored {
            upstream,
            checked_unix_ms: 1000,
            etag: Some("\"a\"".into()),
            overtaken: false,
        };
        assert_eq!(record.origin, origin);
        assert_eq!(one.tags("library/alpine"), ["3.20"]);
        // What is mirrored is not held.
        assert_eq!(one.link("library/alpine", &digest("index")), Link::default());
        one.restart();
    }
}

#[test]
fn a_mirrored_tag_is_touched_only_while_it_points_to_the_same() {
    let one = NamesBox::new();
    one.remember(mirrored("a", "v1", "old", 1)).unwrap();
    assert!(one.touch("a", "v1", "old", 2));
    assert!(!one.touch("a", "v1", "new", 3));
    assert!(!one.touch("a", "v2", "old", 3));
    let TagOrigin::Mirrored { checked_unix_ms, .. } = one.tag("a", "v1").unwrap().origin else {
        panic!()
    };
    assert_eq!(checked_unix_ms, 2);
    one.remember(mirrored("a", "v1", "new", 4)).unwrap();
    assert_eq!(one.tag("a", "v1").unwrap().digest, digest("new"));
}

#[test]
fn a_push_to_a_mirrored_repository_is_denied() {
    let one = NamesBox::new();
    one.remember(mirrored("a", "v1", "index", 1)).unwrap();
    one.put_blob(blob("b", "layer", 1)).unwrap();
    let denied = NamesError::Mirrored { repository: repository("a"), upstream: "docker.io".into() };
    assert_eq!(one.put_blob(blob("a", "layer", 2)), Err(denied.clone()));
    let put = PutManifest { events: vec![event("a", "m")], ..manifest("a", &["v2"], "m", 3) };
    assert_eq!(one.put(put), Err(denied.clone()));
    assert_eq!(one.mount("a", "layer", Some("b")), Err(denied.clone()));
    let error = crate::protocol::ApiError::from(denied);
    assert_eq!((error.status().as_u16(), error.code().as_str()), (403, "DENIED"));

    assert_eq!(one.tag("a", "v2"), None);
    assert_eq!(one.hosted(&digest("m")), None);
    assert_eq!(block_on(one.names.outbox_status()).unwrap().pending, 0);
}

#[test]
fn an_upstream_has_no_say_in_a_hosted_repository() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    let refused = NamesError::Hosted { repository: repository("a") };
    assert_eq!(one.remember(mirrored("a", "v1", "index", 1)), Err(refused));
    assert_eq!(one.tag("a", "v1"), None);
    assert_eq!(one.repository("a"), Repository::Hosted);
}

#[test]
fn a_repository_whose_last_mirrored_tag_is_forgotten_is_unknown_and_can_be_pushed_to() {
    let one = NamesBox::new();
    one.remember(mirrored("a", "v1", "one", 1)).unwrap();
    one.remember(mirrored("a", "v2", "two", 1)).unwrap();
    let forget =
        |text: &str| block_on(one.names.forget_mirrored_tag(&repository("a"), &tag(text))).unwrap();
    assert!(forget("v1"));
    assert!(!forget("v1"));
    assert!(matches!(one.repository("a"), Repository::Mirrored { .. }));
    assert!(forget("v2"));
    assert_eq!(one.repository("a"), Repository::Unknown);
    one.put_blob(blob("a", "layer", 1)).unwrap();
}

#[test]
fn beyond_their_bound_the_tags_that_were_checked_longest_ago_are_forgotten() {
    let mut one = NamesBox::with(NamesLimits { mirrored_tags_max: 3, ..NamesLimits::default() });
    one.remember(mirrored("a", "v1", "one", 10)).unwrap();
    one.remember(mirrored("b", "v1", "one", 20)).unwrap();
    one.remember(mirrored("b", "v2", "one", 30)).unwrap();
    assert!(one.touch("a", "v1", "one", 40));
    assert!(one.tag("b", "v1").is_some());
    one.remember(mirrored("c", "v1", "one", 50)).unwrap();
    assert_eq!(one.tag("b", "v1"), None);
    one.remember(mirrored("c", "v2", "one", 60)).unwrap();
    assert_eq!(one.tag("b", "v2"), None);
    assert_eq!(one.repository("b"), Repository::Unknown);
    assert!(one.tag("a", "v1").is_some());
    assert_eq!(one.metrics.mirrored_forgotten.get(), 2);
    assert_eq!(one.metrics.mirrored_tags.get(), 3);

    // A smaller bound holds from the next start on.
    one.limits.mirrored_tags_max = 1;
    one.restart();
    assert_eq!(one.tag("a", "v1"), None);
    assert_eq!(one.tag("c", "v1"), None);
    assert!(one.tag("c", "v2").is_some());
}

#[test]
fn the_upstream_of_a_repository_is_the_one_that_was_asked_last() {
    let one = NamesBox::new();
    one.remember(mirrored("a", "v1", "one", 1)).unwrap();
    one.remember(MirroredTag { upstream: "quay.io".into(), ..mirrored("a", "v2", "two", 2) })
        .unwrap();
    assert_eq!(one.repository("a"), Repository::Mirrored { upstream: "quay.io".into() });
    let TagOrigin::Mirrored { upstream, .. } = one.tag("a", "v1").unwrap().origin.clone() else {
        panic!()
    };
    assert_eq!(&*upstream, "docker.io");
}
