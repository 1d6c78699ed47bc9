//! What an operator meets: the command, its configuration, start, stop, status.

use std::os::unix::fs::PermissionsExt as _;

use outrider_e2e::process::run;
use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

#[test]
fn the_first_start_makes_an_authority_and_says_where_it_listens_and_what_to_try() {
    let outrider = Outrider::start(Options::default());
    let log = outrider.log();
    for address in [outrider.host(), format!("127.0.0.1:{}", outrider.https_port())] {
        assert!(log.contains(&address), "{address} in:\n{log}");
    }
    let commands = ["skopeo", "podman", "docker", "curl", "crane", "ctr", "outrider"];
    let tries =
        log.lines().filter(|line| commands.iter().any(|c| line.trim_start().starts_with(c)));
    assert!(tries.count() >= 3, "three commands to try in:\n{log}");
    let ca = std::fs::read_to_string(outrider.ca_pem()).expect("DIR/tls/ca.pem");
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"));
    let tls = std::fs::read_dir(outrider.data_dir().join("tls")).expect("DIR/tls");
    for entry in tls.map(|entry| entry.expect("an entry")) {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains("PRIVATE KEY") {
            let mode = entry.metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is for its owner alone", entry.path().display());
        }
    }
}

#[test]
fn the_authority_stays_the_same_over_restarts() {
    let mut outrider = Outrider::start(Options::default());
    let before = std::fs::read(outrider.ca_pem()).expect("DIR/tls/ca.pem");
    outrider.restart();
    assert_eq!(std::fs::read(outrider.ca_pem()).expect("DIR/tls/ca.pem"), before);
}

#[test]
fn a_second_instance_on_the_same_data_is_refused_and_the_first_goes_on() {
    let outrider = Outrider::start(Options::default());
    let mut second = std::process::Command::new(Outrider::program());
    second.arg("up").arg("--data").arg(outrider.data_dir());
    for option in ["--http", "--https", "--admin"] {
        second.args([option, &format!("127.0.0.1:{}", ports::free())]);
    }
    let said = run(second).refused();
    let dir = outrider.data_dir().display().to_string();
    assert!(said.contains(&dir), "it says which directory is taken: {said}");
    assert!(!said.contains("panicked"), "{said}");
    push(&outrider.client(), "team/app", "v1", &SmallImage::new(1, &[1000]));
}

#[test]
fn an_unknown_key_is_refused_by_name_and_line() {
    let scratch = Scratch::new();
    let file = scratch.path().join("edge.toml");
    let path = file.display().to_string();
    std::fs::write(&file, "[cache]\nram = \"128MiB\"\nsdd = \"1GiB\"\n").expect("a small file");
    for arguments in
        [vec!["edge", "--config", &path], vec!["edge", "--config", &path, "--check-config"]]
    {
        let said = Outrider::run(&arguments).refused();
        assert!(said.contains("sdd"), "the key: {said}");
        assert!(said.contains("line 3") || said.contains(":3"), "the line: {said}");
    }
    std::fs::write(&file, "[cache]\nram = \"128MiB\"\nssd = \"1GiB\"\n").expect("a small file");
    Outrider::run(&["edge", "--config", &path, "--check-config"]).ok();
    std::fs::write(&file, "[listen]\nhttp = \"0.0.0.0:80\"\n").expect("a small file");
    let said = Outrider::run(&["edge", "--config", &path, "--check-config"]).refused();
    assert!(said.contains("http") && said.contains("loopback"), "{said}");
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let scratch = Scratch::new();
    let dir = scratch.path().join("data").display().to_string();
    let (https, admin) = (ports::free(), ports::free());
    let said = Outrider::run(&[
        "up",
        "--data",
        &dir,
        "--http",
        &address,
        "--https",
        &format!("127.0.0.1:{https}"),
        "--admin",
        &format!("127.0.0.1:{admin}"),
        "--ram",
        "64MiB",
        "--ssd",
        "256MiB",
    ])
    .refused();
    assert!(said.contains(&address) && !said.contains("panicked"), "{said}");
}

#[test]
fn sigterm_lets_a_download_end_and_takes_no_new_ones() {
    let upstream = FakeUpstream::start();
    let content = bytes(2, 8 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let gate = Gate::shut();
    upstream.always("GET", "/blobs/", &[Fault::Hold(MIB as u64, gate.clone())]);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let mut incoming = client.request("GET", &path).open();
    let first = incoming.take(MIB / 2).expect("the first bytes");
    outrider.begin_termination();
    until("new connections are refused", || client.request("GET", "/v2/").try_send().is_err());
    assert!(outrider.is_running());
    gate.open();
    let rest = incoming.finish().expect("the download goes on to its end").body;
    assert!(first == content[..MIB / 2] && rest == content[MIB / 2..]);
    assert!(outrider.wait_end().success());
}

#[test]
fn sigterm_waits_no_longer_than_it_is_told_to() {
    let upstream = FakeUpstream::start();
    let path = blob_path("team/app", &upstream.blob(&bytes(3, 8 * MIB)));
    upstream.always("GET", "/blobs/", &[Fault::Stall(MIB as u64)]);
    let options = Options::with_upstream(&upstream.url()).config("[drain]\ntime = \"1s\"\n");
    let mut outrider = Outrider::start(options);
    let mut incoming = outrider.client().request("GET", &path).open();
    incoming.take(1).expect("the first byte");
    // The client keeps its connection; the process ends all the same.
    outrider.terminate();
    drop(incoming);
}

#[test]
fn readiness_health_metrics_and_status_are_answered_on_the_admin_port_only() {
    let outrider = Outrider::start(Options::default());
    let admin = outrider.admin();
    for path in ["/healthz", "/readyz"] {
        admin.get(path).expect(200);
    }
    let status = admin.get("/status").expect(200).json();
    assert!(status.is_object(), "{status}");
    push(&outrider.client(), "team/app", "v1", &SmallImage::new(4, &[1000]));
    let metrics = outrider.metrics();
    assert!(metrics.sum("outrider_requests_total", &["route=\"upload\""]) > 0.0);
    admin.get("/nothing").expect(404);
    for path in ["/metrics", "/status", "/healthz", "/readyz"] {
        let answer = outrider.client().get(path);
        assert_eq!(answer.status, 404, "{path} is not for clients");
    }
}

#[test]
fn an_idle_one_uses_no_more_memory_than_its_arena_and_64_mib() {
    let outrider = Outrider::start(Options::default().ram("96MiB"));
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", outrider.id())).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: usize = resident.trim().trim_end_matches("kB").trim().parse().expect("a number");
    assert!(kib <= (96 + 64) << 10, "{} MiB", kib >> 10);
}
