//! The admin API of nodes, by a real HTTP client: what operators set, batches, watching, and what is refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrider_e2e::control::Control;
use outrider_e2e::http::{Answer, Client};
use outrider_e2e::process::run;
use outrider_e2e::{Options, Outrider, Scratch, SmallImage, until};
use serde_json::{Value, json};

fn send(client: Client, method: &str, target: &str, body: &Value) -> Answer {
    client.request(method, target).body(body.to_string().as_bytes()).send()
}

fn version(answer: &Answer) -> u64 {
    answer.header("etag").unwrap().trim_matches('"').parse().unwrap()
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn customers_weights_and_invalidations_are_set_at_any_node() {
    let control = Control::start(3, "");
    let [a, b, c] = [0, 1, 2].map(|place| control.client(place));
    let gold = json!({
        "class": 4.0, "guaranteed_bytes": 1 << 30, "stored_bytes_max": 0, "requests_per_second_max": 100,
        "content_ttl_s": 3600,
    });
    send(a, "PUT", "/v1/customers/acme%20inc", &gold).expect(204);
    assert_eq!(b.get("/v1/customers/acme%20inc").expect(200).json(), gold);
    send(b, "PUT", "/v1/customers/zeta", &json!({ "class": 0.5 })).expect(204);
    let list = c.get("/v1/customers?limit=1").expect(200).json();
    assert_eq!((&list["customers"][0]["name"], &list["more"]), (&json!("acme inc"), &json!(true)));
    let list = c.get("/v1/customers?after=acme%20inc").expect(200).json();
    assert_eq!((&list["customers"][0]["class"], &list["more"]), (&json!(0.5), &json!(false)));
    c.request("DELETE", "/v1/customers/zeta").send().expect(204);
    a.get("/v1/customers/zeta").expect(404);

    let weights =
        json!({ "class": 2.0, "frequency": 1.0, "fetch": 1.5, "execute": 0.0, "depth": 3.0 });
    let set = b.request("PUT", "/v1/weights").body(weights.to_string().as_bytes());
    let first = set.clone().header("Idempotency-Key", "w1").send().expect(204);
    assert_eq!(a.get("/v1/weights").expect(200).json(), weights);
    let again = set.header("Idempotency-Key", "w1").send().expect(204);
    assert_eq!(version(&first), version(&again), "it was done once");

    for what in
        [json!({ "tag": "a/b:c" }), json!({ "digest": DIGEST }), json!({ "repository": "a/b" })]
    {
        send(c, "POST", "/v1/invalidations", &what).expect(204);
    }
}

#[test]
fn tags_are_swapped_and_listed() {
    let control = Control::start(1, "");
    let client = control.client(0);
    let record = |size: u64| json!({ "digest": DIGEST, "size_bytes": size, "media_type": "x/y" });
    for name in ["a/b:1", "a/b:2", "a/c:1", "b:1"] {
        send(client, "PUT", &format!("/v1/tags/{name}"), &record(1)).expect(204);
    }
    let list = |query: &str| {
        let answer = client.get(&format!("/v1/tags?{query}")).expect(200).json();
        let rows = answer["tags"].as_array().unwrap().iter();
        let name = |row: &Value| {
            format!("{}:{}", row["repository"].as_str().unwrap(), row["tag"].as_str().unwrap())
        };
        (rows.map(name).collect::<Vec<_>>().join(" "), answer["more"].as_bool().unwrap())
    };
    assert_eq!(list(""), ("a/b:1 a/b:2 a/c:1 b:1".to_owned(), false));
    assert_eq!(list("repository=a/b"), ("a/b:1 a/b:2".to_owned(), false));
    assert_eq!(list("prefix=a/&limit=2"), ("a/b:1 a/b:2".to_owned(), true));
    assert_eq!(list("prefix=a/&after=a/b:2"), ("a/c:1".to_owned(), false));

    let found = client.get("/v1/tags/a/b:1").expect(200);
    let tag = found.header("etag").unwrap();
    let put = |name: &str, value: &str| {
        let target = "/v1/tags/a/b:1";
        let body = record(2).to_string();
        client.request("PUT", target).header(name, value).body(body.as_bytes()).send()
    };
    put("If-None-Match", "*").expect(412);
    put("If-Match", tag).expect(204);
    assert_eq!(put("If-Match", tag).expect(412).json()["current"], version(&found) + 4);
    assert_eq!(client.get("/v1/tags/a/b:1").expect(200).json()["size_bytes"], 2);
    client.request("DELETE", "/v1/tags/a/b:1").send().expect(204);
    client.get("/v1/tags/a/b:1").expect(404);
}

#[test]
fn a_batch_is_written_as_a_whole_or_not_at_all() {
    let control = Control::start(3, "");
    let batch = |place: usize, writes: Value| {
        send(control.client(place), "POST", "/v1/batch", &json!({ "writes": writes }))
    };
    let put = |key: &str, value: &[u8], expect: Value| {
        let mut write = json!({ "op": "put", "key": key, "value": STANDARD.encode(value) });
        if !expect.is_null() {
            write["expect"] = expect;
        }
        write
    };
    let first = batch(0, json!([put("a", b"1", json!("absent")), put("b", b"2", Value::Null)]));
    let first = first.expect(200).json()["version"].clone();
    let read = |key: &str| control.state(1, "GET", key).send();
    assert_eq!(read("a").expect(200).body, b"1");
    assert_eq!(version(&read("b").expect(200)), first.as_u64().unwrap());

    // One condition does not hold: nothing is written.
    let swap = json!([
        put("c", b"3", Value::Null),
        { "op": "delete", "key": "b", "expect": first },
        { "op": "check", "key": "a", "expect": 1 },
    ]);
    let refused = batch(1, swap).expect(412).json();
    assert_eq!((&refused["index"], &refused["current"]), (&json!(2), &first));
    read("c").expect(404);
    assert_eq!(read("b").expect(200).body, b"2");

    // Values of 2 MiB together are taken, also as base64.
    let half = vec![7; 1 << 20];
    let large = json!([put("x", &half, Value::Null), put("y", &half[8..], Value::Null)]);
    batch(2, large).expect(200);
    let most = (0..257).map(|n| put(&format!("k{n}"), b"", Value::Null)).collect::<Vec<_>>();
    let error = batch(0, json!(most)).expect(400).json();
    assert!(error["error"].as_str().unwrap().contains("256"), "{error}");
    assert!(
        batch(0, json!([put("a", b"", Value::Null), put("a", b"", Value::Null)])).status == 400
    );
}

/// Lines of a watch, as they come.
struct Watch(BufReader<Lines>);

struct Lines(outrider_e2e::http::Incoming);

impl std::io::Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Watch {
    fn open(client: Client, query: &str) -> Self {
        let incoming = client.request("GET", &format!("/v1/watch?{query}")).open();
        assert_eq!(incoming.status, 200);
        assert_eq!(incoming.header("content-type"), Some("application/x-ndjson"));
        Self(BufReader::new(Lines(incoming)))
    }

    /// The next line with changes, or with an error; nothing when the connection ended.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(0) | Err(_) => return None,
                Ok(_) if !line.ends_with('\n') => return None,
                Ok(_) => {}
            }
            let line: Value = serde_json::from_str(&line).unwrap();
            if line.get("error").is_some() || !line["changes"].as_array().unwrap().is_empty() {
                return Some(line);
            }
        }
    }
}

#[test]
fn a_watch_goes_on_where_it_stopped_also_at_another_node() {
    let mut control = Control::start(3, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    let put = |control: &Control, place: usize, n: u64| {
        let key = format!("w/{n}");
        control.state(place, "PUT", &key).body(key.as_bytes()).send().expect(204);
        control.state(place, "PUT", "other").body(b"o").send().expect(204);
    };
    let mut seen = Vec::new();
    let mut last = 0;
    let mut watch = Watch::open(control.client(0), "prefix=w/&from=0");
    let mut take = |watch: &mut Watch, last: &mut u64| -> bool {
        let Some(line) = watch.next() else { return false };
        let version = line["version"].as_u64().unwrap();
        assert!(version > *last, "{line} comes behind {last}");
        *last = version;
        let [change] = line["changes"].as_array().unwrap().as_slice() else { panic!("{line}") };
        assert_eq!(change["kind"], "fragment");
        let value = STANDARD.decode(change["value"].as_str().unwrap()).unwrap();
        assert_eq!(change["key"].as_str().unwrap().as_bytes(), value);
        seen.push(change["key"].as_str().unwrap().to_owned());
        true
    };
    for n in 0..10 {
        put(&control, 1, n);
        assert!(take(&mut watch, &mut last));
    }
    // The node that is watched dies, with some changes not taken yet; the next one goes on behind the last.
    put(&control, 1, 10);
    control.kill9(0);
    while take(&mut watch, &mut last) {}
    for n in 11..20 {
        put(&control, 2, n);
    }
    let mut watch = Watch::open(control.client(1), &format!("prefix=w/&from={last}"));
    while last < version(&control.state(2, "GET", "w/19").send()) {
        assert!(take(&mut watch, &mut last));
    }
    // And at the one that died, once it is back.
    control.resume(0);
    control.wait_ready(0);
    let before = last;
    put(&control, 2, 20);
    let mut watch = Watch::open(control.client(0), &format!("prefix=w/&from={before}"));
    assert!(take(&mut watch, &mut last));
    let wanted: Vec<_> = (0..=20).map(|n| format!("w/{n}")).collect();
    assert_eq!(seen, wanted);

    // A node that ends in order says so to who watches.
    let mut watch = Watch::open(control.client(1), "prefix=w/");
    control.terminate(1);
    let end = watch.next().unwrap();
    assert!(end["error"].as_str().unwrap().contains("stops"), "{end}");
}

#[test]
fn who_is_too_far_behind_is_told_so() {
    let control = Control::start(1, "[history]\nupdates = 10");
    let put = |n: u64| {
        control.state(0, "PUT", &format!("k{}", n % 3)).body(b"v").send().expect(204);
    };
    (0..30).for_each(put);
    let client = control.client(0);
    let gone = client.get("/v1/watch?from=3").expect(410);
    assert!(gone.json()["error"].as_str().unwrap().contains("not kept"), "{}", gone.text());
    let now = gone.json()["version"].as_u64().unwrap();
    assert_eq!(client.get("/v1/state").expect(200).json()["version"], now);
    assert_eq!(gone.json()["kept_after"], now - 10);
    client.get(&format!("/v1/watch?from={}", now + 1)).expect(400);
    client.get("/v1/watch?from=x").expect(400);
    client.get("/v1/watch?kinds=nothing").expect(400);

    // One that does not read is told when it reads again, and the node does not care.
    let mut watch = Watch::open(client, &format!("from={now}"));
    let large = vec![7; 1 << 20];
    for n in 0..80 {
        control.state(0, "PUT", &format!("large{}", n % 4)).body(&large).send().expect(204);
    }
    let mut end = watch.next().unwrap();
    while end.get("error").is_none() {
        end = watch.next().unwrap();
    }
    assert!(end["error"].as_str().unwrap().contains("not kept"), "{end}");
    assert!(end["version"].as_u64().unwrap() >= now + 80 && watch.next().is_none());
}

#[test]
fn the_api_is_as_it_is_described() {
    let control = Control::start(1, "");
    let scratch = Scratch::new();
    // An edge that follows answers what it has a copy of.
    control.state(0, "PUT", "app/config").body(b"x").send().expect(204);
    let fragments = "[control]\nfragments = [\"app/\"]";
    let edge = Outrider::joined(&control, Options::default().config(fragments));
    let known = || edge.admin().get("/v1/state/app/config").status == 200;
    until("the edge knows the fragment", known);
    let mut check = outrider_e2e::tools::python("check_openapi.py", scratch.path());
    check.arg(format!("http://127.0.0.1:{}", edge.admin_port())).arg("copy");
    assert!(run(check).ok().contains("get /v1/state/{key} 200"));
    let mut check = outrider_e2e::tools::python("check_openapi.py", scratch.path());
    check.arg(control.admin_url(0));
    let done = run(check).ok();
    assert!(done.contains("put /v1/state/{key} 204") && done.contains("post /v1/cluster/leave"));
    // An edge of its own has the description too, and the pages that every process has.
    let edge = Outrider::start(Options::default().config(""));
    let mut check = outrider_e2e::tools::python("check_openapi.py", scratch.path());
    check.arg(format!("http://127.0.0.1:{}", edge.admin_port())).arg("pages");
    assert!(run(check).ok().contains("get /status 200"));
}

#[test]
fn status_says_what_is_wrong() {
    let dead = outrider_e2e::ports::free();
    let queue = format!(
        "[events]\nqueue = \"rabbitmq\"\n[events.rabbitmq]\nurl = \"amqp://127.0.0.1:{dead}/%2f\"\n"
    );
    let graph = format!("[graph]\nstore = \"neo4j\"\nurl = \"bolt://127.0.0.1:{dead}\"\n");
    let mut control = Control::start(
        3,
        &format!("[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\n{graph}{queue}"),
    );
    let status = |control: &Control, place: usize| {
        let mut command = std::process::Command::new(Outrider::program());
        command.args(["status", "--json", "--admin", &control.admin_url(place)]);
        let output = run(command);
        let told: Value = serde_json::from_str(&output.out).unwrap();
        assert_eq!(output.status.success(), told["healthy"] == true, "{told}");
        let problems = told["problems"].as_array().unwrap().iter();
        problems.map(|problem| problem.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let says = |control: &Control, what: &str| {
        status(control, 0).iter().any(|problem| problem.contains(what))
    };
    // Both are noticed when they are used.
    control.client(0).get("/v1/graph/depth?image=a/b").expect(503);
    until("status names the graph", || says(&control, "the graph's store (neo4j) is down"));
    // The queue does not answer either.
    let is_silent =
        |problem: &String| problem.starts_with("node ") && problem.contains("not answer");
    assert!(!status(&control, 0).iter().any(is_silent));
    let edge = Outrider::joined(&control, Options::default().config(""));
    outrider_e2e::registry::push(&edge.client(), "a/b", "v1", &SmallImage::new(7, &[1000]));
    until("the node that the edge follows names the queue", || {
        let wanted = "the rabbitmq queue of events fails";
        (0..3).any(|place| status(&control, place).iter().any(|found| found.contains(wanted)))
    });
    drop(edge);
    until("status names the edge that is gone", || says(&control, "follows no node"));
    control.kill9(2);
    until("status names the dead node", || says(&control, "(n2, 127.0."));
    control.state(0, "PUT", "k").body(b"v").send().expect(204);
    control.kill9(1);
    until("status says that there is no majority", || says(&control, "2 of 3 nodes do not answer"));
    control.resume(1);
    control.resume(2);
    control.wait_ready(1);
    until("all nodes answer", || {
        let found = status(&control, 0);
        !found.iter().any(|problem| is_silent(problem) || problem.contains("no leader"))
    });
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_applied() {
    let control = Control::start(1, "");
    let client = control.client(0);
    let before = client.get("/v1/state").expect(200).json()["version"].clone();
    let nested = [vec![b'['; 2 << 20], vec![b']'; 2 << 20]].concat();
    let deep = [&b"{\"writes\":[{\"op\":\"put\",\"key\":"[..], &nested[..2 << 20]].concat();
    let long = "x".repeat(129);
    let put = |target: &str, body: &[u8]| client.request("PUT", target).body(body);
    let post = |target: &str, body: &[u8]| client.request("POST", target).body(body);
    for (request, status, wanted) in [
        (put("/v1/customers/a", b"{"), 400, "EOF"),
        (put("/v1/customers/a", b"{}"), 400, "class"),
        (put("/v1/customers/a", br#"{"class":1001}"#), 400, "weight class"),
        (put("/v1/customers/a", br#"{"class":-1}"#), 400, "weight class"),
        (put("/v1/customers/a", br#"{"class":1,"klass":2}"#), 400, "klass"),
        (put("/v1/customers/", br#"{"class":1}"#), 400, "customer's name"),
        (put(&format!("/v1/customers/{long}"), br#"{"class":1}"#), 400, "customer's name"),
        (put("/v1/customers/a%0a", br#"{"class":1}"#), 400, "control character"),
        (put("/v1/customers/a%2", br#"{"class":1}"#), 400, "hexadecimal"),
        (put("/v1/customers/a%ff", br#"{"class":1}"#), 400, "UTF-8"),
        (put("/v1/customers/a", &nested), 413, "at most"),
        (put("/v1/customers/a", br#"{"class":1}"#).header("If-Match", "\"1\""), 400, "no versions"),
        (client.request("GET", "/v1/customers/nobody"), 404, "no such customer"),
        (put("/v1/weights", br#"{"class":1}"#), 400, "frequency"),
        (put("/v1/weights", br#"{"class":1e999}"#), 400, "out of range"),
        (post("/v1/weights", b"{}"), 405, "GET, HEAD, PUT"),
        (post("/v1/invalidations", b"{}"), 400, "one of tag, digest, repository"),
        (post("/v1/invalidations", br#"{"tag":"a"}"#), 400, "REPOSITORY:TAG"),
        (post("/v1/invalidations", br#"{"digest":"sha256:12"}"#), 400, "digest"),
        (post("/v1/invalidations", br#"{"tag":"A/B:c"}"#), 400, ""),
        (put("/v1/tags/a", b"{}"), 400, "REPOSITORY:TAG"),
        (put("/v1/tags/a:b", br#"{"digest":"x","size_bytes":1,"media_type":""}"#), 400, "digest"),
        (put("/v1/tags/a:b", br#"{"digest":"x","size_bytes":-1,"media_type":""}"#), 400, "body"),
        (client.request("GET", "/v1/tags?repository=a&prefix=b"), 400, "not both"),
        (client.request("GET", "/v1/tags?limit=0"), 400, "limit"),
        (post("/v1/batch", &nested[..nested.len() / 2]), 400, "invalid type"),
        (post("/v1/batch", &deep), 400, "recursion limit"),
        (post("/v1/batch", br#"{"writes":[{"op":"check","key":"a"}]}"#), 400, "expect"),
        (post("/v1/batch", br#"{"writes":[{"op":"put","key":"a","value":"?"}]}"#), 400, "base64"),
        (post("/v1/batch", &nested), 413, "at most"),
        (put("/v1/state/a%", b"v"), 400, "hexadecimal"),
        (put("/v1/state/a", &[7; (1 << 20) + 1]), 413, "at most"),
    ] {
        let answer = request.send().expect(status);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert_eq!(client.get("/v1/state").expect(200).json()["version"], before);
    assert_eq!(client.get("/v1/customers").expect(200).json()["customers"], json!([]));
}

/// A token by openssl: who it is does not matter, its scope does.
fn operator_token(
    key: &std::path::Path,
    home: &std::path::Path,
    scope: &str,
    life_s: i64,
) -> String {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let expires = i64::try_from(now.as_secs()).unwrap() + life_s;
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT"}"#);
    let claims = json!({ "iss": "ops", "aud": "outrider-admin", "sub": "ann", "exp": expires, "scope": scope });
    let message = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let (input, output) = (home.join("message"), home.join("signature"));
    std::fs::write(&input, &message).unwrap();
    let mut sign = outrider_e2e::tools::command("openssl", home);
    sign.args(["pkeyutl", "-sign", "-rawin", "-inkey"]).arg(key).arg("-in").arg(&input);
    run({
        sign.arg("-out").arg(&output);
        sign
    })
    .ok();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(std::fs::read(output).unwrap()))
}

#[test]
fn operators_need_tokens_where_that_is_configured() {
    let scratch = Scratch::new();
    let home = scratch.path();
    let (key, public) = (home.join("key.pem"), home.join("public.pem"));
    let openssl = |arguments: &[&str]| {
        let mut command = outrider_e2e::tools::command("openssl", home);
        command.args(arguments);
        run(command).ok()
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", key.to_str().unwrap()]);
    openssl(&["pkey", "-in", key.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
    let auth = format!("[admin.auth]\nissuer = \"ops\"\nkey_file = {public:?}\n");
    let control = Control::start(1, &auth);
    let client = control.client(0);
    let ask = |method: &str, target: &str, token: Option<&str>| {
        let request = client.request(method, target).body(b"{\"class\":1}");
        match token {
            Some(token) => request.header("Authorization", &format!("Bearer {token}")).send(),
            None => request.send(),
        }
    };
    let token = |scope: &str| operator_token(&key, home, scope, 60);
    let [read, write, admin] =
        ["read", "write", "admin"].map(|scope| token(&format!("outrider:{scope}")));
    let told = ask("GET", "/v1/customers", None).expect(401);
    assert_eq!(told.header("www-authenticate"), Some("Bearer realm=\"outrider\""));
    ask("GET", "/v1/customers", Some("x.y.z")).expect(401);
    ask("GET", "/v1/customers", Some(&operator_token(&key, home, "outrider:admin", -60)))
        .expect(401);
    ask("GET", "/v1/customers", Some(&token("outrider:nothing"))).expect(403);
    ask("GET", "/v1/customers", Some(&read)).expect(200);
    ask("PUT", "/v1/customers/a", Some(&read)).expect(403);
    ask("PUT", "/v1/customers/a", Some(&write)).expect(204);
    let wanted = json!({ "role": "edge", "ttl_ms": 60_000 }).to_string();
    let join = |token: &str| {
        let request = client.request("POST", "/v1/cluster/token").body(wanted.as_bytes());
        request.header("Authorization", &format!("Bearer {token}")).send()
    };
    join(&write).expect(403);
    join(&admin).expect(200);
    client.get("/metrics").expect(401);
    client.get("/readyz").expect(200);

    // The same on the admin address of an edge, with a node in its process and without one.
    for embedded in [true, false] {
        let toml = format!("[control]\nembedded = {embedded}\n{auth}");
        let edge = Outrider::start(Options::default().config(&toml));
        let asked = |method: &str, target: &str, token: &str| {
            let request = edge.admin().request(method, target).body(b"{\"class\":1}");
            request.header("Authorization", &format!("Bearer {token}")).send().status
        };
        edge.admin().get("/readyz").expect(200);
        edge.admin().get("/healthz").expect(200);
        for page in ["/metrics", "/status", "/v1/customers", "/v1/openapi.json"] {
            let told = edge.admin().request("GET", page).send().expect(401);
            assert_eq!(told.header("www-authenticate"), Some("Bearer realm=\"outrider\""));
        }
        assert_eq!(asked("GET", "/metrics", &read), 200);
        assert_eq!(asked("GET", "/status", &token("outrider:nothing")), 403);
        let there = |status: u16| if embedded { status } else { 405 };
        assert_eq!(asked("PUT", "/v1/customers/a", &write), there(204));
        if embedded {
            assert_eq!(asked("PUT", "/v1/customers/a", &read), 403);
        }
        let file = home.join("token");
        std::fs::write(&file, format!("{read}\n")).unwrap();
        let url = format!("http://127.0.0.1:{}", edge.admin_port());
        let status = ["status", "--admin", &url, "--token-file", file.to_str().unwrap()];
        until("it is well", || Outrider::run(&status).status.success());
        assert!(Outrider::run(&status[..3]).refused().contains("bearer token"));
    }
    let open = home.join("edge.toml");
    std::fs::write(&open, "[listen]\nadmin = \"0.0.0.0:9180\"\n").unwrap();
    let check = ["edge", "--check-config", "--config", open.to_str().unwrap()];
    let refused = Outrider::run(&check);
    assert!(refused.err.contains("without admin.auth everybody"), "{}", refused.err);

    // On an address that others reach: TLS by the node's own certificate, and never without tokens.
    let port = outrider_e2e::ports::free();
    let config = home.join("open.toml");
    let write_config = |auth: &str| {
        let peers = outrider_e2e::ports::free();
        let text = format!(
            "[data]\ndir = {:?}\n[listen]\npeers = \"127.0.0.1:{peers}\"\nadmin = \"0.0.0.0:{port}\"\n{auth}",
            home.join("open")
        );
        std::fs::write(&config, text).unwrap();
    };
    write_config("");
    let config = config.to_str().unwrap();
    let refused = Outrider::run(&["cluster", "init", "--config", config]).refused();
    assert!(refused.contains("without admin.auth everybody"), "{refused}");
    write_config(&auth);
    Outrider::run(&["cluster", "init", "--config", config]).ok();
    let mut command = std::process::Command::new(Outrider::program());
    command.args(["control", "--config", config]);
    let mut node =
        outrider_e2e::process::Process::start("control", command, &home.join("open.log"));
    let (ca, file) = (home.join("open/tls/ca.pem"), home.join("token"));
    std::fs::write(&file, format!("{read}\n")).unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let at =
        ["--admin", &url, "--ca", ca.to_str().unwrap(), "--token-file", file.to_str().unwrap()];
    let named = [&at[..], &["--tls-name", "node.outrider.internal"]].concat();
    node.wait_until("status answers over TLS", || {
        Outrider::run(&[&["status"], &named[..]].concat()).status.success()
    });
    // The certificate is not one of 127.0.0.1.
    let error = Outrider::run(&[&["status"], &at[..]].concat()).refused();
    assert!(error.contains("certificate"), "{error}");
    let error = Outrider::run(&[&["state", "put", "k", "v"], &named[..]].concat()).refused();
    assert!(error.contains("scope"), "{error}");
    let plain = Client::new(port).raw(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(!plain.starts_with(b"HTTP/1.1 200"), "plain HTTP is not answered");
    let error = Outrider::run(&[
        "status",
        "--admin",
        "http://10.0.0.1:1",
        "--token-file",
        file.to_str().unwrap(),
    ]);
    assert!(error.refused().contains("over https alone"));
}
