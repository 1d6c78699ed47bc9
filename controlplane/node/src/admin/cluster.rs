//! `GET /v1/cluster`, and `POST /v1/cluster/token`, `/leave`, `/remove`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use outrider_certificate::Validity;
use outrider_raft::Unavailable;
use outrider_raft::rpc::tls::Role;
use outrider_state::request::TOKEN_TTL_MS_MAX;
use outrider_state::{Operation, Outcome};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal, failure, json_answer, refusal, unavailable};
use super::{Admin, input};
use crate::token::Token;

/// The largest body.
const BODY_BYTES_MAX: usize = 16 << 10;
/// The most addresses that a token carries.
const ADDRESSES_MAX: usize = 5;
/// How long a node that left goes on, so that it learns of it and can answer.
const LEAVE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWanted {
    role: String,
    #[serde(default)]
    region: String,
    ttl_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    node: u64,
}

pub(crate) async fn status(admin: &Admin) -> Value {
    let (following, silent) = admin.edges.everywhere().await;
    let status = admin.consensus.status();
    let nodes = status.nodes.iter().map(|(id, (peer, votes))| {
        json!({
            "node": id,
            "name": peer.name,
            "address": peer.address,
            "admin": peer.admin,
            "voter": votes,
            "answers": !silent.contains(id),
            "leader": status.leader == Some(*id),
            "matched": status.matched.get(id),
        })
    });
    let version = status.progress.version;
    let members = admin.consensus.shared().look(|known| {
        let members = known.state.members().iter().map(|(number, member)| {
            let mut row = json!({
                "member": number,
                "role": member.role.as_str(),
                "name": member.name,
                "region": member.region,
                "revoked": member.revoked,
            });
            if member.role == Role::Edge {
                let at = following.get(&number);
                row["follows"] = json!(at.map(|at| at.node));
                row["applied"] = json!(at.map(|at| at.applied));
                // An edge of another node may be ahead of this one.
                row["lag"] = json!(at.map(|at| version.saturating_sub(at.applied)));
            }
            row
        });
        members.collect::<Vec<_>>()
    });
    json!({
        "node": status.id,
        "state": status.state,
        "leader": status.leader,
        "term": status.term,
        "log": status.last_log,
        "applied": status.progress.applied,
        "version": status.progress.version,
        "failure": status.failure,
        "graph": super::graph::health(admin),
        "certificate": certificate_json(
            &admin.certificate.shown.validity(),
            admin.certificate.failure(),
        ),
        "disk": admin.folder.disk().map(|(free, total)| {
            json!({ "free_bytes": free, "total_bytes": total })
        }),
        "nodes": nodes.collect::<Vec<_>>(),
        "members": members,
        "events": admin.events.report().json(),
    })
}

/// How a certificate stands.
pub(crate) fn certificate_json(validity: &Validity, failure: Option<String>) -> Value {
    const DAY: f64 = 86_400.0;
    let until = validity.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "until_unix_s": until,
        "days_left": validity.left(SystemTime::now()).as_secs_f64() / DAY,
        "lifetime_days": validity.lifetime().as_secs_f64() / DAY,
        "failure": failure,
    })
}

pub(crate) async fn token(admin: &Admin, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let wanted: TokenWanted = input::json(admin, request.into_body(), BODY_BYTES_MAX).await?;
    let role = match wanted.role.as_str() {
        "node" => Role::Node,
        "edge" => Role::Edge,
        _ => return Err(refusal(StatusCode::BAD_REQUEST, "role is node or edge")),
    };
    if wanted.ttl_ms == 0 || wanted.ttl_ms > TOKEN_TTL_MS_MAX {
        let why = format!("ttl_ms is 1 to {TOKEN_TTL_MS_MAX}");
        return Err(refusal(StatusCode::BAD_REQUEST, why));
    }
    let nodes = admin.consensus.status().nodes;
    let addresses = nodes.into_values().map(|(peer, _)| peer.address).take(ADDRESSES_MAX);
    let token = match Token::new(addresses.collect(), admin.authority_sha256, role) {
        Ok(token) => token,
        Err(error) => return Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, error)),
    };
    let issue = Operation::IssueToken {
        secret_sha256: token.secret_sha256(),
        role,
        region: wanted.region,
        ttl_ms: wanted.ttl_ms,
    };
    match admin.consensus.operate(issue).await {
        Ok(Outcome::Done { .. }) => {
            Ok(json_answer(StatusCode::OK, &json!({ "token": token.to_string() })))
        }
        Ok(_) => Err(refusal(StatusCode::INSUFFICIENT_STORAGE, "there are too many tokens")),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn removal(admin: &Admin, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let Removal { node } = input::json(admin, request.into_body(), BODY_BYTES_MAX).await?;
    Ok(remove(admin, node).await)
}

pub(crate) async fn leave(admin: &Admin) -> Answer {
    let node = admin.consensus.id();
    let answer = remove(admin, node).await;
    if answer.status() == StatusCode::OK {
        if let Err(error) = admin.folder.leave() {
            return failure(StatusCode::INTERNAL_SERVER_ERROR, error);
        }
        tokio::time::sleep(LEAVE_PAUSE).await;
    }
    answer
}

async fn remove(admin: &Admin, node: u64) -> Answer {
    let nodes = admin.consensus.status().nodes;
    let voters = nodes.values().filter(|(_, votes)| *votes).count();
    let is_edge = |known: &outrider_raft::machine::Known| {
        known.state.members().get(node).is_some_and(|member| member.role == Role::Edge)
    };
    if admin.consensus.shared().look(is_edge) {
        return match admin.consensus.operate(Operation::Revoke { member: node }).await {
            Ok(_) => json_answer(StatusCode::OK, &json!({ "removed": node })),
            Err(error) => unavailable(&error),
        };
    }
    let is_known = |known: &outrider_raft::machine::Known| {
        known.state.members().get(node).is_some_and(|member| !member.revoked)
    };
    match nodes.get(&node) {
        // It was taken out of the membership, and its certificate was not refused yet: somebody asks again.
        None if admin.consensus.shared().look(is_known) => {
            return match admin.consensus.operate(Operation::Revoke { member: node }).await {
                Ok(_) => json_answer(StatusCode::OK, &json!({ "removed": node })),
                Err(error) => unavailable(&error),
            };
        }
        None => return failure(StatusCode::NOT_FOUND, "there is no such node in the cluster"),
        Some((_, true)) if voters == 1 => {
            return failure(
                StatusCode::CONFLICT,
                "it is the last voter; the cluster would be gone",
            );
        }
        Some(_) => {}
    }
    // Once it is out of the membership it may no longer speak either. A node that removes itself cannot say
    // so afterwards: nobody listens to it any more.
    let result = async {
        admin.consensus.remove(node).await?;
        if node != admin.consensus.id() {
            admin.consensus.operate(Operation::Revoke { member: node }).await?;
        }
        Ok::<_, Unavailable>(())
    };
    match result.await {
        Ok(()) => json_answer(StatusCode::OK, &json!({ "removed": node })),
        Err(error) => unavailable(&error),
    }
}
