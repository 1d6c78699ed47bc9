//! The uplink against scripted origins on real sockets, read from a real shard.
//!
//! 127.0.0.2 and 127.0.0.3 stand for the internet here, 127.0.0.4 and 127.0.0.5 for a site's own
//! network; 127.0.0.1 is what it is.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used)]

mod content;
mod faults;
mod lanes;
mod origin;
mod peers;
mod pressure;
mod redirects;
mod registry;
mod shard;
mod tls;
mod tokens;
