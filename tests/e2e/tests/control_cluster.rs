//! Three nodes of the control plane, joined by tokens: any of them answers, any of them may die, and what
//! was acknowledged stays.

#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_e2e::control::Control;
use outrider_e2e::{Outrider, until};
use serde_json::Value;

#[test]
fn fragments_are_written_and_read_through_any_node() {
    let control = Control::start(3, "");
    let put = |place, value: &[u8]| control.state(place, "PUT", "app/config").body(value);
    let first = put(0, b"one").header("If-None-Match", "*").send().expect(204);
    let tag = first.header("etag").unwrap().to_owned();
    for place in 0..3 {
        let read = control.state(place, "GET", "app/config").send().expect(200);
        assert_eq!((read.body.as_slice(), read.header("etag")), (&b"one"[..], Some(&*tag)));
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
        let same = control.state(place, "GET", "app/config").header("If-None-Match", &tag);
        assert!(same.send().expect(304).body.is_empty());
        let taken = put(place, b"x").header("If-None-Match", "*").send().expect(412);
        assert_eq!((taken.header("etag"), &taken.json()["current"]), (Some(&*tag), &version(&tag)));
    }
    let second = put(1, b"two").header("If-Match", &tag).send().expect(204);
    let newer = second.header("etag").unwrap().to_owned();
    assert!(version(&newer).as_u64() > version(&tag).as_u64());
    let stale = put(2, b"three").header("If-Match", &tag).send().expect(412);
    assert_eq!(stale.header("etag"), Some(&*newer));

    // Asked again through another node it is answered as before, and not done again.
    let once = |place, value| put(place, value).header("Idempotency-Key", "k1").send();
    let done = once(0, b"three").expect(204).header("etag").unwrap().to_owned();
    put(1, b"four").send().expect(204);
    assert_eq!(once(2, b"three").expect(204).header("etag"), Some(&*done));
    assert_eq!(control.state(0, "GET", "app/config").send().expect(200).body, b"four");
    once(1, b"other").expect(422);

    control.state(2, "DELETE", "app/config").header("If-Match", &done).send().expect(412);
    control.state(2, "DELETE", "app/config").send().expect(204);
    for place in 0..3 {
        control.state(place, "GET", "app/config").send().expect(404);
    }
}

fn version(tag: &str) -> Value {
    tag.trim_matches('"').parse::<u64>().unwrap().into()
}

#[test]
fn keys_are_listed_and_bad_input_is_refused_by_name() {
    let control = Control::start(1, "");
    for key in ["a/1", "a/2", "a/3", "b/1", "a%2F%C3%BC"] {
        control.state(0, "PUT", key).body(b"v").send().expect(204);
    }
    let list = |query: &str| {
        let answer = control.client(0).get(&format!("/v1/state?{query}")).expect(200).json();
        let keys = answer["fragments"].as_array().unwrap().iter();
        let keys = keys.map(|row| row["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        (keys.join(" "), answer["more"].as_bool().unwrap())
    };
    assert_eq!(list("prefix=a/"), ("a/1 a/2 a/3 a/ü".to_owned(), false));
    assert_eq!(list("prefix=a/&limit=2"), ("a/1 a/2".to_owned(), true));
    assert_eq!(list("prefix=a/&after=a/2"), ("a/3 a/ü".to_owned(), false));

    let put = |key: &str| control.state(0, "PUT", key);
    put("large").body(&vec![7; 1 << 20]).send().expect(204);
    put("large").body(&vec![7; (1 << 20) + 1]).send().expect(413);
    assert_eq!(control.state(0, "GET", "large").send().expect(200).body.len(), 1 << 20);
    for (request, status, wanted) in [
        (put(&"k".repeat(513)), 400, "1 to 512 bytes"),
        (put("a%0Ab"), 400, "control character"),
        (put("a%FF"), 400, "not UTF-8"),
        (put("a").header("If-Match", "7"), 400, "one version in double quotes"),
        (put("a").header("If-Match", "\"1\"").header("If-None-Match", "*"), 400, "not both"),
        (put("a").header("Idempotency-Key", &"x".repeat(256)), 400, "Idempotency-Key"),
        (control.state(0, "POST", "a"), 405, "only GET, HEAD, PUT, DELETE"),
        (control.client(0).request("GET", "/v1/state?x=1"), 400, "none of prefix"),
        (control.client(0).request("POST", "/v1/cluster/token").body(b"{}"), 400, "role"),
        (control.client(0).request("GET", "/v1/nothing"), 404, "nothing here"),
    ] {
        let answer = request.send().expect(status);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn every_node_may_be_killed_and_all_of_them_at_once() {
    let mut control = Control::start(3, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    let mut written = Vec::new();
    for victim in 0..3 {
        for round in 0..20 {
            if round == 7 {
                control.kill9(victim);
            }
            let place = (victim + 1 + round % 2) % 3;
            let key = format!("k{victim}-{round}");
            control.state(place, "PUT", &key).body(key.as_bytes()).send().expect(204);
            written.push(key);
        }
        control.resume(victim);
        control.wait_ready(victim);
    }
    let check = |control: &Control| {
        for (key, place) in written.iter().zip((0..3).cycle()) {
            let read = control.state(place, "GET", key).send().expect(200);
            assert_eq!(read.body, key.as_bytes());
        }
    };
    check(&control);
    for place in 0..3 {
        control.kill9(place);
    }
    for place in 0..3 {
        control.resume(place);
    }
    for place in 0..3 {
        control.wait_ready(place);
    }
    check(&control);
    for place in 0..3 {
        control.terminate(place);
    }
}

#[test]
fn nodes_leave_are_replaced_and_are_shown_and_a_token_works_once() {
    let mut control = Control::start(3, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    control.state(0, "PUT", "k").body(b"v").send().expect(204);
    let status = control.cluster(1, &["status"]).ok();
    assert_eq!(status.matches("voter").count() + status.matches("leader  ").count(), 3, "{status}");

    // A token lets one in.
    let token = control.cluster(0, &["token"]).ok();
    let new = control.add();
    control.command(new, &["cluster", "join", token.trim()]).ok();
    let other = control.add();
    let refused = control.command(other, &["cluster", "join", token.trim()]).refused();
    assert!(refused.contains("was used by another"), "{refused}");
    let again = control.command(new, &["cluster", "join", token.trim()]).refused();
    assert!(again.contains("belongs to a cluster already"), "{again}");
    let edge = control.cluster(0, &["token", "--role", "edge", "--region", "eu"]).ok();
    let refused = control.command(other, &["cluster", "join", edge.trim()]).refused();
    assert!(refused.contains("this token is for an edge"), "{refused}");

    // The new one takes the place of one that is dead.
    control.kill9(2);
    let removed = control.cluster(0, &["replace", "3"]).ok();
    assert!(removed.starts_with("outrider1."), "{removed}");
    control.resume(new);
    control.wait_ready(new);
    assert_eq!(control.state(new, "GET", "k").send().expect(200).body, b"v");
    let nodes = control.client(0).get("/v1/cluster").expect(200).json();
    let numbers: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|n| &n["node"]).collect();
    assert_eq!(numbers, [1, 2, 4]);

    // The dead one comes back and is not let in.
    control.resume(2);
    let client = control.client(2);
    until("the removed node says that it is no voter", || {
        let ready = client.request("GET", "/readyz").try_send();
        ready.is_ok_and(|answer| answer.status == 503)
    });
    control.state(0, "PUT", "k").body(b"w").send().expect(204);

    control.cluster(1, &["leave"]).ok();
    control.terminate(1);
    assert_eq!(control.state(0, "GET", "k").send().expect(200).body, b"w");
    let gone = control.command(1, &["control"]).refused();
    assert!(gone.contains("this node has left its cluster"), "{gone}");
    let mut command = std::process::Command::new(Outrider::program());
    command.args(["cluster", "status", "--admin", "https://127.0.0.1:1"]);
    let refused = outrider_e2e::process::run(command).refused();
    assert!(refused.contains("write http://HOST:PORT"), "{refused}");
}

#[test]
fn a_node_that_is_alone_says_that_it_is_not_ready_and_acknowledges_nothing() {
    let more = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\nrequest_time = \"2s\"";
    let mut control = Control::start(3, more);
    control.state(0, "PUT", "k").body(b"v").send().expect(204);
    control.kill9(1);
    control.kill9(2);
    let write = control.state(0, "PUT", "k").body(b"w").send().expect(503);
    assert_eq!(write.header("retry-after"), Some("1"));
    control.state(0, "GET", "k").send().expect(503);
    control.client(0).get("/healthz").expect(200);
    let metrics = control.client(0).get("/metrics").expect(200).text();
    assert!(metrics.contains("outrider_control_requests_total{route=\"state\",status=\"503\"} 2"));
    control.resume(1);
    control.wait_ready(1);
    // The write without an answer may be done by now; what was acknowledged is not lost.
    let read = control.state(0, "GET", "k").send().expect(200);
    assert!(read.body == b"v" || read.body == b"w");
}
