//! Events, the batches in which they travel, and the entries of a queue, as records of the control plane (header,
//! checksum, rkyv archive, validated when read).
//!
//! An event is known by who saw it, its lane, its epoch and its number; numbers of an epoch grow, and epochs of a
//! lane do too. So one [`Mark`] for each edge and lane says what was seen already.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use outrider_artifact::event::{AccessEvent, UploadEvent};
use outrider_state::record::{Kind, RecordError, decode, encode};
use rkyv::{Archive, Deserialize, Serialize};

use crate::manifest::ManifestEvent;

/// The most events of a batch.
pub const BATCH_EVENTS_MAX: usize = 1_024;
/// The most bytes of a batch, by [`Event::bytes`], where it has more than one event.
pub const BATCH_BYTES_MAX: usize = 128 << 10;
/// The most bytes of one event, by [`Event::bytes`]: a manifest of [`WHOLE_BYTES_MAX`](crate::manifest::WHOLE_BYTES_MAX)
/// with all its names.
pub const EVENT_BYTES_MAX: usize = 128 << 10;
/// The longest record of a batch or an entry.
pub const RECORD_BYTES_MAX: usize = 2 * (BATCH_BYTES_MAX + EVENT_BYTES_MAX);

/// What an edge sends apart from the other.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize,
)]
pub enum Lane {
    /// What was pushed: kept at the edge until a queue has it.
    Uploads,
    /// What was asked for: may be dropped, and is counted then.
    Accesses,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Uploads, Self::Accesses];

    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uploads => "uploads",
            Self::Accesses => "accesses",
        }
    }
}

/// Something that happened at an edge.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Event {
    /// Something was stored for good.
    Upload(UploadEvent),
    /// Something was asked for.
    Access(AccessEvent),
    /// A manifest was stored for good, or came from an upstream for the first time. In a box, so that the archives of
    /// the other two are what they were before there was this one: what lies in queues is read.
    Manifest(Box<ManifestEvent>),
}

impl Event {
    /// The lane that it belongs to.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Upload(_) | Self::Manifest(_) => Lane::Uploads,
            Self::Access(_) => Lane::Accesses,
        }
    }

    /// About its size in a record.
    pub fn bytes(&self) -> usize {
        let strings = match self {
            Self::Upload(upload) => strings_of(upload),
            Self::Access(access) => {
                let AccessEvent { customer, region, image, digest, .. } = access;
                [customer, region, image, digest].map(String::len).iter().sum()
            }
            Self::Manifest(manifest) => manifest.bytes(),
        };
        size_of::<ArchivedNumbered>() + strings
    }
}

pub(crate) fn strings_of(upload: &UploadEvent) -> usize {
    let UploadEvent { customer, region, repository, digest, media_type, version, .. } = upload;
    let strings = [customer, region, repository, digest, media_type].map(String::len);
    strings.iter().sum::<usize>() + version.as_ref().map_or(0, String::len)
}

/// An event and its number.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Numbered {
    /// Its number within its epoch, from 1 on.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
}

/// Events of one lane, in the order of their numbers. There may be numbers that no event has.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Batch {
    /// The lane.
    pub lane: Lane,
    /// The epoch.
    pub epoch: u64,
    /// At least one.
    pub events: Vec<Numbered>,
}

/// Up to which event of a lane something was seen. Epochs come first: an older epoch is seen as a whole.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize,
)]
pub struct Mark {
    /// The epoch.
    pub epoch: u64,
    /// The number in it; 0 for none.
    pub through: u64,
}

/// Which event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The edge's number in its cluster.
    pub edge: u64,
    /// The lane.
    pub lane: Lane,
    /// The epoch.
    pub epoch: u64,
    /// The number.
    pub sequence: u64,
}

impl Batch {
    /// The mark of its last event.
    pub fn mark(&self) -> Mark {
        let through = self.events.last().map_or(0, |last| last.sequence);
        Mark { epoch: self.epoch, through }
    }

    /// Takes out what this mark covers.
    pub fn forget(&mut self, mark: Mark) {
        if self.epoch < mark.epoch {
            self.events.clear();
        } else if self.epoch == mark.epoch {
            let seen = self.events.partition_point(|numbered| numbered.sequence <= mark.through);
            self.events.drain(..seen);
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`RecordError::Contradiction`]
    pub fn check(&self) -> Result<(), RecordError> {
        if self.events.is_empty() || self.events.len() > BATCH_EVENTS_MAX {
            return Err(RecordError::Contradiction("a batch has 1 to 1024 events"));
        }
        let (mut last, mut bytes) = (0, 0);
        for Numbered { sequence, event } in &self.events {
            if *sequence <= last {
                return Err(RecordError::Contradiction("the numbers of events grow"));
            }
            if event.lane() != self.lane {
                return Err(RecordError::Contradiction("an event is of another lane"));
            }
            if event.bytes() > EVENT_BYTES_MAX {
                return Err(RecordError::Contradiction("an event is too large"));
            }
            last = *sequence;
            bytes += event.bytes();
        }
        if bytes > BATCH_BYTES_MAX && self.events.len() > 1 {
            return Err(RecordError::Contradiction("a batch is too large"));
        }
        if self.epoch == 0 {
            return Err(RecordError::Contradiction("epochs begin at 1"));
        }
        Ok(())
    }
}

/// What a queue keeps: a batch, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Entry {
    /// The edge's number in its cluster.
    pub edge: u64,
    /// What it saw.
    pub batch: Batch,
}

impl Entry {
    /// The entry as a queue keeps it. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::Events, self)
    }

    /// Reads an entry, and checks every bound.
    ///
    /// # Errors
    /// [`RecordError`] for anything that is not an entry within its bounds.
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let wanted = RECORD_BYTES_MAX as u64;
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Length { found: bytes.len() as u64, wanted });
        }
        let entry: Self = decode(Kind::Events, bytes)?;
        entry.batch.check()?;
        Ok(entry)
    }

    /// The events with what they are known by.
    pub fn events(&self) -> impl Iterator<Item = (EventId, &Event)> {
        let (edge, Batch { lane, epoch, events }) = (self.edge, &self.batch);
        let (lane, epoch) = (*lane, *epoch);
        events.iter().map(move |Numbered { sequence, event }| {
            (EventId { edge, lane, epoch, sequence: *sequence }, event)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use outrider_artifact::event::{AccessTier, UploadKind};

    use super::*;
    use crate::manifest::{Said, WHOLE_BYTES_MAX};

    pub(crate) fn upload(sequence: u64) -> Numbered {
        let event = Event::Upload(UploadEvent {
            kind: UploadKind::Manifest,
            customer: "anonymous".into(),
            region: "local".into(),
            repository: "library/alpine".into(),
            version: Some("3.20".into()),
            digest: format!("sha256:{sequence:064}"),
            size_bytes: sequence,
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            unix_ms: 1,
        });
        Numbered { sequence, event }
    }

    pub(crate) fn access(sequence: u64) -> Numbered {
        let event = Event::Access(AccessEvent {
            customer: "anonymous".into(),
            region: "local".into(),
            image: "library/alpine".into(),
            digest: format!("sha256:{sequence:064}"),
            unix_ms: 1,
            tier: AccessTier::Ram,
            status: 200,
            bytes: sequence,
            latency_us: 7,
        });
        Numbered { sequence, event }
    }

    fn entry(events: Vec<Numbered>) -> Entry {
        Entry { edge: 4, batch: Batch { lane: Lane::Uploads, epoch: 2, events } }
    }

    #[test]
    fn an_entry_survives_being_stored() {
        let entry = entry((1..=100).map(upload).collect());
        let record = entry.to_record().unwrap();
        assert!(record.len() < RECORD_BYTES_MAX);
        assert_eq!(Entry::from_record(&record).unwrap(), entry);
    }

    #[test]
    fn the_largest_batch_fits_into_a_record() {
        let mut one = upload(1);
        if let Event::Upload(upload) = &mut one.event {
            upload.media_type = "m".repeat(EVENT_BYTES_MAX - 400);
        }
        assert!(one.event.bytes() <= EVENT_BYTES_MAX);
        let mut events: Vec<_> = (1..=BATCH_EVENTS_MAX as u64).map(upload).collect();
        while events.iter().map(|e| e.event.bytes()).sum::<usize>() > BATCH_BYTES_MAX {
            events.pop();
        }
        for events in [vec![one], events] {
            let record = entry(events).to_record().unwrap();
            assert!(record.len() <= RECORD_BYTES_MAX);
            Entry::from_record(&record).unwrap();
        }
    }

    /// An entry of three uploads, and a message with the same batch, as they were written before there were events of
    /// manifests.
    const BEFORE: &str = include_str!("../testdata/before_manifests.hex");

    #[test]
    fn what_lies_in_queues_since_before_is_read() {
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let records: Vec<Vec<u8>> =
            BEFORE.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect();
        let expected = entry((1..=3).map(upload).collect());
        assert_eq!(Entry::from_record(&records[0]).unwrap(), expected);
        let message = crate::ToNode::from_record(&records[1]).unwrap();
        assert_eq!(message, crate::ToNode::Batch(expected.batch));
    }

    #[test]
    fn events_of_manifests_are_uploads_within_the_same_bounds() {
        let Event::Upload(upload) = upload(1).event else { panic!() };
        let of = |said| {
            let manifest = ManifestEvent { upload: upload.clone(), said };
            entry(vec![Numbered { sequence: 1, event: Event::Manifest(Box::new(manifest)) }])
        };
        let whole = of(Said::Whole(vec![b' '; WHOLE_BYTES_MAX]));
        let record = whole.to_record().unwrap();
        assert!(record.len() <= RECORD_BYTES_MAX);
        assert_eq!(Entry::from_record(&record).unwrap(), whole);
        let long = of(Said::Whole(vec![b' '; EVENT_BYTES_MAX])).to_record().unwrap();
        assert!(Entry::from_record(&long).unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let lane = Lane::Uploads;
        let mut large = upload(1);
        if let Event::Upload(upload) = &mut large.event {
            upload.repository = "r".repeat(EVENT_BYTES_MAX);
        }
        for (batch, why) in [
            (Batch { lane, epoch: 1, events: vec![] }, "1 to 1024"),
            (Batch { lane, epoch: 1, events: (1..=1025).map(upload).collect() }, "1 to 1024"),
            (Batch { lane, epoch: 1, events: vec![upload(2), upload(2)] }, "grow"),
            (Batch { lane, epoch: 1, events: vec![upload(0)] }, "grow"),
            (Batch { lane, epoch: 1, events: vec![access(1)] }, "another lane"),
            (Batch { lane, epoch: 0, events: vec![upload(1)] }, "epochs"),
            (Batch { lane, epoch: 1, events: vec![large] }, "too large"),
        ] {
            let record = Entry { edge: 1, batch }.to_record().unwrap();
            let error = Entry::from_record(&record).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_mark_takes_out_what_was_seen_and_nothing_else() {
        let batch = entry((3..=6).map(upload).collect()).batch;
        for (mark, left) in [
            (Mark { epoch: 1, through: 9 }, 4),
            (Mark { epoch: 2, through: 2 }, 4),
            (Mark { epoch: 2, through: 4 }, 2),
            (Mark { epoch: 2, through: 6 }, 0),
            (Mark { epoch: 3, through: 0 }, 0),
        ] {
            let mut batch = batch.clone();
            batch.forget(mark);
            assert_eq!(batch.events.len(), left, "{mark:?}");
        }
    }
}
