//! Any sequence of changes, against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase};

use super::super::command::{
    Command, DeleteBlob, DeleteManifest, DeleteTag, ForgetMirroredTag, Mount, PutBlobCommand,
    PutManifestCommand,
};
use super::super::query::{LinkQuery, Query, RepositoryQuery, TagQuery, TagsQuery, hosted};
use super::super::store::{Fault, Tables, prepare};
use super::*;

const REPOSITORIES: [&str; 3] = ["a", "b", "c/d"];
const TAGS: [&str; 3] = ["v1", "v2", "v3"];
const CONTENTS: [&str; 4] = ["one", "two", "three", "four"];

#[derive(Clone, Debug)]
enum Step {
    PutBlob { name: &'static str, content: &'static str, number: u64 },
    PutManifest { name: &'static str, content: &'static str, tag: &'static str, number: u64 },
    Mount { name: &'static str, content: &'static str, from: Option<&'static str> },
    Remember { name: &'static str, tag: &'static str, content: &'static str, at: u64 },
    Forget { name: &'static str, tag: &'static str },
    DeleteTag { name: &'static str, tag: &'static str },
    DeleteManifest { name: &'static str, content: &'static str },
    DeleteBlob { name: &'static str, content: &'static str },
}

fn step() -> impl Strategy<Value = Step> {
    let name = || proptest::sample::select(&REPOSITORIES[..]);
    let tag = || proptest::sample::select(&TAGS[..]);
    let content = || proptest::sample::select(&CONTENTS[..]);
    prop_oneof![
        (name(), content(), 0u64..1000).prop_map(|(name, content, number)| Step::PutBlob {
            name,
            content,
            number
        }),
        (name(), content(), tag(), 0u64..1000).prop_map(|(name, content, tag, number)| {
            Step::PutManifest { name, content, tag, number }
        }),
        (name(), content(), proptest::option::of(name()))
            .prop_map(|(name, content, from)| Step::Mount { name, content, from }),
        (name(), tag(), content(), 0u64..9).prop_map(|(name, tag, content, at)| Step::Remember {
            name,
            tag,
            content,
            at
        }),
        (name(), tag()).prop_map(|(name, tag)| Step::Forget { name, tag }),
        (name(), tag()).prop_map(|(name, tag)| Step::DeleteTag { name, tag }),
        (name(), content()).prop_map(|(name, content)| Step::DeleteManifest { name, content }),
        (name(), content()).prop_map(|(name, content)| Step::DeleteBlob { name, content }),
    ]
}

type Pair = (&'static str, &'static str);

/// What the tables should say.
#[derive(Debug, Default)]
struct Model {
    hosted: BTreeSet<&'static str>,
    blobs: BTreeSet<Pair>,
    manifests: BTreeSet<Pair>,
    tags: BTreeMap<Pair, &'static str>,
    mirrored: BTreeMap<Pair, &'static str>,
    uploads: BTreeMap<&'static str, u64>,
}

impl Model {
    fn is_mirrored(&self, name: &str) -> bool {
        self.mirrored.keys().any(|(repository, _)| *repository == name)
    }

    fn put(&mut self, name: &'static str, content: &'static str, number: u64) -> bool {
        if self.is_mirrored(name) {
            return false;
        }
        self.hosted.insert(name);
        self.uploads.entry(content).or_insert(number);
        true
    }

    /// Drops the content if nobody holds it; gives its upload then.
    fn collect(&mut self, content: &'static str) -> Option<u64> {
        let held = |(_, other): &Pair| *other == content;
        if self.blobs.iter().any(held) || self.manifests.iter().any(held) {
            return None;
        }
        self.uploads.remove(content)
    }
}

struct Memory(Database);

impl Memory {
    fn new() -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        prepare(&database, &NamesLimits::default()).unwrap();
        Self(database)
    }

    /// None if it was refused, and then it must have changed nothing: it is committed all the same.
    fn apply<C: Command>(&self, command: &C) -> Option<C::Outcome> {
        let transaction = self.0.begin_write().unwrap();
        let outcome =
            command.apply(&mut Tables::open(&transaction, &NamesLimits::default()).unwrap());
        transaction.commit().unwrap();
        match outcome {
            Ok(outcome) => Some(outcome),
            Err(Fault::Refused(_)) => None,
            Err(Fault::Disk(reason)) => panic!("{reason}"),
        }
    }

    fn ask<Q: Query>(&self, query: &Q) -> Q::Answer {
        let snapshot = self.0.begin_read().unwrap();
        query.answer(&snapshot).unwrap_or_else(|fault| panic!("{}", fault.into_error()))
    }
}

fn make(memory: &Memory, model: &mut Model, step: &Step) {
    match *step {
        Step::PutBlob { name, content, number } => {
            let done = memory.apply(&PutBlobCommand::new(blob(name, content, number)));
            assert_eq!(done.is_some(), model.put(name, content, number));
            if let Some(put) = done {
                model.blobs.insert((name, content));
                assert_eq!(put.upload_id, upload(model.uploads[content]));
                assert_eq!(put.superfluous, model.uploads[content] != number);
            }
        }
        Step::PutManifest { name, content, tag, number } => {
            let done =
                memory.apply(&PutManifestCommand::new(manifest(name, &[tag], content, number)));
            assert_eq!(done.is_some(), model.put(name, content, number));
            if done.is_some() {
                model.manifests.insert((name, content));
                model.tags.insert((name, tag), content);
            }
        }
        Step::Mount { name, content, from } => {
            let mount = Mount {
                repository: repository(name),
                digest: digest(content),
                from: from.map(repository),
            };
            let done = memory.apply(&mount);
            assert_eq!(done.is_none(), model.is_mirrored(name));
            let possible = match from {
                Some(from) => model.blobs.contains(&(from, content)),
                None => model.uploads.contains_key(content),
            };
            if let Some(mounted) = done {
                assert_eq!(mounted.is_some(), possible);
                if possible {
                    model.hosted.insert(name);
                    model.blobs.insert((name, content));
                }
            }
        }
        Step::Remember { name, tag, content, at } => {
            let done = memory.apply(&mirrored(name, tag, content, at));
            assert_eq!(done.is_none(), model.hosted.contains(name));
            if done.is_some() {
                model.mirrored.insert((name, tag), content);
            }
        }
        Step::Forget { name, tag } => {
            let forget = ForgetMirroredTag { repository: repository(name), tag: super::tag(tag) };
            let expected = model.mirrored.remove(&(name, tag)).is_some();
            assert_eq!(memory.apply(&forget), Some(expected));
        }
        Step::DeleteTag { name, tag } => {
            let delete = DeleteTag { repository: repository(name), tag: super::tag(tag) };
            let expected = model.tags.remove(&(name, tag)).is_some();
            assert_eq!(memory.apply(&delete), Some(expected));
        }
        Step::DeleteManifest { name, content } => {
            let delete = DeleteManifest { repository: repository(name), digest: digest(content) };
            let removed = memory.apply(&delete).unwrap();
            assert_eq!(removed.is_some(), model.manifests.remove(&(name, content)));
            if let Some(removed) = removed {
                let before = model.tags.len();
                model.tags.retain(|(other, _), to| *other != name || *to != content);
                assert_eq!(removed.tags, before - model.tags.len());
                assert_eq!(removed.unreferenced, model.collect(content).map(upload));
            }
        }
        Step::DeleteBlob { name, content } => {
            let delete = DeleteBlob { repository: repository(name), digest: digest(content) };
            let removed = memory.apply(&delete).unwrap();
            assert_eq!(removed.is_some(), model.blobs.remove(&(name, content)));
            if let Some(removed) = removed {
                assert_eq!(removed.unreferenced, model.collect(content).map(upload));
            }
        }
    }
}

fn check(memory: &Memory, model: &Model) {
    for name in REPOSITORIES {
        let state = memory.ask(&RepositoryQuery(repository(name)));
        let (hosted, mirrored) = (model.hosted.contains(name), model.is_mirrored(name));
        assert!(!(hosted && mirrored));
        assert_eq!(state == Repository::Hosted, hosted);
        assert_eq!(matches!(state, Repository::Mirrored { .. }), mirrored);
        let listed =
            memory.ask(&TagsQuery { repository: repository(name), last: None, entries_max: 10 });
        let of_name = |(other, _): &&Pair| *other == name;
        let table = if mirrored { &model.mirrored } else { &model.tags };
        let expected: Vec<_> = table.keys().filter(of_name).map(|(_, tag)| *tag).collect();
        assert_eq!(listed.tags, expected);
        for tag in TAGS {
            let query = TagQuery { repository: repository(name), tag: super::tag(tag) };
            let expected = table.get(&(name, tag)).map(|content| digest(content));
            assert_eq!(memory.ask(&query).map(|record| record.digest), expected);
        }
        for content in CONTENTS {
            let link =
                memory.ask(&LinkQuery { repository: repository(name), digest: digest(content) });
            assert_eq!(link.blob.is_some(), model.blobs.contains(&(name, content)));
            assert_eq!(link.manifest.is_some(), model.manifests.contains(&(name, content)));
        }
    }
    let snapshot = memory.0.begin_read().unwrap();
    for content in CONTENTS {
        let found = hosted(&snapshot, &digest(content)).ok().flatten();
        let expected = model.uploads.get(content).map(|number| upload(*number));
        assert_eq!(found.map(|hosted| hosted.upload_id), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_of_changes_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let (memory, mut model) = (Memory::new(), Model::default());
        for step in &steps {
            make(&memory, &mut model, step);
        }
        check(&memory, &model);
        // What a start would find is right too, and stays as it is.
        prepare(&memory.0, &NamesLimits::default()).unwrap();
        check(&memory, &model);
    }
}
