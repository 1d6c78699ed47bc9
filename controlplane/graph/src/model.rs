//! What a graph means, in the plainest words: everything that was applied is kept in lists, and every query
//! goes through all of it. It is what stores are compared with.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outrider_artifact::{Digest, Reference};

use crate::batch::{Batch, Begin, Found, Mark};
use crate::node::Kind;
use crate::plan::EARLY_MAX;
use crate::query::{Answer, Asked, CO_USE_VERSIONS_MAX, INDEX_DEPTH_MAX, Query, Row};
use crate::store::{Applied, GraphError, Progress, Stats};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Image(String),
    Customer(String),
    Content(Digest),
    Version(String, Digest),
}

#[derive(Clone, Debug)]
struct Node {
    key: Key,
    kind: Kind,
    bytes: u64,
    first: u64,
    accesses: u64,
    last: u64,
    known: bool,
    contents: Vec<u64>,
    tags: Vec<(String, u64)>,
    owners: BTreeSet<u64>,
}

/// A graph in lists.
#[derive(Debug, Default)]
pub struct Model {
    nodes: BTreeMap<u64, Node>,
    serials: HashMap<Key, u64>,
    positions: BTreeMap<String, u64>,
    marks: BTreeMap<(String, u64, u8), (u64, u64)>,
    /// Asked for and not there: digest and repository or nothing; the number by which it came, accesses, the last one.
    early: BTreeMap<(Digest, String), (u64, u64, u64)>,
    early_last: u64,
}

impl Model {
    /// What [`Graph::apply`](crate::Graph::apply) does.
    pub fn apply(&mut self, batch: &Batch) -> Applied {
        if let Some(position) = &batch.position {
            let reached = self.positions.get(&position.source).copied();
            let is_next = match position.begin {
                Begin::Anywhere => true,
                Begin::After(after) => after == reached,
            };
            if !is_next || reached.is_some_and(|last| last >= position.last) {
                return Applied { repeated: true, ..Applied::default() };
            }
            self.positions.insert(position.source.clone(), position.last);
            for Mark { edge, lane, epoch, through } in &batch.marks {
                let key = (position.source.clone(), *edge, *lane);
                self.marks.insert(key, (*epoch, *through));
            }
        }
        let nodes = self.nodes.len() as u64;
        let known = self.known().count() as u64;
        batch.found.iter().for_each(|found| self.take(found));
        for alone in &batch.alone {
            let (customer, at) = (alone.customer.clone(), alone.unix_ms);
            let customer = self.add(Key::Customer(customer), Kind::Customer, 0, at);
            let layer = self.add(Key::Content(alone.digest), Kind::Layer, alone.bytes, at);
            self.nodes.get_mut(&layer).expect("it was added").owners.insert(customer);
        }
        let mut unknown = 0;
        for access in &batch.accesses {
            let image = access.image.as_ref().map_or("", |image| &**image);
            let version = Key::Version(image.to_owned(), access.digest);
            let key = match self.serials.contains_key(&version) {
                true => version,
                false => Key::Content(access.digest),
            };
            match self.serials.get(&key).and_then(|serial| self.nodes.get_mut(serial)) {
                None => {
                    unknown += access.count;
                    let next = self.early_last + 1;
                    let key = (access.digest, image.to_owned());
                    let early = self.early.entry(key).or_insert((next, 0, 0));
                    self.early_last = self.early_last.max(early.0);
                    (early.1, early.2) = (early.1 + access.count, early.2.max(access.unix_ms));
                }
                Some(node) => {
                    node.accesses += access.count;
                    node.last = node.last.max(access.unix_ms);
                }
            }
        }
        let first = self.early_last.saturating_sub(EARLY_MAX) + 1;
        self.early.retain(|_, (number, ..)| *number >= first);
        Applied {
            repeated: false,
            nodes: self.nodes.len() as u64 - nodes,
            versions: self.known().count() as u64 - known,
            unknown,
        }
    }

    fn add(&mut self, key: Key, kind: Kind, bytes: u64, unix_ms: u64) -> u64 {
        let next = self.nodes.len() as u64 + 1;
        let serial = *self.serials.entry(key.clone()).or_insert(next);
        let (mut accesses, mut last) = (0, 0);
        if serial == next {
            self.early.retain(|(digest, image), (_, count, at)| {
                let is_it = match &key {
                    Key::Content(content) => content == digest,
                    Key::Version(of, version) => version == digest && of == image,
                    Key::Image(_) | Key::Customer(_) => false,
                };
                if is_it {
                    (accesses, last) = (accesses + *count, last.max(*at));
                }
                !is_it
            });
        }
        let node = self.nodes.entry(serial).or_insert(Node {
            key,
            kind,
            bytes,
            first: unix_ms,
            accesses,
            last,
            known: false,
            contents: Vec::new(),
            tags: Vec::new(),
            owners: BTreeSet::new(),
        });
        if node.kind != Kind::Customer {
            node.first = node.first.min(unix_ms);
        }
        serial
    }

    fn take(&mut self, found: &Found) {
        let (image, at) = (found.image.to_string(), found.unix_ms);
        self.add(Key::Image(image.clone()), Kind::Image, 0, at);
        let customer = self.add(Key::Customer(found.customer.clone()), Kind::Customer, 0, at);
        let version = self.add(Key::Version(image.clone(), found.digest), Kind::Version, 0, at);
        let contents = found.contents.iter().map(|content| match content.kind {
            Kind::Version => {
                self.add(Key::Version(image.clone(), content.digest), Kind::Version, 0, at)
            }
            kind => self.add(Key::Content(content.digest), kind, content.bytes, at),
        });
        let contents: Vec<u64> = contents.collect();
        let Some(node) = self.nodes.get_mut(&version) else { return };
        node.owners.insert(customer);
        if let Some(tag) = &found.tag {
            match node.tags.iter_mut().find(|(known, _)| **known == **tag) {
                Some((_, since)) => *since = at.min(*since),
                None => node.tags.push((tag.to_string(), at)),
            }
        }
        if !node.known {
            node.known = true;
            node.kind = found.kind;
            node.contents = contents;
        }
    }

    fn known(&self) -> impl DoubleEndedIterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(serial, node)| (*serial, node)).filter(|(_, node)| node.known)
    }

    /// Versions that contain a layer themselves, the oldest first.
    fn with(&self, layer: u64) -> impl DoubleEndedIterator<Item = (u64, &Node)> {
        self.known().filter(move |(_, node)| node.contents.contains(&layer))
    }

    fn find(&self, key: Key) -> Result<u64, GraphError> {
        self.serials.get(&key).copied().ok_or_else(|| match key {
            Key::Image(name) => GraphError::Unknown { what: "image", name },
            Key::Customer(name) => GraphError::Unknown { what: "customer", name },
            Key::Content(digest) => GraphError::Unknown { what: "layer", name: digest.to_string() },
            Key::Version(image, digest) => {
                GraphError::Unknown { what: "version", name: format!("{image} {digest}") }
            }
        })
    }

    fn image_of(&self, version: &Node) -> u64 {
        let Key::Version(image, _) = &version.key else { return 0 };
        self.serials.get(&Key::Image(image.clone())).copied().unwrap_or(0)
    }

    /// What [`Graph::ask`](crate::Graph::ask) answers.
    ///
    /// # Errors
    /// As there.
    pub fn ask(&self, asked: &Asked) -> Result<Answer, GraphError> {
        let limit = asked.limit;
        let layer = |digest: &Digest| self.find(Key::Content(*digest));
        let rows = |serials: Vec<u64>| serials.into_iter().map(|s| self.brief(s)).collect();
        match &asked.query {
            Query::Images { layer: digest } => {
                let layer = layer(digest)?;
                let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
                for (_, version) in self.with(layer) {
                    *counts.entry(self.image_of(version)).or_default() += 1;
                }
                let all = counts.into_iter().map(|(image, count)| {
                    let mut row = Row::new(Kind::Image, self.name(image));
                    row.versions = Some(count);
                    row
                });
                Ok(answer(vec![self.brief(layer)], all.collect(), limit))
            }
            Query::SharedByImages { images: [a, b] } => {
                let a = self.find(Key::Image(a.to_string()))?;
                let b = self.find(Key::Image(b.to_string()))?;
                let of = |image| {
                    let versions = self.known().filter(move |(_, v)| self.image_of(v) == image);
                    layers_of(versions)
                };
                let common = of(a).intersection(&of(b)).copied().collect();
                Ok(answer(vec![self.image(a), self.image(b)], rows(common), limit))
            }
            Query::SharedByCustomers { customers: [a, b] } => {
                let a = self.find(Key::Customer(a.clone()))?;
                let b = self.find(Key::Customer(b.clone()))?;
                let of = |customer| {
                    let owned = self.known().filter(move |(_, v)| v.owners.contains(&customer));
                    let alone = self.nodes.iter().filter(|(_, node)| {
                        matches!(node.key, Key::Content(_)) && node.owners.contains(&customer)
                    });
                    let mut all = layers_of(owned);
                    all.extend(alone.map(|(serial, _)| *serial));
                    all
                };
                let common = of(a).intersection(&of(b)).copied().collect();
                Ok(answer(vec![self.customer(a), self.customer(b)], rows(common), limit))
            }
            Query::LayerDepth { layer: digest } => {
                Ok(answer(vec![], vec![self.full(layer(digest)?)], limit))
            }
            Query::ImageDepth { image } => {
                let image = self.find(Key::Image(image.to_string()))?;
                Ok(answer(vec![], vec![self.image(image)], limit))
            }
            Query::Added { image, version, since } => {
                let (now, then) = self.compared(image, version, since.as_ref())?;
                let (a, b) = (self.reach(now, image)?, self.reach(then, image)?);
                let added = a.difference(&b).copied().collect();
                Ok(answer(vec![self.version(now), self.version(then)], rows(added), limit))
            }
            Query::Neighbours { layer: digest } => {
                let layer = layer(digest)?;
                let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
                for (_, version) in self.with(layer).rev().take(CO_USE_VERSIONS_MAX) {
                    for other in version.contents.iter().filter(|other| **other != layer) {
                        *counts.entry(*other).or_default() += 1;
                    }
                }
                let mut counts: Vec<_> = counts.into_iter().collect();
                counts.sort_by_key(|(serial, count)| (u64::MAX - count, *serial));
                let all = counts.into_iter().map(|(serial, count)| {
                    let mut row = self.brief(serial);
                    row.together = Some(count);
                    row
                });
                Ok(answer(vec![self.brief(layer)], all.collect(), limit))
            }
            Query::Affected { layer: digest } => Ok(self.affected(layer(digest)?, limit)),
        }
    }

    fn affected(&self, layer: u64, limit: usize) -> Answer {
        let mut more = false;
        let mut cut = |mut all: Vec<u64>| {
            more |= all.len() > limit;
            all.truncate(limit);
            all
        };
        let versions = cut(self.with(layer).rev().map(|(serial, _)| serial).collect());
        let mut indexes: Vec<u64> = Vec::new();
        let mut frontier = versions.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let above = self.known().rev().filter(|(serial, node)| {
                node.kind == Kind::Index
                    && !versions.contains(serial)
                    && !indexes.contains(serial)
                    && node.contents.iter().any(|child| frontier.contains(child))
            });
            frontier = cut(above.map(|(serial, _)| serial).collect());
            indexes.extend(&frontier);
        }
        indexes.sort_by_key(|serial| u64::MAX - serial);
        let indexes = cut(indexes);
        let images: BTreeSet<u64> = self.with(layer).map(|(_, v)| self.image_of(v)).collect();
        let mut customers: BTreeSet<u64> =
            self.with(layer).flat_map(|(_, version)| version.owners.clone()).collect();
        customers.extend(self.nodes.get(&layer).iter().flat_map(|node| node.owners.clone()));
        for index in &indexes {
            customers.extend(self.nodes.get(index).iter().flat_map(|node| node.owners.clone()));
        }
        let customers = cut(customers.into_iter().collect());
        let images = cut(images.into_iter().collect());
        let rows = customers.into_iter().map(|serial| self.customer(serial));
        let rows = rows.chain(images.into_iter().map(|serial| self.image(serial)));
        let versions = versions.into_iter().chain(indexes);
        let rows = rows.chain(versions.map(|serial| self.version(serial))).collect();
        Answer { about: vec![self.full(layer)], rows, more }
    }

    /// Tags of an image: tag, since when, version.
    fn tags(&self, image: u64) -> Vec<(&str, u64, u64)> {
        let versions = self.known().filter(|(_, version)| self.image_of(version) == image);
        let tags = versions.flat_map(|(serial, version)| {
            version.tags.iter().map(move |(tag, since)| (&**tag, *since, serial))
        });
        tags.collect()
    }

    fn compared(
        &self,
        image: &str,
        version: &Reference,
        since: Option<&Reference>,
    ) -> Result<(u64, u64), GraphError> {
        let serial = self.find(Key::Image(image.to_owned()))?;
        let resolve = |version: &Reference| match version {
            Reference::Digest(digest) => {
                let found = self.find(Key::Version(image.to_owned(), *digest))?;
                let (tag, since) = self.called(found);
                Ok::<_, GraphError>((found, tag, since))
            }
            Reference::Tag(tag) => {
                let tags = self.tags(serial);
                let tags = tags.into_iter().filter(|(name, ..)| **name == **tag);
                let unknown =
                    || GraphError::Unknown { what: "version", name: format!("{image} {version}") };
                let last = tags.max_by_key(|(_, since, serial)| (*since, *serial));
                let (tag, since, serial) = last.ok_or_else(unknown)?;
                Ok((serial, tag.to_owned(), since))
            }
        };
        let (now, tag, at) = resolve(version)?;
        if let Some(since) = since {
            return Ok((now, resolve(since)?.0));
        }
        let tags = self.tags(serial);
        let same = tags
            .iter()
            .filter(|(name, since, serial)| **name == *tag && (*since, *serial) < (at, now));
        if let Some((.., serial)) = same.max_by_key(|(_, since, serial)| (*since, *serial)) {
            return Ok((now, *serial));
        }
        let own = (self.called(now).1, now);
        let others = tags.iter().map(|(.., serial)| (self.called(*serial).1, *serial));
        let before = others.filter(|place| *place < own && !tag.is_empty()).max();
        before.map(|(_, serial)| (now, serial)).ok_or_else(|| GraphError::NoPredecessor {
            image: image.to_owned(),
            version: version.to_string(),
        })
    }

    fn called(&self, version: u64) -> (String, u64) {
        let tags = self.nodes.get(&version).map(|node| &*node.tags).unwrap_or_default();
        tags.iter().min_by_key(|(_, since)| *since).cloned().unwrap_or_default()
    }

    fn reach(&self, version: u64, image: &str) -> Result<BTreeSet<u64>, GraphError> {
        let (mut layers, mut seen) = (BTreeSet::new(), BTreeSet::from([version]));
        let mut frontier = vec![version];
        for _ in 0..=INDEX_DEPTH_MAX {
            let mut next = Vec::new();
            for node in frontier.iter().filter_map(|serial| self.nodes.get(serial)) {
                match node.kind {
                    Kind::Index => {
                        next.extend(node.contents.iter().filter(|child| seen.insert(**child)));
                    }
                    _ => layers.extend(&node.contents),
                }
            }
            if next.is_empty() {
                return Ok(layers);
            }
            frontier = next;
        }
        Err(GraphError::TooWide(image.to_owned()))
    }

    fn name(&self, serial: u64) -> String {
        match self.nodes.get(&serial).map(|node| &node.key) {
            Some(Key::Image(name) | Key::Customer(name)) => name.clone(),
            Some(Key::Content(digest) | Key::Version(_, digest)) => digest.to_string(),
            None => String::new(),
        }
    }

    fn row(&self, serial: u64) -> (Row, &Node) {
        let node = &self.nodes[&serial];
        (Row::new(node.kind, self.name(serial)), node)
    }

    fn brief(&self, serial: u64) -> Row {
        let (mut row, node) = self.row(serial);
        row.bytes = Some(node.bytes);
        row.versions = Some(self.with(serial).count() as u64);
        row
    }

    fn full(&self, serial: u64) -> Row {
        let (mut row, node) = (self.brief(serial), &self.nodes[&serial]);
        let places = self.with(serial).map(|(_, version)| {
            let below = version.contents.iter().take_while(|one| **one != serial).count();
            (below, version.contents.len() - 1 - below)
        });
        let places: Vec<(usize, usize)> = places.collect();
        row.below = Some(places.iter().map(|place| place.0).max().unwrap_or(0) as u64);
        row.above = Some(places.iter().map(|place| place.1).max().unwrap_or(0) as u64);
        row.first_unix_ms = Some(node.first);
        row.accesses = Some(node.accesses);
        row.last_unix_ms = Some(node.last);
        row.dependants = Some(self.dependants_of(serial));
        row
    }

    fn dependants_of(&self, content: u64) -> u64 {
        let mut of_customer: BTreeMap<u64, u64> = BTreeMap::new();
        let versions = self.with(content).filter(|(_, version)| version.kind != Kind::Index);
        for owner in versions.flat_map(|(_, version)| version.owners.iter()) {
            *of_customer.entry(*owner).or_default() += 1;
        }
        of_customer.values().map(|count| (*count).min(4)).sum()
    }

    /// What [`Graph::dependants`](crate::Graph::dependants) answers.
    pub fn dependants(&self, contents: &[Digest]) -> Vec<u64> {
        let serials = contents.iter().map(|digest| self.serials.get(&Key::Content(*digest)));
        serials.map(|serial| serial.map_or(0, |serial| self.dependants_of(*serial))).collect()
    }

    /// What [`Graph::progress`](crate::Graph::progress) answers.
    pub fn progress(&self, source: &str) -> Progress {
        let own = self.marks.iter().filter(|((of, ..), _)| of == source);
        let marks = own.map(|((_, edge, lane), (epoch, through))| {
            let (edge, lane, epoch, through) = (*edge, *lane, *epoch, *through);
            Mark { edge, lane, epoch, through }
        });
        Progress { last: self.positions.get(source).copied(), marks: marks.collect() }
    }

    fn image(&self, serial: u64) -> Row {
        let (mut row, node) = self.row(serial);
        let versions: Vec<&Node> =
            self.known().map(|(_, v)| v).filter(|v| self.image_of(v) == serial).collect();
        let layers = versions.iter().filter(|v| v.kind != Kind::Index).map(|v| v.contents.len());
        row.first_unix_ms = Some(node.first);
        row.depth = Some(layers.max().unwrap_or(0) as u64);
        row.versions = Some(versions.len() as u64);
        row
    }

    fn customer(&self, serial: u64) -> Row {
        let (mut row, node) = self.row(serial);
        row.first_unix_ms = Some(node.first);
        row
    }

    fn version(&self, serial: u64) -> Row {
        let (mut row, node) = self.row(serial);
        row.image = Some(self.name(self.image_of(node)));
        row.tag = Some(self.called(serial).0).filter(|tag| !tag.is_empty());
        row.first_unix_ms = Some(node.first);
        row.accesses = Some(node.accesses);
        row.last_unix_ms = Some(node.last);
        row
    }

    /// What [`Graph::stats`](crate::Graph::stats) says.
    pub fn stats(&self) -> Stats {
        let count = |kind| self.nodes.values().filter(|node| node.kind == kind).count() as u64;
        Stats {
            nodes: Kind::ALL.map(|kind| (kind.as_str().to_owned(), count(kind))).into(),
            contains: self.known().map(|(_, version)| version.contents.len() as u64).sum(),
            early: self.early.len() as u64,
            positions: self.positions.clone(),
        }
    }
}

/// The layers of these versions themselves.
fn layers_of<'a>(versions: impl Iterator<Item = (u64, &'a Node)>) -> BTreeSet<u64> {
    let images = versions.filter(|(_, version)| version.kind != Kind::Index);
    images.flat_map(|(_, version)| version.contents.clone()).collect()
}

fn answer(about: Vec<Row>, mut rows: Vec<Row>, limit: usize) -> Answer {
    let more = rows.len() > limit;
    rows.truncate(limit);
    Answer { about, rows, more }
}

/// Gives the batches and queries of a seed to a store and to the model, and says where they first differ.
///
/// # Errors
/// What was asked, what the store said, what the model said.
pub async fn compare(store: &dyn crate::Graph, seed: u64, batches: usize) -> Result<(), String> {
    let mut workload = crate::workload::Workload::new(seed);
    let mut model = Model::default();
    for number in 0..batches {
        let batch = workload.batch();
        let (ours, theirs) = (store.apply(batch.clone()).await, model.apply(&batch));
        if ours != Ok(theirs) {
            return Err(format!("seed {seed}, batch {number} {batch:?}: {ours:?}, not {theirs:?}"));
        }
        for asked in workload.queries() {
            let (ours, theirs) = (store.ask(asked.clone()).await, model.ask(&asked));
            if ours != theirs {
                let what = format!("seed {seed}, batch {number}, {asked:?}");
                return Err(format!("{what}:\n{ours:#?}\nis not\n{theirs:#?}"));
            }
        }
        let contents = workload.contents();
        let ours = store.dependants(contents.clone()).await;
        let theirs = model.dependants(&contents);
        if ours.as_ref() != Ok(&theirs) {
            return Err(format!(
                "seed {seed}, batch {number}, dependants: {ours:?}, not {theirs:?}"
            ));
        }
        if let Some(position) = batch.position {
            let ours = store.progress(position.source.clone()).await;
            let theirs = model.progress(&position.source);
            if ours.as_ref() != Ok(&theirs) {
                return Err(format!("seed {seed}, batch {number}: {ours:?}, not {theirs:?}"));
            }
        }
        let (ours, theirs) = (store.stats().await, model.stats());
        if ours.as_ref() != Ok(&theirs) {
            return Err(format!("seed {seed}, batch {number}: {ours:?}, not {theirs:?}"));
        }
    }
    Ok(())
}
