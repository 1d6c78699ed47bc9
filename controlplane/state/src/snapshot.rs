//! All of a state as one record, and back. Two equal states give equal bytes: everything is written in the
//! order of its keys, or of the log.

use std::sync::Arc;

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize};

use crate::applied::{Applied, KeyEntry, Session};
use crate::invalidated::Invalidated;
use crate::members::{Member, Members, Token};
use crate::record::{Kind, RecordError, decode, encode};
use crate::request::{Customer, Placement, TagRecord, Weights};
use crate::state::{Fragment, State, TagState};

#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    version: u64,
    time_ms: u64,
    fragments: Vec<StoredFragment>,
    tags: Vec<StoredTag>,
    customers: Vec<(String, Customer)>,
    weights: Weights,
    placements: Vec<(String, Placement)>,
    tokens: Vec<([u8; 32], Token)>,
    members: Vec<(u64, Member)>,
    last_member: u64,
    keys: Vec<KeyEntry>,
    sessions: Vec<([u8; 16], Session)>,
    events_count: u64,
    events: Vec<Vec<u8>>,
    event_marks: Vec<(u64, (u64, u64))>,
    forgotten: u64,
    invalidated: Vec<(u64, String)>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredFragment {
    key: String,
    version: u64,
    value: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize)]
struct StoredTag {
    repository: String,
    tag: String,
    version: u64,
    record: TagRecord,
    confirmed_ms: u64,
}

impl State {
    /// All of it as bytes. O(state), and holds it up to three times while it works.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_snapshot(&self) -> Result<Vec<u8>, RecordError> {
        let fragments = self.fragments.iter().map(|(key, fragment)| StoredFragment {
            key: key.clone(),
            version: fragment.version,
            value: fragment.value.to_vec(),
        });
        let tags = self.tags().map(|((repository, tag), state)| StoredTag {
            repository: repository.clone(),
            tag: tag.clone(),
            version: state.version,
            record: state.record.clone(),
            confirmed_ms: state.confirmed_ms,
        });
        let tokens = self.members.tokens.iter().map(|(hash, token)| (*hash, token.clone()));
        let members = self.members.members.iter().map(|(number, m)| (*number, m.clone()));
        let sessions = self.applied.session_entries();
        let invalidated = self.invalidated.since(0);
        let stored = Stored {
            version: self.version,
            time_ms: self.time_ms,
            fragments: fragments.collect(),
            tags: tags.collect(),
            customers: self.customers.clone().into_iter().collect(),
            weights: self.weights,
            placements: self.placements.clone().into_iter().collect(),
            tokens: tokens.collect(),
            members: members.collect(),
            last_member: self.members.last,
            keys: self.applied.entries().cloned().collect(),
            sessions: sessions.map(|(id, session)| (*id, session.clone())).collect(),
            events_count: self.events.count,
            events: self.events.kept.iter().map(|record| record.to_vec()).collect(),
            event_marks: self.events.marks.iter().map(|(edge, mark)| (*edge, *mark)).collect(),
            forgotten: self.invalidated.forgotten(),
            invalidated: invalidated.map(|(v, digest)| (v, digest.to_string())).collect(),
        };
        encode(Kind::Snapshot, &stored)
    }

    /// The state that these bytes were made of.
    ///
    /// # Errors
    /// [`RecordError`] for anything that [`State::to_snapshot`] has not written.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, RecordError> {
        let stored: Stored = decode(Kind::Snapshot, bytes)?;
        let mut state = Self {
            version: stored.version,
            time_ms: stored.time_ms,
            weights: stored.weights,
            customers: stored.customers.into_iter().collect(),
            placements: stored.placements.into_iter().collect(),
            members: Members {
                tokens: stored.tokens.into_iter().collect(),
                members: stored.members.into_iter().collect(),
                last: stored.last_member,
            },
            applied: Applied::restore(stored.keys, stored.sessions),
            ..Self::default()
        };
        if stored.events_count < stored.events.len() as u64 {
            return Err(RecordError::Contradiction("more events are kept than there ever were"));
        }
        state.events.count = stored.events_count;
        state.events.marks = stored.event_marks.into_iter().collect();
        stored.events.into_iter().for_each(|record| state.events.push(record.into()));
        let mut newest = 0;
        for StoredFragment { key, version, value } in stored.fragments {
            newest = newest.max(version);
            state.fragment_bytes += (key.len() + value.len()) as u64;
            let fragment = Fragment { version, value: Bytes::from(value) };
            if version == 0 || state.fragments.insert(key, fragment).is_some() {
                return Err(RecordError::Contradiction(
                    "a fragment is there twice, or has no version",
                ));
            }
        }
        for StoredTag { repository, tag, version, record, confirmed_ms } in stored.tags {
            newest = newest.max(version);
            let key = Arc::new((repository, tag));
            if record.upstream.is_some() {
                state.mirrored.insert((confirmed_ms, Arc::clone(&key)));
            }
            let tag = state.tags.insert(key, TagState { version, record, confirmed_ms });
            if version == 0 || tag.is_some() {
                return Err(RecordError::Contradiction("a tag is there twice, or has no version"));
            }
        }
        let mut invalidated = Vec::with_capacity(stored.invalidated.len());
        for (version, digest) in stored.invalidated {
            newest = newest.max(version);
            let digest = digest.parse();
            let wrong = |_| RecordError::Contradiction("an invalidated digest is none");
            invalidated.push((version, digest.map_err(wrong)?));
        }
        let invalidated = Invalidated::restore(stored.forgotten, invalidated);
        state.invalidated = invalidated
            .ok_or(RecordError::Contradiction("invalidated digests are out of their order"))?;
        if newest > state.version {
            return Err(RecordError::Contradiction("a part is newer than the whole"));
        }
        if state.members.members.keys().next_back().is_some_and(|&last| last > state.members.last) {
            return Err(RecordError::Contradiction("a member's number was not given yet"));
        }
        Ok(state)
    }
}
