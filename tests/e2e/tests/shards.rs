//! Several shards are one registry: whichever a connection comes to, the answer is the same. The system
//! spreads connections over the shards, and the test's client makes one for each request.

use std::sync::Arc;
use std::thread;

use outrider_e2e::registry::*;
use outrider_e2e::*;

/// Connections of which some come to every shard: that all of 40 come to the same one of two has a
/// chance of 2 in 10^12.
const CONNECTIONS: usize = 40;

fn questions(outrider: &Outrider) -> f64 {
    outrider.metrics().sum("outrider_mesh_questions_total", &[])
}

#[test]
fn a_blob_that_is_asked_for_on_every_shard_is_fetched_once() {
    let upstream = FakeUpstream::start();
    let contents: Vec<Vec<u8>> =
        [1, 4096, 262_144, 262_145, 3_000_000].iter().zip(1..).map(|(n, s)| bytes(s, *n)).collect();
    for content in &contents {
        upstream.blob(content);
    }
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(2));
    let client = outrider.client();
    for content in &contents {
        let path = blob_path("team/app", &sha256(content));
        let everybody = Arc::new(std::sync::Barrier::new(CONNECTIONS));
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                let (path, everybody) = (&path, everybody.clone());
                scope.spawn(move || {
                    everybody.wait();
                    assert!(client.get(path).expect(200).body == *content);
                });
            }
        });
        for _ in 0..CONNECTIONS {
            let answer = client.get(&path).expect(200);
            assert!(answer.body == *content);
            let status = answer.cache_status();
            assert!(status.is_hit() && status.is_verified(), "{status:?}");
        }
        assert_eq!(upstream.count("GET", &sha256(content)), 1, "of {} bytes", content.len());
    }
    assert!(questions(&outrider) > 0.0, "some of them came to the other shard");
    assert!(
        outrider.metrics().sum("outrider_table_hits_total", &[]) > 0.0,
        "small ones are kept there"
    );
}

#[test]
fn every_shard_answers_alike() {
    let upstream = FakeUpstream::start();
    let (small, large) = (bytes(1, 10_000), bytes(2, 1_000_000));
    upstream.blob(&small);
    upstream.blob(&large);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(3));
    let client = outrider.client();
    for content in [&small, &large] {
        let digest = sha256(content);
        let path = blob_path("team/app", &digest);
        client.get(&path).expect(200);
        let etag = format!("\"{digest}\"");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);
        let cases: [Case<'_>; 7] = [
            ("GET", &[], 200),
            ("HEAD", &[], 200),
            ("GET", &[("Range", "bytes=100-199")], 206),
            ("GET", &[("Range", "bytes=-7")], 206),
            ("GET", &[("Range", "bytes=2000000-")], 416),
            ("GET", &[("If-None-Match", &etag)], 304),
            ("GET", &[("Range", "bytes=1-2"), ("If-Range", "\"other\"")], 200),
        ];
        for (method, headers, status) in cases {
            let mut first = None;
            for _ in 0..CONNECTIONS {
                let mut request = client.request(method, &path);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let mut answer = request.send().expect(status);
                answer.headers.retain(|(name, _)| name != "date");
                let answer = (answer.headers, answer.body);
                let first = first.get_or_insert_with(|| answer.clone());
                assert_eq!(first.0, answer.0, "{method} {headers:?}");
                assert!(first.1 == answer.1, "{method} {headers:?}");
            }
        }
    }
    assert!(questions(&outrider) > 0.0);
}

#[test]
fn an_upload_goes_on_whichever_shard_its_pieces_come_to() {
    let outrider = Outrider::start(Options::default().shards(2));
    let client = outrider.client();
    let content = bytes(3, 4_000_000);
    let mut at = begin_upload(&client, "team/app").expect("a session");
    for piece in content.chunks(content.len() / CONNECTIONS) {
        client.get(&at).expect(204);
        let answer = client.request("PATCH", &at).body(piece).send().expect(202);
        at = location(&answer).expect("where to go on");
    }
    let finish = with_query(&at, &format!("digest={}", sha256(&content)));
    client.request("PUT", &finish).send().expect(201);
    let path = blob_path("team/app", &sha256(&content));
    for _ in 0..CONNECTIONS {
        assert!(client.get(&path).expect(200).body == content);
    }
    assert!(questions(&outrider) > 0.0);

    // A wrong digest, a session that is cancelled, one that never was: the same on every shard.
    for _ in 0..CONNECTIONS {
        let at = begin_upload(&client, "team/app").expect("a session");
        let wrong = with_query(&at, &format!("digest={}", sha256(b"else")));
        client.request("PUT", &wrong).body(b"some").send().expect_error(400, "DIGEST_INVALID");
        client.get(&at).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        let at = begin_upload(&client, "team/app").expect("a session");
        client.request("DELETE", &at).send().expect(204);
        client.request("PATCH", &at).body(b"some").send().expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
    assert_eq!(outrider.metrics().sum("outrider_upload_sessions", &[]), 0.0);
}

#[test]
fn another_number_of_shards_keeps_what_was_cached_and_what_was_pushed() {
    let mut upstream = FakeUpstream::start();
    let mirrored = SmallImage::new(1, &[2_000_000, 300_000, 1000, 70_000, 5, 900_000, 262_144]);
    upstream.image("team/app", "v1", &mirrored);
    let mut outrider = Outrider::start(
        Options::with_upstream(&upstream.url()).shards(1).config("[tags]\nttl = \"1h\"\n"),
    );
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &mirrored);
    let mut pushed = Vec::new();
    let push_one = |pushed: &mut Vec<SmallImage>| {
        let image =
            SmallImage::new(100 + pushed.len() as u64, &[400_000, 17, 30_000, 0, 1_500_000]);
        push(&client, "own/app", &format!("v{}", pushed.len()), &image);
        pushed.push(image);
    };
    push_one(&mut pushed);
    // What is only cached is on disk after an orderly end.
    assert!(outrider.terminate().success());
    upstream.stop();
    for (shards, kill) in [(2, true), (3, false), (1, true), (3, true), (2, false), (1, false)] {
        outrider.set_shards(shards);
        outrider.resume();
        assert_served(&client, "team/app", "v1", &mirrored);
        for (n, image) in pushed.iter().enumerate() {
            assert_served(&client, "own/app", &format!("v{n}"), image);
        }
        push_one(&mut pushed);
        // The same content again, from another shard perhaps.
        push(&client, "own/again", "v1", &pushed[0]);
        if kill {
            outrider.kill9();
        } else {
            assert!(outrider.terminate().success());
        }
    }
    assert!(!outrider.log().contains("is on no disk any more"), "{}", outrider.log());
}

#[test]
fn what_is_deleted_on_one_shard_is_gone_on_all_at_once() {
    let outrider = Outrider::start(Options::default().shards(2));
    let client = outrider.client();
    for round in 0..5 {
        let image = SmallImage::new(10 + round, &[1000, 300_000]);
        push(&client, "own/app", "v1", &image);
        for _ in 0..CONNECTIONS {
            assert_served(&client, "own/app", "v1", &image);
        }
        let small = blob_path("own/app", &sha256(&image.layers[0]));
        client.request("DELETE", &small).send().expect(202);
        client.request("DELETE", &manifest_path("own/app", &image.digest())).send().expect(202);
        for _ in 0..CONNECTIONS {
            client.get(&small).expect_error(404, "BLOB_UNKNOWN");
            get_manifest(&client, "own/app", "v1").expect_error(404, "MANIFEST_UNKNOWN");
            get_manifest(&client, "own/app", &image.digest()).expect_error(404, "MANIFEST_UNKNOWN");
        }
        let layer = format!("/layer/request?digest={}", sha256(&image.layers[0]));
        client.get(&layer).expect_error(404, "BLOB_UNKNOWN");
        push(&client, "own/app", "v1", &image);
        for _ in 0..CONNECTIONS {
            assert_served(&client, "own/app", "v1", &image);
        }
    }
}

#[test]
fn a_tag_is_compared_once_and_a_new_version_is_seen_by_every_shard() {
    let upstream = FakeUpstream::start();
    let (old, new) = (SmallImage::new(1, &[1000]), SmallImage::new(2, &[1000]));
    upstream.image("team/app", "v1", &old);
    let outrider = Outrider::start(
        Options::with_upstream(&upstream.url()).shards(2).config("[tags]\nttl = \"1h\"\n"),
    );
    let client = outrider.client();
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| assert!(get_manifest(&client, "team/app", "v1").body == old.manifest));
        }
    });
    assert_eq!(upstream.count("", "/team/app/manifests/"), 1);
    // Another tag, which points to another manifest, is not confused with it.
    upstream.image("team/app", "v2", &new);
    for _ in 0..CONNECTIONS {
        assert_served(&client, "team/app", "v2", &new);
        assert_served(&client, "team/app", "v1", &old);
    }
    assert_eq!(upstream.count("", "/team/app/manifests/"), 2);
}

#[test]
fn a_shard_without_a_stripe_serves_and_takes_pushes_all_the_same() {
    let upstream = FakeUpstream::start();
    let mirrored = SmallImage::new(1, &[3_000_000, 1000]);
    upstream.image("team/app", "v1", &mirrored);
    let options = Options::with_upstream(&upstream.url()).shards(2).config("stripes = 1\n");
    let mut outrider = Outrider::start(options);
    let client = outrider.client();
    let images: Vec<SmallImage> = (0..8).map(|n| SmallImage::new(10 + n, &[500_000, 10])).collect();
    for (n, image) in images.iter().enumerate() {
        assert_served(&client, "team/app", "v1", &mirrored);
        push(&client, "own/app", &format!("v{n}"), image);
    }
    outrider.crash_and_restart();
    for (n, image) in images.iter().enumerate() {
        assert_served(&client, "own/app", &format!("v{n}"), image);
    }
}

#[test]
fn more_than_a_stripe_takes_is_refused_before_it_is_sent() {
    let outrider = Outrider::start(Options::default().shards(2));
    let client = outrider.client();
    for _ in 0..8 {
        let at = begin_upload(&client, "own/app").expect("a session");
        let begun = client.request("PATCH", &at).begin(Some(1 << 30)).expect("begun");
        begun.finish().expect("an answer").expect_error(413, "SIZE_INVALID");
    }
    let image = SmallImage::new(1, &[1000]);
    push(&client, "own/app", "v1", &image);
    assert_served(&client, "own/app", "v1", &image);
}

#[test]
fn a_client_that_leaves_lets_go_of_what_another_shard_sends_it() {
    let upstream = FakeUpstream::start();
    let content = bytes(1, 40_000_000);
    upstream.blob(&content);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).shards(2));
    let client = outrider.client();
    let path = blob_path("team/app", &sha256(&content));
    assert!(client.get(&path).expect(200).body == content);
    let readers: Vec<_> = (0..CONNECTIONS).map(|_| client.request("GET", &path).open()).collect();
    until("they hold something", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) > 0.0
    });
    drop(readers);
    until("nobody holds anything", || {
        outrider.metrics().sum("outrider_transport_pinned_bytes", &[]) == 0.0
    });
    assert!(client.get(&path).expect(200).body == content);
}
