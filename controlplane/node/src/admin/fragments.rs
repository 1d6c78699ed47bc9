//! `GET|HEAD|PUT|DELETE /v1/state/KEY`: raw bytes, the version as `ETag`, compare-and-swap by `If-Match` and
//! `If-None-Match: *`, retries made safe by `Idempotency-Key`. Reads are linearizable.
//!
//! `GET /v1/state?prefix=P&after=KEY&limit=N`: keys, versions and sizes, in order.

use http::header::HeaderMap;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_state::request::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use outrider_state::{Operation, Request as StateRequest, Write};
use serde_json::json;

use super::answer::{Answer, Refusal, bytes_answer, empty, json_answer, refusal, tagged, written};
use super::{Admin, input, is_read};

const OCTETS: &str = "application/octet-stream";

pub(crate) async fn answer(
    admin: &Admin,
    key: &str,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let key = input::name(key)?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let why = format!("a key has 1 to {KEY_BYTES_MAX} bytes");
        return Err(refusal(StatusCode::BAD_REQUEST, why));
    }
    match is_read(request.method()) {
        true => get(admin, &key, request.headers()).await,
        false => write(admin, key, request).await,
    }
}

async fn get(admin: &Admin, key: &str, headers: &HeaderMap) -> Result<Answer, Refusal> {
    admin.consensus.read_barrier().await?;
    let found = admin.consensus.shared().look(|known| known.state.fragment(key).cloned());
    let Some(fragment) = found else {
        return Err(refusal(StatusCode::NOT_FOUND, "there is no such key"));
    };
    let answer = match input::has(headers, fragment.version) {
        true => empty(StatusCode::NOT_MODIFIED),
        false => bytes_answer(StatusCode::OK, OCTETS, fragment.value),
    };
    Ok(tagged(answer, fragment.version))
}

async fn write(admin: &Admin, key: String, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let expect = input::condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let write = if head.method == Method::PUT {
        let value = input::bytes(admin, body, "a value", VALUE_BYTES_MAX).await?.to_vec();
        Write::Put { key, value, expect }
    } else {
        Write::Delete { key, expect }
    };
    let request = StateRequest { id, operation: Operation::Write(write) };
    Ok(written(admin.consensus.write(request).await))
}

pub(crate) async fn list(admin: &Admin, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let [prefix, after, limit] = input::parameters(request, ["prefix", "after", "limit"])?;
    let (prefix, after) = (prefix.unwrap_or_default(), after.unwrap_or_default());
    let limit = input::limit(limit)?;
    admin.consensus.read_barrier().await?;
    let (version, mut found) = admin.consensus.shared().look(|known| {
        let all = known.state.fragments_after(&prefix, &after);
        let found = all.take(limit + 1).map(|(key, fragment)| {
            json!({ "key": key, "version": fragment.version, "size": fragment.value.len() })
        });
        (known.state.version(), found.collect::<Vec<_>>())
    });
    let more = found.len() > limit;
    found.truncate(limit);
    let value = json!({ "version": version, "fragments": found, "more": more });
    Ok(json_answer(StatusCode::OK, &value))
}
