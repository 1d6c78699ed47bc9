//! What clients are told: HEAD and GET agree, Cache-Status tells the truth, tags are as fresh as they
//! can be, upstreams with tokens and passwords work, HTTPS and HTTP say the same.

use std::process::Command;

use outrider_e2e::image::{OCI_INDEX, OCI_LAYER};
use outrider_e2e::process::run;
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// A second is the shortest time for which a tag may be believed.
const SHORT_TTL: &str = "[tags]\nttl = \"1s\"\n";

fn with_image(seed: u64) -> (FakeUpstream, SmallImage) {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(seed, &[100_000, 700_000]);
    upstream.image("team/app", "v1", &image);
    (upstream, image)
}

/// Asks by HEAD and by GET, and fails unless they say the same.
fn assert_agree(client: &Client, path: &str, order: [&str; 2]) -> Answer {
    let ask = |method: &str| {
        client
            .request(method, path)
            .header("Accept", "*/*, application/vnd.oci.image.manifest.v1+json")
            .send()
    };
    let answers = order.map(ask);
    for name in ["content-length", "content-type", "docker-content-digest", "etag", "accept-ranges"]
    {
        assert_eq!(
            answers[0].header(name),
            answers[1].header(name),
            "{name} of {path} by {order:?}"
        );
    }
    assert_eq!(answers[0].status, answers[1].status, "{path} by {order:?}");
    for (answer, method) in answers.iter().zip(order) {
        if method == "HEAD" {
            assert!(answer.body.is_empty());
        } else if answer.status == 200 {
            let said = answer.header("content-length").and_then(|text| text.parse().ok());
            assert_eq!(said, Some(answer.body.len()), "{path}");
        }
    }
    answers[0].clone()
}

#[test]
fn head_and_get_agree_cold_warm_hosted_and_for_what_is_not_there() {
    for order in [["HEAD", "GET"], ["GET", "HEAD"]] {
        let (upstream, image) = with_image(1);
        let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
        let client = outrider.client();
        let digest = image.digest();
        for _cold_then_warm in 0..2 {
            for reference in ["v1", &digest] {
                let answer = assert_agree(&client, &manifest_path("team/app", reference), order);
                assert_eq!(answer.status, 200);
                assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
                assert_eq!(answer.header("content-type"), Some(image.media_type.as_str()));
            }
            let layer = sha256(&image.layers[1]);
            let answer = assert_agree(&client, &blob_path("team/app", &layer), order);
            assert_eq!(answer.header("content-length"), Some("700000"));
            assert_eq!(answer.header("docker-content-digest"), Some(layer.as_str()));
        }
        push(&client, "own/app", "v1", &image);
        assert_agree(&client, &manifest_path("own/app", "v1"), order);
        assert_agree(&client, &blob_path("own/app", &sha256(&image.config)), order);
        for path in ["/v2/team/app/manifests/none", "/v2/own/app/manifests/none"] {
            assert_eq!(assert_agree(&client, path, order).status, 404);
        }
        let unknown = blob_path("team/app", &sha256(b"unknown"));
        assert_eq!(assert_agree(&client, &unknown, order).status, 404);
    }
}

#[test]
fn cache_status_says_where_it_came_from_and_whether_it_was_verified() {
    let (upstream, image) = with_image(2);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let layer = blob_path("team/app", &sha256(&image.layers[1]));

    let cold = client.get(&layer).expect(200).cache_status();
    assert!(!cold.is_hit() && cold.get("fwd") == Some("uri-miss"), "{cold:?}");
    assert!(!cold.is_verified(), "its first bytes went out before its last came in: {cold:?}");

    let warm = client.get(&layer).expect(200).cache_status();
    assert!(warm.is_hit() && warm.is_verified(), "{warm:?}");
    assert_eq!(warm.get("detail"), Some("ram"), "{warm:?}");

    outrider.restart();
    let from_disk = client.get(&layer).expect(200).cache_status();
    assert!(from_disk.is_hit() && from_disk.is_verified(), "{from_disk:?}");
    assert_eq!(from_disk.get("detail"), Some("ssd"), "{from_disk:?}");

    for path in
        ["/v2/", "/v2/team/app/manifests/none", "/v2/team/app/manifests/v1", "/v2/UPPER/tags/list"]
    {
        client.get(path).cache_status();
    }
    push(&client, "own/app", "v1", &image);
    let hosted = get_manifest(&client, "own/app", "v1").expect(200).cache_status();
    assert!(hosted.is_hit() && hosted.is_verified(), "{hosted:?}");
}

#[test]
fn a_tag_is_answered_stale_and_marked_when_its_upstream_is_gone() {
    let (mut upstream, image) = with_image(3);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()).config(SHORT_TTL));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    upstream.stop();
    let mut status = None;
    until("the tag is older than its time to live", || {
        let answer = get_manifest(&client, "team/app", "v1").expect(200);
        assert!(answer.body == image.manifest);
        status = Some(answer.cache_status()).filter(|status| status.get("detail") == Some("stale"));
        status.is_some()
    });
    outrider.restart();
    let answer = get_manifest(&client, "team/app", "v1").expect(200);
    assert!(answer.body == image.manifest);
    // What is asked for by digest does not get stale.
    let by_digest = get_manifest(&client, "team/app", &image.digest()).expect(200).cache_status();
    assert!(by_digest.is_hit() && by_digest.get("detail") != Some("stale"), "{by_digest:?}");
}

#[test]
fn a_tag_that_moved_upstream_is_noticed_and_the_old_digest_is_kept() {
    let (upstream, old) = with_image(4);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).config(SHORT_TTL));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &old);
    let new = SmallImage::new(5, &[50_000]);
    upstream.image("team/app", "v1", &new);
    until("the new manifest is served", || {
        let body = get_manifest(&client, "team/app", "v1").expect(200).body;
        assert!(body == old.manifest || body == new.manifest);
        body == new.manifest
    });
    assert_served(&client, "team/app", "v1", &new);
    let kept = get_manifest(&client, "team/app", &old.digest()).expect(200);
    assert!(kept.body == old.manifest);
}

#[test]
fn a_tag_that_did_not_move_is_asked_for_by_head_only() {
    // Docker Hub counts GETs of manifests.
    let (upstream, image) = with_image(6);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).config(SHORT_TTL));
    let client = outrider.client();
    get_manifest(&client, "team/app", "v1").expect(200);
    let heads = upstream.count("HEAD", "/manifests/v1");
    until("the tag is compared with its upstream again", || {
        assert!(get_manifest(&client, "team/app", "v1").expect(200).body == image.manifest);
        upstream.count("HEAD", "/manifests/v1") > heads
    });
    assert_eq!(upstream.count("GET", "/manifests/"), 1);
}

#[test]
fn an_upstream_that_limits_or_fails_never_disturbs_what_is_cached() {
    let (upstream, image) = with_image(7);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).config(SHORT_TTL));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    for fault in [
        Fault::too_many(60),
        Fault::status(500),
        Fault::status(503),
        Fault::login_page(),
        Fault::Reset(0),
        Fault::status(403),
        Fault::status(401),
    ] {
        upstream.behave();
        upstream.always("", "/", std::slice::from_ref(&fault));
        assert_served(&client, "team/app", "v1", &image);
        let unknown = client.get(&blob_path("team/app", &sha256(format!("{fault:?}").as_bytes())));
        assert!(unknown.status >= 400, "{fault:?}: {}", unknown.status);
        assert!(unknown.json()["errors"][0]["code"].is_string(), "{}", unknown.text());
        assert_served(&client, "team/app", "v1", &image);
    }
}

#[test]
fn a_rate_limit_is_passed_on_with_its_retry_after_and_respected() {
    let (upstream, image) = with_image(8);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    upstream.always("", "/", &[Fault::too_many(120)]);
    let path = blob_path("team/app", &sha256(&image.layers[0]));
    let answer = client.get(&path).expect_error(429, "TOOMANYREQUESTS");
    let after: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=120).contains(&after), "{after}");
    let asked = upstream.seen().len();
    for _ in 0..10 {
        let answer = client.get(&path);
        assert!(matches!(answer.status, 429 | 503), "{}", answer.status);
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(upstream.seen().len(), asked, "it is left alone until then");
}

#[test]
fn an_upstream_that_wants_tokens_gets_them_once_and_no_client_notices() {
    let (upstream, image) = with_image(9);
    upstream.require_tokens(None, None);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    assert_served(&outrider.client(), "team/app", "v1", &image);
    let tokens = upstream.seen_of("GET", "/token");
    assert_eq!(tokens.len(), 1, "one token for one scope");
    assert!(tokens[0].query.contains("scope=repository"), "{}", tokens[0].query);
    assert!(tokens[0].query.contains("service=fake"), "{}", tokens[0].query);
}

#[test]
fn the_operators_password_is_given_to_the_upstream_and_to_nobody_else() {
    let (upstream, image) = with_image(10);
    let storage = FakeUpstream::start();
    upstream.require_tokens(None, Some(("robot", "secret word")));
    let layer = sha256(&image.layers[0]);
    storage.blob(&image.layers[0]);
    // Another origin, by its port.
    let location = format!("{}/v2/x/blobs/{layer}?signed=yes", storage.url());
    let scratch = Scratch::new();
    let file = scratch.path().join("password");
    std::fs::write(&file, "secret word\n").expect("a small file");
    let keys = format!("username = \"robot\"\npassword_file = {file:?}");
    let options = Options::with_upstream(&upstream.url()).upstream_keys(&keys);
    let outrider = Outrider::start(options);
    let client = outrider.client();
    get_manifest(&client, "team/app", "v1").expect(200);
    upstream.script(1, "GET", &layer, &[Fault::redirect(&location)]);
    assert!(client.get(&blob_path("team/app", &layer)).expect(200).body == image.layers[0]);
    let there = storage.seen();
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].query, "signed=yes");
    assert_eq!(there[0].header("authorization"), None, "no credentials leave their host");
    assert!(!outrider.log().contains("secret word") && !outrider.log().contains("given-"));
}

#[test]
fn a_wrong_password_is_an_error_that_says_so() {
    let (upstream, _) = with_image(11);
    upstream.require_tokens(None, Some(("robot", "right")));
    let scratch = Scratch::new();
    let file = scratch.path().join("password");
    std::fs::write(&file, "wrong").expect("a small file");
    let keys = format!("username = \"robot\"\npassword_file = {file:?}");
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).upstream_keys(&keys));
    let answer = get_manifest(&outrider.client(), "team/app", "v1");
    assert!(matches!(answer.status, 401 | 403 | 502), "{}", answer.status);
    assert!(answer.json()["errors"][0]["code"].is_string());
}

#[test]
fn ns_names_a_configured_upstream_and_nothing_else() {
    let (one, image) = with_image(12);
    let other = FakeUpstream::start();
    let other_image = SmallImage::new(13, &[1000]);
    other.image("team/app", "v1", &other_image);
    let options = Options::with_upstream(&one.url()).and_named("other.test", &other.url());
    let outrider = Outrider::start(options);
    let client = outrider.client();
    let by_ns = |ns: &str| {
        let path = format!("{}?ns={ns}", manifest_path("team/app", "v1"));
        client.request("GET", &path).header("Accept", "*/*").send()
    };
    assert!(by_ns("other.test").expect(200).body == other_image.manifest);
    assert!(get_manifest(&client, "team/app", "v1").expect(200).body == image.manifest);
    assert!(by_ns(&format!("127.0.0.1:{}", one.port())).expect(200).body == image.manifest);
    let prefixed = get_manifest(&client, "other.test/team/app", "v1").expect(200);
    assert!(prefixed.body == other_image.manifest);
    assert_eq!(other.count("GET", "/manifests/"), 1, "one repository, two ways to it");
    for unknown in ["unknown.test", "127.0.0.1:1", "%2e%2e", "", "other.test%2fx"] {
        by_ns(unknown).expect_error(404, "NAME_UNKNOWN");
    }
}

#[test]
fn an_index_and_its_images_are_mirrored_and_pushed() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(14, &[1000]);
    upstream.image("team/multi", "amd64", &image);
    let index = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[{{\"mediaType\":\"{}\",\"digest\":\"{}\",\"size\":{},\
         \"platform\":{{\"architecture\":\"amd64\",\"os\":\"linux\"}}}}]}}",
        image.media_type,
        image.digest(),
        image.manifest.len()
    );
    upstream.manifest("team/multi", "v1", OCI_INDEX, index.as_bytes());
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let answer = get_manifest(&client, "team/multi", "v1").expect(200);
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert!(answer.body == index.as_bytes());
    assert_served(&client, "team/multi", &image.digest(), &image);

    push(&client, "own/multi", "amd64", &image);
    try_push_manifest(&client, "own/multi", "v1", OCI_INDEX, index.as_bytes()).expect("taken");
    let answer = get_manifest(&client, "own/multi", "v1").expect(200);
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert!(answer.body == index.as_bytes());
}

#[test]
fn a_layer_is_never_labelled_with_a_content_encoding() {
    let (upstream, image) = with_image(15);
    upstream.always("GET", "/blobs/", &[Fault::Header("Content-Type".into(), OCI_LAYER.into())]);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let path = blob_path("team/app", &sha256(&image.layers[0]));
    let ask = outrider.client().request("GET", &path).header("Accept-Encoding", "gzip, zstd, br");
    for _cold_then_warm in 0..2 {
        let answer = ask.send().expect(200);
        assert_eq!(answer.header("content-encoding"), None);
        assert!(answer.body == image.layers[0]);
    }
}

#[test]
fn a_conditional_request_is_answered_304() {
    let (upstream, image) = with_image(16);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let path = blob_path("team/app", &sha256(&image.layers[0]));
    let etag = client.get(&path).expect(200).header("etag").expect("an ETag").to_owned();
    client.request("GET", &path).header("If-None-Match", &etag).send().expect(304);
    client.request("GET", &path).header("If-None-Match", "\"other\"").send().expect(200);
    let range = client.request("GET", &path).header("Range", "bytes=0-9");
    range.clone().header("If-Range", &etag).send().expect(206);
    range.header("If-Range", "\"other\"").send().expect(200);
}

#[test]
fn https_by_both_protocol_versions_serves_the_same_bytes() {
    let upstream = FakeUpstream::start();
    let content = bytes(17, 30 << 20);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let scratch = Scratch::new();
    for (version, flag) in [("1.1", "--http1.1"), ("2", "--http2"), ("2", "--http2")] {
        let out = scratch.path().join("out");
        let mut curl = Command::new(tools::program("curl"));
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", flag]);
        curl.arg("--cacert").arg(outrider.ca_pem()).arg("--output").arg(&out);
        curl.args(["--write-out", "%{http_version}"]);
        curl.arg(format!("https://{}{path}", outrider.https_host()));
        assert_eq!(run(curl).ok(), version);
        assert!(std::fs::read(&out).expect("downloaded") == content, "HTTP/{version}");
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
}

#[test]
fn many_streams_of_one_http2_connection_are_all_right() {
    let upstream = FakeUpstream::start();
    let contents: Vec<_> = (0..24).map(|n| bytes(100 + n, 500_000)).collect();
    let digests: Vec<_> = contents.iter().map(|content| upstream.blob(content)).collect();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let scratch = Scratch::new();
    let mut curl = Command::new(tools::program("curl"));
    curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--http2"]);
    curl.args(["--parallel", "--parallel-max", "24"]).arg("--cacert").arg(outrider.ca_pem());
    for (n, digest) in digests.iter().enumerate() {
        curl.arg("--output").arg(scratch.path().join(n.to_string()));
        curl.arg(format!("https://{}{}", outrider.https_host(), blob_path("team/app", digest)));
    }
    run(curl).ok();
    for (n, content) in contents.iter().enumerate() {
        let got = std::fs::read(scratch.path().join(n.to_string())).expect("downloaded");
        assert!(got == *content, "stream {n}");
    }
    assert_eq!(upstream.count("GET", "/blobs/"), 24);
}

#[test]
fn requests_one_after_the_other_and_ahead_of_time_on_one_connection_are_answered_in_order() {
    let (upstream, image) = with_image(18);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    let config = blob_path("team/app", &sha256(&image.config));
    let line = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{close}\r\n");
    let text = line("/v2/", "") + &line(&config, "") + &line("/v2/", "Connection: close\r\n");
    let answers = client.raw_and_stay(text.as_bytes());
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    assert!(answers.contains(&*String::from_utf8_lossy(&image.config)));
}

#[test]
fn what_was_mirrored_is_deleted_nowhere_and_what_was_pushed_can_be() {
    let (upstream, image) = with_image(19);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    let refused = client.request("DELETE", &manifest_path("team/app", "v1")).send();
    assert!(matches!(refused.status, 403 | 405), "{}", refused.status);
    assert_served(&client, "team/app", "v1", &image);

    push(&client, "own/app", "v1", &image);
    push(&client, "own/app", "v2", &image);
    client.request("DELETE", &manifest_path("own/app", "v1")).send().expect(202);
    get_manifest(&client, "own/app", "v1").expect(404);
    assert_served(&client, "own/app", "v2", &image);
    client.request("DELETE", &manifest_path("own/app", &image.digest())).send().expect(202);
    get_manifest(&client, "own/app", "v2").expect(404);
}
