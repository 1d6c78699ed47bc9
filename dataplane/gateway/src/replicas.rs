//! What is pushed here, on the disks of other edges too, where the placement says so: before it is acknowledged.
//!
//! The others get it by themselves ([`crate::keep`]); here they are only asked, again and again until they have
//! it. Whatever comes of that, what was pushed stays here, and a push that is repeated goes on.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrider_artifact::{Digest, RepositoryName};
use outrider_shard::time;
use outrider_uplink::{FetchError, Kept};

use crate::gateway::Gateway;
use crate::metrics::OutcomeLabels;
use crate::names::{Names, Placed};
use crate::protocol::{ApiError, Code};

/// Pushes of a shard that wait for other edges.
const PUSHES_MAX: usize = 256;
/// When a client may push again that was refused for want of edges.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Before an edge is asked again for which too many wait.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// The edges that have it, and why others have not.
struct Search<'a> {
    name: &'a RepositoryName,
    digest: &'a Digest,
    until: Instant,
    left: RefCell<std::vec::IntoIter<u64>>,
    reasons: RefCell<Vec<String>>,
}

/// Counts a push for as long as it waits.
struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<N: Names> Gateway<N> {
    /// Sees to it that as many edges have this manifest, and all that it names, as the placement asks for. It is
    /// stored and named here. Gives the others that have it.
    ///
    /// # Errors
    /// `UNAVAILABLE` with `Retry-After` where there are too few, or too few in time.
    pub(crate) async fn replicate(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<u64>, ApiError> {
        let Some(placed) = self.names.placed(name) else { return Ok(Vec::new()) };
        if placed.wanted() == 0 {
            return Ok(Vec::new());
        }
        let replicated = self.replicate_to(&placed, name, digest).await;
        let outcome = if replicated.is_ok() { "done" } else { "short" };
        self.metrics.replications.get_or_create(&OutcomeLabels { outcome }).inc();
        replicated.map_err(|why| {
            tracing::warn!(repository = %name, %digest, "a push is not acknowledged: {why}");
            let text = format!("{why}; what was pushed is kept at this edge: push again to go on");
            ApiError::new(Code::Unavailable, text).with_retry_after(RETRY_AFTER)
        })
    }

    async fn replicate_to(
        &self,
        placed: &Placed,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<u64>, String> {
        let wanted = placed.wanted();
        let rule = needed(placed, name);
        if !placed.is_reached {
            return Err(format!(
                "{rule}, and no other edge knows how to reach this one: control.advertise is not set"
            ));
        }
        if placed.others.len() < wanted {
            let count = placed.others.len();
            return Err(format!("{rule}, and {count} other edges that could have it are known"));
        }
        if self.replicating.get() >= PUSHES_MAX {
            return Err(format!("{rule}, and {PUSHES_MAX} pushes wait for other edges already"));
        }
        self.replicating.set(self.replicating.get() + 1);
        let _waiting = Waiting(&self.replicating);
        let search = Search {
            name,
            digest,
            until: Instant::now() + self.settings.replicas_time_max,
            left: RefCell::new(placed.others.clone().into_iter()),
            reasons: RefCell::default(),
        };
        let found = all((0..wanted).map(|_| self.find(&search)).collect()).await;
        let found: Vec<u64> = found.into_iter().flatten().collect();
        if found.len() == wanted {
            return Ok(found);
        }
        let have = found.len() + usize::from(placed.own_counts);
        let reasons = search.reasons.take().join(", ");
        Err(format!("{rule}, and {have} have it: {reasons}"))
    }

    /// Asks one edge after the other, until one has it.
    async fn find(&self, search: &Search<'_>) -> Option<u64> {
        loop {
            let edge = search.left.borrow_mut().next()?;
            match self.ask_to_keep(edge, search).await {
                Ok(()) => return Some(edge),
                Err(why) => {
                    tracing::debug!(edge, repository = %search.name, "not kept there: {why}");
                    search.reasons.borrow_mut().push(format!("edge {edge}: {why}"));
                }
            }
        }
    }

    async fn ask_to_keep(&self, edge: u64, search: &Search<'_>) -> Result<(), String> {
        loop {
            if Instant::now() >= search.until {
                return Err("it has not all of it yet".to_owned());
            }
            match self.uplink.keep(edge, search.name, *search.digest).await {
                Ok(Kept::Whole) => return Ok(()),
                Ok(Kept::UnderWay) => {}
                // Others ask the same edge: that says nothing about it.
                Err(FetchError::Busy) => time::sleep(BUSY_PAUSE).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// What the placement asks for, in words.
fn needed(placed: &Placed, name: &RepositoryName) -> String {
    let regions = match &placed.rule.regions[..] {
        [] => String::new(),
        regions => format!(" of {}", regions.join(", ")),
    };
    let replicas = placed.rule.replicas;
    format!("the placement wants what is pushed to {name} on {replicas} edges{regions}")
}

/// The results of all of them, which run beside each other.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = Pin::as_mut(future).poll(cx)
            {
                *result = Some(value);
            }
        }
        match results.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::PlacementRule;

    #[test]
    fn all_of_them_run_beside_each_other() {
        let turn = Cell::new(0);
        // The first is ready only after the last.
        let wait = |own: i32| {
            let turn = &turn;
            poll_fn(move |cx| {
                if turn.get() == own {
                    turn.set(own - 1);
                    return Poll::Ready(own);
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
        };
        turn.set(3);
        let results = futures_lite::future::block_on(all(vec![wait(1), wait(2), wait(3)]));
        assert_eq!(results, [1, 2, 3]);
    }

    #[test]
    fn what_is_wanted_is_said_in_words() {
        let rule = PlacementRule { replicas: 2, regions: vec!["eu".into(), "us".into()] };
        let placed = Placed { rule, own_counts: false, is_reached: true, others: Vec::new() };
        let text = needed(&placed, &"team/app".parse().unwrap());
        assert_eq!(text, "the placement wants what is pushed to team/app on 2 edges of eu, us");
        assert_eq!(placed.wanted(), 2);
    }
}
