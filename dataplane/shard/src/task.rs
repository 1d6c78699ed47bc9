//! Tasks on this shard.
//!
//! A task's waker may be cloned, called and dropped on any thread: called elsewhere it goes through
//! the shard's queue of wakers, at most once until the driver has taken it out. So whatever future
//! is polled here may be completed from another runtime. (The executor's own wakers are not handed
//! out: they count their clones in 16 bits, and waking one from outside makes the executor allocate.)
//!
//! Since every wake passes here, the shard knows how many of its tasks can run, and with that whether
//! its driver may sleep.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;

use crate::handle::Shared;
use crate::local;

/// How long a task may go on before [`yield_if_needed`] lets the others run.
const SLICE: Duration = Duration::from_micros(500);

/// Runs `future` on this shard, beside its caller; it ends when it is ready, or when the shard's
/// `main` has returned. Two allocations.
///
/// # Panics
/// On a thread that is not a shard's.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let local = local::current("task::spawn");
    if local.ending.get() {
        return;
    }
    let index = local.tasks.begin();
    let cell = Arc::new(TaskCell {
        shared: local.handle.shared().clone(),
        index,
        queued: AtomicBool::new(false),
        ended: AtomicBool::new(false),
    });
    let waker = Waker::from(cell.clone());
    glommio::spawn_local(Shell { future, cell, waker }).detach();
}

/// Lets every other task that can run go first, and looks after I/O and deadlines.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// [`yield_now`], when the driver has not had its turn for half a millisecond. Costs a look at the
/// clock (25 ns): call it once per some 10 µs of work.
pub async fn yield_if_needed() {
    let late = local::with_current(|local| local.turn_at.get().elapsed() >= SLICE);
    if late == Some(true) {
        yield_now().await;
    }
}

/// The tasks of a shard, by index.
#[derive(Default)]
pub(crate) struct Tasks {
    entries: RefCell<Entries>,
    /// How many have been woken and not been polled since.
    runnable: Cell<usize>,
}

#[derive(Default)]
struct Entries {
    slots: Vec<Entry>,
    free: Vec<usize>,
}

#[derive(Default)]
struct Entry {
    /// The executor's waker, from the first poll on. It never leaves this thread.
    waker: Option<Waker>,
    scheduled: bool,
    alive: bool,
}

impl Tasks {
    /// A new task, which can run.
    fn begin(&self) -> usize {
        let mut entries = self.entries.borrow_mut();
        let index = match entries.free.pop() {
            Some(index) => index,
            None => {
                entries.slots.push(Entry::default());
                entries.slots.len() - 1
            }
        };
        entries.slots[index] = Entry { waker: None, scheduled: true, alive: true };
        self.runnable.set(self.runnable.get() + 1);
        index
    }

    fn begin_poll(&self, index: usize, waker: &Waker) {
        let entry = &mut self.entries.borrow_mut().slots[index];
        assert!(entry.alive, "a task that has ended is not polled");
        if entry.scheduled {
            entry.scheduled = false;
            self.runnable.set(self.runnable.get() - 1);
        }
        // The executor's waker of a task is the same for all of its life.
        if entry.waker.is_none() {
            entry.waker = Some(waker.clone());
        }
    }

    fn schedule(&self, index: usize) {
        let entry = &mut self.entries.borrow_mut().slots[index];
        assert!(entry.alive, "a task that has ended is not woken");
        if !entry.scheduled {
            entry.scheduled = true;
            self.runnable.set(self.runnable.get() + 1);
            // The executor only puts the task into its queue: nothing comes back here.
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }

    fn end(&self, index: usize) {
        let mut entries = self.entries.borrow_mut();
        let entry = std::mem::take(&mut entries.slots[index]);
        assert!(entry.alive, "a task ends once");
        if entry.scheduled {
            self.runnable.set(self.runnable.get() - 1);
        }
        entries.free.push(index);
        drop(entries);
        drop(entry);
    }

    /// Whether any task is waiting to be polled.
    pub(crate) fn any_runnable(&self) -> bool {
        self.runnable.get() > 0
    }

    /// How many tasks there are.
    pub(crate) fn alive(&self) -> usize {
        let entries = self.entries.borrow();
        entries.slots.len() - entries.free.len()
    }

    /// Has every task polled once more.
    pub(crate) fn schedule_all(&self) {
        let count = self.entries.borrow().slots.len();
        for index in 0..count {
            if self.entries.borrow().slots[index].alive {
                self.schedule(index);
            }
        }
    }
}

/// What the wakers of one task point to.
struct TaskCell {
    shared: Arc<Shared>,
    index: usize,
    /// It is in the shard's queue of wakers.
    queued: AtomicBool,
    /// The task has ended; its index may be another task's by now. Set on the shard, read there.
    ended: AtomicBool,
}

impl Wake for TaskCell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken_here = local::with_current(|local| {
            if !Arc::ptr_eq(local.handle.shared(), &self.shared) {
                return false;
            }
            if self.queued.load(Ordering::Relaxed) {
                // Read and written at once, and before the task is polled: what was done before a
                // wake that found this set is seen by that poll, and a later wake queues it anew.
                self.queued.swap(false, Ordering::AcqRel);
            }
            if !self.ended.load(Ordering::Relaxed) {
                local.tasks.schedule(self.index);
            }
            true
        });
        if woken_here != Some(true)
            && !self.shared.is_detached()
            && !self.queued.swap(true, Ordering::AcqRel)
        {
            self.shared.queue_wake(Waker::from(self.clone()));
        }
    }
}

pin_project! {
    /// A task's future, with the waker that it is polled with.
    struct Shell<F> {
        #[pin]
        future: F,
        cell: Arc<TaskCell>,
        waker: Waker,
    }

    impl<F> PinnedDrop for Shell<F> {
        fn drop(this: Pin<&mut Self>) {
            let cell = &this.cell;
            cell.ended.store(true, Ordering::Relaxed);
            local::with_current(|local| local.tasks.end(cell.index));
        }
    }
}

impl<F: Future<Output = ()>> Future for Shell<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let ending = local::with_current(|local| {
            local.tasks.begin_poll(this.cell.index, cx.waker());
            local.ending.get()
        });
        if ending == Some(true) {
            return Poll::Ready(());
        }
        this.future.poll(&mut Context::from_waker(this.waker))
    }
}
