//! What one shard's thread keeps to itself: its tasks, its deadlines, its file descriptors.
//!
//! It is reached through a thread-local, so that a future needs no handle to sleep, to spawn or to
//! wait for a socket. No borrow is held while a waker is called, or a future is polled or dropped: any
//! of these may come back here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::deadlines::Deadlines;
use crate::driver::Source;
use crate::handle::{ShardHandle, Shared};
use crate::ready::Reactor;
use crate::task::Tasks;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

pub(crate) struct Local {
    pub(crate) handle: ShardHandle,
    pub(crate) tasks: Tasks,
    pub(crate) deadlines: RefCell<Deadlines>,
    pub(crate) reactor: Reactor,
    /// Sources that the driver has not taken over yet.
    pub(crate) sources_new: RefCell<Vec<Box<dyn Source>>>,
    /// `main` has returned: every task ends at its next poll.
    pub(crate) ending: Cell<bool>,
    /// When the driver last had its turn.
    pub(crate) turn_at: Cell<Instant>,
}

impl Local {
    pub(crate) fn new(handle: ShardHandle) -> rustix::io::Result<Rc<Self>> {
        let reactor = Reactor::new(handle.shared())?;
        Ok(Rc::new(Self {
            handle,
            tasks: Tasks::default(),
            deadlines: RefCell::default(),
            reactor,
            sources_new: RefCell::default(),
            ending: Cell::new(false),
            turn_at: Cell::new(Instant::now()),
        }))
    }

    /// Makes this the current shard of the thread until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "a thread runs one shard at a time");
            *current = Some(self.clone());
        });
        Entered(())
    }
}

/// Ends with the shard's thread.
pub(crate) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        let local = CURRENT.with_borrow_mut(Option::take);
        drop(local);
    }
}

/// Calls `call` with this thread's shard, if it has one and is not being torn down.
pub(crate) fn with_current<R>(call: impl FnOnce(&Rc<Local>) -> R) -> Option<R> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(call)).ok().flatten()
}

/// Whether this thread runs that shard.
pub(crate) fn is_current(shared: &Arc<Shared>) -> bool {
    with_current(|local| Arc::ptr_eq(local.handle.shared(), shared)) == Some(true)
}

/// This thread's shard.
///
/// # Panics
/// On a thread that is not a shard's: that is a mistake of the caller which no input can cause.
pub(crate) fn current(what: &str) -> Rc<Local> {
    match with_current(Rc::clone) {
        Some(local) => local,
        None => panic!("{what} works on a shard's own thread only"),
    }
}
