//! What entries of a queue mean for the graph: pure. Manifests are analysed, accesses are added up, and the batch ends
//! at a position with what was seen up to there.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_artifact::{Digest, RepositoryName};
use outrider_events::manifest::Content as Carried;
use outrider_events::queue::Position;
use outrider_events::{Entry, Event, Lane, ManifestEvent, Mark, Progress, Said};
use outrider_graph::batch::{BATCH_CONTENTS_MAX, POSITION_MAX};
use outrider_graph::{
    self as graph, Access, Alone, Batch, Begin, Found, Kind, Seen, analyse, stated,
};

/// What was made of some entries.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// To be applied.
    pub(super) batch: Batch,
    /// What the edges were asked for.
    pub(super) asked: BTreeMap<u64, BTreeSet<Digest>>,
    /// Events that were not seen before.
    pub(super) events: u64,
    /// Those that were.
    pub(super) repeated: u64,
    /// Manifests that the graph does not take, and events that name nothing.
    pub(super) refused: u64,
    /// Manifests of which nobody knows what they say.
    pub(super) silent: u64,
}

/// Takes entries from the front until there are about so many events, and at least one entry.
///
/// # Errors
/// A position that is no number: it is none of a queue that is here.
pub(super) fn collect(
    source: &str,
    progress: &mut Progress,
    entries: &mut VecDeque<(Position, Entry)>,
    events_max: usize,
) -> Result<Collected, String> {
    let mut collected = Collected::default();
    let after = progress.position.number();
    let (mut events, mut contents) = (0, 0);
    let mut seen = BTreeSet::new();
    let mut accesses: HashMap<(Option<RepositoryName>, Digest), (u64, u64)> = HashMap::new();
    while let Some((_, entry)) = entries.front() {
        let (more, more_contents) = (entry.batch.events.len(), contents_of(entry));
        let has_room =
            events + more <= events_max && contents + more_contents <= BATCH_CONTENTS_MAX;
        if events > 0 && !has_room {
            break;
        }
        (events, contents) = (events + more, contents + more_contents);
        let Some((position, entry)) = entries.pop_front() else { break };
        let mark = entry.batch.mark();
        if [entry.edge, mark.epoch, mark.through].iter().any(|number| *number > POSITION_MAX) {
            collected.refused += more as u64;
            progress.position = position;
            continue;
        }
        seen.insert((entry.edge, entry.batch.lane));
        let fresh = progress.take(position, entry);
        collected.events += fresh.len() as u64;
        collected.repeated += (more - fresh.len()) as u64;
        for (id, event) in fresh {
            match event {
                Event::Manifest(manifest) => match found(*manifest) {
                    Ok(Some(found)) => collected.batch.found.push(found),
                    Ok(None) => collected.silent += 1,
                    Err((digest, why)) => {
                        tracing::warn!(digest, why, "a manifest is not taken into the graph");
                        collected.refused += 1;
                    }
                },
                Event::Access(access) => {
                    let Ok(digest) = access.digest.parse::<Digest>() else {
                        collected.refused += 1;
                        continue;
                    };
                    collected.asked.entry(id.edge).or_default().insert(digest);
                    let last = access.unix_ms.min(graph::batch::UNIX_MS_MAX);
                    let entry = accesses.entry((access.image.parse().ok(), digest)).or_default();
                    *entry = (entry.0 + 1, entry.1.max(last));
                }
                Event::Upload(upload) => match upload.kind {
                    UploadKind::Layer => match alone(upload) {
                        Some(alone) => collected.batch.alone.push(alone),
                        None => collected.refused += 1,
                    },
                    // It is known to the graph by the manifests that have it.
                    UploadKind::Blob => {}
                    // Of the time before events carried manifests.
                    UploadKind::Manifest | UploadKind::Mirrored => collected.silent += 1,
                },
            }
        }
    }
    let last = progress
        .position
        .number()
        .ok_or_else(|| format!("{} is not a position that a graph can store", progress.position))?;
    let (source, begin) = (source.to_owned(), Begin::After(after));
    collected.batch.position = Some(graph::Position { source, begin, last });
    let mark = |(edge, lane): (u64, Lane)| {
        let Mark { epoch, through } = progress.marks.get(edge, lane);
        graph::Mark { edge, lane: lane as u8, epoch, through }
    };
    collected.batch.marks = seen.into_iter().map(mark).collect();
    let access = |((image, digest), (count, unix_ms))| Access { image, digest, count, unix_ms };
    collected.batch.accesses = accesses.into_iter().map(access).collect();
    Ok(collected)
}

/// At the most: nothing is shorter in a manifest than 80 bytes.
fn contents_of(entry: &Entry) -> usize {
    let contents = |event: &Event| match event {
        Event::Manifest(manifest) => match &manifest.said {
            Said::Whole(bytes) => bytes.len() / 80,
            Said::Contents(contents) => contents.len(),
            Said::Gone | Said::TooMuch => 0,
        },
        Event::Upload(_) | Event::Access(_) => 0,
    };
    entry.batch.events.iter().map(|numbered| contents(&numbered.event)).sum()
}

/// A layer that was uploaded by itself, within the bounds of a batch.
fn alone(upload: UploadEvent) -> Option<Alone> {
    let UploadEvent { customer, digest, size_bytes: bytes, unix_ms, .. } = upload;
    let alone = Alone { digest: digest.parse().ok()?, bytes, customer, unix_ms };
    alone.check().ok().map(|()| alone)
}

/// The manifest for the graph; nothing when it is not known what it says.
fn found(manifest: ManifestEvent) -> Result<Option<Found>, (String, String)> {
    let ManifestEvent { upload, said } = manifest;
    let named = upload.digest.clone();
    let found = || {
        let tag = upload.version.as_deref().map(str::parse).transpose();
        let seen = Seen {
            image: upload.repository.parse().map_err(|error| format!("{error}"))?,
            tag: tag.map_err(|error| format!("{error}"))?,
            customer: upload.customer,
            unix_ms: upload.unix_ms,
            digest: Some(upload.digest.parse().map_err(|error| format!("{error}"))?),
        };
        let found = match said {
            Said::Whole(bytes) => {
                let media_type = Some(&*upload.media_type).filter(|text| !text.is_empty());
                analyse(&bytes, media_type, seen)
            }
            Said::Contents(contents) => {
                let contents: Option<Vec<_>> = contents.into_iter().map(content).collect();
                let contents = contents.ok_or("a content has no digest")?;
                stated(upload.size_bytes, contents, seen)
            }
            Said::Gone | Said::TooMuch => return Ok(None),
        };
        found.map(Some).map_err(|error| error.to_string())
    };
    found().map_err(|why: String| (named, why))
}

fn content(carried: Carried) -> Option<graph::Content> {
    let digest = carried.digest()?;
    let kind = match (carried.is_manifest, carried.is_component) {
        (true, _) => Kind::Version,
        (false, true) => Kind::Component,
        (false, false) => Kind::Layer,
    };
    Some(graph::Content { kind, digest, bytes: carried.bytes })
}
