//! `loadgen merge`: what several generators measured at once, as one.
//!
//! In: HdrHistogram logs and records. Out: a log in which every value of theirs is once, or a distribution
//! or table of that. Histograms are added; percentiles are never averaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use super::{output, report as records};
use crate::record::{Hlog, Timing};
use crate::report;
use crate::scenario::UsageError;

/// Adds the histograms of several generators' logs and records; percentiles are never averaged.
#[derive(Clone, Debug, Args)]
pub(super) struct MergeArgs {
    /// HdrHistogram logs (*.hlog) and records (*.json), two or more
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// What is written
    #[arg(long, value_enum, default_value_t = Format::Hlog)]
    format: Format,

    /// File to write, whole or not at all; never over one under results/ [default: stdout]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,

    /// The time that --format hgrm is of [default: response_time, or service_time if there is none]
    #[arg(long, value_enum)]
    timing: Option<Timing>,
}

/// What the sum is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A HdrHistogram log
    Hlog,
    /// One time as a percentile distribution, in ms
    Hgrm,
    /// A row per time, and one per second
    Csv,
}

/// The exit code is 0, 1 or 2, as [`super::main`] tells.
pub(super) fn run(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    output::check(args.out.as_deref())?;
    let logs = args.paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let sum = Hlog::merge(&logs);
    let what = format!("loadgen merge of {} logs", logs.len());
    let text = match args.format {
        Format::Hlog => sum.text(&what),
        Format::Csv => report::csv_of_log(&sum),
        Format::Hgrm => {
            let timing = timing(args, &sum)?;
            let missing = records::without_echo(timing.of_missing(sum.missing));
            let invalid = records::invalid(&sum.failed_gates);
            let what = format!("{} of {what}{missing}{invalid}", timing.key());
            report::hgrm(&sum.sum(Some(timing.key())), &what)
        }
    };
    output::put(&text, args.out.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &MergeArgs) -> Result<(), UsageError> {
    let usage =
        |flag, value: String, cure: &str| Err(UsageError { flag, value, cure: cure.to_owned() });
    if let [only] = args.paths.as_slice() {
        let cure = "is one alone; pass two or more, or draw it with loadgen report";
        return usage("PATH", only.display().to_string(), cure);
    }
    let mut seen = Vec::new();
    for path in &args.paths {
        // A path that leads nowhere is told when it is read.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if seen.contains(&real) {
            let cure = "stands there twice, and its values would count twice; pass each once";
            return usage("PATH", path.display().to_string(), cure);
        }
        seen.push(real);
    }
    if args.timing.is_some() && args.format != Format::Hgrm {
        let value = args.timing.map_or("", Timing::key).to_owned();
        return usage("--timing", value, "only --format hgrm is of a single time; leave it out");
    }
    Ok(())
}

/// A log as it is, or that of a record.
fn read(path: &Path) -> anyhow::Result<Hlog> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return records::log(&records::name(path), &records::read(path)?);
    }
    let shown = path.display();
    let text = fs::read(path)
        .map_err(|error| anyhow!("cannot read {shown}: {error}; pass a log or a record"))?;
    Hlog::parse(&text).map_err(|error| {
        anyhow!("{shown} is no HdrHistogram log that can be read: {error}; take another copy of it")
    })
}

/// The time that was asked for, or that messages are judged by. Err: it is not in any of the logs.
fn timing(args: &MergeArgs, sum: &Hlog) -> anyhow::Result<Timing> {
    let tags = sum.tags();
    let has = |timing: &Timing| tags.contains(&Some(timing.key()));
    let usual = [Timing::ResponseTime, Timing::ServiceTime];
    let chosen = match args.timing {
        Some(timing) => Some(timing).filter(has),
        None => usual.into_iter().find(has),
    };
    chosen.ok_or_else(|| {
        let tags: Vec<_> = tags.iter().map(|tag| tag.unwrap_or("no tag")).collect();
        let asked = args.timing.map_or("response_time or service_time", Timing::key);
        anyhow!(
            "no {asked} in these logs, but {}; pass --timing, or --format hlog",
            tags.join(", ")
        )
    })
}
