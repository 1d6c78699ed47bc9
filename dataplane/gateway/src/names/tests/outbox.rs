//! Events are written with what they tell of.

use super::*;

fn put(one: &NamesBox, content: &str) {
    let put = PutBlob { event: Some(event("a", content)), ..blob("a", content, 1) };
    one.put_blob(put).unwrap();
}

fn read(one: &NamesBox, from: u64, entries_max: usize) -> Vec<(u64, UploadEvent)> {
    let records = block_on(one.names.outbox_read(from, entries_max)).unwrap();
    let open = |record: OutboxRecord| {
        (record.sequence, UploadEvent::from_archive(&record.archive).unwrap())
    };
    records.into_iter().map(open).collect()
}

fn status(one: &NamesBox) -> (u64, u64) {
    let status = block_on(one.names.outbox_status()).unwrap();
    (status.pending, status.dropped)
}

#[test]
fn events_wait_in_order_until_they_are_acknowledged() {
    let mut one = NamesBox::new();
    for content in ["one", "two", "three"] {
        put(&one, content);
    }
    one.restart();
    assert_eq!(status(&one), (3, 0));
    let all = read(&one, 0, 100);
    assert_eq!(all.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(all[1].1, event("a", "two"));
    assert_eq!(read(&one, 2, 1), all[1..2]);

    block_on(one.names.outbox_acknowledge(2)).unwrap();
    assert_eq!(read(&one, 0, 100), all[2..]);
    block_on(one.names.outbox_acknowledge(2)).unwrap();
    block_on(one.names.outbox_acknowledge(3)).unwrap();
    assert_eq!(status(&one), (0, 0));
    // Numbers are never used twice, not even after a restart with nothing waiting.
    one.restart();
    put(&one, "four");
    assert_eq!(read(&one, 0, 100), [(4, event("a", "four"))]);
}

#[test]
fn the_numbers_of_the_outbox_have_an_epoch_and_every_opening_a_number() {
    let mut one = NamesBox::new();
    put(&one, "one");
    let before = block_on(one.names.outbox_status()).unwrap();
    assert_eq!(before.given, 1);
    assert!(before.epoch > 0 && before.opening > 0);
    one.restart();
    let after = block_on(one.names.outbox_status()).unwrap();
    assert_eq!((after.epoch, after.given), (before.epoch, 1));
    assert!(after.opening > before.opening);
}

#[test]
fn the_outbox_is_bounded_and_counts_what_it_drops() {
    let mut one = NamesBox::with(NamesLimits { outbox_records_max: 2, ..NamesLimits::default() });
    for content in ["one", "two", "three", "four"] {
        put(&one, content);
    }
    assert_eq!(status(&one), (2, 2));
    assert_eq!(
        read(&one, 0, 100).iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(),
        [3, 4]
    );
    assert_eq!(one.metrics.events_dropped.get(), 2);
    assert_eq!(one.metrics.outbox_pending.get(), 2);
    one.limits.outbox_records_max = 1;
    one.restart();
    assert_eq!(status(&one), (1, 3));
}

#[test]
fn each_put_that_was_acknowledged_tells_of_itself() {
    let one = NamesBox::new();
    put(&one, "one");
    put(&one, "one");
    let with_event =
        PutManifest { events: vec![event("a", "m")], ..manifest("a", &["v1"], "m", 2) };
    one.put(with_event).unwrap();
    one.put(manifest("a", &["v2"], "n", 3)).unwrap();
    assert_eq!(status(&one), (3, 0));
}

#[test]
fn a_manifest_tells_of_each_of_its_tags_or_of_none_at_all() {
    let one = NamesBox::new();
    let of = |tag: &str| UploadEvent { version: Some(tag.into()), ..event("a", "m") };
    let events = vec![of("v1"), of("latest")];
    one.put(PutManifest { events: events.clone(), ..manifest("a", &["v1", "latest"], "m", 2) })
        .unwrap();
    let told = read(&one, 0, 9).into_iter().map(|(_, event)| event).collect::<Vec<_>>();
    assert_eq!(told, events);
    let refused = PutManifest {
        events,
        references_required: true,
        references: vec![digest("what is not there")],
        ..manifest("a", &["v1", "latest"], "n", 3)
    };
    assert!(one.put(refused).is_err());
    assert_eq!(status(&one), (2, 0));
}
