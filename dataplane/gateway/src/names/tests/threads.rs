//! Several clients, the queue, and what shards remember.

use std::sync::Mutex;
use std::sync::mpsc;

use redb::ReadTransaction;

use super::super::query::Query;
use super::super::store::Fault;
use super::super::thread::{Asked, Job, Reply};
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

#[test]
fn puts_that_wait_together_are_committed_together() {
    let one = NamesBox::new();
    let before = one.metrics.commits.get();
    let go_on = block(&one);
    std::thread::scope(|scope| {
        let (sent, all_sent) = mpsc::channel();
        for thread in 0..8u64 {
            let (client, sent) = (one.client.clone(), sent.clone());
            scope.spawn(move || {
                let names = client.blocking();
                sent.send(()).unwrap();
                let content = format!("layer {thread}");
                block_on(names.put_blob(blob("a", &content, thread))).unwrap();
            });
        }
        for _ in 0..8 {
            all_sent.recv().unwrap();
        }
        // Each is about to wait in the queue; whichever comes later makes one transaction more.
        go_on.send(()).unwrap();
    });
    for thread in 0..8 {
        assert_eq!(
            one.hosted(&digest(&format!("layer {thread}"))).unwrap().upload_id,
            upload(thread)
        );
    }
    let commits = one.metrics.commits.get() - before;
    assert!((1..=8).contains(&commits), "{commits}");
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
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let (reply, answer) = mpsc::sync_channel(1);
            let command =
                super::super::command::DeleteTag { repository: repository("a"), tag: tag("v1") };
            let wanted = super::super::thread::Wanted {
                command,
                outcome: None,
                reply: Reply::Thread(reply),
            };
            one.client.send_for_test(Job::Change(Box::new(wanted)));
            go_on.send(()).unwrap();
            answer.recv().unwrap()
        });
        assert_eq!(waiting.join().unwrap(), Ok(false));
    });
    one.stop();
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
