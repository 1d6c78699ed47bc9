//! The named queries over one snapshot of the tables.

use std::collections::{BTreeSet, HashMap, HashSet};

use outrider_artifact::{Digest, Reference};
use redb::{ReadOnlyTable, ReadTransaction, TableDefinition};

use super::tables::{
    ACCESSES, CONTAINS, CONTENT_NAMES, CONTENT_SHARES, CONTENT_STATES, CONTENTS, CUSTOMER_NAMES,
    CUSTOMERS, Fault, HISTORY, IMAGE_CONTENTS, IMAGE_NAMES, IMAGES, OWNED, OWNERS, PARENTS,
    SHARED_BY, TAGS, USES, VERSION_NAMES, VERSION_STATES, VERSIONS, damaged, digest_key, digest_of,
    unpack,
};
use crate::node::Kind;
use crate::query::{
    Answer, Asked, CO_USE_VERSIONS_MAX, INDEX_DEPTH_MAX, Query, REACH_MAX, Row, cut,
};
use crate::store::GraphError;

type Pairs = ReadOnlyTable<(u64, u64), ()>;

/// The tables that rows are made from; others are opened where they are used.
pub(super) struct Reader<'t> {
    snapshot: &'t ReadTransaction,
    contents: ReadOnlyTable<u64, (u8, &'static [u8], u64)>,
    states: ReadOnlyTable<u64, (u64, u64, u64, u64, u64)>,
    contains: ReadOnlyTable<u64, &'static [u8]>,
    accesses: ReadOnlyTable<u64, (u64, u64)>,
    images: ReadOnlyTable<u64, (&'static str, u64, u64, u64)>,
    versions: ReadOnlyTable<u64, (u64, &'static [u8])>,
    version_states: ReadOnlyTable<u64, (u8, bool, u64, u64, &'static str, u64)>,
}

/// The second halves of the pairs that begin with `first`, from `after` on.
fn seconds(
    table: &Pairs,
    first: u64,
) -> Result<impl DoubleEndedIterator<Item = Result<u64, Fault>>, Fault> {
    let range = table.range((first, 0)..=(first, u64::MAX))?;
    Ok(range.map(|entry| Ok(entry?.0.value().1)))
}

impl<'t> Reader<'t> {
    pub(super) fn new(snapshot: &'t ReadTransaction) -> Result<Self, Fault> {
        Ok(Self {
            snapshot,
            contents: snapshot.open_table(CONTENTS)?,
            states: snapshot.open_table(CONTENT_STATES)?,
            contains: snapshot.open_table(CONTAINS)?,
            accesses: snapshot.open_table(ACCESSES)?,
            images: snapshot.open_table(IMAGES)?,
            versions: snapshot.open_table(VERSIONS)?,
            version_states: snapshot.open_table(VERSION_STATES)?,
        })
    }

    pub(super) fn answer(&self, asked: &Asked) -> Result<Answer, Fault> {
        let limit = asked.limit;
        match &asked.query {
            Query::Images { layer } => self.images(layer, limit),
            Query::SharedByImages { images } => {
                let [a, b] = [self.image(&images[0])?, self.image(&images[1])?];
                let about = vec![self.image_row(a)?, self.image_row(b)?];
                self.shared(IMAGE_CONTENTS, [a, b], about, limit)
            }
            Query::SharedByCustomers { customers } => {
                let [a, b] = [self.customer(&customers[0])?, self.customer(&customers[1])?];
                let about = vec![self.customer_row(a)?, self.customer_row(b)?];
                self.shared(OWNED, [a, b], about, limit)
            }
            Query::LayerDepth { layer } => {
                let layer = self.content(layer)?;
                let row = self.content_row_in_full(layer)?;
                Ok(Answer { about: Vec::new(), rows: vec![row], more: false })
            }
            Query::ImageDepth { image } => {
                let image = self.image(image)?;
                let row = self.image_row(image)?;
                Ok(Answer { about: Vec::new(), rows: vec![row], more: false })
            }
            Query::Added { image, version, since } => {
                self.added(image, version, since.as_ref(), limit)
            }
            Query::Neighbours { layer } => self.neighbours(layer, limit),
            Query::Affected { layer } => self.affected(layer, limit),
        }
    }

    fn named(
        &self,
        names: TableDefinition<'static, &'static str, u64>,
        what: &'static str,
        name: &str,
    ) -> Result<u64, Fault> {
        let serial = self.snapshot.open_table(names)?.get(name)?.map(|serial| serial.value());
        serial.ok_or_else(|| GraphError::Unknown { what, name: name.to_owned() }.into())
    }

    fn image(&self, name: &str) -> Result<u64, Fault> {
        self.named(IMAGE_NAMES, "image", name)
    }

    fn customer(&self, name: &str) -> Result<u64, Fault> {
        self.named(CUSTOMER_NAMES, "customer", name)
    }

    fn content(&self, digest: &Digest) -> Result<u64, Fault> {
        let names = self.snapshot.open_table(CONTENT_NAMES)?;
        let serial = names.get(&*digest_key(digest))?.map(|serial| serial.value());
        let unknown = || GraphError::Unknown { what: "layer", name: digest.to_string() };
        serial.ok_or_else(|| unknown().into())
    }

    fn image_row(&self, serial: u64) -> Result<Row, Fault> {
        let row = self.images.get(serial)?.ok_or_else(|| damaged("image", serial))?;
        let (name, first_unix_ms, versions, depth) = row.value();
        let mut row = Row::new(Kind::Image, name);
        row.first_unix_ms = Some(first_unix_ms);
        row.versions = Some(versions);
        row.depth = Some(depth);
        Ok(row)
    }

    fn customer_row(&self, serial: u64) -> Result<Row, Fault> {
        let customers = self.snapshot.open_table(CUSTOMERS)?;
        let row = customers.get(serial)?.ok_or_else(|| damaged("customer", serial))?;
        let (name, first_unix_ms) = row.value();
        let mut row = Row::new(Kind::Customer, name);
        row.first_unix_ms = Some(first_unix_ms);
        Ok(row)
    }

    /// Kind, digest, length.
    fn content_row(&self, serial: u64) -> Result<Row, Fault> {
        let row = self.contents.get(serial)?.ok_or_else(|| damaged("content", serial))?;
        let (kind, digest, bytes) = row.value();
        let (Some(kind), Some(digest)) = (Kind::of_code(kind), digest_of(digest)) else {
            return Err(damaged("content", serial));
        };
        let mut row = Row::new(kind, digest.to_string());
        row.bytes = Some(bytes);
        Ok(row)
    }

    /// With how many versions have it.
    fn content_row_with_versions(&self, serial: u64) -> Result<Row, Fault> {
        let mut row = self.content_row(serial)?;
        let state = self.states.get(serial)?.ok_or_else(|| damaged("content", serial))?;
        row.versions = Some(state.value().1);
        Ok(row)
    }

    /// With everything that is known of it.
    fn content_row_in_full(&self, serial: u64) -> Result<Row, Fault> {
        let mut row = self.content_row(serial)?;
        let state = self.states.get(serial)?.ok_or_else(|| damaged("content", serial))?;
        let (first_unix_ms, versions, below, above, dependants) = state.value();
        let (accesses, last_unix_ms) = self.accesses.get(serial)?.map_or((0, 0), |row| row.value());
        row.first_unix_ms = Some(first_unix_ms);
        row.versions = Some(versions);
        row.below = Some(below);
        row.above = Some(above);
        row.dependants = Some(dependants);
        row.accesses = Some(accesses);
        row.last_unix_ms = Some(last_unix_ms);
        Ok(row)
    }

    fn version_row(&self, serial: u64) -> Result<Row, Fault> {
        let wrong = || damaged("version", serial);
        let named = self.versions.get(serial)?.ok_or_else(wrong)?;
        let (image, digest) = named.value();
        let digest = digest_of(digest).ok_or_else(wrong)?;
        let state = self.version_states.get(serial)?.ok_or_else(wrong)?;
        let (kind, _, _, first_unix_ms, tag, _) = state.value();
        let kind = Kind::of_code(kind).ok_or_else(wrong)?;
        let image = self.images.get(image)?.ok_or_else(wrong)?;
        let (accesses, last_unix_ms) = self.accesses.get(serial)?.map_or((0, 0), |row| row.value());
        let mut row = Row::new(kind, digest.to_string());
        row.image = Some(image.value().0.to_owned());
        row.tag = (!tag.is_empty()).then(|| tag.to_owned());
        row.first_unix_ms = Some(first_unix_ms);
        row.accesses = Some(accesses);
        row.last_unix_ms = Some(last_unix_ms);
        Ok(row)
    }

    fn images(&self, layer: &Digest, limit: usize) -> Result<Answer, Fault> {
        let layer = self.content(layer)?;
        let shared = self.snapshot.open_table(SHARED_BY)?;
        let mut rows = Vec::new();
        for entry in shared.range((layer, 0)..=(layer, u64::MAX))?.take(limit + 1) {
            let (key, count) = entry?;
            let image = key.value().1;
            let named = self.images.get(image)?.ok_or_else(|| damaged("image", image))?;
            let mut row = Row::new(Kind::Image, named.value().0);
            row.versions = Some(count.value());
            rows.push(row);
        }
        let more = cut(&mut rows, limit);
        Ok(Answer { about: vec![self.content_row_with_versions(layer)?], rows, more })
    }

    /// Both ranges are ordered, so that one pass over them finds what they have in common.
    fn shared(
        &self,
        table: TableDefinition<'static, (u64, u64), ()>,
        [a, b]: [u64; 2],
        about: Vec<Row>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        let table = self.snapshot.open_table(table)?;
        let (mut left, mut right) = (seconds(&table, a)?, seconds(&table, b)?);
        let mut common = Vec::new();
        let mut heads = (left.next().transpose()?, right.next().transpose()?);
        while let (Some(one), Some(other)) = heads
            && common.len() <= limit
        {
            if one == other {
                common.push(one);
            }
            if one <= other {
                heads.0 = left.next().transpose()?;
            }
            if other <= one {
                heads.1 = right.next().transpose()?;
            }
        }
        let more = cut(&mut common, limit);
        let rows = common.into_iter().map(|serial| self.content_row_with_versions(serial));
        Ok(Answer { about, rows: rows.collect::<Result<_, _>>()?, more })
    }

    fn neighbours(&self, layer: &Digest, limit: usize) -> Result<Answer, Fault> {
        let layer = self.content(layer)?;
        let uses = self.snapshot.open_table(USES)?;
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for version in seconds(&uses, layer)?.rev().take(CO_USE_VERSIONS_MAX) {
            let version = version?;
            let row = self.contains.get(version)?.ok_or_else(|| damaged("version", version))?;
            for content in unpack(row.value()).filter(|content| *content != layer) {
                *counts.entry(content).or_default() += 1;
            }
        }
        let mut counts: Vec<(u64, u64)> = counts.into_iter().collect();
        counts.sort_unstable_by_key(|(serial, count)| (std::cmp::Reverse(*count), *serial));
        let more = cut(&mut counts, limit);
        let rows = counts.into_iter().map(|(serial, count)| {
            let mut row = self.content_row_with_versions(serial)?;
            row.together = Some(count);
            Ok(row)
        });
        let rows = rows.collect::<Result<_, Fault>>()?;
        Ok(Answer { about: vec![self.content_row_with_versions(layer)?], rows, more })
    }

    fn affected(&self, layer: &Digest, limit: usize) -> Result<Answer, Fault> {
        let layer = self.content(layer)?;
        let uses = self.snapshot.open_table(USES)?;
        let mut versions =
            seconds(&uses, layer)?.rev().take(limit + 1).collect::<Result<Vec<_>, _>>()?;
        let mut more = cut(&mut versions, limit);
        let (indexes, cut_off) = self.indexes_over(&versions, limit)?;
        more |= cut_off;

        let shared = self.snapshot.open_table(SHARED_BY)?;
        let range = shared.range((layer, 0)..=(layer, u64::MAX))?.take(limit + 1);
        let mut images = range.map(|e| Ok(e?.0.value().1)).collect::<Result<Vec<_>, Fault>>()?;
        more |= cut(&mut images, limit);

        // Of each source the first ones are enough for the first ones of all.
        let mut customers = BTreeSet::new();
        let shares = self.snapshot.open_table(CONTENT_SHARES)?;
        for entry in shares.range((layer, 0)..=(layer, u64::MAX))?.take(limit + 1) {
            customers.insert(entry?.0.value().1);
        }
        let owners = self.snapshot.open_table(OWNERS)?;
        for index in &indexes {
            for customer in seconds(&owners, *index)?.take(limit + 1) {
                customers.insert(customer?);
            }
        }
        let mut customers: Vec<u64> = customers.into_iter().collect();
        more |= cut(&mut customers, limit);

        let mut rows = Vec::new();
        for customer in customers {
            rows.push(self.customer_row(customer)?);
        }
        for image in images {
            rows.push(self.image_row(image)?);
        }
        for version in versions.into_iter().chain(indexes) {
            rows.push(self.version_row(version)?);
        }
        Ok(Answer { about: vec![self.content_row_in_full(layer)?], rows, more })
    }

    /// The newest indexes through which these versions are had, and whether there are more.
    fn indexes_over(&self, versions: &[u64], limit: usize) -> Result<(Vec<u64>, bool), Fault> {
        let parents = self.snapshot.open_table(PARENTS)?;
        let mut seen: HashSet<u64> = versions.iter().copied().collect();
        let (mut all, mut more, mut frontier) = (Vec::<u64>::new(), false, versions.to_vec());
        for _ in 0..INDEX_DEPTH_MAX {
            let mut above = BTreeSet::new();
            for version in &frontier {
                let unseen = seconds(&parents, *version)?
                    .rev()
                    .filter(|parent| !parent.as_ref().is_ok_and(|parent| seen.contains(parent)));
                for parent in unseen.take(limit + 1) {
                    above.insert(parent?);
                }
            }
            frontier = above.into_iter().rev().collect();
            more |= cut(&mut frontier, limit);
            if frontier.is_empty() {
                break;
            }
            seen.extend(&frontier);
            all.extend(&frontier);
        }
        all.sort_unstable_by(|a, b| b.cmp(a));
        more |= cut(&mut all, limit);
        Ok((all, more))
    }

    /// A version and when it became what it was asked for.
    fn resolve(&self, image: u64, name: &str, version: &Reference) -> Result<Place, Fault> {
        let unknown = || GraphError::Unknown { what: "version", name: format!("{name} {version}") };
        match version {
            Reference::Tag(tag) => {
                let tags = self.snapshot.open_table(TAGS)?;
                let range = (image, &**tag, 0, 0)..=(image, &**tag, u64::MAX, u64::MAX);
                let last = tags.range(range)?.next_back().transpose()?;
                let (_, _, since, version) = last.ok_or_else(unknown)?.0.value();
                Ok(Place { version, tag: tag.to_string(), since })
            }
            Reference::Digest(digest) => {
                let names = self.snapshot.open_table(VERSION_NAMES)?;
                let serial = names.get((image, &*digest_key(digest)))?;
                let version = serial.map(|serial| serial.value()).ok_or_else(unknown)?;
                let (tag, since) = self.called(version)?;
                Ok(Place { version, tag, since })
            }
        }
    }

    fn called(&self, version: u64) -> Result<(String, u64), Fault> {
        let state = self.version_states.get(version)?.ok_or_else(|| damaged("version", version))?;
        let (_, _, _, _, tag, since) = state.value();
        Ok((tag.to_owned(), since))
    }

    /// What the tag meant before; else the version of the image that had its tag before.
    fn predecessor(&self, image: u64, place: &Place) -> Result<Option<u64>, Fault> {
        let Place { version, tag, since } = place;
        if tag.is_empty() {
            return Ok(None);
        }
        let tags = self.snapshot.open_table(TAGS)?;
        let range = (image, &**tag, 0, 0)..(image, &**tag, *since, *version);
        if let Some(entry) = tags.range(range)?.next_back() {
            return Ok(Some(entry?.0.value().3));
        }
        let history = self.snapshot.open_table(HISTORY)?;
        let (_, called) = self.called(*version)?;
        let before = history.range((image, 0, 0)..(image, called, *version))?.next_back();
        before.map(|entry| Ok(entry?.0.value().2)).transpose()
    }

    /// All layers of a version, through indexes.
    fn reach(&self, version: u64, image: &str) -> Result<BTreeSet<u64>, Fault> {
        let too_wide = || Fault::from(GraphError::TooWide(image.to_owned()));
        let (mut layers, mut seen) = (BTreeSet::new(), HashSet::from([version]));
        let mut frontier = vec![version];
        for _ in 0..=INDEX_DEPTH_MAX {
            let mut next = Vec::new();
            for version in std::mem::take(&mut frontier) {
                let state =
                    self.version_states.get(version)?.ok_or_else(|| damaged("version", version))?;
                let (kind, known, ..) = state.value();
                if !known {
                    continue;
                }
                let row = self.contains.get(version)?.ok_or_else(|| damaged("version", version))?;
                if kind == Kind::Index.code() {
                    next.extend(unpack(row.value()).filter(|child| seen.insert(*child)));
                } else {
                    layers.extend(unpack(row.value()));
                }
            }
            if seen.len() > REACH_MAX {
                return Err(too_wide());
            }
            if next.is_empty() {
                return Ok(layers);
            }
            frontier = next;
        }
        Err(too_wide())
    }

    fn added(
        &self,
        image: &str,
        version: &Reference,
        since: Option<&Reference>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        let serial = self.image(image)?;
        let place = self.resolve(serial, image, version)?;
        let before = match since {
            Some(since) => self.resolve(serial, image, since)?.version,
            None => self.predecessor(serial, &place)?.ok_or_else(|| GraphError::NoPredecessor {
                image: image.to_owned(),
                version: version.to_string(),
            })?,
        };
        let (now, then) = (self.reach(place.version, image)?, self.reach(before, image)?);
        let mut added: Vec<u64> = now.difference(&then).copied().take(limit + 1).collect();
        let more = cut(&mut added, limit);
        let rows = added.into_iter().map(|serial| self.content_row_with_versions(serial));
        let about = vec![self.version_row(place.version)?, self.version_row(before)?];
        Ok(Answer { about, rows: rows.collect::<Result<_, _>>()?, more })
    }
}

/// A version as it was asked for.
struct Place {
    version: u64,
    /// The tag, or empty.
    tag: String,
    /// Since when it has it.
    since: u64,
}
