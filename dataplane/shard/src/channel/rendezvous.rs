//! A place where shards wait for each other, stage by stage: at the start and at the end. Off every hot
//! path, so it takes a lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Where members wait until all have come. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Rendezvous(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    members: usize,
    arrived: usize,
    stage: u64,
    wakers: Vec<Waker>,
}

impl Rendezvous {
    /// One more that is waited for. All must have joined before the first waits.
    pub fn join(&self) -> Member {
        self.lock().members += 1;
        Member(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the stage when all are there.
    fn settle(mut state: MutexGuard<'_, State>) {
        if state.arrived < state.members {
            return;
        }
        state.arrived = 0;
        state.stage += 1;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One that is waited for. Dropping it ends that, so that nobody waits for a shard that has gone.
#[derive(Debug)]
pub struct Member(Rendezvous);

impl Member {
    /// Resolves when every member has come to this point. A member that began to wait must go on to
    /// the end of it.
    pub async fn meet(&self) {
        let stage = {
            let mut state = self.0.lock();
            state.arrived += 1;
            let stage = state.stage;
            Rendezvous::settle(state);
            stage
        };
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.stage > stage {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.members -= 1;
        if state.members > 0 {
            Rendezvous::settle(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    #[test]
    fn nobody_goes_on_before_all_are_there_or_gone() {
        let place = Rendezvous::default();
        let [first, second, third] = [(); 3].map(|()| place.join());
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            let (mut one, mut two) = (pin!(first.meet()), pin!(second.meet()));
            assert!(one.as_mut().poll(&mut context).is_pending());
            assert!(two.as_mut().poll(&mut context).is_pending());
            let mut three = pin!(third.meet());
            assert!(three.as_mut().poll(&mut context).is_ready());
            assert!(one.as_mut().poll(&mut context).is_ready());
            assert!(two.as_mut().poll(&mut context).is_ready());
        }
        let mut one = pin!(first.meet());
        assert!(one.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(one.as_mut().poll(&mut context).is_pending());
        drop(third);
        assert!(one.as_mut().poll(&mut context).is_ready());
    }
}
