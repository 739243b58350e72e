//! Where a value lies on an axis, and which values are written beside it.

/// Most ticks of a linear axis.
const TICKS_MAX: f64 = 7.0;

/// Decades from which on a logarithmic axis has room for labels at powers of ten only.
const DECADES_CROWDED: f64 = 2.5;

/// Floats that differ by this share are meant to be one.
const NEARLY: f64 = 1e-6;

/// From values to a share of the axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) enum Scale {
    /// Equal steps, equal lengths.
    Linear {
        /// At the begin of the axis.
        from: f64,
        /// At its end.
        to: f64,
    },
    /// Equal ratios, equal lengths.
    Log {
        /// At the begin of the axis, above 0.
        from: f64,
        /// At its end.
        to: f64,
    },
    /// Quantiles, 0 to 1: each nine more of a percentile has the same length.
    Nines {
        /// Nines at the end of the axis: 3 is 99.9 %.
        to: f64,
    },
}

/// A value beside an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    /// Whether it is written; else it is a fine line only.
    pub(super) is_labelled: bool,
}

impl Tick {
    pub(super) fn class(self) -> &'static str {
        if self.is_labelled { "grid" } else { "fine" }
    }
}

impl Scale {
    /// From 0 to somewhat more than `max`, ending on a tick.
    pub(in crate::report) fn from_zero(max: f64) -> Self {
        let max = if max > 0.0 { max * 1.03 } else { 1.0 };
        let step = step(max);
        Scale::Linear { from: 0.0, to: (max / step).ceil() * step }
    }

    /// Around all values above 0, which may be none, from 1, 2 or 5 times a power of ten to such a one.
    pub(in crate::report) fn log_around(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut min, mut max) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| *value > 0.0) {
            (min, max) = (min.min(value), max.max(value));
        }
        if max == 0.0 {
            return Scale::Log { from: 1.0, to: 10.0 };
        }
        let (from, to) = (rounded_down(min), rounded_up(max));
        Scale::Log { from, to: if to > from { to } else { from * 10.0 } }
    }

    /// As far as the largest of `count` values, at least to 99 %.
    pub(in crate::report) fn nines(count: u64) -> Self {
        Scale::Nines { to: (count as f64).log10().max(2.0) }
    }

    /// The share of the axis at which `value` lies, kept inside of it.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = match *self {
            Scale::Linear { from, to } => (value - from) / (to - from),
            Scale::Log { from, to } => (value.max(from) / from).ln() / (to / from).ln(),
            Scale::Nines { to } => -(1.0 - value).log10() / to,
        };
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
    }

    /// The values beside the axis, ascending.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        match *self {
            Scale::Linear { from, to } => {
                let step = step(to - from);
                let count = ((to - from) / step + NEARLY).floor();
                let values = (0..).map(f64::from).take_while(|index| *index <= count);
                values.map(|index| Tick { value: from + index * step, is_labelled: true }).collect()
            }
            Scale::Log { from, to } => log_ticks(from, to),
            Scale::Nines { to } => {
                let nines = (1..).map(f64::from).take_while(|nines| *nines <= to + 1e-9);
                let values = [0.0, 0.5].into_iter().chain(nines.map(|it| 1.0 - 10_f64.powf(-it)));
                values.map(|value| Tick { value, is_labelled: true }).collect()
            }
        }
    }
}

fn log_ticks(from: f64, to: f64) -> Vec<Tick> {
    let decades = (to / from).log10();
    let mut ticks = Vec::new();
    let mut power = 10_f64.powf(from.log10().floor());
    while power <= to * 1.001 {
        for digit in 1..10 {
            let value = power * f64::from(digit);
            if value >= from * 0.999 && value <= to * 1.001 {
                let is_labelled = match digit {
                    1 => true,
                    2 | 5 => decades < DECADES_CROWDED,
                    _ => decades < 0.75,
                };
                ticks.push(Tick { value, is_labelled });
            }
        }
        power *= 10.0;
    }
    ticks
}

/// 1, 2 or 5 times a power of ten, so that not more than [`TICKS_MAX`] of them fill `length`.
fn step(length: f64) -> f64 {
    let rough = length / TICKS_MAX;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|digit| digit * power);
    steps.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power)
}

/// The largest of 1, 2 or 5 times a power of ten that `value` reaches.
fn rounded_down(value: f64) -> f64 {
    let reached = |it: &f64| *it <= value * (1.0 + NEARLY);
    round_values(value).into_iter().rev().find(reached).unwrap_or(value)
}

/// The smallest of them that reaches `value`.
fn rounded_up(value: f64) -> f64 {
    let reaches = |it: &f64| *it >= value * (1.0 - NEARLY);
    round_values(value).into_iter().find(reaches).unwrap_or(value)
}

fn round_values(value: f64) -> [f64; 4] {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<f64> {
        let labelled = scale.ticks().into_iter().filter(|tick| tick.is_labelled);
        labelled.map(|tick| (tick.value * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_linear_axis_ends_on_a_tick_beyond_the_largest_value() {
        let scale = Scale::from_zero(14_200.0);
        assert_eq!(labels(scale), [0.0, 5_000.0, 10_000.0, 15_000.0]);
        assert_eq!(labels(Scale::from_zero(0.0)).first(), Some(&0.0));
        let eleven = Scale::Linear { from: 0.0, to: 11.0 };
        assert_eq!(labels(eleven).last(), Some(&10.0), "no tick lies beyond the axis");
        for max in [0.003, 1.0, 7.0, 99.0, 1e9] {
            let Scale::Linear { to, .. } = Scale::from_zero(max) else { panic!("not linear") };
            assert!(to >= max && to < 2.1 * max, "{max} to {to}");
            assert!(labels(Scale::from_zero(max)).len() <= 9);
        }
    }

    #[test]
    fn a_logarithmic_axis_begins_and_ends_on_round_values() {
        let scale = Scale::log_around([83.0, 4_700.0]);
        assert_eq!(scale, Scale::Log { from: 50.0, to: 5_000.0 });
        assert_eq!(labels(scale), [50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0]);
        assert_eq!(labels(Scale::log_around([1.0, 1e6])).len(), 7);
        assert_eq!(Scale::log_around([100.0]), Scale::Log { from: 100.0, to: 1_000.0 });
        assert_eq!(Scale::log_around([0.0]), Scale::Log { from: 1.0, to: 10.0 });
    }

    #[test]
    fn each_nine_takes_the_same_length() {
        let scale = Scale::nines(1_000_000);
        let places = [0.0, 0.9, 0.99, 0.999].map(|quantile| scale.place(quantile) * 6.0);
        for (place, expected) in places.into_iter().zip([0.0, 1.0, 2.0, 3.0]) {
            assert!((place - expected).abs() < 1e-9, "{place} for {expected}");
        }
        assert_eq!(scale.place(1.0), 1.0, "100 % is infinitely far, so it lies at the end");
        assert_eq!(labels(scale), [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]);
    }

    #[test]
    fn what_is_out_of_range_lies_at_its_edge() {
        let scale = Scale::log_around([100.0, 1_000.0]);
        assert_eq!((scale.place(0.0), scale.place(1e9)), (0.0, 1.0));
        assert_eq!(Scale::from_zero(1.0).place(f64::NAN), 0.0);
    }
}
