//! Waiting for a file descriptor: sockets and whatever else epoll knows.
//!
//! Edge-triggered, one registration for the life of a descriptor: a wait costs no system call of its
//! own, and one `epoll_wait` of the driver serves all that became ready since the last one. (The
//! executor's own sockets cost about eight system calls for every time that the thread goes idle.)
//!
//! Who uses it calls the system first, and waits only after that said that it would block.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;

use crate::handle::Shared;
use crate::local::{self, Local};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// The token of the doorbell, which no descriptor has.
const DOORBELL: u64 = u64::MAX;

/// Everything that is registered on one shard.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    slots: RefCell<Slots>,
    /// Taken while events are delivered.
    woken: Cell<Vec<Waker>>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    read: Direction,
    write: Direction,
    /// The other end is gone: nothing that is read will ever block again.
    closed: bool,
}

#[derive(Default)]
struct Direction {
    ready: bool,
    waker: Option<Waker>,
}

impl Direction {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ready {
            return Poll::Ready(());
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn set(&mut self, woken: &mut Vec<Waker>) {
        self.ready = true;
        woken.extend(self.waker.take());
    }
}

impl Reactor {
    pub(crate) fn new(shared: &Arc<Shared>) -> rustix::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            shared.doorbell(),
            EventData::new_u64(DOORBELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self { epoll, slots: RefCell::default(), woken: Cell::default() })
    }

    fn add(&self, fd: &impl AsFd) -> rustix::io::Result<Token> {
        let mut slots = self.slots.borrow_mut();
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.slots.push(Slot::default());
                u32::try_from(slots.slots.len() - 1).expect("there are fewer descriptors than 2^32")
            }
        };
        let slot = &mut slots.slots[index as usize];
        // Nothing is known yet: the first call to the system tells.
        *slot = Slot {
            generation: slot.generation,
            read: Direction { ready: true, waker: None },
            write: Direction { ready: true, waker: None },
            closed: false,
        };
        let token = Token { index, generation: slot.generation };
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = epoll::add(&self.epoll, fd, token.data(), interest) {
            slots.free.push(index);
            return Err(error);
        }
        Ok(token)
    }

    fn remove(&self, token: Token, fd: &impl AsFd) {
        // It can only fail for a descriptor that is not registered.
        let _ = epoll::delete(&self.epoll, fd);
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.slots[token.index as usize];
        assert_eq!(slot.generation, token.generation, "a descriptor is removed once");
        let wakers = (slot.read.waker.take(), slot.write.waker.take());
        slot.generation = slot.generation.wrapping_add(1);
        slots.free.push(token.index);
        drop(slots);
        drop(wakers);
    }

    fn with<R>(&self, token: Token, call: impl FnOnce(&mut Slot) -> R) -> R {
        let slot = &mut self.slots.borrow_mut().slots[token.index as usize];
        assert_eq!(slot.generation, token.generation, "a removed descriptor is not used");
        call(slot)
    }

    /// Takes what is ready, after at most `timeout` (`None`: however long it takes), and wakes who
    /// waits for it; gives whether there was an event.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let timeout = timeout.map(timespec);
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            // A timer of the executor, or a signal: the driver goes round.
            Err(rustix::io::Errno::INTR) => return false,
            Err(error) => panic!("epoll_wait on an epoll descriptor of our own: {error}"),
        };
        if events.is_empty() {
            return false;
        }
        let mut woken = self.woken.take();
        {
            let mut slots = self.slots.borrow_mut();
            for event in events.iter() {
                let (data, flags) = (event.data.u64(), event.flags);
                if data == DOORBELL {
                    continue;
                }
                let token = Token::from_data(data);
                let Some(slot) = slots.slots.get_mut(token.index as usize) else { continue };
                if slot.generation != token.generation {
                    continue;
                }
                let gone = EventFlags::HUP | EventFlags::ERR;
                if flags.intersects(gone | EventFlags::RDHUP) {
                    slot.closed = true;
                }
                if flags.intersects(gone | EventFlags::RDHUP | EventFlags::IN) {
                    slot.read.set(&mut woken);
                }
                if flags.intersects(gone | EventFlags::OUT) {
                    slot.write.set(&mut woken);
                }
            }
        }
        for waker in woken.drain(..) {
            waker.wake();
        }
        self.woken.set(woken);
        true
    }
}

/// Rounded up to the next millisecond where it is not zero: that is what old kernels take, and no
/// deadline may be found too early over and over.
fn timespec(timeout: Duration) -> Timespec {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let timeout = timeout.min(DAY);
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    let millis = i64::try_from(millis).expect("a day has few milliseconds");
    Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 }
}

#[derive(Clone, Copy)]
struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    fn data(self) -> EventData {
        EventData::new_u64(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    fn from_data(data: u64) -> Self {
        Self { index: data as u32, generation: (data >> 32) as u32 }
    }
}

/// A descriptor that this shard watches. It has to be non-blocking, and stays on its shard.
pub struct Watched<T: AsFd> {
    local: Rc<Local>,
    token: Token,
    io: T,
}

impl<T: AsFd> Watched<T> {
    /// Watches `io` for as long as this lives. One system call.
    ///
    /// # Errors
    /// When the kernel cannot watch it (a regular file, or no memory).
    ///
    /// # Panics
    /// On a thread that is not a shard's.
    pub fn new(io: T) -> io::Result<Self> {
        let local = local::current("Watched::new");
        let token = local.reactor.add(&io)?;
        Ok(Self { local, token, io })
    }

    /// What is watched.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Ready while nothing says that reading would block; else wakes the task when it might not.
    /// One task may wait for each direction: the last one that asked.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.local.reactor.with(self.token, |slot| slot.read.poll(cx))
    }

    /// Like [`Self::poll_readable`], for writing.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.local.reactor.with(self.token, |slot| slot.write.poll(cx))
    }

    /// Reading would block: the next wait is a real one. For a stream socket it may be called after
    /// a read that did not fill its buffer, which saves the call that would say so; once the other
    /// end has closed it has no effect.
    pub fn clear_readable(&self) {
        self.local.reactor.with(self.token, |slot| slot.read.ready = slot.closed);
    }

    /// Writing would block: the next wait is a real one.
    pub fn clear_writable(&self) {
        self.local.reactor.with(self.token, |slot| slot.write.ready = false);
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        self.local.reactor.remove(self.token, &self.io);
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.io).finish()
    }
}
