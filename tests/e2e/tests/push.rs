//! What is pushed is kept byte for byte: by real clients, step by step, over restarts and crashes.

use std::path::Path;

use outrider_e2e::clients::crane::Crane;
use outrider_e2e::clients::oras::Oras;
use outrider_e2e::clients::podman::Podman;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::content::sha512;
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// Pushes with one client, then pulls with others: at once, after an orderly restart, after a crash.
/// `push` gives the digest of the manifest that it pushed.
fn push_and_pull_back(push: impl FnOnce(&Path, &str) -> String) {
    let layout = image::real(3, 8);
    let mut outrider = Outrider::start(Options::default());
    let name = format!("{}/team/pushed:v1", outrider.host());
    let digest = push(&layout, &name);
    let mut seen = Vec::new();
    for state in ["at once", "after a restart", "after a crash"] {
        match state {
            "after a restart" => outrider.restart(),
            "after a crash" => outrider.crash_and_restart(),
            _ => {}
        }
        for pulled in [Skopeo::new().pull(&name), Crane::new().pull(&name)] {
            assert_eq!(layout::digest(&pulled), digest, "{state}");
            seen.push(layout::contents(&pulled));
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "the same bytes every time");
    // What the client did not rewrite is what was in the layout.
    let original = layout::contents(&layout);
    if layout::digest(&layout) == digest {
        assert!(original == seen[0], "the bytes that were pushed");
    }
}

#[test]
fn what_skopeo_pushes_is_pulled_back_byte_for_byte() {
    push_and_pull_back(|layout, name| {
        Skopeo::new().push(layout, name);
        layout::digest(layout)
    });
}

#[test]
fn what_podman_pushes_is_pulled_back_byte_for_byte() {
    push_and_pull_back(|layout, name| Podman::new().push(layout, name));
}

#[test]
fn what_crane_pushes_is_pulled_back_byte_for_byte() {
    push_and_pull_back(|layout, name| {
        Crane::new().push(layout, name);
        layout::digest(layout)
    });
}

#[test]
fn what_oras_pushes_is_pulled_back_byte_for_byte() {
    push_and_pull_back(|layout, name| {
        Oras::new().push_image(layout, name);
        layout::digest(layout)
    });
}

#[test]
fn an_artifact_that_is_no_image_is_kept() {
    let mut outrider = Outrider::start(Options::default());
    let name = format!("{}/team/file:v1", outrider.host());
    let content = bytes(1, 3_000_000);
    let oras = Oras::new();
    oras.push_file(&content, &name);
    outrider.crash_and_restart();
    assert!(oras.pull_file(&name) == content);
}

#[test]
fn a_push_beside_an_upstream_is_hosted_and_never_asks_it() {
    let upstream = FakeUpstream::start();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let image = SmallImage::new(1, &[1000, 300_000]);
    push(&client, "own/app", "v1", &image);
    assert_served(&client, "own/app", "v1", &image);
    get_manifest(&client, "own/app", "v2").expect_error(404, "MANIFEST_UNKNOWN");
    assert_eq!(upstream.count("", "/own/app/manifests/"), 0, "a hosted repository never asks");
}

#[test]
fn a_push_where_mirrored_tags_are_held_is_denied() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(2, &[1000]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    let other = SmallImage::new(3, &[1000]);
    let refusal = try_push(&client, "team/app", "v1", &other).expect_err("it is mirrored");
    assert!(refusal.to_string().contains("DENIED"), "{refusal}");
    assert_served(&client, "team/app", "v1", &image);
}

#[test]
fn an_upload_goes_on_where_its_connection_was_cut() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(4, 3_000_000);
    let at = begin_upload(&client, "team/app").expect("a session");
    let mut cut = client.request("PATCH", &at).begin(Some(content.len() as u64)).expect("begun");
    cut.write(&content[..1_000_000]).expect("sent");
    cut.abandon();

    // How much of that was taken is the registry's to say, once it has noticed the end: it says so, and
    // means it.
    let mut next = String::new();
    until("the upload goes on where the session says it stands", || {
        let status = client.get(&at).expect(204);
        let range = status.header("range").and_then(|range| range.strip_prefix("0-"));
        // "0-0" says one byte and no byte alike; go on from nothing then.
        let last = range.and_then(|last| last.parse().ok()).filter(|last| *last > 0);
        let kept = last.map_or(0, |last: usize| last + 1);
        assert!(kept <= 1_000_000, "{kept}");
        let range = format!("{kept}-{}", content.len() - 1);
        let patch = client.request("PATCH", &at).header("Content-Range", &range);
        let answer = patch.body(&content[kept..]).send();
        assert!(matches!(answer.status, 202 | 409 | 416), "{} {}", answer.status, answer.text());
        next = location(&answer).unwrap_or_default();
        answer.status == 202
    });
    let digest = sha256(&content);
    let put = with_query(&next, &format!("digest={digest}"));
    client.request("PUT", &put).send().expect(201);
    assert!(client.get(&blob_path("team/app", &digest)).expect(200).body == content);
}

#[test]
fn an_abandoned_upload_is_never_served() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(5, 2_000_000);
    let digest = sha256(&content);
    let at = begin_upload(&client, "team/app").expect("a session");
    let put = with_query(&at, &format!("digest={digest}"));
    let mut cut = client.request("PUT", &put).begin(Some(content.len() as u64)).expect("begun");
    cut.write(&content[..1_999_999]).expect("sent");
    cut.abandon();
    let path = blob_path("team/app", &digest);
    client.get(&path).expect(404);
    outrider.crash_and_restart();
    client.get(&path).expect(404);
    assert_eq!(try_push_blob(&client, "team/app", &content).expect("a second try"), digest);
    assert!(client.get(&path).expect(200).body == content);
}

#[test]
fn chunks_are_taken_as_docker_sends_them_and_as_the_specification_says() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(6, 1_500_000);
    let digest = sha256(&content);

    // docker: one PATCH with chunked transfer coding and no Content-Range.
    let at = begin_upload(&client, "by/docker").expect("a session");
    let mut patch = client.request("PATCH", &at).begin(None).expect("begun");
    for part in content.chunks(100_000) {
        patch.write(part).expect("sent");
    }
    let answer = patch.finish().expect("answered").expect(202);
    assert_eq!(answer.header("range"), Some("0-1499999"));
    let put = with_query(&location(&answer).expect("a location"), &format!("digest={digest}"));
    let answer = client.request("PUT", &put).send().expect(201);
    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
    assert!(client.get(&location(&answer).expect("a location")).expect(200).body == content);

    // The specification: Content-Range in order, the last chunk in the PUT.
    let at = begin_upload(&client, "by/spec").expect("a session");
    let patch = client.request("PATCH", &at).header("Content-Range", "0-499999");
    let answer = patch.body(&content[..500_000]).send().expect(202);
    let at = location(&answer).expect("a location");
    let early = client.request("PATCH", &at).header("Content-Range", "900000-999999");
    early.body(&content[900_000..1_000_000]).send().expect(416);
    let put = client
        .request("PUT", &with_query(&at, &format!("digest={digest}")))
        .header("Content-Range", "500000-1499999");
    put.body(&content[500_000..]).send().expect(201);
    assert!(client.get(&blob_path("by/spec", &digest)).expect(200).body == content);
}

#[test]
fn a_blob_in_one_post_and_a_mounted_one_are_served() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(7, 70_000);
    let digest = sha256(&content);
    let post = client.request("POST", &format!("/v2/one/app/blobs/uploads/?digest={digest}"));
    let answer = post.body(&content).send();
    assert!(answer.status == 201, "{} {}", answer.status, answer.text());

    let mount = format!("/v2/other/app/blobs/uploads/?mount={digest}&from=one/app");
    client.request("POST", &mount).send().expect(201);
    assert!(client.get(&blob_path("other/app", &digest)).expect(200).body == content);
    let unknown = sha256(b"never pushed");
    let mount = format!("/v2/other/app/blobs/uploads/?mount={unknown}&from=one/app");
    client.request("POST", &mount).send().expect(202);
}

#[test]
fn content_with_another_digest_is_refused_and_not_kept() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let wrong = sha256(b"something else");
    let at = begin_upload(&client, "team/app").expect("a session");
    let put = client.request("PUT", &with_query(&at, &format!("digest={wrong}")));
    put.body(&bytes(8, 10_000)).send().expect_error(400, "DIGEST_INVALID");
    client.get(&blob_path("team/app", &wrong)).expect(404);
    client.get(&blob_path("team/app", &sha256(&bytes(8, 10_000)))).expect(404);

    let image = SmallImage::new(9, &[10]);
    let put = client.request("PUT", &manifest_path("team/app", &wrong));
    put.header("Content-Type", &image.media_type).body(&image.manifest).send().expect(400);
    get_manifest(&client, "team/app", &wrong).expect(404);
}

#[test]
fn content_pushed_by_sha512_is_kept_under_it() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(10, 900_000);
    let digest = sha512(&content);
    let at = begin_upload(&client, "team/app").expect("a session");
    let put = client.request("PUT", &with_query(&at, &format!("digest={digest}")));
    let answer = put.body(&content).send().expect(201);
    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
    outrider.crash_and_restart();
    assert!(client.get(&blob_path("team/app", &digest)).expect(200).body == content);
}

#[test]
fn a_manifest_whose_blobs_are_not_here_is_refused() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let image = SmallImage::new(11, &[1000]);
    let put = client.request("PUT", &manifest_path("team/app", "v1"));
    let answer = put.header("Content-Type", &image.media_type).body(&image.manifest).send();
    assert_eq!(answer.json()["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN", "{}", answer.status);
    get_manifest(&client, "team/app", "v1").expect(404);
}

#[test]
fn tags_are_listed_in_order_and_page_by_page_and_over_a_crash() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let image = SmallImage::new(12, &[1000]);
    for tag in ["v2", "v10", "latest", "v1"] {
        push(&client, "team/app", tag, &image);
    }
    outrider.crash_and_restart();
    let list = |query: &str| {
        let answer = client.get(&format!("/v2/team/app/tags/list{query}")).expect(200);
        let tags = answer.json()["tags"].as_array().expect("tags").clone();
        let tags: Vec<_> = tags.iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect();
        (tags, answer.header("link").map(str::to_owned))
    };
    assert_eq!(list("").0, ["latest", "v1", "v10", "v2"]);
    let (page, link) = list("?n=2");
    assert_eq!(page, ["latest", "v1"]);
    assert!(link.expect("a next page").contains("last=v1"));
    assert_eq!(list("?n=2&last=v1").0, ["v10", "v2"]);
    assert_eq!(Crane::new().tags(&format!("{}/team/app", outrider.host())).len(), 4);
    client.get("/v2/team/unknown/tags/list").expect_error(404, "NAME_UNKNOWN");
}

#[test]
fn a_tag_moves_and_the_old_content_is_still_there_by_digest() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let (old, new) = (SmallImage::new(13, &[1000]), SmallImage::new(14, &[1000]));
    push(&client, "team/app", "v1", &old);
    push(&client, "team/app", "v1", &new);
    assert_served(&client, "team/app", "v1", &new);
    assert_served(&client, "team/app", &old.digest(), &old);
}
