//! `/layer/upload` and `/layer/request`: layers by plain HTTP, over the same store.

use http::{HeaderMap, StatusCode};
use outrider_artifact::event::UploadKind;
use outrider_artifact::{Algorithm, Digest, RepositoryName, Tag};
use outrider_transport::{Peer, RequestBody};

use crate::access::asker::Asker;
use crate::gateway::{Answer, Gateway, json, value};
use crate::names::Names;
use crate::protocol::route::Read;
use crate::protocol::{ApiError, Code, conditional, header};
use crate::uploads;

/// What `/layer/request` asks for.
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    pub(crate) customer: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) image: Option<RepositoryName>,
    pub(crate) method: Read,
}

impl<N: Names> Gateway<N> {
    /// `PUT /layer/upload?image=NAME&version=TAG&customer=ID[&digest=…]`
    pub(crate) async fn upload_layer(
        &self,
        image: RepositoryName,
        version: Tag,
        customer: String,
        digest: Option<Digest>,
        body: RequestBody,
    ) -> Answer {
        self.must_be_pushable(&image).await?;
        let at = self.upload_shard(self.shard).await?;
        if at == self.shard {
            return self.store_layer(&image, &version, customer, digest, body).await;
        }
        self.carry_to(at, body, move |other, body| async move {
            other.store_layer(&image, &version, customer, digest, body).await
        })
        .await
    }

    async fn store_layer(
        &self,
        image: &RepositoryName,
        version: &Tag,
        customer: String,
        digest: Option<Digest>,
        mut body: RequestBody,
    ) -> Answer {
        let algorithm = digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let (_, mut open) = self.open_upload(algorithm, &customer)?;
        uploads::take_body(&mut open, &mut body).await?;
        let (digest, stored) = match digest {
            Some(digest) => (digest, uploads::close(open, &digest).await?),
            None => uploads::close_unnamed(open).await?,
        };
        let size_bytes = stored.size();
        let event = self.upload_event(
            UploadKind::Layer,
            image,
            Some(version),
            &digest,
            size_bytes,
            &customer,
        );
        self.name_blob(image, stored, &digest, Some(event)).await?;
        let answer = serde_json::json!({
            "digest": digest.to_string(),
            "size": size_bytes,
            "image": image.to_string(),
            "version": version.to_string(),
            "customer": customer,
        });
        let mut response = json(StatusCode::CREATED, answer.to_string());
        response.headers_mut().insert(header::DOCKER_CONTENT_DIGEST, value(digest.to_string()));
        let location = format!("/layer/request?digest={digest}&image={image}");
        response.headers_mut().insert(http::header::LOCATION, value(location));
        Ok(response)
    }

    /// `GET, HEAD /layer/request?digest=…&customer=…&region=…&image=…`
    pub(crate) async fn request_layer(
        &self,
        wanted: Wanted,
        peer: Peer,
        headers: &HeaderMap,
        asker: &Asker,
    ) -> Answer {
        self.may_ask_for(wanted.customer, wanted.region.as_deref(), peer, asker)?;
        if let Some(image) = &wanted.image {
            return self.find_blob(image, None, &wanted.digest, wanted.method, headers).await;
        }
        let (digest, method) = (wanted.digest, wanted.method);
        let owner = self.owner(&digest);
        if owner == self.shard {
            return self.serve_layer(&digest, method, headers);
        }
        if let Some(small) = self.kept(&digest, self.hub.epoch()) {
            return Ok(self.serve_whole(
                &digest,
                header::OCTET_STREAM,
                small.bytes,
                method,
                headers,
            ));
        }
        let headers = conditional::selecting(headers);
        self.answer_on(
            owner,
            move |owner| async move { owner.serve_layer(&digest, method, &headers) },
        )
        .await
    }

    /// Whether a client may ask for this customer, in this region.
    ///
    /// # Errors
    /// `DENIED` for somebody else's customer, `UNSUPPORTED` for another region.
    pub(crate) fn may_ask_for(
        &self,
        customer: Option<String>,
        region: Option<&str>,
        peer: Peer,
        asker: &Asker,
    ) -> Result<(), ApiError> {
        may_speak_for(customer, peer, asker)?;
        let Some(region) = region.filter(|region| *region != self.settings.region) else {
            return Ok(());
        };
        let message = format!(
            "this edge is in the region {}, not {region}: ask there, or leave region out",
            self.settings.region
        );
        Err(ApiError::new(Code::Unsupported, message).with_status(StatusCode::BAD_REQUEST))
    }

    /// A layer that is on this shard.
    fn serve_layer(&self, digest: &Digest, method: Read, headers: &HeaderMap) -> Answer {
        let stat = self.cache.stat(digest).filter(|stat| stat.verified).ok_or_else(|| {
            ApiError::new(
                Code::BlobUnknown,
                format!(
                    "{digest} is not here; with image=NAME it is fetched from the image's upstream"
                ),
            )
        })?;
        Ok(self.serve_stored(digest, &stat, header::OCTET_STREAM, None, method, headers))
    }
}

/// Who is asked who they are speaks for themselves. Else anybody of this machine is whom they say.
pub(crate) fn may_speak_for(
    customer: Option<String>,
    peer: Peer,
    asker: &Asker,
) -> Result<String, ApiError> {
    let own = asker.name();
    match customer {
        None => Ok(own.into()),
        Some(customer) if customer == own => Ok(customer),
        Some(customer) if peer.is_loopback() && !asker.is_asked() => Ok(customer),
        Some(customer) => Err(ApiError::new(
            Code::Denied,
            format!("this request is {own}'s, and cannot speak for {customer}"),
        )),
    }
}
