//! What every part of Outrider agrees on: content digests, the names of the registry protocol, and
//! the records that cross a process or a disk.
//!
//! No I/O, no clock, no task lives here.
//!
//! - [`digest`]: [`Digest`], its text form, and [`ContentHasher`] that makes one from bytes.
//! - [`manifest`]: what an image manifest or an index refers to; [`media_type`]: what they are called.
//! - [`name`]: repository names, tags and references of the OCI distribution specification.
//! - [`event`]: the records of an access and of an upload (rkyv, versioned).
//! - [`native`]: what clients and edges say to each other over the protocol `outrider/1`.

#![forbid(unsafe_code)]

pub mod digest;
pub mod event;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod native;

pub use digest::{Algorithm, ContentHasher, Digest, DigestError};
pub use manifest::{Manifest, ManifestError};
pub use name::{NameError, Reference, RepositoryName, Tag};
