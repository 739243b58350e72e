//! What a search says in the end, and how it exits.

use clap::Parser;

use super::*;
use crate::units::Nanos;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    how: HowArgs,
}

fn row(rate: f64, longer: bool, judged: Judged) -> Row {
    let time = (Nanos(1_000_000), false);
    Row { rate, longer, judged, achieved: MessagesPerSecond(rate), p50: time, p99: time }
}

fn said(found: Found, ended: Ended) -> (String, Exit) {
    let trials = vec![
        row(1_000.0, false, Judged::Kept),
        row(2_000.0, false, Judged::Invalid("time that the host took: 9 %".to_owned())),
        row(1_000.0, true, Judged::Invalid("a quota: 3 %".to_owned())),
        row(4_000.0, false, Judged::Missed("p99 7 ms".to_owned())),
    ];
    let searched = Searched { found, trials, ended };
    let how = Flags::parse_from(["search", "--max-rate", "5k"]).how;
    result("inline", &"p99<5ms".parse().unwrap(), &how, &searched)
}

const FOUND: Found =
    Found { lower: Some(1_000.0), upper: Some(1_010.0), unjudged: None, confirmed: true };

#[test]
fn what_is_known_ends_well() {
    let (line, exit) = said(FOUND, Ended::Known);
    let expected = "inline keeps p99<5 ms up to 1000 messages/s (relevant lower bound, 3 \
                    confirmation trials), and misses it at 1010 messages/s; goal width 2 %";
    assert_eq!((line.as_str(), exit), (expected, Exit::Done));
    let (line, exit) = said(Found { lower: Some(5_000.0), upper: None, ..FOUND }, Ended::Known);
    assert!(line.ends_with("at 5000 messages/s, the highest that was to be tried"), "{line}");
    assert_eq!(exit, Exit::Done);
    let (line, exit) = said(Found { lower: None, confirmed: false, ..FOUND }, Ended::Known);
    assert_eq!(line, "inline misses p99<5 ms even at 1010 messages/s");
    assert_eq!(exit, Exit::GoalMissed);
}

#[test]
fn what_could_not_be_judged_is_told_with_its_gate_and_is_no_miss() {
    let at_2000 = "at 2000 messages/s it could not be judged: time that the host took: 9 %";
    let check = |found: Found, expected: &str| {
        let (line, exit) = said(Found { unjudged: Some(2_000.0), ..found }, Ended::Known);
        assert_eq!(line, format!("{expected}; {at_2000}"));
        assert_eq!(exit, Exit::Invalid);
    };
    let keeps = "inline keeps p99<5 ms at least up to 1000 messages/s";
    check(Found { upper: None, ..FOUND }, keeps);
    let misses = format!("{keeps}, and misses it at 4000 messages/s");
    check(Found { upper: Some(4_000.0), ..FOUND }, &misses);
    let none = Found { lower: None, upper: Some(4_000.0), confirmed: false, ..FOUND };
    check(none, "inline misses p99<5 ms at 4000 messages/s");
    let nothing = "no load is known at which inline keeps or misses p99<5 ms";
    check(Found { upper: None, ..none }, nothing);
}

#[test]
fn a_bound_without_confirmation_says_why_and_a_search_cut_short_does_too() {
    let (line, exit) = said(Found { confirmed: false, ..FOUND }, Ended::Known);
    assert!(line.ends_with("; not confirmed: a quota: 3 %"), "{line}");
    assert_eq!(exit, Exit::Invalid);
    let (line, exit) = said(FOUND, Ended::OutOfTrials);
    assert!(line.contains("no nearer after 100 trials: pass a larger --width"), "{line}");
    assert_eq!(exit, Exit::Failed);
}

#[test]
fn a_machine_on_which_nothing_could_be_judged_says_nothing_of_the_server() {
    let none = Found { lower: None, upper: None, unjudged: Some(2_000.0), confirmed: false };
    let (line, exit) = said(none, Ended::Hopeless);
    let expected = "no load is known at which inline keeps or misses p99<5 ms; at 2000 messages/s it could not be judged: time that \
                    the host took: 9 %; given up: none of 4 trials could be judged; try again when the machine is calm, or pass --calm-limit";
    assert_eq!((line.as_str(), exit), (expected, Exit::Invalid));
}

#[test]
fn a_trial_that_failed_ends_a_search_but_takes_nothing_that_is_known() {
    let (line, exit) = said(FOUND, Ended::Failed("7 lost".to_owned()));
    assert!(line.starts_with("inline keeps p99<5 ms up to 1000 messages/s"), "{line}");
    assert!(line.ends_with("; ended by a trial that failed: 7 lost"), "{line}");
    assert_eq!(exit, Exit::Failed);
    let searched = |ended| Searched { found: FOUND, trials: Vec::new(), ended };
    let why = searched(Ended::Failed("7 lost".to_owned())).without_failure().unwrap_err();
    assert_eq!(why.to_string(), "7 lost");
    assert_eq!(searched(Ended::OutOfTrials).without_failure().unwrap(), FOUND);
}

#[test]
fn what_a_server_says_stays_in_its_cell() {
    let missed = Judged::Missed("1 lost; UNAVAILABLE: a|b <img>".to_owned());
    let trials = vec![row(1_000.0, false, missed)];
    let table = table(&Searched { found: FOUND, trials, ended: Ended::Known });
    let last = table.lines().last().unwrap();
    assert!(last.ends_with("| missed: 1 lost; UNAVAILABLE: a\\|b &lt;img> |"), "{last}");
}
