//! Nodes are killed, paused and cut off while clients read and write, and push tags to two edges; what the clients
//! saw must be explained by one order of all operations, and no tag that was acknowledged may be lost.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use outrider_e2e::control::Control;
use outrider_e2e::cut::Cuts;
use outrider_e2e::http::{Answer, Client};
use outrider_e2e::linear::{Answered, Asked, Operation, check};
use outrider_e2e::registry::{manifest_request, try_push_blob, try_push_manifest};
use outrider_e2e::{Options, Outrider, SmallImage, until};
use rustix::process::Signal;

/// Keys are few, so that clients meet.
const KEYS: usize = 4;
const CLIENTS: usize = 6;
/// Faults of one run, unless `OUTRIDER_FAULTS` says otherwise.
const EPISODES: usize = 20;
/// How long a fault lasts, and the time between two. Longer than an election.
const FAULT: Duration = Duration::from_millis(1_150);
const CALM: Duration = Duration::from_millis(300);
/// Where edges call from.
const EDGES: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Images that are pushed, and tags of each edge that they are pushed as.
const IMAGES: u64 = 8;
const TAGS: usize = 3;
/// Between two operations of a client.
const PAUSE: Duration = Duration::from_millis(8);

/// A small generator, so that a run can be repeated (as far as processes can).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64* (Vigna, 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % bound
    }
}

/// What all clients share.
struct Shared {
    clients: Vec<Client>,
    started: Instant,
    values: AtomicU64,
    over: AtomicBool,
    histories: Vec<Mutex<Vec<Operation>>>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap()
    }
}

fn version_of(answer: &Answer) -> u64 {
    answer.header("etag").map_or(0, |tag| tag.trim_matches('"').parse().unwrap())
}

/// What an answer means; nothing when it says that it is not known what was done.
fn meaning(asked: Asked, answer: &Answer) -> Option<Answered> {
    match (asked, answer.status) {
        (Asked::Get, 200) => {
            let value = answer.text().parse().unwrap();
            Some(Answered::Read(Some((value, version_of(answer)))))
        }
        (Asked::Get, 404) => Some(Answered::Read(None)),
        (_, 204) => Some(Answered::Done(version_of(answer))),
        (_, 412) => Some(Answered::Mismatch(version_of(answer))),
        (_, 503) => None,
        (_, status) => panic!("{asked:?} was answered {status}: {}", answer.text()),
    }
}

fn client(shared: &Shared, seed: u64) {
    let mut random = Random(seed);
    let mut versions = [0; KEYS];
    while !shared.over.load(Ordering::Relaxed) {
        thread::sleep(PAUSE);
        let key = usize::try_from(random.below(KEYS as u64)).unwrap();
        let asked = match random.below(10) {
            0..4 => Asked::Get,
            4 => Asked::Delete,
            5 | 6 => Asked::Put(shared.values.fetch_add(1, Ordering::Relaxed)),
            _ => Asked::Swap(versions[key], shared.values.fetch_add(1, Ordering::Relaxed)),
        };
        // Some writes are asked again, elsewhere, until they are answered: they must be done once.
        let again = random.below(8) > 0;
        let called = shared.now();
        let mut answered = Answered::Unknown;
        loop {
            let node = usize::try_from(random.below(shared.clients.len() as u64)).unwrap();
            let request = |method| {
                let request = shared.clients[node].request(method, &format!("/v1/state/k{key}"));
                if again {
                    request.header("Idempotency-Key", &format!("{seed}-{called}"))
                } else {
                    request
                }
            };
            let sent = match asked {
                Asked::Get => request("GET"),
                Asked::Delete => request("DELETE"),
                Asked::Put(value) => request("PUT").body(value.to_string().as_bytes()),
                Asked::Swap(0, value) => {
                    request("PUT").body(value.to_string().as_bytes()).header("If-None-Match", "*")
                }
                Asked::Swap(version, value) => request("PUT")
                    .body(value.to_string().as_bytes())
                    .header("If-Match", &format!("\"{version}\"")),
            }
            .try_send();
            if let Some(meaning) = sent.ok().and_then(|answer| meaning(asked, &answer)) {
                answered = meaning;
                break;
            }
            if !again || shared.over.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(PAUSE);
        }
        match answered {
            Answered::Read(Some((_, version))) | Answered::Done(version) => versions[key] = version,
            Answered::Read(None) => versions[key] = 0,
            Answered::Mismatch(current) => versions[key] = current,
            Answered::Unknown => {}
        }
        if asked == Asked::Delete {
            versions[key] = 0;
        }
        let operation = Operation { asked, answered, called, returned: shared.now() };
        shared.histories[key].lock().unwrap().push(operation);
    }
}

/// What a tag may stand for: the digest that was acknowledged last, and those of which nobody knows.
#[derive(Default)]
struct Pushed {
    may_be: Vec<String>,
    acknowledged: usize,
}

/// Pushes images as the tags of an edge, which nobody else writes, until all is over. An edge knows what it has
/// acknowledged.
fn pusher(over: &AtomicBool, client: Client, edge: usize) -> Vec<(String, Pushed)> {
    let mut tags: Vec<(String, Pushed)> =
        (0..TAGS).map(|tag| (format!("e{edge}-{tag}"), Pushed::default())).collect();
    let images: Vec<SmallImage> = (0..IMAGES).map(|n| SmallImage::new(n, &[500])).collect();
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(PAUSE);
        let image = &images[turn % images.len()];
        let (tag, pushed) = &mut tags[turn % TAGS];
        let pushing =
            try_push_manifest(&client, "team/app", tag, &image.media_type, &image.manifest);
        match pushing {
            Ok(_) => {
                pushed.may_be = vec![image.digest()];
                pushed.acknowledged += 1;
                assert_eq!(digest_of(&client, tag), Some(image.digest()), "who was told reads it");
            }
            Err(_) => pushed.may_be.push(image.digest()),
        }
    }
    tags
}

fn digest_of(client: &Client, tag: &str) -> Option<String> {
    let answer = manifest_request(client, "HEAD", "team/app", tag).send();
    (answer.status == 200).then(|| answer.header("docker-content-digest").unwrap().to_owned())
}

fn fault(control: &mut Control, random: &mut Random) -> String {
    let count = control.count();
    let asked = random.below(count as u64) as usize;
    let leader = control.leader(asked).unwrap_or(0);
    // Every second time it is the leader's turn.
    let victim = if random.below(2) == 0 { leader } else { random.below(count as u64) as usize };
    let others: Vec<usize> = (0..count).filter(|place| *place != victim).collect();
    let what = match random.below(5) {
        0 => {
            control.kill9(victim);
            thread::sleep(FAULT);
            control.resume(victim);
            "killed"
        }
        1 => {
            control.signal(victim, Signal::STOP);
            thread::sleep(FAULT);
            control.signal(victim, Signal::CONT);
            "paused"
        }
        kind => {
            let own = control.address(victim);
            // Sometimes the edges still reach it.
            let edges = (kind == 2).then_some(EDGES);
            for other in others.iter().map(|place| control.address(*place)).chain(edges) {
                if kind != 3 {
                    control.cuts().cut(own, other);
                }
                if kind != 4 {
                    control.cuts().cut(other, own);
                }
            }
            thread::sleep(FAULT);
            control.cuts().mend();
            ["cut off", "deaf", "dumb"][kind as usize - 2]
        }
    };
    format!("node {victim}{} was {what}", if victim == leader { " (leader)" } else { "" })
}

#[test]
fn what_clients_see_is_linearizable_whatever_happens_to_the_nodes() {
    let seed = std::env::var("OUTRIDER_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) * 2 + 1);
    let episodes = std::env::var("OUTRIDER_FAULTS").map_or(EPISODES, |text| text.parse().unwrap());
    eprintln!("OUTRIDER_SEED={seed}");
    // Who lets a leader go waits for three to four times the election time.
    let more = "[consensus]\nheartbeat = \"60ms\"\nelection = \"240ms\"\nrequest_time = \"3s\"";
    let mut control = Control::start_with(3, more, Some(Cuts::new()));
    let shared = Arc::new(Shared {
        clients: (0..3).map(|place| control.client(place)).collect(),
        started: Instant::now(),
        values: AtomicU64::new(1),
        over: AtomicBool::new(false),
        histories: (0..KEYS).map(|_| Mutex::default()).collect(),
    });
    let clients: Vec<_> = (1..=CLIENTS as u64)
        .map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || client(&shared, seed.wrapping_mul(97).wrapping_add(number)))
        })
        .collect();
    let edges: Vec<Outrider> =
        (0..2).map(|_| Outrider::joined(&control, Options::default().config(""))).collect();
    for edge in &edges {
        for image in (0..IMAGES).map(|n| SmallImage::new(n, &[500])) {
            for blob in image.blobs() {
                try_push_blob(&edge.client(), "team/app", blob).unwrap();
            }
        }
    }
    let pushers: Vec<_> = (0..2)
        .map(|place| {
            let (shared, client) = (Arc::clone(&shared), edges[place].client());
            thread::spawn(move || pusher(&shared.over, client, place))
        })
        .collect();
    let mut random = Random(seed);
    for _ in 0..episodes {
        thread::sleep(CALM);
        eprintln!(
            "{:>6} ms: {}",
            shared.started.elapsed().as_millis(),
            fault(&mut control, &mut random)
        );
    }
    for place in 0..3 {
        control.wait_ready(place);
    }
    thread::sleep(CALM);
    shared.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client saw only what may be answered");
    }
    let mut pushes = 0;
    for tags in pushers.into_iter().map(|pusher| pusher.join().expect("an edge keeps its word")) {
        for (tag, pushed) in tags {
            pushes += pushed.acknowledged;
            let mut found = [None, None];
            until(&format!("both edges answer the same for {tag}"), || {
                found = [0, 1].map(|edge| digest_of(&edges[edge].client(), &tag));
                found[0] == found[1]
            });
            let found = found[0].take();
            let allowed = match &found {
                Some(digest) => pushed.may_be.contains(digest),
                None => pushed.acknowledged == 0,
            };
            assert!(allowed, "{tag} is {found:?} and not {:?}", pushed.may_be);
        }
    }
    eprintln!("{pushes} tags were pushed");
    assert!(pushes > episodes, "only {pushes} tags were pushed");
    // After all of it the three agree.
    for (key, history) in shared.histories.iter().enumerate() {
        let called = shared.now();
        for place in 0..3 {
            let answer = control.state(place, "GET", &format!("k{key}")).send();
            let answered = meaning(Asked::Get, &answer).expect("all nodes are back");
            let returned = shared.now();
            let read = Operation { asked: Asked::Get, answered, called, returned };
            history.lock().unwrap().push(read);
        }
    }
    let (mut all, mut unknown) = (0, 0);
    for (key, history) in shared.histories.iter().enumerate() {
        let history = history.lock().unwrap();
        all += history.len();
        unknown += history.iter().filter(|o| o.answered == Answered::Unknown).count();
        if let Err(reason) = check(&history) {
            panic!("key {key}, seed {seed}: {reason}");
        }
    }
    eprintln!("{all} operations, {unknown} of them without an answer");
    assert!(all > episodes * 20, "the clients came through with {all} operations only");
    assert!(unknown * 5 < all, "{unknown} of {all} operations had no answer");
}
