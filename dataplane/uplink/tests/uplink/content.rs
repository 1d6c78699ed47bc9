//! What is asked, and what comes back when all is well or nearly so.

use outrider_artifact::Digest;
use outrider_uplink::{ContentRange, FetchError, FetchRequest, UpstreamConfig, UpstreamId, Whom};

use crate::origin::{Origin, Then, answer, raw};
use crate::shard::{
    blob, content, drain, error, get, head, manifest, on_shard, part, start, upstream,
};

const CONTENT: &[u8] = b"0123456789";

#[test]
fn a_blob_comes_whole_under_its_registry_path() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        let headers = format!(
            "content-type: application/octet-stream\r\ndocker-content-digest: {}\r\n",
            Digest::sha256(CONTENT)
        );
        answer(seen, wire, 200, &headers, CONTENT)
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(blob(CONTENT)).await.unwrap();
        assert_eq!(fetch.head.length, Some(10));
        assert_eq!(fetch.head.range, None);
        assert_eq!(fetch.head.media_type.as_deref(), Some("application/octet-stream"));
        assert_eq!(fetch.head.digest, Some(Digest::sha256(CONTENT)));
        assert_eq!(drain(fetch).await, (CONTENT.to_vec(), None));
    });
    let seen = &origin.seen()[0];
    assert_eq!(seen.method, "GET");
    assert_eq!(seen.path, format!("/v2/library/alpine/blobs/{}", Digest::sha256(CONTENT)));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("host"), Some(origin.authority().as_str()));
    assert!(seen.header("user-agent").unwrap().starts_with("outrider/"));
    assert_eq!(seen.header("range"), None);
    assert_eq!(seen.header("authorization"), None);
}

#[test]
fn a_manifest_is_asked_for_with_the_types_that_the_client_accepts() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", b"{}"));
    let uplink = start(upstream(&origin.url()));
    let accept = vec!["a/b".to_owned(), "evil\r\nx: y".to_owned(), "c/d;q=0.5".to_owned()];
    get(&uplink, FetchRequest { accept, ..manifest("v1") }).unwrap();
    let seen = &origin.seen()[0];
    assert_eq!(seen.path, "/v2/library/alpine/manifests/v1");
    assert_eq!(seen.header("accept"), Some("a/b, c/d;q=0.5"));
    assert_eq!(seen.header("x"), None);
}

#[test]
fn a_head_has_a_length_and_no_body_and_needs_no_digest() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", &[7; 1234]));
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(head("v1")).await.unwrap();
        assert_eq!(fetch.head.length, Some(1234));
        assert_eq!(fetch.head.digest, None);
        assert_eq!(drain(fetch).await, (Vec::new(), None));
    });
    assert_eq!(origin.seen()[0].method, "HEAD");
}

#[test]
fn a_path_prefix_of_the_upstream_stands_before_v2() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", b"{}"));
    let uplink = start(upstream(&format!("{}/some/mirror/", origin.url())));
    get(&uplink, manifest("v1")).unwrap();
    assert_eq!(origin.seen()[0].path, "/some/mirror/v2/library/alpine/manifests/v1");
}

#[test]
fn a_repository_that_cannot_be_one_never_reaches_the_upstream() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", b"{}"));
    let uplink = start(upstream(&origin.url()));
    for repository in ["", "../../etc", "a//b", "a?ns=x", "A", "a/%2e%2e/b", "a b"] {
        let request = FetchRequest { repository: repository.to_owned(), ..manifest("v1") };
        assert_eq!(error(&uplink, request), FetchError::NotFound, "{repository}");
    }
    assert!(origin.seen().is_empty());
}

#[test]
fn an_upstream_that_there_is_not_has_nothing() {
    let uplink = outrider_uplink::start(Vec::new(), crate::shard::options()).unwrap();
    assert_eq!(error(&uplink, manifest("v1")), FetchError::NotFound);
    let uplink = start(upstream("http://127.0.0.2:1"));
    let request = FetchRequest { from: Whom::Upstream(UpstreamId(9)), ..manifest("v1") };
    assert_eq!(error(&uplink, request), FetchError::NotFound);
}

#[test]
fn several_upstreams_are_told_apart() {
    let one = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", b"one"));
    let two = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", b"two"));
    let upstreams = vec![upstream(&one.url()), UpstreamConfig::new(Some("x"), &two.url()).unwrap()];
    let uplink = outrider_uplink::start(upstreams, crate::shard::options()).unwrap();
    assert_eq!(get(&uplink, manifest("v1")).unwrap(), b"one");
    let request = FetchRequest { from: Whom::Upstream(UpstreamId(1)), ..manifest("v1") };
    assert_eq!(get(&uplink, request).unwrap(), b"two");
    let names: Vec<_> = uplink.status().into_iter().map(|status| status.name).collect();
    assert_eq!(names, [one.authority(), "x".to_owned()]);
}

#[test]
fn a_part_comes_as_a_part() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        assert_eq!(seen.header("range"), Some("bytes=3-6"));
        answer(seen, wire, 206, "content-range: bytes 3-6/10\r\n", &CONTENT[3..=6])
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(part(CONTENT, 3, Some(6))).await.unwrap();
        assert_eq!(fetch.head.length, Some(4));
        assert_eq!(fetch.head.range, Some(ContentRange { first: 3, last: 6, total: Some(10) }));
        assert_eq!(drain(fetch).await, (b"3456".to_vec(), None));
    });
}

#[test]
fn an_upstream_without_ranges_is_reported_to_send_the_whole() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        assert_eq!(seen.header("range"), Some("bytes=3-"));
        answer(seen, wire, 200, "", CONTENT)
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(part(CONTENT, 3, None)).await.unwrap();
        assert_eq!((fetch.head.length, fetch.head.range), (Some(10), None));
        assert_eq!(drain(fetch).await, (CONTENT.to_vec(), None));
    });
}

#[test]
fn a_part_from_elsewhere_is_refused_before_its_body() {
    let origin = Origin::start("127.0.0.2", |seen, wire| match seen.number {
        0 => answer(seen, wire, 206, "content-range: bytes 0-9/10\r\n", CONTENT),
        1 => answer(seen, wire, 206, "", CONTENT),
        _ => answer(seen, wire, 416, "content-range: bytes */10\r\n", b""),
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..2 {
        let error = error(&uplink, part(CONTENT, 3, None));
        assert!(matches!(error, FetchError::Protocol(_)), "{error}");
    }
    assert_eq!(
        error(&uplink, part(CONTENT, 33, None)),
        FetchError::RangeNotSatisfiable { total: Some(10) }
    );
}

#[test]
fn a_login_page_and_an_encoded_content_are_no_content() {
    let origin = Origin::start("127.0.0.2", |seen, wire| match seen.number {
        0 | 1 => answer(seen, wire, 200, "content-type: text/html\r\n", b"<html>sign in"),
        _ => answer(seen, wire, 200, "content-encoding: gzip\r\n", b"\x1f\x8b"),
    });
    let uplink = start(upstream(&origin.url()));
    for request in [manifest("v1"), blob(CONTENT)] {
        let error = error(&uplink, request);
        assert!(error.to_string().contains("login page"), "{error}");
        assert!(error.is_upstream_down());
    }
    assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Protocol(_)));
}

#[test]
fn statuses_become_errors() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        let status = [404, 401, 403, 500, 418][seen.number];
        answer(seen, wire, status, "content-type: text/html\r\n", b"<html>")
    });
    let uplink = start(upstream(&origin.url()));
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::NotFound);
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Denied);
    assert_eq!(
        error(&uplink, blob(CONTENT)),
        FetchError::Unavailable { status: 500, retry_after: None }
    );
    assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Protocol(_)));
}

#[test]
fn a_chunked_body_has_no_length_and_ends_with_its_last_chunk() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        let mut text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        for _ in 0..3000 {
            text.push_str("1\r\nx\r\n");
        }
        text.push_str("0\r\ntrailer: y\r\n\r\n");
        raw(wire, &text, Then::Next)
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(blob(CONTENT)).await.unwrap();
        assert_eq!(fetch.head.length, None);
        assert_eq!(drain(fetch).await, (vec![b'x'; 3000], None));
    });
}

#[test]
fn one_connection_serves_many_fetches_in_a_row() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", CONTENT));
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        for _ in 0..20 {
            assert_eq!(content(&client, blob(CONTENT)).await, CONTENT);
        }
    });
    // The connection may still be on its way back to the pool when the next fetch begins.
    assert!(origin.accepted() < 5, "{} connections", origin.accepted());
}

#[test]
fn a_connection_that_the_upstream_gave_up_meanwhile_costs_no_fetch() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        // Every second request meets a connection that is closed without an answer.
        if seen.number % 2 == 1 {
            return Then::Close;
        }
        answer(seen, wire, 200, "", CONTENT)
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..6 {
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    }
}
