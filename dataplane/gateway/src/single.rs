//! One piece of work per key, however many ask for its result at the same time.

use std::cell::RefCell;
use std::future::Future;
use std::hash::Hash;
use std::rc::Rc;

use hashbrown::HashMap;

use crate::flight::progress::Progress;

struct Work<V> {
    result: RefCell<Option<V>>,
    progress: Progress,
}

/// Runs `work` on a task of its own, so that it comes to its end also when who waits for it leaves.
///
/// A name that was sent to its database is committed whatever becomes of the request; what belongs to
/// it must not be dropped half-way.
pub(crate) async fn to_the_end<V: 'static>(work: impl Future<Output = V> + 'static) -> V {
    let done: Rc<Work<V>> =
        Rc::new(Work { result: RefCell::new(None), progress: Progress::default() });
    let end = done.clone();
    outrider_shard::task::spawn(async move {
        *end.result.borrow_mut() = Some(work.await);
        end.progress.notify();
    });
    loop {
        let generation = done.progress.generation();
        if let Some(value) = done.result.borrow_mut().take() {
            return value;
        }
        done.progress.past(generation).await;
    }
}

/// Joins equal work. Local to a shard.
pub(crate) struct Single<K, V> {
    running: Rc<RefCell<HashMap<K, Rc<Work<V>>>>>,
}

impl<K, V> Default for Single<K, V> {
    fn default() -> Self {
        Self { running: Rc::default() }
    }
}

impl<K: Clone + Eq + Hash + 'static, V: Clone + 'static> Single<K, V> {
    /// The result of the work under way for `key`, or of `start()`, which runs on a task of its own:
    /// who asked first may leave without hurting the others.
    pub(crate) async fn run<F>(&self, key: K, start: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + 'static,
    {
        let known = self.running.borrow().get(&key).cloned();
        let work = known.unwrap_or_else(|| self.start(key, start()));
        loop {
            let generation = work.progress.generation();
            if let Some(value) = work.result.borrow().as_ref() {
                return value.clone();
            }
            work.progress.past(generation).await;
        }
    }

    /// How much is under way.
    pub(crate) fn len(&self) -> usize {
        self.running.borrow().len()
    }

    /// Whether work for `key` is under way.
    pub(crate) fn is_running(&self, key: &K) -> bool {
        self.running.borrow().contains_key(key)
    }

    fn start(&self, key: K, future: impl Future<Output = V> + 'static) -> Rc<Work<V>> {
        let work = Rc::new(Work { result: RefCell::new(None), progress: Progress::default() });
        self.running.borrow_mut().insert(key.clone(), work.clone());
        let (running, done) = (self.running.clone(), work.clone());
        outrider_shard::task::spawn(async move {
            let value = future.await;
            running.borrow_mut().remove(&key);
            *done.result.borrow_mut() = Some(value);
            done.progress.notify();
        });
        work
    }
}
