//! Records as a Markdown table: what `results/` shows.

use std::fmt::Write;

use super::table::{HEADROOM_NOT_MEASURED, percentile};
use crate::record::{RunRecord, Timing};
use crate::scenario::{Arrivals, Load};
use crate::units::Count;

/// One row per record, in the order given, and the builds and machines they come from.
pub fn markdown(records: &[(String, RunRecord)]) -> String {
    let mut out = String::new();
    write_table(&mut out, records).expect("a String takes whatever is written");
    out
}

/// What comes from a file, a flag or a server, as it stands in a cell or a line of Markdown: it neither ends that, nor
/// becomes markup of any kind.
pub fn in_a_cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '|' | '\\' | '`' | '*' | '[' => escaped.extend(['\\', letter]),
            letter if letter.is_control() => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn write_table(out: &mut String, records: &[(String, RunRecord)]) -> std::fmt::Result {
    writeln!(
        out,
        "| run | streams on connections | load | payload | messages/s | per server CPU-s | \
         S p50 | S p99 | S p99.9 | R p50 | R p99 | R p99.9 | CPU a message, server / loadgen | lost, wrong |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for (name, record) in records {
        let RunRecord { scenario, measured, warnings, .. } = record;
        let name = in_a_cell(name);
        let is_suspect = !warnings.is_empty() || record.is_valid() == Some(false);
        let mark = if is_suspect { " [!]" } else { "" };
        let cell = |timing: Timing, percent| {
            let missing = timing.missing(measured);
            timing.of(measured).map_or(DASH.to_owned(), |hdr| percentile(hdr, percent, missing))
        };
        let response = |percent| cell(Timing::ResponseTime, percent);
        let service = |percent| cell(Timing::ServiceTime, percent);
        writeln!(
            out,
            "| {name}{mark} | {} on {} | {} | {} B | {} | {} | {} | {} | {} | {} | {} | {} | {} / {} | {}, {} |",
            scenario.streams,
            scenario.connections,
            load(&scenario.load),
            scenario.payload_bytes,
            Count(measured.throughput_messages_per_s),
            measured
                .messages_per_server_cpu_s
                .map_or(DASH.to_owned(), |rate| Count(rate).to_string()),
            service(50.0),
            service(99.0),
            service(99.9),
            response(50.0),
            response(99.0),
            response(99.9),
            measured
                .cpu_per_message(measured.server)
                .map_or(DASH.to_owned(), |cpu| cpu.to_string()),
            measured
                .cpu_per_message(measured.loadgen)
                .map_or(DASH.to_owned(), |cpu| cpu.to_string()),
            measured.messages_lost,
            measured.messages_wrong,
        )?;
    }
    writeln!(out)?;
    for (name, record) in records {
        let name = in_a_cell(name);
        for gate in record.failed_gates() {
            writeln!(out, "[!] {name}: INVALID: {}", in_a_cell(&gate.message))?;
        }
        for warning in &record.warnings {
            writeln!(out, "[!] {name}: {}", in_a_cell(&warning.message))?;
        }
    }
    let lacking = records.iter().filter(|(_, record)| record.lacks_headroom());
    let lacking: Vec<_> = lacking.map(|(name, _)| in_a_cell(name)).collect();
    if !lacking.is_empty() {
        writeln!(out, "\nHeadroom {HEADROOM_NOT_MEASURED}: {}.", lacking.join(", "))?;
    }
    let mut origins: Vec<_> = records.iter().map(|(_, record)| origin(record)).collect();
    origins.dedup();
    origins.into_iter().try_for_each(|origin| writeln!(out, "\n{}", in_a_cell(&origin)))
}

const DASH: &str = "-";

pub(super) fn load(load: &Load) -> String {
    match load {
        Load::ClosedLoop { in_flight_max } => format!("closed, {in_flight_max} in flight"),
        Load::OpenLoop { rate_messages_per_s, arrivals, in_flight_max, .. } => {
            let arrivals = match arrivals {
                Arrivals::Uniform => "uniform",
                Arrivals::Poisson => "Poisson",
            };
            let bound = in_flight_max.map_or(String::new(), |max| format!(", {max} in flight"));
            format!("open, {} /s {arrivals}{bound}", Count(rate_messages_per_s.0))
        }
    }
}

fn origin(record: &RunRecord) -> String {
    let provenance = &record.provenance;
    let host = &provenance.host;
    let tcp = host.tcp_congestion_control.as_ref();
    let tcp = tcp.map_or(String::new(), |name| format!(", TCP's congestion control {name}"));
    format!(
        "Host: {}, {} cores, {}{tcp}. loadgen {}, {}. Server: {}.",
        host.cpu_model,
        host.cores,
        host.kernel,
        provenance.loadgen,
        provenance.loadgen.rustc,
        provenance.server.product.as_deref().unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;

    #[test]
    fn what_was_shed_is_later_than_what_came() {
        let mut record = example::open_loop(1_000.0, 1);
        let longest = record.measured.response_time.as_ref().unwrap().max();
        let text = |record: &RunRecord| markdown(&[("run".to_owned(), record.clone())]);
        assert!(!text(&record).contains(&format!("| >{longest} |")));
        record.measured.messages_shed = record.measured.messages_received / 2;
        assert!(text(&record).contains(&format!("| >{longest} | >{longest} | ")));
    }

    #[test]
    fn runs_whose_headroom_was_not_measured_are_named_together() {
        let record = example::closed_loop();
        let mut measured = record.clone();
        measured.gates.push(example::gate(GateName::Headroom, Verdict::Passed, Some(0.2), "share"));
        let names = ["a", "b", "c"].map(str::to_owned);
        let text = |runs: [&RunRecord; 3]| {
            let runs = names.iter().cloned().zip(runs.into_iter().cloned());
            markdown(&runs.collect::<Vec<_>>())
        };
        let said = text([&record, &measured, &record]);
        let line = said.lines().find(|line| line.starts_with("Headroom ")).unwrap();
        assert!(line.starts_with("Headroom not measured (--require-valid "), "{line}");
        assert!(line.ends_with(": a, c."), "{line}");
        assert!(!text([&measured, &measured, &measured]).contains("not measured"));
    }

    #[test]
    fn a_failed_gate_marks_its_row_and_is_told_below() {
        let mut record = example::closed_loop();
        record.warnings.clear();
        let text = |record: &RunRecord| markdown(&[("run".to_owned(), record.clone())]);
        assert!(!text(&record).contains("[!]"));
        record.gates.push(example::gate(GateName::Steal, Verdict::Failed, Some(1.0), "share"));
        assert!(text(&record).contains("| run [!] |"));
        assert!(text(&record).contains("[!] run: INVALID: Steal: Some(1.0)"));
    }

    #[test]
    fn whatever_a_run_says_stays_in_its_cell() {
        let mut record = example::closed_loop();
        record.provenance.server.product = Some("<b>|".to_owned());
        record.warnings[0].message = "stream 3: <img src=x>".to_owned();
        record.gates.push(example::gate(GateName::Steal, Verdict::Failed, Some(1.0), "a|b"));
        let text = markdown(&[("a|b <img>\n".to_owned(), record)]);
        assert!(text.contains("\n| a\\|b &lt;img>  [!] | 4 on 1 |"), "{text}");
        assert!(!text.contains("<img") && !text.contains("<b>"), "{text}");
    }
}
