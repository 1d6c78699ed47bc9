//! Writes the replica behind the stream: what came while one transaction was synced is the next one. A replica
//! that is older on the disk costs nothing but being told again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use outrider_push::Item;

use crate::store::{Batch, Store};

/// Bytes that wait for the disk; then the stream waits too.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks whether the edge ends, while something else must be durable first.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
/// How long that is waited for when the edge ends.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(2);

/// Whether something is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is.
    Yes,
    /// Not yet.
    NotYet,
    /// It will not be.
    Never,
}

/// Waits for so long until something else is durable. Then the position behind which it must not be missing is written.
pub type Settling = Box<dyn FnMut(Duration) -> Settled + Send>;

/// The thread that writes.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Option<Batch>,
    /// What has to be durable before it.
    settling: Vec<Settling>,
    bytes: usize,
    stop: bool,
    stored: u64,
    failure: Option<String>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has none.
    pub fn start(store: Store, position: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().stored = position;
        let own = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("replica".to_owned()).spawn(move || run(&store, &own))?;
        Ok(Self { shared, thread })
    }

    /// Gives it what is to be written, once what is `settling` is durable. Waits only when the disk is far behind. After an error of the disk nothing
    /// is written any more, since a transaction would be missing.
    pub fn add(&self, batch: Batch, settling: Option<Settling>) {
        let full = |state: &mut State| state.bytes > WAITING_BYTES_MAX && state.failure.is_none();
        let state = self.shared.changed.wait_while(self.shared.lock(), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.failure.is_none() {
            let bytes: usize = batch.items.iter().map(Item::bytes).sum();
            state.bytes = if batch.whole { bytes } else { state.bytes + bytes };
            merge(&mut state.waiting, batch);
            state.settling.extend(settling);
            self.shared.changed.notify_all();
        }
    }

    /// The position that is on the disk, and what went wrong.
    pub fn stored(&self) -> (u64, Option<String>) {
        let state = self.shared.lock();
        (state.stored, state.failure.clone())
    }

    /// Writes what waits, and ends.
    pub fn stop(self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the replica has panicked");
        }
    }
}

fn merge(waiting: &mut Option<Batch>, batch: Batch) {
    match waiting {
        Some(before) if !batch.whole => {
            before.position = batch.position;
            before.invalidated = batch.invalidated;
            before.items.extend(batch.items);
        }
        _ => *waiting = Some(batch),
    }
}

fn run(store: &Store, shared: &Shared) {
    let mut state = shared.lock();
    loop {
        let idle = |state: &mut State| state.waiting.is_none() && !state.stop;
        state = shared.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let Some(batch) = state.waiting.take() else { return };
        state.bytes = 0;
        let settling = std::mem::take(&mut state.settling);
        drop(state);
        shared.changed.notify_all();
        if !settling.into_iter().all(|settling| settle(shared, settling)) {
            state = shared.lock();
            state.failure = Some("what is invalidated was not forgotten for good".to_owned());
            state.waiting = None;
            shared.changed.notify_all();
            return;
        }
        let written = store.write(&batch);
        state = shared.lock();
        match written {
            Ok(()) => state.stored = batch.position,
            Err(error) => {
                tracing::error!(%error, "the replica cannot be written; the edge goes on in memory");
                state.failure = Some(error.to_string());
                state.waiting = None;
                shared.changed.notify_all();
                return;
            }
        }
        let pause = shared.changed.wait_timeout_while(state, PAUSE, |state| !state.stop);
        state = pause.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Waits until it is durable; false when it will not be.
fn settle(shared: &Shared, mut settling: Settling) -> bool {
    let mut left = SETTLE_TIME_MAX;
    loop {
        match settling(SETTLE_PAUSE) {
            Settled::Yes => return true,
            Settled::Never => return false,
            Settled::NotYet if left.is_zero() => return false,
            Settled::NotYet if shared.lock().stop => left = left.saturating_sub(SETTLE_PAUSE),
            Settled::NotYet => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_push::Replica;

    use super::*;

    fn put(version: u64) -> Batch {
        let item = Item::Fragment { key: "k".to_owned(), version, value: Some(vec![1]) };
        let (cluster, position, invalidated) = ([1; 16], version, version);
        Batch { whole: false, cluster, position, invalidated, items: vec![item] }
    }

    #[test]
    fn what_was_given_before_the_end_is_on_the_disk_and_a_whole_one_replaces_what_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replica.redb");
        let (store, replica) = Store::open(&path, b"").unwrap();
        let keeper = Keeper::start(store, replica.position).unwrap();
        (1..=200).for_each(|version| keeper.add(put(version), None));
        keeper.stop();
        let (store, replica) = Store::open(&path, b"").unwrap();
        assert_eq!(replica, Replica::of([1; 16], 200, put(200).items));
        let keeper = Keeper::start(store, replica.position).unwrap();
        assert_eq!(keeper.stored(), (200, None));
        keeper.add(put(201), None);
        let whole = Batch { whole: true, cluster: [2; 16], items: Vec::new(), ..put(7) };
        keeper.add(whole, None);
        keeper.add(Batch { cluster: [2; 16], ..put(8) }, None);
        keeper.stop();
        let (_, replica) = Store::open(&path, b"").unwrap();
        assert_eq!(replica, Replica::of([2; 16], 8, put(8).items));
    }

    #[test]
    fn a_position_is_not_written_before_what_must_be_durable_by_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replica.redb");
        let (store, _) = Store::open(&path, b"").unwrap();
        let keeper = Keeper::start(store, 0).unwrap();
        keeper.add(put(1), None);
        while keeper.stored().0 < 1 {
            thread::yield_now();
        }
        let (sender, asked) = std::sync::mpsc::channel();
        let (answers, answer) = std::sync::mpsc::channel();
        let settling: Settling = Box::new(move |_| {
            sender.send(()).unwrap();
            answer.recv().unwrap()
        });
        keeper.add(put(2), Some(settling));
        keeper.add(put(3), None);
        for _ in 0..3 {
            asked.recv().unwrap();
            assert_eq!(keeper.stored(), (1, None));
            answers.send(Settled::NotYet).unwrap();
        }
        asked.recv().unwrap();
        answers.send(Settled::Yes).unwrap();
        while keeper.stored().0 < 3 {
            thread::yield_now();
        }
        // What never is durable is asked for again by the next start.
        keeper.add(put(4), Some(Box::new(|_| Settled::Never)));
        keeper.stop();
        assert_eq!(Store::open(&path, b"").unwrap().1.position, 3);
    }
}
