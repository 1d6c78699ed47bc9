//! `outrider up` has a node of the control plane in it: its API on the admin address, its edge joined, without anything
//! to be set up.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::process::{Output, run};
use outrider_e2e::registry::*;
use outrider_e2e::*;
use serde_json::{Value, json};

/// `outrider ARGUMENTS --admin URL`.
fn outrider(up: &Outrider, arguments: &[&str]) -> Output {
    let mut command = Command::new(Outrider::program());
    command.args(arguments).args(["--admin", &format!("http://127.0.0.1:{}", up.admin_port())]);
    run(command)
}

fn image() -> SmallImage {
    SmallImage::new(7, &[1000, 200_000])
}

#[test]
fn the_api_is_on_the_admin_address_and_outlives_a_kill() {
    let mut up = Outrider::start(Options::default());
    let admin = up.admin();
    admin.request("PUT", "/v1/state/app/config").body(b"one").send().expect(204);
    outrider(&up, &["state", "put", "app/other", "two"]).ok();
    push(&up.client(), "team/app", "v1", &image());
    outrider(&up, &["customer", "set", "acme", "--class", "4", "--guaranteed", "1GiB"]).ok();
    outrider(&up, &["customer", "set", "acme", "--requests-per-second", "10"]).ok();

    let check = |up: &Outrider| {
        assert_eq!(outrider(up, &["state", "get", "app/config"]).ok(), "one");
        let listed = outrider(up, &["state", "list", "app/"]).ok();
        assert!(listed.contains("app/config") && listed.contains("app/other"), "{listed}");
        let tags = outrider(up, &["tags"]).ok();
        assert!(tags.starts_with(&format!("team/app:v1  {}", image().digest())), "{tags}");
        assert_served(&up.client(), "team/app", "v1", &image());
        let customer = outrider(up, &["customer", "list"]).ok();
        assert_eq!(customer, "acme  class 4.0  guaranteed 1GiB  at most 10 requests/s\n");
        until("everything is well", || outrider(up, &["status"]).out.starts_with("all is well"));
    };
    check(&up);
    up.crash_and_restart();
    check(&up);
    up.restart();
    check(&up);

    // One page for both.
    let metrics = up.metrics();
    let one = |name: &str| metrics.sum(name, &[]);
    assert_eq!((one("outrider_control_leader"), one("outrider_follow_connected")), (1.0, 1.0));
    assert!(one("outrider_control_certificate_left_seconds") > 300.0 * 86_400.0);
    assert!(one("outrider_follow_certificate_left_seconds") > 300.0 * 86_400.0);
    let status = up.admin().get("/status").expect(200).json();
    assert_eq!(
        (status["ready"].as_bool(), &status["node"]["state"]),
        (Some(true), &json!("leader"))
    );
    assert!(status["shards"].is_array() && status["control"]["connected"] == true);
    assert_eq!(up.admin().get("/readyz").expect(200).json()["remarks"], json!([]));
}

#[test]
fn commands_do_what_they_say() {
    let up = Outrider::start(Options::default());
    let version = outrider(&up, &["state", "put", "k", "1", "--if-absent"]).ok();
    let refused = outrider(&up, &["state", "put", "k", "2", "--if-absent"]).refused();
    assert!(refused.contains("the version is another one"), "{refused}");
    outrider(&up, &["state", "put", "k", "2", "--if-version", version.trim()]).ok();
    outrider(&up, &["state", "delete", "k", "--if-version", version.trim()]).refused();
    let scratch = Scratch::new();
    let batch = scratch.path().join("batch.json");
    let writes = json!({ "writes": [{ "op": "put", "key": "a", "value": "aGk=" }, { "op": "delete", "key": "k" }] });
    std::fs::write(&batch, writes.to_string()).unwrap();
    outrider(&up, &["state", "batch", batch.to_str().unwrap()]).ok();
    assert_eq!(outrider(&up, &["state", "get", "a"]).ok(), "hi");
    assert!(outrider(&up, &["state", "get", "k"]).refused().contains("no such key"));

    assert!(outrider(&up, &["weights", "--depth", "2.5"]).ok().contains("depth      2.5"));
    assert!(outrider(&up, &["weights"]).ok().contains("depth      2.5"));
    outrider(&up, &["weights", "--depth", "-1"]).refused();
    for what in [&["a/b:c"][..], &[&image().digest()], &["--repository", "a/b"]] {
        outrider(&up, &[&["invalidate"], what].concat()).ok();
    }
    outrider(&up, &["invalidate", "a/b"]).refused();
    outrider(&up, &["customer", "set", "x"]).ok();
    outrider(&up, &["customer", "remove", "x"]).ok();
    assert_eq!(outrider(&up, &["customer", "list"]).ok(), "");
    assert!(outrider(&up, &["graph", "status"]).ok().contains("embedded store"));
    assert!(outrider(&up, &["cluster", "status"]).ok().contains("node 1 is leader"));
    until("everything is well", || outrider(&up, &["status"]).status.success());
    let all: Value = serde_json::from_str(&outrider(&up, &["status", "--json"]).out).unwrap();
    assert_eq!((&all["healthy"], &all["problems"]), (&json!(true), &json!([])));
}

#[test]
fn what_a_customer_may_have_stored_bounds_its_pushes_and_nobody_elses() {
    let mut up = Outrider::start(Options::default());
    let (small, large) = (SmallImage::new(7, &[100_000]), SmallImage::new(8, &[400_000]));
    push(&up.client(), "team/app", "v1", &small);
    let used = |up: &Outrider| {
        let status = up.admin().get("/status").expect(200).json();
        let rows = status["stored"].as_array().unwrap().clone();
        let own = rows.iter().find(|row| row["customer"] == "anonymous");
        own.map(|row| (row["used_bytes"].as_u64().unwrap(), row["limit_bytes"].as_u64().unwrap()))
    };
    assert_eq!(used(&up), None, "it has no limit yet");
    outrider(&up, &["customer", "set", "anonymous", "--stored-max", "300000"]).ok();
    until("the edge has heard of it", || used(&up).is_some());
    let stored = small.blobs().map(|blob| blob.len() as u64).sum::<u64>();
    let all = stored + small.manifest.len() as u64;
    assert_eq!(used(&up), Some((all, 300_000)));

    // Said before the body is read, and when it goes on; nothing of it stays.
    let layer = &large.layers[0];
    let path = format!("/v2/team/app/blobs/uploads/?digest={}", sha256(layer));
    let refused = up.client().request("POST", &path).body(layer).send().expect_error(403, "DENIED");
    let text = refused.text();
    assert!(
        text.contains("anonymous may have 300000 bytes") && text.contains("400000 more"),
        "{text}"
    );
    // Each shard hears of it for itself.
    until("an upload is ended that goes beyond", || {
        let at = begin_upload(&up.client(), "team/app").unwrap();
        let part = |bytes: &[u8]| up.client().request("PATCH", &at).body(bytes).send();
        part(&layer[..150_000]).expect(202);
        part(&layer[150_000..]).status == 403 && up.client().get(&at).status == 404
    });
    let layers = format!("/layer/upload?image=team/app&version=v2&digest={}", sha256(layer));
    up.client().request("PUT", &layers).body(layer).send().expect_error(403, "DENIED");
    assert!(used(&up).unwrap().0 < 300_000);

    // Another customer is not touched; what is here is nobody's second charge; and all of that is so after a kill.
    let other = format!("{layers}&customer=acme");
    up.client().request("PUT", &other).body(layer).send().expect(201);
    let before = used(&up);
    push(&up.client(), "team/copy", "v1", &small);
    assert_eq!(used(&up), before);
    let image = image::real(3, 8);
    let skopeo = Skopeo::new();
    let told = skopeo.try_push(&image, &format!("{}/team/real:v1", up.host()));
    assert!(!told.status.success());
    assert!(told.err.contains("anonymous may have 300000 bytes"), "{}", told.err);
    up.crash_and_restart();
    until("it is known again", || used(&up).is_some());
    assert_eq!(used(&up), before);
    let metrics = up.metrics();
    let gauge = |name: &str| metrics.sum(name, &["customer=\"anonymous\""]);
    assert_eq!(gauge("outrider_customer_stored_used_bytes"), before.unwrap().0 as f64);
    assert_eq!(gauge("outrider_customer_stored_limit_bytes"), 300_000.0);

    // What is deleted everywhere is given back.
    for repository in ["team/app", "team/copy"] {
        let delete = |path: &str| up.client().request("DELETE", path).send().expect(202);
        delete(&manifest_path(repository, &small.digest()));
        small.blobs().for_each(|blob| drop(delete(&blob_path(repository, &sha256(blob)))));
    }
    assert_eq!(used(&up).unwrap().0, before.unwrap().0 - all);
    outrider(&up, &["customer", "set", "anonymous", "--stored-max", "0"]).ok();
    until("there is no limit any more", || used(&up).is_none());
    push(&up.client(), "team/large", "v1", &large);
}

#[test]
fn a_data_directory_from_before_goes_on_and_its_tags_are_handed_over() {
    let mut up = Outrider::start(Options { control: false, ..Options::default() });
    up.admin().request("GET", "/v1/cluster").send().expect(404);
    push(&up.client(), "team/app", "v1", &image());
    assert!(up.terminate().success());
    up.set_control(true);
    up.resume();
    assert_served(&up.client(), "team/app", "v1", &image());
    until("the tag belongs to the fleet", || {
        outrider(&up, &["tags", "team/app"]).ok().contains(&image().digest())
    });
    push(&up.client(), "team/app", "v2", &SmallImage::new(8, &[1000]));
    assert_served(&up.client(), "team/app", "v1", &image());
    assert!(up.terminate().success());

    // Its tags would be nobody's.
    up.set_control(false);
    let error = run(up.command()).refused();
    assert!(error.contains("without --no-control"), "{error}");
    up.set_control(true);
    up.resume();
    assert_served(&up.client(), "team/app", "v1", &image());
}

#[test]
fn two_in_one_directory_are_refused_and_the_first_goes_on() {
    let up = Outrider::start(Options::default());
    let error = run(up.command()).refused();
    assert!(error.contains("in use by another instance"), "{error}");
    outrider(&up, &["state", "put", "k", "v"]).ok();
}

#[test]
fn the_api_is_as_it_is_described() {
    let up = Outrider::start(Options::default());
    let scratch = Scratch::new();
    let mut check = tools::python("check_openapi.py", scratch.path());
    check.arg(format!("http://127.0.0.1:{}", up.admin_port()));
    assert!(run(check).ok().contains("get /status 200"));
}
