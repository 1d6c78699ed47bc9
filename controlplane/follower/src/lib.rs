//! An edge's end of the control plane. It follows one node at a time, any of them, on a thread of its own, and keeps
//! what it was told on its disk; without any node it goes on with that.
//!
//! - [`folder`]: who this edge is: its certificate, and where the nodes are.
//! - [`store`]: the replica on disk.
//! - [`keeper`]: writes it, behind the stream.
//! - [`follower`]: the thread, and how it stands.

#![forbid(unsafe_code)]

pub mod folder;
pub mod follower;
pub mod keeper;
pub mod store;

pub use folder::{EdgeFolder, FolderError, Given};
pub use follower::{Follower, Monitor, Settings, StartError, Status};
