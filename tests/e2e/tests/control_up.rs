//! `outrider up` has a node of the control plane in it: its API on the admin address, its edge joined, without anything
//! to be set up.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

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
