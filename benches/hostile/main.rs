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
//! With `--test` nothing is measured: each attack runs for a moment, and what becomes of it is asserted.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod attacker;
mod cores;
mod neighbour;
mod record;
mod rows;
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bidi_echo::config::Transport;
use bidi_echo::serve::raise_open_files_limit;
use clap::Parser;

use attacker::{Bounds, Tally, attack};
use cores::{Cores, be_on_time, give_way};
use neighbour::{Neighbour, Seen};
use record::{Record, Run, Times};
use rows::{Fate, Row, YARDSTICK};
use support::binary::Binary;

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

/// What an attack gets in a test.
const TEST_TIME: Duration = Duration::from_millis(250);

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

    /// Asserts what becomes of each attack, and measures nothing
    #[arg(long)]
    test: bool,

    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,

    /// Of the timed benches; this one has no baselines and does not run with them
    #[arg(long, alias = "baseline", hide = true)]
    save_baseline: Option<String>,
}

fn main() {
    let args = Args::parse();
    if args.save_baseline.is_some() {
        return println!("hostile: not run: it keeps no baselines");
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
        return rows.iter().for_each(|row| check(row, cores));
    }
    assert!(cores.are_two(), "needs two cores: one for the server, one for its clients");
    let folder = args.out.as_deref().map(record::create);
    let record = measure(&args, &rows, cores);
    print!("{}", record.table());
    if let Some(folder) = folder {
        record.write(&folder);
    }
}

/// One attack, for a moment: its fate, and the neighbour's.
fn check(row: &Row, cores: Cores) {
    let bounds = Bounds { time: TEST_TIME, bytes: BYTES_MAX, patience: Duration::ZERO };
    let run = run(row, support::INLINE, cores, bounds);
    if let Err(other) = fate(row, &run.attack, false) {
        panic!("{}: {other}; {:#?}", row.name, run.attack);
    }
    assert_eq!(run.errors, [""; 0], "{}: the neighbour", row.name);
    println!("{:<28} ok", row.name);
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
                let bounds = Bounds { time, bytes: u64::MAX, patience: Duration::ZERO };
                record.yardsticks.push(run(yardstick, args.transport, cores, bounds));
            }
            let waits_for_timers = round == args.runs && matches!(row.fate, Fate::Timer(..));
            let patience = if waits_for_timers { TIMERS } else { Duration::ZERO };
            // An honest load is not cut short.
            let is_honest = row.name.starts_with("honest");
            let bytes = if is_honest { u64::MAX } else { BYTES_MAX };
            let run = run(row, args.transport, cores, Bounds { time, bytes, patience });
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
            attack(row, address, bounds, || server.cpu_ticks())
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
    match row.fate {
        Fate::Carried | Fate::LongTimer => lives(attack),
        Fate::Answered(statuses) => lives(attack).and(answered_only(attack, statuses)),
        Fate::AnsweredAtFirst(status, code, reason) => {
            goaway_only(attack, &[(code, &[reason])]).and(answered_only(attack, &[status]))
        }
        Fate::Refused => match attack.resets.get(&support::peer::REFUSED_STREAM) {
            Some(_) => lives(attack),
            None => Err("no stream refused".to_owned()),
        },
        Fate::GoAway(code, reasons) => goaway_only(attack, &[(code, reasons)]),
        Fate::GoAwayOr(code, reasons, late_code, late_reason) => {
            goaway_only(attack, &[(code, reasons), (late_code, &[late_reason])])
        }
        Fate::Timer(code, reason) if has_waited => {
            let left = attack.connections - attack.ended;
            match left {
                0 => goaway_only(attack, &[(code, &[reason])]),
                _ => Err(format!("{left} connections still open")),
            }
        }
        Fate::Timer(..) => lives(attack),
    }
}

/// No connection was ended or told to go.
fn lives(attack: &Tally) -> Result<(), String> {
    match attack.goaways.keys().chain(attack.goaways_of_open.keys()).next() {
        Some((code, reason)) => Err(format!("GOAWAY {} {reason}", rows::code_name(*code))),
        None if attack.ended > 0 => Err("closed".to_owned()),
        None => Ok(()),
    }
}

/// Connections were ended, all of them with one of these codes and reasons.
fn goaway_only(attack: &Tally, goals: &[(u32, &[&str])]) -> Result<(), String> {
    let is_other = |(of, reason): &&(u32, String)| {
        !goals.iter().any(|(code, reasons)| of == code && reasons.contains(&&**reason))
    };
    if let Some((code, reason)) = attack.goaways.keys().find(is_other) {
        return Err(format!("GOAWAY {} {reason}", rows::code_name(*code)));
    }
    // Whoever never read is told so, but may not have been closed yet.
    let told = attack.goaways.keys().chain(attack.goaways_of_open.keys());
    match told.filter(|goaway| !is_other(goaway)).count() {
        0 => Err("no GOAWAY".to_owned()),
        _ => Ok(()),
    }
}

/// Streams were answered, all of them like that.
fn answered_only(attack: &Tally, statuses: &[&str]) -> Result<(), String> {
    match attack.statuses.keys().find(|it| !statuses.contains(&&***it)) {
        Some(other) => Err(format!("answered {other}")),
        None if attack.statuses.is_empty() => Err("not answered".to_owned()),
        None => Ok(()),
    }
}
