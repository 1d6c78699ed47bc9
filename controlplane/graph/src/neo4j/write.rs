//! Applying a batch in Cypher: what the plan needs is loaded, and what it says is written, in one transaction
//! that begins by locking the graph.

use std::collections::{BTreeMap, BTreeSet};

use outrider_artifact::Digest;

use super::bolt::{Begin, BoltError, Connection, Fields, Statement};
use super::packstream::Value;
use crate::batch::{Batch, Mark};
use crate::node::Kind;
use crate::plan::{
    Changes, ContentState, DEPENDANTS_OF_CUSTOMER_MAX, EARLY_MAX, Early, ImageState, Known, Needs,
    New, VersionState, needs, plan,
};
use crate::store::{Applied, GraphError};

/// Version of the layout.
pub(super) const FORMAT: u64 = 1;

/// Why a batch was not applied.
#[derive(Debug)]
pub(super) enum Fault {
    Bolt(BoltError),
    Refused(GraphError),
}

impl From<BoltError> for Fault {
    fn from(error: BoltError) -> Self {
        Self::Bolt(error)
    }
}

impl From<GraphError> for Fault {
    fn from(error: GraphError) -> Self {
        Self::Refused(error)
    }
}

/// What a row should have had.
pub(super) fn damaged(what: &str) -> Fault {
    Fault::Refused(GraphError::Damaged(format!("{what} cannot be read")))
}

pub(super) fn number(fields: &Fields, at: usize) -> Result<u64, Fault> {
    fields.get(at).and_then(Value::as_u64).ok_or_else(|| damaged("a number"))
}

pub(super) fn text(fields: &Fields, at: usize) -> Result<&str, Fault> {
    fields.get(at).and_then(Value::as_str).ok_or_else(|| damaged("a text"))
}

pub(super) fn kind(fields: &Fields, at: usize) -> Result<Kind, Fault> {
    let text = text(fields, at)?;
    let found = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
    found.ok_or_else(|| damaged("a kind"))
}

/// What names a version.
pub(super) fn version_key(image: &str, digest: &Digest) -> String {
    format!("{image}@{digest}")
}

const LOCK: &str = "MATCH (g:OutriderGraph {id: 1}) SET g.applying = true \
    RETURN g.format, g.last, coalesce(g.early_last, 0)";
const POSITION: &str = "MATCH (s:OutriderSource {name: $source}) RETURN s.last";
const IMAGES: &str = "UNWIND $names AS name MATCH (n:Image {name: name}) \
    RETURN n.name, n.serial, n.first, n.versions, n.depth";
const CUSTOMERS: &str =
    "UNWIND $names AS name MATCH (n:Customer {name: name}) RETURN n.name, n.serial";
const CONTENTS: &str = "UNWIND $digests AS digest MATCH (n:Content {digest: digest}) \
    RETURN n.digest, n.serial, n.first, n.versions, n.below, n.above";
const VERSIONS: &str = "UNWIND $keys AS key MATCH (n:Version {key: key}) \
    RETURN n.image, n.digest, n.serial, n.kind, n.known, n.bytes, n.first, n.tags, n.since";
const EARLY: &str = "UNWIND $digests AS digest MATCH (e:OutriderEarly {digest: digest}) \
    RETURN e.digest, e.image, e.count, e.last, e.order";

/// Applies a checked batch.
pub(super) async fn apply(
    connection: &mut Connection,
    begin: &Begin<'_>,
    batch: &Batch,
) -> Result<Applied, Fault> {
    let needs = needs(batch);
    let source = batch.position.as_ref().map_or("", |position| &*position.source);
    let names = |all: &[String]| all.iter().map(String::as_str).collect::<Value>();
    let digests: Value = needs.contents.iter().map(Digest::to_string).collect();
    let early = needs.versions.iter().map(|(_, digest)| digest);
    let early: BTreeSet<&Digest> = early.chain(&needs.contents).collect();
    let early: Value = early.into_iter().map(Digest::to_string).collect();
    let keys: Value =
        needs.versions.iter().map(|(image, digest)| version_key(image, digest)).collect();
    let loaded = connection
        .begin(
            begin,
            &[
                Statement::new(LOCK),
                Statement::new(POSITION).with("source", source),
                Statement::new(IMAGES).with("names", names(&needs.images)),
                Statement::new(CUSTOMERS).with("names", names(&needs.customers)),
                Statement::new(CONTENTS).with("digests", digests),
                Statement::new(VERSIONS).with("keys", keys),
                Statement::new(EARLY).with("digests", early),
            ],
        )
        .await?;
    let [lock, reached, rows @ ..] = &*loaded else { return Err(damaged("the answer")) };
    let lock = lock.first().ok_or_else(|| damaged("the graph's own node"))?;
    let format = number(lock, 0)?;
    if format != FORMAT {
        let why = format!("its layout has version {format}, this software reads {FORMAT}");
        return Err(GraphError::Damaged(why).into());
    }
    let reached = reached.first().map(|row| number(row, 0)).transpose()?;
    if batch.position.as_ref().is_some_and(|position| !position.is_due(reached)) {
        // Nothing was changed but the lock.
        connection.commit(&[]).await?;
        return Ok(Applied { repeated: true, ..Applied::default() });
    }
    let (last, early_last) = (number(lock, 1)?, number(lock, 2)?);
    let changes = plan(batch, Known { early_last, ..known(last, &needs, rows)? })?;
    let statements = statements(batch, &changes);
    connection.commit(&statements).await?;
    Ok(Applied {
        repeated: false,
        nodes: changes.new.len() as u64,
        versions: changes.contains.len() as u64,
        unknown: changes.unknown,
    })
}

fn known(last: u64, needs: &Needs, rows: &[Vec<Fields>]) -> Result<Known, Fault> {
    let [images, customers, contents, versions, early] = rows else {
        return Err(damaged("the answer"));
    };
    let mut known = Known { last, ..Known::default() };
    for row in images {
        let state = ImageState {
            first_unix_ms: number(row, 2)?,
            versions: number(row, 3)?,
            depth: number(row, 4)?,
        };
        known.images.insert(text(row, 0)?.to_owned(), (number(row, 1)?, state));
    }
    for row in customers {
        known.customers.insert(text(row, 0)?.to_owned(), number(row, 1)?);
    }
    let digest = |row: &Fields, at| -> Result<Digest, Fault> {
        text(row, at)?.parse().map_err(|_| damaged("a digest"))
    };
    for row in contents {
        let state = ContentState {
            first_unix_ms: number(row, 2)?,
            versions: number(row, 3)?,
            below: number(row, 4)?,
            above: number(row, 5)?,
        };
        known.contents.insert(digest(row, 0)?, (number(row, 1)?, state));
    }
    for row in versions {
        let list = |at: usize| row.get(at).and_then(Value::as_list).ok_or_else(|| damaged("tags"));
        let tags = list(7)?
            .iter()
            .zip(list(8)?)
            .map(|(tag, since)| Some((tag.as_str()?.to_owned(), since.as_u64()?)));
        let state = VersionState {
            kind: kind(row, 3)?,
            known: row.get(4).and_then(Value::as_bool).ok_or_else(|| damaged("a version"))?,
            bytes: number(row, 5)?,
            first_unix_ms: number(row, 6)?,
            tags: tags.collect::<Option<_>>().ok_or_else(|| damaged("a tag"))?,
        };
        known.versions.insert((number(row, 0)?, digest(row, 1)?), (number(row, 2)?, state));
    }
    for row in early {
        let (count, last_unix_ms, order) = (number(row, 2)?, number(row, 3)?, number(row, 4)?);
        let key = (digest(row, 0)?, text(row, 1)?.to_owned());
        known.early.insert(key, Early { count, last_unix_ms, order });
    }
    debug_assert!(known.images.len() <= needs.images.len());
    Ok(known)
}

/// A list of lists: `r[0]`, `r[1]`… of `UNWIND $rows AS r`.
fn rows(all: impl IntoIterator<Item = Vec<Value>>) -> Value {
    Value::List(all.into_iter().map(Value::List).collect())
}

fn statements(batch: &Batch, changes: &Changes) -> Vec<Statement> {
    let mut all = Vec::new();
    let mut add = |cypher, rows: Value| {
        if rows.as_list().is_some_and(|rows| !rows.is_empty()) {
            all.push(Statement::new(cypher).with("rows", rows));
        }
    };
    add_nodes(changes, &mut add);
    add_states(changes, &mut add);
    add_edges(changes, &mut add);
    let accesses = changes.accesses.iter();
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) \
         SET n.accesses = n.accesses + r[1], n.last = CASE WHEN n.last < r[2] THEN r[2] ELSE n.last END",
        rows(
            accesses.map(|(serial, (more, last))| {
                vec![(*serial).into(), (*more).into(), (*last).into()]
            }),
        ),
    );
    add_early(changes, &mut add);
    let contains: u64 = changes.contains.iter().map(|one| one.contents.len() as u64).sum();
    let last = changes.new.last_key_value().map_or(Value::Null, |(last, _)| (*last).into());
    all.push(
        Statement::new(
            "MATCH (g:OutriderGraph {id: 1}) \
             SET g.last = coalesce($last, g.last), g.contains = g.contains + $contains, g.early_last = $early",
        )
        .with("early", changes.early_last)
        .with("last", last)
        .with("contains", contains),
    );
    if let Some(position) = &batch.position {
        all.push(
            Statement::new("MERGE (s:OutriderSource {name: $source}) SET s.last = $last")
                .with("source", &*position.source)
                .with("last", position.last),
        );
        let marks = batch.marks.iter().map(|mark| {
            let Mark { edge, lane, epoch, through } = *mark;
            let key = format!("{} {edge} {lane}", position.source);
            let (edge, lane) = (edge.into(), u64::from(lane).into());
            vec![key.into(), edge, lane, epoch.into(), through.into()]
        });
        let marks = rows(marks);
        if marks.as_list().is_some_and(|rows| !rows.is_empty()) {
            all.push(
                Statement::new(
                    "UNWIND $rows AS r MERGE (m:OutriderMark {key: r[0]}) \
                     SET m.source = $source, m.edge = r[1], m.lane = r[2], m.epoch = r[3], m.through = r[4]",
                )
                .with("source", &*position.source)
                .with("rows", marks),
            );
        }
    }
    all
}

/// Early accesses, of which the oldest are left out.
fn add_early(changes: &Changes, add: &mut impl FnMut(&'static str, Value)) {
    let key = |digest: &Digest, image: &str| Value::from(version_key(image, digest));
    let gone = changes.early.iter().filter(|(_, early)| early.is_none());
    add(
        "UNWIND $rows AS r MATCH (e:OutriderEarly {key: r[0]}) DELETE e",
        rows(gone.map(|((digest, image), _)| vec![key(digest, image)])),
    );
    let kept = changes.early.iter().filter_map(|((digest, image), early)| {
        let Early { count, last_unix_ms, order } = (*early)?;
        let (name, digest) = (key(digest, image), digest.to_string());
        let image = (&**image).into();
        Some(vec![name, digest.into(), image, count.into(), last_unix_ms.into(), order.into()])
    });
    add(
        "UNWIND $rows AS r MERGE (e:OutriderEarly {key: r[0]}) \
         SET e.digest = r[1], e.image = r[2], e.count = r[3], e.last = r[4], e.order = r[5]",
        rows(kept),
    );
    if !changes.early.is_empty() && changes.early_last > EARLY_MAX {
        add(
            "UNWIND $rows AS r MATCH (e:OutriderEarly) WHERE e.order <= r[0] DELETE e",
            rows([vec![(changes.early_last - EARLY_MAX).into()]]),
        );
    }
}

fn add_nodes(changes: &Changes, add: &mut impl FnMut(&'static str, Value)) {
    let of = |make: &dyn Fn(u64, &New) -> Option<Vec<Value>>| {
        rows(changes.new.iter().filter_map(|(serial, new)| make(*serial, new)))
    };
    add(
        "UNWIND $rows AS r CREATE (:Node:Image {serial: r[0], name: r[1]})",
        of(&|serial, new| match new {
            New::Image(name) => Some(vec![serial.into(), (&**name).into()]),
            _ => None,
        }),
    );
    add(
        "UNWIND $rows AS r CREATE (:Node:Customer {serial: r[0], name: r[1], first: r[2]})",
        of(&|serial, new| match new {
            New::Customer(name, first) => {
                Some(vec![serial.into(), (&**name).into(), (*first).into()])
            }
            _ => None,
        }),
    );
    // A label cannot be a parameter.
    for (wanted, cypher) in [
        (
            Kind::Layer,
            "UNWIND $rows AS r CREATE (:Node:Content:Layer \
             {serial: r[0], digest: r[1], bytes: r[2], kind: 'layer', accesses: 0, last: 0})",
        ),
        (
            Kind::Component,
            "UNWIND $rows AS r CREATE (:Node:Content:Component \
             {serial: r[0], digest: r[1], bytes: r[2], kind: 'component', accesses: 0, last: 0})",
        ),
        (
            Kind::Function,
            "UNWIND $rows AS r CREATE (:Node:Content:Function \
             {serial: r[0], digest: r[1], bytes: r[2], kind: 'function', accesses: 0, last: 0})",
        ),
    ] {
        add(
            cypher,
            of(&|serial, new| match new {
                New::Content { kind, digest, bytes } if *kind == wanted => {
                    Some(vec![serial.into(), digest.to_string().into(), (*bytes).into()])
                }
                _ => None,
            }),
        );
    }
    add(
        "UNWIND $rows AS r MATCH (i:Node {serial: r[1]}) \
         CREATE (:Node:Version {serial: r[0], image: r[1], digest: r[2], key: i.name + '@' + r[2], \
         accesses: 0, last: 0})-[:VERSION_OF]->(i)",
        of(&|serial, new| match new {
            New::Version { image, digest } => {
                Some(vec![serial.into(), (*image).into(), digest.to_string().into()])
            }
            _ => None,
        }),
    );
}

fn add_states(changes: &Changes, add: &mut impl FnMut(&'static str, Value)) {
    let images = changes.images.iter().map(|(serial, state)| {
        let ImageState { first_unix_ms, versions, depth } = *state;
        vec![(*serial).into(), first_unix_ms.into(), versions.into(), depth.into()]
    });
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) \
         SET n.first = r[1], n.versions = r[2], n.depth = r[3]",
        rows(images),
    );
    let contents = changes.contents.iter().map(|(serial, state)| {
        let ContentState { first_unix_ms, versions, below, above } = *state;
        vec![(*serial).into(), first_unix_ms.into(), versions.into(), below.into(), above.into()]
    });
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) \
         SET n.first = r[1], n.versions = r[2], n.below = r[3], n.above = r[4]",
        rows(contents),
    );
    let versions = changes.versions.iter().map(|(serial, state)| {
        let (called, since) = state.called().map_or(("", 0), |(tag, since)| (&**tag, *since));
        vec![
            (*serial).into(),
            state.kind.as_str().into(),
            state.known.into(),
            state.bytes.into(),
            state.first_unix_ms.into(),
            state.tags.iter().map(|(tag, _)| &**tag).collect(),
            state.tags.iter().map(|(_, since)| *since).collect(),
            called.into(),
            since.into(),
        ]
    });
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) \
         SET n.kind = r[1], n.known = r[2], n.bytes = r[3], n.first = r[4], n.tags = r[5], \
         n.since = r[6], n.called = r[7], n.called_since = r[8]",
        rows(versions),
    );
    let indexes = changes.contains.iter().filter(|one| one.kind == Kind::Index);
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) SET n:Index",
        rows(indexes.map(|one| vec![one.version.into()])),
    );
}

fn add_edges(changes: &Changes, add: &mut impl FnMut(&'static str, Value)) {
    let contains = changes.contains.iter().flat_map(|one| {
        let contents = (0_u64..).zip(&one.contents);
        contents.map(|(at, content)| vec![one.version.into(), (*content).into(), at.into()])
    });
    add(
        "UNWIND $rows AS r MATCH (v:Node {serial: r[0]}) MATCH (c:Node {serial: r[1]}) \
         CREATE (v)-[:CONTAINS {position: r[2]}]->(c)",
        rows(contains),
    );
    let mut shared: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for one in changes.contains.iter().filter(|one| one.kind != Kind::Index) {
        for content in &one.contents {
            *shared.entry((*content, one.image)).or_default() += 1;
        }
    }
    add(
        "UNWIND $rows AS r MATCH (c:Node {serial: r[0]}) MATCH (i:Node {serial: r[1]}) \
         MERGE (c)-[s:SHARED_BY]->(i) ON CREATE SET s.versions = r[2] \
         ON MATCH SET s.versions = s.versions + r[2]",
        rows(
            shared
                .into_iter()
                .map(|((content, image), count)| vec![content.into(), image.into(), count.into()]),
        ),
    );
    // First of all: whether a version was the customer's before is known by the edge that comes after.
    let shares = changes.owned.iter().filter(|one| !one.contents.is_empty());
    add(
        "UNWIND $rows AS r MATCH (v:Node {serial: r[0]}) MATCH (c:Node {serial: r[1]}) \
         WHERE NOT EXISTS { (v)-[:OWNED_BY]->(c) } \
         UNWIND r[2] AS content MATCH (n:Node {serial: content}) MERGE (n)-[o:OWNED_BY]->(c) \
         ON CREATE SET o.versions = 1 ON MATCH SET o.versions = coalesce(o.versions, 0) + 1",
        rows(shares.clone().map(|one| {
            let contents = one.contents.iter().copied().collect();
            vec![one.version.into(), one.customer.into(), contents]
        })),
    );
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) MATCH (c:Node {serial: r[1]}) \
         MERGE (n)-[o:OWNED_BY]->(c) ON CREATE SET o.versions = 0",
        rows(changes.alone.iter().map(|(what, owner)| vec![(*what).into(), (*owner).into()])),
    );
    let contents: BTreeSet<u64> = shares.flat_map(|one| one.contents.iter().copied()).collect();
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]})-[o:OWNED_BY]->(:Customer) \
         WITH n, sum(CASE WHEN coalesce(o.versions, 0) < r[1] THEN coalesce(o.versions, 0) ELSE r[1] END) AS dependants \
         SET n.dependants = dependants",
        rows(contents.into_iter().map(|one| vec![one.into(), DEPENDANTS_OF_CUSTOMER_MAX.into()])),
    );
    let owned: BTreeSet<_> = changes.owned.iter().map(|one| (one.version, one.customer)).collect();
    add(
        "UNWIND $rows AS r MATCH (n:Node {serial: r[0]}) MATCH (c:Node {serial: r[1]}) \
         MERGE (n)-[:OWNED_BY]->(c)",
        rows(owned.into_iter().map(|(what, customer)| vec![what.into(), customer.into()])),
    );
    let tagged = changes.tagged.iter().map(|one| {
        vec![one.version.into(), one.image.into(), (&*one.tag).into(), one.unix_ms.into()]
    });
    add(
        "UNWIND $rows AS r MATCH (v:Node {serial: r[0]}) MATCH (i:Node {serial: r[1]}) \
         MERGE (v)-[t:TAGGED {tag: r[2]}]->(i) SET t.since = r[3]",
        rows(tagged),
    );
}
