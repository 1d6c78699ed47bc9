//! A fleet as operators have it: three nodes, two edges and a client, each on a machine of its own, joined by
//! tokens; cables are pulled.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Instant;

use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::netns::{Machine, Switch};
use outrider_e2e::*;
use serde_json::Value;

const NODE_ADMIN: &str = "http://127.0.0.1:9190";
const EDGE_ADMIN: &str = "http://127.0.0.1:9180";
const ACCEPT: &str = "Accept: application/vnd.oci.image.manifest.v1+json";
const REPOSITORY: &str = "team/app";

/// Writes its configuration; gives the name of the file.
fn configure(machine: &Machine, toml: &str) -> String {
    let file = machine.folder().join("outrider.toml");
    let data = machine.folder().join("data");
    std::fs::write(&file, format!("[data]\ndir = {data:?}\n{toml}")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A token as the first node prints it.
fn token(node: &Machine, arguments: &[&str]) -> String {
    let all = [&["cluster", "token"], arguments].concat();
    node.outrider(&all).ok().trim().to_owned()
}

fn nodes(switch: &Switch) -> Vec<Machine> {
    let mut nodes: Vec<Machine> = Vec::new();
    for number in 1..=3 {
        let mut node = switch.machine(number);
        let at = format!("{}:9191", node.address());
        let toml = format!("[node]\nname = \"c{number}\"\n[listen]\npeers = {at:?}\n");
        let file = configure(&node, &toml);
        match nodes.first() {
            None => node.outrider(&["cluster", "init", "--config", &file]).ok(),
            Some(first) => {
                let token = token(first, &[]);
                node.outrider(&["cluster", "join", "--config", &file, &token]).ok()
            }
        };
        node.start(&["control", "--config", &file]);
        node.until_ok(&format!("{NODE_ADMIN}/readyz"));
        nodes.push(node);
    }
    nodes
}

fn edge(switch: &Switch, number: u8, node: &Machine) -> Machine {
    let mut edge = switch.machine(number);
    let file = configure(
        &edge,
        &format!(
            "[listen]\nhttp = \"127.0.0.1:8080\"\nhttps = \"{}:8443\"\n[shards]\ncount = 2\npin = false\n\
             [cache]\nram = \"96MiB\"\nssd = \"512MiB\"\n",
            edge.address()
        ),
    );
    let token = token(node, &["--role", "edge", "--region", "local"]);
    edge.outrider(&["cluster", "join", "--role", "edge", "--config", &file, &token]).ok();
    edge.start(&["edge", "--config", &file]);
    edge.until_ok(&format!("{EDGE_ADMIN}/readyz"));
    edge
}

fn push(edge: &Machine, image: &Path, tag: &str) {
    Skopeo::new().on(edge).push(image, &format!("127.0.0.1:8080/{REPOSITORY}:{tag}"));
}

/// Whether an edge answers this image for the tag.
fn answers(edge: &Machine, tag: &str, image: &Path) -> bool {
    let url = format!("http://127.0.0.1:8080/v2/{REPOSITORY}/manifests/{tag}");
    let (status, head) = edge.curl(&["--head", &url]);
    status == 200 && head.contains(&layout::digest(image))
}

fn until_answers(edge: &Machine, tag: &str, image: &Path) {
    let what = format!("{} has the new {tag}", edge.address());
    until(&what, || answers(edge, tag, image));
}

/// Pulls over HTTPS from another machine.
fn pull(client: &Machine, edge: &Machine, tag: &str) -> layout::Pulled {
    let ca = edge.folder().join("data/tls/ca.pem");
    let name = format!("{}:8443/{REPOSITORY}:{tag}", edge.address());
    Skopeo::trusting(&ca).on(client).pull(&name)
}

/// Which of the nodes leads, as this one sees it.
/// The rows that a node answers, if it does.
fn graph(node: &Machine, query: &[&str]) -> Option<Vec<Value>> {
    let answer = node.outrider(&[&["graph"], query, &["--json"]].concat());
    let answer = answer.status.success().then(|| serde_json::from_str::<Value>(&answer.out))?;
    answer.unwrap()["rows"].as_array().cloned()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["name"].as_str().unwrap()).collect()
}

fn manifest_url(tag: &str) -> String {
    format!("http://127.0.0.1:8080/v2/{REPOSITORY}/manifests/{tag}")
}

/// Puts a manifest whose blobs are there; the status.
fn put(edge: &Machine, tag: &str, manifest: &str) -> u16 {
    let file = edge.folder().join("manifest.json");
    std::fs::write(&file, manifest).unwrap();
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let body = format!("@{}", file.display());
    let put = ["--request", "PUT", "--header", kind, "--data-binary", &body, &manifest_url(tag)];
    edge.curl(&put).0
}

fn leader(nodes: &[Machine], asked: usize) -> Option<usize> {
    let (status, body) = nodes[asked].curl(&[&format!("{NODE_ADMIN}/v1/cluster")]);
    let cluster: Value = serde_json::from_str(&body).ok().filter(|_| status == 200)?;
    let leads = cluster["nodes"].as_array()?.iter().find(|node| node["leader"] == true)?;
    leads["name"].as_str()?.strip_prefix('c')?.parse::<usize>().ok().map(|number| number - 1)
}

#[test]
fn a_new_version_reaches_every_edge_also_when_cables_are_pulled() {
    let switch = Switch::default();
    let mut nodes = nodes(&switch);
    let (a, b) = (edge(&switch, 11, &nodes[0]), edge(&switch, 12, &nodes[1]));
    let client = switch.machine(21);
    let (one, two) = (image::real(3, 8), image::real(4, 4));
    push(&a, &one, "latest");
    until_answers(&b, "latest", &one);
    push(&a, &two, "latest");
    let pushed = Instant::now();
    until_answers(&b, "latest", &two);
    println!("the other edge answers the new version {:?} after the push", pushed.elapsed());
    layout::assert_same(&pull(&client, &b, "latest"), &two);

    // The graph of every node shows what two versions share, and what one adds to the other.
    let layers = layout::layers(&two);
    let (last, base) = layers.split_last().unwrap();
    let (_, manifest) = a.curl(&["--header", ACCEPT, &manifest_url("latest")]);
    let mut shorter: Value = serde_json::from_str(&manifest).unwrap();
    shorter["layers"].as_array_mut().unwrap().pop();
    assert_eq!(put(&a, "shorter", &shorter.to_string()), 201);
    for node in &nodes {
        let mut added = None;
        until("the graph knows both versions", || {
            added = graph(node, &["added", REPOSITORY, "latest", "shorter"]);
            added.is_some()
        });
        assert_eq!(names(&added.unwrap()), [last]);
        let images = graph(node, &["images", &base[0]]).unwrap();
        assert_eq!((names(&images), &images[0]["versions"]), (vec![REPOSITORY], &2.into()));
    }

    // The leader's cable: the others go on, and it hears of all of it later.
    let led = leader(&nodes, 0).unwrap();
    switch.unplug(&nodes[led]);
    let cut = Instant::now();
    let others: Vec<usize> = (0..3).filter(|node| *node != led).collect();
    until("somebody else leads", || leader(&nodes, others[0]).is_some_and(|new| new != led));
    println!("somebody else leads {:?} after the cable was pulled", cut.elapsed());
    until("a tag can be pushed", || {
        let (_, manifest) = a.curl(&["--header", ACCEPT, &manifest_url("latest")]);
        put(&a, "beside", &manifest) == 201
    });
    println!("a tag was pushed {:?} after the cable was pulled", cut.elapsed());
    until_answers(&b, "beside", &two);
    let (status, _) = nodes[led].curl(&[&format!("{NODE_ADMIN}/v1/state/app/key")]);
    assert_eq!(status, 503, "who is alone reads nothing of the past");
    switch.plug(&nodes[led]);
    nodes[led].until_ok(&format!("{NODE_ADMIN}/readyz"));

    // The other edge's cable: it goes on with what it has, says so, and catches up.
    switch.unplug(&b);
    push(&a, &one, "latest");
    until("it says that it follows nobody", || {
        let (_, body) = b.curl(&[&format!("{EDGE_ADMIN}/readyz")]);
        body.contains("is not followed")
    });
    assert!(answers(&b, "latest", &two), "it serves what it knows");
    switch.plug(&b);
    until_answers(&b, "latest", &one);
    layout::assert_same(&pull(&client, &b, "latest"), &one);

    // All nodes at once.
    for node in &mut nodes {
        node.kill9();
    }
    layout::assert_same(&pull(&client, &a, "latest"), &one);
    for node in &mut nodes {
        let file = node.folder().join("outrider.toml");
        node.start(&["control", "--config", file.to_str().unwrap()]);
    }
    for node in &nodes {
        node.until_ok(&format!("{NODE_ADMIN}/readyz"));
    }
    push(&b, &two, "latest");
    until_answers(&a, "latest", &two);
    let status = nodes[2].outrider(&["cluster", "status"]).ok();
    assert_eq!(status.matches("edge").count(), 2, "{status}");
}
