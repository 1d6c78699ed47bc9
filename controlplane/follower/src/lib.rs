//! An edge's end of the control plane. It follows one node at a time, any of them, on a thread of its own, and keeps
//! what it was told on its disk; without any node it goes on with that.
//!
//! - [`folder`]: who this edge is: its certificate, and where the nodes are.
//! - `nodes`: which of them is tried next.
//! - [`view`]: the fragments that it knows, for who reads them here.
//! - [`store`]: the replica on disk.
//! - [`keeper`]: writes it, behind the stream.
//! - [`asks`]: what it wants to have written.
//! - `renewal`: its certificate, made anew before it ends.
//! - [`follower`]: the thread, and how it stands.

#![forbid(unsafe_code)]

pub mod asks;
pub mod folder;
pub mod follower;
pub mod keeper;
mod nodes;
mod renewal;
pub mod store;
pub mod view;

pub use asks::{AskCounts, AskError, Asker, Asks};
pub use folder::{EdgeFolder, FolderError, Given};
pub use follower::{Follower, Monitor, Settings, Sink, StartError, Status};
pub use keeper::{Settled, Settling};
pub use view::{Listed, View};
