//! What is worth keeping. A policy is one file behind [`Policy`]: pure arithmetic, no clock, no
//! state of its own.

mod importance;

pub(crate) use importance::ImportancePolicy;

/// What a policy may look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Inputs {
    /// Weight of the customer's class, 1 is neutral.
    pub(crate) class: f64,
    /// Distinct customer-minutes, 1–255.
    pub(crate) frequency: u8,
    /// Measured time to fetch, in milliseconds.
    pub(crate) fetch_ms: f64,
    /// Measured time to compile or run, in milliseconds.
    pub(crate) execute_ms: f64,
    /// `log2(1 + dependants)`.
    pub(crate) depth_log2: f64,
    /// Size of the whole object in bytes.
    pub(crate) size_bytes: u64,
}

/// Ranks objects: the lowest score is evicted first. The score of an object that is used now is the clock (the
/// score of what was evicted last, so that what is no longer used falls behind) and its worth.
pub(crate) trait Policy {
    /// What an object is worth: at least 0, and must not fall when `frequency` rises.
    fn worth(&self, inputs: &Inputs) -> f64;
}
