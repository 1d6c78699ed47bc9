//! Applying a batch to the tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::{Database, ReadableTable as _, ReadableTableMetadata as _, WriteTransaction};

use super::tables::{
    ACCESSES, CONTAINS, CONTENT_NAMES, CONTENT_SHARES, CONTENT_STATES, CONTENTS, CUSTOMER_NAMES,
    CUSTOMERS, EARLY, EARLY_ORDER, Fault, HISTORY, IMAGE_CONTENTS, IMAGE_NAMES, IMAGES, MARKS,
    META, META_CONTAINS, META_EARLY, META_LAST, OWNED, OWNERS, PARENTS, POSITIONS, SHARED_BY, TAGS,
    USES, VERSION_NAMES, VERSION_STATES, VERSION_TAGS, VERSIONS, damaged, digest_key, pack,
};
use crate::batch::{Batch, Mark};
use crate::node::Kind;
use crate::plan::{
    Changes, ContentState, DEPENDANTS_OF_CUSTOMER_MAX, EARLY_MAX, Early, ImageState, Known, Needs,
    New, VersionState, needs, plan,
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
    let (known, states) = load(&transaction, &needs(batch))?;
    let changes = plan(batch, known)?;
    write_nodes(&transaction, &changes)?;
    write_edges(&transaction, &changes)?;
    let more = write_owners(&transaction, &changes)?;
    write_states(&transaction, &changes, &states, more)?;
    write_tags(&transaction, &changes)?;
    write_counts(&transaction, &changes)?;
    write_early(&transaction, &changes)?;
    transaction.commit()?;
    Ok(Applied {
        repeated: false,
        nodes: changes.new.len() as u64,
        versions: changes.contains.len() as u64,
        unknown: changes.unknown,
    })
}

/// Of contents by their serial: what was known, and dependants.
type States = HashMap<u64, (ContentState, u64)>;

fn load(transaction: &WriteTransaction, needs: &Needs) -> Result<(Known, States), Fault> {
    let meta = transaction.open_table(META)?;
    let last = meta.get(META_LAST)?.map_or(0, |last| last.value());
    let early_last = meta.get(META_EARLY)?.map_or(0, |last| last.value());
    let mut known = Known { last, early_last, ..Known::default() };
    let waiting = transaction.open_table(EARLY)?;
    // Mostly there are none.
    let waiting = if waiting.is_empty()? { None } else { Some(waiting) };
    let (names, images) = (transaction.open_table(IMAGE_NAMES)?, transaction.open_table(IMAGES)?);
    for name in &needs.images {
        let Some(serial) = names.get(&**name)?.map(|serial| serial.value()) else { continue };
        let row = images.get(serial)?.ok_or_else(|| damaged("image", serial))?;
        let (_, first_unix_ms, versions, depth) = row.value();
        let state = ImageState { first_unix_ms, versions, depth };
        known.images.insert(name.clone(), (serial, state));
    }
    let mut loaded = States::new();
    let names = transaction.open_table(CUSTOMER_NAMES)?;
    for name in &needs.customers {
        if let Some(serial) = names.get(&**name)? {
            known.customers.insert(name.clone(), serial.value());
        }
    }
    let (names, states) =
        (transaction.open_table(CONTENT_NAMES)?, transaction.open_table(CONTENT_STATES)?);
    for digest in &needs.contents {
        let key = digest_key(digest);
        let Some(serial) = names.get(&*key)?.map(|serial| serial.value()) else {
            let Some(waiting) = &waiting else { continue };
            for entry in waiting.range((&*key, "")..)? {
                let (of, early) = entry?;
                let (of, image) = of.value();
                if of != &*key {
                    break;
                }
                known.early.insert((*digest, image.to_owned()), early_of(early.value()));
            }
            continue;
        };
        let row = states.get(serial)?.ok_or_else(|| damaged("content", serial))?;
        let (first_unix_ms, versions, below, above, dependants) = row.value();
        let state = ContentState { first_unix_ms, versions, below, above };
        known.contents.insert(*digest, (serial, state));
        loaded.insert(serial, (state, dependants));
    }
    let names = transaction.open_table(VERSION_NAMES)?;
    let (states, tags) =
        (transaction.open_table(VERSION_STATES)?, transaction.open_table(VERSION_TAGS)?);
    for (image, digest) in &needs.versions {
        let key = digest_key(digest);
        let serial = match known.images.get(image) {
            Some((of, _)) => names.get((*of, &*key))?.map(|serial| (*of, serial.value())),
            None => None,
        };
        let Some((of, serial)) = serial else {
            let Some(waiting) = &waiting else { continue };
            if let Some(early) = waiting.get((&*key, &**image))? {
                known.early.insert((*digest, image.clone()), early_of(early.value()));
            }
            continue;
        };
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
        known.versions.insert((of, *digest), (serial, state));
    }
    Ok((known, loaded))
}

fn early_of((count, last_unix_ms, order): (u64, u64, u64)) -> Early {
    Early { count, last_unix_ms, order }
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
    Ok(())
}

/// `more`: dependants that came to a content.
fn write_states(
    transaction: &WriteTransaction,
    changes: &Changes,
    before: &States,
    mut more: BTreeMap<u64, u64>,
) -> Result<(), Fault> {
    let mut states = transaction.open_table(CONTENT_STATES)?;
    let mut write = |serial: u64, state: &ContentState, more: u64| {
        let ContentState { first_unix_ms, versions, below, above } = *state;
        let dependants = before.get(&serial).map_or(0, |(_, dependants)| *dependants) + more;
        let row = (first_unix_ms, versions, below, above, dependants);
        states.insert(serial, row).map(drop)
    };
    for (serial, state) in &changes.contents {
        write(*serial, state, more.remove(serial).unwrap_or(0))?;
    }
    // Nothing else of them has changed.
    for (serial, more) in more {
        let (state, _) = before.get(&serial).ok_or_else(|| damaged("content", serial))?;
        write(serial, state, more)?;
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
    Ok(())
}

/// Who has what. Returns how many dependants came to each content.
fn write_owners(
    transaction: &WriteTransaction,
    changes: &Changes,
) -> Result<BTreeMap<u64, u64>, Fault> {
    let mut owners = transaction.open_table(OWNERS)?;
    let mut shares: BTreeMap<(u64, u64), u64> =
        changes.alone.iter().map(|pair| (*pair, 0)).collect();
    for one in &changes.owned {
        if owners.insert((one.version, one.customer), ())?.is_none() {
            for content in &one.contents {
                *shares.entry((*content, one.customer)).or_default() += 1;
            }
        }
    }
    let mut table = transaction.open_table(CONTENT_SHARES)?;
    let (mut owned, mut dependants) = (BTreeSet::new(), BTreeMap::<u64, u64>::new());
    for (pair, more) in shares {
        // Most are new.
        let count = more.min(DEPENDANTS_OF_CUSTOMER_MAX);
        let before = table.insert(pair, count)?.map(|count| count.value());
        let added = match before {
            None => {
                owned.insert((pair.1, pair.0));
                count
            }
            Some(before) => {
                let after = (before + more).min(DEPENDANTS_OF_CUSTOMER_MAX);
                if after != count {
                    table.insert(pair, after)?;
                }
                after - before
            }
        };
        if added > 0 {
            *dependants.entry(pair.0).or_default() += added;
        }
    }
    let mut table = transaction.open_table(OWNED)?;
    for edge in owned {
        table.insert(edge, ())?;
    }
    Ok(dependants)
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

/// Early accesses, of which the oldest are left out.
fn write_early(transaction: &WriteTransaction, changes: &Changes) -> Result<(), Fault> {
    if changes.early.is_empty() {
        return Ok(());
    }
    let mut early = transaction.open_table(EARLY)?;
    let mut order = transaction.open_table(EARLY_ORDER)?;
    for ((digest, image), state) in &changes.early {
        let key = digest_key(digest);
        let key = (&*key, &**image);
        match *state {
            Some(Early { count, last_unix_ms, order: number }) => {
                if early.insert(key, (count, last_unix_ms, number))?.is_none() {
                    order.insert(number, key)?;
                }
            }
            None => {
                let number = early.remove(key)?.map(|row| row.value().2);
                if let Some(number) = number {
                    order.remove(number)?;
                }
            }
        }
    }
    while order.first()?.is_some_and(|(first, _)| first.value() + EARLY_MAX <= changes.early_last) {
        if let Some((_, key)) = order.pop_first()? {
            early.remove(key.value())?;
        }
    }
    transaction.open_table(META)?.insert(META_EARLY, changes.early_last)?;
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
