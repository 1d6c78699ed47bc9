//! How large the tiers are: what the configuration says, what the first start decided, and what the
//! machine has, in this order. The deciding is pure.

use std::path::{Path, PathBuf};

use crate::config::{CacheSection, Config, SHARD_RAM_MIN, SSD_MIN};
use crate::data_dir::{DataDir, DataDirError, FORMAT_VERSION, Format};
use crate::defaults::{self, STRIPE_MIN};
use crate::units::Size;

/// Why there is no size that works.
#[derive(Debug, thiserror::Error)]
pub enum SizesError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// What is free cannot be found out.
    #[error("cannot find out what is free in {}: {source}", .dir.display())]
    Free {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is too little for what was configured.
    #[error(
        "cache.ssd = \"{wanted}\", but only {free} are free in {}; free some, or give it less", .dir.display()
    )]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// What was configured.
        wanted: Size,
        /// What is free.
        free: Size,
    },
    /// There is too little for any tier, and none was configured.
    #[error(
        "only {free} are free in {}, too little for an SSD tier (at least {SSD_MIN}, and at most half of what \
         is free, by default); free some, set cache.ssd (--ssd), or set it to \"0B\" to use no disk",
        .dir.display()
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What is free.
        free: Size,
    },
    /// The stripes would be too small.
    #[error(
        "cache.stripes = {stripes}: each of them would have less than {STRIPE_MIN} of the {ssd} of the SSD tier; \
         write {most} or less, or leave it out"
    )]
    Stripes {
        /// How many were configured.
        stripes: u32,
        /// The size of all together.
        ssd: Size,
        /// How many there could be.
        most: u64,
    },
    /// The shards would have too little memory.
    #[error(
        "shards.count = {shards} (--shards): each of them would have less than {SHARD_RAM_MIN} of the {ram} of \
         cache.ram (--ram); write {most} or less, give it more, or leave it out"
    )]
    Shards {
        /// How many were configured.
        shards: usize,
        /// The arena of all together.
        ram: Size,
        /// How many there could be.
        most: u64,
    },
    /// It was another size at the first start.
    #[error(
        "cache.ssd = \"{configured}\", but the data directory {} was made with \"{kept}\" at its first start, \
         and that cannot be changed; leave cache.ssd (--ssd) out, or start with a new directory",
        .dir.display()
    )]
    SsdDiffers {
        /// The directory.
        dir: PathBuf,
        /// What was configured.
        configured: Size,
        /// What `format.toml` says.
        kept: Size,
    },
}

/// The sizes of this start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The RAM arena of all shards.
    pub ram: Size,
    /// The SSD tier; 0: none.
    pub ssd: Size,
    /// Its stripes.
    pub stripes: u32,
    /// Whether this is the first start on the directory.
    pub first_start: bool,
}

/// Decides how many shards this start has. Pure.
///
/// # Errors
/// [`SizesError::Shards`].
pub fn shards(config: &Config, cpus: usize) -> Result<usize, SizesError> {
    let ram = ram(&config.cache);
    match config.shards.count {
        Some(shards) if shards > 1 && Size(ram.0 / shards as u64) < SHARD_RAM_MIN => {
            Err(SizesError::Shards { shards, ram, most: ram.0 / SHARD_RAM_MIN.0 })
        }
        Some(shards) => Ok(shards),
        None => Ok(defaults::shards(cpus, ram)),
    }
}

fn ram(cache: &CacheSection) -> Size {
    cache.ram.unwrap_or_else(|| defaults::ram(defaults::memory()))
}

/// Decides the sizes of this start, and at the first one keeps them in `format.toml`.
///
/// # Errors
/// See [`SizesError`].
pub fn decide(cache: &CacheSection, dir: &DataDir, cpus: usize) -> Result<Sizes, SizesError> {
    let ram = ram(cache);
    // The stripes may have a file system of their own, mounted or linked there before.
    let ssd = dir.ssd();
    let place = if ssd.exists() { &ssd } else { dir.path() };
    let free = || {
        defaults::disk_free(place)
            .map_err(|source| SizesError::Free { dir: place.to_owned(), source })
    };
    let (mut kept, first_start) = dir.format(|| first_format(cache, place, free()?, cpus))?;
    let had_no_disk = kept.ssd_bytes == 0;
    if had_no_disk && cache.ssd.is_some_and(|ssd| ssd != Size(0)) {
        // Nothing lies anywhere yet.
        kept = first_format(cache, place, free()?, cpus)?;
        dir.write_format(kept)?;
    }
    let kept_ssd = Size(kept.ssd_bytes);
    if let Some(configured) = cache.ssd
        && configured != kept_ssd
    {
        let dir = dir.path().to_owned();
        return Err(SizesError::SsdDiffers { dir, configured, kept: kept_ssd });
    }
    crate::data_dir::check_stripes(dir.path(), cache.stripes, kept)?;
    Ok(Sizes { ram, ssd: kept_ssd, stripes: kept.stripes, first_start })
}

fn first_format(
    cache: &CacheSection,
    dir: &Path,
    free: Size,
    cpus: usize,
) -> Result<Format, SizesError> {
    let ssd = match cache.ssd {
        Some(wanted) if wanted > free => {
            return Err(SizesError::NoRoom { dir: dir.to_owned(), wanted, free });
        }
        Some(wanted) => wanted,
        None => {
            defaults::ssd(free).ok_or_else(|| SizesError::Full { dir: dir.to_owned(), free })?
        }
    };
    let stripes = cache.stripes.unwrap_or_else(|| defaults::stripes(ssd, cpus));
    if ssd != Size(0) && Size(ssd.0 / u64::from(stripes)) < STRIPE_MIN {
        let most = ssd.0 / STRIPE_MIN.0;
        return Err(SizesError::Stripes { stripes, ssd, most });
    }
    Ok(Format { version: FORMAT_VERSION, stripes, ssd_bytes: ssd.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(ssd: Option<Size>, stripes: Option<u32>) -> CacheSection {
        CacheSection { ram: Some(Size::mib(64)), ssd, stripes, ..CacheSection::default() }
    }

    #[test]
    fn what_the_first_start_decided_stays() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        let first = decide(&cache(Some(Size::mib(512)), Some(3)), &dir, 2).unwrap();
        assert_eq!((first.ssd, first.stripes, first.first_start), (Size::mib(512), 3, true));
        let later = decide(&cache(None, None), &dir, 2).unwrap();
        assert_eq!(later, Sizes { first_start: false, ..first });
        let error = decide(&cache(Some(Size::gib(1)), None), &dir, 2).unwrap_err().to_string();
        assert!(error.contains("\"1GiB\"") && error.contains("\"512MiB\""), "{error}");
        assert!(decide(&cache(Some(Size(0)), None), &dir, 2).is_err());
        let error = decide(&cache(None, Some(4)), &dir, 2).unwrap_err().to_string();
        assert!(error.contains("made with 3"), "{error}");
    }

    #[test]
    fn a_disk_can_be_added_to_a_directory_without_one() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        assert_eq!(decide(&cache(Some(Size(0)), None), &dir, 2).unwrap().ssd, Size(0));
        assert_eq!(decide(&cache(None, None), &dir, 2).unwrap().ssd, Size(0));
        let added = decide(&cache(Some(Size::mib(256)), None), &dir, 2).unwrap();
        assert_eq!((added.ssd, added.first_start), (Size::mib(256), false));
        assert_eq!(decide(&cache(None, None), &dir, 2).unwrap(), added);
    }

    #[test]
    fn more_than_is_free_is_refused_before_anything_is_written() {
        let dir = Path::new("/d");
        let error =
            first_format(&cache(Some(Size::gib(2)), None), dir, Size::gib(1), 2).unwrap_err();
        assert!(error.to_string().contains("only 1GiB are free"), "{error}");
        let many = cache(Some(Size::mib(512)), Some(5));
        let error = first_format(&many, dir, Size::gib(1), 2).unwrap_err().to_string();
        assert!(
            error.contains("cache.stripes = 5") && error.contains("write 4 or less"),
            "{error}"
        );
        let error =
            first_format(&cache(None, None), dir, Size::mib(100), 2).unwrap_err().to_string();
        assert!(error.contains("only 100MiB are free") && error.contains("\"0B\""), "{error}");
    }

    #[test]
    fn the_number_of_shards_is_that_of_the_cpus_unless_something_is_against_it() {
        let mut config = Config { cache: cache(Some(Size::mib(512)), None), ..Config::default() };
        assert_eq!(shards(&config, 1).unwrap(), 1);
        // 64 MiB of RAM are enough for two.
        assert_eq!(shards(&config, 8).unwrap(), 2);
        config.shards.count = Some(2);
        assert_eq!(shards(&config, 1).unwrap(), 2);
        config.shards.count = Some(3);
        let error = shards(&config, 8).unwrap_err().to_string();
        assert!(error.contains("--shards") && error.contains("write 2 or less"), "{error}");
    }
}
