//! Seeded random batches and queries for tests of stores: few names, so that everything is shared, arrives
//! late, twice, in the wrong order, and in circles. The same seed gives the same ones.

use outrider_artifact::{Digest, Reference, RepositoryName};

use crate::batch::{Access, Alone, Batch, Begin, Content, Found, Mark, Position};
use crate::node::Kind;
use crate::query::{Asked, Query};

const IMAGES: u64 = 5;
const CUSTOMERS: u64 = 4;
const TAGS: u64 = 5;
const LAYERS: u64 = 24;
const MANIFESTS: u64 = 40;
/// Every third manifest is an index.
const INDEX_EVERY: u64 = 3;

/// Makes batches and queries.
#[derive(Debug)]
pub struct Workload {
    random: fastrand::Rng,
    /// Of each manifest: what it consists of.
    manifests: Vec<Vec<Content>>,
    positions: Vec<u64>,
}

impl Workload {
    /// One that is decided by this seed.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let manifests = (0..MANIFESTS).map(|number| contents(&mut random, number)).collect();
        Self { random, manifests, positions: vec![0; 2] }
    }

    /// The next batch; perhaps one that was given before.
    pub fn batch(&mut self) -> Batch {
        let found = (0..self.random.usize(0..8)).map(|_| self.found()).collect();
        let alone = (0..self.random.usize(0..8).saturating_sub(5)).map(|_| self.alone()).collect();
        let accesses = (0..self.random.usize(0..4)).map(|_| self.access()).collect();
        let source = self.random.usize(0..3);
        let position = self.positions.get_mut(source).map(|last| {
            let before = *last;
            if self.random.u8(0..4) > 0 {
                *last += self.random.u64(1..10);
            }
            let begin = match self.random.u8(0..3) {
                0 => Begin::Anywhere,
                1 => Begin::After(Some(before).filter(|before| *before > 0)),
                _ => Begin::After(Some(self.random.u64(0..20))),
            };
            Position { source: format!("queue-{source}"), begin, last: *last }
        });
        let marks = match position {
            None => Vec::new(),
            Some(_) => (0..self.random.u64(0..4)).map(|edge| self.mark(edge)).collect(),
        };
        Batch { position, marks, found, alone, accesses }
    }

    fn mark(&mut self, edge: u64) -> Mark {
        let (epoch, through) = (self.random.u64(1..3), self.random.u64(1..100));
        Mark { edge, lane: self.random.u8(0..2), epoch, through }
    }

    /// All layers, and one that is not there.
    pub fn contents(&self) -> Vec<Digest> {
        (0..=LAYERS).map(layer).collect()
    }

    fn found(&mut self) -> Found {
        let number = self.random.u64(0..MANIFESTS);
        let tag = self.random.u64(0..TAGS + 2);
        Found {
            image: self.image(),
            digest: manifest(number),
            tag: (tag < TAGS).then(|| parsed(&format!("t{tag}"))),
            customer: self.customer(),
            unix_ms: self.random.u64(1..50),
            bytes: 100 + number,
            kind: if number.is_multiple_of(INDEX_EVERY) { Kind::Index } else { Kind::Version },
            contents: self.manifests[number as usize].clone(),
        }
    }

    /// Some of those that manifests never have, too.
    fn alone(&mut self) -> Alone {
        let number = self.random.u64(0..LAYERS + 2);
        let (bytes, unix_ms) = (self.random.u64(0..1000), self.random.u64(1..50));
        Alone { digest: layer(number), bytes, customer: self.customer(), unix_ms }
    }

    fn access(&mut self) -> Access {
        let of_version = self.random.bool();
        let image = (of_version || self.random.bool()).then(|| self.image());
        let digest = match of_version {
            true => manifest(self.random.u64(0..MANIFESTS)),
            false => layer(self.random.u64(0..LAYERS + 2)),
        };
        Access { image, digest, count: self.random.u64(0..9), unix_ms: self.random.u64(0..99) }
    }

    /// One query of each name, some of them about what is not there.
    pub fn queries(&mut self) -> Vec<Asked> {
        let layers = [(); 4].map(|()| layer(self.random.u64(0..LAYERS + 1)));
        let [a, b, c, d] = layers;
        let images = [self.image(), self.image()];
        let customers = [self.customer(), self.customer()];
        let image = self.image();
        let (version, since) = (self.reference(), self.reference());
        let queries = [
            Query::Images { layer: a },
            Query::SharedByImages { images },
            Query::SharedByCustomers { customers },
            Query::LayerDepth { layer: b },
            Query::ImageDepth { image: image.clone() },
            Query::Added { image: image.clone(), version: version.clone(), since: None },
            Query::Added { image, version, since: Some(since) },
            Query::Neighbours { layer: c },
            Query::Affected { layer: d },
        ];
        queries.map(|query| Asked { query, limit: self.random.usize(1..12) }).into()
    }

    fn reference(&mut self) -> Reference {
        match self.random.bool() {
            true => parsed(&format!("t{}", self.random.u64(0..TAGS))),
            false => Reference::Digest(manifest(self.random.u64(0..MANIFESTS))),
        }
    }

    fn image(&mut self) -> RepositoryName {
        parsed(&format!("library/i{}", self.random.u64(0..IMAGES)))
    }

    fn customer(&mut self) -> String {
        format!("customer {}", self.random.u64(0..CUSTOMERS))
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("it is made of letters and digits")
}

fn layer(number: u64) -> Digest {
    Digest::sha256(format!("layer {number}").as_bytes())
}

fn manifest(number: u64) -> Digest {
    Digest::sha256(format!("manifest {number}").as_bytes())
}

/// Indexes lead to any manifest but themselves, so that there are circles: no hash would allow them, and a store
/// must bear them.
fn contents(random: &mut fastrand::Rng, number: u64) -> Vec<Content> {
    let is_index = number.is_multiple_of(INDEX_EVERY);
    let mut all: Vec<Content> = Vec::new();
    for _ in 0..random.usize(0..7) {
        let (kind, digest) = match is_index {
            true => (Kind::Version, manifest(random.u64(0..MANIFESTS))),
            false => {
                let number = random.u64(0..LAYERS);
                let kind = [Kind::Layer, Kind::Layer, Kind::Component, Kind::Function];
                (kind[(number % 4) as usize], layer(number))
            }
        };
        let stands = all.iter().any(|content| content.digest == digest);
        if !stands && digest != manifest(number) {
            all.push(Content { kind, digest, bytes: random.u64(0..1000) });
        }
    }
    all
}
