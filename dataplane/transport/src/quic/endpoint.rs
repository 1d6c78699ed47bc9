//! The endpoint of one shard: its socket, and its two sources in the driver's turn.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;
use outrider_http3::HeadMemo;
use outrider_shard::{ShardContext, Source};
use quinn_proto::Transmit;

use super::cid::ForRetry;
use super::config::QuicServer;
use super::connection::Shared;
use super::core::{Core, Route};
use super::memory::Memory;
use super::socket::{QuicSocket, Udp};
use super::wake::Wakes;
use crate::drain::Drain;
use crate::metrics::TransportMetrics;
use crate::pins::PinBudget;
use crate::server::Handler;

/// Datagrams that are received in a turn, up to the end of a batch.
const DATAGRAMS_PER_TURN: usize = 1024;

/// Batches received in a turn, and sent in one.
const RECEIVES_MAX: usize = 4;
const SENDS_MAX: usize = 8;

/// Requests of all connections that are remembered.
const HEADS_KEPT: usize = 1024;

/// A datagram for another shard.
#[derive(Debug)]
pub struct Misrouted {
    /// Who sent it.
    pub remote: SocketAddr,
    /// The address that it was sent to.
    pub local_ip: Option<IpAddr>,
    /// Its two ECN bits.
    pub ecn: u8,
    /// What it says.
    pub bytes: BytesMut,
}

/// Takes datagrams to the shards that they belong to. It must not wait, and may drop them.
pub trait Forward {
    /// A datagram for that shard.
    fn forward(&self, shard: usize, datagram: Misrouted);
}

/// What an endpoint is made of.
pub struct QuicParts<H> {
    /// The shard's own socket.
    pub socket: QuicSocket,
    /// What all shards share.
    pub server: QuicServer,
    /// Answers the requests.
    pub handler: Rc<H>,
    /// What clients may hold.
    pub pins: PinBudget,
    /// Ends it.
    pub drain: Drain,
    /// What is counted.
    pub metrics: TransportMetrics,
    /// For datagrams of other shards; they are dropped where there is none.
    pub forward: Option<Box<dyn Forward>>,
}

/// The endpoint of one shard, which stays on its thread. Clones are the same.
pub struct QuicEndpoint<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> QuicEndpoint<H> {
    /// Takes a datagram that came to another shard.
    pub fn deliver(&self, datagram: Misrouted) {
        self.0.borrow_mut().core.deliver(Instant::now(), datagram);
    }
}

impl<H: Handler> std::fmt::Debug for QuicEndpoint<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicEndpoint").finish_non_exhaustive()
    }
}

/// Serves QUIC on this shard, in the driver's turn, until the shard ends. Once `drain` has started new
/// connections are refused, and those that there are come to their end.
///
/// # Errors
/// The socket's.
///
/// # Panics
/// On a thread that is not a shard's.
pub fn serve<H: Handler>(
    context: &ShardContext,
    parts: QuicParts<H>,
) -> io::Result<QuicEndpoint<H>> {
    let endpoint = Rc::new(RefCell::new(Endpoint::new(context, parts)?));
    context.add_source(Box::new(Receive(endpoint.clone())));
    context.add_source(Box::new(Send(endpoint.clone())));
    Ok(QuicEndpoint(endpoint))
}

/// Receives, and looks after timeouts.
struct Receive<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> Source for Receive<H> {
    fn turn(&mut self) -> bool {
        self.0.borrow_mut().receive()
    }

    fn in_flight(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.borrow().core.deadline()
    }
}

/// Answers and sends.
struct Send<H: Handler>(Rc<RefCell<Endpoint<H>>>);

impl<H: Handler> Source for Send<H> {
    fn turn(&mut self) -> bool {
        self.0.borrow_mut().send()
    }

    fn in_flight(&self) -> bool {
        false
    }
}

/// The socket, and all that is behind it.
struct Endpoint<H: Handler> {
    udp: Udp,
    core: Core<H>,
    /// What is being sent; and how, when the socket did not take it.
    contents: Vec<u8>,
    blocked: Option<Transmit>,
}

impl<H: Handler> Endpoint<H> {
    fn new(context: &ShardContext, parts: QuicParts<H>) -> io::Result<Self> {
        let QuicParts { socket, server, handler, pins, drain, metrics, forward } = parts;
        let udp = Udp::new(socket)?;
        let handle = context.handle();
        let shard = u8::try_from(handle.id()).expect("a shard's number fits into a byte");
        let for_retry = ForRetry::default();
        let (config, crypto) = (server.endpoint(shard, &for_retry), server.server.clone());
        let proto = quinn_proto::Endpoint::new(config, Some(crypto), !udp.may_fragment(), None);
        metrics.watch_pins(&pins);
        let (accepted, open) = metrics.of_quic();
        let memory = Rc::new(Memory::new(server.settings.memory_bytes_max));
        metrics.watch_memory(memory.watched());
        let shared = Rc::new(Shared {
            handler,
            limits: server.limits.clone(),
            settings: server.settings.clone(),
            pins,
            metrics,
            open,
            wakes: Wakes::new(handle),
            memory,
            handshaking: Cell::new(0),
            upload_bytes: Cell::new(0),
            member_of: server.member_of,
            heads: HeadMemo::new(HEADS_KEPT),
        });
        let key = server.cid_key().clone();
        let route = Route { shard, key, for_retry, forward };
        let core = Core::new(route, proto, shared, drain, accepted);
        Ok(Self { udp, core, contents: Vec::with_capacity(1 << 17), blocked: None })
    }

    /// The first half of a turn; true when there was something.
    fn receive(&mut self) -> bool {
        let now = Instant::now();
        let Self { udp, core, .. } = self;
        let mut received = 0;
        for _ in 0..RECEIVES_MAX {
            let datagrams = udp.receive(|datagram| core.take(now, &datagram));
            received += datagrams;
            if datagrams == 0 || received >= DATAGRAMS_PER_TURN {
                break;
            }
        }
        let met = core.meet_strangers(now);
        core.fire_timeouts(now) || met || received > 0
    }

    /// The second half.
    fn send(&mut self) -> bool {
        if !self.core.has_work() && self.blocked.is_none() {
            return false;
        }
        let now = Instant::now();
        self.core.take_wakes(now);
        let was_blocked = self.blocked.is_some();
        let mut progress = false;
        for _ in 0..SENDS_MAX {
            let transmit = match self.blocked.take() {
                Some(transmit) => transmit,
                None => {
                    self.contents.clear();
                    let (udp, contents) = (&self.udp, &mut self.contents);
                    let segments_max = |mtu| udp.segments_max(mtu);
                    let Some(transmit) = self.core.next(now, segments_max, contents) else {
                        return true;
                    };
                    transmit
                }
            };
            if !self.udp.send(&transmit, &self.contents) {
                self.core.counters().sends_blocked.inc_by(u64::from(progress || !was_blocked));
                self.blocked = Some(transmit);
                return progress;
            }
            self.core.count_sent(&transmit);
            progress = true;
        }
        true
    }
}

impl<H: Handler> Drop for Endpoint<H> {
    /// Says good-bye to those that are still there.
    fn drop(&mut self) {
        let now = Instant::now();
        let Self { udp, core, contents, .. } = self;
        core.stop(now, contents, |transmit, contents| {
            udp.send(transmit, contents);
        });
    }
}
