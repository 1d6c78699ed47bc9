//! What the control plane says of customers, weights and what is no longer true, as orders to the shards' caches.

use std::sync::Arc;
use std::time::Duration;

use outrider_artifact::Digest;
use outrider_cache::ImportanceWeights;
use outrider_gateway::names::{AskAgain, Fleet};
use outrider_gateway::{Order, Orders, Rate, Replaced, Standing};
use outrider_push::replica::Consequence;
use outrider_push::{Item, Replica};
use outrider_state::request::{Customer, Invalidation, Weights};

/// The way of what is said to the shards.
pub(crate) struct ToCaches {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) orders: Arc<Orders>,
    /// The weights of the configuration: they hold while nobody has set others for the fleet.
    pub(crate) configured: ImportanceWeights,
}

impl ToCaches {
    /// All of it is as the replica says; nothing may be missed. After a start it is not known what was done before it.
    pub(crate) fn whole(&self, replica: &Replica, consequences: &[Consequence]) {
        let customers = replica.customers.iter();
        let customers =
            customers.map(|(name, customer)| (name.as_str().into(), standing(customer)));
        self.orders.tell(&Order::Customers(Arc::new(customers.collect())));
        self.weigh(&replica.weights);
        self.follow(replica, consequences);
        self.fleet.ask_again(AskAgain::All);
    }

    /// What is different, and what follows from that, in the order of the log.
    pub(crate) fn update(&self, replica: &Replica, items: &[Item], consequences: &[Consequence]) {
        for item in items {
            match item {
                Item::Customer { name, customer } => {
                    let standing = customer.as_ref().map(standing);
                    self.orders.tell(&Order::Customer(name.as_str().into(), standing));
                }
                Item::Weights(weights) => self.weigh(weights),
                _ => {}
            }
        }
        self.follow(replica, consequences);
    }

    fn weigh(&self, weights: &Weights) {
        let set = *weights != Weights::default();
        let Weights { class, frequency, fetch, execute, depth } = *weights;
        let theirs = ImportanceWeights { class, frequency, fetch, execute, depth };
        self.orders.tell(&Order::Weights(if set { theirs } else { self.configured }));
    }

    fn follow(&self, replica: &Replica, consequences: &[Consequence]) {
        for consequence in consequences {
            match consequence {
                Consequence::Replaced { repository, tag, digest } => {
                    // The state has checked every digest.
                    let Ok(before) = digest.parse::<Digest>() else { continue };
                    let record = replica.tags.get(&(repository.clone(), tag.clone()));
                    let record = record.map(|(_, record)| record);
                    self.orders.tell(&Order::Replaced(Replaced {
                        repository: repository.as_str().into(),
                        before,
                        now: record.and_then(|record| record.digest.parse().ok()),
                        hosted: record.is_some_and(|record| record.upstream.is_none()),
                    }));
                }
                Consequence::Invalidated(Invalidation::Digest(digest)) => {
                    if let Ok(digest) = digest.parse() {
                        self.orders.tell(&Order::Purge(digest));
                    }
                }
                Consequence::Invalidated(Invalidation::Repository(repository)) => {
                    self.fleet.ask_again(AskAgain::Repository(repository));
                }
                Consequence::Invalidated(Invalidation::Tag { repository, tag }) => {
                    self.fleet.ask_again(AskAgain::Tag(repository, tag));
                }
                Consequence::Missed => self.fleet.ask_again(AskAgain::All),
            }
        }
    }
}

fn standing(customer: &Customer) -> Standing {
    let ttl = u64::from(customer.content_ttl_s);
    Standing {
        class: customer.class,
        guaranteed_bytes: customer.guaranteed_bytes,
        content_ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
        rate: Rate::new(customer.requests_per_second_max).map(Arc::new),
    }
}
