//! Who may do what: real clients that log in, and everybody who may not, by every protocol.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Buf, Bytes};
use jsonwebtoken::{Algorithm, EncodingKey};
use outrider_artifact::native::{self, Item, Reader, Want, WantKind};
use outrider_e2e::clients::containerd::Containerd;
use outrider_e2e::clients::crane::Crane;
use outrider_e2e::clients::docker::Docker;
use outrider_e2e::clients::oras::Oras;
use outrider_e2e::clients::podman::Podman;
use outrider_e2e::clients::quic;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::control::Control;
use outrider_e2e::registry::*;
use outrider_e2e::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

const SERVICE: &str = "edge.test";
const ISSUER: &str = "https://issuer.test";

/// An edge that asks who asks, its customers `acme` and `globex`, and an issuer of tokens.
struct Site {
    edge: Outrider,
    folder: Scratch,
    acme: String,
    globex: String,
}

impl Site {
    fn start(more: &str, options: Options) -> Self {
        Self::start_by(more, |toml| Outrider::start(options.config(toml)))
    }

    /// Of an edge that is started with this configuration.
    fn start_by(more: &str, start: impl FnOnce(&str) -> Outrider) -> Self {
        let folder = Scratch::new();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let secret = |customer: &str| {
            let arguments = ["secret", customer, "--file", &path("secrets")];
            Outrider::run(&arguments).ok().trim().to_owned()
        };
        let (acme, globex) = (secret("acme"), secret("globex"));
        if !folder.path().join("key.pem").exists() {
            let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            fs::write(folder.path().join("key.pem"), pair.public_key_pem()).unwrap();
        }
        let toml = format!(
            "[auth]\nservice = {SERVICE:?}\nreload = \"100ms\"\nsecrets_file = {:?}\naudit_file = {:?}\n{more}\n\
             [[auth.customer]]\nname = \"acme\"\nallow = [\"*:acme/**\", \"push,pull:shared/**\", \"catalog\"]\n\
             [[auth.customer]]\nname = \"globex\"\nallow = [\"*:globex/**\", \"pull:shared/**\"]\n\
             [[auth.issuer]]\nname = {ISSUER:?}\nkey_file = {:?}\n",
            path("secrets"),
            path("audit"),
            path("key.pem"),
        );
        let edge = start(&toml);
        Self { edge, folder, acme, globex }
    }

    fn client(&self) -> Client {
        self.edge.client()
    }

    /// A token of the edge's own.
    fn token(&self, login: Option<(&str, &str)>, scopes: &[&str]) -> Answer {
        let scopes: String = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
        let request = self.client().request("GET", &format!("/token?service={SERVICE}{scopes}"));
        match login {
            Some((name, secret)) => request.header("Authorization", &basic(name, secret)).send(),
            None => request.send(),
        }
    }

    fn bearer(&self, login: Option<(&str, &str)>, scope: &str) -> String {
        let answer = self.token(login, &[scope]).expect(200).json();
        format!("Bearer {}", answer["token"].as_str().unwrap())
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("audit")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn push(&self, repository: &str, image: &SmallImage, secret: &str) {
        let login = repository.split('/').next().unwrap();
        let authorization = basic(login, secret);
        for blob in image.blobs() {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(blob));
            let post = self.client().request("POST", &path);
            post.header("Authorization", &authorization).body(blob).send().expect(201);
        }
        let put = self.client().request("PUT", &manifest_path(repository, "v1"));
        let put = put.header("Content-Type", &image.media_type);
        put.header("Authorization", &authorization).body(&image.manifest).send().expect(201);
    }
}

fn basic(name: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")))
}

fn get(client: &Client, path: &str, authorization: &str) -> Answer {
    client.request("GET", path).header("Authorization", authorization).send()
}

fn challenge(answer: &Answer) -> &str {
    answer.header("www-authenticate").unwrap_or_else(|| panic!("{:?}", answer.headers))
}

/// A token of an issuer that is not Outrider.
fn jwt(pair: &KeyPair, algorithm: Algorithm, claims: &Value) -> String {
    let der = pair.serialize_der();
    let key = match algorithm {
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
        Algorithm::ES256 => EncodingKey::from_ec_der(&der),
        _ => {
            // The key within PKCS#8.
            let at = 20 + der.windows(2).skip(20).position(|two| two == [0x30, 0x82]).unwrap();
            EncodingKey::from_rsa_der(&der[at..])
        }
    };
    jsonwebtoken::encode(&jsonwebtoken::Header::new(algorithm), claims, &key).unwrap()
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn claims(customer: &str) -> Value {
    json!({ "iss": ISSUER, "aud": SERVICE, "sub": customer, "exp": now() + 600 })
}

#[test]
fn real_clients_log_in_push_and_pull_and_are_refused_what_is_not_theirs() {
    let site = Site::start("", Options::default());
    let layout = image::real(3, 8);
    let host = site.edge.host();
    let (mine, theirs) = (format!("{host}/acme/app:v1"), format!("{host}/globex/app:v1"));

    let skopeo = Skopeo::new();
    assert!(!skopeo.try_push(&layout, &mine).status.success(), "nobody pushes without a login");
    assert!(!skopeo.login(&host, "acme", "guessed").status.success());
    assert!(!skopeo.login(&host, "acme", &site.globex).status.success());
    skopeo.login(&host, "acme", &site.acme).ok();
    skopeo.push(&layout, &mine);
    layout::assert_same(&skopeo.pull(&mine), &layout);
    assert!(!skopeo.try_push(&layout, &theirs).status.success(), "another customer's repository");
    let other = Skopeo::new();
    other.login(&host, "globex", &site.globex).ok();
    assert!(!other.try_pull(&mine).1.status.success(), "another customer's image");
    other.push(&layout, &theirs);
    assert!(!Skopeo::new().try_pull(&mine).1.status.success(), "nobody's pull");

    // Over HTTPS, where the realm is another.
    let secure = Skopeo::trusting(&site.edge.ca_pem());
    let secure_name = format!("{}/acme/app:v1", site.edge.https_host());
    secure.login(&site.edge.https_host(), "acme", &site.acme).ok();
    layout::assert_same(&secure.pull(&secure_name), &layout);

    let crane = Crane::new();
    crane.login(&host, "acme", &site.acme);
    layout::assert_same(&crane.pull(&mine), &layout);
    let copied = crane.pull(&mine);
    crane.push(&copied, &format!("{host}/acme/crane:v1"));
    assert_eq!(crane.tags(&format!("{host}/acme/crane")), ["v1"]);

    let podman = Podman::new();
    podman.login(&host, "acme", &site.acme);
    assert_eq!(podman.pull(&mine), layout::digest(&layout));
    podman.push(&layout, &format!("{host}/acme/podman:v1"));

    let oras = Oras::new();
    oras.login(&host, "acme", &site.acme);
    oras.push_image(&layout, &format!("{host}/acme/oras:v1"));
    layout::assert_same(&oras.pull_image(&format!("{host}/acme/oras:v1")), &layout);
}

#[test]
fn docker_and_containerd_log_in() {
    let site = Site::start("", Options::default());
    let layout = image::real(3, 8);
    let host = site.edge.host();
    let mine = format!("{host}/acme/app:v1");
    let skopeo = Skopeo::new();
    skopeo.login(&host, "acme", &site.acme).ok();
    skopeo.push(&layout, &mine);

    let docker = Docker::with_mirror(&site.edge.url());
    assert!(!docker.try_pull(&mine).status.success());
    assert!(!docker.login(&host, "acme", "guessed").status.success());
    docker.login(&host, "acme", &site.acme).ok();
    assert_eq!(docker.pull(&mine), layout::digest(&layout));
    docker.push_as(&mine, &format!("{host}/acme/docker:v1")).ok();
    // Its layers are offered from the repository that they came from.
    docker.push_as(&mine, &format!("{host}/shared/docker:v1")).ok();
    assert!(!docker.push_as(&mine, &format!("{host}/globex/docker:v1")).status.success());

    let containerd = Containerd::start();
    assert!(!containerd.pull_as(&mine, None).status.success());
    assert!(!containerd.pull_as(&mine, Some(("globex", &site.globex))).status.success());
    containerd.pull_as(&mine, Some(("acme", &site.acme))).ok();
}

#[test]
fn who_may_not_is_told_where_to_get_a_token_and_for_what() {
    let site = Site::start("anonymous = [\"pull:public/**\"]", Options::default());
    let client = site.client();
    let digest = sha256(b"x");
    let realm = format!("Bearer realm=\"{}/token\",service=\"{SERVICE}\"", site.edge.url());
    let answer = client.get("/v2/").expect_error(401, "UNAUTHORIZED");
    assert_eq!(challenge(&answer), realm);
    for (method, path, scope) in [
        ("GET", manifest_path("acme/app", "v1"), "repository:acme/app:pull"),
        ("HEAD", blob_path("acme/app", &digest), "repository:acme/app:pull"),
        ("GET", "/v2/acme/app/tags/list".into(), "repository:acme/app:pull"),
        ("POST", "/v2/acme/app/blobs/uploads/".into(), "repository:acme/app:pull,push"),
        ("PUT", manifest_path("public/app", "v1"), "repository:public/app:pull,push"),
        (
            "POST",
            format!("/v2/acme/app/blobs/uploads/?mount={digest}&from=globex/app"),
            "repository:acme/app:pull,push repository:globex/app:pull",
        ),
        ("DELETE", manifest_path("acme/app", "v1"), "repository:acme/app:delete"),
        ("GET", "/v2/_catalog".into(), "registry:catalog:*"),
    ] {
        let answer = client.request(method, &path).send().expect(401);
        assert_eq!(challenge(&answer), format!("{realm},scope=\"{scope}\""), "{method} {path}");
    }
    // With a token that does not grant it.
    let token = site.bearer(Some(("globex", &site.globex)), "repository:acme/app:pull");
    let path = manifest_path("acme/app", "v1");
    let answer = get(&client, &path, &token).expect_error(401, "DENIED");
    assert!(challenge(&answer).ends_with(",error=\"insufficient_scope\""));
    // A login itself has no rights that a token would add.
    get(&client, &path, &basic("globex", &site.globex)).expect_error(403, "DENIED");
    for wrong in ["Bearer x", "Bearer a.b.c", "Basic x", "Digest x", "Bearer"] {
        let answer = get(&client, &path, wrong).expect_error(401, "UNAUTHORIZED");
        assert!(challenge(&answer).ends_with(",error=\"invalid_token\""), "{wrong}");
    }
    // What anybody may.
    client.get(&manifest_path("public/app", "v1")).expect_error(404, "MANIFEST_UNKNOWN");
    let token = site.bearer(None, "repository:public/app:pull,push");
    get(&client, &manifest_path("public/app", "v1"), &token).expect_error(404, "MANIFEST_UNKNOWN");
    get(&client, "/v2/", &token).expect(200);
    client.get("/layer/request?digest=sha256:0").expect_error(400, "DIGEST_INVALID");
    client.get(&format!("/layer/request?digest={digest}")).expect_error(403, "DENIED");
}

#[test]
fn tokens_of_the_edge_grant_what_their_customer_has_and_no_more() {
    let site = Site::start("anonymous = [\"pull:public/**\"]", Options::default());
    let granted = |login, scopes: &[&str]| {
        let token =
            site.token(login, scopes).expect(200).json()["token"].as_str().unwrap().to_owned();
        let body = token.split('.').nth(1).unwrap();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap();
        claims["access"].clone()
    };
    let acme = Some(("acme", &*site.acme));
    let all =
        ["repository:acme/a:pull,push,delete", "repository:globex/a:pull", "registry:catalog:*"];
    assert_eq!(
        granted(acme, &all),
        json!([
            { "type": "repository", "name": "acme/a", "actions": ["pull", "push", "delete"] },
            { "type": "registry", "name": "catalog", "actions": ["*"] },
        ])
    );
    assert_eq!(granted(None, &all), json!([]));
    assert_eq!(granted(None, &["repository:public/a:pull,push"])[0]["actions"], json!(["pull"]));
    for (name, secret) in [("acme", "x"), ("acme", &site.globex), ("nobody", &site.acme)] {
        let answer = site.token(Some((name, secret)), &[]).expect_error(401, "UNAUTHORIZED");
        assert!(challenge(&answer).starts_with("Basic "));
    }
    site.client().get("/token?service=other").expect(400);
    // By OAuth 2, as containerd asks first.
    let form = format!(
        "grant_type=password&service={SERVICE}&username=acme&password={}&scope={}",
        site.acme, all[0]
    );
    let post = site.client().request("POST", "/token");
    let answer = post
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form.as_bytes())
        .send();
    assert!(answer.expect(200).json()["access_token"].is_string());
    let post = site.client().request("POST", "/token");
    post.body(b"grant_type=refresh_token&refresh_token=x").send().expect(405);
}

#[test]
fn a_digest_is_no_right_to_content_by_any_protocol() {
    let site = Site::start("", Options::default());
    let (secret, public) = (SmallImage::new(1, &[50_000, 3_000_000]), SmallImage::new(2, &[1_000]));
    site.push("acme/app", &secret, &site.acme);
    site.push("globex/app", &public, &site.globex);
    let probe = basic("globex", &site.globex);
    let client = site.client();
    let (quic, native) = (Http3::connect(&site.edge), Native::connect(&site.edge));
    let right = site.bearer(Some(("acme", &site.acme)), "repository:acme/app:pull");
    let wrong = site.bearer(Some(("globex", &site.globex)), "repository:globex/app:pull");
    let token = |bearer: &str| bearer.strip_prefix("Bearer ").unwrap().to_owned();
    for _ in 0..3 {
        for (bytes, kind) in secret
            .blobs()
            .map(|blob| (blob, WantKind::Blob))
            .chain([(&secret.manifest, WantKind::Manifest)])
        {
            let digest = sha256(bytes);
            let path = |repository: &str| match kind {
                WantKind::Blob => blob_path(repository, &digest),
                WantKind::Manifest => manifest_path(repository, &digest),
            };
            // Who may has it by all of them, so that it is in memory where the others ask.
            assert!(get(&client, &path("acme/app"), &right).expect(200).body == *bytes);
            assert!(quic.get(&path("acme/app"), &right) == (200, bytes.clone()));
            assert!(
                native.ask("acme/app", &digest, kind, Some(&token(&right))) == (200, bytes.clone())
            );
            // In the own repository, and in the other one.
            get(&client, &path("globex/app"), &probe).expect(404);
            get(&client, &path("globex/app"), &wrong).expect(404);
            get(&client, &path("acme/app"), &probe).expect(403);
            get(&client, &path("acme/app"), &wrong).expect(401);
            client
                .request("HEAD", &path("globex/app"))
                .header("Authorization", &wrong)
                .send()
                .expect(404);
            assert_eq!(quic.get(&path("globex/app"), &wrong).0, 404);
            assert_eq!(quic.get(&path("acme/app"), &wrong).0, 401);
            assert_eq!(native.ask("globex/app", &digest, kind, Some(&token(&wrong))).0, 404);
            assert_eq!(native.ask("acme/app", &digest, kind, Some(&token(&wrong))).0, 401);
            assert_eq!(native.ask("acme/app", &digest, kind, None).0, 401);
            assert_eq!(native.ask("", &digest, kind, Some(&token(&right))).0, 403);
            get(&client, &format!("/layer/request?digest={digest}"), &right).expect(403);
        }
    }
    let blob = &secret.layers[0];
    let digest = sha256(blob);
    get(&client, &format!("/layer/request?digest={digest}&image=acme/app"), &right).expect(200);
    get(&client, &format!("/layer/request?digest={digest}&image=globex/app"), &wrong).expect(404);
    get(&client, &format!("/layer/request?digest={digest}&image=acme/app&customer=globex"), &right)
        .expect_error(403, "DENIED");
    // A mount without the right to the source is an upload like others; so is one that names no source.
    for from in ["&from=acme/app", ""] {
        let path = format!("/v2/globex/app/blobs/uploads/?mount={digest}{from}");
        client.request("POST", &path).header("Authorization", &probe).send().expect(202);
    }
    // Nor does a manifest that names it bring it in.
    let put = client.request("PUT", &manifest_path("globex/app", "stolen"));
    let put = put.header("Content-Type", &secret.media_type).header("Authorization", &probe);
    put.body(&secret.manifest).send().expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    // Within what is one's own, a mount is one.
    let path = format!("/v2/acme/other/blobs/uploads/?mount={digest}&from=acme/app");
    let acme = basic("acme", &site.acme);
    client.request("POST", &path).header("Authorization", &acme).send().expect(201);
    assert!(get(&client, &blob_path("acme/other", &digest), &acme).expect(200).body == *blob);
    // What is said of all that.
    until("the refusals are in the audit", || {
        let audit = site.audit();
        let has = |reason: &str| {
            audit.iter().any(|line| {
                line["outcome"] == "refused"
                    && line["reason"] == reason
                    && line["customer"] == "globex"
            })
        };
        has("not_linked")
            && has("scope")
            && audit.iter().any(|line| line["reason"] == "digest_alone")
    });
    let pushed = site
        .audit()
        .iter()
        .filter(|line| line["action"] == "push" && line["outcome"] == "granted")
        .count();
    assert!(pushed >= 5, "{pushed}");
    let text = fs::read_to_string(site.folder.path().join("audit")).unwrap() + &site.edge.log();
    for secret in [&*site.acme, &site.globex, &token(&right), &token(&wrong)] {
        assert!(!text.contains(secret), "a secret is written down");
    }
    let refused = site
        .edge
        .metrics()
        .sum("outrider_access_decisions_total", &["outcome=\"refused\"", "reason=\"not_linked\""]);
    assert!(refused >= 20.0, "{refused}");
}

#[test]
fn an_upstreams_content_is_read_where_the_upstream_has_it() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(3, &[40_000]);
    upstream.image("team/app", "v1", &image);
    let rules = "anonymous = [\"pull:team/**\", \"pull:evil/**\"]";
    let site = Site::start(rules, Options::with_upstream(&upstream.url()));
    let client = site.client();
    let digest = sha256(&image.layers[0]);
    // The upstream has content by its digest in every repository, but for this.
    upstream.always("", "/v2/evil/", &[Fault::status(404)]);
    client.get(&blob_path("evil/app", &digest)).expect(404);
    get_manifest(&client, "team/app", "v1").expect(200);
    assert!(client.get(&blob_path("team/app", &digest)).expect(200).body == image.layers[0]);
    for _ in 0..3 {
        client.get(&blob_path("evil/app", &digest)).expect_error(404, "BLOB_UNKNOWN");
        client
            .get(&manifest_path("evil/app", &image.digest()))
            .expect_error(404, "MANIFEST_UNKNOWN");
        assert!(client.get(&blob_path("team/app", &digest)).expect(200).body == image.layers[0]);
    }
    // A repository that has it too, says the upstream; once is enough.
    let asked = upstream.count("HEAD", "/team/other/");
    for _ in 0..5 {
        assert!(client.get(&blob_path("team/other", &digest)).expect(200).body == image.layers[0]);
    }
    let asked = upstream.count("HEAD", "/team/other/") - asked;
    assert!((1..=2).contains(&asked), "{asked}: once for each shard");
    // However many ask at the same time.
    let gate = Gate::shut();
    upstream.always("HEAD", "/team/third/", &[Fault::HoldHead(gate.clone())]);
    let path = blob_path("team/third", &digest);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| client.get(&path).status)).collect();
        until("one of them asks", || upstream.count("HEAD", "/team/third/") > 0);
        std::thread::sleep(std::time::Duration::from_millis(300));
        gate.open();
        assert!(clients.into_iter().all(|client| client.join().unwrap() == 200));
    });
    let asked = upstream.count("HEAD", "/team/third/");
    assert!((1..=2).contains(&asked), "{asked}: once for each shard");
    // Who has it already, and the edge not, is told so.
    let elsewhere = upstream.blob(b"not here");
    let head = client.request("HEAD", &blob_path("team/app", &elsewhere));
    head.header("If-None-Match", &format!("\"{elsewhere}\"")).send().expect(304);
}

#[test]
fn who_asked_first_has_nothing_of_what_another_mirror_brings() {
    let upstream = FakeUpstream::start();
    let rules = "anonymous = [\"pull:team/**\", \"pull:evil/**\"]";
    let site = Site::start(rules, Options::with_upstream(&upstream.url()));
    let client = site.client();
    let content: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    let digest = upstream.blob(&content);
    let gate = Gate::shut();
    upstream.always("GET", "/v2/evil/", &[Fault::HoldHead(gate.clone()), Fault::status(404)]);
    upstream.always("HEAD", "/v2/evil/", &[Fault::status(404)]);
    std::thread::scope(|scope| {
        let evil = scope.spawn(|| client.get(&blob_path("evil/app", &digest)));
        until("its fetch is under way", || upstream.count("GET", "/v2/evil/") == 1);
        let team = scope.spawn(|| client.get(&blob_path("team/app", &digest)));
        until("the other one joins it", || {
            site.edge.metrics().sum("outrider_flights_joined_total", &[]) >= 1.0
        });
        gate.open();
        assert!(team.join().unwrap().expect(200).body == content);
        evil.join().unwrap().expect_error(404, "BLOB_UNKNOWN");
    });
    client.get(&blob_path("evil/app", &digest)).expect_error(404, "BLOB_UNKNOWN");
}

#[test]
fn a_mount_is_an_upload_while_its_source_cannot_be_asked() {
    let mut upstream = FakeUpstream::start();
    let rules = "anonymous = [\"pull:team/**\"]";
    let site = Site::start(rules, Options::with_upstream(&upstream.url()));
    let digest = upstream.blob(b"layer");
    site.client().get(&blob_path("team/app", &digest)).expect(200);
    upstream.stop();
    let path = format!("/v2/acme/app/blobs/uploads/?mount={digest}&from=team/other");
    let post = site.client().request("POST", &path);
    post.header("Authorization", &basic("acme", &site.acme)).send().expect(202);
}

#[test]
fn a_registry_that_is_named_gives_no_right_to_a_layer_that_is_hosted() {
    let upstream = FakeUpstream::start();
    let options = Options::default().and_named("ghcr.io", &upstream.url());
    let site = Site::start("anonymous = [\"pull:ghcr.io/**\"]", options);
    let secret = SmallImage::new(11, &[20_000]);
    site.push("acme/app", &secret, &site.acme);
    let digest = sha256(&secret.layers[0]);
    let layer = format!("/layer/request?digest={digest}&image=acme/app&ns=ghcr.io");
    site.client().get(&layer).expect_error(401, "UNAUTHORIZED");
    site.client().get(&format!("{}?ns=ghcr.io", blob_path("acme/app", &digest))).expect(404);
    get(&site.client(), &layer, &basic("acme", &site.acme)).expect(200);
}

#[test]
fn a_token_is_not_exchanged_for_a_later_one_and_a_revoked_secret_for_none() {
    let site = Site::start("", Options::default());
    let client = site.client();
    let expires = |token: &str| {
        let body = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["exp"].as_u64().unwrap()
    };
    let scope = "repository:acme/app:pull";
    let first = site.bearer(Some(("acme", &site.acme)), scope);
    let first = first.strip_prefix("Bearer ").unwrap();
    // Its full life would end later by now.
    let since = now();
    until("a second is over", || now() > since);
    let path = format!("/token?service={SERVICE}&scope={scope}");
    for login in [format!("Bearer {first}"), basic("acme", first)] {
        let second = get(&client, &path, &login).expect(200).json();
        let second = second["token"].as_str().unwrap();
        assert!(expires(second) <= expires(first), "{login}");
    }
    // A request that began before a secret was revoked, and ends after it.
    let form =
        format!("grant_type=password&service={SERVICE}&username=acme&password={}", site.acme);
    let (one, two) = form.as_bytes().split_at(form.len() - 1);
    let post = client.request("POST", "/token");
    let post = post.header("Content-Type", "application/x-www-form-urlencoded");
    let mut post = post.begin(Some(form.len() as u64)).unwrap();
    post.write(one).unwrap();
    let login = basic("acme", &site.acme);
    get(&client, "/v2/_catalog", &login).expect(200);
    replace(&site.folder.path().join("secrets"), "");
    until("the secret is not taken any more", || {
        get(&client, "/v2/_catalog", &login).status == 401
    });
    post.write(two).unwrap();
    post.finish().unwrap().expect_error(401, "UNAUTHORIZED");
    for _ in 0..8 {
        get(&client, "/v2/_catalog", &login).expect(401);
    }
}

#[test]
fn keys_of_all_kinds_and_secrets_change_while_it_runs() {
    let site = Site::start("", Options::default());
    let client = site.client();
    let key = site.folder.path().join("key.pem");
    let path = "/v2/_catalog";
    let is_taken = |token: &str| get(&client, path, &format!("Bearer {token}")).status == 200;
    let mut before: Option<String> = None;
    for (kind, algorithm) in [
        (&PKCS_ED25519, Algorithm::EdDSA),
        (&PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
        (&PKCS_RSA_SHA256, Algorithm::RS256),
    ] {
        let pair = KeyPair::generate_for(kind).unwrap();
        let token = jwt(&pair, algorithm, &claims("acme"));
        assert!(!is_taken(&token));
        replace(&key, &pair.public_key_pem());
        until("the new key is taken", || is_taken(&token));
        if let Some(before) = before {
            get(&client, path, &format!("Bearer {before}")).expect_error(401, "UNAUTHORIZED");
        }
        for (name, wrong) in [
            ("aud", json!("other")),
            ("iss", json!("https://other.test")),
            ("exp", json!(now() - 1000)),
            ("nbf", json!(now() + 1000)),
            ("sub", json!("")),
        ] {
            let mut claims = claims("acme");
            claims[name] = wrong;
            let token = jwt(&pair, algorithm, &claims);
            get(&client, path, &format!("Bearer {token}")).expect_error(401, "UNAUTHORIZED");
        }
        // A token of the issuer is what one logs in with, too.
        let docker = site.token(Some(("acme", &token)), &["repository:acme/a:push"]).expect(200);
        assert!(docker.json()["token"].is_string());
        site.token(Some(("globex", &token)), &[]).expect(401);
        // What it says of access is all that it grants.
        let mut claims = claims("acme");
        claims["access"] = json!([{ "type": "repository", "name": "acme/a", "actions": ["pull"] }]);
        let narrow = format!("Bearer {}", jwt(&pair, algorithm, &claims));
        get(&client, path, &narrow).expect_error(401, "DENIED");
        get(&client, "/v2/acme/a/tags/list", &narrow).expect_error(404, "NAME_UNKNOWN");
        before = Some(token);
    }
    // What is no key leaves the one that there is.
    replace(&key, "no key");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(is_taken(&before.unwrap()));
    let login = basic("acme", &site.acme);
    get(&client, path, &login).expect(200);
    replace(&site.folder.path().join("secrets"), "");
    until("the secret is not taken any more", || get(&client, path, &login).status == 401);
}

/// A key set at an address, and how often it was asked for.
struct Jwks {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
}

impl Jwks {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let (keys, asked) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::<AtomicUsize>::default());
        let (shown, count) = (Arc::clone(&keys), Arc::clone(&asked));
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                count.fetch_add(1, Ordering::SeqCst);
                let body = json!({ "keys": *shown.lock().unwrap() }).to_string();
                let head = format!("Content-Length: {}\r\nConnection: close", body.len());
                let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}");
            }
        });
        Self { url, keys, asked }
    }

    fn add(&self, id: &str, pair: &KeyPair) {
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x });
        self.keys.lock().unwrap().push(key);
    }
}

/// A token that names its key.
fn jwt_of(pair: &KeyPair, id: &str, claims: &Value) -> String {
    let header = jsonwebtoken::Header {
        kid: Some(id.to_owned()),
        ..jsonwebtoken::Header::new(Algorithm::EdDSA)
    };
    let key = EncodingKey::from_ed_der(&pair.serialize_der());
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

#[test]
fn a_key_that_a_token_names_is_fetched_at_once_and_random_ones_fetch_nothing() {
    let jwks = Jwks::start();
    let [old, new, never] = [(); 3].map(|()| KeyPair::generate_for(&PKCS_ED25519).unwrap());
    jwks.add("one", &old);
    let issuer = "https://rotates.test";
    let site = Site::start_by("jwks_refresh = \"1d\"", |toml| {
        let toml = format!("{toml}[[auth.issuer]]\nname = {issuer:?}\njwks_url = {:?}\n", jwks.url);
        Outrider::start(Options::default().config(&toml))
    });
    let client = site.client();
    let mut claims = claims("acme");
    claims["iss"] = json!(issuer);
    let path = "/v2/_catalog";
    let first = format!("Bearer {}", jwt_of(&old, "one", &claims));
    until("the first key is there", || get(&client, path, &first).status == 200);
    let before = jwks.asked.load(Ordering::SeqCst);

    // The issuer rotates: the first request with the new key is answered, and makes it be fetched.
    jwks.add("two", &new);
    let token = jwt_of(&new, "two", &claims);
    get(&client, path, &format!("Bearer {token}")).expect(200);
    assert_eq!(jwks.asked.load(Ordering::SeqCst), before + 1);
    site.token(Some(("acme", &token)), &[]).expect(200);

    // Keys that nobody has.
    let started = std::time::Instant::now();
    for number in 0..200 {
        let token = jwt_of(&never, &format!("random-{number}"), &claims);
        get(&client, path, &format!("Bearer {token}")).expect_error(401, "UNAUTHORIZED");
    }
    let most = 1 + usize::try_from(started.elapsed().as_secs() / 10).unwrap();
    let more = jwks.asked.load(Ordering::SeqCst) - before - 1;
    assert!(more <= most, "{more} fetches in {:?}", started.elapsed());
    get(&client, path, &first).expect(200);
}

#[test]
fn hostile_tokens_are_refused_and_nothing_else_happens() {
    let site = Site::start("", Options::default());
    let client = site.client();
    let public = fs::read_to_string(site.folder.path().join("key.pem")).unwrap();
    let hmac = EncodingKey::from_secret(public.as_bytes());
    let header = jsonwebtoken::Header::new(Algorithm::HS256);
    let confused = jsonwebtoken::encode(&header, &claims("acme"), &hmac).unwrap();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let none = format!("{}.{}.", encode(r#"{"alg":"none"}"#), encode(&claims("acme").to_string()));
    let deep = format!("{}{}", "[".repeat(2_000), "]".repeat(2_000));
    let nested = format!("{}.{}.x", encode(r#"{"alg":"EdDSA"}"#), encode(&deep));
    let huge = format!("{}.{}.x", encode(r#"{"alg":"EdDSA"}"#), "A".repeat(20_000));
    for token in [confused, none, nested, huge, "..".into()] {
        let answer = get(&client, "/v2/_catalog", &format!("Bearer {token}")).expect(401);
        assert!(!answer.text().contains(&token));
        let answer =
            client.request("GET", "/token").header("Authorization", &basic("acme", &token));
        answer.send().expect(401);
    }
    let twice =
        client.request("GET", "/v2/_catalog").header("Authorization", &basic("acme", &site.acme));
    twice.header("Authorization", "Bearer x").send().expect(401);
    get(&client, "/v2/_catalog", &basic("acme", &site.acme)).expect(200);
}

#[test]
fn edges_of_a_fleet_know_each_other_and_give_each_repository_its_own() {
    let control = Control::start(1, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    let join = |toml: &str| Outrider::joined(&control, Options::default().config(toml));
    let (a, b) = (Site::start_by("", join), Site::start_by("", join));
    let (secret, other) = (SmallImage::new(7, &[60_000]), SmallImage::new(8, &[60_000]));
    a.push("acme/app", &secret, &a.acme);
    a.push("globex/app", &other, &a.globex);
    let (acme, globex) = (basic("acme", &b.acme), basic("globex", &b.globex));
    let tag = |repository: &str| manifest_path(repository, "v1");
    until("the other edge answers the tag", || {
        get(&b.client(), &tag("globex/app"), &globex).status == 200
    });
    let digest = sha256(&secret.layers[0]);
    // It is only at the other edge, and then here too.
    for _ in 0..2 {
        get(&b.client(), &blob_path("globex/app", &digest), &globex)
            .expect_error(404, "BLOB_UNKNOWN");
        get(&b.client(), &manifest_path("globex/app", &secret.digest()), &globex).expect(404);
        get(&b.client(), &tag("acme/app"), &globex).expect_error(403, "DENIED");
        assert!(get(&b.client(), &tag("acme/app"), &acme).expect(200).body == secret.manifest);
        let got = get(&b.client(), &blob_path("acme/app", &digest), &acme).expect(200);
        assert!(got.body == secret.layers[0]);
    }
    let fetched = ["outcome=\"ok\"", "upstream=\"edge-"];
    assert!(b.edge.metrics().sum("outrider_uplink_fetches_total", &fetched) >= 1.0);
    // Nor does a manifest that names it bring it in, whether it is here from the other edge or was pushed here.
    let here = SmallImage::new(12, &[60_000]);
    b.push("acme/here", &here, &b.acme);
    let put = |image: &SmallImage, tag: &str| {
        let put = b.client().request("PUT", &manifest_path("globex/app", tag));
        let put = put.header("Content-Type", &image.media_type).header("Authorization", &globex);
        put.body(&image.manifest).send()
    };
    for stolen in [&secret, &here] {
        put(stolen, "stolen").expect_error(400, "MANIFEST_BLOB_UNKNOWN");
        for blob in stolen.blobs() {
            get(&b.client(), &blob_path("globex/app", &sha256(blob)), &globex).expect(404);
        }
    }
    // What the other edge holds for the repository, it does.
    put(&other, "again").expect(201);
    // A token of one edge is good at the others, as far as it says, and until its edge is taken out.
    let token = a.bearer(Some(("acme", &a.acme)), "repository:acme/app:pull");
    until("the other edge knows the key", || {
        get(&b.client(), &tag("acme/app"), &token).status == 200
    });
    get(&b.client(), &tag("globex/app"), &token).expect_error(401, "DENIED");
    get(&a.client(), &tag("acme/app"), &token).expect(200);
    let number = |site: &Site| {
        let status = site.edge.admin().get("/status").expect(200).json();
        status["control"]["edge"].as_u64().unwrap().to_string()
    };
    let back = b.bearer(Some(("acme", &b.acme)), "repository:acme/app:pull");
    until("and the other way round", || get(&a.client(), &tag("acme/app"), &back).status == 200);
    control.cluster(0, &["remove", &number(&b)]).ok();
    until("its tokens end with it", || get(&a.client(), &tag("acme/app"), &back).status == 401);
    get(&a.client(), &tag("acme/app"), &token).expect(200);
    // Who has no certificate of the fleet is nobody, by the native protocol too.
    let native = Native::connect(&a.edge);
    assert_eq!(native.ask("acme/app", &digest, WantKind::Blob, None).0, 401);
}

#[test]
fn outrider_get_shows_a_token_by_every_protocol() {
    let site = Site::start("", Options::default());
    let image = SmallImage::new(9, &[300_000]);
    site.push("acme/app", &image, &site.acme);
    let file = |name: &str, text: &str| {
        let path = site.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let bearer = site.bearer(Some(("acme", &site.acme)), "repository:acme/app:pull");
    let token = file("token", bearer.strip_prefix("Bearer ").unwrap());
    let secret = file("secret", &format!("acme:{}\n", site.acme));
    let digest = sha256(&image.layers[0]);
    let get = |protocol: &str, credential: &[&str], into: &str| {
        let output = site.folder.path().join(into).display().to_string();
        let ca = site.edge.ca_pem().display().to_string();
        let from = format!("https://{}", site.edge.https_host());
        let mut arguments = vec!["get", &digest, "--repository", "acme/app", "--from", &from];
        arguments.extend(["--ca", &ca, "--protocol", protocol, "--output", &output, "--quiet"]);
        arguments.extend(credential);
        let done = Outrider::run(&arguments).status.success();
        assert!(!done || fs::read(&output).unwrap() == image.layers[0]);
        done
    };
    for protocol in ["https", "h3", "native"] {
        assert!(get(protocol, &["--token-file", &token], &format!("t-{protocol}")));
        let by_secret = get(protocol, &["--token-file", &secret], &format!("s-{protocol}"));
        assert_eq!(by_secret, protocol != "native");
        assert!(!get(protocol, &[], &format!("n-{protocol}")));
    }
}

#[test]
fn without_auth_everything_is_as_it_was() {
    let edge = Outrider::start(Options::default());
    let image = SmallImage::new(4, &[1_000]);
    push(&edge.client(), "any/app", "v1", &image);
    assert_served(&edge.client(), "any/app", "v1", &image);
    edge.client().get("/token").expect(404);
    let answer = edge.client().request("GET", "/v2/").header("Authorization", "Bearer x").send();
    answer.expect(200);
    let named = format!("/layer/request?digest={}&customer=acme", sha256(&image.layers[0]));
    edge.client().get(&named).expect(200);
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("next");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// QUIC to the edge with this protocol.
fn connected(edge: &Outrider, alpn: &[u8]) -> (tokio::runtime::Runtime, quinn::Connection) {
    let config = quic::config(edge, alpn);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let address = ([127, 0, 0, 1], edge.https_port()).into();
    let quic = runtime.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.connect_with(config, address, "localhost").unwrap().await.unwrap()
    });
    (runtime, quic)
}

struct Http3 {
    runtime: tokio::runtime::Runtime,
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    authority: String,
}

impl Http3 {
    fn connect(edge: &Outrider) -> Self {
        let (runtime, quic) = connected(edge, b"h3");
        let send = runtime.block_on(async {
            let (mut driver, send) =
                h3::client::new(h3_quinn::Connection::new(quic)).await.unwrap();
            tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
            send
        });
        Self { runtime, send, authority: edge.https_host() }
    }

    fn get(&self, path: &str, authorization: &str) -> (u16, Vec<u8>) {
        let request = ::http::Request::builder()
            .uri(format!("https://{}{path}", self.authority))
            .header("authorization", authorization)
            .body(())
            .unwrap();
        self.runtime.block_on(async {
            let mut stream = self.send.clone().send_request(request).await.unwrap();
            stream.finish().await.unwrap();
            let status = stream.recv_response().await.unwrap().status().as_u16();
            let mut body = Vec::new();
            while let Some(mut data) = stream.recv_data().await.unwrap() {
                body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            (status, body)
        })
    }
}

struct Native {
    runtime: tokio::runtime::Runtime,
    quic: quinn::Connection,
}

impl Native {
    fn connect(edge: &Outrider) -> Self {
        let (runtime, quic) = connected(edge, native::ALPN);
        Self { runtime, quic }
    }

    fn ask(
        &self,
        repository: &str,
        digest: &str,
        kind: WantKind,
        token: Option<&str>,
    ) -> (u16, Vec<u8>) {
        let want = Want { kind, ..Want::whole(digest.parse().unwrap()) };
        let repository = repository.to_owned();
        let request = native::Request { repository, wants: vec![want], ..Default::default() };
        let mut bytes = token.map_or(Vec::new(), |token| native::encode_credential(token).unwrap());
        bytes.extend(request.encode().unwrap());
        let answer = self.runtime.block_on(async {
            let (mut send, mut receive) = self.quic.open_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            send.finish().unwrap();
            receive.read_to_end(1 << 28).await.unwrap()
        });
        let (mut reader, mut rest, mut status, mut body) =
            (Reader::client(), &answer[..], 0, Vec::new());
        while !rest.is_empty() {
            let (taken, item) = reader.read(rest).unwrap();
            match item {
                Some(Item::Answer(answer)) => status = answer.status,
                Some(Item::Body) => body.extend_from_slice(&rest[..taken]),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            rest = &rest[taken..];
        }
        (status, body)
    }
}
