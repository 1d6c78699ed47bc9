//! This machine's clock, which may be set by years and back while the process runs. What is stored and agreed on goes by no
//! clock; certificates, tokens and the age of what upstreams said do.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What is less than this is no more than a clock that is kept right.
const STEP_LEAST: Duration = Duration::from_secs(60);
/// For how long a step is told of.
const TOLD_TIME: Duration = Duration::from_secs(3_600);

/// What the clock said when this was first asked, and what has gone by since: it is set by nobody.
pub fn steady() -> SystemTime {
    static START: OnceLock<(Instant, SystemTime)> = OnceLock::new();
    let (at, time) = START.get_or_init(|| (Instant::now(), SystemTime::now()));
    *time + at.elapsed()
}

/// The later one of what the clock says and of [`steady`]: what is signed by it lasts by both.
pub fn later() -> SystemTime {
    SystemTime::now().max(steady())
}

/// By how many seconds the clock was last set, ahead or back; 0 when it was not within the last hour. A machine that
/// slept looks the same as one whose clock was set ahead.
pub fn stepped_s() -> i64 {
    static WATCH: OnceLock<Mutex<Watch>> = OnceLock::new();
    // What goes steadily begins no later than this.
    steady();
    let (at, now) = (Instant::now(), SystemTime::now());
    let watch = WATCH.get_or_init(|| Mutex::new(Watch { base: (at, now), step: None }));
    watch.lock().unwrap_or_else(PoisonError::into_inner).look(at, now)
}

/// A clock beside one that goes evenly.
#[derive(Debug)]
struct Watch {
    /// Both of them at one moment, when the clock was not set since.
    base: (Instant, SystemTime),
    /// The last step, and when it was seen.
    step: Option<(Instant, i64)>,
}

impl Watch {
    fn look(&mut self, at: Instant, now: SystemTime) -> i64 {
        let expected = self.base.1 + at.saturating_duration_since(self.base.0);
        let (step, seconds) = match now.duration_since(expected) {
            Ok(ahead) => (ahead, seconds(ahead)),
            Err(behind) => (behind.duration(), -seconds(behind.duration())),
        };
        if step >= STEP_LEAST {
            self.step = Some((at, seconds));
            self.base = (at, now);
        }
        let told = self.step.filter(|(since, _)| at.saturating_duration_since(*since) < TOLD_TIME);
        told.map_or(0, |(_, seconds)| seconds)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_for_an_hour_and_a_clock_that_is_kept_right_is_none() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let says = |seconds: u64| wall + Duration::from_secs(seconds);
        let mut watch = Watch { base: (start, wall), step: None };
        assert_eq!(watch.look(at(100), says(100)), 0);
        assert_eq!(watch.look(at(200), says(210)), 0, "it was ten seconds behind");
        assert_eq!(watch.look(at(300), says(400)), 100);
        assert_eq!(watch.look(at(500), says(600)), 100);
        assert_eq!(watch.look(at(600), says(600)), -100, "it was set back");
        assert_eq!(watch.look(at(4_199), says(4_199)), -100);
        assert_eq!(watch.look(at(4_200), says(4_200)), 0);
        assert_eq!(watch.look(at(4_300), wall - Duration::from_secs(1_000)), -5_300);
    }
}
