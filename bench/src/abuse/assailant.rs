//! The thread that attacks: at a rate, on the CPU of the load, with what that leaves of it at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use outrider_hostile::{Attack, Attacker, Closed, Target};
use rustix::time::{ClockId, clock_gettime};

use crate::{BenchError, machine};

/// Strikes in a row before the clock is looked at again.
const BURST: u64 = 16;
/// How long it sleeps when nothing is due.
const NAP: Duration = Duration::from_micros(200);
/// How long clients may take to be there.
const GATHERING_MAX: Duration = Duration::from_secs(120);

/// What an attack came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) strikes_per_s: f64,
    pub(super) connections_per_s: f64,
    pub(super) cores: f64,
    pub(super) closed: BTreeMap<String, u64>,
}

/// A running attack.
pub(super) struct Assailant {
    thread: JoinHandle<Result<Done, BenchError>>,
    over: Arc<AtomicBool>,
    /// Connections that it has, and strikes that it made.
    open: Arc<AtomicUsize>,
    strikes: Arc<AtomicU64>,
}

impl Assailant {
    /// Starts one, and waits until it has struck and, of many clients, has most.
    pub(super) fn start(
        attack: Attack,
        target: Target,
        rate_per_s: f64,
        cpu: usize,
    ) -> Result<Self, BenchError> {
        let (over, open, strikes) = (Arc::default(), Arc::default(), Arc::default());
        let wanted = if attack == Attack::SlowReaders { target.readers * 9 / 10 } else { 0 };
        let thread = {
            let (over, open, strikes) =
                (Arc::clone(&over), Arc::clone(&open), Arc::clone(&strikes));
            thread::Builder::new()
                .name("assailant".to_owned())
                .spawn(move || {
                    machine::pin(cpu)?;
                    machine::run_when_idle()?;
                    run(attack, target, rate_per_s, &over, &open, &strikes)
                })
                .map_err(BenchError::io("starting a thread"))?
        };
        let assailant = Self { thread, over, open, strikes };
        let since = Instant::now();
        while assailant.strikes.load(Ordering::Relaxed) == 0
            || assailant.open.load(Ordering::Relaxed) < wanted
        {
            if assailant.thread.is_finished() || since.elapsed() > GATHERING_MAX {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(assailant)
    }

    /// Ends it.
    pub(super) fn stop(self) -> Result<Done, BenchError> {
        self.over.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| BenchError::Void("the thread of the attack panicked".to_owned()))?
    }
}

fn run(
    attack: Attack,
    target: Target,
    rate_per_s: f64,
    over: &AtomicBool,
    open: &AtomicUsize,
    strikes: &AtomicU64,
) -> Result<Done, BenchError> {
    let failed = || BenchError::io(format!("attacking by {}", attack.name()));
    let mut attacker = Attacker::new(attack, target).map_err(failed())?;
    let (begun, cpu_before) = (Instant::now(), cpu());
    // Turns count, not strikes: what waits for a handshake is no reason to hurry.
    let mut turns = 0_u64;
    while !over.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * rate_per_s) as u64;
        if turns >= due {
            thread::sleep(NAP);
            continue;
        }
        // What could not be done in time is not made up for.
        turns = turns.max(due.saturating_sub(2 * BURST));
        for _ in 0..BURST.min(due - turns) {
            attacker.strike().map_err(failed())?;
            turns += 1;
        }
        open.store(attacker.open(), Ordering::Relaxed);
        strikes.store(attacker.strikes, Ordering::Relaxed);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let name = |closed: &Closed| closed.to_string();
    let mut closed = BTreeMap::new();
    for (why, count) in &attacker.closed {
        *closed.entry(name(why)).or_default() += *count;
    }
    let done = Done {
        strikes_per_s: attacker.strikes as f64 / seconds,
        connections_per_s: attacker.connections as f64 / seconds,
        cores: (cpu() - cpu_before).as_secs_f64() / seconds,
        closed,
    };
    attacker.leave();
    Ok(done)
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanoseconds)
}
