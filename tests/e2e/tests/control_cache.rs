//! What the control plane's state does to the caches of edges: classes, guarantees, replaced tags, invalidations.

#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_e2e::control::Control;
use outrider_e2e::registry::*;
use outrider_e2e::*;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// An edge that has memory alone, and little: what goes first is seen at once.
fn small_edge(control: &Control, upstream: &FakeUpstream) -> Outrider {
    let options =
        Options::with_upstream(&upstream.url()).config("").ram("64MiB").ssd("0").shards(1);
    Outrider::joined(control, options)
}

fn edge(control: &Control, upstream: &FakeUpstream) -> Outrider {
    Outrider::joined(control, Options::with_upstream(&upstream.url()).config(""))
}

/// Asks a node for something.
fn ask(control: &Control, method: &str, path: &str, body: &Value) {
    let request = control.client(0).request(method, path).body(body.to_string().as_bytes());
    let answer = request.send();
    assert!((200..300).contains(&answer.status), "{method} {path}: {}", answer.text());
}

fn version(edge: &Outrider) -> u64 {
    edge.admin().get("/status").json()["control"]["version"].as_u64().unwrap()
}

/// Waits until an edge has taken in what was written before.
fn until_known(control: &Control, edges: &[&Outrider]) {
    let key = "marker";
    let written = control.state(0, "PUT", key).body(b"x").send().expect(204);
    let written: u64 = written.header("etag").unwrap().trim_matches('"').parse().unwrap();
    for edge in edges {
        until("the edge knows what was written", || version(edge) >= written);
    }
}

/// Whether an edge has all of a blob.
fn has(edge: &Outrider, repository: &str, digest: &str) -> bool {
    let request = edge.client().request("GET", &blob_path(repository, digest));
    let answer = request.header("cache-control", "only-if-cached").send();
    assert!([200, 404, 504].contains(&answer.status), "{}", answer.text());
    answer.status == 200
}

/// Gets a layer as a customer would whom this machine speaks for.
fn get_as(edge: &Outrider, customer: &str, image: &str, digest: &str) -> Answer {
    let path = format!("/layer/request?digest={digest}&image={image}&customer={customer}");
    edge.client().get(&path)
}

/// Contents of an upstream that nobody has asked for yet, together so many MiB.
fn flood(edge: &Outrider, upstream: &FakeUpstream, seed: u64, mib: usize) {
    for n in 0..mib as u64 {
        let blob = upstream.blob(&bytes(seed * 10_000 + n, MIB));
        edge.client().get(&blob_path("flood/all", &blob)).expect(200);
    }
}

fn image_of(layers: &[&[u8]], upstream: &FakeUpstream) -> (Vec<String>, Vec<u8>) {
    let config = format!("{{\"n\":{}}}", layers.len());
    let config_digest = upstream.blob(config.as_bytes());
    let described = |digest: &str, size: usize, media_type: &str| json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": size });
    let digests: Vec<String> = layers.iter().map(|layer| upstream.blob(layer)).collect();
    let layers: Vec<Value> = digests
        .iter()
        .zip(layers)
        .map(|(digest, layer)| described(digest, layer.len(), "layer.v1.tar"))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(&config_digest, config.len(), "config.v1+json"),
        "layers": layers,
    });
    (digests, manifest.to_string().into_bytes())
}

#[test]
fn layers_of_a_replaced_tag_go_first_and_those_that_others_share_stay() {
    let control = Control::start(1, "");
    let upstream = FakeUpstream::start();
    let (a, b) = (edge(&control, &upstream), small_edge(&control, &upstream));
    let layer = |seed| bytes(seed, 2 * MIB);
    let [only_old, shared, kept_by_other, only_new] = [1, 2, 3, 4].map(layer);
    // The fake upstream only names what is pushed here.
    let (old_digests, old) = image_of(&[&only_old, &shared, &kept_by_other], &upstream);
    let (new_digests, new) = image_of(&[&shared, &only_new], &upstream);
    let (_, other) = image_of(&[&kept_by_other], &upstream);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let push_all = |tag: &str, layers: &[&[u8]], manifest: &[u8]| {
        let config = format!("{{\"n\":{}}}", layers.len());
        for blob in layers.iter().copied().chain([config.as_bytes()]) {
            try_push_blob(&a.client(), "team/app", blob).unwrap();
        }
        try_push_manifest(&a.client(), "team/app", tag, media_type, manifest).unwrap();
    };
    let pull = |tag: &str, digests: &[&String]| {
        until("the tag is known", || get_manifest(&b.client(), "team/app", tag).status == 200);
        for digest in digests {
            b.client().get(&blob_path("team/app", digest)).expect(200);
        }
    };
    push_all("latest", &[&only_old, &shared, &kept_by_other], &old);
    push_all("other", &[&kept_by_other], &other);
    pull("latest", &old_digests.iter().collect::<Vec<_>>());
    pull("other", &[&old_digests[2]]);
    assert!(old_digests.iter().all(|digest| has(&b, "team/app", digest)));
    push_all("latest", &[&shared, &only_new], &new);
    // The old manifest and its own layer, and where it was pushed its config.
    let until_demoted = |edge: &Outrider, contents: f64| {
        until("what was replaced is demoted", || {
            edge.metrics().sum("outrider_demoted_total", &[]) >= contents
        });
    };
    until_demoted(&a, 3.0);
    until_demoted(&b, 2.0);
    pull("latest", &[&new_digests[1]]);
    assert!(old_digests.iter().all(|digest| has(&b, "team/app", digest)), "nothing is purged");

    // That has revived it. What is new goes, and then what is old again.
    push_all("latest", &[&only_old, &shared, &kept_by_other], &old);
    until_demoted(&b, 4.0);
    pull("latest", &[]);
    push_all("latest", &[&shared, &only_new], &new);
    until_demoted(&b, 6.0);
    let labels = ["reason=\"demoted\""];
    let gone = || b.metrics().sum("outrider_cache_evictions_total", &labels);
    // It has eight chunks. What goes after it is another question.
    let mut seed = 0;
    while gone() < 8.0 {
        seed += 1;
        assert!(seed < 100, "more than there is room for: {} went", gone());
        flood(&b, &upstream, seed, 1);
    }
    assert!(!has(&b, "team/app", &old_digests[0]), "the exclusive layer went");
    assert!(has(&b, "team/app", &old_digests[1]), "the shared layer stays");
    assert!(has(&b, "team/app", &old_digests[2]), "the other tag's layer stays");
    // What was pushed is there all the same.
    assert!(has(&a, "team/app", &old_digests[0]));
}

#[test]
fn a_purge_reaches_every_edge_and_takes_nothing_that_was_pushed() {
    let control = Control::start(1, "");
    let upstream = FakeUpstream::start();
    let (mut a, b) = (edge(&control, &upstream), edge(&control, &upstream));
    let blob = upstream.blob(&bytes(1, 700_000));
    let small = upstream.blob(&bytes(2, 2_000));
    for edge in [&a, &b] {
        for digest in [&blob, &small] {
            for _ in 0..3 {
                edge.client().get(&blob_path("lib/app", digest)).expect(200);
            }
            assert!(has(edge, "lib/app", digest));
        }
    }
    let pushed = bytes(3, 300_000);
    let pushed_digest = try_push_blob(&a.client(), "team/app", &pushed).unwrap();
    for digest in [&blob, &small, &pushed_digest] {
        ask(&control, "POST", "/v1/invalidations", &json!({ "digest": digest }));
    }
    until_known(&control, &[&a, &b]);
    for edge in [&a, &b] {
        until("it is purged", || !has(edge, "lib/app", &blob) && !has(edge, "lib/app", &small));
    }
    a.client().get(&blob_path("team/app", &pushed_digest)).expect(200);
    // It does not come back by a restart, and is had again from its upstream.
    a.terminate();
    a.resume();
    assert!(!has(&a, "lib/app", &blob));
    a.client().get(&blob_path("lib/app", &blob)).expect(200);
    a.client().get(&blob_path("team/app", &pushed_digest)).expect(200);
}

#[test]
fn a_flood_of_an_unclassed_customer_leaves_the_guaranteed_share() {
    let control = Control::start(1, "");
    let upstream = FakeUpstream::start();
    let b = small_edge(&control, &upstream);
    let gold = json!({ "class": 1.0, "guaranteed_bytes": 16 * MIB });
    ask(&control, "PUT", "/v1/customers/gold", &gold);
    until_known(&control, &[&b]);
    let own: Vec<String> = (0..12).map(|n| upstream.blob(&bytes(500 + n, MIB))).collect();
    for digest in &own {
        get_as(&b, "gold", "lib/app", digest).expect(200);
    }
    let share = || b.admin().get("/status").json()["customers"][0].clone();
    until("it is charged to its customer", || {
        share()["ram_bytes"].as_u64().is_some_and(|bytes| bytes >= 12 * MIB as u64)
    });
    assert_eq!(share()["customer"], "gold");
    let before = upstream.count("GET", "/lib/app/");
    // Twice over all that there is, and each asked for more often than what gold asked for once.
    for _ in 0..2 {
        flood(&b, &upstream, 7, 90);
    }
    for digest in &own {
        assert!(has(&b, "lib/app", digest), "{digest} is within the guarantee: {}", share());
        get_as(&b, "gold", "lib/app", digest).expect(200);
    }
    assert_eq!(upstream.count("GET", "/lib/app/"), before, "no upstream is asked any more");
    let evicted = b.metrics().sum("outrider_cache_evictions_total", &["reason=\"score\""]);
    assert!(evicted > 100.0, "{evicted}");

    // Without the guarantee it goes like everybody's.
    ask(&control, "PUT", "/v1/customers/gold", &json!({ "class": 1.0 }));
    until_known(&control, &[&b]);
    flood(&b, &upstream, 8, 90);
    let left = own.iter().filter(|digest| has(&b, "lib/app", digest)).count();
    assert!(left < own.len(), "nothing keeps it");
}

#[test]
fn a_digest_that_is_invalidated_while_an_edge_is_away_for_long_is_forgotten_once() {
    let control = Control::start(1, "[history]\nupdates = 10");
    let upstream = FakeUpstream::start();
    let mut a = edge(&control, &upstream);
    let blobs = [1, 2].map(|seed| upstream.blob(&bytes(seed, MIB)));
    let pull = |edge: &Outrider, blob: &str| {
        // Often enough to be worth a place on the SSD.
        for _ in 0..3 {
            edge.client().get(&blob_path("lib/app", blob)).expect(200);
        }
    };
    blobs.iter().for_each(|blob| pull(&a, blob));
    let stored = |edge: &Outrider| {
        edge.admin().get("/status").expect(200).json()["control"]["stored"].as_u64()
    };
    let until_stored = |edge: &Outrider| {
        until_known(&control, &[edge]);
        let known = version(edge);
        until("it is on the disk", || stored(edge) >= Some(known));
    };
    until_stored(&a);
    let purged = |edge: &Outrider| edge.metrics().sum("outrider_purged_total", &[]);
    a.terminate();
    ask(&control, "POST", "/v1/invalidations", &json!({ "digest": blobs[0] }));
    for n in 0..30 {
        control.state(0, "PUT", &format!("k{n}")).body(b"v").send().expect(204);
    }
    a.resume();
    until_stored(&a);
    assert_eq!(a.admin().get("/status").json()["control"]["snapshots"], 1);
    assert!(!has(&a, "lib/app", &blobs[0]) && has(&a, "lib/app", &blobs[1]));
    assert!((purged(&a) - 1.0).abs() < 0.1);
    // A crash brings it not back; what is fetched anew stays, also when it is told everything again.
    a.crash_and_restart();
    until_known(&control, &[&a]);
    assert!(!has(&a, "lib/app", &blobs[0]));
    pull(&a, &blobs[0]);
    a.terminate();
    for n in 0..30 {
        control.state(0, "PUT", &format!("k{n}")).body(b"w").send().expect(204);
    }
    a.resume();
    until_known(&control, &[&a]);
    assert_eq!(a.admin().get("/status").json()["control"]["snapshots"], 1);
    assert!(blobs.iter().all(|blob| has(&a, "lib/app", blob)));
    assert!(purged(&a) < 0.1);
}

#[test]
fn an_invalidated_tag_is_asked_again_at_once_and_a_customer_is_told_that_it_asks_too_fast() {
    let control = Control::start(1, "");
    let upstream = FakeUpstream::start();
    // A tag is believed for an hour, unless its upstream has a time of its own.
    let options =
        Options::with_upstream(&upstream.url()).config("").upstream_keys("tag_ttl = \"1h\"");
    let edge = Outrider::joined(&control, options);
    let (one, two) = (SmallImage::new(1, &[1000]), SmallImage::new(2, &[2000]));
    upstream.image("lib/app", "v1", &one);
    upstream.image("lib/app", "v2", &one);
    let digest = |tag: &str| {
        let answer = get_manifest(&edge.client(), "lib/app", tag).expect(200);
        answer.header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!((digest("v1"), digest("v2")), (one.digest(), one.digest()));
    upstream.image("lib/app", "v1", &two);
    upstream.image("lib/app", "v2", &two);
    let asked = upstream.count("", "/lib/app/manifests/v");
    assert_eq!((digest("v1"), digest("v2")), (one.digest(), one.digest()));
    assert_eq!(upstream.count("", "/lib/app/manifests/v"), asked, "both are fresh");
    ask(&control, "POST", "/v1/invalidations", &json!({ "tag": "lib/app:v1" }));
    until_known(&control, &[&edge]);
    assert_eq!((digest("v1"), digest("v2")), (two.digest(), one.digest()));
    ask(&control, "POST", "/v1/invalidations", &json!({ "repository": "lib/app" }));
    until_known(&control, &[&edge]);
    assert_eq!((digest("v1"), digest("v2")), (two.digest(), two.digest()));

    ask(
        &control,
        "PUT",
        "/v1/customers/slow",
        &json!({ "class": 1.0, "requests_per_second_max": 1 }),
    );
    until_known(&control, &[&edge]);
    let blob = upstream.blob(&bytes(9, 5_000));
    until("it asks too fast", || {
        let answer = get_as(&edge, "slow", "lib/app", &blob);
        if answer.status == 429 {
            assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
            answer.expect_error(429, "TOOMANYREQUESTS");
            return true;
        }
        answer.expect(200);
        false
    });
    // Nobody else is.
    for _ in 0..20 {
        edge.client().get(&blob_path("lib/app", &blob)).expect(200);
    }
}
