//! The harness itself, proved on software that nobody here wrote: when a test of the product fails,
//! these say whether the tools work at all.

use std::sync::atomic::Ordering;

use outrider_e2e::clients::containerd::Containerd;
use outrider_e2e::clients::crane::Crane;
use outrider_e2e::clients::docker::Docker;
use outrider_e2e::clients::oras::Oras;
use outrider_e2e::clients::podman::Podman;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::registry::{assert_served, blob_path, push};
use outrider_e2e::*;

#[test]
fn every_client_pulls_the_real_image_from_docker_registry_unchanged() {
    let layout = image::real(3, 4);
    let digest = layout::digest(&layout);
    let registry = DockerRegistry::with_image(&layout, "team/app:v1");
    let name = format!("{}/team/app:v1", registry.host());

    layout::assert_same(&Skopeo::new().pull(&name), &layout);
    layout::assert_same(&Crane::new().pull(&name), &layout);
    layout::assert_same(&Oras::new().pull_image(&name), &layout);
    assert_eq!(Podman::new().pull(&name), digest);
    let containerd = Containerd::start();
    let pulled = containerd.pull("upstream.test", &registry.url(), "upstream.test/team/app:v1");
    assert_eq!(pulled, digest);
    assert_eq!(Docker::with_mirror(&registry.url()).pull("team/app:v1"), digest);

    let layer = &layout::layers(&layout)[1];
    assert_eq!(registry.count("GET", layer), 6, "the access log counts each client's download");
}

#[test]
fn every_client_that_pushes_can_push_to_docker_registry() {
    let layout = image::real(3, 4);
    let mut registry = DockerRegistry::start();
    let host = registry.host();
    Skopeo::new().push(&layout, &format!("{host}/by/skopeo:v1"));
    Crane::new().push(&layout, &format!("{host}/by/crane:v1"));
    Oras::new().push_image(&layout, &format!("{host}/by/oras:v1"));
    let by_podman = Podman::new().push(&layout, &format!("{host}/by/podman:v1"));
    let oras = Oras::new();
    oras.push_file(b"a file", &format!("{host}/by/file:v1"));
    registry.stop();
    registry.resume();
    for client in ["skopeo", "crane", "oras"] {
        layout::assert_same(&Crane::new().pull(&format!("{host}/by/{client}:v1")), &layout);
    }
    let pulled = Skopeo::new().pull(&format!("{host}/by/podman:v1"));
    assert_eq!(layout::digest(&pulled), by_podman);
    assert_eq!(oras.pull_file(&format!("{host}/by/file:v1")), b"a file");
}

#[test]
fn docker_registry_mirrors_the_scripted_upstream() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(1, &[200_000, 3_000_000]);
    upstream.image("team/app", "v1", &image);
    let mirror = DockerRegistry::mirror_of(&upstream.url());
    assert_served(&mirror.client(), "team/app", "v1", &image);
    // docker-registry 2.8 streams a cold blob to the client and fetches it once more for itself.
    assert!(upstream.count("GET", "/blobs/") >= 3);
}

#[test]
fn an_image_pushed_by_hand_is_served_by_docker_registry() {
    let registry = DockerRegistry::start();
    let image = SmallImage::new(2, &[1, 100_000]);
    push(&registry.client(), "team/app", "v1", &image);
    assert_served(&registry.client(), "team/app", "v1", &image);
}

#[test]
fn the_scripted_upstream_serves_ranges_and_misbehaves_as_told() {
    let mut upstream = FakeUpstream::start();
    let content = bytes(3, 500_000);
    let path = blob_path("any/name", &upstream.blob(&content));
    let client = Client::new(upstream.port());

    let range = client.request("GET", &path).header("Range", "bytes=100-199").send().expect(206);
    assert_eq!(range.body, content[100..200]);
    assert_eq!(range.header("content-range"), Some("bytes 100-199/500000"));

    upstream.script(1, "GET", "/blobs/", &[Fault::Reset(70_000)]);
    let (body, end) = client.request("GET", &path).open().drain();
    assert!(body.len() <= 70_000, "{}", body.len());
    assert_eq!(end.expect_err("cut").kind(), std::io::ErrorKind::ConnectionReset);

    upstream.script(1, "GET", "/blobs/", &[Fault::Close(70_000)]);
    let (body, end) = client.request("GET", &path).open().drain();
    assert_eq!(body, content[..70_000]);
    assert_eq!(end.expect_err("cut").kind(), std::io::ErrorKind::UnexpectedEof);

    upstream.script(1, "GET", "/blobs/", &[Fault::Flip(9)]);
    assert_ne!(client.get(&path).body, content);
    upstream.script(1, "GET", "/blobs/", &[Fault::Chunked]);
    assert_eq!(client.get(&path).body, content);
    upstream.script(1, "GET", "/blobs/", &[Fault::NoLength]);
    assert_eq!(client.get(&path).body, content);
    upstream.script(1, "GET", "/blobs/", &[Fault::too_many(7)]);
    assert_eq!(client.get(&path).expect(429).header("retry-after"), Some("7"));

    let gate = Gate::shut();
    upstream.script(1, "GET", "/blobs/", &[Fault::Hold(100, gate.clone())]);
    let mut held = client.request("GET", &path).open();
    assert_eq!(held.take(100).expect("the first bytes"), content[..100]);
    let sent = upstream.seen().last().expect("a request").sent.clone();
    until("the bytes before the gate are counted", || sent.load(Ordering::SeqCst) == 100);
    gate.open();
    assert_eq!(held.finish().expect("the rest").body, content[100..]);

    upstream.require_tokens(None, None);
    client.get(&path).expect(401);
    upstream.stop();
    assert!(client.request("GET", &path).try_send().is_err());
    upstream.resume();
    client.get(&path).expect(401);
}
