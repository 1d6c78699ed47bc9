//! The gateway of one shard: takes a request apart, hands it to what answers it, and sees to what
//! every answer carries.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use outrider_artifact::{Digest, Reference};
use outrider_cache::{Access, Cache, Customer};
use outrider_shard::ShardHandle;
use outrider_transport::{
    ErrorText, Handler, Immediate, Keep, Peer, PinBudget, Protocol, RequestBody,
};
use outrider_uplink::UplinkClient;

use crate::access::AccessShared;
use crate::access::asker::Asker;
use crate::access::gate::Gate;
use crate::accesses::{Accesses, Asked};
use crate::body::GatewayBody;
use crate::customers::Customers;
use crate::flight::Flights;
use crate::mesh::Hub;
use crate::mesh::table::Table;
use crate::metrics::{GatewayMetrics, RequestLabels};
use crate::names::Names;
use crate::protocol::{
    ApiError, Code, Operation, Request, cache_status, conditional, header, route,
};
use crate::single::Single;
use crate::upstreams::{Upstream, Upstreams};

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// The region of this edge.
    pub region: String,
    /// How long a tag of an upstream is answered without asking there again. Default 60 s.
    pub tag_ttl: Duration,
    /// How long a tag is answered while its upstream cannot be asked. Default 7 days.
    pub tag_stale: Duration,
    /// How many upload sessions may be open. Default 1,024.
    pub upload_sessions_max: usize,
    /// How long an upload session lives without a byte. Default 1 h.
    pub upload_idle: Duration,
    /// Room of a shard for accesses that wait to be taken, in bytes; 0: none are noted. Default 0.
    pub accesses_bytes_max: usize,
    /// How long a push waits for other edges that must have it too. Default 60 s.
    pub replicas_time_max: Duration,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            region: "local".into(),
            tag_ttl: Duration::from_secs(60),
            tag_stale: Duration::from_secs(7 * 24 * 3600),
            upload_sessions_max: 1024,
            upload_idle: Duration::from_secs(3600),
            accesses_bytes_max: 0,
            replicas_time_max: Duration::from_secs(60),
        }
    }
}

/// What a gateway is made of.
pub struct GatewayParts<N> {
    /// The number of this shard.
    pub shard: u16,
    /// The shard.
    pub handle: ShardHandle,
    /// What all gateways share. Give the inbox of this shard's seat to [`Gateway::attend`].
    pub hub: Arc<Hub<N>>,
    /// How much may be kept of what other shards have, in bytes.
    pub table_bytes_max: usize,
    /// Its cache.
    pub cache: Cache,
    /// The names database.
    pub names: N,
    /// The way to the upstreams.
    pub uplink: UplinkClient,
    /// How much of the cache clients may hold: the one that the listeners are served with.
    pub pins: PinBudget,
    /// What upstreams there are.
    pub upstreams: Vec<Upstream>,
    /// What the operator set.
    pub settings: GatewaySettings,
    /// What is counted.
    pub metrics: GatewayMetrics,
    /// Who may do what; nothing: everybody may everything.
    pub access: Option<Arc<AccessShared>>,
}

/// The gateway of one shard. It stays on its thread.
pub struct Gateway<N> {
    pub(crate) shard: u16,
    pub(crate) handle: ShardHandle,
    pub(crate) hub: Arc<Hub<N>>,
    pub(crate) me: Weak<Self>,
    pub(crate) table: RefCell<Table>,
    pub(crate) cache: Cache,
    pub(crate) customers: Customers,
    pub(crate) names: Rc<N>,
    pub(crate) uplink: UplinkClient,
    pub(crate) pins: PinBudget,
    pub(crate) upstreams: Upstreams,
    pub(crate) settings: GatewaySettings,
    pub(crate) metrics: GatewayMetrics,
    pub(crate) flights: Rc<Flights>,
    pub(crate) uploads: crate::uploads::Sessions,
    pub(crate) ready: crate::ready::ReadyPaths,
    pub(crate) accesses: Option<Rc<Accesses>>,
    pub(crate) gate: Option<Rc<Gate>>,
    /// The sessions that are in the gauge.
    pub(crate) uploads_counted: Cell<i64>,
    pub(crate) manifests: Single<crate::manifests::Wanted, crate::manifests::Found>,
    pub(crate) keeps: Single<crate::keep::Wish, crate::keep::Kept>,
    /// Pushes that wait for other edges.
    pub(crate) replicating: Cell<usize>,
}

/// An answer, or the error that is written as one.
pub(crate) type Answer = Result<Response<GatewayBody>, ApiError>;

impl<N: Names> Gateway<N> {
    /// The gateway of a shard. Call [`Gateway::recover`] before it is asked anything.
    pub fn new(parts: GatewayParts<N>) -> Rc<Self> {
        let GatewayParts {
            shard,
            handle,
            hub,
            table_bytes_max,
            cache,
            names,
            uplink,
            pins,
            upstreams,
            settings,
            metrics,
            access,
        } = parts;
        let customers = Customers::default();
        let behalf = customers.behalf_cell();
        let flights = Flights::new(cache.clone(), uplink.clone(), metrics.clone(), behalf);
        Rc::new_cyclic(|me| Self {
            shard,
            handle,
            hub,
            me: me.clone(),
            table: RefCell::new(Table::new(table_bytes_max)),
            cache,
            customers,
            names: Rc::new(names),
            uplink,
            pins,
            upstreams: Upstreams::new(upstreams),
            uploads: crate::uploads::Sessions::default(),
            ready: crate::ready::ReadyPaths::new(&metrics),
            uploads_counted: Cell::new(0),
            gate: access.map(|shared| Rc::new(Gate::new(shared, &metrics))),
            accesses: (settings.accesses_bytes_max > 0)
                .then(|| Rc::new(Accesses::new(settings.accesses_bytes_max, &metrics))),
            settings,
            metrics,
            flights,
            manifests: Single::default(),
            keeps: Single::default(),
            replicating: Cell::new(0),
        })
    }

    /// What was asked for, if that is noted.
    pub fn accesses(&self) -> Option<&Rc<Accesses>> {
        self.accesses.as_ref()
    }

    /// How customers with a guarantee stand on this shard.
    pub fn shares(&self) -> Vec<(Box<str>, outrider_cache::Share)> {
        self.customers.shares(&self.cache)
    }

    /// A manifest that is here, wherever on this edge; nothing when it is not (any more).
    ///
    /// # Errors
    /// When it is here and cannot be read now.
    pub async fn manifest(&self, digest: &Digest) -> Result<Option<Bytes>, ApiError> {
        Ok(self.at_hand(digest).await?.map(|stored| stored.bytes))
    }

    /// How many fetches of a digest are under way.
    pub fn flights(&self) -> usize {
        self.flights.len()
    }

    async fn answer(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        peer: Peer,
    ) -> Response<GatewayBody> {
        let method = request.method().clone();
        let mut asked = None;
        let (kind, answer) = match route::parse(&method, request.uri()) {
            Ok(parsed) if peer.early && !may_come_early(&parsed.operation) => {
                (kind_of(&parsed.operation), Err(too_early()))
            }
            Ok(parsed) if request.extensions().get::<Keep>().is_some() => {
                ("keep", self.keep_for(parsed.operation, peer).await)
            }
            Ok(parsed) => {
                let kind = kind_of(&parsed.operation);
                match self.let_in(&parsed, &request, peer).await {
                    Ok((asker, doubt)) => {
                        if self.accesses.is_some() {
                            asked = Asked::by(&parsed.operation, &asker);
                        }
                        let note = self.note_of(&parsed.operation, &asker, peer);
                        let mut answer = self.serve_for(parsed, request, peer, asker).await;
                        if let Some(doubt) = doubt {
                            answer = self.settle_doubt(doubt, answer).await;
                        }
                        if let Some(note) = note {
                            note.tell(&answer);
                        }
                        (kind, answer)
                    }
                    Err(error) => (kind, Err(error)),
                }
            }
            Err(error) => ("other", Err(error)),
        };
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(route = kind, %peer.address, "{error}");
                let text = (peer.protocol == Protocol::Native)
                    .then(|| ErrorText(error.message().to_owned()));
                let (mut parts, body) = error.into_parts();
                if let Some(text) = text {
                    parts.extensions.insert(text);
                }
                let head_only = method == Method::HEAD;
                let body = if head_only { GatewayBody::empty() } else { GatewayBody::whole(body) };
                Response::from_parts(parts, body)
            }
        };
        let status = response.status().as_u16();
        self.metrics.requests.get_or_create(&RequestLabels { route: kind, status }).inc();
        finish_headers(&mut response);
        if let (Some(asked), Some(accesses)) = (asked, &self.accesses) {
            let noted = asked.answered(response.status(), response.headers(), accesses);
            response.body_mut().noted(noted);
        }
        response
    }

    /// The answer, where the customer may ask so fast, on the customer's behalf.
    async fn serve_for(
        self: &Rc<Self>,
        request: Request,
        http: http::Request<RequestBody>,
        peer: Peer,
        asker: Asker,
    ) -> Answer {
        let customer = {
            let name = speaks_for(&request.operation, &asker, peer);
            if let Err(wait) = self.customers.admit(name) {
                self.metrics.over_rate.inc();
                return Err(too_many(wait));
            }
            self.customers.of(name)
        };
        let mut answer = pin!(self.dispatch(request, http, peer, asker));
        poll_fn(|cx| self.customers.during(customer, || answer.as_mut().poll(cx))).await
    }

    async fn dispatch(
        self: &Rc<Self>,
        request: Request,
        http: http::Request<RequestBody>,
        peer: Peer,
        asker: Asker,
    ) -> Answer {
        let ns = request.ns.as_deref();
        let (head, body) = http.into_parts();
        match request.operation {
            Operation::Token { scopes, service } => {
                self.give_token(&head.method, scopes, service, &head.headers, body, peer).await
            }
            Operation::Ping => Ok(json(StatusCode::OK, "{}")),
            Operation::BlobRead { name, digest, method } => {
                self.find_blob(&name, ns, &digest, method, &head.headers).await
            }
            Operation::ManifestRead { name, reference, method } => {
                self.read_manifest(&name, ns, &reference, method, &head.headers).await
            }
            Operation::ManifestPut { name, reference, tags } => {
                self.put_manifest(name, reference, tags, &head.headers, body, &asker).await
            }
            Operation::ManifestDelete { name, reference } => {
                self.delete_manifest(&name, &reference).await
            }
            Operation::BlobDelete { name, digest } => self.delete_blob(&name, &digest).await,
            Operation::UploadStart { name, digest, mount, algorithm } => {
                self.start_upload(name, digest, mount, algorithm, body, &asker).await
            }
            Operation::UploadChunk { name, session } => {
                self.take_upload(name, session, head.headers, body).await
            }
            Operation::UploadFinish { name, session, digest } => {
                self.finish_upload(name, session, digest, head.headers, body, &asker).await
            }
            Operation::UploadStatus { name, session } => self.upload_status(name, session).await,
            Operation::UploadCancel { name, session } => self.cancel_upload(name, session).await,
            Operation::TagsList { name, page } => self.list_tags(&name, ns, page).await,
            Operation::Catalog { page } => self.list_repositories(page).await,
            Operation::Referrers { name, digest, artifact_type, page } => {
                self.list_referrers(&name, ns, &digest, artifact_type, page).await
            }
            Operation::LayerUpload { image, version, customer, digest } => {
                let customer = crate::layers::may_speak_for(customer, peer, &asker)?;
                self.upload_layer(image, version, customer, digest, body).await
            }
            Operation::LayerRequest { digest, customer, region, image, method } => {
                let wanted = crate::layers::Wanted { digest, customer, region, image, method };
                self.request_layer(wanted, peer, &head.headers, &asker).await
            }
        }
    }

    /// Counts an access for the importance of what this shard has and was asked for.
    pub(crate) fn touch(&self, digest: &Digest) {
        self.touch_for(digest, self.customers.behalf());
    }

    /// The same, for somebody.
    pub(crate) fn touch_for(&self, digest: &Digest, customer: Customer) {
        self.cache.touch(digest, Access { customer, time_s: up_s() });
    }
}

impl<N: Names> Handler for Gateway<N> {
    type Body = GatewayBody;

    fn handle(
        self: Rc<Self>,
        request: http::Request<RequestBody>,
        peer: Peer,
    ) -> impl Future<Output = Response<GatewayBody>> + 'static {
        self.answer(request, peer)
    }

    fn immediate(&self, request: &http::request::Parts, peer: Peer) -> Option<Immediate> {
        self.ready(request, peer)
    }

    fn admit(&self, customer: &str, region: &str, peer: Peer) -> Result<(), String> {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        // Where it is asked who they are, each of the wants says so, and is refused by itself.
        let customer = if self.gate.is_some() { None } else { said(customer) };
        self.may_ask_for(customer, said(region).as_deref(), peer, &Asker::open())
            .map_err(|error| error.message().to_owned())
    }
}

fn kind_of(operation: &Operation) -> &'static str {
    match operation {
        Operation::Ping => "ping",
        Operation::Token { .. } => "token",
        Operation::BlobRead { .. } | Operation::BlobDelete { .. } => "blob",
        Operation::ManifestRead { .. }
        | Operation::ManifestPut { .. }
        | Operation::ManifestDelete { .. } => "manifest",
        Operation::UploadStart { .. }
        | Operation::UploadChunk { .. }
        | Operation::UploadFinish { .. }
        | Operation::UploadStatus { .. }
        | Operation::UploadCancel { .. } => "upload",
        Operation::TagsList { .. } => "tags",
        Operation::Catalog { .. } => "catalog",
        Operation::Referrers { .. } => "referrers",
        Operation::LayerUpload { .. } | Operation::LayerRequest { .. } => "layer",
    }
}

/// Whether an operation may be asked for before the handshake is over, when whoever has seen the
/// request may send it again: what reads one content, which is the same each time.
fn may_come_early(operation: &Operation) -> bool {
    match operation {
        Operation::BlobRead { .. } | Operation::LayerRequest { .. } => true,
        Operation::ManifestRead { reference, .. } => matches!(reference, Reference::Digest(_)),
        _ => false,
    }
}

/// Whose request it is. Where nobody is asked who they are, anybody of this machine is whom they say.
fn speaks_for<'a>(operation: &'a Operation, asker: &'a Asker, peer: Peer) -> &'a str {
    match operation {
        Operation::LayerRequest { customer: Some(said), .. }
        | Operation::LayerUpload { customer: Some(said), .. }
            if !asker.is_asked() && peer.is_loopback() =>
        {
            said
        }
        _ => asker.name(),
    }
}

fn too_many(wait: Duration) -> ApiError {
    let message = "this customer asks for more than its requests a second at this edge";
    // Whole seconds, at least one.
    let wait = Duration::from_secs(wait.as_secs() + 1);
    ApiError::new(Code::TooManyRequests, message).with_retry_after(wait)
}

fn too_early() -> ApiError {
    let status = StatusCode::from_u16(425).expect("it has three digits");
    ApiError::new(
        Code::Unavailable,
        "only reads by digest are answered before the handshake is over",
    )
    .with_status(status)
}

/// What every answer carries.
pub(crate) fn finish_headers(response: &mut Response<GatewayBody>) {
    let headers = response.headers_mut();
    headers.insert(
        header::DOCKER_DISTRIBUTION_API_VERSION,
        HeaderValue::from_static(header::API_VERSION),
    );
    headers
        .entry(header::CACHE_STATUS)
        .or_insert(HeaderValue::from_static(cache_status::CACHE_NAME));
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<GatewayBody> {
    let body = body.into();
    let mut response = Response::new(GatewayBody::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(header::JSON));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = GatewayBody::whole(body);
    response
}

/// An answer without a body.
pub(crate) fn bare(status: StatusCode) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::empty());
    *response.status_mut() = status;
    response
}

/// A value that is known to have no control characters.
pub(crate) fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::try_from(text.as_ref()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The headers that say what a content is.
pub(crate) fn describe(response: &mut Response<GatewayBody>, digest: &Digest, media_type: &str) {
    let text = digest.to_string();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value(media_type));
    headers.insert(http::header::ETAG, conditional::etag(digest));
    headers.insert(header::DOCKER_CONTENT_DIGEST, value(text));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// Seconds of this process, the same on all shards, from 60. They go on evenly, however the machine's clock is set: what
/// is only compared within a process is measured by them.
pub(crate) fn up_s() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    60 + START.get_or_init(Instant::now).elapsed().as_secs()
}

/// Now, in milliseconds since 1970. A clock before that reads 0.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
