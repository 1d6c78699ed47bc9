//! The files of the stripes: found, checked, made, never deleted.
//!
//! A file that is not ours, or was made with other sizes, is refused by name with what to do, and not
//! touched. A missing one is made anew: what it held has become misses.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::segment::{DATA_OFFSET, Layout};
use super::superblock::{Superblock, SuperblockError};
use crate::arena::BLOCK_BYTES;
use crate::config::{Geometry, SsdConfig};
use crate::error::CacheError;

/// A stripe with fewer segments cannot write, move and free at the same time.
pub(crate) const SEGMENTS_MIN: u32 = 6;
/// What a location can name.
pub(crate) const STRIPES_MAX: u16 = 64;
/// How long a former process may take to let go of a stripe.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// Steps in which the size is lowered when the disk is full, in sixteenths.
const SHRINK_STEPS: u64 = 15;

/// The stripes of a store, or those of one shard, opened and locked.
#[derive(Debug)]
pub struct Stripes {
    pub(crate) files: Vec<File>,
    pub(crate) superblocks: Vec<Superblock>,
    /// Which of them were made just now.
    pub(crate) made: Vec<bool>,
    /// Made although others were there already: their content is lost.
    pub(crate) recreated: usize,
    pub(crate) direct: bool,
}

impl Stripes {
    /// Opens the stripes of a store, and makes those that are missing. Blocks.
    ///
    /// # Errors
    /// `Config`, `Stripe` (a file that is not ours or has other sizes: nothing was changed), `Os`.
    pub fn open(config: &SsdConfig, geometry: Geometry) -> Result<Self, CacheError> {
        open(config, geometry)
    }

    /// What each of `shards` shards gets, which may be none: stripe `n` goes to shard `n % shards`, as
    /// [`Placement`](crate::Placement) says.
    pub fn split(self, shards: u16) -> Vec<Self> {
        let Self { files, superblocks, made, recreated, direct } = self;
        let mut parts: Vec<Self> = (0..shards)
            .map(|shard| Self {
                files: Vec::new(),
                superblocks: Vec::new(),
                made: Vec::new(),
                // Counted once.
                recreated: if shard == 0 { recreated } else { 0 },
                direct,
            })
            .collect();
        for ((file, superblock), made) in files.into_iter().zip(superblocks).zip(made) {
            let part = &mut parts[usize::from(superblock.stripe % shards)];
            part.files.push(file);
            part.superblocks.push(superblock);
            part.made.push(made);
        }
        parts
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

fn path_of(dir: &Path, stripe: u16) -> PathBuf {
    dir.join(format!("stripe-{stripe:03}"))
}

fn refuse(path: &Path, problem: impl Into<String>, advice: &'static str) -> CacheError {
    CacheError::Stripe { path: path.to_owned(), problem: problem.into(), advice }
}

const ADVICE_OTHER_SIZE: &str = "Set the sizes back to what they were, or move the whole folder away \
                                 to start with an empty store (uploads in it are lost to this box)";
const ADVICE_FOREIGN: &str = "Nothing was changed. Move this file away if it may be replaced";

/// What lies under the name of a stripe.
enum Found {
    /// No file, or one that was never finished.
    Nothing,
    Stripe(Superblock),
    /// Neither copy of the superblock is one.
    Overwritten(String),
}

/// The superblock of a file, from either of its copies.
fn read_superblock(path: &Path) -> Result<Found, CacheError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(CacheError::os(format!("opening {}", path.display()), &error)),
    };
    let mut blocks = vec![0; 2 * BLOCK_BYTES];
    let mut filled = 0;
    while filled < blocks.len() {
        match file.read_at(&mut blocks[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) => {
                return Err(CacheError::os(format!("reading {}", path.display()), &error));
            }
        }
    }
    let first = Superblock::parse(&blocks[..BLOCK_BYTES]);
    let second = Superblock::parse(&blocks[BLOCK_BYTES..]);
    match (first, second) {
        (Ok(superblock), _) | (Err(_), Ok(superblock)) => Ok(Found::Stripe(superblock)),
        (Err(SuperblockError::Blank), Err(SuperblockError::Blank)) => Ok(Found::Nothing),
        (Err(error @ SuperblockError::Version(_)), _)
        | (_, Err(error @ SuperblockError::Version(_))) => {
            Err(refuse(path, error.to_string(), ADVICE_FOREIGN))
        }
        (Err(SuperblockError::Blank), Err(error)) | (Err(error), Err(_)) => {
            Ok(Found::Overwritten(error.to_string()))
        }
    }
}

/// Renames an overwritten stripe, so that another can be made in its place and nothing is deleted.
fn set_aside(path: &Path, problem: &str) -> Result<(), CacheError> {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let aside = path.with_extension(format!("overwritten-{}", since.as_secs()));
    std::fs::rename(path, &aside)
        .map_err(|error| CacheError::os(format!("setting aside {}", path.display()), &error))?;
    tracing::error!(
        path = %path.display(), aside = %aside.display(), problem,
        "a stripe was overwritten and is set aside: delete it when nobody wants to look at it"
    );
    Ok(())
}

/// The size and number of stripes with which the store in `dir` was made; `None` when there is none.
///
/// # Errors
/// `Os` when a file cannot be read, `Stripe` when one of them is not ours.
pub fn stored_size(dir: &Path) -> Result<Option<(u64, u16)>, CacheError> {
    for stripe in 0..STRIPES_MAX {
        if let Found::Stripe(superblock) = read_superblock(&path_of(dir, stripe))? {
            return Ok(Some((superblock.asked_bytes, superblock.stripes)));
        }
    }
    Ok(None)
}

fn check(path: &Path, found: &Superblock, expected: &Superblock) -> Result<(), CacheError> {
    let problem = if found.store != expected.store {
        "it belongs to another store".to_owned()
    } else if found.stripe != expected.stripe {
        format!("it is stripe {} of its store under the name of another", found.stripe)
    } else if found.stripes != expected.stripes {
        format!("its store has {} stripes, the configuration {}", found.stripes, expected.stripes)
    } else if found.asked_bytes != expected.asked_bytes {
        format!(
            "its store was made for {} bytes, the configuration has {}",
            found.asked_bytes, expected.asked_bytes
        )
    } else if found.geometry != expected.geometry {
        format!("it was made with {:?}, this program uses {:?}", found.geometry, expected.geometry)
    } else {
        return Ok(());
    };
    Err(refuse(path, problem, ADVICE_OTHER_SIZE))
}

/// Opens the stripes, and makes those that are missing.
fn open(config: &SsdConfig, geometry: Geometry) -> Result<Stripes, CacheError> {
    let dir = &config.dir;
    if config.stripes == 0 || config.stripes > STRIPES_MAX {
        return Err(CacheError::Config(format!(
            "1 to {STRIPES_MAX} stripes, not {}",
            config.stripes
        )));
    }
    let share_bytes = config.bytes / u64::from(config.stripes);
    let layout = Layout::new(&geometry);
    if layout.segments(share_bytes) < SEGMENTS_MIN {
        let needed = u64::from(config.stripes)
            * (DATA_OFFSET + u64::from(SEGMENTS_MIN) * geometry.segment_bytes);
        return Err(CacheError::Config(format!(
            "{} bytes of SSD are too few for {} stripes: at least {needed}, or fewer stripes",
            config.bytes, config.stripes
        )));
    }
    std::fs::create_dir_all(dir)
        .map_err(|error| CacheError::os(format!("making {}", dir.display()), &error))?;

    let mut found = Vec::new();
    for stripe in 0..config.stripes {
        found.push(read_superblock(&path_of(dir, stripe))?);
    }
    let beyond = path_of(dir, config.stripes);
    if beyond.exists() {
        let problem = format!("the configuration has only {} stripes", config.stripes);
        return Err(refuse(&beyond, problem, ADVICE_OTHER_SIZE));
    }
    let known = found.iter().find_map(|found| match found {
        Found::Stripe(superblock) => Some(*superblock),
        _ => None,
    });
    let template = Superblock {
        store: match known {
            Some(superblock) => superblock.store,
            None => random_store()?,
        },
        stripe: 0,
        stripes: config.stripes,
        asked_bytes: config.bytes,
        stripe_bytes: share_bytes,
        geometry,
    };
    for (stripe, superblock) in found.iter().enumerate() {
        let path = path_of(dir, stripe as u16);
        match superblock {
            Found::Nothing => {}
            Found::Stripe(superblock) => {
                check(&path, superblock, &Superblock { stripe: stripe as u16, ..template })?;
            }
            // With no stripe that is ours it is more likely the wrong folder than a bad disk.
            Found::Overwritten(problem) if known.is_none() => {
                return Err(refuse(&path, problem, ADVICE_FOREIGN));
            }
            Found::Overwritten(_) => {}
        }
    }

    let mut stripes = Stripes {
        files: Vec::new(),
        superblocks: Vec::new(),
        made: Vec::new(),
        recreated: 0,
        direct: true,
    };
    for (stripe, superblock) in found.into_iter().enumerate() {
        let path = path_of(dir, stripe as u16);
        if let Found::Overwritten(problem) = &superblock {
            set_aside(&path, problem)?;
        }
        let made = !matches!(superblock, Found::Stripe(_));
        let superblock = match superblock {
            Found::Stripe(superblock) => superblock,
            Found::Nothing | Found::Overwritten(_) => {
                if known.is_some() {
                    stripes.recreated += 1;
                    tracing::error!(
                        path = %path.display(),
                        "a stripe is missing: it is made anew, what it held is fetched again when \
                         it is asked for; uploads that lay on it are lost"
                    );
                }
                make(&path, Superblock { stripe: stripe as u16, ..template }, &layout)?
            }
        };
        let (file, direct) = open_direct(&path)?;
        lock(&file, &path)?;
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        if len < superblock.stripe_bytes {
            tracing::warn!(path = %path.display(), "a stripe was cut short: growing it again");
            rustix::fs::ftruncate(&file, superblock.stripe_bytes).map_err(|error| {
                CacheError::os(format!("growing {}", path.display()), &error.into())
            })?;
        }
        stripes.direct &= direct;
        stripes.files.push(file);
        stripes.superblocks.push(superblock);
        stripes.made.push(made);
    }
    Ok(stripes)
}

/// Keeps a second process out: two on one store would write over each other. The lock is held by the
/// file that the ring has registered, so after a kill it is held until the kernel has finished the
/// last write of the former process; hence the patience.
fn lock(file: &File, path: &Path) -> Result<(), CacheError> {
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    while rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return Err(refuse(path, "it is in use by another process", "Stop that one first"));
        }
        std::thread::sleep(LOCK_RETRY);
    }
    Ok(())
}

fn random_store() -> Result<[u8; 16], CacheError> {
    let mut store = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut store))
        .map_err(|error| CacheError::os("reading /dev/urandom", &error))?;
    Ok(store)
}

fn open_direct(path: &Path) -> Result<(File, bool), CacheError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    match options.clone().custom_flags(flags).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tracing::warn!(
                path = %path.display(),
                "this file system has no O_DIRECT: the stripe goes through the page cache"
            );
            let file = options
                .open(path)
                .map_err(|error| CacheError::os(format!("opening {}", path.display()), &error))?;
            Ok((file, false))
        }
        Err(error) => Err(CacheError::os(format!("opening {}", path.display()), &error)),
    }
}

/// Preallocates a stripe and writes its superblock, last of all.
fn make(
    path: &Path,
    mut superblock: Superblock,
    layout: &Layout,
) -> Result<Superblock, CacheError> {
    let failed =
        |what: &str, error: &io::Error| CacheError::os(format!("{what} {}", path.display()), error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| failed("making", &error))?;
    superblock.stripe_bytes = preallocate(&file, superblock.stripe_bytes, layout)
        .map_err(|error| failed("preallocating", &error))?;
    let block = superblock.to_block();
    file.write_all_at(&block, 0)
        .and_then(|()| file.write_all_at(&block, BLOCK_BYTES as u64))
        .and_then(|()| file.sync_all())
        .map_err(|error| failed("writing the superblock of", &error))?;
    if let Some(dir) = path.parent() {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| failed("flushing the folder of", &error))?;
    }
    Ok(superblock)
}

/// Takes the room on the disk, less when it is full; returns what it got.
fn preallocate(file: &File, bytes: u64, layout: &Layout) -> io::Result<u64> {
    for step in 0..SHRINK_STEPS {
        let wanted = bytes / 16 * (16 - step);
        if layout.segments(wanted) < SEGMENTS_MIN {
            break;
        }
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, wanted) {
            Ok(()) => {
                if step > 0 {
                    tracing::warn!(
                        asked_bytes = bytes,
                        got_bytes = wanted,
                        "the disk is too full for the stripe that was asked for: using less"
                    );
                }
                return Ok(wanted);
            }
            Err(Errno::NOSPC | Errno::DQUOT) => {
                // What a failed attempt took would be missing for the next one.
                rustix::fs::ftruncate(file, 0)?;
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                tracing::warn!(
                    "this file system cannot preallocate: the stripe grows while it is written"
                );
                rustix::fs::ftruncate(file, wanted)?;
                return Ok(wanted);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::NOSPC.into())
}
