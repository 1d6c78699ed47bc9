//! Counters that several shards add to for every request.
//!
//! One atomic number that two cores add to moves between their caches each time, which costs more than
//! what is counted. These have a cell for each thread, on a cache line of its own, and are summed when
//! they are read.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::counter;

/// A counter for Prometheus. Adding to it is cheap on every thread; reading it sums [`CELLS`] numbers.
/// Clones share the number. 2 KiB each.
pub type Counter = counter::Counter<u64, Cells>;

/// Threads beyond this share cells, and are as right and a little slower.
pub const CELLS: usize = 16;

/// Two lines, since processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Padded(AtomicU64);

/// The cells of a [`Counter`].
#[derive(Default)]
pub struct Cells([Padded; CELLS]);

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cells").field(&counter::Atomic::get(self)).finish()
    }
}

thread_local! {
    /// The cell of this thread, once it has counted something.
    static CELL: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Cells are given to threads in turn, so that shards, which start together, get different ones.
fn cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    CELL.with(|cell| match cell.get() {
        usize::MAX => {
            let given = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS;
            cell.set(given);
            given
        }
        given => given,
    })
}

impl counter::Atomic<u64> for Cells {
    /// Gives what this thread's cell was before, which means nothing to anyone else.
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    fn inc_by(&self, v: u64) -> u64 {
        self.0[cell()].0.fetch_add(v, Ordering::Relaxed)
    }

    fn get(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_that_any_number_of_threads_count_is_lost() {
        let counter = Counter::default();
        thread::scope(|scope| {
            for thread in 0..3 * CELLS as u64 {
                let counter = counter.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        counter.inc();
                        counter.inc_by(thread);
                    }
                });
            }
        });
        let threads = 3 * CELLS as u64;
        assert_eq!(counter.get(), 1000 * (threads + threads * (threads - 1) / 2));
    }

    #[test]
    fn a_thread_counts_in_one_cell_and_cells_are_far_apart() {
        let counter = Counter::default();
        for _ in 0..100 {
            counter.inc();
        }
        let used = counter.inner().0.iter().filter(|cell| cell.0.load(Ordering::Relaxed) > 0);
        assert_eq!(used.count(), 1);
        assert!(size_of::<Padded>() >= 128);
    }
}
