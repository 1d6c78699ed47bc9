//! `GET /v1/events?after=POSITION&limit=N&consumer=NAME`: what is in the queue, a line of JSON for each event. An
//! entry of the queue is never taken apart, so there may be some more than `limit`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use outrider_artifact::event::{AccessEvent, AccessTier, UploadEvent, UploadKind};
use outrider_events::queue::{ENTRIES_MAX, Page, Position, QueueError};
use outrider_events::{Event, EventId, Said};
use serde_json::{Value, json};

use super::answer::{Answer, bytes_answer, failure};
use super::{Admin, input};

/// The most events that may be asked for.
const LIMIT_MAX: usize = 10_000;
const LIMIT_DEFAULT: usize = 1_000;
/// The longest name of a consumer.
const CONSUMER_BYTES_MAX: usize = 64;
/// For the queue's answer.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// Somebody who is given something is given it after so long, though there may be more.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// Everything up to this position is in the answer, or was before.
const POSITION: HeaderName = HeaderName::from_static("outrider-position");
/// The retention has taken away what should stand before the first.
const MISSED: HeaderName = HeaderName::from_static("outrider-missed");

struct Wanted {
    after: Position,
    limit: usize,
    consumer: Option<String>,
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted { after: Position::default(), limit: LIMIT_DEFAULT, consumer: None };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = input::decoded(value).map_err(|why| format!("the query has {why}"))?;
        match name {
            "after" => wanted.after = Position::from_text(&value).ok_or("after is no position")?,
            "limit" => match value.parse() {
                Ok(number @ 1..=LIMIT_MAX) => wanted.limit = number,
                _ => return Err(format!("limit is 1 to {LIMIT_MAX}")),
            },
            "consumer" => {
                let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                if value.is_empty() || value.len() > CONSUMER_BYTES_MAX || !value.chars().all(good)
                {
                    let most = CONSUMER_BYTES_MAX;
                    return Err(format!("a consumer has 1 to {most} of A-Z a-z 0-9 . _ -"));
                }
                if value == crate::consumer::NAME {
                    return Err(format!("{value} is the node's own reader"));
                }
                wanted.consumer = Some(value);
            }
            other => return Err(format!("{other:?} is none of after, limit, consumer")),
        }
    }
    Ok(wanted)
}

pub(crate) async fn answer(admin: &Admin, request: &Request<Incoming>) -> Answer {
    let Wanted { after, limit, consumer } = match wanted(request.uri().query().unwrap_or("")) {
        Ok(wanted) => wanted,
        Err(why) => return failure(StatusCode::BAD_REQUEST, why),
    };
    if let Some(consumer) = &consumer {
        admin.events.consumed(consumer, after.clone());
    }
    let queue = admin.events.queue();
    let (mut text, mut position, mut missed, mut count) = (String::new(), after, false, 0);
    let started = Instant::now();
    while count < limit && (count == 0 || started.elapsed() < ANSWER_TIME_MAX) {
        let entries_max = (limit - count).min(ENTRIES_MAX);
        let read = queue.read(position.clone(), entries_max);
        let page = match tokio::time::timeout(READ_TIME_MAX, read).await {
            Ok(Ok(page)) => page,
            Ok(Err(error @ QueueError::Position(_))) => {
                return failure(StatusCode::BAD_REQUEST, error);
            }
            Ok(Err(error)) => return failure(StatusCode::SERVICE_UNAVAILABLE, error),
            Err(_) => {
                let why = format!("the queue does not answer within {READ_TIME_MAX:?}");
                return failure(StatusCode::SERVICE_UNAVAILABLE, why);
            }
        };
        let Page { entries, missed: more_missed } = page;
        missed |= more_missed;
        if entries.is_empty() {
            break;
        }
        for (at, entry) in entries {
            for (id, event) in entry.events() {
                text.push_str(&line(&at, id, event).to_string());
                text.push('\n');
                count += 1;
            }
            position = at;
            if count >= limit {
                break;
            }
        }
    }
    let mut answer = bytes_answer(StatusCode::OK, "application/x-ndjson", Bytes::from(text));
    let headers = answer.headers_mut();
    if let Ok(position) = HeaderValue::try_from(position.to_string()) {
        headers.insert(POSITION, position);
    }
    headers.insert(MISSED, HeaderValue::from_static(if missed { "true" } else { "false" }));
    answer
}

fn upload_line(line: &mut Value, upload: &UploadEvent) {
    let UploadEvent {
        kind,
        customer,
        region,
        repository,
        version,
        digest,
        size_bytes,
        media_type,
        unix_ms,
    } = upload;
    line["event"] = json!(match kind {
        UploadKind::Blob => "blob",
        UploadKind::Manifest => "manifest",
        UploadKind::Layer => "layer",
        UploadKind::Mirrored => "mirrored",
    });
    line["customer"] = json!(customer);
    line["region"] = json!(region);
    line["repository"] = json!(repository);
    line["version"] = json!(version);
    line["digest"] = json!(digest);
    line["size"] = json!(size_bytes);
    line["media_type"] = json!(media_type);
    line["unix_ms"] = json!(unix_ms);
}

fn line(position: &Position, id: EventId, event: &Event) -> Value {
    let mut line = json!({
        "position": position.to_string(),
        "edge": id.edge,
        "lane": id.lane.name(),
        "epoch": id.epoch,
        "sequence": id.sequence,
    });
    match event {
        Event::Upload(upload) => upload_line(&mut line, upload),
        Event::Manifest(manifest) => {
            upload_line(&mut line, &manifest.upload);
            line["said"] = json!(match &manifest.said {
                Said::Whole(_) => "whole",
                Said::Contents(_) => "contents",
                Said::Gone => "gone",
                Said::TooMuch => "too much",
            });
        }
        Event::Access(access) => {
            let AccessEvent {
                customer,
                region,
                image,
                digest,
                unix_ms,
                tier,
                status,
                bytes,
                latency_us,
            } = access;
            line["event"] = json!("access");
            line["customer"] = json!(customer);
            line["region"] = json!(region);
            line["repository"] = json!(image);
            line["digest"] = json!(digest);
            line["tier"] = json!(match tier {
                AccessTier::Ram => "ram",
                AccessTier::Ssd => "ssd",
                AccessTier::Origin => "origin",
            });
            line["status"] = json!(status);
            line["bytes"] = json!(bytes);
            line["latency_us"] = json!(latency_us);
            line["unix_ms"] = json!(unix_ms);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_strictly() {
        let good = wanted("after=00000000000000ff&limit=7&consumer=mine").unwrap();
        assert_eq!((good.after.number(), good.limit), (Some(255), 7));
        assert_eq!(good.consumer.as_deref(), Some("mine"));
        for query in ["after=0g", "limit=0", "limit=10001", "consumer=", "consumer=graph", "x=1"] {
            assert!(wanted(query).is_err(), "{query}");
        }
    }
}
