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
pub const SAMPLES_BEYOND_MIN: f64 = 10.0;

/// A distribution is in finer steps than 64-bit counts can tell apart long before this.
const HALVINGS_MAX: u32 = 60;

/// Cookie, length and the other fields of V2 before its counts, in bytes.
const V2_HEAD_BYTES: usize = 40;

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

    /// How far values lie from their mean, in ns; zero if there is none.
    pub fn standard_deviation_ns(&self) -> f64 {
        self.0.stdev()
    }

    /// The values that were recorded, ascending, each as the largest that is not told apart from it, with
    /// how often.
    pub fn values(&self) -> impl Iterator<Item = (Nanos, u64)> {
        self.0.iter_recorded().map(|it| (Nanos(it.value_iterated_to()), it.count_at_value()))
    }

    /// The distribution in steps that halve the distance to 100 % every `per_half`, as the percentile
    /// iterators of HdrHistogram do (Java, `PercentileIterator`); the last step is 1 with the largest value.
    /// None if nothing was recorded.
    ///
    /// Steps and ranks are whole numbers: hdrhistogram's `iter_quantiles` adds floats up, and at 70 % of
    /// 1,000 values names the 701st.
    pub fn steps(&self, per_half: u32) -> Vec<Step> {
        let (total, per_half) = (u128::from(self.count()), u128::from(per_half));
        let mut values = self.values();
        let (mut value, mut count) = (Nanos(0), 0);
        let mut steps = Vec::new();
        for halvings in 0..HALVINGS_MAX {
            let whole = per_half << (halvings + 1);
            for step in whole - 2 * per_half..whole - per_half {
                let rank = (total * step).div_ceil(whole).max(1);
                while u128::from(count) < rank {
                    let Some((next, more)) = values.next() else { return steps };
                    (value, count) = (next, count + more);
                }
                steps.push(Step { value, quantile: step as f64 / whole as f64, count });
                if u128::from(count) == total {
                    steps.push(Step { value, quantile: 1.0, count });
                    return steps;
                }
            }
        }
        steps
    }

    /// Buckets, and sub-buckets in each, that values are sorted into.
    pub fn buckets(&self) -> (u64, u64) {
        let sub_buckets = 2 * 10_u64.pow(u32::from(self.0.sigfig()));
        (u64::from(self.0.buckets()), sub_buckets.next_power_of_two())
    }

    pub(super) fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// Reads HdrHistogram V2, uncompressed. Err: it is none, or holds what our bounds do not.
    pub(super) fn from_v2(bytes: &[u8]) -> Result<Self, Damaged> {
        if !is_whole_v2(bytes) {
            return Err(Damaged::new(&"its length is not what it says"));
        }
        let read = hdrhistogram::serialization::Deserializer::new()
            .deserialize::<u64, _>(&mut &*bytes)
            .map_err(|error| Damaged::new(&error))?;
        let mut hdr = Hdr::default();
        hdr.0.add(&read).map_err(|error| Damaged::new(&error))?;
        Ok(hdr)
    }

    /// The quantile whose rank is exactly that of `percent`, to a millionth of a percent.
    ///
    /// 99.9 / 100 is a little more than 0.999 in a float, which would name the next sample.
    fn quantile(&self, percent: f64) -> f64 {
        let rank = rank(percent, self.count());
        // Half a sample below the rank: rounded up, whatever the float lost, it is the rank.
        (rank as f64 - 0.5) / self.count().max(1) as f64
    }

    /// The percentile, if enough samples lie beyond it to mean something.
    pub fn percentile_if_supported(&self, percent: f64) -> Option<Nanos> {
        is_supported(self.count(), percent).then(|| self.percentile(percent))
    }
}

/// Which of `count` values in order `percent` of them do not exceed, from 1.
fn rank(percent: f64, count: u64) -> u128 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a percentage in millionths is at most 100 million"
    )]
    let millionths = (percent * 1e6).round() as u128;
    (u128::from(count) * millionths).div_ceil(100_000_000).max(1)
}

/// How many values a percentile needs at least, so that enough lie beyond it; infinitely many for 100.
pub fn samples_min(percent: f64) -> f64 {
    100.0 * SAMPLES_BEYOND_MIN / (100.0 - percent)
}

/// Whether enough of `count` samples lie beyond a percentile for it to mean something.
pub fn is_supported(count: u64, percent: f64) -> bool {
    let beyond = count as f64 * (100.0 - percent) / 100.0;
    // The product of an exact count and a decimal is off by less than this.
    beyond >= SAMPLES_BEYOND_MIN - 1e-6
}

/// A step of a distribution: so many values are at most this one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The value.
    pub value: Nanos,
    /// The share of all values that the step is for, 0 to 1.
    pub quantile: f64,
    /// How many values are at most [`Step::value`].
    pub count: u64,
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

impl WrittenHdr {
    /// A percentile as it is written: 50, 90, 99, 99.9, or 99.99 for any other.
    pub fn percentile(&self, percent: f64) -> Nanos {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a percentage in hundredths is at most ten thousand"
        )]
        match (100.0 * percent).round() as u64 {
            5_000 => self.p50_ns,
            9_000 => self.p90_ns,
            9_900 => self.p99_ns,
            9_990 => self.p99_9_ns,
            _ => self.p99_99_ns,
        }
    }
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

impl Damaged {
    pub(super) fn new(reason: &dyn std::fmt::Display) -> Self {
        Damaged(reason.to_string())
    }
}

impl TryFrom<&WrittenHdr> for Hdr {
    type Error = Damaged;

    fn try_from(written: &WrittenHdr) -> Result<Self, Damaged> {
        let bytes =
            STANDARD.decode(&written.hdr_v2_base64).map_err(|error| Damaged::new(&error))?;
        let hdr = Hdr::from_v2(&bytes)?;
        let figures = [
            ("count", written.count, hdr.count()),
            ("min_ns", written.min_ns.0, hdr.min().0),
            ("p50_ns", written.p50_ns.0, hdr.percentile(50.0).0),
            ("p90_ns", written.p90_ns.0, hdr.percentile(90.0).0),
            ("p99_ns", written.p99_ns.0, hdr.percentile(99.0).0),
            ("p99_9_ns", written.p99_9_ns.0, hdr.percentile(99.9).0),
            ("p99_99_ns", written.p99_99_ns.0, hdr.percentile(99.99).0),
            ("max_ns", written.max_ns.0, hdr.max().0),
        ];
        if let Some((name, told, is)) = figures.iter().find(|(_, told, is)| told != is) {
            return Err(Damaged::new(&format!("its {name} is {told}, and its values say {is}")));
        }
        let (told, is) = (written.mean_ns, hdr.mean_ns());
        // Decimals may be off in the last binary digit.
        if (told - is).abs() > 1e-9 * is {
            return Err(Damaged::new(&format!("its mean_ns is {told}, and its values say {is}")));
        }
        Ok(hdr)
    }
}

/// Whether a V2 histogram is as long as its head says: a damaged length must not be believed, because
/// the deserializer makes room for it first.
fn is_whole_v2(bytes: &[u8]) -> bool {
    let told = bytes.get(4..8).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let told = told.and_then(|bytes| usize::try_from(u32::from_be_bytes(bytes)).ok());
    told.is_some() && told == bytes.len().checked_sub(V2_HEAD_BYTES)
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
        // Beyond a thousandth of a percent it still is not the largest.
        let mut many = of([2]);
        many.0.record_n(1, 9_999_999).unwrap();
        assert_eq!(many.percentile(99.9999), Nanos(1));
        assert_eq!(many.percentile(99.99999), Nanos(1));
        assert_eq!(many.percentile(100.0), Nanos(2));
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
    fn figures_that_the_histogram_does_not_hold_are_refused() {
        let good = serde_json::to_value(of(1..=10)).unwrap();
        for key in ["count", "min_ns", "p50_ns", "p99_99_ns", "max_ns", "mean_ns"] {
            let mut json = good.clone();
            json[key] = 777.into();
            let error = serde_json::from_value::<Hdr>(json).unwrap_err().to_string();
            assert!(error.contains(&format!("its {key} is 777")), "{error}");
        }
    }

    #[test]
    fn a_length_that_is_not_there_is_refused_before_room_is_made_for_it() {
        let mut json = serde_json::to_value(of(1..=10)).unwrap();
        let mut bytes = STANDARD.decode(json["hdr_v2_base64"].as_str().unwrap()).unwrap();
        bytes[4] = 0xff;
        json["hdr_v2_base64"] = STANDARD.encode(bytes).into();
        let error = serde_json::from_value::<Hdr>(json).unwrap_err().to_string();
        assert!(error.contains("its length is not what it says"), "{error}");
    }

    #[test]
    fn steps_go_up_to_the_largest_value_and_count_all() {
        let steps = of(1..=1_000).steps(5);
        assert_eq!((steps[0].quantile, steps[0].value, steps[0].count), (0.0, Nanos(1), 1));
        let last = steps.last().unwrap();
        assert_eq!((last.quantile, last.value, last.count), (1.0, Nanos(1_000), 1_000));
        assert!(steps.is_sorted_by(|a, b| a.quantile <= b.quantile && a.count <= b.count));
        let at_70 = steps.iter().find(|step| step.quantile == 0.7).unwrap();
        assert_eq!((at_70.value, at_70.count), (Nanos(700), 700), "not the 701st");
        assert!(Hdr::default().steps(5).is_empty());
        assert_eq!(of([9]).steps(5).len(), 2);
    }
}
