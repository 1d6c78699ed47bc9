//! What a measurement ran on, and on which CPU a thread runs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::BenchError;

/// The machine, as far as it decides a result.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kernel and its release.
    pub kernel: String,
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    /// The processor's name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// Load average of the last minute before the measurement: near 0 on a machine that does
    /// nothing else.
    pub load_average: f64,
    /// How this program was built; a debug build measures itself.
    pub build: &'static str,
}

impl Machine {
    /// Looks at this machine.
    pub fn look() -> Self {
        let uname = rustix::system::uname();
        let text = |name: &str| fs::read_to_string(name).unwrap_or_default();
        Self {
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            architecture: uname.machine().to_string_lossy().into_owned(),
            cpu: cpu_name(&text("/proc/cpuinfo")),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_bytes(&text("/proc/meminfo")),
            load_average: text("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or_default(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }

    /// One line of text.
    pub fn line(&self) -> String {
        format!(
            "{} {}, {}, {} CPUs, {:.1} GiB, load average {:.2}, {} build of this program",
            self.kernel,
            self.architecture,
            self.cpu,
            self.cpus,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.load_average,
            self.build,
        )
    }
}

/// The processor's name. arm64 has no `model name`; its parts are numbers.
fn cpu_name(cpuinfo: &str) -> String {
    let value = |key: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    value("model name").unwrap_or_else(|| {
        let part = |key: &str| value(key).unwrap_or_else(|| "?".to_owned());
        format!("implementer {} part {}", part("CPU implementer"), part("CPU part"))
    })
}

fn memory_bytes(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Pins the calling thread; threads and processes that it starts from then on inherit that.
///
/// # Errors
/// When there is no such CPU, or this process may not use it.
pub fn pin(cpu: usize) -> Result<(), BenchError> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(BenchError::Argument(format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| {
        BenchError::Argument(format!(
            "cannot run on CPU {cpu}: {errno} (usable: {})",
            usable().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))
    })
}

/// Lets the calling thread run only while nothing else wants its CPU (SCHED_IDLE): a low priority would still
/// keep others waiting for its slice of some milliseconds.
///
/// # Errors
/// When the system refuses.
#[allow(unsafe_code)]
pub fn run_when_idle() -> Result<(), BenchError> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and the parameters live until the call returns.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if result == 0 {
        return Ok(());
    }
    Err(BenchError::io("giving way to others")(std::io::Error::last_os_error()))
}

/// The CPUs that the calling thread may use.
pub fn usable() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(
        |_| Vec::new(),
        |set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
    )
}

/// How long each CPU has been busy since boot, by its number.
pub fn busy() -> BTreeMap<usize, Duration> {
    parse_busy(
        &fs::read_to_string("/proc/stat").unwrap_or_default(),
        rustix::param::clock_ticks_per_second(),
    )
}

/// Lines `cpuN user nice system idle iowait irq softirq steal …` in clock ticks. Waiting for the
/// disk is idle time; time stolen by other virtual machines is not this machine's.
fn parse_busy(stat: &str, ticks_per_s: u64) -> BTreeMap<usize, Duration> {
    let mut busy = BTreeMap::new();
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        let number = fields.next().and_then(|name| name.strip_prefix("cpu"));
        let Some(cpu) = number.and_then(|number| number.parse::<usize>().ok()) else { continue };
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or_default();
        let sum = at(0) + at(1) + at(2) + at(5) + at(6);
        busy.insert(cpu, Duration::from_secs_f64(sum as f64 / ticks_per_s.max(1) as f64));
    }
    busy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_memory() {
        let machine = Machine::look();
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(!machine.cpu.is_empty() && machine.cpus > 0 && machine.memory_bytes > 0);
    }

    #[test]
    fn a_processor_without_a_model_name_is_named_by_its_part() {
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        assert_eq!(cpu_name(arm), "implementer 0x41 part 0xd40");
        assert_eq!(cpu_name("model name\t: A: B\n"), "A: B");
    }

    #[test]
    fn idle_disk_and_stolen_time_are_not_busy_time() {
        let stat = "cpu  9 9 9 9\ncpu0 10 20 30 1000 500 1 2 700 0 0\ncpu1 1 0 0 0\nintr 5\n";
        let busy = parse_busy(stat, 100);
        assert_eq!(busy[&0], Duration::from_millis(630));
        assert_eq!(busy[&1], Duration::from_millis(10));
        assert_eq!(busy.len(), 2);
    }

    #[test]
    fn pinning_to_a_cpu_that_is_not_there_says_which_are() {
        let error = pin(CpuSet::MAX_CPU - 1).unwrap_err().to_string();
        assert!(error.contains("usable: "), "{error}");
        assert!(pin(usize::MAX).is_err());
    }
}
