//! Other edges as sources: content by digest over the native protocol (docs/NATIVE.md), one connection of QUIC
//! for each edge.
//!
//! An edge is asked only for what it has (`held_only`), so that none asks in a circle; and it shows the
//! certificate of a member of the cluster, so that only members are asked. As of any upstream nothing that
//! comes is believed here: who asked hashes it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrider_artifact::native::{self, Answer, Item, Reader, Want, WantKind};
use outrider_artifact::{Digest, Reference};
use outrider_shard::{ShardHandle, channel};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, TransportConfig};
use rustls::client::ResolvesClientCert;
use tokio::time::timeout;

use crate::config::{BreakerConfig, FETCHES_MAX, WAITERS_MAX, WINDOW_BYTES};
use crate::content_range::ContentRange;
use crate::error::{FetchError, TimeoutStage, UplinkError};
use crate::fetch::{Command, FetchHead, FetchMethod, FetchRequest, Target};
use crate::lane::{Lane, LaneSettings, lock};
use crate::metrics::{BLOB, KEEP, MANIFEST, UplinkMetrics};
use crate::serve::Stop;
use crate::window::{self, BodySender, FetchBody};

/// Edges that are remembered; beyond it those that nothing is fetched from are forgotten.
const PEERS_MAX: usize = 1024;
/// Of several addresses of an edge, so many are tried.
const ADDRESSES_MAX: usize = 4;
/// For a name's look-up and the handshake.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// From the request to the first frame: the edge answers from what it has.
const HEAD_TIME_MAX: Duration = Duration::from_secs(3);
/// The same, for what an edge is to keep: it answers after a second, done or not.
const KEEP_TIME_MAX: Duration = Duration::from_secs(8);
/// The longest silence within a body.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);
/// A connection without requests is over after this.
const UNUSED_TIME_MAX_MS: u32 = 10_000;
/// What an edge may send on one stream, and on all, before it is read.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Manifests have a lane of their own, this part of that of blobs.
const MANIFESTS_PART: usize = 4;
/// Manifests that one edge is asked to keep at a time.
const KEEPS_MAX: usize = 16;

/// Knows where other edges are.
pub trait PeerBook: Send + Sync {
    /// `HOST:PORT` at which the member is reached; nothing when that is not known, or it is not one any more.
    fn address(&self, member: u64) -> Option<String>;
}

/// How other edges are reached.
#[derive(Clone)]
pub struct PeerOptions {
    /// Where they are.
    pub book: Arc<dyn PeerBook>,
    /// Who vouches for them.
    pub roots: rustls::RootCertStore,
    /// The name in the certificate of a member.
    pub name: fn(u64) -> String,
    /// Its own certificate, for those that ask for it.
    pub identity: Option<Arc<dyn ResolvesClientCert>>,
}

impl fmt::Debug for PeerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerOptions").finish_non_exhaustive()
    }
}

/// The other edges, on the uplink's thread.
pub(crate) struct Peers {
    options: PeerOptions,
    config: ClientConfig,
    metrics: UplinkMetrics,
    /// Of both families, made when they are needed.
    endpoints: Mutex<[Option<Endpoint>; 2]>,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
}

/// What an edge is called in metrics and logs.
pub(crate) fn label(member: u64) -> String {
    format!("edge-{member}")
}

struct Peer {
    label: String,
    manifests: Lane,
    blobs: Lane,
    /// What it is to keep: pulls never wait for that.
    keeps: Lane,
    /// The connection, and the address that it was made to.
    live: tokio::sync::Mutex<Option<(String, Connection)>>,
}

impl Peer {
    fn lane(&self, request: &FetchRequest) -> &Lane {
        match (request.method, &request.target) {
            (FetchMethod::Keep, _) => &self.keeps,
            (_, Target::Manifest(_)) => &self.manifests,
            (_, Target::Blob(_)) => &self.blobs,
        }
    }
}

impl Peers {
    pub(crate) fn new(options: PeerOptions, metrics: UplinkMetrics) -> Result<Self, UplinkError> {
        let failed = |error: &dyn fmt::Display| UplinkError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(&error))?
            .with_root_certificates(options.roots.clone());
        let mut tls = match options.identity.clone() {
            Some(shown) => builder.with_client_cert_resolver(shown),
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![native::ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| failed(&error))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(quinn::VarInt::from_u32(UNUSED_TIME_MAX_MS).into()))
            .max_concurrent_bidi_streams(0_u32.into())
            .stream_receive_window(STREAM_WINDOW_BYTES.into())
            .receive_window(CONNECTION_WINDOW_BYTES.into())
            .datagram_receive_buffer_size(None);
        config.transport_config(Arc::new(transport));
        Ok(Self { options, config, metrics, endpoints: Mutex::default(), peers: Mutex::default() })
    }

    fn peer(&self, member: u64) -> Arc<Peer> {
        let mut peers = lock(&self.peers);
        if let Some(peer) = peers.get(&member) {
            return Arc::clone(peer);
        }
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        let label = label(member);
        let lane = |places, kind| {
            let settings = LaneSettings {
                upstream: label.clone(),
                kind,
                places,
                waiters_max: WAITERS_MAX,
                wait_max: HEAD_TIME_MAX,
                breaker: BreakerConfig { open_max: IDLE_TIME_MAX, ..BreakerConfig::default() },
            };
            let gauges = (self.metrics.breaker(&label, kind), self.metrics.in_flight(&label, kind));
            Lane::new(settings, gauges.0, gauges.1)
        };
        let peer = Arc::new(Peer {
            manifests: lane(FETCHES_MAX / MANIFESTS_PART, MANIFEST),
            blobs: lane(FETCHES_MAX, BLOB),
            keeps: lane(KEEPS_MAX, KEEP),
            label,
            live: tokio::sync::Mutex::default(),
        });
        peers.insert(member, Arc::clone(&peer));
        peer
    }

    /// Serves one fetch from an edge.
    pub(crate) async fn serve(self: Arc<Self>, member: u64, command: Command) {
        let Command { request, shard, answer, gone } = command;
        let peer = self.peer(member);
        let _entered = peer.lane(&request).enter();
        let outcome = tokio::select! {
            // The first, so that what nobody wants any more is not even begun.
            biased;
            _ = gone => "cancelled",
            ended = self.fetch(member, &peer, &request, &shard, answer) => match ended {
                Ok(()) => "ok",
                Err(Some(error)) => error.reason(),
                Err(None) => "cancelled",
            },
        };
        self.metrics.finished(&peer.label, request.kind(), outcome);
    }

    /// One fetch to its end. The error is `None` when the reader went away.
    async fn fetch(
        &self,
        member: u64,
        peer: &Peer,
        request: &FetchRequest,
        shard: &ShardHandle,
        answer: channel::Completer<Result<(FetchHead, FetchBody), FetchError>>,
    ) -> Result<(), Option<FetchError>> {
        let started = Instant::now();
        let lane = peer.lane(request);
        let admitted = match lane.place().await.and_then(|place| Ok((place, lane.admit()?))) {
            Ok(admitted) => admitted,
            Err(error) => {
                answer.complete(Err(error.clone()));
                return Err(Some(error));
            }
        };
        let (_place, admitted) = admitted;
        let (head, stream) = match self.ask(member, peer, request).await {
            Ok(answered) => answered,
            Err(error) => {
                if admitted.ended(&error) {
                    tracing::info!(edge = member, %error, "another edge does not answer");
                }
                answer.complete(Err(error.clone()));
                return Err(Some(error));
            }
        };
        self.metrics.first_byte(&peer.label, request.kind(), started.elapsed());
        if request.method != FetchMethod::Get {
            admitted.succeeded();
            answer.complete(Ok((head, FetchBody::empty())));
            return Ok(());
        }
        admitted.answered();
        let (sender, reader) = window::open(WINDOW_BYTES, shard);
        answer.complete(Ok((head, reader)));
        match self.pump(peer, stream, &sender).await {
            Ok(()) => {
                admitted.succeeded();
                sender.finish(Ok(()));
                Ok(())
            }
            Err(Stop::Failed(error)) => {
                admitted.ended(&error);
                sender.finish(Err(error.clone()));
                Err(Some(error))
            }
            Err(Stop::Gone) => Err(None),
        }
    }

    /// The checked head of the answer, and what is behind it.
    async fn ask(
        &self,
        member: u64,
        peer: &Peer,
        request: &FetchRequest,
    ) -> Result<(FetchHead, Stream), FetchError> {
        let wanted = Wanted::of(request)?;
        let frame = wanted.frame(request)?;
        let head_time_max = match request.method {
            FetchMethod::Keep => KEEP_TIME_MAX,
            FetchMethod::Get | FetchMethod::Head => HEAD_TIME_MAX,
        };
        loop {
            let (connection, is_new) = self.connection(member, peer).await?;
            match timeout(head_time_max, exchange(&connection, &frame)).await {
                Ok(Ok((answer, stream))) => return Ok((wanted.check(request, &answer)?, stream)),
                Ok(Err(error)) if is_new => return Err(error),
                Err(_) if is_new => {
                    connection.close(0_u32.into(), b"");
                    return Err(FetchError::Timeout { stage: TimeoutStage::Head });
                }
                // The edge may have been started again since: once more, by a connection of now.
                Ok(Err(_)) | Err(_) => connection.close(0_u32.into(), b""),
            }
        }
    }

    /// The connection to an edge, and whether it was made for this.
    async fn connection(&self, member: u64, peer: &Peer) -> Result<(Connection, bool), FetchError> {
        let address = self.options.book.address(member);
        let address = address
            .ok_or_else(|| FetchError::Connect(format!("nobody knows where edge {member} is")))?;
        let mut live = peer.live.lock().await;
        if let Some((at, connection)) = &*live
            && *at == address
            && connection.close_reason().is_none()
        {
            return Ok((connection.clone(), false));
        }
        let dialed = timeout(CONNECT_TIME_MAX, self.dial(member, &address)).await;
        let connection =
            dialed.unwrap_or(Err(FetchError::Timeout { stage: TimeoutStage::Connect }))?;
        *live = Some((address, connection.clone()));
        Ok((connection, true))
    }

    async fn dial(&self, member: u64, address: &str) -> Result<Connection, FetchError> {
        let failed = |error: &dyn fmt::Display| FetchError::Connect(format!("{address}: {error}"));
        let name = (self.options.name)(member);
        let found = tokio::net::lookup_host(address).await.map_err(|error| failed(&error))?;
        let mut last = failed(&"it has no address");
        for at in found.take(ADDRESSES_MAX) {
            let endpoint = self.endpoint(at).map_err(|error| failed(&error))?;
            let connecting = endpoint.connect_with(self.config.clone(), at, &name);
            match connecting.map_err(|error| failed(&error))?.await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = failed(&error),
            }
        }
        Err(last)
    }

    fn endpoint(&self, to: SocketAddr) -> io::Result<Endpoint> {
        let (family, any): (_, SocketAddr) = match to {
            SocketAddr::V4(_) => (0, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (1, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        let mut endpoints = lock(&self.endpoints);
        if let Some(endpoint) = &endpoints[family] {
            return Ok(endpoint.clone());
        }
        let endpoint = Endpoint::client(any)?;
        endpoints[family] = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Carries a body into its window, to its end.
    async fn pump(&self, peer: &Peer, mut stream: Stream, to: &BodySender) -> Result<(), Stop> {
        let counter = self.metrics.received(&peer.label);
        loop {
            let piece = timeout(IDLE_TIME_MAX, stream.next()).await;
            let piece = piece.unwrap_or(Err(FetchError::Timeout { stage: TimeoutStage::Body }));
            let Some(bytes) = piece.map_err(Stop::Failed)? else { return Ok(()) };
            counter.inc_by(bytes.len() as u64);
            to.send(bytes).await?;
        }
    }
}

/// Sends a request, and reads the first frame.
async fn exchange(connection: &Connection, frame: &[u8]) -> Result<(Answer, Stream), FetchError> {
    let lost = |error: &dyn fmt::Display| FetchError::Connect(error.to_string());
    let (mut send, receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
    send.write_all(frame).await.map_err(|error| lost(&error))?;
    send.finish().map_err(|error| lost(&error))?;
    let mut stream = Stream {
        receive,
        reader: Reader::client(),
        rest: Bytes::new(),
        left: 0,
        more: false,
        received: 0,
    };
    let answer = stream.answer().await?;
    Ok((answer, stream))
}

/// What is asked for, by digest.
struct Wanted {
    digest: Digest,
    kind: WantKind,
}

impl Wanted {
    fn of(request: &FetchRequest) -> Result<Self, FetchError> {
        match &request.target {
            Target::Blob(digest) => Ok(Self { digest: *digest, kind: WantKind::Blob }),
            Target::Manifest(Reference::Digest(digest)) => {
                Ok(Self { digest: *digest, kind: WantKind::Manifest })
            }
            // What a tag means is not another edge's to say.
            Target::Manifest(Reference::Tag(_)) => Err(FetchError::NotFound),
        }
    }

    fn frame(&self, request: &FetchRequest) -> Result<Vec<u8>, FetchError> {
        let (offset, len) = match request.range {
            None => (0, None),
            Some(range) => {
                let len = range.last.map(|last| last.saturating_sub(range.first).saturating_add(1));
                (range.first, len)
            }
        };
        let want = Want {
            kind: self.kind,
            offset,
            len,
            metadata_only: request.method != FetchMethod::Get,
            held_only: request.method != FetchMethod::Keep,
            keep: request.method == FetchMethod::Keep,
            ..Want::whole(self.digest)
        };
        let request = native::Request {
            repository: request.repository.clone(),
            wants: vec![want],
            ..native::Request::default()
        };
        request.encode().map_err(|error| FetchError::Protocol(error.to_string()))
    }

    /// What the first frame says.
    fn check(&self, request: &FetchRequest, answer: &Answer) -> Result<FetchHead, FetchError> {
        let wrong = |what: &str| Err(FetchError::Protocol(what.to_owned()));
        if answer.want != 0 || answer.digest != self.digest {
            return wrong("it answers something else");
        }
        let total = (answer.total != native::TOTAL_UNKNOWN).then_some(answer.total);
        let length = (!answer.more).then_some(answer.len);
        let asked = request.range.map_or(0, |range| range.first);
        if request.method == FetchMethod::Keep {
            let length = match answer.status {
                200 => Some(total.unwrap_or(0)),
                202 => None,
                status => {
                    return Err(FetchError::Refused { status, text: answer.error.clone() });
                }
            };
            return Ok(FetchHead { length, range: None, media_type: None, digest: None });
        }
        let range = match answer.status {
            200 if answer.start == 0 => None,
            206 if answer.start == asked && answer.len > 0 => Some(ContentRange {
                first: answer.start,
                last: answer.start.saturating_add(answer.len - 1),
                total,
            }),
            200 | 206 => return wrong("it answers another range"),
            // 504 is the answer of who has it not and asks nobody else.
            404 | 504 => return Err(FetchError::NotFound),
            403 => return Err(FetchError::Denied),
            416 => return Err(FetchError::RangeNotSatisfiable { total }),
            429 => return Err(FetchError::RateLimited { retry_after: None }),
            status @ 500.. => {
                return Err(FetchError::Unavailable { status, retry_after: None });
            }
            _ => return wrong(&answer.error),
        };
        let media_type = (self.kind == WantKind::Manifest && !answer.media_type.is_empty())
            .then(|| answer.media_type.clone());
        Ok(FetchHead { length, range, media_type, digest: Some(self.digest) })
    }
}

/// The frames of an answer, and the bytes between them.
struct Stream {
    receive: RecvStream,
    reader: Reader,
    /// What has come in and is not read yet.
    rest: Bytes,
    /// Bytes of content before the next frame.
    left: u64,
    /// Another frame follows them.
    more: bool,
    received: u64,
}

impl Stream {
    /// The next piece of content.
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.left == 0 {
                if !self.more {
                    return Ok(None);
                }
                self.answer().await?;
                continue;
            }
            if self.rest.is_empty() && !self.receive_more().await? {
                return Err(self.cut("it ended too early"));
            }
            match self.item()? {
                (Some(Item::Body), bytes) => {
                    self.left = self.left.saturating_sub(bytes.len() as u64);
                    self.received += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                (Some(_), _) => return Err(self.cut("a frame stands within the content")),
                (None, _) => {}
            }
        }
    }

    /// The frame that stands before content.
    async fn answer(&mut self) -> Result<Answer, FetchError> {
        loop {
            if self.rest.is_empty() && !self.receive_more().await? {
                return Err(FetchError::Protocol("there was no answer".to_owned()));
            }
            match self.item()? {
                (Some(Item::Answer(answer)), _) => {
                    (self.left, self.more) = (answer.body_len, answer.more);
                    return Ok(answer);
                }
                (Some(Item::Refusal(refusal)), _) => {
                    let busy = matches!(
                        refusal.code,
                        native::RefusalCode::BUSY | native::RefusalCode::GOING_AWAY
                    );
                    return Err(match busy {
                        true => FetchError::Unavailable { status: 503, retry_after: None },
                        false => FetchError::Protocol(refusal.text),
                    });
                }
                (Some(_), _) => return Err(self.cut("content stands where a frame should")),
                (None, _) => {}
            }
        }
    }

    fn item(&mut self) -> Result<(Option<Item>, Bytes), FetchError> {
        let (taken, item) = self
            .reader
            .read(&self.rest)
            .map_err(|error| FetchError::Protocol(error.to_string()))?;
        Ok((item, self.rest.split_to(taken)))
    }

    /// False at the end of the stream.
    async fn receive_more(&mut self) -> Result<bool, FetchError> {
        match self.receive.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => {
                self.rest = chunk.bytes;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(self.cut(&error.to_string())),
        }
    }

    fn cut(&self, reason: &str) -> FetchError {
        FetchError::Cut { received_bytes: self.received, reason: reason.to_owned() }
    }
}
