//! After a start: brings back what was pushed, by the names database and the stripes.
//!
//! A push may lie on any shard's stripes, so no shard can say alone that one is lost: each first takes
//! what it has, and when all have done so the home of each digest looks who has it.

use outrider_artifact::Digest;
use outrider_cache::{CacheError, UploadId};

use crate::gateway::Gateway;
use crate::names::{Names, NamesError};

/// How many records are read at once.
const PAGE: usize = 1024;

/// What was brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Contents that are served again from this shard.
    pub hosted: u64,
    /// Contents that were acknowledged, are at home here, and cannot be read. Each is logged as an
    /// error.
    pub lost: u64,
}

/// What one shard has brought back, before the others have.
#[derive(Debug, Default)]
pub struct Adopted {
    hosted: u64,
    /// At home here, and not found here.
    elsewhere: Vec<Digest>,
}

impl<N: Names> Gateway<N> {
    /// Shows every content again that was pushed and lies here, and gives the space of unfinished
    /// uploads back. Nothing may be answered before all shards have done this.
    ///
    /// # Errors
    /// What the names database cannot answer.
    pub async fn adopt(&self) -> Result<Adopted, NamesError> {
        let mut adopted = Adopted::default();
        let mut last = None;
        loop {
            let page = self.names.hosted_after(last, PAGE).await?;
            let Some(end) = page.last() else { break };
            last = Some(end.digest);
            for hosted in page {
                let id = UploadId(hosted.upload_id);
                let digest = &hosted.digest;
                let home = self.hub.placement().home(digest);
                if hosted.size_bytes == 0 && home != self.shard {
                    // It lies nowhere, and so it is at home.
                    continue;
                }
                match self.cache.adopt(id, digest, hosted.size_bytes, &hosted.media_type) {
                    Ok(()) => {
                        adopted.hosted += 1;
                        if home != self.shard {
                            self.hub.directory.set(digest, Some(self.shard));
                        }
                    }
                    Err(error) => {
                        if !matches!(error, CacheError::UploadMissing(_)) {
                            tracing::error!(%digest, "pushed content cannot be read: {error}");
                        }
                        if home == self.shard {
                            adopted.elsewhere.push(*digest);
                        }
                    }
                }
            }
        }
        self.cache.drop_unadopted();
        Ok(adopted)
    }

    /// Says what is lost, of what is at home here. Once every shard has adopted what it has.
    pub fn settle(&self, adopted: Adopted) -> Recovered {
        let mut recovered = Recovered { hosted: adopted.hosted, lost: 0 };
        for digest in adopted.elsewhere {
            if self.hub.directory.holder(&digest).is_none() {
                recovered.lost += 1;
                self.hub.directory.set_lost(&digest);
                tracing::error!(%digest, "pushed content is on no disk any more");
            }
        }
        recovered
    }
}
