//! `GET /v1/state/KEY` and `GET /v1/state?prefix=` at an edge that follows nodes elsewhere: what it was told, without
//! asking anybody. Each answer says up to which version that is and whether a node is followed now; a node's own answer
//! is never of the past, this one may be.

use bytes::Bytes;
use http::header::{ALLOW, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use outrider_follower::{Monitor, View};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::admin::{JSON, pretty, respond};

/// Everything up to this version of the state is in the answer.
const APPLIED: HeaderName = HeaderName::from_static("outrider-applied-version");
/// Whether a node is followed now: `true` or `false`.
const CONNECTED: HeaderName = HeaderName::from_static("outrider-connected");
const LIST: &str = "/v1/state";
const ONE: &str = "/v1/state/";
const OCTETS: &str = "application/octet-stream";
/// The most rows of one list, and how many where nothing is said: as at a node.
const ROWS_MAX: usize = 10_000;
const ROWS_DEFAULT: usize = 1_000;

type Answer = Response<Full<Bytes>>;

/// Whether it is answered here.
pub(crate) fn is_there(path: &str) -> bool {
    path == LIST || path.starts_with(ONE)
}

/// Answers a request whose path is one of these.
pub(crate) fn answer<B>(request: &Request<B>, control: Option<&Monitor>) -> Answer {
    let Some(control) = control else {
        let why = "this edge follows no control plane; `outrider cluster join` lets it into one";
        return refuse(StatusCode::NOT_FOUND, why);
    };
    // Asked first: it may be connected later than what is answered, and then that is not too old.
    let node = control.status().node;
    let mut answer = match *request.method() {
        Method::GET | Method::HEAD => read(request, control.view()),
        _ => {
            let at =
                node.as_deref().map_or_else(String::new, |node| format!(" (it follows {node})"));
            let mut answer = refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                &format!("an edge only has a copy{at}: write at the admin address of a node"),
            );
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            answer
        }
    };
    let connected = if node.is_some() { "true" } else { "false" };
    answer.headers_mut().insert(CONNECTED, HeaderValue::from_static(connected));
    answer
}

fn read<B>(request: &Request<B>, view: &View) -> Answer {
    let uri = request.uri();
    match uri.path().strip_prefix(ONE) {
        Some(key) => match decoded(key) {
            Some(key) => one(&key, request.headers(), view),
            None => refuse(StatusCode::BAD_REQUEST, "the path is not encoded as it should be"),
        },
        None => match Wanted::read(uri.query().unwrap_or("")) {
            Ok(wanted) => list(&wanted, view),
            Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
        },
    }
}

fn one(key: &str, headers: &HeaderMap, view: &View) -> Answer {
    if !view.covers(key) {
        return elsewhere("the key", key, view);
    }
    let (applied, found) = view.get(key);
    let answer = match found {
        None => refuse(StatusCode::NOT_FOUND, "there is no such key"),
        Some((version, value)) => {
            let tag = format!("\"{version}\"");
            let mut answer = match has(headers, &tag) {
                true => {
                    let mut answer = Answer::default();
                    *answer.status_mut() = StatusCode::NOT_MODIFIED;
                    answer
                }
                false => respond(StatusCode::OK, OCTETS, value),
            };
            if let Ok(tag) = HeaderValue::from_str(&tag) {
                answer.headers_mut().insert(ETAG, tag);
            }
            answer
        }
    };
    applied_at(answer, applied)
}

fn list(wanted: &Wanted, view: &View) -> Answer {
    if !view.covers(&wanted.prefix) {
        return elsewhere("the prefix", &wanted.prefix, view);
    }
    let listed = view.list(&wanted.prefix, &wanted.after, wanted.rows_max);
    let rows = listed
        .rows
        .iter()
        .map(|(key, version, size)| json!({ "key": key, "version": version, "size": size }));
    let rows: Vec<_> = rows.collect();
    let value = json!({ "version": listed.version, "fragments": rows, "more": listed.more });
    applied_at(respond(StatusCode::OK, JSON, pretty(&value)), listed.version)
}

/// What the edge does not keep may be there all the same.
fn elsewhere(what: &str, text: &str, view: &View) -> Answer {
    let prefixes = view.prefixes();
    let why = format!(
        "{what} {text:?} is in none of control.fragments of this edge ({prefixes:?}): ask a node"
    );
    refuse(StatusCode::NOT_FOUND, &why)
}

fn refuse(status: StatusCode, error: &str) -> Answer {
    respond(status, JSON, pretty(&json!({ "error": error })))
}

fn applied_at(mut answer: Answer, version: u64) -> Answer {
    answer.headers_mut().insert(APPLIED, HeaderValue::from(version));
    answer
}

/// Whether the reader has this version already, as it says by `If-None-Match`.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    prefix: String,
    after: String,
    rows_max: usize,
}

impl Wanted {
    fn read(query: &str) -> Result<Self, String> {
        let [mut prefix, mut after, mut limit] = [const { None }; 3];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value).ok_or("the query is not encoded as it should be")?;
            let place = match name {
                "prefix" => &mut prefix,
                "after" => &mut after,
                "limit" => &mut limit,
                _ => return Err(format!("{name:?} is none of prefix, after, limit")),
            };
            if place.replace(value).is_some() {
                return Err(format!("{name} is there twice"));
            }
        }
        let rows_max = match limit.map(|limit| limit.parse()) {
            None => ROWS_DEFAULT,
            Some(Ok(rows @ 1..=ROWS_MAX)) => rows,
            Some(_) => return Err(format!("limit is 1 to {ROWS_MAX}")),
        };
        let (prefix, after) = (prefix.unwrap_or_default(), after.unwrap_or_default());
        Ok(Self { prefix, after, rows_max })
    }
}

/// Percent-decoded; nothing for what is not encoded rightly.
fn decoded(text: &str) -> Option<String> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        rest = &rest[at + 1..];
        if rest.len() < 2 || !rest[..2].iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
    }
    percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_strictly() {
        let read = |query| Wanted::read(query).ok();
        let wanted = Wanted { prefix: "a b".to_owned(), after: String::new(), rows_max: 7 };
        assert_eq!(read("prefix=a%20b&limit=7"), Some(wanted));
        assert_eq!(read("").unwrap().rows_max, ROWS_DEFAULT);
        for bad in ["x=1", "prefix=a&prefix=b", "limit=0", "limit=10001", "limit=x", "after=%zz"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(is_there("/v1/state") && is_there("/v1/state/a") && !is_there("/v1/states"));
    }

    #[test]
    fn an_edge_on_its_own_says_so() {
        let request = Request::get("/v1/state/a").body(()).unwrap();
        assert_eq!(answer(&request, None).status(), StatusCode::NOT_FOUND);
    }
}
