//! Nodes, edges and broken connections in one thread, decided by a seed: whatever happens, what an edge has at a
//! version is exactly what the state was at that version, as far as it uses it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeSet, VecDeque};

use outrider_push::message::MemberRole;
use outrider_push::replica::{Consequence, Member, Tag};
use outrider_push::sender::{Known, MARK_INTERVAL_MS};
use outrider_push::{FromEdge, Interest, Receiver, Replica, Sender, SenderError, ToEdge};
use outrider_state::change::HistoryLimits;
use outrider_state::members::Role;
use outrider_state::request::Invalidation;
use outrider_state::workload::Workload;
use outrider_state::{Batch, Change, History, State};

const SEEDS: u64 = 1_000;
const CLUSTER: [u8; 16] = [7; 16];

/// One node: it applies the log at its own pace.
struct Node {
    state: State,
    history: History,
    applied: usize,
}

impl Node {
    fn new(limits: HistoryLimits, invalidated_max: usize) -> Self {
        let mut state = State::new();
        state.keep_invalidated(invalidated_max);
        Self { state, history: History::new(0, limits), applied: 0 }
    }

    fn apply(&mut self, log: &[Batch]) {
        if let Some(batch) = log.get(self.applied) {
            let mut updates = Vec::new();
            self.state.apply(batch.clone(), &mut updates);
            updates.into_iter().for_each(|update| self.history.push(update));
            self.applied += 1;
        }
    }

    fn known(&self) -> Known<'_> {
        let time_ms = self.state.time_ms() + 1;
        Known { cluster: CLUSTER, state: &self.state, history: &self.history, time_ms }
    }
}

/// A connection: what is on the wire comes in order, or is lost with the connection.
struct Link {
    node: usize,
    sender: Sender,
    receiver: Receiver,
    to_edge: VecDeque<Vec<u8>>,
    to_node: VecDeque<Vec<u8>>,
}

struct Edge {
    interest: Interest,
    replica: Replica,
    /// What is on its disk: where it begins after a crash.
    stored: Replica,
    link: Option<Link>,
}

/// What the state was at each version, as an edge sees it.
struct Reference {
    /// By version: index 0 is the empty state.
    states: Vec<State>,
    /// Digests, with the versions that invalidated them, in order.
    invalidated: Vec<(u64, String)>,
}

impl Reference {
    fn of(log: &[Batch]) -> Self {
        let mut states = vec![State::new()];
        let mut invalidated = Vec::new();
        let mut state = State::new();
        let mut apply = |batch| {
            let mut updates = Vec::new();
            state.apply(batch, &mut updates);
            for update in updates {
                assert_eq!(update.version, states.len() as u64, "one at a time");
                states.push(state.clone());
                for change in &update.changes {
                    if let Change::Invalidated(Invalidation::Digest(digest)) = change {
                        invalidated.push((update.version, digest.clone()));
                    }
                }
            }
        };
        for batch in log {
            // What an entry's time changes, and then each request, have a version of their own.
            let Batch { time_ms, requests } = batch;
            apply(Batch { time_ms: *time_ms, requests: Vec::new() });
            for request in requests {
                apply(Batch { time_ms: *time_ms, requests: vec![request.clone()] });
            }
        }
        Self { states, invalidated }
    }

    /// What the caches have to forget between the two versions.
    fn invalidated(&self, after: u64, through: u64) -> BTreeSet<&str> {
        let between = self.invalidated.iter().filter(|(at, _)| (after + 1..=through).contains(at));
        between.map(|(_, digest)| digest.as_str()).collect()
    }

    fn at(&self, version: u64, interest: &Interest) -> Replica {
        let state = &self.states[usize::try_from(version).unwrap()];
        let used = |key: &str| interest.prefixes.iter().any(|prefix| key.starts_with(prefix));
        let fragments = state.fragments("").filter(|(key, _)| used(key));
        let role = |role| match role {
            Role::Node => MemberRole::Node,
            Role::Edge => MemberRole::Edge,
        };
        let members = state.members().iter();
        Replica {
            cluster: CLUSTER,
            position: version,
            invalidated: version,
            fragments: fragments
                .map(|(key, f)| (key.to_owned(), (f.version, f.value.clone())))
                .collect(),
            tags: state
                .tags()
                .map(|(key, tag)| {
                    let record = tag.record.clone();
                    let (version, confirmed_ms) = (tag.version, tag.confirmed_ms);
                    (key.clone(), Tag { version, record, confirmed_ms })
                })
                .collect(),
            customers: state.customers().map(|(n, c)| (n.to_owned(), c.clone())).collect(),
            weights: state.weights(),
            placements: state.placements().map(|(p, rule)| (p.to_owned(), rule.clone())).collect(),
            members: members
                .map(|(n, m)| {
                    let (role, region, revoked) = (role(m.role), m.region.clone(), m.revoked);
                    (
                        n,
                        Member {
                            role,
                            region,
                            revoked,
                            address: m.address.clone(),
                            token_key: m.token_key,
                        },
                    )
                })
                .collect(),
        }
    }
}

#[derive(Default)]
struct Seen {
    updates: u64,
    snapshots: u64,
    cuts: u64,
    crashes: u64,
    ahead: u64,
    invalidated: u64,
    /// Digests that were told of with a snapshot.
    made_up: u64,
    forgotten: u64,
    changed: u64,
}

fn interest(random: &mut fastrand::Rng) -> Interest {
    let all = ["", "key/", "key/1", "batch/", "nothing/"];
    let prefixes = all.iter().filter(|_| random.u8(0..3) == 0).map(|&p| p.to_owned()).collect();
    Interest { prefixes }
}

fn connect(edge: &mut Edge, node: usize, nodes: &[Node], now_ms: u64) {
    let (receiver, hello) = Receiver::new(&edge.replica, edge.interest.clone(), now_ms);
    let record = hello.to_record().unwrap();
    let hello = FromEdge::from_record(&record).unwrap();
    let sender = Sender::from_hello(hello, now_ms, &nodes[node].known()).unwrap();
    let (to_edge, to_node) = Default::default();
    edge.link = Some(Link { node, sender, receiver, to_edge, to_node });
}

/// Moves one message, or lets one end say something. False when the connection ends.
fn step(
    edge: &mut Edge,
    nodes: &[Node],
    now_ms: u64,
    random: &mut fastrand::Rng,
    reference: &Reference,
    seen: &mut Seen,
) -> bool {
    let Some(link) = &mut edge.link else { return true };
    match random.u8(0..4) {
        0 | 1 => match link.sender.poll(now_ms, &nodes[link.node].known()) {
            Ok(Some(message)) => link.to_edge.push_back(message.to_record().unwrap()),
            Ok(None) => {}
            Err(SenderError::Ahead { .. }) => return false,
            Err(error) => panic!("the edge is honest: {error}"),
        },
        2 => {
            let Some(record) = link.to_edge.pop_front() else { return true };
            let message = ToEdge::from_record(&record).unwrap();
            match &message {
                ToEdge::Update { .. } => seen.updates += 1,
                ToEdge::SnapshotEnd { .. } => seen.snapshots += 1,
                _ => {}
            }
            let (before, purged) = (edge.replica.position, edge.replica.invalidated);
            let is_snapshot = matches!(message, ToEdge::SnapshotEnd { .. });
            let consequences = link.receiver.receive(message, now_ms, &mut edge.replica);
            let consequences = consequences.expect("the node is honest");
            assert!(edge.replica.position >= before, "an edge never goes back");
            // Nothing is missing and nothing was applied twice: it is what it was.
            let now = &edge.replica;
            if now.cluster == CLUSTER && now.position != before {
                let mut wanted = reference.at(now.position, &edge.interest);
                wanted.invalidated = wanted.invalidated.max(purged);
                assert_eq!(*now, wanted);
            }
            // Each digest that was invalidated is forgotten once, whatever the edge has missed meanwhile.
            if consequences.contains(&Consequence::Forgotten) {
                let forgotten = nodes.iter().map(|node| node.state.invalidated().forgotten());
                assert!(forgotten.max() > Some(purged), "nothing that it missed is forgotten");
                seen.forgotten += 1;
            } else {
                let found: Vec<&str> = consequences
                    .iter()
                    .filter_map(|consequence| match consequence {
                        Consequence::Invalidated(Invalidation::Digest(digest)) => {
                            Some(digest.as_str())
                        }
                        _ => None,
                    })
                    .collect();
                let wanted = reference.invalidated(purged, now.invalidated);
                assert_eq!(found.len(), wanted.len(), "each of them once");
                assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), wanted);
                seen.invalidated += found.len() as u64;
                seen.made_up += if is_snapshot { found.len() as u64 } else { 0 };
            }
            if random.u8(0..6) == 0 {
                edge.stored = edge.replica.clone();
            }
        }
        _ => {
            if let Some(message) = link.receiver.poll(now_ms, &edge.replica) {
                link.to_node.push_back(message.to_record().unwrap());
            }
            if let Some(record) = link.to_node.pop_front() {
                let message = FromEdge::from_record(&record).unwrap();
                link.sender.receive(&message).expect("the edge is honest");
                assert!(link.sender.applied() <= edge.replica.position);
            }
        }
    }
    true
}

fn simulate(seed: u64, seen: &mut Seen) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut workload = Workload::new(seed);
    let log: Vec<Batch> = (0..random.usize(20..80)).map(|_| workload.batch()).collect();
    let reference = Reference::of(&log);
    let limits =
        HistoryLimits { updates_max: random.usize(1..60), bytes_max: random.usize(200..40_000) };
    let invalidated_max = random.usize(1..8);
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::new(limits, invalidated_max)).collect();
    let mut edges: Vec<Edge> = (0..3)
        .map(|_| Edge {
            interest: interest(&mut random),
            replica: Replica::default(),
            stored: Replica::default(),
            link: None,
        })
        .collect();
    let mut now_ms = 0;
    for _ in 0..1_500 {
        now_ms += random.u64(0..40);
        let place = random.usize(0..edges.len());
        let edge = &mut edges[place];
        match random.u8(0..61) {
            60 if random.u8(0..4) == 0 => {
                // It uses something else from now on: what it has is of no use but for what it has forgotten.
                edge.link = None;
                edge.interest = interest(&mut random);
                edge.replica = edge.replica.emptied();
                edge.stored = edge.replica.clone();
                seen.changed += 1;
            }
            0..4 => {
                let node = random.usize(0..nodes.len());
                nodes[node].apply(&log);
            }
            4 => {
                seen.cuts += u64::from(edge.link.is_some());
                edge.link = None;
            }
            5 => {
                edge.link = None;
                edge.replica = edge.stored.clone();
                seen.crashes += 1;
            }
            _ if edge.link.is_none() => {
                let node = random.usize(0..nodes.len());
                seen.ahead += u64::from(edge.replica.position > nodes[node].state.version());
                connect(edge, node, &nodes, now_ms);
            }
            _ => {
                if !step(edge, &nodes, now_ms, &mut random, &reference, seen) {
                    edge.link = None;
                }
            }
        }
    }
    // Then nothing breaks any more, and everybody catches up.
    for node in &mut nodes {
        while node.applied < log.len() {
            node.apply(&log);
        }
    }
    let last = nodes[0].state.version();
    for edge in &mut edges {
        for _ in 0..100_000 {
            if edge.replica.position == last && edge.replica.cluster == CLUSTER {
                assert_eq!(edge.replica.invalidated, last);
                break;
            }
            now_ms += MARK_INTERVAL_MS / 10;
            match edge.link {
                None => connect(edge, 0, &nodes, now_ms),
                Some(_) => {
                    if !step(edge, &nodes, now_ms, &mut random, &reference, seen) {
                        edge.link = None;
                    }
                }
            }
        }
        assert_eq!(edge.replica, reference.at(last, &edge.interest), "seed {seed}");
    }
}

#[test]
fn an_edge_has_exactly_what_the_state_was_whatever_breaks() {
    let mut seen = Seen::default();
    let only = std::env::var("OUTRIDER_SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        let at = std::panic::AssertUnwindSafe(|| simulate(seed, &mut seen));
        if let Err(panic) = std::panic::catch_unwind(at) {
            eprintln!("OUTRIDER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    if only.is_none() {
        // A simulation in which nothing happens shows nothing.
        for (what, count) in [
            ("updates", seen.updates),
            ("snapshots", seen.snapshots),
            ("cuts", seen.cuts),
            ("crashes", seen.crashes),
            ("edges that were ahead of their node", seen.ahead),
            ("invalidated digests", seen.invalidated),
            ("invalidated digests in snapshots", seen.made_up),
            ("times that invalidated digests were forgotten", seen.forgotten),
            ("edges that use something else", seen.changed),
        ] {
            assert!(count > 20, "{count} {what} in all");
        }
    }
}

#[test]
fn an_edge_cut_off_for_ten_minutes_catches_up_without_a_snapshot() {
    // 1,000 updates a second, as the default history keeps them.
    let mut workload = Workload::new(5);
    let mut node = Node::new(HistoryLimits::default(), 100);
    let mut log = Vec::new();
    while node.state.version() < 600_000 {
        log.clear();
        let operations = (0..1_000).map(|_| outrider_state::Request {
            id: outrider_state::RequestId::None,
            operation: workload.operation(),
        });
        log.push(Batch { time_ms: 0, requests: operations.collect() });
        node.applied = 0;
        node.apply(&log);
    }
    let mut replica = Replica { cluster: CLUSTER, ..Replica::default() };
    let interest = Interest { prefixes: vec![String::new()] };
    let (mut receiver, _) = Receiver::new(&replica, interest.clone(), 0);
    let mut sender = Sender::new((CLUSTER, 0, 0), interest, 0, &node.known());
    let (mut now_ms, mut updates) = (0, 0_u64);
    while replica.position < node.state.version() {
        now_ms += 1;
        for _ in 0..1_000 {
            match sender.poll(now_ms, &node.known()).unwrap() {
                Some(message) => {
                    updates += u64::from(matches!(message, ToEdge::Update { .. }));
                    receiver.receive(message, now_ms, &mut replica).unwrap();
                }
                None => break,
            }
        }
        if let Some(applied) = receiver.poll(now_ms, &replica) {
            sender.receive(&applied).unwrap();
        }
    }
    assert_eq!(updates, node.state.version(), "each of them once");
    let found = replica.fragments.len();
    assert_eq!(found, node.state.fragments("").count());
}

#[test]
fn an_edge_that_lies_and_a_node_that_lies_are_found_out() {
    let mut node = Node::new(HistoryLimits::default(), 100);
    let mut workload = Workload::new(1);
    let log: Vec<Batch> = (0..50).map(|_| workload.batch()).collect();
    log.iter().for_each(|_| node.apply(&log));
    let version = node.state.version();
    let interest = Interest { prefixes: vec![String::new()] };
    let mut sender = Sender::new((CLUSTER, 3, 3), interest.clone(), 0, &node.known());
    let update = sender.poll(0, &node.known()).unwrap().unwrap();
    let lie = sender.receive(&FromEdge::Applied { through: version });
    assert!(matches!(lie, Err(SenderError::Acknowledgement { .. })), "{lie:?}");
    sender.receive(&FromEdge::Applied { through: 2 }).unwrap_err();
    let hello = FromEdge::Hello {
        cluster: CLUSTER,
        position: 0,
        invalidated: 0,
        interest: interest.clone(),
    };
    assert_eq!(sender.receive(&hello), Err(SenderError::HelloAgain));
    let mut ahead = Sender::new((CLUSTER, version + 9, 0), interest.clone(), 0, &node.known());
    assert_eq!(ahead.poll(10_000, &node.known()), Ok(None));
    let wait = SenderError::Ahead { position: version + 9, version };
    assert_eq!(ahead.poll(10_001, &node.known()), Err(wait));

    let mut replica = Replica { cluster: CLUSTER, position: 1, ..Replica::default() };
    let before = replica.clone();
    let (mut receiver, _) = Receiver::new(&replica, interest, 0);
    for wrong in [
        update,
        ToEdge::Update { after: 1, version: 1, latest: 1, time_ms: 0, items: Vec::new() },
        ToEdge::Through { version: 0, latest: 0, time_ms: 0 },
        ToEdge::SnapshotBegin { cluster: CLUSTER, version: 0, forgotten: 0 },
        ToEdge::SnapshotPart { items: Vec::new() },
        ToEdge::SnapshotEnd { items: 0 },
    ] {
        receiver.receive(wrong, 0, &mut replica).unwrap_err();
    }
    receiver
        .receive(
            ToEdge::SnapshotBegin { cluster: CLUSTER, version: 5, forgotten: 0 },
            0,
            &mut replica,
        )
        .unwrap();
    receiver
        .receive(ToEdge::Through { version: 9, latest: 9, time_ms: 0 }, 0, &mut replica)
        .unwrap_err();
    receiver.receive(ToEdge::SnapshotEnd { items: 1 }, 0, &mut replica).unwrap_err();
    assert_eq!(replica, before, "nothing of it was applied");
    let long = Interest { prefixes: vec!["x".to_owned(); 257] };
    let hello = FromEdge::Hello { cluster: CLUSTER, position: 0, invalidated: 0, interest: long };
    let refused = FromEdge::from_record(&hello.to_record().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("prefixes has 257"), "{refused}");
}
