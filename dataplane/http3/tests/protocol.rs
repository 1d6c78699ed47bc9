//! What RFC 9114 says of requests, frames and streams, one sentence after the other, against the server's half.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use outrider_http3::client::{self, RequestHead};
use outrider_http3::frame::{FrameHead, kind};
use outrider_http3::qpack::encode::{self, Strings};
use outrider_http3::{Code, Connection, Event, Limits};

fn server() -> Connection {
    Connection::new(Limits::default())
}

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameHead { kind, len: payload.len() as u64 }.put(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// A HEADERS frame with these fields, pseudo-header fields included, all literal.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        // A literal name of up to 6 bytes has its length in the first byte; longer ones have one more.
        if name.len() < 7 {
            section.push(0x20 | name.len() as u8);
        } else {
            section.extend_from_slice(&[0x27, (name.len() - 7) as u8]);
        }
        section.extend_from_slice(name.as_bytes());
        assert!(value.len() < 127);
        section.push(value.len() as u8);
        section.extend_from_slice(value.as_bytes());
    }
    frame(kind::HEADERS, &section)
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/v2/")];

fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    headers(&[&GET[..], more].concat())
}

/// What comes of a stream with these bytes.
fn events(bytes: &[u8], fin: bool) -> Result<Vec<Event>, Code> {
    let mut server = server();
    server.on_request_data(0, Bytes::copy_from_slice(bytes), fin).map_err(|error| error.code)?;
    Ok(std::iter::from_fn(|| server.poll_event()).collect())
}

/// In short: what the last event is.
#[derive(Debug, PartialEq)]
enum Outcome {
    Request { body_follows: bool },
    BodyEnd,
    Body,
    Refused(u16),
    Failed(Code),
    Closed(Code),
    Nothing,
}

fn outcome(bytes: &[u8], fin: bool) -> Outcome {
    match events(bytes, fin).map(|events| events.into_iter().next_back()) {
        Err(code) => Outcome::Closed(code),
        Ok(None) => Outcome::Nothing,
        Ok(Some(Event::Request { body_follows, .. })) => Outcome::Request { body_follows },
        Ok(Some(Event::BodyEnd { .. })) => Outcome::BodyEnd,
        Ok(Some(Event::Body { .. })) => Outcome::Body,
        Ok(Some(Event::Refused { status, .. })) => Outcome::Refused(status.as_u16()),
        Ok(Some(Event::Failed { error, .. })) => Outcome::Failed(error.code),
        Ok(Some(event)) => panic!("{event:?}"),
    }
}

const MALFORMED: Outcome = Outcome::Failed(Code::H3_MESSAGE_ERROR);
const WHOLE: Outcome = Outcome::Request { body_follows: false };

#[test]
fn a_request_has_method_target_and_fields() {
    let fields = [("range", "bytes=0-9"), ("x-custom", "v"), ("accept", "*/*"), ("x-custom", "w")];
    let request = RequestHead {
        method: &Method::HEAD,
        authority: "edge.example:8443",
        path: "/v2/a/blobs/sha256:00?ns=docker.io",
        fields: &fields,
    };
    let mut server = server();
    server.on_request_data(4, client::encode_head(&request), true).unwrap();
    let Some(Event::Request { stream: 4, head, body_follows: false }) = server.poll_event() else {
        panic!();
    };
    assert_eq!((&head.method, head.version), (&Method::HEAD, Version::HTTP_3));
    assert_eq!(head.uri, "https://edge.example:8443/v2/a/blobs/sha256:00?ns=docker.io");
    assert_eq!(head.headers.len(), 4);
    assert_eq!(head.headers["range"], "bytes=0-9");
    assert_eq!(head.headers["accept"], "*/*");
    let custom: Vec<_> = head.headers.get_all("x-custom").iter().collect();
    assert_eq!(custom, ["v", "w"]);
    assert!(server.poll_event().is_none());
    assert_eq!(server.load(), (0, 0));
    assert_eq!(server.next_request(), 8);
}

#[test]
fn a_request_is_the_same_in_any_chunks() {
    let mut bytes = frame(0x21, b"grease");
    bytes.extend(get_with(&[("content-length", "5")]));
    bytes.extend(frame(kind::DATA, b"he"));
    bytes.extend(frame(0x40, &[7; 70]));
    bytes.extend(frame(kind::DATA, b""));
    bytes.extend(frame(kind::DATA, b"llo"));
    bytes.extend(headers(&[("trailer", "t")]));
    bytes.extend(frame(0x5f, b""));
    for size in 1..=bytes.len() {
        let mut server = server();
        let mut body = Vec::new();
        let (mut requests, mut ends) = (0, 0);
        let mut look = |server: &mut Connection| {
            while let Some(event) = server.poll_event() {
                match event {
                    Event::Request { stream: 0, .. } => requests += 1,
                    Event::Body { stream: 0, data } => body.extend_from_slice(&data),
                    Event::BodyEnd { stream: 0 } => ends += 1,
                    event => panic!("{event:?}"),
                }
            }
        };
        for chunk in bytes.chunks(size) {
            server.on_request_data(0, Bytes::copy_from_slice(chunk), false).unwrap();
            look(&mut server);
        }
        server.on_request_data(0, Bytes::new(), true).unwrap();
        look(&mut server);
        assert_eq!((requests, ends, &body[..]), (1, 1, &b"hello"[..]), "chunks of {size}");
        assert_eq!(server.load(), (0, 0));
    }
}

#[test]
fn a_body_is_passed_on_without_a_copy() {
    let mut server = server();
    server.on_request_data(0, get_with(&[]).into(), false).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Request { body_follows: true, .. })));
    let chunk = Bytes::from(frame(kind::DATA, &[5; 1000]));
    let at = chunk.as_ptr();
    server.on_request_data(0, chunk, true).unwrap();
    let Some(Event::Body { data, .. }) = server.poll_event() else { panic!() };
    assert_eq!(data.len(), 1000);
    // Behind type and length.
    assert_eq!(data.as_ptr() as usize, at as usize + 3);
    assert!(matches!(server.poll_event(), Some(Event::BodyEnd { stream: 0 })));
}

#[test]
fn the_end_of_the_stream_may_come_before_the_events_are_taken() {
    let mut server = server();
    server.on_request_data(0, get_with(&[]).into(), false).unwrap();
    server.on_request_data(0, Bytes::new(), true).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Request { body_follows: false, .. })));
    assert!(server.poll_event().is_none());
}

#[test]
fn pseudo_header_fields_stand_once_and_first() {
    assert_eq!(outcome(&get_with(&[]), true), WHOLE);
    for missing in [0, 1, 3] {
        let mut fields = GET.to_vec();
        fields.remove(missing);
        assert_eq!(outcome(&headers(&fields), true), MALFORMED, "without {}", GET[missing].0);
    }
    for twice in GET {
        let mut fields = GET.to_vec();
        fields.insert(0, twice);
        assert_eq!(outcome(&headers(&fields), true), MALFORMED, "{} twice", twice.0);
    }
    let late = [&GET[..3], &[("x", "y"), (":path", "/")]].concat();
    assert_eq!(outcome(&headers(&late), true), MALFORMED);
    for unknown in [(":status", "200"), (":protocol", "websocket"), (":x", ""), (":", "")] {
        let mut fields = GET.to_vec();
        fields.push(unknown);
        assert_eq!(outcome(&headers(&fields), true), MALFORMED, "{}", unknown.0);
    }
    // The same from the static table: :status 200 is entry 25, and :path / entry 1.
    let mut section = vec![0, 0, 0xd1, 0xd7, 0x50, 1, b'a', 0xc1];
    assert_eq!(outcome(&frame(kind::HEADERS, &section), true), WHOLE);
    section.push(0xd9);
    assert_eq!(outcome(&frame(kind::HEADERS, &section), true), MALFORMED);
    // accept */*, then :path.
    let section = [0, 0, 0xd1, 0xd7, 0x50, 1, b'a', 0xdd, 0xc1];
    assert_eq!(outcome(&frame(kind::HEADERS, &section), true), MALFORMED);
}

#[test]
fn targets_are_those_of_http() {
    let with = |index: usize, value| {
        let mut fields = GET;
        fields[index].1 = value;
        outcome(&headers(&fields), true)
    };
    assert_eq!(with(3, "*"), MALFORMED);
    assert_eq!(with(3, ""), MALFORMED);
    assert_eq!(with(3, "v2/"), MALFORMED);
    assert_eq!(with(3, "/a#b"), MALFORMED);
    assert_eq!(with(3, "/a b"), MALFORMED);
    assert_eq!(with(3, "https://a.example/"), MALFORMED);
    assert_eq!(with(3, "/a?b=%20&c"), WHOLE);
    assert_eq!(with(2, ""), MALFORMED);
    assert_eq!(with(2, "user@a.example"), MALFORMED);
    assert_eq!(with(2, "a.example/x"), MALFORMED);
    assert_eq!(with(2, "[::1]:443"), WHOLE);
    assert_eq!(with(1, "http"), WHOLE);
    assert_eq!(with(1, "ftp"), Outcome::Refused(400));
    assert_eq!(with(1, "no scheme"), MALFORMED);
    assert_eq!(with(0, "GE T"), MALFORMED);
    assert_eq!(with(0, ""), MALFORMED);
    assert_eq!(with(0, "PURGE"), WHOLE);
    let options = [("", ""); 0];
    assert_eq!(outcome(&get_with(&options), true), WHOLE);
    let mut asterisk = GET;
    (asterisk[0].1, asterisk[3].1) = ("OPTIONS", "*");
    assert_eq!(outcome(&headers(&asterisk), true), WHOLE);
}

#[test]
fn authority_and_host_are_the_same() {
    assert_eq!(outcome(&get_with(&[("host", "a.example")]), true), WHOLE);
    assert_eq!(outcome(&get_with(&[("host", "b.example")]), true), MALFORMED);
    assert_eq!(
        outcome(&get_with(&[("host", "a.example"), ("host", "a.example")]), true),
        MALFORMED
    );
    let mut fields = GET.to_vec();
    fields.remove(2);
    assert_eq!(outcome(&headers(&fields), true), MALFORMED);
    fields.push(("host", "h.example"));
    let mut events = events(&headers(&fields), true).unwrap();
    let Some(Event::Request { head, .. }) = events.pop() else { panic!() };
    assert_eq!(head.uri.host(), Some("h.example"));
}

#[test]
fn connect_is_refused_and_never_a_request() {
    let connect = [(":method", "CONNECT"), (":authority", "a.example:443")];
    assert_eq!(outcome(&headers(&connect), false), Outcome::Refused(501));
    let scheme = [&connect[..], &[(":scheme", "https")]].concat();
    assert_eq!(outcome(&headers(&scheme), false), MALFORMED);
    assert_eq!(outcome(&headers(&connect[..1]), false), MALFORMED);
}

#[test]
fn fields_are_lower_case_and_not_those_of_connections() {
    for (name, value) in [
        ("Accept", "x"),
        ("a b", "x"),
        ("", "x"),
        ("a\0", "x"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("x", "a\r\nb"),
        ("x", "a\0"),
        ("x", " a"),
        ("x", "a\t"),
        ("content-length", "5, 5"),
        ("content-length", "+5"),
        ("content-length", ""),
        ("content-length", "99999999999999999999"),
    ] {
        assert_eq!(outcome(&get_with(&[(name, value)]), false), MALFORMED, "{name}: {value}");
    }
    assert_eq!(outcome(&get_with(&[("te", "trailers"), ("x", "")]), true), WHOLE);
}

#[test]
fn cookies_are_put_together() {
    let cookies = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("cookie", "e=f")];
    let mut events = events(&get_with(&cookies), true).unwrap();
    let Some(Event::Request { head, .. }) = events.pop() else { panic!() };
    assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=b; c=d; e=f"]);
    assert_eq!(head.headers["x"], "y");
}

#[test]
fn cookies_that_are_empty_leave_no_white_space() {
    for (values, joined) in
        [(&["", ""][..], ""), (&["", "a=b"], "a=b"), (&["a=b", "", "c=d"], "a=b; c=d")]
    {
        let cookies: Vec<_> = values.iter().map(|value| ("cookie", *value)).collect();
        let mut events = events(&get_with(&cookies), true).unwrap();
        let Some(Event::Request { head, .. }) = events.pop() else { panic!() };
        assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), [joined]);
    }
}

#[test]
fn the_body_is_as_long_as_content_length() {
    let with = |length: &str, body: &[u8]| {
        let head = get_with(&[("content-length", length)]);
        outcome(&[head, frame(kind::DATA, body)].concat(), true)
    };
    assert_eq!(with("5", b"hello"), Outcome::BodyEnd);
    assert_eq!(with("6", b"hello"), MALFORMED);
    assert_eq!(with("4", b"hello"), MALFORMED);
    assert_eq!(with("0", b""), WHOLE);
    let alone = |fields: &[(&str, &str)]| events(&get_with(fields), true).unwrap();
    // The request is not told at all when its end is there with its head.
    let fields = [("content-length", "1")];
    assert!(matches!(&alone(&fields)[..], [Event::Failed { .. }]));
    let twice = [("content-length", "0"), ("content-length", "0")];
    let told = alone(&twice);
    let [Event::Request { head, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(head.headers.get_all("content-length").iter().count(), 1);
    let twice = [("content-length", "0"), ("content-length", "1")];
    assert!(matches!(&alone(&twice)[..], [Event::Failed { .. }]));
    // A frame that says too much is enough; its bytes need not come.
    let mut bytes = get_with(&[("content-length", "5")]);
    FrameHead { kind: kind::DATA, len: 6 }.put(&mut bytes);
    assert_eq!(outcome(&bytes, false), MALFORMED);
}

#[test]
fn frames_come_in_the_order_head_body_trailers() {
    let (head, data) = (get_with(&[]), frame(kind::DATA, b"x"));
    let trailers = headers(&[("t", "u")]);
    let unexpected = Outcome::Closed(Code::H3_FRAME_UNEXPECTED);
    assert_eq!(outcome(&data, false), unexpected);
    assert_eq!(outcome(&[&head[..], &trailers, &data].concat(), false), unexpected);
    assert_eq!(outcome(&[&head[..], &trailers, &trailers].concat(), false), unexpected);
    assert_eq!(outcome(&[&head[..], &data, &trailers].concat(), true), Outcome::BodyEnd);
    assert_eq!(outcome(&[&head[..], &data, &head].concat(), true), MALFORMED);
    let wrong = headers(&[("Upper", "x")]);
    assert_eq!(outcome(&[&head[..], &wrong].concat(), true), MALFORMED);
    let wrong = headers(&[("connection", "x")]);
    assert_eq!(outcome(&[&head[..], &wrong].concat(), true), MALFORMED);
}

#[test]
fn frames_of_other_streams_and_of_http_2_end_the_connection() {
    for kind in [0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0d] {
        let unexpected = Outcome::Closed(Code::H3_FRAME_UNEXPECTED);
        assert_eq!(outcome(&frame(kind, &[0]), false), unexpected, "{kind:#x}");
        assert_eq!(outcome(&[get_with(&[]), frame(kind, &[0])].concat(), false), unexpected);
    }
}

#[test]
fn a_stream_ends_behind_a_whole_request() {
    let get = get_with(&[]);
    assert_eq!(outcome(b"", true), Outcome::Failed(Code::H3_REQUEST_INCOMPLETE));
    assert_eq!(outcome(&frame(0x21, b""), true), Outcome::Failed(Code::H3_REQUEST_INCOMPLETE));
    for len in 1..get.len() {
        assert_eq!(outcome(&get[..len], true), Outcome::Closed(Code::H3_FRAME_ERROR), "{len}");
        assert_eq!(outcome(&get[..len], false), Outcome::Nothing, "{len}");
    }
    let cut = [&get[..], &[0, 5, 1]].concat();
    assert_eq!(outcome(&cut, true), Outcome::Closed(Code::H3_FRAME_ERROR));
}

#[test]
fn field_sections_that_cannot_be_decoded_end_the_connection() {
    for section in
        [&b""[..], &[0], &[1, 0, 0xc1], &[0, 0, 0x80], &[0, 0, 0xff, 0x7f], &[0, 0, 0x51, 9]]
    {
        assert_eq!(
            outcome(&frame(kind::HEADERS, section), false),
            Outcome::Closed(Code::QPACK_DECOMPRESSION_FAILED),
            "{section:?}"
        );
    }
}

#[test]
fn too_large_heads_are_answered_431_and_not_kept() {
    let limits = Limits { field_section_bytes_max: 400, fields_max: 5, ..Limits::default() };
    let refused = |bytes: Vec<u8>| {
        let mut server = Connection::new(limits.clone());
        server.on_request_data(0, bytes.into(), false).unwrap();
        let event = server.poll_event();
        assert_eq!(server.load().1, 0);
        matches!(
            event,
            Some(Event::Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, .. })
        )
    };
    // The four of GET have 176 bytes with what is counted for each.
    assert!(!refused(get_with(&[])));
    let value = |len| "v".repeat(len);
    assert!(!refused(get_with(&[("x", &value(100)), ("y", &value(50))])));
    assert!(refused(get_with(&[("x", &value(100)), ("y", &value(60))])));
    assert!(!refused(get_with(&[("x", ""); 5])));
    assert!(refused(get_with(&[("x", ""); 6])));
    // A frame that is too long by itself: its head is enough.
    let mut head = Vec::new();
    FrameHead { kind: kind::HEADERS, len: 401 }.put(&mut head);
    assert!(refused(head));
    let mut head = Vec::new();
    FrameHead { kind: kind::HEADERS, len: 1 << 61 }.put(&mut head);
    assert!(refused(head));
}

#[test]
fn what_comes_behind_a_failure_is_dropped() {
    let mut server = server();
    server.on_request_data(0, headers(&[("x", "y")]).into(), false).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Failed { stream: 0, .. })));
    // Not even a second request on the stream, and nothing that would end the connection.
    server.on_request_data(0, get_with(&[]).into(), false).unwrap();
    server.on_request_data(0, frame(kind::SETTINGS, b"").into(), false).unwrap();
    assert!(server.poll_event().is_none());
    assert_eq!(server.load().0, 1);
    server.on_reset(0, 0).unwrap();
    assert!(server.poll_event().is_none());
    assert_eq!(server.load().0, 0);
}

#[test]
fn a_reset_is_told_and_forgets_what_was_kept() {
    let mut server = server();
    let get = get_with(&[]);
    server.on_request_data(0, Bytes::copy_from_slice(&get[..20]), false).unwrap();
    server.on_request_data(4, Bytes::copy_from_slice(&get), false).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Request { stream: 4, .. })));
    let (requests, bytes) = server.load();
    assert!(requests == 2 && (18..100).contains(&bytes));
    server.on_reset(0, 0x10c).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Reset { stream: 0, code: 0x10c })));
    server.on_reset(4, 0x10c).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Reset { stream: 4, .. })));
    assert_eq!(server.load(), (0, 0));
    // Before any byte of it.
    server.on_reset(8, 1).unwrap();
    assert!(matches!(server.poll_event(), Some(Event::Reset { stream: 8, code: 1 })));
    assert_eq!(server.next_request(), 12);
}

#[test]
fn a_forgotten_request_has_no_events() {
    let mut server = server();
    server.on_request_data(0, get_with(&[]).into(), false).unwrap();
    server.on_request_data(4, get_with(&[]).into(), false).unwrap();
    server.forget(0);
    assert!(matches!(server.poll_event(), Some(Event::Request { stream: 4, .. })));
    assert!(server.poll_event().is_none());
    assert_eq!(server.load().0, 1);
}

#[test]
fn requests_behind_goaway_are_rejected() {
    let mut server = server();
    server.on_request_data(0, get_with(&[]).into(), false).unwrap();
    assert_eq!(server.next_request(), 4);
    assert_eq!(server.goaway(4)[..], [7, 1, 4]);
    server.on_request_data(0, frame(kind::DATA, b"x").into(), true).unwrap();
    server.on_request_data(4, get_with(&[]).into(), true).unwrap();
    server.on_request_data(8, get_with(&[]).into(), false).unwrap();
    let mut rejected = Vec::new();
    let mut ended = false;
    while let Some(event) = server.poll_event() {
        match event {
            Event::Failed { stream, error } => rejected.push((stream, error.code)),
            Event::BodyEnd { stream: 0 } => ended = true,
            _ => {}
        }
    }
    assert!(ended);
    assert_eq!(rejected, [(4, Code::H3_REQUEST_REJECTED), (8, Code::H3_REQUEST_REJECTED)]);
    // It never grows.
    assert_eq!(server.goaway(400)[..], [7, 1, 4]);
    assert_eq!(server.goaway(0)[..], [7, 1, 0]);
    assert_eq!(Connection::new(Limits::default()).goaway(u64::MAX).len(), 10);
}

#[test]
fn frames_that_are_of_no_use_are_bounded() {
    let limits = Limits { skipped_frames_max: 3, skipped_bytes_max: 100, ..Limits::default() };
    let load = Some(Code::H3_EXCESSIVE_LOAD);
    let code = |chunks: &[Vec<u8>]| {
        let mut server = Connection::new(limits.clone());
        let mut result = Ok(());
        for chunk in chunks {
            result = result.and_then(|()| server.on_request_data(0, chunk.clone().into(), false));
        }
        result.err().map(|error| error.code)
    };
    // Twice of it: for the connection, and for the one request.
    assert_eq!(code(&vec![frame(0x21, b""); 6]), None);
    assert_eq!(code(&vec![frame(0x21, b""); 7]), load);
    assert_eq!(code(&[frame(0x21, &[0; 200])]), None);
    assert_eq!(code(&[frame(0x21, &[0; 201])]), load);
    let data = [vec![get_with(&[])], vec![frame(kind::DATA, b""); 7]].concat();
    assert_eq!(code(&data), load);
    // Bytes that are said and do not come cost nothing.
    let mut endless = Vec::new();
    FrameHead { kind: 0x21, len: 1 << 60 }.put(&mut endless);
    assert_eq!(code(&[endless.clone()]), None);
    assert_eq!(code(&[endless, vec![0; 201]]), load);
}

#[test]
fn heads_that_do_not_become_whole_are_bounded() {
    let limits = Limits { partial_bytes_max: 1000, requests_max: 20, ..Limits::default() };
    let mut server = Connection::new(limits.clone());
    let mut slow = Vec::new();
    FrameHead { kind: kind::HEADERS, len: 400 }.put(&mut slow);
    slow.push(0);
    server.on_request_data(0, slow.clone().into(), false).unwrap();
    server.on_request_data(4, slow.clone().into(), false).unwrap();
    let error = server.on_request_data(8, slow.into(), false).unwrap_err();
    assert_eq!(error.code, Code::H3_EXCESSIVE_LOAD);
    let mut server = Connection::new(limits);
    for stream in 0..20 {
        server.on_request_data(4 * stream, Bytes::new(), false).unwrap();
    }
    server.on_request_data(0, Bytes::new(), false).unwrap();
    let error = server.on_request_data(80, Bytes::new(), false).unwrap_err();
    assert_eq!(error.code, Code::H3_EXCESSIVE_LOAD);
}

/// Sends chunks on unidirectional streams and gives the events, or how it ended.
fn uni(chunks: &[(u64, &[u8])]) -> Result<Vec<Event>, Code> {
    let mut server = server();
    for (stream, chunk) in chunks {
        // Byte by byte, which must make no difference.
        for byte in *chunk {
            server
                .on_uni_data(*stream, Bytes::copy_from_slice(&[*byte]), false)
                .map_err(|error| error.code)?;
        }
    }
    let mut events = Vec::new();
    while let Some(event) = server.poll_event() {
        events.push(event);
    }
    Ok(events)
}

#[test]
fn the_control_stream_begins_with_settings() {
    let preface = client::control_preface();
    let mut server = server();
    server.on_uni_data(2, preface.clone(), false).unwrap();
    assert_eq!(
        server.settings().unwrap().field_section_bytes_max,
        Some(client::FIELD_SECTION_BYTES_MAX)
    );
    assert!(uni(&[(2, &preface)]).unwrap().is_empty());
    for kind in [kind::GOAWAY, kind::DATA, 0x21, 0x02] {
        let bytes = [&[0][..], &frame(kind, &[0])].concat();
        assert_eq!(uni(&[(2, &bytes)]).unwrap_err(), Code::H3_MISSING_SETTINGS, "{kind:#x}");
    }
    let twice = [&preface[..], &frame(kind::SETTINGS, b"")].concat();
    assert_eq!(uni(&[(2, &twice)]).unwrap_err(), Code::H3_FRAME_UNEXPECTED);
    let large = [&[0][..], &frame(kind::SETTINGS, &[0x21; 5000])].concat();
    assert_eq!(uni(&[(2, &large)]).unwrap_err(), Code::H3_EXCESSIVE_LOAD);
    let empty = [&[0][..], &frame(kind::SETTINGS, b""), &frame(0x21, b"")].concat();
    assert!(uni(&[(2, &empty)]).unwrap().is_empty());
}

#[test]
fn the_control_stream_has_its_own_frames() {
    let code = |frames: &[Vec<u8>]| {
        let bytes = [client::control_preface().to_vec(), frames.concat()].concat();
        uni(&[(2, &bytes)]).err()
    };
    for kind in [kind::DATA, kind::HEADERS, kind::PUSH_PROMISE, 0x02, 0x06, 0x08, 0x09] {
        assert_eq!(code(&[frame(kind, &[0])]), Some(Code::H3_FRAME_UNEXPECTED), "{kind:#x}");
    }
    // Nothing was pushed.
    assert_eq!(code(&[frame(kind::CANCEL_PUSH, &[0])]), Some(Code::H3_ID_ERROR));
    let max = |id| frame(kind::MAX_PUSH_ID, &[id]);
    assert_eq!(code(&[max(5), max(5), max(6)]), None);
    assert_eq!(code(&[max(5), max(4)]), Some(Code::H3_ID_ERROR));
    let goaway = |id| frame(kind::GOAWAY, &[id]);
    assert_eq!(code(&[goaway(6), goaway(5)]), None);
    assert_eq!(code(&[goaway(5), goaway(6)]), Some(Code::H3_ID_ERROR));
    for payload in [&b""[..], &[1, 2], &[0x40], &[0; 9]] {
        for kind in [kind::GOAWAY, kind::MAX_PUSH_ID, kind::CANCEL_PUSH] {
            assert_eq!(code(&[frame(kind, payload)]), Some(Code::H3_FRAME_ERROR), "{payload:?}");
        }
    }
    // PRIORITY_UPDATE, as browsers send it.
    assert_eq!(code(&[frame(0xf0700, b"\0u=1")]), None);
    assert_eq!(code(&vec![frame(0x21, b""); 100]), Some(Code::H3_EXCESSIVE_LOAD));
    let bytes = [client::control_preface().to_vec(), goaway(7)].concat();
    assert!(matches!(uni(&[(2, &bytes)]).unwrap()[..], [Event::GoAway { id: 7 }]));
}

#[test]
fn browsers_may_send_priorities_with_every_request() {
    let mut server = server();
    server.on_uni_data(2, client::control_preface(), false).unwrap();
    for stream in (0..40_000).step_by(4) {
        server.on_request_data(stream, get_with(&[]).into(), true).unwrap();
        assert!(server.poll_event().is_some());
        server.on_uni_data(2, frame(0xf0700, b"\0u=1,i").into(), false).unwrap();
    }
}

#[test]
fn critical_streams_are_there_once_and_stay() {
    for kind in [0, 2, 3] {
        let both = [(2, &[kind][..]), (6, &[kind][..])];
        assert_eq!(uni(&both).unwrap_err(), Code::H3_STREAM_CREATION_ERROR);
        let mut server = server();
        server.on_uni_data(2, Bytes::copy_from_slice(&[kind]), false).unwrap();
        let error = server.on_uni_data(2, Bytes::new(), true).unwrap_err();
        assert_eq!(error.code, Code::H3_CLOSED_CRITICAL_STREAM);
        let mut server = Connection::new(Limits::default());
        server.on_uni_data(2, Bytes::copy_from_slice(&[kind]), false).unwrap();
        assert_eq!(server.on_reset(2, 0).unwrap_err().code, Code::H3_CLOSED_CRITICAL_STREAM);
    }
    assert_eq!(Connection::control_stopped().code, Code::H3_CLOSED_CRITICAL_STREAM);
    // Before its type is there, a stream may end.
    let mut server = server();
    server.on_uni_data(2, Bytes::from_static(&[0x40]), true).unwrap();
    server.on_uni_data(6, Bytes::new(), true).unwrap();
    server.on_reset(10, 0).unwrap();
}

#[test]
fn other_unidirectional_streams_are_stopped_or_end_the_connection() {
    assert_eq!(uni(&[(2, &[1, 0])]).unwrap_err(), Code::H3_STREAM_CREATION_ERROR);
    let events = uni(&[(2, &[0x40, 0x54, 1, 2, 3]), (6, &[0x21])]).unwrap();
    let code = Code::H3_STREAM_CREATION_ERROR;
    assert!(matches!(
        events[..],
        [Event::Stop { stream: 2, code: first }, Event::Stop { stream: 6, code: second }]
            if first == code && second == code
    ));
    let flood: Vec<(u64, &[u8])> = (0..65).map(|stream| (4 * stream + 2, &[0x21][..])).collect();
    assert_eq!(uni(&flood).unwrap_err(), Code::H3_EXCESSIVE_LOAD);
    let long = [&[0x21][..], &[0; 70_000]].concat();
    assert_eq!(uni(&[(2, &long)]).unwrap_err(), Code::H3_EXCESSIVE_LOAD);
}

#[test]
fn qpack_streams_may_say_nothing_of_entries() {
    // Capacity 0 is the one that may be set.
    assert!(uni(&[(2, &[2, 0x20, 0x20])]).unwrap().is_empty());
    for instruction in
        [&[0x21][..], &[0x3f, 0xbd, 0x01], &[0xc0, 0], &[0x80, 0], &[0x41, b'a', 0], &[0]]
    {
        let bytes = [&[2], instruction].concat();
        let code = uni(&[(2, &bytes)]).unwrap_err();
        assert_eq!(code, Code::QPACK_ENCODER_STREAM_ERROR, "{instruction:?}");
    }
    // Cancellations, of streams with one and with several bytes.
    assert!(uni(&[(2, &[3, 0x44, 0x7f, 0x80, 0x01, 0x48])]).unwrap().is_empty());
    for instruction in [&[0x80][..], &[0x84], &[0x00], &[0x01], &[0x3f, 0], &[0x7f; 12]] {
        let mut bytes = [&[3], instruction].concat();
        if instruction.len() == 12 {
            bytes[2..].fill(0xff);
        }
        let code = uni(&[(2, &bytes)]).unwrap_err();
        assert_eq!(code, Code::QPACK_DECODER_STREAM_ERROR, "{instruction:?}");
    }
}

#[test]
fn our_preface_is_what_a_client_reads() {
    let server = Connection::new(Limits { field_section_bytes_max: 12_345, ..Limits::default() });
    let mut streams = client::ServerStreams::default();
    streams.on_data(3, server.control_preface(), false, |event| panic!("{event:?}")).unwrap();
    assert_eq!(streams.settings().unwrap().field_section_bytes_max, Some(12_345));
    let mut went = None;
    let mut server = server;
    streams.on_data(3, server.goaway(12), false, |event| went = Some(event)).unwrap();
    assert_eq!(went, Some(client::ServerEvent::GoAway { id: 12 }));
    let odd = Bytes::from(frame(kind::GOAWAY, &[5]));
    assert_eq!(streams.on_data(3, odd, false, |_| {}).unwrap_err().code, Code::H3_ID_ERROR);
    let push = Bytes::from_static(&[1, 0]);
    assert_eq!(streams.on_data(7, push, false, |_| {}).unwrap_err().code, Code::H3_ID_ERROR);
    let mut streams = client::ServerStreams::default();
    streams.on_data(3, server.control_preface(), false, |_| {}).unwrap();
    assert_eq!(streams.on_reset(3).unwrap_err().code, Code::H3_CLOSED_CRITICAL_STREAM);
}

#[test]
fn huffman_code_in_a_request_is_read() {
    // As browsers and curl write it.
    let mut section = Vec::new();
    encode::begin(&mut section);
    encode::indexed(&mut section, 17);
    encode::indexed(&mut section, 23);
    encode::named(&mut section, 0, b"www.example.com", Strings::Shortest);
    encode::named(&mut section, 1, b"/v2/library/alpine/manifests/latest", Strings::Shortest);
    encode::field(&mut section, "user-agent", b"curl/8.0", Strings::Shortest);
    encode::field(&mut section, "x-custom-name", b"value, and value", Strings::Shortest);
    let mut events = events(&frame(kind::HEADERS, &section), true).unwrap();
    let Some(Event::Request { head, .. }) = events.pop() else { panic!() };
    assert_eq!(head.uri, "https://www.example.com/v2/library/alpine/manifests/latest");
    assert_eq!(head.headers["user-agent"], "curl/8.0");
    assert_eq!(head.headers["x-custom-name"], "value, and value");
}
