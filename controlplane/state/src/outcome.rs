//! What came of a request. Small and without the value, since outcomes are kept to answer repeated
//! requests.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use rkyv::{Archive, Deserialize, Serialize};

use crate::members::Role;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Outcome {
    /// It was applied; what it wrote has this version. A request that changed nothing (the removal of what
    /// is absent) has the version 0.
    Done {
        /// The version.
        version: u64,
    },
    /// What must hold does not: nothing was changed.
    Mismatch {
        /// The version that there is, 0 for none.
        current: u64,
        /// Which write of the batch, 0 for the first or only one.
        index: u32,
    },
    /// There is no room for it: nothing was changed.
    Full,
    /// The `Idempotency-Key` was used for another request before: nothing was changed.
    Reused,
    /// The request is from before what its client said is settled: nothing was changed now.
    Settled,
    /// The token lets this key in.
    Joined {
        /// The member's number.
        member: u64,
        /// What it is.
        role: Role,
        /// Its region, or empty.
        region: String,
    },
    /// There is no such token: it is not known, used by another key, or over its time.
    NoToken,
    /// There is no such member.
    NoMember,
}

impl Outcome {
    /// Whether the request was applied.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Joined { .. })
    }
}
