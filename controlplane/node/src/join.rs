//! How a newcomer gets its number and its certificate. It calls a node that the token names, knows it by the
//! hash of the authority's key, and sends the token's secret with a signing request; the cluster notes in the
//! log that the secret is used and by which key, and the node signs. Asked again by the same key it answers
//! the same, so that a lost answer costs nothing.

use std::time::Duration;

use bytes::Bytes;
use outrider_certificate::clock;
use outrider_follower::EdgeFolder;
use outrider_raft::Consensus;
use outrider_raft::rpc::CallError;
use outrider_raft::rpc::frame::Kind;
use outrider_raft::rpc::pool::call_once;
use outrider_raft::rpc::tls::{Role, TlsError, any_node_name, newcomer};
use outrider_state::{Operation, Outcome};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::folder::{Folder, FolderError, Given};
use crate::pki::{self, Authority, PkiError, SigningRequest};
use crate::token::Token;

/// For one attempt at one address.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(15);

/// Why a newcomer was not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A key or a certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An edge's folder.
    #[error(transparent)]
    EdgeFolder(#[from] outrider_follower::FolderError),
    /// The token is for something else.
    #[error(
        "this token is for an {found}, not an {wanted}; make one with `outrider cluster token --role {wanted}`"
    )]
    Role {
        /// What the token, or the cluster's answer, says.
        found: String,
        /// What wants to join.
        wanted: &'static str,
    },
    /// No node let it in.
    #[error("no node of the cluster let this one in; the last said: {0}")]
    Refused(CallError),
    /// A node answered something else.
    #[error("the cluster's answer cannot be read: {0}")]
    Answer(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    secret: [u8; 32],
    request_pem: String,
    name: String,
}

/// What a newcomer is told.
#[derive(Serialize, Deserialize)]
struct Answer {
    number: u64,
    role: String,
    region: String,
    certificate_pem: String,
    authority_pem: String,
    /// For nodes alone.
    authority_key_pem: Option<String>,
    nodes: Vec<(u64, String)>,
}

/// Makes this folder's node a member of the token's cluster; gives its number.
///
/// # Errors
/// [`JoinError`]
pub async fn join(folder: &Folder, token: &Token, name: &str) -> Result<u64, JoinError> {
    folder.check_free()?;
    check_role(&token.role, Role::Node)?;
    let key_pem = folder.own_key()?;
    let answer = ask(token, &key_pem, name).await?;
    take(folder, &key_pem, answer)
}

/// Makes the edge of this folder a member of the token's cluster; gives its number and its region, if the token
/// named one.
///
/// # Errors
/// [`JoinError`]
pub async fn join_edge(
    folder: &EdgeFolder,
    token: &Token,
    name: &str,
) -> Result<(u64, String), JoinError> {
    folder.check_free()?;
    check_role(&token.role, Role::Edge)?;
    let new = || pki::new_key().map(|(key, _)| key).map_err(|error| error.to_string());
    let key_pem = folder.own_key(new)?;
    let answer = ask(token, &key_pem, name).await?;
    check_role(&answer.role, Role::Edge)?;
    folder.take_over(&outrider_follower::Given {
        number: answer.number,
        region: answer.region.clone(),
        nodes: answer.nodes.into_iter().map(|(_, address)| address).collect(),
        certificate_pem: &answer.certificate_pem,
        authority_pem: &answer.authority_pem,
    })?;
    Ok((answer.number, answer.region))
}

fn check_role(found: &str, wanted: Role) -> Result<(), JoinError> {
    let wanted = wanted.as_str();
    let found = found.to_owned();
    if found == wanted { Ok(()) } else { Err(JoinError::Role { found, wanted }) }
}

/// Sends the secret and a signing request to the nodes that the token names, one after the other.
async fn ask(token: &Token, key_pem: &str, name: &str) -> Result<Answer, JoinError> {
    let asked = Asked {
        secret: token.secret,
        request_pem: pki::request_for(key_pem)?,
        name: name.to_owned(),
    };
    let unreadable = |error: serde_json::Error| JoinError::Answer(error.to_string());
    let body = Bytes::from(serde_json::to_vec(&asked).map_err(unreadable)?);
    let tls = newcomer(token.authority_sha256)?;
    let mut last = CallError::Refused("the token has no address".to_owned());
    for address in &token.addresses {
        let (host, time) = (any_node_name(), ATTEMPT_TIME_MAX);
        match call_once(&tls, host, address, Kind::JOIN, body.clone(), time).await {
            Ok(body) => return serde_json::from_slice(&body).map_err(unreadable),
            Err(error) => last = error,
        }
    }
    Err(JoinError::Refused(last))
}

fn take(folder: &Folder, key_pem: &str, answer: Answer) -> Result<u64, JoinError> {
    let Some(authority_key_pem) = &answer.authority_key_pem else {
        return Err(JoinError::Role { found: answer.role, wanted: Role::Node.as_str() });
    };
    Authority::load(&answer.authority_pem, authority_key_pem)?;
    folder.take_over(&Given {
        number: answer.number,
        found: answer.nodes,
        key_pem,
        certificate_pem: &answer.certificate_pem,
        authority_pem: &answer.authority_pem,
        authority_key_pem,
    })?;
    Ok(answer.number)
}

/// Answers a newcomer.
///
/// # Errors
/// What is said to it.
pub async fn answer(
    consensus: &Consensus,
    authority: &Authority,
    lifetime: Duration,
    body: Bytes,
) -> Result<Bytes, String> {
    let asked: Asked = serde_json::from_slice(&body).map_err(text)?;
    let request = SigningRequest::from_pem(&asked.request_pem).map_err(text)?;
    let spend = Operation::SpendToken {
        secret_sha256: Sha256::digest(asked.secret).into(),
        key_sha256: request.key_sha256(),
        name: asked.name,
    };
    let (number, role, region) = match consensus.operate(spend).await.map_err(text)? {
        Outcome::Joined { member, role, region } => (member, role, region),
        Outcome::Full => return Err("the cluster has too many members".to_owned()),
        _ => {
            return Err(
                "the token is not known, was used by another, or is over its time".to_owned()
            );
        }
    };
    let certificate_pem =
        authority.sign(&request, (role, number), (clock::later(), lifetime)).map_err(text)?;
    tracing::info!(number, role = role.as_str(), region, "a newcomer was let in");
    let nodes = consensus.status().nodes.into_iter().map(|(id, (peer, _))| (id, peer.address));
    let answer = Answer {
        number,
        role: role.as_str().to_owned(),
        region,
        certificate_pem,
        authority_pem: authority.pem().to_owned(),
        authority_key_pem: (role == Role::Node).then(|| authority.key_pem()),
        nodes: nodes.collect(),
    };
    serde_json::to_vec(&answer).map(Bytes::from).map_err(text)
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}
