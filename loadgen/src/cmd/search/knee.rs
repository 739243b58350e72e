//! A search that goes on: trials against a server until its knee is known.

use std::pin::pin;

use clap::Args;

use super::steps::{Bounds, Found, Step, Steps};
use crate::cmd::interrupt::prepared;
use crate::cmd::records::Records;
use crate::cmd::servers::Supply;
use crate::cmd::trial::{Places, Preheat, Trial, Tried, disturbance, is_overload};
use crate::harness::calm::Calm;
use crate::record::{Gate, GateName, HEADROOM_MIN, RunRecord, samples_min};
use crate::scenario::LoadArgs;
use crate::slo::Slo;
use crate::units::{MessagesPerSecond, Nanos};

/// Trials of one search at most; bisection needs far fewer.
pub(super) const TRIALS_MAX: usize = 100;

/// Trials in a row at a rate, until one is valid; one alone where loadgen lacks headroom. A rate without is set aside, as `steps` tells.
const INVALID_MAX: usize = 3;

/// Trials in a row from the first, at rates that leave loadgen its headroom, none of which could be judged: three rates. It is the
/// machine then that is no fair judge, and lower rates, or ones between, only cost its user more time.
const HOPELESS_TRIALS: usize = 3 * INVALID_MAX;

/// Messages that a trial has to hold, or it tells nothing; more if its goals ask for more.
const MESSAGES_MIN: f64 = 100.0;

/// So many times as many as its goals ask for are planned: Poisson arrivals may be fewer than their mean.
const MESSAGES_MARGIN: f64 = 1.2;

/// The first load, as a share of what a closed loop reaches.
const BEGIN_SHARE: f64 = 0.1;

/// The same, as a share of the most that leaves loadgen its headroom: above that no trial is valid.
const BEGIN_SHARE_OF_JUDGED: f64 = 0.5;

/// How a search goes about it.
#[derive(Clone, Debug, Args)]
pub(in crate::cmd) struct HowArgs {
    /// First load [default: a tenth of what a closed loop reaches, or less where loadgen could not judge that]
    #[arg(long, value_name = "RATE")]
    pub(in crate::cmd) min_rate: Option<MessagesPerSecond>,

    /// Highest load to try
    #[arg(long, value_name = "RATE", default_value = "1000M")]
    pub(in crate::cmd) max_rate: MessagesPerSecond,

    /// Distance of the two rates at which the search ends, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    pub(in crate::cmd) width: f64,

    /// Closed loop against the fresh server of each trial first, never recorded: for servers that compile while they run
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub(in crate::cmd) preheat: Nanos,

    /// Load before each trial, never recorded
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(in crate::cmd) warmup: Nanos,

    /// Length of a trial
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(in crate::cmd) duration: Nanos,

    /// Pause before each trial
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub(in crate::cmd) cool_down: Nanos,

    /// Longer trials at the rate that was found
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(in crate::cmd) confirmations: usize,

    /// Length of those
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(in crate::cmd) confirmation_duration: Nanos,

    /// Share of those that may miss, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50.0)]
    pub(in crate::cmd) exceed_ratio: f64,
}

/// What is searched for, where.
pub(in crate::cmd) struct Ask {
    /// The server's name.
    pub(in crate::cmd) name: String,
    pub(in crate::cmd) supply: Supply,
    pub(in crate::cmd) slo: Slo,
    pub(in crate::cmd) load: LoadArgs,
    pub(in crate::cmd) how: HowArgs,
    pub(in crate::cmd) server_cpus: Vec<usize>,
    pub(in crate::cmd) loadgen_cpus: Vec<usize>,
    /// Which somebody keeps awake meanwhile.
    pub(in crate::cmd) awake_cpus: Vec<usize>,
    /// How long trials wait for others to leave the cores.
    pub(in crate::cmd) calm: Calm,
    pub(in crate::cmd) records: Records,
}

impl Ask {
    fn places(&self) -> Places<'_> {
        let Ask { server_cpus, loadgen_cpus, awake_cpus, calm, .. } = self;
        Places { server_cpus, loadgen_cpus, shards: None, awake_cpus, calm }
    }
}

/// Why a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cmd) enum Ended {
    /// All is known that can be.
    Known,
    /// There were [`TRIALS_MAX`] trials.
    OutOfTrials,
    /// None could be judged, and there were [`HOPELESS_TRIALS`] that loadgen had headroom for.
    Hopeless,
    /// Somebody asked for it.
    Interrupted,
    /// A trial failed, and not for its load: why.
    Failed(String),
}

/// What a search found, and by which trials.
#[derive(Debug)]
pub(in crate::cmd) struct Searched {
    pub(in crate::cmd) found: Found,
    pub(super) trials: Vec<Row>,
    pub(super) ended: Ended,
}

impl Searched {
    /// What was found by a search that no failure ended. Err: the failure.
    pub(in crate::cmd) fn without_failure(self) -> anyhow::Result<Found> {
        match self.ended {
            Ended::Failed(why) => Err(anyhow::anyhow!(why)),
            _ => Ok(self.found),
        }
    }

    /// Why the last of those trials that were not valid was not.
    pub(super) fn why_invalid(&self, is_meant: impl Fn(&Row) -> bool) -> &str {
        let trials = self.trials.iter().rev().filter(|row| is_meant(row));
        let mut whys = trials.filter_map(|row| match &row.judged {
            Judged::Invalid(why) => Some(why.as_str()),
            _ => None,
        });
        whys.next().unwrap_or("it was not tried")
    }
}

/// Searches until all is known, a trial fails or `stop` is ready; then what is known by then is given. Err: it
/// did not come to a first trial.
pub(in crate::cmd) async fn find(
    ask: &Ask,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Searched> {
    let Ask { load, how, .. } = ask;
    let open = load.at(how.max_rate);
    let mut stop = pin!(stop);
    let null_throughput = prepared(ask.places().null_throughput(&open), &mut stop).await?;
    tell!("search: against a null echo loadgen carries {null_throughput}");
    let mut searching = Searching { ask, null_throughput, trials: Vec::new() };
    let least = MESSAGES_MIN / how.duration.as_secs_f64();
    let least = least.max(MESSAGES_MARGIN * needed_rate(&ask.slo, how.duration));
    let begin = match how.min_rate {
        Some(rate) => rate.0,
        None => {
            let closed = prepared(searching.closed_loop(), &mut stop).await?;
            first_rate(closed, searching.judged_rate_max(), least)
        }
    };
    let bounds = Bounds {
        begin,
        least: begin.min(least),
        max: how.max_rate.0,
        width: how.width / 100.0,
        confirmations: how.confirmations,
        exceed_ratio: how.exceed_ratio / 100.0,
    };
    let mut steps = Steps::new(bounds);
    let ended = tokio::select! {
        ended = searching.steps(&mut steps) => {
            ended.unwrap_or_else(|error| Ended::Failed(format!("{error:#}")))
        }
        () = stop => Ended::Interrupted,
    };
    Ok(Searched { found: steps.found(), trials: searching.trials, ended })
}

/// Below this rate a trial of this length has too few messages to tell whether its goals were kept; 0 if they ask for no
/// percentile.
pub(super) fn needed_rate(slo: &Slo, duration: Nanos) -> f64 {
    slo.percentiles().map(samples_min).fold(0.0, f64::max) / duration.as_secs_f64()
}

/// How a trial ended.
#[derive(Debug)]
pub(super) enum Judged {
    Kept,
    /// Why the goals were missed.
    Missed(String),
    /// Why the trial says nothing.
    Invalid(String),
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) rate: f64,
    pub(super) longer: bool,
    pub(super) judged: Judged,
    /// Echoes per second.
    pub(super) achieved: MessagesPerSecond,
    /// Of R, and whether it is beyond that: among messages without an echo.
    pub(super) p50: (Nanos, bool),
    /// The same.
    pub(super) p99: (Nanos, bool),
}

/// A search that goes on.
struct Searching<'a> {
    ask: &'a Ask,
    null_throughput: MessagesPerSecond,
    trials: Vec<Row>,
}

impl Searching<'_> {
    async fn steps(&mut self, steps: &mut Steps) -> anyhow::Result<Ended> {
        while self.trials.len() < TRIALS_MAX {
            if is_hopeless(&self.trials, self.judged_rate_max()) {
                return Ok(Ended::Hopeless);
            }
            let (rate, longer) = match steps.next() {
                Step::Try(rate) => (rate, false),
                Step::Confirm(rate) => (rate, true),
                Step::Done => return Ok(Ended::Known),
            };
            match self.judge(rate, longer).await? {
                None if longer => steps.cannot_confirm(),
                None => steps.cannot_judge(rate),
                Some(kept) if longer => steps.confirmed(kept),
                Some(kept) => steps.tried(rate, kept),
            }
        }
        Ok(Ended::OutOfTrials)
    }

    /// Above it loadgen has no headroom.
    fn judged_rate_max(&self) -> f64 {
        self.null_throughput.0 / HEADROOM_MIN
    }

    /// Whether the goals are kept at this rate; `None` if no trial there was valid.
    async fn judge(&mut self, rate: f64, longer: bool) -> anyhow::Result<Option<bool>> {
        for _ in 0..INVALID_MAX {
            let (judged, record) = self.trial(Some(rate), longer).await?;
            let kind = if longer { "confirmation" } else { "trial" };
            let said = match &judged {
                Judged::Kept => "kept".to_owned(),
                Judged::Missed(why) => format!("missed: {why}"),
                Judged::Invalid(why) => format!("invalid, not counted: {why}"),
            };
            tell!("search: {kind} at {}: {said}", MessagesPerSecond(rate));
            let kept = match judged {
                Judged::Kept => Some(true),
                Judged::Missed(_) => Some(false),
                Judged::Invalid(_) => None,
            };
            let [p50, p99] = [50.0, 99.0].map(|it| record.measured.percentile(it));
            let achieved = MessagesPerSecond(record.measured.throughput_messages_per_s);
            let has_headroom = record.failed_gates().all(|gate| gate.name != GateName::Headroom);
            self.trials.push(Row { rate, longer, judged, achieved, p50, p99 });
            // No other trial at this rate would have more of it.
            if kept.is_some() || !has_headroom {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    /// What a closed loop reaches, whether it is valid or not: only where to begin.
    async fn closed_loop(&mut self) -> anyhow::Result<f64> {
        let (_, record) = self.trial(None, false).await?;
        let throughput = record.measured.throughput_messages_per_s;
        tell!("search: a closed loop reaches {}", MessagesPerSecond(throughput));
        anyhow::ensure!(throughput > 0.0, "a closed loop reaches nothing; pass --min-rate");
        Ok(throughput)
    }

    async fn trial(
        &mut self,
        rate: Option<f64>,
        longer: bool,
    ) -> anyhow::Result<(Judged, Box<RunRecord>)> {
        let Ask { supply, load, how, records, .. } = self.ask;
        let HowArgs { preheat, warmup, duration, confirmation_duration, cool_down, .. } = *how;
        tokio::time::sleep(cool_down.as_duration()).await;
        let duration = if longer { confirmation_duration } else { duration };
        let load = match rate {
            Some(rate) => load.at(MessagesPerSecond(rate)),
            None => load.closed_loop(),
        };
        let mut flags = load.flags();
        flags.extend(["--warmup".to_owned(), format!("{}ns", warmup.0)]);
        flags.extend(["--duration".to_owned(), format!("{}ns", duration.0)]);
        let number = self.trials.len() + 1;
        flags.extend(["--seed".to_owned(), number.to_string()]);
        let trial = Trial {
            flags: &flags,
            contract: load.contract,
            places: self.ask.places(),
            time: warmup + duration,
            null_throughput: rate.map(|_| self.null_throughput),
            preheat: Preheat::of(&load, preheat),
        };
        let name = rate.map_or("closed-loop.json".to_owned(), |_| format!("trial-{number}.json"));
        let json = records.file(&name);
        let tried = match supply {
            Supply::Fresh(command) => trial.on(command, &json).await?,
            Supply::Running(target) => trial.at(target, &json).await?,
        };
        Ok(match tried {
            Tried::Valid(record) | Tried::Invalid(record, _) => {
                (judged(&record, &self.ask.slo), record)
            }
            Tried::Failed(Some(record), why) if is_overload(&record) => {
                (overloaded(&record.gates, why), record)
            }
            Tried::Failed(_, why) => anyhow::bail!("{}: {why}", self.ask.name),
        })
    }
}

/// Where a search begins: far below what a closed loop reaches, and where loadgen can judge, if a trial has messages enough there.
fn first_rate(closed: f64, judged_max: f64, least: f64) -> f64 {
    (BEGIN_SHARE * closed).min(BEGIN_SHARE_OF_JUDGED * judged_max).max(least)
}

/// Whether so many trials up to this rate were no judge, and none was one.
fn is_hopeless(trials: &[Row], rate_max: f64) -> bool {
    let is_none = trials.iter().all(|row| matches!(row.judged, Judged::Invalid(_)));
    is_none && trials.iter().filter(|row| row.rate <= rate_max).count() >= HOPELESS_TRIALS
}

/// A backlog that grows, or a schedule that was not achieved, is the server's loss; any other gate that failed is the
/// generator's, and says nothing of the server. Neither do too few messages.
fn judged(record: &RunRecord, slo: &Slo) -> Judged {
    if let Some(gate) = record.failed_gates().find(|gate| !record.is_loss(gate)) {
        return Judged::Invalid(gate.message.clone());
    }
    // A loss is one, whatever else could not be told.
    if let (None, Some(gate)) = (record.failed_gates().next(), record.untold_gates().next()) {
        return Judged::Invalid(gate.message.clone());
    }
    if let Some(why) = record.measured.too_few(slo) {
        return Judged::Invalid(why);
    }
    let missed = record.measured.missed(slo);
    let losses = record.failed_gates().map(|gate| gate.message.clone());
    let why: Vec<_> = missed.into_iter().chain(losses).collect();
    if why.is_empty() { Judged::Kept } else { Judged::Missed(why.join("; ")) }
}

/// What a run says that failed with more load than was carried: a miss, unless the machine was taken from
/// those who should carry it, or loadgen has no headroom there. Gates about the load itself fail in any overload, and excuse nothing.
fn overloaded(gates: &[Gate], why: String) -> Judged {
    disturbance(gates).map_or(Judged::Missed(why), |gate| Judged::Invalid(gate.message.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Hdr, Verdict};
    use crate::report::example;

    #[test]
    fn too_few_messages_for_a_goal_are_no_miss_and_lost_ones_are() {
        let check = |count: u64, lost: u64, slo: &str, expected: &str| {
            let mut record = example::open_loop(1_000.0, 1);
            record.gates.clear();
            let mut times = Hdr::default();
            (0..count).for_each(|_| times.record(Nanos(1_000_000)));
            record.measured.response_time = Some(times);
            record.measured.messages_lost = lost;
            let judged = format!("{:?}", judged(&record, &slo.parse().unwrap()));
            assert!(judged.starts_with(expected), "{count} {lost} {slo}: {judged}");
        };
        check(1_000, 0, "p99<5ms", "Kept");
        check(999, 0, "p99<5ms", "Invalid");
        check(999, 0, "p50<5ms", "Kept");
        check(1_000, 0, "p50<5ms,p99.9<5ms", "Invalid");
        check(1_000, 0, "p99<500us", "Missed");
        // Whatever would still come: the percentile is among what did not.
        check(500, 100, "p99<5ms", "Missed");
    }

    #[test]
    fn a_trial_of_which_a_gate_about_the_load_could_not_be_told_says_nothing() {
        let mut record = example::open_loop(1_000.0, 1);
        let check = |record: &RunRecord, slo: &str, expected: &str| {
            let judged = format!("{:?}", judged(record, &slo.parse().unwrap()));
            assert!(judged.starts_with(expected), "{slo}: {judged}");
        };
        let gate = |name, verdict| example::gate(name, verdict, None, "share");
        record.gates = vec![gate(GateName::Steal, Verdict::Unknown)];
        check(&record, "p50<1h", "Kept");
        record.gates.push(gate(GateName::Probe, Verdict::Unknown));
        check(&record, "p50<1h", "Invalid");
        check(&record, "p50<1ns", "Invalid");
        record.measured.unstable =
            Some(crate::record::Unstable { backlog: 9, at_ns: Nanos(2), since_ns: Nanos(1) });
        record.gates.push(gate(GateName::Backlog, Verdict::Failed));
        check(&record, "p50<1h", "Missed");
    }

    #[test]
    fn a_machine_on_which_no_trial_can_be_judged_is_given_up_and_one_without_headroom_is_not() {
        let row = |rate, is_valid| Row {
            rate,
            longer: false,
            judged: if is_valid { Judged::Kept } else { Judged::Invalid("steal".to_owned()) },
            achieved: MessagesPerSecond(rate),
            p50: (Nanos(1), false),
            p99: (Nanos(1), false),
        };
        let of = |rates: &[f64]| {
            let thrice = rates.iter().flat_map(|rate| [*rate; INVALID_MAX]);
            thrice.map(|rate| row(rate, false)).collect::<Vec<_>>()
        };
        assert!(!is_hopeless(&[], 1_000.0));
        assert!(!is_hopeless(&of(&[1_000.0, 500.0]), 1_000.0));
        assert!(is_hopeless(&of(&[1_000.0, 500.0, 250.0]), 1_000.0));
        assert!(
            !is_hopeless(&of(&[2_000.0, 1_000.0, 500.0]), 1_000.0),
            "the first had no headroom"
        );
        let mut trials = of(&[1_000.0, 500.0, 250.0, 125.0]);
        trials.insert(0, row(2_000.0, true));
        assert!(!is_hopeless(&trials, 1_000.0), "one was judged, so others can be");
    }

    #[test]
    fn a_search_begins_where_loadgen_can_judge() {
        assert_eq!(first_rate(1e5, 1e6, 20.0), 1e4);
        assert_eq!(first_rate(1e8, 1e6, 20.0), 5e5, "above a million no trial has headroom");
        assert_eq!(first_rate(100.0, 1e6, 20.0), 20.0);
        assert_eq!(first_rate(1e5, 30.0, 20.0), 20.0);
    }

    #[test]
    fn a_trial_holds_as_many_messages_as_its_goals_ask_for() {
        let check = |slo: &str, seconds, expected: f64| {
            let needed = needed_rate(&slo.parse().unwrap(), Nanos(seconds * Nanos::SECOND.0));
            assert!((needed - expected).abs() <= 1e-6 * expected, "{slo}: {needed}");
        };
        check("max<5ms,errors=0", 5, 0.0);
        check("p50<5ms", 5, 4.0);
        check("p99<5ms", 5, 200.0);
        check("p50<1ms,p99.9<5ms,p90<2ms", 5, 2_000.0);
        check("p99.9<5ms", 40, 250.0);
    }

    #[test]
    fn an_overload_is_a_loss_unless_the_machine_was_taken_away_or_loadgen_was_at_its_end() {
        let gate = |name, verdict| Gate {
            name,
            verdict,
            figure: Some(0.1),
            threshold: 0.02,
            unit: "share".to_owned(),
            message: "the figure".to_owned(),
        };
        let check = |gates: &[Gate], is_loss: bool| {
            let judged = overloaded(gates, "7 lost".to_owned());
            assert_eq!(matches!(&judged, Judged::Missed(why) if why == "7 lost"), is_loss);
            assert_eq!(matches!(&judged, Judged::Invalid(why) if why == "the figure"), !is_loss);
        };
        use GateName::{Awake, Headroom, ShardRunDelay, Steal, Throttling};
        check(&[], true);
        check(&[gate(GateName::Backlog, Verdict::Failed)], true);
        check(&[gate(GateName::Probe, Verdict::Failed)], true);
        check(&[gate(GateName::Steal, Verdict::Passed)], true);
        for name in [Headroom, Steal, ShardRunDelay, Throttling, Awake] {
            check(&[gate(GateName::Backlog, Verdict::Failed), gate(name, Verdict::Failed)], false);
        }
    }
}
