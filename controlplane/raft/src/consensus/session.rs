//! The numbers of this process's own requests.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use outrider_state::RequestId;

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    under_way: BTreeSet<u64>,
}

/// Gives numbers, and knows below which none is under way.
#[derive(Debug)]
pub(super) struct Session {
    client: [u8; 16],
    numbers: Arc<Mutex<Numbers>>,
}

/// A number that may still be sent. Once it is dropped it never will be.
#[derive(Debug)]
pub(super) struct UnderWay {
    number: u64,
    numbers: Arc<Mutex<Numbers>>,
}

impl Session {
    /// One that nobody ever had.
    pub(super) fn new() -> Self {
        let mut client = [0; 16];
        getrandom::fill(&mut client).expect("the system has randomness");
        Self { client, numbers: Arc::default() }
    }

    pub(super) fn begin(&self) -> (RequestId, UnderWay) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let number = numbers.next;
        numbers.next += 1;
        numbers.under_way.insert(number);
        let settled = numbers.under_way.first().copied().unwrap_or(number);
        let id = RequestId::Session { client: self.client, sequence: number, settled };
        (id, UnderWay { number, numbers: Arc::clone(&self.numbers) })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_never_settled() {
        let session = Session::new();
        let parts = |id: RequestId| match id {
            RequestId::Session { sequence, settled, .. } => (sequence, settled),
            other => panic!("{other:?}"),
        };
        let (first, under_way) = session.begin();
        assert_eq!(parts(first), (0, 0));
        drop(session.begin());
        assert_eq!(parts(session.begin().0), (2, 0));
        drop(under_way);
        assert_eq!(parts(session.begin().0), (3, 3));
    }
}
