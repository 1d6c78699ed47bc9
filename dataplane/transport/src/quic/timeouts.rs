//! The timeouts of all connections of a shard, in one heap. Pure: times come in as arguments.
//!
//! Each connection has at most one entry. A timeout that moves to later, as it does with nearly every
//! packet, costs nothing: the entry comes up at the old time, and is then put back. One that moves to
//! earlier sifts up.

use std::time::Instant;

/// A heap of timeouts, by the index of a connection.
#[derive(Debug, Default)]
pub(crate) struct Timeouts {
    /// The time at which the entry comes up, and whose it is. Never later than what it is due at.
    heap: Vec<(Instant, usize)>,
    connections: Vec<Connection>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    /// Where its entry is.
    place: Option<usize>,
    due: Option<Instant>,
}

impl Timeouts {
    /// Sets when a connection is due; `None` is never.
    pub(crate) fn set(&mut self, index: usize, due: Option<Instant>) {
        if self.connections.len() <= index {
            self.connections.resize(index + 1, Connection::default());
        }
        self.connections[index].due = due;
        let Some(due) = due else { return };
        match self.connections[index].place {
            None => {
                self.heap.push((due, index));
                self.sift_up(self.heap.len() - 1);
            }
            Some(place) if due < self.heap[place].0 => {
                self.heap[place].0 = due;
                self.sift_up(place);
            }
            Some(_) => {}
        }
    }

    /// No connection is due before this.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// A connection that is due, which then has no timeout until it is set again.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<usize> {
        while let Some(&(at, index)) = self.heap.first() {
            if at > now {
                return None;
            }
            match self.connections[index].due {
                Some(due) if due > now => {
                    self.heap[0].0 = due;
                    self.sift_down(0);
                }
                due => {
                    self.remove_first();
                    self.connections[index] = Connection::default();
                    if due.is_some() {
                        return Some(index);
                    }
                }
            }
        }
        None
    }

    fn remove_first(&mut self) {
        let last = self.heap.len() - 1;
        self.heap.swap(0, last);
        self.heap.pop();
        if last > 0 {
            self.sift_down(0);
        }
    }

    fn sift_up(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
        self.note(place);
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let children = [2 * place + 1, 2 * place + 2];
            let least = children
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by_key(|child| self.heap[*child].0);
            match least {
                Some(least) if self.heap[least].0 < self.heap[place].0 => {
                    self.swap(place, least);
                    place = least;
                }
                _ => break,
            }
        }
        self.note(place);
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.note(one);
        self.note(other);
    }

    fn note(&mut self, place: usize) {
        self.connections[self.heap[place].1].place = Some(place);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn connections_come_up_in_the_order_of_their_latest_timeouts() {
        let start = Instant::now();
        let mut timeouts = Timeouts::default();
        timeouts.set(0, Some(at(start, 30)));
        timeouts.set(1, Some(at(start, 20)));
        timeouts.set(2, Some(at(start, 10)));
        timeouts.set(2, Some(at(start, 40)));
        timeouts.set(0, Some(at(start, 5)));
        timeouts.set(1, None);
        assert_eq!(timeouts.next(), Some(at(start, 5)));
        assert_eq!(timeouts.pop_due(at(start, 4)), None);
        assert_eq!(timeouts.pop_due(at(start, 39)), Some(0));
        assert_eq!(timeouts.pop_due(at(start, 39)), None);
        assert_eq!(timeouts.pop_due(at(start, 40)), Some(2));
        assert_eq!((timeouts.pop_due(at(start, 99)), timeouts.next()), (None, None));
    }

    #[test]
    fn it_agrees_with_a_list_that_is_searched_and_never_holds_two_entries_of_one() {
        let start = Instant::now();
        let mut timeouts = Timeouts::default();
        let mut list: Vec<Option<u64>> = vec![None; 50];
        let mut random = fastrand::Rng::with_seed(7);
        let mut now = 0;
        for _ in 0..20_000 {
            let index = random.usize(..list.len());
            let due = (random.u32(..8) > 0).then(|| now + random.u64(1..200));
            list[index] = due;
            timeouts.set(index, due.map(|due| at(start, due)));
            assert!(timeouts.heap.len() <= list.len());
            if random.u32(..4) == 0 {
                now += random.u64(..30);
                let mut due: Vec<usize> =
                    std::iter::from_fn(|| timeouts.pop_due(at(start, now))).collect();
                due.sort_unstable();
                let wanted: Vec<usize> =
                    (0..list.len()).filter(|i| list[*i].is_some_and(|due| due <= now)).collect();
                assert_eq!(due, wanted);
                due.into_iter().for_each(|index| list[index] = None);
            }
        }
    }
}
