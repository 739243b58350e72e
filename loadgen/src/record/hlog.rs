//! HdrHistogram logs (`.hlog`): a record's histograms as the tools of HdrHistogram read them.
//!
//! In: records, or logs that others wrote. Out: log format 1.3, as Java's `HistogramLogWriter` and
//! `HistogramLogReader` document it (<https://github.com/HdrHistogram/HdrHistogram>): comments, then a
//! line per interval with its tag, start, length, largest value and histogram (V2, DEFLATE, base64).
//! Knows no file. Logs are merged by adding histograms; percentiles are never averaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};

use super::{Damaged, Hdr, Missing, RunRecord, Timing};
use crate::units::Nanos;

/// How a log's comment begins that says how many messages waited longer than any that is in it.
const MISSING: &str = "[messages without an echo, in no histogram: ";

/// The same of those of the probe.
const MISSING_OF_PROBE: &str = "[messages of the probe without an echo, in no histogram: ";

/// How a log's comment begins that names the gates which a run failed.
const INVALID: &str = "[INVALID, the figures may be loadgen's or its machine's; failed gates: ";

/// What stands above the intervals. [`UNITS`] and the legend are how the format describes itself.
const VERSION: &str = "[Histogram log format version 1.3]";
const UNITS: &str =
    "[values: nanoseconds; Interval_Max: milliseconds; starts: seconds since BaseTime]";
const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// Java's default: largest values are told in ms.
const MAX_NS_PER_UNIT: f64 = 1e6;

/// An encoded histogram of ours takes a few hundred kilobytes at most; a damaged length says anything.
const HISTOGRAM_BYTES_MAX: u64 = 64 << 20;

/// What V2 with DEFLATE begins with; the length of the rest follows, in four bytes more.
const COOKIE: [u8; 4] = [0x1c, 0x84, 0x93, 0x14];
const ENVELOPE_BYTES: usize = 8;

/// Histograms over stretches of time, from one generator or several.
#[derive(Clone, Debug, PartialEq)]
pub struct Hlog {
    /// What [`Interval::start`] counts from, since the Unix epoch; whole milliseconds, as the format has it.
    pub base: Nanos,
    /// Messages that were shed or lost.
    pub missing: Missing,
    /// Gates that a run of them failed, as records spell them: whether the values are the server's is not sure.
    pub failed_gates: BTreeSet<String>,
    /// By their starts.
    pub intervals: Vec<Interval>,
}

/// One histogram and the stretch of time that its values come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// What was timed; `None` if the log does not say.
    pub tag: Option<String>,
    /// From [`Hlog::base`].
    pub start: Nanos,
    /// How long it was.
    pub length: Nanos,
    /// Its values.
    pub hdr: Hdr,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HlogError {
    /// A line is neither a comment nor an interval.
    #[error("line {line} is no line of a histogram log")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// The last line has no end.
    #[error("line {line}, the last, is cut off")]
    CutOff {
        /// Counted from 1.
        line: usize,
    },
    /// A line's histogram cannot be decoded.
    #[error("line {line}: {damaged}")]
    Histogram {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        damaged: Damaged,
    },
    /// There is no interval in it.
    #[error("no histogram in it")]
    Empty,
}

impl Hlog {
    /// A record's log: a whole-run interval per [`Timing`] that has values, and one a second.
    ///
    /// Err: a second's histogram cannot be read.
    pub fn of(record: &RunRecord) -> Result<Hlog, Damaged> {
        let measured = &record.measured;
        let whole = Timing::ALL.into_iter().filter_map(|timing| {
            let hdr = timing.of(measured).filter(|hdr| hdr.count() > 0)?.clone();
            let tag = Some(timing.key().to_owned());
            Some(Ok(Interval { tag, start: Nanos(0), length: measured.window_ns, hdr }))
        });
        let tag = Timing::seconds_tag(measured);
        let seconds = measured.seconds.iter().map(|second| {
            let start = second.second.saturating_mul(Nanos::SECOND.0).min(Nanos::NEVER.0);
            let start = Nanos(start);
            let hdr = Hdr::try_from(&second.latency)?;
            Ok(Interval { tag: Some(tag.to_owned()), start, length: Nanos::SECOND, hdr })
        });
        let intervals = whole.chain(seconds).collect::<Result<_, Damaged>>()?;
        let base = whole_millis(record.window_began());
        let failed_gates = record.failed_gate_names();
        Ok(Hlog { base, missing: Missing::of(measured), failed_gates, intervals })
    }

    /// Reads what [`Hlog::text`] or another writer of the format wrote, line by line.
    pub fn parse(text: &[u8]) -> Result<Hlog, HlogError> {
        let mut times = Times::default();
        let mut missing = Missing::default();
        let mut failed_gates = BTreeSet::new();
        let mut intervals = Vec::new();
        for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if !line.ends_with(b"\n") {
                return Err(HlogError::CutOff { line: line_number });
            }
            match IntervalLogIterator::new(line).next() {
                None => {
                    let count = |begin| said(line, begin).and_then(|it| it.parse().ok());
                    let [load, probe] = [MISSING, MISSING_OF_PROBE].map(count);
                    missing =
                        missing.and(Missing { load: load.unwrap_or(0), probe: probe.unwrap_or(0) });
                    let failed = said(line, INVALID).into_iter().flat_map(|it| it.split(", "));
                    failed_gates.extend(failed.map(str::to_owned));
                }
                Some(Err(_)) => return Err(HlogError::Line { line: line_number }),
                Some(Ok(LogEntry::StartTime(at))) => times.start = Some(at),
                Some(Ok(LogEntry::BaseTime(at))) => times.base = Some(at),
                Some(Ok(LogEntry::Interval(read))) => {
                    let hdr = decode(read.encoded_histogram())
                        .map_err(|damaged| HlogError::Histogram { line: line_number, damaged })?;
                    let tag = read.tag().map(|tag| tag.as_str());
                    if tag.is_some_and(|tag| Tag::new(tag).is_none()) {
                        return Err(HlogError::Line { line: line_number });
                    }
                    let tag = tag.map(str::to_owned);
                    let start = Nanos::from(times.since_epoch(read.start_timestamp()));
                    intervals.push(Interval { tag, start, length: read.duration().into(), hdr });
                }
            }
        }
        let base = intervals.iter().map(|interval| interval.start).min().ok_or(HlogError::Empty)?;
        let base = whole_millis(base);
        intervals.iter_mut().for_each(|interval| interval.start = interval.start - base);
        Ok(Hlog { base, missing, failed_gates, intervals })
    }

    /// The log in its format: UTF-8 text, a line break at its end. `what` says where it comes from.
    pub fn text(&self, what: &str) -> String {
        let mut bytes = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let writes = "a Vec takes whatever is written";
        let base = UNIX_EPOCH + self.base.as_duration();
        let mut head = IntervalLogWriterBuilder::new();
        head.add_comment(&format!("[{}]", what.replace(['\r', '\n'], " ")))
            .add_comment(VERSION)
            .add_comment(UNITS);
        let Missing { load, probe } = self.missing;
        for (begin, count) in [(MISSING, load), (MISSING_OF_PROBE, probe)] {
            if count > 0 {
                head.add_comment(&format!("{begin}{count}]"));
            }
        }
        if !self.failed_gates.is_empty() {
            head.add_comment(&format!("{INVALID}{}]", in_words(&self.failed_gates)));
        }
        let head = head
            .with_start_time(base)
            .with_base_time(base)
            .begin_log_with(&mut bytes, &mut serializer)
            .map(drop);
        head.expect(writes);
        bytes.extend_from_slice(LEGEND.as_bytes());
        let mut log = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(MAX_NS_PER_UNIT)
            .begin_log_with(&mut bytes, &mut serializer)
            .expect(writes);
        for Interval { tag, start, length, hdr } in &self.intervals {
            let tag = tag.as_deref().and_then(Tag::new);
            log.write_histogram(hdr.histogram(), start.as_duration(), length.as_duration(), tag)
                .expect(writes);
        }
        String::from_utf8(bytes).expect("the format is ASCII, and comments are UTF-8")
    }

    /// One log of all: the values of all intervals, each once.
    ///
    /// What a [`Timing`] names becomes one interval over everything, from the earliest begin to the latest
    /// end. Of every other tag, the intervals that begin in the same second are one: seconds are counted
    /// from the earliest base, and a begin belongs to the nearest, so it moves by half a second at most.
    pub fn merge(logs: &[Hlog]) -> Hlog {
        let base = logs.iter().map(|log| log.base).min().unwrap_or_default();
        let mut merged = BTreeMap::<(Nanos, bool, Option<&str>), Interval>::new();
        for log in logs {
            for interval in &log.intervals {
                let start = (log.base - base) + interval.start;
                let tag = interval.tag.as_deref();
                let is_whole = Timing::ALL.iter().any(|timing| Some(timing.key()) == tag);
                let slot = if is_whole { Nanos(0) } else { nearest_second(start) };
                let sum = merged.entry((slot, !is_whole, tag)).or_insert_with(|| Interval {
                    tag: interval.tag.clone(),
                    start: slot,
                    length: Nanos(0),
                    hdr: Hdr::default(),
                });
                sum.hdr.merge(&interval.hdr);
                let end = if is_whole { start } else { slot } + interval.length;
                sum.length = sum.length.max(end.since(slot));
            }
        }
        let missing = logs.iter().map(|log| log.missing).fold(Missing::default(), Missing::and);
        let failed_gates = logs.iter().flat_map(|log| log.failed_gates.clone()).collect();
        Hlog { base, missing, failed_gates, intervals: merged.into_values().collect() }
    }

    /// The values of all intervals with this tag.
    pub fn sum(&self, tag: Option<&str>) -> Hdr {
        let mut sum = Hdr::default();
        let with_tag = self.intervals.iter().filter(|interval| interval.tag.as_deref() == tag);
        with_tag.for_each(|interval| sum.merge(&interval.hdr));
        sum
    }

    /// Its tags, each once, in the order in which they come.
    pub fn tags(&self) -> Vec<Option<&str>> {
        let mut tags = Vec::new();
        for interval in &self.intervals {
            let tag = interval.tag.as_deref();
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        tags
    }
}

fn in_words(gates: &BTreeSet<String>) -> String {
    gates.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What a comment says that begins with `begin`; `None` if it is about something else.
fn said<'a>(comment: &'a [u8], begin: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(comment).ok()?.strip_prefix('#')?.strip_prefix(begin)?;
    text.trim_end().strip_suffix(']')
}

/// What a log's head says of its starts.
#[derive(Default)]
struct Times {
    start: Option<Duration>,
    base: Option<Duration>,
}

impl Times {
    /// Starts further than this before `StartTime` are meant to be added to it.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Java's rule: a base is added; without one, starts long before `StartTime` count from that.
    fn since_epoch(&self, start: Duration) -> Duration {
        match (self.base, self.start) {
            (Some(base), _) => base.saturating_add(start),
            (None, Some(began)) if start.saturating_add(Self::YEAR) < began => {
                began.saturating_add(start)
            }
            (None, _) => start,
        }
    }
}

fn whole_millis(at: Nanos) -> Nanos {
    Nanos(at.0 / 1_000_000 * 1_000_000)
}

fn nearest_second(start: Nanos) -> Nanos {
    Nanos((start.0 + Nanos::SECOND.0 / 2) / Nanos::SECOND.0 * Nanos::SECOND.0)
}

/// Decodes base64 of V2 + DEFLATE. Bounded, whatever a damaged histogram says of its own length.
fn decode(base64: &str) -> Result<Hdr, Damaged> {
    let bytes = STANDARD.decode(base64).map_err(|error| Damaged::new(&error))?;
    let zlib = match bytes.split_at_checked(ENVELOPE_BYTES) {
        Some((envelope, zlib)) if is_envelope(envelope, zlib.len()) => zlib,
        _ => return Err(Damaged::new(&"it is no whole HdrHistogram V2 with DEFLATE")),
    };
    let mut v2 = Vec::new();
    let inflated = ZlibDecoder::new(zlib).take(HISTOGRAM_BYTES_MAX).read_to_end(&mut v2);
    inflated.map_err(|error| Damaged::new(&error))?;
    Hdr::from_v2(&v2)
}

fn is_envelope(envelope: &[u8], length: usize) -> bool {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    envelope == [COOKIE, length.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests;
