//! The percentile spectrum: the time that a share of all messages does not exceed, with the nines of that
//! share on an axis of their own (as HdrHistogram's plots have it), so that the tail is not squeezed.

use maud::{Markup, html};

use super::{Axis, Look, Panel, Plot, Scale};
use crate::record::{Hdr, SAMPLES_BEYOND_MIN, is_supported};
use crate::units::Nanos;

/// Steps of a curve for each half of the way to 100 %: finer than any screen shows.
const STEPS_PER_HALF: u32 = 10;

/// The percentiles that have a mark of their own.
const MARKED: [f64; 8] = [50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999, 99.99999];

/// A histogram with its name.
#[derive(Clone, Debug)]
pub(in crate::report) struct Curve<'a> {
    /// As the legend says it.
    pub(in crate::report) name: String,
    /// Its values; a curve without any is left out.
    pub(in crate::report) hdr: &'a Hdr,
    /// Messages that were later than all of them: the curve ends where they begin.
    pub(in crate::report) missing: u64,
}

/// Of a curve: quantile and time in ns.
type Points = Vec<(f64, f64)>;

/// All curves on one pair of axes: percentile to the right, time upwards, both logarithmic.
pub(in crate::report) fn spectrum(curves: &[Curve<'_>], width: f64, height: f64) -> Panel {
    let curves: Vec<_> = curves.iter().filter(|curve| curve.hdr.count() > 0).collect();
    let count = curves.iter().map(|curve| curve.hdr.count() + curve.missing).max();
    let count = count.unwrap_or_default();
    let ends = curves.iter().flat_map(|curve| [curve.hdr.min().0 as f64, curve.hdr.max().0 as f64]);
    let x = Axis { title: "percentile (%)", scale: Scale::nines(count), label: percent };
    let y = Axis { title: "time", scale: Scale::log_around(ends), label: time };
    let plot = Plot::new(x, y, width, height);
    let layers = html! {
        @for (index, curve) in curves.iter().enumerate() { (drawn(&plot, curve, Look(index))) }
    };
    let names: Vec<_> =
        curves.iter().enumerate().map(|(index, it)| (it.name.clone(), Look(index))).collect();
    plot.panel(layers, &names)
}

fn drawn(plot: &Plot, curve: &Curve<'_>, look: Look) -> Markup {
    let Curve { hdr, missing, .. } = *curve;
    let count = hdr.count() + missing;
    let here = hdr.count() as f64 / count.max(1) as f64;
    // The largest value lies infinitely far on this axis: it is drawn where all but one lie below.
    let last = here.min(1.0 - 1.0 / count.max(1) as f64);
    let steps = hdr.steps(STEPS_PER_HALF).into_iter();
    let points = steps.map(|step| ((here * step.quantile).min(last), step.value.0 as f64));
    let (solid, beyond) = parted(points.collect(), curve);
    let supported = MARKED.iter().filter(|percent| is_supported(count, **percent));
    let marked = supported.filter_map(|percent| {
        let (value, is_beyond) = hdr.percentile_among(*percent, missing);
        (!is_beyond).then_some((percent, value))
    });
    let without = match missing {
        0 => String::new(),
        missing => format!(", and {missing} have no echo"),
    };
    html! {
        (plot.line(look, solid))
        (plot.line_beyond(look, &beyond))
        @for (percent, value) in marked {
            @let says = format!("{}, {percent} %: {value}", curve.name);
            (plot.mark(look, (percent / 100.0, value.0 as f64), &says))
        }
        @let says = format!("{}, largest of {}: {}{without}", curve.name, hdr.count(), hdr.max());
        (plot.mark(look, (last, hdr.max().0 as f64), &says))
    }
}

/// The points up to the last percentile that is shown elsewhere, because enough values lie beyond it, and those from there
/// on, where few values say where the curve goes.
fn parted(mut points: Points, curve: &Curve<'_>) -> (Points, Points) {
    let count = curve.hdr.count() + curve.missing;
    let end = 1.0 - SAMPLES_BEYOND_MIN / count.max(1) as f64;
    let at = points.partition_point(|(quantile, _)| *quantile <= end);
    if at == 0 || at == points.len() {
        let beyond = points.split_off(at);
        return (points, beyond);
    }
    let (value, _) = curve.hdr.percentile_among(100.0 * end, curve.missing);
    let mut beyond = vec![(end, value.0 as f64)];
    beyond.extend(points.split_off(at));
    points.push(beyond[0]);
    (points, beyond)
}

/// A quantile as a percentage with as many nines as it has.
fn percent(quantile: f64) -> String {
    // Rounded to a digit more than the axis ever shows.
    let text = format!("{:.12}", quantile * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time on an axis is not negative, and a cast of a float saturates"
)]
pub(super) fn time(nanos: f64) -> String {
    Nanos(nanos.round() as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing(counts: &[u64], missing: u64) -> String {
        let hdrs: Vec<_> = counts
            .iter()
            .map(|count| {
                let mut hdr = Hdr::default();
                (0..*count).for_each(|value| hdr.record(Nanos(1_000 + value)));
                hdr
            })
            .collect();
        let curves: Vec<_> =
            hdrs.iter().map(|hdr| Curve { name: "R <1>".to_owned(), hdr, missing }).collect();
        spectrum(&curves, 600.0, 300.0).body.into_string()
    }

    #[test]
    fn marks_say_the_percentiles_that_the_samples_hold_up() {
        let text = drawing(&[100_000], 0);
        assert!(text.contains("R &lt;1&gt;, 99.9 %: 101 µs"), "{text}");
        assert!(text.contains("99.99 %"));
        assert!(!text.contains("R &lt;1&gt;, 99.999 %"), "one sample lies beyond that");
        assert!(text.contains("largest of 100000: 101 µs"));
        assert!(text.contains(">99.999</text>"), "the axis goes as far as the largest");
    }

    #[test]
    fn a_percentile_among_messages_without_an_echo_has_no_mark() {
        let text = drawing(&[80_000], 20_000);
        assert!(text.contains("R &lt;1&gt;, 50 %: 51.0 µs"), "of all 100,000: {text}");
        assert!(!text.contains("R &lt;1&gt;, 90 %"), "{text}");
        assert!(text.contains("largest of 80000: 81.0 µs, and 20000 have no echo"), "{text}");
    }

    #[test]
    fn each_curve_is_dashed_from_where_its_own_values_do_not_hold_it_up() {
        let text = drawing(&[100_000, 200], 0);
        let path = |class: &str| {
            let begin = format!("<path class=\"{class}\" d=\"");
            let (_, path) = text.split_once(&begin).unwrap_or_else(|| panic!("no {class}: {text}"));
            path.split_once('"').unwrap().0.to_owned()
        };
        let x = |point: &str| point.split_once(' ').unwrap().0.parse::<f64>().unwrap();
        for (series, nines) in [("s0", 4.0), ("s1", 20_f64.log10())] {
            let (solid, dashed) =
                (path(&format!("line {series} d0")), path(&format!("line beyond {series} d0")));
            let end = x(solid.rsplit_once('L').unwrap().1);
            let begin = x(dashed.trim_start_matches('M').split_once('L').unwrap().0);
            assert_eq!(end, begin, "{series}");
            // Of five nines over the plot's width.
            let expected = 72.0 + nines / 5.0 * (600.0 - 72.0 - 26.0);
            assert!((end - expected).abs() < 0.11, "{series}: {end} instead of {expected}");
        }
        assert!(!text.contains("class=\"shade\""), "{text}");
        let few = drawing(&[5], 0);
        assert!(!few.contains("<path class=\"line s0"), "{few}");
        assert!(few.contains("<path class=\"line beyond s0"), "{few}");
    }

    #[test]
    fn nothing_recorded_is_an_empty_plot() {
        let text = drawing(&[0], 0);
        assert!(!text.contains("class=\"line") && text.contains("percentile (%)"), "{text}");
        assert!(!drawing(&[1], 0).contains("NaN"));
    }
}
