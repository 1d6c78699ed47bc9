//! Datagrams of clients without a connection: first packets, and all others until the handshake is over. Each
//! costs keys, or a step of the handshake, which is a hundred times what a datagram of a connection costs. So
//! they wait here, in the order in which they came, and as many are taken in a turn as there is time for:
//! whoever has a connection does not wait for all who want one. What does not find room is dropped, and
//! sent again by those that mean it.

use std::collections::VecDeque;

/// Datagrams that wait, and their bytes.
const WAITING_MAX: usize = 512;
const WAITING_BYTES_MAX: usize = 1 << 20;

/// The least that a datagram with a client's first packet has (RFC 9000, section 14.1).
const INITIAL_BYTES_MIN: usize = 1200;

/// The queue. `T` is what is known of a datagram beside its length.
#[derive(Debug)]
pub(crate) struct Strangers<T> {
    waiting: VecDeque<(usize, T)>,
    bytes: usize,
}

impl<T> Default for Strangers<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Strangers<T> {
    /// Puts one behind the others; false when there is no room.
    pub(crate) fn push(&mut self, bytes: usize, datagram: T) -> bool {
        let room = self.waiting.len() < WAITING_MAX && self.bytes + bytes <= WAITING_BYTES_MAX;
        if room {
            self.bytes += bytes;
            self.waiting.push_back((bytes, datagram));
        }
        room
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let (bytes, datagram) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(datagram)
    }
}

/// Whether a datagram is one of those, unless its destination is an ID of ours.
pub(crate) fn has_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// Whether such a datagram can begin anything: a shorter one is not looked at.
pub(crate) fn may_begin(datagram: &[u8]) -> bool {
    /// The two bits of a long header that are 0 in an Initial packet of version 1.
    const KIND: u8 = 0x30;
    let is_initial = datagram.first().is_some_and(|first| first & KIND == 0);
    !is_initial || datagram.len() >= INITIAL_BYTES_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_out_in_order_and_are_bounded_in_number_and_in_bytes() {
        let mut strangers = Strangers::default();
        let pushed = (0..1000).filter(|n| strangers.push(1200, *n)).count();
        assert_eq!(pushed, WAITING_MAX);
        assert_eq!((strangers.pop(), strangers.pop()), (Some(0), Some(1)));
        let pushed = (0..3).filter(|n| strangers.push(1200, *n)).count();
        assert_eq!(pushed, 2);
        while strangers.pop().is_some() {}
        assert_eq!((strangers.waiting.len(), strangers.bytes), (0, 0));
        let pushed = (0..1000).filter(|n| strangers.push(60_000, *n)).count();
        assert_eq!(pushed, WAITING_BYTES_MAX / 60_000);
        while strangers.pop().is_some() {}
        assert_eq!(strangers.bytes, 0);
    }

    #[test]
    fn first_packets_are_told_from_others() {
        let mut initial = vec![0xc3; 1200];
        assert!(has_long_header(&initial) && may_begin(&initial));
        assert!(!may_begin(&initial[..1199]));
        // 0-RTT, which may be short.
        initial[0] = 0xd3;
        assert!(may_begin(&initial[..60]));
        assert!(!has_long_header(&[0x43, 1]) && !has_long_header(&[]));
    }
}
