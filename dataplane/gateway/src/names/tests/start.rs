//! What is checked when the file is opened.

use redb::{Database, ReadableTable, TableDefinition};

use super::super::store::{FILE_NAME, MIRRORED_TAGS, TAGS};
use super::*;

fn reopened(one: &NamesBox) -> Result<(NamesThread, NamesClient), NamesError> {
    open(one.path(), NamesLimits::default(), NamesMetrics::default())
}

#[test]
fn a_second_opener_is_told_that_the_file_is_in_use() {
    let one = NamesBox::new();
    let error = reopened(&one).unwrap_err();
    assert_eq!(error, NamesError::InUse(one.path().join(FILE_NAME)));
    assert!(error.to_string().contains("stop that one"), "{error}");
    // And the first one is not disturbed.
    one.put_blob(blob("a", "layer", 1)).unwrap();
}

#[test]
fn a_file_that_is_no_database_is_an_error_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(FILE_NAME), "text".repeat(4096)).unwrap();
    let error =
        open(directory.path(), NamesLimits::default(), NamesMetrics::default()).unwrap_err();
    assert!(error.to_string().contains(FILE_NAME), "{error}");
    let missing = directory.path().join("missing");
    let error = open(&missing, NamesLimits::default(), NamesMetrics::default()).unwrap_err();
    assert!(matches!(error, NamesError::Open { .. }), "{error}");
}

/// Overwrites the version of every record of a table.
fn set_version(
    one: &NamesBox,
    table: TableDefinition<'_, (&str, &str), &'static [u8]>,
    version: u16,
) {
    let database = Database::open(one.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(table).unwrap();
        let rows: Vec<_> = table
            .iter()
            .unwrap()
            .map(|entry| {
                let (key, row) = entry.unwrap();
                let (repository, tag) = key.value();
                (repository.to_owned(), tag.to_owned(), row.value().to_vec())
            })
            .collect();
        for (repository, tag, mut row) in rows {
            row[..2].copy_from_slice(&version.to_le_bytes());
            table.insert((&*repository, &*tag), &*row).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn what_was_pushed_by_another_version_stops_the_start() {
    let mut one = NamesBox::new();
    one.put(manifest("a", &["v1"], "manifest", 1)).unwrap();
    one.stop();
    set_version(&one, TAGS, 7);
    let error = reopened(&one).unwrap_err();
    let what = "the tag a:v1".to_owned();
    assert_eq!(error, NamesError::Version { what, found: 7, known: 1 });
    assert!(error.to_string().contains("start the version that wrote it"), "{error}");
    set_version(&one, TAGS, 1);
    let (thread, client) = reopened(&one).unwrap();
    assert!(block_on(client.blocking().tag(&repository("a"), &tag("v1"))).unwrap().is_some());
    thread.stop().unwrap();
}

#[test]
fn what_was_remembered_by_another_version_is_forgotten() {
    let mut one = NamesBox::new();
    one.put(manifest("a", &["v1"], "manifest", 1)).unwrap();
    one.remember(mirrored("b", "v1", "index", 1)).unwrap();
    one.stop();
    set_version(&one, MIRRORED_TAGS, 7);
    let (thread, client) = reopened(&one).unwrap();
    let names = client.blocking();
    assert_eq!(block_on(names.tag(&repository("b"), &tag("v1"))).unwrap(), None);
    assert_eq!(block_on(names.repository(&repository("b"))).unwrap(), Repository::Unknown);
    assert!(block_on(names.tag(&repository("a"), &tag("v1"))).unwrap().is_some());
    // And it can be remembered anew.
    block_on(names.remember_mirrored_tag(mirrored("b", "v1", "index", 2))).unwrap();
    thread.stop().unwrap();
}

#[test]
fn one_mirrored_tag_that_cannot_be_read_takes_no_other_with_it() {
    let mut one = NamesBox::new();
    for (name, text) in [("a", "v1"), ("a", "v2"), ("b", "v1"), ("c", "v1")] {
        one.remember(mirrored(name, text, "index", 1)).unwrap();
    }
    one.stop();
    let database = Database::open(one.path().join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    let cut: &[u8] = &[1, 0, 5];
    transaction.open_table(MIRRORED_TAGS).unwrap().insert(("b", "v1"), cut).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let (thread, client) = reopened(&one).unwrap();
    let names = client.blocking();
    let all = block_on(names.repositories(None, 10)).unwrap();
    assert_eq!(all, ["a", "c"]);
    assert_eq!(block_on(names.tags(&repository("a"), None, 10)).unwrap().tags, ["v1", "v2"]);
    // The counts are right again: the last tag of a repository takes the repository with it.
    for text in ["v1", "v2"] {
        assert!(block_on(names.forget_mirrored_tag(&repository("a"), &tag(text))).unwrap());
    }
    assert_eq!(block_on(names.repository(&repository("a"))).unwrap(), Repository::Unknown);
    thread.stop().unwrap();
}
