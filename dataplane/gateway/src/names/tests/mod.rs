//! Names against real files: rules, restarts, several threads, a disk that fails, a process that is
//! killed.

mod disk;
mod kill;
mod mirrored;
mod model;
mod outbox;
mod pushed;
mod shared;
mod start;
mod stored;
mod threads;

use std::path::Path;

use futures_lite::future::block_on;
use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_artifact::{Digest, RepositoryName, Tag};

use super::*;

/// A database in a directory of its own, with a client that blocks.
struct NamesBox {
    thread: Option<NamesThread>,
    client: NamesClient,
    names: LocalNames,
    metrics: NamesMetrics,
    limits: NamesLimits,
    directory: tempfile::TempDir,
}

impl NamesBox {
    fn new() -> Self {
        Self::with(NamesLimits::default())
    }

    fn with(limits: NamesLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let metrics = NamesMetrics::default();
        let (thread, client) = open(directory.path(), limits.clone(), metrics.clone()).unwrap();
        let names = client.blocking();
        Self { thread: Some(thread), client, names, metrics, limits, directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn stop(&mut self) {
        self.thread.take().unwrap().stop().unwrap();
    }

    fn restart(&mut self) {
        self.stop();
        let (thread, client) =
            open(self.path(), self.limits.clone(), self.metrics.clone()).unwrap();
        self.names = client.blocking();
        (self.thread, self.client) = (Some(thread), client);
    }

    fn repository(&self, name: &str) -> Repository {
        block_on(self.names.repository(&repository(name))).unwrap()
    }

    fn tag(&self, name: &str, tag: &str) -> Option<Arc<TagRecord>> {
        block_on(self.names.tag(&repository(name), &self::tag(tag))).unwrap()
    }

    fn link(&self, name: &str, digest: &Digest) -> Link {
        block_on(self.names.link(&repository(name), digest)).unwrap()
    }

    fn hosted(&self, digest: &Digest) -> Option<Hosted> {
        block_on(self.names.hosted(digest)).unwrap()
    }

    fn tags(&self, name: &str) -> Vec<String> {
        block_on(self.names.tags(&repository(name), None, 1000)).unwrap().tags
    }

    fn put(&self, put: PutManifest) -> Result<Put, NamesError> {
        block_on(self.names.put_manifest(put))
    }

    fn put_blob(&self, put: PutBlob) -> Result<Put, NamesError> {
        block_on(self.names.put_blob(put))
    }

    fn touch(&self, name: &str, text: &str, content: &str, checked_unix_ms: u64) -> bool {
        let (repository, tag, digest) = (repository(name), tag(text), digest(content));
        let touched = self.names.touch_mirrored_tag(&repository, &tag, &digest, checked_unix_ms);
        block_on(touched).unwrap()
    }

    fn mount(
        &self,
        to: &str,
        content: &str,
        from: Option<&str>,
    ) -> Result<Option<Mounted>, NamesError> {
        let (to, digest, from) = (repository(to), digest(content), from.map(repository));
        block_on(self.names.mount(&to, &digest, from.as_ref()))
    }

    fn remember(&self, tag: MirroredTag) -> Result<(), NamesError> {
        block_on(self.names.remember_mirrored_tag(tag))
    }
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

fn upload(number: u64) -> UploadId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

fn blob(name: &str, content: &str, number: u64) -> PutBlob {
    PutBlob {
        repository: repository(name),
        digest: digest(content),
        size_bytes: content.len() as u64,
        media_type: String::new(),
        upload_id: upload(number),
        previous_is_lost: false,
        event: None,
    }
}

fn manifest(name: &str, tags: &[&str], content: &str, number: u64) -> PutManifest {
    PutManifest {
        repository: repository(name),
        tags: tags.iter().map(|text| tag(text)).collect(),
        digest: digest(content),
        size_bytes: content.len() as u64,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        upload_id: upload(number),
        previous_is_lost: false,
        references: Vec::new(),
        references_required: false,
        referrer: None,
        events: Vec::new(),
    }
}

fn mirrored(name: &str, text: &str, content: &str, checked_unix_ms: u64) -> MirroredTag {
    MirroredTag {
        repository: repository(name),
        tag: tag(text),
        upstream: "docker.io".into(),
        digest: digest(content),
        size_bytes: content.len() as u64,
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        checked_unix_ms,
        etag: Some("\"a\"".into()),
    }
}

fn event(name: &str, content: &str) -> UploadEvent {
    UploadEvent {
        kind: UploadKind::Blob,
        customer: "anonymous".into(),
        region: "local".into(),
        repository: name.into(),
        version: None,
        digest: digest(content).to_string(),
        size_bytes: content.len() as u64,
        media_type: String::new(),
        unix_ms: 1,
    }
}
