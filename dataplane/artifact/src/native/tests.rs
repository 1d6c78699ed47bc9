use proptest::prelude::*;

use super::*;
use crate::digest::{Algorithm, Digest};

/// All items of a stream that comes in chunks of this size, with the content.
fn read(
    mut reader: Reader,
    bytes: &[u8],
    chunk: usize,
) -> Result<(Vec<Item>, Vec<u8>), NativeError> {
    let (mut items, mut body) = (Vec::new(), Vec::new());
    for mut rest in bytes.chunks(chunk) {
        while !rest.is_empty() {
            let (taken, item) = reader.read(rest)?;
            assert!(taken > 0 && reader.kept_bytes() <= FRAME_HEAD_BYTES + ARCHIVE_BYTES_MAX);
            match item {
                Some(Item::Body) => body.extend_from_slice(&rest[..taken]),
                Some(item) => items.push(item),
                None => assert_eq!(taken, rest.len()),
            }
            rest = &rest[taken..];
        }
    }
    assert!(reader.is_at_boundary(), "{reader:?}");
    Ok((items, body))
}

fn failure(reader: Reader, bytes: &[u8]) -> NativeError {
    read(reader, bytes, bytes.len().max(1)).unwrap_err()
}

/// What docs/NATIVE.md has as its example.
fn example_request() -> Request {
    let layer = Want { offset: 1 << 20, len: Some(4096), ..Want::whole(Digest::sha256(b"layer")) };
    let manifest = Want {
        kind: WantKind::Manifest,
        metadata_only: true,
        held_only: true,
        ..Want::whole(Digest::sha256(b"manifest"))
    };
    Request {
        repository: "library/alpine".into(),
        upstream: "docker.io".into(),
        wants: vec![layer, manifest],
        ..Request::default()
    }
}

fn example_answer() -> Answer {
    Answer {
        want: 0,
        status: 206,
        digest: Digest::sha256(b"layer"),
        total: 3_000_000,
        start: 1 << 20,
        len: 4,
        body_len: 4,
        more: false,
        verified: true,
        tier: Tier::Ssd,
        media_type: "application/octet-stream".into(),
        error: String::new(),
    }
}

/// The bytes in the code block that follows this line of the document.
fn documented(title: &str) -> Vec<u8> {
    let document = include_str!("../../../../docs/NATIVE.md");
    let (_, behind) = document.split_once(title).expect("the title");
    let block = behind.split("```").nth(1).expect("a code block");
    let mut bytes = Vec::new();
    for line in block.lines() {
        // Offset, up to 16 bytes, and what they are behind a semicolon.
        let digits = line.split(';').next().unwrap_or_default();
        for word in digits.split_whitespace().skip(1) {
            bytes.push(u8::from_str_radix(word, 16).expect("a byte"));
        }
    }
    bytes
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, line) in bytes.chunks(16).enumerate() {
        text += &format!("{:04x} ", number * 16);
        for byte in line {
            text += &format!(" {byte:02x}");
        }
        text += "\n";
    }
    text
}

#[test]
fn the_documented_bytes_are_those_that_are_written() {
    let request = example_request().encode().unwrap();
    assert_eq!(documented("### The request"), request, "\n{}", dump(&request));
    let mut answer = example_answer().encode().unwrap();
    answer.extend_from_slice(b"abcd");
    assert_eq!(documented("### The answer"), answer, "\n{}", dump(&answer));
    let refusal = NativeError::Version { found: 2 }.refusal().encode();
    assert_eq!(documented("### The refusal"), refusal, "\n{}", dump(&refusal));
}

#[test]
fn a_request_is_the_same_in_any_chunks() {
    let bytes = example_request().encode().unwrap();
    for chunk in 1..=bytes.len() {
        let (items, _) = read(Reader::server(), &bytes, chunk).unwrap();
        assert_eq!(items, [Item::Request(example_request())]);
    }
}

#[test]
fn answers_come_one_behind_the_other_with_their_bytes() {
    let mut stream = Vec::new();
    let first = example_answer();
    stream.extend(first.encode().unwrap());
    stream.extend(b"abcd");
    let second = Answer::error(1, Digest::sha256(b"x"), 404, "not here");
    stream.extend(second.encode().unwrap());
    let third = Answer { want: 2, more: true, total: TOTAL_UNKNOWN, ..example_answer() };
    stream.extend(third.encode().unwrap());
    stream.extend(b"efgh");
    for chunk in 1..=stream.len() {
        let (items, body) = read(Reader::client(), &stream, chunk).unwrap();
        let answers = [first.clone(), second.clone(), third.clone()].map(Item::Answer);
        assert_eq!(items, answers);
        assert_eq!(body, b"abcdefgh");
    }
}

#[test]
fn another_version_is_refused_and_the_refusal_is_readable_by_any() {
    let mut bytes = example_request().encode().unwrap();
    bytes[4] = 2;
    let error = failure(Reader::server(), &bytes);
    assert_eq!(error, NativeError::Version { found: 2 });
    let refusal = error.refusal();
    assert_eq!(refusal.code, RefusalCode::VERSION);
    let mut frame = refusal.encode();
    let (items, _) = read(Reader::client(), &frame, 7).unwrap();
    assert_eq!(items, [Item::Refusal(refusal.clone())]);
    // As a server of version 9 would write it: with its own version, and the checksum over that.
    frame[4] = 9;
    let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(
        refusal.text.as_bytes(),
        xxhash_rust::xxh3::xxh3_64(&frame[..24]),
    );
    frame[24..32].copy_from_slice(&checksum.to_le_bytes());
    let (items, _) = read(Reader::client(), &frame, 100).unwrap();
    assert_eq!(items, [Item::Refusal(refusal)]);
}

#[test]
fn every_byte_of_a_frame_matters() {
    let bytes = example_request().encode().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let mut reader = Reader::server();
        let result = reader.read(&damaged);
        // A longer archive is waited for.
        let waits = matches!(result, Ok((_, None))) && !reader.is_at_boundary();
        assert!(result.is_err() || (8..12).contains(&at) && waits, "{at}: {result:?}");
    }
}

#[test]
fn sides_and_bounds_are_checked() {
    let request = example_request().encode().unwrap();
    let answer = Answer::error(0, Digest::sha256(b""), 404, "").encode().unwrap();
    assert_eq!(failure(Reader::client(), &request), NativeError::Kind { found: 1 });
    assert_eq!(failure(Reader::server(), &answer), NativeError::Kind { found: 2 });
    let twice = [request.clone(), request.clone()].concat();
    assert!(matches!(failure(Reader::server(), &twice), NativeError::Record(_)));
    assert_eq!(failure(Reader::server(), &[b'x'; 40]), NativeError::Magic);
    let mut large = request.clone();
    large[8..12].copy_from_slice(&(REQUEST_ARCHIVE_BYTES_MAX as u32 + 1).to_le_bytes());
    let error = failure(Reader::server(), &large);
    assert!(matches!(error, NativeError::Limit { max: REQUEST_ARCHIVE_BYTES_MAX, .. }));
    assert_eq!(error.refusal().code, RefusalCode::LIMIT);
    let mut large = answer.clone();
    large[8..12].copy_from_slice(&(ARCHIVE_BYTES_MAX as u32 + 1).to_le_bytes());
    let error = failure(Reader::client(), &large);
    assert!(matches!(error, NativeError::Limit { max: ARCHIVE_BYTES_MAX, .. }));
    // What a header announces is not kept before it comes.
    let mut reader = Reader::server();
    reader.read(&request[..FRAME_HEAD_BYTES + 1]).unwrap();
    assert!(reader.kept_bytes() <= FRAME_HEAD_BYTES + 64, "{}", reader.kept_bytes());
    let many = |count| Request {
        wants: vec![Want::whole(Digest::sha256(b"x")); count],
        customer: "c".repeat(CUSTOMER_BYTES_MAX),
        region: "r".repeat(REGION_BYTES_MAX),
        repository: "n".repeat(NAME_BYTES_MAX),
        upstream: "u".repeat(NAME_BYTES_MAX),
    };
    // The largest request that is allowed is one that fits.
    let largest = many(WANTS_MAX).encode().unwrap();
    assert!(largest.len() <= FRAME_HEAD_BYTES + REQUEST_ARCHIVE_BYTES_MAX);
    assert!(read(Reader::server(), &largest, 1000).is_ok());
    assert!(matches!(many(WANTS_MAX + 1).encode(), Err(NativeError::Limit { .. })));
    assert!(matches!(many(0).encode(), Err(NativeError::Record(_))));
    let long = Request { region: "r".repeat(REGION_BYTES_MAX + 1), ..example_request() };
    assert!(matches!(long.encode(), Err(NativeError::Limit { .. })));
    for (offset, len) in [(0, 0), (2, u64::MAX - 1)] {
        let want = Want { offset, len: Some(len), ..Want::whole(Digest::sha256(b"x")) };
        let request = Request { wants: vec![want], ..Request::default() };
        assert!(matches!(request.encode(), Err(NativeError::Record(_))));
    }
}

#[test]
fn answers_say_what_can_be() {
    let ok = example_answer();
    assert!(ok.encode().is_ok());
    for wrong in [
        Answer { body_len: 5, ..ok.clone() },
        Answer { start: 2_999_997, ..ok.clone() },
        Answer { start: u64::MAX, ..ok.clone() },
        Answer { status: 404, ..ok.clone() },
        Answer { status: 99, ..ok.clone() },
        Answer { want: 256, ..ok.clone() },
    ] {
        assert!(matches!(wrong.encode(), Err(NativeError::Record(_))), "{wrong:?}");
    }
    let long = Answer::error(0, Digest::sha256(b""), 500, &"ä".repeat(400));
    assert_eq!(long.error.len(), ERROR_BYTES_MAX);
    let (items, _) = read(Reader::client(), &long.encode().unwrap(), 9).unwrap();
    assert_eq!(items, [Item::Answer(long)]);
}

fn digest() -> impl Strategy<Value = Digest> {
    proptest::collection::vec(any::<u8>(), 64).prop_flat_map(|value| {
        prop_oneof![
            Just(Digest::from_value(Algorithm::Sha256, &value[..32]).unwrap()),
            Just(Digest::from_value(Algorithm::Sha512, &value).unwrap()),
        ]
    })
}

fn want() -> impl Strategy<Value = Want> {
    (digest(), 0..1_u64 << 60, proptest::option::of(1..1_u64 << 60), any::<[bool; 3]>()).prop_map(
        |(digest, offset, len, [manifest, metadata_only, held_only])| Want {
            digest,
            kind: if manifest { WantKind::Manifest } else { WantKind::Blob },
            offset,
            len,
            metadata_only,
            held_only,
            keep: false,
        },
    )
}

proptest! {
    #[test]
    fn requests_come_back(
        wants in proptest::collection::vec(want(), 1..40),
        customer in "[ -~]{0,128}",
        region in "[a-z0-9-]{0,32}",
        repository in "[a-z/]{0,255}",
        upstream in "\\PC{0,60}",
        chunk in 1usize..3000,
    ) {
        let request = Request { customer, region, repository, upstream, wants };
        let bytes = request.encode().unwrap();
        let (items, _) = read(Reader::server(), &bytes, chunk).unwrap();
        prop_assert_eq!(items, [Item::Request(request)]);
    }

    #[test]
    fn answers_come_back(
        digest in digest(),
        (start, len, rest) in (0..1_u64 << 60, 0..2000_u64, 0..1_u64 << 60),
        (want, tier) in (0..256_u32, 0..7_usize),
        [more, verified, known, metadata] in any::<[bool; 4]>(),
        media_type in "[ -~]{0,255}",
        error in "\\PC{0,100}",
        chunk in 1usize..3000,
    ) {
        let tiers = [Tier::None, Tier::Ram, Tier::Ssd, Tier::Hdd, Tier::Peer, Tier::Object, Tier::Origin];
        let answer = Answer {
            want, status: 206, digest, start, len, more, verified, media_type, error,
            total: if known { start + len + rest } else { TOTAL_UNKNOWN },
            body_len: if metadata { 0 } else { len },
            tier: tiers[tier],
        };
        let mut bytes = answer.encode().unwrap();
        bytes.resize(bytes.len() + answer.body_len as usize, 7);
        let body_len = answer.body_len as usize;
        let (items, body) = read(Reader::client(), &bytes, chunk).unwrap();
        prop_assert_eq!(items, [Item::Answer(answer)]);
        prop_assert_eq!(body.len(), body_len);
    }

    #[test]
    fn archives_that_are_damaged_under_a_right_checksum_are_errors_and_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        is_answer in any::<bool>(),
    ) {
        let (reader, mut bytes) = if is_answer {
            (Reader::client(), Answer::error(3, Digest::sha256(b""), 404, "not here").encode().unwrap())
        } else {
            (Reader::server(), example_request().encode().unwrap())
        };
        for (at, to) in changes {
            let at = FRAME_HEAD_BYTES + at.index(bytes.len() - FRAME_HEAD_BYTES);
            bytes[at] = to;
        }
        let seed = xxhash_rust::xxh3::xxh3_64(&bytes[..24]);
        let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes[32..], seed);
        bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
        let mut reader = reader;
        match reader.read(&bytes) {
            Err(NativeError::Record(_) | NativeError::Limit { .. }) => {}
            Ok((taken, Some(_))) => prop_assert_eq!(taken, bytes.len()),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn only_a_whole_manifest_is_to_be_kept_and_without_its_bytes() {
    let keep = Want {
        kind: WantKind::Manifest,
        metadata_only: true,
        keep: true,
        ..Want::whole(Digest::sha256(b"x"))
    };
    let request = |want| Request { wants: vec![want], ..Request::default() };
    let bytes = request(keep.clone()).encode().unwrap();
    let (items, _) = read(Reader::server(), &bytes, bytes.len()).unwrap();
    assert_eq!(items, [Item::Request(request(keep.clone()))]);
    for wrong in [
        Want { kind: WantKind::Blob, ..keep.clone() },
        Want { metadata_only: false, ..keep.clone() },
        Want { held_only: true, ..keep.clone() },
        Want { offset: 1, ..keep.clone() },
        Want { len: Some(1), ..keep.clone() },
    ] {
        let error = request(wrong).encode().unwrap_err();
        assert!(matches!(error, NativeError::Record(_)), "{error}");
    }
}

#[test]
fn a_token_goes_once_before_its_request() {
    let token = encode_credential("a.b.c").unwrap();
    let request = Request { wants: vec![Want::whole(Digest::sha256(b"x"))], ..Request::default() };
    let frame = request.encode().unwrap();
    let both = [token.clone(), frame.clone()].concat();
    for pieces in [1, 7, both.len()] {
        let mut reader = Reader::server();
        let mut items = Vec::new();
        for piece in both.chunks(pieces) {
            let mut piece = piece;
            while !piece.is_empty() {
                let (taken, item) = reader.read(piece).unwrap();
                items.extend(item);
                piece = &piece[taken..];
            }
        }
        let wanted = [Item::Credential("a.b.c".to_owned()), Item::Request(request.clone())];
        assert_eq!(items, wanted);
    }
    let refused = |frames: &[&[u8]]| {
        let all = frames.concat();
        let (mut reader, mut rest) = (Reader::server(), &all[..]);
        loop {
            match reader.read(rest) {
                Ok((taken, _)) => rest = &rest[taken..],
                Err(error) => return error,
            }
            assert!(!rest.is_empty(), "all of it was taken");
        }
    };
    assert_eq!(refused(&[&token, &token]), NativeError::Kind { found: 4 });
    assert!(matches!(refused(&[&frame, &token]), NativeError::Record(_)));
    assert!(matches!(Reader::client().read(&token), Err(NativeError::Kind { found: 4 })));
    for wrong in ["", "a b", "a\n", "\u{e4}"] {
        assert!(matches!(encode_credential(wrong), Err(NativeError::Record(_))), "{wrong:?}");
    }
    let long = "x".repeat(CREDENTIAL_BYTES_MAX + 1);
    assert!(matches!(encode_credential(&long), Err(NativeError::Limit { .. })));
}
