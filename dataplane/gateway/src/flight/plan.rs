//! Which chunks to ask an origin for, and when to wait for a fetch that is under way. Pure: chunk
//! numbers in, a decision out.
//!
//! A flight has a few *fillers*, each an upstream request that writes a run of chunks in order. A
//! reader that finds a chunk missing either waits for the filler that is about to write it, or has
//! a filler of its own started (a range far ahead of the fill front costs a range, not the blob).

use std::ops::Range;

/// How far behind a chunk a filler may be, so that waiting for it beats another request: 4 MiB.
pub(crate) const WAIT_CHUNKS_MAX: u32 = 16;

/// The most upstream requests of one flight at once. containerd opens up to this many ranges.
pub(crate) const FILLERS_MAX: usize = 8;

/// A run of chunks that are here already is skipped by a new request when it is at least this long
/// (2 MiB); a shorter one is read from the origin and dropped, which is cheaper than a round trip.
pub(crate) const SKIP_CHUNKS_MIN: u32 = 8;

/// The end of a content whose length is not known yet, of which nothing can be here.
pub(crate) const UNKNOWN_END: u32 = u32::MAX;

/// What one upstream request still has to write: `next` is being written, `end` is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) next: u32,
    pub(crate) end: u32,
}

impl Span {
    fn covers(self, chunk: u32) -> bool {
        (self.next..self.end).contains(&chunk)
    }
}

/// What a reader that misses a chunk does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A filler will come by soon, or there are as many fillers as there may be.
    Wait,
    /// Ask the origin for these chunks.
    Start(Range<u32>),
}

/// Decides for a reader that misses `chunk` and will read on up to `wanted_end`.
pub(crate) fn on_miss(
    fillers: &[Span],
    chunk: u32,
    wanted_end: u32,
    is_present: impl Fn(u32) -> bool,
) -> Step {
    debug_assert!(chunk < wanted_end);
    let soon = |span: &Span| span.covers(chunk) && chunk - span.next <= WAIT_CHUNKS_MAX;
    if fillers.iter().any(soon) || fillers.len() >= FILLERS_MAX {
        return Step::Wait;
    }
    if wanted_end == UNKNOWN_END {
        return Step::Start(chunk..wanted_end);
    }
    let others = fillers.iter().map(|span| span.next).filter(|next| *next > chunk);
    let mut end = others.fold(wanted_end, u32::min);
    if let Some(present) = (chunk + 1..end).find(|next| is_present(*next)) {
        // Short runs of what is here already are read over, see SKIP_CHUNKS_MIN.
        let run = (present..end).take_while(|next| is_present(*next)).count();
        if run >= SKIP_CHUNKS_MIN as usize || present as usize + run == end as usize {
            end = present;
        }
    }
    Step::Start(chunk..end)
}

/// What a filler does that stands before a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    /// The chunk is missing: write it.
    Write,
    /// The chunk is here or another filler's: read over its bytes.
    Discard,
    /// Nothing is missing before this chunk: close the request and open another from here.
    SkipTo(u32),
    /// Nothing is missing up to the end of the span.
    Done,
}

/// Decides for the filler of `own`, given the other fillers of the flight.
pub(crate) fn on_advance(own: Span, others: &[Span], is_present: impl Fn(u32) -> bool) -> Advance {
    // Who is behind would come too late: it stops here instead.
    let ahead = || others.iter().filter(|span| span.next >= own.next);
    let settled = |chunk: u32| is_present(chunk) || ahead().any(|span| span.covers(chunk));
    match (own.next..own.end).find(|chunk| !settled(*chunk)) {
        None => Advance::Done,
        Some(missing) if missing == own.next => Advance::Write,
        Some(missing) if missing - own.next >= SKIP_CHUNKS_MIN => Advance::SkipTo(missing),
        Some(_) => Advance::Discard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: fn(u32) -> bool = |_| false;

    fn span(next: u32, end: u32) -> Span {
        Span { next, end }
    }

    #[test]
    fn the_first_reader_starts_a_fetch_of_all_it_wants() {
        assert_eq!(on_miss(&[], 0, 256, NOTHING), Step::Start(0..256));
    }

    #[test]
    fn a_reader_close_behind_the_front_waits_for_it() {
        assert_eq!(on_miss(&[span(10, 256)], 10 + WAIT_CHUNKS_MAX, 256, NOTHING), Step::Wait);
    }

    #[test]
    fn a_range_far_ahead_of_the_front_gets_a_request_of_its_own() {
        assert_eq!(on_miss(&[span(10, 256)], 100, 120, NOTHING), Step::Start(100..120));
    }

    #[test]
    fn a_request_stops_where_another_one_began() {
        assert_eq!(on_miss(&[span(100, 120)], 0, 256, NOTHING), Step::Start(0..100));
    }

    #[test]
    fn a_request_stops_before_a_long_run_of_what_is_here() {
        assert_eq!(on_miss(&[], 0, 256, |chunk| (50..70).contains(&chunk)), Step::Start(0..50));
        assert_eq!(on_miss(&[], 0, 256, |chunk| chunk == 50), Step::Start(0..256));
        assert_eq!(on_miss(&[], 0, 52, |chunk| chunk >= 50), Step::Start(0..50));
    }

    #[test]
    fn an_unknown_end_is_not_searched_for_what_is_here() {
        let never = |_| -> bool { panic!("it would take four billion looks") };
        assert_eq!(on_miss(&[], 0, UNKNOWN_END, never), Step::Start(0..UNKNOWN_END));
    }

    #[test]
    fn fillers_are_bounded() {
        let many: Vec<Span> = (0..8).map(|n| span(n * 100, n * 100 + 1)).collect();
        assert_eq!(on_miss(&many, 900, 901, NOTHING), Step::Wait);
    }

    #[test]
    fn a_filler_skips_what_others_have_and_stops_when_nothing_is_missing() {
        assert_eq!(on_advance(span(0, 10), &[], NOTHING), Advance::Write);
        assert_eq!(on_advance(span(0, 10), &[], |chunk| chunk < 3), Advance::Discard);
        assert_eq!(on_advance(span(0, 20), &[], |chunk| chunk < 9), Advance::SkipTo(9));
        assert_eq!(on_advance(span(0, 20), &[span(5, 20)], |chunk| chunk < 5), Advance::Done);
        assert_eq!(on_advance(span(0, 20), &[span(0, 10)], NOTHING), Advance::SkipTo(10));
        assert_eq!(on_advance(span(5, 128), &[span(32, 128)], NOTHING), Advance::Write);
        assert_eq!(on_advance(span(32, 128), &[span(5, 128)], NOTHING), Advance::Write);
    }

    /// Fillers and readers in random order: every chunk is fetched, and none by two requests but
    /// where a short run was read over.
    #[test]
    fn every_chunk_is_fetched_once_whatever_the_order() {
        for seed in 0..500u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = move |below: u32| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % u64::from(below)) as u32
            };
            let total = 1 + next(300);
            let mut present = vec![false; total as usize];
            let mut fillers: Vec<Span> = Vec::new();
            let mut readers: Vec<(u32, u32)> = (0..1 + next(6))
                .map(|_| {
                    let from = next(total);
                    (from, from + 1 + next(total - from))
                })
                .collect();
            let mut written = 0u32;
            for _ in 0..100_000 {
                if readers.is_empty() {
                    break;
                }
                if next(2) == 0 || fillers.is_empty() {
                    let at = next(readers.len() as u32) as usize;
                    let (chunk, end) = readers[at];
                    if chunk == end {
                        readers.swap_remove(at);
                    } else if present[chunk as usize] {
                        readers[at].0 += 1;
                    } else if let Step::Start(run) =
                        on_miss(&fillers, chunk, end, |c| present[c as usize])
                    {
                        assert!(run.start == chunk && run.end > chunk && run.end <= end);
                        fillers.push(span(run.start, run.end));
                    }
                } else {
                    let at = next(fillers.len() as u32) as usize;
                    let own = fillers.swap_remove(at);
                    match on_advance(own, &fillers, |c| present[c as usize]) {
                        Advance::Done => continue,
                        Advance::SkipTo(chunk) => fillers.push(span(chunk, own.end)),
                        Advance::Write => {
                            assert!(!present[own.next as usize]);
                            present[own.next as usize] = true;
                            written += 1;
                            fillers.push(span(own.next + 1, own.end));
                        }
                        Advance::Discard => fillers.push(span(own.next + 1, own.end)),
                    }
                    fillers.retain(|span| span.next < span.end);
                }
            }
            assert!(readers.is_empty(), "seed {seed}: a reader waits for ever");
            assert!(written <= total, "seed {seed}");
        }
    }
}
