//! The driver: the one task of the executor that is always runnable, and alone lets the thread sleep.
//!
//! One turn: sources → queued wakes → deadlines → descriptors → everybody else. When no task can run
//! it spins for a moment, if the gaps have been short, and then sleeps in `epoll_wait` until a
//! descriptor, the doorbell or a deadline ends that.
//!
//! The executor's own park is never used, for two reasons. It costs about eight system calls where
//! this costs one. And glommio 0.9 can park with runnable tasks: when its preempt timer fires between
//! arming it and running the first task, it takes "ran nothing" for "has nothing to run". That cannot
//! be switched off from here, so the driver keeps guards: timers of the executor that are always
//! armed a little ahead and never come to fire while turns follow each other. A park by mistake ends
//! with the next of them, and is counted. An idle shard needs no timer: while it sleeps here, it is not in the
//! executor.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use glommio::timer::Timer;

use crate::local::Local;
use crate::spin::Spin;

/// How long a mistaken park of the executor lasts; the n-th in a row, without any task having run
/// between them.
const GUARDS: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(125),
    Duration::from_secs(1),
];

/// How old the guards may get before they are moved ahead.
const GUARD_AGE_MAX: Duration = Duration::from_millis(1);

/// How long the thread sleeps at most while a source has something in flight. Its completion rings
/// the doorbell; this is for the case that it does not.
const TICK: Duration = Duration::from_millis(5);

/// Turns that the tasks of an ending shard get to be dropped. A task is dropped at its first poll, so
/// that two are enough; more are there for tasks that are made by the dropping.
const ENDING_TURNS_MAX: usize = 64;

/// Something that the driver turns over: a ring, a socket, a queue between shards.
pub trait Source {
    /// Takes what is ready without waiting, within some 100 µs; true when there was something. It is
    /// called in every turn, also just before the shard sleeps, so it should cost next to nothing
    /// when there is nothing.
    fn turn(&mut self) -> bool;

    /// Whether something is under way whose completion rings the doorbell. While it is, the shard
    /// sleeps for 5 ms at most.
    fn in_flight(&self) -> bool;

    /// When it wants its turn though nothing happens: the shard does not sleep beyond that, by more
    /// than a millisecond. `None` is never.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

pub(crate) struct Driver {
    local: Rc<Local>,
    sources: Vec<Box<dyn Source>>,
    spin: Spin,
    guard: Guard,
    fired: Vec<Waker>,
    ending_turns: usize,
}

impl Driver {
    pub(crate) fn new(local: Rc<Local>, spin: Duration) -> Self {
        Self {
            local,
            sources: Vec::new(),
            spin: Spin::new(spin),
            guard: Guard::default(),
            fired: Vec::new(),
            ending_turns: 0,
        }
    }

    fn turn_sources(&mut self) -> bool {
        let mut progress = false;
        for source in &mut self.sources {
            progress |= source.turn();
        }
        progress
    }

    fn fire_deadlines(&mut self, now: Instant) {
        let due = self.local.deadlines.borrow().next().is_some_and(|next| next <= now);
        if due {
            self.local.deadlines.borrow_mut().fire(now, &mut self.fired);
            for waker in self.fired.drain(..) {
                waker.wake();
            }
        }
    }

    /// Waits until there is something to do; gives the time at which it found it.
    fn idle(&mut self, started: Instant) -> Instant {
        let woken_at = self.spin_for_work(started).unwrap_or_else(|| self.sleep_for_work());
        self.spin.note_gap(woken_at - started);
        woken_at
    }

    fn spin_for_work(&mut self, started: Instant) -> Option<Instant> {
        let budget = self.spin.budget();
        if budget.is_zero() {
            return None;
        }
        let mut found = false;
        let mut spun = Duration::ZERO;
        while !found && spun < budget {
            std::hint::spin_loop();
            found = self.local.reactor.wait(Some(Duration::ZERO))
                || self.local.handle.shared().run_wakes()
                || self.turn_sources();
            spun = started.elapsed();
        }
        self.local.handle.stats().count_spin(found);
        found.then_some(started + spun)
    }

    /// Sleeps, over and over if need be: what ends a sleep without bringing work (a signal, a timer
    /// that the executor has left behind, the tick of a source) leads back to sleep and not through
    /// the executor, which would arm its timer again.
    fn sleep_for_work(&mut self) -> Instant {
        loop {
            let shared = self.local.handle.shared().clone();
            let called = shared.prepare_to_sleep();
            let mut found = called || self.turn_sources() || self.local.tasks.any_runnable();
            if !found {
                shared.stats().count_park();
                let timeout = self.sleep_max(Instant::now());
                found = self.local.reactor.wait(timeout);
            }
            shared.wake_up();
            let now = Instant::now();
            let due = self.next_deadline().is_some_and(|next| next <= now);
            if found || due {
                return now;
            }
        }
    }

    /// The next deadline of a task or of a source.
    fn next_deadline(&self) -> Option<Instant> {
        let of_tasks = self.local.deadlines.borrow().next();
        self.sources.iter().filter_map(|source| source.deadline()).chain(of_tasks).min()
    }

    fn sleep_max(&self, now: Instant) -> Option<Duration> {
        let next = self.next_deadline();
        let until_next = next.map(|next| next.saturating_duration_since(now));
        let tick = self.sources.iter().any(|source| source.in_flight()).then_some(TICK);
        match (until_next, tick) {
            (Some(next), Some(tick)) => Some(next.min(tick)),
            (next, tick) => next.or(tick),
        }
    }

    /// Lets every task end; true when all have.
    fn end_tasks(&mut self) -> bool {
        self.sources.clear();
        if self.ending_turns == 0 {
            self.local.tasks.schedule_all();
        }
        self.ending_turns += 1;
        self.local.tasks.alive() == 0 || self.ending_turns > ENDING_TURNS_MAX
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let local = this.local.clone();
        let shared = local.handle.shared();
        let mut now = Instant::now();
        shared.stats().count_turn();
        if this.guard.is_overdue(now) {
            shared.stats().count_stall();
        }
        if local.ending.get() {
            if this.end_tasks() {
                return Poll::Ready(());
            }
        } else {
            this.sources.append(&mut local.sources_new.borrow_mut());
            let mut progress = this.turn_sources();
            progress |= shared.run_wakes();
            this.fire_deadlines(now);
            if progress || local.tasks.any_runnable() {
                local.reactor.wait(Some(Duration::ZERO));
            } else {
                now = this.idle(now);
            }
        }
        this.guard.keep_ahead(now, cx);
        local.turn_at.set(now);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Timers of the executor that are armed ahead of the driver's next turn. More than one, since the
/// executor may park by mistake again right after the first has ended that: before the driver has
/// come to its turn and armed it anew.
#[derive(Default)]
struct Guard {
    timers: Vec<Timer>,
    armed_at: Option<Instant>,
}

impl Guard {
    fn keep_ahead(&mut self, now: Instant, cx: &mut Context<'_>) {
        if self.armed_at.is_some_and(|armed_at| now < armed_at + GUARD_AGE_MAX) {
            return;
        }
        if self.timers.is_empty() {
            self.timers.extend(GUARDS.map(Timer::new));
        }
        for (timer, ahead) in self.timers.iter_mut().zip(GUARDS) {
            timer.reset(ahead);
            // Its first poll arms it; the later ones find it armed and not due.
            let _ = Pin::new(timer).poll(cx);
        }
        self.armed_at = Some(now);
    }

    /// Whether the first guard's time has passed since the end of the last turn.
    fn is_overdue(&self, now: Instant) -> bool {
        self.armed_at.is_some_and(|armed_at| now >= armed_at + GUARDS[0])
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use glommio::LocalExecutorBuilder;

    use super::*;

    #[test]
    fn each_guard_ends_a_park_of_the_executor() {
        // What a park by mistake is to the driver: it is not polled, though nothing was woken that could
        // end that. With each of the guards alone, since two that are late may end the same park. Without it this
        // never ends.
        for kept in 0..GUARDS.len() {
            let executor = LocalExecutorBuilder::default().io_memory(64 * 1024).make().unwrap();
            executor.run(async {
                let mut guard = Guard::default();
                let mut parked = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut parked, true) {
                        return Poll::Ready(());
                    }
                    guard.keep_ahead(Instant::now(), cx);
                    guard.timers = vec![guard.timers.swap_remove(kept)];
                    Poll::Pending
                })
                .await;
            });
        }
    }
}
