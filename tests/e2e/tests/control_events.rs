//! Events: what happens at an edge is in the queue, whoever is killed in between: nothing that was acknowledged is
//! lost, and nothing is counted twice.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use outrider_e2e::brokers::kafka::Kafka;
use outrider_e2e::brokers::rabbitmq::Rabbitmq;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::content::bytes;
use outrider_e2e::control::Control;
use outrider_e2e::http::Client;
use outrider_e2e::outrider::Options;
use outrider_e2e::{Outrider, image, layout, registry, until};
use serde_json::Value;

const QUICK: &str = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\n";

/// An edge that joined and runs.
fn edge(control: &Control) -> Outrider {
    let mut edge = Outrider::stopped(Options::default().config("[control]"));
    let token = control.cluster(0, &["token", "--role", "edge", "--region", "local"]).ok();
    edge.join(&token).ok();
    edge.resume();
    edge
}

/// Each event once, as a consumer takes them: what comes again is known by its number.
fn counted(events: &[Value]) -> Vec<&Value> {
    let mut marks = BTreeMap::new();
    let fresh = events.iter().filter(|event| {
        let key = (event["edge"].as_u64().unwrap(), event["lane"].as_str().unwrap());
        let number = (event["epoch"].as_u64().unwrap(), event["sequence"].as_u64().unwrap());
        let mark = marks.entry(key).or_insert((0, 0));
        let is_new = number > *mark;
        *mark = number.max(*mark);
        is_new
    });
    fresh.collect()
}

fn digests<'a>(events: &[&'a Value], lane: &str) -> Vec<&'a str> {
    let of_lane = events.iter().filter(|event| event["lane"] == lane);
    of_lane.map(|event| event["digest"].as_str().unwrap()).collect()
}

#[test]
fn what_an_edge_is_given_and_asked_for_is_in_the_queue_of_its_node() {
    let control = Control::start(1, QUICK);
    let edge = edge(&control);
    let layout = image::real(2, 1);
    let (skopeo, name) = (Skopeo::new(), format!("{}/team/app:v1", edge.host()));
    skopeo.push(&layout, &name);
    let pulled = skopeo.pull(&name);
    layout::assert_same(&layout, &pulled);
    let contents = layout::contents(&layout);

    let mut events = Vec::new();
    until("everything that was pushed and pulled is in the queue", || {
        events = control.events(0).unwrap();
        let all: Vec<_> = events.iter().collect();
        let (pushed, asked) = (digests(&all, "uploads"), digests(&all, "accesses"));
        let known = |digests: &[&str]| contents.keys().all(|d| digests.contains(&d.as_str()));
        known(&pushed) && known(&asked)
    });
    for event in &events {
        assert_eq!(
            (&event["repository"], &event["edge"]),
            (&"team/app".into(), &2.into()),
            "{event}"
        );
        assert_eq!((&event["customer"], &event["region"]), (&"anonymous".into(), &"local".into()));
        assert!(event["unix_ms"].as_u64().unwrap() > 1_700_000_000_000, "{event}");
    }
    let digest = layout::digest(&layout);
    let manifest = events.iter().find(|event| event["event"] == "manifest").unwrap();
    assert_eq!((&manifest["digest"], &manifest["version"]), (&digest.into(), &"v1".into()));
    for (digest, content) in &contents {
        let whole = events.iter().any(|event| {
            event["event"] == "access"
                && event["digest"] == **digest
                && event["status"] == 200
                && event["bytes"] == content.len()
                && ["ram", "ssd"].contains(&event["tier"].as_str().unwrap())
        });
        assert!(whole, "a whole access to {digest} of {} bytes: {events:?}", content.len());
    }
    until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5);
    let shown = control.cluster(0, &["status"]).ok();
    assert!(shown.contains("into the embedded queue, 0 wait"), "{shown}");
    let metrics = control.client(0).get("/metrics").expect(200).text();
    let line = format!("outrider_control_events_appended{{lane=\"uploads\"}} {}", contents.len());
    assert!(metrics.contains(&line), "{line} in {metrics}");

    // A page ends where it is told to, and the next one begins there.
    let first = control.client(0).get("/v1/events?limit=1&consumer=test").expect(200);
    let position = first.header("outrider-position").unwrap();
    let rest = control.client(0).get(&format!("/v1/events?after={position}")).expect(200);
    let lines = first.text().lines().count() + rest.text().lines().count();
    assert!(lines >= events.len() && first.text().lines().count() >= 1);
    control.client(0).get("/v1/events?after=xyz").expect(400);
}

/// Pushes blobs until it is told to stop; gives the digests of those that were acknowledged, and how many were not.
fn push_until(stop: &AtomicBool, client: &Client) -> (BTreeSet<String>, usize) {
    let (mut acknowledged, mut failed) = (BTreeSet::new(), 0);
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        match registry::try_push_blob(client, "team/app", &bytes(number, 500)) {
            Ok(digest) => {
                acknowledged.insert(digest);
            }
            Err(_) => {
                failed += 1;
                // The edge is away. It is back when it is.
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
    (acknowledged, failed)
}

/// Sets it when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until so many more uploads than now are in the queue, so that each kill has something to interrupt.
fn more_events(control: &Control, place: usize) {
    let count = || {
        let answer = control.client(place).request("GET", "/v1/cluster").try_send().ok()?;
        answer.json()["events"]["events"]["uploads"].as_u64()
    };
    let mut before = None;
    until("the node answers", || {
        before = count();
        before.is_some()
    });
    until("more events are in the queue", || count() > before.map(|before| before + 20));
}

/// Pushes to an edge while it, its node, and the broker if there is one, are killed in turn.
fn storm(control: &mut Control, rounds: usize, mut kill_broker: impl FnMut()) -> Vec<Value> {
    let mut edge = edge(control);
    let stop = AtomicBool::new(false);
    let client = edge.client();
    let (acknowledged, failed) = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push_until(&stop, &client));
        // Also when a wait was in vain, so that the test ends.
        let stopping = Stop(&stop);
        for _ in 0..rounds {
            more_events(control, 0);
            edge.crash_and_restart();
            more_events(control, 0);
            control.kill9(0);
            control.resume(0);
            control.wait_ready(0);
            more_events(control, 0);
            kill_broker();
        }
        more_events(control, 0);
        drop(stopping);
        pushing.join().unwrap()
    });
    assert!(acknowledged.len() > 100, "{} pushes", acknowledged.len());
    until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5);
    let mut events = None;
    until("the queue answers", || {
        events = control.events(0);
        events.is_some()
    });
    let events = events.unwrap();
    let once = counted(&events);
    let told = digests(&once, "uploads");
    let set: BTreeSet<_> = told.iter().map(|digest| (*digest).to_owned()).collect();
    let lost: Vec<_> = acknowledged.difference(&set).collect();
    assert!(lost.is_empty(), "{} of {} pushes are lost", lost.len(), acknowledged.len());
    assert_eq!(told.len(), set.len(), "nothing is counted twice");
    // A push that was cut off may have been done.
    let more = set.difference(&acknowledged).count();
    assert!(more <= failed, "{more} events of {failed} pushes that failed");
    events
}

#[test]
fn no_push_is_lost_or_told_twice_when_edge_and_node_are_killed() {
    let mut control = Control::start(1, QUICK);
    let events = storm(&mut control, 3, || ());
    // This queue knows what it has.
    assert_eq!(counted(&events).len(), events.len());
}

#[test]
fn kafka_has_every_push_whoever_is_killed() {
    let mut kafka = Kafka::start();
    let config = format!(
        "{QUICK}[events]\nqueue = \"kafka\"\n[events.kafka]\nbrokers = [\"{}\"]\n",
        kafka.address()
    );
    let mut control = Control::start(1, &config);
    storm(&mut control, 1, || {
        kafka.kill9();
        kafka.resume();
    });
}

#[test]
fn rabbitmq_has_every_push_whoever_is_killed() {
    let mut rabbitmq = Rabbitmq::start();
    let config = format!(
        "{QUICK}[events]\nqueue = \"rabbitmq\"\n[events.rabbitmq]\nurl = \"{}\"\n",
        rabbitmq.url()
    );
    let mut control = Control::start(1, &config);
    storm(&mut control, 1, || {
        rabbitmq.kill9();
        rabbitmq.resume();
    });
}

#[test]
fn a_queue_that_is_away_stops_neither_the_node_nor_the_edge() {
    let port = outrider_e2e::ports::free();
    let config = format!(
        "{QUICK}[events]\nqueue = \"kafka\"\n[events.kafka]\nbrokers = [\"127.0.0.1:{port}\"]\n"
    );
    let control = Control::start(1, &config);
    let edge = edge(&control);
    let client = edge.client();
    let digest = registry::try_push_blob(&client, "team/app", &bytes(1, 500)).unwrap();
    client.get(&registry::blob_path("team/app", &digest)).expect(200);
    let mut shown = String::new();
    until("the status says what is wrong", || {
        shown = control.cluster(0, &["status"]).ok();
        shown.contains("the kafka queue fails")
    });
    assert!(shown.contains(&format!("127.0.0.1:{port}")), "{shown}");
    control.state(0, "PUT", "a").body(b"b").send().expect(204);
    let metrics = control.client(0).get("/metrics").expect(200).text();
    assert!(metrics.contains("outrider_control_events_failing 1"), "{metrics}");
    control.client(0).get("/v1/events").expect(503);
    assert!(edge.metrics().sum("outrider_outbox_pending", &[]) > 0.5);
    client.get(&registry::blob_path("team/app", &digest)).expect(200);
}

#[test]
fn every_node_has_all_uploads_whichever_of_them_dies() {
    let mut control = Control::start(3, QUICK);
    let edge = edge(&control);
    let client = edge.client();
    let push = |numbers: std::ops::Range<u64>| {
        let push = |n| registry::try_push_blob(&client, "team/app", &bytes(n, 500)).unwrap();
        numbers.map(push).collect::<BTreeSet<_>>()
    };
    let drained = || {
        until("the outbox is empty", || edge.metrics().sum("outrider_outbox_pending", &[]) < 0.5)
    };
    let mut pushed = push(0..60);
    drained();
    // The node that took them dies at once: the others have what it acknowledged.
    let status = edge.admin().get("/status").expect(200).json();
    let followed = status["control"]["node"].as_str().unwrap().to_owned();
    let place = (0..3).find(|place| {
        let address = control.address(*place).to_string();
        followed.starts_with(&format!("{address}:"))
    });
    let place = place.expect("it follows one of them");
    control.kill9(place);
    let has = |control: &Control, place: usize, pushed: &BTreeSet<String>| {
        let mut found = Vec::new();
        until("a node has all uploads", || {
            let Some(events) = control.events(place) else { return false };
            let all: Vec<_> = events.iter().collect();
            found = digests(&all, "uploads").into_iter().map(str::to_owned).collect();
            found.len() >= pushed.len()
        });
        let set: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!((found.len(), &set), (pushed.len(), pushed), "each once at node {place}");
    };
    for other in (0..3).filter(|other| *other != place) {
        has(&control, other, &pushed);
    }
    // It goes on with another node, and the one that was away catches up.
    pushed.extend(push(60..100));
    drained();
    control.resume(place);
    control.wait_ready(place);
    (0..3).for_each(|place| has(&control, place, &pushed));
}
