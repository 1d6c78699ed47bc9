//! What a node tells an edge that need not arrive, read as it is, and as the archive behind a header that is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_push::{Board, SoftToEdge, SoftToNode, Taker};
use outrider_state::record::{Kind, framed};

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
