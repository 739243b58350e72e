//! A suite from its file to its folder.

use std::path::Path;

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
    assert_eq!(output.status.code(), Some(exit_code(&report)), "{stderr}");

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
    assert!(report.contains(&row(&report, "second", 2)), "{report}");

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
    assert_eq!(output.status.code(), Some(exit_code(&report)), "{report}");
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
    assert_eq!(output.status.code(), Some(exit_code(&drawn)), "{drawn}");
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
    assert!(report.contains(&row(&report, "first", 1)), "{report}");

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
    assert_eq!(output.status.code(), Some(exit_code(&report)), "{report}");
    assert!(report.contains("- third skipped: needs a tool that no machine has"), "{report}");
    assert!(report.contains(&row(&report, "first", 1)), "{report}");
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
    assert_eq!(exit, exit_code(&report), "{said}");
    assert!(report.contains(&row(&report, "third", 2)), "{report}");

    std::fs::remove_file(&tool).unwrap();
    let (exit, again, said) = run(&["--resume"]);
    assert_eq!((exit, &again), (exit_code(&report), &report), "{said}");
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
    assert_eq!(exit, exit_code(&drawn), "{said}");
    assert!(drawn.contains("third skipped: it has no run in this folder"), "{drawn}");
    assert!(drawn.contains(&row(&drawn, "first", 2)), "{drawn}");
}

const NOT_COUNTED: &str = "is invalid and is not counted";

/// Of a suite whose runs all went well: other tests beside it may make them invalid.
fn exit_code(report: &str) -> i32 {
    if report.contains(NOT_COUNTED) || report.contains('†') { 3 } else { 0 }
}

/// How a server's row begins: its name, marked if loadgen was the limit, and how many runs count.
fn row(report: &str, server: &str, all: usize) -> String {
    let mark = if report.contains(&format!(".{server} † in ")) { " †" } else { "" };
    format!("| {server}{mark} | {} | ", runs(report, server, all))
}

/// Runs of a server that count, as its report shows them.
fn runs(report: &str, server: &str, all: usize) -> String {
    let not_counted =
        |line: &&str| line.contains(&format!(".{server}.")) && line.contains(NOT_COUNTED);
    match report.lines().filter(not_counted).count() {
        0 => all.to_string(),
        invalid => format!("{} of {all}", all - invalid),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
