//! Kinds of nodes, and what names them.
//!
//! Every node has a **serial**: the number by which it came into the graph, from 1. Serials are given by
//! [`plan`](crate::plan) and are the same in every store that was given the same batches; rows are in their
//! order, so that all stores answer alike.

use serde::{Deserialize, Serialize};

/// The longest name of a customer, in bytes.
pub const CUSTOMER_BYTES_MAX: usize = 128;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A layer of an image; by its digest.
    Layer,
    /// A component of a function; by its digest.
    Component,
    /// A function; by its digest.
    Function,
    /// An image: a repository; by its name.
    Image,
    /// A version of an image: a manifest; by image and digest.
    Version,
    /// A version that consists of others; by image and digest.
    Index,
    /// A customer; by its name.
    Customer,
}

impl Kind {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Layer,
        Self::Component,
        Self::Function,
        Self::Image,
        Self::Version,
        Self::Index,
        Self::Customer,
    ];

    /// As it is written in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Component => "component",
            Self::Function => "function",
            Self::Image => "image",
            Self::Version => "version",
            Self::Index => "index",
            Self::Customer => "customer",
        }
    }

    /// As it is stored; never changes.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What is stored as `code`.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Whether a version may contain it itself: a layer, a component or a function.
    pub const fn is_content(self) -> bool {
        matches!(self, Self::Layer | Self::Component | Self::Function)
    }

    /// What a descriptor of this media type is.
    pub fn of_content(media_type: &str) -> Self {
        match media_type {
            "application/wasm" => Self::Component,
            _ => Self::Layer,
        }
    }
}

/// Whether a text may name a customer: 1 to [`CUSTOMER_BYTES_MAX`] bytes without control characters.
pub fn is_customer(name: &str) -> bool {
    !name.is_empty() && name.len() <= CUSTOMER_BYTES_MAX && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_lead_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_code(kind.code()), Some(kind));
            let json = format!("\"{}\"", kind.as_str());
            assert_eq!(serde_json::from_str::<Kind>(&json).unwrap(), kind);
        }
        assert_eq!(Kind::of_code(7), None);
    }
}
