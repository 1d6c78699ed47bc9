//! The placement of a fleet: what is pushed is acknowledged once several edges have it, and outlives each of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_artifact::native::{self, ALPN, Item, Reader, Want, WantKind};
use outrider_e2e::clients::quic;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::content::sha256;
use outrider_e2e::control::Control;
use outrider_e2e::image::{OCI_INDEX, OCI_MANIFEST};
use outrider_e2e::registry::*;
use outrider_e2e::*;
use serde_json::{Value, json};

/// An edge of a region. A push waits long for others: what is tested does not depend on how fast they are.
fn edge(control: &Control, region: &str) -> Outrider {
    let options = Options::default().config("[uploads]\nreplicas_time = \"10m\"");
    let mut edge = Outrider::stopped(options);
    edge.join(&control.cluster(0, &["token", "--role", "edge", "--region", region]).ok()).ok();
    edge.resume();
    edge
}

/// Runs `outrider placement`.
fn placement(control: &Control, arguments: &[&str]) -> String {
    let admin = control.admin_url(0);
    Outrider::run(&[&["placement"], arguments, &["--admin", &admin]].concat()).ok()
}

/// Waits until these edges know all that the control plane knows now.
fn until_known(control: &Control, edges: &[&Outrider]) {
    let version = control.client(0).get("/v1/placement").expect(200).json()["version"].clone();
    for edge in edges {
        until("the edge knows what the control plane knows", || {
            let known =
                edge.admin().get("/status").expect(200).json()["control"]["version"].clone();
            known.as_u64() >= version.as_u64()
        });
    }
}

fn put(edge: &Outrider, repository: &str, reference: &str, image: &SmallImage) -> Answer {
    for blob in image.blobs() {
        try_push_blob(&edge.client(), repository, blob).unwrap();
    }
    let put = edge.client().request("PUT", &manifest_path(repository, reference));
    put.header("Content-Type", &image.media_type).body(&image.manifest).send()
}

fn holders(control: &Control, tag: &str) -> Value {
    control.client(0).get(&format!("/v1/tags/{tag}")).expect(200).json()["holders"].clone()
}

/// What was counted; 0 where nothing was, since there is no line then.
fn count(edge: &Outrider, metric: &str, outcome: &str) -> u64 {
    let name = format!("{metric}{{outcome=\"{outcome}\"}} ");
    let text = edge.admin().get("/metrics").expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}

fn destroy(edge: &mut Outrider) {
    edge.kill9();
    std::fs::remove_dir_all(edge.data_dir()).unwrap();
}

#[test]
fn what_is_acknowledged_outlives_the_edge_that_took_it() {
    let control = Control::start(1, "");
    let (mut a, mut b, mut c) = (edge(&control, "eu"), edge(&control, "eu"), edge(&control, "eu"));
    let (one, two) = (image::real(3, 8), image::real(4, 4));
    let name = |edge: &Outrider, tag: &str| format!("{}/team/app:{tag}", edge.host());
    // Without a rule, one edge is enough.
    Skopeo::new().push(&two, &name(&a, "before"));
    assert_eq!(holders(&control, "team/app:before").as_array().unwrap().len(), 1);
    placement(&control, &["set", "team", "--replicas", "2"]);
    placement(&control, &["set", "all", "--replicas", "3"]);
    assert_eq!(placement(&control, &["list"]), "all  on 3 edges\nteam  on 2 edges\n");
    until_known(&control, &[&a, &b, &c]);

    // Where the others are is heard of soon after they are there.
    until("the push is taken", || Skopeo::new().try_push(&one, &name(&a, "v1")).status.success());
    assert_eq!(holders(&control, "team/app:v1").as_array().unwrap().len(), 2);
    assert_eq!(count(&a, "outrider_replications_total", "done"), 1);
    let kept = |edge: &Outrider| count(edge, "outrider_keeps_total", "done");
    assert!((kept(&b) > 0) != (kept(&c) > 0), "by one of the others: {} {}", kept(&b), kept(&c));

    // An index, of which only one manifest is there. It alone has a tag.
    let image = SmallImage::new(1, &[1000, 300_000]);
    until("the push is taken", || put(&a, "all/multi", &image.digest(), &image).status == 201);
    let absent = sha256(b"of another architecture");
    let descriptor = |digest: &str| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 7});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [descriptor(&absent), descriptor(&image.digest())]});
    let index = index.to_string().into_bytes();
    try_push_manifest(&a.client(), "all/multi", "v1", OCI_INDEX, &index).unwrap();
    assert_eq!(holders(&control, "all/multi:v1").as_array().unwrap().len(), 3);
    // The same again is there already.
    try_push_manifest(&a.client(), "all/multi", "v1", OCI_INDEX, &index).unwrap();

    destroy(&mut a);
    for edge in [&b, &c] {
        layout::assert_same(&Skopeo::new().pull(&name(edge, "v1")), &one);
        assert!(get_manifest(&edge.client(), "all/multi", "v1").expect(200).body == index);
        assert_served(&edge.client(), "all/multi", &image.digest(), &image);
        get_manifest(&edge.client(), "all/multi", &absent).expect_error(404, "MANIFEST_UNKNOWN");
    }
    // What is hosted survives a restart, without anybody to ask.
    c.kill9();
    b.crash_and_restart();
    assert_served(&b.client(), "all/multi", &image.digest(), &image);

    // One edge alone acknowledges only what need not be elsewhere.
    let image = SmallImage::new(2, &[50_000]);
    put(&b, "other/app", "v1", &image).expect(201);
    let refused = put(&b, "team/app", "v2", &image).expect_error(503, "UNAVAILABLE");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for part in ["on 2 edges, and 1 have it", "edge", "kept at this edge"] {
        assert!(refused.text().contains(part), "{}", refused.text());
    }
    get_manifest(&b.client(), "team/app", "v2").expect_error(404, "MANIFEST_UNKNOWN");
    assert!(
        get_manifest(&b.client(), "team/app", &image.digest()).expect(200).body == image.manifest
    );
    assert!(count(&b, "outrider_replications_total", "short") >= 1);
    c.resume();
    until("the push is taken", || put(&b, "team/app", "v2", &image).status == 201);
    destroy(&mut b);
    assert_served(&c.client(), "team/app", "v2", &image);
}

#[test]
fn a_rule_that_cannot_be_kept_says_so_and_nobody_else_has_anything_kept() {
    let control = Control::start(1, "");
    let a = edge(&control, "eu");
    placement(&control, &["set", "/", "--replicas", "2"]);
    placement(&control, &["set", "local", "--replicas", "1"]);
    until_known(&control, &[&a]);
    let image = SmallImage::new(1, &[1000]);
    let refused = |why: &str| {
        until(&format!("the push is refused: {why}"), || {
            let refused = put(&a, "team/app", "v1", &image).expect_error(503, "UNAVAILABLE");
            refused.header("retry-after").is_some() && refused.text().contains(why)
        });
    };
    refused("on 2 edges, and 0 other edges");
    put(&a, "local/app", "v1", &image).expect(201);

    // An edge elsewhere does not count, until it does.
    let b = edge(&control, "us");
    placement(&control, &["set", "/", "--replicas", "2", "--region", "eu"]);
    until_known(&control, &[&a, &b]);
    refused("on 2 edges of eu, and 0 other edges");
    placement(&control, &["set", "/", "--replicas", "2", "--region", "eu", "--region", "us"]);
    until_known(&control, &[&a, &b]);
    until("the push is taken", || put(&a, "team/app", "v1", &image).status == 201);
    placement(&control, &["remove", "/"]);
    assert_eq!(placement(&control, &["list"]), "local  on 1 edges\n");

    // Who shows no certificate of an edge has nothing kept.
    let want = Want {
        kind: WantKind::Manifest,
        metadata_only: true,
        keep: true,
        ..Want::whole(image.digest().parse().unwrap())
    };
    let repository = "team/app".to_owned();
    let request = native::Request { repository, wants: vec![want], ..native::Request::default() };
    let answer = ask(&b, &request.encode().unwrap());
    let (_, item) = Reader::client().read(&answer).unwrap();
    let Some(Item::Answer(answer)) = item else { panic!("{item:?}") };
    assert_eq!(answer.status, 403);
    assert!(answer.error.contains("only an edge"), "{}", answer.error);
}

/// Sends these bytes on a stream of the native protocol; what comes back.
fn ask(edge: &Outrider, bytes: &[u8]) -> Vec<u8> {
    let config = quic::config(edge, ALPN);
    let address = ([127, 0, 0, 1], edge.https_port()).into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, address, "localhost").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        receive.read_to_end(1 << 20).await.unwrap()
    })
}
