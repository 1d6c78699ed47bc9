//! Content that is fetched because it will be asked for: by the ordinary way of a miss, so that one fetch serves whoever
//! asks meanwhile, and with nobody at its end.

use std::future::poll_fn;
use std::pin::Pin;

use http::HeaderMap;
use http_body::Body as _;
use outrider_artifact::{Digest, Reference, RepositoryName};

use crate::gateway::Gateway;
use crate::names::Names;
use crate::protocol::route::Read;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetched {
    /// It was here.
    Here,
    /// It is now, with so many bytes.
    Fetched(u64),
    /// It cannot be had, or was cut off.
    Failed,
}

impl<N: Names> Gateway<N> {
    /// Whether this shard is the one that has the digest, or that would fetch it.
    pub fn is_home_of(&self, digest: &Digest) -> bool {
        self.owner(digest) == self.shard
    }

    /// Fetches a blob, or a manifest, that a client would ask for in this repository. On the shard that
    /// [is its home](Self::is_home_of).
    pub async fn prefetch(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        is_manifest: bool,
    ) -> Prefetched {
        if self.cache.stat(digest).is_some_and(|stat| stat.verified) {
            return Prefetched::Here;
        }
        let headers = HeaderMap::new();
        let answer = match is_manifest {
            true => {
                let reference = Reference::Digest(*digest);
                self.read_manifest(name, None, &reference, Read::Get, &headers).await
            }
            false => self.find_blob(name, None, digest, Read::Get, &headers).await,
        };
        let Ok(mut answer) = answer else { return Prefetched::Failed };
        let mut bytes = 0;
        loop {
            let body = Pin::new(answer.body_mut());
            let mut body = body;
            match poll_fn(|context| body.as_mut().poll_frame(context)).await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => return Prefetched::Failed,
                None => return Prefetched::Fetched(bytes),
            }
            outrider_shard::task::yield_if_needed().await;
        }
    }
}
