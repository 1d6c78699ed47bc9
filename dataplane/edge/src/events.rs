//! What happened here, on its way to the control plane: tasks on the shards, off the way of requests, that hand on
//! what the gateways noted and what lies in the outbox. Nothing here waits for anybody: what is not taken stays where
//! it is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_artifact::event::{UploadEvent, UploadKind};
use outrider_events::{Event, ManifestEvent, Mark, Numbered, Said};
use outrider_gateway::names::{Names, OutboxRecord};
use outrider_gateway::{Accesses, Gateway};
use outrider_link::Collector;
use outrider_link::events::Uploads;
use outrider_shard::{task, time};

/// Room for accesses of one shard, some 30,000 of them.
pub(crate) const ACCESSES_BYTES_MAX: usize = 4 << 20;
/// Between two looks at what there is.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of accesses that are handed on each time: some 1,200 accesses a second of each shard. More than that would cost a busy
/// edge more than they tell anybody.
const TAKE_BYTES: usize = 16 << 10;
/// Uploads that are handed on at once.
const UPLOADS_MAX: usize = 512;
/// Bytes of events that are handed on at once, where there is more than one.
const UPLOADS_BYTES_MAX: usize = 256 << 10;
/// Times that it is tried to read a manifest that is here, before it is given up.
const READ_ATTEMPTS_MAX: u32 = 50;
/// Uploads that are still wanted after so long are handed on again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// What clients say of a media type is cut to this, so that an event fits into a record.
const MEDIA_TYPE_BYTES_MAX: usize = 1_024;

/// Hands on what a shard's gateway noted, for as long as the shard lives.
pub(crate) async fn collect(accesses: Rc<Accesses>, collector: Collector, region: Arc<str>) {
    loop {
        time::sleep(PAUSE).await;
        if let Some(place) = collector.accesses()
            && let Some(taken) = accesses.take(TAKE_BYTES)
        {
            place.send(Box::new(taken.events(Arc::clone(&region))));
        }
    }
}

/// Hands on what is in the outbox, and deletes there what is durable elsewhere, for as long as the shard lives. On one
/// shard only.
pub(crate) async fn spool<N: Names>(
    names: impl Names,
    collector: Collector,
    gateway: Rc<Gateway<N>>,
) {
    let status = loop {
        match names.outbox_status().await {
            Ok(status) => break status,
            Err(_) => time::sleep(PAUSE).await,
        }
    };
    let outbox = Mark { epoch: status.epoch, through: status.given };
    while !collector.uploads(Uploads::Begin { outbox, accesses_epoch: status.opening }) {
        time::sleep(PAUSE).await;
    }
    let mut given: Option<(u64, Instant)> = None;
    let (mut deleted, mut attempts) = (0, 0);
    loop {
        time::sleep(PAUSE).await;
        let durable = collector.uploads_durable();
        if durable > deleted && names.outbox_acknowledge(durable).await.is_ok() {
            deleted = durable;
        }
        let Some(wanted) = collector.uploads_wanted() else { continue };
        if given.is_some_and(|(from, at)| from == wanted && at.elapsed() < AGAIN_AFTER) {
            continue;
        }
        // The names database says in its own metrics when it fails.
        let Ok(records) = names.outbox_read(wanted, UPLOADS_MAX).await else { continue };
        let (mut events, mut bytes) = (Vec::new(), 0);
        for upload in records.into_iter().filter_map(numbered) {
            let Some(event) = told(upload.1, &gateway, attempts >= READ_ATTEMPTS_MAX).await else {
                attempts += 1;
                break;
            };
            bytes += event.bytes();
            if bytes > UPLOADS_BYTES_MAX && !events.is_empty() {
                break;
            }
            attempts = 0;
            events.push(Numbered { sequence: upload.0, event });
            task::yield_if_needed().await;
        }
        if !events.is_empty() && collector.uploads(Uploads::More(events)) {
            given = Some((wanted, Instant::now()));
        }
    }
}

fn numbered(record: OutboxRecord) -> Option<(u64, UploadEvent)> {
    let OutboxRecord { sequence, archive } = record;
    match UploadEvent::from_archive(&archive) {
        Ok(mut upload) => {
            if upload.media_type.len() > MEDIA_TYPE_BYTES_MAX {
                let end = upload.media_type.floor_char_boundary(MEDIA_TYPE_BYTES_MAX);
                upload.media_type.truncate(end);
            }
            Some((sequence, upload))
        }
        Err(error) => {
            tracing::error!(sequence, %error, "an event of the outbox is left out");
            None
        }
    }
}

/// The event as it is sent: a manifest with what it says. Nothing when that is here and cannot be read now, unless
/// it is `given_up`.
async fn told<N: Names>(
    upload: UploadEvent,
    gateway: &Gateway<N>,
    given_up: bool,
) -> Option<Event> {
    if !matches!(upload.kind, UploadKind::Manifest | UploadKind::Mirrored) {
        return Some(Event::Upload(upload));
    }
    let bytes = match upload.digest.parse() {
        Ok(digest) => match gateway.manifest(&digest).await {
            Ok(bytes) => bytes,
            Err(_) if !given_up => return None,
            Err(_) => None,
        },
        Err(_) => None,
    };
    let said = Said::of(bytes.as_deref(), &upload.media_type);
    if matches!(said, Said::Gone | Said::TooMuch) {
        let UploadEvent { digest, repository, .. } = &upload;
        tracing::warn!(digest, repository, "the control plane is not told what a manifest says");
    }
    Some(Event::Manifest(Box::new(ManifestEvent { upload, said })))
}
