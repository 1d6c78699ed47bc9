//! The byte stream that hyper reads and writes: plain or TLS, with what goes through it noted for the
//! connection's watch.
//!
//! The one module with unsafe code: hyper hands out uninitialised memory to read into.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::activity::Activity;
use crate::link::TlsLink;
use crate::metrics::TransportMetrics;
use crate::socket::Socket;

/// What is read and thrown away after the last answer.
const LINGER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How much of it at once, and before others have their turn.
const LINGER_READ_BYTES: usize = 16 * 1024;

/// One connection's bytes.
pub(crate) struct Stream {
    transport: Transport,
    activity: Rc<Activity>,
    metrics: TransportMetrics,
    closing: Closing,
}

pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsLink>),
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// What is left is being sent, with the word that it is the last.
    Sending,
    /// All is sent. The client may still be sending what nobody reads; closing the socket now would
    /// answer that with a reset, which can destroy the answer before the client has read it.
    Lingering {
        bytes_left: u64,
    },
    Done,
}

impl Transport {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(link) => link.socket(),
        }
    }
}

impl Stream {
    pub(crate) fn new(
        transport: Transport,
        activity: Rc<Activity>,
        metrics: TransportMetrics,
    ) -> Self {
        if let Transport::Tls(link) = &transport {
            metrics.received_bytes.inc_by(link.received_bytes());
        }
        Self { transport, activity, metrics, closing: Closing::No }
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(socket) => {
                let count = ready!(socket.poll_receive_uninit(cx, unfilled(into)))?;
                self.metrics.received_bytes.inc_by(count as u64);
                advance(into, count);
                Poll::Ready(Ok(()))
            }
            Transport::Tls(link) => {
                let before = link.received_bytes();
                let read = link.poll_read(cx, into);
                self.metrics.received_bytes.inc_by(link.received_bytes() - before);
                read
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.activity.may_write() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let sent = match &mut self.transport {
            Transport::Plain(socket) => socket.poll_send(cx, buffers),
            Transport::Tls(link) => link.poll_write(cx, buffers),
        };
        match &sent {
            Poll::Ready(Ok(count)) => {
                self.activity.note_sent(*count);
                self.metrics.sent_bytes.inc_by(*count as u64);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.write_blocked.set(true),
        }
        sent
    }

    fn poll_send_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.transport {
            Transport::Plain(_) => Poll::Ready(Ok(())),
            Transport::Tls(link) => link.poll_flush(cx),
        };
        self.activity.write_blocked.set(flushed.is_pending());
        flushed
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>, mut bytes_left: u64) -> Poll<io::Result<()>> {
        let mut buffer = [0; LINGER_READ_BYTES];
        while bytes_left > 0 && !self.activity.read_ended.get() {
            let count = match ready!(self.transport.socket().poll_receive(cx, &mut buffer)) {
                Ok(count) => count,
                // It is gone, and with it the need to wait.
                Err(_) => break,
            };
            if count == 0 {
                break;
            }
            self.metrics.received_bytes.inc_by(count as u64);
            bytes_left = bytes_left.saturating_sub(count as u64);
            self.closing = Closing::Lingering { bytes_left };
            if count == buffer.len() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.closing = Closing::Done;
        Poll::Ready(Ok(()))
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let room = into.remaining();
        ready!(self.poll_receive(cx, &mut into))?;
        if into.remaining() < room {
            self.activity.note_received();
        } else if room > 0 {
            self.activity.read_ended.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buffer)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_rest(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.closing {
                Closing::No => {
                    self.activity.closing.set(true);
                    if let Transport::Tls(link) = &mut self.transport {
                        link.close_write();
                    }
                    self.closing = Closing::Sending;
                }
                Closing::Sending => {
                    ready!(self.poll_send_rest(cx))?;
                    self.transport.socket().shutdown_write();
                    self.closing = Closing::Lingering { bytes_left: LINGER_BYTES_MAX };
                }
                Closing::Lingering { bytes_left } => return self.poll_linger(cx, bytes_left),
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.activity.fault.get() {
            self.transport.socket().reset_on_close();
        }
    }
}

/// The room that is left.
#[allow(unsafe_code)]
fn unfilled<'a>(cursor: &'a mut ReadBufCursor<'_>) -> &'a mut [MaybeUninit<u8>] {
    // SAFETY: the caller must not write uninitialised memory over what may be initialised already.
    // It is given to a receiving system call alone, which only ever writes bytes that it received.
    unsafe { cursor.as_mut() }
}

/// Says that `count` bytes were received into [`unfilled`].
#[allow(unsafe_code)]
fn advance(cursor: &mut ReadBufCursor<'_>, count: usize) {
    assert!(count <= cursor.remaining(), "no more is received than there is room for");
    // SAFETY: these bytes were initialised by the system call that received them, whose result
    // `count` is.
    unsafe { cursor.advance(count) }
}
