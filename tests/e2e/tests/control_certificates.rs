//! Certificates are made anew before they end, and shown without a restart; who is revoked is cut off.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{SystemTime, UNIX_EPOCH};

use outrider_e2e::control::Control;
use outrider_e2e::registry::*;
use outrider_e2e::*;

/// Long enough that a third of it is not lost on a busy machine.
const LIFETIME_S: u64 = 45;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn members_go_on_behind_the_end_of_their_first_certificates() {
    let more = format!(
        "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"\n[certificates]\nlifetime = \"{LIFETIME_S}s\"\n"
    );
    let mut control = Control::start(2, &more);
    let mut edge = Outrider::joined(&control, Options::default().config(""));
    let ends = |control: &Control, edge: &Outrider| {
        let of_node = |place: usize| {
            let status = control.client(place).get("/v1/cluster").expect(200).json();
            status["certificate"]["until_unix_s"].as_u64().unwrap()
        };
        let status = edge.admin().get("/status").expect(200).json();
        let of_edge = status["control"]["certificate"]["until_unix_s"].as_u64().unwrap();
        [of_node(0), of_node(1), of_edge]
    };
    let first = ends(&control, &edge);
    assert!(first.iter().all(|end| *end <= now_s() + LIFETIME_S));
    let last = *first.iter().max().unwrap();
    until("all of them have another one", || {
        ends(&control, &edge).iter().zip(&first).all(|(now, then)| now > then)
    });
    until("the first ones have ended", || now_s() > last);

    // Connections that are made now are by the new ones: of the nodes, and of the edge.
    control.terminate(1);
    control.resume(1);
    control.wait_ready(1);
    control.state(1, "PUT", "k").body(b"v").send().expect(204);
    push(&edge.client(), "team/app", "v1", &SmallImage::new(7, &[1000]));
    control.terminate(0);
    control.resume(0);
    control.wait_ready(0);
    push(&edge.client(), "team/app", "v2", &SmallImage::new(8, &[1000]));
    // They are on the disk too.
    edge.restart();
    push(&edge.client(), "team/app", "v3", &SmallImage::new(9, &[1000]));
    assert!(edge.metrics().sum("outrider_follow_certificate_left_seconds", &[]) > 0.0);

    // Who is revoked is cut off while it is connected, and gets no other certificate.
    control.cluster(0, &["remove", "3"]).ok();
    until("the edge is cut off", || {
        let status = edge.admin().get("/status").expect(200).json();
        status["control"]["connected"] == false
            && status["control"]["last_failure"]
                .as_str()
                .is_some_and(|why| why.contains("not that of an edge that is let in"))
    });
}
