//! Origins that stall, break off, lie, or are not there.

use std::io::Write;
use std::time::Duration;

use outrider_uplink::{FetchError, TimeoutStage, UpstreamConfig};

use crate::origin::{Origin, Then, answer, raw};
use crate::shard::{
    blob, drain, error, get, head, manifest, on_shard, part, start, upstream, wait_until_idle,
};

const CONTENT: &[u8] = b"0123456789";

/// An upstream that loses patience quickly.
fn impatient(url: &str) -> UpstreamConfig {
    let mut config = upstream(url);
    config.connect_timeout = Duration::from_millis(300);
    config.head_timeout = Duration::from_millis(300);
    config.idle_timeout = Duration::from_millis(300);
    config
}

#[test]
fn a_body_that_ends_early_is_cut_off_and_says_so() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", Then::Close)
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let (bytes, error) = drain(client.fetch(blob(CONTENT)).await.unwrap()).await;
        assert_eq!(bytes, CONTENT);
        assert!(matches!(error, Some(FetchError::Cut { received_bytes: 10, .. })), "{error:?}");
    });
    wait_until_idle(&uplink);
    assert!(uplink.status()[0].last_error.is_some());
}

#[test]
fn a_body_that_is_longer_than_announced_ends_where_it_was_announced() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n0123456789", Then::Next)
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..3 {
        // What is behind the end must not be taken for the next answer either.
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), b"01234");
    }
}

#[test]
fn a_part_that_is_longer_than_its_range_is_cut_off() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(
            wire,
            "HTTP/1.1 206 OK\r\ncontent-range: bytes 3-5/10\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\n345\r\n4\r\n6789\r\n0\r\n\r\n",
            Then::Next,
        )
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let fetch = client.fetch(part(CONTENT, 3, None)).await.unwrap();
        let (bytes, error) = drain(fetch).await;
        assert_eq!(bytes, b"345");
        assert!(matches!(error, Some(FetchError::Cut { received_bytes: 3, .. })), "{error:?}");
    });
}

#[test]
fn a_part_that_is_shorter_than_its_range_is_cut_off() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(
            wire,
            "HTTP/1.1 206 OK\r\ncontent-range: bytes 3-9/10\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\n345\r\n0\r\n\r\n",
            Then::Next,
        )
    });
    let uplink = start(upstream(&origin.url()));
    let error = error(&uplink, part(CONTENT, 3, None));
    assert!(matches!(error, FetchError::Cut { received_bytes: 3, .. }), "{error}");
}

#[test]
fn a_reset_in_the_middle_of_a_body_is_a_cut() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", Then::Reset)
    });
    let uplink = start(upstream(&origin.url()));
    let error = error(&uplink, blob(CONTENT));
    assert!(matches!(error, FetchError::Cut { .. }), "{error}");
    assert!(error.is_upstream_down());
}

#[test]
fn an_upstream_that_does_not_answer_times_out() {
    let origin = Origin::start("127.0.0.2", |_, _| Then::Silence);
    let uplink = start(impatient(&origin.url()));
    for request in [head("v1"), manifest("v1"), blob(CONTENT)] {
        assert_eq!(error(&uplink, request), FetchError::Timeout { stage: TimeoutStage::Head });
    }
    origin.wait_until_left_alone();
}

#[test]
fn a_body_that_stalls_times_out_with_what_came_before() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", Then::Silence)
    });
    let uplink = start(impatient(&origin.url()));
    on_shard(&uplink, |client| async move {
        let (bytes, error) = drain(client.fetch(blob(CONTENT)).await.unwrap()).await;
        assert_eq!(bytes, CONTENT);
        assert_eq!(error, Some(FetchError::Timeout { stage: TimeoutStage::Body }));
    });
    origin.wait_until_left_alone();
}

#[test]
fn an_upstream_that_keeps_the_end_open_after_the_last_byte_hurts_nobody() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        raw(
            wire,
            "HTTP/1.1 206 OK\r\ncontent-range: bytes 0-9/10\r\ntransfer-encoding: chunked\r\n\r\n\
             a\r\n0123456789\r\n",
            Then::Silence,
        )
    });
    let uplink = start(upstream(&origin.url()));
    assert_eq!(get(&uplink, part(CONTENT, 0, None)).unwrap(), CONTENT);
}

#[test]
fn a_reader_that_takes_its_time_is_not_the_upstreams_silence() {
    let big = vec![7u8; 8 << 20];
    let origin = Origin::start("127.0.0.2", move |seen, wire| answer(seen, wire, 200, "", &big));
    let uplink = start(impatient(&origin.url()));
    on_shard(&uplink, |client| async move {
        let mut fetch = client.fetch(blob(CONTENT)).await.unwrap();
        let first = fetch.body.next().await.unwrap().unwrap().len();
        // Longer than the upstream may be silent, with the window full all the while.
        outrider_shard::time::sleep(Duration::from_millis(900)).await;
        let (rest, error) = drain(fetch).await;
        assert_eq!((first + rest.len(), error), (8 << 20, None));
    });
}

#[test]
fn a_port_where_nobody_listens_is_no_connection() {
    let uplink = start(upstream("http://127.0.0.2:1"));
    let error = error(&uplink, blob(CONTENT));
    assert!(matches!(&error, FetchError::Connect(text) if text.contains("refused")), "{error}");
}

#[test]
fn a_name_that_does_not_exist_is_no_connection() {
    let uplink = start(upstream("http://does-not-exist.invalid"));
    let error = error(&uplink, blob(CONTENT));
    let expected = matches!(&error, FetchError::Connect(text) if text.contains("does-not-exist"))
        || error == FetchError::Timeout { stage: TimeoutStage::Connect };
    assert!(expected, "{error}");
}

#[test]
fn what_is_not_http_is_a_wrong_answer() {
    let origin = Origin::start("127.0.0.2", |seen, wire| match seen.number {
        0 => raw(wire, "SSH-2.0-OpenSSH_9.2\r\n\r\n", Then::Close),
        1 => {
            let _ = wire.write_all(b"HTTP/1.1 200 OK\r\n");
            let line = format!("x: {}\r\n", "y".repeat(1000));
            for _ in 0..2000 {
                if wire.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
            Then::Close
        }
        _ => raw(
            wire,
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n012345",
            Then::Close,
        ),
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..3 {
        let error = error(&uplink, blob(CONTENT));
        assert!(matches!(error, FetchError::Protocol(_)), "{error}");
    }
}

#[test]
fn shutting_down_ends_what_waits_and_what_flows() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        if seen.path.contains("manifests") {
            return Then::Silence;
        }
        raw(wire, "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n0123456789", Then::Silence)
    });
    let uplink = start(upstream(&origin.url()));
    let (began, begun) = std::sync::mpsc::channel();
    let (give, take) = std::sync::mpsc::channel::<outrider_uplink::UplinkClient>();
    let shard = outrider_shard::start(outrider_shard::ShardConfig::new(0), move |_| async move {
        let client = take.recv().unwrap();
        let mut flowing = client.fetch(blob(CONTENT)).await.unwrap();
        assert_eq!(flowing.body.next().await.unwrap().unwrap(), CONTENT);
        began.send(()).unwrap();
        assert_eq!(client.fetch(manifest("v1")).await.unwrap_err(), FetchError::Closed);
        assert_eq!(flowing.body.next().await, Some(Err(FetchError::Closed)));
        assert_eq!(flowing.body.next().await, None);
        assert_eq!(client.fetch(manifest("v1")).await.unwrap_err(), FetchError::Closed);
    })
    .unwrap();
    give.send(uplink.client(&shard.handle())).unwrap();
    begun.recv().unwrap();
    origin.wait_for_requests(2);
    uplink.shutdown();
    shard.join().unwrap();
}
