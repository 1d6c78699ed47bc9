//! A connected TCP socket on its shard: system calls, and waiting only where they would block.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use outrider_shard::ready::Watched;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

/// A non-blocking socket.
#[derive(Debug)]
pub(crate) struct Socket {
    watched: Watched<TcpStream>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { watched: Watched::new(stream)? })
    }

    /// Receives into `buffer`; 0 at the end of the stream.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_receive_with(cx, buffer.len(), |socket| {
            rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()).map(|(_, count)| count)
        })
    }

    /// Receives into the beginning of `buffer`, which need not be initialised.
    pub(crate) fn poll_receive_uninit(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<usize>> {
        self.poll_receive_with(cx, buffer.len(), |socket| {
            let ((filled, _), _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?;
            Ok(filled.len())
        })
    }

    fn poll_receive_with(
        &self,
        cx: &mut Context<'_>,
        capacity: usize,
        mut receive: impl FnMut(&TcpStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.watched.poll_readable(cx));
            match receive(self.watched.get_ref()) {
                Ok(count) => {
                    // The rest of what there was, so that there is nothing now.
                    if count < capacity {
                        self.watched.clear_readable();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.watched.clear_readable(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Sends what the socket takes of `buffers`.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.watched.poll_writable(cx));
            match self.try_send(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Sends what the socket takes at once.
    pub(crate) fn try_send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let mut stream = self.watched.get_ref();
            let sent = match buffers {
                [one] => stream.write(one),
                many => stream.write_vectored(many),
            };
            match sent {
                Ok(count) => {
                    if count < buffers.iter().map(|buffer| buffer.len()).sum() {
                        self.watched.clear_writable();
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() == io::ErrorKind::WouldBlock {
                        self.watched.clear_writable();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the socket takes more.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.watched.poll_writable(cx)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn shutdown_write(&self) {
        // It can only fail because the other side has gone, which is as good.
        let _ = self.watched.get_ref().shutdown(Shutdown::Write);
    }

    /// Makes closing it a reset: what the kernel still holds is thrown away, and the client cannot
    /// take what it got for whole.
    pub(crate) fn reset_on_close(&self) {
        // Without it, it is closed in good order after all.
        let _ = sockopt::set_socket_linger(self.watched.get_ref(), Some(Duration::ZERO));
    }
}
