//! What was pushed.

use super::*;

#[test]
fn what_was_pushed_is_found_and_found_again_after_a_restart() {
    let mut one = NamesBox::new();
    assert_eq!(one.repository("a/b"), Repository::Unknown);
    let put = one.put_blob(blob("a/b", "layer", 1)).unwrap();
    assert_eq!(put, Put { upload_id: upload(1), superfluous: false });
    one.put(manifest("a/b", &["v1", "latest"], "manifest", 2)).unwrap();
    for _ in 0..2 {
        assert_eq!(one.repository("a/b"), Repository::Hosted);
        let record = one.tag("a/b", "v1").unwrap();
        assert_eq!((record.digest, record.size_bytes), (digest("manifest"), 8));
        assert_eq!(&*record.media_type, "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(record.origin, TagOrigin::Hosted);
        assert_eq!(one.tags("a/b"), ["latest", "v1"]);
        assert_eq!(one.link("a/b", &digest("layer")), Link { blob: Some(5), manifest: None });
        let link = one.link("a/b", &digest("manifest")).manifest.unwrap();
        assert_eq!((link.size_bytes, &*link.media_type), (8, &*record.media_type));
        let hosted = one.hosted(&digest("manifest")).unwrap();
        assert_eq!((hosted.upload_id, hosted.size_bytes), (upload(2), 8));
        assert_eq!(one.hosted(&digest("other")), None);
        one.restart();
    }
}

#[test]
fn a_repository_holds_only_what_was_pushed_to_it() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    one.put(manifest("a", &["v1"], "manifest", 2)).unwrap();
    one.put_blob(blob("b", "other", 3)).unwrap();
    assert_eq!(one.link("b", &digest("layer")), Link::default());
    assert_eq!(one.link("b", &digest("manifest")), Link::default());
    assert_eq!(one.tag("b", "v1"), None);
    assert_eq!(one.tags("b"), Vec::<String>::new());
    // A blob is not a manifest, nor the other way round.
    assert_eq!(one.link("a", &digest("layer")).manifest, None);
    assert_eq!(one.link("a", &digest("manifest")).blob, None);
}

#[test]
fn content_that_comes_again_keeps_its_first_upload() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    for name in ["a", "b"] {
        let put = one.put_blob(blob(name, "layer", 2)).unwrap();
        assert_eq!(put, Put { upload_id: upload(1), superfluous: true });
    }
    assert_eq!(one.hosted(&digest("layer")).unwrap().upload_id, upload(1));
    // The same upload again, as after an answer that was lost.
    assert!(!one.put_blob(blob("a", "layer", 1)).unwrap().superfluous);
}

#[test]
fn content_that_was_lost_is_taken_over_by_the_new_upload() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    let again = PutBlob { previous_is_lost: true, ..blob("b", "layer", 2) };
    assert_eq!(one.put_blob(again).unwrap(), Put { upload_id: upload(2), superfluous: false });
    assert_eq!(one.hosted(&digest("layer")).unwrap().upload_id, upload(2));
    assert_eq!(one.link("a", &digest("layer")).blob, Some(5));
}

#[test]
fn one_digest_has_one_length() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    let error = one.put_blob(PutBlob { size_bytes: 6, ..blob("a", "layer", 2) }).unwrap_err();
    let expected = NamesError::SizeConflict { digest: digest("layer"), hosted: 5, given: 6 };
    assert_eq!(error, expected);
}

#[test]
fn a_tag_moves_and_the_manifest_that_it_left_stays() {
    let one = NamesBox::new();
    one.put(manifest("a", &["latest"], "old", 1)).unwrap();
    one.put(manifest("a", &["latest"], "new", 2)).unwrap();
    assert_eq!(one.tag("a", "latest").unwrap().digest, digest("new"));
    assert!(one.link("a", &digest("old")).manifest.is_some());
}

#[test]
fn a_manifest_whose_references_are_required_needs_them_in_its_own_repository() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "config", 1)).unwrap();
    one.put(manifest("a", &[], "child", 2)).unwrap();
    one.put_blob(blob("b", "layer", 3)).unwrap();
    let put = PutManifest {
        references: vec![digest("config"), digest("child"), digest("layer")],
        references_required: true,
        events: vec![event("a", "manifest")],
        ..manifest("a", &["v1"], "manifest", 4)
    };
    let error = one.put(put.clone()).unwrap_err();
    let missing = vec![digest("layer")];
    assert_eq!(error, NamesError::ReferencesUnknown { repository: repository("a"), missing });
    let error = crate::protocol::ApiError::from(error);
    assert_eq!((error.status().as_u16(), error.code().as_str()), (400, "MANIFEST_BLOB_UNKNOWN"));
    // Nothing of it was kept.
    assert_eq!(one.tag("a", "v1"), None);
    assert_eq!(one.hosted(&digest("manifest")), None);
    assert_eq!(block_on(one.names.outbox_status()).unwrap().pending, 0);

    one.put_blob(blob("a", "layer", 5)).unwrap();
    one.put(put).unwrap();
    assert_eq!(one.tag("a", "v1").unwrap().digest, digest("manifest"));
}

#[test]
fn a_blob_is_mounted_from_a_repository_that_has_it() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    let mount = |to: &str, content: &str, from: Option<&str>| one.mount(to, content, from).unwrap();
    assert_eq!(mount("b", "layer", Some("c")), None);
    assert_eq!(mount("b", "other", Some("a")), None);
    assert_eq!(mount("b", "other", None), None);
    assert_eq!(one.repository("b"), Repository::Unknown);
    assert_eq!(mount("b", "layer", Some("a")), Some(Mounted { size_bytes: 5 }));
    assert_eq!(mount("c", "layer", None), Some(Mounted { size_bytes: 5 }));
    assert_eq!(one.link("b", &digest("layer")).blob, Some(5));
    assert_eq!(one.repository("c"), Repository::Hosted);
}

#[test]
fn content_goes_with_the_last_repository_that_holds_it() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "layer", 1)).unwrap();
    one.put_blob(blob("b", "layer", 2)).unwrap();
    let delete =
        |name: &str| block_on(one.names.delete_blob(&repository(name), &digest("layer"))).unwrap();
    assert_eq!(delete("c"), None);
    assert_eq!(delete("a"), Some(Removed { unreferenced: None, tags: 0 }));
    assert_eq!(delete("a"), None);
    assert_eq!(one.link("a", &digest("layer")), Link::default());
    assert_eq!(one.link("b", &digest("layer")).blob, Some(5));
    assert_eq!(delete("b"), Some(Removed { unreferenced: Some(upload(1)), tags: 0 }));
    assert_eq!(one.hosted(&digest("layer")), None);
    // It stays hosted, so that no upstream is asked for its name.
    assert_eq!(one.repository("a"), Repository::Hosted);
    assert!(!one.put_blob(blob("a", "layer", 3)).unwrap().superfluous);
}

#[test]
fn content_that_is_a_blob_and_a_manifest_stays_until_both_are_deleted() {
    let one = NamesBox::new();
    one.put_blob(blob("a", "twofold", 1)).unwrap();
    assert!(one.put(manifest("a", &["v1"], "twofold", 2)).unwrap().superfluous);
    let removed = block_on(one.names.delete_blob(&repository("a"), &digest("twofold"))).unwrap();
    assert_eq!(removed.unwrap().unreferenced, None);
    let removed =
        block_on(one.names.delete_manifest(&repository("a"), &digest("twofold"))).unwrap();
    assert_eq!(removed, Some(Removed { unreferenced: Some(upload(1)), tags: 1 }));
}

#[test]
fn a_manifest_is_deleted_with_its_tags_and_a_tag_without_its_manifest() {
    let one = NamesBox::new();
    one.put(manifest("a", &["v1", "v2", "v3"], "manifest", 1)).unwrap();
    one.put(manifest("a", &["other"], "other", 2)).unwrap();
    one.put(manifest("b", &["v1"], "manifest", 3)).unwrap();
    assert!(block_on(one.names.delete_tag(&repository("a"), &tag("v3"))).unwrap());
    assert!(!block_on(one.names.delete_tag(&repository("a"), &tag("v3"))).unwrap());
    assert_eq!(one.tag("a", "v3"), None);
    assert!(one.link("a", &digest("manifest")).manifest.is_some());

    let delete =
        || block_on(one.names.delete_manifest(&repository("a"), &digest("manifest"))).unwrap();
    assert_eq!(delete(), Some(Removed { unreferenced: None, tags: 2 }));
    assert_eq!(delete(), None);
    assert_eq!(one.tags("a"), ["other"]);
    assert_eq!(one.link("a", &digest("manifest")), Link::default());
    assert_eq!(one.tag("b", "v1").unwrap().digest, digest("manifest"));
}

#[test]
fn lists_are_in_byte_order_and_go_on_behind_the_last() {
    let one = NamesBox::new();
    for (number, text) in ["b", "A", "a", "10", "9"].iter().enumerate() {
        one.put(manifest("m/n", &[text], "manifest", number as u64)).unwrap();
    }
    one.put_blob(blob("m", "layer", 9)).unwrap();
    one.put_blob(blob("m-n", "layer", 9)).unwrap();
    one.remember(mirrored("library/alpine", "latest", "index", 1)).unwrap();
    let page = |last: Option<&str>, entries_max| {
        let page = block_on(one.names.tags(&repository("m/n"), last, entries_max)).unwrap();
        (page.tags.join(" "), page.more)
    };
    assert_eq!(page(None, 100), ("10 9 A a b".into(), false));
    assert_eq!(page(None, 2), ("10 9".into(), true));
    assert_eq!(page(Some("9"), 2), ("A a".into(), true));
    assert_eq!(page(Some("a"), 2), ("b".into(), false));
    assert_eq!(page(Some("B"), 1), ("a".into(), true));
    assert_eq!(page(None, 0), (String::new(), true));
    assert_eq!(page(Some("z"), 5), (String::new(), false));

    let names = |last: Option<&str>, entries_max| {
        block_on(one.names.repositories(last, entries_max)).unwrap().join(" ")
    };
    assert_eq!(names(None, 100), "library/alpine m m-n m/n");
    assert_eq!(names(None, 2), "library/alpine m");
    assert_eq!(names(Some("m"), 2), "m-n m/n");
    assert_eq!(names(Some("z"), 2), "");
}

#[test]
fn the_content_of_a_start_comes_in_pages() {
    let one = NamesBox::new();
    for number in 0..10 {
        one.put_blob(blob("a", &format!("layer {number}"), number)).unwrap();
    }
    let (mut all, mut last) = (Vec::new(), None);
    loop {
        let page = block_on(one.names.hosted_after(last, 3)).unwrap();
        let Some(end) = page.last() else { break };
        last = Some(end.digest);
        all.extend(page);
    }
    assert_eq!(all.len(), 10);
    assert!(all.is_sorted_by_key(|hosted| hosted.digest));
    let mut uploads: Vec<_> = all.iter().map(|hosted| hosted.upload_id).collect();
    uploads.sort_unstable();
    assert_eq!(uploads, (0..10).map(upload).collect::<Vec<_>>());
}

fn referrer(name: &str, content: &str, artifact_type: &str, descriptor: &str) -> PutManifest {
    let referrer = Referrer {
        subject: digest("subject"),
        artifact_type: Some(artifact_type.into()),
        descriptor: descriptor.into(),
    };
    PutManifest { referrer: Some(referrer), ..manifest(name, &[], content, 1) }
}

#[test]
fn referrers_are_listed_by_subject_and_type() {
    let one = NamesBox::new();
    let ask = |name: &str, wanted: Option<&str>, last, entries_max| {
        let subject = digest("subject");
        block_on(one.names.referrers(&repository(name), &subject, wanted, last, entries_max))
            .unwrap()
    };
    assert_eq!(ask("a", None, None, 10), ReferrersPage::default());
    for (content, artifact_type) in [("1", "x"), ("2", "y"), ("3", "x"), ("4", "x")] {
        one.put(referrer("a", content, artifact_type, content)).unwrap();
    }
    one.put(referrer("b", "5", "x", "5")).unwrap();

    assert_eq!(ask("a", None, None, 10).descriptors.len(), 4);
    let page = ask("a", Some("x"), None, 10);
    let mut found = page.descriptors.concat();
    found.sort_unstable();
    assert_eq!((&*found, page.more_after), (&b"134"[..], None));
    assert_eq!(ask("a", Some("z"), None, 10).descriptors.len(), 0);

    let first = ask("a", Some("x"), None, 2);
    assert_eq!(first.descriptors.len(), 2);
    let second = ask("a", Some("x"), first.more_after, 2);
    assert_eq!((second.descriptors.len(), second.more_after), (1, None));
    let mut found = [first.descriptors, second.descriptors].concat().concat();
    found.sort_unstable();
    assert_eq!(found, b"134");

    block_on(one.names.delete_manifest(&repository("a"), &digest("1"))).unwrap();
    assert_eq!(ask("a", Some("x"), None, 10).descriptors.len(), 2);
}

#[test]
fn a_page_of_referrers_is_bounded_in_bytes_too() {
    let one = NamesBox::new();
    let large = "x".repeat(REFERRERS_BYTES_MAX / 2 + 1);
    for content in ["1", "2", "3"] {
        one.put(referrer("a", content, "x", &large)).unwrap();
    }
    one.put(referrer("b", "4", "x", &large.repeat(3))).unwrap();
    let ask = |name: &str, last| {
        let subject = digest("subject");
        block_on(one.names.referrers(&repository(name), &subject, None, last, 10)).unwrap()
    };
    let mut last = None;
    for more in [true, true, false] {
        let page = ask("a", last);
        assert_eq!((page.descriptors.len(), page.more_after.is_some()), (1, more));
        last = page.more_after;
    }
    assert_eq!(ask("b", None).descriptors.len(), 1);
}
