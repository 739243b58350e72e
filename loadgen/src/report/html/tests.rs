//! The page: it needs nothing else, its figures are the records', and what is invalid says so.

use super::*;
use crate::record::{GateName, Verdict};
use crate::report::example;
use crate::units::Nanos;

fn page(records: &[(&str, RunRecord)]) -> String {
    let records: Vec<_> =
        records.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect();
    html(&records).unwrap()
}

/// What the first element with this key says: its exact value and its text.
fn told<'a>(page: &'a str, key: &str) -> (&'a str, &'a str) {
    let key = format!("\" data-key=\"{key}\"");
    let (before, after) = page.split_once(&key).unwrap_or_else(|| panic!("no {key}"));
    let value = before.rsplit_once("value=\"").unwrap().1;
    let text = after.split_once('>').unwrap().1;
    (value, text.split_once('<').unwrap().0)
}

#[test]
fn the_figures_of_the_page_are_those_of_the_record() {
    let record = example::open_loop(4_000.0, 1);
    let page = page(&[("run", record.clone())]);
    let measured = &record.measured;
    let response = measured.response_time.as_ref().unwrap();
    let check = |key: &str, value: u64, text: &str| {
        assert_eq!(told(&page, key), (value.to_string().as_str(), text), "{key}");
    };
    let p99 = response.percentile(99.0);
    check("measured.response_time.p99_ns", p99.0, &p99.to_string());
    check("measured.messages_wrong", 1, "1");
    check("measured.statuses.UNAVAILABLE", 1, "1");
    let second = measured.seconds[4].latency.p50_ns;
    check("measured.seconds.4.latency.p50_ns", second.0, &second.to_string());
    check("derived.echoes_per_stream_median", 5_000, "5000");
    check("scenario.seed", 7, "7");
    check("measured.window_ns", 5_000_000_000, &Nanos(5_000_000_000).to_string());
}

#[test]
fn a_percentile_that_the_samples_do_not_hold_up_is_a_dash_with_its_value_behind() {
    let page = page(&[("run", example::closed_loop())]);
    let (value, text) = told(&page, "measured.service_time.p99_99_ns");
    assert_eq!(text, DASH);
    let expected = example::closed_loop().measured.service_time.percentile(99.99);
    assert_eq!(value, expected.0.to_string());
}

#[test]
fn a_headroom_that_nobody_measured_stands_below_the_gates() {
    let mut record = example::closed_loop();
    let told = "Headroom: not measured (--require-valid asks for it";
    assert!(page(&[("run", record.clone())]).contains(told));
    record.gates.push(example::gate(GateName::Headroom, Verdict::Passed, Some(0.2), "share"));
    assert!(!page(&[("run", record)]).contains("not measured"));
}

#[test]
fn nothing_in_a_record_becomes_markup() {
    let mut record = example::closed_loop();
    record.measured.first_failure = Some("<img src=x onerror=alert(1)>".to_owned());
    record.provenance.server.product = Some("</script><b>".to_owned());
    let page = page(&[("<i>\"run\"</i>", record)]);
    for markup in ["<script", "<img", "</script><b>", "<i>"] {
        assert!(!page.contains(markup), "{markup}");
    }
}

#[test]
fn the_page_refers_to_nothing_outside_of_itself() {
    let page = page(&[("a", example::open_loop(1_000.0, 1)), ("b", example::closed_loop())]);
    for outside in ["http://", "https://", "url(", "@import", "src=", "<script"] {
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
}

#[test]
fn open_and_closed_loops_share_no_axis_and_three_rates_make_a_curve() {
    let runs = [
        ("r1", example::open_loop(1_000.0, 1)),
        ("r2", example::open_loop(2_000.0, 1)),
        ("r3", example::open_loop(3_000.0, 9)),
        ("closed", example::closed_loop()),
    ];
    let page = page(&runs);
    assert_eq!(
        page.matches("Side by side, ").count(),
        1,
        "a closed loop alone has nothing beside it"
    );
    assert!(page.contains("Side by side, open loop, uniform arrivals"));
    assert!(page.contains("Response time against offered load"));
    assert!(page.contains(">knee by power</td>"));
}

#[test]
fn a_damaged_second_is_told_by_the_runs_name() {
    let mut record = example::closed_loop();
    record.measured.seconds[1].latency.hdr_v2_base64.truncate(8);
    let (name, _) = html(&[("broken".to_owned(), record)]).unwrap_err();
    assert_eq!(name, "broken");
}

#[test]
fn a_failed_gate_stands_above_everything_and_in_its_run() {
    let valid = page(&[("run", example::open_loop(1_000.0, 1))]);
    assert!(!valid.contains("INVALID") && valid.contains("Valid: no gate failed"));
    assert_eq!(told(&valid, "gates.0.verdict"), ("passed", "passed"));
    assert_eq!(told(&valid, "gates.0.figure"), ("0.5", "50.00 %"));
    let mut record = example::open_loop(1_000.0, 1);
    record.gates.push(example::gate(GateName::SendLag, Verdict::Failed, Some(3e6), "ns"));
    let invalid = page(&[("run", record.clone())]);
    let banner = invalid.find("INVALID: gates failed in 1 of 1 runs").unwrap();
    assert!(banner < invalid.find("Overview").unwrap());
    assert!(
        invalid.contains("✗ INVALID") && invalid.contains("send_lag: SendLag: Some(3000000.0)")
    );
    assert_eq!(told(&invalid, "gates.2.figure"), ("3000000", "3 ms"));
    record.gates.clear();
    let unknown = page(&[("run", record)]);
    assert!(unknown.contains("? no gates") && !unknown.contains("Valid: no gate failed"));
}

#[test]
fn a_percentile_among_messages_without_an_echo_lies_beyond_all_that_are_known() {
    let mut record = example::open_loop(1_000.0, 1);
    record.measured.messages_lost = record.measured.messages_received;
    let page = page(&[("run", record.clone())]);
    let longest = record.measured.response_time.as_ref().unwrap().max();
    let (value, text) = told(&page, "measured.response_time.p99_ns");
    assert_eq!(text, format!("&gt;{longest}"));
    let p99 = record.measured.response_time.as_ref().unwrap().percentile(99.0);
    assert_eq!(value, p99.0.to_string());
}

#[test]
fn the_words_tell_which_times_a_closed_loop_has() {
    let page = page(&[("run", example::closed_loop())]);
    assert!(page.contains("A closed loop has W and S."), "{page}");
}
