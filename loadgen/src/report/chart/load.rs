//! Latency against offered load, over runs that differ in their rate alone, and where its knee by power lies.

use std::collections::BTreeMap;

use maud::html;

use super::spectrum::time;
use super::timeline::{count, offered};
use super::{Axis, Look, Panel, Plot, Scale};
use crate::record::{Provenance, RunRecord};
use crate::scenario::{Load, Scenario};
use crate::units::{Count, MessagesPerSecond};

/// Runs at different rates that a curve needs.
const POINTS_MIN: usize = 3;

/// An open loop that got less than this share of what it offered was not served.
const SERVED_MIN: f64 = 0.999;

/// The percentiles that are drawn.
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];

/// Runs in open loop that differ in rate and seed alone, by their rates.
#[derive(Clone, Debug)]
pub(in crate::report) struct LoadCurve<'a> {
    /// With their names; at least [`POINTS_MIN`] different rates.
    pub(in crate::report) runs: Vec<LoadPoint<'a>>,
}

/// A run of a curve.
#[derive(Clone, Copy, Debug)]
pub(in crate::report) struct LoadPoint<'a> {
    /// Its place among all records.
    pub(in crate::report) index: usize,
    /// Its name.
    pub(in crate::report) name: &'a str,
    /// What is known of it.
    pub(in crate::report) run: &'a RunRecord,
}

impl LoadCurve<'_> {
    /// The knee by power: the run of greatest power, throughput / mean response time (Kleinrock, *Power
    /// and deterministic rules of thumb for probabilistic problems in computer communications*, ICC 1979).
    /// Below it load is to be had for little waiting, above it waiting grows faster than what it buys. (The
    /// knee that `loadgen search` finds is another: the highest load that keeps goals.) Of valid runs only;
    /// `None` if it is that of the highest rate, because then it may lie beyond.
    pub(in crate::report) fn knee_by_power(&self) -> Option<&RunRecord> {
        let power = |run: &RunRecord| {
            let response = run.measured.response_time.as_ref();
            // Nobody knows the mean of what has no echo.
            let mean = response.filter(|_| run.measured.missing() == 0)?.mean_ns();
            (mean > 0.0).then(|| run.measured.throughput_messages_per_s / mean)
        };
        let valid = || self.runs.iter().filter(|it| it.run.is_valid() != Some(false));
        let powers = valid().filter_map(|it| Some((power(it.run)?, it.run)));
        let (_, best) = powers.max_by(|a, b| a.0.total_cmp(&b.0))?;
        let highest = valid().filter_map(|it| offered(it.run)).fold(0.0, f64::max);
        offered(best).filter(|rate| *rate < highest).map(|_| best)
    }
}

/// Whether a run in open loop got what it offered.
pub(in crate::report) fn is_served(run: &RunRecord) -> bool {
    let measured = &run.measured;
    let window_s = measured.window_ns.as_secs_f64();
    let received = measured.throughput_messages_per_s * window_s;
    // A schedule that was drawn may hold less than its rate.
    let due = |rate: f64| (measured.messages_due as f64).min(rate * window_s);
    offered(run).is_none_or(|rate| received >= SERVED_MIN * due(rate)) && measured.missing() == 0
}

/// The curves that these records have in them.
pub(in crate::report) fn load_curves(records: &[(String, RunRecord)]) -> Vec<LoadCurve<'_>> {
    let mut groups = BTreeMap::<String, Vec<LoadPoint<'_>>>::new();
    for (index, (name, run)) in records.iter().enumerate() {
        if offered(run).is_some() {
            groups.entry(all_but_the_rate(run)).or_default().push(LoadPoint { index, name, run });
        }
    }
    let mut curves = Vec::new();
    for mut runs in groups.into_values() {
        let rate = |point: &LoadPoint<'_>| offered(point.run).unwrap_or_default();
        runs.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        let mut rates: Vec<_> = runs.iter().map(rate).collect();
        rates.dedup();
        if rates.len() >= POINTS_MIN {
            curves.push(LoadCurve { runs });
        }
    }
    curves
}

/// What runs of one curve have in common, as text.
fn all_but_the_rate(record: &RunRecord) -> String {
    // How long was measured, and what a null echo carries, is not the load.
    let mut scenario = Scenario {
        seed: 0,
        duration_ns: None,
        null_throughput_messages_per_s: None,
        ..record.scenario.clone()
    };
    if let Load::OpenLoop { rate_messages_per_s, .. } = &mut scenario.load {
        *rate_messages_per_s = MessagesPerSecond(0.0);
    }
    // A knee over two machines, or two builds of what measures, would be nobody's.
    let Provenance { server, host, loadgen, .. } = &record.provenance;
    let carried = (&server.product, &server.transport, &server.placement);
    format!("{scenario:?} {carried:?} {host:?} {loadgen:?}")
}

/// Percentiles of R against the offered load. Hollow marks are of runs that were not served, or are not valid.
pub(in crate::report) fn load_curve(curve: &LoadCurve<'_>, width: f64, height: f64) -> Panel {
    let most = curve.runs.iter().filter_map(|it| offered(it.run)).fold(0.0, f64::max);
    let times = curve.runs.iter().filter_map(|it| it.run.measured.response_time.as_ref());
    let ends = times.flat_map(|hdr| [hdr.percentile(50.0), hdr.percentile(99.9)]);
    let x =
        Axis { title: "offered load (messages/s)", scale: Scale::from_zero(most), label: count };
    let scale = Scale::log_around(ends.map(|time| time.0 as f64));
    let plot = Plot::new(x, Axis { title: "response time R", scale, label: time }, width, height);
    let point = |run: &RunRecord, percent| {
        let hdr = run.measured.response_time.as_ref()?;
        hdr.percentile_if_supported(percent)?;
        let (value, is_beyond) = hdr.percentile_among(percent, run.measured.missing());
        (!is_beyond).then_some((offered(run)?, value.0 as f64))
    };
    let layers = html! {
        @if let Some(rate) = curve.knee_by_power().and_then(offered) {
            @let says = format!("greatest throughput / mean R at {} messages/s", Count(rate));
            (plot.upright(rate, "knee by power", &says))
        }
        @for (index, percent) in PERCENTILES.into_iter().enumerate() {
            (plot.line(Look(index), curve.runs.iter().filter_map(|it| point(it.run, percent))))
            @for LoadPoint { name, run, .. } in &curve.runs {
                @if let Some(at) = point(run, percent) {
                    @let says = format!("{name}: p{percent} {} at {} messages/s offered, {} served",
                        time(at.1), Count(at.0), Count(run.measured.throughput_messages_per_s));
                    @match (is_served(run), run.is_valid()) {
                        (true, None | Some(true)) => (plot.mark(Look(index), at, &says)),
                        (true, Some(false)) => {
                            (plot.hollow_mark(Look(index), at, &format!("{says}; the run is not valid")))
                        }
                        (false, _) => (plot.hollow_mark(Look(index), at, &says)),
                    }
                }
            }
        }
    };
    let names: Vec<_> = PERCENTILES.iter().map(|percent| format!("p{percent}")).collect();
    let names: Vec<_> =
        names.into_iter().enumerate().map(|(index, name)| (name, Look(index))).collect();
    plot.panel(layers, &names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;
    use crate::units::Nanos;

    fn runs(rates_and_factors: &[(f64, u64)]) -> Vec<(String, RunRecord)> {
        rates_and_factors
            .iter()
            .map(|(rate, factor)| (format!("at-{rate}"), example::open_loop(*rate, *factor)))
            .collect()
    }

    #[test]
    fn the_knee_by_power_is_where_throughput_by_mean_response_time_is_greatest() {
        let records = runs(&[(3_000.0, 10), (1_000.0, 1), (2_000.0, 1)]);
        let curves = load_curves(&records);
        assert_eq!(curves.len(), 1);
        let rates: Vec<_> = curves[0].runs.iter().filter_map(|it| offered(it.run)).collect();
        assert_eq!(rates, [1_000.0, 2_000.0, 3_000.0]);
        assert_eq!(curves[0].knee_by_power().and_then(offered), Some(2_000.0));
    }

    #[test]
    fn a_knee_that_no_higher_rate_shows_may_lie_beyond() {
        let mut records = runs(&[(3_000.0, 1), (1_000.0, 1), (2_000.0, 1)]);
        assert!(load_curves(&records)[0].knee_by_power().is_none());
        records[0].1.gates.push(example::gate(GateName::Steal, Verdict::Failed, None, "share"));
        assert!(load_curves(&records)[0].knee_by_power().is_none(), "an invalid run shows nothing");
    }

    #[test]
    fn a_curve_needs_three_rates_of_one_scenario() {
        assert!(load_curves(&runs(&[(1_000.0, 1), (2_000.0, 1), (2_000.0, 1)])).is_empty());
        let mut records = runs(&[(1_000.0, 1), (2_000.0, 1), (3_000.0, 1)]);
        records[0].1.scenario.streams += 1;
        assert!(load_curves(&records).is_empty());
        let is_curve = |change: fn(&mut RunRecord)| {
            let mut records = runs(&[(1_000.0, 1), (2_000.0, 1), (3_000.0, 1)]);
            change(&mut records[0].1);
            !load_curves(&records).is_empty()
        };
        assert!(is_curve(|run| run.scenario.seed += 1));
        assert!(!is_curve(|run| run.provenance.host.cpu_model.push('2')), "another machine");
        assert!(!is_curve(|run| run.provenance.loadgen.revision.push('2')), "another build");
        assert!(load_curves(&[("closed".to_owned(), example::closed_loop())]).is_empty());
    }

    #[test]
    fn a_schedule_that_holds_less_than_its_rate_is_served_if_all_of_it_is() {
        let mut run = example::open_loop(1_000.0, 1);
        run.measured.window_ns = Nanos::SECOND;
        (run.measured.messages_lost, run.measured.messages_due) = (0, 985);
        run.measured.throughput_messages_per_s = 985.0;
        assert!(is_served(&run));
        run.measured.throughput_messages_per_s = 980.0;
        assert!(!is_served(&run));
    }

    #[test]
    fn a_run_that_was_not_served_is_hollow() {
        let mut records = runs(&[(1_000.0, 1), (2_000.0, 1), (3_000.0, 1)]);
        records.iter_mut().for_each(|(_, record)| record.measured.messages_lost = 0);
        let text = |records: &[(String, RunRecord)]| {
            load_curve(&load_curves(records)[0], 600.0, 300.0).body.into_string()
        };
        assert!(!text(&records).contains("hollow"));
        records[2].1.measured.throughput_messages_per_s = 2_500.0;
        assert_eq!(text(&records).matches("hollow").count(), PERCENTILES.len());
        records[0].1.gates = vec![example::gate(GateName::Steal, Verdict::Failed, None, "share")];
        assert_eq!(text(&records).matches("hollow").count(), 2 * PERCENTILES.len());
        assert_eq!(text(&records).matches("the run is not valid").count(), PERCENTILES.len());
    }
}
