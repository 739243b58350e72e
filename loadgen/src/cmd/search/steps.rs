//! Which rate a search tries next: pure, so that every course of it can be tested.
//!
//! In the words of RFC 9971 (Multiple Loss Ratio Search): a *trial* is one measurement at one load; a load
//! that keeps the goal is a *lower bound*, one that misses it an *upper bound*; the search ends when the
//! *relevant* ones, highest lower below lowest upper, are as close as the *goal width*. Then the lower bound
//! is confirmed by longer trials, of which the *exceed ratio* may miss.
//!
//! A load at which no trial was valid is neither bound: it is *set aside*. The search goes on below it, and
//! before its result rests on such a load, that load has one more chance, [`CHANCES_MAX`] of them in a
//! search: a machine that was disturbed for a while costs time, not load. What is still not judged then is
//! told beside the bounds, never as one of them.

use serde::{Deserialize, Serialize};

/// What a search is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cmd) struct Bounds {
    /// First load, in messages per second.
    pub(in crate::cmd) begin: f64,
    /// A load below this is none: the goal cannot be kept.
    pub(in crate::cmd) least: f64,
    /// Never above this.
    pub(in crate::cmd) max: f64,
    /// Relative distance of the bounds at which the search ends.
    pub(in crate::cmd) width: f64,
    /// Longer trials at the load that was found.
    pub(in crate::cmd) confirmations: usize,
    /// Share of them that may miss.
    pub(in crate::cmd) exceed_ratio: f64,
}

/// From one load to the next while no bound is known.
const STEP: f64 = 2.0;

/// Loads set aside that are tried again, in one search. Each chance that ends well may lead to a load that
/// needs the next one; a generator at its limit needs one.
const CHANCES_MAX: usize = 5;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cmd) enum Step {
    /// A trial at this load.
    Try(f64),
    /// A longer one.
    Confirm(f64),
    /// All is known that can be: [`Steps::found`].
    Done,
}

/// What a search ends with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cmd) struct Found {
    /// Highest load that keeps the goal; `None` if there is none.
    pub(in crate::cmd) lower: Option<f64>,
    /// Lowest load above it that misses; `None` if none was tried that could be judged.
    pub(in crate::cmd) upper: Option<f64>,
    /// Lowest load between the two at which no trial was valid, if the bounds are apart because of it.
    pub(in crate::cmd) unjudged: Option<f64>,
    /// Whether the lower bound stood all its longer trials.
    pub(in crate::cmd) confirmed: bool,
}

impl Found {
    /// Whether it says anything of the server.
    pub(in crate::cmd) fn is_known(&self) -> bool {
        self.lower.is_some() || self.upper.is_some()
    }

    /// Whether the server may carry more than the lower bound by far, for all that could be judged.
    pub(in crate::cmd) fn may_be_more(&self) -> bool {
        self.upper.is_none() || self.unjudged.is_some()
    }
}

/// A search that goes on.
#[derive(Clone, Debug)]
pub(in crate::cmd) struct Steps {
    bounds: Bounds,
    lower: Option<f64>,
    upper: Option<f64>,
    /// Loads that kept the goal in a trial: after a confirmation the lower bound may be a load that was
    /// never tried.
    kept: Vec<f64>,
    /// Loads at which no trial was valid.
    set_aside: Vec<SetAside>,
    /// Second chances that loads set aside have had.
    chances: usize,
    confirmed: usize,
    exceeded: usize,
    /// How often a longer trial could not be judged.
    unconfirmed: usize,
}

/// A load at which no trial was valid.
#[derive(Clone, Copy, Debug, PartialEq)]
struct SetAside {
    load: f64,
    /// Whether it had its second chance.
    again: bool,
}

impl Steps {
    pub(in crate::cmd) fn new(bounds: Bounds) -> Self {
        Steps {
            bounds,
            lower: None,
            upper: None,
            kept: Vec::new(),
            set_aside: Vec::new(),
            chances: 0,
            confirmed: 0,
            exceeded: 0,
            unconfirmed: 0,
        }
    }

    /// What to do now.
    pub(in crate::cmd) fn next(&self) -> Step {
        let Bounds { begin, least, max, width, confirmations, .. } = self.bounds;
        match (self.lower, self.limit()) {
            (None, None) => Step::Try(begin.min(max)),
            (None, Some(limit)) if limit > least * (1.0 + width) => {
                Step::Try((limit / STEP).max(least))
            }
            (Some(lower), None) if lower < max => Step::Try((lower * STEP).min(max)),
            (Some(lower), Some(limit)) if limit / lower > 1.0 + width => {
                Step::Try((lower * limit).sqrt())
            }
            (lower, _) => match (self.chance(), lower) {
                (Some(load), _) => Step::Try(load),
                (None, Some(lower)) if self.confirmed < confirmations && self.unconfirmed < 2 => {
                    Step::Confirm(lower)
                }
                (None, _) => Step::Done,
            },
        }
    }

    /// The lowest load that is too high: for the goal, or to be judged.
    fn limit(&self) -> Option<f64> {
        let loads = self.upper.into_iter().chain(self.unjudged());
        loads.min_by(f64::total_cmp)
    }

    /// The lowest load between the bounds at which no trial was valid.
    fn unjudged(&self) -> Option<f64> {
        let lower = self.lower.unwrap_or_default();
        let upper = self.upper.unwrap_or(f64::INFINITY);
        let loads = self.set_aside.iter().map(|it| it.load);
        loads.filter(|load| *load > lower && *load < upper).min_by(f64::total_cmp)
    }

    /// A load whose second chance is due: the result would rest on it.
    fn chance(&self) -> Option<f64> {
        let had_one = |load| self.set_aside.contains(&SetAside { load, again: true });
        self.unjudged().filter(|load| self.chances < CHANCES_MAX && !had_one(*load))
    }

    /// What is known by now.
    pub(in crate::cmd) fn found(&self) -> Found {
        let Bounds { width, confirmations, .. } = self.bounds;
        let confirmed = self.lower.is_some() && self.confirmed >= confirmations;
        let lower = self.lower.filter(|_| confirmed).or_else(|| {
            let below = |load: &f64| self.lower.is_some_and(|lower| *load <= lower);
            self.kept.iter().copied().filter(below).max_by(f64::total_cmp)
        });
        let is_apart = |upper: f64| lower.is_none_or(|lower| upper / lower > 1.0 + width);
        let unjudged = self.unjudged().filter(|_| self.upper.is_none_or(is_apart));
        Found { lower, upper: self.upper, unjudged, confirmed }
    }

    /// The trial at `load` kept the goal, or missed it.
    pub(in crate::cmd) fn tried(&mut self, load: f64, kept: bool) {
        if self.set_aside.iter().any(|it| it.load == load) {
            // The disturbance is over: what else was set aside is as good as never tried.
            self.chances += 1;
            self.set_aside.retain(|it| it.again && it.load != load);
        }
        if kept {
            self.kept.push(load);
            self.lower = Some(self.lower.map_or(load, |lower| lower.max(load)));
        } else {
            self.upper = Some(self.upper.map_or(load, |upper| upper.min(load)));
        }
    }

    /// A longer trial at the lower bound kept the goal, or missed it.
    pub(in crate::cmd) fn confirmed(&mut self, kept: bool) {
        let Bounds { width, confirmations, exceed_ratio, least, .. } = self.bounds;
        let load = self.lower.expect("a lower bound is confirmed");
        self.confirmed += 1;
        self.exceeded += usize::from(!kept);
        if kept {
            self.kept.push(load);
        }
        if self.exceeded as f64 <= exceed_ratio * confirmations as f64 {
            return;
        }
        // It was luck: the bound is an upper one, and the next lower one is a width below.
        (self.upper, self.confirmed, self.exceeded) = (Some(load), 0, 0);
        self.unconfirmed = 0;
        let next = load / (1.0 + width);
        self.lower = (next >= least).then_some(next);
    }

    /// No trial at `load` was valid.
    pub(in crate::cmd) fn cannot_judge(&mut self, load: f64) {
        match self.set_aside.iter_mut().find(|it| it.load == load) {
            Some(it) => {
                it.again = true;
                self.chances += 1;
            }
            None => self.set_aside.push(SetAside { load, again: false }),
        }
    }

    /// No longer trial at the lower bound was valid: what short ones said of it still holds.
    pub(in crate::cmd) fn cannot_confirm(&mut self) {
        self.unconfirmed += 1;
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

    /// Confirmed, with no bound.
    const NOTHING: Found = Found { lower: None, upper: None, unjudged: None, confirmed: true };

    /// Searches where loads up to `knee` keep the goal, and the generator is valid below `ceiling`.
    fn search(bounds: Bounds, knee: f64, ceiling: f64) -> (Found, usize) {
        let mut steps = Steps::new(bounds);
        for trials in 0..200 {
            match steps.next() {
                Step::Try(load) if load >= ceiling => steps.cannot_judge(load),
                Step::Confirm(load) if load >= ceiling => steps.cannot_confirm(),
                Step::Try(load) => steps.tried(load, load <= knee),
                Step::Confirm(load) => steps.confirmed(load <= knee),
                Step::Done => return (steps.found(), trials),
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
            assert!(!found.may_be_more(), "{knee}: {found:?}");
        }
    }

    #[test]
    fn what_never_keeps_the_goal_ends_at_the_floor() {
        assert_eq!(search(BOUNDS, 0.0, f64::INFINITY).0.lower, None);
    }

    #[test]
    fn a_knee_between_the_floor_and_twice_as_much_is_found() {
        let bounds = Bounds { begin: 3_000.0, least: 2_400.0, ..BOUNDS };
        let (found, _) = search(bounds, 2_900.0, f64::INFINITY);
        let lower = found.lower.unwrap();
        assert!(lower <= 2_900.0 && lower > 2_900.0 / 1.02, "{found:?}");
        assert_eq!(search(bounds, 2_300.0, f64::INFINITY).0.lower, None);
    }

    #[test]
    fn a_bound_from_outside_is_not_passed() {
        let bounds = Bounds { max: 5_000.0, ..BOUNDS };
        let (found, _) = search(bounds, 1e6, f64::INFINITY);
        assert_eq!(found, Found { lower: Some(5_000.0), ..NOTHING });
        let low = Bounds { max: 500.0, ..BOUNDS };
        assert_eq!(search(low, 1e6, f64::INFINITY).0.lower, Some(500.0));
    }

    #[test]
    fn where_the_generator_ends_there_is_no_upper_bound() {
        let (found, _) = search(BOUNDS, 1e6, 40_000.0);
        let lower = found.lower.unwrap();
        assert!(lower < 40_000.0 && lower > 40_000.0 / 1.03, "{found:?}");
        assert_eq!(found.upper, None);
        assert!(found.may_be_more());
        let unjudged = found.unjudged.unwrap();
        assert!((40_000.0..40_000.0 * 1.03).contains(&unjudged), "{found:?}");
        assert!(found.confirmed);
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
        let found = Found { lower: Some(1_000.0 / 1.02), upper: Some(1_000.0), ..NOTHING };
        assert_eq!((steps.next(), steps.found()), (Step::Done, found));
    }

    /// Searches where loads up to `knee` keep the goal; `is_valid` tells by the number of the try and its
    /// load whether that can be judged.
    fn disturbed(knee: f64, is_valid: impl Fn(usize, f64) -> bool) -> (Found, usize) {
        let mut steps = Steps::new(BOUNDS);
        for tries in 0..200 {
            match steps.next() {
                Step::Try(load) if !is_valid(tries, load) => steps.cannot_judge(load),
                Step::Confirm(load) if !is_valid(tries, load) => steps.cannot_confirm(),
                Step::Try(load) => steps.tried(load, load <= knee),
                Step::Confirm(load) => steps.confirmed(load <= knee),
                Step::Done => return (steps.found(), tries),
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn a_machine_disturbed_at_any_one_moment_costs_no_load() {
        for knee in [999.0, 54_321.0, 7e6] {
            for moment in 0..25 {
                let (found, tries) = disturbed(knee, |at, _| at != moment);
                let (lower, upper) = (found.lower.unwrap(), found.upper.unwrap());
                assert!(
                    lower <= knee && knee < upper && upper / lower <= 1.02 && found.confirmed,
                    "{knee}, {moment}: {found:?}"
                );
                assert_eq!(found.unjudged, None, "{knee}, {moment}");
                assert!(tries <= 40, "{knee}, {moment}: {tries} tries");
            }
        }
    }

    #[test]
    fn a_load_that_can_never_be_judged_is_told_beside_the_bounds() {
        let (found, _) = disturbed(54_321.0, |_, load| load != 32_000.0);
        let lower = found.lower.unwrap();
        assert!((32_000.0 / 1.03..32_000.0).contains(&lower), "{found:?}");
        let expected =
            Found { lower: Some(lower), upper: None, unjudged: Some(32_000.0), confirmed: true };
        assert_eq!(found, expected, "the goals were missed nowhere");
    }

    #[test]
    fn a_search_that_is_always_disturbed_ends_and_knows_nothing() {
        let (found, tries) = disturbed(54_321.0, |_, _| false);
        assert_eq!((found.lower, found.upper, found.confirmed), (None, None, false));
        assert!(found.unjudged.is_some());
        assert!(tries <= 11 + CHANCES_MAX, "{tries}");
        // In the beginning only: all of the load is found.
        let (found, _) = disturbed(54_321.0, |at, _| at > 9);
        assert!(found.lower.unwrap() > 54_321.0 / 1.02 && found.unjudged.is_none(), "{found:?}");
        // Every second try: still bounded, and what is told was seen.
        for knee in [999.0, 54_321.0, 7e6] {
            let (found, tries) = disturbed(knee, |at, _| at % 2 == 0);
            assert!(found.lower.is_none_or(|lower| lower <= knee), "{knee}: {found:?}");
            assert!(found.upper.is_none_or(|upper| upper > knee), "{knee}: {found:?}");
            assert!(tries <= 60, "{knee}: {tries}");
        }
    }

    #[test]
    fn a_bound_that_cannot_be_confirmed_stays_what_short_trials_saw() {
        let mut steps = Steps::new(Bounds { max: 1_000.0, ..BOUNDS });
        steps.tried(1_000.0, true);
        steps.cannot_confirm();
        assert_eq!(steps.next(), Step::Confirm(1_000.0), "a second chance");
        steps.cannot_confirm();
        let found = Found { lower: Some(1_000.0), confirmed: false, ..NOTHING };
        assert_eq!((steps.next(), steps.found()), (Step::Done, found));
    }

    #[test]
    fn a_bound_stepped_down_to_and_never_judged_is_not_told() {
        let mut steps = Steps::new(Bounds { max: 1_000.0, ..BOUNDS });
        steps.tried(500.0, true);
        steps.tried(1_000.0, true);
        (0..2).for_each(|_| steps.confirmed(false));
        assert_eq!(steps.next(), Step::Confirm(1_000.0 / 1.02));
        (0..2).for_each(|_| steps.cannot_confirm());
        let found = Found { lower: Some(500.0), upper: Some(1_000.0), confirmed: false, ..NOTHING };
        assert_eq!((steps.next(), steps.found()), (Step::Done, found));
    }
}
