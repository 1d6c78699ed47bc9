//! The dependency graph of a node: manifests in, named queries out, over the API and the command line.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use outrider_artifact::Digest;
use outrider_e2e::control::Control;
use outrider_e2e::neo4j::Neo4j;
use outrider_e2e::process::{Output, run};
use outrider_e2e::scratch::Scratch;
use outrider_e2e::{Answer, Options, Outrider, SmallImage, registry, sha256, until};
use outrider_graph::{model, neo4j};
use rustix::process::Signal;
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn digest(text: &str) -> String {
    Digest::sha256(text.as_bytes()).to_string()
}

fn image(layers: &[&str]) -> String {
    let one = |media_type: &str, text: &str| json!({ "mediaType": media_type, "digest": digest(text), "size": text.len() });
    let layers = layers.iter().map(|text| one("application/vnd.oci.image.layer.v1.tar", text));
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": one("application/vnd.oci.image.config.v1+json", "config"),
        "layers": layers.collect::<Vec<_>>(),
    })
    .to_string()
}

fn index(manifests: &[&str]) -> String {
    let manifests = manifests
        .iter()
        .map(|text| json!({ "mediaType": MANIFEST, "digest": digest(text), "size": text.len() }));
    let manifests = manifests.collect::<Vec<_>>();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string()
}

fn post(control: &Control, query: &str, media_type: &str, body: &[u8]) -> Answer {
    let path = format!("/v1/graph/manifests?{query}");
    let request = control.client(0).request("POST", &path).header("Content-Type", media_type);
    request.body(body).send()
}

fn ask(control: &Control, query: &str) -> Value {
    control.client(0).get(&format!("/v1/graph/{query}")).expect(200).json()
}

/// `graph ARGUMENTS` at the first node.
fn graph(control: &Control, arguments: &[&str]) -> Output {
    let mut command = Command::new(Outrider::program());
    command.arg("graph").args(arguments).arg("--admin").arg(control.admin_url(0));
    run(command)
}

/// Kind and name of each row.
fn rows(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = answer["rows"].as_array().unwrap().iter();
    rows.map(|row| (text(&row["kind"]), text(&row["name"]))).collect()
}

fn kind(kind: &str, names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| (kind.to_owned(), (*name).to_owned())).collect()
}

/// Two images of two customers that share a base, and an index over one of them.
fn fill(control: &Control) {
    for (query, media_type, body) in [
        ("image=library/a&version=v1&customer=acme", MANIFEST, image(&["base", "a1"])),
        ("image=library/a&version=v2&customer=acme", MANIFEST, image(&["base", "a1", "a2"])),
        ("image=b&version=1&customer=other%20one", MANIFEST, image(&["base", "a1", "b"])),
        ("image=b&version=all&customer=third", INDEX, index(&[&image(&["base", "a1", "b"])])),
    ] {
        let applied = post(control, query, media_type, body.as_bytes()).expect(200).json();
        assert_eq!((&applied["versions"], &applied["repeated"]), (&json!(1), &json!(false)));
    }
}

fn check(control: &Control) {
    let [base, a1, a2, b] = ["base", "a1", "a2", "b"].map(digest);
    let images = ask(control, &format!("images?layer={base}"));
    assert_eq!(rows(&images), kind("image", &["library/a", "b"]));
    assert_eq!(images["rows"][0]["versions"], 2);
    let shared = ask(control, "shared?image=library/a&image=b");
    assert_eq!(rows(&shared), kind("layer", &[&base, &a1]));
    let shared = ask(control, "shared?customer=acme&customer=other%20one&limit=1");
    assert_eq!((rows(&shared), &shared["more"]), (kind("layer", &[&base]), &json!(true)));
    let depth = ask(control, &format!("depth?layer={a1}"));
    let row = &depth["rows"][0];
    assert_eq!((&row["below"], &row["above"], &row["versions"]), (&json!(1), &json!(1), &json!(3)));
    assert_eq!(ask(control, "depth?image=b")["rows"][0]["depth"], 3);
    let added = ask(control, "added?image=library/a&version=v2");
    assert_eq!(rows(&added), kind("layer", &[&a2]));
    assert_eq!(
        (&added["about"][0]["tag"], &added["about"][1]["tag"]),
        (&json!("v2"), &json!("v1"))
    );
    let since = ask(control, "added?image=b&version=all&since=1");
    assert_eq!(rows(&since), []);
    let near = ask(control, &format!("neighbours?layer={base}"));
    assert_eq!(rows(&near), kind("layer", &[&a1, &a2, &b]));
    assert_eq!(near["rows"][0]["together"], 3);
    let affected = ask(control, &format!("affected?layer={b}"));
    let of = |kind: &str| rows(&affected).iter().filter(|row| row.0 == kind).count();
    assert_eq!((of("customer"), of("image"), of("version"), of("index")), (2, 1, 1, 1));
}

#[test]
fn a_node_answers_what_its_manifests_share() {
    let mut control = Control::start(1, "");
    fill(&control);
    check(&control);
    let status = control.client(0).get("/v1/graph").expect(200).json();
    assert_eq!((&status["state"], &status["nodes"]["layer"]), (&json!("up"), &json!(4)));

    // What was answered is there after the node was killed.
    control.kill9(0);
    control.resume(0);
    control.wait_ready(0);
    check(&control);
}

#[test]
fn the_command_line_asks_and_draws() {
    let control = Control::start(1, "");
    fill(&control);
    let base = digest("base");
    let text = graph(&control, &["images", &base]).ok();
    assert!(text.contains("image     library/a  versions 2"), "{text}");
    let json: Value =
        serde_json::from_str(&graph(&control, &["affected", &base, "--json"]).ok()).unwrap();
    assert_eq!(json["about"][0]["name"], json!(base));
    let dot = graph(&control, &["shared", "library/a", "b", "--dot"]).ok();
    assert!(dot.starts_with("digraph outrider {") && dot.contains("shared_by"), "{dot}");
    let svg = graph(&control, &["added", "library/a", "v2", "--svg"]).ok();
    assert!(svg.starts_with("<svg ") && svg.contains("library/a:v2"), "{svg}");
    assert!(graph(&control, &["depth", &base]).ok().contains("above 2"));
    assert!(graph(&control, &["depth", "b"]).ok().contains("depth 3"));
    let customers = graph(&control, &["shared", "acme", "other one", "--customers"]).ok();
    assert_eq!(customers.matches("  layer").count(), 2, "{customers}");
    assert!(graph(&control, &["neighbours", &base]).ok().contains("together 3"));
    assert!(graph(&control, &["status"]).ok().contains("embedded store, up"));
    for (arguments, wanted) in [
        (vec!["images", "sha256:abc"], "64 hexadecimal digits"),
        (vec!["depth", "nothing"], "the graph has no image nothing"),
        (vec!["added", "library/a", "v1"], "library/a has no version before v1"),
        (vec!["images", &base, "--limit", "0"], "limit is 1 to 1000"),
    ] {
        let output = graph(&control, &arguments);
        assert!(!output.status.success() && output.err.contains(wanted), "{output:?}");
    }
}

#[test]
fn lines_are_applied_together_once_for_each_position() {
    let control = Control::start(1, "");
    let line = |version: &str, manifest: &str| {
        let line = json!({ "image": "a", "version": version, "customer": "c", "unix_ms": 5, "manifest": manifest });
        format!("{line}\n")
    };
    let lines = line("1", &image(&["x"])) + "\n" + &line("2", &image(&["x", "y"]));
    let send =
        |query: &str, body: &str| post(&control, query, "application/x-ndjson", body.as_bytes());
    let first = send("source=q&position=7", &lines).expect(200).json();
    assert_eq!((&first["versions"], &first["nodes"]), (&json!(2), &json!(6)));
    let again = send("source=q&position=7", &lines).expect(200).json();
    assert_eq!((&again["repeated"], &again["nodes"]), (&json!(true), &json!(0)));
    let status = control.client(0).get("/v1/graph").expect(200).json();
    assert_eq!(status["positions"]["q"], 7);
    let metrics = control.client(0).get("/metrics").expect(200).text();
    assert!(metrics.contains("outrider_control_graph_repeated_batches_total 1"), "{metrics}");
    assert!(metrics.contains("outrider_control_graph_up 1"), "{metrics}");

    // One bad line, and none is applied.
    let bad = line("3", &image(&["z"])) + &line("4", "{}");
    assert!(send("", &bad).expect(400).text().contains("line 2: the manifest has no mediaType"));
    control.client(0).get(&format!("/v1/graph/images?layer={}", digest("z"))).expect(404);
}

#[test]
fn hostile_manifests_are_refused_and_change_nothing() {
    let control = Control::start(1, "");
    let to = "image=a&version=1&customer=c";
    let layers: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let itself = index(&["x"]);
    let own = format!("image=a&version={}&customer=c", digest("x"));
    let huge = image(&["a"]).replace("\"size\":1", "\"size\":18446744073709551615");
    let nested = format!("{{\"schemaVersion\":2,\"layers\":{}", "[".repeat((4 << 20) - 32));
    for (query, body, status, wanted) in [
        (to, image(&layers), 400, "more than 4096 descriptors"),
        (to, image(&layers[..1025]), 400, "layers of an image: 1025, and 1024 is the most"),
        (to, index(&layers[..257]), 400, "manifests of an index: 257"),
        (&*own, itself, 400, "and is said to have sha256:"),
        (to, huge, 400, "bytes of a content: 18446744073709551615"),
        (to, nested, 400, "cannot be read"),
        (to, "x".repeat((4 << 20) + 1), 413, "more than 4194304 bytes"),
        ("image=A&customer=c", image(&["a"]), 400, "image: a repository name"),
        ("image=a&customer=%00", image(&["a"]), 400, "is no name"),
        ("image=a", image(&["a"]), 400, "image and customer are wanted"),
        ("image=a&customer=c&position=1", image(&["a"]), 400, "source and position go together"),
        ("colour=red", image(&["a"]), 400, "is none of image"),
    ] {
        let answer = post(&control, query, "application/json", body.as_bytes()).expect(status);
        assert!(answer.text().contains(wanted), "{wanted}: {}", answer.text());
    }
    for (path, status) in [
        ("/v1/graph/nothing", 400),
        ("/v1/graphs", 404),
        ("/v1/graph/images", 400),
        ("/v1/graph/manifests", 405),
    ] {
        control.client(0).get(path).expect(status);
    }
    let status = control.client(0).get("/v1/graph").expect(200).json();
    assert!(status["nodes"].as_object().unwrap().values().all(|count| *count == json!(0)));
}

/// How many random graphs are compared with a real Neo4j.
const SEEDS: u64 = 2;
/// Batches of each.
const BATCHES: usize = 15;

/// One server for all that needs one: it takes its time to start.
#[test]
fn a_real_neo4j_gives_the_same_rows_and_may_be_away() {
    let mut neo4j = Neo4j::start();
    compare_with_the_model(&neo4j.url());

    let scratch = Scratch::new();
    let password = scratch.path().join("password");
    std::fs::write(&password, "not asked for\n").unwrap();
    let mut control = Control::start(
        1,
        &format!(
            "[graph]\nstore = \"neo4j\"\nurl = {:?}\nuser = \"neo4j\"\npassword_file = {password:?}\n\
             request_time = \"15s\"",
            neo4j.url()
        ),
    );
    fill(&control);
    check(&control);
    let status = control.client(0).get("/v1/graph").expect(200).json();
    assert_eq!((&status["store"], &status["nodes"]["layer"]), (&json!("neo4j"), &json!(4)));

    // Dead, or silent: the node goes on and says so.
    let path = format!("/v1/graph/depth?layer={}", digest("base"));
    for silent in [false, true] {
        match silent {
            false => neo4j.kill9(),
            true => neo4j.signal(Signal::STOP),
        }
        let refused = control.client(0).get(&path).expect(503);
        assert_eq!(refused.header("retry-after"), Some("1"));
        control.state(0, "PUT", "key").body(b"value").send().expect(204);
        control.client(0).get("/readyz").expect(200);
        let cluster = control.client(0).get("/v1/cluster").expect(200).json();
        assert_eq!(cluster["graph"]["state"], "down");
        assert!(cluster["graph"]["error"].is_string(), "{cluster}");
        let metrics = control.client(0).get("/metrics").expect(200).text();
        assert!(metrics.contains("outrider_control_graph_up 0"), "{metrics}");
        let said = control.cluster(0, &["status"]).ok();
        assert!(said.contains("the graph's store (neo4j) is down"), "{said}");
        match silent {
            false => neo4j.resume(),
            true => neo4j.signal(Signal::CONT),
        }
        until("the graph answers again", || {
            control.client(0).request("GET", &path).try_send().is_ok_and(|a| a.status == 200)
        });
        check(&control);
    }

    fed_by_an_edge(&control, &mut neo4j);

    // A node starts without its store, and without its store's file too.
    control.terminate(0);
    neo4j.kill9();
    control.resume(0);
    control.wait_ready(0);
    control.client(0).get(&path).expect(503);
}

/// What is pushed to an edge gets there by itself, also what was pushed while it was dead.
fn fed_by_an_edge(control: &Control, neo4j: &mut Neo4j) {
    let edge = Outrider::joined(control, Options::default().config("[control]"));
    let client = edge.client();
    let first = SmallImage::new(31, &[1_000, 2_000]);
    let layers = [first.layers.clone(), vec![vec![7; 3_000]]].concat();
    let second = SmallImage::of(32, layers);
    let layer = |image: &SmallImage, at: usize| {
        format!("depth?layer={}", Digest::sha256(&image.layers[at]))
    };
    let known = |query: &str| {
        let answer = control.client(0).request("GET", &format!("/v1/graph/{query}")).try_send();
        answer
            .ok()
            .filter(|answer| answer.status == 200)
            .map(|answer| answer.json()["rows"][0].clone())
    };
    registry::push(&client, "team/fed", "v1", &first);
    until("the first version is in the graph", || known(&layer(&first, 1)).is_some());
    neo4j.kill9();
    registry::push(&client, "team/fed", "v2", &second);
    for _ in 0..3 {
        let path = registry::blob_path("team/fed", &sha256(&first.layers[0]));
        client.get(&path).expect(200);
    }
    until("the status says so", || {
        control.cluster(0, &["status"]).ok().contains("events do not get into the graph")
    });
    neo4j.resume();
    until("the second version is in the graph too", || known(&layer(&second, 2)).is_some());
    until("every access is counted once", || {
        known(&layer(&first, 0)).is_some_and(|row| row["accesses"] == 3)
    });
    let base = known(&layer(&first, 0)).unwrap();
    assert_eq!((&base["versions"], &base["dependants"]), (&json!(2), &json!(2)));
    assert_eq!(rows(&ask(control, "added?image=team/fed&version=v2")).len(), 1);
}

fn compare_with_the_model(url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let time_max = Duration::from_secs(3600);
        let options =
            neo4j::Options { url: url.to_owned(), ca: None, login: None, database: None, time_max };
        let store = outrider_graph::Neo4j::new(options).unwrap();
        let seeds = match std::env::var("OUTRIDER_SEED") {
            Ok(seed) => vec![seed.parse().unwrap()],
            Err(_) => (0..SEEDS).collect(),
        };
        for seed in seeds {
            if let Err(difference) = model::compare(&store, seed, BATCHES).await {
                panic!("{difference}");
            }
            store.forget().await.unwrap();
        }
    });
}
