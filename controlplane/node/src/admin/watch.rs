//! `GET /v1/watch?prefix=P&kinds=K,K&from=VERSION`: what changes, as it changes, a line of JSON for each update,
//! in order and without a gap. Lines are made when the reader takes them, out of the node's history: nothing is
//! queued for anybody, and who is slower than the history is long is told so and cut off.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::{Frame, Incoming};
use outrider_raft::machine::{Progress, Shared};
use outrider_state::change::TooFarBehind;
use outrider_state::{Change, Update};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::answer::{Answer, Refusal, empty, json_answer, parts_answer, refusal, tagged};
use super::{Admin, customers, input, placement, tags};

/// Readers at a time. Each has a connection of `limits.connections`.
pub(crate) const WATCHERS_MAX: usize = 256;
/// Without a change, a line says so often how far everything was looked through.
const LIFE_INTERVAL: Duration = Duration::from_secs(5);
/// Updates that are looked through at a time: applying waits for that.
const LOOK_MAX: usize = 1_024;
/// Bytes of changes after which a part is full. One update is never taken apart: 2 MiB at the most.
const PART_BYTES: usize = 64 << 10;
const LINES: &str = "application/x-ndjson";
/// The version that the first line is behind.
const VERSION: HeaderName = HeaderName::from_static("outrider-version");

/// Which changes are wanted.
struct Wanted {
    prefix: String,
    kinds: Vec<String>,
}

const KINDS: [&str; 7] =
    ["fragment", "tag", "invalidation", "customer", "weights", "member", "placement"];

fn kind(change: &Change) -> &'static str {
    let [fragment, tag, invalidation, customer, weights, member, placement] = KINDS;
    match change {
        Change::Fragment { .. } => fragment,
        Change::Tag { .. } => tag,
        Change::Invalidated(_) => invalidation,
        Change::Customer { .. } => customer,
        Change::Weights(_) => weights,
        Change::Member { .. } => member,
        Change::Placement { .. } => placement,
    }
}

impl Wanted {
    /// A prefix is of keys, so that it means fragments where no kinds are named.
    fn read(prefix: Option<String>, kinds: Option<&str>) -> Result<Self, String> {
        let kinds = match kinds {
            None if prefix.is_some() => vec![KINDS[0].to_owned()],
            None => KINDS.map(str::to_owned).to_vec(),
            Some(kinds) => kinds.split(',').map(str::to_owned).collect(),
        };
        match kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            Some(kind) => Err(format!("{kind:?} is none of the kinds {}", KINDS.join(", "))),
            None => Ok(Self { prefix: prefix.unwrap_or_default(), kinds }),
        }
    }

    fn takes(&self, change: &Change) -> bool {
        let name = kind(change);
        self.kinds.iter().any(|kind| kind == name)
            && match change {
                Change::Fragment { key, .. } => key.starts_with(&self.prefix),
                _ => true,
            }
    }

    fn line(&self, update: &Update) -> Value {
        let taken = update.changes.iter().filter(|change| self.takes(change)).map(change_json);
        json!({ "version": update.version, "changes": taken.collect::<Vec<_>>() })
    }
}

fn change_json(change: &Change) -> Value {
    let mut value = match change {
        Change::Fragment { key, value } => {
            json!({ "key": key, "value": value.as_ref().map(|value| STANDARD.encode(value)) })
        }
        Change::Tag { repository, tag, record, replaced } => json!({
            "repository": repository,
            "tag": tag,
            "record": record.as_ref().map(tags::record_json),
            "replaced": replaced,
        }),
        Change::Invalidated(what) => customers::invalidation_json(what),
        Change::Customer { name, customer } => {
            json!({ "name": name, "customer": customer.as_ref().map(customers::customer_json) })
        }
        Change::Weights(weights) => json!({ "weights": customers::weights_json(weights) }),
        Change::Placement { prefix, placement } => json!({
            "prefix": prefix,
            "placement": placement.as_ref().map(placement::placement_json),
        }),
        Change::Member { number, member } => json!({
            "member": number,
            "role": member.role.as_str(),
            "name": member.name,
            "region": member.region,
            "address": member.address,
            "revoked": member.revoked,
        }),
    };
    value["kind"] = json!(kind(change));
    value
}

/// One reader.
struct Watcher {
    shared: Arc<Shared>,
    wanted: Wanted,
    /// Everything up to here was looked through.
    looked: u64,
    begun: bool,
    /// When a sign of life is due, unless there is something to say before.
    life_at: Instant,
    progress: watch::Receiver<Progress>,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

/// A part of the body, and whether more follow.
struct Part {
    text: String,
    is_last: bool,
}

impl Watcher {
    /// The next part. Waits for a change, or until it is time for a sign of life.
    async fn next(&mut self) -> Part {
        let part = self.part().await;
        self.life_at = Instant::now() + LIFE_INTERVAL;
        part
    }

    async fn part(&mut self) -> Part {
        if !self.begun {
            // At once, so that the reader knows that it watches.
            self.begun = true;
            return self.life();
        }
        loop {
            // What is marked as seen before looking is looked at, so that nothing is missed.
            self.progress.borrow_and_update();
            match self.look() {
                Ok(text) if !text.is_empty() => return Part { text, is_last: false },
                // Also where others change much that is not wanted, so that the reader can go on from there.
                Ok(_) if self.life_at <= Instant::now() => return self.life(),
                Ok(_) if self.looked < self.version() => {}
                Ok(_) => {
                    let goes_on = tokio::select! {
                        biased;
                        _ = self.stopping.wait_for(|stopping| *stopping) => Some(false),
                        changed = self.progress.changed() => Some(changed.is_ok()),
                        () = tokio::time::sleep_until(self.life_at) => None,
                    };
                    match goes_on {
                        Some(true) => {}
                        Some(false) => return Self::end(&json!({ "error": "the node stops" })),
                        None => return self.life(),
                    }
                }
                Err(error) => return Self::end(&too_far_behind(error, self.version())),
            }
        }
    }

    fn version(&self) -> u64 {
        self.shared.look(|known| known.state.version())
    }

    /// That everything up to here was said.
    fn life(&self) -> Part {
        let line = json!({ "version": self.looked, "changes": [] });
        Part { text: format!("{line}\n"), is_last: false }
    }

    fn end(line: &Value) -> Part {
        Part { text: format!("{line}\n"), is_last: true }
    }

    /// Lines of the next updates, empty when none of those that were looked through is wanted.
    fn look(&mut self) -> Result<String, TooFarBehind> {
        let (mut looked, mut bytes) = (self.looked, 0);
        let mut taken: Vec<Arc<Update>> = Vec::new();
        self.shared.look(|known| {
            for update in known.history.since(looked)?.take(LOOK_MAX) {
                looked = update.version;
                let wanted = update.changes.iter().filter(|change| self.wanted.takes(change));
                let wanted: usize = wanted.map(Change::bytes).sum();
                if wanted > 0 {
                    bytes += wanted;
                    taken.push(Arc::clone(update));
                }
                if bytes >= PART_BYTES {
                    break;
                }
            }
            Ok(())
        })?;
        self.looked = looked;
        let lines = taken.iter().map(|update| format!("{}\n", self.wanted.line(update)));
        Ok(lines.collect())
    }
}

fn too_far_behind(TooFarBehind { floor }: TooFarBehind, version: u64) -> Value {
    json!({
        "error": format!("changes up to version {floor} are not kept any more; read the state again"),
        "version": version,
        "kept_after": floor,
    })
}

pub(crate) async fn answer(admin: &Admin, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let [prefix, kinds, from] = input::parameters(request, ["prefix", "kinds", "from"])?;
    let bad = |why: String| refusal(StatusCode::BAD_REQUEST, why);
    let wanted = Wanted::read(prefix, kinds.as_deref()).map_err(bad)?;
    let from = from.map(|from| from.parse::<u64>()).transpose();
    let from = from.map_err(|_| bad("from is a version".to_owned()))?;
    let full = || refusal(StatusCode::SERVICE_UNAVAILABLE, "too many watch");
    let place = Arc::clone(&admin.watchers).try_acquire_owned().map_err(|_| full())?;
    // Whatever version the reader has seen anywhere is known here behind this.
    admin.consensus.read_barrier().await?;
    let shared = Arc::clone(admin.consensus.shared());
    let (version, kept) = shared.look(|known| {
        let version = known.state.version();
        (version, known.history.since(from.unwrap_or(version)).map(drop))
    });
    let from = from.unwrap_or(version);
    if let Err(error) = kept {
        return Ok(tagged(json_answer(StatusCode::GONE, &too_far_behind(error, version)), version));
    }
    if from > version {
        return Err(bad(format!("version {from} was not reached yet; it is {version}")));
    }
    if request.method() == http::Method::HEAD {
        return Ok(empty(StatusCode::OK));
    }
    let watcher = Watcher {
        progress: shared.watch(),
        shared,
        wanted,
        looked: from,
        begun: false,
        life_at: Instant::now(),
        stopping: admin.stopping.clone(),
        _place: place,
    };
    let parts = futures_util::stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        let Part { text, is_last } = watcher.next().await;
        let frame = Frame::data(Bytes::from(text));
        Some((Ok(frame), (!is_last).then_some(watcher)))
    });
    let mut answer = parts_answer(LINES, Box::pin(parts));
    answer.headers_mut().insert(VERSION, HeaderValue::from(from));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(key: &str) -> Change {
        Change::Fragment { key: key.to_owned(), value: Some(Bytes::from_static(b"v")) }
    }

    #[test]
    fn a_prefix_means_fragments_and_no_kind_means_all() {
        let weights = Change::Weights(outrider_state::request::Weights::default());
        let takes = |prefix: Option<&str>, kinds, change: &Change| {
            Wanted::read(prefix.map(str::to_owned), kinds).unwrap().takes(change)
        };
        assert!(takes(None, None, &weights) && takes(None, None, &fragment("a")));
        assert!(takes(Some("a"), None, &fragment("ab")) && !takes(Some("a"), None, &weights));
        assert!(!takes(Some("a"), None, &fragment("b")));
        assert!(takes(Some("a"), Some("weights,fragment"), &weights));
        assert!(!takes(None, Some("weights"), &fragment("a")));
        assert!(Wanted::read(None, Some("weights,fragments")).is_err());
    }

    #[test]
    fn an_update_is_one_line_of_what_is_wanted() {
        let wanted = Wanted::read(Some("a".to_owned()), None).unwrap();
        let gone = Change::Fragment { key: "a2".to_owned(), value: None };
        let update = Update { version: 7, changes: vec![fragment("a1"), fragment("b"), gone] };
        assert_eq!(
            wanted.line(&update),
            json!({ "version": 7, "changes": [
                { "kind": "fragment", "key": "a1", "value": "dg==" },
                { "kind": "fragment", "key": "a2", "value": null },
            ] })
        );
    }
}
