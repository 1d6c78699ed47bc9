//! A small document from an address that the operator has named: the keys of an issuer of tokens.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use url::Url;

use crate::upstream::{system_roots, tls};

/// Fetches it, whole. No redirect is followed: what is named is what is trusted. Call it on a runtime of tokio.
///
/// # Errors
/// What went wrong, in words.
pub async fn fetch_document(
    url: &Url,
    ca_file: Option<&Path>,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Bytes, String> {
    let label = url.host_str().unwrap_or_default();
    let tls = tls(ca_file, url, label, &system_roots()).map_err(|error| error.to_string())?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(time_max));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(https);
    let request = Request::builder()
        .method(Method::GET)
        .uri(url.as_str())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("outrider/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let all = async {
        let response = client.request(request).await.map_err(|error| in_words(&error))?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
    };
    tokio::time::timeout(time_max, all).await.unwrap_or_else(|_| Err("it took too long".into()))
}

/// With what is behind an error, which says more.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
