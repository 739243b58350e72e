//! What becomes of a verb's work when it is interrupted, or when the place for it takes no more: a clear line,
//! nothing lost that could be kept, nothing overwritten. `report` and `merge` have theirs in `report`.

use std::path::Path;
use std::process::{Command, Output};

use rstest::rstest;
use rustix::process::Signal;

use crate::support::{Running, SEARCHED, loadgen, quiet, two_cpus};

const QUICK: [&str; 4] = ["--warmup", "100ms", "--duration", "200ms"];

/// An open loop has to last until its backlog has a trend.
const LONG: [&str; 4] = ["--warmup", "100ms", "--duration", "5s"];

const SUITE: &str = r#"
[suite]
repetitions = 2
warmup = "100ms"
duration = "200ms"
server_cpus = [SERVER]
loadgen_cpus = [GENERATOR]
baseline = "only"

[[scenario]]
name = "tiny"
connections = 1
streams = 4
in_flight = 1
payload = "16B"
figure = "messages"

[[server]]
name = "only"
transport = "inline"
"#;

/// The command line of a verb that makes a folder of records, `--out` last; `None` on a single core.
fn verb(name: &str, folder: &Path) -> Option<Vec<String>> {
    let [server, generator] = two_cpus()?;
    let suite = SUITE.replace("SERVER", &server.to_string());
    let file = folder.join("tiny.toml");
    std::fs::write(&file, suite.replace("GENERATOR", &generator.to_string())).unwrap();
    let specific = match name {
        "suite" => vec!["suite", typed(&file)],
        "compare" => {
            let endless = ["compare", "inline", "inline", "--difference", "0.1"];
            [&endless[..], &["--streams", "20"], &QUICK].concat()
        }
        "search" => {
            let from = ["search", "inline", "--slo", "p50<10s", "--min-rate", "500"];
            [&from[..], &SEARCHED, &LONG].concat()
        }
        other => panic!("no verb {other}"),
    };
    Some([&specific[..], &["--out"]].concat().into_iter().map(str::to_owned).collect())
}

fn typed(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn with_out<'a>(verb: &'a [String], out: &'a Path) -> Vec<&'a str> {
    verb.iter().map(String::as_str).chain([typed(out)]).collect()
}

/// What is in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// The last line on stderr of a program that ended with this exit code.
fn complaint(output: &Output, exit: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(exit), "{said}");
    said.lines().next_back().unwrap().to_owned()
}

/// loadgen where no file may grow beyond 4 KiB or 8, whatever unit the shell has; the signal is ignored, since a
/// shell that leaves it as it is says itself that it killed.
fn limited(args: &[&str]) -> Output {
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""]);
    limited.arg(env!("CARGO_BIN_EXE_loadgen")).args(args);
    limited.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).output().unwrap()
}

#[rstest]
fn a_folder_that_is_there_or_cannot_be_made_is_refused_and_left_alone(
    #[values("suite", "compare", "search")] name: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb(name, folder.path()) else { return };
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("a.1.json"), "old").unwrap();
    let line = complaint(&loadgen(&with_out(&verb, &out)), 2);
    assert!(line.contains("--out") && line.contains(typed(&out)), "{line}");
    assert_eq!(std::fs::read(out.join("a.1.json")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "a trace was left");
    // Even the superuser cannot make a folder below a file.
    let below = folder.path().join("tiny.toml/out");
    let line = complaint(&loadgen(&with_out(&verb, &below)), 2);
    assert!(line.contains("--out") && line.contains(typed(&below)), "{line}");
}

#[rstest]
fn a_disk_that_takes_no_record_is_told_and_leaves_no_half_of_one(
    #[values("suite", "compare", "search")] name: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb(name, folder.path()) else { return };
    let _quiet = quiet();
    let out = folder.path().join("out");
    let output = limited(&with_out(&verb, &out));
    // A search tells on stdout what ended it, unless it was ended before its first trial.
    let said = [&output.stderr[..], &output.stdout[..]].map(String::from_utf8_lossy).concat();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write the record to"), "{said}");
    assert!(said.contains("file too large; raise the limit (ulimit -f)"), "{said}");
    let mut records = names_in(&out);
    records.retain(|name| !name.ends_with(['t', 'l', 'd']));
    assert!(records.is_empty(), "{records:?}");
}

/// Longer than a file's name may be once `.only.1.json` is behind it.
const NAME_BYTES: usize = 250;

#[test]
fn a_suite_that_cannot_write_its_next_record_stops_at_once_and_keeps_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb("suite", folder.path()) else { return };
    let _quiet = quiet();
    let (file, out) = (folder.path().join("tiny.toml"), folder.path().join("out"));
    let text =
        std::fs::read_to_string(&file).unwrap().replace("repetitions = 2", "repetitions = 1");
    let [begin, end] = ["[[scenario]]", "[[server]]"].map(|part| text.find(part).unwrap());
    let named = |name: &str| text[begin..end].replace("tiny", name);
    let others = named(&"x".repeat(NAME_BYTES)) + &named("behind");
    std::fs::write(&file, [&text[..end], &others, &text[end..]].concat()).unwrap();
    let stops = |more: &[&str]| {
        let output = loadgen(&[&with_out(&verb, &out)[..], more].concat());
        let line = complaint(&output, 1);
        assert!(
            line.contains("cannot write the record to") && line.contains("xx.only.1.json"),
            "{line}"
        );
        assert!(line.contains("--resume goes on with the records that are there"), "{line}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("suite: 3 of 3"), "it went on: {said}");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(report.contains("Interrupted: not all of it was run"), "{report}");
        (names_in(&out), std::fs::read(out.join("tiny.only.1.json")).unwrap())
    };
    let first = stops(&[]);
    assert!(!first.0.iter().any(|name| name.contains("xx")), "half a record: {:?}", first.0);
    assert_eq!(stops(&["--resume"]), first);
}

/// CPU time, in ticks, of each process whose command line names `path`.
fn ticks_of_users(path: &Path) -> Vec<u64> {
    let processes = std::fs::read_dir("/proc").unwrap().map(|it| it.unwrap().path());
    let names_it = |process: &std::path::PathBuf| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(typed(path))
    };
    let ticks = |process: std::path::PathBuf| {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        // proc_pid_stat(5): utime and stime are the 12th and 13th behind the name.
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
    };
    processes.filter(names_it).filter_map(ticks).collect()
}

#[test]
fn a_suite_that_is_killed_leaves_no_run_behind_that_would_count_as_its_servers_failure() {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb("suite", folder.path()) else { return };
    let _quiet = quiet();
    let (file, out) = (folder.path().join("tiny.toml"), folder.path().join("out"));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("duration = \"200ms\"", "duration = \"5s\"")).unwrap();
    let mut running = Running::start(&with_out(&verb, &out));
    running.wait_for("suite: 2 runs");
    let begin = std::time::Instant::now();
    let wait_until = |is_so: &dyn Fn(&[u64]) -> bool| {
        while !is_so(&ticks_of_users(&out)) {
            assert!(begin.elapsed().as_secs() < 60, "{:?}", ticks_of_users(&out));
            std::thread::yield_now();
        }
    };
    // The first run has had half a second of a core: its warm-up of 100 ms is over, its measurement is not.
    wait_until(&|users| users.iter().any(|ticks| *ticks >= 50));
    // SIGKILL, which the suite cannot hear.
    drop(running);
    wait_until(&<[u64]>::is_empty);
    assert_eq!(names_in(&out), ["host.txt", "suite.toml"]);
}

#[test]
fn a_run_whose_record_cannot_be_written_shows_its_figures_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let check = |output: &Output, parts: [&str; 2]| {
        let line = complaint(output, 1);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(" sent"), "{output:?}");
    };
    let run = [&["run"][..], &QUICK, &["--json"]].concat();
    let full = loadgen(&[&run[..], &["/dev/full"]].concat());
    check(&full, ["cannot write the record to /dev/full: ", "make room"]);
    let path = folder.path().join("run.json");
    std::fs::write(&path, "old").unwrap();
    check(&limited(&[&run[..], &[typed(&path)]].concat()), [typed(&path), "file too large"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a trace was left");
}

#[rstest]
#[case("compare", "compare: ", "the verdict is of the pairs until then")]
#[case("search", "search: ", "interrupted")]
fn what_is_interrupted_tells_what_it_knows_by_then(
    #[case] name: &str,
    #[case] beginning: &str,
    #[case] expected: &str,
    #[values(Signal::INT, Signal::TERM)] signal: Signal,
) {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb(name, folder.path()) else { return };
    let _quiet = quiet();
    let out = folder.path().join("out");
    let mut running = Running::start(&with_out(&verb, &out));
    // What null echo carries is told first, and then the first run.
    if !running.says(beginning) {
        // What was said is read already.
        assert_eq!(running.finish().status.code(), Some(3), "ended, and not for its cores");
        return;
    }
    running.wait_for(beginning);
    running.signal(signal);
    let output = running.finish();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(expected), "{said}");
    let names = names_in(&out);
    assert!(names.iter().all(|name| name.ends_with(".json")), "half a record was left: {names:?}");
}

/// A peers.toml with one peer, which takes a minute to build while there is a file `slow` in its folder. Out: that file.
fn slow_peer(folder: &Path) -> std::path::PathBuf {
    let loadgen = env!("CARGO_BIN_EXE_loadgen");
    let peers = format!(
        "[[peer]]\nname = \"slow\"\nversion = \"1\"\npayload = \"typed\"\nrequires = \"sh\"\ncheck = [\"true\"]\n\
         build = [\"sh\", \"-c\", \"test ! -e slow || exec sleep 60\"]\n\
         run = [\"{loadgen}\", \"embedded-server\", \"--transport\", \"inline\"]\n"
    );
    std::fs::create_dir(folder.join("slow")).unwrap();
    std::fs::write(folder.join("peers.toml"), peers).unwrap();
    folder.join("slow").join("slow")
}

#[rstest]
#[case("compare")]
#[case("search")]
fn what_is_interrupted_before_anything_was_measured_says_so(
    #[case] name: &str,
    #[values(Signal::INT, Signal::TERM)] signal: Signal,
) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(slow_peer(folder.path()), "").unwrap();
    let Some(verb) = verb(name, folder.path()) else { return };
    let peers = folder.path().join("peers.toml");
    let out = folder.path().join("out");
    let verb: Vec<_> = with_out(&verb, &out)
        .into_iter()
        .map(|word| if word == "inline" { "peer:slow" } else { word })
        .collect();
    let mut running = Running::start(&[&verb[..], &["--peers", typed(&peers)]].concat());
    running.wait_for("loadgen: building slow");
    running.signal(signal);
    let output = running.finish();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("interrupted before anything was measured"), "{said}");
}

#[test]
fn a_suite_that_is_interrupted_before_it_went_on_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(verb) = verb("suite", folder.path()) else { return };
    let _quiet = quiet();
    let slow = slow_peer(folder.path());
    let (file, out) = (folder.path().join("tiny.toml"), folder.path().join("out"));
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("transport = \"inline\"", "peer = \"slow\"");
    let text = text.replacen("baseline", "peers = \"peers.toml\"\nslo = \"p99<1s\"\nbaseline", 1);
    std::fs::write(&file, text).unwrap();
    loadgen(&with_out(&verb, &out));
    // The first of two is missing, and the second is not come to.
    std::fs::remove_file(out.join("tiny.only.1.json")).unwrap();
    let knee = r#"{"lower": 1000.0, "upper": 1010.0, "unjudged": null, "confirmed": true}"#;
    std::fs::write(out.join("knees.json"), format!("{{\"only: known\": {knee}}}")).unwrap();
    std::fs::write(&slow, "").unwrap();
    let mut running = Running::start(&[&with_out(&verb, &out)[..], &["--resume"]].concat());
    running.wait_for("suite: building slow");
    running.signal(Signal::INT);
    let output = running.finish();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = std::fs::read_to_string(out.join("REPORT.md")).unwrap();
    assert!(report.contains("**Interrupted: not all of it was run.**"), "{report}");
    assert!(
        report.contains("- tiny.only.1 failed and is not counted: it was not come to"),
        "{report}"
    );
    assert!(report.contains("- only: known: 1000 messages/s (misses it at"), "{report}");
    // Invalid beside other tests, it is told in a line of its own, which a forgotten one has not.
    let counts = |line: &str| line.starts_with("| only") && line.contains(" | 1 of 2 | ");
    let is_there = report.lines().any(counts) || report.contains("- tiny.only.2 ");
    assert!(is_there || report.contains("- tiny.only.2.json"), "{report}");
}
