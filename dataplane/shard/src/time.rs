//! Sleeping, on the shard's one heap of deadlines.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::deadlines::Key;
use crate::local;

/// A future that is ready from its deadline on. It may be made and moved anywhere, and is polled on
/// a shard. It costs nothing until it is first polled, then an entry in the heap (O(log n), no
/// allocation beyond the heap's own); dropping it and moving it to a later time are O(1).
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    registered: Option<Registered>,
}

#[derive(Clone, Copy, Debug)]
struct Registered {
    shard: usize,
    key: Key,
}

/// Sleeps for this long.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(deadline_after(duration))
}

/// Sleeps until then.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, registered: None }
}

/// The time at which the driver last had its turn: free of charge, and late by as long as the tasks
/// have been running since (some 100 µs under load). For what is measured in seconds.
pub fn turn_time() -> Instant {
    local::with_current(|local| local.turn_at.get()).unwrap_or_else(Instant::now)
}

/// Now plus `duration`, or far away when that is beyond what the clock can hold.
fn deadline_after(duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(duration).unwrap_or_else(|| now + FAR)
}

impl Sleep {
    /// When it is ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets another deadline, also after the last one has come. Who waits need not poll again.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        let Some(registered) = self.registered else { return };
        let pending = local::with_current(|local| {
            registered.is_of(local) && local.deadlines.borrow_mut().reset(registered.key, deadline)
        });
        if pending != Some(true) {
            self.registered = None;
        }
    }

    fn deregister(&mut self) {
        if let Some(registered) = self.registered.take() {
            // On another thread the entry stays until its time comes, and wakes who waited in vain.
            let waker = local::with_current(|local| {
                if registered.is_of(local) {
                    local.deadlines.borrow_mut().remove(registered.key)
                } else {
                    None
                }
            });
            drop(waker);
        }
    }
}

impl Registered {
    fn is_of(self, local: &Rc<local::Local>) -> bool {
        self.shard == shard_identity(local)
    }
}

/// Tells shards apart, those of one number in different tests too, for as long as they live; an
/// identity that is used again can name a deadline of another shard, which is then woken too early.
fn shard_identity(local: &Rc<local::Local>) -> usize {
    Rc::as_ptr(local).addr()
}

impl Future for Sleep {
    type Output = ();

    /// # Panics
    /// On a thread that is not a shard's, unless the deadline has passed.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(registered) = self.registered {
            let waits = local::with_current(|local| {
                registered.is_of(local)
                    && local.deadlines.borrow_mut().set_waker(registered.key, cx.waker())
            });
            if waits == Some(true) {
                return Poll::Pending;
            }
            self.registered = None;
        }
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let local = local::current("time::Sleep");
        let key = local.deadlines.borrow_mut().insert(self.deadline, cx.waker().clone());
        self.registered = Some(Registered { shard: shard_identity(&local), key });
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.deregister();
    }
}

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Runs `future` for at most this long, on a shard.
///
/// # Errors
/// [`Elapsed`] when it was not ready by then; it is dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = sleep(duration);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
