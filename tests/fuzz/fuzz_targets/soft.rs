//! What a node tells an edge that need not arrive, read as it is, and as the archive behind a header that is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_push::{Board, SoftToEdge, SoftToNode, Taker};
use outrider_state::record::{HEAD_BYTES, Kind, MAGIC};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

fn framed(kind: Kind, archive: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD_BYTES + archive.len());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&kind.version().to_le_bytes());
    record.extend_from_slice(&[kind as u8, 0]);
    record.extend_from_slice(&(archive.len() as u64).to_le_bytes());
    let checksum = xxh3_64_with_seed(archive, xxh3_64(&record));
    record.extend_from_slice(&checksum.to_le_bytes());
    record.resize(HEAD_BYTES, 0);
    record.extend_from_slice(archive);
    record
}

fuzz_target!(|bytes: &[u8]| {
    let _ = SoftToEdge::from_record(bytes);
    if let Ok(message) = SoftToEdge::from_record(&framed(Kind::SoftToEdge, bytes)) {
        let again = message.to_record().expect("it was one");
        assert_eq!(SoftToEdge::from_record(&again).expect("its own record"), message);
        let _ = Taker::default().receive(&message);
        let mut board = Board::default();
        message.hints.into_iter().for_each(|hint| board.hint(hint, 0));
        message.predictions.into_iter().for_each(|prediction| board.predict(prediction));
        let _ = board.receive(SoftToNode::Hello);
        let _ = board.poll(0);
    }
    if let Ok(message) = SoftToNode::from_record(&framed(Kind::SoftToNode, bytes)) {
        let mut board = Board::default();
        let _ = board.receive(SoftToNode::Hello);
        assert!(board.receive(message).is_err(), "nothing was sent");
    }
});
