//! Records as one HTML page that needs nothing else: no script, no font, no file beside it, no network.
//!
//! In: records with their names. Out: the page, light or dark as its reader's system is, and fit to print.
//! Figures stand in tables beside the charts, each with its key in the record ([`cell`]). Whatever a
//! record says (names, headers, failures) is escaped: it may come from anywhere.

mod cell;
mod run;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::cell::DASH;
use super::chart::{
    Curve, LoadCurve, LoadPoint, STYLE, is_served, load_curve, load_curves, spectrum, throughput,
};
use super::{LoadModel, loads, markdown};
use crate::record::{Damaged, RunRecord, Timing};
use crate::scenario::Load;

/// Pixels of a chart; the page scales it to the room there is.
const WIDTH: f64 = 660.0;
const HEIGHT: f64 = 330.0;

/// Styles and pictures of the page itself alone: nothing of it can load or run anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Nobody asks a server for it, which would be the page's only request.
const NO_ICON: &str = "data:,";

/// The page of these records, in their order. Err: the name of a run with a second that cannot be read.
pub fn html(records: &[(String, RunRecord)]) -> Result<String, (String, Damaged)> {
    let runs = records
        .iter()
        .enumerate()
        .map(|(index, (name, record))| {
            run::section(index, name, record).map_err(|damaged| (name.clone(), damaged))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let title = match records {
        [(name, _)] => format!("loadgen: {name}"),
        _ => format!("loadgen: {} runs", records.len()),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                link rel="icon" href=(NO_ICON);
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(include_str!("page.css"))) }
            }
            body {
                header {
                    h1 { (title) }
                    p.soft { (begun(records)) }
                }
                (verdict(records))
                (contents(records))
                main {
                    section.all id="overview" { h2 { "Overview" } (overview(records)) }
                    (side_by_side(records))
                    @for curve in load_curves(records) { (against_load(&curve)) }
                    @for run in runs { (run) }
                    (words())
                }
            }
        }
    };
    Ok(page.into_string() + "\n")
}

fn begun(records: &[(String, RunRecord)]) -> String {
    let mut begun: Vec<_> =
        records.iter().map(|(_, it)| it.provenance.started_at.as_str()).collect();
    begun.sort_unstable();
    match begun.as_slice() {
        [] => String::new(),
        [only] => format!("begun {only}"),
        [first, .., last] => format!("begun from {first} to {last}"),
    }
}

/// What makes figures suspect or worthless, before any of them.
fn verdict(records: &[(String, RunRecord)]) -> Markup {
    let all = records.len();
    let those = |is: fn(&RunRecord) -> bool| -> Vec<_> {
        records.iter().filter(|(_, record)| is(record)).collect()
    };
    let invalid = those(|record| record.is_valid() == Some(false));
    let ill = those(|record| !run::ills(&record.measured).is_empty());
    let warned = those(|record| !record.warnings.is_empty());
    html! {
        @if !invalid.is_empty() {
            div.notice.bad role="alert" {
                strong { "INVALID: gates failed in " (invalid.len()) " of " (all) " runs" }
                p { "What follows may say more about loadgen or its machine than about the server." }
                ul { @for (name, record) in invalid { @for gate in record.failed_gates() {
                    li { (name) ": " (gate.name) ": " (gate.message) }
                } } }
            }
        }
        @if !ill.is_empty() {
            div.notice.bad role="alert" {
                strong { (ill.len()) " of " (all) " runs did not end well" }
                ul { @for (name, record) in ill { li { (name) ": " (run::ills(&record.measured)) } } }
            }
        }
        @if !warned.is_empty() {
            div.notice {
                strong { "Warnings in " (warned.len()) " of " (all) " runs" }
                ul { @for (name, record) in warned { @for warning in &record.warnings {
                    li { (name) ": " (warning.message) }
                } } }
            }
        }
    }
}

fn contents(records: &[(String, RunRecord)]) -> Markup {
    html! {
        @if records.len() > 1 {
            nav aria-label="Runs" {
                ol { @for (index, (name, _)) in records.iter().enumerate() {
                    li { a href=(format!("#run-{index}")) { (name) } }
                } }
            }
        }
    }
}

/// The percentiles that the overview has room for.
const OF_A_RUN: [&str; 3] = ["p50_ns", "p99_ns", "p99_9_ns"];

/// A row for each run.
fn overview(records: &[(String, RunRecord)]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Overview of all runs" {
            table {
                thead {
                    tr {
                        th rowspan="2" scope="col" { "run" }
                        th.text rowspan="2" scope="col" { "load" }
                        th.text rowspan="2" scope="col" { "valid" }
                        th rowspan="2" scope="col" { "offered/s" }
                        th rowspan="2" scope="col" { "echoed/s" }
                        th.group colspan="4" scope="colgroup" { "response time R" }
                        th.group colspan="4" scope="colgroup" { "service time S" }
                        th rowspan="2" scope="col" { "lost" }
                        th rowspan="2" scope="col" { "wrong" }
                    }
                    tr { (run::heads(&OF_A_RUN)) (run::heads(&OF_A_RUN)) }
                }
                tbody { @for (index, (name, record)) in records.iter().enumerate() {
                    (overview_row(index, name, record))
                } }
            }
        }
    }
}

fn overview_row(index: usize, name: &str, record: &RunRecord) -> Markup {
    let RunRecord { scenario, measured, .. } = record;
    let (valid, bad) = match record.is_valid() {
        Some(true) => ("✓ valid", !measured.is_well()),
        Some(false) => ("✗ INVALID", true),
        None => ("? no gates", !measured.is_well()),
    };
    let times = |timing: Timing| {
        let missing = timing.missing(measured);
        cell::row(&format!("measured.{}", timing.key()), timing.of(measured), missing, &OF_A_RUN)
    };
    html! {
        tr data-run=(index) {
            th scope="row" { a href=(format!("#run-{index}")) { (name) } }
            td.text.short { (markdown::load(&scenario.load)) }
            td.text.short.bad[bad] { (valid) }
            td { (offered(record)) }
            td { (cell::count("measured.throughput_messages_per_s", measured.throughput_messages_per_s)) }
            (times(Timing::ResponseTime))
            (times(Timing::ServiceTime))
            td { (cell::number("measured.messages_lost", measured.messages_lost)) }
            td { (cell::number("measured.messages_wrong", measured.messages_wrong)) }
        }
    }
}

fn offered(record: &RunRecord) -> Markup {
    match record.scenario.load {
        Load::OpenLoop { rate_messages_per_s, .. } => {
            cell::count("scenario.load.rate_messages_per_s", rate_messages_per_s.0)
        }
        Load::ClosedLoop { .. } => html! { (DASH) },
    }
}

/// Several runs of one load model on common axes.
fn side_by_side(records: &[(String, RunRecord)]) -> Markup {
    let several = loads(records).into_iter().filter(|(_, runs)| runs.len() > 1);
    html! { @for (model, runs) in several { (compared(model, &runs)) } }
}

fn compared(model: LoadModel, runs: &[(String, &RunRecord)]) -> Markup {
    let curves = runs.iter().filter_map(|(name, run)| {
        let timing = Timing::headline(&run.measured);
        let (hdr, missing) = (timing.of(&run.measured)?, timing.missing(&run.measured));
        Some(Curve { name: name.clone(), hdr, missing })
    });
    let curves: Vec<_> = curves.collect();
    html! {
        section.all {
            h2 { "Side by side, " (model.name()) }
            figure {
                (spectrum(&curves, WIDTH * 1.5, HEIGHT * 1.3).image("Percentile spectrum of all runs"))
                figcaption { "Percentile spectrum. Dashed: fewer than 10 values of that run lie beyond." }
            }
            figure {
                (throughput(runs, WIDTH * 1.5, HEIGHT).image("Messages per second over time, all runs"))
                figcaption { "Echoes that arrived in each second. Dashed: the offered load." }
            }
        }
    }
}

/// Latency against offered load.
fn against_load(curve: &LoadCurve<'_>) -> Markup {
    html! {
        section.all {
            h2 { "Response time against offered load" }
            p.soft { "Runs that differ in their rate alone. The knee by power is the run of the greatest "
                "throughput by mean response time (Kleinrock 1979), if a higher rate shows that it is one. Hollow: "
                "less than 99.9 % of the offered load was served, messages were lost, or the run is not valid." }
            div.pair {
                figure { (load_curve(curve, WIDTH, HEIGHT).image("Response time against offered load")) }
                div.scroll tabindex="0" role="region" aria-label="Runs by offered load" {
                    table {
                        thead { tr {
                            th scope="col" { "run" } th scope="col" { "offered/s" }
                            th scope="col" { "echoed/s" } (run::heads(&OF_A_RUN)) th scope="col" { "" }
                        } }
                        tbody { @for point in &curve.runs { (load_row(curve, point)) } }
                    }
                }
            }
        }
    }
}

fn load_row(curve: &LoadCurve<'_>, point: &LoadPoint<'_>) -> Markup {
    let LoadPoint { index, name, run } = *point;
    let measured = &run.measured;
    let is_knee = curve.knee_by_power().is_some_and(|knee| std::ptr::eq(knee, run));
    let (served, rate) = (is_served(run), measured.throughput_messages_per_s);
    let (key, missing) = ("measured.response_time", Timing::ResponseTime.missing(measured));
    html! {
        tr data-run=(index) class=[(!served).then_some("bad")] {
            th scope="row" { (name) }
            td { (offered(run)) }
            td { (cell::count("measured.throughput_messages_per_s", rate)) }
            (cell::row(key, measured.response_time.as_ref(), missing, &OF_A_RUN))
            td.text.short { @if is_knee { "knee by power" } @else if !served { "not served" } }
        }
    }
}

/// What the letters mean.
fn words() -> Markup {
    html! {
        section.all {
            h2 { "Words" }
            p { b { "Response time R" } " = received - intended: what a user waits, from the moment at which the "
                "message was planned to leave. " b { "Send lag L" } " = queued - intended: the generator's own "
                "fault. " b { "Flow wait W" } " = pulled - queued: in-flight room and flow control. "
                b { "Service time S" } " = received - pulled. R = L + W + S for each message, not for "
                "percentiles. A closed loop has W and S. Times are nanoseconds of one monotonic clock, kept to "
                "three digits; percentiles with fewer than 10 values beyond are dashes." }
        }
    }
}

#[cfg(test)]
mod tests;
