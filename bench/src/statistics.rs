//! Medians and ratios of paired measurements. Pure.

use serde::Serialize;

/// Smallest, middle and largest of some measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one, or the mean of the two middle ones.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` when there are none or one is not a number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { min: sorted[0], median, max: sorted[sorted.len() - 1] })
    }
}

/// How two things compare that were measured in pairs, one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of the two medians: robust against one bad half of a pair.
    pub of_medians: f64,
    /// The ratios within the pairs: what a drift of the machine between pairs cannot move.
    pub of_pairs: Spread,
}

impl Ratio {
    /// `subject` over `reference`, pair by pair. `None` when the lengths differ, there are no
    /// pairs, or a reference is not above zero.
    pub fn of(subject: &[f64], reference: &[f64]) -> Option<Self> {
        if subject.len() != reference.len() || reference.iter().any(|value| *value <= 0.0) {
            return None;
        }
        let pairs: Vec<f64> = subject.iter().zip(reference).map(|(a, b)| a / b).collect();
        let of_pairs = Spread::of(&pairs)?;
        let of_medians = Spread::of(subject)?.median / Spread::of(reference)?.median;
        Some(Self { of_medians, of_pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_count_is_the_middle_value_in_any_order() {
        let spread = Spread::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { min: 1.0, median: 3.0, max: 5.0 });
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_two_middle_values() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 100.0]).unwrap().median, 3.0);
    }

    #[test]
    fn nothing_measured_has_no_median() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn one_disturbed_pair_does_not_move_the_ratio() {
        let ratio = Ratio::of(&[2.0, 2.0, 0.1, 2.0, 2.0], &[1.0; 5]).unwrap();
        assert_eq!(ratio.of_medians, 2.0);
        assert_eq!(ratio.of_pairs.median, 2.0);
        assert_eq!(ratio.of_pairs.min, 0.1);
    }

    #[test]
    fn a_machine_that_slows_down_between_pairs_leaves_the_paired_ratio_alone() {
        let reference = [10.0, 8.0, 6.0, 4.0, 2.0];
        let subject = reference.map(|value| value * 1.5);
        let ratio = Ratio::of(&subject, &reference).unwrap();
        assert!((ratio.of_pairs.min - 1.5).abs() < 1e-9);
        assert!((ratio.of_pairs.max - 1.5).abs() < 1e-9);
    }

    #[test]
    fn halves_without_a_partner_are_not_compared() {
        assert_eq!(Ratio::of(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
    }
}
