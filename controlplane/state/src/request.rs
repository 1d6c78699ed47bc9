//! What can be asked of the state machine. A request is checked where it comes in ([`Request::check`]) and
//! again when it is read from a record, so that nothing beyond these bounds is ever applied.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use rkyv::{Archive, Deserialize, Serialize};

use crate::events::{
    EVENT_RECORD_BYTES_MAX, EVENT_RECORDS_MAX, EVENT_REQUEST_BYTES_MAX, EventRecord,
};
use crate::members::Role;

/// The longest key of a fragment, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// The longest value of a fragment, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The most writes of one [`Operation::Batch`].
pub const BATCH_WRITES_MAX: usize = 256;
/// The most bytes of keys and values of one [`Operation::Batch`].
pub const BATCH_BYTES_MAX: usize = 2 << 20;
/// The longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// The longest name of a customer, a member or a region, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest text of a digest or a media type, in bytes.
pub const TEXT_BYTES_MAX: usize = 255;
/// The longest address of a member, `HOST:PORT`, in bytes: the longest name of a host, and a port.
pub const ADDRESS_BYTES_MAX: usize = 259;
/// The most holders that a tag names.
pub const HOLDERS_MAX: usize = 16;
/// The most edges that a [`Placement`] asks for.
pub const REPLICAS_MAX: u8 = 5;
/// The most regions that it names.
pub const REGIONS_MAX: usize = 16;
/// The most requests of one log entry.
pub const REQUESTS_MAX: usize = 1_024;
/// The largest weight.
pub const WEIGHT_MAX: f64 = 1_000.0;
/// The longest that content may stay without being used, in seconds: thirty days.
pub const CONTENT_TTL_S_MAX: u32 = 30 * 24 * 3_600;
/// The longest that a join token is good, in milliseconds.
pub const TOKEN_TTL_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Something is too long, too short or too much.
    #[error("{what} has {found}, and {min} to {max} are allowed")]
    Bound {
        /// What it is.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// The least.
        min: usize,
        /// The most.
        max: usize,
    },
    /// A text with characters that it must not have.
    #[error("{what} has a control character")]
    Control {
        /// What it is.
        what: &'static str,
    },
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] outrider_artifact::NameError),
    /// A digest that is not one.
    #[error(transparent)]
    Digest(#[from] outrider_artifact::DigestError),
    /// Two writes of one batch are for the same key.
    #[error("the batch writes the key {key:?} twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// A region is named twice.
    #[error("the region {region:?} is named twice")]
    RegionTwice {
        /// Which.
        region: String,
    },
    /// A weight that is no number from 0 to [`WEIGHT_MAX`].
    #[error("the weight {what} is not a number from 0 to {WEIGHT_MAX}")]
    Weight {
        /// Which.
        what: &'static str,
    },
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing.
    Any,
    /// There is none yet (`If-None-Match: *`).
    Absent,
    /// There is one (`If-Match: *`).
    Present,
    /// It has this version (`If-Match: "7"`).
    Version(u64),
}

impl Expect {
    /// Whether it holds for something that has this version, 0 for what is absent.
    pub fn holds(self, current: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => current == 0,
            Self::Present => current != 0,
            Self::Version(version) => current == version && version != 0,
        }
    }
}

/// One write of a fragment.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Write {
    /// Sets a value.
    Put {
        /// 1 to [`KEY_BYTES_MAX`] bytes without control characters.
        key: String,
        /// At most [`VALUE_BYTES_MAX`].
        value: Vec<u8>,
        /// What must hold.
        expect: Expect,
    },
    /// Removes a fragment. Removing what is absent changes nothing and is no failure.
    Delete {
        /// As of a put.
        key: String,
        /// What must hold.
        expect: Expect,
    },
    /// Changes nothing, and lets the batch go on only if this holds.
    Check {
        /// As of a put.
        key: String,
        /// What must hold.
        expect: Expect,
    },
}

impl Write {
    /// The key and what must hold of it.
    pub fn condition(&self) -> (&str, Expect) {
        match self {
            Self::Put { key, expect, .. }
            | Self::Delete { key, expect }
            | Self::Check { key, expect } => (key, *expect),
        }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } | Self::Check { key, .. } => key.len(),
        }
    }

    fn check(&self) -> Result<(), RequestError> {
        text("the key", self.condition().0, 1, KEY_BYTES_MAX)?;
        match self {
            Self::Put { value, .. } => bound("the value", value.len(), 0, VALUE_BYTES_MAX),
            Self::Delete { .. } | Self::Check { .. } => Ok(()),
        }
    }
}

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TagRecord {
    /// Digest of the manifest, in its text form.
    pub digest: String,
    /// Bytes of the manifest.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// Members that hold it.
    pub holders: Vec<u64>,
    /// The name of the upstream that says so; nothing for a tag that was pushed.
    pub upstream: Option<String>,
}

/// What is no longer true everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Invalidation {
    /// What an upstream's tag was.
    Tag {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
    },
    /// A content, in the text form of its digest.
    Digest(String),
    /// All of a repository.
    Repository(String),
}

/// Who a customer is to the caches.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Customer {
    /// Weight of the class of service.
    pub class: f64,
    /// Bytes that are guaranteed to it on each edge.
    pub guaranteed_bytes: u64,
    /// Bytes that it may have stored, 0 for no bound.
    pub stored_bytes_max: u64,
    /// Requests a second that it may make at each edge, 0 for no bound.
    pub requests_per_second_max: u32,
    /// For how many seconds content that is charged to it stays without being used, 0 for as the upstream says. At
    /// most [`CONTENT_TTL_S_MAX`].
    pub content_ttl_s: u32,
}

/// The weights of the importance score, as in the edge's `[cache.importance]`.
#[derive(Clone, Copy, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Weights {
    /// Of the customer's class.
    pub class: f64,
    /// Of how often it is asked for.
    pub frequency: f64,
    /// Of how long it took to fetch.
    pub fetch: f64,
    /// Of how long it takes to compile or run.
    pub execute: f64,
    /// Of how many artifacts depend on it.
    pub depth: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { class: 1.0, frequency: 1.0, fetch: 1.0, execute: 1.0, depth: 1.0 }
    }
}

/// On how many edges what is pushed has to be before that is acknowledged, for the repositories below a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Placement {
    /// Edges, 1 to [`REPLICAS_MAX`].
    pub replicas: u8,
    /// Only edges of these regions count; none for all. Each once, at most [`REGIONS_MAX`].
    pub regions: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Operation {
    /// One write of a fragment.
    Write(Write),
    /// Writes of different keys: all of them, or none when one of their conditions does not hold.
    Batch(Vec<Write>),
    /// Sets or removes a tag.
    Tag {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
        /// What must hold of the tag's version.
        expect: Expect,
        /// What it stands for from now on, or nothing.
        record: Option<TagRecord>,
    },
    /// Tells every edge.
    Invalidate(Invalidation),
    /// Sets or removes a customer.
    Customer {
        /// Who.
        name: String,
        /// What it is from now on.
        customer: Option<Customer>,
    },
    /// Sets the weights of the importance score.
    Weights(Weights),
    /// Sets or removes a rule of the placement.
    Placement {
        /// The repositories that it is for: the one of this name and all below it; all of them where it is empty.
        prefix: String,
        /// What holds for them from now on, where no longer prefix says something else.
        placement: Option<Placement>,
    },
    /// Makes a join token known.
    IssueToken {
        /// SHA-256 of its secret.
        secret_sha256: [u8; 32],
        /// What it lets in.
        role: Role,
        /// The region of an edge, else empty.
        region: String,
        /// How long it is good, in log time.
        ttl_ms: u64,
    },
    /// Uses a join token: it lets in one public key.
    SpendToken {
        /// SHA-256 of its secret.
        secret_sha256: [u8; 32],
        /// SHA-256 of the newcomer's public key.
        key_sha256: [u8; 32],
        /// How it calls itself.
        name: String,
    },
    /// Hands events of edges on to the queue of every node. What came before is left out.
    Events(Vec<EventRecord>),
    /// Lets no member of this number in any more.
    Revoke {
        /// The member.
        member: u64,
    },
    /// Notes where a member is reached, and by what the tokens of an edge are known.
    Announce {
        /// The member.
        member: u64,
        /// `HOST:PORT`, or empty for nowhere.
        address: String,
        /// The public key (Ed25519) of its tokens.
        token_key: Option<[u8; 32]>,
    },
}

/// By what a repeated request is known.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum RequestId {
    /// It may be applied each time that it comes.
    None,
    /// The requests of one client, numbered.
    Session {
        /// The client: random, made once per process.
        client: [u8; 16],
        /// The number.
        sequence: u64,
        /// The client will not ask again for any below this number.
        settled: u64,
    },
    /// An `Idempotency-Key`.
    Key {
        /// Whose keys these are.
        scope: String,
        /// The key, 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
        key: String,
    },
}

/// One request.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Request {
    /// By what it is known when it comes again.
    pub id: RequestId,
    /// What is asked for.
    pub operation: Operation,
}

/// The requests of one log entry.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Batch {
    /// The log's time, in milliseconds. Never anybody's wall clock.
    pub time_ms: u64,
    /// At most [`REQUESTS_MAX`].
    pub requests: Vec<Request>,
}

impl Request {
    /// Whether every part is within its bounds. O(size).
    ///
    /// # Errors
    /// The first part that is not.
    pub fn check(&self) -> Result<(), RequestError> {
        if let RequestId::Key { scope, key } = &self.id {
            text("the scope", scope, 0, NAME_BYTES_MAX)?;
            text("the Idempotency-Key", key, 1, IDEMPOTENCY_KEY_BYTES_MAX)?;
        }
        self.operation.check()
    }
}

impl Operation {
    /// Bytes that it brings, for bounding batches.
    pub fn bytes(&self) -> usize {
        const OTHER_BYTES: usize = 512;
        match self {
            Self::Write(write) => write.bytes(),
            Self::Batch(writes) => writes.iter().map(Write::bytes).sum(),
            Self::Events(events) => events.iter().map(|event| event.record.len()).sum(),
            _ => OTHER_BYTES,
        }
    }

    fn check(&self) -> Result<(), RequestError> {
        match self {
            Self::Write(write) => write.check(),
            Self::Batch(writes) => check_batch(writes),
            Self::Tag { repository, tag, record, .. } => {
                check_tag(repository, tag)?;
                record.as_ref().map_or(Ok(()), TagRecord::check)
            }
            Self::Invalidate(Invalidation::Tag { repository, tag }) => check_tag(repository, tag),
            Self::Invalidate(Invalidation::Digest(digest)) => check_digest(digest),
            Self::Invalidate(Invalidation::Repository(name)) => {
                name.parse::<outrider_artifact::RepositoryName>()?;
                Ok(())
            }
            Self::Customer { name, customer } => {
                text("the customer's name", name, 1, NAME_BYTES_MAX)?;
                customer.as_ref().map_or(Ok(()), Customer::check)
            }
            Self::Weights(weights) => weights.check(),
            Self::Placement { prefix, placement } => {
                if !prefix.is_empty() {
                    prefix.parse::<outrider_artifact::RepositoryName>()?;
                }
                placement.as_ref().map_or(Ok(()), Placement::check)
            }
            Self::IssueToken { region, ttl_ms, .. } => {
                text("the region", region, 0, NAME_BYTES_MAX)?;
                let ttl = usize::try_from(*ttl_ms).unwrap_or(usize::MAX);
                bound("the token's time in ms", ttl, 1, TOKEN_TTL_MS_MAX as usize)
            }
            Self::SpendToken { name, .. } => text("the member's name", name, 1, NAME_BYTES_MAX),
            Self::Events(events) => check_events(events),
            Self::Revoke { .. } => Ok(()),
            Self::Announce { address, .. } => text("the address", address, 0, ADDRESS_BYTES_MAX),
        }
    }
}

impl TagRecord {
    fn check(&self) -> Result<(), RequestError> {
        check_digest(&self.digest)?;
        text("the media type", &self.media_type, 0, TEXT_BYTES_MAX)?;
        if let Some(upstream) = &self.upstream {
            text("the name of the upstream", upstream, 1, TEXT_BYTES_MAX)?;
        }
        bound("the list of holders", self.holders.len(), 0, HOLDERS_MAX)
    }
}

impl Customer {
    fn check(&self) -> Result<(), RequestError> {
        weight("class", self.class)?;
        let ttl = self.content_ttl_s as usize;
        bound("the content's time in s", ttl, 0, CONTENT_TTL_S_MAX as usize)
    }
}

impl Placement {
    fn check(&self) -> Result<(), RequestError> {
        bound("the replicas", usize::from(self.replicas), 1, usize::from(REPLICAS_MAX))?;
        bound("the list of regions", self.regions.len(), 0, REGIONS_MAX)?;
        for (region, place) in self.regions.iter().zip(0..) {
            text("a region", region, 1, NAME_BYTES_MAX)?;
            if self.regions[..place].contains(region) {
                return Err(RequestError::RegionTwice { region: region.clone() });
            }
        }
        Ok(())
    }
}

impl Weights {
    fn check(&self) -> Result<(), RequestError> {
        weight("class", self.class)?;
        weight("frequency", self.frequency)?;
        weight("fetch", self.fetch)?;
        weight("execute", self.execute)?;
        weight("depth", self.depth)
    }
}

impl Batch {
    /// As [`Request::check`], for all of them.
    ///
    /// # Errors
    /// The first part that is out of bounds.
    pub fn check(&self) -> Result<(), RequestError> {
        bound("the log entry's requests", self.requests.len(), 0, REQUESTS_MAX)?;
        self.requests.iter().try_for_each(Request::check)
    }
}

fn check_batch(writes: &[Write]) -> Result<(), RequestError> {
    bound("the batch's writes", writes.len(), 1, BATCH_WRITES_MAX)?;
    bound("the batch's bytes", writes.iter().map(Write::bytes).sum(), 0, BATCH_BYTES_MAX)?;
    let mut keys = std::collections::BTreeSet::new();
    for write in writes {
        write.check()?;
        let key = write.condition().0;
        if !keys.insert(key) {
            return Err(RequestError::Twice { key: key.to_owned() });
        }
    }
    Ok(())
}

fn check_events(events: &[EventRecord]) -> Result<(), RequestError> {
    bound("the events' records", events.len(), 1, EVENT_RECORDS_MAX)?;
    for event in events {
        bound("a record of events", event.record.len(), 1, EVENT_RECORD_BYTES_MAX)?;
    }
    let bytes = events.iter().map(|event| event.record.len()).sum();
    bound("the events' bytes", bytes, 1, EVENT_REQUEST_BYTES_MAX)
}

fn check_tag(repository: &str, tag: &str) -> Result<(), RequestError> {
    repository.parse::<outrider_artifact::RepositoryName>()?;
    tag.parse::<outrider_artifact::Tag>()?;
    Ok(())
}

fn check_digest(digest: &str) -> Result<(), RequestError> {
    digest.parse::<outrider_artifact::Digest>()?;
    Ok(())
}

fn weight(what: &'static str, weight: f64) -> Result<(), RequestError> {
    // Written so that NaN is refused too.
    if (0.0..=WEIGHT_MAX).contains(&weight) { Ok(()) } else { Err(RequestError::Weight { what }) }
}

fn text(what: &'static str, text: &str, min: usize, max: usize) -> Result<(), RequestError> {
    bound(what, text.len(), min, max)?;
    if text.chars().any(char::is_control) { Err(RequestError::Control { what }) } else { Ok(()) }
}

fn bound(what: &'static str, found: usize, min: usize, max: usize) -> Result<(), RequestError> {
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(RequestError::Bound { what, found, min, max })
    }
}
