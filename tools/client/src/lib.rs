//! Fetches artifacts by digest, and images by reference, from an edge: over HTTP/3, over the native
//! protocol, or over HTTPS.
//!
//! Nothing gets its final name before its digest was checked. What a broken connection left is kept
//! beside it (`NAME.partial`) and completed by a range, in the same run or in the next one. Every wait,
//! every retry and every buffer has a bound.
//!
//! ```no_run
//! # async fn doc() -> Result<(), outrider_client::ClientError> {
//! use outrider_client::{Artifact, Client, Options, Silent};
//!
//! let client = Client::new(Options::new("https://edge.example:8443".parse()?))?;
//! let artifact: Artifact = "library/alpine:3".parse()?;
//! if let Artifact::Image(image) = &artifact {
//!     let pulled = client.pull(image, "alpine".as_ref(), &Silent).await?;
//!     println!("{} over {}", pulled.digest, pulled.protocol);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client`], [`Options`]: the entrance.
//! - [`reference`]: what can be asked for. [`manifest`]: what an image consists of.
//! - [`blob`]: one artifact into one file. [`many`]: many, in one round trip. [`image`], [`layout`]: an image into an OCI image layout.
//! - [`connection`]: protocols, and what happens when one cannot be had. [`tls`]: whom is trusted.
//! - [`credential`]: who asks.
//! - [`progress`]: how far it is. [`error`]: what went wrong.

#![forbid(unsafe_code)]

pub mod blob;
mod client;
pub mod connection;
pub mod credential;
pub mod error;
pub mod image;
pub mod layout;
pub mod manifest;
pub mod many;
mod partial;
pub mod progress;
pub mod reference;
pub mod tls;

pub use client::{Client, Options};
pub use connection::{Protocol, Used};
pub use credential::Credential;
pub use error::ClientError;
pub use progress::{Progress, Silent};
pub use reference::{Artifact, Image, Place};
pub use tls::Roots;
