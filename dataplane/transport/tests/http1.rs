//! HTTP/1 over plain sockets and over TLS, by clients that are nothing but sockets.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, eventually, get, pattern, read_answer, read_head, read_to_end, send};
use outrider_transport::{Limits, PinBudget};

#[test]
fn one_connection_serves_many_requests_plain_and_secure() {
    let server = Server::start();
    let mut plain = server.plain();
    let mut secure = server.secure();
    for count in [0, 1, 4096, 300_000, 4096, 5_000_000] {
        let path = format!("/bytes/{count}");
        assert_eq!(get(&mut plain, &path).body, pattern(count));
        assert_eq!(get(&mut secure, &path).body, pattern(count));
    }
    assert_eq!(get(&mut plain, "/peer").text(), "false Http1");
    assert_eq!(get(&mut secure, "/peer").text(), "true Http1");
    assert_eq!(server.metric("transport_connections_total{scheme=\"http\"}"), 1);
    assert_eq!(server.metric("transport_connections_total{scheme=\"https\"}"), 1);
    assert_eq!(server.metric("transport_requests_total{protocol=\"http1\"}"), 14);
    drop((plain, secure));
    server.stop();
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = Server::start();
    let mut client = server.plain();
    let mut requests = String::new();
    for index in 0..50 {
        requests.push_str(&format!("GET /bytes/{} HTTP/1.1\r\nhost: test\r\n\r\n", index * 100));
    }
    send(&mut client, &requests);
    for index in 0..50 {
        assert_eq!(read_answer(&mut client).body, pattern(index * 100));
    }
    drop(client);
    server.stop();
}

#[test]
fn a_body_of_unknown_length_comes_in_chunks_and_to_an_old_client_until_the_end() {
    let server = Server::start();
    let mut client = server.plain();
    send(&mut client, "GET /chunked/2500 HTTP/1.1\r\nhost: test\r\n\r\n");
    let head = read_head(&mut client);
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let mut body = vec![0; 3 + 2 + 1000 + 2 + 3 + 2 + 1000 + 2 + 3 + 2 + 500 + 2 + 5];
    client.read_exact(&mut body).unwrap();
    assert!(body.starts_with(b"3E8\r\n"), "{:?}", &body[..8]);
    assert!(body.ends_with(b"\r\n0\r\n\r\n"));
    // And the connection goes on.
    assert_eq!(get(&mut client, "/bytes/3").body, pattern(3));

    let mut old = server.plain();
    send(&mut old, "GET /chunked/2500 HTTP/1.0\r\n\r\n");
    read_head(&mut old);
    assert_eq!(read_to_end(&mut old), (pattern(2500), true));
    drop(client);
    server.stop();
}

#[test]
fn a_fault_of_the_body_cuts_the_answer_off_so_that_no_client_takes_it_for_whole() {
    let server = Server::start();
    for path in ["/fault/1000", "/fault/1000000", "/faultchunked/1000"] {
        let mut client = server.plain();
        send(&mut client, &format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
        let (got, _) = read_to_end(&mut client);
        assert!(!got.ends_with(b"0\r\n\r\n"), "{path}: the last chunk must not come");

        let mut client = server.secure();
        send(&mut client, &format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
        let (_, clean) = read_to_end(&mut client);
        assert!(!clean, "{path}: no close_notify may come");
    }
    // To an old client the end of the connection is the end of the body: so it has to be a reset.
    let mut old = server.plain();
    send(&mut old, "GET /faultchunked/1000 HTTP/1.0\r\n\r\n");
    let (_, clean) = read_to_end(&mut old);
    assert!(!clean, "an orderly end would look like a whole body");
    eventually("all are counted", || server.closed("fault") == 7);
    server.stop();
}

#[test]
fn an_upload_is_taken_whole_whatever_its_framing() {
    let server = Server::start();
    let mut client = server.plain();
    let body = pattern(3_000_000);
    send(&mut client, "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 3000000\r\n\r\n");
    client.write_all(&body).unwrap();
    assert_eq!(read_answer(&mut client).text(), "3000000 whole");
    send(
        &mut client,
        "POST /count HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    );
    assert_eq!(read_answer(&mut client).text(), "6 whole");

    let mut secure = server.secure();
    send(&mut secure, "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 3000000\r\n\r\n");
    secure.write_all(&body).unwrap();
    secure.flush().unwrap();
    assert_eq!(read_answer(&mut secure).text(), "3000000 whole");
    drop((client, secure));
    server.stop();
}

#[test]
fn many_small_tls_records_at_once_lose_nothing() {
    let server = Server::start();
    let mut client = server.secure();
    send(&mut client, "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n");
    // Each write is a record of its own; together they are far more than is decrypted at once.
    for part in pattern(200_000).chunks(40) {
        client.conn.writer().write_all(part).unwrap();
        if client.conn.wants_write() && part[0] % 64 == 0 {
            client.flush().unwrap();
        }
    }
    client.flush().unwrap();
    assert_eq!(read_answer(&mut client).text(), "200000 whole");
    drop(client);
    server.stop();
}

#[test]
fn a_client_that_waits_to_be_asked_is_asked_only_for_what_is_wanted() {
    let server = Server::start();
    let expect = "HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let mut client = server.plain();
    send(&mut client, &format!("POST /count {expect}"));
    assert_eq!(read_head(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    send(&mut client, "hello");
    assert_eq!(read_answer(&mut client).text(), "5 whole");

    send(&mut client, &format!("POST /refuse {expect}"));
    assert_eq!(read_answer(&mut client).status(), 403, "and no 100 before it");
    server.stop();
}

#[test]
fn what_is_refused_before_it_was_read_gets_its_answer_and_a_short_one_keeps_the_connection() {
    let server = Server::start();
    let mut client = server.plain();
    send(&mut client, "POST /refuse HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n");
    client.write_all(&pattern(100_000)).unwrap();
    assert_eq!(read_answer(&mut client).status(), 403);
    assert_eq!(get(&mut client, "/bytes/9").body, pattern(9));

    // One that only reads when all is sent, with more than any socket buffer holds.
    for secure in [false, true] {
        let length = 24 << 20;
        let head =
            format!("POST /refuse HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
        let body = pattern(length);
        let answer = if secure {
            let mut client = server.secure();
            send(&mut client, &head);
            client.write_all(&body).unwrap();
            read_answer(&mut client)
        } else {
            let mut client = server.plain();
            send(&mut client, &head);
            client.write_all(&body).unwrap();
            read_answer(&mut client)
        };
        assert_eq!(answer.status(), 403);
        assert!(answer.head.contains("connection: close"), "{}", answer.head);
    }
    drop(client);
    server.stop();
}

#[test]
fn what_is_too_large_or_no_http_at_all_is_answered_and_harms_nobody_else() {
    let server = Server::start();
    let mut other = server.plain();
    assert_eq!(get(&mut other, "/bytes/1").status(), 200);

    let long = "x".repeat(40_000);
    let many: String = (0..200).map(|index| format!("h{index}: 1\r\n")).collect();
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nhost: test\r\nlong: {long}\r\n\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: test\r\n{many}\r\n"), "431"),
        ("\u{0}\u{1}\u{2} what is this\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nno colon here\r\n\r\n".to_owned(), "400"),
        ("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: -1\r\n\r\n".to_owned(), "400"),
    ] {
        let mut client = server.plain();
        send(&mut client, &request);
        let (answer, clean) = read_to_end(&mut client);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(clean && answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    assert_eq!(get(&mut other, "/bytes/1").status(), 200);
    eventually("they are counted", || server.closed("protocol") == 5);
    drop(other);
    server.stop();
}

#[test]
fn garbage_of_every_kind_stops_nobody() {
    let server = Server::start();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..60 {
        let mut bytes = vec![0u8; (random() % 4000) as usize];
        bytes.fill_with(|| random() as u8);
        if round % 3 == 0 {
            // Looks like a TLS handshake at first.
            bytes.splice(0..0, [0x16, 3, 1, (random() % 64) as u8, random() as u8, 1]);
        }
        let address = if round % 2 == 0 { server.http } else { server.https };
        let mut client = TcpStream::connect(address).unwrap();
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(Shutdown::Write);
        let _ = read_to_end(&mut client);
    }
    assert_eq!(get(&mut server.plain(), "/bytes/5").body, pattern(5));
    assert_eq!(get(&mut server.secure(), "/bytes/5").body, pattern(5));
    server.stop();
}

#[test]
fn plain_http_on_the_secure_port_is_told_so() {
    let server = Server::start();
    let mut client = TcpStream::connect(server.https).unwrap();
    let answer = get(&mut client, "/bytes/1");
    assert_eq!(answer.status(), 400);
    assert!(answer.text().contains("https"), "{}", answer.text());
    eventually("it is counted", || server.closed("handshake") == 1);
    server.stop();
}

#[test]
fn who_does_not_speak_dribbles_or_falls_silent_is_closed_in_time() {
    let server = Server::with_limits(Limits {
        header_time: Duration::from_millis(300),
        handshake_time: Duration::from_millis(300),
        idle_time: Duration::from_millis(600),
        ..Limits::default()
    });
    let started = Instant::now();

    let mut silent = server.plain();
    let mut half_open = TcpStream::connect(server.https).unwrap();
    half_open.write_all(&[0x16, 3, 1, 2]).unwrap();
    let mut idle = server.plain();
    assert_eq!(get(&mut idle, "/bytes/1").status(), 200);
    let mut dribbling = server.plain();
    assert_eq!(get(&mut dribbling, "/bytes/1").status(), 200);
    let writer = dribbling.try_clone().unwrap();
    let dribbler = thread::spawn(move || {
        let mut writer = writer;
        for byte in b"GET /bytes/1 HTTP/1.1\r\nhost: a-name-that-takes-long\r\n\r\n" {
            thread::sleep(Duration::from_millis(50));
            if writer.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });

    assert_eq!(read_to_end(&mut silent).0, b"");
    assert_eq!(read_to_end(&mut half_open).0, b"");
    assert_eq!(read_to_end(&mut dribbling).0, b"");
    assert_eq!(read_to_end(&mut idle), (Vec::new(), true));
    // Idle time counts from the driver's turn, which may have begun a little before the request came.
    let lived = started.elapsed();
    assert!(lived >= Duration::from_millis(500), "the idle one was closed too early: {lived:?}");
    dribbler.join().unwrap();
    eventually("heads are counted", || server.closed("header_time") == 2);
    eventually("handshakes are counted", || server.closed("handshake_time") == 1);
    assert_eq!(server.handled.load(Ordering::SeqCst), 2);
    server.stop();
}

#[test]
fn a_body_that_stops_coming_ends_for_its_handler() {
    let server = Server::with_limits(Limits {
        body_idle_time: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut client = server.plain();
    send(&mut client, "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhello");
    assert_eq!(read_answer(&mut client).text(), "5 the request body came in too slowly");

    let mut client = server.plain();
    send(&mut client, "POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhello");
    drop(client);
    eventually("both were handled", || server.handled.load(Ordering::SeqCst) == 2);
    server.stop();
}

#[test]
fn a_connection_too_many_is_closed_and_counted_and_the_others_go_on() {
    let server = Server::with_limits(Limits { connections_max: 2, ..Limits::default() });
    let mut first = server.plain();
    let mut second = server.plain();
    assert_eq!(get(&mut first, "/bytes/1").status(), 200);
    assert_eq!(get(&mut second, "/bytes/1").status(), 200);
    let mut third = server.plain();
    assert_eq!(read_to_end(&mut third).0, b"");
    assert_eq!(server.closed("too_many"), 1);
    drop(first);
    eventually("its place is free", || {
        let mut next = server.plain();
        next.write_all(b"GET /bytes/1 HTTP/1.1\r\nhost: test\r\n\r\n").is_ok()
            && read_to_end_of_first(&mut next)
    });
    assert_eq!(get(&mut second, "/bytes/1").status(), 200);
    drop(second);
    server.stop();
}

fn read_to_end_of_first(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.read(&mut byte), Ok(1))
}

#[test]
fn a_drain_lets_answers_finish_and_takes_nothing_new() {
    let server = Server::start();
    let mut idle = server.plain();
    assert_eq!(get(&mut idle, "/bytes/1").status(), 200);
    let mut sleeping = server.plain();
    send(&mut sleeping, "GET /sleep/300 HTTP/1.1\r\nhost: test\r\n\r\n");
    let mut large = server.secure();
    send(&mut large, "GET /bytes/16000000 HTTP/1.1\r\nhost: test\r\n\r\n");
    let mut half_open = TcpStream::connect(server.https).unwrap();
    eventually("all have begun", || server.handled.load(Ordering::SeqCst) == 3);

    server.drain.start();
    assert_eq!(read_to_end(&mut idle), (Vec::new(), true));
    assert_eq!(read_to_end(&mut half_open).0, b"");
    let slept = read_answer(&mut sleeping);
    assert_eq!(slept.text(), "slept");
    assert!(slept.head.contains("connection: close"), "{}", slept.head);
    assert_eq!(read_to_end(&mut sleeping), (Vec::new(), true));
    // Its head may have gone out before.
    assert_eq!(read_answer(&mut large).body, pattern(16_000_000));
    assert_eq!(read_to_end(&mut large), (Vec::new(), true));
    eventually("nobody listens", || TcpStream::connect(server.http).is_err());
    drop((idle, sleeping, large));
    server.stop();
}

/// Clients that ask for much and read nothing, and one that reads beside them.
fn crowd(verb: &str, clients: usize, fast_requests: usize) {
    let limits = Limits { stall_time: Duration::from_secs(60), ..Limits::default() };
    let server = Server::with(limits, PinBudget::new(8 << 20, PinBudget::CONNECTION_BYTES_MAX));
    let bound = server.pins.total_bytes_max();
    // Sixteen times of what the sockets hold between them.
    let request = format!("GET /{verb}/16000000 HTTP/1.1\r\nhost: test\r\n\r\n");
    let slow: Vec<TcpStream> = (0..clients)
        .map(|_| {
            let mut client = server.plain();
            send(&mut client, &request);
            client
        })
        .collect();
    eventually("there is pressure", || server.pins.is_under_pressure());
    let fast = {
        let mut client = server.plain();
        let path = format!("/{verb}/2000000");
        thread::spawn(move || {
            let expected = pattern(2_000_000);
            for _ in 0..fast_requests {
                assert_eq!(get(&mut client, &path).body, expected);
            }
        })
    };
    let mut most = 0;
    eventually("the fast one is served, and the slow ones are closed", || {
        most = most.max(server.pins.pinned_bytes());
        server.closed("slow_reader") > 0 && fast.is_finished()
    });
    fast.join().unwrap();
    assert!(most <= bound, "{most} bytes were pinned");
    assert!(most >= bound / 2, "only {most} bytes were ever pinned");
    drop(slow);
    eventually("everything is given back", || server.pins.pinned_bytes() == 0);
    server.stop();
}

#[test]
fn clients_that_do_not_read_hold_no_more_than_the_bound_and_go_while_a_fast_one_goes_on() {
    crowd("bytes", 40, 5);
}

#[test]
fn with_short_frames_under_pressure_nobody_has_to_wait_for_the_slow_ones() {
    crowd("considerate", 100, 50);
}

#[test]
fn a_client_that_takes_nothing_is_stalled_and_loses_its_connection() {
    let server =
        Server::with_limits(Limits { stall_time: Duration::from_millis(300), ..Limits::default() });
    let mut client = server.plain();
    send(&mut client, "GET /bytes/16000000 HTTP/1.1\r\nhost: test\r\n\r\n");
    eventually("it is counted", || server.closed("stalled") == 1);
    assert_eq!(server.pins.pinned_bytes(), 0);
    let (_, clean) = read_to_end(&mut client);
    assert!(!clean);
    server.stop();
}
