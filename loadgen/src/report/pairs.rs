//! Whether B differs from A, and by how much, from pairs of runs that stood next to each other.
//!
//! In: the value of A and of B in each pair, metric by metric. Out: a [`Finding`] for each. A pair's log ratio is
//! one observation, because neighbours in time share the machine's moods:
//!
//! - whether: Wilcoxon's signed-rank test of the log ratios, exact, with mid-ranks for ties (Wilcoxon,
//!   "Individual comparisons by ranking methods", 1945), which asks no normal noise; over several
//!   metrics by Holm's procedure ("A simple sequentially rejective multiple test procedure", 1979)
//! - how much: the Hodges-Lehmann estimate, the median of all pairwise means, with the interval in which it
//!   lies when pairs are drawn anew from those that there are (percentile bootstrap; Efron, 1979)
//! - how many pairs: as many as the signed-rank test needs by how often the mean of two log ratios would
//!   change its sign for the difference (Noether, "Sample size determination for some common nonparametric tests",
//!   1987), or as a t-test needs in log ratios of this size, divided by the least efficiency that the
//!   signed-rank test can have beside it, 0.864 (Hodges and Lehmann, 1956), if those are fewer. The first is
//!   what a machine asks for that is quiet but for some pairs, which are far off
//!
//! When they are looked at, `looks` tells.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// How often pairs are drawn anew for an interval.
const RESAMPLES: usize = 10_000;

/// Halvings of a range for the difference that pairs show: to 2^-40 of it.
const BISECTIONS: usize = 40;

/// Beside a t-test, the signed-rank test never needs more than this share's inverse of its pairs.
const EFFICIENCY_MIN: f64 = 0.864;

/// What a comparison is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// Smallest relative difference that must be found, 0.05 for 5 %.
    pub difference: f64,
    /// How likely any false finding may be, over all metrics together.
    pub error_max: f64,
    /// How likely a difference of that size is found in one metric.
    pub power: f64,
    /// Metrics that are looked at.
    pub metrics: usize,
}

impl Question {
    /// Pairs below which a look that spends this share of the error can find nothing, whatever they say: with n
    /// of them the least p-value is 2^(1-n).
    pub fn pairs_min(&self, share: f64) -> usize {
        let least = (2.0 * self.metrics as f64 / (share * self.error_max)).log2();
        (1..)
            .find(|pairs| f64::from(*pairs) >= least)
            .map_or(usize::MAX, |pairs: u32| pairs as usize)
    }

    /// Pairs with which a look that spends this share of the error finds the difference, in log ratios as large as
    /// those seen: Student's quantiles, because their size is no better known than these few tell.
    pub fn pairs_needed(&self, seen: &Pairs, share: f64) -> usize {
        let min = self.pairs_min(1.0);
        if seen.len() < min {
            return min;
        }
        let pairs = self.pairs_for(self.difference.ln_1p(), seen, share);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates, and a square is not negative"
        )]
        let pairs = pairs.ceil() as usize;
        pairs.max(min)
    }

    /// Difference that a look at these pairs which spends this share of the error would find as often as the power
    /// promises, as a share; `None` if so few find nothing.
    pub fn difference_shown(&self, seen: &Pairs, share: f64) -> Option<f64> {
        if seen.len() < self.pairs_min(1.0) {
            return None;
        }
        let count = seen.len() as f64;
        // As many pairs show this by their size alone; perhaps less is shown.
        let (mut low, mut high) =
            (0.0, self.reach(seen.len(), share) * seen.size() / (count * EFFICIENCY_MIN).sqrt());
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            match self.pairs_for(middle, seen, share) <= count {
                true => high = middle,
                false => low = middle,
            }
        }
        Some(high.exp_m1())
    }

    /// Pairs that find a log ratio of `shift`, not a whole number.
    fn pairs_for(&self, shift: f64, seen: &Pairs, share: f64) -> f64 {
        let reach = self.reach(seen.len(), share);
        let by_size = (reach * seen.size() / shift).powi(2) / EFFICIENCY_MIN;
        let by_sign = (reach / seen.lift(shift)).powi(2) / 3.0;
        by_size.min(by_sign)
    }

    /// The two quantiles together: standard errors by which a shift must stand out.
    fn reach(&self, pairs: usize, share: f64) -> f64 {
        let t = StudentsT::new(0.0, 1.0, pairs as f64).expect("there are pairs");
        let error = share * self.error_max / (2.0 * self.metrics as f64);
        t.inverse_cdf(1.0 - error) + t.inverse_cdf(self.power)
    }
}

/// Log ratios of B to A, a pair each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs(Vec<f64>);

/// What the pairs of one metric say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// B by A.
    pub ratio: f64,
    /// Where that lies with 95 % confidence.
    pub interval: (f64, f64),
    /// How likely pairs like these are if A and B are alike, as it counts beside all looks at all metrics.
    pub p_value: f64,
    /// Whether that is below what was allowed.
    pub differs: bool,
    /// What the look found whose p-value that is, or, if a difference was found, the look that found it.
    pub look: Option<Look>,
    /// Pairs after which it was found, or after which a difference as asked for would have been.
    pub decided_at: Option<usize>,
}

/// What was seen when a metric's pairs were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// How many pairs there were.
    pub pairs: usize,
    /// Whether B was more than A.
    pub is_more: bool,
}

impl Pairs {
    /// Adds a pair. Both values must be above 0.
    pub fn push(&mut self, of_a: f64, of_b: f64) {
        debug_assert!(of_a > 0.0 && of_b > 0.0, "{of_a}, {of_b}");
        // Not the logarithm of the quotient: that of A by B would have another size in its last digit, and be no tie.
        self.0.push(of_b.ln() - of_a.ln());
    }

    /// B by A in the last pair.
    pub fn last(&self) -> Option<f64> {
        self.0.last().map(|log_ratio| log_ratio.exp())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Root of the mean square of the log ratios, which no change of their signs changes; infinite without a
    /// pair.
    pub fn size(&self) -> f64 {
        let squares: f64 = self.0.iter().map(|it| it.powi(2)).sum();
        if self.0.is_empty() { f64::INFINITY } else { (squares / self.0.len() as f64).sqrt() }
    }

    /// How much more often than half of the time the mean of two log ratios would be above 0 if all were larger by
    /// `shift`: 0 to 0.5. Of log ratios with either sign, so that no change of theirs changes it.
    fn lift(&self, shift: f64) -> f64 {
        let sizes: Vec<_> = self.0.iter().map(|it| it.abs()).collect();
        let mut near = 0;
        for (at, first) in sizes.iter().enumerate() {
            for second in &sizes[..at] {
                near += u64::from(first + second < 2.0 * shift);
                near += u64::from((first - second).abs() < 2.0 * shift);
            }
        }
        let couples = sizes.len() as f64 * (sizes.len() as f64 - 1.0) / 2.0;
        near as f64 / (4.0 * couples)
    }

    /// B by A. There must be a pair.
    pub(super) fn ratio(&self) -> f64 {
        let sorted = sorted(self.0.clone());
        hodges_lehmann(&sorted).exp()
    }

    /// The middle `confidence` of what other draws of pairs would have given.
    pub(super) fn interval(&self, confidence: f64, seed: u64) -> (f64, f64) {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let count = self.0.len() as u64;
        let mut draw = || {
            // 64 random bits times the count, the upper half: no remainder, hardly a bias.
            let at = (u128::from(random.next_u64()) * u128::from(count)) >> 64;
            self.0[usize::try_from(at).expect("below the number of pairs")]
        };
        let estimates = (0..RESAMPLES).map(|_| {
            let drawn = (0..self.0.len()).map(|_| draw()).collect();
            hodges_lehmann(&sorted(drawn))
        });
        let estimates = sorted(estimates.collect());
        let tail = (1.0 - confidence) / 2.0;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a small count"
        )]
        let left_out = (tail * RESAMPLES as f64).floor() as usize;
        (estimates[left_out].exp(), estimates[RESAMPLES - 1 - left_out].exp())
    }

    /// Two-sided p-value of the signed-rank test. Pairs without a difference say nothing and are left out.
    pub(super) fn p_value(&self) -> f64 {
        let differences: Vec<_> = self.0.iter().copied().filter(|it| *it != 0.0).collect();
        let ranks = doubled_ranks(&differences);
        let positive: usize = ranks
            .iter()
            .zip(&differences)
            .filter(|(_, difference)| **difference > 0.0)
            .map(|(rank, _)| rank)
            .sum();
        let all: usize = ranks.iter().sum();
        // As likely as each other under the hypothesis: every choice of signs.
        let mut shares = vec![0.0; all + 1];
        shares[0] = 1.0;
        let mut reached = 0;
        for rank in ranks {
            for sum in (0..=reached).rev() {
                let half = shares[sum] / 2.0;
                shares[sum] = half;
                shares[sum + rank] += half;
            }
            reached += rank;
        }
        let fewer = positive.min(all - positive);
        let tail: f64 = shares[..=fewer].iter().sum();
        (2.0 * tail).min(1.0)
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Median of the means of all pairs of values, each with itself too.
fn hodges_lehmann(sorted_values: &[f64]) -> f64 {
    let count = sorted_values.len();
    let mut means = Vec::with_capacity(count * (count + 1) / 2);
    for (at, first) in sorted_values.iter().enumerate() {
        means.extend(sorted_values[at..].iter().map(|second| f64::midpoint(*first, *second)));
    }
    let (lower, upper) = ((means.len() - 1) / 2, means.len() / 2);
    let (_, low, _) = means.select_nth_unstable_by(lower, f64::total_cmp);
    let low = *low;
    let (_, high, _) = means.select_nth_unstable_by(upper, f64::total_cmp);
    f64::midpoint(low, *high)
}

/// Twice the rank of each value's size, whole numbers also for ties, which share the mean of theirs.
fn doubled_ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
    let mut ranks = vec![0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|a, b| values[*a].abs() == values[*b].abs()) {
        // First rank plus last rank.
        let rank = 2 * before + 1 + tied.len();
        tied.iter().for_each(|at| ranks[*at] = rank);
        before += tied.len();
    }
    ranks
}

/// Each p-value as it counts beside the others.
pub(super) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (before, at) in order.into_iter().enumerate() {
        let times = (p_values.len() - before) as f64;
        least = least.max((times * p_values[at]).min(1.0));
        adjusted[at] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: Question =
        Question { difference: 0.05, error_max: 0.05, power: 0.9, metrics: 1 };

    fn pairs(log_ratios: &[f64]) -> Pairs {
        Pairs(log_ratios.to_vec())
    }

    fn check(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} instead of {expected}");
    }

    #[test]
    fn the_difference_that_pairs_show_is_the_one_that_asks_for_so_many() {
        let seen = pairs(&[0.1, -0.2, 0.15, -0.05, 0.3, -0.1, 0.02, -0.12, 0.07, 0.18]);
        let difference = QUESTION.difference_shown(&seen, 0.9).unwrap();
        assert!(difference > QUESTION.difference);
        // A hair above and below: the number of pairs is rounded up.
        let asks = |difference| Question { difference, ..QUESTION }.pairs_needed(&seen, 0.9);
        assert_eq!(asks(difference * (1.0 + 1e-9)), seen.len());
        assert_eq!(asks(difference * (1.0 - 1e-9)), seen.len() + 1);
        // 2^(1-5) is more than 5 %.
        assert_eq!(QUESTION.difference_shown(&pairs(&[0.1; 5]), 0.9), None);
    }

    #[test]
    fn what_a_shift_changes_is_counted_over_couples_of_either_sign() {
        // 1 and 2: sums of +-3, differences of +-1. 1 and 6: 7 and 5; 2 and 6: 8 and 4.
        let seen = pairs(&[1.0, -2.0, 6.0]);
        for (shift, near) in [(0.4, 0), (0.6, 1), (1.6, 2), (2.1, 3), (2.6, 4), (3.6, 5), (5.0, 6)]
        {
            check(seen.lift(shift), f64::from(near) / 12.0);
            check(pairs(&[-6.0, -1.0, -2.0]).lift(shift), f64::from(near) / 12.0);
        }
    }

    #[test]
    fn some_pairs_that_are_far_off_ask_for_few_more() {
        let seen = |far: f64| {
            let near = (0..90).map(|at| f64::from(at - 45) / 1_500.0);
            let far = (0..10).map(|at| if at % 2 == 0 { far } else { -far });
            Pairs(near.chain(far).collect())
        };
        let asks = |far| QUESTION.pairs_needed(&seen(far), 1.0);
        assert_eq!(asks(0.4), asks(40.0), "how far does not matter");
        assert!((15..30).contains(&asks(0.4)), "{}", asks(0.4));
        assert!(asks(0.05) <= asks(0.4));
    }

    /// Counted by hand over all choices of signs.
    #[test]
    fn the_signed_rank_test_is_exact() {
        check(pairs(&[1.0, 2.0, 3.0, 4.0, 5.0]).p_value(), 2.0 / 32.0);
        check(pairs(&[-1.0, 2.0, 3.0, 4.0, 5.0]).p_value(), 4.0 / 32.0);
        check(pairs(&[1.0, 2.0, -3.0, 4.0, 5.0]).p_value(), 10.0 / 32.0);
        check(pairs(&[-1.0, 1.0]).p_value(), 1.0);
        check(pairs(&[0.0, 1.0, 2.0, 3.0, 0.0, 4.0]).p_value(), 2.0 / 16.0);
        check(pairs(&[0.0]).p_value(), 1.0);
        // Ranks 1.5, 1.5, 3: the sums at most 1.5 are 0, 1.5 and 1.5 of eight.
        check(pairs(&[-1.0, 1.0, 2.0]).p_value(), 6.0 / 8.0);
    }

    /// Critical values of the two-sided test at 5 %: sums of ranks (Wilcoxon's own table).
    #[test]
    fn the_test_agrees_with_the_table() {
        for (count, critical) in
            [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (16, 29), (25, 89)]
        {
            let with_negative = |sum: usize| {
                // Greedy from the largest rank down: any set of ranks with this sum will do.
                let mut left = sum;
                let mut values: Vec<f64> = (1..=count).map(f64::from).collect();
                for rank in (0..values.len()).rev() {
                    if rank < left {
                        values[rank] *= -1.0;
                        left -= rank + 1;
                    }
                }
                assert_eq!(left, 0);
                pairs(&values).p_value()
            };
            assert!(with_negative(critical) <= 0.05, "{count} pairs, {critical}");
            assert!(with_negative(critical + 1) > 0.05, "{count} pairs, {critical} + 1");
        }
    }

    #[test]
    fn the_estimate_is_the_median_of_the_pairwise_means() {
        check(hodges_lehmann(&[1.0, 2.0, 9.0]), 3.5);
        check(hodges_lehmann(&[4.0]), 4.0);
        check(pairs(&[0.0, 2_f64.ln(), 2_f64.ln(), 4_f64.ln()]).ratio(), 2.0);
    }

    #[test]
    fn an_interval_holds_the_estimate_and_narrows_with_more_pairs() {
        let noisy = |count: u32| {
            let value = |at: u32| 0.05 + 0.1 * f64::from(at % 7) / 7.0 - 0.05;
            Pairs((0..count).map(value).collect())
        };
        let width = |count| {
            let pairs = noisy(count);
            let (low, high) = pairs.interval(0.95, 7);
            assert!(low <= pairs.ratio() && pairs.ratio() <= high);
            high - low
        };
        assert!(width(56) < width(14));
        assert_eq!(noisy(14).interval(0.95, 7), noisy(14).interval(0.95, 7));
    }

    #[test]
    fn holm_multiplies_the_least_most_and_keeps_their_order() {
        let adjusted = holm(&[0.04, 0.01, 0.03]);
        check(adjusted[1], 0.03);
        check(adjusted[2], 0.06);
        check(adjusted[0], 0.06);
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }

    #[test]
    fn noise_and_metrics_ask_for_pairs() {
        let sized = |size: f64, count: usize| {
            pairs(&(0..count).map(|at| if at % 2 == 0 { size } else { -size }).collect::<Vec<_>>())
        };
        assert_eq!(QUESTION.pairs_min(1.0), 6, "2 of 64 choices of signs");
        assert_eq!(QUESTION.pairs_min(0.05), 10);
        assert_eq!(QUESTION.pairs_needed(&sized(0.0, 9), 1.0), 6);
        // (1.965 + 1.283)^2 * 0.05^2 / ln(1.05)^2 / 0.864
        assert_eq!(QUESTION.pairs_needed(&sized(0.05, 500), 1.0), 13);
        assert_eq!(
            QUESTION.pairs_needed(&sized(0.05, 10), 1.0),
            16,
            "of few, none knows the noise"
        );
        assert!(QUESTION.pairs_needed(&sized(0.05, 10), 0.5) > 16);
        let four = Question { metrics: 4, ..QUESTION };
        assert_eq!(four.pairs_min(1.0), 8);
        assert!(four.pairs_needed(&sized(0.05, 10), 1.0) > 16);
        assert_eq!(four.pairs_needed(&sized(0.05, 3), 1.0), 8);
        assert_eq!(QUESTION.pairs_needed(&sized(f64::INFINITY, 9), 1.0), usize::MAX);
    }

    #[test]
    fn pairs_that_mirror_each_other_are_ties() {
        let mut pairs = Pairs::default();
        for at in 1..40 {
            let (a, b) = (f64::from(at) * 1.1 + 0.3, f64::from(at % 7) * 0.37 + 5.3);
            pairs.push(a, b);
            pairs.push(b, a);
            let [.., one, other] = pairs.0[..] else { unreachable!() };
            assert_eq!(one, -other, "{a} {b}");
        }
        assert_eq!(pairs.p_value(), 1.0);
        let mut pairs = Pairs::default();
        (0..6).for_each(|at| if at % 2 == 0 { pairs.push(0.3, 0.7) } else { pairs.push(0.7, 0.3) });
        assert_eq!(doubled_ranks(&pairs.0), [7; 6]);
    }
}
