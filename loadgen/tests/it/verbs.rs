//! compare and search, from their command line to what they say.

use crate::support::{loadgen, quiet, two_cpus};

const QUICK: [&str; 4] = ["--warmup", "100ms", "--duration", "200ms"];

#[test]
fn a_server_is_compared_with_itself_metric_by_metric() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let flags = ["--streams", "20", "--max-pairs", "8", "--out", out.to_str().unwrap()];
    // No noise is so quiet that one part in a thousand is decided by eight pairs.
    let flags = [&flags[..], &["--difference", "0.1"]].concat();
    let output = loadgen(&[&["compare", "inline", "inline"][..], &QUICK, &flags].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    // On a machine that other tests use, too many runs may be invalid: then that is what it says.
    if output.status.code() == Some(3) {
        assert!(progress.contains("runs were invalid: given up"), "{progress}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(said.starts_with("inline compared with inline, 8 interleaved pairs"), "{said}");
    for metric in ["messages per server CPU-second ", "throughput ", "p50 ", "p99 "] {
        let line = said.lines().find(|line| line.starts_with(metric));
        let line = line.unwrap_or_else(|| panic!("no {metric}: {said}"));
        let words = ["no difference of 0.1 % shown", "undecided", "faster by", "slower by"];
        assert!(words.iter().any(|word| line.contains(word)), "{line}");
    }
    for file in ["a.1.json", "b.1.json", "a.8.json", "b.8.json"] {
        loadgen::record::read(&out.join(file)).unwrap();
    }
}

#[test]
fn a_comparison_of_one_metric_ends_when_that_is_decided() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    // A thousandfold would be found in any noise with the fewest pairs that can find anything.
    let flags = ["--streams", "20", "--metric", "p99", "--difference", "999"];
    let output = loadgen(&[&["compare", "inline", "inline"][..], &QUICK, &flags].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(3) {
        assert!(progress.contains("runs were invalid: given up"), "{progress}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(said.starts_with("inline compared with inline, 6 interleaved pairs"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().nth(1).unwrap().ends_with(", decided after 6 pairs"), "{said}");
    assert!(
        progress.contains("(asks for 6 pairs)") && progress.contains("x (decided)"),
        "{progress}"
    );
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
    check(&["search", "inline"], "--slo");
    check(&["search", "inline", "--slo", "p99<1s", "--rate", "5"], "is what is searched for");
    check(&["search", "inline", "--slo", "p99<1s", "--width", "0"], "need 0.1 to 100 percent");
}

#[test]
fn a_search_ends_at_the_highest_rate_that_it_may_try() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let rates = ["--min-rate", "500", "--max-rate", "1000", "--slo", "p50<10s"];
    let confirm = ["--confirmations", "1", "--confirmation-duration", "200ms"];
    let server = ["search", "inline", "--streams", "4"];
    let output = loadgen(&[&server[..], &rates, &confirm, &QUICK].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let progress = String::from_utf8(output.stderr).unwrap();
    // Beside other tests loadgen may be kept from its core: then no trial counts, and it says so.
    if output.status.code() == Some(3) {
        assert!(progress.contains("invalid, not counted"), "{progress}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{said}{progress}");
    assert!(said.contains("| 1 | 500 messages/s | "), "{said}");
    assert!(said.contains("inline keeps p50<10 s at 1000 messages/s, the highest"), "{said}");
}

#[test]
fn a_goal_that_no_rate_keeps_is_missed() {
    if two_cpus().is_none() {
        return;
    }
    let _quiet = quiet();
    let rates = ["--min-rate", "500", "--max-rate", "1000", "--slo", "p50<1ns"];
    let output = loadgen(&[&["search", "inline", "--streams", "4"][..], &rates, &QUICK].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert!([3, 4].contains(&code), "{code}: {said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(code == 4, said.contains("inline misses p50<1 ns even at"), "{said}");
}
