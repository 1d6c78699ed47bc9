//! The entrance: an edge, and what is wanted of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outrider_artifact::Digest;
use url::Url;

use crate::blob::{self, Fetched, Wanted};
use crate::connection::{Connector, Protocol, Times};
use crate::credential::Credential;
use crate::error::ClientError;
use crate::image::{self, Platforms, Pulled};
use crate::many;
use crate::progress::Progress;
use crate::reference::{Image, Place};
use crate::tls::Roots;

/// How an edge is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// The edge: `https://HOST[:PORT]`, or `http://` for one on this machine.
    pub from: Url,
    /// The protocol.
    pub protocol: Protocol,
    /// Who vouches for the edge's certificate.
    pub roots: Roots,
    /// Which images of an index are pulled.
    pub platforms: Platforms,
    /// The longest wait for a connection.
    pub connect_max: Duration,
    /// The longest wait for an answer, and for each piece of it.
    pub idle_max: Duration,
    /// Attempts one after another that bring nothing, and it is given up.
    pub attempts_max: u32,
    /// Layers that are fetched at a time.
    pub parallel: usize,
    /// Who asks.
    pub credential: Option<Credential>,
}

impl Options {
    /// The edge at `from`, and defaults: 5 s, 30 s, 5 attempts, 4 layers at a time.
    pub fn new(from: Url) -> Self {
        Self {
            from,
            protocol: Protocol::Auto,
            roots: Roots::System,
            platforms: Platforms::default(),
            connect_max: Duration::from_secs(5),
            idle_max: Duration::from_secs(30),
            attempts_max: 5,
            parallel: 4,
            credential: None,
        }
    }
}

/// A client of one edge. Must be used within a tokio runtime that has I/O and time enabled.
#[derive(Debug)]
pub struct Client {
    options: Options,
    connector: Connector,
}

impl Client {
    /// A client; it does not connect yet.
    ///
    /// # Errors
    /// When the URL or the certificates are of no use.
    pub fn new(options: Options) -> Result<Self, ClientError> {
        let times = Times { connect_max: options.connect_max, idle_max: options.idle_max };
        let mut connector = Connector::new(&options.from, &options.roots, options.protocol, times)?;
        if let Some(credential) = &options.credential {
            connector = connector.asking_as(credential)?;
        }
        Ok(Self { options, connector })
    }

    /// How the edge is asked.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What asks it.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Closes the connection over QUIC, if there is one. The next request opens another, and goes out
    /// with its first packet if the edge gave a ticket.
    pub async fn disconnect(&self) {
        self.connector.disconnect().await;
    }

    /// Connections over QUIC whose first requests went out with their first packet (0-RTT).
    pub fn early_connections(&self) -> u64 {
        self.connector.early_connections()
    }

    /// Whether the registry that stands in a reference is this edge itself.
    pub(crate) fn is_edge(&self, host: Option<&str>) -> bool {
        host.is_none_or(|host| host == self.connector.authority())
    }

    /// Fetches content by its digest into `file`. What an earlier run left in `FILE.partial` is gone on
    /// with; what is there already and right is left alone.
    ///
    /// # Errors
    /// [`ClientError`]; then `file` is as it was.
    pub async fn fetch(
        &self,
        place: &Place,
        digest: &Digest,
        file: &Path,
        progress: &dyn Progress,
    ) -> Result<Fetched, ClientError> {
        let wanted = Wanted { place: place.clone(), digest: *digest, size_bytes: None };
        let attempts_max = self.options.attempts_max;
        blob::fetch(&self.connector, &wanted, file, attempts_max, progress).await
    }

    /// Fetches many contents by their digests, each into its file, as [`Client::fetch`] does it. By the native
    /// protocol those of which nothing is here yet come in one round trip; otherwise one comes after the other.
    ///
    /// # Errors
    /// The first [`ClientError`] that was not overcome; other files may be there then.
    pub async fn fetch_many(
        &self,
        place: &Place,
        wanted: &[(Digest, PathBuf)],
        progress: &dyn Progress,
    ) -> Result<Vec<Fetched>, ClientError> {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(digest, file)| {
                let one = Wanted { place: place.clone(), digest: *digest, size_bytes: None };
                (one, file.clone())
            })
            .collect();
        many::fetch(&self.connector, place, &wanted, self.options.attempts_max, progress).await
    }

    /// Fetches a part of content, from byte `first` to `last` or to the end, into `file`. A part cannot
    /// be verified.
    ///
    /// # Errors
    /// [`ClientError`]; then `file` is as it was.
    pub async fn fetch_range(
        &self,
        place: &Place,
        digest: &Digest,
        range: (u64, Option<u64>),
        file: &Path,
        progress: &dyn Progress,
    ) -> Result<Fetched, ClientError> {
        let attempts_max = self.options.attempts_max;
        let blob = (place, digest);
        blob::fetch_range(&self.connector, blob, range, file, attempts_max, progress).await
    }

    /// Pulls an image into the OCI image layout in `folder`.
    ///
    /// # Errors
    /// [`ClientError`]. What has come in stays there.
    pub async fn pull(
        &self,
        image: &Image,
        folder: &Path,
        progress: &dyn Progress,
    ) -> Result<Pulled, ClientError> {
        image::pull(self, image, folder, &self.options.platforms, progress).await
    }
}
