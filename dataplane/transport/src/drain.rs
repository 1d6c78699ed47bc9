//! Ending without cutting anyone off.

use std::time::Duration;

/// The switch that ends every listener and connection that has a clone of it.
#[derive(Clone, Debug, Default)]
pub struct Drain {}

impl Drain {
    /// A switch that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops accepting; connections end after the response that they are at. Any thread.
    pub fn start(&self) {
        unimplemented!()
    }

    /// Whether it was started.
    pub fn is_started(&self) -> bool {
        unimplemented!()
    }

    /// Waits for at most this long until every connection has ended; gives how many have not.
    /// To be awaited on a shard.
    pub async fn wait(&self, time_max: Duration) -> usize {
        let _ = time_max;
        unimplemented!()
    }
}
