//! Records for the tests of reports: made up, the same at every call, and as a run would leave them.

use std::collections::BTreeMap;

use crate::record::{
    Build, Gate, GateName, Hdr, Host, Measured, Origin, Provenance, RunRecord, SCHEMA_VERSION,
    Second, Server, Usage, Verdict, Warning, WarningKind, WrittenHdr, Wrong,
};
use crate::scenario::{Arrivals, Blocked, ClientName, ContractName, Load, Scenario};
use crate::units::{MessagesPerSecond, Nanos};

const SECONDS: u64 = 5;

/// Service times that grow with `factor`, a few of them much longer.
fn times(count: u64, factor: u64) -> Hdr {
    let mut hdr = Hdr::default();
    for index in 0..count {
        let tail = if index % 500 == 0 { 20 } else { 1 };
        hdr.record(Nanos((80_000 + index % 1_000 * 97) * factor * tail));
    }
    hdr
}

/// An open loop at this rate, with times that grow with `factor`.
pub(crate) fn open_loop(rate: f64, factor: u64) -> RunRecord {
    let load = Load::OpenLoop {
        rate_messages_per_s: MessagesPerSecond(rate),
        arrivals: Arrivals::Uniform,
        in_flight_max: None,
        blocked: Blocked::Queue,
        backlog_max: 1_000,
    };
    let mut record = of(load, factor);
    let measured = &mut record.measured;
    measured.seconds.iter_mut().for_each(|second| second.messages_due = second.messages_received);
    measured.throughput_messages_per_s = rate;
    measured.throughput_payload_bytes_per_s = 8.0 * rate;
    measured.messages_per_server_cpu_s = Some(rate * SECONDS as f64 / 0.02);
    measured.response_time = Some(times(measured.messages_received, 2 * factor));
    measured.send_lag = Some(times(measured.messages_received, 1));
    measured.flow_wait = Some(times(measured.messages_received, 1));
    record
}

/// A closed loop.
pub(crate) fn closed_loop() -> RunRecord {
    of(Load::ClosedLoop { in_flight_max: 1 }, 1)
}

fn of(load: Load, factor: u64) -> RunRecord {
    let per_second = 4_000;
    let second = |second| Second {
        second,
        messages_due: 0,
        messages_shed: 0,
        messages_received: per_second,
        latency: WrittenHdr::from(&times(per_second, factor + second)),
    };
    let received = per_second * SECONDS;
    RunRecord {
        schema_version: SCHEMA_VERSION,
        scenario: Scenario {
            contract: ContractName::Echo,
            client: ClientName::Inline,
            streams: 4,
            connections: 1,
            idle_streams: 0,
            idle_connections: 0,
            watch_give_back_ns: Nanos(0),
            shards: 1,
            cpus: Vec::new(),
            awake_cpus: Vec::new(),
            load,
            payload_bytes: 8,
            warmup_ns: Nanos::SECOND,
            duration_ns: Some(Nanos(SECONDS * Nanos::SECOND.0)),
            messages_max: None,
            drain_limit_ns: Nanos::SECOND,
            seed: 7,
            headers: BTreeMap::from([("x-run".to_owned(), "<script>alert(1)</script>".to_owned())]),
            null_throughput_messages_per_s: None,
            probe_rate_messages_per_s: None,
        },
        provenance: Provenance {
            started_at: "2026-11-27T20:16:17Z".to_owned(),
            window_began_at: Some("2026-11-27T20:16:18.250Z".to_owned()),
            loadgen: Build {
                version: "0.1.0".to_owned(),
                revision: "0123456789ab".to_owned(),
                profile: Some("release".to_owned()),
                opt_level: "3".to_owned(),
                debug_assertions: false,
                rustc: "rustc 1.95.0".to_owned(),
            },
            server: Server {
                origin: Origin::Target,
                target: "127.0.0.1:9090".to_owned(),
                product: Some("bidi-echo/0.1.0".to_owned()),
                transport: Some("inline".to_owned()),
                placement: Some("inline".to_owned()),
            },
            host: Host {
                cpu_model: "a CPU".to_owned(),
                cores: 2,
                kernel: "Linux 6".to_owned(),
                tcp_congestion_control: Some("cubic".to_owned()),
            },
        },
        measured: measured(received, factor, (0..SECONDS).map(second).collect()),
        gates: vec![
            gate(GateName::ShardCpu, Verdict::Passed, Some(0.5), "share"),
            gate(GateName::Steal, Verdict::Unknown, None, "share"),
        ],
        warnings: vec![Warning {
            kind: WarningKind::LoadgenBusy,
            message: "loadgen kept its shard busy".to_owned(),
        }],
    }
}

/// A gate that stands so.
pub(crate) fn gate(name: GateName, verdict: Verdict, figure: Option<f64>, unit: &str) -> Gate {
    let message = format!("{name:?}: {figure:?}");
    Gate { name, verdict, figure, threshold: 0.95, unit: unit.to_owned(), message }
}

fn measured(received: u64, factor: u64, seconds: Vec<Second>) -> Measured {
    let used = Usage {
        cpu_user_ns: Nanos(18_000_000),
        cpu_system_ns: Nanos(2_000_000),
        rss_bytes_max: 1 << 20,
    };
    Measured {
        window_ns: Nanos(SECONDS * Nanos::SECOND.0),
        stopped_early: false,
        unstable: None,
        first_failure: Some("stream 3 ended with UNAVAILABLE: gone".to_owned()),
        messages_due: received,
        messages_sent: received,
        messages_sent_in_window: None,
        messages_received: received,
        messages_lost: 0,
        messages_shed: 0,
        messages_wrong: 1,
        wrong: Wrong { corrupt: 1, ..Wrong::default() },
        payload_bytes_sent: 8 * received,
        payload_bytes_received: 8 * received,
        throughput_messages_per_s: received as f64 / SECONDS as f64,
        throughput_payload_bytes_per_s: 8.0 * received as f64 / SECONDS as f64,
        statuses: BTreeMap::from([("OK".to_owned(), 3), ("UNAVAILABLE".to_owned(), 1)]),
        streams_unfinished: 0,
        response_time: None,
        send_lag: None,
        flow_wait: None,
        service_time: times(received, factor),
        gap_error: None,
        probe: None,
        in_flight_mean_ns: None,
        connect: times(1, 1),
        response_headers: times(4, 1),
        first_message: times(4, 1),
        half_close: times(4, 1),
        seconds,
        echoes_per_stream: vec![4_000, 5_000, 5_500, 5_500],
        server: Some(used),
        server_cpu_share: None,
        loadgen: Some(used),
        shard_threads: Vec::new(),
        disturbance: None,
        bystanders: Vec::new(),
        server_resident: None,
        messages_per_server_cpu_s: Some(1e6),
    }
}
