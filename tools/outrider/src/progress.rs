//! A progress bar of one line on stderr; without a terminal, only what goes wrong.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrider_artifact::Digest;
use outrider_client::Progress;

/// How often the line is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Columns of the bar itself.
const BAR_COLUMNS: u64 = 30;

/// How far it is.
#[derive(Debug)]
pub(crate) struct Bar {
    start: Instant,
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    /// What came over the network, for the rate.
    received_bytes: AtomicU64,
    /// One that is written at a time, so that a note does not end up within the bar.
    writing: Mutex<()>,
    terminal: bool,
}

impl Bar {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            total_bytes: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            writing: Mutex::new(()),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn say(&self, text: &str) {
        let _one = self.writing.lock();
        // Nobody is left to be told when stderr is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn line(&self) -> String {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        line(
            load(&self.done_bytes),
            load(&self.total_bytes),
            load(&self.received_bytes),
            self.start.elapsed(),
        )
    }
}

impl Progress for Bar {
    fn begin(&self, _digest: &Digest, size_bytes: Option<u64>, present_bytes: u64) {
        self.total_bytes.fetch_add(size_bytes.unwrap_or(0), Ordering::Relaxed);
        self.done_bytes.fetch_add(present_bytes, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn lose(&self, bytes: u64) {
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.done_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn note(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        self.say(&format!("{clear}outrider: {text}\n"));
    }
}

/// Draws a bar until it is dropped, and leaves an empty line.
#[derive(Debug)]
pub(crate) struct Drawing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Draws `bar` from a thread of its own, if there is a terminal.
pub(crate) fn draw(bar: &Arc<Bar>) -> Drawing {
    let stop = Arc::new(AtomicBool::new(false));
    let (bar, stopped) = (Arc::clone(bar), Arc::clone(&stop));
    let thread = bar.terminal.then(|| {
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                bar.say(&format!("\r{}\x1b[K", bar.line()));
                std::thread::park_timeout(DRAW_EVERY);
            }
            bar.say("\r\x1b[K");
        })
    });
    Drawing { stop, thread }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// The line. A total that is not known, or that was passed, makes no bar.
fn line(done: u64, total: u64, received: u64, elapsed: Duration) -> String {
    let rate = rate(received, elapsed);
    if total == 0 || done > total {
        return format!("{}  {rate}", size(done));
    }
    let filled = (u128::from(done) * u128::from(BAR_COLUMNS) / u128::from(total)) as usize;
    let bar: String =
        (0..BAR_COLUMNS as usize).map(|column| if column < filled { '=' } else { ' ' }).collect();
    let percent = u128::from(done) * 100 / u128::from(total);
    format!("[{bar}] {percent:>3} %  {} of {}  {rate}", size(done), size(total))
}

/// Bytes, time, and both together.
pub(crate) fn rate(bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let per_second = if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
    format!("{} in {seconds:.1} s, {:.1} MB/s", size(bytes), per_second / 1e6)
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_bar_is_as_full_as_the_work_is_done() {
        let text = line(5 * MIB, 10 * MIB, 5 * MIB, Duration::from_secs(2));
        let expected = format!("[{}{}]  50 %  5.0 MiB of 10.0 MiB", "=".repeat(15), " ".repeat(15));
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.ends_with("5.0 MiB in 2.0 s, 2.6 MB/s"), "{text}");
        assert!(line(MIB, MIB, MIB, Duration::ZERO).contains("100 %"));
    }

    #[test]
    fn what_is_not_known_makes_no_bar() {
        assert!(!line(5, 0, 5, Duration::from_secs(1)).contains('['));
        assert!(!line(5, 4, 5, Duration::from_secs(1)).contains('['));
    }

    #[test]
    fn what_was_lost_comes_off_and_never_below_nothing() {
        let bar = Bar::new();
        bar.begin(&Digest::sha256(b""), Some(100), 30);
        bar.add(20);
        bar.lose(10);
        assert!(bar.line().contains("40 %"), "{}", bar.line());
        bar.lose(1000);
        assert!(bar.line().contains("  0 %"), "{}", bar.line());
    }
}
