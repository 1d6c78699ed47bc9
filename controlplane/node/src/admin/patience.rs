//! A connection whose other side must take what it is sent: one that takes nothing for too long is ended, so that a
//! reader that is gone, or never reads, does not hold its place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream that fails when a write waits for longer than `time_max`.
pub(crate) struct Patient<S> {
    stream: S,
    time_max: Duration,
    /// Since a write waits.
    until: Pin<Box<Sleep>>,
    waits: bool,
}

impl<S> Patient<S> {
    /// In a tokio runtime.
    pub(crate) fn new(stream: S, time_max: Duration) -> Self {
        Self { stream, time_max, until: Box::pin(tokio::time::sleep(time_max)), waits: false }
    }

    fn judge<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waits = false;
            return result;
        }
        if !self.waits {
            self.waits = true;
            self.until.as_mut().reset(Instant::now() + self.time_max);
        }
        ready!(self.until.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(result, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(result, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn who_takes_something_is_waited_for_and_who_takes_nothing_is_not() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(4);
            let mut near = Patient::new(near, 10 * SECOND);
            let reader = tokio::spawn(async move {
                let mut taken = [0; 4];
                for _ in 0..5 {
                    tokio::time::sleep(8 * SECOND).await;
                    far.read_exact(&mut taken).await.unwrap();
                }
                // Stays, and takes nothing more.
                tokio::time::sleep(3_600 * SECOND).await;
            });
            // Altogether it takes longer than one write may wait.
            near.write_all(&[7; 20]).await.unwrap();
            let began = Instant::now();
            let error = near.write_all(&[7; 20]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() >= 10 * SECOND);
            reader.abort();
        });
    }
}
