//! HTTPS by hyper, HTTP/2 or 1.1 as the edge offers; and HTTP without TLS.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;

use super::{Request, Times, Used};
use crate::error::ClientError;
use crate::tls;

/// What one stream of HTTP/2 may have under way.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What one connection of HTTP/2 may have under way.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// See the module. It keeps connections for the next request.
#[derive(Debug)]
pub(crate) struct Connector {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    authority: String,
    used: Used,
    times: Times,
}

impl Connector {
    /// A connector to `authority`; without `roots` it speaks plain HTTP.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(
        authority: &str,
        roots: Option<&Arc<RootCertStore>>,
        times: Times,
    ) -> Result<Self, ClientError> {
        let empty = Arc::new(RootCertStore::empty());
        let tls = tls::tcp(roots.unwrap_or(&empty))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(times.connect_max));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .build(connector);
        let used = if roots.is_some() { Used::Https } else { Used::Http };
        Ok(Self { client, authority: authority.to_owned(), used, times })
    }

    /// Which of the two it speaks.
    pub(crate) fn used(&self) -> Used {
        self.used
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Broken`].
    pub(crate) async fn get(
        &self,
        request: &Request,
    ) -> Result<(u16, HeaderMap, Incoming), ClientError> {
        let scheme = if self.used == Used::Https { "https" } else { "http" };
        let uri = format!("{scheme}://{}{}", self.authority, request.path);
        let wrong = |why: String| ClientError::Url { url: uri.clone(), why };
        let mut message = http::Request::get(&uri)
            .body(Empty::new())
            .map_err(|error| wrong(error.to_string()))?;
        *message.headers_mut() = request.headers();
        // The connector bounds TCP; this bounds TLS and the wait for an answer as well.
        let time = self.times.connect_max + self.times.idle_max;
        let answer = match tokio::time::timeout(time, self.client.request(message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.failed(&error)),
            Err(_) => {
                let why = format!("no answer within {time:?}");
                return Err(ClientError::Broken { protocol: self.used, why });
            }
        };
        let (parts, body) = answer.into_parts();
        Ok((parts.status.as_u16(), parts.headers, body))
    }

    fn failed(&self, error: &hyper_util::client::legacy::Error) -> ClientError {
        let why = chain(error);
        if error.is_connect() {
            let (address, protocol) = (self.authority.clone(), self.used);
            return ClientError::Connect { address, protocol, why, fatal: is_certificate(error) };
        }
        ClientError::Broken { protocol: self.used, why }
    }
}

/// The next piece of a body.
///
/// # Errors
/// What broke.
pub(crate) async fn next(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(chain(&error)),
            // Trailers say nothing here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// An error and what caused it, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// Whether somebody did not like the certificate. An I/O error hides what it carries from `source`, and
/// one may carry another.
fn is_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(carried) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
    {
        return is_certificate(carried);
    }
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || error.source().is_some_and(is_certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::CertificateError;
    use std::io;

    #[test]
    fn a_certificate_is_found_in_an_error_in_an_error() {
        let certificate = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let nested = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, certificate));
        assert!(is_certificate(&nested));
        assert!(!is_certificate(&io::Error::other(rustls::Error::DecryptError)));
        assert!(!is_certificate(&io::Error::from(io::ErrorKind::TimedOut)));
    }
}
