//! Whole contents, wherever they lie: on this shard, at home on another, or where they were pushed.
//!
//! Everything that asks for another digest than the one that its request is about comes here, and so
//! does what changes where a content is. A shard's cache is only ever touched on that shard.

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_cache::{Customer, ObjectStat, Origin, StoredUpload, UploadId};

use crate::faults;
use crate::flight::{chunk_len, chunk_start, chunks_of};
use crate::gateway::{Gateway, up_s};
use crate::mesh::Unanswered;
use crate::mesh::table::{ENTRY_BYTES_MAX, Small};
use crate::names::Names;
use crate::protocol::ApiError;
use crate::protocol::manifest::{MANIFEST_BYTES_MAX, too_large};

/// A content that was read from the cache.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) stat: ObjectStat,
    pub(crate) bytes: Bytes,
}

impl<N: Names> Gateway<N> {
    /// The shard that has the digest, or that has to fetch it. What is at hand here is found without a
    /// look at what all shards share.
    pub(crate) fn owner(&self, digest: &Digest) -> u16 {
        let home = self.hub.placement().home(digest);
        let here = |stat: ObjectStat| stat.verified && (stat.hosted || home == self.shard);
        if self.cache.stat(digest).is_some_and(here) {
            return self.shard;
        }
        self.hub.directory.holder(digest).unwrap_or(home)
    }

    /// What is kept here of another shard's content.
    pub(crate) fn kept(&self, digest: &Digest, epoch: u64) -> Option<Small> {
        let mut table = self.table.borrow_mut();
        let before = table.bytes();
        let small = table.get(digest, epoch);
        self.weigh(before, table.bytes());
        if small.is_some() {
            self.metrics.table_hits.inc();
        }
        small
    }

    /// The gauge is everybody's, so that it is left alone where nothing has changed.
    fn weigh(&self, before: usize, after: usize) {
        if before != after {
            self.metrics.table_bytes.inc_by(after as i64 - before as i64);
        }
    }

    /// Keeps what another shard said in `epoch` or later.
    pub(crate) fn keep(&self, digest: &Digest, small: Option<&Small>, epoch: u64) {
        let Some(small) = small else { return };
        let mut table = self.table.borrow_mut();
        let before = table.bytes();
        table.keep(digest, small, epoch);
        self.weigh(before, table.bytes());
    }

    /// What other shards may keep of this digest, if it is here, small and in memory.
    pub(crate) fn small(&self, digest: &Digest) -> Option<Small> {
        let stat = self.cache.stat(digest)?;
        if !stat.verified || stat.size == 0 || stat.size > ENTRY_BYTES_MAX {
            return None;
        }
        let bytes = self.cache.resident(digest, 0)?.bytes;
        Some(Small { bytes, media_type: stat.media_type, hosted: stat.hosted })
    }

    /// Counts an access, on the shard that has the content. One that is kept here is told of once a
    /// minute, which is as much as counts there.
    pub(crate) fn touch_anywhere(&self, digest: &Digest, customer: Customer) {
        if !self.table.borrow_mut().is_news(digest, up_s() / 60) {
            return;
        }
        let owner = self.owner(digest);
        if owner == self.shard {
            self.touch_for(digest, customer);
        } else {
            let digest = *digest;
            self.tell(owner, move |owner| owner.touch_for(&digest, customer));
        }
    }

    /// A content of at most 4 MiB, read to its end: one that its disk has lost is not here.
    ///
    /// # Errors
    /// `SIZE_INVALID` for a longer one; what a busy cache or shard answers.
    pub(crate) async fn at_hand(&self, digest: &Digest) -> Result<Option<Stored>, ApiError> {
        let owner = self.owner(digest);
        if owner == self.shard {
            return self.at_hand_here(digest).await;
        }
        let epoch = self.hub.epoch();
        if let Some(small) = self.kept(digest, epoch) {
            return Ok(Some(Stored { stat: small.stat(), bytes: small.bytes }));
        }
        let wanted = *digest;
        let found = self.on(owner, move |owner| async move { owner.at_hand_here(&wanted).await });
        let found = found.await??;
        if let Some(Stored { stat, bytes }) = &found
            && self.table.borrow_mut().wants(digest)
        {
            let (bytes, media_type) = (bytes.clone(), stat.media_type.clone());
            let small = Small { bytes, media_type, hosted: stat.hosted };
            self.keep(digest, Some(&small), epoch);
        }
        Ok(found)
    }

    async fn at_hand_here(&self, digest: &Digest) -> Result<Option<Stored>, ApiError> {
        let Some(stat) = self.cache.stat(digest).filter(|stat| stat.verified) else {
            return Ok(None);
        };
        if stat.size > MANIFEST_BYTES_MAX as u64 {
            return Err(too_large(stat.size));
        }
        let mut pieces = Vec::new();
        for chunk in 0..chunks_of(stat.size) {
            match self.cache.read(digest, chunk).await {
                Ok(Some(found)) => pieces.push(found.bytes),
                Ok(None) => return Ok(None),
                Err(error) => return Err(faults::of_store(&error)),
            }
        }
        let bytes = match &pieces[..] {
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        };
        Ok(Some(Stored { stat, bytes }))
    }

    /// Puts a content that was hashed into the cache of its home. Without room it is not kept.
    pub(crate) async fn put_whole(
        &self,
        digest: &Digest,
        media_type: &str,
        bytes: &Bytes,
        origin: Origin,
    ) {
        let owner = self.owner(digest);
        if owner == self.shard {
            return self.put_whole_here(digest, media_type, bytes, origin).await;
        }
        let (digest, media_type, bytes) = (*digest, media_type.to_owned(), bytes.clone());
        let put = self.on(owner, move |owner| async move {
            owner.put_whole_here(&digest, &media_type, &bytes, origin).await;
        });
        if let Err(why) = put.await {
            tracing::debug!(%digest, "a manifest is not kept: {why}");
        }
    }

    async fn put_whole_here(
        &self,
        digest: &Digest,
        media_type: &str,
        bytes: &Bytes,
        origin: Origin,
    ) {
        let total = bytes.len() as u64;
        if let Err(error) =
            self.cache.begin(digest, total, media_type, origin, self.customers.behalf())
        {
            tracing::debug!(%digest, "a manifest is not kept: {error}");
            return;
        }
        for chunk in 0..chunks_of(total) {
            let length = chunk_len(chunk, total);
            let Ok(mut writer) = self.cache.slot(length).await else { return };
            let start = chunk_start(chunk) as usize;
            writer.append(&bytes[start..start + length]);
            self.cache.insert(digest, chunk, writer);
        }
        self.cache.set_verified(digest);
    }

    /// Whether the names may say that the content is hosted while its disk has lost it, or a part of
    /// it: what is pushed then takes its place.
    pub(crate) async fn is_lost(&self, digest: &Digest) -> Result<bool, ApiError> {
        if self.hub.directory.is_lost(digest) {
            return Ok(true);
        }
        let wanted = *digest;
        let incomplete = self.surely_on(self.owner(digest), move |owner| async move {
            owner.cache.stat(&wanted).is_some_and(|stat| stat.hosted && !stat.complete)
        });
        Ok(incomplete.await?)
    }

    /// Shows what is stored on this shard and named, and sees to it that nobody else has it any more.
    /// Runs to its end.
    pub(crate) async fn host(&self, stored: StoredUpload, digest: &Digest, media_type: &str) {
        let was_cached = self.cache.stat(digest).is_some();
        self.cache.host(stored, digest, media_type);
        if was_cached {
            // It was anybody's to read; now it is read in the repositories that link it.
            self.hub.next_epoch();
        }
        let home = self.hub.placement().home(digest);
        let holder = (home != self.shard).then_some(self.shard);
        let before = self.hub.directory.set(digest, holder).unwrap_or(home);
        let others = [Some(before), Some(home).filter(|home| *home != before)];
        for other in others.into_iter().flatten().filter(|other| *other != self.shard) {
            let digest = *digest;
            let dropped = self
                .surely_on(other, move |other| async move { other.drop_copy(&digest).await })
                .await;
            if let Err(why) = dropped {
                tracing::debug!(%digest, other, "a copy is not dropped: {why}");
            }
        }
    }

    /// Another shard has hosted the digest: forgets what is here of it, unless the names say that what
    /// counts is here after all (the digest was deleted and pushed again meanwhile).
    async fn drop_copy(&self, digest: &Digest) {
        let Some(stat) = self.cache.stat(digest) else { return };
        if !stat.hosted {
            self.cache.forget(digest);
            return self.hub.next_epoch();
        }
        let Some(held) = self.cache.hosted_under(digest) else { return };
        match self.names.hosted(digest).await {
            Ok(Some(hosted)) if hosted.upload_id == held.0 => {
                let home = self.hub.placement().home(digest);
                self.hub.directory.set(digest, (home != self.shard).then_some(self.shard));
            }
            Ok(_) => {
                self.cache.unhost(digest, held);
                self.hub.next_epoch();
            }
            Err(error) => tracing::warn!(%digest, "a copy is not dropped: {error}"),
        }
    }

    /// Gives a content's space back whose delete was committed, wherever it lies. When this is over no
    /// shard answers with it any more. Runs to its end.
    pub(crate) async fn unhost(&self, digest: &Digest, id: UploadId) {
        let holder = self.hub.directory.holder(digest);
        let holder = holder.unwrap_or_else(|| self.hub.placement().home(digest));
        let digest = *digest;
        let done: Result<(), Unanswered> = self
            .surely_on(holder, move |holder| async move {
                holder.cache.unhost(&digest, id);
                // Not when it was hosted here again meanwhile.
                if !holder.cache.stat(&digest).is_some_and(|stat| stat.hosted) {
                    holder.hub.directory.remove(&digest, holder.shard);
                }
                holder.hub.next_epoch();
            })
            .await;
        if let Err(why) = done {
            tracing::debug!(%digest, "deleted content is given back at the next start: {why}");
        }
    }
}
