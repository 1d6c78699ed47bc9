//! Waiting for slots: fills and reads that came while everything was pinned, first come first
//! served, and not for longer than the configuration says.

use std::rc::Rc;

use super::{Engine, SlotWait};
use crate::arena::{ChunkWriter, HEADER_BYTES};
use crate::error::CacheError;
use crate::wait::{Waiter, abandoned};

/// Waiters for slots (fills and reads) at most; the next one is told `Busy` at once.
const SLOT_WAITERS_MAX: usize = 1024;

/// What someone who needs a slot gets.
pub(crate) enum SlotOrWaiter {
    Slot(ChunkWriter),
    Waiter(Rc<Waiter<Result<ChunkWriter, CacheError>>>),
}

impl Engine {
    pub(super) fn serve_waiters(&mut self) -> bool {
        let mut moved = false;
        while let Some((since, wait)) = self.slot_waiters.pop_front() {
            let served = match &wait {
                SlotWait::Fill { payload_bytes, waiter } => {
                    if abandoned(waiter) {
                        continue;
                    }
                    self.ram.slot(*payload_bytes, &mut self.index).map(|slot| {
                        let writer = ChunkWriter::new(slot, *payload_bytes);
                        waiter.complete(Ok(writer), &mut self.wakers);
                    })
                }
                SlotWait::Read(key) => match self.reads.get(key) {
                    None => continue,
                    Some(read) => {
                        let payload_bytes = read.bytes as usize - HEADER_BYTES;
                        self.ram.slot(payload_bytes, &mut self.index).map(|slot| {
                            self.ready.push_back((*key, slot));
                        })
                    }
                },
            };
            if served.is_some() {
                moved = true;
                continue;
            }
            if self.time.now() < since + self.config.slot_wait_max {
                self.slot_waiters.push_front((since, wait));
                break;
            }
            moved = true;
            self.metrics.refused_busy.inc();
            match wait {
                SlotWait::Fill { waiter, .. } => {
                    waiter.complete(Err(CacheError::Busy), &mut self.wakers);
                }
                SlotWait::Read(key) => self.answer_read(key, Err(CacheError::Busy)),
            }
        }
        if self.slot_waiters.is_empty() {
            self.ram.set_starving(false);
        }
        moved
    }

    pub(super) fn wait_for_slot(&mut self, wait: SlotWait) -> Result<(), CacheError> {
        if self.slot_waiters.len() >= SLOT_WAITERS_MAX {
            self.metrics.refused_busy.inc();
            return Err(CacheError::Busy);
        }
        self.slot_waiters.push_back((self.time.now(), wait));
        self.ram.set_starving(true);
        Ok(())
    }

    /// A writer now, or a waiter for one.
    pub(crate) fn slot(&mut self, payload_bytes: usize) -> Result<SlotOrWaiter, CacheError> {
        let limit = self.config.geometry.chunk_bytes;
        if payload_bytes as u64 > limit {
            return Err(CacheError::TooLarge { size: payload_bytes as u64, limit });
        }
        if self.slot_waiters.is_empty()
            && let Some(slot) = self.ram.slot(payload_bytes, &mut self.index)
        {
            return Ok(SlotOrWaiter::Slot(ChunkWriter::new(slot, payload_bytes)));
        }
        let waiter = Waiter::new();
        self.wait_for_slot(SlotWait::Fill { payload_bytes, waiter: waiter.clone() })?;
        Ok(SlotOrWaiter::Waiter(waiter))
    }
}
