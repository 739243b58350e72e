//! When each metric's pairs are looked at, and when that is enough.
//!
//! In: pairs of runs, one after the other. Out: which metrics are decided, and how many pairs each asks for. A
//! metric has its last look when it has the pairs that its own noise asks for; early looks, at numbers
//! of pairs that are fixed beforehand, find what is plain. No metric waits for a noisier one.
//!
//! Looks that end a comparison would make false findings likelier if each were held to the whole error. So
//! each spends a share of it (Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983): a
//! p-value is divided by its look's share, and the least of a metric's quotients is its own p-value. The
//! shares add up to one, so that is one (Bonferroni): exact for few pairs, whatever the noise. Holm's
//! procedure over these is as valid after any pair as at the end, because they never rise (Maurer and
//! Bretz, "Multiple testing in group sequential trials using graphical approaches", 2013): what was found
//! stays found.
//!
//! When the last look comes depends on how large the log ratios are, never on their signs, which are all
//! that the signed-rank test judges: if A and B are alike, its p-value is as exact as with a number of
//! pairs that was fixed (Gould and Shih, "Sample size re-estimation without unblinding", 1992).

use super::pairs::{Finding, Look, Pairs, Question, holm};

/// Early looks: at as many pairs as can find anything, then at twice as many each time.
const EARLY_LOOKS: u32 = 4;

/// What each of them spends. Little, so that the last look needs hardly more pairs for it.
const EARLY_SHARE: f64 = 0.05;

/// What the last look spends at least: what is left.
const LAST_SHARE: f64 = 1.0 - EARLY_LOOKS as f64 * EARLY_SHARE;

/// Pairs of all metrics of a comparison, and what was looked at of them.
#[derive(Clone, Debug)]
pub struct Looks {
    question: Question,
    /// Pairs so far.
    count: usize,
    metrics: Vec<Looked>,
}

/// One metric's.
#[derive(Clone, Debug)]
struct Looked {
    pairs: Pairs,
    /// Whether a pair had no two values of it: those that have would be a choice.
    is_withdrawn: bool,
    /// Least p-value of its looks, each divided by its share.
    p_value: f64,
    /// The look that p-value is of; once a difference is found, the one that found it, whatever later looks say.
    look: Option<Look>,
    /// Share of the error that no look has spent.
    left: f64,
    /// Whether it had all the pairs that it asked for, and its last look.
    is_over: bool,
    /// Whether its p-value was below the error, held together with all others. It stays so.
    is_found: bool,
    /// Pairs when it was found, or over.
    decided_at: Option<usize>,
}

impl Looks {
    /// Before the first pair. The question says how many metrics there are.
    pub fn new(question: Question) -> Self {
        let pairs = Pairs::default();
        let fresh = Looked {
            pairs,
            is_withdrawn: false,
            p_value: 1.0,
            look: None,
            left: 1.0,
            is_over: false,
            is_found: false,
            decided_at: None,
        };
        Looks { question, count: 0, metrics: vec![fresh; question.metrics] }
    }

    /// Adds a pair of each metric, A's value and B's, and looks at those whose time it is. All values must be
    /// above 0. A metric that cannot be compared in this pair is withdrawn: nothing is said of it any more, and
    /// nothing waits for it. (To go on without the pair would leave out just those that tell most.)
    pub fn push(&mut self, values: &[Option<(f64, f64)>]) {
        debug_assert_eq!(values.len(), self.metrics.len(), "a pair of each metric");
        self.count += 1;
        for (metric, values) in self.metrics.iter_mut().zip(values) {
            match values {
                Some((of_a, of_b)) if !metric.is_withdrawn => {
                    metric.pairs.push(*of_a, *of_b);
                    metric.look(&self.question);
                }
                _ => metric.withdraw(),
            }
        }
        let p_values = self.p_values();
        for (metric, p_value) in self.metrics.iter_mut().zip(p_values) {
            if metric.is_withdrawn {
                continue;
            }
            metric.is_found |= p_value <= self.question.error_max;
            if metric.is_over || metric.is_found {
                metric.decided_at.get_or_insert(metric.pairs.len());
            }
        }
    }

    /// Looks once more at what is not decided: there will be no more pairs.
    pub fn close(&mut self) {
        let open = self.metrics.iter_mut().filter(|it| it.is_open());
        open.filter(|it| !it.pairs.is_empty()).for_each(|metric| metric.spend(metric.left));
    }

    /// Pairs so far.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no pair yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every metric is decided or withdrawn.
    pub fn is_decided(&self) -> bool {
        !self.metrics.iter().any(Looked::is_open)
    }

    /// By metric: pairs that it asks for, as large as its log ratios are so far; `None` if it is decided or
    /// withdrawn.
    pub fn needed(&self) -> impl Iterator<Item = Option<usize>> {
        let needed = |metric: &Looked| self.question.pairs_needed(&metric.pairs, LAST_SHARE);
        self.metrics.iter().map(move |it| it.is_open().then(|| needed(it)))
    }

    /// By metric: the difference that its pairs would have shown, as a share; `None` if they are too few for any.
    pub fn shown(&self) -> impl Iterator<Item = Option<f64>> {
        self.metrics.iter().map(|it| self.question.difference_shown(&it.pairs, LAST_SHARE))
    }

    /// By metric: B by A in the last pair; `None` if it is withdrawn.
    pub fn last(&self) -> impl Iterator<Item = Option<f64>> {
        let last = |metric: &Looked| metric.pairs.last().filter(|_| !metric.is_withdrawn);
        self.metrics.iter().map(last)
    }

    /// What each metric's pairs say, all held to the question's error together; `None` if it is withdrawn. There
    /// must be a pair. `seed`: of the intervals.
    pub fn findings(&self, seed: u64) -> Vec<Option<Finding>> {
        let finding = |(metric, p_value): (&Looked, f64)| Finding {
            ratio: metric.pairs.ratio(),
            interval: metric.pairs.interval(0.95, seed),
            p_value,
            differs: p_value <= self.question.error_max,
            look: metric.look,
            decided_at: metric.decided_at,
        };
        let both = self.metrics.iter().zip(self.p_values());
        both.map(|it| (!it.0.is_withdrawn).then(|| finding(it))).collect()
    }

    /// By metric: whether B has more than A, as the look says that found it, of those that differ; `None` of all others.
    pub fn differing(&self) -> impl Iterator<Item = Option<bool>> {
        let error_max = self.question.error_max;
        self.metrics.iter().zip(self.p_values()).map(move |(metric, p_value)| {
            let differs = !metric.is_withdrawn && p_value <= error_max;
            differs.then(|| metric.look.map_or(metric.pairs.ratio() > 1.0, |look| look.is_more))
        })
    }

    fn p_values(&self) -> Vec<f64> {
        holm(&self.metrics.iter().map(|metric| metric.p_value).collect::<Vec<_>>())
    }
}

impl Looked {
    fn is_open(&self) -> bool {
        self.decided_at.is_none() && !self.is_withdrawn
    }

    /// Nothing is said of it any more. What others were found by, because it was, stays.
    fn withdraw(&mut self) {
        self.is_withdrawn = true;
        if !self.is_found {
            self.p_value = 1.0;
        }
        self.decided_at = None;
    }

    fn look(&mut self, question: &Question) {
        if self.is_over {
            return;
        }
        let pairs = self.pairs.len();
        let first = question.pairs_min(EARLY_SHARE);
        if pairs >= question.pairs_needed(&self.pairs, LAST_SHARE) {
            self.is_over = true;
            self.spend(self.left);
        } else if (0..EARLY_LOOKS).any(|look| pairs == first << look) {
            self.spend(EARLY_SHARE);
        }
    }

    fn spend(&mut self, share: f64) {
        self.left -= share;
        let p_value = self.pairs.p_value() / share;
        if p_value < self.p_value {
            self.p_value = p_value;
            if !self.is_found {
                let is_more = self.pairs.ratio() > 1.0;
                self.look = Some(Look { pairs: self.pairs.len(), is_more });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    use super::*;

    const QUESTION: Question =
        Question { difference: 0.05, error_max: 0.05, power: 0.9, metrics: 1 };

    /// Compares made up for a test of rates; more tell more and take longer.
    const COMPARES: u64 = 400;

    /// Noise of one kind of machine: the spread of each metric's log ratios, which share a part of it.
    struct Noise {
        spreads: &'static [f64],
        /// One pair of ten is off by so many times as much.
        outlying: f64,
    }

    const QUIET: Noise = Noise { spreads: &[0.04], outlying: 1.0 };
    const LOUD: Noise = Noise { spreads: &[0.12], outlying: 1.0 };
    const WILD: Noise = Noise { spreads: &[0.04; 4], outlying: 4.0 };
    const MIXED: Noise = Noise { spreads: &[0.03, 0.02, 0.04, 0.15], outlying: 1.0 };
    /// A core that is shared: its speed changes between the runs of some pairs.
    const SHARED: Noise = Noise { spreads: &[0.04], outlying: 12.0 };
    const ALL: [(&str, Noise); 5] =
        [("quiet", QUIET), ("loud", LOUD), ("wild", WILD), ("mixed", MIXED), ("shared", SHARED)];

    /// A compare of at most `max` pairs that differ by `shift` in every metric.
    fn compare(noise: &Noise, shift: f64, max: usize, seed: u64) -> Looks {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let mut uniform = move || (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut normal = move || {
            let size = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (size * (std::f64::consts::TAU * uniform()).cos(), uniform() < 0.1)
        };
        let mut looks = Looks::new(Question { metrics: noise.spreads.len(), ..QUESTION });
        while !looks.is_decided() && looks.len() < max {
            let (common, _) = normal();
            let mut pair = |spread: &f64| {
                let (own, is_off) = normal();
                let times = if is_off { noise.outlying } else { 1.0 };
                Some((1.0, (shift + times * spread * (0.6 * common + 0.8 * own)).exp()))
            };
            looks.push(&noise.spreads.iter().map(&mut pair).collect::<Vec<_>>());
        }
        looks.close();
        looks
    }

    fn differs(looks: &Looks) -> Vec<bool> {
        looks.p_values().into_iter().map(|it| it <= looks.question.error_max).collect()
    }

    /// How often `is_so` holds, of [`COMPARES`].
    fn share(is_so: impl Fn(u64) -> bool) -> f64 {
        (0..COMPARES).filter(|seed| is_so(*seed)).count() as f64 / COMPARES as f64
    }

    /// Three standard errors of a share that is really this.
    fn three_errors(share: f64) -> f64 {
        3.0 * (share * (1.0 - share) / COMPARES as f64).sqrt()
    }

    #[test]
    fn what_is_alike_is_told_apart_no_oftener_than_was_allowed() {
        for (name, noise) in ALL {
            for max in [200, 25] {
                let wrong = share(|seed| differs(&compare(&noise, 0.0, max, seed)).contains(&true));
                let allowed = QUESTION.error_max;
                assert!(wrong <= allowed + three_errors(allowed), "{name}, {max}: {wrong}");
            }
        }
    }

    #[test]
    fn the_difference_asked_for_is_found_in_the_pairs_asked_for_as_often_as_promised() {
        for (name, noise) in ALL {
            let found = share(|seed| {
                let looks = compare(&noise, 0.05_f64.ln_1p(), 1_000, seed);
                assert!(looks.is_decided(), "{name}, {seed}");
                differs(&looks)[0]
            });
            let promised = QUESTION.power;
            assert!(found >= promised - three_errors(promised), "{name}: {found}");
        }
    }

    #[test]
    fn five_percent_in_noise_of_four_take_few_pairs() {
        assert!(pairs_taken(&QUIET) < 20.0, "{}", pairs_taken(&QUIET));
    }

    #[test]
    fn pairs_that_are_far_off_now_and_then_take_few_more() {
        // Their size alone would ask for a hundred.
        assert!(pairs_taken(&SHARED) < 30.0, "{}", pairs_taken(&SHARED));
    }

    /// In the mean, to find 5 %.
    fn pairs_taken(noise: &Noise) -> f64 {
        let taken = (0..COMPARES).map(|seed| compare(noise, 0.05_f64.ln_1p(), 1_000, seed).len());
        taken.sum::<usize>() as f64 / COMPARES as f64
    }

    /// Pairs whose log ratios are `shift` plus and minus `noise`, of which each is 0.6 to 1.4 times as much.
    fn push(looks: &mut Looks, pairs: usize, metrics: &[(f64, f64)]) {
        for _ in 0..pairs {
            let sign = if looks.len().is_multiple_of(2) { 1.0 } else { -1.0 };
            let golden = (looks.len() as f64 * 0.618_033_988_75).fract();
            let size = sign * (0.6 + 0.8 * golden);
            let pair = |(shift, noise): &(f64, f64)| Some((1.0, (shift + size * noise).exp()));
            looks.push(&metrics.iter().map(pair).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_metric_is_decided_by_its_own_noise() {
        let mut looks = Looks::new(Question { metrics: 2, ..QUESTION });
        push(&mut looks, 20, &[(0.0, 0.03), (0.0, 0.5)]);
        let needed: Vec<_> = looks.needed().collect();
        let [None, Some(loud)] = needed[..] else { panic!("{needed:?}") };
        assert!(loud > 200, "{loud}");
        assert!(!looks.is_decided());
        let findings: Vec<_> = looks.findings(1).into_iter().flatten().collect();
        assert!(findings[0].decided_at.is_some_and(|pairs| pairs < 20), "{findings:?}");
        assert_eq!(findings[1].decided_at, None);
        assert!(!findings[0].differs && !findings[1].differs);
    }

    #[test]
    fn what_is_plain_is_found_early_however_loud() {
        let mut looks = Looks::new(QUESTION);
        push(&mut looks, 9, &[(7.0, 2.0)]);
        assert!(looks.needed().next().unwrap().unwrap() > 1_000);
        assert!(!looks.is_decided());
        push(&mut looks, 1, &[(7.0, 2.0)]);
        let finding = looks.findings(1)[0].unwrap();
        assert_eq!((finding.differs, finding.decided_at), (true, Some(10)), "{finding:?}");
    }

    #[test]
    fn what_was_found_stays_found_and_a_look_more_costs_nothing_already_known() {
        let mut looks = Looks::new(Question { metrics: 2, ..QUESTION });
        push(&mut looks, 11, &[(0.7, 0.2), (0.0, 0.2)]);
        assert!(differs(&looks)[0]);
        push(&mut looks, 30, &[(-0.7, 0.2), (0.0, 0.2)]);
        assert!(differs(&looks)[0]);
        looks.close();
        assert_eq!(differs(&looks), [true, false]);
    }

    #[test]
    fn a_metric_that_once_could_not_be_compared_is_withdrawn_and_waited_for_by_nobody() {
        let mut looks = Looks::new(Question { metrics: 2, ..QUESTION });
        push(&mut looks, 12, &[(0.7, 0.2), (0.0, 0.01)]);
        assert!(differs(&looks)[0]);
        looks.push(&[None, Some((1.0, 1.0))]);
        push(&mut looks, 3, &[(0.7, 0.2), (0.0, 0.01)]);
        assert_eq!((looks.len(), looks.is_decided()), (16, true));
        assert!(!differs(&looks)[1]);
        assert_eq!(looks.needed().collect::<Vec<_>>(), [None, None]);
        assert!(looks.last().next().unwrap().is_none());
        looks.close();
        let findings = looks.findings(1);
        assert!(findings[0].is_none() && findings[1].is_some(), "{findings:?}");
    }

    #[test]
    fn what_was_found_stays_found_when_another_metric_is_withdrawn() {
        let mut looks = Looks::new(Question { metrics: 3, ..QUESTION });
        // Plain, found only because the first one was, and open.
        let metrics = [(7.0, 0.2), (0.0, 0.5), (0.0, 0.5)];
        push(&mut looks, 20, &metrics);
        looks.metrics[1].p_value = 0.02;
        push(&mut looks, 1, &metrics);
        assert_eq!(differs(&looks), [true, true, false]);
        let alone = looks.metrics[1].p_value * 3.0;
        assert!(alone > QUESTION.error_max, "{alone}: it needs no other");
        looks.push(&[None, Some((1.0, 1.0)), Some((1.0, 1.0))]);
        let findings = looks.findings(1);
        assert!(findings[0].is_none());
        assert!(findings[1].unwrap().differs, "{findings:?}");
        // One that was not found is nobody's help.
        looks.push(&[None, Some((1.0, 1.0)), None]);
        assert_eq!(looks.metrics[2].p_value, 1.0);
    }

    #[test]
    fn at_the_bound_all_that_no_look_has_spent_is_spent() {
        let mut looks = Looks::new(QUESTION);
        push(&mut looks, 8, &[(0.3, 0.2)]);
        assert_eq!(differs(&looks), [false], "no look yet");
        looks.close();
        assert_eq!(differs(&looks), [true], "eight of eight");
        assert!(!looks.is_decided());
        Looks::new(QUESTION).close();
    }

    #[test]
    fn the_shares_of_all_looks_add_up_to_one() {
        let mut looks = Looks::new(QUESTION);
        let mut before = 1.0;
        let mut spent = Vec::new();
        for _ in 0..100 {
            push(&mut looks, 1, &[(0.0, 0.5)]);
            let left = looks.metrics[0].left;
            if left < before {
                spent.push(looks.len());
            }
            before = left;
        }
        assert_eq!(spent, [10, 20, 40, 80]);
        assert!((before - LAST_SHARE).abs() < 1e-9);
        looks.close();
        assert!(looks.metrics[0].left.abs() < 1e-9);
    }
}
