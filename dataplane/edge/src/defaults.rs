//! What is decided by looking at the machine: the size of the RAM arena and of the SSD tier.
//!
//! The decisions are pure functions of what was measured; the measuring reads `/proc`, the cgroup's
//! files and the file system, once, at the start.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{RAM_MIN, SHARD_RAM_MIN, SHARDS_MAX, SSD_MIN};
use crate::data_dir::STRIPES_MAX;
use crate::units::Size;

/// The RAM arena is this share of the memory,
const RAM_SHARE: u64 = 8;
/// and never more than this by default.
const RAM_DEFAULT_MAX: Size = Size::gib(1);
/// The SSD tier is this share of what is free,
const SSD_SHARE: u64 = 10;
/// and never more than this by default.
const SSD_DEFAULT_MAX: Size = Size::gib(20);
/// A stripe has so much by default, since the largest content that can be pushed is most of one;
const STRIPE_BYTES: u64 = 1 << 30;
/// but for so many of them less will do, so that a small tier is not one shard's alone,
const STRIPES_SMALL_MAX: u64 = 4;
/// as long as each has eight segments: reclaim needs some to choose from.
pub const STRIPE_MIN: Size = Size::mib(128);

/// min(memory / 8, 1 GiB), but never less than the least arena that works.
#[must_use]
pub fn ram(memory: Size) -> Size {
    Size(memory.0 / RAM_SHARE).min(RAM_DEFAULT_MAX).max(RAM_MIN)
}

/// min(free / 10, 20 GiB); the least tier that works when a tenth is less than that, and None when even
/// that would take more than half of what is free.
#[must_use]
pub fn ssd(free: Size) -> Option<Size> {
    let wanted = Size(free.0 / SSD_SHARE).min(SSD_DEFAULT_MAX).max(SSD_MIN);
    (wanted.0 <= free.0 / 2).then_some(wanted)
}

/// One stripe a CPU, as far as each has 1 GiB; up to four that have 128 MiB.
#[must_use]
pub fn stripes(ssd: Size, cpus: usize) -> u32 {
    let small = (ssd.0 / STRIPE_MIN.0).min(STRIPES_SMALL_MAX);
    let most = (ssd.0 / STRIPE_BYTES).max(small).clamp(1, u64::from(STRIPES_MAX));
    let stripes = u32::try_from(cpus).unwrap_or(STRIPES_MAX).min(STRIPES_MAX);
    stripes.clamp(1, u32::try_from(most).unwrap_or(STRIPES_MAX))
}

/// One shard a CPU, as far as each has 32 MiB of the arena.
#[must_use]
pub fn shards(cpus: usize, ram: Size) -> usize {
    let most = usize::try_from(ram.0 / SHARD_RAM_MIN.0).unwrap_or(SHARDS_MAX);
    cpus.min(most).clamp(1, SHARDS_MAX)
}

/// The memory that this process may use: the machine's, or its cgroup's limit where that is less.
#[must_use]
pub fn memory() -> Size {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
    let limit = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| cgroup_limit(&groups, Path::new("/sys/fs/cgroup")));
    Size(limit.unwrap_or(u64::MAX).min(machine))
}

/// What is free for this user in the file system that `dir` is in.
///
/// # Errors
/// When the file system cannot be asked.
pub fn disk_free(dir: &Path) -> std::io::Result<Size> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(Size(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The least memory limit of the cgroup that `/proc/self/cgroup` names, or of one above it; version 2
/// (`0::/path`, `memory.max`) and version 1 (`4:memory:/path`, `memory/…/memory.limit_in_bytes`). None
/// when nothing is readable or nothing is limited.
fn cgroup_limit(groups: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, file) = if id == "0" && controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        for limit in limits_upwards(&mount, path, file) {
            least = Some(least.map_or(limit, |l: u64| l.min(limit)));
        }
    }
    least
}

/// The limits of the group and of every group above it. In a container the path is often one of the
/// host's that does not exist here; then only those that do are read, at least the mount's own.
fn limits_upwards(mount: &Path, group: &str, file: &str) -> Vec<u64> {
    let mut limits = Vec::new();
    let mut here = PathBuf::from(group.trim_start_matches('/'));
    loop {
        // "max" (version 2) is no number, and so no limit; version 1 says it by a huge number.
        if let Some(limit) = fs::read_to_string(mount.join(&here).join(file))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
        {
            limits.push(limit);
        }
        if !here.pop() {
            return limits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arena_is_an_eighth_of_the_memory_and_at_most_a_gibibyte() {
        assert_eq!(ram(Size::gib(4)), Size::mib(512));
        assert_eq!(ram(Size::gib(64)), Size::gib(1));
        assert_eq!(ram(Size::mib(256)), RAM_MIN);
    }

    #[test]
    fn the_ssd_tier_is_a_tenth_of_what_is_free_and_at_most_twenty_gibibytes() {
        assert_eq!(ssd(Size::gib(100)), Some(Size::gib(10)));
        assert_eq!(ssd(Size::gib(1000)), Some(Size::gib(20)));
        assert_eq!(ssd(Size::gib(1)), Some(SSD_MIN));
        assert_eq!(ssd(Size::mib(300)), None);
    }

    #[test]
    fn there_is_a_stripe_for_every_cpu_that_is_not_too_small() {
        assert_eq!(stripes(Size(0), 8), 1);
        assert_eq!(stripes(Size::mib(256), 8), 2);
        assert_eq!(stripes(Size::gib(1), 8), 4);
        assert_eq!(stripes(Size::gib(1), 1), 1);
        assert_eq!(stripes(Size::gib(20), 2), 2);
        assert_eq!(stripes(Size::gib(20), 32), 20);
        assert_eq!(stripes(Size(1 << 50), 1000), 64);
        assert_eq!(stripes(Size(1 << 50), 0), 1);
    }

    #[test]
    fn there_is_a_shard_for_every_cpu_that_has_memory_for_it() {
        assert_eq!(shards(1, Size::gib(1)), 1);
        assert_eq!(shards(2, Size::mib(96)), 2);
        assert_eq!(shards(64, Size::gib(1)), 32);
        assert_eq!(shards(1000, Size::gib(1000)), 64);
        assert_eq!(shards(0, Size(0)), 1);
    }

    #[test]
    fn the_tightest_memory_limit_of_the_cgroups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("system.slice/memory.max", "2147483648\n");
        write("system.slice/outrider.service/memory.max", "max\n");
        assert_eq!(cgroup_limit("0::/system.slice/outrider.service\n", root.path()), Some(2 << 30));
        assert_eq!(cgroup_limit("0::/elsewhere\n", root.path()), None);

        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/docker/abc/memory.limit_in_bytes", "536870912\n");
        let groups = "5:devices:/docker/abc\n4:memory:/docker/abc\n0::/\n";
        assert_eq!(cgroup_limit(groups, root.path()), Some(512 << 20));
        // In a container the path is the host's, and the container's own limit is at the mount.
        assert_eq!(cgroup_limit("4:memory:/not/here\n", root.path()), Some(9223372036854771712));
        assert_eq!(cgroup_limit("garbage\n0:\n", root.path()), None);
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        assert!(memory() > Size::mib(1));
        assert!(disk_free(Path::new("/")).is_ok());
    }
}
