//! Records and logs as one CSV table (RFC 4180): for spreadsheets and scripts.
//!
//! Each row is one histogram: a [`Timing`] of a whole run, or a second of it. [`COLUMNS`] are the same for
//! all, with their units in their names. A cell is empty where there is nothing to say; percentiles stand
//! there however few values lie beyond them, with the number of values beside them.

use crate::record::{Hlog, RunRecord, SECONDS_TAG, Timing, WrittenHdr};
use crate::units::Nanos;

/// The columns, in order.
///
/// - `run`: name of the record; empty for a log.
/// - `timing`: key of the time in the record, tag in a log; seconds are `latency`, which is the response
///   time in open loop and the service time in closed loop.
/// - `second`: of the measurement, from 0; empty for a whole run.
/// - `messages_received`: echoes that arrived in the second, or in the run.
/// - `count`: values in the histogram; the rest is of them, in nanoseconds.
pub const COLUMNS: [&str; 13] = [
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
];

/// All rows of these records: of each its timings, then its seconds.
pub fn csv(records: &[(String, RunRecord)]) -> String {
    let mut table = Table::new();
    for (run, RunRecord { measured, .. }) in records {
        for timing in Timing::ALL {
            if let Some(hdr) = timing.of(measured) {
                let received = Timing::OF_MESSAGES.contains(&timing);
                let received = received.then_some(measured.messages_received);
                table.row([run, timing.key()], None, received, &WrittenHdr::from(hdr));
            }
        }
        for second in &measured.seconds {
            let received = Some(second.messages_received);
            table.row([run, SECONDS_TAG], Some(second.second), received, &second.latency);
        }
    }
    table.text()
}

/// All rows of a log, in its order; `run` and `messages_received` are empty.
pub fn csv_of_log(log: &Hlog) -> String {
    let mut table = Table::new();
    for interval in &log.intervals {
        let tag = interval.tag.as_deref();
        let is_whole = Timing::ALL.iter().any(|timing| Some(timing.key()) == tag);
        let second = (!is_whole).then_some(interval.start.0 / Nanos::SECOND.0);
        table.row(["", tag.unwrap_or_default()], second, None, &WrittenHdr::from(&interval.hdr));
    }
    table.text()
}

struct Table(csv::Writer<Vec<u8>>);

impl Table {
    fn new() -> Self {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(COLUMNS).expect(WRITES);
        Table(writer)
    }

    fn row(
        &mut self,
        [run, timing]: [&str; 2],
        second: Option<u64>,
        received: Option<u64>,
        hdr: &WrittenHdr,
    ) {
        let cell = |number: Option<u64>| number.map_or(String::new(), |it| it.to_string());
        let times = [hdr.p50_ns, hdr.p90_ns, hdr.p99_ns, hdr.p99_9_ns, hdr.p99_99_ns, hdr.max_ns];
        let cells = [run.to_owned(), timing.to_owned(), cell(second), cell(received)]
            .into_iter()
            .chain([hdr.count.to_string(), hdr.min_ns.0.to_string(), hdr.mean_ns.to_string()])
            .chain(times.iter().map(|time| time.0.to_string()));
        self.0.write_record(cells).expect(WRITES);
    }

    fn text(self) -> String {
        let bytes = self.0.into_inner().expect(WRITES);
        String::from_utf8(bytes).expect("every cell was a String")
    }
}

const WRITES: &str = "a Vec takes whatever is written, and rows are of one length";

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!((&second[1], &second[2]), ("latency", (seconds - 1).to_string().as_str()));
        let expected = record.measured.seconds.last().unwrap().messages_received;
        assert_eq!(second[3], expected.to_string());
    }

    #[test]
    fn a_log_has_the_same_columns() {
        let record = example::closed_loop();
        let rows = read(&csv_of_log(&Hlog::of(&record).unwrap()));
        assert_eq!(rows[0][1], *"service_time");
        assert_eq!(rows[0][4], record.measured.service_time.count().to_string());
        assert_eq!(rows.last().unwrap()[1], *"latency");
    }
}
