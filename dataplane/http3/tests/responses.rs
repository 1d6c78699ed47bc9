//! Responses as the server's half writes them, read by the client's half, and what a client refuses.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use outrider_http3::client::{self, ResponseError};
use outrider_http3::frame::{FrameHead, kind};
use outrider_http3::{Code, response};
use proptest::prelude::*;

const SECTION_BYTES_MAX: usize = 64 << 10;

fn read(chunks: &[&[u8]], head_only: bool) -> Result<(client::Response, Vec<u8>), ResponseError> {
    let mut response = client::Response::new(head_only, SECTION_BYTES_MAX);
    let mut body = Vec::new();
    for chunk in chunks {
        response.on_data(Bytes::copy_from_slice(chunk), |data| body.extend_from_slice(&data))?;
    }
    response.on_end()?;
    assert_eq!(response.body_bytes(), body.len() as u64);
    Ok((response, body))
}

fn code(bytes: &[u8], head_only: bool) -> Code {
    match read(&[bytes], head_only) {
        Err(ResponseError::Connection(error)) => error.code,
        Err(ResponseError::Stream(error)) => error.code,
        Ok(response) => panic!("{response:?}"),
    }
}

fn head(status: u16, fields: &[(&'static str, &str)], body_len: Option<u64>) -> Vec<u8> {
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        parts.headers.append(*name, value.parse().unwrap());
    }
    response::encode_head(&parts, body_len).to_vec()
}

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameHead { kind, len: payload.len() as u64 }.put(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn the_head_of_a_small_file_is_short_and_ends_with_the_head_of_its_body() {
    let fields = [("content-length", "4096"), ("accept-ranges", "bytes")];
    let bytes = head(200, &fields, Some(4096));
    // HEADERS of 10 bytes: prefix, :status 200, content-length, accept-ranges; DATA of 4096.
    let expected = [1, 0x40, 10, 0, 0, 0xd9, 0x54, 4, b'4', b'0', b'9', b'6', 0xe0, 0, 0x50, 0x00];
    assert_eq!(bytes, expected);
    assert_eq!(head(200, &fields, Some(0)), expected[..13]);
    assert_eq!(head(200, &fields, None), expected[..13]);
    assert_eq!(response::data_head(4096)[..], expected[13..]);
    assert_eq!(response::data_head(5)[..], [0, 5]);
}

#[test]
fn a_status_alone_is_a_response() {
    for status in [200, 404, 431, 501, 999] {
        let bytes = response::encode_status(StatusCode::from_u16(status).unwrap());
        let (response, body) = read(&[&bytes], false).unwrap();
        let head = response.head().unwrap();
        assert_eq!((head.status, head.content_length), (status, Some(0)));
        assert!(body.is_empty());
    }
}

#[test]
fn fields_of_connections_are_left_out() {
    let fields = [("connection", "close"), ("transfer-encoding", "chunked"), ("keep-alive", "1")];
    let fields = [&fields[..], &[("x-kept", "1")]].concat();
    let (response, _) = read(&[&head(200, &fields, None)], false).unwrap();
    let mut names = Vec::new();
    response.head().unwrap().fields(|name, _| names.push(name.to_vec()));
    assert_eq!(names, [b"x-kept"]);
}

#[test]
fn a_very_large_head_has_a_longer_length() {
    let value = "v".repeat(20_000);
    let bytes = head(200, &[("x-large", &value)], Some(3));
    let (response, body) = read(&[&bytes, b"abc"], false).unwrap();
    assert_eq!(body, b"abc");
    let mut len = 0;
    response.head().unwrap().fields(|_, value| len += value.len());
    assert_eq!(len, 20_000);
    let mut small = client::Response::new(false, 10_000);
    assert!(matches!(small.on_data(bytes.into(), |_| {}), Err(ResponseError::Stream(_))));
}

#[test]
fn interim_responses_are_skipped() {
    let interim = [head(103, &[("link", "</x>")], None), head(100, &[], None)].concat();
    let bytes = [interim, head(200, &[], None), frame(kind::DATA, b"body")].concat();
    let (response, body) = read(&[&bytes], false).unwrap();
    assert_eq!((response.head().unwrap().status, &body[..]), (200, &b"body"[..]));
    assert_eq!(code(&head(103, &[], None), false), Code::H3_MESSAGE_ERROR);
    assert_eq!(code(&head(101, &[], None), false), Code::H3_MESSAGE_ERROR);
    let many = head(100, &[], None).repeat(17);
    assert_eq!(code(&many, false), Code::H3_EXCESSIVE_LOAD);
}

#[test]
fn bodies_are_as_long_as_said() {
    let said = |body: &[u8]| {
        [head(200, &[("content-length", "4")], None), frame(kind::DATA, body)].concat()
    };
    assert_eq!(read(&[&said(b"body")], false).unwrap().1, b"body");
    assert_eq!(code(&said(b"bod"), false), Code::H3_MESSAGE_ERROR);
    assert_eq!(code(&said(b"body!"), false), Code::H3_MESSAGE_ERROR);
    // HEAD says the length of what it does not send.
    let fields = [("content-length", "4")];
    assert!(read(&[&head(200, &fields, None)], true).is_ok());
    assert_eq!(code(&said(b"body"), true), Code::H3_MESSAGE_ERROR);
    assert!(read(&[&head(304, &fields, None)], false).is_ok());
    assert_eq!(code(&head(200, &fields, None), false), Code::H3_MESSAGE_ERROR);
    let cut = [head(200, &[], Some(10)), b"short".to_vec()].concat();
    assert_eq!(code(&cut, false), Code::H3_FRAME_ERROR);
}

#[test]
fn frames_that_responses_do_not_have_end_the_connection() {
    let ok = head(200, &[], None);
    for kind in [0x02, 0x03, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0d] {
        let bytes = [ok.clone(), frame(kind, &[0])].concat();
        assert_eq!(code(&bytes, false), Code::H3_FRAME_UNEXPECTED, "{kind:#x}");
    }
    assert_eq!(code(&frame(kind::PUSH_PROMISE, &[0]), false), Code::H3_ID_ERROR);
    assert_eq!(code(&frame(kind::DATA, b"x"), false), Code::H3_FRAME_UNEXPECTED);
    assert_eq!(code(b"", false), Code::H3_MESSAGE_ERROR);
    let grease = [frame(0x21, b"x"), ok.clone(), frame(0x21, b"")].concat();
    assert!(read(&[&grease], false).is_ok());
    assert_eq!(code(&frame(kind::HEADERS, &[0, 0, 0xd1]), false), Code::H3_MESSAGE_ERROR);
    assert_eq!(code(&frame(kind::HEADERS, &[0, 0, 0x80]), false), Code::QPACK_DECOMPRESSION_FAILED);
    assert_eq!(code(&frame(kind::HEADERS, &[0, 0]), false), Code::H3_MESSAGE_ERROR);
    assert_eq!(code(&frame(kind::HEADERS, &[0, 0, 0xd9, 0xd9]), false), Code::H3_MESSAGE_ERROR);
}

fn field() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name = prop_oneof![
        Just("content-type".to_owned()),
        Just("content-length-x".to_owned()),
        Just("etag".to_owned()),
        Just("vary".to_owned()),
        Just("docker-content-digest".to_owned()),
        "x-[a-z0-9]{1,40}",
    ];
    let value = prop_oneof![
        Just("application/json".to_owned()),
        Just("origin".to_owned()),
        "[ -~]{0,200}",
    ];
    (name, value).prop_map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
}

proptest! {
    #[test]
    fn any_response_comes_back_from_any_chunks(
        status in (200u16..=999).prop_filter("no body", |status| *status != 204 && *status != 304),
        fields in proptest::collection::vec(field(), 0..20),
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..5),
        chunk in 1usize..400,
        known in any::<bool>(),
    ) {
        let body = pieces.concat();
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = StatusCode::from_u16(status).unwrap();
        parts.headers = HeaderMap::from_iter([]);
        for (name, value) in &fields {
            parts.headers.append(name.clone(), value.clone());
        }
        let mut bytes = Vec::new();
        if known {
            parts.headers.insert("content-length", body.len().into());
            bytes.extend_from_slice(&response::encode_head(&parts, Some(body.len() as u64)));
            bytes.extend_from_slice(&body);
        } else {
            bytes.extend_from_slice(&response::encode_head(&parts, None));
            for piece in &pieces {
                bytes.extend_from_slice(&response::data_head(piece.len() as u64));
                bytes.extend_from_slice(piece);
            }
        }
        let chunks: Vec<&[u8]> = bytes.chunks(chunk).collect();
        let (response, found) = read(&chunks, false).unwrap();
        prop_assert_eq!(found, body);
        let head = response.head().unwrap();
        prop_assert_eq!(head.status, status);
        prop_assert_eq!(head.content_length.is_some(), known);
        let mut headers = HeaderMap::new();
        head.fields(|name, value| {
            headers.append(HeaderName::from_bytes(name).unwrap(), HeaderValue::from_bytes(value).unwrap());
        });
        prop_assert_eq!(headers, parts.headers);
    }
}
