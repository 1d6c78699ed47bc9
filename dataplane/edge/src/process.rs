//! This process as the system sees it: its limits, its CPUs, what it uses.
//!
//! Limits are raised from soft to hard at the start, since that needs no privilege; what is still too
//! low is said with what to set.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

/// File descriptors besides those of clients' connections: stripes, rings, the names database, upstreams.
const DESCRIPTORS_RESERVED: u64 = 512;

/// Raises a limit to the most that is allowed; gives what it is then, None for no limit.
fn raise(resource: Resource) -> Option<u64> {
    let limit = getrlimit(resource);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(resource, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Makes room for `wanted` connections on each of `listeners`; gives for how many there is.
pub(crate) fn raise_descriptors(wanted: usize, listeners: usize) -> usize {
    let possible = connections_possible(raise(Resource::Nofile), listeners);
    if possible < wanted {
        tracing::info!(
            wanted,
            possible,
            "fewer files may be open than limits.connections needs, so fewer connections are taken on each \
             listener; for all of them raise LimitNOFILE in the systemd unit (ulimit -n)"
        );
    }
    wanted.min(possible)
}

/// How many connections each listener may take with this limit of open files; at least one.
fn connections_possible(limit: Option<u64>, listeners: usize) -> usize {
    let free = limit.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_RESERVED);
    usize::try_from(free / listeners.max(1) as u64).unwrap_or(usize::MAX).max(1)
}

/// Lets as much memory be locked as is allowed.
pub(crate) fn raise_locked_memory() {
    raise(Resource::Memlock);
}

/// The CPUs that this process may run on, in order.
pub(crate) fn cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

/// What this process uses, under the names that every Prometheus client library gives it.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    started_unix_s: f64,
    clock_ticks_per_s: f64,
    page_bytes: u64,
}

impl ProcessMetrics {
    pub(crate) fn new() -> ProcessMetrics {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ProcessMetrics {
            started_unix_s: started.as_secs_f64(),
            clock_ticks_per_s: rustix::param::clock_ticks_per_second() as f64,
            page_bytes: rustix::param::page_size() as u64,
        }
    }
}

/// CPU time in clock ticks and resident pages, from `/proc/self/stat`.
fn cpu_ticks_and_pages(stat: &str) -> Option<(u64, u64)> {
    // The second field is the program's name in parentheses, which may hold spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // Counted from the third field, `state`: utime is field 14, stime 15, rss 24 of proc(5).
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let pages: u64 = fields.nth(8)?.parse().ok()?;
    Some((user + system, pages))
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some((ticks, pages)) = cpu_ticks_and_pages(&stat) {
            let cpu = ConstCounter::new(ticks as f64 / self.clock_ticks_per_s);
            let help = "CPU time of this process, user and system";
            cpu.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                cpu.metric_type(),
            )?)?;
            let resident =
                ConstGauge::new(i64::try_from(pages * self.page_bytes).unwrap_or(i64::MAX));
            resident.encode(encoder.encode_descriptor(
                "process_resident_memory",
                "Resident memory of this process",
                Some(&Unit::Bytes),
                resident.metric_type(),
            )?)?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            let open = ConstGauge::new(i64::try_from(entries.count()).unwrap_or(i64::MAX));
            let help = "Open file descriptors of this process";
            open.encode(encoder.encode_descriptor(
                "process_open_fds",
                help,
                None,
                open.metric_type(),
            )?)?;
        }
        let started = ConstGauge::new(self.started_unix_s);
        started.encode(encoder.encode_descriptor(
            "process_start_time",
            "When this process started, since 1970",
            Some(&Unit::Seconds),
            started.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn the_program_may_have_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 4 0 1 9 555 18446744073709551615";
        assert_eq!(cpu_ticks_and_pages(stat), Some((42, 555)));
        assert_eq!(cpu_ticks_and_pages(""), None);
    }

    #[test]
    fn what_the_process_uses_has_its_usual_names() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::new()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for name in [
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_start_time_seconds ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "no {name}in {text}");
        }
    }

    #[test]
    fn connections_leave_room_for_other_files() {
        assert_eq!(connections_possible(Some(20_512), 2), 10_000);
        assert_eq!(connections_possible(Some(1_024), 2), 256);
        assert_eq!(connections_possible(Some(100), 1), 1);
        assert!(connections_possible(None, 2) > 1_000_000);
    }

    #[test]
    fn there_is_a_cpu_to_run_on() {
        assert!(!cpus().is_empty());
    }
}
