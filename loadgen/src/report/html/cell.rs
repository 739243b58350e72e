//! Cells of tables: each figure as people read it, with its key in the record and its exact value beside,
//! so that a script can read the page as well as a person can.

use maud::{Markup, html};
use serde_json::Value;

use crate::record::{Hdr, Second, is_supported};
use crate::units::{Count, Nanos};

/// What stands where there is nothing to say.
pub(super) const DASH: &str = "–";

/// A figure: `key` is its path in the record, with dots, or begins with `derived.`; `value` is exact.
pub(super) fn figure(key: &str, value: impl ToString, text: &str) -> Markup {
    html! { data value=(value.to_string()) data-key=(key) { (text) } }
}

/// A number as it is.
pub(super) fn number(key: &str, value: u64) -> Markup {
    figure(key, value, &value.to_string())
}

/// A large number, rounded for people.
pub(super) fn count(key: &str, value: f64) -> Markup {
    figure(key, value, &Count(value).to_string())
}

/// A time.
pub(super) fn time(key: &str, value: Nanos) -> Markup {
    figure(key, value.0, &value.to_string())
}

/// The percentiles that a record writes: their names for people, their keys, themselves.
pub(super) const PERCENTILES: [(&str, &str, f64); 5] = [
    ("p50", "p50_ns", 50.0),
    ("p90", "p90_ns", 90.0),
    ("p99", "p99_ns", 99.0),
    ("p99.9", "p99_9_ns", 99.9),
    ("p99.99", "p99_99_ns", 99.99),
];

/// A percentile of the histogram at `key`. `missing` messages have no echo and are taken for later than all
/// that have one: `>x` if the percentile is among them. A dash, with the value behind it, if too few values
/// lie beyond.
pub(super) fn percentile(key: &str, hdr: &Hdr, missing: u64, field: &str, percent: f64) -> Markup {
    let written = Written {
        key: format!("{key}.{field}"),
        value: hdr.percentile(percent),
        count: hdr.count(),
    };
    written.shown(percent, hdr.percentile_among(percent, missing), missing)
}

/// A percentile as the record has it, of so many values.
struct Written {
    key: String,
    value: Nanos,
    count: u64,
}

impl Written {
    /// `told`: what it is with so many `missing` messages, and whether it is among them.
    fn shown(&self, percent: f64, told: (Nanos, bool), missing: u64) -> Markup {
        let Written { key, value, count } = self;
        match told {
            (shown, true) => {
                let why =
                    format!("{missing} messages have no echo, and this percentile is among them");
                html! { data value=(value.0) data-key=(key) title=(why) { ">" (shown) } }
            }
            (shown, false) if is_supported(*count, percent) => {
                figure(key, value.0, &shown.to_string())
            }
            _ => unsupported(key, *count, *value),
        }
    }
}

/// The largest value of the histogram at `key`; likewise.
pub(super) fn max(key: &str, hdr: &Hdr, missing: u64) -> Markup {
    let beyond = if missing > 0 { ">" } else { "" };
    match hdr.count() {
        0 => html! { (DASH) },
        _ => figure(&format!("{key}.max_ns"), hdr.max().0, &format!("{beyond}{}", hdr.max())),
    }
}

/// Table cells: the percentiles with these keys and the largest, of the histogram at `key`; dashes if there is
/// none.
pub(super) fn row(key: &str, hdr: Option<&Hdr>, missing: u64, fields: &[&str]) -> Markup {
    html! {
        @for (_, field, percent) in chosen(fields) {
            td { @match hdr {
                Some(hdr) => (percentile(key, hdr, missing, field, percent)),
                None => (DASH),
            } }
        }
        td { @match hdr { Some(hdr) => (max(key, hdr, missing)), None => (DASH), } }
    }
}

/// The same of a second, whose histogram is at `key`.
pub(super) fn second(key: &str, second: &Second, fields: &[&str]) -> Markup {
    let Second { latency: hdr, messages_shed: missing, .. } = second;
    let all = second.percentiles(PERCENTILES.map(|(.., percent)| percent));
    let beyond = if *missing > 0 { ">" } else { "" };
    html! {
        @for ((_, field, percent), told) in PERCENTILES.into_iter().zip(all) {
            @if fields.contains(&field) {
                @let value = hdr.percentile(percent);
                @let written = Written { key: format!("{key}.{field}"), value, count: hdr.count };
                td { (written.shown(percent, told, *missing)) }
            }
        }
        td {
            @if hdr.count > 0 {
                (figure(&format!("{key}.max_ns"), hdr.max_ns.0, &format!("{beyond}{}", hdr.max_ns)))
            } @else { (DASH) }
        }
    }
}

/// The percentiles with these keys.
pub(super) fn chosen(fields: &[&str]) -> Vec<(&'static str, &'static str, f64)> {
    PERCENTILES.into_iter().filter(|(_, field, _)| fields.contains(field)).collect()
}

fn unsupported(key: &str, samples: u64, value: Nanos) -> Markup {
    let why = format!("fewer than 10 of {samples} values lie beyond: {value}");
    html! { data value=(value.0) data-key=(key) title=(why) { (DASH) } }
}

/// A figure in the unit of a gate.
pub(super) fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "ns" => rounded(value).to_string(),
        "share" => format!("{:.2} %", 100.0 * value),
        _ => format!("{value:.3} {unit}"),
    }
}

/// A time that was calculated.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are not negative, and a cast of a float saturates"
)]
pub(super) fn rounded(nanos: f64) -> Nanos {
    Nanos(nanos.round() as u64)
}

/// All that a value of JSON holds, a row for each leaf: its path below `key`, and what stands there.
pub(super) fn leaves(key: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => {
            let below = |(name, value)| leaves(&format!("{key}.{name}"), value);
            fields.iter().flat_map(below).collect()
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(Value::to_string).collect();
            vec![(key.to_owned(), items.join(", "))]
        }
        Value::String(text) => vec![(key.to_owned(), text.clone())],
        other => vec![(key.to_owned(), other.to_string())],
    }
}
