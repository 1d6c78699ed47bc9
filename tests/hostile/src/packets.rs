//! First packets of connections that nobody goes on with.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};

/// The least that a datagram with a first packet has (RFC 9000, section 14.1).
const INITIAL_BYTES: usize = 1200;

/// An Initial packet with a connection ID of its own and nothing that could be decrypted.
pub fn garbage(random: &mut fastrand::Rng) -> Vec<u8> {
    // Flags, version 1, the lengths of both IDs with the IDs, no token.
    let mut datagram = vec![0xc0, 0, 0, 0, 1, 8];
    datagram.extend((0..8).map(|_| random.u8(..)));
    datagram.push(8);
    datagram.extend((0..8).map(|_| random.u8(..)));
    datagram.push(0);
    let rest = INITIAL_BYTES - datagram.len() - 2;
    let length = u16::try_from(rest).expect("it is less than 1,200");
    datagram.extend((0x4000 | length).to_be_bytes());
    datagram.resize_with(INITIAL_BYTES, || random.u8(..));
    datagram
}

/// The first datagrams of a client that begins a handshake in good order, with random connection IDs.
///
/// # Errors
/// When the TLS cannot be used with QUIC.
pub fn hello(server: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> io::Result<Vec<Vec<u8>>> {
    let wrong = |error: String| io::Error::other(error);
    let crypto = QuicClientConfig::try_from(rustls::ClientConfig::clone(tls))
        .map_err(|error| wrong(error.to_string()))?;
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let config = ClientConfig::new(Arc::new(crypto));
    let (_, mut quic) = endpoint
        .connect(Instant::now(), config, server, "localhost")
        .map_err(|error| wrong(error.to_string()))?;
    let mut datagrams = Vec::new();
    loop {
        let mut datagram = Vec::new();
        let Some(transmit) = quic.poll_transmit(Instant::now(), 1, &mut datagram) else { break };
        datagram.truncate(transmit.size);
        datagrams.push(datagram);
    }
    Ok(datagrams)
}
