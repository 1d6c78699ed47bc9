//! TLS on a socket, by rustls without an adapter between: ciphertext is received for the whole shard
//! into one buffer, so that an idle connection holds none, and records go to the socket as they are
//! made, without being gathered.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Write};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use rustls::{ServerConfig, ServerConnection};

use crate::peer::Protocol;
use crate::socket::Socket;

/// Plaintext that is encrypted before it is sent: four records. They stay in the cache of the CPU.
const SEND_BYTES: usize = 64 * 1024;

/// Ciphertext that is received at once.
const RECEIVE_BYTES: usize = 32 * 1024;

/// What a plain HTTP client gets on a TLS port.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    content-length: 42\r\nconnection: close\r\n\r\nThis port speaks HTTPS: use an https URL.\n";

thread_local! {
    static RECEIVED: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; RECEIVE_BYTES].into_boxed_slice());
}

/// Why a handshake did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection was lost: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("plain HTTP was spoken")]
    PlainHttp,
}

/// The server's end of a TLS connection.
#[derive(Debug)]
pub(crate) struct TlsLink {
    socket: Socket,
    tls: ServerConnection,
    /// Ciphertext that could not be taken yet, since the plaintext before it waits to be read.
    rest: Vec<u8>,
    /// Nothing more will come in.
    ended: bool,
    received_bytes: u64,
}

impl TlsLink {
    /// Shakes hands. Takes as long as the client lets it.
    pub(crate) async fn accept(
        socket: Socket,
        config: Arc<ServerConfig>,
    ) -> Result<Self, HandshakeError> {
        let mut tls = ServerConnection::new(config)?;
        tls.set_buffer_limit(Some(SEND_BYTES));
        let mut link = Self { socket, tls, rest: Vec::new(), ended: false, received_bytes: 0 };
        let mut first = true;
        loop {
            std::future::poll_fn(|cx| link.poll_flush(cx)).await?;
            if !link.tls.is_handshaking() {
                return Ok(link);
            }
            let received = std::future::poll_fn(|cx| link.poll_handshake_read(cx, first)).await;
            first = false;
            match received {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) => {
                    link.say_goodbye(&error);
                    return Err(error);
                }
            }
        }
    }

    fn poll_handshake_read(
        &mut self,
        cx: &mut Context<'_>,
        first: bool,
    ) -> Poll<Result<usize, HandshakeError>> {
        RECEIVED.with_borrow_mut(|buffer| {
            let count = ready!(self.socket.poll_receive(cx, buffer))?;
            self.received_bytes += count as u64;
            let received = &buffer[..count];
            // No TLS record begins with a letter, and every HTTP request does.
            if first && received.first().is_some_and(u8::is_ascii_uppercase) {
                return Poll::Ready(Err(HandshakeError::PlainHttp));
            }
            self.take_ciphertext(received)?;
            Poll::Ready(Ok(count))
        })
    }

    /// Tells the client why, if the socket takes it at once.
    fn say_goodbye(&mut self, error: &HandshakeError) {
        let _ = match error {
            HandshakeError::PlainHttp => self.socket.try_send(&[IoSlice::new(PLAIN_HTTP_ANSWER)]),
            HandshakeError::Tls(_) => self.tls.write_tls(&mut Sender(&self.socket)),
            HandshakeError::Io(_) => Ok(0),
        };
        self.socket.shutdown_write();
    }

    /// What was negotiated.
    pub(crate) fn protocol(&self) -> Protocol {
        match self.tls.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Ciphertext that came in so far, in bytes.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Reads plaintext into `into`; nothing at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.take_plaintext(into)? && !self.ended {
            if self.rest.is_empty() {
                let received: Poll<io::Result<()>> = RECEIVED.with_borrow_mut(|buffer| {
                    let count = ready!(self.socket.poll_receive(cx, buffer))?;
                    self.received_bytes += count as u64;
                    self.ended = count == 0;
                    self.take_ciphertext(&buffer[..count]).map_err(invalid)?;
                    Poll::Ready(Ok(()))
                });
                ready!(received)?;
            } else {
                let rest = std::mem::take(&mut self.rest);
                self.take_ciphertext(&rest).map_err(invalid)?;
            }
            // An alert or a key update: if it has to wait, the next write takes it along.
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether there was any. Notes the end of the stream.
    fn take_plaintext(&mut self, into: &mut ReadBufCursor<'_>) -> io::Result<bool> {
        let mut any = false;
        while into.remaining() > 0 {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok([]) => {
                    self.ended = true;
                    break;
                }
                Ok(chunk) => {
                    let count = chunk.len().min(into.remaining());
                    into.put_slice(&chunk[..count]);
                    reader.consume(count);
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }

    /// Decrypts all of `received`, or as much as there is room for; the rest is kept.
    fn take_ciphertext(&mut self, received: &[u8]) -> Result<(), rustls::Error> {
        let mut left = received;
        while !left.is_empty() {
            match self.tls.read_tls(&mut left) {
                // The client has closed: what it sends after that means nothing.
                Ok(0) => break,
                Ok(_) => {
                    self.tls.process_new_packets()?;
                }
                Err(error) => {
                    // Plaintext waits to be read first. Anything else would come again.
                    if !matches!(self.tls.reader().fill_buf(), Ok([_, ..])) {
                        return Err(rustls::Error::General(error.to_string()));
                    }
                    self.rest = left.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Encrypts and sends; what is encrypted counts as written, and is sent before anything else.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let count = self.tls.writer().write_vectored(buffers)?;
        match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    /// Ready when all that was encrypted is sent.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.socket.poll_writable(cx));
            match self.tls.write_tls(&mut Sender(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(_) => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more will be sent. Sending it is left to [`Self::poll_flush`].
    pub(crate) fn close_write(&mut self) {
        self.tls.send_close_notify();
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What rustls writes records to.
struct Sender<'a>(&'a Socket);

impl Write for Sender<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_send(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_send(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
