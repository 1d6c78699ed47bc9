//! The named queries in Cypher. The statements of one query run in one transaction; Neo4j reads what is
//! committed when each of them runs.

use std::collections::{BTreeSet, HashSet};

use outrider_artifact::{Digest, Reference};

use super::bolt::{Connection, Fields, Statement};
use super::packstream::Value;
use super::write::{Fault, damaged, kind, number, text, version_key};
use crate::batch::Mark;
use crate::node::Kind;
use crate::query::{
    Answer, Asked, CO_USE_VERSIONS_MAX, INDEX_DEPTH_MAX, Query, REACH_MAX, Row, cut,
};
use crate::store::{GraphError, Progress, Stats};

/// Of a content `n`.
macro_rules! content {
    () => {
        "n.serial, n.kind, n.digest, n.bytes, n.versions, n.first, n.below, n.above, n.accesses, n.last, \
         coalesce(n.dependants, 0)"
    };
}
/// Of a version `n`.
macro_rules! version {
    () => {
        "n.serial, n.kind, n.digest, i.name, n.called, n.first, n.accesses, n.last"
    };
}
/// Of an image `n`.
macro_rules! image {
    () => {
        "n.serial, n.name, n.first, n.versions, n.depth"
    };
}

const CONTENT: &str = concat!("MATCH (n:Content {digest: $digest}) RETURN ", content!());
const IMAGE: &str = concat!("MATCH (n:Image {name: $name}) RETURN ", image!());
const CUSTOMER: &str = "MATCH (n:Customer {name: $name}) RETURN n.serial, n.name, n.first";
const IMAGES_OF: &str = "MATCH (:Node {serial: $serial})-[s:SHARED_BY]->(i:Image) \
    WITH s, i ORDER BY i.serial LIMIT $count RETURN i.name, s.versions ORDER BY i.serial";
// From the one that has less. Rows are cut off before they are read as a whole, here and below.
const SHARED_BY_IMAGES: &str = concat!(
    "MATCH (a:Node {serial: $a}) MATCH (b:Node {serial: $b}) \
     WITH a, b, COUNT { (a)<-[:SHARED_BY]-() } <= COUNT { (b)<-[:SHARED_BY]-() } AS first \
     WITH CASE WHEN first THEN a ELSE b END AS one, CASE WHEN first THEN b ELSE a END AS other \
     MATCH (one)<-[:SHARED_BY]-(n:Content) WHERE EXISTS { (n)-[:SHARED_BY]->(other) } \
     WITH n ORDER BY n.serial LIMIT $count RETURN ",
    content!(),
    " ORDER BY n.serial"
);
const SHARED_BY_CUSTOMERS: &str = concat!(
    "MATCH (a:Node {serial: $a}) MATCH (b:Node {serial: $b}) \
     WITH a, b, COUNT { (a)<-[:OWNED_BY]-() } <= COUNT { (b)<-[:OWNED_BY]-() } AS first \
     WITH CASE WHEN first THEN a ELSE b END AS one, CASE WHEN first THEN b ELSE a END AS other \
     MATCH (one)<-[:OWNED_BY]-(n:Content) WHERE EXISTS { (n)-[:OWNED_BY]->(other) } \
     WITH n ORDER BY n.serial LIMIT $count RETURN ",
    content!(),
    " ORDER BY n.serial"
);
const NEIGHBOURS: &str = concat!(
    "MATCH (:Node {serial: $serial})<-[:CONTAINS]-(v:Version) \
     WITH v ORDER BY v.serial DESC LIMIT $versions \
     MATCH (v)-[:CONTAINS]->(n:Content) WHERE n.serial <> $serial \
     WITH n, count(*) AS together ORDER BY together DESC, n.serial LIMIT $count RETURN ",
    content!(),
    ", together ORDER BY together DESC, n.serial"
);
const VERSIONS_WITH: &str = "MATCH (:Node {serial: $serial})<-[:CONTAINS]-(n:Version) \
    RETURN n.serial ORDER BY n.serial DESC LIMIT $count";
const INDEXES_OVER: &str = "UNWIND $serials AS s MATCH (:Node {serial: s})<-[:CONTAINS]-(n:Version) \
    WHERE NOT n.serial IN $seen RETURN DISTINCT n.serial AS serial ORDER BY serial DESC LIMIT $count";
const IMAGES_IN_FULL: &str = concat!(
    "MATCH (:Node {serial: $serial})-[:SHARED_BY]->(n:Image) \
     WITH n ORDER BY n.serial LIMIT $count RETURN ",
    image!(),
    " ORDER BY n.serial"
);
const OWNERS: &str = "UNWIND $serials AS s MATCH (:Node {serial: s})-[:OWNED_BY]->(n:Customer) \
    WITH DISTINCT n ORDER BY n.serial LIMIT $count \
    RETURN n.serial, n.name, n.first ORDER BY n.serial";
const VERSIONS: &str = concat!(
    "UNWIND $serials AS s MATCH (n:Node {serial: s})-[:VERSION_OF]->(i:Image) RETURN ",
    version!()
);
const BY_TAG: &str = "MATCH (:Image {name: $name})<-[t:TAGGED {tag: $tag}]-(n:Version) \
    RETURN n.serial, t.tag, t.since ORDER BY t.since DESC, n.serial DESC LIMIT 1";
const BY_DIGEST: &str = "MATCH (n:Version {key: $key}) RETURN n.serial, n.called, n.called_since";
const TAG_BEFORE: &str = "MATCH (:Image {name: $name})<-[t:TAGGED {tag: $tag}]-(n:Version) \
    WHERE t.since < $since OR (t.since = $since AND n.serial < $serial) \
    RETURN n.serial ORDER BY t.since DESC, n.serial DESC LIMIT 1";
const VERSION_BEFORE: &str = "MATCH (v:Node {serial: $serial}) \
    MATCH (:Image {name: $name})<-[:VERSION_OF]-(n:Version) WHERE n.called <> '' \
    AND (n.called_since < v.called_since OR (n.called_since = v.called_since AND n.serial < $serial)) \
    RETURN n.serial ORDER BY n.called_since DESC, n.serial DESC LIMIT 1";
const CONTENTS_OF: &str = "UNWIND $serials AS s MATCH (:Node {serial: s})-[:CONTAINS]->(n) \
    RETURN DISTINCT n.serial, n:Version";
const CONTENTS: &str =
    concat!("UNWIND $serials AS s MATCH (n:Node {serial: s}) RETURN ", content!());

/// Runs the statements of one query.
pub(super) struct Reader<'a> {
    pub(super) connection: &'a mut Connection,
}

fn brief(fields: &Fields) -> Result<Row, Fault> {
    let mut row = Row::new(kind(fields, 1)?, text(fields, 2)?);
    row.bytes = Some(number(fields, 3)?);
    row.versions = Some(number(fields, 4)?);
    Ok(row)
}

fn full(fields: &Fields) -> Result<Row, Fault> {
    let mut row = brief(fields)?;
    row.first_unix_ms = Some(number(fields, 5)?);
    row.below = Some(number(fields, 6)?);
    row.above = Some(number(fields, 7)?);
    row.accesses = Some(number(fields, 8)?);
    row.last_unix_ms = Some(number(fields, 9)?);
    row.dependants = Some(number(fields, 10)?);
    Ok(row)
}

fn image_row(fields: &Fields) -> Result<Row, Fault> {
    let mut row = Row::new(Kind::Image, text(fields, 1)?);
    row.first_unix_ms = Some(number(fields, 2)?);
    row.versions = Some(number(fields, 3)?);
    row.depth = Some(number(fields, 4)?);
    Ok(row)
}

fn customer_row(fields: &Fields) -> Result<Row, Fault> {
    let mut row = Row::new(Kind::Customer, text(fields, 1)?);
    row.first_unix_ms = Some(number(fields, 2)?);
    Ok(row)
}

fn version_row(fields: &Fields) -> Result<Row, Fault> {
    let mut row = Row::new(kind(fields, 1)?, text(fields, 2)?);
    row.image = Some(text(fields, 3)?.to_owned());
    row.tag = Some(text(fields, 4)?.to_owned()).filter(|tag| !tag.is_empty());
    row.first_unix_ms = Some(number(fields, 5)?);
    row.accesses = Some(number(fields, 6)?);
    row.last_unix_ms = Some(number(fields, 7)?);
    Ok(row)
}

fn serials(rows: &[Fields]) -> Result<Vec<u64>, Fault> {
    rows.iter().map(|fields| number(fields, 0)).collect()
}

fn list(serials: &[u64]) -> Value {
    serials.iter().copied().collect()
}

/// A version as it was asked for.
struct Place {
    version: u64,
    tag: String,
    since: u64,
}

impl Reader<'_> {
    pub(super) async fn answer(&mut self, asked: &Asked) -> Result<Answer, Fault> {
        let limit = asked.limit;
        match &asked.query {
            Query::Images { layer } => {
                let layer = self.content(layer).await?;
                let found = self.rows_of(IMAGES_OF, number(&layer, 0)?, limit).await?;
                let rows = found.iter().map(|fields| {
                    let mut row = Row::new(Kind::Image, text(fields, 0)?);
                    row.versions = Some(number(fields, 1)?);
                    Ok(row)
                });
                answer(vec![brief(&layer)?], rows, limit)
            }
            Query::SharedByImages { images: [a, b] } => {
                let (a, b) = (self.image(a).await?, self.image(b).await?);
                let about = vec![image_row(&a)?, image_row(&b)?];
                self.shared(SHARED_BY_IMAGES, [&a, &b], about, limit).await
            }
            Query::SharedByCustomers { customers: [a, b] } => {
                let (a, b) = (self.customer(a).await?, self.customer(b).await?);
                let about = vec![customer_row(&a)?, customer_row(&b)?];
                self.shared(SHARED_BY_CUSTOMERS, [&a, &b], about, limit).await
            }
            Query::LayerDepth { layer } => {
                let layer = self.content(layer).await?;
                answer(vec![], [full(&layer)], limit)
            }
            Query::ImageDepth { image } => {
                let image = self.image(image).await?;
                answer(vec![], [image_row(&image)], limit)
            }
            Query::Added { image, version, since } => {
                self.added(image, version, since.as_ref(), limit).await
            }
            Query::Neighbours { layer } => {
                let layer = self.content(layer).await?;
                let statement = Statement::new(NEIGHBOURS)
                    .with("serial", number(&layer, 0)?)
                    .with("versions", CO_USE_VERSIONS_MAX as u64)
                    .with("count", limit as u64 + 1);
                let found = self.run(statement).await?;
                let rows = found.iter().map(|fields| {
                    let mut row = brief(fields)?;
                    row.together = Some(number(fields, 11)?);
                    Ok(row)
                });
                answer(vec![brief(&layer)?], rows, limit)
            }
            Query::Affected { layer } => self.affected(layer, limit).await,
        }
    }

    async fn run(&mut self, statement: Statement) -> Result<Vec<Fields>, Fault> {
        let mut all = self.connection.run(&[statement]).await?;
        all.pop().ok_or_else(|| damaged("the answer"))
    }

    /// A statement about one node, with one row more than the limit.
    async fn rows_of(
        &mut self,
        cypher: &'static str,
        serial: u64,
        limit: usize,
    ) -> Result<Vec<Fields>, Fault> {
        let statement = Statement::new(cypher).with("serial", serial);
        self.run(statement.with("count", limit as u64 + 1)).await
    }

    async fn find(
        &mut self,
        statement: Statement,
        what: &'static str,
        name: &str,
    ) -> Result<Fields, Fault> {
        let found = self.run(statement).await?.into_iter().next();
        found.ok_or_else(|| GraphError::Unknown { what, name: name.to_owned() }.into())
    }

    async fn content(&mut self, digest: &Digest) -> Result<Fields, Fault> {
        let name = digest.to_string();
        self.find(Statement::new(CONTENT).with("digest", &*name), "layer", &name).await
    }

    async fn image(&mut self, name: &str) -> Result<Fields, Fault> {
        self.find(Statement::new(IMAGE).with("name", name), "image", name).await
    }

    async fn customer(&mut self, name: &str) -> Result<Fields, Fault> {
        self.find(Statement::new(CUSTOMER).with("name", name), "customer", name).await
    }

    async fn shared(
        &mut self,
        cypher: &'static str,
        [a, b]: [&Fields; 2],
        about: Vec<Row>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        let statement = Statement::new(cypher).with("a", number(a, 0)?).with("b", number(b, 0)?);
        let found = self.run(statement.with("count", limit as u64 + 1)).await?;
        answer(about, found.iter().map(brief), limit)
    }

    async fn affected(&mut self, digest: &Digest, limit: usize) -> Result<Answer, Fault> {
        let layer = self.content(digest).await?;
        let serial = number(&layer, 0)?;
        let about =
            |cypher| Statement::new(cypher).with("serial", serial).with("count", limit as u64 + 1);
        let found = self.connection.run(&[about(VERSIONS_WITH), about(IMAGES_IN_FULL)]).await?;
        let Ok([versions, mut images]) = <[_; 2]>::try_from(found) else {
            return Err(damaged("the answer"));
        };
        let mut versions = serials(&versions)?;
        let mut more = cut(&mut versions, limit);
        let (indexes, cut_off) = self.indexes_over(&versions, limit).await?;
        more |= cut_off;
        more |= cut(&mut images, limit);
        let owned: Vec<u64> = indexes.iter().copied().chain([serial]).collect();
        let statement = Statement::new(OWNERS).with("serials", list(&owned));
        let mut customers = self.run(statement.with("count", limit as u64 + 1)).await?;
        more |= cut(&mut customers, limit);

        let mut rows = Vec::new();
        for fields in &customers {
            rows.push(customer_row(fields)?);
        }
        for fields in &images {
            rows.push(image_row(fields)?);
        }
        let all: Vec<u64> = versions.into_iter().chain(indexes).collect();
        rows.extend(self.versions(&all).await?);
        Ok(Answer { about: vec![full(&layer)?], rows, more })
    }

    /// In the order of the serials that are given.
    async fn versions(&mut self, serials: &[u64]) -> Result<Vec<Row>, Fault> {
        let found = self.run(Statement::new(VERSIONS).with("serials", list(serials))).await?;
        self.in_order(serials, &found, version_row)
    }

    fn in_order(
        &self,
        serials: &[u64],
        found: &[Fields],
        row: impl Fn(&Fields) -> Result<Row, Fault>,
    ) -> Result<Vec<Row>, Fault> {
        let mut by_serial = std::collections::HashMap::new();
        for fields in found {
            by_serial.insert(number(fields, 0)?, fields);
        }
        let rows = serials
            .iter()
            .map(|serial| row(by_serial.get(serial).ok_or_else(|| damaged("a node"))?));
        rows.collect()
    }

    async fn indexes_over(
        &mut self,
        versions: &[u64],
        limit: usize,
    ) -> Result<(Vec<u64>, bool), Fault> {
        let mut seen = versions.to_vec();
        let (mut all, mut more, mut frontier) = (Vec::<u64>::new(), false, versions.to_vec());
        for _ in 0..INDEX_DEPTH_MAX {
            let statement = Statement::new(INDEXES_OVER)
                .with("serials", list(&frontier))
                .with("seen", list(&seen))
                .with("count", limit as u64 + 1);
            frontier = serials(&self.run(statement).await?)?;
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

    async fn resolve(&mut self, image: &str, version: &Reference) -> Result<Place, Fault> {
        let statement = match version {
            Reference::Tag(tag) => Statement::new(BY_TAG).with("name", image).with("tag", &**tag),
            Reference::Digest(digest) => {
                Statement::new(BY_DIGEST).with("key", version_key(image, digest))
            }
        };
        let name = format!("{image} {version}");
        let found = self.find(statement, "version", &name).await?;
        let tag = text(&found, 1)?.to_owned();
        Ok(Place { version: number(&found, 0)?, tag, since: number(&found, 2)? })
    }

    async fn predecessor(&mut self, image: &str, place: &Place) -> Result<Option<u64>, Fault> {
        let Place { version, tag, since } = place;
        if tag.is_empty() {
            return Ok(None);
        }
        let statement = Statement::new(TAG_BEFORE)
            .with("name", image)
            .with("tag", &**tag)
            .with("since", *since)
            .with("serial", *version);
        if let Some(fields) = self.run(statement).await?.first() {
            return number(fields, 0).map(Some);
        }
        let statement = Statement::new(VERSION_BEFORE).with("name", image).with("serial", *version);
        self.run(statement).await?.first().map(|fields| number(fields, 0)).transpose()
    }

    async fn reach(&mut self, version: u64, image: &str) -> Result<BTreeSet<u64>, Fault> {
        let too_wide = || Fault::from(GraphError::TooWide(image.to_owned()));
        let (mut layers, mut seen) = (BTreeSet::new(), HashSet::from([version]));
        let mut frontier = vec![version];
        for _ in 0..=INDEX_DEPTH_MAX {
            let statement = Statement::new(CONTENTS_OF).with("serials", list(&frontier));
            let mut next = Vec::new();
            for fields in self.run(statement).await? {
                let serial = number(&fields, 0)?;
                match fields.get(1).and_then(Value::as_bool) {
                    Some(true) if seen.insert(serial) => next.push(serial),
                    Some(true) => {}
                    _ => drop(layers.insert(serial)),
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

    async fn added(
        &mut self,
        image: &str,
        version: &Reference,
        since: Option<&Reference>,
        limit: usize,
    ) -> Result<Answer, Fault> {
        self.image(image).await?;
        let place = self.resolve(image, version).await?;
        let before = match since {
            Some(since) => self.resolve(image, since).await?.version,
            None => self.predecessor(image, &place).await?.ok_or_else(|| {
                GraphError::NoPredecessor { image: image.to_owned(), version: version.to_string() }
            })?,
        };
        let now = self.reach(place.version, image).await?;
        let then = self.reach(before, image).await?;
        let mut added: Vec<u64> = now.difference(&then).copied().take(limit + 1).collect();
        let more = cut(&mut added, limit);
        let found = self.run(Statement::new(CONTENTS).with("serials", list(&added))).await?;
        let rows = self.in_order(&added, &found, brief)?;
        Ok(Answer { about: self.versions(&[place.version, before]).await?, rows, more })
    }

    pub(super) async fn progress(&mut self, source: &str) -> Result<Progress, Fault> {
        let last = "MATCH (s:OutriderSource {name: $source}) RETURN s.last";
        let last = self.run(Statement::new(last).with("source", source)).await?;
        let last = last.first().map(|fields| number(fields, 0)).transpose()?;
        let marks = "MATCH (m:OutriderMark {source: $source}) \
            RETURN m.edge, m.lane, m.epoch, m.through ORDER BY m.edge, m.lane";
        let marks = self.run(Statement::new(marks).with("source", source)).await?;
        let mark = |fields: &Fields| {
            let lane = u8::try_from(number(fields, 1)?).map_err(|_| damaged("a mark"))?;
            let (edge, epoch) = (number(fields, 0)?, number(fields, 2)?);
            Ok(Mark { edge, lane, epoch, through: number(fields, 3)? })
        };
        Ok(Progress { last, marks: marks.iter().map(mark).collect::<Result<_, Fault>>()? })
    }

    pub(super) async fn dependants(&mut self, contents: &[Digest]) -> Result<Vec<u64>, Fault> {
        let digests: Value = contents.iter().map(Digest::to_string).collect();
        let found = "UNWIND $digests AS digest MATCH (n:Content {digest: digest}) \
            RETURN n.digest, coalesce(n.dependants, 0)";
        let mut known = std::collections::HashMap::new();
        for fields in self.run(Statement::new(found).with("digests", digests)).await? {
            known.insert(text(&fields, 0)?.to_owned(), number(&fields, 1)?);
        }
        let count = |digest: &Digest| known.get(&digest.to_string()).copied().unwrap_or(0);
        Ok(contents.iter().map(count).collect())
    }

    pub(super) async fn stats(&mut self) -> Result<Stats, Fault> {
        let mut stats = Stats::default();
        for (kind, cypher) in [
            (Kind::Layer, "MATCH (n:Layer) RETURN count(n)"),
            (Kind::Component, "MATCH (n:Component) RETURN count(n)"),
            (Kind::Function, "MATCH (n:Function) RETURN count(n)"),
            (Kind::Image, "MATCH (n:Image) RETURN count(n)"),
            (Kind::Version, "MATCH (n:Version) RETURN count(n)"),
            (Kind::Index, "MATCH (n:Index) RETURN count(n)"),
            (Kind::Customer, "MATCH (n:Customer) RETURN count(n)"),
        ] {
            let found = self.run(Statement::new(cypher)).await?;
            let count = number(found.first().ok_or_else(|| damaged("a count"))?, 0)?;
            stats.nodes.insert(kind.as_str().to_owned(), count);
        }
        // An index has both labels.
        let indexes = stats.nodes.get(Kind::Index.as_str()).copied().unwrap_or(0);
        if let Some(versions) = stats.nodes.get_mut(Kind::Version.as_str()) {
            *versions = versions.saturating_sub(indexes);
        }
        let found =
            self.run(Statement::new("MATCH (g:OutriderGraph {id: 1}) RETURN g.contains")).await?;
        stats.contains = number(found.first().ok_or_else(|| damaged("a count"))?, 0)?;
        let found = self.run(Statement::new("MATCH (e:OutriderEarly) RETURN count(e)")).await?;
        stats.early = number(found.first().ok_or_else(|| damaged("a count"))?, 0)?;
        let sources = Statement::new("MATCH (s:OutriderSource) RETURN s.name, s.last");
        for fields in self.run(sources).await? {
            stats.positions.insert(text(&fields, 0)?.to_owned(), number(&fields, 1)?);
        }
        Ok(stats)
    }
}

/// One row more than the limit says that there are more.
fn answer(
    about: Vec<Row>,
    rows: impl IntoIterator<Item = Result<Row, Fault>>,
    limit: usize,
) -> Result<Answer, Fault> {
    let mut rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
    let more = cut(&mut rows, limit);
    Ok(Answer { about, rows, more })
}
