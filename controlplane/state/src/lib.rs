//! What the control plane knows, as a state machine without I/O: requests in log order go in, outcomes and
//! changes come out. No clock, no randomness and no task lives here, so that every node that applies the
//! same log has the same state, byte by byte.
//!
//! - [`request`]: what can be asked for, and the bounds of each part.
//! - [`outcome`]: what came of it.
//! - [`state`]: [`State`], which applies batches of requests.
//! - [`applied`]: a request that comes again is answered as before and not applied again.
//! - [`members`]: join tokens, and the nodes and edges that used one.
//! - [`change`]: what a request changed, in order, and the recent past for those who follow.
//! - [`events`]: events of edges on their way to the queues of all nodes.
//! - [`invalidated`]: the digests that were invalidated last.
//! - [`record`]: batches and snapshots as bytes.
//! - [`snapshot`]: all of a state as bytes, and back.
//! - [`workload`]: seeded random requests for simulations.

#![forbid(unsafe_code)]

pub mod applied;
pub mod change;
pub mod events;
pub mod invalidated;
pub mod members;
pub mod outcome;
pub mod record;
pub mod request;
pub mod snapshot;
pub mod state;
pub mod workload;

pub use change::{Change, History, Update};
pub use events::EventRecord;
pub use outcome::Outcome;
pub use record::RecordError;
pub use request::{Batch, Expect, Operation, Request, RequestError, RequestId, Write};
pub use state::{Fragment, State};
