//! When an entry counts as appended before it is on the leader's own disk.
//!
//! openraft sends entries to the others only once they are appended here, so that a write would wait for two fsyncs
//! one after the other. Where the leader alone decides nothing it may be told so before: nothing is committed
//! without the answer of another node, and those answers are held back until this disk has what they are about
//! ([`crate::network`]). So whatever is committed is on the disks of a majority, this one among them, as ever.
//!
//! Not so for what others send to this node, which they count; nor where this node alone is a majority of any
//! membership in use.

use openraft::EntryPayload;

use crate::types::{Entry, Membership, NodeId, Vote};

/// What is known about it. Says no unless it knows.
#[derive(Debug)]
pub(crate) struct Early {
    node: NodeId,
    vote: Option<Vote>,
    /// Index of the last change of the membership that went into the log.
    changed: u64,
    /// Index of the membership that is in use, and whether others are needed for every majority of it.
    membership: Option<(u64, bool)>,
}

impl Early {
    pub(crate) fn new(node: NodeId) -> Self {
        Self { node, vote: None, changed: 0, membership: None }
    }

    /// This node's vote.
    pub(crate) fn vote(&mut self, vote: &Vote) {
        self.vote = Some(*vote);
    }

    /// The membership in use.
    pub(crate) fn set_membership(&mut self, index: u64, membership: &Membership) {
        let others = membership.get_joint_config().iter().all(|voters| voters.len() >= 2);
        let any = !membership.get_joint_config().is_empty();
        self.membership = Some((index, any && others));
    }

    /// All from this index on is taken back. If a change of the membership was among that, an older one is in use again,
    /// and what was said of the newer one counts no more.
    pub(crate) fn truncate(&mut self, from: u64) {
        if self.changed >= from {
            self.changed += 1;
        }
    }

    /// Takes note of an entry on its way to the disk: whether it may count before it is there.
    pub(crate) fn append(&mut self, entry: &Entry) -> bool {
        if let EntryPayload::Membership(_) = entry.payload {
            self.changed = entry.log_id.index;
            return false;
        }
        let own = self.vote.is_some_and(|vote| {
            vote.committed
                && vote.leader_id.node_id == self.node
                && vote.leader_id == entry.log_id.leader_id
        });
        let known = self.membership.is_some_and(|(index, others)| index >= self.changed && others);
        own && known
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use openraft::{CommittedLeaderId, LogId};

    use super::*;
    use crate::types::Payload;

    fn entry(term: u64, node: NodeId, index: u64) -> Entry {
        let log_id = LogId::new(CommittedLeaderId::new(term, node), index);
        Entry { log_id, payload: EntryPayload::Normal(Payload(Vec::new().into())) }
    }

    fn membership(configs: &[&[NodeId]]) -> Membership {
        let configs = configs.iter().map(|voters| voters.iter().copied().collect()).collect();
        Membership::new(configs, None::<BTreeSet<NodeId>>)
    }

    fn vote(term: u64, node: NodeId, committed: bool) -> Vote {
        let mut vote = Vote::new(term, node);
        vote.committed = committed;
        vote
    }

    #[test]
    fn only_what_a_leader_makes_itself_where_others_are_needed() {
        let mut early = Early::new(1);
        early.vote(&vote(3, 1, true));
        assert!(!early.append(&entry(3, 1, 7)), "the membership is not known");
        early.set_membership(5, &membership(&[&[1, 2, 3]]));
        assert!(early.append(&entry(3, 1, 8)));
        assert!(!early.append(&entry(2, 1, 9)), "its own of an earlier term, sent by another");
        assert!(!early.append(&entry(3, 2, 9)));
        early.vote(&vote(4, 1, false));
        assert!(!early.append(&entry(4, 1, 9)), "nobody has granted it");
        early.vote(&vote(4, 2, true));
        assert!(!early.append(&entry(4, 2, 9)), "another one leads");
    }

    #[test]
    fn not_while_a_change_of_the_membership_is_not_known_or_one_node_decides() {
        let mut early = Early::new(1);
        early.vote(&vote(1, 1, true));
        early.set_membership(0, &membership(&[&[1, 2]]));
        let mut change = entry(1, 1, 4);
        change.payload = EntryPayload::Membership(membership(&[&[1, 2], &[1]]));
        assert!(!early.append(&change));
        assert!(!early.append(&entry(1, 1, 5)));
        early.set_membership(4, &membership(&[&[1, 2], &[1]]));
        assert!(!early.append(&entry(1, 1, 6)));
        early.set_membership(7, &membership(&[&[1]]));
        assert!(!early.append(&entry(1, 1, 8)));
        early.set_membership(9, &membership(&[&[1, 2, 3]]));
        assert!(early.append(&entry(1, 1, 10)));
        early.set_membership(11, &membership(&[]));
        assert!(!early.append(&entry(1, 1, 12)));
        let mut back = entry(1, 1, 13);
        back.payload = EntryPayload::Membership(membership(&[&[1, 2]]));
        early.append(&back);
        early.set_membership(13, &membership(&[&[1, 2]]));
        assert!(early.append(&entry(1, 1, 14)));
        early.truncate(14);
        assert!(early.append(&entry(1, 1, 14)), "it is still in use");
        early.truncate(13);
        early.set_membership(13, &membership(&[&[1, 2]]));
        assert!(!early.append(&entry(1, 1, 13)), "it was taken back");
    }
}
