//! One connection: its HTTP state machine (hyper's), and the watch that ends it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use outrider_shard::time::{self, Sleep};
use pin_project_lite::pin_project;

use crate::activity::Activity;
use crate::drain::Watcher;
use crate::limits::Limits;
use crate::metrics::Reason;
use crate::pins::ConnectionPins;
use crate::watch::{Observation, Verdict, Watch};

/// What hyper's connections have in common.
pub(crate) trait Http: Future<Output = hyper::Result<()>> {
    /// No more requests than those that have begun.
    fn retire(self: Pin<&mut Self>);
}

impl<I, B, S> Http for hyper::server::conn::http1::Connection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn retire(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, B, S, E> Http for hyper::server::conn::http2::Connection<I, S, E>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn retire(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// How a connection ended.
pub(crate) enum End {
    /// As HTTP ends one.
    Served(hyper::Result<()>),
    /// By its watch.
    Closed(Reason),
}

pin_project! {
    /// A connection that is watched.
    pub(crate) struct Connection<C> {
        #[pin]
        http: C,
        activity: Rc<Activity>,
        pins: ConnectionPins,
        limits: Rc<Limits>,
        watch: Watch,
        sleep: Option<Sleep>,
        drain: Option<Watcher>,
    }
}

impl<C: Http> Connection<C> {
    pub(crate) fn new(
        http: C,
        activity: Rc<Activity>,
        pins: ConnectionPins,
        limits: Rc<Limits>,
        drain: Watcher,
    ) -> Self {
        let watch = Watch::new(time::turn_time());
        Self { http, activity, pins, limits, watch, sleep: None, drain: Some(drain) }
    }
}

impl<C: Http> Future for Connection<C> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let mut this = self.project();
        if let Some(drain) = this.drain
            && Pin::new(drain).poll(cx).is_ready()
        {
            *this.drain = None;
            this.http.as_mut().retire();
        }
        let mut now = time::turn_time();
        loop {
            this.activity.refill_write_budget();
            if let Poll::Ready(result) = this.http.as_mut().poll(cx) {
                return Poll::Ready(End::Served(result));
            }
            let seen = observe(this.activity, this.pins);
            match this.watch.check(now, this.limits, seen) {
                Verdict::Keep(None) => return Poll::Pending,
                Verdict::Keep(Some(deadline)) => {
                    let sleep = this.sleep.get_or_insert_with(|| time::sleep_until(deadline));
                    // One that is armed for an earlier time finds out then: moving it for every
                    // request would cost more than that.
                    if sleep.deadline() > deadline {
                        sleep.reset(deadline);
                    }
                    if Pin::new(&mut *sleep).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    // It has come, and the deadline may have moved on: look again. By the exact time,
                    // since a deadline between the driver's last turn and now would come forever.
                    *this.sleep = None;
                    now = Instant::now();
                }
                Verdict::Retire => this.http.as_mut().retire(),
                Verdict::Close(reason) => {
                    if matches!(reason, Reason::Stalled | Reason::SlowReader) {
                        // Its unsent bytes are not kept by the kernel either.
                        this.activity.fault.set(true);
                    }
                    return Poll::Ready(End::Closed(reason));
                }
                Verdict::Leave => return Poll::Ready(End::Served(Ok(()))),
            }
        }
    }
}

fn observe(activity: &Activity, pins: &ConnectionPins) -> Observation {
    let output_waits = activity.write_blocked.get() || pins.any_held();
    Observation {
        requests: activity.requests.get(),
        in_flight: activity.in_flight.get() > 0,
        head_started: activity.head_started.get(),
        output_waits,
        sent_bytes: activity.sent_bytes.get(),
        closing: activity.closing.get(),
        pressed: output_waits && pins.is_under_pressure(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrider_shard::testing::on_shard;

    use super::*;
    use crate::drain::Drain;
    use crate::peer::Protocol;
    use crate::pins::PinBudget;

    /// A connection on which nothing ever happens.
    struct Silent {
        retired: bool,
    }

    impl Future for Silent {
        type Output = hyper::Result<()>;

        fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
            if self.retired { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
    }

    impl Http for Silent {
        fn retire(mut self: Pin<&mut Self>) {
            self.retired = true;
        }
    }

    fn silent(limits: Limits, drain: &Drain) -> Connection<Silent> {
        Connection::new(
            Silent { retired: false },
            Activity::new(Protocol::Http1),
            PinBudget::new(1 << 20, 1 << 20).connection(),
            Rc::new(limits),
            drain.watch(),
        )
    }

    #[test]
    fn a_deadline_that_came_while_the_shard_was_busy_is_seen_once_and_not_forever() {
        on_shard(|_| async {
            let limits = Limits { header_time: Duration::from_millis(5), ..Limits::default() };
            let connection = silent(limits, &Drain::new());
            std::thread::sleep(Duration::from_millis(20));
            assert!(matches!(connection.await, End::Closed(Reason::HeaderTime)));
        })
        .unwrap();
    }

    #[test]
    fn a_drain_retires_a_connection_that_waits() {
        on_shard(|_| async {
            let drain = Drain::new();
            let connection = silent(Limits::default(), &drain);
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                drain.start();
            });
            assert!(matches!(connection.await, End::Served(Ok(()))));
            thread.join().unwrap();
        })
        .unwrap();
    }
}
