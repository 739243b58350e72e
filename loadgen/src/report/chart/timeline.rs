//! A run second by second: messages, what echoes fall behind by, and percentiles.

use maud::{Markup, html};

use super::spectrum::time;
use super::{Axis, Look, Panel, Plot, Scale};
use crate::record::{Measured, RunRecord, Second, is_supported};
use crate::scenario::Load;
use crate::units::Count;

/// Seconds beyond which not each has a mark of its own.
const MARKS_MAX: usize = 120;

/// Echoes that arrived in each second of these runs, and what was offered. Of several runs, which have drains of
/// their own, the seconds of their windows only.
pub(in crate::report) fn throughput(
    runs: &[(String, &RunRecord)],
    width: f64,
    height: f64,
) -> Panel {
    let is_alone = runs.len() == 1;
    let shown = |run: &RunRecord| {
        let window_s = run.measured.window_ns.as_secs_f64();
        let received = points(&run.measured.seconds, |it| Some(it.messages_received as f64));
        received.into_iter().filter(|point| is_alone || point.0 < window_s).collect::<Vec<_>>()
    };
    let drawn: Vec<_> = runs.iter().map(|(_, run)| shown(run)).collect();
    let longest = drawn.iter().map(Vec::len).max().unwrap_or_default();
    let offers = runs.iter().filter_map(|(_, run)| offered(run));
    let most = drawn.iter().flatten().map(|point| point.1).chain(offers).fold(0.0, f64::max);
    let y = Axis { title: "messages/s", scale: Scale::from_zero(most), label: count };
    let plot = Plot::new(seconds_axis(longest), y, width, height);
    let told = |value| format!("{} messages", Count(value));
    let layers = html! {
        @if let [(_, run)] = runs { (window_end(&plot, &run.measured)) }
        @for (index, ((name, run), points)) in runs.iter().zip(&drawn).enumerate() {
            @if let Some(rate) = offered(run) {
                (plot.level(rate, &format!("{name}: {} messages/s offered", Count(rate))))
            }
            (series(&plot, name, Look(index), &run.measured, points, told))
        }
    };
    // A line alone needs no name.
    let named = if is_alone { &[] } else { runs };
    plot.panel(layers, &names(named.iter().map(|(name, _)| name.as_str())))
}

/// By how many messages the echoes had fallen behind what was due, at the end of each second: what became due
/// since the window began, less what was echoed or shed. Below 0 while echoes of the warm-up arrive.
pub(in crate::report) fn backlog(measured: &Measured, width: f64, height: f64) -> Panel {
    let mut behind = 0;
    let drawn = measured.seconds.iter().map(|second| {
        behind += second.backlog_growth();
        (second.second as f64 + 1.0, behind as f64)
    });
    let drawn: Vec<_> = drawn.collect();
    let most = drawn.iter().map(|point| point.1).fold(0.0, f64::max);
    let y = Axis { title: "messages", scale: Scale::from_zero(most), label: count };
    let plot = Plot::new(seconds_axis(measured.seconds.len()), y, width, height);
    let told = |(second, behind): &(f64, f64)| {
        format!("after {} s: {behind} messages", in_seconds(*second))
    };
    let layers = html! {
        (window_end(&plot, measured))
        (plot.line(Look(0), std::iter::once((0.0, 0.0)).chain(drawn.iter().copied())))
        @if drawn.len() <= MARKS_MAX {
            @for point in &drawn { (plot.mark(Look(0), *point, &told(point))) }
        }
    };
    plot.panel(layers, &[])
}

/// p50, p99 and the largest time of each second.
pub(in crate::report) fn percentiles(measured: &Measured, width: f64, height: f64) -> Panel {
    type Pick = fn(&Second) -> Option<f64>;
    let lines: [(&str, Pick); 3] = [
        ("p50", |it| known(it, 50.0)),
        ("p99", |it| known(it, 99.0)),
        ("largest", |it| (it.latency.count > 0).then_some(it.latency.max_ns.0 as f64)),
    ];
    let drawn: Vec<_> =
        lines.iter().map(|(name, pick)| (*name, points(&measured.seconds, pick))).collect();
    let values = drawn.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    let y = Axis { title: "time", scale: Scale::log_around(values), label: time };
    let plot = Plot::new(seconds_axis(measured.seconds.len()), y, width, height);
    let layers = html! {
        (window_end(&plot, measured))
        @for (index, (name, points)) in drawn.iter().enumerate() {
            (series(&plot, name, Look(index), measured, points, time))
        }
    };
    plot.panel(layers, &names(lines.iter().map(|(name, _)| *name)))
}

/// A percentile that a second holds up and that does not lie among what was shed in it.
fn known(second: &Second, percent: f64) -> Option<f64> {
    let [(value, is_beyond)] = second.percentiles([percent]);
    (is_supported(second.latency.count, percent) && !is_beyond).then_some(value.0 as f64)
}

/// The axis of both: seconds since the window began.
pub(super) fn seconds_axis(seconds: usize) -> Axis {
    let scale = Scale::Linear { from: 0.0, to: seconds.max(1) as f64 };
    Axis { title: "seconds since the measurement began", scale, label: in_seconds }
}

/// Where the window ended; what is later came in the drain.
pub(super) fn window_end(plot: &Plot, measured: &Measured) -> Markup {
    let end = measured.window_ns.as_secs_f64();
    html! {
        @if measured.seconds.len() as f64 > end + 1e-3 {
            (plot.upright(end, "drain", "the window of the measurement ended here"))
        }
    }
}

/// A point in the middle of each second.
fn points(seconds: &[Second], pick: impl Fn(&Second) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |second: &Second| Some((second.second as f64 + 0.5, pick(second)?));
    seconds.iter().filter_map(point).collect()
}

/// A line through the seconds of the window, broken where some between have no value, and a mark at each; those of the
/// drain have a mark alone, because what is missing between them and the others was not offered.
fn series(
    plot: &Plot,
    name: &str,
    look: Look,
    measured: &Measured,
    points: &[(f64, f64)],
    told: impl Fn(f64) -> String,
) -> Markup {
    let window_s = measured.window_ns.as_secs_f64();
    let says = |point: &(f64, f64)| {
        format!("{name}, second {}: {}", in_seconds(point.0.floor()), told(point.1))
    };
    let inside = &points[..points.partition_point(|point| point.0 < window_s)];
    let parts: Vec<_> = inside.chunk_by(|a, b| b.0 - a.0 < 1.5).collect();
    // Of a part of one point no line tells.
    let lone = || parts.iter().filter_map(|part| <&[_; 1]>::try_from(*part).ok());
    html! {
        (plot.broken_line(look, parts.iter().copied()))
        @if points.len() <= MARKS_MAX {
            @for point in points { (plot.mark(look, *point, &says(point))) }
        } @else {
            @for [point] in lone() { (plot.mark(look, *point, &says(point))) }
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(String, Look)> {
    names.enumerate().map(|(index, name)| (name.to_owned(), Look(index))).collect()
}

/// What an open loop offers, in messages per second.
pub(super) fn offered(run: &RunRecord) -> Option<f64> {
    match run.scenario.load {
        Load::OpenLoop { rate_messages_per_s, .. } => Some(rate_messages_per_s.0),
        Load::ClosedLoop { .. } => None,
    }
}

pub(super) fn count(value: f64) -> String {
    Count(value).to_string()
}

/// Seconds, to a tenth where there is one.
fn in_seconds(seconds: f64) -> String {
    let text = format!("{seconds:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;
    use crate::units::Nanos;

    #[test]
    fn each_second_is_a_point_that_says_its_figure_and_the_offered_load_a_level() {
        let record = example::open_loop(4_000.0, 1);
        let text = throughput(&[("a & b".to_owned(), &record)], 600.0, 300.0).body.into_string();
        assert_eq!(text.matches("class=\"mark").count(), record.measured.seconds.len());
        assert!(text.contains("a &amp; b, second 4: 4000 messages"), "{text}");
        assert!(text.contains("4000 messages/s offered"));
    }

    #[test]
    fn echoes_fall_behind_by_what_was_due_and_neither_echoed_nor_shed() {
        let mut record = example::open_loop(4_000.0, 1);
        for (second, due) in
            record.measured.seconds.iter_mut().zip([5_000, 4_500, 4_000, 2_500, 2_000])
        {
            second.messages_due = due;
            second.messages_shed = 100;
        }
        let text = backlog(&record.measured, 600.0, 300.0).body.into_string();
        for told in [
            "after 1 s: 900 messages",
            "after 2 s: 1300 messages",
            "after 3 s: 1200 messages",
            "after 4 s: -400 messages",
            "after 5 s: -2500 messages",
        ] {
            assert!(text.contains(told), "{told} is not in {text}");
        }
    }

    #[test]
    fn a_short_run_has_ticks_between_its_seconds() {
        assert_eq!([0.0, 0.5, 2.0].map(in_seconds), ["0", "0.5", "2"]);
    }

    #[test]
    fn beside_each_other_runs_are_shown_without_their_drains() {
        let mut record = example::closed_loop();
        record.measured.window_ns = Nanos(2 * Nanos::SECOND.0);
        let marks = |runs: &[(String, &RunRecord)]| {
            let text = throughput(runs, 600.0, 300.0).body.into_string();
            text.matches("class=\"mark").count()
        };
        let run = || ("a".to_owned(), &record);
        assert_eq!((marks(&[run()]), marks(&[run(), run()])), (5, 4));
    }

    #[test]
    fn percentiles_among_what_was_shed_are_left_out() {
        let mut record = example::open_loop(4_000.0, 1);
        record.measured.seconds.iter_mut().for_each(|second| second.messages_shed = 400);
        let text = percentiles(&record.measured, 600.0, 300.0).body.into_string();
        assert!(!text.contains("p99, second 0") && text.contains("p50, second 0"), "{text}");
    }

    #[test]
    fn percentiles_that_a_second_does_not_hold_up_are_left_out() {
        let mut record = example::closed_loop();
        let text =
            |record: &RunRecord| percentiles(&record.measured, 600.0, 300.0).body.into_string();
        assert!(text(&record).contains("p99, second 0"));
        record.measured.seconds.iter_mut().for_each(|second| second.latency.count = 999);
        assert!(
            !text(&record).contains("p99, second 0") && text(&record).contains("p50, second 0")
        );
    }

    #[test]
    fn no_line_crosses_seconds_that_have_no_value() {
        let mut record = example::closed_loop();
        let parts = |record: &RunRecord| {
            let text = percentiles(&record.measured, 600.0, 300.0).body.into_string();
            let (_, largest) = text.split_once("class=\"line s2 d0\" d=\"").unwrap();
            largest.split_once('"').unwrap().0.matches('M').count()
        };
        assert_eq!(parts(&record), 1);
        let nothing = crate::record::WrittenHdr::from(&crate::record::Hdr::default());
        record.measured.seconds[2].latency = nothing.clone();
        assert_eq!(parts(&record), 2);
        record.measured.seconds[4].latency = nothing;
        assert_eq!(parts(&record), 2);
    }
}
