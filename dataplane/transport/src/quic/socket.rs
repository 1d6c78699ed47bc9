//! The UDP sockets of the shards, and batches of datagrams in and out of one of them.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

use outrider_shard::ready::Watched;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::steer::steer;
use crate::TransportError;

/// Messages received by one system call; each may be some dozen datagrams of one sender.
const BATCH: usize = 16;

/// The room for one message.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Datagrams sent by one system call, and bytes: above 65,507 the kernel takes none of them.
const SEGMENTS_MAX: usize = 44;
const SEGMENTS_BYTES_MAX: usize = 65_000;

/// The addresses that this process has bound. As for TCP: see [`crate::Listener`].
static BOUND: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// A bound UDP socket, to be served on one shard. All that share an address are bound at once, in the
/// order of their shards, since the kernel counts them so.
#[derive(Debug)]
pub struct QuicSocket {
    socket: UdpSocket,
    address: SocketAddr,
}

impl QuicSocket {
    /// Binds a socket for each of `shards` shards, with buffers of `buffer_bytes` in both directions,
    /// or what the system allows (`net.core.rmem_max`, `wmem_max`). Datagrams are steered to the
    /// shard that their connection ID names where the kernel can do that.
    ///
    /// # Errors
    /// [`TransportError::Bind`], also when another process has the port.
    pub fn bind_shards(
        address: SocketAddr,
        shards: usize,
        buffer_bytes: usize,
    ) -> Result<Vec<Self>, TransportError> {
        assert!((1..=256).contains(&shards), "a shard's number fits into a byte");
        Self::try_bind(address, shards, buffer_bytes)
            .map_err(|source| TransportError::Bind { address, source })
    }

    fn try_bind(
        mut address: SocketAddr,
        shards: usize,
        buffer_bytes: usize,
    ) -> io::Result<Vec<Self>> {
        let mut bound = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if address.port() != 0 && !bound.contains(&address) {
            drop(bind_socket(address, false)?);
        }
        let mut sockets = Vec::with_capacity(shards);
        for _ in 0..shards {
            let socket = bind_socket(address, true)?;
            address = socket.local_addr()?;
            // What cannot be had of it is no reason not to serve.
            let _ = sockopt::set_socket_recv_buffer_size(&socket, buffer_bytes);
            let _ = sockopt::set_socket_send_buffer_size(&socket, buffer_bytes);
            bound.push(address);
            sockets.push(Self { socket, address });
        }
        let count = u32::try_from(shards).expect("a shard's number fits into a byte");
        if let Err(error) = steer(&sockets[0].socket, count)
            && shards > 1
        {
            tracing::warn!(%error, "the kernel does not steer by connection ID, so that datagrams are forwarded");
        }
        Ok(sockets)
    }

    /// The address, with the port that was chosen when 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    #[cfg(test)]
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

impl Drop for QuicSocket {
    fn drop(&mut self) {
        let mut bound = BOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = bound.iter().position(|address| *address == self.address) {
            bound.swap_remove(index);
        }
    }
}

fn bind_socket(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::UDP),
    )?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}

/// A datagram as it came in.
pub(crate) struct Received<'a> {
    pub(crate) remote: SocketAddr,
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) bytes: &'a [u8],
}

/// A socket on its shard.
pub(crate) struct Udp {
    watched: Watched<UdpSocket>,
    state: UdpSocketState,
    _bound: QuicSocket,
    buffer: Box<[u8]>,
    meta: [RecvMeta; BATCH],
}

impl Udp {
    pub(crate) fn new(bound: QuicSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&bound.socket))?;
        let watched = Watched::new(bound.socket.try_clone()?)?;
        Ok(Self {
            watched,
            state,
            _bound: bound,
            buffer: vec![0; BATCH * MESSAGE_BYTES].into_boxed_slice(),
            meta: [RecvMeta::default(); BATCH],
        })
    }

    /// Whether the path may cut datagrams up, so that its MTU cannot be found.
    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Receives one batch; gives how many datagrams there were. Each is only lent to `take`.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Received<'_>)) -> usize {
        // The driver looks at the descriptors in every turn: nobody has to be woken.
        let mut nobody = Context::from_waker(Waker::noop());
        if self.watched.poll_readable(&mut nobody).is_pending() {
            return 0;
        }
        let mut rest = &mut self.buffer[..];
        let mut slices: [IoSliceMut<'_>; BATCH] = std::array::from_fn(|_| {
            let (slice, behind) = std::mem::take(&mut rest).split_at_mut(MESSAGE_BYTES);
            rest = behind;
            IoSliceMut::new(slice)
        });
        let socket = UdpSockRef::from(self.watched.get_ref());
        let messages = match self.state.recv(socket, &mut slices, &mut self.meta) {
            Ok(messages) => messages,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return 0,
            // What else there may be is an error of a datagram that was sent before.
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.watched.clear_readable();
                }
                return 0;
            }
        };
        if messages < BATCH {
            // That was all: what comes now is an event of its own.
            self.watched.clear_readable();
        }
        let mut datagrams = 0;
        for (meta, message) in self.meta.iter().zip(&slices).take(messages) {
            let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            for bytes in message[..meta.len].chunks(meta.stride.max(1)) {
                datagrams += 1;
                take(Received { remote: meta.addr, local_ip: meta.dst_ip, ecn, bytes });
            }
        }
        datagrams
    }

    /// How many datagrams of this size one call may send.
    pub(crate) fn segments_max(&self, mtu: u16) -> usize {
        let fit = SEGMENTS_BYTES_MAX / usize::from(mtu.max(1));
        self.state.max_gso_segments().min(SEGMENTS_MAX).min(fit).max(1)
    }

    /// Sends what one call can; false when the socket does not take it now.
    pub(crate) fn send(&self, transmit: &Transmit, contents: &[u8]) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        if self.watched.poll_writable(&mut nobody).is_pending() {
            return false;
        }
        let datagrams = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.state.try_send(UdpSockRef::from(self.watched.get_ref()), &datagrams) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.watched.clear_writable();
                false
            }
            // A probe that is too large for the path, or an address that cannot be reached: as good
            // as lost on the way, which QUIC sees to.
            Ok(()) | Err(_) => true,
        }
    }
}
