//! A UDP socket with GSO and GRO, and the buffers of what it receives.
//!
//! Received bytes stay where the kernel put them: a buffer is cut into datagrams, which quinn-proto
//! keeps until they are read. So a body is decrypted in place and never copied.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::BytesMut;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use rustix::net::sockopt;

use crate::BenchError;

/// Messages taken by one system call; each may be many datagrams of one sender (GRO).
const MESSAGES_MAX: usize = 16;
/// The most that one message can be.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// What one buffer is made of: so much is zeroed at once, and cut up until no message fits in.
const BUFFER_BYTES: usize = 4 * MESSAGE_BYTES_MAX;
/// Unless asked for otherwise. With the usual 208 KiB a client loses packets on loopback, since one
/// GSO batch is charged with more than its bytes.
pub const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// The socket of one thread.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    buffers: [BytesMut; MESSAGES_MAX],
    metas: [RecvMeta; MESSAGES_MAX],
    /// A batch that the kernel had no room for.
    blocked: Option<(Transmit, Vec<u8>)>,
}

impl std::fmt::Debug for Udp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Udp").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Udp {
    /// A socket that can reach `server`, with a receive buffer of `receive_buffer_bytes`.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new(server: SocketAddr, receive_buffer_bytes: usize) -> Result<Self, BenchError> {
        let any: SocketAddr = match (server, server.ip().is_loopback()) {
            (SocketAddr::V4(_), true) => (Ipv4Addr::LOCALHOST, 0).into(),
            (SocketAddr::V4(_), false) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            (SocketAddr::V6(_), true) => (Ipv6Addr::LOCALHOST, 0).into(),
            (SocketAddr::V6(_), false) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        Self::bind(any, receive_buffer_bytes)
    }

    /// A socket on `address`.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn bind(address: SocketAddr, receive_buffer_bytes: usize) -> Result<Self, BenchError> {
        let doing = || format!("binding a UDP socket to {address}");
        let socket = UdpSocket::bind(address).map_err(BenchError::io(doing()))?;
        socket.set_nonblocking(true).map_err(BenchError::io(doing()))?;
        // Beyond the system's limit with the right to; else as much as the limit allows.
        if sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer_bytes).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, receive_buffer_bytes);
        }
        let state =
            UdpSocketState::new(UdpSockRef::from(&socket)).map_err(BenchError::io(doing()))?;
        Ok(Self {
            socket,
            state,
            buffers: std::array::from_fn(|_| BytesMut::new()),
            metas: [RecvMeta::default(); MESSAGES_MAX],
            blocked: None,
        })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Bytes that may wait in the kernel, as far as it granted them.
    pub fn receive_buffer_bytes(&self) -> usize {
        // Linux doubles what it was asked for, and says so: socket(7).
        sockopt::socket_recv_buffer_size(&self.socket).unwrap_or_default() / 2
    }

    /// Receives one batch, and hands on every datagram: its sender, the local address that it was
    /// sent to, its ECN bits. Returns how many messages there were; 0 when nothing waits.
    pub fn receive(
        &mut self,
        mut each: impl FnMut(SocketAddr, Option<std::net::IpAddr>, Option<EcnCodepoint>, BytesMut),
    ) -> usize {
        for buffer in &mut self.buffers {
            if buffer.len() < MESSAGE_BYTES_MAX {
                *buffer = BytesMut::zeroed(BUFFER_BYTES);
            }
        }
        let mut slices =
            self.buffers.each_mut().map(|buffer| IoSliceMut::new(&mut buffer[..MESSAGE_BYTES_MAX]));
        let socket = UdpSockRef::from(&self.socket);
        let Ok(count) = self.state.recv(socket, &mut slices, &mut self.metas) else { return 0 };
        for (meta, buffer) in self.metas.iter().zip(&mut self.buffers).take(count) {
            let mut message = buffer.split_to(meta.len);
            let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            while !message.is_empty() {
                let datagram = message.split_to(meta.stride.clamp(1, message.len()));
                each(meta.addr, meta.dst_ip, ecn, datagram);
            }
        }
        count
    }

    /// Sends a batch whose bytes are at the start of `contents`. False when the kernel has no room:
    /// then it is kept, and [`Udp::flush`] sends it when the socket is writable.
    pub fn send(&mut self, transmit: Transmit, contents: &[u8]) -> bool {
        debug_assert!(self.blocked.is_none(), "nothing is sent past what waits");
        let sent = self.try_send(&transmit, contents);
        if !sent {
            let kept = contents[..transmit.size].to_vec();
            self.blocked = Some((transmit, kept));
        }
        sent
    }

    /// Whether a batch waits for room.
    pub fn blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Sends what waited, if anything did.
    pub fn flush(&mut self) {
        if let Some((transmit, contents)) = self.blocked.take()
            && !self.try_send(&transmit, &contents)
        {
            self.blocked = Some((transmit, contents));
        }
    }

    fn try_send(&self, transmit: &Transmit, contents: &[u8]) -> bool {
        let message = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.state.try_send(UdpSockRef::from(&self.socket), &message) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // As for any other loss of a packet, QUIC sends it again.
            Ok(()) | Err(_) => true,
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_arrives_as_its_datagrams() {
        let mut receiver = Udp::bind((Ipv4Addr::LOCALHOST, 0).into(), 1 << 20).unwrap();
        let to = receiver.local_address().unwrap();
        let mut sender = Udp::new(to, 1 << 20).unwrap();
        let contents = [[b'a'; 1000], [b'b'; 1000], [b'c'; 1000]].concat();
        let transmit = Transmit {
            destination: to,
            ecn: Some(EcnCodepoint::Ect0),
            size: contents.len() - 500,
            segment_size: Some(1000),
            src_ip: None,
        };
        assert!(sender.send(transmit, &contents));
        let mut datagrams = Vec::new();
        while datagrams.len() < 3 {
            receiver.receive(|from, _, ecn, datagram| {
                assert_eq!(from, sender.local_address().unwrap());
                assert_eq!(ecn, Some(EcnCodepoint::Ect0));
                datagrams.push(datagram);
            });
        }
        assert_eq!(datagrams[0][..], [b'a'; 1000]);
        assert_eq!(datagrams[1][..], [b'b'; 1000]);
        assert_eq!(datagrams[2][..], [b'c'; 500]);
    }

    #[test]
    fn buffers_last_when_there_is_much_to_receive() {
        let mut receiver = Udp::bind((Ipv4Addr::LOCALHOST, 0).into(), 1 << 20).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut kept = Vec::new();
        for round in 0..40_u8 {
            sender.send_to(&[round; 60_000], receiver.local_address().unwrap()).unwrap();
            while receiver.receive(|_, _, _, datagram| kept.push(datagram)) == 0 {}
        }
        assert!(kept.iter().zip(0..).all(|(datagram, round)| *datagram == [round; 60_000][..]));
        assert_eq!(kept.len(), 40);
    }
}
