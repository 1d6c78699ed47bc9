//! A connection over quinn-proto, one socket for each, whose every frame is its owner's decision.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use outrider_http3::client::{RequestHead, Response, encode_head};
use quinn_proto::congestion::CubicConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ReadError, StreamEvent, StreamId, TransportConfig, VarInt,
};

/// Room for a datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// A first byte with these bits is a Retry (RFC 9000, section 17.2.5).
const RETRY_BITS: u8 = 0xf0;
/// How long a handshake may take before it counts as hung.
const CONNECT_MAX: Duration = Duration::from_secs(60);

/// How long an answer may take before it counts as missing.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The longest head of an answer.
const SECTION_BYTES_MAX: usize = 64 << 10;

/// What a client announces and how it sends.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The windows of streams and connection that it gives to the server, in bytes.
    pub window_bytes: u32,
    /// Every datagram is filled up to 1,200 bytes.
    pub padded: bool,
    /// Of what comes in only a Retry is looked at, so that no handshake comes to its end.
    pub hears_retry_only: bool,
    /// What was lost stays so: nothing is sent again once the handshake is over.
    pub sends_once: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window_bytes: 256 << 10, padded: false, hears_retry_only: false, sends_once: false }
    }
}

/// How a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// CONNECTION_CLOSE of HTTP/3, with its code and reason.
    Http(u64, String),
    /// CONNECTION_CLOSE of QUIC, with its code.
    Quic(u64),
    /// Without a word: timed out, reset.
    Lost(String),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(code, reason) => {
                write!(f, "{} {reason}", outrider_http3::Code(*code))
            }
            Self::Quic(code) => write!(f, "QUIC {code:#x}"),
            Self::Lost(why) => f.write_str(why),
        }
    }
}

/// See the module.
pub struct Client {
    endpoint: Endpoint,
    quic: quinn_proto::Connection,
    handle: ConnectionHandle,
    socket: UdpSocket,
    server: SocketAddr,
    settings: Settings,
    connected: bool,
    closed: Option<Closed>,
    /// Streams of the client that the server does not want to be sent.
    stopped: Vec<StreamId>,
    buffer: Box<[u8]>,
    outgoing: Vec<u8>,
    losing: bool,
    datagrams: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("connected", &self.connected).finish_non_exhaustive()
    }
}

pub(crate) fn socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How quinn-proto is to behave: as little as possible of its own accord.
fn config(tls: &Arc<rustls::ClientConfig>, settings: &Settings) -> io::Result<ClientConfig> {
    let crypto = QuicClientConfig::try_from(rustls::ClientConfig::clone(tls))
        .map_err(|error| io::Error::other(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    // Nothing is to wait for an acknowledgement.
    let mut congestion = CubicConfig::default();
    congestion.initial_window(1 << 30);
    if settings.sends_once {
        transport.packet_threshold(u32::MAX).time_threshold(1e9);
    }
    transport
        .stream_receive_window(settings.window_bytes.into())
        .receive_window(settings.window_bytes.into())
        .max_idle_timeout(None)
        .mtu_discovery_config(None)
        .pad_to_mtu(settings.padded)
        .enable_segmentation_offload(false)
        .congestion_controller_factory(Arc::new(congestion));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl Client {
    /// Begins a handshake; [`Self::turn`] goes on with it.
    ///
    /// # Errors
    /// The socket's, or what is wrong with the TLS.
    pub fn begin(
        server: SocketAddr,
        tls: &Arc<rustls::ClientConfig>,
        settings: Settings,
    ) -> io::Result<Self> {
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let (handle, quic) = endpoint
            .connect(Instant::now(), config(tls, &settings)?, server, "localhost")
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            endpoint,
            quic,
            handle,
            socket: socket(server)?,
            server,
            settings,
            connected: false,
            closed: None,
            stopped: Vec::new(),
            buffer: vec![0; DATAGRAM_BYTES].into_boxed_slice(),
            outgoing: Vec::new(),
            losing: false,
            datagrams: 0,
        })
    }

    /// The same, to the end of the handshake.
    ///
    /// # Errors
    /// As [`Self::begin`], and when the server refuses.
    pub fn connect(
        server: SocketAddr,
        tls: &Arc<rustls::ClientConfig>,
        settings: Settings,
    ) -> io::Result<Self> {
        let mut client = Self::begin(server, tls, settings)?;
        let since = Instant::now();
        while !client.connected {
            client.turn();
            if let Some(closed) = &client.closed {
                return Err(io::Error::other(closed.to_string()));
            }
            if since.elapsed() > CONNECT_MAX {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_micros(100));
        }
        Ok(client)
    }

    /// Whether the handshake is over.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// How the connection has ended, if it has.
    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Datagrams that it has sent.
    pub fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// Opens a stream, if the server allows one now.
    pub fn open(&mut self, dir: Dir) -> Option<StreamId> {
        self.quic.streams().open(dir)
    }

    /// Opens a unidirectional stream with these bytes.
    pub fn open_uni(&mut self, bytes: &[u8]) -> Option<StreamId> {
        let stream = self.open(Dir::Uni)?;
        self.write(stream, bytes);
        Some(stream)
    }

    /// Writes what the windows allow; how much that was.
    pub fn write(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.quic.send_stream(stream).write(bytes).unwrap_or(0)
    }

    /// Ends the client's side of a stream.
    pub fn finish(&mut self, stream: StreamId) {
        let _ = self.quic.send_stream(stream).finish();
    }

    /// RESET_STREAM and STOP_SENDING.
    pub fn give_up(&mut self, stream: StreamId, code: u32) {
        let _ = self.quic.send_stream(stream).reset(VarInt::from_u32(code));
        let _ = self.quic.recv_stream(stream).stop(VarInt::from_u32(code));
    }

    /// Whether the server has said that it does not want more of a stream.
    pub fn is_stopped(&self, stream: StreamId) -> bool {
        self.stopped.contains(&stream)
    }

    /// A PING, with the next datagram.
    pub fn ping(&mut self) {
        self.quic.ping();
    }

    /// Reads up to so many bytes of a stream.
    pub fn read(&mut self, stream: StreamId, bytes_max: usize) -> Vec<u8> {
        let mut read = Vec::new();
        let mut receiving = self.quic.recv_stream(stream);
        let Ok(mut chunks) = receiving.read(true) else { return read };
        while read.len() < bytes_max
            && let Ok(Some(chunk)) = chunks.next(bytes_max - read.len())
        {
            read.extend_from_slice(&chunk.bytes);
        }
        let _ = chunks.finalize();
        read
    }

    /// A GET as it should be, to the end of its answer: its status and body. Waits for it.
    ///
    /// # Errors
    /// How the connection or the stream has ended instead.
    pub fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>), String> {
        let stream = self.open(Dir::Bi).ok_or("no stream is allowed")?;
        self.write(stream, &encode_head(&RequestHead::get("localhost", path)));
        self.finish(stream);
        let (mut response, mut body) = (Response::new(false, SECTION_BYTES_MAX), Vec::new());
        let since = Instant::now();
        loop {
            self.turn();
            let mut receiving = self.quic.recv_stream(stream);
            let mut chunks = receiving.read(true).map_err(|error| error.to_string())?;
            let ended = loop {
                match chunks.next(usize::MAX) {
                    Ok(Some(chunk)) => response
                        .on_data(chunk.bytes, |piece| body.extend_from_slice(&piece))
                        .map_err(|error| error.to_string())?,
                    Ok(None) => break true,
                    Err(ReadError::Blocked) => break false,
                    Err(ReadError::Reset(code)) => return Err(format!("reset with {code}")),
                }
            };
            let _ = chunks.finalize();
            if ended {
                response.on_end().map_err(|error| error.to_string())?;
                return Ok((response.head().map_or(0, |head| head.status), body));
            }
            if let Some(closed) = &self.closed {
                return Err(closed.to_string());
            }
            if since.elapsed() > ANSWER_MAX {
                return Err("no answer".to_owned());
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Goes on from another port.
    ///
    /// # Errors
    /// The socket's.
    pub fn rebind(&mut self) -> io::Result<()> {
        self.socket = socket(self.server)?;
        Ok(())
    }

    /// From here on what is sent gets lost, or does not any more.
    pub fn lose(&mut self, losing: bool) {
        self.losing = losing;
    }

    /// Ends the connection.
    pub fn close(&mut self) {
        self.quic.close(Instant::now(), VarInt::from_u32(0x100), Bytes::new());
        self.flush();
    }

    /// Takes what has come, looks at the clocks, sends. Never waits.
    pub fn turn(&mut self) {
        self.receive();
        let now = Instant::now();
        let timed = !(self.connected && self.settings.sends_once);
        if timed && self.quic.poll_timeout().is_some_and(|at| at <= now) {
            self.quic.handle_timeout(now);
        }
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected => self.connected = true,
                Event::ConnectionLost { reason } => self.closed = Some(closed(reason)),
                Event::Stream(StreamEvent::Stopped { id, .. }) => self.stopped.push(id),
                _ => {}
            }
        }
        self.flush();
    }

    fn receive(&mut self) {
        while let Ok(len) = self.socket.recv(&mut self.buffer) {
            let is_retry = self.buffer[0] & RETRY_BITS == RETRY_BITS;
            if self.settings.hears_retry_only && !is_retry {
                continue;
            }
            let (now, datagram) = (Instant::now(), BytesMut::from(&self.buffer[..len]));
            self.outgoing.clear();
            let event =
                self.endpoint.handle(now, self.server, None, None, datagram, &mut self.outgoing);
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                self.quic.handle_event(event);
            }
        }
    }

    /// Sends what there is to send.
    pub fn flush(&mut self) {
        while let Some(event) = self.quic.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.quic.handle_event(event);
            }
        }
        loop {
            self.outgoing.clear();
            let now = Instant::now();
            let Some(transmit) = self.quic.poll_transmit(now, 1, &mut self.outgoing) else { break };
            self.datagrams += 1;
            if !self.losing {
                // What the socket does not take is lost, as on a network.
                let _ = self.socket.send(&self.outgoing[..transmit.size]);
            }
        }
    }
}

fn closed(reason: ConnectionError) -> Closed {
    match reason {
        ConnectionError::ApplicationClosed(close) => Closed::Http(
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        ConnectionError::ConnectionClosed(close) => Closed::Quic(u64::from(close.error_code)),
        other => Closed::Lost(other.to_string()),
    }
}
