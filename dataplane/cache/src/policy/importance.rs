//! GreedyDual-Size-Frequency with costs and importance: `H = clock + class × frequency × (fetch +
//! execute) × depth / size`.
//!
//! Source: L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
//! Policy", HP Labs HPL-98-69R1 (1998). Not for workloads where every object has the same size and
//! cost and is used once: it degrades to first in, first out there.
//!
//! Nobody can buy importance: the frequency counts distinct customer-minutes up to 255, a cost
//! counts from 1 ms to 10 s, dependants count by their logarithm.

use super::{Inputs, Policy};
use crate::config::ImportanceWeights;

/// The cheapest and the dearest cost that count.
const COST_MS_MIN: f64 = 1.0;
const COST_MS_MAX: f64 = 10_000.0;
/// Smaller objects count as this size: they take a slot of this size anyway.
const SIZE_BYTES_MIN: u64 = 4096;

/// The score of the design, with its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImportancePolicy {
    pub(crate) weights: ImportanceWeights,
}

impl Policy for ImportancePolicy {
    fn worth(&self, inputs: &Inputs) -> f64 {
        let weights = &self.weights;
        let cost = weights.fetch * inputs.fetch_ms.clamp(COST_MS_MIN, COST_MS_MAX)
            + weights.execute * inputs.execute_ms.clamp(0.0, COST_MS_MAX);
        let worth = weights.class
            * inputs.class
            * weights.frequency
            * f64::from(inputs.frequency.max(1))
            * cost
            * (1.0 + weights.depth * inputs.depth_log2);
        worth / inputs.size_bytes.max(SIZE_BYTES_MIN) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEUTRAL: Inputs = Inputs {
        class: 1.0,
        frequency: 1,
        fetch_ms: 1.0,
        execute_ms: 0.0,
        depth_log2: 0.0,
        size_bytes: 1 << 20,
    };

    fn score(clock: f64, inputs: Inputs) -> f64 {
        clock + ImportancePolicy { weights: ImportanceWeights::default() }.worth(&inputs)
    }

    #[test]
    fn what_is_used_more_dearer_deeper_or_smaller_is_worth_more() {
        let base = score(0.0, NEUTRAL);
        assert!(score(0.0, Inputs { frequency: 2, ..NEUTRAL }) > base);
        assert!(score(0.0, Inputs { fetch_ms: 50.0, ..NEUTRAL }) > base);
        assert!(score(0.0, Inputs { execute_ms: 50.0, ..NEUTRAL }) > base);
        assert!(score(0.0, Inputs { depth_log2: 2.0, ..NEUTRAL }) > base);
        assert!(score(0.0, Inputs { class: 3.0, ..NEUTRAL }) > base);
        assert!(score(0.0, Inputs { size_bytes: 1 << 16, ..NEUTRAL }) > base);
    }

    #[test]
    fn costs_beyond_ten_seconds_buy_nothing() {
        assert_eq!(
            score(0.0, Inputs { fetch_ms: 1e9, ..NEUTRAL }),
            score(0.0, Inputs { fetch_ms: 1e4, ..NEUTRAL })
        );
    }

    #[test]
    fn the_clock_ages_what_is_not_used_any_more() {
        let popular_once = score(0.0, Inputs { frequency: 255, ..NEUTRAL });
        let new = score(popular_once + 1.0, NEUTRAL);
        assert!(new > popular_once);
    }
}
