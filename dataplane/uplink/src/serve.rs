//! The life of one fetch on the uplink thread: a place in its lane, the breaker's permission, the
//! exchange, the check of the head, and the body until its last byte.
//!
//! All of it lives in one future that is dropped when the asker has gone away, and with it the
//! connection, the place and the window. Never buffers a body.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use outrider_shard::{ShardHandle, channel};

use crate::error::{FetchError, TimeoutStage};
use crate::exchange::reason;
use crate::fetch::{Command, FetchHead, FetchMethod, FetchRequest};
use crate::head;
use crate::lane::{Admitted, lock};
use crate::upstream::Upstream;
use crate::window::{self, BodySender, FetchBody, Gone};

/// How long the end of a body may take after its announced length has come. An upstream that then
/// neither ends nor sends more has kept its word as far as the content goes.
const END_GRACE: Duration = Duration::from_secs(1);

type Answerer = channel::Completer<Result<(FetchHead, FetchBody), FetchError>>;

/// Counts how a fetch ended, also when its future is dropped.
struct Outcome<'a> {
    upstream: &'a Upstream,
    request: &'a FetchRequest,
    outcome: &'static str,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let Self { upstream, request, outcome } = self;
        upstream.metrics.finished(&upstream.label, request.kind(), outcome);
    }
}

/// Serves one fetch.
pub(crate) async fn serve(upstream: Arc<Upstream>, command: Command) {
    let Command { request, shard, answer, gone } = command;
    let _entered = upstream.lane(&request.target).enter();
    let mut outcome = Outcome { upstream: &upstream, request: &request, outcome: "cancelled" };
    tokio::select! {
        // The first, so that what nobody wants any more is not even begun.
        biased;
        _ = gone => {}
        ended = fetch(&upstream, &request, &shard, answer) => match ended {
            Ok(()) => outcome.outcome = "ok",
            Err(Some(error)) => outcome.outcome = error.reason(),
            Err(None) => {}
        },
    }
}

/// One fetch to its end. The error is `None` when the reader went away.
async fn fetch(
    upstream: &Arc<Upstream>,
    request: &FetchRequest,
    shard: &ShardHandle,
    answer: Answerer,
) -> Result<(), Option<FetchError>> {
    let started = Instant::now();
    let lane = upstream.lane(&request.target);
    let refuse = |answer: Answerer, error: FetchError| {
        answer.complete(Err(error.clone()));
        Err(Some(error))
    };
    let _place = match lane.place().await {
        Ok(place) => place,
        Err(error) => return refuse(answer, error),
    };
    let admitted = match lane.admit() {
        Ok(admitted) => admitted,
        Err(error) => return refuse(answer, error),
    };
    let (head, body) = match head_of(upstream, request).await {
        Ok(answered) => answered,
        Err(error) => {
            upstream.note(admitted, &error);
            return refuse(answer, error);
        }
    };
    upstream.metrics.first_byte(&upstream.label, request.kind(), started.elapsed());
    if request.method == FetchMethod::Head {
        admitted.succeeded();
        answer.complete(Ok((head, FetchBody::empty())));
        return Ok(());
    }
    admitted.answered();
    let length = head.length;
    let (sender, reader) = window::open(upstream.config.window_bytes, shard);
    answer.complete(Ok((head, reader)));
    match pump(upstream, body, length, &sender).await {
        Ok(()) => {
            admitted.succeeded();
            sender.finish(Ok(()));
            Ok(())
        }
        Err(Stop::Failed(error)) => {
            upstream.note(admitted, &error);
            sender.finish(Err(error.clone()));
            Err(Some(error))
        }
        Err(Stop::Gone) => Err(None),
    }
}

impl Upstream {
    /// Lets the breaker know of an error, and keeps it for the status when it counts.
    fn note(&self, admitted: Admitted<'_>, error: &FetchError) {
        if admitted.ended(error) {
            tracing::debug!(upstream = %self.label, %error, "a fetch failed");
            *lock(&self.last_error) = Some((error.to_string(), SystemTime::now()));
        }
    }
}

/// The checked head of the answer, and its body.
async fn head_of(
    upstream: &Arc<Upstream>,
    request: &FetchRequest,
) -> Result<(FetchHead, Incoming), FetchError> {
    let response = tokio::time::timeout(upstream.fetch_timeout(), upstream.exchange(request))
        .await
        .unwrap_or(Err(FetchError::Timeout { stage: TimeoutStage::Head }))?;
    let (parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    let now = SystemTime::now();
    let head = head::check(request.method, request.range, status, &parts.headers, now)?;
    Ok((head, body))
}

/// Why a body is not carried on.
pub(crate) enum Stop {
    Failed(FetchError),
    Gone,
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// How long the next byte, or the end after the last one, may take.
fn patience(upstream: &Upstream, complete: bool) -> Duration {
    if complete { END_GRACE } else { upstream.config.idle_timeout }
}

/// Carries a body into its window until it ends at exactly `length`, where that is known.
async fn pump(
    upstream: &Upstream,
    mut body: Incoming,
    length: Option<u64>,
    sender: &BodySender,
) -> Result<(), Stop> {
    let counter = upstream.metrics.received(&upstream.label);
    let mut received: u64 = 0;
    let cut =
        |received_bytes, reason: String| Stop::Failed(FetchError::Cut { received_bytes, reason });
    let mut silence = pin!(tokio::time::sleep(patience(upstream, length == Some(0))));
    loop {
        let complete = length == Some(received);
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut silence => {
                if complete {
                    return Ok(());
                }
                return Err(Stop::Failed(FetchError::Timeout { stage: TimeoutStage::Body }));
            }
        };
        let data: Bytes = match frame {
            None => break,
            Some(Err(_)) if complete => return Ok(()),
            Some(Err(error)) => return Err(cut(received, reason(&error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                // Trailers say nothing that we asked for.
                Err(_) => continue,
            },
        };
        if data.is_empty() {
            // An empty frame is no progress: it does not end the silence.
            continue;
        }
        let bytes = data.len() as u64;
        counter.inc_by(bytes);
        if length.is_some_and(|length| received + bytes > length) {
            return Err(cut(received, "more came than was announced".to_owned()));
        }
        received += bytes;
        sender.send(data).await?;
        if length == Some(received) && body.is_end_stream() {
            // The reader may leave with the last byte it was told of, so the end is not waited for.
            return Ok(());
        }
        // From here on, so that the time in which the reader took nothing does not count.
        let patience = patience(upstream, length == Some(received));
        silence.as_mut().reset(tokio::time::Instant::now() + patience);
    }
    match length {
        Some(length) if received < length => {
            Err(cut(received, format!("{length} bytes were announced")))
        }
        _ => Ok(()),
    }
}
