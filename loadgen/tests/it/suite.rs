//! A suite from its file to its folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use loadgen::record::{GateName, RunRecord};
use loadgen::scenario::{ClientName, ContractName};
use loadgen::units::Nanos;
use rustix::process::Signal;

use crate::support::{Busy, Running, loadgen, quiet, two_cpus};

/// Two servers of one kind, so that the test needs no other program.
fn suite(cpus: [usize; 2]) -> String {
    let [server, generator] = cpus;
    format!(
        r#"
[suite]
repetitions = 2
warmup = "100ms"
duration = "300ms"
server_cpus = [{server}]
loadgen_cpus = [{generator}]
baseline = "first"

[[scenario]]
name = "tiny"
connections = 2
streams = 10
in_flight = 2
payload = "16B"
client = "tonic"
contract = "chat"
headers = {{ x-run = "7" }}
messages = 100000000
drain_limit = "3s"
figure = "messages"

[[server]]
name = "first"
transport = "tonic"

[[server]]
name = "second"
transport = "inline"
placement = "task"
"#
    )
}

#[test]
fn a_suite_leaves_a_record_per_run_and_a_report() {
    let Some(cpus) = two_cpus() else { return };
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pair.toml"), folder.path().join("out"));
    std::fs::write(&file, suite(cpus)).unwrap();
    let run = || loadgen(&["suite", path(&file), "--out", path(&out)]);
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = std::fs::read_to_string(out.join("REPORT.md")).unwrap();
    assert_eq!(output.status.code(), Some(exit_code(&out)), "{stderr}");

    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // Other tests beside it may have made a run invalid, which is then done again.
    names.retain(|name| !name.contains(".invalid-"));
    names.sort();
    let records =
        ["tiny.first.1.json", "tiny.first.2.json", "tiny.second.1.json", "tiny.second.2.json"];
    assert_eq!(
        names,
        [&["REPORT.md", "SUMMARY.md", "figures.svg", "host.txt", "suite.toml"], &records[..]]
            .concat()
    );
    assert_eq!(std::fs::read_to_string(out.join("suite.toml")).unwrap(), suite(cpus));

    let mut begun = Vec::new();
    let mut servers = Vec::new();
    for name in ["tiny.first.1", "tiny.second.1", "tiny.second.2", "tiny.first.2"] {
        let record = loadgen::record::read(&out.join(format!("{name}.json"))).unwrap();
        assert!(record.measured.messages_received > 0, "{name}");
        assert_eq!((record.scenario.streams, record.scenario.payload_bytes), (10, 16));
        assert_eq!(record.scenario.contract, ContractName::Chat);
        assert_eq!(record.scenario.messages_max, Some(100_000_000), "{name}");
        assert_eq!(record.scenario.drain_limit_ns, Nanos(3_000_000_000), "{name}");
        assert_eq!(record.scenario.cpus, [cpus[1]], "{name}");
        assert_eq!(
            (record.scenario.client, &record.scenario.headers["x-run"][..]),
            (ClientName::Tonic, "7")
        );
        assert!(record.measured.server.is_some(), "{name} does not know its server");
        let carried = if name.contains("first") { "tonic" } else { "inline" };
        assert_eq!(record.provenance.server.transport.as_deref(), Some(carried));
        assert_eq!(record.provenance.server.placement.as_deref(), Some("task"));
        servers.push(record.provenance.server.target.clone());
        begun.push(record.provenance.started_at);
    }
    assert!(begun.is_sorted(), "not interleaved: {begun:?}");
    servers.sort();
    servers.dedup();
    assert!(servers.len() > 1, "runs shared a server");

    assert_eq!(report, String::from_utf8(output.stdout).unwrap());
    assert!(report.contains("## Ratios to first"), "{report}");
    assert!(report.contains(&row(&out, "second", 2)), "{report}");

    let again = run();
    assert_eq!(again.status.code(), Some(2), "a folder was overwritten");
}

#[test]
fn a_suite_that_was_interrupted_goes_on_and_redoes_nothing() {
    let Some(cpus) = two_cpus() else { return };
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pair.toml"), folder.path().join("out"));
    std::fs::write(&file, suite(cpus)).unwrap();
    let mut running = Running::start(&["suite", path(&file), "--out", path(&out)]);
    running.wait_for("suite: 2 of 4");
    running.signal(Signal::INT);
    let said = String::from_utf8(running.finish().stdout).unwrap();
    assert!(said.contains("**Interrupted: not all of it was run.**"), "{said}");
    let read = |name: &str| std::fs::read(out.join(name));
    let before = ["tiny.first.1.json", "tiny.second.1.json"].map(|name| read(name).unwrap());
    assert!(read("tiny.first.2.json").is_err(), "it was over before it was interrupted");

    let resume = || loadgen(&["suite", path(&file), "--out", path(&out), "--resume"]);
    let output = resume();
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(exit_code(&out)), "{report}");
    assert!(!report.contains("Interrupted"), "{report}");
    let after = ["tiny.first.1.json", "tiny.second.1.json"].map(|name| read(name).unwrap());
    assert!(before == after, "a run was done again");
    assert!(read("tiny.first.2.json").is_ok());

    // A report of a part would forget the rest.
    let part = ["suite", path(&file), "--out", path(&out), "--resume", "--only-server", "first"];
    let output = loadgen(&part);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("holds tiny.second.") && said.contains("leave out"), "{said}");
    assert_eq!(String::from_utf8(read("REPORT.md").unwrap()).unwrap(), report);

    // Of another build: drawn anew as it was measured, but not added to.
    let host = String::from_utf8(read("host.txt").unwrap()).unwrap();
    std::fs::write(out.join("host.txt"), host.replace("kernel: ", "kernel: 1")).unwrap();
    let output = resume();
    let drawn = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(exit_code(&out)), "{drawn}");
    let (figures, by) = drawn.rsplit_once("report by: loadgen ").unwrap();
    assert!(by.contains(env!("CARGO_PKG_VERSION")), "{by}");
    assert_eq!(figures.replace("kernel: 1", "kernel: "), report.trim_end_matches("```\n"));
    std::fs::rename(out.join("tiny.first.2.json"), folder.path().join("aside")).unwrap();
    let output = resume();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("holds runs of another build or machine"), "{said}");
    std::fs::rename(folder.path().join("aside"), out.join("tiny.first.2.json")).unwrap();
    std::fs::write(out.join("host.txt"), host).unwrap();

    // By hand: neither lost nor overwritten, but named.
    std::fs::write(out.join("tiny.second.1.json"), &before[1][..before[1].len() / 2]).unwrap();
    let output = resume();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = said.lines().find(|line| line.starts_with("loadgen: ")).unwrap();
    assert!(line.contains("tiny.second.1.json cannot be read; move it away"), "{line}");
    assert_eq!(read("tiny.second.1.json").unwrap().len(), before[1].len() / 2);

    std::fs::write(&file, suite(cpus).replace("16B", "17B")).unwrap();
    let output = resume();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("holds runs of another text of the suite"), "{said}");
}

#[test]
fn a_run_that_loadgen_was_starved_in_is_done_again_and_neither_lost_nor_counted() {
    let Some(cpus) = two_cpus() else { return };
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pair.toml"), folder.path().join("out"));
    let text = suite(cpus).replacen("repetitions = 2", "repetitions = 1", 1);
    std::fs::write(&file, text).unwrap();
    let mut running = Running::start(&["suite", path(&file), "--out", path(&out)]);
    // What a null echo carries is known by then: from a starved one it would be refused.
    running.wait_for("suite: 2 runs");
    let busy = Busy::on(cpus[1], 3);
    running.wait_for("suite: tiny.first.1.json: invalid: ");
    running.wait_for("suite: tiny.first.1.json: invalid: ");
    drop(busy);
    let report = String::from_utf8(running.finish().stdout).unwrap();
    assert!(report.contains("\n- tiny.first.1.json: 2 times\n"), "{report}");
    for name in ["tiny.first.1.invalid-1", "tiny.first.1.invalid-2"] {
        let record = loadgen::record::read(&out.join(name)).unwrap();
        assert!(record.failed_gates().count() > 0, "{name}");
    }
    let third = loadgen::record::read(&out.join("tiny.first.1.json")).unwrap();
    assert_eq!(third.scenario.streams, 10);
    assert!(report.contains(&row(&out, "first", 1)), "{report}");

    // The report is drawn from what is there: the same again.
    let again = ["suite", path(&file), "--out", path(&out), "--resume"];
    let again = String::from_utf8(loadgen(&again).stdout).unwrap();
    assert_eq!(again, report);
}

#[test]
fn a_server_that_is_not_to_be_had_is_skipped_and_the_others_go_on() {
    let Some(cpus) = two_cpus() else { return };
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pair.toml"), folder.path().join("out"));
    let peers = r#"
[[peer]]
name = "nobody"
version = "none"
payload = "raw"
requires = "a tool that no machine has"
check = ["no-machine-has-this"]
build = ["true"]
run = ["true"]
"#;
    std::fs::create_dir(folder.path().join("nobody")).unwrap();
    std::fs::write(folder.path().join("peers.toml"), peers).unwrap();
    let text =
        suite(cpus).replacen("repetitions = 2", "repetitions = 1\npeers = \"peers.toml\"", 1);
    let text = text + "\n[[server]]\nname = \"third\"\npeer = \"nobody\"\n";
    // A name that no peer has is a mistake, not a lack.
    std::fs::write(&file, text.replace("\"nobody\"", "\"nobodi\"")).unwrap();
    let output = loadgen(&["suite", path(&file), "--out", path(&out)]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("peer nobodi: peers.toml has no such peer; it has nobody"), "{said}");
    std::fs::write(&file, text).unwrap();
    let output = loadgen(&["suite", path(&file), "--out", path(&out), "--only-server", "third"]);
    assert_eq!(output.status.code(), Some(1), "nothing was measured, and that was well");
    std::fs::remove_dir_all(&out).unwrap();
    let flags = ["--only-server", "first", "--only-server", "third"];
    let output = loadgen(&[&["suite", path(&file), "--out", path(&out)][..], &flags].concat());
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(exit_code(&out)), "{report}");
    assert!(report.contains("- third skipped: needs a tool that no machine has"), "{report}");
    assert!(report.contains(&row(&out, "first", 1)), "{report}");
}

#[test]
fn what_was_measured_of_a_server_is_not_forgotten_when_it_is_not_to_be_had_any_more() {
    let Some(cpus) = two_cpus() else { return };
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("pair.toml"), folder.path().join("out"));
    let loadgen_itself = env!("CARGO_BIN_EXE_loadgen");
    let peers = format!(
        r#"
[[peer]]
name = "somebody"
version = "none"
payload = "typed"
requires = "a tool that comes and goes"
check = ["test", "-e", "tool"]
build = ["true"]
run = ["{loadgen_itself}", "embedded-server", "--transport", "inline"]
"#
    );
    let tool = folder.path().join("somebody").join("tool");
    std::fs::create_dir(tool.parent().unwrap()).unwrap();
    std::fs::write(folder.path().join("peers.toml"), peers).unwrap();
    let begin =
        suite(cpus).replacen("repetitions = 2", "repetitions = 2\npeers = \"peers.toml\"", 1);
    let begin = begin.split("[[server]]\nname = \"second\"").next().unwrap();
    let text = format!("{begin}[[server]]\nname = \"third\"\npeer = \"somebody\"\n");
    std::fs::write(&file, text).unwrap();
    std::fs::write(&tool, "").unwrap();
    let run = |flags: &[&str]| {
        let output = loadgen(&[&["suite", path(&file), "--out", path(&out)], flags].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), said)
    };
    let (exit, report, said) = run(&[]);
    assert_eq!(exit, exit_code(&out), "{said}");
    assert!(report.contains(&row(&out, "third", 2)), "{report}");

    std::fs::remove_file(&tool).unwrap();
    let (exit, again, said) = run(&["--resume"]);
    assert_eq!((exit, &again), (exit_code(&out), &report), "{said}");
    assert!(!said.contains("building"), "nothing is left to run: {said}");

    // What is missing of it is a failure, and the rest stays.
    let (first, aside) = (out.join("tiny.third.1.json"), folder.path().join("aside"));
    std::fs::rename(&first, &aside).unwrap();
    let (exit, part, said) = run(&["--resume"]);
    assert_eq!(exit, 1, "{said}");
    assert!(part.contains("needs a tool that comes and goes"), "{part}");
    assert!(!part.contains("third skipped"), "{part}");
    std::fs::rename(&aside, &first).unwrap();

    // On another machine that has what this one lacked: nothing is added, and nothing is in the way.
    let host = std::fs::read_to_string(out.join("host.txt")).unwrap();
    std::fs::write(out.join("host.txt"), host.replace("kernel: ", "kernel: 1")).unwrap();
    for run in [1, 2] {
        std::fs::remove_file(out.join(format!("tiny.third.{run}.json"))).unwrap();
    }
    std::fs::write(&tool, "").unwrap();
    let (exit, drawn, said) = run(&["--resume"]);
    assert_eq!(exit, exit_code(&out), "{said}");
    assert!(drawn.contains("third skipped: it has no run in this folder"), "{drawn}");
    assert!(drawn.contains(&row(&out, "first", 2)), "{drawn}");
}

/// The records of a suite whose runs all went well, by their names. Other tests beside it may make some invalid: what their
/// gates say is what the exit code and the report are held against.
fn records(out: &Path, server: &str) -> Vec<RunRecord> {
    let mut paths: Vec<_> = std::fs::read_dir(out).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    let is_of = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(&format!("tiny.{server}")) && name.ends_with(".json")
    };
    paths.iter().filter(is_of).map(|path| loadgen::record::read(path).unwrap()).collect()
}

/// Of such a suite.
fn exit_code(out: &Path) -> i32 {
    let records = records(out, "");
    assert!(!records.is_empty(), "nothing was measured");
    let is_valid = |record: &RunRecord| record.failed_gates().next().is_none();
    if records.iter().all(is_valid) { 0 } else { 3 }
}

/// How a server's row begins: its name, the marks of its figures, and how many of its runs count.
fn row(out: &Path, server: &str, all: usize) -> String {
    let records = records(out, &format!("{server}."));
    assert_eq!(records.len(), all, "of {server}");
    let (mut counted, mut is_marked) = (0, [false; 2]);
    for record in &records {
        let failed: BTreeSet<_> = record.failed_gates().map(|gate| gate.name).collect();
        let had_time = record.measured.server_cpu_share.is_some_and(|share| share < 0.95);
        let is_bound = failed.is_subset(&BTreeSet::from([GateName::ShardCpu, GateName::Headroom]));
        let is_of_answered = record.is_of_answered();
        counted += usize::from(is_bound || is_of_answered);
        is_marked[0] |= is_bound && (!failed.is_empty() || had_time);
        is_marked[1] |= is_of_answered;
    }
    let marks: String =
        ["†", "§"].into_iter().zip(is_marked).filter(|it| it.1).map(|it| it.0).collect();
    let space = if marks.is_empty() { "" } else { " " };
    let of = if counted == all { String::new() } else { format!(" of {all}") };
    format!("| {server}{space}{marks} | {counted}{of} | ")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
