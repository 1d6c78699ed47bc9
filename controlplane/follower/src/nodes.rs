//! Which nodes are tried, one after the other: those of the configuration where it names any, else those of the
//! membership, as the replica has it.

use outrider_push::Replica;
use outrider_push::message::MemberRole;

/// The nodes. There is always one.
#[derive(Debug)]
pub(crate) struct Nodes {
    /// Those that are tried.
    tried: Vec<String>,
    /// The configuration names them: what the membership says changes nothing.
    fixed: bool,
    /// Those of the membership, as far as they are known.
    known: Vec<String>,
    next: usize,
}

impl Nodes {
    /// With those that the configuration names, if any, and those that the folder has. Edges begin at different ones.
    /// Nothing where there is none.
    pub(crate) fn new(configured: Vec<String>, known: Vec<String>, edge: u64) -> Option<Self> {
        let fixed = !configured.is_empty();
        let tried = if fixed { configured } else { known.clone() };
        let count = u64::try_from(tried.len()).ok().filter(|count| *count > 0)?;
        let next = usize::try_from(edge % count).unwrap_or(0);
        Some(Self { tried, fixed, known, next })
    }

    /// The next one to be tried.
    pub(crate) fn next(&mut self) -> String {
        let node = self.tried[self.next % self.tried.len()].clone();
        self.next = (self.next + 1) % self.tried.len();
        node
    }

    /// Takes over what the membership says. Those that are known from then on, where these are others: to be kept. A
    /// membership that names no address says nothing.
    pub(crate) fn learn(&mut self, replica: &Replica) -> Option<&[String]> {
        let there = replica.members.values().filter(|member| {
            member.role == MemberRole::Node && !member.revoked && !member.address.is_empty()
        });
        let known: Vec<String> = there.map(|member| member.address.clone()).collect();
        if known.is_empty() || known == self.known {
            return None;
        }
        self.known = known;
        if !self.fixed {
            // Where it was: with the one behind the one that it follows, if that is still there.
            let last = &self.tried[(self.next + self.tried.len() - 1) % self.tried.len()];
            let place = self.known.iter().position(|node| node == last);
            self.next = place.map_or(self.next, |place| place + 1) % self.known.len();
            self.tried.clone_from(&self.known);
        }
        Some(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use outrider_push::Item;

    use super::*;

    fn member(number: u64, role: MemberRole, revoked: bool, address: &str) -> Item {
        let address = address.to_owned();
        Item::Member { number, role, region: String::new(), revoked, address, token_key: None }
    }

    fn list(nodes: &[&str]) -> Vec<String> {
        nodes.iter().map(|node| (*node).to_owned()).collect()
    }

    #[test]
    fn new_nodes_are_tried_and_removed_ones_are_not_and_there_is_always_one() {
        let mut nodes = Nodes::new(Vec::new(), list(&["a:1"]), 7).unwrap();
        let mut replica = Replica::default();
        assert_eq!(nodes.learn(&replica), None);
        assert_eq!((nodes.next(), nodes.next()), ("a:1".to_owned(), "a:1".to_owned()));
        let all = [
            member(1, MemberRole::Node, false, "a:1"),
            member(2, MemberRole::Edge, false, "e:1"),
            member(3, MemberRole::Node, false, "b:1"),
            member(4, MemberRole::Node, false, ""),
            member(5, MemberRole::Node, true, "c:1"),
        ];
        replica = Replica::of([1; 16], 9, all);
        assert_eq!(nodes.learn(&replica), Some(&list(&["a:1", "b:1"])[..]));
        assert_eq!(nodes.learn(&replica), None, "once");
        assert_eq!((nodes.next(), nodes.next()), ("b:1".to_owned(), "a:1".to_owned()));
        // All of those that were there when it joined are replaced.
        let all = [
            member(1, MemberRole::Node, true, "a:1"),
            member(3, MemberRole::Node, false, "b:2"),
            member(6, MemberRole::Node, false, "d:1"),
        ];
        replica = Replica::of([1; 16], 12, all);
        assert_eq!(nodes.learn(&replica), Some(&list(&["b:2", "d:1"])[..]));
        let tried = [nodes.next(), nodes.next(), nodes.next()];
        assert_eq!(tried.iter().filter(|node| *node == "b:2" || *node == "d:1").count(), 3);
        // Nobody is left: it goes on with those that were.
        replica = Replica::of([1; 16], 13, [member(3, MemberRole::Node, true, "b:2")]);
        assert_eq!(nodes.learn(&replica), None);
        assert!(!nodes.next().is_empty());
        assert!(Nodes::new(Vec::new(), Vec::new(), 7).is_none());
    }

    #[test]
    fn those_of_the_configuration_are_tried_whatever_is_learnt() {
        let mut nodes = Nodes::new(list(&["x:1", "y:1"]), list(&["a:1"]), 2).unwrap();
        let replica = Replica::of([1; 16], 9, [member(1, MemberRole::Node, false, "b:1")]);
        assert_eq!(nodes.learn(&replica), Some(&list(&["b:1"])[..]));
        assert_eq!((nodes.next(), nodes.next()), ("x:1".to_owned(), "y:1".to_owned()));
    }
}
