//! `outrider get` against a real Outrider: images and digests over HTTP/3 and HTTPS, resumed, in part, and
//! everything that can be asked wrongly.

use std::fs;
use std::path::Path;
use std::process::Command;

use outrider_e2e::process::{Output, run};
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// Runs `outrider get` in `folder`, trusting this Outrider, whose URL stands for EDGE.
fn get(outrider: &Outrider, folder: &Path, line: &str) -> Output {
    let edge = format!("https://{}", outrider.https_host());
    let mut command = Command::new(Outrider::program());
    command.current_dir(folder).env("HOME", folder).arg("get");
    command.arg("--ca").arg(outrider.ca_pem());
    command.args(line.split_whitespace().map(|word| word.replace("EDGE", &edge)));
    run(command)
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn an_image_comes_whole_over_each_protocol_and_only_what_is_missing_comes_again() {
    let outrider = Outrider::start(Options::default());
    let image = SmallImage::new(1, &[3_000_000, 5, 700_000, 700_000, 1, 90_000]);
    push(&outrider.client(), "team/app", "v1", &image);
    let scratch = Scratch::new();
    for (protocol, name) in [
        ("h3", "HTTP/3"),
        ("https", "HTTPS"),
        ("auto", "HTTP/3"),
        ("native", "the native protocol"),
    ] {
        let line = format!("team/app:v1 --from EDGE --protocol {protocol} --oci-layout {protocol}");
        let said = get(&outrider, scratch.path(), &line).ok();
        assert!(
            said.contains(&format!(" over {name}")) && said.contains(&image.digest()),
            "{said}"
        );
        let layout = scratch.path().join(protocol);
        assert_eq!(layout::digest(&layout), image.digest());
        // Fails unless every blob is there and right.
        assert_eq!(layout::contents(&layout).len(), 8);
        let lost = layout.join("blobs").join(sha256(&image.layers[0]).replace(':', "/"));
        fs::remove_file(&lost).expect("the layer is there");
        let said = get(&outrider, scratch.path(), &line).ok();
        assert!(said.contains(": 2.9 MiB in"), "{said}");
        let said = get(&outrider, scratch.path(), &line).ok();
        assert!(said.contains("all of it was here"), "{said}");
    }
    assert!(outrider.metrics().sum("outrider_transport_quic_handshakes_total", &[]) >= 4.0);
}

#[test]
fn an_image_of_an_upstream_is_asked_for_by_its_own_registry() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(2, &[400_000, 30_000]);
    upstream.image("library/app", "v1", &image);
    let options = Options::default().and_named("docker.io", &upstream.url());
    let outrider = Outrider::start(options);
    let scratch = Scratch::new();
    let said = get(&outrider, scratch.path(), "docker.io/app:v1 --from EDGE").ok();
    assert!(said.contains("over HTTP/3"), "{said}");
    assert_eq!(layout::contents(&scratch.path().join("app")).len(), 4);
    for blob in image.blobs() {
        assert_eq!(upstream.count("GET", &sha256(blob)), 1);
    }
}

#[test]
fn a_digest_is_resumed_from_what_an_earlier_run_left_and_a_part_is_cut_out() {
    let outrider = Outrider::start(Options::default());
    let content = bytes(3, 2_000_000);
    let digest = try_push_blob(&outrider.client(), "team/app", &content).expect("a push");
    let scratch = Scratch::new();
    let read = |name: &str| fs::read(scratch.path().join(name)).expect("the file is there");
    for protocol in ["h3", "https", "native"] {
        fs::write(scratch.path().join("blob.partial"), &content[..1_500_000]).expect("a file");
        let line = format!("{digest} --from EDGE --protocol {protocol} --output blob");
        let said = get(&outrider, scratch.path(), &line).ok();
        assert!(said.contains(": 488.3 KiB in"), "{said}");
        assert!(read("blob") == content);
        fs::remove_file(scratch.path().join("blob")).expect("it is there");
        let line = format!("{line} --repository team/app --range 999-1999999");
        let said = get(&outrider, scratch.path(), &line).ok();
        assert!(said.contains("not verified"), "{said}");
        assert!(read("blob") == content[999..]);
        fs::remove_file(scratch.path().join("blob")).expect("it is there");
    }
    let quiet = get(&outrider, scratch.path(), &format!("{digest} --from EDGE --quiet"));
    assert_eq!((quiet.err.as_str(), quiet.out.as_str()), ("", ""));
    assert!(read(digest.trim_start_matches("sha256:")) == content);
}

#[test]
fn without_http_3_https_takes_over_and_says_so() {
    let options = Options::default().config("[quic]\nenabled = false\n");
    let outrider = Outrider::start(options);
    let content = bytes(4, 100_000);
    let digest = try_push_blob(&outrider.client(), "team/app", &content).expect("a push");
    let scratch = Scratch::new();
    let output = get(&outrider, scratch.path(), &format!("{digest} --from EDGE --output a"));
    assert!(output.err.contains("going on over HTTPS"), "{}", output.err);
    assert!(output.ok().contains("over HTTPS"));
}

#[test]
fn what_is_wrong_is_told_apart_by_the_exit_code() {
    let outrider = Outrider::start(Options::default());
    let scratch = Scratch::new();
    let digest = sha256(b"nowhere");
    for (line, expected, said) in [
        (format!("{digest} --from EDGE"), 3, "404"),
        (format!("{digest} --from EDGE --protocol https"), 3, "404"),
        (format!("{digest} --from EDGE --protocol native"), 3, "404"),
        ("team/app:v1 --from EDGE".to_owned(), 3, "404"),
        ("Not/A/Reference --from EDGE".to_owned(), 2, "neither a digest"),
        (format!("{digest} --from ftp://x"), 2, "https://"),
        (format!("{digest} --from EDGE --protocol carrier-pigeon"), 2, "auto, h3, native or https"),
        (format!("{digest} --from EDGE --range 5-4"), 2, "FIRST-LAST"),
        ("team/app --from EDGE --output x".to_owned(), 2, "--oci-layout"),
    ] {
        let output = get(&outrider, scratch.path(), &line);
        assert_eq!(code(&output), Some(expected), "{line}: {}", output.err);
        assert!(output.err.contains(said), "{line}: {}", output.err);
    }
    // Somebody else's certificate.
    let other = Outrider::start(Options::default());
    let mut command = Command::new(Outrider::program());
    command.args(["get", &digest, "--from", &format!("https://{}", outrider.https_host())]);
    command.arg("--ca").arg(other.ca_pem()).current_dir(scratch.path());
    let output = run(command);
    assert_eq!(code(&output), Some(1), "{}", output.err);
    assert!(output.err.contains("certificate"), "{}", output.err);
}
