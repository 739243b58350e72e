//! compare and search, from their command line to what they say.

use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::support::{SEARCHED, is_kept_from_judging, loadgen, quiet, two_cpus};

const QUICK: [&str; 4] = ["--warmup", "100ms", "--duration", "200ms"];

/// An open loop has to last until its backlog has a trend.
const LONG: [&str; 4] = ["--warmup", "100ms", "--duration", "5s"];

/// A closed loop that keeps a server of ours busy all the time: of one that does not, no run counts.
const FULL: [&str; 6] = ["--connections", "4", "--streams", "400", "--in-flight", "4"];

#[test]
fn a_server_is_compared_with_itself_metric_by_metric() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // As few pairs as can find anything: on a machine that others use many a run is repeated.
    let flags = ["--error", "40", "--max-pairs", "5", "--out", out.to_str().unwrap()];
    // No noise is so quiet that one part in a thousand is decided by five pairs.
    let flags = [&FULL[..], &flags, &["--difference", "0.1"]].concat();
    let output = loadgen(&[&["compare", "inline", "inline"][..], &QUICK, &flags].concat());
    if is_kept_from_judging(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(said.starts_with("inline compared with inline, 5 interleaved pairs"), "{said}");
    for metric in ["messages per server CPU-second ", "throughput ", "p50 ", "p99 "] {
        let line = said.lines().find(|line| line.starts_with(metric));
        let line = line.unwrap_or_else(|| panic!("no {metric}: {said}"));
        let words = [" shown, and 0.1 % asks for ", "undecided", "faster by", "slower by"];
        assert!(words.iter().any(|word| line.contains(word)), "{line}");
    }
    // Those of invalid runs, too, under the number of their attempt.
    let mut kept = [0, 0];
    for file in std::fs::read_dir(&out).unwrap() {
        let path = file.unwrap().path();
        loadgen::record::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        kept[usize::from(name.starts_with("b."))] += 1;
    }
    assert!(kept.iter().all(|records| *records >= 5), "{kept:?}");
}

#[test]
fn a_comparison_of_one_metric_ends_when_that_is_decided() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    // Eleven times as much would be found in any noise with the fewest pairs that can find anything.
    let flags = ["--metric", "p50", "--difference", "999", "--error", "40"];
    let flags = [&FULL[..], &flags].concat();
    let output = loadgen(&[&["compare", "inline", "inline"][..], &QUICK, &flags].concat());
    if is_kept_from_judging(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(said.starts_with("inline compared with inline, 3 interleaved pairs"), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    for (line, name) in [(lines[3], "A, inline: "), (lines[4], "B, inline: ")] {
        assert!(line.starts_with(name) && line.ends_with(" messages of 3 runs)"), "{said}");
        assert!(line.contains(" per server CPU-second, S p50 "), "{said}");
    }
    assert!(said.lines().nth(1).unwrap().ends_with(", decided after 3 pairs"), "{said}");
    assert!(
        progress.contains("(asks for 3 pairs)") && progress.contains("x (decided)"),
        "{progress}"
    );
}

#[test]
fn a_load_that_loadgen_bounds_is_given_up_after_ten_runs_and_its_cure_named() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    // Ping-pong: half of the time either side waits for the other.
    let flags = ["--streams", "1", "--connections", "1", "--max-pairs", "40"];
    let output = loadgen(&[&["compare", "inline", "inline"][..], &flags, &QUICK].concat());
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{progress}");
    let (mut in_a_row, mut most) = (0, 0);
    for line in progress.lines().filter(|line| line.contains(": invalid, and repeated: ")) {
        let (_, why) = line.split_once("repeated: ").unwrap();
        // Beside other tests more may be wrong with a run.
        let is_bound = why.starts_with("headroom: ") && !why.contains("; ");
        in_a_row = if is_bound { in_a_row + 1 } else { 0 };
        most = in_a_row.max(most);
    }
    let (end, cure) = ("in 10 runs of inline in a row loadgen was the limit", "--in-flight");
    assert_eq!(most >= 10, progress.contains(end), "{progress}");
    assert_eq!(most >= 10, progress.contains(cure), "{progress}");
    assert!(progress.contains(": given up"), "{progress}");
}

#[test]
fn what_cannot_be_compared_or_searched_is_refused_with_its_cure() {
    let check = |args: &[&str], expected: &str| {
        let output = loadgen(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    check(&["compare", "inline", "stock"], "need inline, inline-task, tonic, peer:NAME");
    check(&["compare", "inline", "tonic", "--max-pairs", "3"], "need at least 8 pairs");
    check(&["compare", "inline", "tonic", "--difference", "0"], "need a percentage above 0");
    check(&["compare", "inline", "tonic", "--metric", "p98"], "server-cpu, throughput, p50, p99");
    let rated = ["compare", "inline", "tonic", "--rate", "5k", "--metric", "p99,throughput"];
    check(&rated, "--metric throughput: with a rate it is an input");
    let running = ["compare", "inline", "http://127.0.0.1:1", "--metric", "server-cpu"];
    check(&running, "--metric server-cpu: the CPU time of a server that runs already is not known");
    check(&["compare", "inline", "tonic", "--server-cpus", "9999"], "may use the cores");
    check(&["compare", "inline", "tonic", "--blocked", "shed"], "is an open loop's; pass --rate");
    let nobody = ["compare", "inline", "peer:nobody", "--peers", "peers/peers.toml"];
    check(&nobody, "peer nobody: peers.toml has no such peer");
    check(&["compare", "inline", "peer:x", "--peers", "/nowhere"], "peers /nowhere: ");
    check(&["compare", "inline", "tonic", "--duration", "0s"], "--duration 0s: nothing would be");
    check(&["compare", "inline", "tonic", "--payload", "5MiB"], "pass at most 4194299");
    let few = ["compare", "inline", "tonic", "--streams", "2", "--connections", "5"];
    check(&few, "there are only 2 streams to carry");
    check(&["search", "inline"], "--slo");
    check(&["search", "inline", "--slo", "p99<1s", "--payload", "5MiB"], "pass at most 4194299");
    check(&["search", "inline", "--slo", "p99<1s", "--rate", "5"], "is what is searched for");
    check(&["search", "inline", "--slo", "p99<1s", "--width", "0"], "need 0.1 to 100 percent");
    let few = ["search", "inline", "--slo", "p99.9<1s", "--min-rate", "1.9k"];
    check(&few, "--min-rate 1900: a trial of 5 s has too few messages for p99.9<1 s; pass 2000");
    let few = ["search", "inline", "--slo", "p50<1s", "--duration", "6s", "--max-rate", "3"];
    check(&few, "--max-rate 3: a trial of 6 s has too few");
    let short = ["search", "inline", "--slo", "p50<1s", "--duration", "4s"];
    check(&short, "--duration 4 s: is too short for an open loop");
    let short = ["search", "inline", "--slo", "p50<1s", "--confirmation-duration", "4s"];
    check(&short, "--confirmation-duration 4 s: is too short for an open loop");
    let short = ["compare", "inline", "tonic", "--rate", "5k", "--duration", "4s"];
    check(&short, "--duration 4 s: is too short for an open loop");
    let heat = ["compare", "inline", "http://127.0.0.1:1", "--preheat", "1s"];
    check(
        &heat,
        "--preheat 1 s: is for servers that are started for each run, and http://127.0.0.1:1",
    );
}

#[test]
fn a_search_does_not_offer_the_rate_that_it_refuses() {
    let help = |verb| String::from_utf8(loadgen(&[verb, "--help"]).stdout).unwrap();
    let offers = |help: &str, flag: &str| help.split_whitespace().any(|word| word == flag);
    let (search, compare) = (help("search"), help("compare"));
    assert!(offers(&compare, "--rate") && !offers(&search, "--rate"), "{search}");
    assert!(!search.contains("with --rate"), "{search}");
    for flag in ["--min-rate", "--max-rate", "--in-flight", "--arrivals"] {
        assert!(offers(&search, flag), "no {flag}: {search}");
    }
}

#[test]
fn a_search_ends_at_the_highest_rate_that_it_may_try() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let rates = ["--min-rate", "1k", "--max-rate", "1k", "--slo", "p50<10s"];
    let confirm = ["--confirmations", "1", "--confirmation-duration", "5s"];
    let server = ["search", "inline"];
    let output = loadgen(&[&server[..], &SEARCHED, &rates, &confirm, &LONG].concat());
    if is_kept_from_judging(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{progress}");
    assert!(said.contains("| 1 | 1000 messages/s | "), "{said}");
    assert!(said.contains("inline keeps p50<10 s at 1000 messages/s, the highest"), "{said}");
}

#[test]
fn a_goal_that_no_rate_keeps_is_missed() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    // As low as a trial of this length can be: nothing below is tried.
    let rates = ["--min-rate", "20", "--max-rate", "40", "--slo", "p50<1ns"];
    let output = loadgen(&[&["search", "inline"][..], &SEARCHED, &rates, &LONG].concat());
    if is_kept_from_judging(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("inline misses p50<1 ns even at"), "{said}");
}

/// A server's name. Those of its starts, counted from 1, that the shell's pattern names end at once.
fn failing(folder: &Path, failing_starts: &str) -> String {
    let script = folder.join("server.sh");
    let loadgen = env!("CARGO_BIN_EXE_loadgen");
    let text = format!(
        "cd {}\ndate +%s%N >> starts\ncase $(wc -l < starts) in {failing_starts}) echo 'error: out of luck' >&2; exit 7;; esac\n\
         exec {loadgen} embedded-server --transport inline\n",
        folder.display()
    );
    std::fs::write(&script, text).unwrap();
    format!("cmd:sh {}", script.display())
}

#[test]
fn a_fresh_server_is_preheated_before_its_run() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let server = failing(folder.path(), "none");
    let out = folder.path().join("out");
    // One run is looked at, whatever it is worth: no pairs than the fewest that can find anything.
    let flags = ["--streams", "20", "--metric", "p99", "--error", "40", "--max-pairs", "3"];
    let heat = ["--preheat", "700ms", "--out", out.to_str().unwrap()];
    loadgen(&[&["compare", &server, "inline"][..], &QUICK, &flags, &heat].concat());
    let starts = std::fs::read_to_string(folder.path().join("starts")).unwrap();
    let started: u64 = starts.lines().next().unwrap().parse().unwrap();
    let began = loadgen::record::read(&out.join("a.1.json")).unwrap().window_began().0;
    // The window's begin is told in whole milliseconds; before it are the preheating and the warm-up.
    assert!(began + 1_000_000 >= started + 800_000_000, "{started} {began}");
}

#[test]
fn a_run_that_fails_is_repeated_and_fails_the_comparison_in_the_end() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let flags = ["--streams", "20", "--metric", "p99", "--difference", "999", "--max-pairs", "6"];
    let compare = |failing_starts| {
        let folder = tempfile::tempdir().unwrap();
        let server = failing(folder.path(), failing_starts);
        // Its runs come first: before the first of them none is invalid.
        loadgen(&[&["compare", &server, "inline"][..], &QUICK, &flags].concat())
    };
    let said = |output: &Output| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        [&output.stderr[..], &output.stdout[..]].map(String::from_utf8_lossy).concat()
    };
    let output = compare("1");
    let once = said(&output);
    assert!(once.contains("failed, and repeated: "), "{once}");
    assert!(once.contains("out of luck"), "{once}");
    assert!(once.contains(", 1 failed"), "{once}");
    // Beside other tests too many runs may be invalid.
    let ended = ["6 interleaved pairs", "runs were invalid: given up"];
    assert!(ended.iter().any(|ended| once.contains(ended)), "{once}");
    let always = said(&compare("1|2|3|4|5|6|7|8"));
    assert!(always.contains("given up, and the verdict is of the pairs until then"), "{always}");
    assert!(always.contains("4 runs failed, the last of cmd:sh "), "{always}");
    assert!(always.contains("no pair of valid runs"), "{always}");
    assert!(always.contains(", 4 failed, no verdict"), "{always}");
}

#[test]
fn runs_wait_for_others_to_leave_their_cores_no_longer_than_they_may() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let server = failing(folder.path(), "*");
    let (over, cores) = (AtomicBool::new(false), std::thread::available_parallelism().unwrap());
    let output = std::thread::scope(|scope| {
        for _ in 0..cores.get() {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let flags = ["--streams", "20", "--calm-limit", "1s"];
        let output = loadgen(&[&["compare", &server, "inline"][..], &QUICK, &flags].concat());
        over.store(true, Relaxed);
        output
    });
    let said = String::from_utf8(output.stderr).unwrap();
    let lines = |text: &str| said.lines().filter(|line| line.starts_with(text)).count();
    assert_eq!(lines("calm: others took "), 1, "{said}");
    assert_eq!(lines("calm: no more waiting; the gates judge what follows"), 1, "{said}");
    assert!(said.contains("out of luck"), "{said}");
}

#[test]
fn a_trial_that_fails_ends_a_search_with_what_is_known_by_then() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let server = failing(folder.path(), "3");
    let flags = ["--slo", "p50<10s", "--min-rate", "1k", "--cool-down", "0s"];
    let output = loadgen(&[&["search", &server][..], &SEARCHED, &flags, &LONG].concat());
    if is_kept_from_judging(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("| ")).count(), 1 + 2, "{said}");
    let last = said.lines().next_back().unwrap();
    assert!(last.contains("; ended by a trial that failed: "), "{last}");
    assert!(last.ends_with("out of luck"), "{last}");
}
