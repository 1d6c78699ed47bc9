//! Answers that lie ready: a small blob in memory is asked for over and over by the same path, and
//! everything but its bytes is the same each time.
//!
//! Owns, per shard, a bounded memory of such paths: what digest each means, and the head of the answer.
//! It never says by itself that something is here or may be read: the cache is asked each time.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use hashbrown::HashMap;
use http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, Method};
use outrider_artifact::event::AccessTier;
use outrider_artifact::{Digest, RepositoryName};
use outrider_cache::{Origin, Tier};
use outrider_metrics::Counter;
use outrider_tokens::{Actions, Target};
use outrider_transport::{Immediate, Peer, PreparedHead};

use crate::access::asker::Asker;
use crate::accesses::Access;
use crate::blobs;
use crate::flight::chunks_of;
use crate::gateway::{Gateway, finish_headers, unix_ms};
use crate::metrics::{GatewayMetrics, RequestLabels, TierLabels};
use crate::names::{Link, Names};
use crate::protocol::cache_status::{CacheStatus, Detail};
use crate::protocol::route::{self, Read};
use crate::protocol::{Operation, header};
use crate::upstreams::Meaning;

/// Paths that are remembered: some 4 MiB. Beyond that all are forgotten.
const PATHS_MAX: usize = 8192;

/// The longest path that is.
const PATH_BYTES_MAX: usize = 512;

/// The least that a slot of the arena holds.
const SLOT_BYTES_MIN: usize = 4096;

/// The paths of one shard.
pub(crate) struct ReadyPaths {
    paths: RefCell<HashMap<Box<str>, Rc<Path>>>,
    requests: Counter,
    ram_bytes: Counter,
}

/// What a path means.
struct Path {
    name: RepositoryName,
    digest: Digest,
    size: u64,
    /// Whether an upstream would be asked for it, so that it is read also if it was pushed elsewhere.
    mirrored: bool,
    /// What it is called in full, and at an upstream where it comes from.
    key: RepositoryName,
    origin: Option<Origin>,
    head: Rc<PreparedHead>,
}

/// A content that can be had without waiting.
struct InMemory {
    hosted: bool,
    origin: Option<Origin>,
    bytes: Bytes,
    /// It is a copy of what another shard has.
    kept: bool,
}

impl ReadyPaths {
    pub(crate) fn new(metrics: &GatewayMetrics) -> Self {
        let requests = RequestLabels { route: "blob", status: 200 };
        Self {
            paths: RefCell::default(),
            requests: metrics.requests.get_or_create_owned(&requests),
            ram_bytes: metrics.body_bytes.get_or_create_owned(&TierLabels { tier: "ram" }),
        }
    }
}

impl<N: Names> Gateway<N> {
    /// The answer to a GET of a whole blob of one chunk that is verified and in memory, here or kept of
    /// another shard's.
    pub(crate) fn ready(&self, request: &Parts, peer: Peer) -> Option<Immediate> {
        if request.method != Method::GET || is_conditional(&request.headers) {
            return None;
        }
        let text = request.uri.path_and_query()?.as_str();
        let known = self.ready.paths.borrow().get(text).cloned();
        let (path, found) = match known {
            Some(path) => {
                let found = self.in_memory(&path.digest)?;
                (path, found)
            }
            None => self.learn(request, text)?,
        };
        let asker = self.asker_of(&path, &found, request, peer)?;
        let may_read = asker.is_asked()
            || !found.hosted
            || path.mirrored
            || self.names.link_known(&path.name, &path.digest)? != Link::default();
        let len = found.bytes.len();
        if !may_read || len as u64 != path.size {
            return None;
        }
        // Who asks too fast is told so by the long way.
        if let Some(rated) = asker.rated() {
            self.customers.admit(rated).ok()?;
        }
        let customer = self.customers.of(asker.name());
        if found.kept {
            self.touch_anywhere(&path.digest, customer);
        } else {
            self.touch_for(&path.digest, customer);
        }
        if let Some(accesses) = &self.accesses {
            accesses.note(&Access {
                customer: asker.name(),
                image: &path.name,
                digest: &path.digest,
                unix_ms: unix_ms(),
                tier: AccessTier::Ram,
                status: 200,
                bytes: len as u64,
                // It is answered in the turn in which it is asked.
                latency_us: 0,
            });
        }
        self.ready.requests.inc();
        self.ready.ram_bytes.inc_by(len as u64);
        // Slots of the arena come in sizes that double, about.
        let slot_bytes = (len + len / 16).next_power_of_two().max(SLOT_BYTES_MIN);
        Some(Immediate {
            head: path.head.clone(),
            body: found.bytes,
            held_bytes: if found.kept { len } else { slot_bytes },
        })
    }

    /// Who asks, if it is known without waiting that they may read it.
    fn asker_of(
        &self,
        path: &Path,
        found: &InMemory,
        request: &Parts,
        peer: Peer,
    ) -> Option<Asker> {
        let Some(gate) = &self.gate else { return Some(Asker::open()) };
        let mut asker = gate.who_known(&request.headers, self.if_member(peer))?;
        if !asker.is_asked() {
            return Some(asker);
        }
        let has = match path.mirrored {
            true => {
                (found.origin.is_some() && found.origin == path.origin)
                    || self.said(&path.key, &path.digest)
            }
            false => self.names.link_known(&path.name, &path.digest)? != Link::default(),
        };
        gate.count_for_owner(&mut asker, &path.key);
        let target = Target::Repository(&path.key);
        (has && gate.allows(&asker, target, Actions::PULL)).then_some(asker)
    }

    /// A verified content of one chunk that can be had without waiting.
    fn in_memory(&self, digest: &Digest) -> Option<InMemory> {
        match self.cache.stat(digest) {
            Some(stat) => {
                if !stat.verified || chunks_of(stat.size) > 1 {
                    return None;
                }
                let chunk = self.cache.resident(digest, 0).filter(|c| c.tier == Tier::Ram)?;
                let (hosted, origin) = (stat.hosted, stat.origin);
                Some(InMemory { hosted, origin, bytes: chunk.bytes, kept: false })
            }
            None => {
                let small = self.kept(digest, self.hub.epoch())?;
                let (hosted, bytes) = (small.hosted, small.bytes);
                Some(InMemory { hosted, origin: None, bytes, kept: true })
            }
        }
    }

    /// Remembers a path whose answer could lie ready.
    fn learn(&self, request: &Parts, text: &str) -> Option<(Rc<Path>, InMemory)> {
        let parsed = route::parse(&request.method, &request.uri).ok()?;
        let Operation::BlobRead { name, digest, method: Read::Get } = parsed.operation else {
            return None;
        };
        let (mirrored, key, origin) = match self.upstreams.resolve(&name, parsed.ns.as_deref()) {
            Meaning::UnknownNamespace => return None,
            Meaning::Mirrored(place) => (true, place.key, Some(place.source.origin)),
            Meaning::Local => (false, name.clone(), None),
        };
        if text.len() > PATH_BYTES_MAX {
            return None;
        }
        let found = self.in_memory(&digest)?;
        let size = found.bytes.len() as u64;
        let status = CacheStatus::hit().detail(Detail::Ram).verified(true);
        let mut response = blobs::head(&digest, header::OCTET_STREAM, size, None, status);
        finish_headers(&mut response);
        let (parts, _) = response.into_parts();
        let head = Rc::new(PreparedHead::new(parts, size));
        let path = Rc::new(Path { name, digest, size, mirrored, key, origin, head });
        let mut paths = self.ready.paths.borrow_mut();
        if paths.len() >= PATHS_MAX {
            paths.clear();
        }
        paths.insert(text.into(), path.clone());
        Some((path, found))
    }
}

/// Whether the answer depends on more than the path.
fn is_conditional(headers: &HeaderMap) -> bool {
    [RANGE, IF_NONE_MATCH, IF_RANGE].iter().any(|name| headers.contains_key(name))
}
