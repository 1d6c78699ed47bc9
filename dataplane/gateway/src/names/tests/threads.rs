//! Several clients, the queue, and what shards remember.

use std::sync::Mutex;
use std::sync::mpsc;

use redb::ReadTransaction;

use super::super::command::{Command, DeleteTag, PutBlobCommand};
use super::super::query::Query;
use super::super::store::Fault;
use super::super::thread::{Asked, Job, Reply, Wanted};
use super::*;

/// A question that takes as long as a test wants.
struct Blocked {
    begun: mpsc::SyncSender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Query for Blocked {
    type Answer = ();
    const KIND: &'static str = "blocked";

    fn answer(&self, _: &ReadTransaction) -> Result<(), Fault> {
        self.begun.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(())
    }
}

/// Keeps the names thread busy until the sender is used.
fn block(one: &NamesBox) -> mpsc::SyncSender<()> {
    let (begun, has_begun) = mpsc::sync_channel(1);
    let (go_on, wait) = mpsc::sync_channel(1);
    let (reply, _) = mpsc::sync_channel(1);
    let query = Blocked { begun, go_on: Mutex::new(wait) };
    let asked = Asked { query, reply: Reply::Thread(reply) };
    one.client.send_for_test(Job::Ask(Box::new(asked)));
    has_begun.recv().unwrap();
    go_on
}

/// Sends a change without waiting for its answer.
fn send<C: Command>(one: &NamesBox, command: C) -> mpsc::Receiver<Result<C::Outcome, NamesError>> {
    let (reply, answer) = mpsc::sync_channel(1);
    let wanted = Wanted { command, outcome: None, reply: Reply::Thread(reply) };
    one.client.send_for_test(Job::Change(Box::new(wanted)));
    answer
}

#[test]
fn puts_that_wait_together_are_committed_together() {
    let one = NamesBox::new();
    let before = one.metrics.commits.get();
    let go_on = block(&one);
    let content = |number: u64| format!("layer {number}");
    let answers: Vec<_> = (0..8)
        .map(|number| send(&one, PutBlobCommand::new(blob("a", &content(number), number))))
        .collect();
    // One that is refused is no harm to the others.
    let refused =
        send(&one, PutBlobCommand::new(PutBlob { size_bytes: 1, ..blob("a", &content(0), 9) }));
    go_on.send(()).unwrap();
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.recv().unwrap().unwrap().upload_id, upload(number as u64));
    }
    assert!(matches!(refused.recv().unwrap(), Err(NamesError::SizeConflict { .. })));
    for number in 0..8 {
        assert_eq!(one.hosted(&digest(&content(number))).unwrap().upload_id, upload(number));
    }
    assert_eq!(one.metrics.commits.get() - before, 1);
}

#[test]
fn many_threads_put_and_every_put_is_there() {
    const THREADS: u64 = 8;
    const PUTS: u64 = 50;
    let mut one = NamesBox::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = one.client.clone();
            scope.spawn(move || {
                let names = client.blocking();
                for number in 0..PUTS {
                    // Half of the contents come from two threads.
                    let content = format!("layer {} {number}", thread / 2);
                    let name = format!("repository-{thread}");
                    let id = thread * PUTS + number;
                    let put = block_on(names.put_blob(blob(&name, &content, id))).unwrap();
                    let link = block_on(names.link(&repository(&name), &digest(&content))).unwrap();
                    assert_eq!(link.blob, Some(content.len() as u64));
                    let hosted = block_on(names.hosted(&digest(&content))).unwrap().unwrap();
                    assert_eq!(hosted.upload_id, put.upload_id);
                }
            });
        }
    });
    assert!(one.metrics.commits.get() <= THREADS * PUTS);
    one.restart();
    assert_eq!(one.metrics.contents.get() as u64, THREADS / 2 * PUTS);
    assert_eq!(one.metrics.repositories.get() as u64, THREADS);
}

#[test]
fn a_full_queue_refuses_and_what_waits_is_answered() {
    let one = NamesBox::with(NamesLimits { queue_max: 1, ..NamesLimits::default() });
    let go_on = block(&one);
    std::thread::scope(|scope| {
        // The thread is busy and the queue holds one: of several, one waits and all others are refused.
        let (answers, all) = mpsc::channel();
        for number in 0..4 {
            let (client, answers) = (one.client.clone(), answers.clone());
            scope.spawn(move || {
                let answer = block_on(client.blocking().put_blob(blob("a", "layer", number)));
                answers.send(answer).unwrap();
            });
        }
        for _ in 0..3 {
            assert_eq!(all.recv().unwrap(), Err(NamesError::Busy));
        }
        go_on.send(()).unwrap();
        assert!(all.recv().unwrap().is_ok());
    });
    assert_eq!(one.metrics.busy.get(), 3);
    let error = crate::protocol::ApiError::from(NamesError::Busy);
    assert_eq!(error.status(), 503);
    assert_eq!(error.headers()["retry-after"], "1");
}

#[test]
fn what_waits_at_the_stop_is_answered_and_what_comes_later_is_refused() {
    let mut one = NamesBox::new();
    let go_on = block(&one);
    let waiting = send(&one, DeleteTag { repository: repository("a"), tag: tag("v1") });
    go_on.send(()).unwrap();
    one.stop();
    assert_eq!(waiting.recv().unwrap(), Ok(false));
    assert_eq!(block_on(one.names.hosted(&digest("a"))), Err(NamesError::Closed));
    assert_eq!(one.put_blob(blob("a", "layer", 1)), Err(NamesError::Closed));
}

#[test]
fn a_question_that_was_asked_before_is_answered_without_the_thread() {
    let one = NamesBox::new();
    one.put(manifest("a", &["v1"], "manifest", 1)).unwrap();
    for _ in 0..3 {
        one.tag("a", "v1").unwrap();
        assert_eq!(one.tag("a", "v2"), None);
        one.repository("a");
        one.link("a", &digest("manifest"));
    }
    assert_eq!(one.metrics.recent_hits.get(), 8);
}

#[test]
fn what_one_client_changes_every_other_sees_at_once() {
    let one = NamesBox::new();
    let other = one.client.blocking();
    let seen = |text: &str| block_on(other.tag(&repository("a"), &tag(text))).unwrap();
    let state = || block_on(other.repository(&repository("a"))).unwrap();
    let held = || block_on(other.link(&repository("a"), &digest("one"))).unwrap().manifest;
    assert_eq!((seen("v1"), state(), held()), (None, Repository::Unknown, None));
    for content in ["one", "two", "one"] {
        one.put(manifest("a", &["v1"], content, 1)).unwrap();
        assert_eq!(seen("v1").unwrap().digest, digest(content));
        assert_eq!(state(), Repository::Hosted);
        assert!(held().is_some());
    }
    block_on(one.names.delete_manifest(&repository("a"), &digest("one"))).unwrap();
    assert_eq!((seen("v1"), held()), (None, None));
    one.remember(mirrored("b", "v1", "one", 1)).unwrap();
    let seen = || block_on(other.tag(&repository("b"), &tag("v1"))).unwrap();
    assert!(seen().is_some());
    for at in [5, 6] {
        assert!(one.touch("b", "v1", "one", at));
        let TagOrigin::Mirrored { checked_unix_ms, .. } = seen().unwrap().origin else { panic!() };
        assert_eq!(checked_unix_ms, at);
    }
}

#[test]
fn a_shard_asks_and_tells_without_being_blocked() {
    let mut one = NamesBox::new();
    let client = one.client.clone();
    let go_on = block(&one);
    let (put, seen) = outrider_shard::testing::on_shard(move |context| async move {
        let names = client.on(&context.handle());
        // While the names thread is busy, this task waits and the other one runs.
        outrider_shard::task::spawn(async move {
            outrider_shard::task::yield_now().await;
            go_on.send(()).unwrap();
        });
        let put = names.put_blob(blob("a", "layer", 1)).await;
        (put, names.link(&repository("a"), &digest("layer")).await)
    })
    .unwrap();
    assert_eq!(put, Ok(Put { upload_id: upload(1), superfluous: false }));
    assert_eq!(seen.unwrap().blob, Some(5));
    one.stop();
}
