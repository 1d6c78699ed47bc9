//! The limit of a QUIC server on one core: the same bytes through quinn-proto, and the same batches out
//! of a socket, with nothing of a server around it.
//!
//! Whatever comes on a stream is answered, once the stream has ended, with one body that is in memory.
//! No request is read, no header is made, no cache is asked, no file is opened. Counted are the state
//! machine (datagrams in, bodies in, datagrams out) and the sending of batches; not counted are
//! receiving and waiting. So a real server can come close to it and not reach it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use outrider_http3::{Connection as Http3, Limits, response};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint, EndpointConfig,
    Event, MtuDiscoveryConfig, ServerConfig, StreamEvent, StreamId, TransportConfig, WriteError,
};
use rustix::event::{PollFd, PollFlags};
use rustls::pki_types::PrivateKeyDer;

use crate::load::quic::udp::Udp;
use crate::load::window::thread_cpu;
use crate::load::{Meter, tls};
use crate::{BenchError, machine};

/// Batches received in one turn.
const RECEIVE_TURNS_MAX: u32 = 4;
/// Batches sent in one turn of a connection.
const SEND_TURNS_MAX: u32 = 8;
/// Datagrams in one batch: what the kernel takes at most is 64; more than 44 gained nothing.
const BATCH_DATAGRAMS_MAX: usize = 44;
/// The most that one batch may have.
const BATCH_BYTES_MAX: usize = 65_000;
/// Bytes of one connection that may be unacknowledged.
const SEND_WINDOW_BYTES: u64 = 64 << 20;
/// Requests at a time on one connection.
const STREAMS_MAX: u32 = 1000;
/// The largest UDP payload of loopback.
const UDP_PAYLOAD_MAX: u16 = 65_527;
/// The longest sleep, so that the end of the run is seen.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Acknowledgements that may wait in the kernel.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// A running limit. It ends when it is dropped.
#[derive(Debug)]
pub struct Limit {
    /// Where it serves.
    pub quic: SocketAddr,
    work_ns: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Limit {
    /// Serves `body` from a thread on `cpu`, with UDP payloads of up to `mtu`.
    ///
    /// # Errors
    /// When there is no socket, certificate or thread.
    pub fn start(cpu: Option<usize>, mtu: Option<u16>, body: Bytes) -> Result<Self, BenchError> {
        let (endpoint, server) = configs(mtu)?;
        let udp = Udp::bind((Ipv4Addr::LOCALHOST, 0).into(), RECEIVE_BUFFER_BYTES)?;
        let quic = udp.local_address().map_err(BenchError::io("reading an address"))?;
        let (work_ns, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&work_ns), Arc::clone(&stop));
        let mut answer = http::Response::new(());
        answer.headers_mut().insert(http::header::CONTENT_LENGTH, body.len().into());
        let head = response::encode_head(&answer.into_parts().0, Some(body.len() as u64));
        let mut server = Server {
            udp,
            endpoint: Endpoint::new(Arc::new(endpoint), Some(Arc::new(server)), true, None),
            peers: Vec::new(),
            dirty: VecDeque::new(),
            timers: BinaryHeap::new(),
            inbox: Vec::new(),
            scratch: Vec::new(),
            preface: Http3::new(Limits::default()).control_preface(),
            answer: [head, body],
        };
        let thread = std::thread::Builder::new()
            .name("limit".to_owned())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    let _ = machine::pin(cpu);
                }
                while !stopped.load(Ordering::Relaxed) {
                    server.turn(&counter);
                }
            })
            .map_err(BenchError::io("starting a thread"))?;
        Ok(Self { quic, work_ns, stop, thread: Some(thread) })
    }

    /// What counts of its CPU time.
    pub fn meter(&self) -> Meter {
        Meter::Counter(Arc::clone(&self.work_ns))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn configs(mtu: Option<u16>) -> Result<(EndpointConfig, ServerConfig), BenchError> {
    let wrong = |error: &dyn std::fmt::Display| BenchError::Tls(error.to_string());
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])
        .map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|e| wrong(&e))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .map_err(|error| wrong(&error))?;
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| wrong(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    transport.send_window(SEND_WINDOW_BYTES);
    transport.max_concurrent_bidi_streams(STREAMS_MAX.into());
    let mut endpoint = EndpointConfig::default();
    if let Some(mtu) = mtu {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        transport.mtu_discovery_config(Some(discovery));
        endpoint.max_udp_payload_size(UDP_PAYLOAD_MAX).map_err(|error| wrong(&error))?;
    }
    server.transport_config(Arc::new(transport));
    Ok((endpoint, server))
}

struct Datagram {
    from: SocketAddr,
    to: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    bytes: BytesMut,
}

struct Peer {
    quic: Connection,
    dirty: bool,
    armed: Option<Instant>,
    /// What is still to be written of each answer.
    answers: HashMap<StreamId, [Bytes; 2]>,
}

struct Server {
    udp: Udp,
    endpoint: Endpoint,
    peers: Vec<Option<Box<Peer>>>,
    dirty: VecDeque<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    inbox: Vec<Datagram>,
    scratch: Vec<u8>,
    preface: Bytes,
    answer: [Bytes; 2],
}

impl Server {
    fn turn(&mut self, work_ns: &AtomicU64) {
        self.udp.flush();
        let inbox = &mut self.inbox;
        for _ in 0..RECEIVE_TURNS_MAX {
            let count = self.udp.receive(|from, to, ecn, bytes| {
                inbox.push(Datagram { from, to, ecn, bytes });
            });
            if count == 0 {
                break;
            }
        }
        let before = thread_cpu();
        let mut worked = !self.inbox.is_empty();
        let now = Instant::now();
        for datagram in std::mem::take(&mut self.inbox) {
            self.take(now, datagram);
        }
        worked |= self.wake_timers(now);
        for _ in 0..self.dirty.len() {
            if self.udp.blocked() {
                break;
            }
            let Some(index) = self.dirty.pop_front() else { break };
            worked = true;
            self.drive(index);
        }
        if worked {
            let used = thread_cpu().saturating_sub(before);
            let used = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
            work_ns.fetch_add(used, Ordering::Relaxed);
        }
        if self.udp.blocked() || (!worked && self.dirty.is_empty()) {
            self.sleep();
        }
    }

    fn sleep(&self) {
        let wait = self.timers.peek().map_or(SLEEP_MAX, |Reverse((at, _))| {
            at.saturating_duration_since(Instant::now()).min(SLEEP_MAX)
        });
        let flags = if self.udp.blocked() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        // Whatever it says, the next turn looks.
        let _ = rustix::event::poll(&mut [PollFd::new(&self.udp, flags)], Some(&timeout));
    }

    fn take(&mut self, now: Instant, datagram: Datagram) {
        let Datagram { from, to, ecn, bytes } = datagram;
        self.scratch.clear();
        match self.endpoint.handle(now, from, to, ecn, bytes, &mut self.scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(Some(peer)) = self.peers.get_mut(handle.0) {
                    peer.quic.handle_event(event);
                    self.mark(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.scratch.clear();
                match self.endpoint.accept(incoming, now, &mut self.scratch, None) {
                    Ok((handle, quic)) => {
                        if self.peers.len() <= handle.0 {
                            self.peers.resize_with(handle.0 + 1, || None);
                        }
                        let answers = HashMap::new();
                        let peer = Peer { quic, dirty: false, armed: None, answers };
                        self.peers[handle.0] = Some(Box::new(peer));
                        self.mark(handle.0);
                    }
                    Err(error) => {
                        if let Some(transmit) = error.response.filter(|_| !self.udp.blocked()) {
                            self.udp.send(transmit, &self.scratch);
                        }
                    }
                }
            }
            Some(DatagramEvent::Response(transmit)) if !self.udp.blocked() => {
                self.udp.send(transmit, &self.scratch);
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn mark(&mut self, index: usize) {
        if let Some(Some(peer)) = self.peers.get_mut(index)
            && !std::mem::replace(&mut peer.dirty, true)
        {
            self.dirty.push_back(index);
        }
    }

    fn wake_timers(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(Some(peer)) = self.peers.get_mut(index)
                && peer.armed == Some(at)
            {
                peer.armed = None;
                any = true;
                self.mark(index);
            }
        }
        any
    }

    fn drive(&mut self, index: usize) {
        let Some(mut peer) = self.peers.get_mut(index).and_then(Option::take) else { return };
        peer.dirty = false;
        let (now, handle) = (Instant::now(), ConnectionHandle(index));
        if peer.quic.poll_timeout().is_some_and(|at| at <= now) {
            peer.quic.handle_timeout(now);
        }
        while let Some(event) = peer.quic.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                peer.quic.handle_event(event);
            }
        }
        while let Some(event) = peer.quic.poll() {
            match event {
                Event::Connected => peer.greet(self.preface.clone()),
                Event::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(id) = peer.quic.streams().accept(dir) {
                        peer.read(id, &self.answer);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => peer.read(id, &self.answer),
                Event::Stream(StreamEvent::Writable { id }) => peer.write(id),
                Event::Stream(StreamEvent::Stopped { id, .. }) => {
                    peer.answers.remove(&id);
                }
                _ => {}
            }
        }
        if peer.quic.is_drained() {
            while let Some(event) = peer.quic.poll_endpoint_events() {
                let _ = self.endpoint.handle_event(handle, event);
            }
            return;
        }
        let datagrams =
            BATCH_DATAGRAMS_MAX.min(BATCH_BYTES_MAX / usize::from(peer.quic.current_mtu()));
        let mut more = true;
        for _ in 0..SEND_TURNS_MAX {
            self.scratch.clear();
            let Some(transmit) = peer.quic.poll_transmit(now, datagrams.max(1), &mut self.scratch)
            else {
                more = false;
                break;
            };
            if !self.udp.send(transmit, &self.scratch) {
                break;
            }
        }
        if let Some(at) = peer.quic.poll_timeout().filter(|_| !more)
            && peer.armed.is_none_or(|armed| at < armed)
        {
            peer.armed = Some(at);
            self.timers.push(Reverse((at, index)));
        }
        self.peers[index] = Some(peer);
        if more {
            self.mark(index);
        }
    }
}

impl Peer {
    fn greet(&mut self, preface: Bytes) {
        if let Some(id) = self.quic.streams().open(Dir::Uni) {
            // A client that does not take its few bytes is of no use here.
            let _ = self.quic.send_stream(id).write_chunks(&mut [preface]);
        }
    }

    /// Reads and drops; the end of a request is answered.
    fn read(&mut self, id: StreamId, answer: &[Bytes; 2]) {
        let mut stream = self.quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(false) else { return };
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(_)) => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let _ = chunks.finalize();
        if ended && id.dir() == Dir::Bi {
            self.answers.insert(id, answer.clone());
            self.write(id);
        }
    }

    fn write(&mut self, id: StreamId) {
        let Some(chunks) = self.answers.get_mut(&id) else { return };
        let mut stream = self.quic.send_stream(id);
        while let Some(first) = chunks.iter().position(|chunk| !chunk.is_empty()) {
            match stream.write_chunks(&mut chunks[first..]) {
                Ok(written) if written.bytes > 0 => {}
                Ok(_) | Err(WriteError::Blocked) => return,
                Err(_) => break,
            }
        }
        let _ = stream.finish();
        self.answers.remove(&id);
    }
}
