//! What hostile clients cost: the server's memory, and the wait of a healthy neighbour.
//!
//! For each row of [`rows`]: the real server on a core of its own; on the other one an attacker, and a
//! neighbour whose message is due each millisecond. An honest load that keeps the same server busy is
//! measured every few rows: the neighbour's p99.9 beside an attack is compared with that.
//!
//! ```sh
//! cargo bench --bench hostile                     # a look: one short run of each row
//! cargo bench --bench hostile -- --runs 5 --run-s 2.5 --out results/<date>-hostile
//! cargo bench --bench hostile -- --transport tonic --only rapid-reset,ping-flood
//! ```
//!
//! Exit code 1 if a row does not hold; the record is written before.
//!
//! With `--test` nothing is timed: each attack runs for a moment, and what becomes of it and the server's memory is asserted.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod attacker;
mod cores;
mod neighbour;
mod record;
mod rows;
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bidi_echo::config::Transport;
use bidi_echo::serve::raise_open_files_limit;
use clap::Parser;

use attacker::{Bounds, Tally, attack};
use cores::{Cores, be_on_time, give_way};
use neighbour::{Neighbour, Seen};
use record::{GROWTH_BYTES_MAX, Record, Run, Times};
use rows::{Fate, Row, YARDSTICK};
use support::binary::Binary;
use support::peer::{NO_ERROR, REFUSED_STREAM};

/// Rows between two measurements of the yardstick.
const ROWS_PER_YARDSTICK: usize = 4;

/// After the neighbour is well and before the attack.
const SETTLE: Duration = Duration::from_millis(20);

/// What an attack may send in a run: more than fits into its time. An attack that ends sooner leaves the neighbour
/// too few messages to be judged by.
const BYTES_MAX: u64 = 16 << 30;

/// From an attack's begin to where the last run of it stops waiting for timers: longer than those of
/// the handshake and of header blocks, which are 10 s.
const TIMERS: Duration = Duration::from_secs(12);

/// What `/proc` counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// What an attack gets in a test, ...
const TEST_TIME: Duration = Duration::from_millis(250);

/// ... and what it gets at most until it has ended as it must.
const TEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Where thousands of streams have a task each, and begin anew again and again, memory grows by 46 to 54 MiB: no bound is kept yet.
const CROWDS_OF_TASKS: [&str; 6] = [
    "settings-windows",
    "refused-streams",
    "refused-streams-short",
    "vanishing",
    "cancelled-at-once",
    "expiring-at-once",
];

#[derive(Debug, Parser)]
#[command(name = "hostile")]
struct Args {
    /// Runs of each row
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: usize,

    /// Seconds of each run
    #[arg(long, default_value_t = 1.2, value_name = "SECONDS")]
    run_s: f64,

    /// What carries the streams
    #[arg(long, value_enum, default_value_t = support::INLINE)]
    transport: Transport,

    /// Only these rows, by their names
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    only: Vec<String>,

    /// A new folder for the record and its report
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Asserts what becomes of each attack and of the server's memory, and times nothing
    #[arg(long)]
    test: bool,

    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,

    /// Of the timed benches; this one has no baselines and does not run with them
    #[arg(long, alias = "baseline", hide = true)]
    save_baseline: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.save_baseline.is_some() {
        println!("hostile: not run: it keeps no baselines");
        return ExitCode::SUCCESS;
    }
    raise_open_files_limit().unwrap();
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| args.only.is_empty() || args.only.iter().any(|only| only == row.name))
        .collect();
    assert!(!rows.is_empty(), "no such row: {:?}", args.only);
    let cores = Cores::choose();
    // `cargo test` says neither.
    if args.test || !args.bench {
        let inline = rows.iter().map(|row| check(row, support::INLINE, cores));
        let with_tasks = rows.iter().filter(|row| row.is_with_tasks_too());
        let checked = inline.chain(with_tasks.map(|row| check(row, support::TASK, cores)));
        // All of them, whatever became of the first.
        let missed = checked.filter(|holds| !holds).count();
        return if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    assert!(cores.are_two(), "needs two cores: one for the server, one for its clients");
    let folder = args.out.as_deref().map(record::create);
    let record = measure(&args, &rows, cores);
    print!("{}", record.table());
    // Without a record it is a look, on whatever machine, and what does not hold stands in the table.
    let Some(folder) = folder else { return ExitCode::SUCCESS };
    record.write(&folder);
    if record.all_hold() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One attack, for a moment: whether its fate, the neighbour's and the server's memory are as they must be.
fn check(row: &Row, transport: Transport, cores: Cores) -> bool {
    let (time, time_max) = (TEST_TIME, TEST_TIME_MAX);
    let bounds = Bounds { time, time_max, bytes: BYTES_MAX, patience: Duration::ZERO };
    let run = run(row, transport, cores, bounds);
    let mut missed: Vec<String> = fate(row, &run.attack, false).err().into_iter().collect();
    missed.extend(run.errors.iter().map(|error| format!("the neighbour: {error}")));
    let is_unbounded = transport == support::TASK && CROWDS_OF_TASKS.contains(&row.name);
    if run.growth() > GROWTH_BYTES_MAX && !is_unbounded {
        missed.push(format!("memory grew by {} B, at most {GROWTH_BYTES_MAX}", run.growth()));
    }
    let of = format!("{}, {}", row.name, transport.placement().name());
    match missed[..] {
        [] => println!("{of:<36} ok, {:>10} B", run.growth()),
        _ => println!("{of:<36} FAILED: {}; {:#?}", missed.join("; "), run.attack),
    }
    missed.is_empty()
}

/// Round after round all rows, the yardstick before each few of them.
fn measure(args: &Args, rows: &[Row], cores: Cores) -> Record {
    let all = rows::all();
    let yardstick = all.iter().find(|row| row.name == YARDSTICK).expect("it is one of them");
    let time = Duration::from_secs_f64(args.run_s);
    let mut record = Record::new(args.transport, args.runs, time, rows.len());
    for round in 1..=args.runs {
        for (n, row) in rows.iter().enumerate() {
            if n % ROWS_PER_YARDSTICK == 0 {
                let bounds =
                    Bounds { time, time_max: time, bytes: u64::MAX, patience: Duration::ZERO };
                record.yardsticks.push(run(yardstick, args.transport, cores, bounds));
            }
            let waits_for_timers = round == args.runs && matches!(row.fate, Fate::Timer(..));
            let patience = if waits_for_timers { TIMERS } else { Duration::ZERO };
            // An honest load is not cut short.
            let is_honest = row.name.starts_with("honest");
            let bytes = if is_honest { u64::MAX } else { BYTES_MAX };
            let bounds = Bounds { time, time_max: time, bytes, patience };
            let run = run(row, args.transport, cores, bounds);
            eprintln!("{round}/{} {}", args.runs, run.line(row));
            let fate = fate(row, &run.attack, waits_for_timers);
            record.push(n, row, run, fate);
        }
    }
    record
}

/// A server, a neighbour and an attacker, all of them new.
fn run(row: &Row, transport: Transport, cores: Cores, bounds: Bounds) -> Run {
    let server = cores.on_the_servers(|| Binary::start(transport, &[]));
    cores.be_a_client();
    let neighbour = Neighbour::new(server.address);
    thread::sleep(SETTLE);
    let memory_before = server.resident_bytes();
    let address = server.address;
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    let ticks = server.cpu_ticks();
    let (attack, end, memory_max, seen) = thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            be_on_time();
            neighbour.run(&stop)
        });
        let attacker = scope.spawn(|| {
            give_way();
            let has_ended = |attack: &Tally| fate(row, attack, false).is_ok();
            attack(row, address, bounds, || server.cpu_ticks(), has_ended)
        });
        let (attack, end) = attacker.join().unwrap();
        let memory_max = server.resident_bytes_max();
        stop.store(true, Ordering::Relaxed);
        (attack, end, memory_max, neighbour.join().unwrap())
    });
    let Seen { mut answers, errors } = seen;
    // Beside the attack, not after it.
    answers.retain(|answer| (begin..end.at).contains(&answer.due));
    let server_cpu_s = (end.server_ticks - ticks) as f64 / TICKS_PER_SECOND;
    Run {
        memory_before,
        memory_max,
        wait: Times::of(answers.iter().map(|answer| answer.wait_ns)),
        lag: Times::of(answers.iter().map(|answer| answer.lag_ns)),
        messages: answers.len(),
        errors,
        server_cpu_s,
        attack,
    }
}

/// Whether the attack ended as it must. Err: how else.
fn fate(row: &Row, attack: &Tally, has_waited: bool) -> Result<(), String> {
    let goaway_only = |goals: &[(u32, &[&str])]| goaway_only(row, attack, goals);
    match row.fate {
        Fate::Carried if attack.echo_bytes == 0 => Err("no echoes".to_owned()),
        Fate::Carried | Fate::LongTimer => lives(attack, None),
        Fate::Answered(statuses) => {
            lives(attack, Some(NO_ERROR)).and(answered_only(attack, statuses))
        }
        Fate::AnsweredAtFirst(status, code, reason) => {
            goaway_only(&[(code, &[reason])]).and(answered_only(attack, &[status]))
        }
        Fate::Refused => match attack.resets.get(&REFUSED_STREAM) {
            Some(_) => lives(attack, Some(REFUSED_STREAM)),
            None => Err("no stream refused".to_owned()),
        },
        Fate::GoAway(code, reasons) => goaway_only(&[(code, reasons)]),
        Fate::GoAwayOr(code, reasons, late_code, late_reason) => {
            goaway_only(&[(code, reasons), (late_code, &[late_reason])])
        }
        Fate::Timer(code, reason) if has_waited => {
            let left = attack.connections - attack.ended;
            match left {
                0 => goaway_only(&[(code, &[reason])]),
                _ => Err(format!("{left} connections still open")),
            }
        }
        Fate::Timer(..) => lives(attack, None),
    }
}

/// No connection was ended or told to go, and no stream was reset but with `reset`.
fn lives(attack: &Tally, reset: Option<u32>) -> Result<(), String> {
    if let Some(code) = attack.resets.keys().find(|code| Some(**code) != reset) {
        return Err(format!("RST_STREAM {}", rows::code_name(*code)));
    }
    match attack.goaways.keys().chain(attack.goaways_of_open.keys()).next() {
        Some((code, reason)) => Err(format!("GOAWAY {} {reason}", rows::code_name(*code))),
        None if attack.ended > 0 => Err("closed".to_owned()),
        None => Ok(()),
    }
}

/// Each of the first connections was told to go, and each that was ended before it was, with one of these codes and reasons.
fn goaway_only(row: &Row, attack: &Tally, goals: &[(u32, &[&str])]) -> Result<(), String> {
    let is_goal = |(of, reason): &(u32, String)| {
        goals.iter().any(|(code, reasons)| of == code && reasons.contains(&&**reason))
    };
    if let Some((code, reason)) = attack.goaways.keys().find(|goaway| !is_goal(goaway)) {
        return Err(format!("GOAWAY {} {reason}", rows::code_name(*code)));
    }
    if attack.ended_without_goaway > 0 {
        return Err("closed without GOAWAY".to_owned());
    }
    // Whoever never read is told so, but may not have been closed yet.
    match attack.goaways_of_first.values().filter(|goaway| is_goal(goaway)).count() {
        told if told == row.connections => Ok(()),
        told => Err(format!("{told} of the first {} connections told to go", row.connections)),
    }
}

/// Streams were answered, with each of these statuses and no other.
fn answered_only(attack: &Tally, statuses: &[&str]) -> Result<(), String> {
    if let Some(other) = attack.statuses.keys().find(|it| !statuses.contains(&&***it)) {
        return Err(format!("answered {other}"));
    }
    match statuses.iter().find(|status| !attack.statuses.contains_key(**status)) {
        Some(missing) => Err(format!("not answered {missing}")),
        None => Ok(()),
    }
}
