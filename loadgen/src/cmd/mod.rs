//! One file per verb; here is where driving, surroundings and reports meet.

/// A line to stderr, which may be gone: what is measured does not end for that.
macro_rules! tell {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($line)*)
    }};
}

mod compare;
mod headroom;
mod interrupt;
mod merge;
mod output;
mod records;
mod report;
mod run;
mod search;
mod servers;
mod suite;
mod trial;

use std::io::Write;
use std::process::ExitCode;

use bidi_echo::config::{Config, Placement, Transport};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use self::headroom::CarriesNothing;
use crate::harness;
use crate::scenario::{RunArgs, UsageError};

/// Load generator for gRPC bidirectional streams: per-message latency, honestly
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, long_version = LONG_VERSION)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    run: RunArgs,
}

const LONG_VERSION: &str = bidi_echo::build_info::PRODUCT;

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure one scenario against one server (what is done without a verb)
    Run(Box<RunArgs>),
    /// Compare servers: scenarios x servers, interleaved, with a table of ratios
    Suite(suite::SuiteArgs),
    /// Tell whether one server differs from another, in interleaved pairs of runs
    Compare(Box<compare::CompareArgs>),
    /// Find the highest offered load at which a server keeps its goals
    Search(Box<search::SearchArgs>),
    /// Draw records: a Markdown table, CSV, a page, a figure, or for the tools of HdrHistogram
    Report(report::ReportArgs),
    /// Add the histograms of several generators' logs and records
    Merge(merge::MergeArgs),
    /// Be the server that does nothing, for another loadgen
    #[command(name = harness::null::VERB, hide = true)]
    NullEcho,
    /// Keep cores awake for another loadgen
    #[command(name = harness::awake::VERB, hide = true)]
    KeepAwake {
        /// The cores
        #[arg(value_delimiter = ',', required = true)]
        cpus: Vec<usize>,
    },
    /// Be the embedded server of another loadgen
    #[command(name = harness::server::VERB, hide = true)]
    EmbeddedServer {
        /// What carries the streams
        #[arg(long, value_enum, default_value_t = Config::default().transport)]
        transport: Transport,

        /// Where the streams of the inline transport run
        #[arg(long, value_enum)]
        placement: Option<Placement>,
    },
}

/// How loadgen ends: the first of these that applies, in this order, but that bad usage goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// All well.
    Done = 0,
    /// Something was lost, wrong or failed.
    Failed = 1,
    /// A command line or a file that cannot be run.
    Usage = 2,
    /// Valid runs were required, and one is not.
    Invalid = 3,
    /// A goal was not met.
    GoalMissed = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Parses the command line and does what it says. `upkeep` runs beside an embedded server, whose
/// allocator is the binary's.
///
/// Exit codes: 0 done; 1 something was lost, wrong or failed; 2 bad usage; 3 invalid, where valid runs
/// were required; 4 a goal was missed. Of several, the first of 2, 1, 3, 4.
pub fn main(upkeep: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<ExitCode> {
    let matches = Cli::command().get_matches();
    let typed = |matches: &clap::ArgMatches| {
        matches.value_source("duration") == Some(ValueSource::CommandLine)
    };
    let duration_was_typed = match matches.subcommand() {
        Some(("run", run)) => typed(run),
        Some(_) => false,
        None => typed(&matches),
    };
    let cli = Cli::from_arg_matches(&matches)?;
    // Every verb: servers and runs that are started inherit it. A stderr that is gone changes nothing.
    if let Err(error) = bidi_echo::serve::raise_open_files_limit() {
        _ = writeln!(std::io::stderr(), "loadgen: cannot raise the limit of open files: {error}");
    }
    let mut args = match cli.verb {
        Some(Verb::EmbeddedServer { transport, placement }) => {
            harness::server::serve_until_stdin_ends(transport.placed(placement)?, upkeep)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verb::NullEcho) => {
            harness::null::serve_until_stdin_ends()?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verb::KeepAwake { cpus }) => {
            harness::awake::keep_awake_until_stdin_ends(&cpus)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verb::Suite(args)) => return told(suite::run(&args)),
        Some(Verb::Compare(args)) => return told(compare::run(&args)),
        Some(Verb::Search(args)) => return told(search::run(&args)),
        Some(Verb::Report(args)) => return told(report::run(&args)),
        Some(Verb::Merge(args)) => return told(merge::run(&args)),
        Some(Verb::Run(args)) => *args,
        None => cli.run,
    };
    args.duration_was_typed = duration_was_typed;
    run::run(&args)
}

/// What has an exit code of its own is told here.
fn told(done: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    done.or_else(|error| {
        let Some(exit) = exit_of(&error) else { return Err(error) };
        // A stderr that is gone changes nothing about the exit code.
        _ = writeln!(std::io::stderr(), "loadgen: {error:#}");
        Ok(exit.into())
    })
}

/// `None`: that of any error.
fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    if error.is::<UsageError>() {
        return Some(Exit::Usage);
    }
    // Valid runs are required of these verbs, and there would be none.
    error.is::<CarriesNothing>().then_some(Exit::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MessagesPerSecond;

    #[test]
    fn what_could_not_be_judged_is_invalid_whatever_was_done_meanwhile() {
        let why = "send_lag: L p99 3 ms".to_owned();
        let nothing = CarriesNothing { rate: MessagesPerSecond(25.0), why };
        let said = nothing.to_string();
        assert!(said.contains("not even 25 messages/s: send_lag: L p99 3 ms; leave it"), "{said}");
        let error = anyhow::Error::from(nothing);
        assert_eq!(exit_of(&error), Some(Exit::Invalid));
        assert_eq!(exit_of(&error.context("search")), Some(Exit::Invalid));
        let usage = UsageError { flag: "--rate", value: String::new(), cure: String::new() };
        assert_eq!(exit_of(&usage.into()), Some(Exit::Usage));
        assert_eq!(exit_of(&anyhow::anyhow!("a disk is full")), None);
    }
}
