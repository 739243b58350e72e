//! The summary of one run for a terminal.

use std::fmt::{Display, Write};

use bytesize::ByteSize;

use crate::record::{Hdr, Measured, Origin, Resident, RunRecord, Usage, Verdict};
use crate::scenario::{Arrivals, Blocked, ContractName, Load, Scenario};
use crate::units::Count;

const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// What is said of a run whose headroom is not known, in every kind of report.
pub(super) const HEADROOM_NOT_MEASURED: &str =
    "not measured (--require-valid asks for it, once all else is well)";

/// The whole summary, with a line break at its end.
pub fn table(record: &RunRecord) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: &dyn Display| {
        writeln!(out, "{name:<12} {text}").expect("a String takes whatever is written");
    };
    let RunRecord { scenario, provenance, measured, gates, warnings, .. } = record;
    line("loadgen", &provenance.loadgen);
    line("server", &server(record));
    line("scenario", &what(scenario));
    line("load", &load(scenario));
    line("phases", &phases(scenario, measured));
    line("", &"");
    for row in latencies(measured) {
        line(row.0, &row.1);
    }
    line("", &"");
    line(
        "messages",
        &format_args!(
            "{} sent, {} received, {} lost, {} wrong{}",
            measured.messages_sent,
            measured.messages_received,
            measured.messages_lost,
            measured.messages_wrong,
            match measured.messages_shed {
                0 => String::new(),
                shed => format!(", {shed} shed"),
            },
        ),
    );
    line(
        "throughput",
        &format_args!(
            "{} messages/s, {}/s of payload each way",
            Count(measured.throughput_messages_per_s),
            bytes(measured.throughput_payload_bytes_per_s),
        ),
    );
    line("streams", &statuses(measured));
    line("server used", &usage(measured.server, measured));
    line("loadgen used", &usage(measured.loadgen, measured));
    if let Some(text) = measured.server_resident.as_ref().and_then(|it| resident(it, scenario)) {
        line("server held", &text);
    }
    if let Some(per_cpu_s) = measured.messages_per_server_cpu_s {
        line("efficiency", &format_args!("{} messages per server CPU-second", Count(per_cpu_s)));
    }
    if let Some(failure) = &measured.first_failure {
        line("failed", failure);
    }
    match record.is_valid() {
        Some(true) => {
            let kept = gates.iter().filter(|gate| gate.verdict == Verdict::Passed).count();
            let unknown = gates.len() - kept;
            let rest =
                if unknown > 0 { format!(", {unknown} not to be told") } else { String::new() };
            line("valid", &format_args!("{kept} of {} gates passed{rest}", gates.len()));
        }
        Some(false) => {
            line("INVALID", &"what was measured may be loadgen or its machine, not the server");
            for gate in record.failed_gates() {
                line("gate", &gate.message);
            }
        }
        None => {}
    }
    if let Some(used) = measured.bystanders_used() {
        line("bystanders", &used);
    }
    if record.lacks_headroom() {
        line("headroom", &HEADROOM_NOT_MEASURED);
    }
    for warning in warnings {
        line("warning", &warning.message);
    }
    out
}

fn server(record: &RunRecord) -> String {
    let server = &record.provenance.server;
    let origin = match server.origin {
        Origin::Embedded => "embedded, ",
        Origin::Found => "found, ",
        Origin::Target => "",
    };
    let product = server.product.as_deref().unwrap_or("says nothing of itself");
    format!("{origin}{}, {product}", server.target)
}

fn what(scenario: &Scenario) -> String {
    let contract = match scenario.contract {
        ContractName::Echo => "echo.v1.Echo/Bidi",
        ContractName::Chat => "Chat/chat",
    };
    let Scenario { payload_bytes, seed, .. } = scenario;
    let idle = match (scenario.idle_streams, scenario.idle_connections) {
        (0, 0) => String::new(),
        (streams, connections) => format!(
            ", besides {} and {}",
            plural(streams, "idle stream"),
            plural(connections, "idle connection")
        ),
    };
    let awake = match &scenario.awake_cpus[..] {
        [] => String::new(),
        cpus => format!(", cores {cpus:?} kept awake"),
    };
    format!(
        "{contract}, {}{idle}, payload {payload_bytes} bytes, seed {seed}{awake}",
        spread(scenario)
    )
}

/// How the streams are spread: `1000 streams on 10 connections, 1 shard`.
pub fn spread(scenario: &Scenario) -> String {
    format!(
        "{} on {}, {}",
        plural(scenario.streams, "stream"),
        plural(scenario.connections, "connection"),
        plural(scenario.shards, "shard"),
    )
}

fn load(scenario: &Scenario) -> String {
    match scenario.load {
        Load::ClosedLoop { in_flight_max } => {
            format!("closed loop, {in_flight_max} in flight on each stream")
        }
        Load::OpenLoop { rate_messages_per_s, arrivals, in_flight_max, blocked, .. } => {
            let arrivals = match arrivals {
                Arrivals::Uniform => "uniform",
                Arrivals::Poisson => "Poisson",
            };
            let in_flight = in_flight_max.map_or("unbounded in flight".to_owned(), |max| {
                format!("at most {max} in flight on each stream")
            });
            let blocked = match blocked {
                Blocked::Queue => "",
                Blocked::Shed => ", blocked streams shed",
            };
            format!(
                "open loop, {rate_messages_per_s} offered, {arrivals} arrivals, {in_flight}{blocked}"
            )
        }
    }
}

fn phases(scenario: &Scenario, measured: &Measured) -> String {
    let early = if measured.stopped_early { " (stopped early)" } else { "" };
    format!("warm-up {}, measurement {}{early}", scenario.warmup_ns, measured.window_ns)
}

fn latencies(measured: &Measured) -> Vec<(&'static str, String)> {
    let mut head = String::from("     count");
    for percent in PERCENTILES {
        head.push_str(&format!("  {:>8}", format!("p{percent}")));
    }
    head.push_str("       max");
    let mut rows = vec![("", head)];
    let mut row = |name, hdr: Option<&Hdr>, missing| {
        rows.extend(hdr.map(|hdr| (name, latency(hdr, missing))));
    };
    let missing = measured.missing();
    row("response R", measured.response_time.as_ref(), missing);
    row("send lag L", measured.send_lag.as_ref(), 0);
    row("flow wait W", measured.flow_wait.as_ref(), 0);
    row("service S", Some(&measured.service_time), missing);
    row("connect", Some(&measured.connect), 0);
    row("headers", Some(&measured.response_headers), 0);
    row("first echo", Some(&measured.first_message), 0);
    row("half-close", Some(&measured.half_close), 0);
    rows
}

fn latency(hdr: &Hdr, missing: u64) -> String {
    let mut text = format!("{:>10}", hdr.count());
    for percent in PERCENTILES {
        let cell = percentile(hdr, percent, missing);
        text.push_str(&format!("  {cell:>8}"));
    }
    let max = match (hdr.count(), missing) {
        (0, _) => "-".to_owned(),
        (_, 0) => hdr.max().to_string(),
        _ => format!(">{}", hdr.max()),
    };
    text + &format!("  {max:>8}")
}

/// A percentile for people, where `missing` messages were later than all that are here: `>x` if it falls among
/// them, `-` if too few values lie beyond it.
pub(super) fn percentile(hdr: &Hdr, percent: f64, missing: u64) -> String {
    match hdr.percentile_among(percent, missing) {
        (longest, true) => format!(">{longest}"),
        (value, false) => {
            hdr.percentile_if_supported(percent).map_or("-".to_owned(), |_| value.to_string())
        }
    }
}

fn statuses(measured: &Measured) -> String {
    let mut parts: Vec<_> =
        measured.statuses.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if measured.streams_unfinished > 0 {
        parts.push(format!("{} not ended within the drain limit", measured.streams_unfinished));
    }
    parts.join(", ")
}

fn usage(usage: Option<Usage>, measured: &Measured) -> String {
    let Some(used) = usage else {
        return "not known".to_owned();
    };
    let per_message =
        measured.cpu_per_message(usage).map_or(String::new(), |cpu| format!(", {cpu} a message"));
    format!(
        "CPU {:.2} s user + {:.2} s system{per_message}; peak memory {}",
        used.cpu_user_ns.as_secs_f64(),
        used.cpu_system_ns.as_secs_f64(),
        ByteSize(used.rss_bytes_max),
    )
}

/// What idle streams and connections cost the server, and what it gave back; `None` if nothing was idle
/// and nothing was watched.
fn resident(resident: &Resident, scenario: &Scenario) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(each) = resident.bytes_per_idle_stream(scenario) {
        parts.push(format!("{each:.0} bytes an idle stream"));
    }
    if let Some(each) = resident.bytes_per_idle_connection(scenario) {
        parts.push(format!("{each:.0} bytes an idle connection"));
    }
    if let Some(share) = resident.share_given_back() {
        parts.push(format!("gave {:.0} % back in {}", 100.0 * share, scenario.watch_give_back_ns));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and a cast of a float saturates"
)]
fn bytes(per_second: f64) -> ByteSize {
    ByteSize(per_second as u64)
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Bystander, GateName};
    use crate::report::example;

    /// What stands behind this name in a line of the table.
    fn said(record: &RunRecord, name: &str) -> Option<String> {
        let table = table(record);
        let mut lines = table.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim_start().to_owned()))
    }

    #[test]
    fn the_first_line_says_how_loadgen_was_built() {
        let mut record = example::closed_loop();
        record.provenance.loadgen.profile = Some("debug".to_owned());
        let build = said(&record, "loadgen ").unwrap();
        assert!(build.contains(", profile debug, opt-level 3, "), "{build}");
    }

    #[test]
    fn a_headroom_that_nobody_measured_is_told_where_the_gates_are() {
        let mut record = example::closed_loop();
        let text = said(&record, "headroom ").unwrap();
        assert!(text.starts_with("not measured (--require-valid asks for it"), "{text}");
        let gate = example::gate(GateName::Headroom, Verdict::Passed, Some(0.2), "share");
        record.gates.push(gate);
        assert_eq!(said(&record, "headroom "), None);
        record.gates.clear();
        assert_eq!(said(&record, "headroom "), None, "a record of before had no gates at all");
    }

    #[test]
    fn who_else_ran_has_a_line_whether_the_run_is_valid_or_not() {
        let mut record = example::closed_loop();
        assert_eq!(said(&record, "bystanders"), None);
        let bystander = |name: &str, core_share| Bystander { name: name.to_owned(), core_share };
        record.measured.bystanders = vec![bystander("kdamond.0", 0.0241), bystander("rustc", 0.01)];
        let text = said(&record, "bystanders").unwrap();
        assert_eq!(text, "kdamond.0 2.4 %, rustc 1.0 % of a core");
    }
}
