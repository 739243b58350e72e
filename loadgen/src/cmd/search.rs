//! `loadgen search SERVER --slo GOALS`: the highest offered load at which a server keeps its goals.
//!
//! In: a server, goals, a load without a rate. Out: two rates as close as asked, below the one the goals
//! are kept, above the other they are missed; and the trials that say so. The order of the trials is
//! `steps`; each has a fresh server, unless it runs already, and a pause before it.

pub(super) mod knee;
pub(super) mod steps;

use std::io::{self, Write as _};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use self::knee::{Ask, Ended, HowArgs, Judged, Row, Searched, TRIALS_MAX, find, needed_rate};
use self::steps::Found;
use super::Exit;
use super::interrupt::{interrupted, prepared};
use super::records::Records;
use super::servers::{ServerName, WhereArgs, check_preheat, cores};
use super::trial::check_open_loop;
use crate::harness::provenance;
use crate::report::in_a_cell;
use crate::scenario::{LoadArgs, UsageError, check_duration};
use crate::slo::Slo;
use crate::units::MessagesPerSecond;

/// Every trial has a rate.
const IN_FLIGHT: &str = "Messages sent and not yet echoed, per stream [default: unbounded]";

/// Finds the highest offered load at which a server keeps its goals (RFC 9971).
#[derive(Clone, Debug, Args)]
// A rate is what is searched for: it is refused with that reason, and not offered.
#[command(mut_arg("rate", |rate| rate.hide(true)))]
#[command(mut_arg("in_flight", |bound| bound.help(IN_FLIGHT)))]
pub(super) struct SearchArgs {
    /// Server: inline, inline-task, tonic, peer:NAME, cmd:PROGRAM ARGUMENTS, or http://HOST:PORT
    server: ServerName,

    /// Goals to be kept, such as 'p99<5ms,errors=0'
    #[arg(long, value_name = "GOALS")]
    slo: Slo,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    how: HowArgs,

    #[command(flatten)]
    places: WhereArgs,
}

/// Searches. The exit code is as [`super::main`] tells; valid runs are required.
pub(super) fn run(args: &SearchArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(search(args))?.into())
}

async fn search(args: &SearchArgs) -> anyhow::Result<Exit> {
    check(args)?;
    let (server_cpus, loadgen_cpus) =
        cores(&args.places.server_cpus, &args.places.cpus, &provenance::cpus())?;
    let mut stop = pin!(interrupted());
    let ready = async {
        let awake = args.places.awake(&server_cpus, &loadgen_cpus, &[&args.server]).await?;
        anyhow::Ok((awake, args.server.supply(&args.places.peers).await?))
    };
    let (awake, supply) = prepared(ready, &mut stop).await?;
    let ask = Ask {
        awake_cpus: awake.cpus().to_vec(),
        calm: args.places.calm(),
        name: args.server.to_string(),
        supply,
        slo: args.slo.clone(),
        load: args.load.clone(),
        how: args.how.clone(),
        server_cpus,
        loadgen_cpus,
        records: Records::new(args.places.out.as_deref())?,
    };
    show(args, &find(&ask, stop).await?)
}

fn check(args: &SearchArgs) -> Result<(), UsageError> {
    let wrong = |flag, value: String, cure: &str| UsageError { flag, value, cure: cure.to_owned() };
    if let Some(rate) = args.load.rate {
        let cure = "is what is searched for; leave it out, or pass --min-rate and --max-rate";
        return Err(wrong("--rate", rate.0.to_string(), cure));
    }
    args.load.check_size()?;
    check_duration("--duration", args.how.duration)?;
    check_duration("--confirmation-duration", args.how.confirmation_duration)?;
    check_open_loop("--duration", args.how.duration)?;
    check_open_loop("--confirmation-duration", args.how.confirmation_duration)?;
    if !(args.how.width >= 0.1 && args.how.width <= 100.0) {
        return Err(wrong("--width", args.how.width.to_string(), "need 0.1 to 100 percent"));
    }
    if !(args.how.exceed_ratio >= 0.0 && args.how.exceed_ratio < 100.0) {
        let cure = "need a percentage from 0 and below 100";
        return Err(wrong("--exceed-ratio", args.how.exceed_ratio.to_string(), cure));
    }
    let needed = MessagesPerSecond(needed_rate(&args.slo, args.how.duration));
    let (flag, rate) = match args.how.min_rate {
        Some(rate) => ("--min-rate", rate),
        None => ("--max-rate", args.how.max_rate),
    };
    // A rate that is typed in decimals may be off in its last binary digit.
    if rate.0 < needed.0 * (1.0 - 1e-9) {
        let cure = format!(
            "a trial of {} has too few messages for {}; pass {needed} or more, or a longer --duration",
            args.how.duration, args.slo
        );
        return Err(wrong(flag, rate.0.to_string(), &cure));
    }
    check_preheat(args.how.preheat, &[&args.server])?;
    if args.how.min_rate.is_some_and(|min| min.0 > args.how.max_rate.0) {
        let cure = "is below --min-rate; pass one above it";
        return Err(wrong("--max-rate", args.how.max_rate.0.to_string(), cure));
    }
    Ok(())
}

fn show(args: &SearchArgs, searched: &Searched) -> anyhow::Result<Exit> {
    let (line, exit) = result(&args.server.to_string(), &args.slo, &args.how, searched);
    let text = format!("{}\n{line}\n", table(searched));
    io::stdout().write_all(text.as_bytes()).context("cannot write to stdout")?;
    Ok(exit)
}

/// A row for each trial, in their order.
pub(in crate::cmd) fn table(searched: &Searched) -> String {
    let mut text = String::from("| trial | offered | achieved | p50 | p99 | judged |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for (number, row) in (1..).zip(&searched.trials) {
        let Row { rate, longer, judged, achieved, p50, p99 } = row;
        let kind = if *longer { " (confirmation)" } else { "" };
        let judged = match judged {
            Judged::Kept => "kept".to_owned(),
            Judged::Missed(why) => format!("missed: {}", in_a_cell(why)),
            Judged::Invalid(why) => format!("invalid: {}", in_a_cell(why)),
        };
        let rate = MessagesPerSecond(*rate);
        let [p50, p99] = [p50, p99].map(|(time, is_beyond)| {
            let beyond = if *is_beyond { ">" } else { "" };
            format!("{beyond}{time}")
        });
        text.push_str(&format!(
            "| {number}{kind} | {rate} | {achieved} | {p50} | {p99} | {judged} |\n"
        ));
    }
    text
}

/// What was found, in a line. What could not be judged is told as that, never as a miss.
fn result(server: &str, slo: &Slo, how: &HowArgs, searched: &Searched) -> (String, Exit) {
    let HowArgs { max_rate, width, confirmations, .. } = how;
    let Found { lower, upper, unjudged, confirmed } = searched.found;
    let [lower, upper] = [lower, upper].map(|rate| rate.map(MessagesPerSecond));
    let misses = upper.map_or(String::new(), |rate| format!(", and misses it at {rate}"));
    let known = match (lower, upper) {
        (None, None) => format!("no load is known at which {server} keeps or misses {slo}"),
        (None, Some(upper)) => {
            let even = if unjudged.is_none() { "even " } else { "" };
            format!("{server} misses {slo} {even}at {upper}")
        }
        (Some(lower), None) if lower.0 >= max_rate.0 => {
            format!("{server} keeps {slo} at {lower}, the highest that was to be tried")
        }
        (Some(lower), _) if confirmed && unjudged.is_none() => format!(
            "{server} keeps {slo} up to {lower} (relevant lower bound, {confirmations} \
             confirmation trials){misses}; goal width {width} %"
        ),
        (Some(lower), _) => format!("{server} keeps {slo} at least up to {lower}{misses}"),
    };
    let mut parts = vec![known];
    parts.extend(unjudged.map(|rate| {
        let why = searched.why_invalid(|row| row.rate == rate);
        format!("at {} it could not be judged: {why}", MessagesPerSecond(rate))
    }));
    if lower.is_some() && !confirmed {
        let why = searched.why_invalid(|row| row.longer);
        parts.push(format!("not confirmed: {why}"));
    }
    let cure = "pass a larger --width or a longer --duration";
    match &searched.ended {
        Ended::Known => {}
        Ended::OutOfTrials => parts.push(format!("no nearer after {TRIALS_MAX} trials: {cure}")),
        Ended::Hopeless => parts.push(format!(
            "given up: none of {} trials could be judged; try again when the machine is calm, or pass --calm-limit",
            searched.trials.len()
        )),
        Ended::Interrupted => parts.push("interrupted".to_owned()),
        Ended::Failed(why) => parts.push(format!("ended by a trial that failed: {why}")),
    }
    let exit = match (lower, upper) {
        _ if searched.ended == Ended::Hopeless => Exit::Invalid,
        _ if searched.ended != Ended::Known => Exit::Failed,
        _ if unjudged.is_some() => Exit::Invalid,
        (None, None) => Exit::Invalid,
        (None, Some(_)) => Exit::GoalMissed,
        (Some(_), _) if confirmed => Exit::Done,
        (Some(_), _) => Exit::Invalid,
    };
    (parts.join("; "), exit)
}

#[cfg(test)]
mod tests;
