//! Flushes: all who ask for one on a stripe before it starts share it.

use std::io;
use std::rc::Rc;

use super::Engine;
use crate::disk::Operation;
use crate::store::{Action, SyncFor};
use crate::wait::Waiter;

impl Engine {
    /// A waiter for everything that is queued now of seals and tombstones; `None`: nothing to wait for.
    pub(crate) fn flush(&mut self) -> Option<Rc<Waiter<()>>> {
        self.store.as_ref()?;
        let waiter = Waiter::new();
        self.flush_waiters.push(waiter.clone());
        self.pump();
        Some(waiter)
    }

    pub(super) fn pump_syncs(&mut self) -> bool {
        let mut moved = false;
        if !self.flush_waiters.is_empty()
            && self.flush_syncs == 0
            && self.marks == 0
            && self.pending.values().all(|pending| pending.seal.is_none())
        {
            self.flushing = std::mem::take(&mut self.flush_waiters);
            if let Some(store) = &mut self.store {
                for stripe in store.stripes.iter_mut().filter(|stripe| !stripe.out) {
                    stripe.sync_next.push(SyncFor::Flush);
                    self.flush_syncs += 1;
                }
            }
            if self.flush_syncs == 0 {
                self.flush_done();
            }
        }
        let Some(store) = &mut self.store else { return false };
        for stripe in 0..store.stripes.len() {
            let target = &mut store.stripes[stripe];
            if target.syncing || target.sync_next.is_empty() {
                continue;
            }
            // All who asked until now share one flush.
            target.sync_now = std::mem::take(&mut target.sync_next);
            target.syncing = true;
            store.flush_starts(stripe as u16);
            store.submit(stripe as u16, Action::Sync, Operation::Sync);
            moved = true;
        }
        moved
    }

    pub(super) fn flush_done(&mut self) {
        for waiter in std::mem::take(&mut self.flushing) {
            waiter.complete((), &mut self.wakers);
        }
    }

    pub(super) fn sync_done(&mut self, stripe: u16, result: io::Result<()>) {
        let Some(store) = &mut self.store else { return };
        let target = &mut store.stripes[stripe as usize];
        target.syncing = false;
        let waiting = std::mem::take(&mut target.sync_now);
        store.flush_ended(stripe, result.is_ok());
        for waiting in waiting {
            match waiting {
                SyncFor::Upload(object, life) => {
                    if self.index.alive(object, life) {
                        match &result {
                            Ok(()) => self.upload_synced(object),
                            Err(error) => {
                                let store = self.store.as_ref();
                                if let Some(error) = store.map(|s| s.lost_to(stripe, error.kind()))
                                {
                                    self.upload_failed(object, error);
                                }
                            }
                        }
                    }
                }
                SyncFor::Reclaim { stripe: owner, serial } => {
                    self.reclaim_synced(owner, serial, stripe, result.is_ok());
                }
                // Tried again until it works or the stripe is out.
                SyncFor::Flush if result.is_err() && !self.is_out(stripe) => {
                    if let Some(store) = &mut self.store {
                        store.stripes[stripe as usize].sync_next.push(SyncFor::Flush);
                    }
                }
                SyncFor::Flush => {
                    self.flush_syncs -= 1;
                    if self.flush_syncs == 0 {
                        self.flush_done();
                    }
                }
            }
        }
    }
}
