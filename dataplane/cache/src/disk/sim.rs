//! A disk that lives in memory and fails on purpose, for driving the real engine by a seed.
//!
//! Operations complete in random order. A completed write is in the disk's volatile cache until a
//! sync that was submitted after it completes. A power cut keeps or loses each block of what was
//! not synced, one by one; a kill loses only what had not been handed over.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;

use super::{Completion, Disk, Operation, Request};
use crate::arena::BLOCK_BYTES;

/// Chances of failure, each out of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) read_error: u32,
    pub(crate) write_error: u32,
    pub(crate) sync_error: u32,
    /// Each operation completes in a turn with this chance out of 100.
    pub(crate) completes: u32,
}

struct Volatile {
    stripe: u16,
    block: u64,
    data: Vec<u8>,
    written: u64,
}

/// What survives the engine.
pub(crate) struct Media {
    durable: HashMap<(u16, u64), Vec<u8>>,
    volatile: Vec<Volatile>,
    queue: Vec<(Request, u64)>,
    writes: u64,
    pub(crate) random: fastrand::Rng,
    pub(crate) faults: Faults,
    pub(crate) failed: u64,
}

impl Media {
    pub(crate) fn new(seed: u64, faults: Faults) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            durable: HashMap::new(),
            volatile: Vec::new(),
            queue: Vec::new(),
            writes: 0,
            random: fastrand::Rng::with_seed(seed),
            faults,
            failed: 0,
        }))
    }

    fn chance(&mut self, out_of_1000: u32) -> bool {
        self.random.u32(..1000) < out_of_1000
    }

    fn store(&mut self, request: &Request, keep: impl Fn(&mut fastrand::Rng) -> bool) {
        let Operation::Write { frozen, offset } = &request.operation else { return };
        self.writes += 1;
        let first = offset / BLOCK_BYTES as u64;
        for (index, data) in frozen.record().chunks(BLOCK_BYTES).enumerate() {
            if keep(&mut self.random) {
                self.volatile.push(Volatile {
                    stripe: request.stripe,
                    block: first + index as u64,
                    data: data.to_vec(),
                    written: self.writes,
                });
            }
        }
    }

    fn make_durable(&mut self, keep: impl Fn(&mut fastrand::Rng, &Volatile) -> Option<bool>) {
        let volatile = std::mem::take(&mut self.volatile);
        for block in volatile {
            match keep(&mut self.random, &block) {
                Some(true) => {
                    self.durable.insert((block.stripe, block.block), block.data);
                }
                Some(false) => {}
                None => self.volatile.push(block),
            }
        }
    }

    /// The power goes: blocks that were not synced are kept or lost, one by one.
    pub(crate) fn power_cut(&mut self) {
        for (request, _) in std::mem::take(&mut self.queue) {
            self.store(&request, |random| random.bool());
        }
        self.make_durable(|random, _| Some(random.bool()));
    }

    /// The process is killed: what was handed over reaches the disk or not, as a whole.
    pub(crate) fn kill(&mut self) {
        for (request, _) in std::mem::take(&mut self.queue) {
            if self.random.bool() {
                self.store(&request, |_| true);
            }
        }
    }

    /// Flips a bit in each of some blocks.
    pub(crate) fn rot(&mut self, blocks: usize) {
        self.make_durable(|_, _| Some(true));
        let mut places: Vec<(u16, u64)> = self.durable.keys().copied().collect();
        places.sort_unstable();
        for _ in 0..blocks.min(places.len()) {
            let place = places[self.random.usize(..places.len())];
            let at = self.random.usize(..BLOCK_BYTES);
            let bit = self.random.u8(..8);
            if let Some(data) = self.durable.get_mut(&place) {
                data[at] ^= 1 << bit;
            }
        }
    }

    fn read(&self, stripe: u16, block: u64) -> Option<&[u8]> {
        let newest = self
            .volatile
            .iter()
            .rev()
            .find(|candidate| candidate.stripe == stripe && candidate.block == block);
        newest
            .map(|block| block.data.as_slice())
            .or_else(|| self.durable.get(&(stripe, block)).map(Vec::as_slice))
    }

    fn execute(&mut self, mut request: Request, submitted: u64) -> Completion {
        let stripe = request.stripe;
        let chance = match &request.operation {
            Operation::Read { .. } => self.faults.read_error,
            Operation::Write { .. } => self.faults.write_error,
            Operation::Sync => self.faults.sync_error,
        };
        let fails = self.chance(chance);
        self.failed += u64::from(fails);
        match &mut request.operation {
            Operation::Read { slot, offset, len } => {
                let first = *offset / BLOCK_BYTES as u64;
                let target = &mut slot.bytes_mut()[..*len as usize];
                for (index, bytes) in target.chunks_mut(BLOCK_BYTES).enumerate() {
                    match self.read(stripe, first + index as u64) {
                        Some(data) => bytes.copy_from_slice(&data[..bytes.len()]),
                        None => bytes.fill(0),
                    }
                }
            }
            Operation::Write { .. } => {
                // A write that fails may have reached the disk in part.
                if fails {
                    self.store(&request, |random| random.bool());
                } else {
                    self.store(&request, |_| true);
                }
            }
            Operation::Sync => {
                if !fails {
                    self.make_durable(|_, block| {
                        (block.stripe == stripe && block.written <= submitted).then_some(true)
                    });
                }
            }
        }
        let result = if fails { Err(io::Error::other("injected")) } else { Ok(()) };
        Completion { request, result }
    }
}

/// The engine's end.
pub(crate) struct SimDisk(pub(crate) Rc<RefCell<Media>>);

impl Disk for SimDisk {
    fn submit(&mut self, request: Request) {
        let mut media = self.0.borrow_mut();
        let submitted = media.writes;
        media.queue.push((request, submitted));
    }

    fn turn(&mut self, done: &mut VecDeque<Completion>) {
        let mut media = self.0.borrow_mut();
        let mut index = 0;
        while index < media.queue.len() {
            let completes = media.faults.completes;
            if media.random.u32(..100) < completes {
                let (request, submitted) = media.queue.swap_remove(index);
                let completion = media.execute(request, submitted);
                done.push_back(completion);
            } else {
                index += 1;
            }
        }
    }

    fn wait(&mut self) {}

    fn in_flight(&self) -> usize {
        self.0.borrow().queue.len()
    }
}
