//! The placement: on how many edges what is pushed has to be, and which edges are asked.
//!
//! The choice is pure, and the same at every edge that knows the same members: by rendezvous hashing (Thaler and
//! Ravishankar, 1998) of the repository's name. So what one repository has lies together, a new version brings
//! only what is new of it to where the others are, and a push that is repeated finds what it brought before.

use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use outrider_artifact::Digest;

use super::fleet::Fleet;

/// Edges that are asked for one push.
const CANDIDATES_MAX: usize = 16;

/// What holds for the repositories below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRule {
    /// Edges that must have what is pushed.
    pub replicas: u8,
    /// Only edges of these regions count; none for all.
    pub regions: Vec<String>,
}

/// What has to be done for a push to one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What holds for it.
    pub rule: PlacementRule,
    /// Whether this edge counts as one of them.
    pub own_counts: bool,
    /// Whether other edges know how this one is reached: what they lack they get from here.
    pub is_reached: bool,
    /// The other edges that count and can be reached, dearest first.
    pub others: Vec<u64>,
}

impl Placed {
    /// How many others must have it.
    pub fn wanted(&self) -> usize {
        usize::from(self.rule.replicas).saturating_sub(usize::from(self.own_counts))
    }
}

/// The rules, and where edges are.
#[derive(Debug, Default)]
pub(super) struct Placements {
    rules: BTreeMap<String, PlacementRule>,
    /// Of edges, by their numbers.
    regions: HashMap<u64, String>,
}

impl Placements {
    /// The rule of the longest name that the repository is, or is below.
    fn rule(&self, repository: &str) -> Option<&PlacementRule> {
        let mut prefix = repository;
        while !self.rules.is_empty() {
            if let Some(rule) = self.rules.get(prefix) {
                return Some(rule);
            }
            if prefix.is_empty() {
                break;
            }
            prefix = prefix.rsplit_once('/').map_or("", |(above, _)| above);
        }
        None
    }

    fn counts(&self, rule: &PlacementRule, edge: u64) -> bool {
        rule.regions.is_empty()
            || self.regions.get(&edge).is_some_and(|region| rule.regions.contains(region))
    }
}

/// Edges in the order in which they are asked for a repository.
fn ranked(repository: &str, edges: impl Iterator<Item = u64>) -> Vec<u64> {
    let weight = |edge: u64| Digest::sha256(format!("{edge}\n{repository}").as_bytes());
    let mut edges: Vec<(Digest, u64)> = edges.map(|edge| (weight(edge), edge)).collect();
    edges.sort_unstable_by(|(a, _), (b, _)| b.value().cmp(a.value()));
    edges.into_iter().map(|(_, edge)| edge).take(CANDIDATES_MAX).collect()
}

impl Fleet {
    /// The rule of this prefix is another one, or there is none any more.
    pub fn set_placement(&self, prefix: &str, rule: Option<PlacementRule>) {
        let mut placements = self.placements.write().unwrap_or_else(PoisonError::into_inner);
        match rule {
            Some(rule) => drop(placements.rules.insert(prefix.to_owned(), rule)),
            None => drop(placements.rules.remove(prefix)),
        }
    }

    /// The edge is in this region.
    pub fn set_region(&self, edge: u64, region: &str) {
        let mut placements = self.placements.write().unwrap_or_else(PoisonError::into_inner);
        placements.regions.insert(edge, region.to_owned());
    }

    /// All rules, and the regions of all edges, are as it is said here.
    pub fn replace_placements(
        &self,
        rules: impl Iterator<Item = (String, PlacementRule)>,
        regions: impl Iterator<Item = (u64, String)>,
    ) {
        let next = Placements { rules: rules.collect(), regions: regions.collect() };
        *self.placements.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// What a push to this repository takes; nothing where this edge alone is enough. O(edges) hashes where there
    /// is something.
    pub(super) fn placed(&self, repository: &str) -> Option<Placed> {
        let placements = self.placements.read().unwrap_or_else(PoisonError::into_inner);
        let rule = placements.rule(repository)?.clone();
        let own_counts = placements.counts(&rule, self.own());
        if rule.replicas <= 1 && own_counts {
            return None;
        }
        let reached = self.reached();
        let is_reached = reached.contains(&self.own());
        let others = reached.into_iter().filter(|edge| *edge != self.own());
        let others = others.filter(|edge| placements.counts(&rule, *edge));
        let others = ranked(repository, others);
        Some(Placed { rule, own_counts, is_reached, others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Proposal, Proposed, Proposer};

    struct Nobody;

    impl Proposer for Nobody {
        fn propose(&self, _: Proposal, _: Proposed) {}
    }

    fn rule(replicas: u8, regions: &[&str]) -> PlacementRule {
        let regions = regions.iter().map(|&region| region.to_owned()).collect();
        PlacementRule { replicas, regions }
    }

    /// Edges 1 to `count`; the odd ones are in `eu`, the others in `us`.
    fn fleet(own: u64, count: u64) -> std::sync::Arc<Fleet> {
        let fleet = Fleet::new(own, Box::new(Nobody));
        for edge in 1..=count {
            fleet.set_address(edge, Some(format!("e{edge}:8443")));
            fleet.set_region(edge, if edge % 2 == 1 { "eu" } else { "us" });
        }
        fleet
    }

    #[test]
    fn the_longest_name_that_a_repository_is_below_holds() {
        let fleet = fleet(1, 3);
        assert!(fleet.placed("team/app").is_none(), "without a rule nothing is done");
        fleet.set_placement("", Some(rule(2, &[])));
        fleet.set_placement("team", Some(rule(3, &[])));
        fleet.set_placement("team/scratch", Some(rule(1, &[])));
        let replicas = |name: &str| fleet.placed(name).map(|placed| placed.rule.replicas);
        assert_eq!(replicas("other"), Some(2));
        assert_eq!(replicas("team"), Some(3));
        assert_eq!(replicas("team/app/x"), Some(3));
        assert_eq!(replicas("teamster/app"), Some(2), "a name is not a part of another one's");
        assert_eq!(replicas("team/scratch/x"), None);
        fleet.set_placement("team", None);
        assert_eq!(replicas("team/app"), Some(2));
        fleet.set_placement("", None);
        assert_eq!(replicas("team/app"), None);
    }

    #[test]
    fn others_are_chosen_alike_everywhere_and_only_such_as_count_and_can_be_reached() {
        let (a, b) = (fleet(1, 6), fleet(2, 6));
        for edge in [&a, &b] {
            edge.set_placement("", Some(rule(3, &["eu"])));
            edge.set_address(5, None);
        }
        let at_a = a.placed("team/app").unwrap();
        assert!(at_a.own_counts && at_a.is_reached);
        assert_eq!((at_a.wanted(), &at_a.others), (2, &vec![3]));
        // The other one is elsewhere, so that three others have to have it.
        let at_b = b.placed("team/app").unwrap();
        assert!(!at_b.own_counts);
        assert_eq!(at_b.wanted(), 3);
        let mut others = at_b.others.clone();
        others.sort_unstable();
        assert_eq!(others, [1, 3]);
        a.set_placement("", Some(rule(1, &["us"])));
        assert_eq!(a.placed("x").unwrap().wanted(), 1, "one of those that count, also of one");
        a.set_address(1, None);
        assert!(!a.placed("x").unwrap().is_reached);
    }

    #[test]
    fn repositories_spread_over_the_edges_and_one_edge_less_moves_only_what_it_had() {
        let first = |name: &str, edges: &[u64]| ranked(name, edges.iter().copied())[0];
        let all = [1, 2, 3, 4];
        let mut held = [0_u32; 5];
        for n in 0..1_000 {
            let name = format!("team/app{n}");
            let edge = first(&name, &all);
            held[edge as usize] += 1;
            if edge != 3 {
                assert_eq!(first(&name, &[1, 2, 4]), edge);
            }
        }
        assert!(held[1..].iter().all(|count| (200..=300).contains(count)), "{held:?}");
        assert_eq!(ranked("x", 1..=100).len(), CANDIDATES_MAX);
    }
}
