//! Tags of a fleet: what is pushed to one edge is answered by all, brought by whoever holds it, and never by asking
//! anybody again and again.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Instant;

use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::content::sha256;
use outrider_e2e::control::Control;
use outrider_e2e::registry::*;
use outrider_e2e::*;
use serde_json::Value;

const QUICK: &str = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"";

/// An edge with one upstream, which nobody should need.
fn edge(control: &Control, upstream: &FakeUpstream) -> Outrider {
    Outrider::joined(control, Options::with_upstream(&upstream.url()).config(""))
}

/// The digest that an edge answers for a tag.
fn digest_of(edge: &Outrider, repository: &str, tag: &str) -> Option<String> {
    let answer = manifest_request(&edge.client(), "HEAD", repository, tag).send();
    (answer.status == 200).then(|| answer.header("docker-content-digest").unwrap().to_owned())
}

fn until_digest(edge: &Outrider, repository: &str, tag: &str, digest: &str) {
    until(&format!("the edge answers {digest} for {repository}:{tag}"), || {
        digest_of(edge, repository, tag).as_deref() == Some(digest)
    });
}

fn tags(edge: &Outrider, repository: &str) -> Value {
    edge.client().get(&format!("/v2/{repository}/tags/list")).expect(200).json()["tags"].clone()
}

fn fetched(edge: &Outrider) -> f64 {
    let labels = ["outcome=\"ok\"", "upstream=\"edge-"];
    edge.metrics().sum("outrider_uplink_fetches_total", &labels)
}

#[test]
fn a_new_version_that_is_pushed_to_one_edge_is_answered_and_had_from_the_other() {
    let control = Control::start(3, QUICK);
    let upstream = FakeUpstream::start();
    let (mut a, b) = (edge(&control, &upstream), edge(&control, &upstream));
    let (one, two) = (image::real(3, 8), image::real(4, 4));
    let name = |edge: &Outrider, tag: &str| format!("{}/team/app:{tag}", edge.host());
    Skopeo::new().push(&one, &name(&a, "latest"));
    // Before there was such a repository, its upstream could have had it.
    let asked = upstream.count("", "/team/app/");
    until_digest(&b, "team/app", "latest", &layout::digest(&one));
    layout::assert_same(&Skopeo::new().pull(&name(&b, "latest")), &one);

    // A new version: the other edge has been told, and asks nobody.
    Skopeo::new().push(&two, &name(&a, "latest"));
    let pushed = Instant::now();
    until_digest(&b, "team/app", "latest", &layout::digest(&two));
    println!("answered by the other edge {:?} after the push", pushed.elapsed());
    layout::assert_same(&Skopeo::new().pull(&name(&b, "latest")), &two);
    assert_eq!(upstream.count("", "/team/app/"), asked, "no upstream is asked any more");
    let brought = fetched(&b);
    assert!(brought >= 2.0 * 5.0, "manifests and blobs of both: {brought}");
    layout::assert_same(&Skopeo::new().pull(&name(&b, "latest")), &two);
    assert!((fetched(&b) - brought).abs() < 0.1, "once is enough");
    for edge in [&a, &b] {
        assert_eq!(tags(edge, "team/app"), serde_json::json!(["latest"]));
        let catalog = edge.client().get("/v2/_catalog").expect(200).json();
        assert_eq!(catalog["repositories"], serde_json::json!(["team/app"]));
    }
    let unknown = format!("sha256:{}", "7".repeat(64));
    b.client().get(&blob_path("team/app", &unknown)).expect_error(404, "BLOB_UNKNOWN");
    get_manifest(&b.client(), "team/app", &unknown).expect_error(404, "MANIFEST_UNKNOWN");
    get_manifest(&b.client(), "team/app", "v9").expect_error(404, "MANIFEST_UNKNOWN");

    // To the other edge, which lacks what the first one has: it is brought in. Then the first may die.
    Skopeo::new().push(&one, &name(&b, "first"));
    until_digest(&a, "team/app", "first", &layout::digest(&one));
    a.kill9();
    for (tag, image) in [("first", &one), ("latest", &two)] {
        layout::assert_same(&Skopeo::new().pull(&name(&b, tag)), image);
    }
    a.resume();
    let both = serde_json::json!(["first", "latest"]);
    until("the first one knows both again", || tags(&a, "team/app") == both);
    layout::assert_same(&Skopeo::new().pull(&name(&a, "first")), &one);

    // What is deleted at one is gone at both.
    let path = manifest_path("team/app", "latest");
    a.client().request("DELETE", &path).send().expect(202);
    until("the other does not answer it", || digest_of(&b, "team/app", "latest").is_none());
    a.client().request("DELETE", &path).send().expect(404);
    assert_eq!(tags(&b, "team/app"), serde_json::json!(["first"]));
    assert_eq!(control.cluster(0, &["status"]).ok().matches("edge").count(), 2);
}

#[test]
fn what_was_pushed_before_an_edge_joined_is_the_fleets_then() {
    let control = Control::start(1, "");
    let upstream = FakeUpstream::start();
    let b = edge(&control, &upstream);
    let image = SmallImage::new(1, &[1000, 300_000]);
    let mut a = Outrider::start(Options::with_upstream(&upstream.url()).config(""));
    push(&a.client(), "team/app", "v1", &image);
    a.terminate();
    let token = control.cluster(0, &["token", "--role", "edge"]).ok();
    a.join(&token).ok();
    a.resume();
    until_digest(&b, "team/app", "v1", &image.digest());
    assert_served(&b.client(), "team/app", "v1", &image);
    assert_served(&a.client(), "team/app", "v1", &image);
}

#[test]
fn without_a_majority_no_tag_is_acknowledged_and_everything_else_goes_on() {
    let mut control = Control::start(3, QUICK);
    let upstream = FakeUpstream::start();
    let (a, b) = (edge(&control, &upstream), edge(&control, &upstream));
    let (one, two) = (SmallImage::new(1, &[1000, 300_000]), SmallImage::new(2, &[700_000]));
    push(&a.client(), "team/app", "v1", &one);
    until_digest(&b, "team/app", "v1", &one.digest());
    control.kill9(0);
    control.kill9(1);
    for blob in two.blobs() {
        try_push_blob(&a.client(), "team/app", blob).unwrap();
    }
    let put = |edge: &Outrider, reference: &str| {
        let put = edge.client().request("PUT", &manifest_path("team/app", reference));
        put.header("Content-Type", &two.media_type).body(&two.manifest).send()
    };
    let refused = put(&a, "v1").expect_error(503, "UNAVAILABLE");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(refused.text().contains("control plane"), "{}", refused.text());
    // By digest it is nobody else's business.
    put(&a, &two.digest()).expect(201);
    for edge in [&a, &b] {
        assert_served(&edge.client(), "team/app", "v1", &one);
    }
    control.kill9(2);
    put(&a, "v1").expect_error(503, "UNAVAILABLE");
    assert_served(&b.client(), "team/app", "v1", &one);
    assert_eq!(digest_of(&a, "team/app", "v1"), Some(one.digest()));

    for place in 0..3 {
        control.resume(place);
    }
    until("the push is taken", || put(&a, "v1").status == 201);
    assert_eq!(digest_of(&a, "team/app", "v1"), Some(two.digest()), "who was told so reads it");
    until_digest(&b, "team/app", "v1", &two.digest());
    assert_served(&b.client(), "team/app", "v1", &two);
    let metrics = a.metrics();
    assert!(metrics.sum("outrider_follow_asks_unavailable_total", &[]) >= 2.0);
}

#[test]
fn a_tag_that_one_edge_sees_at_an_upstream_is_asked_for_by_the_others_at_once() {
    let control = Control::start(3, QUICK);
    let upstream = FakeUpstream::start();
    let (one, two) = (SmallImage::new(1, &[1000]), SmallImage::new(2, &[2000]));
    upstream.image("library/app", "v1", &one);
    let options = |ttl: &str| {
        let config = format!("[tags]\nttl = \"{ttl}\"");
        Options::with_upstream(&upstream.url()).config(&config)
    };
    let quick = Outrider::joined(&control, options("1s"));
    let slow = Outrider::joined(&control, options("1h"));
    for edge in [&quick, &slow] {
        assert_served(&edge.client(), "library/app", "v1", &one);
    }
    upstream.image("library/app", "v1", &two);
    assert_eq!(
        digest_of(&slow, "library/app", "v1"),
        Some(one.digest()),
        "it is fresh for an hour"
    );
    until_digest(&quick, "library/app", "v1", &two.digest());
    until_digest(&slow, "library/app", "v1", &two.digest());
    let asked = upstream.count("", "/library/app/manifests/");
    assert_served(&slow.client(), "library/app", "v1", &two);
    let seen = upstream.count("", "/library/app/manifests/");
    assert_eq!(seen, asked, "once was enough");
    let image = SmallImage::new(3, &[100]);
    let refused = try_push(&slow.client(), "library/app", "v2", &image).unwrap_err();
    assert!(refused.to_string().contains("DENIED"), "{refused}");
    assert_eq!(sha256(&two.manifest), two.digest());
}
