//! What the connections of one shard may hold in memory, beside the slots of the cache (which count in
//! [`crate::pins`]). quinn-proto bounds a connection, and nothing bounds all of them.
//!
//! Every connection counts what it holds at the end of each of its turns: a fixed part, its handshake, its
//! requests, heads that are not whole, bodies that wait for their handlers, windows that are given to
//! uploads, copies that wait to be acknowledged, and what may lie unread in quinn ([`Unread`]). From three
//! quarters of the bound on, strangers have to show their address (Retry). At the bound no connection is
//! taken, requests are answered 503, uploads go on in small pieces, readers that take next to nothing are
//! closed, and so is a connection that sends more of what cannot be read yet.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a connection counts that does nothing: its state (some 30 KiB, as measured), and
/// [`Unread::NOT_LOOKED_AT_BYTES`].
pub(crate) const CONNECTION_BYTES: usize = 48 << 10;

/// What it counts more until its handshake is over: the session of TLS, the server's flight.
pub(crate) const HANDSHAKE_BYTES: usize = 32 << 10;

/// What a request counts: its stream, the future of its handler, heads.
pub(crate) const REQUEST_BYTES: usize = 8 << 10;

/// What all connections of a shard hold. It is written on the shard alone, and read anywhere.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: Arc::default(), bytes_max }
    }

    /// For the metrics.
    pub(crate) fn watched(&self) -> Watched {
        Watched { bytes: self.bytes.clone(), bytes_max: self.bytes_max }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether nobody may hold more.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= self.bytes_max
    }

    /// Whether that is near.
    pub(crate) fn is_crowded(&self) -> bool {
        self.bytes() >= self.bytes_max - self.bytes_max / 4
    }

    fn change(&self, from: usize, to: usize) {
        // One thread writes: no need for an addition that locks the bus.
        self.bytes.store(self.bytes() - from + to, Ordering::Relaxed);
    }
}

/// What the metrics see of a shard's memory.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    bytes: Arc<AtomicUsize>,
    pub(crate) bytes_max: usize,
}

impl Watched {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What one connection counts; nothing any more when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    memory: Rc<Memory>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(memory: &Rc<Memory>, bytes: usize) -> Self {
        memory.change(0, bytes);
        Self { memory: memory.clone(), bytes }
    }

    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.memory.change(self.bytes, bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.change(self.bytes, 0);
    }
}

/// How much of a connection's streams may lie in quinn without having been read: what is behind a gap.
///
/// quinn does not say, so it is an upper bound, from what has come in: the bytes of all datagrams since
/// everything was last known to be read, without what was read. Everything is when as many STREAM frames
/// were read as have come. Some come twice or are empty: a few more than that are let pass.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    datagram_bytes: usize,
    read_bytes: usize,
    read_frames: u64,
    bound: usize,
}

/// What quinn may allocate for one stream beyond the bytes in its window: 32 KiB for short frames in long
/// datagrams, and 2,048 entries of 56 bytes (its `assembler`).
const STREAM_OVERHEAD_BYTES: usize = (32 << 10) + 2048 * 56;

/// The same for one frame.
const FRAME_OVERHEAD_BYTES: usize = 64;

impl Unread {
    /// Up to this nobody looks: it is in [`CONNECTION_BYTES`].
    pub(crate) const NOT_LOOKED_AT_BYTES: usize = 16 << 10;

    /// Frames that may be missing without a word, and one more for so many that were read, up to so many.
    const MISSING_FRAMES_MAX: u64 = 32;
    const FRAMES_PER_MISSING: u64 = 64;
    const MISSING_MORE_MAX: u64 = 256;

    /// A datagram has come.
    pub(crate) fn note_datagram(&mut self, bytes: usize) {
        self.datagram_bytes += bytes;
    }

    /// So many whole frames were read, of so many bytes.
    pub(crate) fn note_read(&mut self, frames: usize, bytes: usize) {
        self.read_frames += frames as u64;
        self.read_bytes += bytes;
    }

    /// The bound, in bytes beyond [`Self::NOT_LOOKED_AT_BYTES`]. `frames`: how many STREAM frames have come
    /// on the connection. `streams`: how many may have a gap. `window`: that of the connection, in bytes.
    pub(crate) fn bound(
        &mut self,
        frames: impl FnOnce() -> u64,
        streams: usize,
        window: usize,
    ) -> usize {
        let unread = self.datagram_bytes.saturating_sub(self.read_bytes);
        if unread <= Self::NOT_LOOKED_AT_BYTES + self.bound / 2 {
            return self.bound;
        }
        let missing = frames().saturating_sub(self.read_frames);
        let more = (self.read_frames / Self::FRAMES_PER_MISSING).min(Self::MISSING_MORE_MAX);
        let forgiven = Self::MISSING_FRAMES_MAX + more;
        if missing <= forgiven {
            (self.datagram_bytes, self.read_bytes) = (0, 0);
            self.bound = 0;
            return 0;
        }
        let of_frames = usize::try_from(missing).unwrap_or(usize::MAX);
        let bytes = unread.saturating_add(of_frames.saturating_mul(FRAME_OVERHEAD_BYTES));
        let most = window.saturating_add(streams.saturating_mul(STREAM_OVERHEAD_BYTES));
        self.bound = bytes.min(most).saturating_sub(Self::NOT_LOOKED_AT_BYTES);
        self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_what_they_hold_until_they_are_gone() {
        let memory = Rc::new(Memory::new(100));
        let mut one = Charge::new(&memory, 40);
        let two = Charge::new(&memory, 20);
        assert_eq!((memory.bytes(), memory.is_crowded(), memory.is_full()), (60, false, false));
        one.set(60);
        assert_eq!((memory.bytes(), memory.is_crowded(), memory.is_full()), (80, true, false));
        one.set(80);
        assert!(memory.is_full());
        assert_eq!(memory.watched().bytes(), 100);
        one.set(10);
        drop(two);
        assert_eq!(memory.bytes(), 10);
        drop(one);
        assert_eq!(memory.bytes(), 0);
    }

    const WINDOW: usize = 64 << 10;

    #[test]
    fn a_client_whose_frames_are_read_counts_nothing_however_much_it_sends() {
        let mut unread = Unread::default();
        for frame in 1..100_000_u64 {
            // An acknowledgement, and a frame of a kilobyte.
            unread.note_datagram(40);
            unread.note_datagram(1040);
            unread.note_read(1, 1000);
            assert_eq!(unread.bound(|| frame, 1, WINDOW), 0);
        }
    }

    #[test]
    fn what_lies_behind_a_gap_counts_up_to_what_quinn_keeps() {
        let mut unread = Unread::default();
        let (mut sent, mut last) = (0, 0);
        for frame in 1..2000_u64 {
            unread.note_datagram(1200);
            sent += 1200;
            let bound = unread.bound(|| frame, 2, WINDOW);
            let most = WINDOW + 2 * STREAM_OVERHEAD_BYTES - Unread::NOT_LOOKED_AT_BYTES;
            assert!(bound >= last && bound <= most);
            if frame > Unread::MISSING_FRAMES_MAX && bound < most {
                // It is looked at again when half as much has come once more.
                let looked_at = sent - (1 + Unread::MISSING_FRAMES_MAX as usize) * 1200;
                assert!(
                    2 * (bound + Unread::NOT_LOOKED_AT_BYTES) >= looked_at,
                    "{bound} of {sent}"
                );
            }
            last = bound;
        }
        assert_eq!(last, WINDOW + 2 * STREAM_OVERHEAD_BYTES - Unread::NOT_LOOKED_AT_BYTES);
        // The gap is closed.
        unread.note_read(2000, 2000);
        unread.note_datagram(1200);
        assert_eq!(unread.bound(|| 2000, 2, WINDOW), 0);
    }

    #[test]
    fn some_frames_that_come_twice_are_let_pass() {
        let mut unread = Unread::default();
        for frame in 1..10_000_u64 {
            unread.note_datagram(1000 + if frame % 100 == 0 { 1000 } else { 0 });
            unread.note_read(1, 960);
            assert_eq!(unread.bound(|| frame + frame / 100, 1, WINDOW), 0);
        }
    }
}
