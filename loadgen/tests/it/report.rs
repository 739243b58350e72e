//! `loadgen report` and `loadgen merge` on published records: what they write, and what they refuse.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use loadgen::record::{Hlog, RunRecord, Timing};
use rstest::rstest;
use serde_json::Value;

use crate::support::loadgen;

const FORMATS: [&str; 6] = ["markdown", "csv", "hlog", "hgrm", "html", "svg"];

fn published(name: &str) -> PathBuf {
    let baseline = concat!(env!("CARGO_MANIFEST_DIR"), "/../results/2026-11-22-baseline");
    Path::new(baseline).join(name)
}

fn open_loop() -> PathBuf {
    published("streams-1-payload-8-open-half.json")
}

fn closed_loop() -> PathBuf {
    published("streams-1-payload-8-closed.json")
}

fn typed(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn report(format: &str, paths: &[&Path], more: &[&str]) -> Output {
    let paths: Vec<_> = paths.iter().map(|path| typed(path)).collect();
    loadgen(&[&["report", "--format", format], paths.as_slice(), more].concat())
}

fn merge(paths: &[&Path], more: &[&str]) -> Output {
    let paths: Vec<_> = paths.iter().map(|path| typed(path)).collect();
    loadgen(&[&["merge"], paths.as_slice(), more].concat())
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line on stderr of a program that ended with this exit code and printed nothing.
fn complaint(output: &Output, exit: i32) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(output.stdout.is_empty());
    line
}

fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}

/// A published record with a change made by hand, in a folder of its own.
fn changed(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    let mut record = serde_json::from_slice(&fs::read(open_loop()).unwrap()).unwrap();
    change(&mut record);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.json");
    fs::write(&path, record.to_string()).unwrap();
    (folder, path)
}

#[test]
fn each_format_is_the_same_on_stdout_and_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let printed = text(&report(format, &[&open_loop()], &[]));
        let path = folder.path().join(format);
        assert!(text(&report(format, &[&open_loop()], &["--out", typed(&path)])).is_empty());
        assert_eq!(fs::read_to_string(&path).unwrap(), printed, "{format}");
        assert!(printed.ends_with('\n'), "{format}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), FORMATS.len(), "a trace was left");
}

#[test]
fn markdown_is_what_is_drawn_if_nothing_else_is_asked_for() {
    let plain = text(&loadgen(&["report", typed(&open_loop())]));
    assert_eq!(plain, text(&report("markdown", &[&open_loop()], &[])));
    assert!(plain.starts_with("| run |"));
}

#[test]
fn a_log_holds_the_records_histograms() {
    let record: RunRecord = serde_json::from_slice(&fs::read(open_loop()).unwrap()).unwrap();
    let log = Hlog::parse(text(&report("hlog", &[&open_loop()], &[])).as_bytes()).unwrap();
    for timing in Timing::ALL {
        let sum = log.sum(Some(timing.key()));
        // Not assert_eq: a histogram that differs would fill the screen.
        assert!(sum == timing.of(&record.measured).cloned().unwrap_or_default(), "{timing:?}");
    }
    assert_eq!(log.sum(Some("response_time_by_second")).count(), record.measured.messages_received);
}

#[test]
fn a_distribution_is_of_the_time_that_was_asked_for() {
    let lag = text(&report("hgrm", &[&open_loop()], &["--timing", "send_lag"]));
    assert!(lag.starts_with("#[send_lag of "), "{lag}");
    assert!(text(&report("hgrm", &[&open_loop()], &[])).starts_with("#[response_time of "));
    assert!(text(&report("hgrm", &[&closed_loop()], &[])).starts_with("#[service_time of "));
    let none = report("hgrm", &[&closed_loop()], &["--timing", "response_time"]);
    assert_says(&complaint(&none, 2), &["--timing response_time", "service_time"]);
    let other = report("csv", &[&open_loop()], &["--timing", "send_lag"]);
    assert_says(&complaint(&other, 2), &["--timing send_lag", "hgrm", "leave it out"]);
}

#[rstest]
fn a_log_and_a_distribution_are_of_one_record(#[values("hlog", "hgrm")] format: &str) {
    let line = complaint(&report(format, &[&open_loop(), &closed_loop()], &[]), 2);
    assert_says(&line, &["--format", format, "2", "loadgen merge"]);
}

#[test]
fn a_page_and_a_figure_hold_every_record() {
    for format in ["html", "svg", "csv", "markdown"] {
        let drawn = text(&report(format, &[&open_loop(), &closed_loop()], &[]));
        assert_says(&drawn, &["streams-1-payload-8-open-half", "streams-1-payload-8-closed"]);
    }
}

#[rstest]
fn a_file_below_results_is_never_overwritten(#[values("report", "merge")] verb: &str) {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results/2026-01-01-test");
    fs::create_dir_all(&results).unwrap();
    let path = results.join("kept");
    let write =
        || loadgen(&[verb, typed(&open_loop()), typed(&closed_loop()), "--out", typed(&path)]);
    assert_eq!(write().status.code(), Some(0), "a new file there is written");
    fs::write(&path, "old").unwrap();
    let line = complaint(&write(), 2);
    assert_says(&line, &["--out", typed(&path), "never overwritten", "choose another name"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(&results).unwrap().count(), 1, "a trace was left");
}

#[test]
fn a_full_disk_is_told_with_path_reason_and_cure() {
    let line = complaint(&report("html", &[&open_loop()], &["--out", "/dev/full"]), 1);
    assert_says(&line, &["/dev/full", "No space left", "make room"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut printing = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    printing.args(["report", typed(&open_loop())]).stdout(full);
    let line = complaint(&printing.output().unwrap(), 1);
    assert_says(&line, &["stdout", "No space left", "make room"]);
}

#[test]
fn a_write_that_fails_half_way_leaves_the_older_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    fs::write(&path, "old").unwrap();
    // The shell's unit is a kilobyte or half of one; the page has a hundred.
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, env!("CARGO_BIN_EXE_loadgen"), "report", "--format", "html"]);
    limited.args([typed(&open_loop()), "--out", typed(&path)]);
    let line = complaint(&limited.output().unwrap(), 1);
    assert_says(&line, &[typed(&path), "file too large"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a trace was left");
}

#[test]
fn a_path_that_cannot_be_written_is_told_before_anything_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/report.html");
    let line = complaint(&report("html", &[&open_loop()], &["--out", typed(&missing)]), 2);
    assert_says(&line, &[typed(&missing), "make its folder first"]);
    let line = complaint(&report("html", &[&open_loop()], &["--out", typed(folder.path())]), 2);
    assert_says(&line, &[typed(folder.path()), "pass the path of a file"]);
    // Even the superuser cannot make a file below a file.
    let below = format!("{}/report.html", typed(&open_loop()));
    assert_says(&complaint(&report("html", &[&open_loop()], &["--out", &below]), 2), &[&below]);
}

#[test]
fn a_record_changed_by_hand_is_refused_and_nothing_is_written() {
    let check = |change: fn(&mut Value), reason: &str| {
        let (folder, path) = changed(change);
        let out = folder.path().join("out");
        for format in FORMATS {
            let line = complaint(&report(format, &[&path], &["--out", typed(&out)]), 1);
            assert_says(&line, &[typed(&path), reason, "pass what loadgen --json wrote"]);
            assert!(!out.exists());
        }
    };
    check(|record| record["measured"]["response_time"]["p99_ns"] = 1.into(), "its p99_ns is 1");
    check(|record| record["measured"]["service_time"]["count"] = 1.into(), "its count is 1");
    check(|record| record["measured"]["seconds"][2]["latency"]["max_ns"] = 5.into(), "second 2");
    check(
        |record| record["measured"]["send_lag"]["hdr_v2_base64"] = "HISTEwAA".into(),
        "damaged histogram",
    );
    check(|record| _ = record["measured"].as_object_mut().unwrap().remove("statuses"), "statuses");
    check(|record| record["schema_version"] = 99.into(), "schema 99");
    check(|record| *record = Value::Null, "invalid type");
}

#[test]
fn a_record_cut_off_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.json");
    let whole = fs::read(open_loop()).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_says(&complaint(&report("html", &[&path], &[]), 1), &[typed(&path), "EOF"]);
    let missing = folder.path().join("missing.json");
    let line = complaint(&report("html", &[&missing], &[]), 1);
    assert_says(&line, &[typed(&missing), "No such file"]);
}

#[test]
fn merged_logs_and_records_hold_each_value_once() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("open.hlog");
    text(&report("hlog", &[&open_loop()], &["--out", typed(&log)]));
    let merged = text(&merge(&[&log, &closed_loop()], &[]));
    let sum = Hlog::parse(merged.as_bytes()).unwrap();
    let parts: Vec<RunRecord> = [open_loop(), closed_loop()]
        .map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        .into();
    let mut service = parts[0].measured.service_time.clone();
    service.merge(&parts[1].measured.service_time);
    assert!(sum.sum(Some("service_time")) == service);
    assert!(Some(sum.sum(Some("response_time"))) == parts[0].measured.response_time);
    for (tag, part) in ["response_time_by_second", "service_time_by_second"].iter().zip(&parts) {
        assert_eq!(sum.sum(Some(tag)).count(), part.measured.messages_received, "{tag}");
    }
    let hgrm = text(&self::merge(
        &[&log, &closed_loop()],
        &["--format", "hgrm", "--timing", "service_time"],
    ));
    assert_says(
        &hgrm,
        &["#[service_time of loadgen merge of 2 logs", &format!("{:>12}]", service.count())],
    );
    let csv = text(&self::merge(&[&log, &closed_loop()], &["--format", "csv"]));
    assert_says(&csv, &["\n,service_time,,,", &service.percentile(99.0).0.to_string()]);
}

#[test]
fn what_cannot_be_merged_is_told_by_path_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("open.hlog");
    text(&report("hlog", &[&open_loop()], &["--out", typed(&log)]));
    let whole = fs::read_to_string(&log).unwrap();
    let damaged = folder.path().join("damaged.hlog");
    let check = |content: &str, reason: &str| {
        fs::write(&damaged, content).unwrap();
        let line = complaint(&merge(&[&log, &damaged], &[]), 1);
        assert_says(&line, &[typed(&damaged), reason, "take another copy"]);
    };
    check("", "no histogram in it");
    check(&whole[..whole.len() - 40], "the last, is cut off");
    check(&whole.replacen("HISTF", "HISTX", 1), "damaged histogram");
    check(&whole.replacen("Tag=response_time,0.000", "Tag=response_time,x", 1), "is no line of");
    let missing = folder.path().join("missing.hlog");
    let line = complaint(&merge(&[&log, &missing], &[]), 1);
    assert_says(&line, &[typed(&missing), "No such file", "pass a log or a record"]);
}

#[test]
fn one_log_alone_or_twice_is_no_merge() {
    let line = complaint(&merge(&[&open_loop()], &[]), 2);
    assert_says(&line, &[typed(&open_loop()), "pass two or more"]);
    let twice = open_loop()
        .parent()
        .unwrap()
        .join("../2026-11-22-baseline")
        .join("streams-1-payload-8-open-half.json");
    let line = complaint(&merge(&[&open_loop(), &twice], &[]), 2);
    assert_says(&line, &[typed(&twice), "twice"]);
}
