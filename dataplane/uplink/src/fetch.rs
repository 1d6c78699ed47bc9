//! What a shard sees of the uplink: a request, and a checked head with a body that streams in.
//!
//! Everything here is used on the shard and only passes messages: it never does I/O, and it never
//! waits but for the uplink's answer.

use std::fmt;
use std::sync::Arc;

use outrider_artifact::{Digest, Reference};
use outrider_shard::{ShardHandle, channel};
use tokio::sync::{mpsc, oneshot};

use crate::config::UpstreamId;
use crate::content_range::ContentRange;
use crate::error::FetchError;
use crate::metrics::{BLOB, KEEP, MANIFEST, UplinkMetrics};
use crate::peers;
use crate::window::FetchBody;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `/v2/NAME/manifests/REFERENCE`.
    Manifest(Reference),
    /// `/v2/NAME/blobs/DIGEST`.
    Blob(Digest),
}

/// How it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchMethod {
    /// Head and body.
    Get,
    /// The head alone; the body of the answer is empty.
    Head,
    /// Another edge is to keep this manifest: see [`UplinkClient::keep`].
    Keep,
}

/// A part of a content, by byte positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FetchRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, included; `None` for up to the end.
    pub last: Option<u64>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whom {
    /// An upstream of the configuration.
    Upstream(UpstreamId),
    /// Another edge, by its number in the cluster: for what it has, by digest.
    Peer(u64),
}

/// One fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// From whom.
    pub from: Whom,
    /// The repository, as it is called there.
    pub repository: String,
    /// What.
    pub target: Target,
    /// With or without a body.
    pub method: FetchMethod,
    /// Only this part. The upstream may answer with all of it: see [`FetchHead::range`].
    pub range: Option<FetchRange>,
    /// The media types that are accepted, for `Accept`; at most [`ACCEPT_MAX`] are passed on, and
    /// none that is not a header's value.
    pub accept: Vec<String>,
}

/// How far another edge is with what it is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it is on its disk.
    Whole,
    /// It is at it. Ask again.
    UnderWay,
}

impl FetchRequest {
    /// The lane that it goes by, as metrics call it.
    pub(crate) fn kind(&self) -> &'static str {
        match (self.method, &self.target) {
            (FetchMethod::Keep, _) => KEEP,
            (_, Target::Manifest(_)) => MANIFEST,
            (_, Target::Blob(_)) => BLOB,
        }
    }
}

/// How many media types of [`FetchRequest::accept`] are passed on.
pub const ACCEPT_MAX: usize = 64;

/// The head of an answer, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchHead {
    /// The length of this body (of the part, for a range); for HEAD, of the body that GET would
    /// have. `None` when the upstream does not tell.
    pub length: Option<u64>,
    /// Which part it is; `Some` exactly when the upstream answered 206. It begins where it was
    /// asked to, and may end earlier. `None` although a range was asked for: this is the whole.
    pub range: Option<ContentRange>,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Docker-Content-Digest`; `None` when it is missing or malformed. Only the upstream's claim.
    pub digest: Option<Digest>,
}

/// An answer.
#[derive(Debug)]
pub struct Fetch {
    /// Its head.
    pub head: FetchHead,
    /// Its body. Dropping it ends the fetch.
    pub body: FetchBody,
}

/// A fetch on its way to the uplink thread.
pub(crate) struct Command {
    pub(crate) request: FetchRequest,
    pub(crate) shard: ShardHandle,
    pub(crate) answer: channel::Completer<Result<(FetchHead, FetchBody), FetchError>>,
    /// Resolves, always with an error, when the asker has lost interest.
    pub(crate) gone: oneshot::Receiver<Lease>,
}

/// Held by whoever is interested in a fetch. Its sender end tells the uplink thread when that
/// interest is dropped; nothing is ever sent.
pub(crate) enum Lease {}

/// The way from one shard to the uplink. Cheap to clone.
#[derive(Clone)]
pub struct UplinkClient {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) shard: ShardHandle,
    pub(crate) labels: Arc<[String]>,
    pub(crate) metrics: UplinkMetrics,
}

impl fmt::Debug for UplinkClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UplinkClient").field("shard", &self.shard.id()).finish_non_exhaustive()
    }
}

impl UplinkClient {
    /// Asks another edge to have this manifest of a hosted repository, and all that it names, on its disk for good:
    /// it gets from this one what it lacks. It answers when that is done, or after about a second; then it goes on
    /// by itself, and is to be asked again.
    ///
    /// # Errors
    /// [`FetchError`]; `Refused` says why it will not or cannot.
    pub async fn keep(
        &self,
        member: u64,
        repository: &str,
        manifest: Digest,
    ) -> Result<Kept, FetchError> {
        let request = FetchRequest {
            from: Whom::Peer(member),
            repository: repository.to_owned(),
            target: Target::Manifest(Reference::Digest(manifest)),
            method: FetchMethod::Keep,
            range: None,
            accept: Vec::new(),
        };
        let head = self.fetch(request).await?.head;
        Ok(if head.length.is_some() { Kept::Whole } else { Kept::UnderWay })
    }

    /// Fetches from an upstream; resolves when the head of the answer is in and was checked. Tokens
    /// and redirects are dealt with inside. Dropping the future ends the fetch.
    ///
    /// Poll it on the shard that this client was made for.
    ///
    /// # Errors
    /// [`FetchError`]: each variant says when. An upstream that there is not is `NotFound`.
    pub async fn fetch(&self, request: FetchRequest) -> Result<Fetch, FetchError> {
        let from = request.from;
        let kind = request.kind();
        let (answer, answered) = channel::oneshot(&self.shard);
        let (lease, gone) = oneshot::channel();
        let command = Command { request, shard: self.shard.clone(), answer, gone };
        if let Err(refused) = self.commands.try_send(command) {
            let error = match refused {
                mpsc::error::TrySendError::Full(_) => FetchError::Busy,
                mpsc::error::TrySendError::Closed(_) => FetchError::Closed,
            };
            match from {
                Whom::Upstream(upstream) => {
                    if let Some(label) = self.labels.get(usize::from(upstream.0)) {
                        self.metrics.finished(label, kind, error.reason());
                    }
                }
                Whom::Peer(member) => {
                    self.metrics.finished(&peers::label(member), kind, error.reason());
                }
            }
            return Err(error);
        }
        let (head, mut body) = answered.await.unwrap_or(Err(FetchError::Closed))?;
        body.hold(lease);
        Ok(Fetch { head, body })
    }
}
