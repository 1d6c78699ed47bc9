//! `POST /v1/prefetch`: has edges that follow this node fetch contents that will be asked for, as soon as they have
//! nothing else to fetch. It need not arrive: the newest wins, and an edge that is away is not told later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use outrider_push::Prediction;
use outrider_push::soft::PREDICTIONS_MAX;
use serde::Deserialize;
use serde_json::json;

use super::answer::{Answer, Refusal, json_answer, refusal};
use super::{Admin, input};

/// The largest body.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long an edge may take to come to it, if nothing is said, and at the most.
const TTL_DEFAULT: Duration = Duration::from_secs(600);
const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// None for all that follow this node.
    #[serde(default)]
    edges: Option<Vec<u64>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    contents: Vec<Content>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    repository: String,
    digest: String,
    #[serde(default)]
    manifest: bool,
    /// 0 to 1.
    #[serde(default)]
    probability: Option<f64>,
}

impl Content {
    fn prediction(&self, expires_unix_ms: u64) -> Result<Prediction, String> {
        let probability = self.probability.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&probability) {
            return Err("probability is 0 to 1".to_owned());
        }
        Ok(Prediction {
            digest: self.digest.parse().map_err(|error| format!("digest: {error}"))?,
            // It is within bounds.
            probability: (probability * f64::from(u16::MAX)) as u16,
            repository: self.repository.parse().map_err(|error| format!("repository: {error}"))?,
            is_manifest: self.manifest,
            expires_unix_ms,
        })
    }
}

pub(crate) async fn answer(admin: &Admin, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let bad = |why: String| refusal(StatusCode::BAD_REQUEST, why);
    let wanted: Wanted = input::json(admin, request.into_body(), BODY_BYTES_MAX).await?;
    if wanted.contents.len() > PREDICTIONS_MAX {
        return Err(bad(format!("there are more than {PREDICTIONS_MAX} contents")));
    }
    let ttl = wanted.ttl_ms.map_or(TTL_DEFAULT, Duration::from_millis).min(TTL_MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires_unix_ms = u64::try_from((now + ttl).as_millis()).unwrap_or(u64::MAX);
    let predictions = wanted.contents.iter().map(|content| content.prediction(expires_unix_ms));
    let predictions = predictions.collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let mut told = admin.boards.edges();
    told.sort_unstable();
    if let Some(edges) = &wanted.edges {
        told.retain(|edge| edges.contains(edge));
    }
    for edge in &told {
        admin.boards.predict(*edge, predictions.iter().cloned());
    }
    let answer = json!({ "told": told, "contents": predictions.len() });
    Ok(json_answer(StatusCode::ACCEPTED, &answer))
}
