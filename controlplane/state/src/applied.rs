//! Which requests were applied already, with their outcomes: a request that comes again is answered as
//! before.
//!
//! Two kinds. A *session* numbers its requests and says below which number it will not ask again, so it
//! costs what it has under way. An *`Idempotency-Key`* may come again at any time; at most
//! [`KEYS_MAX`] are kept, each for [`KEY_TIME_MS`] of log time. Log time comes with the entries, so that
//! every node forgets at the same entry whatever its clock says.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rkyv::{Archive, Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::outcome::Outcome;
use crate::request::{Request, RequestId};

/// The most `Idempotency-Key`s that are kept. The oldest goes first.
pub const KEYS_MAX: usize = 1_000_000;
/// How long an `Idempotency-Key` is kept, in milliseconds of log time.
pub const KEY_TIME_MS: u64 = 24 * 3_600 * 1_000;
/// The most sessions that are kept. The one that was silent longest goes first.
pub const SESSIONS_MAX: usize = 4_096;
/// How long a silent session is kept, in milliseconds of log time.
pub const SESSION_TIME_MS: u64 = 3_600 * 1_000;
/// The most unsettled requests of one session. The oldest counts as settled when there are more.
pub const SESSION_REQUESTS_MAX: usize = 16_384;

/// What a request is known by, hashed: keys of 16 bytes, whatever clients send.
pub(crate) type KeyHash = [u8; 16];

#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub(crate) struct KeyEntry {
    pub(crate) hash: KeyHash,
    pub(crate) time_ms: u64,
    /// Tells whether the request is the same one.
    pub(crate) fingerprint: u64,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) time_ms: u64,
    pub(crate) settled: u64,
    pub(crate) done: BTreeMap<u64, Outcome>,
}

/// Requests that were applied.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// In log order, so also in the order of their time.
    keys: VecDeque<KeyEntry>,
    /// Number of the entry in all that there ever were; `keys` begins with `first`.
    places: HashMap<KeyHash, u64>,
    first: u64,
    sessions: BTreeMap<[u8; 16], Session>,
}

impl Applied {
    /// How many `Idempotency-Key`s are kept.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// How many sessions are kept.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Forgets what is over its time. Amortized O(1) per request, and O(sessions) when it is asked for one.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.keys.front() {
            if oldest.time_ms.saturating_add(KEY_TIME_MS) > now_ms && self.keys.len() <= KEYS_MAX {
                break;
            }
            self.places.remove(&oldest.hash);
            self.keys.pop_front();
            self.first += 1;
        }
    }

    /// The outcome of a request that was applied before; nothing for a new one.
    pub(crate) fn find(&mut self, request: &Request) -> Option<Outcome> {
        match &request.id {
            RequestId::None => None,
            RequestId::Session { client, sequence, settled } => {
                let session = self.sessions.get_mut(client)?;
                session.settle(*settled);
                if *sequence < session.settled {
                    return Some(Outcome::Settled);
                }
                session.done.get(sequence).cloned()
            }
            RequestId::Key { scope, key } => {
                let place = *self.places.get(&hash(scope, key))?;
                let entry = self.keys.get(usize::try_from(place - self.first).ok()?)?;
                let same = entry.fingerprint == fingerprint(request);
                Some(if same { entry.outcome.clone() } else { Outcome::Reused })
            }
        }
    }

    /// Keeps the outcome of a request that [`Applied::find`] did not know.
    pub(crate) fn keep(&mut self, id: &RequestId, print: u64, outcome: &Outcome, now_ms: u64) {
        match id {
            RequestId::None => {}
            RequestId::Session { client, sequence, settled } => {
                if !self.sessions.contains_key(client) {
                    self.make_room_for_session(now_ms);
                }
                let session = self.sessions.entry(*client).or_default();
                session.time_ms = now_ms;
                session.settle(*settled);
                if *sequence >= session.settled {
                    session.done.insert(*sequence, outcome.clone());
                }
                if session.done.len() > SESSION_REQUESTS_MAX
                    && let Some((oldest, _)) = session.done.pop_first()
                {
                    session.settled = session.settled.max(oldest + 1);
                }
            }
            RequestId::Key { scope, key } => {
                let hash = hash(scope, key);
                self.places.insert(hash, self.first + self.keys.len() as u64);
                let outcome = outcome.clone();
                self.keys.push_back(KeyEntry {
                    hash,
                    time_ms: now_ms,
                    fingerprint: print,
                    outcome,
                });
            }
        }
    }

    fn make_room_for_session(&mut self, now_ms: u64) {
        if self.sessions.len() < SESSIONS_MAX {
            return;
        }
        self.sessions.retain(|_, s| s.time_ms.saturating_add(SESSION_TIME_MS) > now_ms);
        while self.sessions.len() >= SESSIONS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(id, s)| (s.time_ms, **id));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            self.sessions.remove(&oldest);
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &KeyEntry> {
        self.keys.iter()
    }

    pub(crate) fn session_entries(&self) -> impl Iterator<Item = (&[u8; 16], &Session)> {
        self.sessions.iter()
    }

    pub(crate) fn restore(keys: Vec<KeyEntry>, sessions: Vec<([u8; 16], Session)>) -> Self {
        let places = keys.iter().zip(0..).map(|(entry, place)| (entry.hash, place)).collect();
        Self { keys: keys.into(), places, first: 0, sessions: sessions.into_iter().collect() }
    }
}

impl Session {
    fn settle(&mut self, settled: u64) {
        if settled > self.settled {
            self.settled = settled;
            self.done = self.done.split_off(&settled);
        }
    }
}

fn hash(scope: &str, key: &str) -> KeyHash {
    let mut hasher = Sha256::new();
    hasher.update((scope.len() as u64).to_le_bytes());
    hasher.update(scope);
    hasher.update(key);
    let mut hash = KeyHash::default();
    hash.copy_from_slice(&hasher.finalize()[..16]);
    hash
}

/// A hash of what is asked for; 0 where no key is kept.
pub(crate) fn fingerprint(request: &Request) -> u64 {
    match request.id {
        RequestId::Key { .. } => rkyv::to_bytes::<rkyv::rancor::Error>(&request.operation)
            .map_or(0, |bytes| xxhash_rust::xxh3::xxh3_64(&bytes)),
        _ => 0,
    }
}
