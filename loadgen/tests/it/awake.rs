//! Cores that are kept from idling while something is measured on them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use loadgen::harness::provenance::cpus;
use serde_json::Value;

use crate::support::{INLINE, ServerProcess, loadgen, quiet, record, two_cpus};

/// `SCHED_IDLE` (sched(7)).
const IDLE: &str = "5";

/// Policy, cores and name of a process's threads.
fn threads(pid: u32) -> Vec<(String, String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let thread = |task: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap();
        let (stat, status) = (read("stat"), read("status"));
        // From the third field on, behind the name in its brackets; the policy is the 41st (proc(5)).
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let policy = fields.split(' ').nth(41 - 3).unwrap().to_owned();
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        (policy, cores.unwrap().trim().to_owned(), read("comm").trim().to_owned())
    };
    tasks.map(|task| thread(task.unwrap())).collect()
}

#[test]
fn a_core_is_kept_awake_by_a_thread_that_gives_way_until_nobody_asks_for_it() {
    let cpu = cpus()[0].to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["keep-awake", &cpu])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "awake\n");
    let name = format!("awake-{cpu}");
    let threads = threads(child.id());
    let thread = threads.iter().find(|(.., comm)| *comm == name);
    assert_eq!(thread, Some(&(IDLE.to_owned(), cpu, name)), "{threads:?}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_record_says_which_cores_were_kept_awake() {
    let Some([first, last]) = two_cpus() else { return };
    let time = ["--duration", "300ms", "--warmup", "100ms", "--streams", "2"];
    let awake = |record: &Value| record["scenario"]["awake_cpus"].clone();
    let (exit, record) = record(&[&time[..], &["--keep-awake"]].concat());
    let all = awake(&record);
    let all = all.as_array().unwrap();
    assert_eq!(exit, 0);
    assert!([first, last].iter().all(|cpu| all.contains(&Value::from(*cpu))), "{all:?}");
    let (_, record) = self::record(&time);
    assert_eq!(awake(&record), Value::Array(Vec::new()));
}

#[test]
fn cores_that_somebody_was_to_keep_awake_and_did_not_make_a_run_invalid() {
    let Some([_, last]) = two_cpus() else { return };
    let _quiet = quiet();
    let cpu = last.to_string();
    let server = ServerProcess::start(INLINE);
    let load = ["--target", &server.target, "--streams", "1", "--rate", "100", "--cpus", &cpu];
    let time = ["--duration", "1s", "--warmup", "100ms"];
    let verdict = |flags: &[&str]| {
        let (_, record) = record(&[&load[..], &time, flags].concat());
        let gates = record["gates"].as_array().unwrap();
        let gate = gates.iter().find(|gate| gate["name"] == "awake");
        gate.map(|gate| (gate["verdict"].clone(), gate["figure"].as_f64().unwrap()))
    };
    assert_eq!(verdict(&[]), None);
    let (kept, idle) = verdict(&["--keep-awake"]).unwrap();
    assert_eq!(kept, "passed", "{idle}");
    // Nobody does.
    let (kept, idle) = verdict(&["--awake-cpus", &cpu]).unwrap();
    assert_eq!(kept, "failed", "{idle}");
}

#[test]
fn a_core_that_is_not_there_is_told() {
    let output = loadgen(&["keep-awake", "1023"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
