//! Latency over time as a map of heat: for each second, which times its messages took, and how many of
//! them did. Shows what percentiles hide: two humps, and pauses that end.

use maud::html;

use super::spectrum::time;
use super::timeline::{seconds_axis, window_end};
use super::{Axis, Panel, Plot, Scale, px};
use crate::record::{Damaged, Hdr, Measured};
use crate::units::{Count, Nanos};

/// Rows for each power of ten of the time.
const ROWS_PER_DECADE: f64 = 12.0;

/// Most columns; a longer run has several seconds in each.
const COLUMNS_MAX: usize = 120;

/// The shares of a column's messages from which on a cell is one colour hotter.
const SHARES: [f64; 7] = [0.0, 0.000_1, 0.001, 0.01, 0.03, 0.1, 0.3];

/// How often each stretch of time was in each stretch of the run.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::report) struct Heat {
    /// Seconds in a column.
    seconds_per_column: usize,
    columns: Vec<Column>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Column {
    messages: u64,
    /// By row; a row's number says its times, see [`row_of`].
    cells: std::collections::BTreeMap<i32, u64>,
}

impl Heat {
    /// Sorts the seconds of a run into cells. Err: a second's histogram cannot be read.
    pub(in crate::report) fn of(measured: &Measured) -> Result<Self, Damaged> {
        let seconds_per_column = measured.seconds.len().div_ceil(COLUMNS_MAX).max(1);
        let mut columns = Vec::new();
        for seconds in measured.seconds.chunks(seconds_per_column) {
            let mut column = Column::default();
            for second in seconds {
                for (value, count) in Hdr::try_from(&second.latency)?.values() {
                    column.messages += count;
                    *column.cells.entry(row_of(value)).or_default() += count;
                }
            }
            columns.push(column);
        }
        Ok(Heat { seconds_per_column, columns })
    }
}

/// The row of a time: rows are of equal ratio, [`ROWS_PER_DECADE`] for a factor of ten.
#[allow(clippy::cast_possible_truncation, reason = "the logarithm of a time is a small number")]
fn row_of(value: Nanos) -> i32 {
    ((value.0.max(1) as f64).log10() * ROWS_PER_DECADE).floor() as i32
}

/// Where a row begins, in ns.
fn begin_of(row: i32) -> f64 {
    10_f64.powf(f64::from(row) / ROWS_PER_DECADE)
}

fn colour(share: f64) -> usize {
    SHARES.iter().rposition(|least| share >= *least).unwrap_or_default()
}

/// The map, and below it what its colours mean.
pub(in crate::report) fn heat(heat: &Heat, measured: &Measured, width: f64, height: f64) -> Panel {
    let rows = || heat.columns.iter().flat_map(|column| column.cells.keys().copied());
    let ends = rows().min().into_iter().chain(rows().max().map(|row| row + 1)).map(begin_of);
    let y = Axis { title: "time", scale: Scale::log_around(ends), label: time };
    let plot = Plot::new(seconds_axis(measured.seconds.len()), y, width, height);
    let layers = html! {
        @for (index, column) in heat.columns.iter().enumerate() {
            @let begin = index * heat.seconds_per_column;
            @let end = (begin + heat.seconds_per_column).min(measured.seconds.len());
            @let (left, right) = (plot.at_x(begin as f64), plot.at_x(end as f64));
            @for (row, messages) in &column.cells {
                @let (from, to) = (begin_of(*row), begin_of(row + 1));
                @let (top, bottom) = (plot.at_y(to), plot.at_y(from));
                @let share = *messages as f64 / column.messages as f64;
                rect class=(format!("cell h{}", colour(share))) x=(px(left)) y=(px(top))
                    width=(px(right - left)) height=(px(bottom - top)) {
                    title {
                        "second " (begin) @if end > begin + 1 { " to " (end - 1) } ", "
                        (time(from)) " to " (time(to)) ": " (Count(*messages as f64)) " messages, "
                        (format!("{:.2}", share * 100.0)) " %"
                    }
                }
            }
        }
        (window_end(&plot, measured))
    };
    plot.panel(layers, &[]).above(key(width))
}

/// The colours, from the rarest to the most frequent.
fn key(width: f64) -> Panel {
    const SWATCH: f64 = 15.0;
    const EACH: f64 = 84.0;
    let label = |index: usize| match index {
        0 => "rarer".to_owned(),
        index => format!("≥ {} %", SHARES[index] * 100.0),
    };
    let body = html! {
        text class="tick" x=(px(Plot::LEFT)) y="12" { "share of the second's messages:" }
        @for index in 0..SHARES.len() {
            @let x = Plot::LEFT + EACH * index as f64;
            rect class=(format!("cell h{index}")) x=(px(x)) y="20" width=(px(SWATCH)) height="13" {}
            text class="name" x=(px(x + SWATCH + 5.0)) y="31" { (label(index)) }
        }
    };
    Panel { body, width, height: 40.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn every_message_of_a_second_is_in_a_cell() {
        let record = example::closed_loop();
        let heat = Heat::of(&record.measured).unwrap();
        assert_eq!(heat.columns.len(), record.measured.seconds.len());
        for (column, second) in heat.columns.iter().zip(&record.measured.seconds) {
            assert_eq!(column.messages, second.latency.count);
            assert_eq!(column.cells.values().sum::<u64>(), second.latency.count);
        }
    }

    #[test]
    fn a_time_lies_between_its_rows_begin_and_the_next() {
        for value in [1, 9, 10, 999, 1_000, 123_456_789] {
            let row = row_of(Nanos(value));
            let (from, to) = (begin_of(row), begin_of(row + 1));
            assert!(from <= value as f64 * 1.000_001 && to > value as f64, "{value}: {from} {to}");
        }
    }

    #[test]
    fn a_long_run_has_several_seconds_in_a_column() {
        let mut record = example::closed_loop();
        let second = record.measured.seconds[0].clone();
        record.measured.seconds = vec![second; 601];
        let heat = Heat::of(&record.measured).unwrap();
        assert!(heat.columns.len() <= COLUMNS_MAX && heat.seconds_per_column == 6);
        let text = super::heat(&heat, &record.measured, 600.0, 300.0).body.into_string();
        assert!(text.contains("second 0 to 5, "), "{text}");
        assert!(text.contains("second 600, "), "the last column is a second alone");
    }

    #[test]
    fn a_damaged_second_is_an_error() {
        let mut record = example::closed_loop();
        record.measured.seconds[2].latency.count += 1;
        assert!(Heat::of(&record.measured).is_err());
    }
}
