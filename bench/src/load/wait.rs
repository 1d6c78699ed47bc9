//! Waiting for sockets, to the microsecond.

use rustix::buffer::Buffer;
use rustix::event::epoll::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// Waits for at most `timeout`. `epoll_wait` has milliseconds, which are rounded up: an open loop would be
/// late by one; `ppoll` has nanoseconds.
pub(super) fn wait<B: Buffer<Event>>(
    epoll: &OwnedFd,
    events: B,
    timeout: &Timespec,
) -> Result<B::Output, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if *timeout != now {
        poll(&mut [PollFd::new(epoll, PollFlags::IN)], Some(timeout))?;
    }
    epoll::wait(epoll, events, Some(&now))
}
