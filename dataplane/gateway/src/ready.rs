//! Answers that lie ready: a small blob in memory is asked for over and over by the same path, and
//! everything but its bytes is the same each time.
//!
//! Owns, per shard, a bounded memory of such paths: what digest each means, and the head of the answer.
//! It never says by itself that something is here or may be read: the cache is asked each time.

use std::cell::RefCell;
use std::rc::Rc;

use hashbrown::HashMap;
use http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, Method};
use outrider_artifact::{Digest, RepositoryName};
use outrider_cache::{ObjectStat, Tier};
use outrider_transport::{Immediate, PreparedHead};
use prometheus_client::metrics::counter::Counter;

use crate::blobs;
use crate::flight::chunks_of;
use crate::gateway::{Gateway, finish_headers};
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
    head: Rc<PreparedHead>,
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
    /// The answer to a GET of a whole blob of one chunk that is verified and in memory.
    pub(crate) fn ready(&self, request: &Parts) -> Option<Immediate> {
        if request.method != Method::GET || is_conditional(&request.headers) {
            return None;
        }
        let text = request.uri.path_and_query()?.as_str();
        let known = self.ready.paths.borrow().get(text).cloned();
        let (path, stat) = match known {
            Some(path) => {
                let stat = self.cache.stat(&path.digest)?;
                (path, stat)
            }
            None => self.learn(request, text)?,
        };
        let may_read = !stat.hosted
            || path.mirrored
            || self.names.link_known(&path.name, &path.digest)? != Link::default();
        if !stat.verified || !may_read || stat.size != path.size {
            return None;
        }
        let chunk = self.cache.resident(&path.digest, 0).filter(|c| c.tier == Tier::Ram)?;
        let len = chunk.bytes.len();
        self.touch(&path.digest);
        self.ready.requests.inc();
        self.ready.ram_bytes.inc_by(len as u64);
        Some(Immediate {
            head: path.head.clone(),
            body: chunk.bytes,
            // Slots come in sizes that double, about.
            held_bytes: (len + len / 16).next_power_of_two().max(SLOT_BYTES_MIN),
        })
    }

    /// Remembers a path whose answer could lie ready.
    fn learn(&self, request: &Parts, text: &str) -> Option<(Rc<Path>, ObjectStat)> {
        let parsed = route::parse(&request.method, &request.uri).ok()?;
        let Operation::BlobRead { name, digest, method: Read::Get } = parsed.operation else {
            return None;
        };
        let mirrored = match self.upstreams.resolve(&name, parsed.ns.as_deref()) {
            Meaning::UnknownNamespace => return None,
            Meaning::Mirrored(_) => true,
            Meaning::Local => false,
        };
        let stat = self.cache.stat(&digest)?;
        if !stat.verified || chunks_of(stat.size) > 1 || text.len() > PATH_BYTES_MAX {
            return None;
        }
        let status = CacheStatus::hit().detail(Detail::Ram).verified(true);
        let mut response = blobs::head(&digest, header::OCTET_STREAM, stat.size, None, status);
        finish_headers(&mut response);
        let (parts, _) = response.into_parts();
        let head = Rc::new(PreparedHead::new(parts, stat.size));
        let path = Rc::new(Path { name, digest, size: stat.size, mirrored, head });
        let mut paths = self.ready.paths.borrow_mut();
        if paths.len() >= PATHS_MAX {
            paths.clear();
        }
        paths.insert(text.into(), path.clone());
        Some((path, stat))
    }
}

/// Whether the answer depends on more than the path.
fn is_conditional(headers: &HeaderMap) -> bool {
    [RANGE, IF_NONE_MATCH, IF_RANGE].iter().any(|name| headers.contains_key(name))
}
