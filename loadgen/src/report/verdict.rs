//! What a comparison says: a line for each metric.

use std::fmt::{self, Display};

use clap::ValueEnum;

use super::added::Added;
use super::looks::Looks;
use super::pairs::{Finding, Question};
use crate::record::{RunRecord, is_supported};
use crate::units::Nanos;

/// What is compared of two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Echoes per second of the server's CPU time: more is faster.
    #[value(name = "server-cpu")]
    PerServerCpu,
    /// Echoes per second: more is faster.
    Throughput,
    /// Median of R, in closed loop of S: less is faster.
    P50,
    /// Their 99th percentile.
    P99,
}

impl Metric {
    /// Those that mean something: with a rate, throughput is an input.
    pub fn of_load(has_rate: bool, knows_cpu: bool) -> Vec<Metric> {
        let all = [
            (Metric::PerServerCpu, knows_cpu),
            (Metric::Throughput, !has_rate),
            (Metric::P50, true),
            (Metric::P99, true),
        ];
        all.into_iter().filter(|(_, means)| *means).map(|(metric, _)| metric).collect()
    }

    /// Its value in a run.
    pub fn of(self, record: &RunRecord) -> Result<f64, NoValue> {
        let measured = &record.measured;
        let count = measured.latency().count() + measured.missing();
        let percentile = |percent| match measured.percentile(percent) {
            _ if !is_supported(count, percent) => Err(NoValue::TooFew(count)),
            (longest, true) => Err(NoValue::Beyond(longest, measured.missing())),
            (value, false) => Ok(value.0 as f64),
        };
        let value = match self {
            Metric::PerServerCpu => measured.messages_per_server_cpu_s.ok_or(NoValue::Unknown)?,
            Metric::Throughput => measured.throughput_messages_per_s,
            Metric::P50 => percentile(50.0)?,
            Metric::P99 => percentile(99.0)?,
        };
        if value > 0.0 { Ok(value) } else { Err(NoValue::Unknown) }
    }

    fn more_is_faster(self) -> bool {
        matches!(self, Metric::PerServerCpu | Metric::Throughput)
    }

    /// Whether B is, by whether its value is more than that of A.
    fn is_faster(self, is_more: bool) -> bool {
        is_more == self.more_is_faster()
    }
}

/// Why a run has no value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoValue {
    /// There is none above 0.
    #[error("not known")]
    Unknown,
    /// It is that of a message without an echo: later than the longest time, and one of so many.
    #[error("beyond {0}, among {1} messages without an echo")]
    Beyond(Nanos, u64),
    /// So many messages do not hold a percentile up.
    #[error("not shown, {0} messages are too few for it")]
    TooFew(u64),
}

impl Display for Metric {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Metric::PerServerCpu => "messages per server CPU-second",
            Metric::Throughput => "throughput",
            Metric::P50 => "p50",
            Metric::P99 => "p99",
        })
    }
}

/// All that a comparison found.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// Name of the first server.
    pub a: String,
    /// Name of the second.
    pub b: String,
    /// What was asked.
    pub question: Question,
    /// What was looked at.
    pub metrics: Vec<Metric>,
    /// The pairs of each metric, in the same order.
    pub looks: Looks,
    /// Which server had no value of each metric once, and why; `None` if both always had one.
    pub why_not: Vec<Option<String>>,
    /// All runs of the first server that are in a pair, and those of the second.
    pub added: [Added; 2],
    /// Runs that were invalid and repeated.
    pub invalid: usize,
    /// Runs that failed.
    pub failed: usize,
}

impl Verdicts {
    /// Metrics in which the second server is slower than the first.
    pub fn slower(&self) -> impl Iterator<Item = Metric> {
        let both = self.metrics.iter().zip(self.looks.differing());
        both.filter_map(|(metric, is_more)| (!metric.is_faster(is_more?)).then_some(*metric))
    }
}

impl Display for Verdicts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdicts { a, b, question, metrics, looks, why_not, added, invalid, failed } = self;
        let count = looks.len();
        let mut besides = String::new();
        if *invalid > 0 {
            besides.push_str(&format!(", {invalid} invalid runs repeated"));
        }
        if *failed > 0 {
            besides.push_str(&format!(", {failed} failed"));
        }
        if count == 0 {
            return writeln!(out, "{b} and {a}: no pair of valid runs{besides}, no verdict");
        }
        writeln!(
            out,
            "{b} compared with {a}, {count} interleaved pairs{besides}; intervals of 95 %, at most {} % \
             for any false finding",
            percent(question.error_max)
        )?;
        // The same draw for everybody who has the same pairs.
        let findings = looks.findings(1);
        let asked = looks.needed().zip(looks.shown());
        for (((metric, finding), why_not), (needed, shown)) in
            metrics.iter().zip(&findings).zip(why_not).zip(asked)
        {
            let says = match finding {
                Some(finding) if finding.differs => difference(*metric, finding, count),
                Some(finding) => no_difference(finding, needed, shown, question),
                None => format!("not comparable: {}", why_not.as_deref().unwrap_or("not known")),
            };
            writeln!(out, "{metric:<32} {says}")?;
        }
        let [of_a, of_b] = added;
        writeln!(out, "\nA, {a}: {of_a}\nB, {b}: {of_b}")
    }
}

/// What all `count` pairs say of a difference that was found. The direction is that of the look which found it, whose error was
/// held; pairs that others asked for later may say the opposite, and then that is told.
fn difference(metric: Metric, finding: &Finding, count: usize) -> String {
    let ratio = finding.ratio;
    let is_more = finding.look.map_or(ratio > 1.0, |look| look.is_more);
    let word = if metric.is_faster(is_more) { "faster" } else { "slower" };
    let figures = figures(finding);
    match finding.look {
        Some(look) if look.is_more != (ratio > 1.0) => {
            let pairs = look.pairs;
            format!("{word} after {pairs} pairs, which all {count} together deny: {figures}")
        }
        _ => {
            // Both directions by how much more work or time one takes than the other.
            let by = if ratio > 1.0 { ratio - 1.0 } else { 1.0 / ratio - 1.0 };
            format!("{word} by {} %: {figures}", percent(by))
        }
    }
}

fn figures(finding: &Finding) -> String {
    let Finding { ratio, interval: (low, high), p_value, decided_at, .. } = *finding;
    let after = decided_at.map_or(String::new(), |pairs| format!(", decided after {pairs} pairs"));
    format!("{ratio:.3}x ({low:.3} .. {high:.3}), p {p_value:.2e}{after}")
}

/// `needed`: pairs that the metric asks for, unless it is decided; `shown`: the difference that those it has would show.
fn no_difference(
    finding: &Finding,
    needed: Option<usize>,
    shown: Option<f64>,
    question: &Question,
) -> String {
    let figures = figures(finding);
    let difference = percent(question.difference);
    match (needed, shown) {
        (None, _) => format!("no difference of {difference} % shown: {figures}"),
        (Some(needed), Some(shown)) => format!(
            "no difference of {} % shown, and {difference} % asks for {needed} pairs in this noise: {figures}",
            percent(shown)
        ),
        (Some(needed), None) => {
            format!("undecided: {difference} % in this noise asks for {needed} pairs: {figures}")
        }
    }
}

/// One digit behind the point, none if it is 0.
fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Hdr;
    use crate::report::example;

    const QUESTION: Question =
        Question { difference: 0.05, error_max: 0.05, power: 0.9, metrics: 1 };

    fn said(metric: Metric, ratios: &[f64]) -> String {
        let mut looks = Looks::new(QUESTION);
        ratios.iter().for_each(|ratio| looks.push(&[Some((1.0, *ratio))]));
        told(metric, looks)
    }

    fn told(metric: Metric, looks: Looks) -> String {
        verdicts(metric, looks).to_string()
    }

    fn verdicts(metric: Metric, mut looks: Looks) -> Verdicts {
        looks.close();
        Verdicts {
            a: "old".to_owned(),
            b: "new".to_owned(),
            question: QUESTION,
            metrics: vec![metric],
            looks,
            why_not: vec![Some("new: beyond 9 ms".to_owned())],
            added: [Added::default(), Added::default()],
            invalid: 0,
            failed: 0,
        }
    }

    #[test]
    fn more_messages_and_less_time_are_faster() {
        let more = [1.10, 1.101, 1.102, 1.099, 1.098, 1.103];
        let faster = said(Metric::Throughput, &more);
        assert!(faster.starts_with("new compared with old, 6 interleaved pairs;"), "{faster}");
        assert!(faster.contains("faster by 10"), "{faster}");
        assert!(!faster.contains("decided"), "at the bound only: {faster}");
        assert!(said(Metric::P50, &more).contains("slower by 10"));
        let less: Vec<_> = more.iter().map(|ratio| 1.0 / ratio).collect();
        assert!(said(Metric::P99, &less).contains("faster by 10"));
        assert!(said(Metric::PerServerCpu, &less).contains("slower by 10"));
    }

    #[test]
    fn what_is_slower_is_what_the_verdict_says() {
        let check = |metric, ratios: &[f64], expected: bool| {
            let mut looks = Looks::new(QUESTION);
            ratios.iter().for_each(|ratio| looks.push(&[Some((1.0, *ratio))]));
            let verdicts = verdicts(metric, looks);
            let slower: Vec<_> = verdicts.slower().collect();
            assert_eq!(slower == [metric], expected, "{verdicts}");
            assert_eq!(slower.is_empty(), !expected, "{verdicts}");
            assert_eq!(verdicts.to_string().contains("slower by "), expected, "{verdicts}");
        };
        let more = [1.10, 1.101, 1.102, 1.099, 1.098, 1.103];
        let less = more.map(|ratio| 1.0 / ratio);
        for (metric, slow, fast) in [
            (Metric::PerServerCpu, less, more),
            (Metric::Throughput, less, more),
            (Metric::P50, more, less),
            (Metric::P99, more, less),
        ] {
            check(metric, &slow, true);
            check(metric, &fast, false);
            // Too few to tell, noise, and nothing at all.
            check(metric, &slow[..2], false);
            check(metric, &[1.3, 0.7, 1.2, 0.8, 1.25, 0.9], false);
            check(metric, &[], false);
        }
        let mut withdrawn = Looks::new(QUESTION);
        more.iter().for_each(|ratio| withdrawn.push(&[Some((1.0, *ratio))]));
        withdrawn.push(&[None]);
        assert_eq!(verdicts(Metric::P50, withdrawn).slower().count(), 0);
    }

    #[test]
    fn what_is_not_shown_is_told_apart_from_what_cannot_be() {
        let quiet = [1.001, 0.999, 1.002, 0.998, 1.0, 1.001, 0.999];
        let shown = said(Metric::P50, &quiet);
        assert!(shown.contains("no difference of 5 % shown"), "{shown}");
        assert!(shown.contains(", decided after 6 pairs\n"), "{shown}");
        let noisy = [1.3, 0.7, 1.2, 0.8, 1.25, 0.9];
        let open = said(Metric::P50, &noisy);
        let of =
            open.split_once("no difference of ").and_then(|(_, rest)| rest.split_once(" % shown"));
        let of: f64 = of.unwrap_or_else(|| panic!("{open}")).0.parse().unwrap();
        assert!((30.0..100.0).contains(&of), "{open}");
        assert!(open.contains(" shown, and 5 % asks for "), "{open}");
        let few = said(Metric::P50, &noisy[..2]);
        assert!(few.contains("undecided: 5 % in this noise asks for"), "{few}");
        assert!(said(Metric::P50, &[]).contains("no verdict"));
    }

    #[test]
    fn a_percentile_among_messages_that_were_shed_is_no_number() {
        let mut record = example::open_loop(1_000.0, 1);
        let hdr = record.measured.response_time.clone().unwrap();
        assert_eq!(Metric::P50.of(&record), Ok(hdr.percentile(50.0).0 as f64));
        let shed = hdr.count() / 3;
        record.measured.messages_shed = shed;
        let (p50, is_beyond) = hdr.percentile_among(50.0, shed);
        assert!(!is_beyond && p50 > hdr.percentile(50.0));
        assert_eq!(Metric::P50.of(&record), Ok(p50.0 as f64));
        assert_eq!(Metric::P99.of(&record), Err(NoValue::Beyond(hdr.max(), shed)));
        record.measured.messages_per_server_cpu_s = None;
        assert_eq!(Metric::PerServerCpu.of(&record), Err(NoValue::Unknown));
        let mut few = Hdr::default();
        (1..=300).for_each(|us| few.record(Nanos(us * 1_000)));
        (record.measured.response_time, record.measured.messages_shed) = (Some(few), 0);
        assert!(Metric::P50.of(&record).is_ok());
        assert_eq!(Metric::P99.of(&record), Err(NoValue::TooFew(300)));
        let mut looks = Looks::new(QUESTION);
        looks.push(&[None]);
        let said = told(Metric::P99, looks);
        assert!(said.contains("old, 1 interleaved pairs;"), "{said}");
        assert!(said.contains("not comparable: new: beyond 9 ms\n"), "{said}");
    }

    #[test]
    fn throughput_is_an_input_of_an_open_loop() {
        assert!(!Metric::of_load(true, true).contains(&Metric::Throughput));
        assert!(!Metric::of_load(false, false).contains(&Metric::PerServerCpu));
        assert_eq!(Metric::of_load(false, true).len(), 4);
    }

    #[test]
    fn a_direction_is_that_of_the_look_that_found_it_and_what_denies_it_is_told() {
        // Found after ten pairs; other metrics asked for those that follow.
        let mut ratios: Vec<_> = (0..10).map(|at| 1.5 + f64::from(at) / 100.0).collect();
        let said_at_once = said(Metric::Throughput, &ratios);
        assert!(said_at_once.contains("faster by 5"), "{said_at_once}");
        ratios.extend((0..30).map(|at| 0.5 + f64::from(at) / 100.0));
        let later = said(Metric::Throughput, &ratios);
        assert!(later.contains("faster after 10 pairs, which all 40 together deny: 0."), "{later}");
        assert!(!later.contains("slower"), "{later}");
        let time = said(Metric::P50, &ratios);
        assert!(time.contains("slower after 10 pairs, which all 40 together deny: 0."), "{time}");
    }
}
