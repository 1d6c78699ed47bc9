//! Messages and single values into a shard, from any thread.
//!
//! The receiving end is polled on the shard; its task is woken through the shard's queue of wakers,
//! once however many messages come in meanwhile. A message to a shard that is awake costs tens of
//! nanoseconds, one to a shard that sleeps a system call more.

mod bounded;
mod oneshot;
mod pipe;
mod rendezvous;

pub use bounded::{Receiver, Sender, TrySendError, bounded};
pub use oneshot::{Completer, Completion, oneshot};
pub use pipe::{PipeReceiver, PipeSender, pipe};
pub use rendezvous::{Member, Rendezvous};
