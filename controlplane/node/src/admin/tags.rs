//! `GET /v1/tags?repository=R|prefix=P&after=REPOSITORY:TAG&limit=N` and `GET|PUT|DELETE
//! /v1/tags/REPOSITORY:TAG`: what the tags of the fleet stand for. The version is the `ETag`, conditions are
//! those of fragments.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_state::request::TagRecord;
use outrider_state::{Operation, Request as StateRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{Answer, Refusal, empty, json_answer, refusal, tagged, written};
use super::{Admin, input, is_read};

/// The largest body.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A tag in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TagJson {
    digest: String,
    size_bytes: u64,
    media_type: String,
    #[serde(default)]
    holders: Vec<u64>,
    #[serde(default)]
    upstream: Option<String>,
}

impl From<TagJson> for TagRecord {
    fn from(json: TagJson) -> Self {
        let TagJson { digest, size_bytes, media_type, holders, upstream } = json;
        Self { digest, size_bytes, media_type, holders, upstream }
    }
}

/// What a watcher sees of a tag, and who asks for one.
pub(crate) fn record_json(record: &TagRecord) -> Value {
    let TagRecord { digest, size_bytes, media_type, holders, upstream } = record.clone();
    json!(TagJson { digest, size_bytes, media_type, holders, upstream })
}

fn split(text: &str) -> Result<(String, String), Refusal> {
    let (repository, tag) = text.rsplit_once(':').ok_or_else(|| {
        refusal(StatusCode::BAD_REQUEST, format!("{text:?} is not REPOSITORY:TAG"))
    })?;
    Ok((repository.to_owned(), tag.to_owned()))
}

pub(crate) async fn list(admin: &Admin, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let [repository, prefix, after, limit] =
        input::parameters(request, ["repository", "prefix", "after", "limit"])?;
    let limit = input::limit(limit)?;
    let (begin, whole) = match (repository, prefix) {
        (Some(repository), None) => (repository, true),
        (None, prefix) => (prefix.unwrap_or_default(), false),
        (Some(_), Some(_)) => {
            return Err(refusal(StatusCode::BAD_REQUEST, "either repository or prefix, not both"));
        }
    };
    let after = after.as_deref().map(split).transpose()?;
    admin.consensus.read_barrier().await?;
    let (version, mut found) = admin.consensus.shared().look(|known| {
        let all = known.state.tags_after(&begin, after.as_ref());
        let wanted = all.take_while(|((repository, _), _)| match whole {
            true => *repository == begin,
            false => repository.starts_with(&begin),
        });
        let rows = wanted.take(limit + 1).map(|((repository, tag), state)| {
            let mut row = record_json(&state.record);
            row["repository"] = json!(repository);
            row["tag"] = json!(tag);
            row["version"] = json!(state.version);
            row
        });
        (known.state.version(), rows.collect::<Vec<_>>())
    });
    let more = found.len() > limit;
    found.truncate(limit);
    let value = json!({ "version": version, "tags": found, "more": more });
    Ok(json_answer(StatusCode::OK, &value))
}

pub(crate) async fn answer(
    admin: &Admin,
    name: &str,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let (repository, tag) = split(&input::name(name)?)?;
    if is_read(request.method()) {
        admin.consensus.read_barrier().await?;
        let shared = admin.consensus.shared();
        let found = shared.look(|known| known.state.tag(&repository, &tag).cloned());
        let missing = || refusal(StatusCode::NOT_FOUND, "there is no such tag");
        let state = found.ok_or_else(missing)?;
        let answer = match input::has(request.headers(), state.version) {
            true => empty(StatusCode::NOT_MODIFIED),
            false => json_answer(StatusCode::OK, &record_json(&state.record)),
        };
        return Ok(tagged(answer, state.version));
    }
    let (head, body) = request.into_parts();
    let expect = input::condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let record = match head.method == Method::PUT {
        true => Some(input::json::<TagJson>(admin, body, BODY_BYTES_MAX).await?.into()),
        false => None,
    };
    let operation = Operation::Tag { repository, tag, expect, record };
    Ok(written(admin.consensus.write(StateRequest { id, operation }).await))
}
