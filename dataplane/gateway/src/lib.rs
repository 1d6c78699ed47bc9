//! What a request means.

#![forbid(unsafe_code)]

pub mod names;
pub mod protocol;
