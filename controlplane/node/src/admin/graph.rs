//! `GET /v1/graph`, `GET /v1/graph/QUERY?…`, and `POST /v1/graph/manifests`.

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use outrider_artifact::Reference;
use outrider_artifact::manifest::MANIFEST_BYTES_MAX;
use outrider_graph::batch::FOUND_MAX;
use outrider_graph::{Asked, Batch, Found, GraphError, Position, Seen, analyse};
use serde::Deserialize;
use serde_json::json;

use super::answer::{Answer, failure, json_answer};
use super::{Admin, input};
use crate::graph::Trouble;

/// The largest body of many manifests.
const LINES_BYTES_MAX: usize = 16 << 20;
/// The media types of JSON lines.
const LINES: [&str; 2] = ["application/x-ndjson", "application/jsonl"];

/// One line of many manifests.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    image: String,
    #[serde(default)]
    version: Option<String>,
    customer: String,
    #[serde(default)]
    unix_ms: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    /// The manifest as a text, since its digest is that of its very bytes.
    manifest: String,
}

pub(crate) async fn query(admin: &Admin, name: &str, request: &Request<Incoming>) -> Answer {
    let asked = parameters(request)
        .and_then(|all| Asked::parse(name, all.iter().map(|(name, value)| (&**name, &**value))));
    let asked = match asked {
        Ok(asked) => asked,
        Err(why) => return failure(StatusCode::BAD_REQUEST, why),
    };
    match admin.graph.ask(asked).await {
        Ok(answer) => json_answer(StatusCode::OK, &json!(answer)),
        Err(trouble) => troubled(&trouble),
    }
}

fn troubled(trouble: &Trouble) -> Answer {
    let status = match trouble {
        Trouble::Graph(GraphError::Batch(_)) => StatusCode::BAD_REQUEST,
        Trouble::Graph(GraphError::Unknown { .. } | GraphError::NoPredecessor { .. }) => {
            StatusCode::NOT_FOUND
        }
        Trouble::Graph(GraphError::TooWide(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        Trouble::Graph(GraphError::Full(_)) => StatusCode::INSUFFICIENT_STORAGE,
        Trouble::Graph(GraphError::Damaged(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        Trouble::Graph(GraphError::Unavailable(_)) | Trouble::Busy => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let mut answer = failure(status, trouble);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

pub(crate) async fn status(admin: &Admin) -> Answer {
    let stats = admin.graph.stats().await;
    let mut value = health(admin);
    if let Ok(stats) = stats {
        value["nodes"] = json!(stats.nodes);
        value["contains"] = json!(stats.contains);
        value["early"] = json!(stats.early);
        value["positions"] = json!(stats.positions);
    }
    json_answer(StatusCode::OK, &value)
}

/// How the store is, without asking it.
pub(crate) fn health(admin: &Admin) -> serde_json::Value {
    let health = admin.graph.health();
    let mut value = json!({
        "store": admin.graph.store_name(),
        "state": if health.failure.is_none() { "up" } else { "down" },
    });
    if let Some((reason, since_unix_ms)) = health.failure {
        value["error"] = json!(reason);
        value["since_unix_ms"] = json!(since_unix_ms);
    }
    value["events"] = admin.consumer.json();
    value
}

type Parameters = Vec<(String, String)>;

fn parameters(request: &Request<Incoming>) -> Result<Parameters, String> {
    let query = request.uri().query().unwrap_or("");
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = input::decoded(value).map_err(|why| format!("the query has {why}"))?;
        Ok((name.to_owned(), value))
    });
    pairs.collect()
}

/// What a request says beside the manifests.
#[derive(Default)]
struct Told {
    image: Option<String>,
    version: Option<String>,
    customer: Option<String>,
    source: Option<String>,
    last: Option<u64>,
}

impl Told {
    fn read(parameters: Parameters) -> Result<Self, String> {
        let mut told = Self::default();
        for (name, value) in parameters {
            match &*name {
                "image" => told.image = Some(value),
                "version" => told.version = Some(value),
                "customer" => told.customer = Some(value),
                "source" => told.source = Some(value),
                "position" => {
                    let number = value.parse().map_err(|_| "position is a number".to_owned())?;
                    told.last = Some(number);
                }
                other => {
                    let all = "image, version, customer, source, position";
                    return Err(format!("{other:?} is none of {all}"));
                }
            }
        }
        Ok(told)
    }

    fn position(&self) -> Result<Option<Position>, String> {
        match (&self.source, self.last) {
            (Some(source), Some(last)) => Ok(Some(Position::new(source.clone(), last))),
            (None, None) => Ok(None),
            _ => Err("source and position go together".to_owned()),
        }
    }
}

pub(crate) async fn post(admin: &Admin, request: Request<Incoming>) -> Answer {
    let bad = |why: String| failure(StatusCode::BAD_REQUEST, why);
    let told = match parameters(&request).and_then(Told::read) {
        Ok(told) => told,
        Err(why) => return bad(why),
    };
    let Ok(_place) = admin.graph_bodies.try_acquire() else { return troubled(&Trouble::Busy) };
    let (head, body) = request.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::to_str).transpose();
    let Ok(content_type) = content_type else {
        return bad("the Content-Type is not a media type".to_owned());
    };
    let essence = content_type.and_then(|text| text.split(';').next()).map(str::trim);
    let is_lines = essence.is_some_and(|text| LINES.contains(&text));
    let bytes_max = if is_lines { LINES_BYTES_MAX } else { MANIFEST_BYTES_MAX };
    let body = Limited::new(body, bytes_max).collect();
    let body = match tokio::time::timeout(admin.body_time_max, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("the body has more than {bytes_max} bytes");
            return failure(StatusCode::PAYLOAD_TOO_LARGE, why);
        }
        Ok(Err(error)) => return bad(error.to_string()),
        Err(_) => return failure(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let batch = told.position().and_then(|position| {
        let found = match is_lines {
            true => lines(&body, &told)?,
            false => vec![one(&body, content_type, &told)?],
        };
        Ok(Batch { position, found, ..Batch::default() })
    });
    let batch = match batch {
        Ok(batch) => batch,
        Err(why) => return bad(why),
    };
    match admin.graph.apply(batch).await {
        Ok(applied) => json_answer(StatusCode::OK, &json!(applied)),
        Err(trouble) => troubled(&trouble),
    }
}

fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn one(bytes: &[u8], content_type: Option<&str>, told: &Told) -> Result<Found, String> {
    let (Some(image), Some(customer)) = (&told.image, &told.customer) else {
        return Err("image and customer are wanted, version may be given".to_owned());
    };
    let seen = seen(image, told.version.as_deref(), customer, None)?;
    analyse(bytes, content_type, seen).map_err(|error| error.to_string())
}

fn lines(bytes: &[u8], told: &Told) -> Result<Vec<Found>, String> {
    if told.image.is_some() || told.version.is_some() || told.customer.is_some() {
        return Err("image, version and customer stand in the lines".to_owned());
    }
    let mut all = Vec::new();
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        if all.len() == FOUND_MAX {
            return Err(format!("there are more than {FOUND_MAX} lines"));
        }
        let found = || {
            let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            let Line { image, version, customer, unix_ms, media_type, manifest } = line;
            let seen = seen(&image, version.as_deref(), &customer, unix_ms)?;
            let found = analyse(manifest.as_bytes(), media_type.as_deref(), seen);
            found.map_err(|error| error.to_string())
        };
        all.push(found().map_err(|why| format!("line {}: {why}", number + 1))?);
    }
    Ok(all)
}

fn seen(
    image: &str,
    version: Option<&str>,
    customer: &str,
    unix_ms: Option<u64>,
) -> Result<Seen, String> {
    let version = version.map(str::parse::<Reference>).transpose();
    let (tag, digest) = match version.map_err(|error| format!("version: {error}"))? {
        Some(Reference::Tag(tag)) => (Some(tag), None),
        Some(Reference::Digest(digest)) => (None, Some(digest)),
        None => (None, None),
    };
    Ok(Seen {
        image: image.parse().map_err(|error| format!("image: {error}"))?,
        tag,
        customer: customer.to_owned(),
        unix_ms: unix_ms.unwrap_or_else(now_unix_ms),
        digest,
    })
}
