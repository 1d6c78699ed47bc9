//! The end at a node, for one connection of one edge. It trusts no number: what was taken before is left out, and
//! what breaks the order ends the connection.

use std::collections::VecDeque;

use crate::event::{Batch, Entry, Lane, Mark};
use crate::message::{ToEdge, ToNode};

/// Entries of one connection that wait to become durable; no more are read then.
pub const WAITING_MAX: usize = 16;

/// Why the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiverError {
    /// A message at the wrong time.
    #[error("the edge says hello twice, or something else before")]
    Order,
    /// A number that was sent on this connection before, or an epoch that is over.
    #[error("the edge sends {lane:?} {mark:?} again, after {taken:?}")]
    Again {
        /// The lane.
        lane: Lane,
        /// What it sends.
        mark: Mark,
        /// What was taken.
        taken: Mark,
    },
}

/// The end at a node.
#[derive(Debug)]
pub struct Receiver {
    edge: u64,
    queue: [u8; 16],
    /// What was durable when the connection began, and what was taken since, by lane.
    known: [Mark; 2],
    taken: [Mark; 2],
    greeted: bool,
    /// And whether it is durable.
    waiting: VecDeque<(Lane, Mark, bool)>,
    answers: VecDeque<ToEdge>,
    duplicates: u64,
}

impl Receiver {
    /// For an edge of which this much is durable in the queue (uploads, accesses).
    pub fn new(edge: u64, queue: [u8; 16], known: [Mark; 2]) -> Self {
        Self {
            edge,
            queue,
            known,
            taken: [Mark::default(); 2],
            greeted: false,
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
            duplicates: 0,
        }
    }

    /// Whether another message is to be read.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Takes a message; gives what is to be put into the queue, in this order. Say [`Receiver::durable`] for each,
    /// in this order too.
    ///
    /// # Errors
    /// [`ReceiverError`]
    pub fn receive(&mut self, message: ToNode) -> Result<Option<Entry>, ReceiverError> {
        match message {
            ToNode::Hello if !self.greeted => {
                self.greeted = true;
                let [uploads, accesses] = self.known;
                self.answers.push_back(ToEdge::Welcome { queue: self.queue, uploads, accesses });
                Ok(None)
            }
            ToNode::Batch(batch) if self.greeted => self.batch(batch),
            _ => Err(ReceiverError::Order),
        }
    }

    fn batch(&mut self, mut batch: Batch) -> Result<Option<Entry>, ReceiverError> {
        let (lane, mark) = (batch.lane, batch.mark());
        let taken = self.taken[lane as usize];
        let first = batch.events.first().map_or(0, |first| first.sequence);
        if (Mark { epoch: batch.epoch, through: first }) <= taken {
            return Err(ReceiverError::Again { lane, mark, taken });
        }
        self.taken[lane as usize] = mark;
        let events = batch.events.len();
        batch.forget(self.known[lane as usize]);
        self.duplicates += (events - batch.events.len()) as u64;
        let durable = batch.events.is_empty();
        self.waiting.push_back((lane, mark, durable));
        self.acknowledge();
        Ok((!durable).then_some(Entry { edge: self.edge, batch }))
    }

    /// The first of the entries that wait is durable in the queue.
    pub fn durable(&mut self) {
        if let Some(first) = self.waiting.iter_mut().find(|(_, _, durable)| !durable) {
            first.2 = true;
        }
        self.acknowledge();
    }

    /// What is durable is acknowledged in the order in which it came.
    fn acknowledge(&mut self) {
        while let Some((lane, mark, true)) = self.waiting.front().copied() {
            self.waiting.pop_front();
            self.answers.push_back(ToEdge::Durable { lane, mark });
        }
    }

    /// The next message, if there is one.
    pub fn poll(&mut self) -> Option<ToEdge> {
        self.answers.pop_front()
    }

    /// Events that were sent though they are durable already.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }
}
