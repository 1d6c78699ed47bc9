//! What customers have stored, and what they may.

use std::sync::atomic::Ordering;

use super::disk::{Disk, on};
use super::*;

fn of(customer: &str, repository: &str, content: &str, number: u64) -> PutBlob {
    let event = UploadEvent { customer: customer.into(), ..event(repository, content) };
    PutBlob { event: Some(event), ..blob(repository, content, number) }
}

#[test]
fn content_is_charged_once_to_who_pushed_it_first_and_given_back_when_nobody_holds_it() {
    let mut one = NamesBox::new();
    let stored = one.limits.stored.clone();
    one.put_blob(of("acme", "a", "12345", 1)).unwrap();
    // Again, by another one, elsewhere, as a manifest: it is here already.
    one.put_blob(of("acme", "a", "12345", 2)).unwrap();
    one.put_blob(of("zeta", "b", "12345", 3)).unwrap();
    one.mount("c", "12345", None).unwrap().unwrap();
    let event = Some(UploadEvent { customer: "zeta".into(), ..event("b", "1234567") });
    one.put(PutManifest {
        events: event.into_iter().collect(),
        ..manifest("b", &["v1"], "1234567", 4)
    })
    .unwrap();
    // A copy from elsewhere is nobody's.
    one.put_blob(blob("b", "copied", 5)).unwrap();
    for _ in 0..2 {
        assert_eq!((stored.used("acme"), stored.used("zeta")), (5, 7));
        one.restart();
    }
    let delete = |name: &str, text: &str| {
        block_on(one.names.delete_blob(&repository(name), &digest(text))).unwrap().unwrap()
    };
    delete("a", "12345");
    delete("b", "12345");
    delete("b", "copied");
    assert_eq!(stored.used("acme"), 5);
    assert!(delete("c", "12345").unreferenced.is_some());
    assert_eq!((stored.used("acme"), stored.used("zeta")), (0, 7));
    block_on(one.names.delete_manifest(&repository("b"), &digest("1234567"))).unwrap().unwrap();
    assert_eq!(stored.used("zeta"), 0);
    // Who pushes it then is charged.
    one.put_blob(of("zeta", "b", "12345", 6)).unwrap();
    assert_eq!((stored.used("acme"), stored.used("zeta")), (0, 5));
}

#[test]
fn a_push_beyond_the_limit_changes_nothing_and_others_go_on() {
    let one = NamesBox::new();
    let stored = &one.limits.stored;
    stored.limit("acme", 10);
    one.put_blob(of("acme", "a", "123456", 1)).unwrap();
    let error = one.put_blob(of("acme", "new", "abcde", 2)).unwrap_err();
    let NamesError::OverLimit(over) = &error else { panic!("{error}") };
    assert_eq!((over.limit_bytes, over.used_bytes, over.wanted_bytes), (10, 6, 5));
    assert_eq!(one.repository("new"), Repository::Unknown);
    assert_eq!(one.hosted(&digest("abcde")), None);
    let text = error.to_string();
    assert!(text.contains("acme") && text.contains("10 bytes") && text.contains("has 6"), "{text}");
    // What is here costs nothing, and neither does what others push.
    one.put_blob(of("zeta", "b", "abcde", 3)).unwrap();
    one.put_blob(of("acme", "new", "abcde", 4)).unwrap();
    one.put_blob(of("acme", "a", "1234", 5)).unwrap();
    assert_eq!((stored.used("acme"), stored.used("zeta")), (10, 5));
    let shares = stored.limited(10);
    assert_eq!(shares.len(), 1);
    assert_eq!(
        (&*shares[0].customer, shares[0].used_bytes, shares[0].limit_bytes),
        ("acme", 10, 10)
    );
    // A lower limit takes nothing away.
    stored.limit("acme", 1);
    one.put_blob(of("acme", "a", "x", 6)).unwrap_err();
    assert_eq!(stored.used("acme"), 10);
    stored.limit("acme", 0);
    one.put_blob(of("acme", "a", "x", 7)).unwrap();
}

#[test]
fn pushes_that_are_committed_together_are_not_more_than_the_limit() {
    let one = NamesBox::new();
    one.limits.stored.limit("acme", 50);
    let done: usize = std::thread::scope(|scope| {
        let pushes: Vec<_> = (0..8_u64)
            .map(|thread| {
                let client = one.client.clone();
                scope.spawn(move || {
                    let names = client.blocking();
                    let push = |number: u64| {
                        let content = format!("{thread:02}{number:03}");
                        block_on(names.put_blob(of("acme", "a", &content, thread << 32 | number)))
                    };
                    (0..20).filter(|number| push(*number).is_ok()).count()
                })
            })
            .collect();
        pushes.into_iter().map(|push| push.join().unwrap()).sum()
    });
    assert_eq!(done, 10);
    assert_eq!(one.limits.stored.used("acme"), 50);
}

#[test]
fn it_is_right_after_commits_that_failed_and_are_there_or_not() {
    for fails in 0..4 {
        let disk = Arc::<Disk>::default();
        let one = on(&disk);
        let stored = &one.limits.stored;
        one.put_blob(of("acme", "a", "12345", 1)).unwrap();
        disk.flushes_fail.store(fails, Ordering::SeqCst);
        let put = one.put_blob(of("acme", "a", "1234567", 2));
        disk.flushes_fail.store(0, Ordering::SeqCst);
        until_written(&one);
        let is_there = one.hosted(&digest("1234567")).is_some();
        assert!(put.is_err() || is_there);
        assert_eq!(stored.used("acme"), if is_there { 12 } else { 5 }, "{fails} failed");
    }
}

/// Changes are refused for a while after a failure.
fn until_written(one: &NamesBox) {
    while one.put_blob(blob("x", "x", 9)).is_err() {
        std::thread::yield_now();
    }
}
