//! What the parts of one connection tell each other: its stream, its requests, its watch. It stays on
//! the connection's shard.

use std::cell::Cell;
use std::rc::Rc;

use crate::peer::Protocol;

/// Bytes that a connection may write before it lets others run: some 60 µs of TLS. With four times as many,
/// reads from the disk beside saturated downloads took twice as long, and the downloads were no faster.
const WRITE_BUDGET_BYTES: usize = 128 * 1024;

/// What one connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    pub(crate) protocol: Protocol,
    /// Requests that came in so far.
    pub(crate) requests: Cell<u64>,
    /// Requests that are being answered.
    pub(crate) in_flight: Cell<u32>,
    /// Something has come in since the last request, or there was none yet.
    pub(crate) head_started: Cell<bool>,
    /// There is something to write that the socket does not take.
    pub(crate) write_blocked: Cell<bool>,
    /// Bytes that the socket took.
    pub(crate) sent_bytes: Cell<u64>,
    /// The other end has said that it will send no more.
    pub(crate) read_ended: Cell<bool>,
    /// This end has said so, and waits for the other.
    pub(crate) closing: Cell<bool>,
    /// An answer could not be finished: the connection must not look as if it ended in good order.
    pub(crate) fault: Cell<bool>,
    /// The body of the request was left with so much of it to come that the connection ends with the
    /// answer.
    pub(crate) body_left: Cell<bool>,
    write_budget: Cell<usize>,
}

impl Activity {
    pub(crate) fn new(protocol: Protocol) -> Rc<Self> {
        Rc::new(Self {
            protocol,
            requests: Cell::new(0),
            in_flight: Cell::new(0),
            // The first request has to begin at once.
            head_started: Cell::new(true),
            write_blocked: Cell::new(false),
            sent_bytes: Cell::new(0),
            read_ended: Cell::new(false),
            closing: Cell::new(false),
            fault: Cell::new(false),
            body_left: Cell::new(false),
            write_budget: Cell::new(WRITE_BUDGET_BYTES),
        })
    }

    /// A turn of the connection begins.
    pub(crate) fn refill_write_budget(&self) {
        self.write_budget.set(WRITE_BUDGET_BYTES);
    }

    /// Whether the connection may write more in this turn.
    pub(crate) fn may_write(&self) -> bool {
        self.write_budget.get() > 0
    }

    /// Over HTTP/2 there is more than requests to receive, and what a stream's head may take is
    /// bounded by its bytes.
    pub(crate) fn note_received(&self) {
        if self.protocol == Protocol::Http1 && self.in_flight.get() == 0 {
            self.head_started.set(true);
        }
    }

    /// Over HTTP/2 it ends its stream, and nothing else.
    pub(crate) fn note_fault(&self) {
        if self.protocol == Protocol::Http1 {
            self.fault.set(true);
        }
    }

    pub(crate) fn note_sent(&self, bytes: usize) {
        self.write_blocked.set(false);
        self.sent_bytes.set(self.sent_bytes.get() + bytes as u64);
        self.write_budget.set(self.write_budget.get().saturating_sub(bytes));
    }
}

/// A request that is being answered, from its head until the last of its body is handed over, or
/// until either was given up.
#[derive(Debug)]
pub(crate) struct InFlight {
    activity: Rc<Activity>,
}

impl InFlight {
    pub(crate) fn new(activity: &Rc<Activity>) -> Self {
        activity.requests.set(activity.requests.get() + 1);
        activity.in_flight.set(activity.in_flight.get() + 1);
        activity.head_started.set(false);
        Self { activity: activity.clone() }
    }

    pub(crate) fn activity(&self) -> &Rc<Activity> {
        &self.activity
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.activity.in_flight.set(self.activity.in_flight.get() - 1);
    }
}
