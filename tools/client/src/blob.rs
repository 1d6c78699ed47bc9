//! One artifact into one file: resumed where it broke, verified before it has its name.
//!
//! What has come in lies in `NAME.partial`, which one process at a time may write. A thread of its own
//! hashes and writes, so that the network does not wait for the disk, but for [`QUEUE_PIECES_MAX`]
//! pieces of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use outrider_artifact::{ContentHasher, Digest};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::connection::native::Content;
use crate::connection::{Answer, Connector, Request, Used};
use crate::error::ClientError;
use crate::partial::{Partial, beside, blocking, hash};
use crate::progress::Progress;
use crate::reference::Place;

/// Pieces that have come in and are not written yet.
const QUEUE_PIECES_MAX: usize = 64;
/// The first wait before another attempt; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// The longest wait before another attempt, also when the edge asks for a longer one.
const BACKOFF_LAST: Duration = Duration::from_secs(10);

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it is at the edge.
    pub place: Place,
    /// What it must be.
    pub digest: Digest,
    /// How long it must be, if that is known.
    pub size_bytes: Option<u64>,
}

/// Asks for a blob, or for bytes of it.
fn request(place: &Place, digest: &Digest, range: Option<(u64, Option<u64>)>) -> Request {
    let content = Content { place: place.clone(), digest: *digest, is_manifest: false };
    Request {
        path: place.blob(digest),
        accept: None,
        range,
        content: Some(content),
        authorization: None,
    }
}

/// What was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its length.
    pub size_bytes: u64,
    /// How much of it came in now; the rest was here.
    pub received_bytes: u64,
    /// Over which protocol it ended; `None` when all of it was here.
    pub protocol: Option<Used>,
}

/// How often it is tried, and how long is waited.
#[derive(Clone, Debug)]
pub struct Retry {
    attempts_max: u32,
    attempts: u32,
}

impl Retry {
    /// At most `attempts_max` attempts one after another without progress.
    pub fn new(attempts_max: u32) -> Self {
        Self { attempts_max, attempts: 0 }
    }

    /// There was progress.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error` itself when it does not pass, [`ClientError::Exhausted`] when it was tried often enough.
    pub async fn wait(
        &mut self,
        error: ClientError,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        if !error.may_pass() {
            return Err(error);
        }
        self.attempts += 1;
        if self.attempts >= self.attempts_max {
            return Err(ClientError::Exhausted { attempts: self.attempts, last: Box::new(error) });
        }
        progress.note(&format!("{error}; trying again"));
        tokio::time::sleep(self.pause(&error, fastrand::f64())).await;
        Ok(())
    }

    /// Doubled each time, of which the edge's `Retry-After` is the least, and up to half of it more by
    /// chance (`random` in 0..1), so that many clients do not come back at once.
    fn pause(&self, error: &ClientError, random: f64) -> Duration {
        let doubled = BACKOFF_FIRST.saturating_mul(1 << self.attempts.saturating_sub(1).min(16));
        let asked = match error {
            ClientError::Status { retry_after_s: Some(seconds), .. } => {
                Duration::from_secs(*seconds)
            }
            _ => Duration::ZERO,
        };
        doubled.max(asked).min(BACKOFF_LAST).mul_f64(1.0 + random / 2.0)
    }
}

/// Fetches `wanted` into `file`. What is there already and right is left alone.
///
/// # Errors
/// [`ClientError`]; what came in so far stays in the partial file, unless it is wrong.
pub async fn fetch(
    connector: &Connector,
    wanted: &Wanted,
    file: &Path,
    attempts_max: u32,
    progress: &dyn Progress,
) -> Result<Fetched, ClientError> {
    if let Some(size_bytes) = verified_size(file, wanted).await? {
        progress.begin(&wanted.digest, Some(size_bytes), size_bytes);
        return Ok(Fetched { size_bytes, received_bytes: 0, protocol: None });
    }
    let partial = Partial::open(file, wanted.digest).await?;
    progress.begin(&wanted.digest, wanted.size_bytes, partial.length);
    complete(connector, wanted, file, partial, attempts_max, progress).await
}

/// Fetches what is missing of `partial`, verifies it, and gives it its name.
///
/// # Errors
/// As [`fetch`].
pub(crate) async fn complete(
    connector: &Connector,
    wanted: &Wanted,
    file: &Path,
    mut partial: Partial,
    attempts_max: u32,
    progress: &dyn Progress,
) -> Result<Fetched, ClientError> {
    let mut from_before = partial.length > 0;
    let mut retry = Retry::new(attempts_max);
    let mut received_bytes = 0;
    let mut used = None;
    loop {
        let before = partial.length;
        let (returned, result) = attempt(connector, wanted, partial, progress).await;
        partial = returned;
        received_bytes += partial.received;
        let moved = std::mem::take(&mut partial.received) > 0;
        if moved {
            connector.works();
            retry.reset();
        }
        match result {
            Ok(protocol) => used = protocol.or(used),
            Err(error) => {
                // The connector counts those of a connection that brought nothing.
                if !moved {
                    connector.broke(&error);
                }
                if matches!(error, ClientError::Answer { .. }) && from_before {
                    from_before = false;
                    progress.lose(before);
                    partial.restart().await?;
                    continue;
                }
                retry.wait(error, progress).await?;
                continue;
            }
        }
        let found = partial.digest();
        if found == wanted.digest {
            break;
        }
        if !from_before {
            partial.discard();
            return Err(ClientError::Digest { expected: wanted.digest, found: found.into() });
        }
        // What an earlier run left may be of anything: once more from the beginning.
        from_before = false;
        progress.note("what was left of an earlier run is wrong; starting again");
        progress.lose(partial.length);
        partial.restart().await?;
    }
    let size_bytes = partial.length;
    partial.finish(file).await?;
    Ok(Fetched { size_bytes, received_bytes, protocol: used })
}

/// Fetches bytes `first..=last` of a blob into `file`. A part has no digest: it is not
/// verified. Returns how many there were.
///
/// # Errors
/// [`ClientError`]; then there is no file.
pub async fn fetch_range(
    connector: &Connector,
    (place, digest): (&Place, &Digest),
    (first, last): (u64, Option<u64>),
    file: &Path,
    attempts_max: u32,
    progress: &dyn Progress,
) -> Result<Fetched, ClientError> {
    let temporary = beside(file, ".part");
    let mut out = File::create(&temporary).map_err(ClientError::file("creating", &temporary))?;
    let mut retry = Retry::new(attempts_max);
    let mut length = 0_u64;
    let used = loop {
        let request = request(place, digest, Some((first + length, last)));
        let before = length;
        let result = async {
            let mut answer = connector.get(&request, progress).await?;
            if answer.status != 206 {
                return Err(refusal(&mut answer).await);
            }
            check_content_range(&answer, first + length)?;
            while let Some(piece) = answer.next().await? {
                out.write_all(&piece).map_err(ClientError::file("writing", &temporary))?;
                length += piece.len() as u64;
                progress.add(piece.len() as u64);
            }
            check_length(&answer, length - before)?;
            Ok(answer.used)
        }
        .await;
        match result {
            Ok(used) => break used,
            Err(error) => {
                if length > before {
                    retry.reset();
                }
                if let Err(error) = retry.wait(error, progress).await {
                    let _ = fs::remove_file(&temporary);
                    return Err(error);
                }
            }
        }
    };
    fs::rename(&temporary, file).map_err(ClientError::file("naming", file))?;
    Ok(Fetched { size_bytes: length, received_bytes: length, protocol: Some(used) })
}

/// One request; all that it brings is in the partial file that is returned. `None` when nothing was
/// missing.
async fn attempt(
    connector: &Connector,
    wanted: &Wanted,
    partial: Partial,
    progress: &dyn Progress,
) -> (Partial, Result<Option<Used>, ClientError>) {
    // A piece of a blob is asked for even if all of it seems to be here, but for what the size says.
    if wanted.size_bytes.is_some_and(|size| size == partial.length) {
        return (partial, Ok(None));
    }
    let range = (partial.length > 0).then_some((partial.length, None));
    let request = request(&wanted.place, &wanted.digest, range);
    let mut answer = match connector.get(&request, progress).await {
        Ok(answer) => answer,
        Err(error) => return (partial, Err(error)),
    };
    receive(&mut answer, wanted, partial, progress).await
}

/// Puts an answer into a partial file, to its end.
pub(crate) async fn receive(
    answer: &mut Answer,
    wanted: &Wanted,
    mut partial: Partial,
    progress: &dyn Progress,
) -> (Partial, Result<Option<Used>, ClientError>) {
    let used = answer.used;
    match answer.status {
        200 => {
            if partial.length > 0 {
                progress.lose(partial.length);
                if let Err(error) = partial.restart().await {
                    return (partial, Err(error));
                }
            }
        }
        206 => {
            if let Err(error) = check_content_range(answer, partial.length) {
                return (partial, Err(error));
            }
        }
        // Nothing is behind what is here: that may be all of it, which its digest will tell.
        416 if partial.length > 0 => return (partial, Ok(Some(used))),
        _ => return (partial, Err(refusal(answer).await)),
    }
    let end = answer.number(&header::CONTENT_LENGTH).map(|length| partial.length + length);
    if let (Some(end), Some(size)) = (end, wanted.size_bytes)
        && end != size
    {
        let why = format!("it would be {end} bytes long and not {size}");
        return (partial, Err(ClientError::Answer { path: answer.path.clone(), why }));
    }
    let bound = end.or(wanted.size_bytes).unwrap_or(u64::MAX);
    let start = partial.length;
    let (queue, queued) = mpsc::channel::<Bytes>(QUEUE_PIECES_MAX);
    let writing = spawn_blocking(move || partial.write(queued));
    let mut length = start;
    let received = loop {
        match answer.next().await {
            Ok(Some(piece)) => {
                length += piece.len() as u64;
                if length > bound {
                    let why = format!("there is more of it than the {bound} bytes it has");
                    break Err(ClientError::Answer { path: answer.path.clone(), why });
                }
                progress.add(piece.len() as u64);
                // The writer ends early only with an error, which is seen below.
                if queue.send(piece).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) if length < end.unwrap_or(0) => {
                let why = format!("it ended {} bytes short", end.unwrap_or(0) - length);
                break Err(ClientError::Broken { protocol: used, why });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(queue);
    let (partial, written) = match writing.await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    (partial, written.and(received).map(|()| Some(used)))
}

/// What an answer is that is not the one that was hoped for.
async fn refusal(answer: &mut Answer) -> ClientError {
    match answer.status {
        100..=399 => {
            let why = format!("status {} is not what was asked for", answer.status);
            ClientError::Answer { path: answer.path.clone(), why }
        }
        _ => answer.error().await,
    }
}

/// The part must begin where what is here ends.
fn check_content_range(answer: &Answer, first: u64) -> Result<(), ClientError> {
    let text = answer.text(&header::CONTENT_RANGE).unwrap_or_default();
    let begins = text.strip_prefix("bytes ").and_then(|text| text.split('-').next()?.parse().ok());
    if begins == Some(first) {
        return Ok(());
    }
    let why = format!("a part from byte {first} was asked for, and {text:?} came");
    Err(ClientError::Answer { path: answer.path.clone(), why })
}

fn check_length(answer: &Answer, length: u64) -> Result<(), ClientError> {
    match answer.number(&header::CONTENT_LENGTH) {
        Some(declared) if declared > length => {
            let why = format!("it ended {} bytes short", declared - length);
            Err(ClientError::Broken { protocol: answer.used, why })
        }
        _ => Ok(()),
    }
}

/// The size of `file` if it has what is wanted.
pub(crate) async fn verified_size(
    file: &Path,
    wanted: &Wanted,
) -> Result<Option<u64>, ClientError> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(None) };
    let length = metadata.len();
    if !metadata.is_file() || wanted.size_bytes.is_some_and(|size| size != length) {
        return Ok(None);
    }
    let (path, expected) = (file.to_owned(), wanted.digest);
    let reading = ClientError::file("reading", file);
    let hashed = blocking(move || {
        let mut hasher = ContentHasher::new(expected.algorithm());
        hash(&mut File::open(path)?, &mut hasher)?;
        Ok(hasher.finish())
    })
    .await
    .map_err(reading)?;
    Ok((hashed == expected).then_some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after_s: Option<u64>) -> ClientError {
        ClientError::Status { status, path: String::new(), message: None, retry_after_s }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_the_edge_may_ask_for_more() {
        let pause = |attempts, retry_after| {
            let retry = Retry { attempts_max: 99, attempts };
            retry.pause(&status(503, retry_after), 0.0)
        };
        assert_eq!(pause(1, None), Duration::from_millis(200));
        assert_eq!(pause(3, None), Duration::from_millis(800));
        assert_eq!(pause(99, None), BACKOFF_LAST);
        assert_eq!(pause(1, Some(2)), Duration::from_secs(2));
        assert_eq!(pause(1, Some(3600)), BACKOFF_LAST);
        let retry = Retry { attempts_max: 9, attempts: 1 };
        assert_eq!(retry.pause(&status(503, None), 1.0), Duration::from_millis(300));
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        for code in [400, 401, 404, 416] {
            assert!(!status(code, None).may_pass(), "{code}");
        }
        for code in [408, 425, 429, 500, 503] {
            assert!(status(code, None).may_pass(), "{code}");
        }
    }
}
