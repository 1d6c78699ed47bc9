//! openraft's own tests of a log store and a state machine, and what a restart must find.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder};
use outrider_raft::log_store::LogStore;
use outrider_raft::machine::Machine;
use outrider_raft::types::{Entry, Payload, StorageError, Types, Vote};
use outrider_state::change::HistoryLimits;
use outrider_state::{Batch, Expect, Operation, Request, RequestId, Write};
use tempfile::TempDir;

/// None of those in openraft's suite.
const NODE: u64 = 77;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log.redb"), NODE).unwrap();
        let machine = Machine::open(dir.path(), HistoryLimits::default()).unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::<Types, LogStore, Machine, Builder, TempDir>::test_all(Builder).unwrap();
}

fn entry(index: u64, value: &str) -> Entry {
    let write = Write::Put { key: "k".into(), value: value.into(), expect: Expect::Any };
    let request = Request { id: RequestId::None, operation: Operation::Write(write) };
    let batch = Batch { time_ms: index, requests: vec![request] };
    let payload = Payload(Bytes::from(batch.to_record().unwrap()));
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
        payload: EntryPayload::Normal(payload),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(future)
}

#[test]
fn a_log_that_is_opened_again_has_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.redb");
    run(async {
        let mut log = LogStore::open(&file, NODE).unwrap();
        log.save_vote(&Vote::new_committed(4, 2)).await.unwrap();
        log.blocking_append((1..=20).map(|index| entry(index, "x"))).await.unwrap();
        log.truncate(entry(18, "x").log_id).await.unwrap();
        log.purge(entry(5, "x").log_id).await.unwrap();
    });
    // The thread lets go of the file when the last handle is gone.
    let mut log = loop {
        match LogStore::open(&file, NODE) {
            Ok(log) => break log,
            Err(_) => std::thread::yield_now(),
        }
    };
    run(async {
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(4, 2)));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(entry(5, "x").log_id));
        assert_eq!(state.last_log_id, Some(entry(17, "x").log_id));
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries, (6..=17).map(|index| entry(index, "x")).collect::<Vec<_>>());
    });
}

#[test]
fn a_node_that_led_has_to_be_elected_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = LogStore::open(&dir.path().join("log.redb"), NODE).unwrap();
        log.save_vote(&Vote::new_committed(4, NODE)).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(4, NODE)));
        log.save_vote(&Vote::new_committed(5, 2)).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(5, 2)));
    });
}

#[test]
fn what_is_sent_at_once_is_bounded_and_never_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut log = LogStore::open(&dir.path().join("log.redb"), NODE).unwrap();
        let large = "x".repeat(1 << 20);
        log.blocking_append((1..=12).map(|index| entry(index, &large))).await.unwrap();
        let sent = log.limited_get_log_entries(2, 13).await.unwrap();
        assert_eq!(sent.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(log.try_get_log_entries(2..13).await.unwrap().len(), 11);
    });
}

#[test]
fn a_snapshot_is_found_after_a_restart_and_a_damaged_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let mut machine = Machine::open(dir.path(), HistoryLimits::default()).unwrap();
        machine.apply((1..=3).map(|index| entry(index, &index.to_string()))).await.unwrap();
        machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        machine.apply([entry(4, "later")]).await.unwrap();
        let mut again = Machine::open(dir.path(), HistoryLimits::default()).unwrap();
        assert_eq!(again.applied_state().await.unwrap().0, Some(entry(3, "").log_id));
        let value = |m: &Machine| m.shared().look(|k| k.state.fragment("k").unwrap().value.clone());
        assert_eq!((value(&again), value(&machine)), ("3".into(), "later".into()));
        // Another node takes it over.
        let other = tempfile::tempdir().unwrap();
        let mut taker = Machine::open(other.path(), HistoryLimits::default()).unwrap();
        let snapshot = again.get_current_snapshot().await.unwrap().unwrap();
        taker.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        assert_eq!(value(&taker), "3");
        assert_eq!(taker.shared().progress().applied, 3);
        let kept = Machine::open(other.path(), HistoryLimits::default()).unwrap();
        assert_eq!(value(&kept), "3");
    });
    let file = dir.path().join("snapshot");
    let bytes = std::fs::read(&file).unwrap();
    for (at, wanted) in [(0, "not a snapshot"), (25, "checksum"), (bytes.len() - 1, "checksum")] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        let error = Machine::open(dir.path(), HistoryLimits::default()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
