//! `loadgen search SERVER --slo GOALS`: the highest offered load at which a server keeps its goals.
//!
//! In: a server, goals, a load without a rate. Out: two rates as close as asked, below the one the goals
//! are kept, above the other they are missed; and the trials that say so. The order of the trials is
//! `steps`; each has a fresh server, unless it runs already, and a pause before it.

mod steps;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use self::steps::{Bounds, Found, Step, Steps};
use super::Exit;
use super::headroom::{self, null_throughput};
use super::records::Records;
use super::servers::{ServerName, Supply, cores};
use super::trial::{Trial, Tried};
use crate::harness::provenance;
use crate::record::{GateName, RunRecord};
use crate::scenario::{LoadArgs, UsageError};
use crate::slo::Slo;
use crate::units::{MessagesPerSecond, Nanos};

/// Trials of one search at most; bisection needs far fewer.
const TRIALS_MAX: usize = 100;

/// How often a trial is repeated that was not valid.
const INVALID_MAX: usize = 3;

/// Messages that a trial has to hold, or it tells nothing.
const MESSAGES_MIN: f64 = 100.0;

/// The first load, as a share of what a closed loop reaches.
const BEGIN_SHARE: f64 = 0.1;

/// A line to stderr, which may be gone: a search does not end for that.
macro_rules! tell {
    ($($line:tt)*) => {
        _ = writeln!(io::stderr(), $($line)*)
    };
}

/// Finds the highest offered load at which a server keeps its goals (RFC 9971).
#[derive(Clone, Debug, Args)]
pub(super) struct SearchArgs {
    /// Server: inline, inline-task, tonic, peer:NAME, cmd:PROGRAM ARGUMENTS, or http://HOST:PORT
    server: ServerName,

    /// Goals to be kept, such as 'p99<5ms,errors=0'
    #[arg(long, value_name = "GOALS")]
    slo: Slo,

    #[command(flatten)]
    load: LoadArgs,

    /// First load [default: a tenth of what a closed loop reaches]
    #[arg(long, value_name = "RATE")]
    min_rate: Option<MessagesPerSecond>,

    /// Highest load to try
    #[arg(long, value_name = "RATE", default_value = "1000M")]
    max_rate: MessagesPerSecond,

    /// Distance of the two rates at which the search ends, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    width: f64,

    /// Load before each trial, never recorded
    #[arg(long, value_name = "TIME", default_value = "1s")]
    warmup: Nanos,

    /// Length of a trial
    #[arg(long, value_name = "TIME", default_value = "5s")]
    duration: Nanos,

    /// Pause before each trial
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    cool_down: Nanos,

    /// Longer trials at the rate that was found
    #[arg(long, value_name = "N", default_value_t = 3)]
    confirmations: usize,

    /// Length of those
    #[arg(long, value_name = "TIME", default_value = "10s")]
    confirmation_duration: Nanos,

    /// Share of those that may miss, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50.0)]
    exceed_ratio: f64,

    /// Cores of the server, such as 0,1 [default: the first half]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    server_cpus: Vec<usize>,

    /// Cores of loadgen, a shard on each [default: the rest]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    cpus: Vec<usize>,

    /// Where peers are described
    #[arg(long, value_name = "PATH", default_value = "loadgen/peers/peers.toml")]
    peers: PathBuf,

    /// New folder to keep the records of all trials in [default: they are not kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Searches. The exit code is as [`super::main`] tells; valid runs are required.
pub(super) fn run(args: &SearchArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(search(args)) {
        Ok(exit) => Ok(exit.into()),
        Err(error) if error.is::<UsageError>() => {
            tell!("loadgen: {error:#}");
            Ok(Exit::Usage.into())
        }
        Err(error) => Err(error),
    }
}

async fn search(args: &SearchArgs) -> anyhow::Result<Exit> {
    check(args)?;
    let (server_cpus, loadgen_cpus) = cores(&args.server_cpus, &args.cpus, &provenance::cpus())?;
    let supply = args.server.supply(&args.peers).await?;
    let records = Records::new(args.out.as_deref())?;
    let open = LoadArgs { rate: Some(args.max_rate), ..args.load.clone() };
    let null_throughput =
        null_throughput(headroom::closed(&open), &server_cpus, &loadgen_cpus).await?;
    tell!("search: against a null echo loadgen carries {null_throughput}");
    let mut searching = Searching {
        args,
        supply,
        server_cpus,
        loadgen_cpus,
        records,
        null_throughput: Some(null_throughput),
        trials: Vec::new(),
    };
    let begin = match args.min_rate {
        Some(rate) => rate.0,
        None => BEGIN_SHARE * searching.closed_loop().await?,
    };
    let bounds = Bounds {
        begin,
        least: begin.min(MESSAGES_MIN / args.duration.as_secs_f64()),
        max: args.max_rate.0,
        width: args.width / 100.0,
        confirmations: args.confirmations,
        exceed_ratio: args.exceed_ratio / 100.0,
    };
    let found = searching.steps(Steps::new(bounds)).await?;
    searching.show(found)
}

fn check(args: &SearchArgs) -> Result<(), UsageError> {
    let wrong = |flag, value: String, cure: &str| UsageError { flag, value, cure: cure.to_owned() };
    if let Some(rate) = args.load.rate {
        let cure = "is what is searched for; leave it out, or pass --min-rate and --max-rate";
        return Err(wrong("--rate", rate.0.to_string(), cure));
    }
    if !(args.width >= 0.1 && args.width <= 100.0) {
        return Err(wrong("--width", args.width.to_string(), "need 0.1 to 100 percent"));
    }
    if !(args.exceed_ratio >= 0.0 && args.exceed_ratio < 100.0) {
        let cure = "need a percentage from 0 and below 100";
        return Err(wrong("--exceed-ratio", args.exceed_ratio.to_string(), cure));
    }
    if args.min_rate.is_some_and(|min| min.0 > args.max_rate.0) {
        let cure = "is below --min-rate; pass one above it";
        return Err(wrong("--max-rate", args.max_rate.0.to_string(), cure));
    }
    Ok(())
}

/// How a trial ended.
#[derive(Debug)]
enum Judged {
    Kept,
    /// Why the goals were missed.
    Missed(String),
    /// Why the trial says nothing.
    Invalid(String),
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    rate: f64,
    longer: bool,
    judged: Judged,
    record: Option<Box<RunRecord>>,
}

/// A search that goes on.
struct Searching<'a> {
    args: &'a SearchArgs,
    supply: Supply,
    server_cpus: Vec<usize>,
    loadgen_cpus: Vec<usize>,
    records: Records,
    null_throughput: Option<MessagesPerSecond>,
    trials: Vec<Row>,
}

impl Searching<'_> {
    async fn steps(&mut self, mut steps: Steps) -> anyhow::Result<Found> {
        while self.trials.len() < TRIALS_MAX {
            let (rate, longer) = match steps.next() {
                Step::Try(rate) => (rate, false),
                Step::Confirm(rate) => (rate, true),
                Step::Done(found) => return Ok(found),
            };
            match self.judge(rate, longer).await? {
                None => steps.cannot_judge(rate),
                Some(kept) if longer => steps.confirmed(kept),
                Some(kept) => steps.tried(rate, kept),
            }
        }
        anyhow::bail!(
            "no end after {TRIALS_MAX} trials; pass a larger --width or a longer --duration"
        )
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
            self.trials.push(Row { rate, longer, judged, record });
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    /// What a closed loop reaches, whether it is valid or not: only where to begin.
    async fn closed_loop(&mut self) -> anyhow::Result<f64> {
        let (_, record) = self.trial(None, false).await?;
        let record = record.context("the closed loop to begin with gave no record")?;
        let throughput = record.measured.throughput_messages_per_s;
        tell!("search: a closed loop reaches {}", MessagesPerSecond(throughput));
        anyhow::ensure!(throughput > 0.0, "a closed loop reaches nothing; pass --min-rate");
        Ok(throughput)
    }

    async fn trial(
        &mut self,
        rate: Option<f64>,
        longer: bool,
    ) -> anyhow::Result<(Judged, Option<Box<RunRecord>>)> {
        let SearchArgs { warmup, duration, confirmation_duration, cool_down, .. } = *self.args;
        tokio::time::sleep(cool_down.as_duration()).await;
        let duration = if longer { confirmation_duration } else { duration };
        let load = LoadArgs { rate: rate.map(MessagesPerSecond), ..self.args.load.clone() };
        let mut flags = load.flags();
        flags.extend(["--warmup".to_owned(), format!("{}ns", warmup.0)]);
        flags.extend(["--duration".to_owned(), format!("{}ns", duration.0)]);
        let number = self.trials.len() + 1;
        flags.extend(["--seed".to_owned(), number.to_string()]);
        let trial = Trial {
            flags: &flags,
            server_cpus: &self.server_cpus,
            loadgen_cpus: &self.loadgen_cpus,
            time: warmup + duration,
            null_throughput: rate.and(self.null_throughput),
        };
        let name = rate.map_or("closed-loop.json".to_owned(), |_| format!("trial-{number}.json"));
        let json = self.records.file(&name);
        let tried = match &self.supply {
            Supply::Fresh(command) => trial.on(command, &json).await?,
            Supply::Running(target) => trial.at(target, None, &json).await?,
        };
        Ok(match tried {
            Tried::Valid(record) | Tried::Invalid(record, _) => {
                (self.judged(&record), Some(record))
            }
            Tried::Failed(Some(record), why) if is_overload(&record) => {
                (Judged::Missed(why), Some(record))
            }
            Tried::Failed(_, why) => anyhow::bail!("{}: {why}", self.args.server),
        })
    }

    /// A backlog that grows, or a schedule that was not achieved, is the server's loss; any other gate
    /// that failed is the generator's, and says nothing of the server.
    fn judged(&self, record: &RunRecord) -> Judged {
        let is_loss = |name| matches!(name, GateName::Backlog | GateName::Achieved);
        if let Some(gate) = record.failed_gates().find(|gate| !is_loss(gate.name)) {
            return Judged::Invalid(gate.message.clone());
        }
        let missed = record.measured.missed(&self.args.slo);
        let losses = record.failed_gates().map(|gate| gate.message.clone());
        let why: Vec<_> = missed.into_iter().chain(losses).collect();
        if why.is_empty() { Judged::Kept } else { Judged::Missed(why.join("; ")) }
    }

    fn show(&self, found: Found) -> anyhow::Result<Exit> {
        let mut text = String::from("| trial | offered | achieved | p50 | p99 | judged |\n");
        text.push_str("|---|---|---|---|---|---|\n");
        for (number, row) in (1..).zip(&self.trials) {
            let Row { rate, longer, judged, record } = row;
            let kind = if *longer { " (confirmation)" } else { "" };
            let judged = match judged {
                Judged::Kept => "kept".to_owned(),
                Judged::Missed(why) => format!("missed: {why}"),
                Judged::Invalid(why) => format!("invalid: {why}"),
            };
            let cells = record.as_ref().map_or(
                ["-".to_owned(), "-".to_owned(), "-".to_owned()],
                |record| {
                    let measured = &record.measured;
                    let achieved =
                        MessagesPerSecond(measured.throughput_messages_per_s).to_string();
                    let percentile = |percent| measured.latency().percentile(percent).to_string();
                    [achieved, percentile(50.0), percentile(99.0)]
                },
            );
            let rate = MessagesPerSecond(*rate);
            text.push_str(&format!(
                "| {number}{kind} | {rate} | {} | {judged} |\n",
                cells.join(" | ")
            ));
        }
        let SearchArgs { slo, server, width, confirmations, .. } = self.args;
        let (line, exit) = match (found.lower, found.upper) {
            (Some(lower), Some(upper)) => {
                let (lower, upper) = (MessagesPerSecond(lower), MessagesPerSecond(upper));
                let line = format!(
                    "{server} keeps {slo} up to {lower} (relevant lower bound, {confirmations} \
                     confirmation trials), and misses it at {upper}; goal width {width} %"
                );
                (line, Exit::Done)
            }
            (Some(lower), None) if lower >= self.args.max_rate.0 => {
                let lower = MessagesPerSecond(lower);
                (
                    format!("{server} keeps {slo} at {lower}, the highest that was to be tried"),
                    Exit::Done,
                )
            }
            (Some(lower), None) => {
                let lower = MessagesPerSecond(lower);
                let line = format!(
                    "{server} keeps {slo} at {lower}; above, loadgen itself is not valid: give it more \
                     cores (--cpus)"
                );
                (line, Exit::Invalid)
            }
            (None, Some(upper)) => {
                let upper = MessagesPerSecond(upper);
                (format!("{server} misses {slo} even at {upper}"), Exit::GoalMissed)
            }
            (None, None) => ("no trial was valid: see the gates above".to_owned(), Exit::Invalid),
        };
        let text = format!("{text}\n{line}\n");
        io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")?;
        Ok(exit)
    }
}

/// Whether a run failed because the server could not carry the load.
fn is_overload(record: &RunRecord) -> bool {
    let measured = &record.measured;
    measured.unstable.is_some() || measured.messages_lost > 0 || measured.streams_unfinished > 0
}
