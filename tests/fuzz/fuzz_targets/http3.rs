//! Streams of an HTTP/3 client. The first byte says what the rest is: one request stream, a response to a
//! client, or pieces of several streams, each with a byte for the stream, one for what happens, one for a length.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use outrider_http3::client::{self, RequestHead, Response, ResponseError};
use outrider_http3::{Connection, Event, HeadMemo, Limits};

/// What has come of a stream, whatever chunks it came in.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    request: Option<String>,
    body_follows: Option<bool>,
    body: Vec<u8>,
    end: Option<String>,
}

impl Seen {
    /// Takes an event, and checks that it may come now.
    fn take(&mut self, event: Event) {
        if let Event::Stop { .. } | Event::GoAway { .. } = event {
            return;
        }
        assert!(self.end.is_none(), "{event:?} behind {self:?}");
        assert_ne!(self.body_follows, Some(false), "{event:?} behind {self:?}");
        match event {
            Event::Request { head, body_follows, .. } => {
                assert!(self.request.is_none() && self.body.is_empty());
                again(&head);
                self.request = Some(format!("{head:?}"));
                self.body_follows = Some(body_follows);
            }
            Event::Body { data, .. } => {
                assert!(self.request.is_some() && !data.is_empty());
                self.body.extend_from_slice(&data);
            }
            Event::BodyEnd { .. } => {
                assert!(self.request.is_some());
                self.end = Some("end".into());
            }
            Event::Refused { status, .. } => {
                assert!(self.request.is_none() && !status.is_success());
                self.end = Some(status.to_string());
            }
            Event::Failed { error, .. } => self.end = Some(error.to_string()),
            Event::Reset { code, .. } => self.end = Some(code.to_string()),
            Event::Stop { .. } | Event::GoAway { .. } => {}
        }
    }
}

/// A request that was taken is the same when it is written by our own client.
fn again(head: &http::request::Parts) {
    assert_eq!(head.version, http::Version::HTTP_3);
    let fields: Option<Vec<(&str, &str)>> = head
        .headers
        .iter()
        .map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let Some(fields) = fields else { return };
    let authority = head.uri.authority().expect("every request has one").as_str();
    let path = head.uri.path_and_query().expect("every request has one").as_str();
    let request = RequestHead { method: &head.method, authority, path, fields: &fields };
    let limits = Limits { field_section_bytes_max: 1 << 20, ..Limits::default() };
    let mut server = Connection::new(limits);
    server.on_request_data(0, client::encode_head(&request), false).expect("our own client");
    let Some(Event::Request { head: second, .. }) = server.poll_event() else {
        panic!("{head:?} is no request the second time")
    };
    assert_eq!(second.method, head.method);
    assert_eq!(second.uri.path_and_query(), head.uri.path_and_query());
    assert_eq!(second.uri.authority(), head.uri.authority());
    assert_eq!(second.headers, head.headers);
}

fn one_stream(bytes: &[u8], chunk: usize) -> (Seen, Option<String>) {
    one_stream_of(Connection::new(Limits::default()), bytes, chunk)
}

fn one_stream_of(mut server: Connection, bytes: &[u8], chunk: usize) -> (Seen, Option<String>) {
    let mut result = Ok(());
    for chunk in bytes.chunks(chunk) {
        result =
            result.and_then(|()| server.on_request_data(0, Bytes::copy_from_slice(chunk), false));
    }
    result = result.and_then(|()| server.on_request_data(0, Bytes::new(), true));
    let mut seen = Seen::default();
    while let Some(event) = server.poll_event() {
        seen.take(event);
    }
    if result.is_ok() {
        assert_eq!(server.load(), (0, 0));
    }
    (seen, result.err().map(|error| error.to_string()))
}

fn response(bytes: &[u8], chunk: usize) -> (Option<String>, Vec<u8>, Result<(), ResponseError>) {
    let mut response = Response::new(false, 16 << 10);
    let mut body = Vec::new();
    let mut result = Ok(());
    for chunk in bytes.chunks(chunk) {
        result = result.and_then(|()| {
            response.on_data(Bytes::copy_from_slice(chunk), |data| body.extend_from_slice(&data))
        });
    }
    result = result.and_then(|()| response.on_end());
    assert_eq!(response.body_bytes(), body.len() as u64);
    let head = response.head().map(|head| {
        let mut text = format!("{} {:?}", head.status, head.content_length);
        head.fields(|name, value| text += &format!(" {name:?}={value:?}"));
        text
    });
    (head, body, result)
}

fn streams(mut bytes: &[u8]) {
    let limits = Limits {
        requests_max: 8,
        partial_bytes_max: 4 << 10,
        field_section_bytes_max: 1 << 10,
        ..Limits::default()
    };
    let mut server = Connection::new(limits.clone());
    let mut seen: [Seen; 16] = Default::default();
    // A stream takes nothing more behind its end, its reset, or when it was forgotten.
    let mut closed = [false; 64];
    while let [stream, what, len, rest @ ..] = bytes {
        let id = u64::from(stream % 16) * 4 + if stream & 0x80 == 0 { 0 } else { 2 };
        let (data, after) = rest.split_at(rest.len().min(usize::from(*len)));
        bytes = after;
        let slot = id as usize % 64;
        if closed[slot] {
            continue;
        }
        let data = Bytes::copy_from_slice(data);
        let fin = *what == 1;
        let is_uni = id & 2 != 0;
        let result = match what {
            2 => server.on_reset(id, 7),
            3 if !is_uni => {
                server.forget(id);
                Ok(())
            }
            4 => {
                assert!(server.goaway(id).len() <= 10);
                continue;
            }
            _ if is_uni => server.on_uni_data(id, data, fin),
            _ => server.on_request_data(id, data, fin),
        };
        closed[slot] = fin || matches!(what, 2 | 3);
        if result.is_err() {
            break;
        }
        let (requests, partial) = server.load();
        assert!(requests <= limits.requests_max && partial <= limits.partial_bytes_max);
        while let Some(event) = server.poll_event() {
            if let Some(stream) = event.request() {
                seen[stream as usize / 4].take(event);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what % 3 {
        0 => {
            let whole = one_stream(rest, rest.len().max(1));
            assert_eq!(whole, one_stream(rest, 1));
            assert_eq!(whole, one_stream(rest, 1 + usize::from(*what)));
            // What was decoded before means the same again.
            let memo = HeadMemo::new(4);
            for _ in 0..3 {
                let server = Connection::with_memo(Limits::default(), memo.clone());
                assert_eq!(whole, one_stream_of(server, rest, rest.len().max(1)));
            }
        }
        1 => {
            let whole = response(rest, rest.len().max(1));
            assert_eq!(whole, response(rest, 1));
            assert_eq!(whole, response(rest, 1 + usize::from(*what)));
        }
        _ => streams(rest),
    }
});
