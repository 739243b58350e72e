//! Logs: what is written is read back, sums hold every value once, and damage is told by its line.

use super::*;

fn of(values: impl IntoIterator<Item = u64>) -> Hdr {
    let mut hdr = Hdr::default();
    values.into_iter().for_each(|value| hdr.record(Nanos(value)));
    hdr
}

fn seconds(count: u64) -> Nanos {
    Nanos(count * Nanos::SECOND.0)
}

fn interval(tag: Option<&str>, start: Nanos, hdr: Hdr) -> Interval {
    Interval { tag: tag.map(str::to_owned), start, length: Nanos::SECOND, hdr }
}

fn log(base: Nanos, intervals: Vec<Interval>) -> Hlog {
    Hlog { base, missing: Missing::default(), failed_gates: BTreeSet::new(), intervals }
}

/// A log of two tags and an untagged interval, begun in 2026.
fn example() -> Hlog {
    let base = seconds(1_790_000_000) + Nanos(123_000_000);
    log(
        base,
        vec![
            interval(Some("service_time"), Nanos(0), of((1..5_000).map(|value| value * 977))),
            interval(Some("other"), Nanos(0), of([4_711])),
            interval(None, seconds(1), Hdr::default()),
        ],
    )
}

#[test]
fn a_log_reads_back_as_what_was_written() {
    let log = example();
    assert_eq!(Hlog::parse(log.text("a test").as_bytes()).unwrap(), log);
}

#[test]
fn messages_without_an_echo_are_told_and_added() {
    let log = |load| Hlog { missing: Missing { load, probe: 0 }, ..example() };
    let text = log(590).text("a test");
    assert!(text.contains("#[messages without an echo, in no histogram: 590]\n"), "{text}");
    assert_eq!(Hlog::parse(text.as_bytes()).unwrap(), log(590));
    assert_eq!(Hlog::merge(&[log(590), log(0), log(10)]).missing.load, 600);
    assert!(!log(0).text("a test").contains("without an echo"));
}

#[test]
fn the_head_says_version_times_and_units_before_the_intervals() {
    let text = example().text("a\ntest");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "#[a test]", "a name cannot break out of its comment");
    assert_eq!(lines[1], "#[Histogram log format version 1.3]");
    assert!(lines.contains(&"#[StartTime: 1790000000.123 (seconds since epoch)]"), "{text}");
    assert!(lines.contains(&"#[BaseTime: 1790000000.123 (seconds since epoch)]"), "{text}");
    let legend = lines.iter().position(|line| line.starts_with("\"StartTimestamp\"")).unwrap();
    let first = lines.iter().position(|line| line.starts_with("Tag=")).unwrap();
    assert!(legend < first);
    assert!(lines[first].starts_with("Tag=service_time,0.000,1.000,4.8"), "{}", lines[first]);
}

#[test]
fn a_run_that_is_not_valid_says_so_in_its_log_and_in_what_it_is_merged_into() {
    let failed = |names: &[&str]| Hlog {
        failed_gates: names.iter().map(|name| (*name).to_owned()).collect(),
        ..example()
    };
    let text = failed(&["send_lag", "steal"]).text("");
    assert!(text.contains("\n#[INVALID, "), "{text}");
    assert!(text.contains(" failed gates: send_lag, steal]\n"), "{text}");
    assert_eq!(Hlog::parse(text.as_bytes()).unwrap(), failed(&["send_lag", "steal"]));
    let merged = Hlog::merge(&[failed(&["send_lag"]), failed(&[]), failed(&["probe"])]);
    assert_eq!(merged.failed_gates.iter().collect::<Vec<_>>(), ["probe", "send_lag"]);
    assert!(!failed(&[]).text("").contains("INVALID"));
}

#[test]
fn starts_are_understood_as_javas_reader_does() {
    let line = || {
        let text = log(Nanos(0), vec![interval(None, Nanos(0), of([7]))]).text("");
        let line = text.lines().last().unwrap();
        line.strip_prefix("0.000").unwrap().to_owned() + "\n"
    };
    let check = |head: &str, start: &str, expected_s| {
        let read = Hlog::parse(format!("{head}{start}{}", line()).as_bytes()).unwrap();
        assert_eq!(read.base, seconds(expected_s), "{head} {start}");
    };
    check("", "1790000005.000", 1_790_000_005);
    check("#[BaseTime: 1790000000.000 (seconds since epoch)]\n", "5.000", 1_790_000_005);
    check("#[StartTime: 1790000000.0 (seconds since epoch), x]\n", "5.000", 1_790_000_005);
    check("#[StartTime: 1790000000.0 (seconds since epoch)]\n", "1790000005.000", 1_790_000_005);
}

#[test]
fn what_is_damaged_is_refused_by_its_line() {
    let good = example().text("");
    let reason = |text: &str| Hlog::parse(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(reason("#only a comment\n"), "no histogram in it");
    assert_eq!(reason(""), "no histogram in it");
    assert_eq!(reason("{}\n"), "line 1 is no line of a histogram log");
    assert!(reason(&good[..good.len() - 9]).ends_with("the last, is cut off"));
    let line = good.lines().position(|line| line.starts_with("Tag=service_time")).unwrap() + 1;
    let (head, histogram) = good.split_once("HISTF").unwrap();
    for broken in ["HISTG", "HIST", "!ISTF", "HISTFHISTF"] {
        let reason = reason(&format!("{head}{broken}{histogram}"));
        assert!(
            reason.starts_with(&format!("line {line}: damaged histogram")),
            "{broken}: {reason}"
        );
    }
}

#[test]
fn no_flipped_bit_of_a_histogram_passes_unnoticed_or_panics() {
    let good = log(Nanos(0), vec![interval(None, Nanos(0), of((1..200).map(|it| it * 31)))]);
    let text = good.text("");
    let (head, encoded) = text.trim_end().rsplit_once(',').unwrap();
    let bytes = STANDARD.decode(encoded).unwrap();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1 << bit;
            let text = format!("{head},{}\n", STANDARD.encode(flipped));
            let read = Hlog::parse(text.as_bytes());
            assert!(read.is_err() || read.is_ok_and(|read| read == good), "byte {index} bit {bit}");
        }
    }
}

#[test]
fn merging_adds_histograms_and_never_averages() {
    let [slow, fast] = [of([1_000_000; 1]), of([1_000; 99])];
    let logs = [slow, fast]
        .map(|hdr| log(seconds(10), vec![interval(Some("service_time"), Nanos(0), hdr)]));
    let merged = Hlog::merge(&logs);
    assert_eq!(merged.intervals.len(), 1);
    let all = &merged.intervals[0].hdr;
    assert_eq!(all.count(), 100);
    assert_eq!((all.percentile(50.0), all.percentile(99.0)), (Nanos(1_000), Nanos(1_000)));
    assert!(all.percentile(100.0) >= Nanos(1_000_000));
}

#[test]
fn seconds_are_aligned_by_their_begin_and_a_whole_run_covers_all() {
    let run = |base, values: [u64; 2]| {
        let [first, second] = values.map(|value| of([value]));
        let whole =
            Interval { length: seconds(2), ..interval(Some("service_time"), Nanos(0), of(values)) };
        let latency = |start, hdr| interval(Some("service_time_by_second"), start, hdr);
        log(base, vec![whole, latency(Nanos(0), first), latency(seconds(1), second)])
    };
    let merged = Hlog::merge(&[
        run(seconds(101) + Nanos(400_000_000), [30, 40]),
        run(seconds(100), [10, 20]),
    ]);
    assert_eq!(merged.base, seconds(100));
    let whole = &merged.intervals[0];
    assert_eq!((whole.tag.as_deref(), whole.start), (Some("service_time"), Nanos(0)));
    assert_eq!(whole.length, Nanos(3_400_000_000));
    assert_eq!(whole.hdr, of([10, 20, 30, 40]));
    let latency: Vec<_> = merged.intervals[1..]
        .iter()
        .map(|interval| (interval.start, interval.hdr.clone()))
        .collect();
    assert_eq!(
        latency,
        [(seconds(0), of([10])), (seconds(1), of([20, 30])), (seconds(2), of([40]))]
    );
    assert_eq!(Hlog::merge(std::slice::from_ref(&merged)), merged, "merging one changes nothing");
    assert_eq!(merged.sum(Some("service_time_by_second")), merged.sum(Some("service_time")));
}

#[test]
fn a_start_beyond_all_time_is_read_without_a_panic() {
    let good = log(Nanos(0), vec![interval(None, Nanos(0), of([7]))]).text("");
    let (_, histogram) = good.trim_end().rsplit_once(',').unwrap();
    let text = format!(
        "#[StartTime: 5.0 (seconds since epoch)]\n18446744073709551615.0,1.0,1.0,{histogram}\n"
    );
    // Whatever it is taken for: a time, or no line of a log.
    if let Ok(read) = Hlog::parse(text.as_bytes()) {
        assert!(!Hlog::merge(&[read.clone(), read]).text("").is_empty());
    }
}

#[test]
fn what_the_probe_lost_is_told_apart_from_what_the_load_lost() {
    let mut record = crate::report::example::open_loop(1_000.0, 1);
    let times = of(1..100);
    let probe =
        super::super::Probe { messages_lost: 7, response_time: times.clone(), service_time: times };
    record.measured.probe = Some(probe);
    let text = Hlog::of(&record).unwrap().text("");
    assert!(
        text.contains("#[messages of the probe without an echo, in no histogram: 7]\n"),
        "{text}"
    );
    assert!(!text.contains("#[messages without"), "{text}");
    let read = Hlog::parse(text.as_bytes()).unwrap();
    let twice = Hlog::merge(&[read.clone(), read]).text("");
    assert!(
        twice.contains("#[messages of the probe without an echo, in no histogram: 14]\n"),
        "{twice}"
    );
}

#[test]
fn counts_beyond_all_numbers_are_added_without_a_panic() {
    let most = format!("#[messages without an echo, in no histogram: {}]\n", u64::MAX);
    let text = [&most, &most, &example().text("")[..]].concat();
    let read = Hlog::parse(text.as_bytes()).unwrap();
    Hlog::merge(&[read.clone(), read]);
}
