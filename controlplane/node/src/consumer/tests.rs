//! Readers that die at any moment, two at a time, over a queue that has events more than once and a store that fails
//! before and after it has applied a batch: nothing is lost, and nothing is counted twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use outrider_artifact::event::{AccessEvent, AccessTier, UploadEvent, UploadKind};
use outrider_events::queue::{Extent, Page, Pending};
use outrider_events::{Batch as Events, Event, ManifestEvent, Marks, Numbered, Said};
use outrider_graph::query::Query;
use outrider_graph::{Answer, Applied, Asked, Embedded, Graph, Stats};

use super::*;

/// Nobody is told.
struct Nobody;

impl Listener for Nobody {
    async fn applied(&self, _: BTreeSet<Digest>) {}
    async fn asked(&self, _: BTreeMap<u64, BTreeSet<Digest>>) {}
}

const EDGES: u64 = 3;
const LAYERS: u64 = 6;

fn layer(number: u64) -> Digest {
    Digest::sha256(format!("layer {number}").as_bytes())
}

fn manifest(edge: u64, number: u64) -> Vec<u8> {
    let one = |digest: Digest| format!("{{\"digest\":\"{digest}\",\"size\":1}}");
    let layers =
        [one(layer(number % LAYERS)), one(Digest::sha256(format!("{edge} {number}").as_bytes()))];
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"config\":{},\"layers\":[{}]}}",
        one(Digest::sha256(b"config")),
        layers.join(",")
    )
    .into_bytes()
}

fn upload(edge: u64, number: u64) -> Event {
    let bytes = manifest(edge, number);
    let upload = UploadEvent {
        kind: UploadKind::Manifest,
        customer: "anonymous".into(),
        region: "local".into(),
        repository: format!("team/app{edge}"),
        version: None,
        digest: Digest::sha256(&bytes).to_string(),
        size_bytes: bytes.len() as u64,
        media_type: String::new(),
        unix_ms: 1,
    };
    let said = match number % 10 {
        9 => Said::Gone,
        8 => Said::Whole(b"{}".to_vec()),
        _ => Said::Whole(bytes),
    };
    Event::Manifest(Box::new(ManifestEvent { upload, said }))
}

fn access(number: u64) -> Event {
    Event::Access(AccessEvent {
        customer: "anonymous".into(),
        region: "local".into(),
        image: "team/app1".into(),
        digest: layer(number % LAYERS).to_string(),
        unix_ms: number,
        tier: AccessTier::Ram,
        status: 200,
        bytes: 1,
        latency_us: 1,
    })
}

/// A queue with repeated and damaged entries.
struct Repeating {
    entries: Vec<Option<Entry>>,
    random: Mutex<fastrand::Rng>,
}

impl Queue for Repeating {
    fn name(&self) -> &'static str {
        "repeating"
    }
    fn identity(&self) -> [u8; 16] {
        [7; 16]
    }
    fn marks(&self) -> Marks {
        Marks::default()
    }
    fn append(&self, _: Arc<Vec<Entry>>) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    fn read(&self, after: Position, entries_max: usize) -> Pending<'_, Page> {
        let from = after.number().map_or(0, |number| number as usize + 1);
        let mut random = self.random.lock().unwrap();
        if random.u8(0..10) == 0 {
            return Box::pin(async { Err(QueueError::Unavailable("away".into())) });
        }
        let entries_max = entries_max.min(random.usize(1..20));
        let mut page = Page::default();
        for (at, entry) in self.entries.iter().enumerate().skip(from).take(entries_max) {
            let position = Position::of(at as u64);
            let Some(entry) = entry else {
                let reason = "damaged".to_owned();
                return Box::pin(async { Err(QueueError::Entry { position, reason }) });
            };
            page.entries.push((position, entry.clone()));
        }
        Box::pin(async { Ok(page) })
    }
    fn extent(&self) -> Pending<'_, Extent> {
        let end = self.entries.len().checked_sub(1);
        let end = end.map_or_else(Position::default, |last| Position::of(last as u64));
        Box::pin(async { Ok(Extent { end, ..Extent::default() }) })
    }
}

/// A store that fails now and then, also after it has done what it was asked for.
struct Failing {
    store: Embedded,
    random: Mutex<fastrand::Rng>,
}

impl Failing {
    fn fails(&self) -> bool {
        self.random.lock().unwrap().u8(0..8) == 0
    }
}

fn away<T: Send + 'static>() -> outrider_graph::Pending<'static, T> {
    Box::pin(async { Err(GraphError::Unavailable("away".into())) })
}

impl Graph for Failing {
    fn apply(&self, batch: Batch) -> outrider_graph::Pending<'_, Applied> {
        let (before, after) = (self.fails(), self.fails());
        if before {
            return away();
        }
        Box::pin(async move {
            let applied = self.store.apply(batch).await;
            if after { away().await } else { applied }
        })
    }
    fn ask(&self, asked: Asked) -> outrider_graph::Pending<'_, Answer> {
        self.store.ask(asked)
    }
    fn stats(&self) -> outrider_graph::Pending<'_, Stats> {
        self.store.stats()
    }
    fn progress(&self, source: String) -> outrider_graph::Pending<'_, outrider_graph::Progress> {
        if self.fails() { away() } else { self.store.progress(source) }
    }
    fn dependants(&self, contents: Vec<Digest>) -> outrider_graph::Pending<'_, Vec<u64>> {
        self.store.dependants(contents)
    }
}

/// Entries as several nodes append them that do not know of each other: what comes for the first time is in order.
fn entries(random: &mut fastrand::Rng) -> Vec<Option<Entry>> {
    let mut all = Vec::new();
    // What is said once to begin with is in the graph before anything is counted.
    let batch = |lane, events| Events { lane, epoch: 2, events };
    let first =
        (1..=LAYERS).map(|sequence| Numbered { sequence, event: upload(EDGES, sequence - 1) });
    all.push(Some(Entry { edge: 99, batch: batch(Lane::Uploads, first.collect()) }));
    let mut given: BTreeMap<(u64, Lane), u64> = BTreeMap::new();
    for _ in 0..random.usize(30..80) {
        let (edge, lane) = (random.u64(0..EDGES), Lane::ALL[random.usize(0..2)]);
        let last = given.entry((edge, lane)).or_default();
        // Some that were sent before come again, some not.
        let from = *last + 1 - random.u64(0..=*last).min(random.u64(0..30));
        let to = *last + random.u64(1..20);
        *last = to;
        let event = |sequence| match lane {
            Lane::Uploads => upload(edge, sequence),
            Lane::Accesses => access(sequence),
        };
        let events = (from..=to).map(|sequence| Numbered { sequence, event: event(sequence) });
        all.push(Some(Entry { edge, batch: batch(lane, events.collect()) }));
        match random.u8(0..12) {
            0 => all.push(None),
            1 => {
                let again = all[random.usize(1..all.len())].clone();
                all.push(again);
            }
            _ => {}
        }
    }
    all
}

async fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let entries = entries(&mut random);
    let mut accesses: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut manifests: BTreeSet<(u64, u64)> = BTreeSet::new();
    for entry in entries.iter().flatten().filter(|entry| entry.edge < EDGES) {
        let numbers = entry.batch.events.iter().map(|event| (entry.edge, event.sequence));
        match entry.batch.lane {
            Lane::Accesses => accesses.extend(numbers),
            Lane::Uploads => manifests.extend(numbers),
        }
    }
    let store = Embedded::new(&folder.path().join("graph"), 1 << 20);
    let store = Arc::new(Failing { store, random: Mutex::new(random.fork()) });
    let time_max = Duration::from_secs(600);
    let service = GraphService::with_store(Arc::<Failing>::clone(&store), "embedded", time_max);
    let service = Arc::new(service.without_pause());
    let length = entries.len() as u64;
    let queue = Arc::new(Repeating { entries, random: Mutex::new(random.fork()) });
    let monitor = Arc::new(Monitor::default());
    let reader = || {
        let queue: Arc<dyn Queue> = Arc::<Repeating>::clone(&queue);
        let mut reader =
            Reader::new(queue, Arc::clone(&service), Arc::clone(&monitor), Arc::new(Nobody));
        (reader.events_limit, reader.events_max) = (40, 40);
        reader
    };
    let mut readers = [reader(), reader()];
    loop {
        let which = random.usize(0..2);
        if random.u8(0..6) == 0 {
            readers[which] = reader();
        }
        let result = readers[which].step().await;
        let last = store.store.progress(readers[which].source.clone()).await.unwrap().last;
        if last == Some(length - 1) && matches!(result, Ok(false)) {
            break;
        }
    }
    for number in 0..LAYERS {
        let asked = Asked { query: Query::LayerDepth { layer: layer(number) }, limit: 1 };
        let row = store.store.ask(asked).await.unwrap().rows.remove(0);
        let expected = accesses.iter().filter(|(_, sequence)| sequence % LAYERS == number);
        assert_eq!(row.accesses, Some(expected.count() as u64), "seed {seed}, layer {number}");
        let known = manifests
            .iter()
            .filter(|(_, sequence)| sequence % 10 < 8 && sequence % LAYERS == number);
        assert_eq!(row.versions, Some(known.count() as u64 + 1), "seed {seed}, layer {number}");
    }
}

#[tokio::test]
async fn whoever_dies_when_nothing_is_lost_and_nothing_is_counted_twice() {
    let seeds = match std::env::var("OUTRIDER_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..25).collect(),
    };
    for seed in seeds {
        run(seed).await;
    }
}

/// What a reader says of a queue with so many entries, once it has nothing more to read.
async fn read_all(entries: Vec<Option<Entry>>, service: &Arc<GraphService>) -> Result<(), String> {
    let queue = Arc::new(Repeating { entries, random: Mutex::new(fastrand::Rng::with_seed(1)) });
    let mut reader = Reader::new(queue, Arc::clone(service), Arc::default(), Arc::new(Nobody));
    loop {
        match reader.step().await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.to_string().contains("away") => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[tokio::test]
async fn a_queue_that_was_made_anew_under_the_same_name_is_not_taken_for_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::new(&folder.path().join("graph"), 1 << 20));
    let service = GraphService::with_store(store, "embedded", Duration::from_secs(600));
    let service = Arc::new(service.without_pause());
    let entries = entries(&mut fastrand::Rng::with_seed(3));
    assert!(entries.len() > 5);
    read_all(entries.clone(), &service).await.unwrap();
    read_all(entries.clone(), &service).await.unwrap();
    let why = read_all(entries[..2].to_vec(), &service).await.unwrap_err();
    assert!(why.contains("it was made anew"), "{why}");
}
