use proptest::prelude::*;

use super::decode::{DecodeError, Decoder, integer};
use super::encode::{self, Strings};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn decoded(section: &[u8]) -> Result<Fields, DecodeError> {
    let (mut text, mut lines) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::new(section)?;
    while let Some(line) = decoder.next_line(&mut text)? {
        lines.push(line);
    }
    let resolve = |line: &super::decode::Line| {
        let (name, value) = line.resolve(&text);
        assert_eq!(line.len_bytes(), name.len() + value.len());
        (name.to_vec(), value.to_vec())
    };
    Ok(lines.iter().map(resolve).collect())
}

fn one(name: &str, value: &str) -> Result<Fields, DecodeError> {
    Ok(vec![(name.into(), value.into())])
}

#[test]
fn appendix_b_1_is_decoded_and_encoded_alike() {
    let mut section = vec![0, 0, 0x51, 0x0b];
    section.extend_from_slice(b"/index.html");
    assert_eq!(decoded(&section), one(":path", "/index.html"));
    let mut again = Vec::new();
    encode::begin(&mut again);
    encode::named(&mut again, 1, b"/index.html", Strings::Plain);
    assert_eq!(again, section);
}

#[test]
fn what_appendix_b_has_of_a_dynamic_table_is_refused() {
    // B.2: required insert count 2, base 0, post-base lines.
    assert_eq!(decoded(&[0x03, 0x81, 0x10, 0x11]), Err(DecodeError::Dynamic));
    // B.4: required insert count 4, one static line among dynamic ones.
    assert_eq!(decoded(&[0x05, 0x00, 0x80, 0xc1, 0x81]), Err(DecodeError::Dynamic));
    // B.5.
    assert_eq!(decoded(&[0x06, 0x00, 0x83]), Err(DecodeError::Dynamic));
    // The lines of B.2 and B.4 behind a prefix that needs no entries.
    for line in [&[0x10][..], &[0x11], &[0x80], &[0x81], &[0x40, 0], &[0x00, 0]] {
        assert_eq!(decoded(&[&[0, 0], line].concat()), Err(DecodeError::Dynamic), "{line:?}");
    }
    // A negative base; one above 0 is of no use and no harm.
    assert_eq!(decoded(&[0, 0x80]), Err(DecodeError::Dynamic));
    assert_eq!(decoded(&[0, 0x05]), Ok(vec![]));
}

#[test]
fn static_entries_are_there_up_to_98() {
    assert_eq!(decoded(&[0, 0, 0xd1]), one(":method", "GET"));
    assert_eq!(decoded(&[0, 0, 0xff, 98 - 63]), one("x-frame-options", "sameorigin"));
    assert_eq!(decoded(&[0, 0, 0xff, 99 - 63]), Err(DecodeError::Static));
    assert_eq!(decoded(&[0, 0, 0x5f, 98 - 15, 1, b'x']), one("x-frame-options", "x"));
    assert_eq!(decoded(&[0, 0, 0x5f, 99 - 15, 1, b'x']), Err(DecodeError::Static));
    assert_eq!(decoded(&[0, 0, 0xff, 0xff, 0xff, 0x01]), Err(DecodeError::Static));
}

#[test]
fn a_section_that_is_cut_off_is_an_error_everywhere() {
    let mut section = Vec::new();
    encode::begin(&mut section);
    encode::field(&mut section, "x-long", &[b'v'; 200], Strings::Plain);
    assert!(decoded(&section).is_ok());
    for len in 0..section.len() {
        let result = decoded(&section[..len]);
        assert!(len == 2 || result == Err(DecodeError::Truncated), "{len}: {result:?}");
    }
}

#[test]
fn integers_have_62_bits() {
    // RFC 7541 appendix C.1.
    assert_eq!(integer(&mut &[0b1110_1010][..], 5), Ok((7, 10)));
    assert_eq!(integer(&mut &[0x1f, 0x9a, 0x0a][..], 5), Ok((0, 1337)));
    assert_eq!(integer(&mut &[42][..], 8), Ok((0, 42)));
    let mut largest = &[0xff, 0x80, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f][..];
    assert_eq!(integer(&mut largest, 8), Ok((0, (1 << 62) - 1)));
    let mut larger = &[0xff, 0x81, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f][..];
    assert_eq!(integer(&mut larger, 8), Err(DecodeError::Integer));
    assert_eq!(
        integer(&mut &[&[0xff][..], &[0x80; 20], &[0]].concat()[..], 8),
        Err(DecodeError::Integer)
    );
    assert_eq!(
        integer(&mut &[&[0xff][..], &[0xff; 10]].concat()[..], 8),
        Err(DecodeError::Integer)
    );
}

#[test]
fn responses_of_a_file_server_take_few_bytes() {
    let mut section = Vec::new();
    encode::begin(&mut section);
    encode::indexed(&mut section, super::table::find_status(200).unwrap());
    encode::field(&mut section, "content-length", b"4096", Strings::Plain);
    encode::field(&mut section, "accept-ranges", b"bytes", Strings::Plain);
    encode::field(&mut section, "cache-control", b"no-cache", Strings::Plain);
    assert_eq!(section, [0, 0, 0xd9, 0x54, 4, b'4', b'0', b'9', b'6', 0xe0, 0xe7]);
}

proptest! {
    #[test]
    fn fields_come_back(
        fields in proptest::collection::vec(
            (
                prop_oneof!["[a-z-]{1,20}", (15u8..63).prop_filter_map("no pseudo", |index| {
                    super::table::header_name(index).map(|name| name.as_str().to_owned())
                })],
                proptest::collection::vec(any::<u8>(), 0..80),
            ),
            0..20,
        ),
        shortest in any::<bool>(),
    ) {
        let strings = if shortest { Strings::Shortest } else { Strings::Plain };
        let mut section = Vec::new();
        encode::begin(&mut section);
        for (name, value) in &fields {
            encode::field(&mut section, name, value, strings);
        }
        let fields: Fields = fields.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
        prop_assert_eq!(decoded(&section), Ok(fields));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(section in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decoded(&section);
    }

    #[test]
    fn prefixed_integers_come_back(value in any::<u32>(), shift in 0u32..32, prefix in 3u32..9) {
        let value = (value >> shift) as usize;
        let mut bytes = Vec::new();
        encode::integer(&mut bytes, 0, prefix, value);
        let mut rest = &bytes[..];
        prop_assert_eq!(integer(&mut rest, prefix), Ok((0, value as u64)));
        prop_assert!(rest.is_empty());
    }
}
