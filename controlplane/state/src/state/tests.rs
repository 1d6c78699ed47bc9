use proptest::prelude::*;

use super::*;
use crate::applied::{KEY_TIME_MS, KEYS_MAX};
use crate::change::{History, HistoryLimits};
use crate::members::Role;
use crate::record::RecordError;
use crate::request::{RequestId, VALUE_BYTES_MAX};
use crate::workload::Workload;

fn put(key: &str, value: &str, expect: Expect) -> Operation {
    Operation::Write(Write::Put { key: key.into(), value: value.into(), expect })
}

fn delete(key: &str, expect: Expect) -> Operation {
    Operation::Write(Write::Delete { key: key.into(), expect })
}

fn ask(state: &mut State, id: RequestId, operation: Operation) -> Outcome {
    ask_at(state, state.time_ms(), id, operation)
}

fn ask_at(state: &mut State, time_ms: u64, id: RequestId, operation: Operation) -> Outcome {
    let batch = Batch { time_ms, requests: vec![Request { id, operation }] };
    batch.check().unwrap();
    state.apply(batch, &mut Vec::new()).remove(0)
}

fn once(state: &mut State, operation: Operation) -> Outcome {
    ask(state, RequestId::None, operation)
}

fn key(text: &str) -> RequestId {
    RequestId::Key { scope: String::new(), key: text.into() }
}

fn session(sequence: u64, settled: u64) -> RequestId {
    RequestId::Session { client: [7; 16], sequence, settled }
}

const fn done(version: u64) -> Outcome {
    Outcome::Done { version }
}

#[test]
fn a_write_happens_only_when_its_condition_holds() {
    let mut state = State::new();
    assert_eq!(
        once(&mut state, put("a", "1", Expect::Present)),
        Outcome::Mismatch { current: 0, index: 0 }
    );
    assert_eq!(
        once(&mut state, put("a", "1", Expect::Version(0))),
        Outcome::Mismatch { current: 0, index: 0 }
    );
    assert_eq!(once(&mut state, put("a", "1", Expect::Absent)), done(1));
    assert_eq!(
        once(&mut state, put("a", "2", Expect::Absent)),
        Outcome::Mismatch { current: 1, index: 0 }
    );
    assert_eq!(once(&mut state, put("a", "2", Expect::Version(1))), done(2));
    assert_eq!(
        once(&mut state, put("a", "3", Expect::Version(1))),
        Outcome::Mismatch { current: 2, index: 0 }
    );
    assert_eq!(state.fragment("a").unwrap().value, "2");
    assert_eq!(
        once(&mut state, delete("a", Expect::Version(1))),
        Outcome::Mismatch { current: 2, index: 0 }
    );
    assert_eq!(once(&mut state, delete("a", Expect::Version(2))), done(3));
    assert_eq!(once(&mut state, delete("a", Expect::Any)), done(0));
    assert_eq!(state.fragment_totals(), (0, 0));
}

fn placement(prefix: &str, replicas: u8, regions: &[&str]) -> Operation {
    let regions = regions.iter().map(|&region| region.to_owned()).collect();
    let placement = Some(Placement { replicas, regions });
    Operation::Placement { prefix: prefix.into(), placement }
}

#[test]
fn rules_of_the_placement_are_set_removed_and_bounded() {
    let mut state = State::new();
    let remove = |prefix: &str| Operation::Placement { prefix: prefix.into(), placement: None };
    assert_eq!(once(&mut state, placement("", 2, &[])), done(1));
    assert_eq!(once(&mut state, placement("team/a", 3, &["eu"])), done(2));
    assert_eq!(once(&mut state, remove("team")), done(0), "there is none of this name");
    assert_eq!(once(&mut state, placement("", 1, &[])), done(3));
    let found: Vec<_> = state.placements().map(|(prefix, p)| (prefix, p.replicas)).collect();
    assert_eq!(found, [("", 1), ("team/a", 3)]);
    assert_eq!(once(&mut state, remove("team/a")), done(4));
    assert!(state.placement("team/a").is_none());
    for n in 1..PLACEMENTS_MAX {
        assert!(once(&mut state, placement(&format!("p{n}"), 2, &[])).is_done());
    }
    assert_eq!(once(&mut state, placement("one/more", 2, &[])), Outcome::Full);
    assert!(once(&mut state, placement("p1", 4, &[])).is_done(), "what is there may change");
    let same = State::from_snapshot(&state.to_snapshot().unwrap()).unwrap();
    assert!(same.placements().eq(state.placements()));
}

#[test]
fn two_writes_of_one_entry_have_two_versions() {
    let mut state = State::new();
    let request = |value| Request { id: RequestId::None, operation: put("a", value, Expect::Any) };
    let batch = Batch { time_ms: 0, requests: vec![request("1"), request("2")] };
    assert_eq!(state.apply(batch, &mut Vec::new()), [done(1), done(2)]);
    assert_eq!(state.fragment("a").unwrap().version, 2);
}

#[test]
fn a_batch_is_done_whole_or_not_at_all() {
    let mut state = State::new();
    once(&mut state, put("b", "old", Expect::Any));
    let put = |key: &str, expect| Write::Put { key: key.into(), value: b"new".to_vec(), expect };
    let batch = |expect| Operation::Batch(vec![put("a", Expect::Any), put("b", expect)]);
    let refused = once(&mut state, batch(Expect::Absent));
    assert_eq!(refused, Outcome::Mismatch { current: 1, index: 1 });
    assert!(state.fragment("a").is_none());
    let mut updates = Vec::new();
    let request = Request { id: RequestId::None, operation: batch(Expect::Version(1)) };
    state.apply(Batch { time_ms: 0, requests: vec![request] }, &mut updates);
    assert_eq!(updates.len(), 1, "what belongs together is told together");
    assert_eq!(updates[0].changes.len(), 2);
    assert_eq!(state.fragment("a").unwrap().version, state.fragment("b").unwrap().version);
}

#[test]
fn a_repeated_request_is_answered_as_before_and_applied_once() {
    let mut state = State::new();
    let first = ask(&mut state, key("k"), put("a", "1", Expect::Absent));
    once(&mut state, put("a", "2", Expect::Any));
    assert_eq!(ask(&mut state, key("k"), put("a", "1", Expect::Absent)), first);
    assert_eq!(state.fragment("a").unwrap().value, "2");
    assert_eq!(ask(&mut state, key("k"), put("a", "x", Expect::Any)), Outcome::Reused);
    let other = RequestId::Key { scope: "other".into(), key: "k".into() };
    assert_eq!(ask(&mut state, other, put("a", "3", Expect::Any)), done(3));
    let refused = ask(&mut state, key("n"), put("a", "4", Expect::Absent));
    once(&mut state, delete("a", Expect::Any));
    assert_eq!(ask(&mut state, key("n"), put("a", "4", Expect::Absent)), refused, "also a refusal");
}

#[test]
fn a_key_is_forgotten_by_the_logs_time_alone() {
    let mut state = State::new();
    assert_eq!(ask_at(&mut state, 10, key("k"), put("a", "1", Expect::Any)), done(1));
    let late = 10 + KEY_TIME_MS - 1;
    assert_eq!(ask_at(&mut state, late, key("k"), put("a", "1", Expect::Any)), done(1));
    // A leader whose clock is behind does not bring it back.
    assert_eq!(ask_at(&mut state, 0, key("k"), put("a", "1", Expect::Any)), done(1));
    assert_eq!(ask_at(&mut state, late + 1, key("k"), put("a", "1", Expect::Any)), done(2));
}

#[test]
fn no_more_than_a_million_keys_are_kept_and_the_oldest_goes_first() {
    let mut state = State::new();
    let check = || Operation::Write(Write::Check { key: "a".into(), expect: Expect::Absent });
    let request = |n: usize| Request { id: key(&n.to_string()), operation: check() };
    for from in (0..KEYS_MAX + 5).step_by(1_000) {
        let requests = (from..(from + 1_000).min(KEYS_MAX + 5)).map(request).collect();
        state.apply(Batch { time_ms: 1, requests }, &mut Vec::new());
    }
    assert_eq!(state.applied().keys(), KEYS_MAX);
    once(&mut state, put("a", "1", Expect::Any));
    let mismatch = Outcome::Mismatch { current: 1, index: 0 };
    assert_eq!(ask(&mut state, key("4"), check()), mismatch, "it was forgotten");
    assert_eq!(ask(&mut state, key("7"), check()), done(0), "it was not");
}

#[test]
fn a_session_keeps_what_is_not_settled_and_applies_nothing_from_before() {
    let mut state = State::new();
    assert_eq!(ask(&mut state, session(5, 0), put("a", "5", Expect::Any)), done(1));
    assert_eq!(ask(&mut state, session(3, 0), put("a", "3", Expect::Any)), done(2));
    assert_eq!(ask(&mut state, session(5, 4), put("a", "5", Expect::Any)), done(1));
    assert_eq!(ask(&mut state, session(3, 0), put("a", "3", Expect::Any)), Outcome::Settled);
    assert_eq!(state.fragment("a").unwrap().value, "3");
}

#[test]
fn a_token_lets_in_one_key_and_only_in_its_time() {
    let mut state = State::new();
    let issue = |n: u8| Operation::IssueToken {
        secret_sha256: [n; 32],
        role: Role::Edge,
        region: "eu".into(),
        ttl_ms: 1_000,
    };
    let spend = |n: u8, key: u8| Operation::SpendToken {
        secret_sha256: [n; 32],
        key_sha256: [key; 32],
        name: "edge".into(),
    };
    once(&mut state, issue(1));
    once(&mut state, issue(2));
    let joined = Outcome::Joined { member: 1, role: Role::Edge, region: "eu".into() };
    assert_eq!(once(&mut state, spend(1, 9)), joined);
    assert_eq!(once(&mut state, spend(1, 9)), joined, "its answer may have been lost");
    assert_eq!(once(&mut state, spend(1, 8)), Outcome::NoToken);
    assert_eq!(once(&mut state, spend(3, 9)), Outcome::NoToken);
    assert_eq!(ask_at(&mut state, 1_000, RequestId::None, spend(2, 9)), Outcome::NoToken);
    once(&mut state, Operation::Revoke { member: 1 });
    assert!(state.members().get(1).unwrap().revoked);
    assert_eq!(once(&mut state, Operation::Revoke { member: 2 }), Outcome::NoMember);
}

#[test]
fn a_member_says_where_it_is_and_is_told_of_once() {
    let mut state = State::new();
    let issue = |n, role| Operation::IssueToken {
        secret_sha256: [n; 32],
        role,
        region: "eu".into(),
        ttl_ms: 1_000,
    };
    let spend =
        |n| Operation::SpendToken { secret_sha256: [n; 32], key_sha256: [n; 32], name: "m".into() };
    for (n, role) in [(1, Role::Edge), (2, Role::Node)] {
        once(&mut state, issue(n, role));
        once(&mut state, spend(n));
    }
    let keyed = |member, key: Option<u8>| Operation::Announce {
        member,
        address: "a:1".into(),
        token_key: key.map(|key| [key; 32]),
    };
    let announce = |member| keyed(member, None);
    let before = state.version();
    assert_eq!(once(&mut state, announce(1)), Outcome::Done { version: before + 1 });
    assert_eq!(state.members().get(1).unwrap().address, "a:1");
    assert_eq!(once(&mut state, announce(1)), Outcome::Done { version: 0 });
    let version = state.version();
    assert_eq!(once(&mut state, keyed(1, Some(7))), Outcome::Done { version: version + 1 });
    assert_eq!(state.members().get(1).unwrap().token_key, Some([7; 32]));
    // A node gives no tokens.
    assert_eq!(once(&mut state, keyed(2, Some(7))), Outcome::Done { version: version + 2 });
    assert_eq!(state.members().get(2).unwrap().token_key, None);
    assert_eq!(once(&mut state, announce(3)), Outcome::NoMember);
}

/// What an upstream said of tags, plainly: what was not said again for thirty days is gone.
#[derive(Default)]
struct Tags {
    known: BTreeMap<String, (u64, bool)>,
    time_ms: u64,
}

impl Tags {
    fn entry(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.max(time_ms);
        let (mut all, mut gone) = (self.known.iter().collect::<Vec<_>>(), Vec::new());
        all.sort_by_key(|(tag, (at, _))| (*at, *tag));
        for (tag, (at, mirrored)) in all {
            if *mirrored && at + TAG_TIME_MS <= self.time_ms && gone.len() < TAGS_EXPIRED_MAX {
                gone.push(tag.clone());
            }
        }
        self.known.retain(|tag, _| !gone.contains(tag));
    }
}

#[test]
fn tags_of_upstreams_go_when_nobody_confirms_them_and_pushed_ones_stay() {
    const DAY_MS: u64 = 24 * 3_600 * 1_000;
    let mut gone_in_all = 0;
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut state, mut model) = (State::new(), Tags::default());
        let mut history = History::new(0, HistoryLimits::default());
        let mut time_ms = 0;
        for step in 0..400 {
            let jump = if random.u8(0..40) == 0 { 20 * DAY_MS } else { DAY_MS / 20 };
            time_ms += random.u64(0..jump);
            // Also times that go back: the log's does not.
            let said_ms = time_ms - random.u64(0..=DAY_MS.min(time_ms));
            let tag = format!("t{}", random.u16(0..300));
            let record = match random.u8(0..8) {
                0 => None,
                kind => Some(TagRecord {
                    digest: outrider_artifact::Digest::sha256(&[random.u8(0..3)]).to_string(),
                    size_bytes: 1,
                    media_type: String::new(),
                    holders: vec![1],
                    upstream: (kind > 1).then(|| "ghcr.io".to_owned()),
                }),
            };
            model.entry(said_ms);
            match &record {
                Some(record) => {
                    let entry = (model.time_ms, record.upstream.is_some());
                    model.known.insert(tag.clone(), entry);
                }
                None => {
                    model.known.remove(&tag);
                }
            }
            let (repository, expect) = ("library/r".to_owned(), Expect::Any);
            let operation = Operation::Tag { repository, tag, expect, record };
            let request = Request { id: RequestId::None, operation };
            let mut updates = Vec::new();
            state.apply(Batch { time_ms: said_ms, requests: vec![request] }, &mut updates);
            if updates.len() == 2 {
                let gone = &updates[0].changes;
                assert!(gone.len() <= TAGS_EXPIRED_MAX);
                let is_removal = |change: &Change| {
                    matches!(change, Change::Tag { record: None, replaced: Some(_), .. })
                };
                assert!(gone.iter().all(is_removal), "{gone:?}");
                gone_in_all += gone.len();
            }
            updates.into_iter().for_each(|update| history.push(update));
            let found: BTreeMap<String, (u64, bool)> = state
                .tags()
                .map(|((_, tag), s)| (tag.clone(), (s.confirmed_ms, s.record.upstream.is_some())))
                .collect();
            assert_eq!(found, model.known, "seed {seed} step {step}");
            if step % 50 == 49 {
                state = State::from_snapshot(&state.to_snapshot().unwrap()).unwrap();
            }
        }
    }
    assert!(gone_in_all > 5_000, "{gone_in_all} tags went");
}

#[test]
fn what_was_invalidated_is_kept_in_snapshots() {
    let mut state = State::new();
    for n in 0..9_u8 {
        let digest = outrider_artifact::Digest::sha256(&[n % 5]).to_string();
        once(&mut state, Operation::Invalidate(Invalidation::Digest(digest)));
    }
    let again = State::from_snapshot(&state.to_snapshot().unwrap()).unwrap();
    for state in [&state, &again] {
        let versions: Vec<u64> = state.invalidated().since(5).map(|(version, _)| version).collect();
        assert_eq!((versions, state.invalidated().len()), (vec![6, 7, 8, 9], 5));
    }
}

#[test]
fn a_new_version_of_a_tag_says_what_it_replaces() {
    let mut state = State::new();
    let digest = |n: u8| outrider_artifact::Digest::sha256(&[n]).to_string();
    let set = |n: u8| Operation::Tag {
        repository: "library/alpine".into(),
        tag: "latest".into(),
        expect: Expect::Any,
        record: Some(TagRecord {
            digest: digest(n),
            size_bytes: 1,
            media_type: String::new(),
            holders: vec![1],
            upstream: None,
        }),
    };
    let mut replaced = Vec::new();
    for n in [1, 1, 2] {
        let mut updates = Vec::new();
        let request = Request { id: RequestId::None, operation: set(n) };
        state.apply(Batch { time_ms: 0, requests: vec![request] }, &mut updates);
        match &updates[0].changes[0] {
            Change::Tag { replaced: old, .. } => replaced.push(old.clone()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(replaced, [None, None, Some(digest(1))]);
}

#[test]
fn what_is_out_of_bounds_is_refused_by_name() {
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    for (operation, wanted) in [
        (put("", "1", Expect::Any), "the key has 0"),
        (put("a\nb", "1", Expect::Any), "the key has a control character"),
        (put("a", &long, Expect::Any), "the value has 1048577"),
        (Operation::Batch(Vec::new()), "the batch's writes has 0"),
        (Operation::Invalidate(Invalidation::Digest("x".into())), "a digest is written"),
        (
            Operation::Weights(Weights { depth: f64::NAN, ..Weights::default() }),
            "the weight depth is not a number",
        ),
        (
            Operation::Customer {
                name: "c".into(),
                customer: Some(Customer {
                    class: 1.0,
                    guaranteed_bytes: 0,
                    stored_bytes_max: 0,
                    requests_per_second_max: 0,
                    content_ttl_s: 30 * 24 * 3_600 + 1,
                }),
            },
            "the content's time in s",
        ),
        (placement("team", 0, &[]), "the replicas has 0"),
        (placement("team", 6, &[]), "the replicas has 6"),
        (placement("team", 2, &["eu", "us", "eu"]), "the region \"eu\" is named twice"),
        (placement("team", 2, &[""]), "a region has 0"),
        (placement("Team/", 2, &[]), "repository name"),
    ] {
        let error = Request { id: RequestId::None, operation }.check().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let twice = Operation::Batch(vec![
        Write::Delete { key: "a".into(), expect: Expect::Any },
        Write::Check { key: "a".into(), expect: Expect::Any },
    ]);
    let error = Request { id: RequestId::None, operation: twice }.check().unwrap_err();
    assert_eq!(error.to_string(), "the batch writes the key \"a\" twice");
}

#[test]
fn a_record_of_another_version_or_kind_or_with_a_wrong_bit_is_refused() {
    let record = Workload::new(3).batch().to_record().unwrap();
    let with = |at: usize, to: u8| {
        let mut changed = record.clone();
        changed[at] = to;
        Batch::from_record(&changed).unwrap_err()
    };
    assert_eq!(with(4, 9), RecordError::Version { found: 9, wanted: 4 });
    assert_eq!(with(6, 2), RecordError::Kind { found: 2, wanted: 1 });
    assert_eq!(with(0, 0), RecordError::Magic);
    assert!(matches!(with(8, record[8] ^ 1), RecordError::Length { .. }));
    assert_eq!(with(40, record[40] ^ 1), RecordError::Checksum);
    assert!(matches!(State::from_snapshot(&record), Err(RecordError::Kind { .. })));
}

#[test]
fn a_state_out_of_a_snapshot_goes_on_as_if_nothing_had_happened() {
    for seed in 0..200 {
        let mut workload = Workload::new(seed);
        let (mut state, mut other) = (State::new(), State::new());
        let mut history = History::new(0, HistoryLimits::default());
        for step in 0..60 {
            let batch = workload.batch();
            let mut updates = Vec::new();
            // One of them reads every entry from its bytes, as a node does.
            let copy = Batch::from_record(&batch.to_record().unwrap()).unwrap();
            let outcomes = state.apply(batch, &mut updates);
            assert_eq!(other.apply(copy, &mut Vec::new()), outcomes, "seed {seed} step {step}");
            updates.into_iter().for_each(|update| history.push(update));
            assert_eq!(history.version(), state.version(), "an update for each version");
            if step % 7 == 3 {
                let bytes = state.to_snapshot().unwrap();
                assert_eq!(bytes, other.to_snapshot().unwrap(), "seed {seed} step {step}");
                other = State::from_snapshot(&bytes).unwrap();
                assert_eq!(other.fragment_totals(), state.fragment_totals());
            }
        }
        assert!(state.version() > 0);
    }
}

/// A second, plain implementation of fragments.
#[derive(Default)]
struct Model {
    fragments: BTreeMap<String, (u64, Vec<u8>)>,
    version: u64,
}

impl Model {
    fn write(&mut self, writes: &[Write]) -> Outcome {
        let version_of = |fragments: &BTreeMap<String, (u64, Vec<u8>)>, key: &str| {
            fragments.get(key).map_or(0, |(version, _)| *version)
        };
        for (index, write) in writes.iter().enumerate() {
            let (key, expect) = write.condition();
            let current = version_of(&self.fragments, key);
            let right = match expect {
                Expect::Any => true,
                Expect::Absent => current == 0,
                Expect::Present => current > 0,
                Expect::Version(wanted) => current > 0 && current == wanted,
            };
            if !right {
                return Outcome::Mismatch { current, index: u32::try_from(index).unwrap() };
            }
        }
        let before = self.fragments.clone();
        let mut wrote = false;
        for write in writes {
            match write {
                Write::Put { key, value, .. } => {
                    self.fragments.insert(key.clone(), (self.version + 1, value.clone()));
                    wrote = true;
                }
                Write::Delete { key, .. } => {
                    self.fragments.remove(key);
                }
                Write::Check { .. } => {}
            }
        }
        if !wrote && before == self.fragments {
            return done(0);
        }
        self.version += 1;
        done(self.version)
    }
}

fn any_write() -> impl Strategy<Value = Write> {
    let expect = prop_oneof![
        4 => Just(Expect::Any),
        1 => Just(Expect::Absent),
        1 => Just(Expect::Present),
        2 => (0u64..40).prop_map(Expect::Version),
    ];
    let value = proptest::collection::vec(any::<u8>(), 0..8);
    ("[ab][0-3]", expect, value, 0u8..6).prop_map(|(key, expect, value, kind)| match kind {
        0 => Write::Check { key, expect },
        1 | 2 => Write::Delete { key, expect },
        _ => Write::Put { key, value, expect },
    })
}

proptest! {
    #[test]
    fn fragments_do_what_a_plain_map_does(
        batches in proptest::collection::vec(proptest::collection::vec(any_write(), 1..4), 1..60)
    ) {
        let (mut state, mut model) = (State::new(), Model::default());
        for mut writes in batches {
            let mut seen = std::collections::BTreeSet::new();
            writes.retain(|write| seen.insert(write.condition().0.to_owned()));
            let wanted = model.write(&writes);
            prop_assert_eq!(once(&mut state, Operation::Batch(writes)), wanted);
        }
        let found: BTreeMap<String, (u64, Vec<u8>)> = state
            .fragments("")
            .map(|(key, f)| (key.to_owned(), (f.version, f.value.to_vec())))
            .collect();
        let bytes: usize = found.iter().map(|(key, (_, value))| key.len() + value.len()).sum();
        prop_assert_eq!(state.fragment_totals(), (found.len(), bytes as u64));
        prop_assert_eq!(found, model.fragments);
    }

    #[test]
    fn damaged_records_are_errors_and_never_panics(at in any::<usize>(), to in any::<u8>(), cut in any::<usize>(), seed in 0u64..50) {
        let mut workload = Workload::new(seed);
        let mut state = State::new();
        for _ in 0..10 {
            state.apply(workload.batch(), &mut Vec::new());
        }
        for mut bytes in [state.to_snapshot().unwrap(), workload.batch().to_record().unwrap()] {
            let at = at % bytes.len();
            let same = bytes[at] == to;
            bytes[at] = to;
            prop_assert!(same || (State::from_snapshot(&bytes).is_err() && Batch::from_record(&bytes).is_err()));
            bytes.truncate(cut % bytes.len());
            prop_assert!(State::from_snapshot(&bytes).is_err() && Batch::from_record(&bytes).is_err());
        }
    }

    #[test]
    fn hostile_archives_behind_a_right_checksum_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
        for kind in [1, 2] {
            let mut record = b"ORST\x01\0".to_vec();
            record.extend_from_slice(&[kind, 0]);
            record.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            let sum = xxh3_64_with_seed(&bytes, xxh3_64(&record));
            record.extend_from_slice(&sum.to_le_bytes());
            record.resize(32, 0);
            record.extend_from_slice(&bytes);
            let _ = State::from_snapshot(&record);
            let _ = Batch::from_record(&record);
        }
    }
}

#[test]
fn who_is_too_far_behind_is_told_so_and_others_miss_nothing() {
    let limits = HistoryLimits { updates_max: 10, bytes_max: 1 << 20 };
    let mut history = History::new(5, limits);
    for version in 6..=25 {
        history.push(Arc::new(Update { version, changes: Vec::new() }));
    }
    assert_eq!(history.since(14).err().map(|e| e.floor), Some(15));
    let versions = |from| history.since(from).unwrap().map(|u| u.version).collect::<Vec<_>>();
    assert_eq!(versions(15), (16..=25).collect::<Vec<_>>());
    assert_eq!(versions(24), [25]);
    assert!(versions(25).is_empty() && versions(99).is_empty());
}
