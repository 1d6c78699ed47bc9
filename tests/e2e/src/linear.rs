//! Whether what clients saw of one key could have happened one after the other, each at some moment between
//! its call and its return: the algorithm of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993)
//! with Lowe's memory of what was tried ("Testing for Linearizability", 2017). Keys are checked apart from
//! each other, which is right because linearizability is local (Herlihy and Wing, 1990).

use std::collections::{HashMap, HashSet};

/// How much is tried before a history counts as undecided.
const STEPS_MAX: usize = 20_000_000;

/// What was asked for. Values are numbers, each written by one operation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The value and its version.
    Get,
    /// Set it.
    Put(u64),
    /// Set it, if the version is this one (0: if there is none).
    Swap(u64, u64),
    /// Remove it.
    Delete,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Of a get: value and version, or none.
    Read(Option<(u64, u64)>),
    /// Of a write: its version; 0 of a removal that changed nothing.
    Done(u64),
    /// Of a swap: the version that there was, 0 for none.
    Mismatch(u64),
    /// Nothing: it was done at some later time, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What was asked for.
    pub asked: Asked,
    /// What was answered.
    pub answered: Answered,
    /// When it was asked: any clock that all clients share.
    pub called: u64,
    /// When it was answered. Of no matter when it was not.
    pub returned: u64,
}

/// What the key has. A version that no answer told is at least one above the last known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Model {
    value: Option<u64>,
    /// The version, or a bound below it.
    version: u64,
    known: bool,
}

impl Model {
    /// The states that this operation may lead to; none when its answer cannot be.
    fn step(self, operation: &Operation) -> Vec<Self> {
        use Answered::{Done, Mismatch, Read, Unknown};
        let can_be = |version: u64| match (self.value, self.known) {
            (None, _) => version == 0,
            (Some(_), true) => version == self.version,
            (Some(_), false) => version > self.version,
        };
        let with = |value, version| vec![Self { value: Some(value), version, known: true }];
        let guessed = |value| Self { value: Some(value), known: false, ..self };
        let is_at = |version: u64| match self.value {
            Some(_) => Self { version, known: true, ..self },
            None => self,
        };
        match (operation.asked, operation.answered) {
            (Asked::Get, Unknown) => vec![self],
            (Asked::Get, Read(None)) if self.value.is_none() => vec![self],
            (Asked::Get, Read(Some((value, version))))
                if self.value == Some(value) && can_be(version) =>
            {
                vec![is_at(version)]
            }
            (Asked::Put(value), Done(version)) if version > self.version => with(value, version),
            (Asked::Put(value), Unknown) => vec![guessed(value)],
            (Asked::Swap(expected, value), Done(version))
                if can_be(expected) && version > self.version.max(expected) =>
            {
                with(value, version)
            }
            (Asked::Swap(expected, _), Mismatch(current))
                if expected != current && can_be(current) =>
            {
                vec![is_at(current)]
            }
            (Asked::Swap(expected, value), Unknown) if can_be(expected) => {
                let version = self.version.max(expected);
                let done = Self { version, ..guessed(value) };
                if self.known || self.value.is_none() { vec![done] } else { vec![done, self] }
            }
            (Asked::Swap(..), Unknown) => vec![self],
            (Asked::Delete, Done(0)) if self.value.is_none() => vec![self],
            (Asked::Delete, Done(version)) if self.value.is_some() && version > self.version => {
                vec![Self { value: None, version, known: true }]
            }
            (Asked::Delete, Unknown) => vec![Self { value: None, ..self }],
            _ => Vec::new(),
        }
    }
}

/// Operations that may come next, each with the state that it leads to.
type Choices = Vec<(usize, Model)>;

/// Checks the history of one key that is absent at first and was never written.
///
/// # Errors
/// When no order explains it, the furthest that one came; or that it was not decided.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let operations = prepared(history);
    let is_answered = |index: usize| operations[index].answered != Answered::Unknown;
    let wanted = (0..operations.len()).filter(|index| is_answered(*index)).count();
    let mut search = Search {
        operations: &operations,
        done: vec![0; operations.len().div_ceil(64)],
        tried: HashSet::new(),
    };
    // For each operation that was put in its place: it, the state before, and what else could be tried.
    let mut stack: Vec<(usize, Model, Choices)> = Vec::new();
    let mut model = Model { value: None, version: 0, known: true };
    let (mut placed, mut furthest, mut furthest_at) = (0, 0, model);
    let mut choices = search.choices(model);
    for _ in 0..STEPS_MAX {
        if placed == wanted {
            return Ok(());
        }
        match choices.pop() {
            Some((index, next)) => {
                search.set(index, true);
                if search.tried.insert((search.done.clone(), next)) {
                    placed += usize::from(is_answered(index));
                    stack.push((index, model, choices));
                    model = next;
                    if placed > furthest {
                        (furthest, furthest_at) = (placed, model);
                    }
                    choices = search.choices(model);
                } else {
                    search.set(index, false);
                }
            }
            None => match stack.pop() {
                Some((index, before, rest)) => {
                    search.set(index, false);
                    placed -= usize::from(is_answered(index));
                    (model, choices) = (before, rest);
                }
                None => {
                    let near = operations.iter().skip(furthest.saturating_sub(20)).take(60);
                    let near: Vec<String> = near.map(|o| format!("    {o:?}")).collect();
                    return Err(format!(
                        "no order explains more than {furthest} of {wanted} operations; after those \
                         the key had {furthest_at:?}; about there:\n{}",
                        near.join("\n")
                    ));
                }
            },
        }
    }
    Err(format!("not decided after {STEPS_MAX} steps, {furthest} of {wanted} operations in place"))
}

/// In the order of their calls. A write without an answer whose value somebody read was done, with the version
/// that was read; it has no end.
fn prepared(history: &[Operation]) -> Vec<Operation> {
    let read = |operation: &Operation| match operation.answered {
        Answered::Read(found) => found,
        _ => None,
    };
    let versions: HashMap<u64, u64> = history.iter().filter_map(read).collect();
    let is_open_read = |o: &&Operation| o.asked == Asked::Get && o.answered == Answered::Unknown;
    let told = |operation: &Operation| {
        let mut operation = *operation;
        if operation.answered == Answered::Unknown {
            operation.returned = u64::MAX;
            if let Asked::Put(value) | Asked::Swap(_, value) = operation.asked
                && let Some(version) = versions.get(&value)
            {
                operation.answered = Answered::Done(*version);
            }
        }
        operation
    };
    let mut operations: Vec<Operation> =
        history.iter().filter(|operation| !is_open_read(operation)).map(told).collect();
    operations.sort_by_key(|operation| operation.called);
    operations
}

struct Search<'h> {
    operations: &'h [Operation],
    done: Vec<u64>,
    tried: HashSet<(Vec<u64>, Model)>,
}

impl Search<'_> {
    fn set(&mut self, index: usize, done: bool) {
        let bit = 1 << (index % 64);
        if done {
            self.done[index / 64] |= bit;
        } else {
            self.done[index / 64] &= !bit;
        }
    }

    fn left(&self) -> impl Iterator<Item = (usize, &Operation)> {
        let is_left = |index: &usize| self.done[index / 64] & (1 << (index % 64)) == 0;
        (0..self.operations.len()).filter(is_left).map(|index| (index, &self.operations[index]))
    }

    /// What may come next: whatever was called before anything else that is left had returned. The last one
    /// is tried first.
    fn choices(&self, model: Model) -> Choices {
        // Versions grow, so that the writes come in their order, and nothing can see what is past.
        let mut next_version = u64::MAX;
        for (_, operation) in self.left() {
            match operation.answered {
                Answered::Done(version) if version != 0 => next_version = next_version.min(version),
                Answered::Read(Some((_, seen))) if seen < model.version => return Vec::new(),
                Answered::Mismatch(seen) if seen != 0 && seen < model.version => return Vec::new(),
                _ => {}
            }
        }
        if next_version < model.version {
            return Vec::new();
        }
        let mut first_return = u64::MAX;
        let (mut answered, mut open) = (Vec::new(), Vec::new());
        for (index, operation) in self.left() {
            if operation.called > first_return {
                break;
            }
            first_return = first_return.min(operation.returned);
            for next in model.step(operation) {
                match operation.answered {
                    // Without an effect it need not have happened.
                    Answered::Unknown if next == model => {}
                    Answered::Unknown => open.push((index, next)),
                    // What can be now and changes nothing may as well be now.
                    _ if next == model => return vec![(index, next)],
                    Answered::Done(version) if version > next_version => {}
                    _ => answered.push((index, next)),
                }
            }
        }
        open.extend(answered);
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Answered::{Done, Mismatch, Read, Unknown};
    use Asked::{Delete, Get, Put, Swap};

    fn history(rows: &[(Asked, Answered, u64, u64)]) -> Result<(), String> {
        let operation = |&(asked, answered, called, returned): &(Asked, Answered, u64, u64)| {
            Operation { asked, answered, called, returned }
        };
        check(&rows.iter().map(operation).collect::<Vec<_>>())
    }

    #[test]
    fn what_can_have_happened_passes() {
        history(&[
            (Swap(0, 10), Done(1), 0, 5),
            (Swap(0, 11), Mismatch(1), 1, 6),
            (Get, Read(None), 0, 3),
            (Get, Read(Some((10, 1))), 2, 4),
            (Delete, Done(3), 7, 8),
            (Delete, Done(0), 9, 10),
            (Put(12), Done(4), 11, 12),
        ])
        .unwrap();
    }

    #[test]
    fn a_write_without_an_answer_may_have_happened_late_or_never() {
        let unknown = (Put(2), Unknown, 1, 2);
        let first = (Put(1), Done(1), 0, 1);
        history(&[first, unknown, (Get, Read(Some((1, 1))), 5, 6)]).unwrap();
        history(&[first, unknown, (Get, Read(Some((2, 4))), 5, 6)]).unwrap();
        history(&[first, unknown, (Swap(1, 3), Done(2), 5, 6), (Get, Read(Some((2, 4))), 7, 8)])
            .unwrap();
        let back =
            [first, unknown, (Get, Read(Some((2, 4))), 5, 6), (Get, Read(Some((1, 1))), 7, 8)];
        history(&back).unwrap_err();
        history(&[(Get, Read(Some((2, 4))), 0, 1), (Put(2), Unknown, 2, 3)]).unwrap_err();
    }

    #[test]
    fn a_stale_read_a_lost_write_and_a_double_swap_are_found() {
        let writes = [(Put(1), Done(1), 0, 1), (Put(2), Done(2), 2, 3)];
        let with = |row| history(&[writes[0], writes[1], row]);
        with((Get, Read(Some((1, 1))), 4, 5)).unwrap_err();
        with((Get, Read(None), 4, 5)).unwrap_err();
        with((Get, Read(Some((2, 3))), 4, 5)).unwrap_err();
        with((Swap(1, 9), Done(3), 4, 5)).unwrap_err();
        with((Swap(2, 9), Mismatch(1), 4, 5)).unwrap_err();
        with((Put(9), Done(2), 4, 5)).unwrap_err();
        with((Swap(2, 9), Done(3), 4, 5)).unwrap();
        history(&[(Swap(0, 1), Done(1), 0, 9), (Swap(0, 2), Done(2), 0, 9)]).unwrap_err();
    }

    #[test]
    fn a_long_history_of_many_clients_is_decided() {
        // Eight clients, each write overlapping with the seven after it.
        let rows: Vec<_> = (0..4_000).map(|n| (Put(n), Done(n + 1), n * 10, n * 10 + 75)).collect();
        history(&rows).unwrap();
        let mut wrong = rows;
        wrong.push((Get, Read(Some((3_000, 3_001))), 50_000, 50_001));
        history(&wrong).unwrap_err();
    }
}
