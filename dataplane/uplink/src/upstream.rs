//! One upstream: its HTTP clients, its lanes, its tokens. Owns what lives as long as the
//! configuration; what lives as long as a fetch is in [`serve`](crate::serve).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{Semaphore, watch};
use url::Url;

use crate::address::{AddressClass, Classifier, Reach};
use crate::config::UpstreamConfig;
use crate::connect::{ClientSettings, HttpClient, client};
use crate::credentials::Credentials;
use crate::error::{FetchError, UplinkError};
use crate::fetch::Target;
use crate::lane::{Lane, LaneSettings, lock};
use crate::metrics::UplinkMetrics;
use crate::redirect::same_origin;
use crate::token::{TOKENS_MAX, Token, TokenCache};

/// The lane of manifests is this part of the lane of blobs,
const MANIFESTS_PART: usize = 4;

/// and at least so wide.
const MANIFESTS_MIN: usize = 4;

/// Unused connections kept to a host that the upstream named, and to the upstream itself.
const FOREIGN_IDLE_MAX: usize = 8;
const OWN_IDLE_MAX: usize = 32;

/// How many connections may be open per place in the lanes: one in use, and one unused in the pools
/// of the hosts that the upstream names.
const CONNECTIONS_PER_PLACE: usize = 2;

/// Connections on top of that, for token services.
const CONNECTIONS_EXTRA: usize = 16;

/// The answer that all who asked for the same token wait for.
pub(crate) type TokenFlight = watch::Receiver<Option<Result<Token, FetchError>>>;

pub(crate) struct Upstream {
    pub(crate) label: String,
    pub(crate) config: UpstreamConfig,
    pub(crate) metrics: UplinkMetrics,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tokens: Mutex<TokenCache>,
    /// Token requests that are under way, by scope. As many as fetches at the most.
    pub(crate) token_flights: Mutex<HashMap<String, TokenFlight>>,
    /// What was sent when the upstream asked for Basic authentication: from then on it is sent at
    /// once, until it is refused.
    pub(crate) basic: Mutex<Option<HeaderValue>>,
    /// The last error that counted against it, and when it was.
    pub(crate) last_error: Mutex<Option<(String, SystemTime)>>,
    manifests: Lane,
    blobs: Lane,
    clients: Clients,
}

impl Upstream {
    /// Sets an upstream up. Reads its files, and connects to nothing.
    pub(crate) fn new(
        config: UpstreamConfig,
        system_roots: &rustls::RootCertStore,
        classifier: Classifier,
        metrics: UplinkMetrics,
    ) -> Result<Self, UplinkError> {
        config.check()?;
        let label = config.label();
        let places = config.fetches_max;
        let manifest_places = (places / MANIFESTS_PART).max(MANIFESTS_MIN);
        let lane = |places, kind| {
            let settings = LaneSettings {
                upstream: label.clone(),
                kind,
                places,
                waiters_max: config.waiters_max,
                wait_max: config.head_timeout,
                breaker: config.breaker.clone(),
            };
            Lane::new(settings, metrics.breaker(&label, kind), metrics.in_flight(&label, kind))
        };
        let all_places = places + manifest_places;
        let settings = ClientSettings {
            tls: tls(config.ca_file.as_deref(), &config.url, &label, system_roots)?,
            classifier,
            connect_timeout: config.connect_timeout,
            window_bytes: config.window_bytes,
            requests_max: all_places,
            connections: Arc::new(Semaphore::new(
                all_places * CONNECTIONS_PER_PLACE + CONNECTIONS_EXTRA,
            )),
        };
        Ok(Self {
            manifests: lane(manifest_places, crate::metrics::MANIFEST),
            blobs: lane(places, crate::metrics::BLOB),
            clients: Clients::new(settings),
            credentials: credentials(&config, &label)?,
            tokens: Mutex::new(TokenCache::new(TOKENS_MAX)),
            token_flights: Mutex::new(HashMap::new()),
            basic: Mutex::new(None),
            last_error: Mutex::new(None),
            label,
            config,
            metrics,
        })
    }

    /// The lane for what is asked for.
    pub(crate) fn lane(&self, target: &Target) -> &Lane {
        match target {
            Target::Manifest(_) => &self.manifests,
            Target::Blob(_) => &self.blobs,
        }
    }

    pub(crate) fn lanes(&self) -> [&Lane; 2] {
        [&self.manifests, &self.blobs]
    }

    /// The HTTP client for a URL: its own for the configured origin, else one that goes no further
    /// than `reach`.
    pub(crate) fn client(&self, url: &Url, reach: Reach) -> HttpClient {
        let reach = if self.is_home(url) { Reach::Configured } else { reach };
        self.clients.get(reach)
    }

    /// Whether a URL is at the configured scheme, host and port.
    pub(crate) fn is_home(&self, url: &Url) -> bool {
        same_origin(url, &self.config.url)
    }

    /// The time that a whole fetch has to get its head.
    pub(crate) fn fetch_timeout(&self) -> Duration {
        (self.config.connect_timeout + self.config.head_timeout) * 3
    }
}

/// The HTTP clients of an upstream. A connection is pooled with those that may go as far as it
/// does, so that what was connected under a wide permission is never used under a narrow one.
struct Clients {
    settings: ClientSettings,
    home: HttpClient,
    named: Mutex<HashMap<Reach, HttpClient>>,
}

impl Clients {
    fn new(settings: ClientSettings) -> Self {
        let home = client(&settings, Reach::Configured, OWN_IDLE_MAX);
        Self { settings, home, named: Mutex::new(HashMap::new()) }
    }

    fn get(&self, reach: Reach) -> HttpClient {
        if reach == Reach::Configured {
            return self.home.clone();
        }
        // At most one for the internet, and one for each class of network that an upstream can be
        // in itself.
        debug_assert!(matches!(
            reach,
            Reach::Public
                | Reach::Also(
                    AddressClass::Private | AddressClass::LinkLocal | AddressClass::Loopback
                )
        ));
        let make = || client(&self.settings, reach, FOREIGN_IDLE_MAX);
        lock(&self.named).entry(reach).or_insert_with(make).clone()
    }
}

fn credentials(config: &UpstreamConfig, label: &str) -> Result<Option<Credentials>, UplinkError> {
    let (Some(username), Some(file)) = (&config.username, &config.password_file) else {
        return Ok(None);
    };
    let credentials = Credentials::new(username, file);
    credentials.basic().map_err(|error| UplinkError::File {
        upstream: label.to_owned(),
        path: file.clone(),
        reason: error.to_string(),
    })?;
    Ok(Some(credentials))
}

/// TLS for one upstream: the system's roots and its own.
pub(crate) fn tls(
    ca_file: Option<&Path>,
    url: &Url,
    label: &str,
    system_roots: &rustls::RootCertStore,
) -> Result<rustls::ClientConfig, UplinkError> {
    let mut roots = system_roots.clone();
    if let Some(path) = ca_file {
        let wrong = |reason: String| UplinkError::File {
            upstream: label.to_owned(),
            path: path.to_owned(),
            reason,
        };
        let mut found = 0;
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
    }
    if roots.is_empty() && url.scheme() == "https" {
        return Err(UplinkError::Tls(format!(
            "this machine has no trusted certificates, and upstream {label} has no ca_file"
        )));
    }
    // The provider is given explicitly: with two of them in a process, rustls would panic.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| UplinkError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tls)
}

/// The certificates that this machine trusts. Missing ones are only logged: an upstream may be
/// plain HTTP, or bring its own.
pub(crate) fn system_roots() -> rustls::RootCertStore {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "a system certificate cannot be loaded");
    }
    let mut roots = rustls::RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(loaded.certs);
    tracing::debug!(added, ignored, "loaded the system's trusted certificates");
    roots
}
