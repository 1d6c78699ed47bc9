//! Tags of a fleet: two edges with databases of their own, and a control plane that is one map.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// What the control plane has, and who is told of it.
#[derive(Default)]
struct Plane {
    tags: Mutex<BTreeMap<(String, String), (u64, FleetRecord)>>,
    edges: Mutex<Vec<Arc<Fleet>>>,
    version: AtomicU64,
    /// So many proposals find that somebody was faster.
    races: AtomicU64,
    /// Nobody answers.
    gone: AtomicU64,
}

struct ToPlane(Arc<Plane>);

impl Proposer for ToPlane {
    fn propose(&self, proposal: Proposal, done: Proposed) {
        if self.0.gone.load(Ordering::Relaxed) > 0 {
            return done(Err(ProposalError::Unavailable("nobody is there".into())));
        }
        if self.0.races.load(Ordering::Relaxed) > 0 {
            self.0.races.fetch_sub(1, Ordering::Relaxed);
            let other = record("theirs", 9);
            self.0.set(&proposal.repository, &proposal.tag, Some(other));
        }
        let key = (proposal.repository.clone(), proposal.tag.clone());
        let current = self.0.tags.lock().unwrap().get(&key).map_or(0, |(version, _)| *version);
        if current != proposal.expected {
            return done(Err(ProposalError::Mismatch(current)));
        }
        if current != 0 || proposal.record.is_some() {
            self.0.set(&proposal.repository, &proposal.tag, proposal.record);
        }
        done(Ok(()));
    }
}

impl Plane {
    fn set(&self, repository: &str, tag: &str, record: Option<FleetRecord>) {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let key = (repository.to_owned(), tag.to_owned());
        match record.clone() {
            Some(record) => drop(self.tags.lock().unwrap().insert(key, (version, record))),
            None => drop(self.tags.lock().unwrap().remove(&key)),
        }
        for edge in self.edges.lock().unwrap().iter() {
            edge.set_tag(repository, tag, version, record.clone());
        }
    }

    fn record(&self, repository: &str, tag: &str) -> Option<FleetRecord> {
        let key = (repository.to_owned(), tag.to_owned());
        self.tags.lock().unwrap().get(&key).map(|(_, record)| record.clone())
    }
}

fn record(content: &str, holder: u64) -> FleetRecord {
    FleetRecord {
        digest: digest(content).to_string(),
        size_bytes: content.len() as u64,
        media_type: "m".into(),
        holders: vec![holder],
        upstream: None,
        confirmed_ms: 0,
    }
}

/// One edge.
struct Edge {
    names: FleetNames,
    fleet: Arc<Fleet>,
    one: NamesBox,
}

fn edge(plane: &Arc<Plane>, number: u64) -> Edge {
    let one = NamesBox::new();
    let fleet = Fleet::new(number, Box::new(ToPlane(plane.clone())));
    plane.edges.lock().unwrap().push(fleet.clone());
    Edge { names: FleetNames::new(one.client.blocking(), Some(fleet.clone())), fleet, one }
}

impl Edge {
    fn push(&self, name: &str, tags: &[&str], content: &str) -> Result<(), NamesError> {
        block_on(self.names.put_manifest(manifest(name, &[], content, 1)))?;
        block_on(self.names.share_tags(SharedTags {
            repository: repository(name),
            tags: tags.iter().map(|text| tag(text)).collect(),
            digest: digest(content),
            size_bytes: content.len() as u64,
            media_type: "m".into(),
            others: Vec::new(),
        }))
    }

    fn tag(&self, name: &str, text: &str) -> Option<Arc<TagRecord>> {
        block_on(self.names.tag(&repository(name), &tag(text))).unwrap()
    }

    fn digest(&self, name: &str, text: &str) -> Option<Digest> {
        self.tag(name, text).map(|record| record.digest)
    }

    fn state(&self, name: &str) -> Repository {
        block_on(self.names.repository(&repository(name))).unwrap()
    }

    fn tags(&self, name: &str, last: Option<&str>, max: usize) -> (Vec<String>, bool) {
        let page = block_on(self.names.tags(&repository(name), last, max)).unwrap();
        (page.tags, page.more)
    }

    fn see(&self, name: &str, text: &str, content: &str) {
        let seen = MirroredTag { checked_unix_ms: 5, ..mirrored(name, text, content, 5) };
        block_on(self.names.remember_mirrored_tag(seen)).unwrap();
    }
}

#[test]
fn a_tag_that_one_edge_sets_is_the_fleets_and_its_content_the_edges_own() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    assert!(a.names.tags_are_shared());
    assert_eq!(b.state("app"), Repository::Unknown);
    assert_eq!(b.digest("app", "v1"), None);
    a.push("app", &["v1"], "one").unwrap();
    for edge in [&a, &b] {
        assert_eq!(edge.state("app"), Repository::Hosted);
        assert_eq!(edge.digest("app", "v1"), Some(digest("one")));
        assert_eq!(edge.tags("app", None, 9), (vec!["v1".into()], false));
        let all = block_on(edge.names.repositories(None, 9)).unwrap();
        assert_eq!(all, ["app"]);
    }
    assert_eq!(b.one.link("app", &digest("one")), Link::default());
    assert!(a.one.link("app", &digest("one")).manifest.is_some());
    assert_eq!(a.one.tag("app", "v1"), None, "the database has no tags of the fleet");

    // Who holds it can only be asked where it is.
    let holders = |edge: &Edge| edge.names.holders(&repository("app")).to_vec();
    assert!(holders(&b).is_empty());
    b.fleet.set_address(1, Some("a:1".into()));
    assert_eq!(holders(&b), [1]);
    assert!(holders(&a).is_empty(), "nobody asks itself");
    b.push("app", &["v1"], "one").unwrap();
    assert_eq!(plane.record("app", "v1").unwrap().holders, [2, 1], "both hold it");
    a.push("app", &["v1"], "two").unwrap();
    assert_eq!(plane.record("app", "v1").unwrap().holders, [1]);
    assert_eq!(b.digest("app", "v1"), Some(digest("two")), "what was answered before is not");
    a.push("app", &["v1"], "two").unwrap();
    assert_eq!(plane.record("app", "v1").unwrap().holders, [1]);
    // One that has not heard of the last version yet does not believe that nothing is to be done.
    let late = Fleet::new(3, Box::new(ToPlane(plane.clone())));
    let late = Edge {
        names: FleetNames::new(b.one.client.blocking(), Some(late.clone())),
        fleet: late,
        one: NamesBox::new(),
    };
    late.fleet.set_tag("app", "v1", 1, Some(record("one", 3)));
    late.push("app", &["v1"], "one").unwrap();
    assert_eq!(plane.record("app", "v1").unwrap().digest, digest("one").to_string());
    a.push("app", &["v4"], "four").unwrap();
    assert!(block_on(late.names.delete_tag(&repository("app"), &tag("v4"))).unwrap());
    assert_eq!(plane.record("app", "v4"), None);
}

#[test]
fn who_pushes_wins_over_who_was_faster_and_is_told_when_nobody_answers() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    plane.races.store(5, Ordering::Relaxed);
    a.push("app", &["v1"], "mine").unwrap();
    assert_eq!(b.digest("app", "v1"), Some(digest("mine")));
    plane.races.store(1000, Ordering::Relaxed);
    let error = a.push("app", &["v1"], "again").unwrap_err();
    assert!(matches!(error, NamesError::Fleet(_)), "{error}");
    plane.races.store(0, Ordering::Relaxed);
    plane.gone.store(1, Ordering::Relaxed);
    let error = a.push("app", &["v2"], "more").unwrap_err();
    assert!(matches!(error, NamesError::Fleet(_)), "{error}");
    assert_eq!(a.digest("app", "v2"), None);
    assert!(a.one.link("app", &digest("more")).manifest.is_some(), "the manifest is here");
    assert_eq!(b.digest("app", "v1"), Some(digest("theirs")), "what is known is answered");
}

#[test]
fn what_is_deleted_is_gone_everywhere_and_what_was_here_before_does_not_come_back() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    // Before it was in the fleet.
    a.one.put(manifest("app", &["old", "v1"], "zero", 1)).unwrap();
    assert_eq!(a.digest("app", "old"), Some(digest("zero")));
    a.push("app", &["v1", "v2", "v3"], "one").unwrap();
    assert_eq!(a.tags("app", None, 9).0, ["old", "v1", "v2", "v3"]);
    assert_eq!(a.tags("app", None, 2), (vec!["old".into(), "v1".into()], true));
    assert_eq!(a.tags("app", Some("v1"), 2), (vec!["v2".into(), "v3".into()], false));
    assert_eq!(b.tags("app", Some("v1"), 1), (vec!["v2".into()], true));
    let delete =
        |edge: &Edge, text| block_on(edge.names.delete_tag(&repository("app"), &tag(text)));
    assert!(delete(&b, "v1").unwrap());
    assert!(!delete(&b, "v1").unwrap());
    assert_eq!((a.digest("app", "v1"), b.digest("app", "v1")), (None, None));
    let removed = block_on(b.names.delete_manifest(&repository("app"), &digest("one"))).unwrap();
    assert_eq!(removed, Some(Removed { unreferenced: None, tags: 2 }));
    assert_eq!(a.tags("app", None, 9).0, ["old"]);
    assert!(a.one.link("app", &digest("one")).manifest.is_some(), "the content is the edge's own");
    let removed = block_on(b.names.delete_manifest(&repository("app"), &digest("one"))).unwrap();
    assert_eq!(removed, None);
    assert!(delete(&a, "old").unwrap());
    plane.gone.store(1, Ordering::Relaxed);
    a.push("app", &[], "two").unwrap();
    plane.set("app", "v4", Some(record("four", 1)));
    assert!(matches!(delete(&a, "v4").unwrap_err(), NamesError::Fleet(_)));
    assert_eq!(a.digest("app", "v4"), Some(digest("four")));
}

#[test]
fn what_an_upstream_says_is_told_to_the_others_who_ask_it_themselves() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    let overtaken = |edge: &Edge| match &edge.tag("up", "v1").unwrap().origin {
        TagOrigin::Mirrored { overtaken, .. } => *overtaken,
        other => panic!("{other:?}"),
    };
    a.see("up", "v1", "one");
    assert_eq!(plane.record("up", "v1").unwrap().upstream.as_deref(), Some("docker.io"));
    assert!(matches!(b.state("up"), Repository::Mirrored { .. }));
    assert_eq!(b.digest("up", "v1"), None, "it has not asked yet");
    let denied = b.push("up", &["v1"], "mine").unwrap_err();
    assert!(matches!(denied, NamesError::Mirrored { .. }), "{denied}");
    b.see("up", "v1", "one");
    assert!(!overtaken(&a) && !overtaken(&b));
    a.see("up", "v1", "two");
    assert!(!overtaken(&a) && overtaken(&b));
    assert_eq!(b.digest("up", "v1"), Some(digest("one")), "there is nothing better here yet");
    // It asked, and the upstream told it what it knew: each word of the fleet is checked once.
    assert!(b.one.touch("up", "v1", "one", 6));
    assert!(overtaken(&b));
    let (up, v1, one) = (repository("up"), tag("v1"), digest("one"));
    assert!(block_on(b.names.touch_mirrored_tag(&up, &v1, &one, 7)).unwrap());
    assert!(!overtaken(&b));
    a.see("up", "v1", "three");
    assert!(overtaken(&b));
    plane.races.store(1, Ordering::Relaxed);
    b.see("up", "v1", "four");
    assert_eq!(plane.record("up", "v1").unwrap().digest, digest("theirs").to_string());
    plane.set("up", "v1", Some(FleetRecord { upstream: Some("u".into()), ..record("five", 1) }));
    let forgotten = block_on(b.names.forget_mirrored_tag(&repository("up"), &tag("v1")));
    assert!(forgotten.unwrap());
    assert_eq!(plane.record("up", "v1"), None);
    // Hosted by one, and never asked of an upstream by another.
    a.push("own", &["v1"], "one").unwrap();
    let refused = block_on(b.names.remember_mirrored_tag(mirrored("own", "v1", "two", 5)));
    assert!(matches!(refused.unwrap_err(), NamesError::Hosted { .. }));
}

#[test]
fn what_an_upstream_says_again_is_confirmed_when_it_is_due_and_once() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    a.see("up", "v1", "one");
    b.see("up", "v1", "one");
    let version = || plane.version.load(Ordering::Relaxed);
    let touch = |edge: &Edge| {
        let (up, v1, one) = (repository("up"), tag("v1"), digest("one"));
        assert!(block_on(edge.names.touch_mirrored_tag(&up, &v1, &one, 9)).unwrap());
    };
    // It was written at the fleet's time 0, and nobody knows what time it is.
    touch(&a);
    assert_eq!(version(), 1);
    [&a, &b].iter().for_each(|edge| edge.fleet.set_confirm_before(1));
    plane.gone.store(1, Ordering::Relaxed);
    touch(&a);
    plane.gone.store(0, Ordering::Relaxed);
    assert_eq!(version(), 1, "nobody was there");
    let at = |confirmed_ms| {
        let upstream = Some("u".to_owned());
        plane.set("up", "v1", Some(FleetRecord { confirmed_ms, upstream, ..record("one", 1) }));
    };
    touch(&a);
    assert_eq!(version(), 2, "it is tried again");
    assert_eq!(plane.record("up", "v1").unwrap().holders, [1]);
    at(5);
    touch(&a);
    touch(&b);
    a.see("up", "v1", "one");
    assert_eq!(version(), 3, "it was written a short while ago");
    b.fleet.set_confirm_before(6);
    a.fleet.set_confirm_before(6);
    b.see("up", "v1", "one");
    assert_eq!(version(), 4);
    // Of what was pushed nothing has to be said again, nor of what the upstream does not say any more.
    at(5);
    plane.set("up", "v1", Some(record("one", 1)));
    touch(&a);
    plane.set("up", "v1", Some(FleetRecord { upstream: Some("u".into()), ..record("two", 1) }));
    touch(&a);
    assert_eq!(version(), 7);
}

#[test]
fn tags_of_the_time_before_are_handed_over_and_the_fleets_own_win() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    b.push("app", &["v2"], "theirs").unwrap();
    a.one.put(manifest("app", &["v1", "v2", "v3"], "mine", 1)).unwrap();
    a.one.put(manifest("other/app", &["v1"], "mine", 1)).unwrap();
    a.one.remember(mirrored("up", "v1", "one", 5)).unwrap();
    plane.gone.store(1, Ordering::Relaxed);
    block_on(a.names.hand_over()).unwrap_err();
    assert_eq!(a.digest("app", "v1"), Some(digest("mine")));
    plane.gone.store(0, Ordering::Relaxed);
    let done = block_on(a.names.hand_over()).unwrap();
    assert_eq!(done, HandedOver { tags: 3, hidden: 1 });
    assert_eq!(b.tags("app", None, 9).0, ["v1", "v2", "v3"]);
    for (text, content) in [("v1", "mine"), ("v2", "theirs"), ("v3", "mine")] {
        assert_eq!(b.digest("app", text), Some(digest(content)), "{text}");
        assert_eq!(a.digest("app", text), Some(digest(content)), "{text}");
    }
    assert_eq!(plane.record("other/app", "v1").unwrap().holders, [1]);
    assert_eq!(plane.record("up", "v1"), None, "what an upstream said is not this edge's to say");
    let again = block_on(a.names.hand_over()).unwrap();
    assert_eq!(again, HandedOver { tags: 0, hidden: 1 });
}

#[test]
fn all_of_it_is_replaced_at_once() {
    let plane = Arc::new(Plane::default());
    let (a, b) = (edge(&plane, 1), edge(&plane, 2));
    a.push("gone", &["v1"], "one").unwrap();
    a.push("stays", &["v1"], "one").unwrap();
    assert_eq!(b.digest("gone", "v1"), Some(digest("one")));
    let tags = [("stays", "two"), ("new", "three")]
        .map(|(name, content)| (name.to_owned(), "v1".to_owned(), 7, record(content, 1)));
    b.fleet.replace(tags.into_iter(), [(1, "a:1".to_owned())].into_iter());
    assert_eq!((b.state("gone"), b.digest("gone", "v1")), (Repository::Unknown, None));
    assert_eq!(b.digest("stays", "v1"), Some(digest("two")));
    assert_eq!(b.digest("new", "v1"), Some(digest("three")));
    assert_eq!(outrider_uplink::PeerBook::address(&*b.fleet, 1).as_deref(), Some("a:1"));
    b.fleet.set_address(1, None);
    assert_eq!(outrider_uplink::PeerBook::address(&*b.fleet, 1), None);
    let damaged = FleetRecord { digest: "no digest".into(), ..record("x", 1) };
    b.fleet.set_tag("stays", "v1", 8, Some(damaged));
    assert_eq!(b.digest("stays", "v1"), None);
}

#[test]
fn what_is_invalidated_is_asked_again_once() {
    let plane = Arc::new(Plane::default());
    let a = edge(&plane, 1);
    let fleet = plane.edges.lock().unwrap()[0].clone();
    let again = |name: &str, tag: &str| match &a.tag(name, tag).unwrap().origin {
        TagOrigin::Mirrored { overtaken, .. } => *overtaken,
        other => panic!("{other:?}"),
    };
    for (name, tag) in [("up", "v1"), ("up", "v2"), ("other", "v1")] {
        a.see(name, tag, "one");
        assert!(a.one.touch(name, tag, "one", 100));
    }
    let all = || [again("up", "v1"), again("up", "v2"), again("other", "v1")];
    assert_eq!(all(), [false; 3]);
    fleet.ask_again(AskAgain::Tag("up", "v1"));
    assert_eq!(all(), [true, false, false]);
    fleet.ask_again(AskAgain::Repository("up"));
    assert_eq!(all(), [true, true, false]);
    // Also when the clock was set back meanwhile.
    let (name, text, content) = (repository("up"), tag("v2"), digest("one"));
    assert!(block_on(a.names.touch_mirrored_tag(&name, &text, &content, 50)).unwrap());
    assert_eq!(all(), [true, false, false], "once is enough");
    fleet.ask_again(AskAgain::All);
    assert_eq!(all(), [true; 3]);
    fleet.replace(std::iter::empty(), std::iter::empty());
    assert_eq!(all(), [true; 3], "that outlives a snapshot");
}

#[test]
fn tags_are_gone_through_in_pages() {
    let plane = Arc::new(Plane::default());
    let _ = edge(&plane, 1);
    let fleet = plane.edges.lock().unwrap()[0].clone();
    for n in 0..25 {
        plane.set(&format!("r{}", n % 4), &format!("v{n}"), Some(record(&n.to_string(), 1)));
    }
    let (mut found, mut last) = (Vec::new(), None);
    loop {
        let (digests, next) = fleet.digests_after(last.as_ref(), 7);
        assert!(digests.len() <= 7);
        found.extend(digests);
        match next {
            Some(next) => last = Some(next),
            None => break,
        }
    }
    found.sort_unstable();
    let mut wanted: Vec<_> = (0..25).map(|n: u8| digest(&n.to_string())).collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}
