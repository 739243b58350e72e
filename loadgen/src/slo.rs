//! Goals of a run, as typed: `p99<5ms,errors=0,throughput>100k`.
//!
//! In: text. Out: [`Slo`], a list of [`Goal`]s, each a metric, a comparison and a bound in the
//! metric's own unit. Pure; the record says whether they were met.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::units::{MessagesPerSecond, Nanos};

/// All goals of a run; each has to be met.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo(pub Vec<Goal>);

impl Slo {
    /// Percentiles that are asked for.
    pub fn percentiles(&self) -> impl Iterator<Item = f64> {
        self.0.iter().filter_map(|goal| match goal.metric {
            Metric::Percentile(percent) => Some(percent),
            _ => None,
        })
    }
}

/// One goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// What is asked.
    pub metric: Metric,
    /// How the figure has to stand to the bound.
    pub comparison: Comparison,
    /// In ns, messages per second, or by count, as the metric has it.
    pub bound: f64,
}

/// What a goal is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// `pN`: this percentile of R (closed loop: of S).
    Percentile(f64),
    /// `max`: the longest R (closed loop: S).
    Max,
    /// `mean`: the mean of R (closed loop: of S).
    Mean,
    /// `errors`: messages lost or wrong, and streams that did not end with OK.
    Errors,
    /// `throughput`: echoes per second.
    Throughput,
}

/// How a figure stands to its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `=`
    Equal,
    /// `>=`
    AtLeast,
    /// `>`
    Above,
}

/// Two-letter signs first: `<` begins `<=`, too.
const SIGNS: [(&str, Comparison); 5] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("<", Comparison::Below),
    (">", Comparison::Above),
    ("=", Comparison::Equal),
];

impl Goal {
    /// Whether `figure` meets it.
    pub fn is_met(self, figure: f64) -> bool {
        match self.comparison {
            Comparison::Below => figure < self.bound,
            Comparison::AtMost => figure <= self.bound,
            #[allow(clippy::float_cmp, reason = "what is typed is compared with a count or a time")]
            Comparison::Equal => figure == self.bound,
            Comparison::AtLeast => figure >= self.bound,
            Comparison::Above => figure > self.bound,
        }
    }
}

impl Metric {
    /// A figure of this metric, in its unit.
    pub fn show(self, figure: f64) -> String {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates, and no figure is negative"
        )]
        match self {
            Metric::Percentile(_) | Metric::Max | Metric::Mean => {
                Nanos(figure.round() as u64).to_string()
            }
            Metric::Errors => figure.to_string(),
            Metric::Throughput => MessagesPerSecond(figure).to_string(),
        }
    }

    fn bound(self, text: &str) -> Result<f64, String> {
        match self {
            Metric::Percentile(_) | Metric::Max | Metric::Mean => {
                let time: Result<Nanos, _> = text.parse();
                time.map(|time| time.0 as f64).map_err(|_| format!("{text:?}: need a time, as 5ms"))
            }
            Metric::Errors => {
                let count: Result<u64, _> = text.parse();
                count.map(|count| count as f64).map_err(|_| format!("{text:?}: need a count, as 0"))
            }
            Metric::Throughput => {
                let rate: Result<MessagesPerSecond, _> = text.parse();
                rate.map(|rate| rate.0).map_err(|_| format!("{text:?}: need a rate, as 100k"))
            }
        }
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => return Ok(Metric::Max),
            "mean" => return Ok(Metric::Mean),
            "errors" => return Ok(Metric::Errors),
            "throughput" => return Ok(Metric::Throughput),
            _ => {}
        }
        let percent = text.strip_prefix('p').and_then(|percent| percent.parse::<f64>().ok());
        percent
            .filter(|percent| *percent > 0.0 && *percent < 100.0)
            .map(Metric::Percentile)
            .ok_or_else(|| {
                format!("{text:?}: need p50, p99.9 and the like, max, mean, errors or throughput")
            })
    }
}

impl Display for Metric {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Metric::Percentile(percent) => write!(out, "p{percent}"),
            Metric::Max => out.write_str("max"),
            Metric::Mean => out.write_str("mean"),
            Metric::Errors => out.write_str("errors"),
            Metric::Throughput => out.write_str("throughput"),
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = |(sign, comparison)| {
            let (metric, bound) = text.split_once(sign)?;
            Some((metric.trim(), comparison, bound.trim()))
        };
        let (metric, comparison, bound) = SIGNS
            .into_iter()
            .find_map(split)
            .ok_or_else(|| format!("{text:?}: need a goal such as p99<5ms"))?;
        let metric: Metric = metric.parse()?;
        Ok(Goal { metric, comparison, bound: metric.bound(bound)? })
    }
}

impl Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = SIGNS.iter().find(|(_, comparison)| *comparison == self.comparison);
        let sign = sign.map_or("", |(sign, _)| sign);
        write!(out, "{}{sign}{}", self.metric, self.metric.show(self.bound))
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|goal| goal.trim().parse()).collect::<Result<_, _>>().map(Slo)
    }
}

impl Display for Slo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, goal) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(out, "{comma}{goal}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_with_their_units() {
        let slo: Slo =
            "p99<5ms, errors=0,throughput>=100k,p99.9<=1s,max<2s,mean>1us".parse().unwrap();
        let read: Vec<_> =
            slo.0.iter().map(|goal| (goal.metric, goal.comparison, goal.bound)).collect();
        assert_eq!(
            read,
            [
                (Metric::Percentile(99.0), Comparison::Below, 5e6),
                (Metric::Errors, Comparison::Equal, 0.0),
                (Metric::Throughput, Comparison::AtLeast, 1e5),
                (Metric::Percentile(99.9), Comparison::AtMost, 1e9),
                (Metric::Max, Comparison::Below, 2e9),
                (Metric::Mean, Comparison::Above, 1e3),
            ]
        );
    }

    #[test]
    fn what_is_no_goal_is_refused_with_its_cure() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("p99", "need a goal such as p99<5ms");
        check("p99<5", "need a time");
        check("errors<1ms", "need a count");
        check("throughput>fast", "need a rate");
        check("p0<1ms", "need p50");
        check("p100<1ms", "need p50");
        check("q99<1ms", "need p50");
        check("", "need a goal");
    }

    #[test]
    fn a_bound_is_met_as_its_sign_says() {
        let met = |goal: &str, figure| goal.parse::<Goal>().unwrap().is_met(figure);
        assert!(met("errors=0", 0.0) && !met("errors=0", 1.0));
        assert!(met("p50<1us", 999.0) && !met("p50<1us", 1_000.0));
        assert!(met("p50<=1us", 1_000.0) && !met("p50<=1us", 1_001.0));
        assert!(met("throughput>5", 5.1) && !met("throughput>5", 5.0));
        assert!(met("throughput>=5", 5.0) && !met("throughput>=5", 4.9));
    }
}
