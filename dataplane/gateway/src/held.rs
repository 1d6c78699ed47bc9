//! What other edges hold: content that was pushed to one of them, for a repository that the fleet has.

use std::rc::Rc;

use outrider_artifact::{Digest, RepositoryName};
use outrider_uplink::{FetchError, FetchMethod, FetchRequest, Target};

use crate::faults;
use crate::gateway::{Answer, Gateway};
use crate::names::Names;
use crate::protocol::route::Read;
use crate::protocol::{ApiError, Code, header};
use crate::upstreams::{Place, place_at_edge};

/// Edges that are asked for one content.
const HOLDERS_ASKED_MAX: usize = 4;

impl<N: Names> Gateway<N> {
    /// Where else the content of a hosted repository may be, dearest first.
    pub(crate) fn places_of(&self, key: &RepositoryName) -> impl Iterator<Item = Place> + use<N> {
        let (holders, key) = (self.names.holders(key), key.clone());
        let asked = holders.len().min(HOLDERS_ASKED_MAX);
        (0..asked).map(move |index| place_at_edge(holders[index], &key))
    }

    /// Asks the edges that hold a repository whether it has this content there, and how long it is; nothing when
    /// none of them has it.
    ///
    /// # Errors
    /// What the last one that could not say anything said.
    pub(crate) async fn held(
        &self,
        key: &RepositoryName,
        target: &Target,
    ) -> Result<Option<Place>, ApiError> {
        let mut failure = None;
        for place in self.places_of(key) {
            match self.ask_whether(&place, target).await {
                Ok(()) => return Ok(Some(place)),
                Err(FetchError::NotFound) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), |error| Err(faults::of_fetch(&error, Code::BlobUnknown)))
    }

    /// Asks an upstream, or an edge, by HEAD whether it has this content there; once, however many want to know.
    ///
    /// # Errors
    /// What the uplink says; `NotFound` where it has not.
    pub(crate) async fn ask_whether(
        &self,
        place: &Place,
        target: &Target,
    ) -> Result<(), FetchError> {
        let request = FetchRequest {
            from: place.source.from,
            repository: place.source.repository.to_string(),
            target: target.clone(),
            method: FetchMethod::Head,
            range: None,
            accept: header::MANIFEST_ACCEPT.map(str::to_owned).to_vec(),
        };
        let ask = || {
            self.metrics.upstream_requests.inc();
            let uplink = self.uplink.clone();
            async move { uplink.fetch(request).await.map(drop) }
        };
        self.asks.run((place.source.origin, target.clone()), ask).await
    }

    /// A blob of a hosted repository that is not linked here: from who holds it. On the shard that has or
    /// fetches the digest.
    pub(crate) async fn read_held_blob(
        &self,
        key: &RepositoryName,
        digest: &Digest,
        method: Read,
        headers: &http::HeaderMap,
    ) -> Answer {
        let places: Vec<Place> = self.places_of(key).collect();
        let hosted = self.cache.stat(digest).filter(|stat| stat.verified && stat.hosted);
        match (hosted, &places[..]) {
            (_, []) => Err(crate::blobs::blob_unknown(key, digest)),
            // It was pushed here to another repository; that this one has it too, its holders say.
            (Some(stat), _) => match self.held(key, &Target::Blob(*digest)).await? {
                Some(_) => Ok(self.serve_stored(
                    digest,
                    &stat,
                    header::OCTET_STREAM,
                    None,
                    method,
                    headers,
                )),
                None => Err(crate::blobs::blob_unknown(key, digest)),
            },
            (None, places) if method == Read::Head => {
                let mut last = crate::blobs::blob_unknown(key, digest);
                for place in places {
                    match self.head_blob(place.clone(), digest, headers).await {
                        Ok(response) => return Ok(response),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            (None, [first, others @ ..]) => {
                self.fetch_blob(first.clone(), others, digest, method, headers).await
            }
        }
    }

    /// Fetches a blob that one of these edges holds for this repository, and makes it a part of the repository here.
    /// False where nobody has it. With `by` that is told as an upload. With `linked_only` one of them must say first
    /// that it holds it: what is here of the digest, or comes in just now for others, is not this repository's.
    ///
    /// # Errors
    /// What of a fetch or of the disk is not that it is missing.
    pub(crate) async fn bring_in(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        by: Option<&str>,
        edges: &[u64],
        linked_only: bool,
    ) -> Result<bool, ApiError> {
        if edges.is_empty() {
            return Ok(false);
        }
        if linked_only && self.held(name, &Target::Blob(*digest)).await?.is_none() {
            return Ok(false);
        }
        let owner = self.owner(digest);
        let brought = if owner == self.shard {
            self.bring(name, digest, edges).await?
        } else {
            let (name, digest, edges) = (name.clone(), *digest, edges.to_vec());
            let bring =
                move |owner: Rc<Self>| async move { owner.bring(&name, &digest, &edges).await };
            self.on(owner, bring).await??
        };
        Ok(brought && self.take_in(name, digest, by).await?)
    }

    async fn bring(
        &self,
        key: &RepositoryName,
        digest: &Digest,
        edges: &[u64],
    ) -> Result<bool, ApiError> {
        let mut places = edges.iter().take(HOLDERS_ASKED_MAX).map(|edge| place_at_edge(*edge, key));
        let Some(first) = places.next() else { return Ok(false) };
        let flight = match self.flights.join(digest, first.source) {
            Ok(flight) => flight,
            Err(fault) => return Err(faults::of_flight(&fault)),
        };
        for other in places {
            flight.add_source(other.source);
        }
        let _claim = flight.claim();
        flight.want_whole();
        match flight.verified().await {
            Ok(()) => Ok(true),
            Err(crate::flight::Fault::Upstream(FetchError::NotFound)) => Ok(false),
            Err(fault) => Err(faults::of_flight(&fault)),
        }
    }
}
