//! One file per verb; here is where driving, surroundings and reports meet.

mod report;
mod run;
mod suite;

use std::process::ExitCode;

use bidi_echo::config::{Config, Placement, Transport};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use crate::harness;
use crate::scenario::RunArgs;

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
    /// Print records as a Markdown table
    Report(report::ReportArgs),
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

/// Parses the command line and does what it says. `upkeep` runs beside an embedded server, whose
/// allocator is the binary's.
///
/// Exit codes: 0 all well; 1 something was lost, wrong or failed; 2 bad usage.
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
    let mut args = match cli.verb {
        Some(Verb::EmbeddedServer { transport, placement }) => {
            harness::server::serve_until_stdin_ends(transport.placed(placement)?, upkeep)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Verb::Suite(args)) => return suite::run(&args),
        Some(Verb::Report(args)) => return report::run(&args),
        Some(Verb::Run(args)) => *args,
        None => cli.run,
    };
    args.duration_was_typed = duration_was_typed;
    run::run(&args)
}
