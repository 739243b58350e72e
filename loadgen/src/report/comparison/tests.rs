//! Tables of made-up runs: what is counted, marked, left out, and how it is said.

use super::*;

#[test]
fn a_server_with_time_to_spare_is_marked_though_no_gate_failed() {
    let check = |mut record: RunRecord, share, expected: Option<&str>| {
        record.measured.server_cpu_share = share;
        let figures = Figures::of(&record, Figure::Messages).unwrap();
        assert_eq!(figures.unsaturated.as_deref(), expected, "{share:?}");
    };
    let said = Some("the server used 64 % of its cores' time");
    check(crate::report::example::closed_loop(), Some(0.64), said);
    check(crate::report::example::closed_loop(), Some(0.95), None);
    check(crate::report::example::closed_loop(), None, None);
    // An open loop offers what it offers.
    check(crate::report::example::open_loop(1_000.0, 1), Some(0.64), None);
}

#[test]
fn a_median_stands_in_the_middle() {
    let check = |values: &[f64], expected| {
        let spread = Spread::of(values.iter().copied());
        assert_eq!(spread.map(|spread| (spread.median, spread.min, spread.max)), expected);
    };
    check(&[], None);
    check(&[3.0], Some((3.0, 3.0, 3.0)));
    check(&[9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0)));
    check(&[4.0, 1.0, 2.0, 9.0], Some((3.0, 1.0, 9.0)));
}

#[test]
fn a_percentile_in_the_middle_is_one_that_was_measured() {
    let check = |values: &[u64], expected| {
        let spread = Spread::of_times(values.iter().copied().map(Nanos));
        assert_eq!(spread.map(|spread| (spread.median, spread.min, spread.max)), expected);
    };
    check(&[], None);
    check(&[9, 1, 2], Some((2.0, 1.0, 9.0)));
    check(&[4, 1, 2, 9], Some((2.0, 1.0, 9.0)));
}

#[test]
fn a_percentile_among_messages_without_an_echo_is_not_known() {
    let mut record = crate::report::example::open_loop(4_000.0, 1);
    record.measured.messages_per_server_cpu_s = Some(1e6);
    let of = |record: &RunRecord| {
        let figures = Figures::of(record, Figure::Messages).unwrap();
        (figures.p50.is_some(), figures.p99.is_some())
    };
    assert_eq!(of(&record), (true, true));
    record.measured.messages_shed = record.measured.messages_received / 10;
    assert_eq!(of(&record), (true, false));
    record.measured.messages_shed = 2 * record.measured.messages_received;
    assert_eq!(of(&record), (false, false));
}

#[test]
fn ratios_pair_the_runs_of_one_repetition() {
    let ratios = paired_ratios(&[Some(20.0), Some(60.0)], &[Some(10.0), Some(20.0)]);
    assert_eq!(ratios, [2.0, 3.0]);
    // The median of ratios, not the ratio of medians: a slow spell that both meet changes nothing.
    let (fast, slow) = ([Some(100.0), Some(10.0)], [Some(50.0), Some(5.0)]);
    assert_eq!(Spread::of(paired_ratios(&fast, &slow)).unwrap().median, 2.0);
}

#[test]
fn a_pair_that_lacks_a_run_is_left_out() {
    let ratios = paired_ratios(&[None, Some(6.0), Some(1.0)], &[Some(1.0), Some(2.0), None]);
    assert_eq!(ratios, [3.0]);
    assert_eq!(paired_ratios(&[Some(1.0), Some(1.0)], &[Some(1.0)]), [1.0]);
}

fn figures(per_server_cpu_s: f64) -> Figures {
    Figures {
        per_server_cpu_s,
        messages_per_s: 1_000.0,
        p50: Some(Nanos(50_000)),
        p99: None,
        server_cpu_per_message: Nanos(700),
        loadgen_cpu_per_message: Some(Nanos(900)),
        bytes_per_idle_stream: Some(1_700.0),
        bytes_per_idle_connection: None,
        all_open_bytes: Some(4e6),
        share_given_back: Some(0.8),
        unsaturated: None,
        others: None,
        warnings: vec![WarningKind::LoadgenBusy],
    }
}

pub(in super::super) fn counted(per_server_cpu_s: f64) -> Outcome {
    Outcome::Counted(figures(per_server_cpu_s))
}

/// A run that loadgen was the limit of.
pub(in super::super) fn bound(per_server_cpu_s: f64) -> Outcome {
    let why = "busiest shard thread: 98 %".to_owned();
    Outcome::Marked(figures(per_server_cpu_s), Mark::Bound, why)
}

/// One beside which others ran.
pub(in super::super) fn beside_others(per_server_cpu_s: f64) -> Outcome {
    let others = Some("others ran: rustc 5.0 % of a core".to_owned());
    Outcome::Counted(Figures { others, ..figures(per_server_cpu_s) })
}

/// A suite of one closed loop; its baseline is `stock`, its subject `ours`.
pub(in super::super) fn suite(servers: Vec<(&str, Vec<Outcome>)>) -> Comparison {
    let contender = |(name, runs): (&str, _)| Contender {
        name: name.to_owned(),
        skipped: None,
        knee_is_open: false,
        runs,
    };
    Comparison {
        preface: "# A suite".to_owned(),
        baseline: "stock".to_owned(),
        subject: Some("ours".to_owned()),
        scenarios: vec![Compared {
            name: "row-1".to_owned(),
            load: "1 connection".to_owned(),
            figure: Figure::Messages,
            open_loop: false,
            servers: servers.into_iter().map(contender).collect(),
        }],
        appendix: "Host.".to_owned(),
    }
}

#[test]
fn a_run_beside_which_others_ran_says_so_and_counts() {
    let runs = vec![counted(1e5), beside_others(1e5), beside_others(1e5)];
    let report = suite(vec![("stock", runs)]).to_string();
    let line = "- row-1.stock ‖ in 2 of 3 runs: others ran: rustc 5.0 % of a core";
    assert!(report.lines().any(|it| it == line), "{report}");
    assert!(report.contains("\n‖ other programs"), "{report}");
    assert!(report.contains("| stock ‖ | 3 |"), "{report}");
    let calm = suite(vec![("stock", vec![counted(1e5)])]).to_string();
    assert!(!calm.contains('‖'), "{calm}");
}

#[test]
fn what_loadgen_was_the_limit_of_is_marked_wherever_it_stands() {
    let report = suite(vec![
        ("stock", vec![counted(1e5)]),
        ("ours", vec![counted(2e6)]),
        ("limit", vec![bound(4e6)]),
    ])
    .to_string();
    for line in [
        "| row-1 | 1 connection | 20x | 40x † |",
        "| row-1 | 1 connection | 20x | 0.50x † |",
        "| limit † | 1 | 4 M | 40x | 1000 | 1x | 50 µs | 1x | - | 700 ns / 900 ns |",
        "- row-1.limit † in 1 of 1 runs: busiest shard thread: 98 %",
    ] {
        assert!(report.lines().any(|it| it == line), "{line:?} is not in\n{report}");
    }
    assert!(report.contains(Mark::Bound.legend()), "{report}");
    let unmarked = suite(vec![("stock", vec![counted(1e5)]), ("ours", vec![counted(1e5)])]);
    assert!(!unmarked.to_string().contains('†'));
}

#[test]
fn what_was_not_answered_leaves_no_times() {
    let partly = |per_cpu| {
        let figures = Figures { p50: None, p99: None, ..figures(per_cpu) };
        Outcome::Marked(figures, Mark::Answered, "in flight: 265 of 1000".to_owned())
    };
    let servers = vec![
        ("stock", vec![counted(1e5), counted(1e5)]),
        ("ours", vec![bound(2e6), partly(2e6)]),
        ("peer", vec![partly(4e6), partly(4e6)]),
    ];
    let report = suite(servers).to_string();
    for line in [
        "| row-1 | 1 connection | 20x †§ | 40x § |",
        "| row-1 | 1 connection | 20x †§ | 0.50x †§ |",
        "| peer § | 2 | 4 M | 40x | 1000 | 1x | - | - | - | 700 ns / 900 ns |",
        "- row-1.peer § in 2 of 2 runs: in flight: 265 of 1000",
    ] {
        assert!(report.lines().any(|it| it == line), "{line:?} is not in\n{report}");
    }
    assert!(report.contains(Mark::Answered.legend()), "{report}");
}

#[test]
fn a_report_counts_what_went_well_and_names_what_did_not() {
    let contender = |name: &str, skipped: Option<&str>, runs| Contender {
        name: name.to_owned(),
        skipped: skipped.map(str::to_owned),
        knee_is_open: false,
        runs,
    };
    let failed = Outcome::Failed("exit code 1: 3 lost".to_owned());
    let servers = vec![
        contender("stock", None, vec![counted(1e5), counted(2e5)]),
        contender("ours", None, vec![counted(2e6), failed]),
        contender("peer", Some("needs a compiler"), vec![]),
    ];
    let scenario = Compared {
        name: "row-1".to_owned(),
        load: "1 connection".to_owned(),
        figure: Figure::Messages,
        open_loop: false,
        servers,
    };
    let report = Comparison {
        preface: "# A suite".to_owned(),
        baseline: "stock".to_owned(),
        subject: Some("ours".to_owned()),
        scenarios: vec![scenario],
        appendix: "Host.".to_owned(),
    }
    .to_string();
    for line in [
        "# A suite",
        "| scenario | load | ours | peer |",
        "## Ratios to stock, per server CPU-second",
        "| row-1 | 1 connection | 20x ¶ | - |",
        "## Ratios of ours, per server CPU-second",
        "| scenario | load | stock | peer |",
        "| stock | 2 | 150 k (100 k .. 200 k) | 1x | 1000 | 1x | 50 µs | 1x | - | 700 ns / 900 ns |",
        "| peer | skipped | - | - | - | - | - | - | - | - / - |",
        "| stock | 1700 B | - | 4 MB | 80 % |",
        "| peer | - | - | - | - |",
        "- peer skipped: needs a compiler",
        "- row-1.ours.2 failed and is not counted: exit code 1: 3 lost",
        "- row-1.stock: loadgen_busy in 2 of 2 runs",
        "Host.",
    ] {
        assert!(report.lines().any(|it| it == line), "{line:?} is not in\n{report}");
    }
    assert!(report.contains("| ours ¶ | 1 of 2 | 2 M | 20x |"), "{report}");
    assert!(report.contains(Mark::Survivors.legend()), "{report}");
}

#[test]
fn whatever_a_load_or_a_failure_says_stays_in_its_cell() {
    let failed = Outcome::Failed("stream 1: <img src=x>|\nnext".to_owned());
    let servers = vec![("stock", vec![counted(1e5)]), ("ours", vec![counted(2e6), failed])];
    let mut comparison = suite(servers);
    comparison.scenarios[0].load = "1 connection, metadata a=b|c<img>".to_owned();
    let report = comparison.to_string();
    let (load, cell) = ("1 connection, metadata a=b\\|c&lt;img>", "| 20x ¶ |");
    assert!(report.contains(&format!("\n| row-1 | {load} {cell}\n")), "{report}");
    assert!(report.contains(&format!("\n## row-1: {load}\n")), "{report}");
    assert!(report.contains("not counted: stream 1: &lt;img src=x>\\| next\n"), "{report}");
    let summary = comparison.summary();
    assert!(summary.contains(&format!("multiples of stock's | {load} |\n")), "{summary}");
}
