//! `outrider status`: how a node, an edge, or both in one process are, and what is wrong.

use std::fmt::Write as _;

use clap::Args;
use http::Method;
use outrider_node::command::{Call, CommandError, status_text};
use outrider_settings::units::Size;
use serde_json::{Value, json};

use crate::at::{self, At};

/// Of a disk that has less free than this share, the operator should know,
const DISK_FREE_SHARE_MIN: f64 = 0.02;
/// and of one that has less than this.
const DISK_FREE_BYTES_MIN: u64 = 128 << 20;
/// Of the room for uploads.
const UPLOADS_SHARE_MAX: f64 = 0.95;
/// An edge hears of its node several times a second.
const SILENT_S_MAX: f64 = 15.0;
/// Of a certificate's time; it is renewed when a third is left.
const CERTIFICATE_SHARE_MIN: f64 = 0.2;

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// As JSON: healthy, problems, and all that was told
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: At,
}

/// What to print, and whether all is well.
pub(crate) fn run(arguments: &StatusArguments) -> Result<(String, bool), CommandError> {
    let status = at::run(async {
        let client = arguments.admin.client().await?;
        client.call(Call::new(Method::GET, "/status")).await?.json()
    })?;
    let problems = problems(&status);
    let healthy = problems.is_empty();
    let text = match arguments.json {
        true => {
            let all = json!({ "healthy": healthy, "problems": problems, "status": status });
            format!("{all:#}\n")
        }
        false => text(&status, &problems),
    };
    Ok((text, healthy))
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A text as it is, anything else as JSON.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What is wrong, a sentence each. Pure.
fn problems(status: &Value) -> Vec<String> {
    let mut all: Vec<String> = rows(&status["not_ready_because"])
        .iter()
        .map(|why| format!("not ready: {}", word(why)))
        .collect();
    let step = status["clock_step_s"].as_i64().unwrap_or(0);
    if step != 0 {
        let way = if step > 0 { "ahead" } else { "back" };
        let step = std::time::Duration::from_secs(step.unsigned_abs());
        all.push(format!(
            "the clock of this machine was set {way} by {step:?} within the last hour: is it right? \
             Certificates and tokens go by it"
        ));
    }
    if status.get("shards").is_some() {
        of_edge(status, &mut all);
    }
    of_disk("the data directory", &status["disk"], &mut all);
    let node = &status["node"];
    if node.is_object() {
        of_node(node, &mut all);
        of_disk("the node's folder", &node["disk"], &mut all);
    }
    all
}

fn of_disk(what: &str, disk: &Value, all: &mut Vec<String>) {
    let (Some(free), Some(total)) = (disk["free_bytes"].as_u64(), disk["total_bytes"].as_u64())
    else {
        return;
    };
    if free < DISK_FREE_BYTES_MIN || (free as f64) < total as f64 * DISK_FREE_SHARE_MIN {
        all.push(format!("the disk of {what} is full: {} of {} are free", Size(free), Size(total)));
    }
}

fn of_certificate(who: &str, certificate: &Value, all: &mut Vec<String>) {
    let (days, lifetime) = (&certificate["days_left"], &certificate["lifetime_days"]);
    if let (Some(days), Some(lifetime)) = (days.as_f64(), lifetime.as_f64())
        && days < lifetime * CERTIFICATE_SHARE_MIN
    {
        let why = certificate["failure"].as_str().map(|why| format!(" ({why})"));
        let why = why.unwrap_or_default();
        all.push(format!(
            "the certificate of {who} ends in {days:.3} days and was not renewed{why}"
        ));
    }
}

fn of_edge(status: &Value, all: &mut Vec<String>) {
    for shard in rows(&status["shards"]) {
        let (id, cache) = (&shard["id"], &shard["cache"]);
        if let Some(why) = shard["no_answer"].as_str() {
            all.push(why.to_owned());
        }
        if number(&cache["stripes_out"]) > 0 {
            let (out, stripes) = (&cache["stripes_out"], &cache["stripes"]);
            all.push(format!(
                "shard {id}: {out} of {stripes} stripes are out of use, the disk failed"
            ));
        }
        let (used, room) = (number(&cache["uploads_bytes"]), number(&cache["uploads_total_bytes"]));
        if room > 0 && used as f64 > room as f64 * UPLOADS_SHARE_MAX {
            let (used, room) = (Size(used), Size(room));
            all.push(format!("shard {id}: the room for uploads is full, {used} of {room}"));
        }
    }
    for upstream in rows(&status["upstreams"]) {
        if ["manifests", "blobs"].iter().any(|lane| upstream[lane]["breaker"] == "open") {
            let why = upstream["last_error"].as_str().unwrap_or("its breaker is open");
            all.push(format!("the upstream {} does not answer: {why}", word(&upstream["name"])));
        }
    }
    if number(&status["outbox"]["dropped"]) > 0 {
        all.push(format!("{} events of pushes were dropped", status["outbox"]["dropped"]));
    }
    let control = &status["control"];
    if control.is_object() {
        if control["connected"] != true {
            let why = control["last_failure"].as_str().unwrap_or("no node answered yet");
            all.push(format!("no node of the control plane is followed: {why}"));
        } else if let Some(silent) = control["heard_s"].as_f64().filter(|s| *s > SILENT_S_MAX) {
            all.push(format!(
                "the edge has taken in nothing of the control plane for {silent:.0} s: is its disk stuck?"
            ));
        }
        if let Some(why) = control["store_failure"].as_str() {
            all.push(format!("what the edge knows of the state is not stored any more: {why}"));
        }
        if let Some(why) = control["events"]["failure"].as_str() {
            all.push(format!("the events of this edge are not taken: {why}"));
        }
        of_certificate("this edge", &control["certificate"], all);
    }
}

fn of_node(node: &Value, all: &mut Vec<String>) {
    if let Some(why) = node["failure"].as_str() {
        all.push(format!("the node {} stopped: {why}", node["node"]));
    }
    if node["leader"].is_null() {
        all.push("the control plane has no leader: nothing is written".to_owned());
    }
    let voters: Vec<&Value> =
        rows(&node["nodes"]).iter().filter(|other| other["voter"] == true).collect();
    let silent = voters.iter().filter(|voter| voter["answers"] == false).count();
    if silent > 0 && silent * 2 >= voters.len() {
        let voters = voters.len();
        all.push(format!(
            "{silent} of {voters} nodes do not answer: without a majority nothing is written"
        ));
    }
    for other in rows(&node["nodes"]) {
        if other["voter"] == false {
            let (id, name) = (&other["node"], word(&other["name"]));
            all.push(format!("node {id} ({name}) does not vote (yet)"));
        }
        if other["answers"] == false {
            let (id, name, at) = (&other["node"], word(&other["name"]), word(&other["address"]));
            all.push(format!("node {id} ({name}, {at}) does not answer"));
        }
    }
    let edges = rows(&node["members"]).iter().filter(|member| {
        member["role"] == "edge" && member["revoked"] == false && member["follows"].is_null()
    });
    for edge in edges {
        all.push(format!("edge {} ({}) follows no node", edge["member"], word(&edge["name"])));
    }
    if node["graph"]["state"] == "down" {
        let (store, why) = (word(&node["graph"]["store"]), word(&node["graph"]["error"]));
        all.push(format!("the graph's store ({store}) is down: {why}"));
    }
    let reader = &node["graph"]["events"];
    if let Some(why) = reader["failure"].as_str() {
        all.push(format!("the graph does not follow the queue of events: {why}"));
    }
    if number(&reader["missed"]) > 0 {
        let missed = &reader["missed"];
        all.push(format!("the queue forgot {missed} entries before they were in the graph"));
    }
    if let Some(why) = node["events"]["failure"].as_str() {
        let (queue, waiting) = (word(&node["events"]["queue"]), &node["events"]["waiting"]);
        all.push(format!("the {queue} queue of events fails, {waiting} wait: {why}"));
    }
    of_certificate("this node", &node["certificate"], all);
}

fn text(status: &Value, problems: &[String]) -> String {
    let mut out = match problems {
        [] => "all is well\n".to_owned(),
        _ => problems.iter().map(|problem| format!("PROBLEM: {problem}\n")).collect(),
    };
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "outrider {}, up {} s, {}",
        word(&status["version"]),
        status["uptime_s"],
        if status["ready"] == true { "ready" } else { "not ready" }
    );
    if status.get("shards").is_some() {
        let shards = rows(&status["shards"]);
        let sum = |name: &str| shards.iter().map(|shard| number(&shard["cache"][name])).sum();
        let _ = writeln!(
            out,
            "edge in {}: {} shards, {} objects, memory {} of {}, disk {} of {}",
            word(&status["region"]),
            shards.len(),
            sum("objects"),
            Size(sum("ram_used_bytes")),
            Size(sum("ram_total_bytes")),
            Size(sum("ssd_used_bytes")),
            Size(sum("ssd_total_bytes")),
        );
        let control = &status["control"];
        if control.is_object() {
            let at = control["node"].as_str().unwrap_or("nobody");
            let (version, lag, tags) = (&control["version"], &control["lag"], &control["tags"]);
            let _ = writeln!(out, "follows {at}: version {version}, lag {lag}, {tags} tags");
        }
    }
    if status["node"].is_object() {
        out.push_str(&status_text(&status["node"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Value {
        json!({
            "version": "1", "uptime_s": 7, "clock_step_s": 0, "ready": true, "not_ready_because": [], "region": "eu",
            "disk": { "free_bytes": 1u64 << 40, "total_bytes": 1u64 << 41 },
            "shards": [{ "id": 0, "cache": { "stripes": 4, "stripes_out": 0, "uploads_bytes": 1,
                "uploads_total_bytes": 1 << 30 } }],
            "upstreams": [{ "name": "r", "blobs": { "breaker": "closed" }, "manifests": { "breaker": "closed" } }],
            "outbox": { "pending": 1, "dropped": 0 },
            "control": { "connected": true, "heard_s": 0.1, "lag": 3, "events": {}, "certificate": { "days_left": 300.0, "lifetime_days": 397.0 } },
            "node": {
                "node": 1, "leader": 1, "failure": null, "graph": { "state": "up", "events": { "failure": null, "missed": 0 } },
                "nodes": [{ "node": 1, "voter": true, "answers": true },
                    { "node": 5, "voter": true, "name": "c5", "answers": true }, { "node": 2, "voter": true, "name": "c2", "address": "a:1", "answers": true }],
                "members": [{ "member": 3, "name": "e", "role": "edge", "revoked": false, "follows": 1, "lag": 0 },
                    { "member": 4, "role": "edge", "revoked": true, "follows": null }],
                "events": { "queue": "embedded", "waiting": 0, "failure": null },
            },
        })
    }

    #[test]
    fn what_is_well_is_no_problem_and_each_thing_that_is_wrong_is_one() {
        assert_eq!(problems(&well()), Vec::<String>::new());
        assert!(text(&well(), &[]).contains("lag 3"));
        for (pointer, value, wanted) in [
            ("/clock_step_s", json!(-90), "was set back by 90s"),
            ("/node/nodes/1/voter", json!(false), "node 5 (c5) does not vote"),
            ("/node/graph/events/failure", json!("stuck"), "queue of events: stuck"),
            ("/node/graph/events/missed", json!(2), "forgot 2 entries"),
            ("/not_ready_because", json!(["draining"]), "not ready: draining"),
            ("/disk/free_bytes", json!(1000), "the data directory is full"),
            ("/shards/0/cache/stripes_out", json!(1), "1 of 4 stripes"),
            ("/shards/0/cache/uploads_bytes", json!(1 << 30), "room for uploads is full"),
            ("/upstreams/0/blobs/breaker", json!("open"), "the upstream r does not answer"),
            ("/outbox/dropped", json!(5), "5 events"),
            ("/control/connected", json!(false), "no node of the control plane"),
            ("/control/heard_s", json!(20.0), "taken in nothing of the control plane for 20 s"),
            ("/control/certificate/days_left", json!(3.0), "this edge ends in 3.000 days"),
            ("/node/leader", Value::Null, "no leader"),
            ("/node/failure", json!("disk"), "the node 1 stopped: disk"),
            ("/node/nodes/2/answers", json!(false), "node 2 (c2, a:1) does not answer"),
            ("/node/members/0/follows", Value::Null, "edge 3 (e) follows no node"),
            ("/node/graph", json!({ "state": "down", "store": "neo4j", "error": "x" }), "neo4j"),
            ("/node/events/failure", json!("dead"), "embedded queue of events fails, 0 wait: dead"),
        ] {
            let mut status = well();
            *status.pointer_mut(pointer).unwrap() = value;
            let found = problems(&status);
            assert!(found.len() == 1 && found[0].contains(wanted), "{pointer} gave {found:?}");
            assert!(text(&status, &found).starts_with("PROBLEM: "));
        }
        let mut status = well();
        for place in [1, 2] {
            status["node"]["nodes"][place]["answers"] = json!(false);
        }
        assert!(problems(&status)[0].starts_with("2 of 3 nodes do not answer"));
    }
}
