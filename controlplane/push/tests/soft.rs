//! What need not arrive, over connections that end at any moment: the newest of each digest wins, nothing is held without
//! bound, no message is sent before the last was taken, and what is told is never older than what was told before.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use outrider_artifact::Digest;
use outrider_push::soft::{
    HINTS_MAX, MESSAGE_ENTRIES_MAX, SOFT_TO_EDGE_BYTES_MAX, SoftError, TOLD_MAX, TOLD_MS,
    depth_eighths,
};
use outrider_push::{Board, Hint, Prediction, SoftToEdge, SoftToNode, Taker};

fn digest(number: u64) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

fn hint(number: u64, depth_eighths: u8) -> Hint {
    Hint { digest: digest(number), depth_eighths }
}

fn prediction(number: u64, expires_unix_ms: u64) -> Prediction {
    Prediction {
        digest: digest(number),
        probability: 1,
        repository: "library/app".parse().unwrap(),
        is_manifest: false,
        expires_unix_ms,
    }
}

fn greeted() -> Board {
    let mut board = Board::default();
    board.receive(SoftToNode::Hello).unwrap();
    board
}

/// What an edge was told in the end: everything that there is to be told, a message at a time.
fn drain(board: &mut Board, taker: &mut Taker, now_unix_ms: u64) -> SoftToEdge {
    let mut all = SoftToEdge::default();
    while let Some(message) = board.poll(now_unix_ms) {
        let record = message.to_record().unwrap();
        assert!(record.len() <= SOFT_TO_EDGE_BYTES_MAX);
        let message = SoftToEdge::from_record(&record).unwrap();
        assert_eq!(board.poll(now_unix_ms), None, "one at a time");
        board.receive(taker.receive(&message).unwrap()).unwrap();
        all.hints.extend(message.hints);
        all.predictions.extend(message.predictions);
    }
    all
}

#[test]
fn over_many_seeds_the_newest_wins_and_nothing_is_told_twice() {
    let seeds = match std::env::var("OUTRIDER_SEED") {
        Ok(seed) => seed.parse().unwrap()..seed.parse::<u64>().unwrap() + 1,
        Err(_) => 0..1_000,
    };
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut board, mut taker) = (greeted(), Taker::default());
        // What the node said last, what the edge has, and what is on its way.
        let mut truth: HashMap<Digest, u8> = HashMap::new();
        let mut edge: HashMap<Digest, u8> = HashMap::new();
        let mut on_its_way: Option<SoftToEdge> = None;
        let mut now_ms = 0;
        for _ in 0..300 {
            now_ms += random.u64(0..50);
            match random.u8(0..20) {
                0 => {
                    // The connection ends: what was on its way is lost, what was asked for since is told again.
                    (board, taker, on_its_way) = (greeted(), Taker::default(), None);
                    for (digest, depth_eighths) in &truth {
                        board.hint(Hint { digest: *digest, depth_eighths: *depth_eighths }, now_ms);
                    }
                }
                1..=10 => {
                    let hint = hint(random.u64(0..40), random.u8(0..5));
                    truth.insert(hint.digest, hint.depth_eighths);
                    board.hint(hint, now_ms);
                }
                11..=15 => {
                    if let Some(message) = board.poll(0) {
                        assert!(on_its_way.is_none(), "seed {seed}: the last was not taken");
                        on_its_way = Some(message);
                    }
                }
                _ => {
                    if let Some(message) = on_its_way.take() {
                        let answer = taker.receive(&message).unwrap();
                        for hint in message.hints {
                            edge.insert(hint.digest, hint.depth_eighths);
                        }
                        board.receive(answer).unwrap();
                    }
                }
            }
        }
        if let Some(message) = on_its_way.take() {
            let answer = taker.receive(&message).unwrap();
            edge.extend(message.hints.iter().map(|hint| (hint.digest, hint.depth_eighths)));
            board.receive(answer).unwrap();
        }
        let told = drain(&mut board, &mut taker, 0);
        edge.extend(told.hints.iter().map(|hint| (hint.digest, hint.depth_eighths)));
        assert_eq!(edge, truth, "seed {seed}");
        // What is the same is not told again so soon, and is when it may have been forgotten.
        for (digest, depth_eighths) in &truth {
            board.hint(Hint { digest: *digest, depth_eighths: *depth_eighths }, now_ms);
        }
        assert_eq!(board.poll(0), None, "seed {seed}");
        for (digest, depth_eighths) in &truth {
            let hint = Hint { digest: *digest, depth_eighths: *depth_eighths };
            board.hint(hint, now_ms + TOLD_MS);
        }
        assert_eq!(drain(&mut board, &mut taker, 0).hints.len(), truth.len(), "seed {seed}");
    }
}

#[test]
fn more_than_is_held_goes_and_the_newest_are_told_first() {
    let (mut board, mut taker) = (greeted(), Taker::default());
    let all = 2 * HINTS_MAX as u64;
    for number in 0..all {
        board.hint(hint(number, 8), 0);
        board.predict(prediction(number, 10 + number));
    }
    assert_eq!(board.held_and_dropped(), (2 * HINTS_MAX, 2 * HINTS_MAX as u64));
    let first = board.poll(0).unwrap();
    assert_eq!(first.hints.len(), MESSAGE_ENTRIES_MAX);
    assert_eq!(first.hints[0], hint(all - 1, 8));
    board.receive(taker.receive(&first).unwrap()).unwrap();
    let rest = drain(&mut board, &mut taker, 0);
    assert_eq!(first.hints.len() + rest.hints.len(), HINTS_MAX);
    // What was dropped was not told, and is when it comes again.
    board.hint(hint(0, 8), 1);
    board.hint(hint(all - 1, 8), 1);
    assert_eq!(drain(&mut board, &mut taker, 0).hints, [hint(0, 8)]);
    // What the edge was told is not remembered without bound either.
    for number in 0..TOLD_MAX as u64 {
        board.hint(hint(1_000_000 + number, 8), 1);
        drain(&mut board, &mut taker, 0);
    }
    board.hint(hint(0, 8), 1);
    assert_eq!(drain(&mut board, &mut taker, 0).hints, [hint(0, 8)]);
}

#[test]
fn what_has_expired_is_not_told() {
    let (mut board, mut taker) = (greeted(), Taker::default());
    board.predict(prediction(1, 10));
    board.predict(prediction(2, 20));
    assert_eq!(drain(&mut board, &mut taker, 10).predictions, [prediction(2, 20)]);
}

#[test]
fn an_end_that_breaks_the_order_is_refused() {
    let mut board = Board::default();
    board.hint(hint(1, 1), 0);
    assert_eq!(board.poll(0), None, "nobody has greeted");
    assert_eq!(board.receive(SoftToNode::Taken { number: 1 }), Err(SoftError::Order));
    board.receive(SoftToNode::Hello).unwrap();
    assert_eq!(board.receive(SoftToNode::Hello), Err(SoftError::Order));
    let lie = board.receive(SoftToNode::Taken { number: 1 });
    assert_eq!(lie, Err(SoftError::Taken { number: 1, sent: 0 }));
    let message = board.poll(0).unwrap();
    let lie = board.receive(SoftToNode::Taken { number: u64::MAX });
    assert_eq!(lie, Err(SoftError::Taken { number: u64::MAX, sent: 1 }));
    let mut taker = Taker::default();
    taker.receive(&message).unwrap();
    assert_eq!(taker.receive(&message), Err(SoftError::Number { number: 1, last: 1 }));
}

#[test]
fn hostile_bytes_are_errors_and_never_panics() {
    let message = SoftToEdge {
        number: 7,
        hints: (0..10).map(|number| hint(number, 3)).collect(),
        predictions: (0..10).map(|number| prediction(number, 9)).collect(),
    };
    let record = message.to_record().unwrap();
    assert_eq!(SoftToEdge::from_record(&record).unwrap(), message);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..5_000 {
        let mut damaged = record.clone();
        let at = random.usize(0..damaged.len());
        damaged[at] ^= random.u8(1..);
        assert!(SoftToEdge::from_record(&damaged).is_err(), "byte {at}");
        damaged.truncate(random.usize(0..damaged.len()));
        assert!(SoftToEdge::from_record(&damaged).is_err());
        assert!(SoftToNode::from_record(&damaged).is_err());
    }
    let many = (0..=MESSAGE_ENTRIES_MAX as u64).map(|number| hint(number, 3)).collect();
    let many = SoftToEdge { number: 1, hints: many, predictions: Vec::new() };
    assert!(SoftToEdge::from_record(&many.to_record().unwrap()).is_err());
    assert!(SoftToNode::from_record(&record).is_err());
}

#[test]
fn the_depth_is_a_logarithm_in_eighths() {
    let depths = [0, 1, 3, 4, 7, 1 << 20, u64::MAX].map(depth_eighths);
    assert_eq!(depths, [0, 8, 16, 19, 24, 160, 255]);
}
