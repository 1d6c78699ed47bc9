//! Reading blobs: from the cache, from a flight, or through.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, Response, StatusCode};
use outrider_artifact::{Digest, RepositoryName};
use outrider_cache::{ObjectStat, Tier};
use outrider_uplink::{Fetch, FetchError, FetchMethod, FetchRequest, Target};

use crate::body::GatewayBody;
use crate::faults;
use crate::flight::plan::UNKNOWN_END;
use crate::flight::reader::Reader;
use crate::flight::{Fault, Flight, Source, chunk_at, chunks_of};
use crate::gateway::{Answer, Gateway, bare, describe};
use crate::mesh::reply;
use crate::mesh::table::Small;
use crate::metrics::TierLabels;
use crate::names::{Link, Names, Repository};
use crate::protocol::cache_status::{CacheStatus, Detail, Forward};
use crate::protocol::range::{self, ByteRange, RequestedRange, ResolvedRange};
use crate::protocol::route::Read;
use crate::protocol::{ApiError, Code, conditional, header};
use crate::upstreams::{Meaning, Place};

/// What a repository name means once the names database was asked.
pub(crate) enum Whence {
    /// Hosted here, under this key.
    Hosted(RepositoryName),
    /// An upstream's; nothing was pushed here.
    Mirrored(Place),
    /// Nobody's yet: it may be pushed.
    Nobody(RepositoryName),
}

impl<N: Names> Gateway<N> {
    /// What a repository is. One look-up in the names database.
    ///
    /// # Errors
    /// `NAME_UNKNOWN` for a `?ns=` that is not configured.
    pub(crate) async fn whence(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
    ) -> Result<Whence, ApiError> {
        let meaning = self.upstreams.resolve(name, ns);
        let key = match &meaning {
            Meaning::UnknownNamespace => return Err(unknown_namespace(ns)),
            Meaning::Mirrored(place) => place.key.clone(),
            Meaning::Local => name.clone(),
        };
        let state = self.names.repository(&key).await?;
        Ok(match (state, meaning) {
            (Repository::Hosted, _) => Whence::Hosted(key),
            (_, Meaning::Mirrored(place)) => Whence::Mirrored(place),
            _ => Whence::Nobody(key),
        })
    }

    /// `GET, HEAD /v2/NAME/blobs/DIGEST`: from here, or from the shard that has it or fetches it.
    pub(crate) async fn find_blob(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        // What is kept is right, whoever has the content. Nothing that shards share is looked at for it.
        let epoch = self.hub.epoch();
        if let Some(small) = self.kept(digest, epoch)
            && let Some(response) =
                self.answer_kept(&small, name, ns, digest, method, headers).await?
        {
            return Ok(response);
        }
        let owner = self.owner(digest);
        if owner == self.shard {
            return self.read_blob(name, ns, digest, method, headers).await;
        }
        let wants = self.table.borrow_mut().wants(digest);
        let (name, ns, digest) = (name.clone(), ns.map(str::to_owned), *digest);
        let headers = conditional::selecting(headers);
        let (reply, small) = self
            .on(owner, move |owner| async move {
                let answer = owner.read_blob(&name, ns.as_deref(), &digest, method, &headers).await;
                let small = if wants && answer.is_ok() { owner.small(&digest) } else { None };
                (reply::pack(answer, &owner.pins), small)
            })
            .await?;
        self.keep(&digest, small.as_ref(), epoch);
        reply::unpack(reply)
    }

    /// An answer from what is kept of another shard's content, if whoever asks may read it.
    async fn answer_kept(
        &self,
        small: &Small,
        name: &RepositoryName,
        ns: Option<&str>,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Result<Option<Response<GatewayBody>>, ApiError> {
        let stat = small.stat();
        let meaning = self.upstreams.resolve(name, ns);
        if matches!(meaning, Meaning::UnknownNamespace)
            || !self.may_read(&stat, &meaning, name, digest).await?
        {
            return Ok(None);
        }
        let bytes = small.bytes.clone();
        Ok(Some(self.serve_whole(digest, header::OCTET_STREAM, bytes, method, headers)))
    }

    /// An answer from verified content that is all at hand.
    pub(crate) fn serve_whole(
        &self,
        digest: &Digest,
        media_type: &str,
        bytes: Bytes,
        method: Read,
        headers: &HeaderMap,
    ) -> Response<GatewayBody> {
        self.touch_anywhere(digest, self.customers.behalf());
        let size = bytes.len() as u64;
        let selected = match select(headers, digest, size) {
            Selected::NotModified => {
                return not_modified(digest, media_type, CacheStatus::hit());
            }
            Selected::Unsatisfiable => return refuse(range::unsatisfiable(size)),
            Selected::Bytes(selected) => selected,
        };
        let status = CacheStatus::hit().detail(Detail::Ram).verified(true);
        let mut response = head(digest, media_type, size, selected, status);
        if method == Read::Get {
            let bounds = bounds(selected, size);
            let bytes = bytes.slice(bounds.start as usize..bounds.end as usize);
            self.metrics
                .body_bytes
                .get_or_create(&TierLabels { tier: "ram" })
                .inc_by(bytes.len() as u64);
            *response.body_mut() = GatewayBody::whole(bytes);
        }
        response
    }

    /// The same, on the shard that has it or fetches it.
    pub(crate) async fn read_blob(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        let meaning = self.upstreams.resolve(name, ns);
        if matches!(meaning, Meaning::UnknownNamespace) {
            return Err(unknown_namespace(ns));
        }
        if let Some(stat) = self.cache.stat(digest)
            && stat.verified
            && self.may_read(&stat, &meaning, name, digest).await?
        {
            let source = match meaning {
                _ if stat.hosted || conditional::only_if_cached(headers) => None,
                Meaning::Mirrored(place) => Some(place.source),
                _ => self.places_of(name).next().map(|place| place.source),
            };
            return Ok(self.serve_stored(
                digest,
                &stat,
                header::OCTET_STREAM,
                source,
                method,
                headers,
            ));
        }
        match self.whence(name, ns).await? {
            Whence::Mirrored(_) if conditional::only_if_cached(headers) => Err(faults::not_held()),
            Whence::Mirrored(place) => self.fetch_blob(place, &[], digest, method, headers).await,
            Whence::Hosted(key) if !conditional::only_if_cached(headers) => {
                self.read_held_blob(&key, digest, method, headers).await
            }
            Whence::Hosted(_) | Whence::Nobody(_) => Err(blob_unknown(name, digest)),
        }
    }

    /// Content that was mirrored is read under any name; what was pushed is read in the repositories
    /// that link it, and wherever an upstream would have been asked for it.
    async fn may_read(
        &self,
        stat: &ObjectStat,
        meaning: &Meaning,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, ApiError> {
        if !stat.hosted || matches!(meaning, Meaning::Mirrored(_)) {
            return Ok(true);
        }
        Ok(self.names.link(name, digest).await? != Link::default())
    }

    /// An answer from verified content. `refetch` is where a chunk is had from that is lost while
    /// the answer goes out.
    pub(crate) fn serve_stored(
        &self,
        digest: &Digest,
        stat: &ObjectStat,
        media_type: &str,
        refetch: Option<Source>,
        method: Read,
        headers: &HeaderMap,
    ) -> Response<GatewayBody> {
        self.touch(digest);
        let selected = match select(headers, digest, stat.size) {
            Selected::NotModified => {
                return not_modified(digest, media_type, CacheStatus::hit());
            }
            Selected::Unsatisfiable => return refuse(range::unsatisfiable(stat.size)),
            Selected::Bytes(selected) => selected,
        };
        let first = selected.map_or(0, |part| part.first);
        let tier =
            self.cache.resident(digest, chunk_at(first)).map_or(Tier::Ssd, |chunk| chunk.tier);
        let detail = if tier == Tier::Ram || stat.size == 0 { Detail::Ram } else { Detail::Ssd };
        let status = CacheStatus::hit().detail(detail).verified(true);
        let mut response = head(digest, media_type, stat.size, selected, status);
        if method == Read::Get {
            let bounds = bounds(selected, stat.size);
            let refetch = refetch.map(|source| (self.flights.clone(), source));
            let reader = Reader::of_cache(self.cache.clone(), *digest, stat.size, bounds, refetch);
            *response.body_mut() =
                GatewayBody::content(reader, self.pins.clone(), self.metrics.clone());
        }
        response
    }

    pub(crate) async fn fetch_blob(
        &self,
        place: Place,
        others: &[Place],
        digest: &Digest,
        method: Read,
        headers: &HeaderMap,
    ) -> Answer {
        if method == Read::Head {
            return self.head_blob(place, digest, headers).await;
        }
        let known = self.cache.stat(digest).is_some();
        let asked = requested(headers, digest);
        if !self.may_share(&place.source, digest).await? {
            return self.pass_through(place.source, digest).await;
        }
        let running = self.flights.is_running(digest);
        let flight = match self.flights.join(digest, place.source.clone()) {
            Ok(flight) => flight,
            Err(fault) => return Err(faults::of_flight(&fault)),
        };
        for other in others {
            flight.add_source(other.source.clone());
        }
        self.touch(digest);
        let forward = if known { Forward::Partial } else { Forward::UriMiss };
        let mut status = CacheStatus::forwarded(forward).status(200).stored().verified(false);
        if running {
            status = status.collapsed();
        }
        let _claim = flight.claim();
        match self.open(&flight, &place.source, asked).await {
            Ok((total, selected)) => {
                let mut response = head(digest, header::OCTET_STREAM, total, selected, status);
                let reader =
                    Reader::of_flight(flight.clone(), bounds(selected, total), selected.is_none());
                *response.body_mut() =
                    GatewayBody::content(reader, self.pins.clone(), self.metrics.clone());
                Ok(response)
            }
            Err(Fault::UnknownLength) => self.pass_through(place.source, digest).await,
            Err(fault) => Err(faults::of_flight(&fault)),
        }
    }

    /// What is here of a digest and not verified came from somewhere. Another source must say that it
    /// has the digest too, and as long, before its clients share that. False where the two disagree
    /// while the other one is being fetched.
    async fn may_share(&self, source: &Source, digest: &Digest) -> Result<bool, ApiError> {
        let known = match self.flights.running(digest) {
            Some(flight) => Some((flight.origin(), flight.total())),
            None => self
                .cache
                .stat(digest)
                .filter(|stat| !stat.hosted)
                .and_then(|stat| Some((stat.origin?, Some(stat.size)))),
        };
        let Some((origin, total)) = known else { return Ok(true) };
        if origin == source.origin {
            return Ok(true);
        }
        let head = self.ask(source, digest, FetchMethod::Head).await;
        let said = head.map_err(|error| faults::of_fetch(&error, Code::BlobUnknown))?.head.length;
        if total.is_none() || said == total {
            return Ok(true);
        }
        if self.flights.is_running(digest) {
            return Ok(false);
        }
        self.cache.forget(digest);
        Ok(true)
    }

    /// Starts what the request needs, and waits until the length is known.
    async fn open(
        &self,
        flight: &Rc<Flight>,
        source: &Source,
        asked: Option<RequestedRange>,
    ) -> Result<(u64, Option<ByteRange>), Fault> {
        match asked {
            None => flight.want_whole(),
            Some(_) if flight.total().is_some() || flight.is_filling() => {}
            Some(RequestedRange::From { first, last }) => {
                let end = last.map_or(UNKNOWN_END, |last| chunks_of(last.saturating_add(1)));
                flight.want(chunk_at(first), end);
            }
            Some(RequestedRange::Suffix { .. } | RequestedRange::Backwards) => {
                let fetch = self.ask(source, &flight.digest, FetchMethod::Head).await?;
                flight.set_total(fetch.head.length.ok_or(Fault::UnknownLength)?)?;
            }
        }
        let total = flight.learn_total().await?;
        if total == 0 {
            // There is no last chunk that could wait for the verdict.
            flight.want_whole();
            flight.verified().await?;
        }
        let Some(asked) = asked else { return Ok((total, None)) };
        match asked.resolve(total) {
            ResolvedRange::Unsatisfiable => {
                Err(Fault::Upstream(FetchError::RangeNotSatisfiable { total: Some(total) }))
            }
            ResolvedRange::Whole => {
                flight.want_whole();
                Ok((total, None))
            }
            ResolvedRange::Part(part) => {
                if flight.origin() != source.origin {
                    // What is not verified is another upstream's or repository's.
                    flight.want_whole();
                    flight.verified().await?;
                }
                Ok((total, Some(part)))
            }
        }
    }

    /// A HEAD is passed on: it costs the upstream little, and fetches nothing.
    pub(crate) async fn head_blob(
        &self,
        place: Place,
        digest: &Digest,
        headers: &HeaderMap,
    ) -> Answer {
        let fetch = match self.ask(&place.source, digest, FetchMethod::Head).await {
            Ok(fetch) => fetch,
            // A client that is about to push asks first. The upstream's trouble is not its own, unless
            // the upstream is known to have the repository.
            Err(error) if !matches!(error, FetchError::NotFound) => {
                return match self.names.repository(&place.key).await? {
                    Repository::Mirrored { .. } => Err(faults::of_fetch(&error, Code::BlobUnknown)),
                    _ => Err(faults::of_fetch(&FetchError::NotFound, Code::BlobUnknown)),
                };
            }
            Err(error) => return Err(faults::of_fetch(&error, Code::BlobUnknown)),
        };
        let status = CacheStatus::forwarded(Forward::UriMiss).status(200).verified(false);
        let Some(total) = fetch.head.length else {
            let mut response = bare(StatusCode::OK);
            describe(&mut response, digest, header::OCTET_STREAM);
            response.headers_mut().insert(header::CACHE_STATUS, status.to_header());
            return Ok(response);
        };
        match select(headers, digest, total) {
            Selected::NotModified => Ok(not_modified(digest, header::OCTET_STREAM, status)),
            Selected::Unsatisfiable => Err(range::unsatisfiable(total)),
            Selected::Bytes(selected) => {
                Ok(head(digest, header::OCTET_STREAM, total, selected, status))
            }
        }
    }

    /// Content whose length the upstream does not say goes straight to the client.
    async fn pass_through(&self, source: Source, digest: &Digest) -> Answer {
        let fetch = self.ask(&source, digest, FetchMethod::Get).await;
        let fetch = fetch.map_err(|error| faults::of_fetch(&error, Code::BlobUnknown))?;
        let mut response = bare(StatusCode::OK);
        describe(&mut response, digest, header::OCTET_STREAM);
        let status = CacheStatus::forwarded(Forward::UriMiss).status(200).verified(false);
        response.headers_mut().insert(header::CACHE_STATUS, status.to_header());
        *response.body_mut() = GatewayBody::through(fetch.body, *digest, self.metrics.clone());
        Ok(response)
    }

    async fn ask(
        &self,
        source: &Source,
        digest: &Digest,
        method: FetchMethod,
    ) -> Result<Fetch, FetchError> {
        let request = FetchRequest {
            from: source.from,
            repository: source.repository.to_string(),
            target: Target::Blob(*digest),
            method,
            range: None,
            accept: Vec::new(),
        };
        self.metrics.upstream_requests.inc();
        self.uplink.fetch(request).await
    }
}

pub(crate) fn unknown_namespace(ns: Option<&str>) -> ApiError {
    let ns = ns.unwrap_or_default();
    ApiError::new(Code::NameUnknown, format!("no upstream is configured for ns={ns}"))
}

pub(crate) fn blob_unknown(name: &RepositoryName, digest: &Digest) -> ApiError {
    ApiError::new(Code::BlobUnknown, format!("{name} has no blob {digest}"))
        .with_detail(serde_json::json!({ "digest": digest.to_string() }))
}

/// What of a content goes out.
enum Selected {
    NotModified,
    Unsatisfiable,
    /// A part, or all of it.
    Bytes(Option<ByteRange>),
}

/// The range that is asked for and is to be honoured.
fn requested(headers: &HeaderMap, digest: &Digest) -> Option<RequestedRange> {
    let requested = range::parse_range(headers.get(RANGE)?)?;
    conditional::if_range(headers, digest).then_some(requested)
}

fn select(headers: &HeaderMap, digest: &Digest, size: u64) -> Selected {
    if conditional::if_none_match(headers, digest) {
        return Selected::NotModified;
    }
    match requested(headers, digest).map(|requested| requested.resolve(size)) {
        None | Some(ResolvedRange::Whole) => Selected::Bytes(None),
        Some(ResolvedRange::Part(part)) => Selected::Bytes(Some(part)),
        Some(ResolvedRange::Unsatisfiable) => Selected::Unsatisfiable,
    }
}

fn bounds(selected: Option<ByteRange>, size: u64) -> std::ops::Range<u64> {
    selected.map_or(0..size, |part| part.first..part.last + 1)
}

/// The head of an answer with all or a part of a content.
pub(crate) fn head(
    digest: &Digest,
    media_type: &str,
    size: u64,
    selected: Option<ByteRange>,
    status: CacheStatus,
) -> Response<GatewayBody> {
    let mut response = bare(StatusCode::OK);
    describe(&mut response, digest, media_type);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_STATUS, status.to_header());
    headers.insert(CONTENT_LENGTH, selected.map_or(size, |part| part.len()).into());
    if let Some(part) = selected {
        headers.insert(CONTENT_RANGE, range::content_range(part, Some(size)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn not_modified(digest: &Digest, media_type: &str, status: CacheStatus) -> Response<GatewayBody> {
    let mut response = bare(StatusCode::NOT_MODIFIED);
    describe(&mut response, digest, media_type);
    response.headers_mut().insert(header::CACHE_STATUS, status.to_header());
    response
}

fn refuse(error: ApiError) -> Response<GatewayBody> {
    let (parts, body) = error.into_parts();
    Response::from_parts(parts, GatewayBody::whole(body))
}
