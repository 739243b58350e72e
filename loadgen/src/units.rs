//! Quantities with their units: parse, print, calculate.
//!
//! Inside loadgen every time is [`Nanos`], every rate [`MessagesPerSecond`]; only `report` turns
//! them into what people read.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nanoseconds: an instant since the run began, or a length of time.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// One second.
    pub const SECOND: Nanos = Nanos(1_000_000_000);

    /// Later than any instant of a run, and still safe to add to.
    pub const NEVER: Nanos = Nanos(u64::MAX / 4);

    /// `self - earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// In seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// As the standard library's type.
    pub fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl Add for Nanos {
    type Output = Nanos;

    fn add(self, other: Nanos) -> Nanos {
        Nanos(self.0 + other.0)
    }
}

impl Sub for Nanos {
    type Output = Nanos;

    fn sub(self, other: Nanos) -> Nanos {
        Nanos(self.0 - other.0)
    }
}

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Self {
        Nanos(u64::try_from(duration.as_nanos()).unwrap_or(Nanos::NEVER.0).min(Nanos::NEVER.0))
    }
}

impl FromStr for Nanos {
    type Err = humantime::DurationError;

    /// `5s`, `200ms`, `1m 30s`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Nanos::from)
    }
}

impl fmt::Display for Nanos {
    /// Three significant digits in the unit that suits: `812 ns`, `48.1 µs`, `2.30 ms`, `10.0 s`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0 as f64;
        let (value, unit) = match self.0 {
            0..1_000 => return out.pad(&format!("{} ns", self.0)),
            1_000..1_000_000 => (nanos / 1e3, "µs"),
            1_000_000..1_000_000_000 => (nanos / 1e6, "ms"),
            _ => (nanos / 1e9, "s"),
        };
        out.pad(&format!("{} {unit}", three_digits(value)))
    }
}

/// Messages per second, offered or achieved.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct MessagesPerSecond(pub f64);

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("need messages per second, above 0, such as 1000, 50k or 1.5M")]
pub struct NoRate;

impl FromStr for MessagesPerSecond {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let (digits, factor) = match text.strip_suffix(['k', 'K']) {
            Some(digits) => (digits, 1e3),
            None => text.strip_suffix('M').map_or((text, 1.0), |digits| (digits, 1e6)),
        };
        let value = digits.trim().parse::<f64>().map_err(|_| NoRate)? * factor;
        (value.is_finite() && value > 0.0).then_some(MessagesPerSecond(value)).ok_or(NoRate)
    }
}

impl fmt::Display for MessagesPerSecond {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{} messages/s", Count(self.0)))
    }
}

/// A large number for people: `812`, `48.1 k`, `2.30 M`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Count(pub f64);

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            value if value >= 1e9 => format!("{} G", three_digits(value / 1e9)),
            value if value >= 1e6 => format!("{} M", three_digits(value / 1e6)),
            value if value >= 1e4 => format!("{} k", three_digits(value / 1e3)),
            value => three_digits(value),
        };
        out.pad(&text)
    }
}

fn three_digits(value: f64) -> String {
    match value {
        value if value == value.trunc() && value < 1_000.0 => format!("{value:.0}"),
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_with_three_digits_in_the_unit_that_suits() {
        let check = |nanos, expected: &str| assert_eq!(Nanos(nanos).to_string(), expected);
        check(0, "0 ns");
        check(812, "812 ns");
        check(48_123, "48.1 µs");
        check(2_304_000, "2.30 ms");
        check(9_999_000, "10.0 ms");
        check(10_000_000_000, "10 s");
    }

    #[test]
    fn rates_are_typed_as_people_write_them() {
        let check = |text: &str, expected| {
            assert_eq!(text.parse::<MessagesPerSecond>().map(|rate| rate.0), expected, "{text}");
        };
        check("1000", Ok(1_000.0));
        check("50k", Ok(50_000.0));
        check("1.5M", Ok(1_500_000.0));
        check("0", Err(NoRate));
        check("-1", Err(NoRate));
        check("fast", Err(NoRate));
        check("inf", Err(NoRate));
    }
}
