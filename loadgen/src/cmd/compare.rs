//! `loadgen compare A B`: whether B differs from A, and by how much, in pairs of runs.
//!
//! In: two servers and a load. Out: a verdict for each metric, once each has as many pairs as its noise asks
//! for, or is plain before, or there are as many as are allowed. A pair is a run of each, next to each other in time, in an order that
//! changes from pair to pair; each run has a fresh server and a loadgen of its own. Invalid runs are
//! repeated, not counted, and so are some few that fail; whatever ends a comparison early, the pairs until
//! then have a verdict.

use std::io::{self, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::Exit;
use super::interrupt::{interrupted, prepared};
use super::records::Records;
use super::servers::{ServerName, Supply, WhereArgs, check_preheat, cores};
use super::trial::{Places, Preheat, Trial, TrialError, Tried, check_open_loop};
use crate::harness::provenance;
use crate::record::{RunRecord, Warning, WarningKind};
use crate::report::{Added, Looks, Metric, NoValue, Question, Verdicts};
use crate::scenario::{LoadArgs, UsageError, check_duration, name_of};
use crate::units::{MessagesPerSecond, Nanos};

/// Runs that may fail and are repeated; one more, and the comparison ends.
const FAILED_MAX: usize = 3;

/// Runs of one server in a row, each with loadgen as its limit, that end the comparison: chance has no part in that.
const BOUND_MAX: usize = 10;

/// Tells whether server B differs from server A, in interleaved pairs of runs.
#[derive(Clone, Debug, Args)]
pub(super) struct CompareArgs {
    /// First server: inline, inline-task, tonic, peer:NAME, cmd:PROGRAM ARGUMENTS, or http://HOST:PORT
    a: ServerName,

    /// Second server, which is compared with the first
    b: ServerName,

    #[command(flatten)]
    load: LoadArgs,

    /// Closed loop against each fresh server first, never recorded: for servers that compile while they run
    #[arg(long, value_name = "TIME", default_value = "0s")]
    preheat: Nanos,

    /// Load before each measurement, never recorded
    #[arg(long, value_name = "TIME", default_value = "1s")]
    warmup: Nanos,

    /// Length of each measurement [default: 3s; 6s with --rate, where a growing backlog shows after five]
    #[arg(long, value_name = "TIME")]
    duration: Option<Nanos>,

    /// What is compared; may be repeated [default: all that mean something under this load]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METRIC")]
    metric: Vec<Metric>,

    /// Smallest difference that must be found, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    difference: f64,

    /// How likely any false finding may be over all metrics, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    error: f64,

    /// How likely such a difference must be found, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 90.0)]
    power: f64,

    /// Pairs after which there is a verdict, whatever the noise asks for
    #[arg(long, value_name = "N", default_value_t = 60)]
    max_pairs: usize,

    /// Exit code 4 if the second server is slower in any metric that is compared
    #[arg(long)]
    fail_if_slower: bool,

    #[command(flatten)]
    places: WhereArgs,
}

impl CompareArgs {
    /// A's at place 0, B's at 1.
    fn name(&self, place: usize) -> &ServerName {
        [&self.a, &self.b][place]
    }

    fn duration(&self) -> Nanos {
        let usual_s = if self.load.rate.is_some() { 6 } else { 3 };
        self.duration.unwrap_or(Nanos(usual_s * Nanos::SECOND.0))
    }
}

/// Compares. The exit code is as [`super::main`] tells; valid runs are required.
pub(super) fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(compare(args))?.into())
}

fn share(flag: &'static str, percent: f64, max: f64) -> Result<f64, UsageError> {
    if percent > 0.0 && percent < max {
        return Ok(percent / 100.0);
    }
    let cure = format!("need a percentage above 0 and below {max}");
    Err(UsageError { flag, value: percent.to_string(), cure })
}

fn question(args: &CompareArgs, metrics: usize) -> Result<Question, UsageError> {
    let question = Question {
        difference: share("--difference", args.difference, 1_000.0)?,
        error_max: share("--error", args.error, 50.0)?,
        power: share("--power", args.power, 100.0)?,
        metrics,
    };
    let min = question.pairs_min(1.0);
    if args.max_pairs < min {
        let cure = format!(
            "{metrics} metrics at {} % need at least {min} pairs to find anything",
            args.error,
        );
        return Err(UsageError { flag: "--max-pairs", value: args.max_pairs.to_string(), cure });
    }
    Ok(question)
}

async fn compare(args: &CompareArgs) -> anyhow::Result<Exit> {
    args.load.check()?;
    check_duration("--duration", args.duration())?;
    if args.load.rate.is_some() {
        check_open_loop("--duration", args.duration())?;
    }
    check_preheat(args.preheat, &[&args.a, &args.b])?;
    let metrics = args.metrics()?;
    let question = question(args, metrics.len())?;
    let (server_cpus, loadgen_cpus) =
        cores(&args.places.server_cpus, &args.places.cpus, &provenance::cpus())?;
    let mut stop = pin!(interrupted());
    let ready = async {
        let supplies =
            [args.a.supply(&args.places.peers).await?, args.b.supply(&args.places.peers).await?];
        let records = Records::new(args.places.out.as_deref())?;
        let awake = args.places.awake(&server_cpus, &loadgen_cpus, &[&args.a, &args.b]).await?;
        anyhow::Ok((supplies, records, awake))
    };
    let (supplies, records, awake) = prepared(ready, &mut stop).await?;
    let calm = args.places.calm();
    let places = Places {
        server_cpus: &server_cpus,
        loadgen_cpus: &loadgen_cpus,
        shards: None,
        awake_cpus: awake.cpus(),
        calm: &calm,
    };
    let null_throughput = prepared(places.null_throughput(&args.load), &mut stop).await?;
    tell!("compare: against a null echo loadgen carries {null_throughput}");
    let mut comparing = Comparing {
        args,
        supplies,
        places,
        records,
        null_throughput,
        question,
        looks: Looks::new(question),
        why_not: vec![None; metrics.len()],
        metrics,
        added: [Added::default(), Added::default()],
        spoiled: Spoiled::default(),
    };
    let ended = tokio::select! {
        ended = comparing.all_pairs() => ended,
        () = stop => {
            tell!("compare: interrupted; the verdict is of the pairs until then");
            Exit::Failed
        }
    };
    comparing.looks.close();
    let verdicts = comparing.verdicts();
    io::stdout().write_all(verdicts.to_string().as_bytes()).context("cannot write to stdout")?;
    Ok(args.exit(ended, &verdicts))
}

impl CompareArgs {
    /// Those that were asked for, each once. Err: one means nothing under this load.
    fn metrics(&self) -> Result<Vec<Metric>, UsageError> {
        let has_rate = self.load.rate.is_some();
        let known = Metric::of_load(has_rate, self.knows_cpu());
        if let Some(metric) = self.metric.iter().find(|metric| !known.contains(metric)) {
            let cure = match metric {
                Metric::Throughput => "with a rate it is an input; leave out one of both",
                _ => "the CPU time of a server that runs already is not known; leave it out",
            };
            let value = name_of(*metric);
            return Err(UsageError { flag: "--metric", value, cure: cure.to_owned() });
        }
        let is_wanted = |metric: &Metric| self.metric.is_empty() || self.metric.contains(metric);
        Ok(known.into_iter().filter(is_wanted).collect())
    }

    /// `ended`: how the runs did. Says in which metrics the second server is slower, if that is not to be.
    fn exit(&self, ended: Exit, verdicts: &Verdicts) -> Exit {
        let mut is_missed = false;
        for metric in verdicts.slower().filter(|_| self.fail_if_slower) {
            tell!("compare: goal missed: {} is slower than {}: {metric}", self.b, self.a);
            is_missed = true;
        }
        if is_missed && ended == Exit::Done { Exit::GoalMissed } else { ended }
    }

    /// The CPU time of a server that somebody else started is not known.
    fn knows_cpu(&self) -> bool {
        ![&self.a, &self.b].iter().any(|name| matches!(name, ServerName::Running(_)))
    }
}

/// A comparison that goes on.
struct Comparing<'a> {
    args: &'a CompareArgs,
    supplies: [Supply; 2],
    places: Places<'a>,
    records: Records,
    null_throughput: MessagesPerSecond,
    question: Question,
    metrics: Vec<Metric>,
    looks: Looks,
    /// By metric, why a run had no value of it.
    why_not: Vec<Option<String>>,
    /// All runs that are in a pair, of A and of B.
    added: [Added; 2],
    spoiled: Spoiled,
}

/// Runs that are in no pair.
#[derive(Clone, Copy, Debug, Default)]
struct Spoiled {
    /// Repeated because a gate failed, or because a metric was not known.
    invalid: usize,
    /// The last of A and of B, as far as loadgen was the limit of each, and nothing else was wrong.
    bound_in_a_row: [usize; 2],
    /// Runs that failed.
    failed: usize,
}

impl Spoiled {
    /// A run of the server at this place was valid.
    fn end_row(&mut self, place: usize) {
        self.bound_in_a_row[place] = 0;
    }

    /// One of it was invalid.
    fn add_invalid(&mut self, place: usize, record: &RunRecord) {
        self.invalid += 1;
        let in_a_row = &mut self.bound_in_a_row[place];
        *in_a_row = if record.is_bound() { *in_a_row + 1 } else { 0 };
    }

    /// Why no more runs are tried, if so.
    fn given_up(&self, args: &CompareArgs) -> Option<String> {
        if let Some(place) = self.bound_in_a_row.iter().position(|runs| *runs >= BOUND_MAX) {
            let name = args.name(place);
            return Some(format!(
                "in {BOUND_MAX} runs of {name} in a row loadgen was the limit of this load, not the server, and more runs \
                 would not change that: given up; load the server more (--in-flight, --streams), or ask for less than loadgen \
                 carries (--rate)"
            ));
        }
        (self.invalid > args.max_pairs)
            .then(|| format!("{} runs were invalid: given up", self.invalid))
    }
}

impl Comparing<'_> {
    /// Pairs until every metric is decided. As many invalid runs as pairs are allowed end it before, and so
    /// do [`BOUND_MAX`] in a row that loadgen bounds, more than [`FAILED_MAX`] that failed, or a record without room.
    async fn all_pairs(&mut self) -> Exit {
        let max = self.args.max_pairs;
        let mut tried = 0;
        while !self.looks.is_decided() && self.looks.len() < max {
            // A B, then B A, of the pairs that count: attempts that do not would leave them all in one order.
            let b_first = self.looks.len() % 2 == 1;
            tried += 1;
            let pair = match self.pair(tried, b_first).await {
                Ok(pair) => pair,
                Err(why) => {
                    tell!("compare: given up, and the verdict is of the pairs until then: {why}");
                    return Exit::Failed;
                }
            };
            let Some(values) = pair.and_then(|pair| self.values(&pair)) else {
                if let Some(why) = self.spoiled.given_up(self.args) {
                    tell!("compare: {why}");
                    return if self.spoiled.failed > 0 { Exit::Failed } else { Exit::Invalid };
                }
                continue;
            };
            self.looks.push(&values);
            tell!("compare: pair {}, {max} at most: {}", self.looks.len(), self.in_short());
        }
        if self.spoiled.failed > 0 { Exit::Failed } else { Exit::Done }
    }

    /// A pair's two values of each metric, but of one that is beyond all that is known: that cannot be compared.
    /// `None` if a run has none, such as CPU time in a short window of a quiet server.
    fn values(&mut self, pair: &[RunRecord; 2]) -> Option<Vec<Option<(f64, f64)>>> {
        let [a, b] = pair;
        let mut values = Vec::new();
        for (metric, why_not) in self.metrics.iter().zip(&mut self.why_not) {
            let both = [(&self.args.a, metric.of(a)), (&self.args.b, metric.of(b))];
            if both.iter().any(|(_, value)| *value == Err(NoValue::Unknown)) {
                self.spoiled.invalid += 1;
                let is_why = |it: &&Warning| it.kind == WarningKind::ServerUsageUnknown;
                let why = pair.iter().flat_map(|run| &run.warnings).find(is_why);
                let cure = why.map_or("a longer --duration helps", |why| &why.message);
                tell!("compare: a run has no {metric}, and is repeated; {cure}");
                return None;
            }
            for (name, value) in &both {
                if let Err(why) = value {
                    tell!("compare: {name}: {metric} is {why}, and is not compared");
                    why_not.get_or_insert_with(|| format!("of {name} it is {why}"));
                }
            }
            let [(_, of_a), (_, of_b)] = both;
            values.push(of_a.ok().zip(of_b.ok()));
        }
        self.added.iter_mut().zip(pair).for_each(|(added, run)| added.add(run));
        Some(values)
    }

    /// Each metric's last ratio, and what it still asks for.
    fn in_short(&self) -> String {
        let figures = self.looks.last().zip(self.looks.needed());
        let short = |(metric, (last, needed)): (&Metric, (Option<f64>, Option<usize>))| {
            let needed =
                needed.map_or("decided".to_owned(), |pairs| format!("asks for {pairs} pairs"));
            Some(format!("{metric} {:.3}x ({needed})", last?))
        };
        let short: Vec<_> = self.metrics.iter().zip(figures).filter_map(short).collect();
        short.join(", ")
    }

    /// A run of each; `None` if one is to be repeated. Err: why there is no sense in another.
    async fn pair(
        &mut self,
        number: usize,
        b_first: bool,
    ) -> Result<Option<[RunRecord; 2]>, String> {
        let first = usize::from(b_first);
        let mut records = [None, None];
        for place in [first, 1 - first] {
            let name = self.args.name(place);
            let why = match self.run(number, place).await {
                Ok(Tried::Valid(record)) => {
                    self.spoiled.end_row(place);
                    records[place] = Some(*record);
                    continue;
                }
                Ok(Tried::Invalid(record, why)) => {
                    self.spoiled.add_invalid(place, &record);
                    tell!("compare: {name}: invalid, and repeated: {why}");
                    return Ok(None);
                }
                Ok(Tried::Failed(_, why)) => why,
                Err(TrialError::Server(error)) => error.to_string(),
                Err(TrialError::Unwritten(why)) => return Err(why),
            };
            self.spoiled.failed += 1;
            if self.spoiled.failed > FAILED_MAX {
                let failed = self.spoiled.failed;
                return Err(format!("{failed} runs failed, the last of {name}: {why}"));
            }
            tell!("compare: {name}: failed, and repeated: {why}");
            return Ok(None);
        }
        let [a, b] = records;
        Ok(a.zip(b).map(|(a, b)| [a, b]))
    }

    async fn run(&self, number: usize, place: usize) -> Result<Tried, TrialError> {
        let CompareArgs { warmup, load, .. } = self.args;
        let duration = self.args.duration();
        let mut flags = load.flags();
        flags.extend(["--warmup".to_owned(), format!("{}ns", warmup.0)]);
        flags.extend(["--duration".to_owned(), format!("{}ns", duration.0)]);
        // The same bytes and the same schedule for both of a pair.
        flags.extend(["--seed".to_owned(), number.to_string()]);
        let trial = Trial {
            flags: &flags,
            contract: self.args.load.contract,
            places: self.places,
            time: *warmup + duration,
            null_throughput: Some(self.null_throughput),
            preheat: Preheat::of(load, self.args.preheat),
        };
        let json = self.records.file(&format!("{}.{number}.json", ["a", "b"][place]));
        match &self.supplies[place] {
            Supply::Fresh(command) => trial.on(command, &json).await,
            Supply::Running(target) => trial.at(target, &json).await,
        }
    }

    fn verdicts(&self) -> Verdicts {
        Verdicts {
            a: self.args.a.to_string(),
            b: self.args.b.to_string(),
            question: self.question,
            metrics: self.metrics.clone(),
            looks: self.looks.clone(),
            why_not: self.why_not.clone(),
            added: self.added.clone(),
            invalid: self.spoiled.invalid,
            failed: self.spoiled.failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn args(flags: &[&str]) -> CompareArgs {
        let line = ["compare", "inline", "tonic"].iter().chain(flags);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn an_open_loop_is_measured_long_enough_to_see_a_backlog_grow() {
        let check = |flags: &[&str], seconds| {
            assert_eq!(args(flags).duration(), Nanos(seconds * Nanos::SECOND.0), "{flags:?}");
        };
        check(&[], 3);
        check(&["--rate", "5k"], 6);
        check(&["--rate", "5k", "--duration", "2s"], 2);
    }

    fn invalid(names: &[GateName]) -> RunRecord {
        let mut record = example::closed_loop();
        let failed = |name: &GateName| example::gate(*name, Verdict::Failed, Some(1.0), "share");
        record.gates.extend(names.iter().map(failed));
        record
    }

    #[test]
    fn ten_runs_in_a_row_that_loadgen_bounds_end_it_and_others_begin_the_row_anew() {
        let args = args(&["--max-pairs", "40"]);
        let bound = invalid(&[GateName::Headroom]);
        let disturbed = invalid(&[GateName::Headroom, GateName::Steal]);
        let mut spoiled = Spoiled::default();
        let nine_of_b = |spoiled: &mut Spoiled| {
            for _ in 0..BOUND_MAX - 1 {
                spoiled.add_invalid(1, &bound);
                assert_eq!(spoiled.given_up(&args), None);
            }
        };
        nine_of_b(&mut spoiled);
        spoiled.end_row(1);
        nine_of_b(&mut spoiled);
        spoiled.add_invalid(1, &disturbed);
        nine_of_b(&mut spoiled);
        // A's are a row of their own.
        spoiled.add_invalid(0, &bound);
        spoiled.end_row(0);
        assert_eq!(spoiled.given_up(&args), None);
        spoiled.add_invalid(1, &bound);
        let why = spoiled.given_up(&args).unwrap();
        assert!(why.starts_with("in 10 runs of tonic in a row loadgen was the limit"), "{why}");
        assert!(why.contains("--in-flight") && why.contains("--rate"), "{why}");
    }

    #[test]
    fn more_invalid_runs_than_pairs_are_allowed_end_it() {
        let args = args(&["--max-pairs", "8"]);
        let mut spoiled = Spoiled::default();
        for _ in 0..8 {
            spoiled.add_invalid(0, &invalid(&[GateName::Steal]));
            assert_eq!(spoiled.given_up(&args), None);
        }
        spoiled.add_invalid(1, &invalid(&[GateName::Steal]));
        assert_eq!(spoiled.given_up(&args).unwrap(), "9 runs were invalid: given up");
    }

    /// Of six pairs with these ratios of p50 and p99.
    fn verdicts(p50: f64, p99: f64) -> Verdicts {
        let question = Question { difference: 0.05, error_max: 0.05, power: 0.9, metrics: 2 };
        let mut looks = Looks::new(question);
        for pair in 1..=8 {
            let noise = 1.0 + f64::from(pair) / 1e4;
            looks.push(&[Some((1.0, noise * p50)), Some((1.0, noise * p99))]);
        }
        looks.close();
        Verdicts {
            a: "inline".to_owned(),
            b: "tonic".to_owned(),
            question,
            metrics: vec![Metric::P50, Metric::P99],
            looks,
            why_not: vec![None, None],
            added: [Added::default(), Added::default()],
            invalid: 0,
            failed: 0,
        }
    }

    #[test]
    fn a_slower_server_misses_the_goal_if_that_was_asked_and_nothing_worse_happened() {
        let check = |flags: &[&str], ended, ratios: (f64, f64), expected| {
            let verdicts = verdicts(ratios.0, ratios.1);
            assert_eq!(args(flags).exit(ended, &verdicts), expected, "{flags:?} {verdicts}");
        };
        let asked = &["--fail-if-slower"][..];
        check(asked, Exit::Done, (1.2, 0.8), Exit::GoalMissed);
        check(asked, Exit::Done, (0.8, 1.2), Exit::GoalMissed);
        check(asked, Exit::Done, (0.8, 0.8), Exit::Done);
        check(asked, Exit::Invalid, (1.2, 1.2), Exit::Invalid);
        check(asked, Exit::Failed, (1.2, 1.2), Exit::Failed);
        check(&[], Exit::Done, (1.2, 1.2), Exit::Done);
    }
}
