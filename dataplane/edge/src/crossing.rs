//! Datagrams that came to the wrong shard, on their way to the right one: those of connections whose
//! client has changed its address, where the kernel does not steer by connection ID.

use std::sync::{Arc, OnceLock};

use outrider_shard::channel::{Sender, bounded};
use outrider_shard::{ShardHandle, task};
use outrider_transport::Handler;
use outrider_transport::quic::{Forward, Misrouted, QuicEndpoint};

/// Datagrams that may wait for one shard; more are dropped, as a network does.
const WAITING_MAX: usize = 1024;

/// The ways to all shards.
pub(crate) struct Crossing {
    seats: Box<[OnceLock<Sender<Misrouted>>]>,
}

impl Crossing {
    pub(crate) fn new(shards: usize) -> Self {
        Self { seats: (0..shards).map(|_| OnceLock::new()).collect() }
    }

    /// Takes what comes for this shard to its endpoint, for as long as the shard lives. Once a shard.
    pub(crate) fn attend<H: Handler>(
        &self,
        shard: usize,
        handle: &ShardHandle,
        endpoint: QuicEndpoint<H>,
    ) {
        let (sender, mut receiver) = bounded(WAITING_MAX, handle);
        if self.seats[shard].set(sender).is_err() {
            unreachable!("a shard sits down once");
        }
        task::spawn(async move {
            while let Some(datagram) = receiver.recv().await {
                endpoint.deliver(datagram);
                task::yield_if_needed().await;
            }
        });
    }
}

/// One shard's way out.
pub(crate) struct Out(pub(crate) Arc<Crossing>);

impl Forward for Out {
    fn forward(&self, shard: usize, datagram: Misrouted) {
        if let Some(seat) = self.0.seats.get(shard).and_then(OnceLock::get) {
            let _ = seat.try_send(datagram);
        }
    }
}
