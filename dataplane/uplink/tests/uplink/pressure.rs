//! What is under way is bounded, and what nobody wants any more is let go.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use crate::origin::{Origin, Then, Wire};
use crate::shard::{begin, blob, drain, manifest, on_shard, start, upstream, wait_until_idle};

const CONTENT: &[u8] = b"0123456789";

/// Writes a body until it is complete, or nobody takes anything for a while; says how much went.
fn push(wire: &mut Wire, total: usize, written: &AtomicUsize, patience: Duration) -> Then {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n\r\n");
    wire.write_all(head.as_bytes()).unwrap();
    wire.set_write_timeout(Some(patience)).unwrap();
    let block = vec![7u8; 64 << 10];
    let mut left = total;
    let mut stalled = false;
    while left > 0 {
        match wire.write(&block[..block.len().min(left)]) {
            Ok(bytes) => {
                left -= bytes;
                if !stalled {
                    written.fetch_add(bytes, Ordering::SeqCst);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // The first stall is what is measured; then all of it goes out.
                stalled = true;
                written.fetch_add(STALLED, Ordering::SeqCst);
                wire.set_write_timeout(None).unwrap();
            }
            Err(_) => return Then::Close,
        }
    }
    Then::Next
}

/// Added once to the count of written bytes when nothing more could be written.
const STALLED: usize = 1 << 40;

#[test]
fn an_origin_cannot_push_more_than_the_window_while_the_reader_waits() {
    const TOTAL: usize = 256 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let origin = Origin::start("127.0.0.2", move |_, wire| {
        push(wire, TOTAL, &count, Duration::from_millis(500))
    });
    let uplink = start(upstream(&origin.url()));
    let count = Arc::clone(&written);
    on_shard(&uplink, move |client| async move {
        let mut fetch = client.fetch(blob(CONTENT)).await.unwrap();
        while count.load(Ordering::SeqCst) < STALLED {
            outrider_shard::time::sleep(Duration::from_millis(10)).await;
        }
        let before = count.load(Ordering::SeqCst) - STALLED;
        // The window of 1 MiB, a read ahead of 128 KiB, and what the kernel keeps for two sockets.
        assert!(before < 24 << 20, "{before} bytes went out");
        let mut bytes = 0;
        while let Some(data) = fetch.body.next().await {
            let data = data.unwrap();
            assert!(data.len() <= 64 << 10 && !data.is_empty());
            bytes += data.len();
        }
        assert_eq!(bytes, TOTAL);
    });
}

#[test]
fn a_reader_that_stops_does_not_stop_the_others() {
    const TOTAL: usize = 32 << 20;
    let origin = Origin::start("127.0.0.2", |_, wire| {
        push(wire, TOTAL, &AtomicUsize::new(0), Duration::from_secs(60))
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let stopped = client.fetch(blob(CONTENT)).await.unwrap();
        let others =
            (0..4).map(|_| async { drain(client.fetch(blob(CONTENT)).await.unwrap()).await });
        for (bytes, error) in join_all(others).await {
            assert_eq!((bytes.len(), error), (TOTAL, None));
        }
        drop(stopped);
    });
    wait_until_idle(&uplink);
}

#[test]
fn dropping_a_body_closes_its_connection() {
    let origin = Origin::start("127.0.0.2", |_, wire| {
        push(wire, 64 << 20, &AtomicUsize::new(0), Duration::from_secs(60))
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let mut fetch = client.fetch(blob(CONTENT)).await.unwrap();
        fetch.body.next().await.unwrap().unwrap();
    });
    origin.wait_until_left_alone();
    wait_until_idle(&uplink);
}

#[test]
fn dropping_a_fetch_that_waits_for_its_head_closes_its_connection() {
    let origin = Origin::start("127.0.0.2", |_, _| Then::Silence);
    let uplink = start(upstream(&origin.url()));
    let asked = origin.seen().len();
    assert_eq!(asked, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| origin.wait_for_requests(1));
        on_shard(&uplink, |client| async move {
            let mut pending = Box::pin(client.fetch(manifest("v1")));
            begin(&mut pending).await;
            outrider_shard::time::sleep(Duration::from_millis(200)).await;
        });
    });
    origin.wait_until_left_alone();
    wait_until_idle(&uplink);
}

#[test]
fn many_thousand_cancelled_fetches_leave_nothing_behind() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        if seen.path.contains("/manifests/") {
            return Then::Silence;
        }
        push(wire, 4 << 20, &AtomicUsize::new(0), Duration::from_secs(60))
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        for round in 0..200 {
            let heads = (0..50).map(|_| client.fetch(manifest("v1"))).map(Box::pin);
            let mut heads: Vec<_> = heads.collect();
            for head in &mut heads {
                begin(head).await;
            }
            if round % 10 == 0 {
                let mut fetch = client.fetch(blob(CONTENT)).await.unwrap();
                fetch.body.next().await.unwrap().unwrap();
            }
            drop(heads);
            // So that some are cancelled before they begin, and some after.
            if round % 2 == 0 {
                outrider_shard::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    wait_until_idle(&uplink);
    origin.wait_until_left_alone();
    let status = &uplink.status()[0];
    assert_eq!((status.manifests.waiting, status.blobs.waiting), (0, 0));
    // The tasks of the connections see their ends a moment later; a leak would wait here for ever.
    while uplink.runtime().metrics().num_alive_tasks() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}
