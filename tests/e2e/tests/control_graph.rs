//! The graph follows what edges are given and asked for, by itself: nobody calls its API for that. Whoever is killed
//! or away in between, nothing that was acknowledged is missing in it, and nothing is counted twice.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::content::{bytes, sha256};
use outrider_e2e::control::Control;
use outrider_e2e::http::Client;
use outrider_e2e::image::{self, SmallImage};
use outrider_e2e::outrider::Options;
use outrider_e2e::process::run;
use outrider_e2e::{FakeUpstream, Outrider, layout, registry, until};
use serde_json::{Value, json};

const QUICK: &str = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\n";

fn edge(control: &Control) -> Outrider {
    Outrider::joined(control, Options::default().config("[control]"))
}

/// The answer of `outrider graph ARGUMENTS --json` at a node, if it has one.
fn graph(control: &Control, place: usize, arguments: &[&str]) -> Option<Value> {
    let mut command = Command::new(Outrider::program());
    command.arg("graph").args(arguments).args(["--json", "--admin"]).arg(control.admin_url(place));
    let output = run(command);
    output.status.success().then(|| serde_json::from_str(&output.ok()).unwrap())
}

/// The names of the rows.
fn names(answer: &Value) -> Vec<&str> {
    answer["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

fn ask(control: &Control, place: usize, query: &str) -> Option<Value> {
    let answer = control.client(place).request("GET", &format!("/v1/graph/{query}")).try_send();
    answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.json())
}

fn accesses(control: &Control, place: usize, layer: &str) -> Option<u64> {
    ask(control, place, &format!("depth?layer={layer}"))?["rows"][0]["accesses"].as_u64()
}

#[test]
fn what_two_versions_share_is_known_at_every_node_once_they_are_pushed() {
    let control = Control::start(3, QUICK);
    let edge = edge(&control);
    let client = edge.client();
    let first = SmallImage::new(1, &[3_000, 4_000]);
    let mut layers = first.layers.clone();
    layers.push(bytes(77, 5_000));
    let second = SmallImage::of(2, layers);
    registry::push(&client, "team/app", "v1", &first);
    registry::push(&client, "team/app", "v2", &second);
    let base = sha256(&first.layers[0]);
    let new = sha256(&second.layers[2]);
    for place in 0..3 {
        let mut added = None;
        until("the node knows what the second version adds", || {
            added = graph(&control, place, &["added", "team/app", "v2"]);
            added.is_some()
        });
        assert_eq!(names(&added.unwrap()), [new.as_str()], "at node {place}");
        let images = ask(&control, place, &format!("images?layer={base}")).unwrap();
        assert_eq!(names(&images), ["team/app"]);
        assert_eq!(images["rows"][0]["versions"], 2);
        let depth = ask(&control, place, &format!("depth?layer={base}")).unwrap();
        assert_eq!(
            (&depth["rows"][0]["dependants"], &depth["rows"][0]["above"]),
            (&json!(2), &json!(2))
        );
    }

    // A real client's image, in two repositories.
    let layout = image::real(2, 1);
    for name in ["team/one", "team/two"] {
        Skopeo::new().push(&layout, &format!("{}/{name}:v1", edge.host()));
    }
    let mut shared = None;
    until("the node knows what both share", || {
        shared = graph(&control, 0, &["shared", "team/one", "team/two"]);
        shared.as_ref().is_some_and(|shared| !names(shared).is_empty())
    });
    assert_eq!(names(&shared.unwrap()), layout::layers(&layout));

    // What is asked for is counted where the edge sends it.
    for _ in 0..5 {
        client.get(&registry::blob_path("team/app", &base)).expect(200);
    }
    until("five accesses are counted at one of the nodes", || {
        let counts = (0..3).filter_map(|place| accesses(&control, place, &base));
        counts.sum::<u64>() == 5
    });
    // And what depends on what the edge was asked for is told to its cache.
    until("the edge is told", || edge.metrics().sum("outrider_hints_applied_total", &[]) > 0.5);
    let status = control.cluster(0, &["status"]).ok();
    assert!(!status.contains("do not get into the graph"), "{status}");
}

#[test]
fn every_tag_of_a_push_is_known_and_so_is_a_layer_that_is_uploaded_by_itself() {
    let control = Control::start(1, QUICK);
    let edge = edge(&control);
    let client = edge.client();
    let (first, second) = (SmallImage::new(51, &[2_000]), SmallImage::new(52, &[3_000]));
    registry::push(&client, "team/app", "first", &first);
    registry::push(&client, "team/app", &second.digest(), &second);
    let path = format!("/v2/team/app/manifests/{}?tag=v2&tag=stable&tag=latest", second.digest());
    let media_type = image::OCI_MANIFEST;
    let push = client.request("PUT", &path).header("Content-Type", media_type);
    push.body(&second.manifest).send().expect(201);
    for tag in ["v2", "stable", "latest"] {
        let query = format!("added?image=team/app&version={tag}&since=first");
        let mut added = None;
        until("the tag is known", || {
            added = ask(&control, 0, &query);
            added.is_some()
        });
        assert_eq!(names(&added.unwrap()), [sha256(&second.layers[0])], "{tag}");
    }

    let alone = bytes(53, 4_000);
    let path = "/layer/upload?image=team/app&version=v3&customer=acme";
    client.request("PUT", path).body(&alone).send().expect(201);
    let query = format!("affected?layer={}", sha256(&alone));
    let mut affected = None;
    until("the layer is in the graph", || {
        affected = ask(&control, 0, &query);
        affected.is_some()
    });
    let affected = affected.unwrap();
    let about = &affected["about"][0];
    assert_eq!((&about["bytes"], &about["versions"]), (&json!(4_000), &json!(0)));
    assert_eq!(names(&affected), ["acme"]);
}

/// Pushes versions that share a base by their digest, until it is told to stop; gives how many were acknowledged.
fn push_until(stop: &AtomicBool, client: &Client, base: &[u8]) -> (Vec<SmallImage>, u64) {
    let (mut acknowledged, mut pulls) = (Vec::new(), 0);
    for number in 100.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let image = SmallImage::of(number, vec![base.to_vec(), bytes(number, 600)]);
        // While its node is away an edge takes manifests by digest, and no tags.
        registry::try_push(client, "team/app", &image.digest(), &image).unwrap();
        client.get(&registry::blob_path("team/app", &sha256(base))).expect(200);
        pulls += 1;
        acknowledged.push(image);
    }
    (acknowledged, pulls)
}

/// Sets it when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many events the graph of a node has taken since it runs.
fn taken(control: &Control, place: usize) -> Option<u64> {
    let answer = control.client(place).request("GET", "/v1/graph").try_send().ok()?;
    answer.json()["events"]["events"].as_u64()
}

#[test]
fn a_node_that_is_killed_loses_nothing_and_counts_nothing_twice() {
    let mut control = Control::start(1, QUICK);
    let edge = edge(&control);
    let client = edge.client();
    let base = bytes(5, 2_000);
    let digest = sha256(&base);
    let first = SmallImage::of(99, vec![base.clone()]);
    registry::push(&client, "team/app", "first", &first);
    // What is not in the graph cannot be counted.
    until("the base is in the graph", || accesses(&control, 0, &digest) == Some(0));
    let stop = AtomicBool::new(false);
    let (images, pulls) = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push_until(&stop, &client, &base));
        let stopping = Stop(&stop);
        for _ in 0..3 {
            until("more events are taken", || taken(&control, 0).is_some_and(|count| count > 20));
            control.kill9(0);
            control.resume(0);
            control.wait_ready(0);
        }
        until("more events are taken", || taken(&control, 0).is_some_and(|count| count > 20));
        drop(stopping);
        pushing.join().unwrap()
    });
    let versions = images.len() as u64 + 1;
    until("all versions are in the graph, and all pulls are counted", || {
        let depth = ask(&control, 0, &format!("depth?layer={digest}"));
        depth.is_some_and(|depth| {
            let row = &depth["rows"][0];
            row["versions"] == versions && row["accesses"].as_u64() >= Some(pulls)
        })
    });
    until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5);
    until("everything was read", || {
        let events = control.client(0).get("/v1/cluster").expect(200).json();
        events["events"]["lag"]["graph"] == 0
    });
    assert_eq!(accesses(&control, 0, &digest), Some(pulls), "of {versions} versions");
    for image in images {
        let layer = sha256(&image.layers[1]);
        let images = ask(&control, 0, &format!("images?layer={layer}")).unwrap();
        assert_eq!(images["rows"][0]["versions"], 1);
    }
}

#[test]
fn a_manifest_that_is_pulled_through_an_edge_is_in_the_graph() {
    let control = Control::start(1, QUICK);
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(9, &[2_000, 3_000]);
    upstream.image("library/app", "3.1", &image);
    let options = Options::with_upstream(&upstream.url()).config("[control]");
    let edge = Outrider::joined(&control, options);
    let client = edge.client();
    registry::assert_served(&client, "library/app", "3.1", &image);
    let layer = sha256(&image.layers[1]);
    let mut affected = None;
    until("the image is in the graph", || {
        affected = ask(&control, 0, &format!("affected?layer={layer}"));
        affected.is_some()
    });
    let affected = affected.unwrap();
    let rows = affected["rows"].as_array().unwrap();
    let version = rows.iter().find(|row| row["kind"] == "version").unwrap();
    assert_eq!((&version["image"], &version["tag"]), (&json!("library/app"), &json!("3.1")));
    // It was told of once, and is asked for without being told of again.
    registry::assert_served(&client, "library/app", "3.1", &image);
    let told = || {
        let events = control.events(0).unwrap();
        events.iter().filter(|event| event["event"] == "mirrored").count()
    };
    until("the second pull is in the queue too", || {
        let events = control.events(0).unwrap();
        events.iter().filter(|event| event["digest"] == layer.as_str()).count() >= 2
    });
    assert_eq!(told(), 1);
    // The first pull of a layer came before the graph knew it, and counts all the same.
    until("both pulls are counted", || {
        let events = control.events(0).unwrap();
        let pulls = events.iter().filter(|event| event["digest"] == layer.as_str()).count();
        accesses(&control, 0, &layer) == Some(pulls as u64)
    });
    until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5);
}

#[test]
fn an_edge_fetches_ahead_what_its_node_says_will_be_asked_for() {
    let control = Control::start(1, QUICK);
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(11, &[200_000, 300_000]);
    upstream.image("library/app", "1", &image);
    let options = Options::with_upstream(&upstream.url()).config("[control]");
    let edge = Outrider::joined(&control, options);
    let content = |digest: String, manifest: bool| json!({ "repository": "library/app", "digest": digest, "manifest": manifest });
    let mut contents: Vec<_> = image.blobs().map(|blob| content(sha256(blob), false)).collect();
    contents.push(content(image.digest(), true));
    contents.push(content(sha256(b"nobody has it"), false));
    let wanted = json!({ "contents": contents }).to_string();
    let tell = || {
        let request = control.client(0).request("POST", "/v1/prefetch").body(wanted.as_bytes());
        request.send().expect(202).json()["told"].clone()
    };
    until("the edge is told", || tell() == json!([2]));
    let count = |outcome: &str| {
        let label = format!("outcome=\"{outcome}\"");
        let metrics = edge.metrics();
        // There is none before the first.
        match metrics.names().contains(&"outrider_prefetches_total") {
            true => metrics.sum("outrider_prefetches_total", &[&label]),
            false => 0.0,
        }
    };
    until("all of it is here, but what nobody has", || {
        count("fetched") > 3.5 && count("failed") > 0.5
    });
    // From here on nothing is asked of the upstream but what its tag is.
    let fetched = || image.blobs().map(|blob| upstream.count("GET", &sha256(blob))).sum::<usize>();
    assert_eq!(fetched(), 3, "each once");
    let client = edge.client();
    for blob in image.blobs() {
        let answer = client.get(&registry::blob_path("library/app", &sha256(blob))).expect(200);
        assert!(answer.cache_status().is_hit() && answer.body == *blob);
    }
    let manifest = registry::get_manifest(&client, "library/app", &image.digest());
    assert!(manifest.expect(200).cache_status().is_hit());
    assert_eq!(fetched(), 3);
    // What is here is not fetched again.
    tell();
    until("it is known to be here", || count("here") > 3.5);
    assert_eq!(fetched(), 3);
    for (body, wanted) in [
        ("{}", "contents"),
        (r#"{"contents":[{"repository":"A","digest":"x"}]}"#, "digest"),
        (r#"{"contents":[],"colour":1}"#, "colour"),
    ] {
        let refused = control.client(0).request("POST", "/v1/prefetch").body(body.as_bytes());
        assert!(refused.send().expect(400).text().contains(wanted));
    }
}

#[test]
fn a_graph_that_is_away_stops_nobody_and_has_everything_once_it_is_back() {
    let away = format!(
        "{QUICK}[graph]\nstore = \"neo4j\"\nurl = \"bolt://127.0.0.1:{}\"\n",
        outrider_e2e::ports::free()
    );
    let mut control = Control::start(1, &away);
    let edge = edge(&control);
    let client = edge.client();
    let images: Vec<_> = (0..5).map(|seed| SmallImage::new(20 + seed, &[1_000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry::push(&client, "team/app", &format!("v{number}"), image);
        registry::assert_served(&client, "team/app", &format!("v{number}"), image);
    }
    until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5);
    let mut shown = String::new();
    until("the status says what is wrong", || {
        shown = control.cluster(0, &["status"]).ok();
        shown.contains("events do not get into the graph")
    });
    let ready = control.client(0).get("/readyz").expect(200).json();
    let remarks = ready["remarks"].as_array().unwrap();
    assert!(remarks.iter().any(|remark| remark.as_str().unwrap().contains("graph")), "{ready}");
    let metrics = control.client(0).get("/metrics").expect(200).text();
    assert!(metrics.contains("outrider_control_graph_events_failing 1"), "{metrics}");
    control.state(0, "PUT", "key").body(b"value").send().expect(204);

    control.terminate(0);
    control.reconfigure(0, QUICK);
    control.resume(0);
    control.wait_ready(0);
    for image in &images {
        let query = format!("images?layer={}", sha256(&image.layers[0]));
        until("what was pushed meanwhile is in the graph", || ask(&control, 0, &query).is_some());
    }
    let ready = control.client(0).get("/readyz").expect(200).json();
    assert_eq!(ready["remarks"], json!([]), "{ready}");
}
