//! Applying a batch to the tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::{Database, ReadableTable as _, WriteTransaction};

use super::tables::{
    ACCESSES, CONTAINS, CONTENT_NAMES, CONTENT_OWNERS, CONTENT_STATES, CONTENTS, CUSTOMER_NAMES,
    CUSTOMERS, Dependants, Fault, HISTORY, IMAGE_CONTENTS, IMAGE_NAMES, IMAGES, MARKS, META,
    META_CONTAINS, META_LAST, OWNED, OWNERS, PARENTS, POSITIONS, SHARED_BY, TAGS, USES,
    VERSION_NAMES, VERSION_STATES, VERSION_TAGS, VERSIONS, damaged, digest_key, pack,
};
use crate::batch::{Batch, Mark};
use crate::node::Kind;
use crate::plan::{
    Changes, ContentState, ImageState, Known, Needs, New, VersionState, needs, plan,
};
use crate::store::Applied;

/// Applies a checked batch in one transaction, with one flush of the disk.
pub(super) fn apply(database: &Database, batch: &Batch) -> Result<Applied, Fault> {
    let transaction = database.begin_write()?;
    if let Some(position) = &batch.position {
        let mut positions = transaction.open_table(POSITIONS)?;
        let reached = positions.get(&*position.source)?.map(|last| last.value());
        if !position.is_due(reached) {
            return Ok(Applied { repeated: true, ..Applied::default() });
        }
        positions.insert(&*position.source, position.last)?;
        let mut marks = transaction.open_table(MARKS)?;
        for Mark { edge, lane, epoch, through } in &batch.marks {
            marks.insert((&*position.source, *edge, *lane), (*epoch, *through))?;
        }
    }
    let changes = plan(batch, load(&transaction, &needs(batch))?)?;
    write_nodes(&transaction, &changes)?;
    write_edges(&transaction, &changes)?;
    write_tags(&transaction, &changes)?;
    write_counts(&transaction, &changes)?;
    transaction.commit()?;
    Ok(Applied {
        repeated: false,
        nodes: changes.new.len() as u64,
        versions: changes.contains.len() as u64,
        unknown: changes.unknown,
    })
}

fn load(transaction: &WriteTransaction, needs: &Needs) -> Result<Known, Fault> {
    let last = transaction.open_table(META)?.get(META_LAST)?.map_or(0, |last| last.value());
    let mut known = Known { last, ..Known::default() };
    let (names, images) = (transaction.open_table(IMAGE_NAMES)?, transaction.open_table(IMAGES)?);
    for name in &needs.images {
        let Some(serial) = names.get(&**name)?.map(|serial| serial.value()) else { continue };
        let row = images.get(serial)?.ok_or_else(|| damaged("image", serial))?;
        let (_, first_unix_ms, versions, depth) = row.value();
        let state = ImageState { first_unix_ms, versions, depth };
        known.images.insert(name.clone(), (serial, state));
    }
    let names = transaction.open_table(CUSTOMER_NAMES)?;
    for name in &needs.customers {
        if let Some(serial) = names.get(&**name)? {
            known.customers.insert(name.clone(), serial.value());
        }
    }
    let (names, states) =
        (transaction.open_table(CONTENT_NAMES)?, transaction.open_table(CONTENT_STATES)?);
    for digest in &needs.contents {
        let serial = names.get(&*digest_key(digest))?.map(|serial| serial.value());
        let Some(serial) = serial else { continue };
        let row = states.get(serial)?.ok_or_else(|| damaged("content", serial))?;
        let (first_unix_ms, versions, below, above) = row.value();
        let state = ContentState { first_unix_ms, versions, below, above };
        known.contents.insert(*digest, (serial, state));
    }
    let names = transaction.open_table(VERSION_NAMES)?;
    let (states, tags) =
        (transaction.open_table(VERSION_STATES)?, transaction.open_table(VERSION_TAGS)?);
    for (image, digest) in &needs.versions {
        let Some((image, _)) = known.images.get(image) else { continue };
        let serial = names.get((*image, &*digest_key(digest)))?.map(|serial| serial.value());
        let Some(serial) = serial else { continue };
        let row = states.get(serial)?.ok_or_else(|| damaged("version", serial))?;
        let (kind, is_known, bytes, first_unix_ms, _, _) = row.value();
        let kind = Kind::of_code(kind).ok_or_else(|| damaged("version", serial))?;
        let mut state =
            VersionState { kind, known: is_known, bytes, first_unix_ms, tags: Vec::new() };
        for entry in tags.range((serial, 0)..=(serial, u64::MAX))? {
            let (_, tag) = entry?;
            let (tag, unix_ms) = tag.value();
            state.tags.push((tag.to_owned(), unix_ms));
        }
        known.versions.insert((*image, *digest), (serial, state));
    }
    Ok(known)
}

fn write_nodes(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Fault> {
    let mut image_names = transaction.open_table(IMAGE_NAMES)?;
    let mut images = transaction.open_table(IMAGES)?;
    let mut customer_names = transaction.open_table(CUSTOMER_NAMES)?;
    let mut customers = transaction.open_table(CUSTOMERS)?;
    let mut content_names = transaction.open_table(CONTENT_NAMES)?;
    let mut contents = transaction.open_table(CONTENTS)?;
    let mut version_names = transaction.open_table(VERSION_NAMES)?;
    let mut versions = transaction.open_table(VERSIONS)?;
    let mut new_images = HashMap::new();
    // Digests are random: in their order neighbours on a page are written together.
    let (mut new_contents, mut new_versions) = (BTreeMap::new(), BTreeMap::new());
    for (serial, new) in &changes.new {
        match new {
            New::Image(name) => {
                image_names.insert(&**name, *serial)?;
                new_images.insert(*serial, name.clone());
            }
            New::Customer(name, unix_ms) => {
                customer_names.insert(&**name, *serial)?;
                customers.insert(*serial, (&**name, *unix_ms))?;
            }
            New::Content { kind, digest, bytes } => {
                let key = digest_key(digest);
                contents.insert(*serial, (kind.code(), &*key, *bytes))?;
                new_contents.insert(key, *serial);
            }
            New::Version { image, digest } => {
                let key = digest_key(digest);
                versions.insert(*serial, (*image, &*key))?;
                new_versions.insert((*image, key), *serial);
            }
        }
    }
    for (key, serial) in new_contents {
        content_names.insert(&*key, serial)?;
    }
    for ((image, key), serial) in new_versions {
        version_names.insert((image, &*key), serial)?;
    }
    for (serial, state) in &changes.images {
        let name = match new_images.remove(serial) {
            Some(name) => name,
            None => {
                let row = images.get(*serial)?.ok_or_else(|| damaged("image", *serial))?;
                row.value().0.to_owned()
            }
        };
        let ImageState { first_unix_ms, versions, depth } = *state;
        images.insert(*serial, (&*name, first_unix_ms, versions, depth))?;
    }
    let mut states = transaction.open_table(CONTENT_STATES)?;
    for (serial, state) in &changes.contents {
        let ContentState { first_unix_ms, versions, below, above } = *state;
        states.insert(*serial, (first_unix_ms, versions, below, above))?;
    }
    Ok(())
}

fn write_edges(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Fault> {
    let mut contains = transaction.open_table(CONTAINS)?;
    // Sorted: neighbours on a page are written together.
    let (mut uses, mut parents) = (BTreeSet::new(), BTreeSet::new());
    let mut shared: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for one in &changes.contains {
        contains.insert(one.version, &*pack(&one.contents))?;
        for content in &one.contents {
            if one.kind == Kind::Index {
                parents.insert((*content, one.version));
            } else {
                uses.insert((*content, one.version));
                *shared.entry((*content, one.image)).or_default() += 1;
            }
        }
    }
    let mut table = transaction.open_table(USES)?;
    for edge in uses {
        table.insert(edge, ())?;
    }
    let mut table = transaction.open_table(PARENTS)?;
    for edge in parents {
        table.insert(edge, ())?;
    }
    let mut table = transaction.open_table(SHARED_BY)?;
    let mut image_contents = BTreeSet::new();
    for ((content, image), more) in shared {
        // Most are new.
        let before = table.insert((content, image), more)?.map(|count| count.value());
        if let Some(before) = before {
            table.insert((content, image), before + more)?;
        } else {
            image_contents.insert((image, content));
        }
    }
    let mut table = transaction.open_table(IMAGE_CONTENTS)?;
    for edge in image_contents {
        table.insert(edge, ())?;
    }
    let mut owners = transaction.open_table(OWNERS)?;
    let mut content_owners = BTreeSet::new();
    let mut shares = Vec::new();
    for one in &changes.owned {
        if owners.insert((one.version, one.customer), ())?.is_none() {
            content_owners.extend(one.contents.iter().map(|content| (*content, one.customer)));
            shares.extend(one.contents.iter().map(|content| (*content, one.customer)));
        }
    }
    shares.sort_unstable();
    let mut dependants = Dependants::open(transaction)?;
    for (content, customer) in shares {
        dependants.add(content, customer)?;
    }
    let mut table = transaction.open_table(CONTENT_OWNERS)?;
    let mut owned = BTreeSet::new();
    for (content, customer) in content_owners {
        if table.insert((content, customer), ())?.is_none() {
            owned.insert((customer, content));
        }
    }
    let mut table = transaction.open_table(OWNED)?;
    for edge in owned {
        table.insert(edge, ())?;
    }
    Ok(())
}

fn write_tags(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Fault> {
    let mut states = transaction.open_table(VERSION_STATES)?;
    let mut tags = transaction.open_table(TAGS)?;
    let mut history = transaction.open_table(HISTORY)?;
    let mut version_tags = transaction.open_table(VERSION_TAGS)?;
    let mut tagged: BTreeMap<u64, u64> = BTreeMap::new();
    for one in &changes.tagged {
        if let Some(before) = one.before {
            tags.remove((one.image, &*one.tag, before, one.version))?;
        }
        tags.insert((one.image, &*one.tag, one.unix_ms, one.version), ())?;
        tagged.insert(one.version, one.image);
    }
    for (serial, state) in &changes.versions {
        let (tag, since) = state.called().map_or(("", 0), |(tag, since)| (&**tag, *since));
        if let Some(image) = tagged.get(serial) {
            let before = states.get(*serial)?.and_then(|row| {
                let (_, _, _, _, tag, since) = row.value();
                (!tag.is_empty()).then_some(since)
            });
            if let Some(before) = before {
                history.remove((*image, before, *serial))?;
            }
            history.insert((*image, since, *serial), ())?;
            for (number, (tag, unix_ms)) in (0_u64..).zip(&state.tags) {
                version_tags.insert((*serial, number), (&**tag, *unix_ms))?;
            }
        }
        let VersionState { kind, known, bytes, first_unix_ms, .. } = state;
        states.insert(*serial, (kind.code(), *known, *bytes, *first_unix_ms, tag, since))?;
    }
    Ok(())
}

fn write_counts(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Fault> {
    let mut accesses = transaction.open_table(ACCESSES)?;
    for (serial, (more, at)) in &changes.accesses {
        let (count, last) = accesses.get(*serial)?.map_or((0, 0), |row| row.value());
        accesses.insert(*serial, (count.saturating_add(*more), last.max(*at)))?;
    }
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for new in changes.new.values() {
        let kind = match new {
            New::Image(_) => Kind::Image,
            New::Customer(..) => Kind::Customer,
            New::Content { kind, .. } => *kind,
            New::Version { .. } => Kind::Version,
        };
        counts.entry(kind.as_str()).or_default().0 += 1;
    }
    for one in &changes.contains {
        counts.entry(META_CONTAINS).or_default().0 += one.contents.len() as u64;
        if one.kind == Kind::Index {
            counts.entry(Kind::Index.as_str()).or_default().0 += 1;
            counts.entry(Kind::Version.as_str()).or_default().1 += 1;
        }
    }
    let mut meta = transaction.open_table(META)?;
    for (name, (more, less)) in counts {
        let before = meta.get(name)?.map_or(0, |count| count.value());
        meta.insert(name, (before + more).saturating_sub(less))?;
    }
    if let Some((last, _)) = changes.new.last_key_value() {
        meta.insert(META_LAST, *last)?;
    }
    Ok(())
}
