//! Requests that are malformed, each answered with the protocol's own clear error, and the server
//! serving on.

use outrider_e2e::image::{OCI_CONFIG, OCI_MANIFEST};
use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

/// Fails unless the answer is an error of the registry's own form.
#[track_caller]
fn assert_error(answer: &Answer, status: &[u16], code: &str, what: &str) {
    assert!(status.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    assert_eq!(answer.json()["errors"][0]["code"], code, "{what}");
    let message = answer.json()["errors"][0]["message"].as_str().unwrap_or_default().len();
    assert!((1..=2000).contains(&message), "{what}: a message of {message} bytes");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
}

fn empty() -> (Outrider, Client) {
    let outrider = Outrider::start(Options::default());
    let client = outrider.client();
    (outrider, client)
}

#[test]
fn malformed_digests_are_digest_invalid() {
    let (_outrider, client) = empty();
    let long = format!("sha256:{}", "a".repeat(1000));
    let upper = format!("sha256:{}", "A".repeat(64));
    let short = format!("sha256:{}", "a".repeat(63));
    let zed = format!("sha256:{}z", "a".repeat(63));
    let unknown = format!("md5:{}", "a".repeat(32));
    for digest in ["sha256:", "sha256", ":", "sha256:%00", &long, &upper, &short, &zed, &unknown] {
        let answer = client.get(&format!("/v2/team/app/blobs/{digest}"));
        assert_error(&answer, &[400], "DIGEST_INVALID", digest);
        let at = begin_upload(&client, "team/app").expect("a session");
        let put = client.request("PUT", &with_query(&at, &format!("digest={digest}"))).body(b"x");
        assert_error(&put.send(), &[400], "DIGEST_INVALID", digest);
    }
    let at = begin_upload(&client, "team/app").expect("a session");
    assert_error(&client.request("PUT", &at).body(b"x").send(), &[400], "DIGEST_INVALID", "none");
}

#[test]
fn malformed_names_are_name_invalid() {
    let (_outrider, client) = empty();
    let long = "a".repeat(300);
    let parts = "a/".repeat(200) + "b";
    for name in [
        "UPPER/app",
        "team/-app",
        "team/app-",
        "team//app",
        "te am/app".replace(' ', "%20").as_str(),
        "team/%2e%2e/app",
        "../etc",
        ".hidden/app",
        "team/a..b",
        "t%C3%A9am/app",
        &long,
        &parts,
    ] {
        let answer = client.get(&format!("/v2/{name}/tags/list"));
        assert_error(&answer, &[400, 404], "NAME_INVALID", name);
        let answer = client.request("POST", &format!("/v2/{name}/blobs/uploads/")).send();
        assert_error(&answer, &[400, 404], "NAME_INVALID", name);
    }
}

#[test]
fn malformed_tags_are_refused() {
    let (_outrider, client) = empty();
    let image = SmallImage::new(1, &[10]);
    for blob in image.blobs() {
        try_push_blob(&client, "team/app", blob).expect("pushed");
    }
    let long = "a".repeat(129);
    for tag in [".dot", "-dash", "a%20b", "a%2Fb", "ä", &long, "%00"] {
        let put = client.request("PUT", &manifest_path("team/app", tag));
        let answer = put.header("Content-Type", &image.media_type).body(&image.manifest).send();
        assert!((400..500).contains(&answer.status), "{tag}: {}", answer.status);
        assert!(answer.json()["errors"][0]["code"].is_string(), "{tag}");
        let answer = client.get(&manifest_path("team/app", tag));
        assert!((400..500).contains(&answer.status), "{tag}: {}", answer.status);
    }
    let tags = client.get("/v2/team/app/tags/list");
    assert!(tags.status == 404 || tags.json()["tags"] == serde_json::json!([]), "{}", tags.text());
}

#[test]
fn malformed_manifests_are_manifest_invalid_and_not_kept() {
    let (_outrider, client) = empty();
    let image = SmallImage::new(2, &[10]);
    for blob in image.blobs() {
        try_push_blob(&client, "team/app", blob).expect("pushed");
    }
    let deep = "[".repeat(100_000);
    let right = String::from_utf8(image.manifest.clone()).expect("text");
    let cases: [(&str, String); 9] = [
        ("empty", String::new()),
        ("no JSON", "hello".into()),
        ("half of it", right[..right.len() / 2].into()),
        ("an array", "[]".into()),
        ("a number", "7".into()),
        ("deep", deep),
        ("schema 1", "{\"schemaVersion\":1,\"name\":\"x\",\"tag\":\"y\"}".into()),
        ("a digest that is none", right.replacen("sha256:", "sha257:", 1)),
        ("a size that is none", right.replacen("\"size\":", "\"size\":-", 1)),
    ];
    for (what, manifest) in cases {
        let put = client.request("PUT", &manifest_path("team/app", "bad"));
        let answer = put.header("Content-Type", OCI_MANIFEST).body(manifest.as_bytes()).send();
        assert_error(&answer, &[400], "MANIFEST_INVALID", what);
        get_manifest(&client, "team/app", "bad").expect(404);
    }
    // Another type in the header than in the manifest could be understood in two ways.
    let put = client.request("PUT", &manifest_path("team/app", "bad"));
    let answer = put.header("Content-Type", OCI_CONFIG).body(&image.manifest).send();
    assert!((400..500).contains(&answer.status), "{}", answer.status);
    // Larger than any client would take.
    let huge = right.replacen('{', &format!("{{\"x\":\"{}\",", "y".repeat(5 * MIB)), 1);
    let put = client.request("PUT", &manifest_path("team/app", "bad"));
    let answer = put.header("Content-Type", OCI_MANIFEST).body(huge.as_bytes()).send();
    assert!(matches!(answer.status, 400 | 413), "{}", answer.status);
    push(&client, "team/app", "good", &image);
}

#[test]
fn unknown_uploads_and_wrong_ranges_of_uploads_are_refused() {
    let (_outrider, client) = empty();
    let digest = sha256(b"x");
    let ghost = format!("/v2/team/app/blobs/uploads/{}", "0".repeat(32));
    for (method, path) in [
        ("PATCH", ghost.clone()),
        ("PUT", with_query(&ghost, &format!("digest={digest}"))),
        ("GET", ghost.clone()),
        ("DELETE", ghost.clone()),
        ("GET", "/v2/team/app/blobs/uploads/nonsense".into()),
    ] {
        let answer = client.request(method, &path).body(b"x").send();
        assert_error(&answer, &[404], "BLOB_UPLOAD_UNKNOWN", &format!("{method} {path}"));
    }
    for range in ["5-6", "x", "0-", "-1", "9-0", "0-99999999999999999999", "0-7"] {
        let at = begin_upload(&client, "team/app").expect("a session");
        let patch = client.request("PATCH", &at).header("Content-Range", range).body(b"four");
        let answer = patch.send();
        assert!(matches!(answer.status, 400 | 416), "{range}: {}", answer.status);
    }
}

#[test]
fn an_upload_session_of_one_repository_is_not_another_ones() {
    let (_outrider, client) = empty();
    let at = begin_upload(&client, "team/app").expect("a session");
    let elsewhere = at.replace("team/app", "other/app");
    assert_ne!(at, elsewhere);
    let answer = client.request("PATCH", &elsewhere).body(b"x").send();
    assert_error(&answer, &[404], "BLOB_UPLOAD_UNKNOWN", "another repository's session");
}

#[test]
fn paths_and_methods_that_are_not_served_say_so() {
    let (_outrider, client) = empty();
    for path in [
        "/",
        "/v1/",
        "/v2",
        "/v2/x",
        "/v2/team/app/unknown/x",
        "/favicon.ico",
        "/layer/other",
        "//v2/",
    ] {
        let answer = client.get(path);
        assert!(matches!(answer.status, 200 | 301 | 308 | 404), "{path}: {}", answer.status);
    }
    for method in ["TRACE", "CONNECT", "OPTIONS", "PROPFIND", "BREW"] {
        let answer = client.request(method, "/v2/team/app/manifests/v1").send();
        assert!(matches!(answer.status, 400 | 404 | 405 | 501), "{method}: {}", answer.status);
    }
    let answer = client.request("POST", "/v2/team/app/manifests/v1").send();
    assert_error(&answer, &[405], "UNSUPPORTED", "POST of a manifest");
    assert!(answer.header("allow").is_some());
}

#[test]
fn heads_that_are_too_large_are_431_and_the_server_serves_on() {
    let (_outrider, client) = empty();
    let big = "x".repeat(200_000);
    let request = client.request("GET", "/v2/").header("X-Big", &big).try_send();
    assert!(request.map_or(true, |answer| matches!(answer.status, 400 | 431)));
    let many = (0..5000)
        .fold(client.request("GET", "/v2/"), |request, n| request.header(&format!("X-{n}"), "y"));
    assert!(many.try_send().map_or(true, |answer| matches!(answer.status, 400 | 431)));
    let long = client.request("GET", &format!("/v2/{}", "x".repeat(100_000))).try_send();
    assert!(long.map_or(true, |answer| matches!(answer.status, 400 | 414 | 431)));
    let query = client.request("GET", &format!("/v2/?x={}", "x".repeat(20_000))).try_send();
    assert!(query.map_or(true, |answer| matches!(answer.status, 200 | 400 | 414 | 431)));
    client.get("/v2/").expect(200);
}

#[test]
fn bytes_that_are_no_http_are_closed_or_400() {
    let (outrider, client) = empty();
    let noise = bytes(3, 100_000);
    let cases: [&[u8]; 14] = [
        b"",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense and more nonsense, no frames at all",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET http://127.0.0.1:1/v2/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n",
        &noise,
    ];
    for case in cases {
        let answer = client.raw(case);
        let text = String::from_utf8_lossy(&answer);
        let shown = String::from_utf8_lossy(&case[..case.len().min(60)]);
        assert!(!text.starts_with("HTTP/1.1 5"), "{shown:?}: {text}");
        Client::new(outrider.https_port()).raw(case);
        client.get("/v2/").expect(200);
    }
}

#[test]
fn a_request_smuggled_behind_another_is_not_answered() {
    let (_outrider, client) = empty();
    let text = b"POST /v2/a/b/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
        0\r\n\r\nGET /v2/smuggled/tags/list HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = String::from_utf8_lossy(&client.raw(text)).into_owned();
    assert!(answer.matches("HTTP/1.1 ").count() <= 1, "one answer at most: {answer}");
}

#[test]
fn parameters_of_lists_that_are_no_numbers_are_refused() {
    let (_outrider, client) = empty();
    push(&client, "team/app", "v1", &SmallImage::new(4, &[10]));
    for query in ["n=-1", "n=x", "n=1.5"] {
        let answer = client.get(&format!("/v2/team/app/tags/list?{query}"));
        assert_error(&answer, &[400], "PAGINATION_NUMBER_INVALID", query);
    }
    let none = client.get("/v2/team/app/tags/list?n=0").expect(200);
    assert_eq!(none.json()["tags"], serde_json::json!([]));
    let weird = client.get("/v2/team/app/tags/list?last=%00%ff&n=5");
    assert!(matches!(weird.status, 200 | 400), "{}", weird.status);
}

#[test]
fn a_body_longer_than_it_said_does_not_become_content() {
    let (_outrider, client) = empty();
    let at = begin_upload(&client, "team/app").expect("a session");
    let content = b"0123456789";
    let digest = sha256(content);
    let put = format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789GARBAGE",
        with_query(&at, &format!("digest={digest}"))
    );
    client.raw(put.as_bytes());
    let answer = client.get(&blob_path("team/app", &digest));
    assert!(answer.status == 200 && answer.body == content || answer.status == 404);
}
