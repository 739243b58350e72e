//! `loadgen compare A B`: whether B differs from A, and by how much, in pairs of runs.
//!
//! In: two servers and a load. Out: a verdict for each metric, once there are as many pairs as the noise
//! asks for, or as many as are allowed. A pair is a run of each, next to each other in time, in an order that
//! changes from pair to pair; each run has a fresh server and a loadgen of its own. Invalid runs are
//! repeated, not counted.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::Exit;
use super::headroom::{self, null_throughput};
use super::records::Records;
use super::servers::{ServerName, Supply, WhereArgs, cores};
use super::trial::{Trial, Tried};
use crate::harness::provenance;
use crate::record::RunRecord;
use crate::report::{Metric, Pairs, Question, Verdicts};
use crate::scenario::{LoadArgs, UsageError};
use crate::units::{MessagesPerSecond, Nanos};

/// A line to stderr, which may be gone: a comparison does not end for that.
macro_rules! tell {
    ($($line:tt)*) => {
        _ = writeln!(io::stderr(), $($line)*)
    };
}

/// Tells whether server B differs from server A, in interleaved pairs of runs.
#[derive(Clone, Debug, Args)]
pub(super) struct CompareArgs {
    /// First server: inline, inline-task, tonic, peer:NAME, cmd:PROGRAM ARGUMENTS, or http://HOST:PORT
    a: ServerName,

    /// Second server, which is compared with the first
    b: ServerName,

    #[command(flatten)]
    load: LoadArgs,

    /// Load before each measurement, never recorded
    #[arg(long, value_name = "TIME", default_value = "1s")]
    warmup: Nanos,

    /// Length of each measurement
    #[arg(long, value_name = "TIME", default_value = "3s")]
    duration: Nanos,

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

    #[command(flatten)]
    places: WhereArgs,
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
    if args.max_pairs < question.pairs_min() {
        let cure = format!(
            "{metrics} metrics at {} % need at least {} pairs to find anything",
            args.error,
            question.pairs_min()
        );
        return Err(UsageError { flag: "--max-pairs", value: args.max_pairs.to_string(), cure });
    }
    Ok(question)
}

async fn compare(args: &CompareArgs) -> anyhow::Result<Exit> {
    let metrics = Metric::of_load(args.load.rate.is_some(), args.knows_cpu());
    let question = question(args, metrics.len())?;
    let (server_cpus, loadgen_cpus) =
        cores(&args.places.server_cpus, &args.places.cpus, &provenance::cpus())?;
    let supplies =
        [args.a.supply(&args.places.peers).await?, args.b.supply(&args.places.peers).await?];
    let records = Records::new(args.places.out.as_deref())?;
    let null_throughput =
        null_throughput(headroom::closed(&args.load), &server_cpus, &loadgen_cpus).await?;
    tell!("compare: against a null echo loadgen carries {null_throughput}");
    let mut comparing = Comparing {
        args,
        supplies,
        server_cpus,
        loadgen_cpus,
        records,
        null_throughput,
        question,
        pairs: vec![Pairs::default(); metrics.len()],
        metrics,
        invalid: 0,
    };
    let ended = comparing.all_pairs().await?;
    let verdicts = comparing.verdicts();
    io::stdout().write_all(verdicts.to_string().as_bytes()).context("cannot write to stdout")?;
    Ok(ended)
}

impl CompareArgs {
    /// The CPU time of a server that somebody else started is not known.
    fn knows_cpu(&self) -> bool {
        ![&self.a, &self.b].iter().any(|name| matches!(name, ServerName::Running(_)))
    }
}

/// A comparison that goes on.
struct Comparing<'a> {
    args: &'a CompareArgs,
    supplies: [Supply; 2],
    server_cpus: Vec<usize>,
    loadgen_cpus: Vec<usize>,
    records: Records,
    null_throughput: MessagesPerSecond,
    question: Question,
    metrics: Vec<Metric>,
    /// By metric.
    pairs: Vec<Pairs>,
    /// Runs that were repeated because a gate failed.
    invalid: usize,
}

impl Comparing<'_> {
    /// Pairs until there are enough. As many invalid runs as pairs are allowed end it without a verdict.
    async fn all_pairs(&mut self) -> anyhow::Result<Exit> {
        let max = self.args.max_pairs;
        let mut tried = 0;
        while self.done() < self.needed().min(max) {
            let b_first = tried % 2 == 1;
            tried += 1;
            let Some([a, b]) = self.pair(tried, b_first).await? else {
                if self.invalid > max {
                    tell!("compare: {} runs were invalid: given up", self.invalid);
                    return Ok(Exit::Invalid);
                }
                continue;
            };
            for (metric, pairs) in self.metrics.iter().zip(&mut self.pairs) {
                let both = metric.of(&a).zip(metric.of(&b));
                let (a, b) = both.with_context(|| format!("no {metric} in a run's record"))?;
                pairs.push(a, b);
            }
            let (done, needed) = (self.done(), self.needed());
            let bound = if needed > max { format!(", {max} at most") } else { String::new() };
            let needed = if needed == usize::MAX { "?".to_owned() } else { needed.to_string() };
            tell!("compare: pair {done}; this noise asks for {needed}{bound}: {}", self.in_short());
        }
        Ok(Exit::Done)
    }

    fn done(&self) -> usize {
        self.pairs.first().map_or(0, Pairs::len)
    }

    /// Pairs that all metrics together need.
    fn needed(&self) -> usize {
        if self.done() < self.question.pairs_min() {
            return self.question.pairs_min();
        }
        let needed = self.pairs.iter().map(|pairs| self.question.pairs_needed(pairs.spread()));
        needed.max().unwrap_or_default()
    }

    fn in_short(&self) -> String {
        let last =
            |(metric, pairs): (&Metric, &Pairs)| Some(format!("{metric} {:.3}x", pairs.last()?));
        let last: Vec<_> = self.metrics.iter().zip(&self.pairs).filter_map(last).collect();
        last.join(", ")
    }

    /// A run of each; `None` if one is invalid.
    async fn pair(
        &mut self,
        number: usize,
        b_first: bool,
    ) -> anyhow::Result<Option<[RunRecord; 2]>> {
        let first = usize::from(b_first);
        let mut records = [None, None];
        for place in [first, 1 - first] {
            let name = if place == 0 { &self.args.a } else { &self.args.b };
            match self.run(number, place).await? {
                Tried::Valid(record) => records[place] = Some(*record),
                Tried::Invalid(_, why) => {
                    self.invalid += 1;
                    tell!("compare: {name}: invalid, and repeated: {why}");
                    return Ok(None);
                }
                Tried::Failed(_, why) => anyhow::bail!("{name}: {why}"),
            }
        }
        let [a, b] = records;
        Ok(a.zip(b).map(|(a, b)| [a, b]))
    }

    async fn run(&self, number: usize, place: usize) -> anyhow::Result<Tried> {
        let CompareArgs { warmup, duration, load, .. } = self.args;
        let mut flags = load.flags();
        flags.extend(["--warmup".to_owned(), format!("{}ns", warmup.0)]);
        flags.extend(["--duration".to_owned(), format!("{}ns", duration.0)]);
        // The same bytes and the same schedule for both of a pair.
        flags.extend(["--seed".to_owned(), number.to_string()]);
        let trial = Trial {
            flags: &flags,
            server_cpus: &self.server_cpus,
            loadgen_cpus: &self.loadgen_cpus,
            time: *warmup + *duration,
            null_throughput: Some(self.null_throughput),
        };
        let json = self.records.file(&format!("{}.{number}.json", ["a", "b"][place]));
        match &self.supplies[place] {
            Supply::Fresh(command) => Ok(trial.on(command, &json).await?),
            Supply::Running(target) => Ok(trial.at(target, None, &json).await?),
        }
    }

    fn verdicts(&self) -> Verdicts {
        Verdicts {
            a: self.args.a.to_string(),
            b: self.args.b.to_string(),
            question: self.question,
            metrics: self.metrics.clone(),
            pairs: self.pairs.clone(),
            invalid: self.invalid,
        }
    }
}
