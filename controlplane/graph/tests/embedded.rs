//! The embedded store against the model, and what it does when it is opened again, full, or damaged.

#![allow(clippy::unwrap_used, reason = "tests")]

use outrider_artifact::Digest;
use outrider_graph::{
    Access, Alone, Asked, Batch, Content, Embedded, Found, Graph, GraphError, Kind, Position,
    Query, model, plan::EARLY_MAX, workload,
};
use redb::ReadableTable as _;

const CACHE_BYTES: usize = 4 << 20;

fn store(folder: &tempfile::TempDir) -> Embedded {
    Embedded::open(&folder.path().join("graph.redb"), CACHE_BYTES).unwrap()
}

#[tokio::test]
async fn random_graphs_are_answered_as_the_model_does() {
    let seeds = match std::env::var("OUTRIDER_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..40).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        let folder = tempfile::tempdir().unwrap();
        if let Err(difference) = model::compare(&store(&folder), seed, 40).await {
            panic!("{difference}");
        }
    }
}

#[tokio::test]
async fn what_was_applied_is_there_after_opening_again_and_not_counted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut workload = workload::Workload::new(7);
    let mut batch = workload.batch();
    while batch.found.is_empty() || batch.accesses.is_empty() {
        batch = workload.batch();
    }
    batch.position = Some(Position::new("events", 9));
    let first = store(&folder);
    assert!(!first.apply(batch.clone()).await.unwrap().repeated);
    let stats = first.stats().await.unwrap();
    drop(first);
    let again = store(&folder);
    assert!(again.apply(batch).await.unwrap().repeated);
    assert_eq!(again.stats().await.unwrap(), stats);
    assert_eq!(stats.positions["events"], 9);
}

fn found(number: u64, layers: u64) -> Found {
    let layer = |layer: u64| Content {
        kind: Kind::Layer,
        digest: Digest::sha256(format!("{number} {layer}").as_bytes()),
        bytes: 1,
    };
    Found {
        image: "app".parse().unwrap(),
        digest: Digest::sha256(&number.to_le_bytes()),
        tag: Some("v1".parse().unwrap()),
        customer: "c".into(),
        unix_ms: number,
        bytes: 1,
        kind: Kind::Version,
        contents: (0..layers).map(layer).collect(),
    }
}

#[tokio::test]
async fn what_is_beyond_a_bound_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let of = |found: Vec<Found>| Batch { found, ..Batch::default() };
    let with = |change: &dyn Fn(&mut Found)| {
        let mut one = found(1, 2);
        change(&mut one);
        of(vec![found(0, 1), one])
    };
    for (batch, wanted) in [
        (of(vec![found(0, 1), found(1, 1025)]), "layers of an image: 1025, and 1024 is the most"),
        (of((0..1025).map(|n| found(n, 0)).collect()), "manifests of a batch: 1025"),
        (of((0..70).map(|n| found(n, 1000)).collect()), "contents of a batch: 70000"),
        (with(&|f| f.contents[0].bytes = u64::MAX), "bytes of a content: 18446744073709551615"),
        (with(&|f| f.contents[0].digest = f.digest), "refers to itself"),
        (with(&|f| f.contents[0] = f.contents[1].clone()), "a content twice"),
        (with(&|f| f.contents[0].kind = Kind::Version), "contents of another kind"),
        (with(&|f| f.kind = Kind::Customer), "contents of another kind"),
        (with(&|f| f.customer = String::new()), "is no name"),
        (with(&|f| f.customer = "a\nb".into()), "is no name"),
        (with(&|f| f.unix_ms = u64::MAX), "milliseconds since 1970"),
        (with(&|f| f.bytes = u64::MAX), "bytes of a manifest"),
    ] {
        let error = store.apply(batch).await.unwrap_err();
        assert!(matches!(error, GraphError::Batch(_)), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert!(store.stats().await.unwrap().nodes.values().all(|count| *count == 0));
}

#[tokio::test]
async fn queries_through_indexes_end_where_they_are_too_wide_or_too_deep() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    // A chain of indexes, each of the one before it; the first has an image.
    let mut chain = vec![found(0, 1)];
    for number in 1..=10 {
        let mut index = found(number, 0);
        index.kind = Kind::Index;
        index.tag = Some(format!("v{number}").parse().unwrap());
        let child = Digest::sha256(&(number - 1).to_le_bytes());
        index.contents = vec![Content { kind: Kind::Version, digest: child, bytes: 1 }];
        chain.push(index);
    }
    let layer = chain[0].contents[0].digest;
    store.apply(Batch { found: chain, ..Batch::default() }).await.unwrap();
    let added = |tag: &str| {
        let (image, version) = ("app".parse().unwrap(), tag.parse().unwrap());
        let query = Query::Added { image, version, since: Some("v1".parse().unwrap()) };
        store.ask(Asked { query, limit: 10 })
    };
    assert_eq!(added("v8").await.unwrap().rows, []);
    assert_eq!(added("v9").await, Err(GraphError::TooWide("app".into())));
    let affected = store.ask(Asked { query: Query::Affected { layer }, limit: 100 }).await.unwrap();
    let indexes = affected.rows.iter().filter(|row| row.kind == Kind::Index).count();
    assert_eq!(indexes, 8);
}

#[tokio::test]
async fn accesses_of_contents_and_versions_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let one = found(1, 2);
    let layer = one.contents[0].digest;
    let access = |image: Option<&str>, digest, count, unix_ms| Access {
        image: image.map(|image| image.parse().unwrap()),
        digest,
        count,
        unix_ms,
    };
    let accesses = vec![
        access(None, layer, 3, 70),
        access(None, layer, 2, 60),
        access(Some("app"), one.digest, 1, 50),
        access(None, one.digest, 5, 50),
    ];
    let batch = Batch { found: vec![one], accesses, ..Batch::default() };
    assert_eq!(store.apply(batch).await.unwrap().unknown, 5);
    let query = Query::LayerDepth { layer };
    let row = store.ask(Asked { query, limit: 1 }).await.unwrap().rows.remove(0);
    assert_eq!((row.accesses, row.last_unix_ms), (Some(5), Some(70)));
    let query = Query::Affected { layer };
    let rows = store.ask(Asked { query, limit: 9 }).await.unwrap().rows;
    let version = rows.iter().find(|row| row.kind == Kind::Version).unwrap();
    assert_eq!((version.accesses, version.last_unix_ms), (Some(1), Some(50)));
}

#[tokio::test]
async fn a_file_of_another_version_or_of_something_else_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("graph.redb");
    std::fs::write(&path, b"something else, and long enough to be looked at").unwrap();
    let error = Embedded::open(&path, CACHE_BYTES).err().unwrap();
    assert!(error.to_string().contains("graph.redb"), "{error}");
    std::fs::remove_file(&path).unwrap();
    drop(store(&folder));
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    write.open_table(meta).unwrap().insert("format", 9).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = Embedded::open(&path, CACHE_BYTES).err().unwrap();
    assert!(error.to_string().contains("has version 9"), "{error}");
}

fn alone(text: &str, customer: &str) -> Alone {
    let digest = Digest::sha256(text.as_bytes());
    Alone { digest, bytes: 3, customer: customer.into(), unix_ms: 5 }
}

#[tokio::test]
async fn what_is_asked_for_before_it_comes_is_counted_when_it_does_and_the_oldest_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let digest = |number: u64| Digest::sha256(format!("asked {number}").as_bytes());
    let access = |number: u64| Access {
        image: number.is_multiple_of(2).then(|| "app".parse().unwrap()),
        digest: digest(number),
        count: 2,
        unix_ms: 90,
    };
    // Two more than are kept, the first one asked for again in between: it stays the oldest.
    let numbers: Vec<u64> = (0..EARLY_MAX).chain([0, EARLY_MAX, EARLY_MAX + 1]).collect();
    for some in numbers.chunks(outrider_graph::batch::ACCESSES_MAX) {
        let accesses: Vec<_> = some.iter().map(|number| access(*number)).collect();
        let batch = Batch { accesses, ..Batch::default() };
        assert_eq!(store.apply(batch).await.unwrap().unknown, 2 * some.len() as u64);
    }
    assert_eq!(store.stats().await.unwrap().early, EARLY_MAX);
    let mut one = found(1, 0);
    let content = |number| Content { kind: Kind::Layer, digest: digest(number), bytes: 1 };
    one.contents = [0, 1, 2, EARLY_MAX + 1].map(content).into();
    store.apply(Batch { found: vec![one], ..Batch::default() }).await.unwrap();
    assert_eq!(store.stats().await.unwrap().early, EARLY_MAX - 2);
    for (number, accesses, last) in [(0, 0, 0), (1, 0, 0), (2, 2, 90), (EARLY_MAX + 1, 2, 90)] {
        let query = Query::LayerDepth { layer: digest(number) };
        let row = store.ask(Asked { query, limit: 1 }).await.unwrap().rows.remove(0);
        assert_eq!((row.accesses, row.last_unix_ms), (Some(accesses), Some(last)), "{number}");
    }
}

#[tokio::test]
async fn a_layer_that_was_uploaded_by_itself_has_an_owner_and_no_dependants() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder);
    let both = ["a", "b"].map(|customer| alone("layer", customer));
    store.apply(Batch { alone: both.into(), ..Batch::default() }).await.unwrap();
    let layer = Digest::sha256(b"layer");
    let query = Query::SharedByCustomers { customers: ["a".into(), "b".into()] };
    let shared = store.ask(Asked { query, limit: 9 }).await.unwrap();
    assert_eq!((shared.rows[0].bytes, shared.rows[0].versions), (Some(3), Some(0)));
    assert_eq!(store.dependants(vec![layer]).await.unwrap(), [0]);
    // With a manifest that has it, it is depended upon.
    let mut one = found(1, 0);
    (one.customer, one.contents) =
        ("a".into(), vec![Content { kind: Kind::Layer, digest: layer, bytes: 9 }]);
    store.apply(Batch { found: vec![one], ..Batch::default() }).await.unwrap();
    assert_eq!(store.dependants(vec![layer]).await.unwrap(), [1]);
    let wrong = Alone { customer: "a\nb".into(), ..alone("layer", "a") };
    let error = store.apply(Batch { alone: vec![wrong], ..Batch::default() }).await.unwrap_err();
    assert!(error.to_string().contains("is no name"), "{error}");
}

/// What a file of an earlier layout had: other tables for owners, states and dependants.
fn downgrade(path: &std::path::Path, format: u64) {
    let pairs = |name| redb::TableDefinition::<(u64, u64), ()>::new(name);
    let states = redb::TableDefinition::<u64, (u64, u64, u64, u64, u64)>::new("content-counts");
    let shares = redb::TableDefinition::<(u64, u64), u64>::new("content-shares");
    let before = redb::TableDefinition::<u64, (u64, u64, u64, u64)>::new("content-states");
    let early = redb::TableDefinition::<(&[u8], &str), (u64, u64, u64)>::new("early");
    let order = redb::TableDefinition::<u64, (&[u8], &str)>::new("early-order");
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let database = redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut owners = write.open_table(pairs("content-owners")).unwrap();
        for entry in write.open_table(shares).unwrap().iter().unwrap() {
            owners.insert(entry.unwrap().0.value(), ()).unwrap();
        }
        let mut old = write.open_table(before).unwrap();
        for entry in write.open_table(states).unwrap().iter().unwrap() {
            let (serial, state) = entry.unwrap();
            let (a, b, c, d, _) = state.value();
            old.insert(serial.value(), (a, b, c, d)).unwrap();
        }
        write.open_table(meta).unwrap().insert("format", format).unwrap();
    }
    write.delete_table(states).unwrap();
    write.delete_table(early).unwrap();
    write.delete_table(order).unwrap();
    if format == 1 {
        write.delete_table(shares).unwrap();
    }
    write.commit().unwrap();
}

#[tokio::test]
async fn a_file_of_an_earlier_layout_is_brought_up_to_date() {
    for format in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let mut workload = workload::Workload::new(format);
        let mut model = model::Model::default();
        let fill = |store: Embedded, workload: &mut workload::Workload, mut model: model::Model| {
            let batches: Vec<_> = (0..40).map(|_| workload.batch()).collect();
            async move {
                for mut batch in batches {
                    // Neither was in such a file.
                    (batch.alone, batch.accesses) = (Vec::new(), Vec::new());
                    assert_eq!(store.apply(batch.clone()).await, Ok(model.apply(&batch)));
                }
                model
            }
        };
        model = fill(store(&folder), &mut workload, model).await;
        downgrade(&folder.path().join("graph.redb"), format);
        model = fill(store(&folder), &mut workload, model).await;
        let store = store(&folder);
        let contents = workload.contents();
        assert_eq!(store.dependants(contents.clone()).await, Ok(model.dependants(&contents)));
        for asked in (0..20).flat_map(|_| workload.queries()) {
            assert_eq!(store.ask(asked.clone()).await, model.ask(&asked), "{asked:?}");
        }
    }
}
