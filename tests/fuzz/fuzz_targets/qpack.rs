//! Field sections, Huffman code, integers and heads of frames: what is read is what would be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_http3::frame::FrameHead;
use outrider_http3::qpack::decode::{DecodeError, Decoder};
use outrider_http3::qpack::encode::{self, Strings};
use outrider_http3::{huffman, varint};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(section: &[u8]) -> Result<Fields, DecodeError> {
    let (mut text, mut lines) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::new(section)?;
    while let Some(line) = decoder.next_line(&mut text)? {
        lines.push(line);
    }
    // The shortest code has 5 bits.
    assert!(text.len() <= section.len() * 8 / 5);
    assert!(lines.len() <= section.len());
    let fields = lines.iter().map(|line| {
        let (name, value) = line.resolve(&text);
        assert_eq!(line.len_bytes(), name.len() + value.len());
        (name.to_vec(), value.to_vec())
    });
    Ok(fields.collect())
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(fields) = decode(bytes) {
        for strings in [Strings::Plain, Strings::Shortest] {
            let mut again = Vec::new();
            encode::begin(&mut again);
            let mut expected = Vec::new();
            for (name, value) in &fields {
                let Ok(text) = std::str::from_utf8(name) else { continue };
                encode::field(&mut again, text, value, strings);
                expected.push((name.clone(), value.clone()));
            }
            assert_eq!(decode(&again), Ok(expected));
        }
    }
    let mut text = Vec::new();
    if huffman::decode(bytes, &mut text).is_ok() {
        let mut again = Vec::new();
        huffman::encode(&text, &mut again);
        assert_eq!(again, bytes);
    }
    let (mut code, mut text) = (Vec::new(), Vec::new());
    huffman::encode(bytes, &mut code);
    assert_eq!(code.len(), huffman::encoded_len(bytes));
    huffman::decode(&code, &mut text).expect("its own code");
    assert_eq!(text, bytes);
    if let Some((value, len)) = varint::get(bytes) {
        assert!(len <= bytes.len() && value <= varint::MAX);
        let mut again = Vec::new();
        varint::put(&mut again, value);
        assert!(again.len() <= len);
        assert_eq!(varint::get(&again), Some((value, again.len())));
    }
    if let Some((head, len)) = FrameHead::get(bytes) {
        assert!(len <= bytes.len());
        let mut again = Vec::new();
        head.put(&mut again);
        assert_eq!(FrameHead::get(&again), Some((head, again.len())));
    }
});
