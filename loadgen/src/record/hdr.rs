//! Latency histograms, and how they are written down.
//!
//! One kind for everything: nanoseconds, [`SIGNIFICANT_DIGITS`] digits, up to [`VALUE_NS_MAX`].
//! Written as its percentiles in ns beside the whole histogram (HdrHistogram V2, base64), so that a
//! reader can check the former and merge the latter.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::Nanos;

/// Digits that a recorded value keeps: it is at most 0.1 % off.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Longest time that is told apart, one hour; longer ones are recorded as this.
const VALUE_NS_MAX: u64 = 3_600 * 1_000_000_000;

/// A percentile is believed only with so many samples beyond it.
const SAMPLES_BEYOND_MIN: f64 = 10.0;

/// A latency histogram in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Hdr(Histogram<u64>);

impl Default for Hdr {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, VALUE_NS_MAX, SIGNIFICANT_DIGITS);
        Hdr(histogram.expect("the bounds are fixed and valid"))
    }
}

impl Hdr {
    /// Adds one value; 0 counts as 1 ns, and more than an hour as an hour.
    pub fn record(&mut self, value: Nanos) {
        self.0.saturating_record(value.0.max(1));
    }

    /// Adds all values of another one: the only way to merge (percentiles are never averaged).
    pub fn merge(&mut self, other: &Hdr) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Values recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Largest value, or zero if there is none.
    pub fn max(&self) -> Nanos {
        Nanos(self.0.max())
    }

    /// Smallest value, or zero if there is none.
    pub fn min(&self) -> Nanos {
        if self.0.is_empty() { Nanos(0) } else { Nanos(self.0.min()) }
    }

    /// Arithmetic mean in ns, or zero.
    pub fn mean_ns(&self) -> f64 {
        self.0.mean()
    }

    /// The value that `percent` of all values do not exceed.
    pub fn percentile(&self, percent: f64) -> Nanos {
        Nanos(self.0.value_at_quantile(self.quantile(percent)))
    }

    /// The percentile if `missing` more values were larger than all that are here; and whether it falls
    /// among those, so that all that is known is that it lies beyond the largest value.
    pub fn percentile_among(&self, percent: f64, missing: u64) -> (Nanos, bool) {
        let rank = rank(percent, self.count() + missing);
        if rank > u128::from(self.count()) {
            return (self.max(), missing > 0);
        }
        (Nanos(self.0.value_at_quantile((rank as f64 - 0.5) / self.count() as f64)), false)
    }

    /// The quantile whose rank is exactly that of `percent`, to a thousandth of a percent.
    ///
    /// 99.9 / 100 is a little more than 0.999 in a float, which would name the next sample.
    fn quantile(&self, percent: f64) -> f64 {
        let rank = rank(percent, self.count());
        // Half a sample below the rank: rounded up, whatever the float lost, it is the rank.
        (rank as f64 - 0.5) / self.count().max(1) as f64
    }

    /// The percentile, if enough samples lie beyond it to mean something.
    pub fn percentile_if_supported(&self, percent: f64) -> Option<Nanos> {
        let beyond = self.count() as f64 * (100.0 - percent) / 100.0;
        // The product of an exact count and a decimal is off by less than this.
        (beyond >= SAMPLES_BEYOND_MIN - 1e-6).then(|| self.percentile(percent))
    }
}

/// Which of `count` values in order `percent` of them do not exceed, from 1.
fn rank(percent: f64, count: u64) -> u128 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a percentage in thousandths is at most 100,000"
    )]
    let thousandths = (percent * 1_000.0).round() as u128;
    (u128::from(count) * thousandths).div_ceil(100_000).max(1)
}

/// A histogram as it stands in JSON: some kilobytes, where [`Hdr`] takes a quarter of a megabyte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Histogram")]
pub struct WrittenHdr {
    /// Values recorded.
    pub count: u64,
    /// Smallest value.
    pub min_ns: Nanos,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Half of the values are at most this.
    pub p50_ns: Nanos,
    /// 90 % of the values are at most this.
    pub p90_ns: Nanos,
    /// 99 % of the values are at most this.
    pub p99_ns: Nanos,
    /// 99.9 % of the values are at most this.
    pub p99_9_ns: Nanos,
    /// 99.99 % of the values are at most this.
    pub p99_99_ns: Nanos,
    /// Largest value.
    pub max_ns: Nanos,
    /// The whole histogram: HdrHistogram V2, uncompressed, base64.
    pub hdr_v2_base64: String,
}

impl From<&Hdr> for WrittenHdr {
    fn from(hdr: &Hdr) -> Self {
        let mut bytes = Vec::new();
        let written = V2Serializer::new().serialize(&hdr.0, &mut bytes);
        written.expect("a Vec takes whatever is written, and the bounds fit the format");
        WrittenHdr {
            count: hdr.count(),
            min_ns: hdr.min(),
            mean_ns: hdr.mean_ns(),
            p50_ns: hdr.percentile(50.0),
            p90_ns: hdr.percentile(90.0),
            p99_ns: hdr.percentile(99.0),
            p99_9_ns: hdr.percentile(99.9),
            p99_99_ns: hdr.percentile(99.99),
            max_ns: hdr.max(),
            hdr_v2_base64: STANDARD.encode(bytes),
        }
    }
}

/// Why a written histogram cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("damaged histogram: {0}")]
pub struct Damaged(String);

impl TryFrom<&WrittenHdr> for Hdr {
    type Error = Damaged;

    fn try_from(written: &WrittenHdr) -> Result<Self, Damaged> {
        let damaged = |error: &dyn std::fmt::Display| Damaged(error.to_string());
        let bytes = STANDARD.decode(&written.hdr_v2_base64).map_err(|error| damaged(&error))?;
        let read = hdrhistogram::serialization::Deserializer::new()
            .deserialize::<u64, _>(&mut bytes.as_slice())
            .map_err(|error| damaged(&error))?;
        let mut hdr = Hdr::default();
        hdr.0.add(&read).map_err(|error| damaged(&error))?;
        if hdr.count() != written.count {
            return Err(damaged(&format!("count {} of {}", hdr.count(), written.count)));
        }
        Ok(hdr)
    }
}

impl Serialize for Hdr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WrittenHdr::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Hdr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Hdr::try_from(&WrittenHdr::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for Hdr {
    fn schema_name() -> Cow<'static, str> {
        WrittenHdr::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        WrittenHdr::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        WrittenHdr::json_schema(generator)
    }
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
    fn a_histogram_survives_json_bit_by_bit() {
        let hdr = of((1..100_000).map(|value| value * 37));
        let json = serde_json::to_string(&hdr).unwrap();
        assert_eq!(serde_json::from_str::<Hdr>(&json).unwrap(), hdr);
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        assert_eq!(of(1..=999).percentile_if_supported(99.0), None);
        assert_eq!(of(1..=1_000).percentile_if_supported(99.0), Some(Nanos(990)));
        assert!(of(1..=100_000).percentile_if_supported(99.99).is_some());
        assert!(of(1..=99_999).percentile_if_supported(99.99).is_none());
    }

    #[test]
    fn a_percentile_is_the_sample_of_its_rank() {
        let hdr = of(1..=1_000);
        let check = |percent, expected| assert_eq!(hdr.percentile(percent), Nanos(expected));
        check(50.0, 500);
        check(90.0, 900);
        check(99.0, 990);
        check(99.9, 999);
        check(99.99, 1_000);
        check(100.0, 1_000);
        assert_eq!(Hdr::default().percentile(99.9), Nanos(0));
    }

    #[test]
    fn what_is_missing_is_later_than_all_that_is_here() {
        let hdr = of(1..=990);
        assert_eq!(hdr.percentile_among(99.0, 10), (Nanos(990), false));
        assert_eq!(hdr.percentile_among(99.0, 11), (Nanos(990), true));
        assert_eq!(hdr.percentile_among(50.0, 10), (Nanos(500), false));
        assert_eq!(hdr.percentile_among(99.0, 0), (hdr.percentile(99.0), false));
        assert_eq!(Hdr::default().percentile_among(50.0, 0), (Nanos(0), false));
        assert_eq!(Hdr::default().percentile_among(50.0, 1), (Nanos(0), true));
    }

    #[test]
    fn what_is_out_of_range_is_kept_at_its_edge() {
        let hdr = of([0, u64::MAX]);
        assert_eq!((hdr.count(), hdr.min()), (2, Nanos(1)));
        assert!(hdr.max() >= Nanos(VALUE_NS_MAX));
    }

    #[test]
    fn merging_adds_the_values() {
        let mut all = of(1..=500);
        all.merge(&of(501..=1_000));
        assert_eq!(all, of(1..=1_000));
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let mut json = serde_json::to_value(of(1..=10)).unwrap();
        json["count"] = 11.into();
        assert!(serde_json::from_value::<Hdr>(json).is_err());
    }
}
