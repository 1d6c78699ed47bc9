//! What `/proc` says of a process and its children: CPU time, memory, device reads, wake-ups. Reads
//! only; a process that is gone is an error and never a zero.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::BenchError;

/// Ticks and the scheduler's account may differ by so much without a thread having ended.
const TICKS_ERROR_MAX: Duration = Duration::from_millis(50);

/// What a process and its live descendants have used up to now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all threads: exact, by the scheduler's account, as long as no thread
    /// ends while it is measured; else in clock ticks.
    pub cpu: Duration,
    /// The same in clock ticks of 10 ms, those of ended threads too.
    ticks: Duration,
    /// Bytes that came from a block device (the page cache is not one).
    pub device_read_bytes: u64,
    /// How often a live thread slept and was woken.
    pub wakeups: u64,
}

impl Usage {
    /// A usage of CPU time alone.
    pub fn of_cpu(cpu: Duration) -> Self {
        Self { cpu, ticks: cpu, ..Self::default() }
    }

    /// What was used between `before` and this. A child that ended in between takes its own with it.
    pub fn since(&self, before: &Self) -> Self {
        let ticks = self.ticks.saturating_sub(before.ticks);
        let exact = self.cpu.saturating_sub(before.cpu);
        // A thread that ends takes its exact time with it, and its ticks not.
        let lost = exact + TICKS_ERROR_MAX < ticks;
        Self {
            cpu: if lost { ticks } else { exact },
            ticks,
            device_read_bytes: self.device_read_bytes.saturating_sub(before.device_read_bytes),
            wakeups: self.wakeups.saturating_sub(before.wakeups),
        }
    }
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All that is resident.
    pub resident_bytes: u64,
    /// Of it anonymous: heap, stacks, an arena.
    pub anonymous_bytes: u64,
    /// Of it mapped from files: the program itself.
    pub file_bytes: u64,
    /// The most that was ever resident.
    pub resident_bytes_max: u64,
}

/// Reads the usage of `pid` and its live descendants. Costs some 50 µs and a read of `/proc`.
///
/// # Errors
/// When the process is gone or is not ours to look at.
pub fn usage(pid: u32) -> Result<Usage, BenchError> {
    let mut usage = own_usage(pid)?;
    for child in descendants(pid) {
        // A child may end while it is looked for.
        if let Ok(child) = own_usage(child) {
            usage.cpu += child.cpu;
            usage.ticks += child.ticks;
            usage.device_read_bytes += child.device_read_bytes;
            usage.wakeups += child.wakeups;
        }
    }
    Ok(usage)
}

/// Reads the memory of one process.
///
/// # Errors
/// As [`usage`].
pub fn memory(pid: u32) -> Result<Memory, BenchError> {
    Ok(parse_memory(&read(pid, "status")?))
}

fn read(pid: u32, name: &str) -> Result<String, BenchError> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    fs::read_to_string(&path).map_err(BenchError::io(format!("reading {}", path.display())))
}

fn own_usage(pid: u32) -> Result<Usage, BenchError> {
    let stat = parse_stat(&read(pid, "stat")?, rustix::param::clock_ticks_per_second())
        .ok_or_else(|| BenchError::Protocol(format!("/proc/{pid}/stat has another form")))?;
    // /proc/PID/io needs more rights than the rest; without it there is no device rate.
    let device_read_bytes =
        read(pid, "io").ok().and_then(|io| number_after(&io, "read_bytes:")).unwrap_or_default();
    let (mut wakeups, mut exact_ns) = (0, 0);
    if let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) {
        for task in tasks.flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            wakeups += number_after(&status, "voluntary_ctxt_switches:").unwrap_or_default();
            // Nanoseconds on a CPU, nanoseconds waiting for one, turns. Absent in some kernels.
            let account = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns = account.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
            exact_ns += ns.unwrap_or_default();
        }
    }
    let cpu = if exact_ns > 0 { Duration::from_nanos(exact_ns) } else { stat.cpu };
    Ok(Usage { cpu, ticks: stat.cpu, device_read_bytes, wakeups })
}

/// Children, their children, and so on, as of now.
fn descendants(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(stat) = read(child, "stat").ok().and_then(|text| parse_stat(&text, 1)) {
            parents.push((child, stat.parent));
        }
    }
    let mut found = vec![pid];
    let mut looked_at = 0;
    while looked_at < found.len() {
        let parent = found[looked_at];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        looked_at += 1;
    }
    found.split_off(1)
}

struct Stat {
    parent: u32,
    cpu: Duration,
}

/// `PID (NAME) STATE PPID … utime stime …`: the name may hold anything, so the fields are counted
/// from its last parenthesis. See proc_pid_stat(5).
fn parse_stat(text: &str, ticks_per_s: u64) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let sum = ticks(11)? + ticks(12)?;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_secs_f64(sum as f64 / ticks_per_s.max(1) as f64),
    })
}

fn parse_memory(status: &str) -> Memory {
    let bytes = |key: &str| number_after(status, key).unwrap_or_default() * 1024;
    Memory {
        resident_bytes: bytes("VmRSS:"),
        anonymous_bytes: bytes("RssAnon:") + bytes("RssShmem:"),
        file_bytes: bytes("RssFile:"),
        resident_bytes_max: bytes("VmHWM:"),
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "42 (a) b (c) S 7 1 1 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 3 0 100 0 0";
        let stat = parse_stat(text, 100).unwrap();
        assert_eq!((stat.parent, stat.cpu), (7, Duration::from_secs(2)));
    }

    #[test]
    fn a_stat_of_another_form_is_refused() {
        assert!(parse_stat("", 100).is_none());
        assert!(parse_stat("1 (x) S 1", 100).is_none());
    }

    #[test]
    fn memory_is_read_by_kind() {
        let status = "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  800 kB\nRssAnon:\t 500 kB\n\
                      RssFile:\t 290 kB\nRssShmem:\t  10 kB\n";
        let memory = parse_memory(status);
        assert_eq!(memory.resident_bytes, 800 * 1024);
        assert_eq!(memory.anonymous_bytes, 510 * 1024);
        assert_eq!(memory.file_bytes, 290 * 1024);
        assert_eq!(memory.resident_bytes_max, 900 * 1024);
    }

    #[test]
    fn this_process_uses_cpu_time_and_memory() {
        let pid = std::process::id();
        let before = usage(pid).unwrap().cpu;
        while usage(pid).unwrap().cpu <= before {}
        assert!(memory(pid).unwrap().resident_bytes > 0);
    }

    #[test]
    fn the_time_of_a_thread_that_ended_is_not_lost() {
        const BUSY: Duration = Duration::from_millis(200);
        let pid = std::process::id();
        let before = usage(pid).unwrap();
        let busy =
            std::thread::spawn(move || while usage(pid).unwrap().since(&before).cpu < BUSY {});
        busy.join().unwrap();
        let used = usage(pid).unwrap().since(&before);
        assert!(used.cpu + TICKS_ERROR_MAX >= BUSY, "{used:?}");
    }

    #[test]
    fn a_child_counts_with_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = descendants(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // Above the largest process number that Linux gives.
        assert!(usage(5_000_000).is_err());
        assert!(memory(5_000_000).is_err());
    }
}
