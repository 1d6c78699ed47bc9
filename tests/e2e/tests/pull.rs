//! Real clients pull a real image through Outrider: cold, warm, with the upstream gone, after an
//! orderly restart and after a crash; over plain HTTP and over HTTPS.

use std::path::Path;

use outrider_e2e::clients::containerd::Containerd;
use outrider_e2e::clients::crane::Crane;
use outrider_e2e::clients::docker::Docker;
use outrider_e2e::clients::oras::Oras;
use outrider_e2e::clients::podman::Podman;
use outrider_e2e::clients::skopeo::Skopeo;
use outrider_e2e::*;

/// Pulls `team/app:v1` in every state that Outrider and its upstream can be in. `pull` fails by itself
/// unless it gets the image of the layout that it is given. Every layer leaves the upstream once.
fn pull_in_every_state(
    layout: &Path,
    options: impl FnOnce(&str) -> Options,
    mut pull: impl FnMut(&Outrider, &Path),
) {
    let mut upstream = DockerRegistry::with_image(layout, "team/app:v1");
    let mut outrider = Outrider::start(options(&upstream.url()));

    pull(&outrider, layout);
    let layers = layout::layers(layout);
    for layer in &layers {
        assert_eq!(upstream.count("GET", layer), 1, "cold: {layer} is fetched once");
    }
    let fetched = upstream.count("GET", "/blobs/");

    pull(&outrider, layout);
    assert_eq!(upstream.count("GET", "/blobs/"), fetched, "warm: no blob is fetched");

    upstream.stop();
    pull(&outrider, layout);

    outrider.restart();
    pull(&outrider, layout);

    upstream.resume();
    outrider.crash_and_restart();
    pull(&outrider, layout);
    for layer in &layers {
        let times = upstream.count("GET", layer);
        assert!(times <= 2, "a crash costs at most one more fetch, not {times}");
    }
}

fn at_the_root(url: &str) -> Options {
    Options::with_upstream(url)
}

#[test]
fn skopeo_pulls_a_69_mb_image_cold_warm_alone_and_after_restarts() {
    pull_in_every_state(&image::real(6, 24), at_the_root, |outrider, layout| {
        let pulled = Skopeo::new().pull(&format!("{}/team/app:v1", outrider.host()));
        layout::assert_same(&pulled, layout);
    });
}

#[test]
fn podman_pulls_cold_warm_alone_and_after_restarts() {
    pull_in_every_state(&image::real(3, 8), at_the_root, |outrider, layout| {
        let digest = Podman::new().pull(&format!("{}/team/app:v1", outrider.host()));
        assert_eq!(digest, layout::digest(layout));
    });
}

#[test]
fn docker_pulls_through_its_registry_mirror_cold_warm_alone_and_after_restarts() {
    let mut docker = None;
    pull_in_every_state(&image::real(3, 8), at_the_root, |outrider, layout| {
        let docker = docker.get_or_insert_with(|| Docker::with_mirror(&outrider.url()));
        assert_eq!(docker.pull("team/app:v1"), layout::digest(layout));
        docker.remove("team/app:v1");
    });
}

#[test]
fn containerd_pulls_by_ns_cold_warm_alone_and_after_restarts() {
    let named = |url: &str| Options::default().and_named("upstream.test", url);
    pull_in_every_state(&image::real(3, 8), named, |outrider, layout| {
        // A new one each time: it would not download what it has.
        let containerd = Containerd::start();
        let digest = containerd.pull("upstream.test", &outrider.url(), "upstream.test/team/app:v1");
        assert_eq!(digest, layout::digest(layout));
    });
}

#[test]
fn crane_pulls_from_a_named_upstream_cold_warm_alone_and_after_restarts() {
    let named = |url: &str| Options::default().and_named("upstream.test", url);
    pull_in_every_state(&image::real(3, 8), named, |outrider, layout| {
        let name = format!("{}/upstream.test/team/app:v1", outrider.host());
        layout::assert_same(&Crane::new().pull(&name), layout);
    });
}

#[test]
fn oras_pulls_cold_warm_alone_and_after_restarts() {
    pull_in_every_state(&image::real(3, 8), at_the_root, |outrider, layout| {
        let pulled = Oras::new().pull_image(&format!("{}/team/app:v1", outrider.host()));
        layout::assert_same(&pulled, layout);
    });
}

#[test]
fn clients_that_trust_its_authority_pull_over_https() {
    let layout = image::real(3, 8);
    let digest = layout::digest(&layout);
    let upstream = DockerRegistry::with_image(&layout, "team/app:v1");
    let options =
        Options::with_upstream(&upstream.url()).and_named("upstream.test", &upstream.url());
    let outrider = Outrider::start(options);
    let name = format!("{}/team/app:v1", outrider.https_host());
    let ca = outrider.ca_pem();

    layout::assert_same(&Skopeo::trusting(&ca).pull(&name), &layout);
    layout::assert_same(&Crane::trusting(&ca).pull(&name), &layout);
    assert_eq!(Podman::new().pull_trusting(&name, &ca), digest);
    let mirror = format!("https://{}", outrider.https_host());
    let image = "upstream.test/team/app:v1";
    Containerd::start().try_pull("upstream.test", &mirror, Some(&ca), image).ok();
}

#[test]
fn a_client_that_does_not_trust_its_authority_is_not_served() {
    let outrider = Outrider::start(Options::default());
    let name = format!("{}/team/app:v1", outrider.https_host());
    let (_, output) =
        Skopeo::trusting(Path::new("/etc/ssl/certs/ca-certificates.crt")).try_pull(&name);
    assert!(output.refused().contains("x509"), "a certificate is refused, nothing else");
}
