//! Edges that follow the control plane: joined by tokens, whichever node dies, whichever edge dies, and with no
//! node at all.

#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_e2e::control::Control;
use outrider_e2e::outrider::Options;
use outrider_e2e::{Outrider, until};
use serde_json::Value;

const QUICK: &str = "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"";
const FRAGMENTS: &str = "[control]\nfragments = [\"app/\"]";

/// An edge that joined and runs.
fn edge(control: &Control) -> Outrider {
    Outrider::joined(control, Options::default().config(FRAGMENTS))
}

fn put(control: &Control, place: usize, key: &str) -> u64 {
    let put = control.state(place, "PUT", key).body(key.as_bytes()).send().expect(204);
    put.header("etag").unwrap().trim_matches('"').parse().unwrap()
}

fn follows(edge: &Outrider) -> Value {
    edge.admin().get("/status").expect(200).json()["control"].clone()
}

/// Waits until the edge knows the state at this version; gives how it stands then.
fn until_version(edge: &Outrider, version: u64) -> Value {
    let mut control = Value::Null;
    until(&format!("the edge is at version {version}"), || {
        control = follows(edge);
        control["connected"] == true && control["version"].as_u64() >= Some(version)
    });
    control
}

fn remarks(edge: &Outrider) -> Vec<Value> {
    let ready = edge.admin().get("/readyz").expect(200).json();
    ready["remarks"].as_array().unwrap().clone()
}

#[test]
fn edges_follow_whichever_node_or_edge_dies_and_lose_nothing() {
    let mut control = Control::start(3, QUICK);
    for n in 0..50 {
        put(&control, n % 3, &format!("app/{n}"));
    }
    let (mut a, b) = (edge(&control), edge(&control));
    let version = put(&control, 0, "other");
    for edge in [&a, &b] {
        let status = until_version(edge, version);
        assert_eq!(status["fragments"], 50, "{status}");
        assert_eq!(status["snapshots"], 1, "{status}");
        assert_eq!((&status["lag"], &status["store_failure"]), (&Value::from(0), &Value::Null));
        assert!(remarks(edge).is_empty());
    }

    // The nodes know how far both are.
    let members = || control.client(1).get("/v1/cluster").expect(200).json()["members"].clone();
    let mut edges = Vec::new();
    until("both edges have said that they have everything", || {
        edges =
            members().as_array().unwrap().iter().filter(|m| m["role"] == "edge").cloned().collect();
        edges.iter().filter(|edge| edge["lag"] == 0).count() == 2
    });
    assert_eq!((&edges[0]["member"], &edges[1]["member"]), (&Value::from(4), &Value::from(5)));
    let shown = control.cluster(2, &["status"]).ok();
    assert_eq!(shown.matches("lag 0").count(), 2, "{shown}");
    let node = usize::try_from(edges[0]["follows"].as_u64().unwrap()).unwrap() - 1;
    let metrics = control.client(node).get("/metrics").expect(200).text();
    assert!(metrics.contains("outrider_control_edge_lag_updates{edge=\"4\"} 0"), "{metrics}");

    // The node that one follows dies: it goes on with another one, from where it was.
    control.kill9(node);
    let other = (node + 1) % 3;
    let version = put(&control, other, "app/new");
    let status = until_version(&a, version);
    assert_eq!((&status["fragments"], &status["snapshots"]), (&51.into(), &1.into()), "{status}");
    control.resume(node);
    control.wait_ready(node);

    // What it keeps of the state it answers itself; the rest is not here, and nothing is written here.
    let admin = a.admin();
    let found = admin.get("/v1/state/app/new").expect(200);
    assert_eq!(
        (found.text().as_str(), found.header("outrider-connected")),
        ("app/new", Some("true"))
    );
    admin.get("/v1/state/app/none").expect(404);
    let elsewhere = admin.get("/v1/state/other").expect(404).text();
    assert!(elsewhere.contains("control.fragments"), "{elsewhere}");
    admin.get("/v1/state?prefix=").expect(404);
    let refused = admin.request("PUT", "/v1/state/app/new").body(b"x").send().expect(405);
    assert!(refused.text().contains("write at the admin address of a node"), "{}", refused.text());

    // An edge dies, and misses something: it begins with what is on its disk, and is told the rest.
    until("it is all on the disk", || follows(&a)["stored"].as_u64() >= Some(version));
    a.kill9();
    control.state(other, "DELETE", "app/0").send().expect(204);
    control.state(other, "DELETE", "app/1").send().expect(204);
    let version = put(&control, other, "app/new");
    a.resume();
    let status = until_version(&a, version);
    assert_eq!((&status["fragments"], &status["snapshots"]), (&49.into(), &0.into()), "{status}");
    let metrics = a.metrics();
    assert!((metrics.sum("outrider_follow_connected", &[]) - 1.0).abs() < 0.1);
    assert!((metrics.sum("outrider_follow_updates_total", &[]) - 3.0).abs() < 0.1);

    // One that is taken out is not told anything any more, and serves all the same.
    control.cluster(0, &["remove", "5"]).ok();
    until("the edge is told so", || !remarks(&b).is_empty());
    until("and it is told so again and again", || {
        remarks(&b).iter().any(|remark| remark.as_str().unwrap().contains("is let in"))
    });
    let before = follows(&b)["version"].clone();
    let version = put(&control, 0, "app/secret");
    until_version(&a, version);
    assert_eq!(follows(&b)["version"], before);
}

/// The nodes that an edge would try at its next start, by what it keeps.
fn kept_nodes(edge: &Outrider) -> Vec<Value> {
    let file = std::fs::read(edge.data_dir().join("control/edge.json")).unwrap();
    serde_json::from_slice::<Value>(&file).unwrap()["nodes"].as_array().unwrap().clone()
}

#[test]
fn an_edge_finds_nodes_that_came_later_when_those_of_before_are_gone() {
    let mut control = Control::start(1, QUICK);
    let mut a = edge(&control);
    assert_eq!(kept_nodes(&a).len(), 1);
    for _ in 0..2 {
        let place = control.add();
        control.enter(place);
    }
    until("the edge keeps all three", || kept_nodes(&a).len() == 3);
    let first = kept_nodes(&a)[0].clone();
    a.kill9();
    control.kill9(0);
    control.cluster(1, &["remove", "1"]).ok();
    let version = put(&control, 2, "app/after");
    a.resume();
    let status = until_version(&a, version);
    assert_eq!((&status["fragments"], &status["snapshots"]), (&1.into(), &0.into()), "{status}");
    until("the first one is tried no more", || {
        let nodes = kept_nodes(&a);
        nodes.len() == 2 && !nodes.contains(&first)
    });

    // Also without what it has of the state, and when the next one leaves in order.
    control.cluster(1, &["leave"]).ok();
    until("only the last one is left", || kept_nodes(&a).len() == 1);
    a.kill9();
    std::fs::remove_file(a.data_dir().join("control/replica.redb")).unwrap();
    let version = put(&control, 2, "app/last");
    a.resume();
    assert_eq!(until_version(&a, version)["fragments"], 2);
}

#[test]
fn with_no_node_at_all_edges_serve_and_remember() {
    let mut control = Control::start(3, QUICK);
    let mut a = edge(&control);
    for n in 0..20 {
        put(&control, n % 3, &format!("app/{n}"));
    }
    let version = put(&control, 0, "app/last");
    until_version(&a, version);
    until("it is all on the disk", || follows(&a)["stored"].as_u64() >= Some(version));
    for place in 0..3 {
        control.kill9(place);
    }
    until("the edge notices", || !remarks(&a).is_empty());
    a.client().get("/v2/").expect(200);
    // Also when it starts there is nobody.
    a.crash_and_restart();
    a.client().get("/v2/").expect(200);
    let status = follows(&a);
    assert_eq!(
        (&status["fragments"], &status["connected"]),
        (&21.into(), &false.into()),
        "{status}"
    );
    assert!(status["version"].as_u64().unwrap() >= version);
    assert!(remarks(&a)[0].as_str().unwrap().contains("the control plane is not followed"));
    // What it knows it answers, and says that it may be old.
    let found = a.admin().get("/v1/state/app/last").expect(200);
    assert_eq!(
        (found.text().as_str(), found.header("outrider-connected")),
        ("app/last", Some("false"))
    );
    let tag = found.header("etag").unwrap().to_owned();
    assert_eq!(tag, format!("\"{version}\""));
    a.admin().request("GET", "/v1/state/app/last").header("if-none-match", &tag).send().expect(304);
    let listed = a.admin().get("/v1/state?prefix=app/1&limit=3").expect(200);
    assert!(listed.header("outrider-applied-version").unwrap().parse::<u64>().unwrap() >= version);
    let listed = listed.json();
    let rows = listed["fragments"].as_array().unwrap();
    let keys: Vec<&str> = rows.iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert_eq!((keys, &listed["more"]), (vec!["app/1", "app/10", "app/11"], &true.into()));

    for place in 0..3 {
        control.resume(place);
    }
    for place in 0..3 {
        control.wait_ready(place);
    }
    let version = put(&control, 1, "app/after");
    let status = until_version(&a, version);
    assert_eq!((&status["fragments"], &status["snapshots"]), (&22.into(), &0.into()), "{status}");
    assert!(remarks(&a).is_empty());
    a.restart();
    assert_eq!(until_version(&a, version)["fragments"], 22);
}

#[test]
fn who_may_not_join_is_told_why() {
    let control = Control::start(1, "");
    let edge = Outrider::stopped(Options::default().config(FRAGMENTS));
    let refused = outrider_e2e::process::run(edge.command()).refused();
    assert!(refused.contains("belongs to no cluster: run `outrider cluster join"), "{refused}");
    let node = control.cluster(0, &["token"]).ok();
    let refused = edge.join(&node).refused();
    assert!(refused.contains("--role edge"), "{refused}");
    let token = control.cluster(0, &["token", "--role", "edge", "--region", "mars"]).ok();
    let joined = edge.join(&token).ok();
    assert!(joined.contains("region mars, and site.region is local"), "{joined}");
    assert!(edge.join(&token).refused().contains("belongs to a cluster already"));
    let other = Outrider::stopped(Options::default().config(FRAGMENTS));
    assert!(other.join(&token).refused().contains("was used by another"));
    let wrong = "[control]\nnodes = [\"c1\"]";
    let wrong = Outrider::stopped(Options::default().config(wrong));
    let refused = outrider_e2e::process::run(wrong.command()).refused();
    assert!(refused.contains("control.nodes = \"c1\": it is not a host and a port"), "{refused}");
}
