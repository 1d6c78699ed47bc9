//! Join tokens, and the members that used one: nodes of the control plane and edges. Who is a voter is the
//! consensus layer's business; here stands whose public key was let in as what.

use std::collections::BTreeMap;

use rkyv::{Archive, Deserialize, Serialize};

use crate::outcome::Outcome;

/// The most members that are remembered, revoked ones among them.
pub const MEMBERS_MAX: usize = 100_000;
/// The most tokens at a time.
pub const TOKENS_MAX: usize = 10_000;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub enum Role {
    /// A node of the control plane.
    Node,
    /// An edge.
    Edge,
}

impl Role {
    /// `node` or `edge`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Edge => "edge",
        }
    }
}

/// Somebody who was let in.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// How it calls itself.
    pub name: String,
    /// The region of an edge, else empty.
    pub region: String,
    /// SHA-256 of its public key.
    pub key_sha256: [u8; 32],
    /// Log time at which it was let in.
    pub joined_ms: u64,
    /// It is not let in any more.
    pub revoked: bool,
    /// Where it is reached, `HOST:PORT`: an edge by other edges, a node by nodes and edges. Empty while that is not known,
    /// and for a node that is out of the membership.
    pub address: String,
    /// The public key (Ed25519) of the tokens that an edge gives, where it gives any.
    pub token_key: Option<[u8; 32]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) role: Role,
    pub(crate) region: String,
    pub(crate) until_ms: u64,
    /// Who used it. It stays until its time is over, so that a newcomer whose answer was lost asks again.
    pub(crate) spent_by: Option<u64>,
}

/// Tokens and members.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub(crate) tokens: BTreeMap<[u8; 32], Token>,
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) last: u64,
}

impl Members {
    /// Who has this number.
    pub fn get(&self, member: u64) -> Option<&Member> {
        self.members.get(&member)
    }

    /// Everybody, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.members.iter().map(|(&number, member)| (number, member))
    }

    pub(crate) fn issue(
        &mut self,
        secret_sha256: [u8; 32],
        role: Role,
        region: String,
        until_ms: u64,
        now_ms: u64,
    ) -> bool {
        self.tokens.retain(|_, token| token.until_ms > now_ms);
        if self.tokens.len() >= TOKENS_MAX {
            return false;
        }
        let token = Token { role, region, until_ms, spent_by: None };
        self.tokens.entry(secret_sha256).or_insert(token);
        true
    }

    pub(crate) fn spend(
        &mut self,
        secret_sha256: &[u8; 32],
        key_sha256: [u8; 32],
        name: String,
        now_ms: u64,
    ) -> Outcome {
        let Some(token) = self.tokens.get_mut(secret_sha256) else { return Outcome::NoToken };
        if token.until_ms <= now_ms {
            return Outcome::NoToken;
        }
        let (role, region) = (token.role, token.region.clone());
        if let Some(member) = token.spent_by {
            let same = self.members.get(&member).is_some_and(|m| m.key_sha256 == key_sha256);
            return if same { Outcome::Joined { member, role, region } } else { Outcome::NoToken };
        }
        if self.members.len() >= MEMBERS_MAX {
            return Outcome::Full;
        }
        self.last += 1;
        let member = self.last;
        token.spent_by = Some(member);
        let entry = Member {
            role,
            name,
            region: region.clone(),
            key_sha256,
            joined_ms: now_ms,
            revoked: false,
            address: String::new(),
            token_key: None,
        };
        self.members.insert(member, entry);
        Outcome::Joined { member, role, region }
    }

    /// Notes where a member is reached, and whose tokens are its own, where it is an edge. Whether that is something
    /// else than before; nothing when there is no such member.
    pub(crate) fn announce(
        &mut self,
        member: u64,
        address: String,
        token_key: Option<[u8; 32]>,
    ) -> Option<bool> {
        let member = self.members.get_mut(&member)?;
        let token_key = token_key.filter(|_| member.role == Role::Edge);
        let is_new = member.address != address || member.token_key != token_key;
        (member.address, member.token_key) = (address, token_key);
        Some(is_new)
    }

    pub(crate) fn revoke(&mut self, member: u64) -> bool {
        self.members.get_mut(&member).map(|member| member.revoked = true).is_some()
    }
}
