//! `GET /v1/placement` and `GET|PUT|DELETE /v1/placement/PREFIX`: on how many edges what is pushed has to be before
//! that is acknowledged. What is written last holds. The prefix is a repository's name, which is for all below it
//! too; where there is none behind the slash, it is for all repositories.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use outrider_state::request::Placement;
use outrider_state::{Operation, Request as StateRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{Answer, Refusal, json_answer, refusal, written};
use super::{Admin, input, is_read};

/// The largest body.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A rule in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacementJson {
    replicas: u8,
    #[serde(default)]
    regions: Vec<String>,
}

/// What a watcher sees of a rule, and who asks for one.
pub(crate) fn placement_json(placement: &Placement) -> Value {
    let Placement { replicas, regions } = placement.clone();
    json!(PlacementJson { replicas, regions })
}

pub(crate) async fn list(admin: &Admin, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let [] = input::parameters(request, [])?;
    admin.consensus.read_barrier().await?;
    let (version, rules) = admin.consensus.shared().look(|known| {
        let rules = known.state.placements().map(|(prefix, placement)| {
            let mut row = placement_json(placement);
            row["prefix"] = json!(prefix);
            row
        });
        (known.state.version(), rules.collect::<Vec<_>>())
    });
    Ok(json_answer(StatusCode::OK, &json!({ "version": version, "placements": rules })))
}

pub(crate) async fn answer(
    admin: &Admin,
    prefix: &str,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let prefix = input::name(prefix)?;
    if is_read(request.method()) {
        admin.consensus.read_barrier().await?;
        let found = admin.consensus.shared().look(|known| known.state.placement(&prefix).cloned());
        let missing = || refusal(StatusCode::NOT_FOUND, "there is no rule for this prefix");
        return Ok(json_answer(StatusCode::OK, &placement_json(&found.ok_or_else(missing)?)));
    }
    let (head, body) = request.into_parts();
    input::no_condition(&head.headers)?;
    let id = input::request_id(&head.headers)?;
    let placement = match head.method == Method::PUT {
        true => {
            let PlacementJson { replicas, regions } =
                input::json(admin, body, BODY_BYTES_MAX).await?;
            Some(Placement { replicas, regions })
        }
        false => None,
    };
    let request = StateRequest { id, operation: Operation::Placement { prefix, placement } };
    Ok(written(admin.consensus.write(request).await))
}
