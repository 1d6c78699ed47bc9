//! Hashes all of a content in order, as it comes in, and ends its flight with a verdict.

use std::rc::Rc;

use outrider_artifact::ContentHasher;

use super::reader::Reader;
use super::{Fault, Flight, Verdict, chunks_of};

/// Runs until the content is known to be right or wrong, or the flight has failed.
pub(super) async fn run(flight: Rc<Flight>) {
    let fault = match hash(&flight).await {
        Ok(found) if found == flight.digest => {
            flight.home.cache.set_verified(&flight.digest);
            flight.end(Verdict::Verified);
            return;
        }
        Ok(found) => {
            flight.home.metrics.mismatches.inc();
            flight.home.cache.forget(&flight.digest);
            for source in flight.sources.borrow().iter() {
                flight.home.distrust(&flight.digest, source);
            }
            Fault::Mismatch(Box::new((flight.digest, found)))
        }
        Err(fault) => fault,
    };
    flight.end(Verdict::Failed(fault));
}

async fn hash(flight: &Rc<Flight>) -> Result<outrider_artifact::Digest, Fault> {
    let total = flight.learn_total().await?;
    loop {
        flight.hashed_to.set(0);
        flight.refilled.set(false);
        let mut hasher = ContentHasher::new(flight.digest.algorithm());
        let mut reader = Reader::of_hash(flight.clone(), total);
        while let Some(piece) = reader.next(usize::MAX).await {
            let bytes = piece?.bytes;
            hasher.update(&bytes);
            flight.home.metrics.hashed_bytes.inc_by(bytes.len() as u64);
            flight.hashed_to.set(chunks_of(total - reader.remaining()));
            outrider_shard::task::yield_if_needed().await;
        }
        let found = hasher.finish();
        // What was evicted behind the hash and came in anew has to be hashed as well.
        if found != flight.digest || !flight.refilled.get() {
            return Ok(found);
        }
    }
}
