//! What a batch changes in a graph of which the relevant part is known. Pure: a store loads what
//! [`Needs`] names, and writes what [`Changes`] says, in one transaction. So every store gives the same serials
//! and counts the same.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use outrider_artifact::Digest;

use crate::batch::Batch;
use crate::node::Kind;
use crate::store::GraphError;

/// The most tags of one version that are kept; more are not.
pub const TAGS_MAX: usize = 256;
/// Versions of one customer that count as dependants of a content, so that nobody makes a content important alone.
pub const DEPENDANTS_OF_CUSTOMER_MAX: u64 = 4;
/// Contents and versions that were asked for and are not in the graph: how many the accesses are kept of. A new one
/// takes the place of the one that came first.
pub const EARLY_MAX: u64 = 65_536;
/// The most nodes of a graph. Serials stay well below what any store's integers hold.
pub const NODES_MAX: u64 = u32::MAX as u64;

/// What must be known before a batch can be planned. Each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of images.
    pub images: Vec<String>,
    /// Names of customers.
    pub customers: Vec<String>,
    /// Layers, components and functions; also what accesses name.
    pub contents: Vec<Digest>,
    /// Versions: image and digest.
    pub versions: Vec<(String, Digest)>,
}

/// What counts change of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageState {
    /// When it was first seen, in milliseconds since 1970.
    pub first_unix_ms: u64,
    /// Its versions of which the contents are known.
    pub versions: u64,
    /// The most layers of one of them.
    pub depth: u64,
}

/// What changes of a content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentState {
    /// When it was first seen, in milliseconds since 1970.
    pub first_unix_ms: u64,
    /// How many versions have it.
    pub versions: u64,
    /// The most layers under it in one of them.
    pub below: u64,
    /// The most layers on it in one of them.
    pub above: u64,
}

/// What changes of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionState {
    /// [`Kind::Index`] or [`Kind::Version`].
    pub kind: Kind,
    /// Whether its contents are known; otherwise it is only known as an index's.
    pub known: bool,
    /// The length of the manifest.
    pub bytes: u64,
    /// When it was first seen, in milliseconds since 1970.
    pub first_unix_ms: u64,
    /// Its tags, and when each was first given to it, in the order in which they came. The first in time
    /// (of equals, in this order) is what it is called by.
    pub tags: Vec<(String, u64)>,
}

impl VersionState {
    /// The tag that it is called by, and when it was given to it.
    pub fn called(&self) -> Option<&(String, u64)> {
        self.tags.iter().min_by_key(|(_, unix_ms)| *unix_ms)
    }
}

/// Accesses to what is not in the graph yet, through one repository or none: they are counted when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Early {
    /// How many.
    pub count: u64,
    /// The last one, in milliseconds since 1970.
    pub last_unix_ms: u64,
    /// The number by which it came, from 1. What came [`EARLY_MAX`] before the last one is left out.
    pub order: u64,
}

/// Early accesses by digest and repository, which is empty for none.
pub type EarlyAccesses = BTreeMap<(Digest, String), Early>;

/// The part of a graph that a batch is about: with serials.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The last serial that was given.
    pub last: u64,
    /// Images by name.
    pub images: HashMap<String, (u64, ImageState)>,
    /// Customers by name.
    pub customers: HashMap<String, u64>,
    /// Contents by digest.
    pub contents: HashMap<Digest, (u64, ContentState)>,
    /// Versions by the serial of their image, and their digest.
    pub versions: HashMap<(u64, Digest), (u64, VersionState)>,
    /// Early accesses to what is needed and is not there. More do not matter.
    pub early: EarlyAccesses,
    /// The last number that one of them was given.
    pub early_last: u64,
}

/// A new node. Its state stands in the changed states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum New {
    /// An image by its name.
    Image(String),
    /// A customer by its name, and when it was first seen.
    Customer(String, u64),
    /// A layer, a component or a function.
    Content {
        /// Which of them.
        kind: Kind,
        /// Its digest.
        digest: Digest,
        /// Its length.
        bytes: u64,
    },
    /// A version of an image.
    Version {
        /// The image's serial.
        image: u64,
        /// Its digest.
        digest: Digest,
    },
}

/// A version of which the contents are known from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contains {
    /// The version.
    pub version: u64,
    /// Its image.
    pub image: u64,
    /// [`Kind::Version`] or [`Kind::Index`].
    pub kind: Kind,
    /// What it consists of, the base first.
    pub contents: Vec<u64>,
}

/// A version that a customer has, perhaps not for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The version.
    pub version: u64,
    /// Its image.
    pub image: u64,
    /// The customer.
    pub customer: u64,
    /// The version's own layers, components and functions.
    pub contents: Vec<u64>,
}

/// A tag of a version that is new, or was given earlier than was known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The image.
    pub image: u64,
    /// The version.
    pub version: u64,
    /// The tag.
    pub tag: String,
    /// When it was given.
    pub unix_ms: u64,
    /// When it was thought to have been given.
    pub before: Option<u64>,
}

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New nodes by serial, without gaps after the last that was known.
    pub new: BTreeMap<u64, New>,
    /// States of images, new and changed.
    pub images: BTreeMap<u64, ImageState>,
    /// States of contents, new and changed.
    pub contents: BTreeMap<u64, ContentState>,
    /// States of versions, new and changed.
    pub versions: BTreeMap<u64, VersionState>,
    /// Where the contents became known. Each version once in a graph's life.
    pub contains: Vec<Contains>,
    /// Who has what. May repeat what the graph knows; each pair once in a batch.
    pub owned: Vec<Owned>,
    /// Layers that customers have by themselves. May repeat what the graph knows; each pair once in a batch.
    pub alone: BTreeSet<(u64, u64)>,
    /// Tags.
    pub tagged: Vec<Tagged>,
    /// Accesses: how many more, and when the last one was.
    pub accesses: BTreeMap<u64, (u64, u64)>,
    /// Early accesses that are new or changed, and those that are not any more.
    pub early: BTreeMap<(Digest, String), Option<Early>>,
    /// The last number that one of them was given. Those of [`EARLY_MAX`] before it and older are to be left out.
    pub early_last: u64,
    /// Accesses to what is not in the graph.
    pub unknown: u64,
}

/// What must be known before `batch` can be planned.
pub fn needs(batch: &Batch) -> Needs {
    let mut needs = Needs::default();
    let (mut images, mut customers) = (HashSet::new(), HashSet::new());
    let (mut contents, mut versions) = (HashSet::new(), HashSet::new());
    for found in &batch.found {
        if images.insert(&*found.image) {
            needs.images.push(found.image.to_string());
        }
        if customers.insert(&found.customer) {
            needs.customers.push(found.customer.clone());
        }
        let children = found.contents.iter().filter(|content| content.kind == Kind::Version);
        for digest in children.map(|content| content.digest).chain([found.digest]) {
            if versions.insert((&*found.image, digest)) {
                needs.versions.push((found.image.to_string(), digest));
            }
        }
        for content in found.contents.iter().filter(|content| content.kind.is_content()) {
            if contents.insert(content.digest) {
                needs.contents.push(content.digest);
            }
        }
    }
    for alone in &batch.alone {
        if customers.insert(&alone.customer) {
            needs.customers.push(alone.customer.clone());
        }
        if contents.insert(alone.digest) {
            needs.contents.push(alone.digest);
        }
    }
    for access in &batch.accesses {
        if let Some(image) = &access.image {
            if images.insert(&**image) {
                needs.images.push(image.to_string());
            }
            if versions.insert((&**image, access.digest)) {
                needs.versions.push((image.to_string(), access.digest));
            }
        }
        if contents.insert(access.digest) {
            needs.contents.push(access.digest);
        }
    }
    needs
}

/// Plans a batch that was [checked](Batch::check) in a graph of which `known` is known.
///
/// # Errors
/// [`GraphError::Full`]
pub fn plan(batch: &Batch, known: Known) -> Result<Changes, GraphError> {
    let mut planner = Planner { owned: HashSet::new(), known, changes: Changes::default() };
    for found in &batch.found {
        planner.take(found);
    }
    for alone in &batch.alone {
        planner.take_alone(alone);
    }
    for access in &batch.accesses {
        planner.count(access);
    }
    planner.changes.early_last = planner.known.early_last;
    let last = planner.known.last;
    if last > NODES_MAX {
        return Err(GraphError::Full(NODES_MAX));
    }
    Ok(planner.changes)
}

struct Planner {
    known: Known,
    changes: Changes,
    /// Version and customer.
    owned: HashSet<(u64, u64)>,
}

impl Planner {
    fn add(&mut self, new: New) -> u64 {
        self.known.last += 1;
        self.changes.new.insert(self.known.last, new);
        self.known.last
    }

    fn image(&mut self, name: &str, unix_ms: u64) -> u64 {
        let serial = match self.known.images.get(name) {
            Some((serial, state)) if state.first_unix_ms <= unix_ms => return *serial,
            Some((serial, _)) => *serial,
            None => self.add(New::Image(name.to_owned())),
        };
        let new = (serial, ImageState { first_unix_ms: unix_ms, ..ImageState::default() });
        let (_, state) = self.known.images.entry(name.to_owned()).or_insert(new);
        state.first_unix_ms = unix_ms;
        self.changes.images.insert(serial, *state);
        serial
    }

    fn customer(&mut self, name: &str, unix_ms: u64) -> u64 {
        if let Some(serial) = self.known.customers.get(name) {
            return *serial;
        }
        let serial = self.add(New::Customer(name.to_owned(), unix_ms));
        self.known.customers.insert(name.to_owned(), serial);
        serial
    }

    fn version(&mut self, image: u64, name: &str, digest: Digest, unix_ms: u64) -> u64 {
        let serial = match self.known.versions.get(&(image, digest)) {
            Some((serial, state)) if state.first_unix_ms <= unix_ms => return *serial,
            Some((serial, _)) => *serial,
            None => {
                let serial = self.add(New::Version { image, digest });
                self.came(serial, (digest, name.to_owned()));
                serial
            }
        };
        let new = VersionState {
            kind: Kind::Version,
            known: false,
            bytes: 0,
            first_unix_ms: unix_ms,
            tags: Vec::new(),
        };
        let entry = self.known.versions.entry((image, digest)).or_insert((serial, new));
        entry.1.first_unix_ms = unix_ms;
        self.changes.versions.insert(serial, entry.1.clone());
        serial
    }

    fn content(&mut self, content: &crate::batch::Content, unix_ms: u64) -> u64 {
        let crate::batch::Content { kind, digest, bytes } = *content;
        let serial = match self.known.contents.get(&digest) {
            Some((serial, state)) if state.first_unix_ms <= unix_ms => return *serial,
            Some((serial, _)) => *serial,
            None => {
                let serial = self.add(New::Content { kind, digest, bytes });
                let early = self.known.early.range((digest, String::new())..);
                let early = early.take_while(|((of, _), _)| *of == digest);
                let early: Vec<_> = early.map(|(key, _)| key.clone()).collect();
                early.into_iter().for_each(|key| self.came(serial, key));
                serial
            }
        };
        let new = (serial, ContentState { first_unix_ms: unix_ms, ..ContentState::default() });
        let (_, state) = self.known.contents.entry(digest).or_insert(new);
        state.first_unix_ms = unix_ms;
        self.changes.contents.insert(serial, *state);
        serial
    }

    fn take(&mut self, found: &crate::batch::Found) {
        let at = found.unix_ms;
        let image = self.image(&found.image, at);
        let customer = self.customer(&found.customer, at);
        let version = self.version(image, &found.image, found.digest, at);
        let is_index = found.kind == Kind::Index;
        let contents: Vec<u64> = found
            .contents
            .iter()
            .map(|content| match is_index {
                true => self.version(image, &found.image, content.digest, at),
                false => self.content(content, at),
            })
            .collect();
        self.tag(found, image, version);
        if self.owned.insert((version, customer)) {
            let contents = if is_index { Vec::new() } else { contents.clone() };
            self.changes.owned.push(Owned { version, image, customer, contents });
        }
        let Some((_, state)) = self.known.versions.get_mut(&(image, found.digest)) else { return };
        if state.known {
            return;
        }
        state.known = true;
        state.kind = found.kind;
        state.bytes = found.bytes;
        self.changes.versions.insert(version, state.clone());
        self.learn(found, image);
        self.changes.contains.push(Contains { version, image, kind: found.kind, contents });
    }

    fn take_alone(&mut self, alone: &crate::batch::Alone) {
        let crate::batch::Alone { digest, bytes, customer, unix_ms } = alone;
        let customer = self.customer(customer, *unix_ms);
        let content = crate::batch::Content { kind: Kind::Layer, digest: *digest, bytes: *bytes };
        let content = self.content(&content, *unix_ms);
        self.changes.alone.insert((content, customer));
    }

    /// Counts what was asked for before there was this node.
    fn came(&mut self, serial: u64, key: (Digest, String)) {
        let Some(Early { count, last_unix_ms, .. }) = self.known.early.remove(&key) else { return };
        self.changes.early.insert(key, None);
        self.add_accesses(serial, count, last_unix_ms);
    }

    fn add_accesses(&mut self, serial: u64, more: u64, unix_ms: u64) {
        let (count, last) = self.changes.accesses.entry(serial).or_default();
        *count = count.saturating_add(more);
        *last = (*last).max(unix_ms);
    }

    /// What follows from a version's contents for them and for its image.
    fn learn(&mut self, found: &crate::batch::Found, image: u64) {
        let count = if found.kind == Kind::Index { 0 } else { found.contents.len() as u64 };
        if let Some((_, state)) = self.known.images.get_mut(&*found.image) {
            state.versions += 1;
            state.depth = state.depth.max(count);
            self.changes.images.insert(image, *state);
        }
        for (below, content) in (0..count).zip(&found.contents) {
            if let Some((serial, state)) = self.known.contents.get_mut(&content.digest) {
                state.versions += 1;
                state.below = state.below.max(below);
                state.above = state.above.max(count - 1 - below);
                self.changes.contents.insert(*serial, *state);
            }
        }
    }

    fn tag(&mut self, found: &crate::batch::Found, image: u64, version: u64) {
        let Some(tag) = &found.tag else { return };
        let Some((_, state)) = self.known.versions.get_mut(&(image, found.digest)) else { return };
        let unix_ms = found.unix_ms;
        let before = match state.tags.iter().position(|(known, _)| **known == **tag) {
            Some(at) if state.tags[at].1 <= unix_ms => return,
            Some(at) => Some(std::mem::replace(&mut state.tags[at].1, unix_ms)),
            None if state.tags.len() == TAGS_MAX => return,
            None => {
                state.tags.push((tag.to_string(), unix_ms));
                None
            }
        };
        self.changes.versions.insert(version, state.clone());
        let tag = tag.to_string();
        self.changes.tagged.push(Tagged { image, version, tag, unix_ms, before });
    }

    fn count(&mut self, access: &crate::batch::Access) {
        let image = access.image.as_ref().and_then(|image| self.known.images.get(&**image));
        let version =
            image.and_then(|(image, _)| self.known.versions.get(&(*image, access.digest)));
        let content = || self.known.contents.get(&access.digest).map(|(serial, _)| *serial);
        match version.map(|(serial, _)| *serial).or_else(content) {
            None => self.keep(access),
            Some(serial) => self.add_accesses(serial, access.count, access.unix_ms),
        }
    }

    /// Keeps an access until there is what was asked for.
    fn keep(&mut self, access: &crate::batch::Access) {
        self.changes.unknown += access.count;
        let image = access.image.as_ref().map_or_else(String::new, |image| image.to_string());
        let key = (access.digest, image);
        let early = match self.known.early.get(&key) {
            Some(early) => *early,
            None => {
                self.known.early_last += 1;
                Early { count: 0, last_unix_ms: 0, order: self.known.early_last }
            }
        };
        let count = early.count.saturating_add(access.count);
        let last_unix_ms = early.last_unix_ms.max(access.unix_ms);
        let early = Early { count, last_unix_ms, ..early };
        self.known.early.insert(key.clone(), early);
        self.changes.early.insert(key, Some(early));
    }
}
