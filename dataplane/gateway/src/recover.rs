//! After a start: brings back what was pushed, by the names database and the stripes.

use outrider_cache::UploadId;

use crate::gateway::Gateway;
use crate::names::{Names, NamesError};

/// How many records are read at once.
const PAGE: usize = 1024;

/// What was brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Contents that are served again.
    pub hosted: u64,
    /// Contents that were acknowledged and cannot be read. Each is logged as an error.
    pub lost: u64,
}

impl<N: Names> Gateway<N> {
    /// Shows every content that was pushed again, and gives the space of unfinished uploads back.
    ///
    /// # Errors
    /// What the names database cannot answer.
    pub async fn recover(&self) -> Result<Recovered, NamesError> {
        let mut recovered = Recovered::default();
        let mut last = None;
        loop {
            let page = self.names.hosted_after(last, PAGE).await?;
            let Some(end) = page.last() else { break };
            last = Some(end.digest);
            for hosted in page {
                let id = UploadId(hosted.upload_id);
                match self.cache.adopt(id, &hosted.digest, hosted.size_bytes, &hosted.media_type) {
                    Ok(()) => recovered.hosted += 1,
                    Err(error) => {
                        recovered.lost += 1;
                        tracing::error!(digest = %hosted.digest, "pushed content cannot be read: {error}");
                    }
                }
            }
        }
        self.cache.drop_unadopted();
        Ok(recovered)
    }
}
