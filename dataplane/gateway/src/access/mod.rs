//! Who asks, and whether they may: the one place that says so, for every protocol.
//!
//! Without [`AccessShared`] everybody may do everything, as [`Asker::open`] says, and nothing of this costs anything.
//! With it, an asker is who shows the certificate of a member, else whose token or secret it is, else whose the
//! repository is by the table of prefixes, else nobody. A token is verified once for each shard that sees it.
//!
//! - [`tables`]: what the operator said, with the keys as they are now. [`gate`]: that, on a shard.
//! - [`entry`]: a request at the door. [`asker`]: who it is. [`needs`]: what an operation takes.
//! - [`keys`]: keys of issuers that are looked for since a token names them.
//! - [`links`]: what a repository has, since to know a digest is no right to read it.
//! - [`token`]: the edge's own tokens. [`audit`]: what was decided.

pub(crate) mod asker;
pub mod audit;
pub(crate) mod entry;
pub(crate) mod gate;
pub mod keys;
pub(crate) mod links;
pub(crate) mod needs;
pub mod tables;
pub(crate) mod token;

pub use audit::{AUDIT_WAITING_MAX, AuditSender};
pub use keys::KeyLooks;
pub use tables::{AccessShared, AccessTables, OWN_ISSUER, Realm};
