//! Clocks that are set, by years and back, of a node and of an edge while they run: both go on, nothing is lost, and
//! `outrider status` says it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use outrider_e2e::clock::Clock;
use outrider_e2e::control::Control;
use outrider_e2e::registry::*;
use outrider_e2e::*;
use serde_json::Value;

const YEAR: i64 = 365 * 86_400;
/// To what clocks are set, one after the other, and what that is.
const SET: [(i64, &str); 3] = [(10 * YEAR, "ahead"), (-3 * YEAR, "back"), (0, "ahead")];
/// Certificates are looked at every five seconds.
const QUICK: &str = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\n\
                     [certificates]\nlifetime = \"2m\"";

/// What `outrider status` says is wrong.
fn problems(admin: &str) -> Vec<String> {
    let output = Outrider::run(&["status", "--json", "--admin", admin]);
    let status: Value = serde_json::from_str(&output.out).unwrap();
    let problems = status["problems"].as_array().unwrap().iter();
    let problems: Vec<String> = problems.map(|text| text.as_str().unwrap().to_owned()).collect();
    assert_eq!(output.status.success(), problems.is_empty());
    problems
}

fn says(problems: &[String], way: &str) -> bool {
    let wanted = format!("the clock of this machine was set {way} by");
    problems.iter().any(|why| why.starts_with(&wanted))
}

fn put(control: &Control, place: usize, n: usize) {
    let key = format!("k/{n}");
    let write = || {
        let put = control.state(place, "PUT", &key).header("Idempotency-Key", &key);
        put.body(key.as_bytes()).send()
    };
    let version = write().expect(204).header("etag").unwrap().to_owned();
    // Whoever asks again, and by whichever clock: it is written once.
    assert_eq!(write().expect(204).header("etag"), Some(version.as_str()));
}

fn all_are_there(control: &Control, place: usize, count: usize) {
    for n in 0..count {
        let read = control.state(place, "GET", &format!("k/{n}")).send().expect(200);
        assert_eq!(read.text(), format!("k/{n}"));
    }
}

#[test]
fn a_node_whose_clock_is_wrong_takes_nothing_from_the_others_and_is_back_when_it_is_right() {
    let mut control = Control::start(0, QUICK);
    let clock = Arc::new(Clock::new());
    for place in 0..3 {
        control.add();
        if place == 0 {
            control.set_clock(0, clock.clone());
        }
        control.enter(place);
    }
    let first = control.state(1, "PUT", "first").header("Idempotency-Key", "once").body(b"1");
    let first = first.send().expect(204).header("etag").unwrap().to_owned();
    let mut written = 0;
    for (seconds, way) in SET {
        clock.set(seconds);
        until("the node sees that", || says(&problems(&control.admin_url(0)), way));
        for place in [1, 2, 1, 2] {
            put(&control, place, written);
            written += 1;
        }
        all_are_there(&control, 1, written);
        // What was written before is not written again: its key is known still.
        let again = control.state(2, "PUT", "first").header("Idempotency-Key", "once").body(b"1");
        assert_eq!(again.send().expect(204).header("etag"), Some(first.as_str()));
    }
    control.wait_ready(0);
    all_are_there(&control, 0, written);

    // It is started again with a wrong clock, as where there is no battery: the others do without it.
    control.kill9(0);
    clock.set(10 * YEAR);
    control.resume(0);
    until("it sees no leader", || {
        let status = control.client(0).request("GET", "/readyz").try_send();
        status.is_ok_and(|answer| answer.status == 503)
    });
    until("a majority is there", || control.leader(1).is_some_and(|leader| leader != 0));
    for place in [1, 2] {
        put(&control, place, written);
        written += 1;
    }
    assert!(!problems(&control.admin_url(1)).is_empty());
    // Then the time comes from the network: its certificate is made anew, since it does not hold yet.
    clock.set(0);
    control.wait_ready(0);
    put(&control, 0, written);
    all_are_there(&control, 0, written + 1);
}

#[test]
fn an_edge_whose_clock_is_set_serves_and_pushes_and_its_events_arrive() {
    let control = Control::start(1, "");
    let mut upstream = FakeUpstream::start();
    let clock = Arc::new(Clock::new());
    let options = Options { clock: Some(clock.clone()), ..Options::with_upstream(&upstream.url()) };
    let edge = Outrider::joined(&control, options.config(""));
    let admin = format!("http://127.0.0.1:{}", edge.admin_port());
    let image = SmallImage::new(1, &[50_000, 3_000]);
    upstream.image("lib/app", "v1", &image);
    let pull = || assert_served(&edge.client(), "lib/app", "v1", &image);
    pull();
    let blobs = upstream.count("GET", "/blobs/");
    let mut pushed = Vec::new();
    for (n, (seconds, way)) in SET.into_iter().enumerate() {
        clock.set(seconds);
        until("the edge sees that", || says(&problems(&admin), way));
        let asked = upstream.count("", "/manifests/v1");
        pull();
        if n == 1 {
            let again = upstream.count("", "/manifests/v1");
            assert!(again > asked, "what was said in the future is not believed for years");
        }
        let own = SmallImage::new(100 + n as u64, &[20_000]);
        push(&edge.client(), "team/app", &format!("v{n}"), &own);
        assert_served(&edge.client(), "team/app", &format!("v{n}"), &own);
        pushed.push(own.digest());
    }
    assert_eq!(upstream.count("GET", "/blobs/"), blobs, "what is here is here");

    // With the clock behind what the upstream said last, and no upstream: what is known is answered.
    pull();
    clock.set(-YEAR);
    until("the edge sees that", || says(&problems(&admin), "back"));
    upstream.stop();
    pull();

    // All of it got into the queue, once each.
    let times = |digest: &str| {
        let events = control.events(0).unwrap_or_default();
        events
            .iter()
            .filter(|event| event["event"] == "manifest" && event["digest"] == *digest)
            .count()
    };
    until("all pushes are in the queue", || pushed.iter().all(|digest| times(digest) == 1));
}
