//! Starting and ending a shard.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use rustix::process::{Resource, getrlimit};

use crate::driver::{Driver, Source};
use crate::local::Local;
use crate::{ShardError, ShardHandle, task};

/// Locked memory that the executor's three rings need.
const LOCKED_BYTES_MIN: u64 = 512 * 1024;

/// How often the executor leaves its tasks to look at its own rings: hardly ever. Nothing here waits for
/// those (see the driver). Each look costs some five system calls (at 300 requests a second: 124 µs of
/// CPU each with 1 ms, 97 µs with 10 ms), and is a chance for a mistaken park: with 1 ms, on a crowded
/// machine, a shard was seen to hang with every guard used up.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// How a shard runs.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its number, from 0 on; in the thread's name, and in errors.
    pub id: usize,
    /// The CPU that its thread is pinned to; `None` leaves that to the kernel.
    pub cpu: Option<usize>,
    /// For how long at most it looks for work before it sleeps, when the gaps between work have been
    /// shorter than that. At most 50 µs; zero always sleeps.
    pub spin: Duration,
}

impl ShardConfig {
    /// A shard that floats, and spins for as long as that has been found to pay.
    pub fn new(id: usize) -> Self {
        Self { id, cpu: None, spin: crate::spin::SPIN_MAX }
    }
}

/// What the `main` of a shard gets. It stays on the shard's thread.
#[derive(Clone)]
pub struct ShardContext {
    local: Rc<Local>,
}

impl ShardContext {
    /// The way into this shard from other threads.
    pub fn handle(&self) -> ShardHandle {
        self.local.handle.clone()
    }

    /// Adds a source to the driver's turn, for as long as the shard lives.
    pub fn add_source(&self, source: Box<dyn Source>) {
        self.local.sources_new.borrow_mut().push(source);
    }
}

impl fmt::Debug for ShardContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ShardContext").field(&self.local.handle).finish()
    }
}

/// A running shard.
#[derive(Debug)]
pub struct ShardThread {
    handle: ShardHandle,
    thread: JoinHandle<()>,
}

impl ShardThread {
    /// The way into the shard.
    pub fn handle(&self) -> ShardHandle {
        self.handle.clone()
    }

    /// Whether the shard has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until its `main` has returned and its tasks are dropped.
    ///
    /// # Errors
    /// [`ShardError::Panicked`].
    pub fn join(self) -> Result<(), ShardError> {
        let id = self.handle.id();
        self.thread
            .join()
            .map_err(|panic| ShardError::Panicked { id, message: panic_message(&*panic) })
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

/// Starts a shard on a thread of its own, and runs `main` there beside the driver. When `main` has
/// returned every other task of the shard is dropped, and the thread ends. Returns when the executor
/// stands.
///
/// # Errors
/// [`ShardError::LockedMemory`] when the process may lock less than 512 KiB of memory,
/// [`ShardError::Executor`] without io_uring or with a CPU that is not there,
/// [`ShardError::System`] without descriptors or threads.
pub fn start<F, Fut>(config: ShardConfig, main: F) -> Result<ShardThread, ShardError>
where
    F: FnOnce(ShardContext) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    start_with(config, PREEMPT_TIMER, main)
}

fn start_with<F, Fut>(
    config: ShardConfig,
    preempt_timer: Duration,
    main: F,
) -> Result<ShardThread, ShardError>
where
    F: FnOnce(ShardContext) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let id = config.id;
    check_locked_memory(id)?;
    let handle = ShardHandle::new(id).map_err(|source| ShardError::System {
        id,
        what: "making the doorbell",
        source: source.into(),
    })?;
    let (started, start_result) = mpsc::channel();
    let inside = handle.clone();
    let thread = std::thread::Builder::new()
        .name(format!("shard-{id}"))
        .spawn(move || match prepare(&config, preempt_timer, inside) {
            Ok((executor, local)) => {
                // Who waits for it is `start` itself, below.
                let _ = started.send(Ok(()));
                run(&executor, local, config.spin, main);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        })
        .map_err(|source| ShardError::System { id, what: "starting its thread", source })?;
    match start_result.recv() {
        Ok(Ok(())) => Ok(ShardThread { handle, thread }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => {
            let message = match thread.join() {
                Ok(()) => "it ended before it started".to_owned(),
                Err(panic) => panic_message(&*panic),
            };
            Err(ShardError::Panicked { id, message })
        }
    }
}

fn check_locked_memory(id: usize) -> Result<(), ShardError> {
    match getrlimit(Resource::Memlock).current {
        Some(limit_bytes) if limit_bytes < LOCKED_BYTES_MIN => {
            Err(ShardError::LockedMemory { id, limit_bytes, needed_bytes: LOCKED_BYTES_MIN })
        }
        _ => Ok(()),
    }
}

fn prepare(
    config: &ShardConfig,
    preempt_timer: Duration,
    handle: ShardHandle,
) -> Result<(LocalExecutor, Rc<Local>), ShardError> {
    let id = config.id;
    let placement = config.cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{id}"))
        .preempt_timer(preempt_timer)
        // The least that there is: its files and buffers are not used.
        .io_memory(64 * 1024)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|error| ShardError::Executor { id, reason: error.to_string() })?;
    let local = Local::new(handle).map_err(|source| ShardError::System {
        id,
        what: "making the epoll descriptor",
        source: source.into(),
    })?;
    Ok((executor, local))
}

fn run<F, Fut>(executor: &LocalExecutor, local: Rc<Local>, spin: Duration, main: F)
where
    F: FnOnce(ShardContext) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let entered = local.enter();
    let detach = Detach(local.handle.clone());
    executor.run(async {
        let main = main(ShardContext { local: local.clone() });
        let ending = local.clone();
        task::spawn(async move {
            main.await;
            ending.ending.set(true);
        });
        Driver::new(local.clone(), spin).await;
    });
    // What the tasks left to be woken is dropped while this still is the shard's thread.
    drop(detach);
    drop(entered);
}

/// Ends the queue of wakers, also when a task has panicked.
struct Detach(ShardHandle);

impl Drop for Detach {
    fn drop(&mut self) {
        self.0.shared().detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::bounded;

    #[test]
    fn with_a_preempt_timer_so_short_that_the_executor_parks_by_mistake_nothing_hangs() {
        // Now and then this has fired before the first task was looked at, which is when glommio parks
        // with runnable tasks. With a much shorter one, a crowded machine lets it fire so often in a row
        // that the guards are used up. What a guard does is tested by itself, in the driver.
        const MESSAGES: u64 = 20_000;
        let (give, sender) = mpsc::channel();
        let shard = start_with(ShardConfig::new(7), Duration::from_micros(200), move |context| {
            let (sender, mut receiver) = bounded::<u64>(1, &context.handle());
            let _ = give.send(sender);
            async move {
                let mut next = 0;
                while let Some(message) = receiver.recv().await {
                    assert_eq!(message, next);
                    next += 1;
                    crate::task::yield_now().await;
                }
                assert_eq!(next, MESSAGES);
            }
        })
        .unwrap();
        let sender = sender.recv().unwrap();
        for message in 0..MESSAGES {
            while sender.try_send(message).is_err() {
                std::thread::yield_now();
            }
        }
        drop(sender);
        shard.join().unwrap();
    }
}
