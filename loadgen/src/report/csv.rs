//! Records and logs as one CSV table (RFC 4180): for spreadsheets and scripts.
//!
//! Each row is one histogram: a [`Timing`] of a whole run, or a second of it. [`COLUMNS`] are the same for
//! all, with their units in their names. A cell is empty where there is nothing to say; percentiles stand
//! there however few values lie beyond them, with the number of values beside them.

use std::collections::BTreeSet;

use crate::record::{Hdr, Hlog, Measured, RunRecord, Second, Timing};
use crate::units::Nanos;

/// The columns, in order.
///
/// - `run`: name of the record; empty for a log.
/// - `timing`: key of the time in the record, tag in a log (names and tags that a spreadsheet would take for a formula, with
///   `=`, `+`, `-`, `@` or a tabulator in front, have a `'` before that); of seconds `response_time_by_second` in open loop,
///   `service_time_by_second` in closed loop.
/// - `second`: of the measurement, from 0; empty for a whole run.
/// - `messages_received`: echoes that arrived in the second, or in the run.
/// - `count`: values in the histogram; `min_ns` and `mean_ns` are of them, in nanoseconds, and empty if there are none.
/// - percentiles and `max_ns`: of them and, in a whole run, of the messages without an echo, which are later
///   than all of them; of a second, of what was shed in it. Empty if it falls among those, or there are none.
/// - `messages_due`, `messages_shed`: that became due in the second of an open loop, or in the run, and those of them that were left
///   out; `messages_lost`: of the run, that have no echo and were not left out; `throughput_messages_per_s`: echoes in the run's
///   window by its length. All four are empty for a log.
/// - `failed_gates`: of the run, with spaces between them. If there is one, the figures may be loadgen's or its machine's
///   rather than the server's.
pub const COLUMNS: [&str; 18] = [
    "run",
    "timing",
    "second",
    "messages_received",
    "count",
    "min_ns",
    "mean_ns",
    "p50_ns",
    "p90_ns",
    "p99_ns",
    "p99_9_ns",
    "p99_99_ns",
    "max_ns",
    "messages_due",
    "messages_shed",
    "messages_lost",
    "throughput_messages_per_s",
    "failed_gates",
];

/// All rows of these records: of each its timings, then its seconds.
pub fn csv(records: &[(String, RunRecord)]) -> String {
    let mut table = Table::new();
    for (run, record) in records {
        let measured = &record.measured;
        let failed_gates = &listed(&record.failed_gate_names());
        for timing in Timing::ALL {
            if let Some(hdr) = timing.of(measured) {
                let is_of_messages = Timing::OF_MESSAGES.contains(&timing);
                let counts =
                    if is_of_messages { Counts::from(measured) } else { Counts::default() };
                table.row(&Row {
                    run,
                    timing: timing.key(),
                    second: None,
                    counts,
                    values: Values::of(hdr, timing.missing(measured)),
                    failed_gates,
                });
            }
        }
        for second in &measured.seconds {
            table.row(&Row {
                run,
                timing: Timing::seconds_tag(measured),
                second: Some(second.second),
                counts: Counts::of_second(second, measured.response_time.is_some()),
                values: Values::from(second),
                failed_gates,
            });
        }
    }
    table.text()
}

/// All rows of a log, in its order; `run` and the counts of messages are empty.
pub fn csv_of_log(log: &Hlog) -> String {
    let mut table = Table::new();
    let failed_gates = &listed(&log.failed_gates);
    for interval in &log.intervals {
        let tag = interval.tag.as_deref();
        let timing = Timing::ALL.iter().find(|timing| Some(timing.key()) == tag);
        // What a second lacks is not in a log.
        let missing = timing.map_or(0, |timing| timing.of_missing(log.missing));
        table.row(&Row {
            run: "",
            timing: tag.unwrap_or_default(),
            second: timing.is_none().then_some(interval.start.0 / Nanos::SECOND.0),
            counts: Counts::default(),
            values: Values::of(&interval.hdr, missing),
            failed_gates,
        });
    }
    table.text()
}

fn listed(gates: &BTreeSet<String>) -> String {
    gates.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// A text from elsewhere. Spreadsheets take what begins like a formula for one, whether it is quoted or not (OWASP, "CSV
/// Injection").
fn no_formula(text: &str) -> String {
    let quote = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("{quote}{text}")
}

struct Table(csv::Writer<Vec<u8>>);

/// What stands in a row, by [`COLUMNS`].
struct Row<'a> {
    run: &'a str,
    timing: &'a str,
    second: Option<u64>,
    counts: Counts,
    values: Values,
    failed_gates: &'a str,
}

/// What became of messages, as far as it is known.
#[derive(Default)]
struct Counts {
    received: Option<u64>,
    due: Option<u64>,
    shed: Option<u64>,
    lost: Option<u64>,
    per_s: Option<f64>,
}

impl From<&Measured> for Counts {
    fn from(measured: &Measured) -> Self {
        Counts {
            received: Some(measured.messages_received),
            due: Some(measured.messages_due),
            shed: Some(measured.messages_shed),
            lost: Some(measured.messages_lost),
            per_s: Some(measured.throughput_messages_per_s),
        }
    }
}

impl Counts {
    /// A closed loop plans no second.
    fn of_second(second: &Second, is_open_loop: bool) -> Self {
        Counts {
            received: Some(second.messages_received),
            due: is_open_loop.then_some(second.messages_due),
            shed: is_open_loop.then_some(second.messages_shed),
            ..Counts::default()
        }
    }
}

impl Table {
    fn new() -> Self {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(COLUMNS).expect(WRITES);
        Table(writer)
    }

    fn row(&mut self, row: &Row<'_>) {
        let Row { run, timing, second, counts, values, failed_gates } = row;
        let cell = |number: Option<u64>| number.map_or(String::new(), |it| it.to_string());
        let Counts { received, due, shed, lost, per_s } = counts;
        let per_s = per_s.map_or(String::new(), |it| it.to_string());
        let mean = values.mean_ns.map_or(String::new(), |it| it.to_string());
        let cells = [no_formula(run), no_formula(timing), cell(*second), cell(*received)]
            .into_iter()
            .chain([values.count.to_string(), cell(values.min.map(|min| min.0)), mean])
            .chain(values.ends.map(|end| cell(end.map(|end| end.0))))
            .chain([cell(*due), cell(*shed), cell(*lost), per_s, no_formula(failed_gates)]);
        self.0.write_record(cells).expect(WRITES);
    }

    fn text(self) -> String {
        let bytes = self.0.into_inner().expect(WRITES);
        String::from_utf8(bytes).expect("every cell was a String")
    }
}

/// What a row says of its histogram; nothing but that it is empty if it is.
struct Values {
    count: u64,
    min: Option<Nanos>,
    mean_ns: Option<f64>,
    /// The percentiles and the largest; none where it is not known.
    ends: [Option<Nanos>; 6],
}

impl Values {
    /// What a row says if it has any values.
    fn if_any(self) -> Self {
        match self.count {
            0 => Values { count: 0, min: None, mean_ns: None, ends: [None; 6] },
            _ => self,
        }
    }

    /// With so many messages that are later than all that are in the histogram.
    fn of(hdr: &Hdr, missing: u64) -> Self {
        let end = |percent| match hdr.percentile_among(percent, missing) {
            (_, true) => None,
            (value, false) => Some(value),
        };
        let max = (missing == 0).then(|| hdr.max());
        let [p50, p90, p99, p99_9, p99_99] = [50.0, 90.0, 99.0, 99.9, 99.99].map(end);
        let ends = [p50, p90, p99, p99_9, p99_99, max];
        let (min, mean_ns) = (Some(hdr.min()), Some(hdr.mean_ns()));
        Values { count: hdr.count(), min, mean_ns, ends }.if_any()
    }
}

impl From<&Second> for Values {
    fn from(second: &Second) -> Self {
        let hdr = &second.latency;
        let percentiles = second.percentiles([50.0, 90.0, 99.0, 99.9, 99.99]);
        let max = (hdr.max_ns, second.messages_shed > 0);
        let known = |(value, is_beyond): (Nanos, bool)| (!is_beyond).then_some(value);
        let [p50, p90, p99, p99_9, p99_99] = percentiles.map(known);
        let ends = [p50, p90, p99, p99_9, p99_99, known(max)];
        let (min, mean_ns) = (Some(hdr.min_ns), Some(hdr.mean_ns));
        Values { count: hdr.count, min, mean_ns, ends }.if_any()
    }
}

const WRITES: &str = "a Vec takes whatever is written, and rows are of one length";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;

    fn read(text: &str) -> Vec<csv::StringRecord> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
        reader.records().map(Result::unwrap).collect()
    }

    #[test]
    fn each_time_and_each_second_is_a_row_with_the_records_figures() {
        let record = example::open_loop(2_000.0, 1);
        let name = "a \"run\", quoted".to_owned();
        let rows = read(&csv(&[(name.clone(), record.clone())]));
        let seconds = record.measured.seconds.len();
        let measured = &record.measured;
        let timings = Timing::ALL.iter().filter(|timing| timing.of(measured).is_some()).count();
        assert_eq!(rows.len(), timings + seconds);
        assert!(rows.iter().all(|row| row[0] == *name));
        let response = rows.iter().find(|row| &row[1] == "response_time").unwrap();
        let expected = record.measured.response_time.as_ref().unwrap();
        assert_eq!(&response[2], "");
        assert_eq!(response[4], expected.count().to_string());
        assert_eq!(response[9], expected.percentile(99.0).0.to_string());
        assert_eq!(response[12], expected.max().0.to_string());
        let second = rows.last().unwrap();
        assert_eq!(
            (&second[1], &second[2]),
            ("response_time_by_second", (seconds - 1).to_string().as_str())
        );
        let expected = record.measured.seconds.last().unwrap().messages_received;
        assert_eq!(second[3], expected.to_string());
    }

    #[test]
    fn what_falls_among_messages_without_an_echo_is_not_known() {
        let mut record = example::open_loop(2_000.0, 1);
        record.measured.messages_shed = record.measured.messages_received / 3;
        let rows = read(&csv(&[("shed".to_owned(), record.clone())]));
        let response = rows.iter().find(|row| &row[1] == "response_time").unwrap();
        let hdr = record.measured.response_time.as_ref().unwrap();
        let (p50, _) = hdr.percentile_among(50.0, record.measured.messages_shed);
        assert!(p50 > hdr.percentile(50.0));
        assert_eq!(response[7], p50.0.to_string());
        assert_eq!([&response[8], &response[9], &response[12]], ["", "", ""]);
        let lag = rows.iter().find(|row| &row[1] == "send_lag").unwrap();
        assert_ne!(&lag[12], "", "it is over before a message is shed");
        let of_log = read(&csv_of_log(&Hlog::of(&record).unwrap()));
        let logged = of_log.iter().find(|row| &row[1] == "response_time").unwrap();
        assert_eq!(logged[7], response[7]);
        assert_eq!([&logged[8], &logged[9], &logged[12]], ["", "", ""]);
    }

    #[test]
    fn what_falls_among_what_a_second_shed_is_not_known() {
        let mut record = example::open_loop(2_000.0, 1);
        let second = record.measured.seconds.last_mut().unwrap();
        second.messages_shed = second.latency.count / 4;
        let rows = read(&csv(&[("shed".to_owned(), record.clone())]));
        let row = rows.iter().next_back().unwrap();
        assert_ne!(&row[7], "");
        assert_eq!([&row[8], &row[9], &row[12]], ["", "", ""]);
        let before = &rows[rows.len() - 2];
        assert_ne!(&before[12], "", "that second shed nothing");
    }

    #[test]
    fn what_became_of_messages_stands_beside_their_times() {
        let mut record = example::open_loop(2_000.0, 1);
        let measured = &mut record.measured;
        (measured.messages_due, measured.messages_shed, measured.messages_lost) = (9_000, 70, 5);
        measured.seconds[0].messages_due = 4_100;
        measured.seconds[0].messages_shed = 60;
        let rows = read(&csv(&[("run".to_owned(), record.clone())]));
        let counts = |timing: &str| {
            let row = rows.iter().find(|row| &row[1] == timing).unwrap();
            [13, 14, 15, 16].map(|column| row[column].to_owned())
        };
        assert_eq!(counts("response_time"), ["9000", "70", "5", "2000"]);
        assert_eq!(counts("response_time_by_second"), ["4100", "60", "", ""]);
        assert_eq!(counts("connect"), [""; 4]);
        let rows = read(&csv(&[("run".to_owned(), example::closed_loop())]));
        let second = rows.last().unwrap();
        assert_eq!([&second[13], &second[14]], ["", ""], "a closed loop plans nothing");
        assert_ne!(&second[3], "");
    }

    #[test]
    fn every_row_of_a_run_that_is_not_valid_says_so() {
        let mut record = example::open_loop(2_000.0, 1);
        let failed = |name| example::gate(name, Verdict::Failed, Some(1.0), "share");
        record.gates.extend([failed(GateName::SendLag), failed(GateName::Probe)]);
        let valid = ("valid".to_owned(), example::closed_loop());
        let rows = read(&csv(&[("invalid".to_owned(), record.clone()), valid]));
        for row in rows {
            assert_eq!(&row[17], if &row[0] == "invalid" { "probe send_lag" } else { "" });
        }
        let of_log = read(&csv_of_log(&Hlog::of(&record).unwrap()));
        assert!(of_log.iter().all(|row| &row[17] == "probe send_lag"));
    }

    #[test]
    fn a_log_has_the_same_columns() {
        let record = example::closed_loop();
        let rows = read(&csv_of_log(&Hlog::of(&record).unwrap()));
        assert_eq!(rows[0][1], *"service_time");
        assert_eq!(rows[0][4], record.measured.service_time.count().to_string());
        assert_eq!(rows.last().unwrap()[1], *"service_time_by_second");
    }

    #[test]
    fn where_nothing_was_measured_no_time_is_told() {
        let mut record = example::open_loop(2_000.0, 1);
        let nothing = crate::record::WrittenHdr::from(&Hdr::default());
        record.measured.seconds.last_mut().unwrap().latency = nothing;
        record.measured.half_close = Hdr::default();
        let rows = read(&csv(&[("run".to_owned(), record)]));
        let half_close = rows.iter().find(|row| &row[1] == "half_close").unwrap();
        for row in [half_close, rows.last().unwrap()] {
            assert_eq!(&row[4], "0");
            assert!((5..=12).all(|column| row[column].is_empty()), "{row:?}");
        }
    }

    #[test]
    fn what_the_probe_lost_is_later_than_what_came_of_it_in_a_log_too() {
        let mut record = example::open_loop(2_000.0, 1);
        let times = record.measured.service_time.clone();
        let lost = times.count() / 3;
        record.measured.probe = Some(crate::record::Probe {
            messages_lost: lost,
            response_time: times.clone(),
            service_time: times,
        });
        let read_back = Hlog::parse(Hlog::of(&record).unwrap().text("").as_bytes()).unwrap();
        let logs = [csv(&[(String::new(), record)]), csv_of_log(&read_back)];
        for rows in logs.map(|text| read(&text)) {
            let of = |timing: &str| rows.iter().find(|row| &row[1] == timing).unwrap().clone();
            for timing in ["probe_response_time", "probe_service_time"] {
                assert_eq!([&of(timing)[9], &of(timing)[12]], ["", ""], "{timing}");
            }
            assert_ne!(&of("response_time")[12], "", "the load lost nothing");
        }
    }

    #[test]
    fn no_name_becomes_a_spreadsheets_formula() {
        let told =
            |name: &str| read(&csv(&[(name.to_owned(), example::closed_loop())]))[0][0].to_owned();
        for name in ["=1+1", "+1", "-1", "@sum", "\t=1"] {
            assert_eq!(told(name), format!("'{name}"));
        }
        for name in ["a=1", "run-1", "'quoted"] {
            assert_eq!(told(name), name);
        }
        let mut log = Hlog::of(&example::closed_loop()).unwrap();
        log.intervals[0].tag = Some("=cmd".to_owned());
        assert_eq!(&read(&csv_of_log(&log))[0][1], "'=cmd");
    }
}
