//! The end at an edge. It holds what was given to it until a node has acknowledged it, within a bound: uploads come
//! from the edge's outbox and stay there meanwhile, accesses live here alone.
//!
//! What was sent and not acknowledged when a connection ended is sent again on the next one, and the node's
//! welcome says what of it is durable already. Only accesses that were sent to a node with another queue are
//! not sent again, since nobody could tell that they are the same: they are dropped, and counted.

use std::collections::VecDeque;

use outrider_state::RecordError;

use crate::event::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Batch, EVENT_BYTES_MAX, Event, Lane, Mark, Numbered,
};
use crate::message::{ToEdge, ToNode};

/// Bytes of records that are sent and not acknowledged; one is always sent.
pub const WINDOW_BYTES: usize = 512 << 10;
/// Bytes of records of one lane that are held; a lane that holds more has no room.
pub const HELD_BYTES_MAX: usize = 1 << 20;

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SenderError {
    /// It acknowledges what was never sent. Of an edge whose folder was restored from an older copy: its numbers
    /// were used before.
    #[error("the node says that {lane:?} {mark:?} is durable, but only {sent:?} was sent")]
    Mark {
        /// The lane.
        lane: Lane,
        /// What it says.
        mark: Mark,
        /// What was sent.
        sent: Mark,
    },
    /// A message at the wrong time.
    #[error("the node welcomes twice, or acknowledges before it welcomes")]
    Order,
}

/// A batch on its way.
#[derive(Debug)]
struct Held {
    last: u64,
    events: u64,
    record: Vec<u8>,
    /// It was given to any connection, with this queue.
    tried: Option<[u8; 16]>,
}

#[derive(Debug)]
struct LaneState {
    lane: Lane,
    epoch: u64,
    held: VecDeque<Held>,
    /// Those at the front were given to the present connection, and have so many bytes.
    sent: usize,
    sent_bytes: usize,
    held_bytes: usize,
    acknowledged: u64,
    /// The last that was taken.
    last: u64,
    /// The last number that was in use when the sender was made.
    given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away,
    /// The hello is to be sent.
    Hello,
    /// It was sent.
    Greeting,
    /// The node's queue.
    Welcome([u8; 16]),
}

/// The end at an edge, for its life.
#[derive(Debug)]
pub struct Sender {
    phase: Phase,
    lanes: [LaneState; 2],
    unsettled: u64,
    sent_events: u64,
}

impl Sender {
    /// With the epoch of the outbox and the last number that it has given to an upload, and with the epoch of
    /// accesses, which must never have been used before.
    pub fn new(outbox: Mark, accesses_epoch: u64) -> Self {
        let lane = |lane, epoch, given| LaneState {
            lane,
            epoch,
            given,
            held: VecDeque::new(),
            sent: 0,
            sent_bytes: 0,
            held_bytes: 0,
            acknowledged: 0,
            last: 0,
        };
        let uploads = lane(Lane::Uploads, outbox.epoch, outbox.through);
        let lanes = [uploads, lane(Lane::Accesses, accesses_epoch, 0)];
        Self { phase: Phase::Away, lanes, unsettled: 0, sent_events: 0 }
    }

    /// Whether more of this lane is taken now.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.lane(lane).held_bytes < HELD_BYTES_MAX
    }

    /// Takes uploads with their numbers in the outbox, in order. What it holds or knows to be durable already is left
    /// out. Allocates.
    ///
    /// # Errors
    /// Those of the record; nothing was taken.
    pub fn add_uploads(&mut self, events: Vec<Numbered>) -> Result<(), RecordError> {
        self.add(Lane::Uploads, events)
    }

    /// Takes accesses, and numbers them. Those that are too large for a record are left out; gives how many.
    /// Allocates.
    ///
    /// # Errors
    /// Those of the record; what was taken before stays.
    pub fn add_accesses(
        &mut self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<u64, RecordError> {
        let mut next = self.lane(Lane::Accesses).last;
        let mut too_large = 0;
        let mut numbered = Vec::new();
        for event in events {
            if event.bytes() > EVENT_BYTES_MAX || event.lane() != Lane::Accesses {
                too_large += 1;
                continue;
            }
            next += 1;
            numbered.push(Numbered { sequence: next, event });
        }
        self.add(Lane::Accesses, numbered)?;
        Ok(too_large)
    }

    fn add(&mut self, lane: Lane, events: Vec<Numbered>) -> Result<(), RecordError> {
        let lane = self.lane_mut(lane);
        let mut part = Vec::new();
        let mut bytes = 0;
        for numbered in events {
            if numbered.sequence <= lane.last.max(lane.acknowledged) {
                continue;
            }
            let more = numbered.event.bytes();
            if part.len() == BATCH_EVENTS_MAX
                || (bytes + more > BATCH_BYTES_MAX && !part.is_empty())
            {
                lane.hold(std::mem::take(&mut part))?;
                bytes = 0;
            }
            bytes += more;
            part.push(numbered);
        }
        if part.is_empty() { Ok(()) } else { lane.hold(part) }
    }

    /// A connection was made: the hello is the next message.
    pub fn connected(&mut self) {
        self.phase = Phase::Hello;
        self.lanes.iter_mut().for_each(|lane| (lane.sent, lane.sent_bytes) = (0, 0));
    }

    /// The connection ended.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Away;
    }

    /// Takes a message of the node.
    ///
    /// # Errors
    /// [`SenderError`]: the connection ends, and nothing is lost.
    pub fn receive(&mut self, message: &ToEdge) -> Result<(), SenderError> {
        match (message, self.phase) {
            (ToEdge::Welcome { queue, uploads, accesses }, Phase::Greeting) => {
                for (lane, mark) in [(Lane::Uploads, uploads), (Lane::Accesses, accesses)] {
                    self.lane_mut(lane).settle_before(*mark)?;
                }
                let accesses = self.lane_mut(Lane::Accesses);
                let other = |held: &Held| held.tried.is_some_and(|tried| tried != *queue);
                let unsettled: u64 =
                    accesses.held.iter().filter(|held| other(held)).map(|held| held.events).sum();
                accesses.held.retain(|held| !other(held));
                accesses.held_bytes = accesses.held.iter().map(|held| held.record.len()).sum();
                self.unsettled += unsettled;
                self.phase = Phase::Welcome(*queue);
                Ok(())
            }
            (ToEdge::Durable { lane, mark }, Phase::Welcome(_)) => {
                let lane = self.lane_mut(*lane);
                let sent = lane.sent.checked_sub(1).and_then(|at| lane.held.get(at));
                let sent = sent.map_or(0, |held| held.last);
                let sent = Mark { epoch: lane.epoch, through: sent.max(lane.acknowledged) };
                if mark.epoch != lane.epoch || *mark > sent {
                    return Err(SenderError::Mark { lane: lane.lane, mark: *mark, sent });
                }
                lane.settle(mark.through);
                Ok(())
            }
            _ => Err(SenderError::Order),
        }
    }

    /// The next record to be sent, if there is one now.
    ///
    /// # Errors
    /// Those of the record.
    pub fn poll(&mut self) -> Result<Option<Vec<u8>>, RecordError> {
        let queue = match self.phase {
            Phase::Hello => {
                self.phase = Phase::Greeting;
                return ToNode::Hello.to_record().map(Some);
            }
            Phase::Welcome(queue) => queue,
            Phase::Away | Phase::Greeting => return Ok(None),
        };
        let in_flight: usize = self.lanes.iter().map(|lane| lane.sent_bytes).sum();
        // Uploads first: accesses may wait.
        let next = self.lanes.iter_mut().find(|lane| lane.sent < lane.held.len());
        let Some(lane) = next else { return Ok(None) };
        let held = &mut lane.held[lane.sent];
        let bytes = held.record.len();
        if in_flight > 0 && in_flight + bytes > WINDOW_BYTES {
            return Ok(None);
        }
        held.tried = Some(queue);
        lane.sent += 1;
        lane.sent_bytes += bytes;
        self.sent_events += held.events;
        Ok(Some(held.record.clone()))
    }

    /// The number of the next upload that is wanted of the outbox.
    pub fn uploads_next(&self) -> u64 {
        let lane = self.lane(Lane::Uploads);
        lane.last.max(lane.acknowledged) + 1
    }

    /// The number up to which uploads are durable in a queue; the outbox needs them no more.
    pub fn uploads_durable(&self) -> u64 {
        self.lane(Lane::Uploads).acknowledged
    }

    /// Events that are held, of a lane.
    pub fn held(&self, lane: Lane) -> u64 {
        self.lane(lane).held.iter().map(|held| held.events).sum()
    }

    /// Accesses that were dropped since it is not known whether they arrived.
    pub fn unsettled(&self) -> u64 {
        self.unsettled
    }

    /// Events that were sent; those that were sent again are counted again.
    pub fn sent_events(&self) -> u64 {
        self.sent_events
    }

    fn lane(&self, lane: Lane) -> &LaneState {
        &self.lanes[lane as usize]
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.lanes[lane as usize]
    }
}

impl LaneState {
    fn hold(&mut self, events: Vec<Numbered>) -> Result<(), RecordError> {
        let batch = Batch { lane: self.lane, epoch: self.epoch, events };
        let (last, events) = (batch.mark().through, batch.events.len() as u64);
        batch.check()?;
        let record = ToNode::Batch(batch).to_record()?;
        self.held_bytes += record.len();
        self.last = last;
        self.held.push_back(Held { last, events, record, tried: None });
        Ok(())
    }

    /// What a welcome says of the time before. Of uploads it may be more than this sender was given, since the
    /// edge may have been killed before it wrote down what was acknowledged; but not more than there ever were.
    fn settle_before(&mut self, mark: Mark) -> Result<(), SenderError> {
        if mark.epoch < self.epoch {
            return Ok(());
        }
        let sent = Mark { epoch: self.epoch, through: self.last.max(self.given) };
        if mark > sent {
            return Err(SenderError::Mark { lane: self.lane, mark, sent });
        }
        self.settle(mark.through);
        Ok(())
    }

    fn settle(&mut self, through: u64) {
        self.acknowledged = self.acknowledged.max(through);
        while let Some(held) = self.held.front().filter(|held| held.last <= self.acknowledged) {
            let bytes = held.record.len();
            self.held_bytes -= bytes;
            if self.sent > 0 {
                self.sent -= 1;
                self.sent_bytes -= bytes;
            }
            self.held.pop_front();
        }
    }
}
