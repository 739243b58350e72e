//! A suite's report: servers side by side, and by how much they differ from the baseline.
//!
//! In: the figures of every run, in the order of repetitions. Out: Markdown. A ratio is taken
//! between runs of one repetition, which stood next to each other in time; what is shown is the
//! median of these ratios, because neighbours share the machine's moods and medians forgive one.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use serde::Deserialize;

use super::mark::{Mark, Marks};
use super::markdown::in_a_cell;
use crate::record::{Resident, RunRecord, WarningKind, is_supported};
use crate::units::{Count, Nanos};

/// What is compared per second of the server's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Echoed messages.
    Messages,
    /// Payload bytes of echoed messages.
    Bytes,
}

impl Figure {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Figure::Messages => "messages per server CPU-second",
            Figure::Bytes => "bytes per server CPU-second",
        }
    }

    /// Behind its numbers.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Figure::Messages => "",
            Figure::Bytes => "B",
        }
    }
}

/// What a suite gave.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Title and what stands above the tables, in Markdown.
    pub preface: String,
    /// Server that the others are divided by.
    pub baseline: String,
    /// Server that is judged: it is divided by each of the others, too.
    pub subject: Option<String>,
    /// Scenarios, in the suite's order.
    pub scenarios: Vec<Compared>,
    /// What stands below the tables, in Markdown.
    pub appendix: String,
}

/// One scenario on all servers.
#[derive(Clone, Debug)]
pub struct Compared {
    /// As the suite names it.
    pub name: String,
    /// Its load, in words.
    pub load: String,
    /// What is compared.
    pub figure: Figure,
    /// Whether messages leave by the clock.
    pub open_loop: bool,
    /// Servers, in the suite's order.
    pub servers: Vec<Contender>,
}

/// One server in one scenario.
#[derive(Clone, Debug)]
pub struct Contender {
    /// As the suite names it.
    pub name: String,
    /// Why it has no runs.
    pub skipped: Option<String>,
    /// Its rate is a share of a knee that could not be judged to its end: it may carry more.
    pub knee_is_open: bool,
    /// One per repetition that was reached.
    pub runs: Vec<Outcome>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All well: its figures count.
    Counted(Figures),
    /// Its CPU times count, the rest as the mark says; why that is known.
    Marked(Figures, Mark, String),
    /// An open loop offered more than the server carries: there is no time that it would settle at.
    Overloaded(String),
    /// Something was lost, wrong or failed.
    Failed(String),
    /// A gate failed: the figures may be loadgen's.
    Invalid(String),
}

/// What is compared of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Messages or bytes per server CPU-second.
    pub per_server_cpu_s: f64,
    /// Messages per second.
    pub messages_per_s: f64,
    /// Median of R, in closed loop of S, unless it is among the messages that have no echo, or these are not known.
    pub p50: Option<Nanos>,
    /// Its 99th percentile, likewise, if the samples hold it up.
    pub p99: Option<Nanos>,
    /// The server's CPU time for a message.
    pub server_cpu_per_message: Nanos,
    /// loadgen's CPU time for a message, if known.
    pub loadgen_cpu_per_message: Option<Nanos>,
    /// Resident bytes of the server for an idle stream, if there was one.
    pub bytes_per_idle_stream: Option<f64>,
    /// The same for an idle connection.
    pub bytes_per_idle_connection: Option<f64>,
    /// Resident bytes of the server with everything open, if its process is known.
    pub all_open_bytes: Option<f64>,
    /// The share of that which went back to the system, if that was watched.
    pub share_given_back: Option<f64>,
    /// Why a closed loop says at least what the server carries, although no gate failed: it had time to spare.
    pub unsaturated: Option<String>,
    /// What else ran meanwhile, if p99 may be of that.
    pub others: Option<String>,
    /// What its record warns of.
    pub warnings: Vec<WarningKind>,
}

impl Figures {
    /// Those of a record; `None` if it does not know the server's CPU time.
    pub fn of(record: &RunRecord, figure: Figure) -> Option<Self> {
        let RunRecord { measured, scenario, .. } = record;
        let resident = measured.server_resident.as_ref();
        let messages = measured.messages_per_server_cpu_s?;
        let is_of_all = !record.is_of_answered();
        let percentile = |percent| match measured.percentile(percent) {
            (value, false) if is_of_all => Some(value),
            _ => None,
        };
        Some(Figures {
            per_server_cpu_s: match figure {
                Figure::Messages => messages,
                Figure::Bytes => messages * record.scenario.payload_bytes as f64,
            },
            messages_per_s: measured.throughput_messages_per_s,
            p50: percentile(50.0),
            p99: percentile(99.0).filter(|_| is_supported(measured.latency().count(), 99.0)),
            server_cpu_per_message: measured.cpu_per_message(measured.server)?,
            loadgen_cpu_per_message: measured.cpu_per_message(measured.loadgen),
            bytes_per_idle_stream: resident.and_then(|it| it.bytes_per_idle_stream(scenario)),
            bytes_per_idle_connection: resident
                .and_then(|it| it.bytes_per_idle_connection(scenario)),
            all_open_bytes: resident.map(|it| it.all_open_bytes as f64),
            share_given_back: resident.and_then(Resident::share_given_back),
            unsaturated: record
                .server_cpu_share_if_unsaturated()
                .map(|used| format!("the server used {:.0} % of its cores' time", 100.0 * used)),
            others: record.others_in_p99().map(|used| format!("others ran: {used}")),
            warnings: record.warnings.iter().map(|warning| warning.kind).collect(),
        })
    }
}

/// Median and extremes of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Middle value; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Spread { median: f64::midpoint(values[lower], values[upper]), min, max })
    }

    /// Of percentiles, which are never averaged: of an even number the lower one in the middle.
    fn of_times(values: impl IntoIterator<Item = Nanos>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort();
        let lower = values.len().checked_sub(1)? / 2;
        let [median, min, max] =
            [values[lower], values[0], values[values.len() - 1]].map(|time| time.0 as f64);
        Some(Spread { median, min, max })
    }

    fn show(self, cell: impl Fn(f64) -> String) -> String {
        let Spread { median, min, max } = self;
        if min == max {
            cell(median)
        } else {
            format!("{} ({} .. {})", cell(median), cell(min), cell(max))
        }
    }
}

/// Ratios of `ours` to `baseline`, repetition by repetition; pairs that lack one are left out.
pub fn paired_ratios(ours: &[Option<f64>], baseline: &[Option<f64>]) -> Vec<f64> {
    let pairs = ours.iter().zip(baseline);
    pairs.filter_map(|(ours, baseline)| Some((*ours)? / (*baseline)?)).collect()
}

impl Contender {
    fn counted(&self) -> impl Iterator<Item = &Figures> {
        self.runs.iter().filter_map(Outcome::figures)
    }

    pub(super) fn spread(&self, of: impl Fn(&Figures) -> f64) -> Option<Spread> {
        Spread::of(self.counted().map(of))
    }

    pub(super) fn per_cpu(&self) -> Option<Spread> {
        self.spread(|run| run.per_server_cpu_s)
    }

    pub(super) fn p50(&self) -> Option<Spread> {
        Spread::of_times(self.counted().filter_map(|run| run.p50))
    }

    /// Whether it ran, and no run says anything of it.
    pub(super) fn is_unknown(&self) -> bool {
        !self.runs.is_empty() && self.counted().next().is_none() && !self.is_overloaded()
    }

    /// Whether every run, or every one but those that say nothing, offered more than it carries.
    pub(super) fn is_overloaded(&self) -> bool {
        self.counted().next().is_none()
            && self.runs.iter().any(|run| matches!(run, Outcome::Overloaded(_)))
    }

    pub(super) fn p99(&self) -> Option<Spread> {
        Spread::of_times(self.counted().filter_map(|run| run.p99))
    }

    /// Why some runs have the mark, and how many.
    fn marked(&self, mark: Mark) -> Option<(usize, &str)> {
        let mut reasons = self.runs.iter().filter_map(|run| match run {
            Outcome::Marked(_, its, why) if *its == mark => Some(why.as_str()),
            Outcome::Counted(figures) => match mark {
                Mark::Bound => figures.unsaturated.as_deref(),
                Mark::Others => figures.others.as_deref(),
                _ => None,
            },
            _ => None,
        });
        let first = reasons.next()?;
        Some((1 + reasons.count(), first))
    }

    /// Those of its figures.
    pub(super) fn marks(&self) -> Marks {
        let of_runs = Mark::ALL.into_iter().filter(|mark| self.marked(*mark).is_some());
        let is_own = |run: &Outcome| matches!(run, Outcome::Overloaded(_) | Outcome::Failed(_));
        let is_partly = self.counted().next().is_some() && self.runs.iter().any(is_own);
        of_runs
            .chain(is_partly.then_some(Mark::Survivors))
            .chain(self.knee_is_open.then_some(Mark::OpenKnee))
            .collect()
    }

    pub(super) fn ratio(
        &self,
        baseline: Option<&Contender>,
        of: fn(&Figures) -> Option<f64>,
    ) -> Option<Spread> {
        let each = |contender: &Contender| {
            contender.runs.iter().map(|run| run.figures().and_then(of)).collect::<Vec<_>>()
        };
        Spread::of(paired_ratios(&each(self), &each(baseline?)))
    }
}

impl Outcome {
    fn figures(&self) -> Option<&Figures> {
        match self {
            Outcome::Counted(figures) | Outcome::Marked(figures, ..) => Some(figures),
            Outcome::Overloaded(_) | Outcome::Failed(_) | Outcome::Invalid(_) => None,
        }
    }
}

impl Compared {
    pub(super) fn server(&self, name: &str) -> Option<&Contender> {
        self.servers.iter().find(|server| server.name == name)
    }

    fn others(&self, without: &str) -> impl Iterator<Item = &Contender> {
        self.servers.iter().filter(move |server| server.name != without)
    }
}

impl Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.preface.trim_end())?;
        self.legends().try_for_each(|legend| writeln!(out, "\n{legend}"))?;
        self.write_ratios(out)?;
        for scenario in &self.scenarios {
            write_scenario(out, scenario, &self.baseline)?;
            write_memory(out, scenario)?;
        }
        self.write_exceptions(out)?;
        writeln!(out, "\n{}", self.appendix.trim_end())
    }
}

impl Comparison {
    /// What the marks mean that stand somewhere.
    pub(super) fn legends(&self) -> impl Iterator<Item = &'static str> {
        let stands = move |mark: &Mark| {
            let mut all = self.scenarios.iter().flat_map(|scenario| &scenario.servers);
            all.any(|it| !it.runs.is_empty() && it.marks().contains(*mark))
        };
        Mark::ALL.into_iter().filter(stands).map(Mark::legend)
    }

    fn write_ratios(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let baseline = &self.baseline;
        let to_baseline = |scenario: &Compared, other: &Contender| {
            other.ratio(scenario.server(baseline), |run| Some(run.per_server_cpu_s))
        };
        self.write_table(out, &format!("to {baseline}"), baseline, to_baseline)?;
        let Some(subject) = &self.subject else { return Ok(()) };
        let of_subject = |scenario: &Compared, other: &Contender| {
            scenario.server(subject)?.ratio(Some(other), |run| Some(run.per_server_cpu_s))
        };
        self.write_table(out, &format!("of {subject}"), subject, of_subject)
    }

    /// A ratio for each server but `without`, in each scenario.
    fn write_table(
        &self,
        out: &mut fmt::Formatter<'_>,
        what: &str,
        without: &str,
        ratio: impl Fn(&Compared, &Contender) -> Option<Spread>,
    ) -> fmt::Result {
        let Some(first) = self.scenarios.first() else { return Ok(()) };
        let names: Vec<_> = first.others(without).map(|server| server.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n## Ratios {what}, per server CPU-second\n")?;
        writeln!(out, "| scenario | load | {} |", names.join(" | "))?;
        writeln!(out, "|---|---|{}", "---|".repeat(names.len()))?;
        for scenario in &self.scenarios {
            write!(out, "| {} | {} |", scenario.name, in_a_cell(&scenario.load))?;
            for other in scenario.others(without) {
                let marks = marks([Some(other), scenario.server(without)]);
                let cell = |ratio: Spread| format!("{}{marks}", ratio.show(times));
                write!(out, " {} |", show(ratio(scenario, other), cell))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// What was not counted, and what makes suspect what was.
    fn write_exceptions(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        let mut skipped = BTreeMap::new();
        for scenario in &self.scenarios {
            for server in &scenario.servers {
                skipped.extend(server.skipped.as_ref().map(|reason| (&server.name, reason)));
                for (repetition, run) in (1..).zip(&server.runs) {
                    let (how, reason) = match run {
                        Outcome::Counted(_) | Outcome::Marked(..) => continue,
                        Outcome::Overloaded(reason) => ("is overloaded", reason),
                        Outcome::Failed(reason) => ("failed", reason),
                        Outcome::Invalid(reason) => ("is invalid", reason),
                    };
                    let name = format!("{}.{}.{repetition}", scenario.name, server.name);
                    let reason = in_a_cell(reason);
                    lines.push(format!("- {name} {how} and is not counted: {reason}"));
                }
                lines.extend(Mark::ALL.iter().filter_map(|mark| {
                    let (count, why) = server.marked(*mark)?;
                    let why = in_a_cell(why);
                    let (scenario, server, all) = (&scenario.name, &server.name, server.runs.len());
                    Some(format!("- {scenario}.{server} {mark} in {count} of {all} runs: {why}"))
                }));
                lines.extend(warnings(scenario, server));
            }
        }
        let skipped = skipped
            .into_iter()
            .map(|(server, reason)| format!("- {server} skipped: {}", in_a_cell(reason)));
        let lines: Vec<_> = skipped.chain(lines).collect();
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n## Skipped, failed, suspect\n\n{}", lines.join("\n"))
    }
}

pub(super) const DASH: &str = "-";

/// In place of a time that the server never settles at.
pub(super) const OVERLOADED: &str = "overloaded";

/// Of a ratio: those of both sides.
pub(super) fn marks<'a>(sides: impl IntoIterator<Item = Option<&'a Contender>>) -> Marks {
    sides.into_iter().flatten().flat_map(Contender::marks).collect()
}

fn write_scenario(out: &mut fmt::Formatter<'_>, scenario: &Compared, name: &str) -> fmt::Result {
    let baseline = scenario.server(name);
    let what = match scenario.figure {
        Figure::Messages => "messages",
        Figure::Bytes => "bytes",
    };
    let unit = scenario.figure.unit();
    let time_name = if scenario.open_loop { "R" } else { "S" };
    writeln!(out, "\n## {}: {}\n", scenario.name, in_a_cell(&scenario.load))?;
    writeln!(
        out,
        "| server | runs | {what} per server CPU-s | ratio | messages/s | ratio | {time_name} p50 | ratio \
         | {time_name} p99 | CPU a message, server / loadgen |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
    for server in &scenario.servers {
        let ratio = |of| match server.name == name && server.skipped.is_none() {
            true => times(1.0),
            false => show(server.ratio(baseline, of), |ratio| ratio.show(times)),
        };
        let middle = |of: &dyn Fn(&Figures) -> f64, cell: fn(f64) -> String| {
            show(server.spread(of), |spread| cell(spread.median))
        };
        let per_cpu = server.per_cpu();
        writeln!(
            out,
            "| {}{} | {} | {} | {} | {} | {} | {} | {} | {} | {} / {} |",
            server.name,
            server.marks(),
            runs(server),
            show(per_cpu, |spread| spread.show(|value| format!("{}{unit}", Count(value)))),
            ratio(|run| Some(run.per_server_cpu_s)),
            middle(&|run| run.messages_per_s, |value| Count(value).to_string()),
            ratio(|run| Some(run.messages_per_s)),
            match server.is_overloaded() {
                true => OVERLOADED.to_owned(),
                false => show(server.p50(), |spread| time(spread.median)),
            },
            ratio(|run| Some(run.p50?.0 as f64)),
            show(server.p99(), |spread| time(spread.median)),
            middle(&|run| run.server_cpu_per_message.0 as f64, time),
            show(loadgen_cpu(server), |spread| time(spread.median)),
        )?;
    }
    Ok(())
}

/// What is idle in a scenario costs the servers memory: how much, and what becomes of it.
fn write_memory(out: &mut fmt::Formatter<'_>, scenario: &Compared) -> fmt::Result {
    let of = |server: &Contender, figure: fn(&Figures) -> Option<f64>| {
        Spread::of(server.counted().filter_map(figure))
    };
    let is_idle = |run: &Figures| {
        run.bytes_per_idle_stream.or(run.bytes_per_idle_connection).or(run.share_given_back)
    };
    if !scenario.servers.iter().any(|server| of(server, is_idle).is_some()) {
        return Ok(());
    }
    writeln!(
        out,
        "\n| server | an idle stream | an idle connection | all open | given back |\n|---|---|---|---|---|"
    )?;
    for server in &scenario.servers {
        let bytes = |figure| show(of(server, figure), |spread| spread.show(bytes));
        writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            server.name,
            bytes(|run| run.bytes_per_idle_stream),
            bytes(|run| run.bytes_per_idle_connection),
            bytes(|run| run.all_open_bytes),
            show(of(server, |run| run.share_given_back), |spread| {
                spread.show(|share| format!("{:.0} %", 100.0 * share))
            }),
        )?;
    }
    Ok(())
}

fn bytes(count: f64) -> String {
    let text = Count(count).to_string();
    // `Count` ends with a unit of its own from 10,000 up.
    if text.contains(' ') { text + "B" } else { text + " B" }
}

fn loadgen_cpu(server: &Contender) -> Option<Spread> {
    Spread::of(server.counted().filter_map(|run| Some(run.loadgen_cpu_per_message?.0 as f64)))
}

fn show(spread: Option<Spread>, cell: impl Fn(Spread) -> String) -> String {
    spread.map_or(DASH.to_owned(), cell)
}

/// `5`, `4 of 5` if one failed, `skipped`.
fn runs(server: &Contender) -> String {
    let (counted, all) = (server.counted().count(), server.runs.len());
    match (&server.skipped, counted == all) {
        (Some(_), _) => "skipped".to_owned(),
        (None, true) => all.to_string(),
        (None, false) => format!("{counted} of {all}"),
    }
}

/// How often a server's runs carry each warning.
fn warnings(scenario: &Compared, server: &Contender) -> Vec<String> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for kind in server.counted().flat_map(|run| &run.warnings) {
        *kinds.entry(name(*kind)).or_default() += 1;
    }
    let all = server.runs.len();
    let line = |(kind, count)| {
        format!("- {}.{}: {kind} in {count} of {all} runs", scenario.name, server.name)
    };
    kinds.into_iter().map(line).collect()
}

/// As records spell it.
fn name(kind: WarningKind) -> String {
    let json = serde_json::to_value(kind).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

pub(super) fn times(ratio: f64) -> String {
    let mut text = Count(ratio).to_string();
    text.write_char('x').expect("a String takes whatever is written");
    text
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it was a number of nanoseconds before"
)]
pub(super) fn time(nanos: f64) -> String {
    Nanos(nanos as u64).to_string()
}

#[cfg(test)]
pub(super) mod tests;
