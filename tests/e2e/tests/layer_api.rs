//! `/layer/upload` and `/layer/request`: layers by plain HTTP, over the same store.

use outrider_e2e::registry::*;
use outrider_e2e::*;

const UPLOAD: &str = "/layer/upload?image=team/app&version=v1&customer=acme";

fn request(digest: &str, more: &str) -> String {
    format!("/layer/request?digest={digest}&customer=acme&region=local{more}")
}

#[test]
fn an_uploaded_layer_is_acknowledged_with_digest_and_size_and_served_over_a_crash() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(1, 5_000_000);
    let answer = client.request("PUT", UPLOAD).body(&content).send().expect(201);
    let json = answer.json();
    assert_eq!(json["digest"], sha256(&content));
    assert_eq!(json["size"], content.len());
    for _before_and_after in 0..2 {
        let path = request(&sha256(&content), "&image=team/app");
        let answer = client.get(&path).expect(200);
        assert!(answer.body == content);
        assert!(answer.cache_status().is_hit());
        assert_eq!(client.head(&path).header("content-length"), Some("5000000"));
        let range = client.request("GET", &path).header("Range", "bytes=4999990-").send();
        assert!(range.expect(206).body == content[4_999_990..]);
        outrider.crash_and_restart();
    }
}

#[test]
fn a_stated_digest_is_checked() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(2, 100_000);
    let right = format!("{UPLOAD}&digest={}", sha256(&content));
    client.request("PUT", &right).body(&content).send().expect(201);
    let other = sha256(b"other");
    let wrong = format!("{UPLOAD}&digest={other}");
    let content = bytes(3, 100_000);
    client.request("PUT", &wrong).body(&content).send().expect_error(400, "DIGEST_INVALID");
    client.get(&request(&other, "")).expect(404);
    client.get(&request(&sha256(&content), "")).expect(404);
}

#[test]
fn a_layer_that_is_not_here_comes_from_the_origin_once() {
    let upstream = FakeUpstream::start();
    let content = bytes(4, 3_000_000);
    let digest = upstream.blob(&content);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    client.get(&request(&digest, "")).expect(404);
    assert_eq!(upstream.seen().len(), 0, "without an image there is no origin to ask");
    assert!(client.get(&request(&digest, "&image=team/app")).expect(200).body == content);
    assert!(client.get(&request(&digest, "&image=team/app")).expect(200).body == content);
    assert_eq!(upstream.count("GET", "/v2/team/app/blobs/"), 1);
    // One store: the registry's side has it too.
    let by_registry = client.get(&blob_path("team/app", &digest)).expect(200);
    assert!(by_registry.body == content && by_registry.cache_status().is_hit());
}

#[test]
fn a_layer_cut_off_on_its_way_in_is_not_kept() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(5, 1_000_000);
    let mut cut = client.request("PUT", UPLOAD).begin(Some(content.len() as u64)).expect("begun");
    cut.write(&content[..999_999]).expect("sent");
    cut.abandon();
    client.get(&request(&sha256(&content), "")).expect(404);
    client.get(&request(&sha256(&content[..999_999]), "")).expect(404);
    client.request("PUT", UPLOAD).body(&content).send().expect(201);
}

#[test]
fn wrong_parameters_are_refused_by_name() {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let digest = sha256(b"x");
    let bad = |method: &str, path: &str| {
        let answer = client.request(method, path).body(b"x").send();
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert!(answer.json()["errors"][0]["message"].is_string(), "{path}");
    };
    bad("GET", "/layer/request");
    bad("GET", "/layer/request?digest=sha256:zz&customer=acme");
    bad("GET", &format!("/layer/request?digest={digest}&region=elsewhere"));
    bad("GET", &format!("/layer/request?digest={digest}&image=UPPER"));
    bad("PUT", "/layer/upload?version=v1&customer=acme");
    bad("PUT", "/layer/upload?image=team/app&version=.bad&customer=acme");
    bad("PUT", "/layer/upload?image=../x&version=v1&customer=acme");
    bad("PUT", "/layer/upload?image=team/app&version=v1&customer=acme&digest=md5:00");
    client.request("DELETE", UPLOAD).send().expect(405);
}

#[test]
fn the_event_of_an_upload_is_in_the_outbox_after_a_crash() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(6, 100_000);
    let waiting = |outrider: &Outrider| outrider.metrics().sum("outrider_outbox_pending", &[]);
    assert_eq!(waiting(&outrider), 0.0);
    client.request("PUT", UPLOAD).body(&content).send().expect(201);
    assert_eq!(waiting(&outrider), 1.0, "the layer");
    push(&client, "own/app", "v1", &SmallImage::new(7, &[1000]));
    let after_push = waiting(&outrider);
    assert!(after_push >= 2.0, "the manifest: {after_push}");
    outrider.crash_and_restart();
    assert_eq!(waiting(&outrider), after_push);
}
