//! `loadgen report`: draws from records and measures nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};

use super::output;
use super::suite::KNEES;
use crate::record::{self, Hlog, RunRecord, Timing};
use crate::report;
use crate::scenario::UsageError;

/// Draws records: as a table, a page, a figure, or for the tools of HdrHistogram.
#[derive(Clone, Debug, Args)]
pub(super) struct ReportArgs {
    /// Records, or folders of records (*.json, in the order of their names)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// What is drawn
    #[arg(long, value_enum, default_value_t = Format::Markdown)]
    format: Format,

    /// File to write, whole or not at all; never over one under results/ [default: stdout]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,

    /// The time that --format hgrm is of [default: response_time, or service_time in closed loop]
    #[arg(long, value_enum)]
    timing: Option<Timing>,
}

/// What records are drawn as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table of one row per record
    Markdown,
    /// A row per record and time, and one per second
    Csv,
    /// One record as a HdrHistogram log
    Hlog,
    /// One time of one record as a percentile distribution, in ms
    Hgrm,
    /// A page that needs nothing else
    Html,
    /// Percentile spectrum and throughput over time
    Svg,
}

/// The exit code is 0, 1 or 2, as [`super::main`] tells.
pub(super) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    output::check(args.out.as_deref())?;
    let records = records(&args.paths)?;
    output::put(&drawn(args, &records)?, args.out.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn drawn(args: &ReportArgs, records: &[(String, RunRecord)]) -> anyhow::Result<String> {
    if args.timing.is_some() && args.format != Format::Hgrm {
        let cure = "only --format hgrm is of a single time; leave it out".to_owned();
        return Err(usage("--timing", named(args.timing), cure).into());
    }
    Ok(match args.format {
        Format::Markdown => report::markdown(records),
        Format::Csv => report::csv(records),
        Format::Svg => report::svg(records),
        Format::Html => report::html(records).map_err(|(name, damaged)| {
            anyhow!("{name}: a second of it is a {damaged}; take another copy of the record")
        })?,
        Format::Hlog => {
            let (name, record) = only(records, "hlog")?;
            log(name, record)?.text(&format!("loadgen record {name}"))
        }
        Format::Hgrm => {
            let (name, record) = only(records, "hgrm")?;
            let timing = args.timing.unwrap_or(Timing::headline(&record.measured));
            let hdr = timing.of(&record.measured).ok_or_else(|| {
                let cure =
                    "the record has no such time; a closed loop has flow_wait and service_time"
                        .to_owned();
                usage("--timing", timing.key(), cure)
            })?;
            let missing = without_echo(timing.missing(&record.measured));
            let invalid = invalid(&record.failed_gate_names());
            let what = format!("{} of loadgen record {name}{missing}{invalid}", timing.key());
            report::hgrm(hdr, &what)
        }
    })
}

/// What a distribution says of messages that are later than all that are in it.
pub(super) fn without_echo(missing: u64) -> String {
    match missing {
        0 => String::new(),
        _ => format!("; {missing} messages without an echo are later, and not in it"),
    }
}

/// What a distribution says of gates that failed.
pub(super) fn invalid(failed_gates: &BTreeSet<String>) -> String {
    if failed_gates.is_empty() {
        return String::new();
    }
    let names: Vec<_> = failed_gates.iter().map(String::as_str).collect();
    format!("; INVALID, failed gates: {}", names.join(", "))
}

fn named(timing: Option<Timing>) -> &'static str {
    timing.map_or("", Timing::key)
}

fn usage(flag: &'static str, value: impl ToString, cure: String) -> UsageError {
    UsageError { flag, value: value.to_string(), cure }
}

fn only<'a>(
    records: &'a [(String, RunRecord)],
    format: &str,
) -> Result<(&'a str, &'a RunRecord), UsageError> {
    match records {
        [(name, record)] => Ok((name, record)),
        _ => {
            let cure = format!(
                "holds one record, and these are {}; pass one, or add them with loadgen merge",
                records.len()
            );
            Err(usage("--format", format, cure))
        }
    }
}

/// A record's log. Err: which record has a second that cannot be read.
pub(super) fn log(name: &str, record: &RunRecord) -> anyhow::Result<Hlog> {
    Hlog::of(record).map_err(|damaged| {
        anyhow!("{name}: a second of it is a {damaged}; take another copy of the record")
    })
}

/// All records of these paths with their names, in order.
fn records(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, RunRecord)>> {
    let mut records = Vec::new();
    for path in paths {
        for file in files(path)? {
            records.push((name(&file), read(&file)?));
        }
    }
    Ok(records)
}

/// A record's name is its file's, without the ending.
pub(super) fn name(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Err: path, reason and cure, in one line.
pub(super) fn read(file: &Path) -> anyhow::Result<RunRecord> {
    record::read(file).map_err(|error| {
        let file = file.display();
        anyhow!("{file} is no record that can be read: {error}; pass what loadgen --json wrote")
    })
}

/// By its name. What a suite remembers beside its records is none of them.
pub(super) fn is_record(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json")
        && file.file_name().is_some_and(|name| name != KNEES)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let entries =
        path.read_dir().with_context(|| format!("cannot read the folder {}", path.display()))?;
    for entry in entries {
        let file = entry?.path();
        if is_record(&file) {
            files.push(file);
        }
    }
    anyhow::ensure!(
        !files.is_empty(),
        "no *.json in {}; pass records or a folder of them",
        path.display()
    );
    files.sort();
    Ok(files)
}
