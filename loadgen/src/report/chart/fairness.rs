//! How equally the streams were served: echoes of each stream, and Jain's index over them.

use maud::html;

use super::timeline::count;
use super::{Axis, Look, Panel, Plot, Scale};
use crate::units::Count;

/// Most points of the curve; of more streams, evenly many are left out.
const POINTS_MAX: usize = 400;

/// Echoes per stream, summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) struct Fairness {
    /// Streams.
    pub(in crate::report) streams: usize,
    /// Fewest echoes on a stream.
    pub(in crate::report) min: u64,
    /// Of two in the middle, the lower.
    pub(in crate::report) median: u64,
    /// Most echoes on a stream.
    pub(in crate::report) max: u64,
    /// What each would have had if all had had the same.
    pub(in crate::report) mean: f64,
    /// Jain's index, (sum x)² / (n · sum x²): 1 if all are equal, 1/n if one stream has all (Jain, Chiu,
    /// Hawe, DEC-TR-301, 1984).
    pub(in crate::report) jain: f64,
}

impl Fairness {
    /// Of these streams; `None` if there is no echo on any.
    pub(in crate::report) fn of(echoes: &[u64]) -> Option<Self> {
        let mut sorted = echoes.to_vec();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let floats = || sorted.iter().map(|echoes| *echoes as f64);
        let (sum, squares) = (floats().sum::<f64>(), floats().map(|it| it * it).sum::<f64>());
        let streams = sorted.len();
        (sum > 0.0).then(|| Fairness {
            streams,
            min,
            median: sorted[(streams - 1) / 2],
            max,
            mean: sum / streams as f64,
            jain: sum * sum / (streams as f64 * squares),
        })
    }
}

/// The streams by their number of echoes, ascending, and the equal share.
pub(in crate::report) fn fairness(echoes: &[u64], width: f64, height: f64) -> Panel {
    let mut sorted = echoes.to_vec();
    sorted.sort_unstable();
    let most = sorted.last().copied().unwrap_or_default() as f64;
    let share = |index: usize| 100.0 * (index as f64 + 0.5) / sorted.len() as f64;
    let x = Axis {
        title: "streams (%), from the fewest echoes to the most",
        scale: Scale::Linear { from: 0.0, to: 100.0 },
        label: |percent| format!("{percent:.0}"),
    };
    let y = Axis { title: "echoes on a stream", scale: Scale::from_zero(most), label: count };
    let plot = Plot::new(x, y, width, height);
    let step = sorted.len().div_ceil(POINTS_MAX).max(1);
    let last = sorted.len().checked_sub(1);
    let shown = (0..sorted.len()).step_by(step).chain(last);
    let layers = html! {
        @if let Some(fairness) = Fairness::of(&sorted) {
            (plot.level(fairness.mean, &format!("equal share: {} echoes", Count(fairness.mean))))
            (plot.line(Look(0), shown.map(|index| (share(index), sorted[index] as f64))))
            @for (name, index) in [("fewest", 0), ("median", (sorted.len() - 1) / 2), ("most", sorted.len() - 1)] {
                @let says = format!("{name}: {} echoes on a stream", sorted[index]);
                (plot.mark(Look(0), (share(index), sorted[index] as f64), &says))
            }
        }
    };
    plot.panel(layers, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_1_for_equals_and_1_of_n_for_a_monopoly() {
        let jain = |echoes: &[u64]| Fairness::of(echoes).unwrap().jain;
        assert!((jain(&[7, 7, 7]) - 1.0).abs() < 1e-12);
        assert!((jain(&[0, 0, 0, 9]) - 0.25).abs() < 1e-12);
        assert_eq!(Fairness::of(&[]), None);
        assert_eq!(Fairness::of(&[0, 0]), None);
    }

    #[test]
    fn the_extremes_and_the_median_are_those_of_the_streams() {
        let fairness = Fairness::of(&[30, 10, 20, 40]).unwrap();
        assert_eq!((fairness.min, fairness.median, fairness.max), (10, 20, 40));
        assert!((fairness.mean - 25.0).abs() < 1e-12);
    }

    #[test]
    fn many_streams_are_drawn_with_few_points_and_the_extremes() {
        let echoes: Vec<_> = (0..100_000).collect();
        let text = super::fairness(&echoes, 600.0, 300.0).body.into_string();
        assert!(text.len() < 20_000, "{} bytes", text.len());
        assert!(text.contains("most: 99999 echoes") && text.contains("fewest: 0 echoes"));
    }
}
