//! What is applied to a graph at once: manifests that were analysed, and accesses that were counted. A
//! batch is bounded, and checked again where it is applied, whoever made it.

use outrider_artifact::manifest::MANIFEST_BYTES_MAX;
use outrider_artifact::{Digest, RepositoryName, Tag};

use crate::node::{Kind, is_customer};

/// The most manifests of one batch.
pub const FOUND_MAX: usize = 1024;
/// The most contents of all manifests of one batch.
pub const BATCH_CONTENTS_MAX: usize = 65_536;
/// The most layers of one batch that were uploaded by themselves.
pub const ALONE_MAX: usize = 1024;
/// The most accesses of one batch.
pub const ACCESSES_MAX: usize = 16_384;
/// The most layers of an image. Docker takes 127, overlayfs 500.
pub const LAYERS_MAX: usize = 1024;
/// The most manifests of an index.
pub const INDEX_ENTRIES_MAX: usize = 256;
/// The largest content that is believed: 16 TiB.
pub const SIZE_BYTES_MAX: u64 = 1 << 44;
/// The latest time that is believed: the end of the year 9999, in milliseconds since 1970.
pub const UNIX_MS_MAX: u64 = 253_402_300_799_999;
/// The last position that a queue may reach: what stores with signed integers hold.
pub const POSITION_MAX: u64 = i64::MAX as u64;
/// The most marks of one batch.
pub const MARKS_MAX: usize = 16_384;
/// The longest name of a source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 128;

/// What a version consists of: one layer, component or function of an image, or one version of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// What it is. [`Kind::Version`] in an index.
    pub kind: Kind,
    /// Which one.
    pub digest: Digest,
    /// Its length, as the manifest says.
    pub bytes: u64,
}

/// One manifest that somebody pushed or pulled, analysed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The repository.
    pub image: RepositoryName,
    /// The manifest's own digest.
    pub digest: Digest,
    /// The tag that names it, if any.
    pub tag: Option<Tag>,
    /// Whose it is.
    pub customer: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The length of the manifest.
    pub bytes: u64,
    /// [`Kind::Version`] or [`Kind::Index`].
    pub kind: Kind,
    /// What it consists of, each once, the base first.
    pub contents: Vec<Content>,
}

/// A layer that somebody uploaded by itself. No version has it for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Which one.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// Whose it is.
    pub customer: String,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// How often something was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The repository through which it was asked for. What is a version of that image is counted as that; all else is a
    /// content.
    pub image: Option<RepositoryName>,
    /// What was asked for.
    pub digest: Digest,
    /// How often.
    pub count: u64,
    /// When last, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// Where in its queue a batch ends. It is stored with what the batch changes: a batch whose end is not
/// behind the stored position is a repeated one, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The queue; 1 to [`SOURCE_BYTES_MAX`] bytes.
    pub source: String,
    /// Where the batch begins.
    pub begin: Begin,
    /// The last event of the batch.
    pub last: u64,
}

/// Where in its queue a batch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Wherever the source is.
    Anywhere,
    /// Right behind this position; nothing for the beginning of the queue. Where another position is stored, somebody else
    /// has read the queue meanwhile, and nothing is changed.
    After(Option<u64>),
}

/// Up to which of its events what a source is about was counted, so that what comes twice in a queue is counted once:
/// of this edge, in this lane, all of earlier epochs, and of this one through this number. Opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The edge.
    pub edge: u64,
    /// The lane.
    pub lane: u8,
    /// The epoch.
    pub epoch: u64,
    /// The number.
    pub through: u64,
}

impl Position {
    /// A batch that ends there, wherever it begins.
    pub fn new(source: impl Into<String>, last: u64) -> Self {
        Self { source: source.into(), begin: Begin::Anywhere, last }
    }

    /// Whether the batch is to be applied where the source is stored to be here.
    pub fn is_due(&self, reached: Option<u64>) -> bool {
        let is_next = match self.begin {
            Begin::Anywhere => true,
            Begin::After(after) => after == reached,
        };
        is_next && reached.is_none_or(|reached| reached < self.last)
    }
}

/// What is applied in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Where it comes from; without one it is applied whenever it is given, which changes nothing the second
    /// time but access counts.
    pub position: Option<Position>,
    /// What is stored with the position, of its source; each edge and lane once.
    pub marks: Vec<Mark>,
    /// Manifests, in their order.
    pub found: Vec<Found>,
    /// Layers that were uploaded by themselves, after them.
    pub alone: Vec<Alone>,
    /// Accesses, after both.
    pub accesses: Vec<Access>,
}

/// What is wrong with a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Beyond a bound.
    #[error("{what}: {found}, and {most} is the most")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much of it.
        found: u64,
        /// What is taken.
        most: u64,
    },
    /// A customer or a source that is no name.
    #[error("{what} {name:?} is no name: 1 to 128 bytes without control characters")]
    Name {
        /// Which.
        what: &'static str,
        /// What was given.
        name: String,
    },
    /// Marks without a source.
    #[error("there are marks, and no position that they belong to")]
    Marks,
    /// A manifest that is not at hand must be named.
    #[error("a manifest without its bytes has no digest")]
    Nameless,
    /// The manifest refers to itself.
    #[error("the manifest {0} refers to itself")]
    Itself(Digest),
    /// An index of layers, or an image of manifests.
    #[error("the manifest {0} has contents of another kind")]
    Kinds(Digest),
    /// A content stands twice.
    #[error("the manifest {0} has a content twice")]
    Twice(Digest),
}

pub(crate) fn at_most(what: &'static str, found: u64, most: u64) -> Result<(), BatchError> {
    if found <= most { Ok(()) } else { Err(BatchError::TooMuch { what, found, most }) }
}

fn check_customer(name: &str) -> Result<(), BatchError> {
    match is_customer(name) {
        true => Ok(()),
        false => Err(BatchError::Name { what: "the customer", name: name.to_owned() }),
    }
}

impl Alone {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`BatchError`]
    pub fn check(&self) -> Result<(), BatchError> {
        check_customer(&self.customer)?;
        at_most("milliseconds since 1970", self.unix_ms, UNIX_MS_MAX)?;
        at_most("bytes of a content", self.bytes, SIZE_BYTES_MAX)
    }
}

impl Found {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`BatchError`]
    pub fn check(&self) -> Result<(), BatchError> {
        check_customer(&self.customer)?;
        at_most("milliseconds since 1970", self.unix_ms, UNIX_MS_MAX)?;
        at_most("bytes of a manifest", self.bytes, MANIFEST_BYTES_MAX as u64)?;
        let count = self.contents.len() as u64;
        let is_index = match self.kind {
            Kind::Index => true,
            Kind::Version => false,
            _ => return Err(BatchError::Kinds(self.digest)),
        };
        match is_index {
            true => at_most("manifests of an index", count, INDEX_ENTRIES_MAX as u64)?,
            false => at_most("layers of an image", count, LAYERS_MAX as u64)?,
        }
        let mut seen = std::collections::HashSet::with_capacity(self.contents.len());
        for content in &self.contents {
            at_most("bytes of a content", content.bytes, SIZE_BYTES_MAX)?;
            if content.digest == self.digest {
                return Err(BatchError::Itself(self.digest));
            }
            let fits =
                if is_index { content.kind == Kind::Version } else { content.kind.is_content() };
            if !fits {
                return Err(BatchError::Kinds(self.digest));
            }
            if !seen.insert(content.digest) {
                return Err(BatchError::Twice(self.digest));
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`BatchError`]
    pub fn check(&self) -> Result<(), BatchError> {
        if let Some(Position { source, last, .. }) = &self.position {
            if source.is_empty() || source.len() > SOURCE_BYTES_MAX {
                return Err(BatchError::Name { what: "the source", name: source.clone() });
            }
            at_most("position in a queue", *last, POSITION_MAX)?;
        }
        if self.position.is_none() && !self.marks.is_empty() {
            return Err(BatchError::Marks);
        }
        at_most("marks of a batch", self.marks.len() as u64, MARKS_MAX as u64)?;
        for Mark { edge, epoch, through, .. } in &self.marks {
            for number in [*edge, *epoch, *through] {
                at_most("a number of a mark", number, POSITION_MAX)?;
            }
        }
        at_most("manifests of a batch", self.found.len() as u64, FOUND_MAX as u64)?;
        at_most("layers of a batch", self.alone.len() as u64, ALONE_MAX as u64)?;
        at_most("accesses of a batch", self.accesses.len() as u64, ACCESSES_MAX as u64)?;
        let contents = self.found.iter().map(|found| found.contents.len() as u64).sum();
        at_most("contents of a batch", contents, BATCH_CONTENTS_MAX as u64)?;
        for access in &self.accesses {
            at_most("milliseconds since 1970", access.unix_ms, UNIX_MS_MAX)?;
            at_most("accesses of one content", access.count, u64::from(u32::MAX))?;
        }
        self.alone.iter().try_for_each(Alone::check)?;
        self.found.iter().try_for_each(Found::check)
    }
}
