//! Many artifacts into their files: by the native protocol those of which nothing is here yet come in one round
//! trip, and whatever did not come that way is fetched alone.

use std::path::{Path, PathBuf};

use outrider_artifact::native::WANTS_MAX;

use crate::blob::{self, Fetched, Wanted};
use crate::connection::Connector;
use crate::error::ClientError;
use crate::partial::Partial;
use crate::progress::Progress;
use crate::reference::Place;

/// One of them.
struct One<'a> {
    wanted: &'a Wanted,
    file: &'a PathBuf,
    state: State,
}

enum State {
    /// What is here of it; `None` while it is being received.
    Missing(Option<Box<Partial>>),
    Done(Fetched),
}

/// Fetches all of `wanted`, which are of one place, each into its file; gives what came, in that order. What
/// is there already and right is left alone.
///
/// # Errors
/// The first [`ClientError`] that was not overcome; the others may have come.
pub async fn fetch(
    connector: &Connector,
    place: &Place,
    wanted: &[(Wanted, PathBuf)],
    attempts_max: u32,
    progress: &dyn Progress,
) -> Result<Vec<Fetched>, ClientError> {
    let mut fetched = Vec::with_capacity(wanted.len());
    for group in wanted.chunks(WANTS_MAX) {
        let mut all = Vec::with_capacity(group.len());
        for (wanted, file) in group {
            all.push(One { wanted, file, state: look(wanted, file, progress).await? });
        }
        if connector.asks_for_many()
            && let Err(error) = round_trip(connector, place, &mut all, progress).await
        {
            progress.note(&format!("{error}; asking for each alone"));
        }
        for One { wanted, file, state } in all {
            fetched.push(match state {
                State::Done(fetched) => fetched,
                State::Missing(partial) => {
                    let partial = match partial {
                        Some(partial) => *partial,
                        None => Partial::open(file, wanted.digest).await?,
                    };
                    blob::complete(connector, wanted, file, partial, attempts_max, progress).await?
                }
            });
        }
    }
    Ok(fetched)
}

/// What is here of it.
async fn look(wanted: &Wanted, file: &Path, progress: &dyn Progress) -> Result<State, ClientError> {
    if let Some(size_bytes) = blob::verified_size(file, wanted).await? {
        progress.begin(&wanted.digest, Some(size_bytes), size_bytes);
        return Ok(State::Done(Fetched { size_bytes, received_bytes: 0, protocol: None }));
    }
    let partial = Partial::open(file, wanted.digest).await?;
    progress.begin(&wanted.digest, wanted.size_bytes, partial.length);
    Ok(State::Missing(Some(Box::new(partial))))
}

/// One request for all of which nothing is here. An error leaves the rest of them missing.
async fn round_trip(
    connector: &Connector,
    place: &Place,
    all: &mut [One<'_>],
    progress: &dyn Progress,
) -> Result<(), ClientError> {
    let is_empty = |one: &&mut One<'_>| matches!(&one.state, State::Missing(Some(partial)) if partial.length == 0);
    let mut asked: Vec<&mut One<'_>> = all.iter_mut().filter(is_empty).collect();
    if asked.len() < 2 {
        return Ok(());
    }
    let digests: Vec<_> = asked.iter().map(|one| one.wanted.digest).collect();
    let mut answer = connector.get_many(place, &digests).await?;
    for (index, one) in asked.iter_mut().enumerate() {
        if index > 0 && !answer.turn(place.blob(&one.wanted.digest)).await? {
            break;
        }
        // Why it is not 200 is seen when it is asked for alone.
        if answer.status != 200 {
            continue;
        }
        let State::Missing(partial) = &mut one.state else { continue };
        let Some(partial) = partial.take() else { continue };
        let (mut partial, received) =
            blob::receive(&mut answer, one.wanted, *partial, progress).await;
        if let Err(error) = received {
            one.state = State::Missing(Some(Box::new(partial)));
            return Err(error);
        }
        connector.works();
        if partial.digest() != one.wanted.digest {
            progress.lose(partial.length);
            partial.restart().await?;
            one.state = State::Missing(Some(Box::new(partial)));
            continue;
        }
        let fetched = Fetched {
            size_bytes: partial.length,
            received_bytes: partial.received,
            protocol: Some(answer.used),
        };
        partial.finish(one.file).await?;
        one.state = State::Done(fetched);
    }
    Ok(())
}
