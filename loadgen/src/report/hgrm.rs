//! A percentile distribution as text (`.hgrm`), as HdrHistogram's `HistogramLogProcessor` prints it.
//!
//! In: a histogram. Out: what its `outputPercentileDistribution` gives with its defaults, so that the
//! plotters of HdrHistogram read it: a row per step of the percentiles, then mean, deviation and sizes as
//! comments. Values are in milliseconds, which a comment above says.

use std::fmt::Write;

use crate::record::{Hdr, Step};
use crate::units::Nanos;

/// `HistogramLogProcessor`'s defaults: rows for each half of the way to 100 %, and ns to a millisecond.
const STEPS_PER_HALF: u32 = 5;
const NS_PER_UNIT: f64 = 1e6;

/// The distribution of `hdr`; `what` says in a comment above whose it is.
pub fn hgrm(hdr: &Hdr, what: &str) -> String {
    let mut out = String::new();
    write_all(&mut out, hdr, what).expect("a String takes whatever is written");
    out
}

fn write_all(out: &mut String, hdr: &Hdr, what: &str) -> std::fmt::Result {
    let scaled = |nanos: f64| nanos / NS_PER_UNIT;
    writeln!(out, "#[{}; values in milliseconds]", what.replace(['\r', '\n'], " "))?;
    let [value, percentile, count, beyond] =
        ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"];
    writeln!(out, "{value:>12} {percentile:>14} {count:>10} {beyond:>14}\n")?;
    for Step { value, quantile, count } in hdr.steps(STEPS_PER_HALF) {
        write!(out, "{:>12} {} {count:>10}", millis(value), twelve_digits(quantile))?;
        match quantile < 1.0 {
            true => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?,
            false => writeln!(out)?,
        }
    }
    let (mean, deviation) = (scaled(hdr.mean_ns()), scaled(hdr.standard_deviation_ns()));
    let (max, count) = (millis(hdr.max()), hdr.count());
    let (buckets, sub_buckets) = hdr.buckets();
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    writeln!(out, "#[Max     = {max:>12}, Total count    = {count:>12}]")?;
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
}

/// Three digits behind the point, halves up, as Java has them; a float's own digits round halves to even.
fn millis(time: Nanos) -> String {
    let micros = time.0 / 1_000 + u64::from(time.0 % 1_000 >= 500);
    format!("{}.{:03}", micros / 1_000, micros % 1_000)
}

/// Twelve digits behind the point, likewise. Steps end within few binary digits, so the product is exact
/// where halves are.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a quantile is from 0 to 1"
)]
fn twelve_digits(quantile: f64) -> String {
    const DIGITS: u64 = 1_000_000_000_000;
    let digits = (quantile * DIGITS as f64 + 0.5).floor() as u64;
    format!("{}.{:012}", digits / DIGITS, digits % DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Hdr {
        let mut hdr = Hdr::default();
        values.into_iter().for_each(|value| hdr.record(Nanos(value)));
        hdr
    }

    #[test]
    fn the_rows_are_those_of_histogram_log_processor() {
        let text = hgrm(&of((1..=10_000).map(|value| value * 1_000)), "a\ntest");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "#[a test; values in milliseconds]");
        assert_eq!(lines[1], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[2], "");
        assert_eq!(lines[3], "       0.001 0.000000000000          1           1.00");
        assert_eq!(lines[4], "       1.000 0.100000000000       1000           1.11");
        let last = lines.iter().rposition(|line| !line.starts_with('#')).unwrap();
        assert_eq!(lines[last], "      10.002 1.000000000000      10000");
        assert_eq!(lines[last + 2], "#[Max     =       10.002, Total count    =        10000]");
        assert_eq!(lines[last + 3], "#[Buckets =           32, SubBuckets     =         2048]");
    }

    #[test]
    fn halves_are_rounded_up() {
        assert_eq!(millis(Nanos(1_500)), "0.002");
        assert_eq!(millis(Nanos(2_500)), "0.003");
        assert_eq!(millis(Nanos(12_345_499)), "12.345");
        assert_eq!(twelve_digits(0.999_780_273_437_5), "0.999780273438");
        assert_eq!(twelve_digits(1.0), "1.000000000000");
    }

    #[test]
    fn nothing_recorded_is_no_row() {
        let text = hgrm(&Hdr::default(), "empty");
        assert_eq!(text.lines().filter(|line| line.contains("0.000000000000")).count(), 0);
        assert!(text.contains("Total count    =            0]"), "{text}");
    }
}
