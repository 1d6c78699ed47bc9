//! Frames of the native protocol, as a server and as a client read them. Checksums are made right for a second look,
//! since no fuzzer guesses one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_artifact::native::{
    ARCHIVE_BYTES_MAX, FRAME_HEAD_BYTES, Item, NativeError, Reader, encode_credential,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

type Found = (Vec<Item>, Vec<u8>, Result<bool, NativeError>);

fn read(mut reader: Reader, bytes: &[u8], chunk: usize) -> Found {
    let (mut items, mut body) = (Vec::new(), Vec::new());
    for mut rest in bytes.chunks(chunk) {
        while !rest.is_empty() {
            let (taken, item) = match reader.read(rest) {
                Ok(found) => found,
                Err(error) => return (items, body, Err(error)),
            };
            assert!(taken > 0 && taken <= rest.len());
            // A record is kept in steps of its alignment.
            assert!(reader.kept_bytes() <= FRAME_HEAD_BYTES + ARCHIVE_BYTES_MAX + 16);
            match item {
                Some(Item::Body) => body.extend_from_slice(&rest[..taken]),
                Some(item) => items.push(item),
                None => assert_eq!(taken, rest.len()),
            }
            rest = &rest[taken..];
        }
    }
    (items, body, Ok(reader.is_at_boundary()))
}

fn look(bytes: &[u8]) {
    for side in [Reader::server, Reader::client] {
        let whole = read(side(), bytes, bytes.len().max(1));
        assert_eq!(whole, read(side(), bytes, 1));
        for item in whole.0 {
            let again = match &item {
                Item::Request(request) => request.encode().expect("its own request"),
                Item::Answer(answer) => answer.encode().expect("its own answer"),
                Item::Refusal(refusal) => refusal.encode(),
                Item::Credential(token) => {
                    encode_credential(token).expect("what is read can be written")
                }
                Item::Body => unreachable!("content is not kept"),
            };
            let second = read(side(), &again, again.len());
            assert_eq!(second.0, [item]);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    if bytes.len() < FRAME_HEAD_BYTES {
        return;
    }
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while bytes.len() - at >= FRAME_HEAD_BYTES {
        let frame = &mut bytes[at..];
        let (head, rest) = frame.split_at_mut(FRAME_HEAD_BYTES);
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some(archive) = rest.get(..len) else { break };
        let checksum = xxh3_64_with_seed(archive, xxh3_64(&head[..24]));
        head[24..].copy_from_slice(&checksum.to_le_bytes());
        let mut body = [0; 8];
        body.copy_from_slice(&head[16..24]);
        let body = usize::try_from(u64::from_le_bytes(body)).unwrap_or(usize::MAX);
        at = (at + FRAME_HEAD_BYTES + len).saturating_add(body);
        if at > bytes.len() {
            break;
        }
    }
    look(&bytes);
});
