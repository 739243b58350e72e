//! One run's section of the page: its charts, each with its figures beside it, and all that it came from.

use maud::{Markup, html};
use serde_json::Value;

use super::cell::{self, DASH, figure, leaves};
use super::{HEIGHT, WIDTH};
use crate::record::{Damaged, Gate, Measured, RunRecord, Timing, Unstable, Usage, Verdict};
use crate::report::chart::{
    Curve, Fairness, Heat, backlog, fairness, heat, percentiles, spectrum, throughput,
};
use crate::report::table::HEADROOM_NOT_MEASURED;
use crate::report::{markdown, spread};
use crate::units::Count;

/// Everything of a run. Err: a second's histogram cannot be read.
pub(super) fn section(index: usize, name: &str, record: &RunRecord) -> Result<Markup, Damaged> {
    let RunRecord { scenario, measured, gates, warnings, .. } = record;
    let heat_map = Heat::of(measured)?;
    Ok(html! {
        section.run id=(format!("run-{index}")) data-run=(index) {
            h2 { (name) }
            p.soft {
                (spread(scenario)) ", " (markdown::load(&scenario.load)) ", payload "
                (scenario.payload_bytes) " bytes, measured for "
                (cell::time("measured.window_ns", measured.window_ns))
                @if measured.stopped_early { ", stopped early" }
            }
            (validity(record))
            @if !ills(measured).is_empty() {
                div.notice.bad { strong { "Not well: " (ills(measured)) } }
            }
            @if !warnings.is_empty() {
                div.notice { ul { @for warning in warnings { li { (warning.message) } } } }
            }
            h3 { "Percentile spectrum" }
            (spectrum_and_table(measured))
            h3 { "Over time" }
            (over_time(name, record, &heat_map))
            h3 { "Fairness over streams" }
            (fairness_and_table(&measured.echoes_per_stream))
            h3 { "Messages, streams, errors" }
            div.pair { div.wide { (messages(measured)) } div.wide { (streams(measured)) } }
            h3 { "Connections, streams, probe" }
            (lifecycle(measured))
            @if !gates.is_empty() { h3 { "Gates" } (gates_table(gates)) }
            @if record.lacks_headroom() { p.soft { "Headroom: " (HEADROOM_NOT_MEASURED) } }
            h3 { "CPU time and memory" }
            div.wide { (usages(measured)) }
            h3 { "Manifest" }
            div.pair {
                div.wide {
                    (manifest("Scenario: every input, defaults resolved", "scenario", scenario))
                }
                div.wide {
                    (manifest("Provenance: builds and machine", "provenance", &record.provenance))
                }
            }
        }
    })
}

/// Whether the figures are the server's, said before any of them.
fn validity(record: &RunRecord) -> Markup {
    html! {
        @match record.is_valid() {
            Some(false) => {
                div.notice.bad {
                    strong { "INVALID: the figures may be loadgen's or its machine's rather than the server's" }
                    ul { @for gate in record.failed_gates() { li { (gate.name) ": " (gate.message) } } }
                }
            }
            Some(true) => { div.notice.good { strong { "Valid: no gate failed" } } }
            None => {}
        }
    }
}

fn gates_table(gates: &[Gate]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Gates" {
            table {
                thead { tr {
                    th scope="col" { "gate" } th.text scope="col" { "verdict" }
                    th scope="col" { "figure" } th scope="col" { "at most" }
                    th.text scope="col" { "what it says" }
                } }
                tbody { @for (index, gate) in gates.iter().enumerate() { (gate_row(index, gate)) } }
            }
        }
    }
}

fn gate_row(index: usize, gate: &Gate) -> Markup {
    let key = |field: &str| format!("gates.{index}.{field}");
    let (verdict, mark) = match gate.verdict {
        Verdict::Passed => ("passed", "✓"),
        Verdict::Failed => ("failed", "✗"),
        Verdict::Unknown => ("unknown", "?"),
    };
    let bound = cell::in_unit(gate.threshold, &gate.unit);
    html! {
        tr class=[(gate.verdict == Verdict::Failed).then_some("bad")] {
            th scope="row" { (figure(&key("name"), gate.name, &gate.name.to_string())) }
            td.text.short { (mark) " " (figure(&key("verdict"), verdict, verdict)) }
            td { @match gate.figure {
                Some(value) => (figure(&key("figure"), value, &cell::in_unit(value, &gate.unit))),
                None => (DASH),
            } }
            td { (figure(&key("threshold"), gate.threshold, &bound)) }
            td.text.long { (gate.message) }
        }
    }
}

/// What did not go well, in words.
pub(super) fn ills(measured: &Measured) -> String {
    let mut ills = Vec::new();
    let mut tell = |count: u64, what: &str| {
        if count > 0 {
            ills.push(format!("{count} {what}"));
        }
    };
    tell(measured.messages_lost, "messages lost");
    tell(measured.messages_shed, "messages shed");
    tell(measured.messages_wrong, "echoes wrong");
    tell(measured.streams_unfinished, "streams not ended within the drain limit");
    for (status, count) in measured.statuses.iter().filter(|(status, _)| *status != "OK") {
        tell(*count, &format!("streams ended with {status}"));
    }
    if let Some(unstable) = measured.unstable {
        let Unstable { backlog, at_ns, .. } = unstable;
        ills.push(format!("unstable at this rate: {backlog} messages not echoed after {at_ns}"));
    }
    if measured.messages_due == 0 {
        ills.push("no message was due".to_owned());
    }
    ills.extend(measured.first_failure.iter().map(|failure| format!("first failure: {failure}")));
    ills.join(", ")
}

fn spectrum_and_table(measured: &Measured) -> Markup {
    let letters = ["response time R", "send lag L", "flow wait W", "service time S"];
    let timings = || Timing::OF_MESSAGES.into_iter().zip(letters);
    // R and S first, in the colours that stand out most.
    let order = [
        (Timing::ResponseTime, "response time R"),
        (Timing::ServiceTime, "service time S"),
        (Timing::SendLag, "send lag L"),
        (Timing::FlowWait, "flow wait W"),
        (Timing::ProbeResponseTime, "probe R"),
    ];
    let curves: Vec<_> = order
        .into_iter()
        .filter_map(|(timing, name)| {
            let (hdr, missing) = (timing.of(measured)?, timing.missing(measured));
            Some(Curve { name: name.to_owned(), hdr, missing })
        })
        .collect();
    html! {
        div.pair {
            figure {
                (spectrum(&curves, WIDTH, HEIGHT).image("Percentile spectrum: time by percentile"))
                figcaption { "The time that so many of the messages do not exceed. Dashed: fewer than 10 of that curve lie beyond." }
            }
            div.scroll tabindex="0" role="region" aria-label="Percentiles" {
                table {
                    thead { tr {
                        th scope="col" { "" }
                        @for (timing, letter) in timings() {
                            @if timing.of(measured).is_some() { th scope="col" { (letter) } }
                        }
                    } }
                    tbody { (rows_of_percentiles(measured)) }
                }
            }
        }
    }
}

/// Percentiles downwards, times across.
fn rows_of_percentiles(measured: &Measured) -> Markup {
    let columns: Vec<_> = Timing::OF_MESSAGES
        .into_iter()
        .filter_map(|timing| {
            Some((timing, format!("measured.{}", timing.key()), timing.of(measured)?))
        })
        .collect();
    html! {
        @for (name, field, percent) in cell::PERCENTILES {
            tr {
                th scope="row" { (name) }
                @for (timing, key, hdr) in &columns {
                    td { (cell::percentile(key, hdr, timing.missing(measured), field, percent)) }
                }
            }
        }
        tr { th scope="row" { "max" } @for (timing, key, hdr) in &columns {
            td { (cell::max(key, hdr, timing.missing(measured))) }
        } }
        tr { th scope="row" { "mean" } @for (_, key, hdr) in &columns {
            td { (figure(&format!("{key}.mean_ns"), hdr.mean_ns(), &cell::rounded(hdr.mean_ns()).to_string())) }
        } }
        tr { th scope="row" { "values" } @for (_, key, hdr) in &columns {
            td { (cell::number(&format!("{key}.count"), hdr.count())) }
        } }
    }
}

/// What happens once for a connection or a stream, and what the probe saw beside the load.
fn lifecycle(measured: &Measured) -> Markup {
    let rows = [
        ("connect", Timing::Connect),
        ("headers", Timing::ResponseHeaders),
        ("first echo", Timing::FirstMessage),
        ("half-close", Timing::HalfClose),
        ("probe R", Timing::ProbeResponseTime),
        ("probe S", Timing::ProbeServiceTime),
    ];
    let rows = rows.into_iter().filter(|(_, timing)| timing.of(measured).is_some());
    let fields = cell::PERCENTILES.map(|(_, field, _)| field);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Connections and streams" {
            table {
                thead { tr {
                    th scope="col" { "" } th scope="col" { "count" } (heads(&fields))
                } }
                tbody { @for (name, timing) in rows {
                    @let key = format!("measured.{}", timing.path());
                    tr {
                        th scope="row" { (name) }
                        td { @if let Some(hdr) = timing.of(measured) {
                            (cell::number(&format!("{key}.count"), hdr.count()))
                        } }
                        (cell::row(&key, timing.of(measured), timing.missing(measured), &fields))
                    }
                } }
            }
        }
    }
}

/// The heads of the cells that [`cell::row`] makes.
pub(super) fn heads(fields: &[&str]) -> Markup {
    html! {
        @for (name, _, _) in cell::chosen(fields) { th scope="col" { (name) } }
        th scope="col" { "max" }
    }
}

fn over_time(name: &str, record: &RunRecord, heat_map: &Heat) -> Markup {
    let measured = &record.measured;
    let alone = [(name.to_owned(), record)];
    let what = if measured.response_time.is_some() { "response time R" } else { "service time S" };
    html! {
        div.pair {
            div {
                figure {
                    (throughput(&alone, WIDTH, HEIGHT * 0.8).image("Messages per second over time"))
                    figcaption { "Echoes that arrived in each second. Dashed: the offered load." }
                }
                @if measured.response_time.is_some() {
                    figure {
                        (backlog(measured, WIDTH, HEIGHT * 0.8).image("Messages due and not echoed over time"))
                        figcaption { "How far the echoes had fallen behind what was due since the measurement began." }
                    }
                }
                figure {
                    (percentiles(measured, WIDTH, HEIGHT).image("Percentiles over time"))
                    figcaption { "The " (what) " of each second's messages." }
                }
                figure {
                    (heat(heat_map, measured, WIDTH, HEIGHT * 1.2).image("Heat map of times over time"))
                    figcaption { "How many of a second's messages took how long: " (what) "." }
                }
            }
            (seconds(measured, what))
        }
    }
}

/// The percentiles that a second has room for.
const OF_A_SECOND: [&str; 3] = ["p50_ns", "p99_ns", "p99_9_ns"];

/// Every second's figures.
fn seconds(measured: &Measured, what: &str) -> Markup {
    let is_open = measured.response_time.is_some();
    let sheds = measured.messages_shed > 0;
    html! {
        div.scroll.tall tabindex="0" role="region" aria-label="Every second" {
            table {
                caption { "Every second: messages, and " (what) }
                thead { tr {
                    th scope="col" { "second" }
                    @if is_open { th scope="col" { "due" } }
                    @if sheds { th scope="col" { "shed" } }
                    th scope="col" { "echoed" } (heads(&OF_A_SECOND))
                } }
                tbody { @for (index, second) in measured.seconds.iter().enumerate() {
                    @let key = format!("measured.seconds.{index}");
                    tr {
                        th scope="row" { (second.second) }
                        @if is_open {
                            td { (cell::number(&format!("{key}.messages_due"), second.messages_due)) }
                        }
                        @if sheds {
                            td { (cell::number(&format!("{key}.messages_shed"), second.messages_shed)) }
                        }
                        td { (cell::number(&format!("{key}.messages_received"), second.messages_received)) }
                        (cell::second(&format!("{key}.latency"), second, &OF_A_SECOND))
                    }
                } }
            }
        }
    }
}

fn fairness_and_table(echoes: &[u64]) -> Markup {
    let Some(fair) = Fairness::of(echoes) else {
        return html! { p { "No echo arrived on any stream." } };
    };
    let none = echoes.iter().filter(|echoes| **echoes == 0).count();
    let jain = figure("derived.jain_index", fair.jain, &format!("{:.4}", fair.jain));
    let mean = figure("derived.echoes_per_stream_mean", fair.mean, &Count(fair.mean).to_string());
    let rows = [
        ("streams", cell::number("scenario.streams", fair.streams as u64)),
        ("fewest echoes", cell::number("derived.echoes_per_stream_min", fair.min)),
        ("median", cell::number("derived.echoes_per_stream_median", fair.median)),
        ("most echoes", cell::number("derived.echoes_per_stream_max", fair.max)),
        ("equal share", mean),
        ("streams without an echo", cell::number("derived.streams_without_echo", none as u64)),
        ("Jain's index", jain),
    ];
    html! {
        div.pair {
            figure {
                (fairness(echoes, WIDTH, HEIGHT * 0.8).image("Echoes on each stream, ascending"))
                figcaption { "Echoes of the measurement on each stream. Dashed: the equal share. Jain's index is 1 if all are equal." }
            }
            table { tbody { @for (name, value) in rows {
                tr { th.text scope="row" { (name) } td { (value) } }
            } } }
        }
    }
}

fn messages(measured: &Measured) -> Markup {
    let wrong = measured.wrong;
    let rows = [
        ("due", "messages_due", measured.messages_due),
        ("sent", "messages_sent", measured.messages_sent),
        ("received", "messages_received", measured.messages_received),
        ("lost", "messages_lost", measured.messages_lost),
        ("shed", "messages_shed", measured.messages_shed),
        ("wrong", "messages_wrong", measured.messages_wrong),
        ("wrong: corrupt", "wrong.corrupt", wrong.corrupt),
        ("wrong: duplicated", "wrong.duplicated", wrong.duplicated),
        ("wrong: early", "wrong.early", wrong.early),
        ("wrong: unasked", "wrong.unasked", wrong.unasked),
    ];
    html! {
        table {
            caption { "Messages" }
            tbody {
                @for (name, field, value) in rows {
                    @let bad = value > 0 && !["due", "sent", "received"].contains(&name);
                    tr class=[bad.then_some("bad")] {
                        th.text scope="row" { (name) }
                        td { (cell::number(&format!("measured.{field}"), value)) }
                    }
                }
                tr {
                    th.text scope="row" { "messages/s" }
                    td { (cell::count("measured.throughput_messages_per_s", measured.throughput_messages_per_s)) }
                }
            }
        }
    }
}

fn streams(measured: &Measured) -> Markup {
    html! {
        table {
            caption { "Streams by the gRPC status that they ended with" }
            tbody {
                @for (status, count) in &measured.statuses {
                    tr class=[(status != "OK").then_some("bad")] {
                        th.text scope="row" { (status) }
                        td { (cell::number(&format!("measured.statuses.{status}"), *count)) }
                    }
                }
                tr class=[(measured.streams_unfinished > 0).then_some("bad")] {
                    th.text scope="row" { "not ended" }
                    td { (cell::number("measured.streams_unfinished", measured.streams_unfinished)) }
                }
                @if let Some(failure) = &measured.first_failure {
                    tr.bad { th.text scope="row" { "first failure" } td.text { (failure) } }
                }
            }
        }
    }
}

fn usages(measured: &Measured) -> Markup {
    let rows = [("server", measured.server), ("loadgen", measured.loadgen)];
    html! {
        table {
            thead { tr {
                @for name in ["", "CPU in user mode", "CPU in the kernel", "CPU a message", "peak memory (MiB)"] {
                    th scope="col" { (name) }
                }
            } }
            tbody { @for (name, usage) in rows { (usage_row(name, usage, measured)) } }
        }
        @if let Some(rate) = measured.messages_per_server_cpu_s {
            p { (cell::count("measured.messages_per_server_cpu_s", rate)) " messages per server CPU-second" }
        }
    }
}

fn usage_row(name: &str, usage: Option<Usage>, measured: &Measured) -> Markup {
    let Some(used) = usage else {
        return html! { tr { th.text scope="row" { (name) } td colspan="4" { "not known" } } };
    };
    let key = |field: &str| format!("measured.{name}.{field}");
    let mebibytes = format!("{:.1}", used.rss_bytes_max as f64 / f64::from(1 << 20));
    html! {
        tr {
            th.text scope="row" { (name) }
            td { (cell::time(&key("cpu_user_ns"), used.cpu_user_ns)) }
            td { (cell::time(&key("cpu_system_ns"), used.cpu_system_ns)) }
            td { @match measured.cpu_per_message(usage) { Some(time) => (time), None => (DASH) } }
            td { (figure(&key("rss_bytes_max"), used.rss_bytes_max, &mebibytes)) }
        }
    }
}

/// All fields of a part of the record, so that none is forgotten.
fn manifest(caption: &str, key: &str, part: &impl serde::Serialize) -> Markup {
    let value = serde_json::to_value(part).unwrap_or(Value::Null);
    html! {
        table {
            caption { (caption) }
            tbody { @for (path, text) in leaves(key, &value) {
                tr {
                    th.text scope="row" { (path.trim_start_matches(key).trim_start_matches('.')) }
                    td.value { data value=(text) data-key=(path) { (text) } }
                }
            } }
        }
    }
}
