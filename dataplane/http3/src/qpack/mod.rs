//! Field sections (RFC 9204) without a dynamic table: an encoder that never makes entries, and a decoder that
//! allows none.

pub mod decode;
pub mod encode;
pub mod table;

#[cfg(test)]
mod tests;
