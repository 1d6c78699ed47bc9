//! What an edge knows: a plain copy of what it uses, and its position.

use std::collections::BTreeMap;

use bytes::Bytes;
use outrider_state::request::{Customer, Invalidation, Placement, TagRecord, Weights};

use crate::message::{Item, MemberRole};

/// A copy. To be stored together with its position, or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replica {
    /// The cluster that it is of; 0 for none yet.
    pub cluster: [u8; 16],
    /// Everything up to this version is in it.
    pub position: u64,
    /// Of that cluster, digests that were invalidated up to this version are forgotten. Never below the position; above
    /// it when the rest of a replica was of no use any more.
    pub invalidated: u64,
    /// Fragments: version and value.
    pub fragments: BTreeMap<String, (u64, Bytes)>,
    /// Repository and tag: what it stands for.
    pub tags: BTreeMap<(String, String), Tag>,
    /// Customers.
    pub customers: BTreeMap<String, Customer>,
    /// The weights of the importance score.
    pub weights: Weights,
    /// The rules of the placement, by the prefix of repositories.
    pub placements: BTreeMap<String, Placement>,
    /// Members, by number.
    pub members: BTreeMap<u64, Member>,
}

/// What an edge knows of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its version.
    pub version: u64,
    /// What it stands for.
    pub record: TagRecord,
    /// Log time at which that was written, in milliseconds.
    pub confirmed_ms: u64,
}

/// What an edge knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is.
    pub role: MemberRole,
    /// Its region, or empty.
    pub region: String,
    /// It is not let in any more.
    pub revoked: bool,
    /// Where it is reached by edges, `HOST:PORT`, or empty.
    pub address: String,
    /// The public key (Ed25519) of the tokens that it gives.
    pub token_key: Option<[u8; 32]>,
}

/// What the caches have to do about an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// A tag stands for something else.
    Replaced {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
        /// The digest that it stood for.
        digest: String,
    },
    /// Something is no longer true.
    Invalidated(Invalidation),
    /// Invalidations of tags may have been missed: what upstreams said has to be asked again.
    Missed,
    /// Digests were invalidated that nobody remembers: no cached copy of before is to be trusted.
    Forgotten,
}

impl Replica {
    /// One that was stored as its items.
    pub fn of(cluster: [u8; 16], position: u64, items: impl IntoIterator<Item = Item>) -> Self {
        let mut replica = Self { cluster, position, invalidated: position, ..Self::default() };
        items.into_iter().for_each(|item| replica.take(item, &mut Vec::new()));
        replica
    }

    /// One that has nothing but to know which digests were forgotten, for an edge that uses something else from now on.
    pub fn emptied(&self) -> Self {
        Self { cluster: self.cluster, invalidated: self.invalidated, ..Self::default() }
    }

    /// Everything that it has, to be stored. Copies.
    pub fn items(&self) -> impl Iterator<Item = Item> + '_ {
        let fragments = self.fragments.iter().map(|(key, (version, value))| Item::Fragment {
            key: key.clone(),
            version: *version,
            value: Some(value.to_vec()),
        });
        let tags = self.tags.iter().map(|((repository, tag), known)| Item::Tag {
            repository: repository.clone(),
            tag: tag.clone(),
            version: known.version,
            record: Some(known.record.clone()),
            confirmed_ms: known.confirmed_ms,
            replaced: None,
        });
        let customers = self.customers.iter().map(|(name, customer)| Item::Customer {
            name: name.clone(),
            customer: Some(customer.clone()),
        });
        let members = self.members.iter().map(|(number, member)| Item::Member {
            number: *number,
            role: member.role,
            region: member.region.clone(),
            revoked: member.revoked,
            address: member.address.clone(),
            token_key: member.token_key,
        });
        let weights = std::iter::once(Item::Weights(self.weights));
        let placements = self.placements.iter().map(|(prefix, placement)| Item::Placement {
            prefix: prefix.clone(),
            placement: Some(placement.clone()),
        });
        fragments.chain(tags).chain(customers).chain(members).chain(weights).chain(placements)
    }

    /// Takes one item in.
    pub(crate) fn take(&mut self, item: Item, consequences: &mut Vec<Consequence>) {
        match item {
            Item::Fragment { key, version, value: Some(value) } => {
                self.fragments.insert(key, (version, value.into()));
            }
            Item::Fragment { key, value: None, .. } => drop(self.fragments.remove(&key)),
            Item::Tag { repository, tag, version, record, confirmed_ms, replaced } => {
                if let Some(digest) = replaced {
                    let (repository, tag) = (repository.clone(), tag.clone());
                    consequences.push(Consequence::Replaced { repository, tag, digest });
                }
                match record {
                    Some(record) => {
                        let known = Tag { version, record, confirmed_ms };
                        self.tags.insert((repository, tag), known);
                    }
                    None => drop(self.tags.remove(&(repository, tag))),
                }
            }
            // Each of them once, also when its version comes a second time.
            Item::Invalidated { version, what: Invalidation::Digest(_) }
                if version <= self.invalidated => {}
            Item::Invalidated { what, .. } => consequences.push(Consequence::Invalidated(what)),
            Item::Customer { name, customer: Some(customer) } => {
                self.customers.insert(name, customer);
            }
            Item::Customer { name, customer: None } => drop(self.customers.remove(&name)),
            Item::Weights(weights) => self.weights = weights,
            Item::Placement { prefix, placement: Some(placement) } => {
                self.placements.insert(prefix, placement);
            }
            Item::Placement { prefix, placement: None } => drop(self.placements.remove(&prefix)),
            Item::Member { number, role, region, revoked, address, token_key } => {
                let member = Member { role, region, revoked, address, token_key };
                self.members.insert(number, member);
            }
        }
    }

    /// What changes when this one is replaced by another: tags that stood for something else, and what may
    /// have been missed in between.
    pub(crate) fn consequences_of(&self, next: &Self) -> Vec<Consequence> {
        let gone = self.tags.iter().filter_map(|((repository, tag), Tag { record, .. })| {
            let now = next.tags.get(&(repository.clone(), tag.clone()));
            let same = now.is_some_and(|now| now.record.digest == record.digest);
            (!same).then(|| Consequence::Replaced {
                repository: repository.clone(),
                tag: tag.clone(),
                digest: record.digest.clone(),
            })
        });
        gone.chain([Consequence::Missed]).collect()
    }
}
