//! Lists: tags, repositories, referrers. Each is bounded, and goes on behind a `Link`.

use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderValue, Response, StatusCode};
use outrider_artifact::{Digest, RepositoryName};
use serde_json::value::RawValue;

use crate::blobs::Whence;
use crate::body::GatewayBody;
use crate::gateway::{Answer, Gateway, json, value};
use crate::names::{Names, Repository};
use crate::protocol::route::Page;
use crate::protocol::{ApiError, Code, header};

impl<N: Names> Gateway<N> {
    /// `GET /v2/NAME/tags/list`: of a mirrored repository, the tags that were asked for here.
    pub(crate) async fn list_tags(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        page: Page,
    ) -> Answer {
        let key = self.key(name, ns).await?;
        let found = self.names.tags(&key, page.last.as_deref(), page.entries_max).await?;
        if found.repository == Repository::Unknown {
            return Err(ApiError::new(
                Code::NameUnknown,
                format!("there is no repository {name} here"),
            ));
        }
        let body = serde_json::json!({ "name": name.to_string(), "tags": found.tags });
        let mut response = json(StatusCode::OK, body.to_string());
        if let (true, Some(last)) = (found.more, found.tags.last()) {
            link(
                &mut response,
                &format!("/v2/{name}/tags/list?n={}&last={last}", page.entries_max),
            );
        }
        Ok(response)
    }

    /// `GET /v2/_catalog`
    pub(crate) async fn list_repositories(&self, page: Page) -> Answer {
        // One more than is shown tells whether there are more.
        let mut found = self
            .names
            .repositories(page.last.as_deref(), page.entries_max.saturating_add(1))
            .await?;
        let more = found.len() > page.entries_max;
        found.truncate(page.entries_max);
        let mut response =
            json(StatusCode::OK, serde_json::json!({ "repositories": found }).to_string());
        if let (true, Some(last)) = (more, found.last()) {
            link(&mut response, &format!("/v2/_catalog?n={}&last={last}", page.entries_max));
        }
        Ok(response)
    }

    /// `GET /v2/NAME/referrers/DIGEST`. Of a mirrored repository nothing is known; the 404 has clients
    /// fall back to the referrers tag, which is mirrored like any other.
    pub(crate) async fn list_referrers(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
        subject: &Digest,
        artifact_type: Option<String>,
        page: Page,
    ) -> Answer {
        let key = match self.whence(name, ns).await? {
            Whence::Hosted(key) | Whence::Nobody(key) => key,
            Whence::Mirrored(place) => {
                let message = format!("{} is mirrored, and its referrers are not", place.key);
                return Err(ApiError::new(Code::NameUnknown, message));
            }
        };
        let last = page.last.as_deref().and_then(|last| last.parse().ok());
        let wanted = artifact_type.as_deref();
        let found = self.names.referrers(&key, subject, wanted, last, page.entries_max).await?;
        let manifests: Vec<&RawValue> =
            found.descriptors.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect();
        let body = serde_json::to_string(&ReferrersIndex {
            schema_version: 2,
            media_type: header::OCI_INDEX,
            manifests,
        })
        .map_err(|error| {
            ApiError::new(Code::Unknown, format!("the list cannot be written: {error}"))
        })?;
        let mut response = json(StatusCode::OK, body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(header::OCI_INDEX));
        if artifact_type.is_some() {
            response
                .headers_mut()
                .insert(header::OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if let Some(last) = found.more_after {
            let filter = artifact_type.map_or(String::new(), |wanted| {
                let encoded: String = form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
                format!("&artifactType={encoded}")
            });
            let n = page.entries_max;
            link(
                &mut response,
                &format!("/v2/{name}/referrers/{subject}?n={n}&last={last}{filter}"),
            );
        }
        Ok(response)
    }

    /// The key of a repository in the names database, whatever it is.
    async fn key(
        &self,
        name: &RepositoryName,
        ns: Option<&str>,
    ) -> Result<RepositoryName, ApiError> {
        Ok(match self.whence(name, ns).await? {
            Whence::Hosted(key) | Whence::Nobody(key) => key,
            Whence::Mirrored(place) => place.key,
        })
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct ReferrersIndex<'a> {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<&'a RawValue>,
}

fn link(response: &mut Response<GatewayBody>, target: &str) {
    response.headers_mut().insert(LINK, value(format!("<{target}>; rel=\"next\"")));
}
