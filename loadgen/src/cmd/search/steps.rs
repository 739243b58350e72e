//! Which rate a search tries next: pure, so that every course of it can be tested.
//!
//! In the words of RFC 9971 (Multiple Loss Ratio Search): a *trial* is one measurement at one load; a load
//! that keeps the goal is a *lower bound*, one that misses it an *upper bound*; the search ends when the
//! *relevant* ones, highest lower below lowest upper, are as close as the *goal width*. Then the lower bound
//! is confirmed by longer trials, of which the *exceed ratio* may miss.

use serde::{Deserialize, Serialize};

/// What a search is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    /// First load, in messages per second.
    pub(super) begin: f64,
    /// A load below this is none: the goal cannot be kept.
    pub(super) least: f64,
    /// Never above this.
    pub(super) max: f64,
    /// Relative distance of the bounds at which the search ends.
    pub(super) width: f64,
    /// Longer trials at the load that was found.
    pub(super) confirmations: usize,
    /// Share of them that may miss.
    pub(super) exceed_ratio: f64,
}

/// From one load to the next while no bound is known.
const STEP: f64 = 2.0;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// A trial at this load.
    Try(f64),
    /// A longer one.
    Confirm(f64),
    /// All is known.
    Done(Found),
}

/// What a search ends with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cmd) struct Found {
    /// Highest load that keeps the goal, confirmed; `None` if there is none.
    pub(in crate::cmd) lower: Option<f64>,
    /// Lowest load above it that misses; `None` if none was tried that could be judged.
    pub(in crate::cmd) upper: Option<f64>,
}

/// A search that goes on.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    bounds: Bounds,
    lower: Option<f64>,
    upper: Option<f64>,
    /// Loads from here up cannot be judged: the generator is not valid there.
    ceiling: f64,
    confirmed: usize,
    exceeded: usize,
}

impl Steps {
    pub(super) fn new(bounds: Bounds) -> Self {
        let ceiling = f64::INFINITY;
        Steps { bounds, lower: None, upper: None, ceiling, confirmed: 0, exceeded: 0 }
    }

    /// What to do now.
    pub(super) fn next(&self) -> Step {
        let Bounds { begin, least, max, width, confirmations, .. } = self.bounds;
        match (self.lower, self.limit()) {
            (None, None) => Step::Try(begin.min(max)),
            (None, Some(limit)) if limit / STEP < least => self.done(),
            (None, Some(limit)) => Step::Try(limit / STEP),
            (Some(lower), None) if lower < max => Step::Try((lower * STEP).min(max)),
            (Some(lower), Some(limit)) if limit / lower > 1.0 + width => {
                Step::Try((lower * limit).sqrt())
            }
            (Some(lower), _) if self.confirmed < confirmations => Step::Confirm(lower),
            (Some(_), _) => self.done(),
        }
    }

    /// The lowest load that is too high: for the goal, or for the generator.
    fn limit(&self) -> Option<f64> {
        let limit = self.upper.unwrap_or(f64::INFINITY).min(self.ceiling);
        limit.is_finite().then_some(limit)
    }

    fn done(&self) -> Step {
        Step::Done(Found { lower: self.lower, upper: self.upper })
    }

    /// The trial at `load` kept the goal, or missed it.
    pub(super) fn tried(&mut self, load: f64, kept: bool) {
        if kept {
            self.lower = Some(self.lower.map_or(load, |lower| lower.max(load)));
        } else {
            self.upper = Some(self.upper.map_or(load, |upper| upper.min(load)));
        }
    }

    /// A longer trial at the lower bound kept the goal, or missed it.
    pub(super) fn confirmed(&mut self, kept: bool) {
        let Bounds { width, confirmations, exceed_ratio, least, .. } = self.bounds;
        self.confirmed += 1;
        self.exceeded += usize::from(!kept);
        if self.exceeded as f64 <= exceed_ratio * confirmations as f64 {
            return;
        }
        // It was luck: the bound is an upper one, and the next lower one is a width below.
        let load = self.lower.expect("a lower bound is confirmed");
        (self.upper, self.confirmed, self.exceeded) = (Some(load), 0, 0);
        let next = load / (1.0 + width);
        self.lower = (next >= least).then_some(next);
    }

    /// No trial at `load` was valid: nothing from there up can be judged.
    pub(super) fn cannot_judge(&mut self, load: f64) {
        self.ceiling = self.ceiling.min(load);
        if self.lower.is_some_and(|lower| lower >= load) {
            self.lower = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        begin: 1_000.0,
        least: 1.0,
        max: 1e9,
        width: 0.02,
        confirmations: 3,
        exceed_ratio: 0.5,
    };

    /// Searches where loads up to `knee` keep the goal, and the generator is valid below `ceiling`.
    fn search(bounds: Bounds, knee: f64, ceiling: f64) -> (Found, usize) {
        let mut steps = Steps::new(bounds);
        for trials in 0..200 {
            match steps.next() {
                Step::Try(load) | Step::Confirm(load) if load >= ceiling => {
                    steps.cannot_judge(load)
                }
                Step::Try(load) => steps.tried(load, load <= knee),
                Step::Confirm(load) => steps.confirmed(load <= knee),
                Step::Done(found) => return (found, trials),
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn the_knee_is_found_within_the_width_in_few_trials() {
        for knee in [3.0, 999.0, 1_000.0, 54_321.0, 7e6] {
            let (found, trials) = search(BOUNDS, knee, f64::INFINITY);
            let (lower, upper) = (found.lower.unwrap(), found.upper.unwrap());
            assert!(lower <= knee && knee < upper && upper / lower <= 1.02, "{knee}: {found:?}");
            assert!(trials <= 13 + 7 + 3, "{knee}: {trials} trials");
        }
    }

    #[test]
    fn what_never_keeps_the_goal_ends_at_the_floor() {
        assert_eq!(search(BOUNDS, 0.0, f64::INFINITY).0.lower, None);
    }

    #[test]
    fn a_bound_from_outside_is_not_passed() {
        let bounds = Bounds { max: 5_000.0, ..BOUNDS };
        let (found, _) = search(bounds, 1e6, f64::INFINITY);
        assert_eq!(found, Found { lower: Some(5_000.0), upper: None });
        let low = Bounds { max: 500.0, ..BOUNDS };
        assert_eq!(search(low, 1e6, f64::INFINITY).0.lower, Some(500.0));
    }

    #[test]
    fn where_the_generator_ends_there_is_no_upper_bound() {
        let (found, _) = search(BOUNDS, 1e6, 40_000.0);
        let lower = found.lower.unwrap();
        assert!(lower < 40_000.0 && lower > 40_000.0 / 1.03, "{found:?}");
        assert_eq!(found.upper, None);
    }

    #[test]
    fn a_bound_that_was_luck_is_stepped_down_from() {
        let mut steps = Steps::new(Bounds { max: 1_000.0, ..BOUNDS });
        steps.tried(1_000.0, true);
        assert_eq!(steps.next(), Step::Confirm(1_000.0));
        steps.confirmed(false);
        assert_eq!(steps.next(), Step::Confirm(1_000.0), "one of three may miss");
        steps.confirmed(false);
        assert_eq!(steps.next(), Step::Confirm(1_000.0 / 1.02));
        (0..3).for_each(|_| steps.confirmed(true));
        let found = Found { lower: Some(1_000.0 / 1.02), upper: Some(1_000.0) };
        assert_eq!(steps.next(), Step::Done(found));
    }
}
