//! Deadlines: one heap per shard.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A future that is ready from its deadline on.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
}

impl Sleep {
    /// When it is ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets another deadline.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        unimplemented!()
    }
}

/// Sleeps for this long.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

/// Sleeps until then.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline }
}

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Runs `future` for at most this long.
///
/// # Errors
/// [`Elapsed`] when it was not ready by then; it is dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let _ = (duration, future);
    unimplemented!()
}
