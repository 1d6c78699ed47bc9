//! The dependency graph: which layers an image's versions are made of, who shares them, and what follows
//! from that.
//!
//! - [`node`]: kinds of nodes, and what names them.
//! - [`analyse`]: a manifest becomes what is to be applied. Pure.
//! - [`batch`]: what is applied at once, and its bounds.
//! - [`plan`]: what a batch changes in a graph of which the relevant part is known. Pure.
//! - [`query`]: the named queries, and the rows that answer them.
//! - [`store`]: the trait [`Graph`] that every store implements.
//! - [`embedded`]: the store that needs nothing else.
//! - [`neo4j`]: the store in a Neo4j of the operator's.
//! - [`model`] and [`workload`]: what stores are compared with, and over what.

#![forbid(unsafe_code)]

pub mod analyse;
pub mod batch;
pub mod embedded;
pub mod model;
pub mod neo4j;
pub mod node;
pub mod plan;
pub mod query;
pub mod store;
pub mod workload;

pub use analyse::{AnalyseError, Seen, analyse, stated};
pub use batch::{Access, Alone, Batch, Begin, Content, Found, Mark, Position};
pub use embedded::Embedded;
pub use neo4j::Neo4j;
pub use node::Kind;
pub use query::{Answer, Asked, Query, Row};
pub use store::{Applied, Graph, GraphError, Pending, Progress, Stats};
