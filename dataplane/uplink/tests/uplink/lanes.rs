//! How much is asked of an upstream at a time, and when nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use outrider_uplink::{FetchError, UplinkMetrics, UplinkOptions, UpstreamConfig};
use prometheus_client::registry::Registry;

use crate::origin::{Origin, Then, answer};
use crate::shard::{
    begin, blob, content, error, get, head, manifest, on_shard, start, upstream, wait_for,
    wait_until_idle,
};

const CONTENT: &[u8] = b"0123456789";

/// An origin whose status can be changed.
fn changeable(first: u16, headers: &'static str) -> (Origin, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(first));
    let now = Arc::clone(&status);
    let origin = Origin::start("127.0.0.2", move |seen, wire| {
        answer(seen, wire, now.load(Ordering::SeqCst), headers, CONTENT)
    });
    (origin, status)
}

#[test]
fn a_limited_rate_of_manifests_is_respected_and_blobs_go_on() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        if seen.path.contains("/manifests/") {
            return answer(seen, wire, 429, "retry-after: 100\r\n", b"");
        }
        answer(seen, wire, 200, "", CONTENT)
    });
    let uplink = start(upstream(&origin.url()));
    assert_eq!(
        error(&uplink, head("v1")),
        FetchError::RateLimited { retry_after: Some(Duration::from_secs(100)) }
    );
    for _ in 0..3 {
        match error(&uplink, head("v1")) {
            FetchError::BreakerOpen { retry_after } => {
                assert!(retry_after <= Duration::from_secs(100));
            }
            other => panic!("{other}"),
        }
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    }
    let manifests = origin.seen().iter().filter(|seen| seen.path.contains("/manifests/")).count();
    assert_eq!(manifests, 1);
    let status = &uplink.status()[0];
    assert_eq!((status.manifests.breaker, status.blobs.breaker), ("open", "closed"));
    assert!(status.manifests.retry_after_ms > 0);
}

#[test]
fn five_failures_shut_an_upstream_off_until_a_probe_succeeds() {
    let (origin, status) = changeable(500, "");
    let mut config = upstream(&origin.url());
    config.breaker.open_min = Duration::from_millis(300);
    let uplink = start(config);
    for _ in 0..5 {
        assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Unavailable { .. }));
    }
    status.store(200, Ordering::SeqCst);
    // It may be half-open by now on a slow machine; then this is the probe, and succeeds.
    match get(&uplink, blob(CONTENT)) {
        Err(FetchError::BreakerOpen { .. }) => {
            assert_eq!(origin.seen().len(), 5, "nothing was asked while it was open");
        }
        Err(other) => panic!("{other}"),
        Ok(bytes) => assert_eq!(bytes, CONTENT),
    }
    wait_for(&uplink, |status| status.blobs.breaker != "open");
    assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    assert_eq!(uplink.status()[0].blobs.breaker, "closed");
    assert_eq!(uplink.status()[0].last_error.as_deref(), Some("the upstream answers 500"));
    assert!(uplink.status()[0].last_error_unix_s.is_some());
}

#[test]
fn what_is_not_there_shuts_nothing_off() {
    let (origin, _) = changeable(404, "");
    let uplink = start(upstream(&origin.url()));
    for _ in 0..20 {
        assert_eq!(error(&uplink, blob(CONTENT)), FetchError::NotFound);
    }
    assert_eq!(uplink.status()[0].blobs.breaker, "closed");
    assert_eq!(uplink.status()[0].last_error, None);
}

#[test]
fn an_upstream_that_breaks_off_its_bodies_is_shut_off_too() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        crate::origin::raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nx", Then::Close)
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..5 {
        assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Cut { .. }));
    }
    assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::BreakerOpen { .. }));
}

#[test]
fn a_lane_has_so_many_places_and_so_many_waiters() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        if seen.path.contains("/manifests/") {
            return answer(seen, wire, 200, "", CONTENT);
        }
        Then::Silence
    });
    let mut config = upstream(&origin.url());
    config.fetches_max = 2;
    config.waiters_max = 3;
    let uplink = start(config);
    on_shard(&uplink, |client| async move {
        let mut pending: Vec<_> = (0..5).map(|_| Box::pin(client.fetch(blob(CONTENT)))).collect();
        for fetch in &mut pending {
            // Each is on its way before the sixth is.
            begin(fetch).await;
        }
        assert_eq!(client.fetch(blob(CONTENT)).await.unwrap_err(), FetchError::Busy);
        // Manifests do not wait behind blobs.
        assert_eq!(content(&client, manifest("v1")).await, CONTENT);
        // The last first, so that no place is free while somebody still waits for it.
        while pending.pop().is_some() {}
    });
    wait_until_idle(&uplink);
    let blobs = origin.seen().iter().filter(|seen| seen.path.contains("/blobs/")).count();
    assert!(blobs <= 2, "{blobs}");
}

#[test]
fn a_waiter_does_not_wait_for_ever() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        crate::origin::raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nx", Then::Silence)
    });
    let mut config = upstream(&origin.url());
    config.fetches_max = 1;
    config.head_timeout = Duration::from_millis(200);
    let uplink = start(config);
    on_shard(&uplink, |client| async move {
        let _first = client.fetch(blob(CONTENT)).await.unwrap();
        assert_eq!(client.fetch(blob(CONTENT)).await.unwrap_err(), FetchError::Busy);
    });
}

#[test]
fn a_hundred_at_once_come_through_sixteen_places() {
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", CONTENT));
    let config = UpstreamConfig { fetches_max: 16, ..upstream(&origin.url()) };
    let uplink = start(config);
    on_shard(&uplink, |client| async move {
        let all = (0..100).map(|_| content(&client, blob(CONTENT)));
        assert!(join_all(all).await.iter().all(|content| content == CONTENT));
    });
    assert!(origin.accepted() <= 40, "{} connections", origin.accepted());
}

#[test]
fn everything_is_counted() {
    let origin = Origin::start("127.0.0.2", |seen, wire| match seen.number {
        0 => answer(seen, wire, 200, "", CONTENT),
        _ => answer(seen, wire, 404, "", b""),
    });
    let metrics = UplinkMetrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let options = UplinkOptions { metrics, ..crate::shard::options() };
    let config = UpstreamConfig::new(Some("hub"), &origin.url()).unwrap();
    let uplink = outrider_uplink::start(vec![config], options).unwrap();
    get(&uplink, blob(CONTENT)).unwrap();
    error(&uplink, head("v1"));
    wait_until_idle(&uplink);
    uplink.shutdown();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"uplink_fetches_total{upstream="hub",kind="blob",outcome="ok"} 1"#,
        r#"uplink_fetches_total{upstream="hub",kind="manifest",outcome="not_found"} 1"#,
        r#"uplink_received_bytes_total{upstream="hub"} 10"#,
        r#"uplink_fetches_in_flight{upstream="hub",kind="blob"} 0"#,
        r#"uplink_breaker_state{upstream="hub",kind="blob"} 0"#,
        r#"uplink_first_byte_seconds_count{upstream="hub",kind="blob"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
