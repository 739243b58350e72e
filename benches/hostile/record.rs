//! What is kept of a measurement, how it is judged, and how it is shown.
//!
//! In: runs. Out: a table on stdout, and a folder with one JSON (all figures of all runs) and a
//! REPORT.md (medians and verdicts). A folder that is there already is never written to.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bidi_echo::build_info;
use bidi_echo::config::Transport;
use serde_json::{Value, json};

use crate::attacker::Tally;
use crate::rows::{Row, code_name};
use crate::{BYTES_MAX, ROWS_PER_YARDSTICK};

/// The three criteria: the most that resident memory may grow, ...
pub(crate) const GROWTH_BYTES_MAX: u64 = 32 << 20;

/// Of the neighbour in a run: a p99.9 of fewer is their largest.
const MESSAGES_MIN: usize = 1_000;
/// ... the neighbour's p99.9 as a multiple of that beside the honest load, plus this; and no errors.
const WAIT_RATIO_MAX: f64 = 1.25;
const WAIT_NS_MORE: f64 = 2e6;

/// Times in ns, by exact rank.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub(crate) max: u64,
}

impl Times {
    pub(crate) fn of(times: impl Iterator<Item = u64>) -> Self {
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable();
        // The smallest that so many per mille are not above; 0 if there are none.
        let at = |per_mille: usize| {
            let rank = (times.len() * per_mille).div_ceil(1_000);
            times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Times { p50: at(500), p99: at(990), p999: at(999), max: at(1_000) }
    }

    fn json(&self) -> Value {
        json!({
            "p50_ns": self.p50, "p99_ns": self.p99, "p999_ns": self.p999, "max_ns": self.max,
        })
    }
}

/// One run of one row.
pub(crate) struct Run {
    pub(crate) attack: Tally,
    pub(crate) memory_before: u64,
    pub(crate) memory_max: u64,
    /// From the instant at which a message was due to its answer.
    pub(crate) wait: Times,
    /// From there to when it left.
    pub(crate) lag: Times,
    pub(crate) messages: usize,
    pub(crate) errors: Vec<String>,
    pub(crate) server_cpu_s: f64,
}

impl Run {
    pub(crate) fn growth(&self) -> u64 {
        self.memory_max.saturating_sub(self.memory_before)
    }

    /// For whoever watches.
    pub(crate) fn line(&self, row: &Row) -> String {
        format!(
            "{:<26} {:>5.1} MiB, p99.9 {:>7.2} ms, lag {:>5.2} ms, server {:>3.0} %, attacker {:>3.0} %: {}",
            row.name,
            mib(self.growth()),
            ms(self.wait.p999),
            ms(self.lag.p999),
            100.0 * self.server_cpu_s / self.attack.seconds,
            100.0 * self.attack.cpu_seconds / self.attack.seconds,
            outcome(&self.attack),
        )
    }

    fn json(&self) -> Value {
        let attack = &self.attack;
        let goaways = attack.goaways.iter().map(|((code, reason), connections)| {
            json!({ "code": code_name(*code), "reason": reason, "connections": connections })
        });
        let resets = attack
            .resets
            .iter()
            .map(|(code, streams)| json!({ "code": code_name(*code), "streams": streams }));
        json!({
            "seconds": attack.seconds,
            "attacker": {
                "connections": attack.connections,
                "connections_ended_by_server": attack.ended,
                "connections_ended_without_goaway": attack.ended_without_goaway,
                "longest_ended_connection_s": attack.longest_seconds,
                "frames_sent": attack.frames_sent,
                "bytes_sent": attack.bytes_sent,
                "frames_received": attack.frames_received,
                "echo_bytes_received": attack.echo_bytes,
                "cpu_s": attack.cpu_seconds,
                "goaways": goaways.collect::<Vec<Value>>(),
                "resets": resets.collect::<Vec<Value>>(),
                "statuses_of_answers_looked_at": attack.statuses,
            },
            "server": {
                "rss_before_bytes": self.memory_before,
                "rss_max_bytes": self.memory_max,
                "rss_growth_bytes": self.growth(),
                "cpu_s": self.server_cpu_s,
            },
            "neighbour": {
                "messages": self.messages,
                "wait": self.wait.json(),
                "own_lag": self.lag.json(),
                "errors": self.errors,
            },
        })
    }
}

/// All runs of a row.
struct Measured {
    name: &'static str,
    what: &'static str,
    goal: String,
    connections: usize,
    runs: Vec<Run>,
    /// Which yardstick was measured before each of them.
    yardsticks: Vec<usize>,
    /// How the attack ended where it should have ended otherwise.
    other_fates: Vec<String>,
}

/// All that was measured.
pub(crate) struct Record {
    began: SystemTime,
    transport: Transport,
    runs: usize,
    time: Duration,
    pub(crate) yardsticks: Vec<Run>,
    rows: Vec<Measured>,
}

impl Record {
    pub(crate) fn new(transport: Transport, runs: usize, time: Duration, rows: usize) -> Self {
        let began = SystemTime::now();
        let (yardsticks, rows) = (Vec::new(), Vec::with_capacity(rows));
        Record { began, transport, runs, time, yardsticks, rows }
    }

    /// A run of the `n`th row, and how its attack ended if not as it must.
    pub(crate) fn push(&mut self, n: usize, row: &Row, run: Run, fate: Result<(), String>) {
        if self.rows.len() == n {
            self.rows.push(Measured {
                name: row.name,
                what: row.what,
                goal: row.fate.goal(),
                connections: row.connections,
                runs: Vec::new(),
                yardsticks: Vec::new(),
                other_fates: Vec::new(),
            });
        }
        let measured = &mut self.rows[n];
        measured.runs.push(run);
        measured.yardsticks.push(self.yardsticks.len() - 1);
        measured.other_fates.extend(fate.err());
    }

    /// The neighbour's p99.9 beside the honest load, of all runs.
    fn yardstick(&self) -> Spread {
        Spread::of(self.yardsticks.iter().map(|run| run.wait.p999 as f64))
    }

    /// Rows for which all criteria hold.
    pub(crate) fn held(&self) -> usize {
        self.rows.iter().filter(|row| self.verdict(row).missed.is_empty()).count()
    }

    pub(crate) fn all_hold(&self) -> bool {
        self.held() == self.rows.len()
    }

    fn verdict(&self, row: &Measured) -> Verdict {
        let yardsticks = row.yardsticks.iter().map(|at| &self.yardsticks[*at]);
        let yardstick = Spread::of(yardsticks.map(|run| run.wait.p999 as f64));
        let wait = Spread::of(row.runs.iter().map(|run| run.wait.p999 as f64));
        let growth = Spread::of(row.runs.iter().map(|run| run.growth() as f64));
        // What disturbed the yardsticks beside a row allows it nothing.
        let wait_max =
            yardstick.median.min(self.yardstick().median) * WAIT_RATIO_MAX + WAIT_NS_MORE;
        let errors: usize = row.runs.iter().map(|run| run.errors.len()).sum();
        let criteria = [
            ("outcome", row.other_fates.is_empty()),
            ("memory", growth.max <= GROWTH_BYTES_MAX as f64),
            ("errors", errors == 0),
            ("messages", row.runs.iter().all(|run| run.messages >= MESSAGES_MIN)),
            ("wait", wait.median <= wait_max),
        ];
        let missed: Vec<&str> =
            criteria.iter().filter(|(_, held)| !held).map(|(name, _)| *name).collect();
        Verdict { yardstick, wait, wait_max, growth, errors, missed }
    }

    /// One line a row, for people.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "\n{:<26} {:>14} {:>22} {:>9} {:>7} {:>7} {:>9}  outcome",
            "row", "growth, MiB", "p99.9, ms", "allowed", "errors", "server", "attacker",
        );
        for row in &self.rows {
            let verdict = self.verdict(row);
            let (server, attacker) = shares(&row.runs);
            let _ = writeln!(
                out,
                "{:<26} {:>14} {:>22} {:>9.2} {:>7} {:>5.0} % {:>7.0} %  {}; {}",
                row.name,
                format!("{:.1}", verdict.growth.max / f64::from(1 << 20)),
                verdict.wait.ms(),
                verdict.wait_max / 1e6,
                verdict.errors,
                server,
                attacker,
                verdict.held(),
                outcome(&row.runs[0].attack),
            );
        }
        let _ = writeln!(out, "{} of {} rows hold", self.held(), self.rows.len());
        out
    }

    /// Writes both files.
    pub(crate) fn write(&self, folder: &Path) {
        let mut json = serde_json::to_string_pretty(&self.json()).unwrap();
        json.push('\n');
        fs::write(folder.join("hostile.json"), json).unwrap();
        fs::write(folder.join("REPORT.md"), self.report()).unwrap();
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let verdict = self.verdict(row);
            json!({
                "name": row.name,
                "what": row.what,
                "goal": row.goal,
                "connections_at_once": row.connections,
                "other_outcomes": row.other_fates,
                "verdict": {
                    "held": verdict.missed.is_empty(),
                    "missed": verdict.missed,
                    "rss_growth_bytes_max": verdict.growth.max,
                    "wait_p999_ns_median": verdict.wait.median,
                    "yardstick_p999_ns_median": verdict.yardstick.median,
                    "wait_p999_ns_allowed": verdict.wait_max,
                    "neighbour_errors": verdict.errors,
                },
                "yardsticks": row.yardsticks,
                "runs": row.runs.iter().map(Run::json).collect::<Vec<Value>>(),
            })
        });
        json!({
            "schema_version": 1,
            "began": humantime::format_rfc3339_seconds(self.began).to_string(),
            "transport": self.transport.name(),
            "runs": self.runs,
            "run_s": self.time.as_secs_f64(),
            "attack_bytes_max": BYTES_MAX,
            "criteria": {
                "rss_growth_bytes_max": GROWTH_BYTES_MAX,
                "wait_p999_ratio_max": WAIT_RATIO_MAX,
                "wait_p999_ns_more": WAIT_NS_MORE,
                "yardsticks_p999_ns_median": self.yardstick().median,
                "neighbour_errors_max": 0,
            },
            "host": { "cpu_model": cpu_model(), "kernel": kernel() },
            "build": {
                "version": build_info::VERSION,
                "revision": build_info::REVISION,
                "profile": build_info::PROFILE,
                "opt_level": build_info::OPT_LEVEL,
                "debug_assertions": build_info::DEBUG_ASSERTIONS,
                "rustc": build_info::RUSTC,
            },
            "yardsticks": self.yardsticks.iter().map(Run::json).collect::<Vec<Value>>(),
            "rows": rows.collect::<Vec<Value>>(),
        })
    }

    fn report(&self) -> String {
        let mut out = String::new();
        let day = humantime::format_rfc3339_seconds(self.began).to_string();
        let (held, yardstick) = (self.held(), self.yardstick());
        let (busy, _) = shares(&self.yardsticks);
        let _ = write!(
            out,
            "# Hostile clients: `--transport {transport}`, {day}\n\n\
             {held} of {rows} rows hold. A row holds if the attack ends as it must, resident memory \
             grows by at most {growth} MiB in every run, and a healthy neighbour sees no error and waits, \
             at p99.9 and in the median of {runs} runs, at most {WAIT_RATIO_MAX} times as long as beside an \
             honest load that keeps the same server busy, plus {more:.0} ms. Each run must hold {MESSAGES_MIN} of its messages.\n\n\
             Server on one core, attacker and neighbour on another one; the attacker with the lowest \
             priority, so that the neighbour's own lag (from the instant at which a message was due to when \
             it left; contained in its wait) stays small. A message is due each millisecond. Each run has a \
             new server, lasts {time:.1} s or until the attacker has sent {bytes} GiB, and counts what was \
             due meanwhile. Whoever is cut off connects again at once.\n\n\
             The honest load ({yardstick_what}) was measured before every {ROWS_PER_YARDSTICK} rows, \
             {count} times: the neighbour's p99.9 was {yardstick} ms, the server's core was busy for \
             {busy:.0} %. What a row is allowed comes from the {runs} of them that were nearest to its runs, or from all of them \
             where that is less.\n\n",
            transport = self.transport.name(),
            rows = self.rows.len(),
            growth = GROWTH_BYTES_MAX >> 20,
            runs = self.runs,
            more = WAIT_NS_MORE / 1e6,
            time = self.time.as_secs_f64(),
            bytes = BYTES_MAX >> 30,
            yardstick_what = self.yardstick_what(),
            count = self.yardsticks.len(),
            yardstick = yardstick.ms(),
        );
        self.report_table(&mut out);
        let _ = write!(
            out,
            "\nGrowth is the largest of the runs; waits are median (min to max); CPU shares of a core are \
             medians. In *outcome*, counts are of the first run.\n\n\
             ## What each attacker does\n\n| row | what | connections at once |\n|---|---|---|\n"
        );
        for row in &self.rows {
            let _ = writeln!(out, "| {} | {} | {} |", row.name, row.what, row.connections);
        }
        let _ = write!(
            out,
            "\n## Host and build\n\n{cpu}, {kernel}. bidi-echo {version} ({revision}), profile {profile}, \
             opt-level {opt}, debug assertions {assertions}, {rustc}.\n\nAll figures of all runs: [hostile.json](hostile.json).\n",
            cpu = cpu_model(),
            kernel = kernel(),
            version = build_info::VERSION,
            revision = build_info::REVISION,
            profile = build_info::PROFILE,
            opt = build_info::OPT_LEVEL,
            assertions = if build_info::DEBUG_ASSERTIONS { "on" } else { "off" },
            rustc = build_info::RUSTC,
        );
        out
    }

    fn report_table(&self, out: &mut String) {
        let _ = write!(
            out,
            "| row | goal | outcome | growth, MiB | neighbour p50, ms | p99, ms | p99.9, ms | allowed, ms | \
             own lag p99.9, ms | errors | server CPU | attacker CPU | holds |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        );
        for row in &self.rows {
            let verdict = self.verdict(row);
            let (server, attacker) = shares(&row.runs);
            let of =
                |time: fn(&Run) -> u64| Spread::of(row.runs.iter().map(|run| time(run) as f64));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:.1} | {} | {} | {} | {:.2} | {} | {} | {server:.0} % | {attacker:.0} % | {} |",
                row.name,
                row.goal,
                outcome(&row.runs[0].attack),
                verdict.growth.max / f64::from(1 << 20),
                of(|run| run.wait.p50).ms(),
                of(|run| run.wait.p99).ms(),
                verdict.wait.ms(),
                verdict.wait_max / 1e6,
                of(|run| run.lag.p999).ms(),
                verdict.errors,
                verdict.held(),
            );
        }
    }

    fn yardstick_what(&self) -> &'static str {
        crate::rows::all()[0].what
    }
}

struct Verdict {
    yardstick: Spread,
    wait: Spread,
    wait_max: f64,
    growth: Spread,
    errors: usize,
    /// Criteria that do not hold.
    missed: Vec<&'static str>,
}

impl Verdict {
    fn held(&self) -> String {
        match self.missed[..] {
            [] => "yes".to_owned(),
            _ => format!("**no: {}**", self.missed.join(", ")),
        }
    }
}

/// One figure of several runs.
#[derive(Clone, Copy, Debug)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Spread { min: values[0], median, max: values[values.len() - 1] }
    }

    fn ms(&self) -> String {
        let Spread { min, median, max } = self;
        format!("{:.2} ({:.2} to {:.2})", median / 1e6, min / 1e6, max / 1e6)
    }
}

/// Of a core, in percent: the server's and the attacker's.
fn shares(runs: &[Run]) -> (f64, f64) {
    let median = |share: fn(&Run) -> f64| {
        Spread::of(runs.iter().map(|run| 100.0 * share(run) / run.attack.seconds)).median
    };
    (median(|run| run.server_cpu_s), median(|run| run.attack.cpu_seconds))
}

/// What became of an attacker, in a few words.
fn outcome(attack: &Tally) -> String {
    let mut words = Vec::new();
    for (status, answers) in &attack.statuses {
        words.push(format!("{status} x{answers}"));
    }
    for (code, streams) in &attack.resets {
        words.push(format!("RST {} x{streams}", code_name(*code)));
    }
    for ((code, reason), connections) in &attack.goaways {
        words.push(format!("GOAWAY {} {reason} x{connections}", code_name(*code)));
    }
    if attack.ended_without_goaway > 0 {
        words.push(format!("closed x{}", attack.ended_without_goaway));
    }
    let open = attack.connections - attack.ended;
    words.push(format!("{open} open"));
    format!(
        "{} after {} connections, {} frames, {:.1} MiB",
        words.join(", "),
        attack.connections,
        attack.frames_sent,
        mib(attack.bytes_sent)
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// The record's folder, made now so that no measurement is lost: it must not be there yet.
pub(crate) fn create(folder: &Path) -> PathBuf {
    if let Err(error) = fs::create_dir(folder) {
        panic!("{}: {error}; a record is never written over: name a new folder", folder.display());
    }
    folder.to_owned()
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
    model.unwrap_or("unknown").to_owned()
}

fn kernel() -> String {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", version.trim())
}
