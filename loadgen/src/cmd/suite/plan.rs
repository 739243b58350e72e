//! What a suite file says: [`Plan`], checked, and the order of its runs. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bidi_echo::config::{Placement, Transport};
use bytesize::ByteSize;
use clap::ValueEnum;
use serde::Deserialize;

use super::vary::expanded;
use crate::cmd::trial::check_open_loop;
use crate::record::OPEN_LOOP_NS_MIN;
use crate::report::Figure;
use crate::scenario::{Arrivals, Blocked, ClientName, ContractName, Header, LoadArgs, UsageError};
use crate::slo::Slo;
use crate::units::{MessagesPerSecond, Nanos, NoRate};

/// A suite, checked; every time and number can be run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) repetitions: usize,
    pub(super) warmup: Nanos,
    pub(super) duration: Nanos,
    pub(super) server_cpus: Vec<usize>,
    pub(super) loadgen_cpus: Vec<usize>,
    /// How long runs wait in all for others to leave these cores.
    pub(super) calm_limit: Nanos,
    /// Server that the others are divided by.
    pub(super) baseline: String,
    /// Server that is divided by each of the others, if the file names one.
    pub(super) subject: Option<String>,
    /// `--client` of each run, if the file names one.
    pub(super) client: Option<ClientName>,
    /// What a knee keeps, if a scenario has a rate of one.
    pub(super) slo: Option<Slo>,
    /// peers.toml, if a server needs it.
    pub(super) peers: Option<PathBuf>,
    pub(super) scenarios: Vec<SuiteScenario>,
    pub(super) servers: Vec<SuiteServer>,
}

/// One load, as `run` takes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteScenario {
    pub(super) name: String,
    /// Which service is called.
    #[serde(default)]
    pub(super) contract: ContractName,
    /// Which client carries the streams; the suite's by default.
    pub(super) client: Option<ClientName>,
    pub(super) connections: usize,
    /// Over all connections.
    pub(super) streams: usize,
    /// Open besides, over all connections.
    #[serde(default)]
    pub(super) idle_streams: usize,
    /// Open besides, without a stream.
    #[serde(default)]
    pub(super) idle_connections: usize,
    /// Load before each of its runs; as the server or the suite has it by default.
    #[serde(default, deserialize_with = "parsed_if_any")]
    pub(super) warmup: Option<Nanos>,
    /// Whether the suite's cores are kept from idling during its runs.
    #[serde(default)]
    pub(super) keep_awake: bool,
    /// Seed of the first repetition's bytes and schedules, 1 by default; each has the next one.
    pub(super) seed: Option<u64>,
    /// How long its runs measure; as long as the suite's by default.
    #[serde(default, deserialize_with = "parsed_if_any")]
    pub(super) duration: Option<Nanos>,
    /// Measured messages over all streams that end a run before its time does.
    pub(super) messages: Option<NonZeroU64>,
    /// Time for the echoes that are still missing after a run; as long as `run` gives by default.
    #[serde(default, deserialize_with = "parsed_if_any")]
    pub(super) drain_limit: Option<Nanos>,
    /// How long the server's memory is watched after everything has closed; not at all by default.
    #[serde(default, deserialize_with = "parsed")]
    pub(super) watch_give_back: Nanos,
    /// On each stream; unbounded by default if there is a rate.
    pub(super) in_flight: Option<usize>,
    /// Offered load over all streams: an open loop.
    #[serde(default, deserialize_with = "parsed_if_any")]
    pub(super) rate: Option<Rate>,
    /// Gaps between a stream's messages, with a rate.
    pub(super) arrivals: Option<Arrivals>,
    /// What becomes of a message whose stream is blocked, with a rate.
    pub(super) blocked: Option<Blocked>,
    /// Messages due and not echoed that end a run, with a rate.
    pub(super) max_backlog: Option<NonZeroU64>,
    /// Metadata of each stream.
    #[serde(default, deserialize_with = "parsed_headers")]
    pub(super) headers: Vec<Header>,
    #[serde(deserialize_with = "parsed")]
    pub(super) payload: ByteSize,
    /// What is compared per server CPU-second.
    pub(super) figure: Figure,
}

/// An offered load as a suite has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rate {
    /// `50k`: the same for all.
    Fixed(MessagesPerSecond),
    /// `50 %` or `50 % of NAME`: of the highest load that keeps the suite's goals, each server's own or that
    /// of the server with this name.
    OfKnee { share: f64, of: Option<String> },
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((percent, rest)) = text.split_once('%') else {
            return text.parse().map(Rate::Fixed).map_err(|error: NoRate| error.to_string());
        };
        let cure = "need a rate such as 50k, or a share such as 50 % or 50 % of NAME";
        let percent: f64 = percent.trim().parse().map_err(|_| cure.to_owned())?;
        let of = match rest.trim() {
            "" => None,
            rest => Some(rest.strip_prefix("of ").ok_or(cure)?.trim().to_owned()),
        };
        let is_share = percent > 0.0 && percent <= 1_000.0;
        is_share.then_some(Rate::OfKnee { share: percent / 100.0, of }).ok_or(cure.to_owned())
    }
}

impl Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As written, but for what a hundredth has lost in binary.
        let percent = |share: f64| (100.0 * share * 1e6).round() / 1e6;
        match self {
            Rate::Fixed(rate) => write!(out, "{rate}"),
            Rate::OfKnee { share, of: None } => {
                write!(out, "{} % of its own knee", percent(*share))
            }
            Rate::OfKnee { share, of: Some(of) } => {
                write!(out, "{} % of {of}'s knee", percent(*share))
            }
        }
    }
}

impl SuiteScenario {
    /// What is sent, at this rate if at any; by `usual_client` unless the scenario names one.
    pub(super) fn load(
        &self,
        usual_client: Option<ClientName>,
        rate: Option<MessagesPerSecond>,
    ) -> LoadArgs {
        let at_least_1 = |count| NonZeroUsize::new(count).expect("a plan's numbers are checked");
        LoadArgs {
            contract: self.contract,
            client: self.client.or(usual_client).unwrap_or(ClientName::Inline),
            streams: at_least_1(self.streams),
            connections: Some(at_least_1(self.connections)),
            in_flight: self.in_flight.map(at_least_1),
            rate,
            arrivals: self.arrivals,
            blocked: self.blocked,
            max_backlog: self.max_backlog,
            payload: self.payload,
            headers: self.headers.clone(),
        }
    }
}

/// One server under comparison.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SuiteServer {
    pub(super) name: String,
    pub(super) kind: ServerKind,
    /// A closed loop before each run, of which nothing is kept; zero: none.
    pub(super) preheat: Nanos,
    pub(super) warmup: Nanos,
    /// What its runs measure at least; zero: no more than their scenario says.
    pub(super) duration_min: Nanos,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ServerKind {
    /// Our server, on this transport and with this placement.
    Ours(Transport),
    /// A peer, by its name in peers.toml.
    Peer(String),
}

/// One run, by the places of its scenario and server in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) repetition: usize,
    pub(super) scenario: usize,
    pub(super) server: usize,
}

impl Plan {
    /// Reads a suite's text. `folder`: where the file lies, for the paths in it. `cpus`: the cores
    /// that this process may use.
    pub(super) fn parse(text: &str, folder: &Path, cpus: &[usize]) -> Result<Self, UsageError> {
        let file = read(text)?;
        let Suite { repetitions, warmup, duration, baseline, .. } = file.suite.clone();
        if repetitions == 0 {
            return Err(wrong("repetitions", 0, "nothing would be measured; write at least 1"));
        }
        let mut durations = file.scenario.iter().filter_map(|scenario| scenario.duration);
        if duration == Nanos(0) || durations.any(|duration| duration == Nanos(0)) {
            return Err(wrong(
                "duration",
                "0s",
                "nothing would be measured; write a time such as 3s",
            ));
        }
        check_cpus(&file.suite, cpus)?;
        check_names("scenario", file.scenario.iter().map(|scenario| scenario.name.as_str()))?;
        check_names("server", file.server.iter().map(|server| server.name.as_str()))?;
        file.scenario.iter().try_for_each(check_scenario)?;
        let subject = file.suite.subject.as_ref();
        for (key, name) in [("baseline", Some(&baseline)), ("subject", subject)] {
            let is_known = |name: &&String| file.server.iter().any(|server| server.name == **name);
            if let Some(name) = name.filter(|name| !is_known(name)) {
                return Err(wrong(key, name, "no [[server]] has this name; write one's"));
            }
        }
        for scenario in &file.scenario {
            check_knee(scenario, &file)?;
            check_length(scenario, duration)?;
        }
        let servers: Result<Vec<_>, _> =
            file.server.into_iter().map(|server| resolve(server, warmup)).collect();
        let servers = servers?;
        let peers = file.suite.peers.map(|path| folder.join(path));
        let peer = servers.iter().find(|server| matches!(server.kind, ServerKind::Peer(_)));
        if let (Some(peer), None) = (peer, &peers) {
            let cure = "a peer stands in a peers.toml; write peers = \"PATH\" in [suite]";
            return Err(wrong("peer", &peer.name, cure));
        }
        Ok(Plan {
            repetitions,
            warmup,
            duration,
            server_cpus: file.suite.server_cpus,
            loadgen_cpus: file.suite.loadgen_cpus,
            calm_limit: file.suite.calm_limit,
            baseline,
            subject: file.suite.subject,
            client: file.suite.client,
            slo: file.suite.slo,
            peers,
            scenarios: file.scenario,
            servers,
        })
    }

    /// Keeps the scenarios and servers that are named; an empty list keeps all.
    pub(super) fn keep(
        &mut self,
        scenarios: &[String],
        servers: &[String],
    ) -> Result<(), UsageError> {
        let known = self.scenarios.iter().map(|scenario| scenario.name.as_str());
        check_known("--only-scenario", scenarios, &known.collect::<Vec<_>>())?;
        let known = self.servers.iter().map(|server| server.name.as_str());
        check_known("--only-server", servers, &known.collect::<Vec<_>>())?;
        let kept = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        self.scenarios.retain(|scenario| kept(scenarios, &scenario.name));
        self.servers.retain(|server| kept(servers, &server.name));
        for SuiteScenario { name, rate, .. } in &self.scenarios {
            let Some(Rate::OfKnee { of: Some(of), .. }) = rate else { continue };
            if !kept(servers, of) {
                let cure = format!(
                    "leaves out {of}, and {name} offers a share of its knee; pass --only-server {of} too, or the scenarios \
                     without {name} (--only-scenario)"
                );
                return Err(UsageError { flag: "--only-server", value: servers.join(","), cure });
            }
        }
        Ok(())
    }

    /// Cores that are kept from idling while the scenario is run: all of the suite, or none.
    pub(super) fn awake_cpus(&self, scenario: &SuiteScenario) -> Vec<usize> {
        let all = [&self.server_cpus[..], &self.loadgen_cpus].concat();
        if scenario.keep_awake { all } else { Vec::new() }
    }

    /// How long runs of the scenario measure, if the server does not need longer.
    pub(super) fn duration(&self, scenario: &SuiteScenario) -> Nanos {
        scenario.duration.unwrap_or(self.duration)
    }

    /// How long a run is loaded before it is measured.
    pub(super) fn warmup_of(&self, run: Run) -> Nanos {
        self.scenarios[run.scenario].warmup.unwrap_or(self.servers[run.server].warmup)
    }

    /// How long a run measures.
    pub(super) fn duration_of(&self, run: Run) -> Nanos {
        let least = self.servers[run.server].duration_min;
        self.duration(&self.scenarios[run.scenario]).max(least)
    }

    /// Every run in its order: a round of everything, then the next with the servers in reverse (A B B A), so
    /// that what drifts in a machine meets all servers alike.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for repetition in 0..self.repetitions {
            let mut round = Vec::new();
            for scenario in 0..self.scenarios.len() {
                let run = |server| Run { repetition, scenario, server };
                let servers = (0..self.servers.len()).map(run);
                if repetition % 2 == 0 {
                    round.extend(servers);
                } else {
                    round.extend(servers.rev());
                }
            }
            runs.append(&mut round);
        }
        runs
    }
}

fn read(text: &str) -> Result<File, UsageError> {
    let not_read =
        |error: toml::de::Error| wrong("the text", "as TOML", error.to_string().trim_end());
    let table: toml::Table = toml::from_str(text).map_err(not_read)?;
    let whole = expanded(table.clone())?;
    if whole == table {
        // Read from the text, an error names its line.
        return toml::from_str(text).map_err(not_read);
    }
    whole.try_into().map_err(not_read)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    suite: Suite,
    scenario: Vec<SuiteScenario>,
    server: Vec<ServerText>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    repetitions: usize,
    #[serde(deserialize_with = "parsed")]
    warmup: Nanos,
    #[serde(deserialize_with = "parsed")]
    duration: Nanos,
    server_cpus: Vec<usize>,
    loadgen_cpus: Vec<usize>,
    #[serde(default, deserialize_with = "parsed")]
    calm_limit: Nanos,
    baseline: String,
    subject: Option<String>,
    client: Option<ClientName>,
    #[serde(default, deserialize_with = "parsed_if_any")]
    slo: Option<Slo>,
    peers: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerText {
    name: String,
    transport: Option<String>,
    placement: Option<String>,
    peer: Option<String>,
    #[serde(default, deserialize_with = "parsed")]
    preheat: Nanos,
    #[serde(default, deserialize_with = "parsed_if_any")]
    warmup: Option<Nanos>,
    #[serde(default, deserialize_with = "parsed_if_any")]
    duration_min: Option<Nanos>,
}

fn resolve(server: ServerText, usual_warmup: Nanos) -> Result<SuiteServer, UsageError> {
    let ServerText { name, transport, placement, peer, preheat, warmup, duration_min } = server;
    let kind = match (transport, placement, peer) {
        (Some(transport), placement, None) => ServerKind::Ours(carried(transport, placement)?),
        (None, None, Some(peer)) => ServerKind::Peer(peer),
        _ => {
            let cure = "need either a transport of ours or a peer, not both";
            return Err(wrong("server", name, cure));
        }
    };
    Ok(SuiteServer {
        name,
        kind,
        preheat,
        warmup: warmup.unwrap_or(usual_warmup),
        duration_min: duration_min.unwrap_or(Nanos(0)),
    })
}

fn carried(transport: String, placement: Option<String>) -> Result<Transport, UsageError> {
    let transport: Transport = one_of("transport", transport)?;
    let placement = placement.map(|name| one_of::<Placement>("placement", name)).transpose()?;
    transport.placed(placement).map_err(|_| {
        let name = placement.map_or("", Placement::name);
        wrong("placement", name, "is the inline transport's; leave it out")
    })
}

/// What `name` stands for, as on a command line.
fn one_of<T: ValueEnum>(key: &'static str, name: String) -> Result<T, UsageError> {
    T::from_str(&name, false).map_err(|_| {
        let known: Vec<_> = T::value_variants()
            .iter()
            .filter_map(|it| Some(it.to_possible_value()?.get_name().to_owned()))
            .collect();
        wrong(key, name, format!("write one of {}", known.join(", ")))
    })
}

pub(super) fn wrong(
    key: &'static str,
    value: impl ToString,
    cure: impl Into<String>,
) -> UsageError {
    UsageError { flag: key, value: value.to_string(), cure: cure.into() }
}

fn check_cpus(suite: &Suite, cpus: &[usize]) -> Result<(), UsageError> {
    for (key, chosen) in
        [("server_cpus", &suite.server_cpus), ("loadgen_cpus", &suite.loadgen_cpus)]
    {
        if chosen.is_empty() {
            return Err(wrong(key, "[]", format!("need a core at least; write some of {cpus:?}")));
        }
        if let Some(cpu) = chosen.iter().find(|cpu| !cpus.contains(cpu)) {
            let cure = format!("this process may use the cores {cpus:?}; write some of them");
            return Err(wrong(key, cpu, cure));
        }
    }
    match suite.loadgen_cpus.iter().find(|cpu| suite.server_cpus.contains(cpu)) {
        None => Ok(()),
        Some(both) => {
            let cure = "is the server's too: each would measure the other; write another core";
            Err(wrong("loadgen_cpus", both, cure))
        }
    }
}

/// Names become names of files.
fn check_names<'a>(
    key: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), UsageError> {
    let mut seen = Vec::new();
    for name in names {
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_".contains(&letter);
        if name.is_empty() || !name.bytes().all(plain) {
            let cure = "a name is part of a file's name; write letters, digits, - and _";
            return Err(wrong(key, format!("{name:?}"), cure));
        }
        if seen.contains(&name) {
            return Err(wrong(key, name, "stands there twice; give each a name of its own"));
        }
        seen.push(name);
    }
    if seen.is_empty() {
        return Err(wrong(key, "(none)", format!("write at least one [[{key}]]")));
    }
    Ok(())
}

fn check_scenario(scenario: &SuiteScenario) -> Result<(), UsageError> {
    let SuiteScenario { name, connections, streams, in_flight, rate, .. } = scenario;
    let in_flight = match (in_flight, rate) {
        (None, None) => {
            let value = format!("(none) (scenario {name})");
            return Err(wrong("in_flight", value, "a closed loop needs it; write at least 1"));
        }
        (in_flight, _) => &in_flight.unwrap_or(1),
    };
    let at_least_1 = [("connections", connections), ("streams", streams), ("in_flight", in_flight)];
    if let Some((key, _)) = at_least_1.into_iter().find(|(_, value)| **value == 0) {
        return Err(wrong(key, format!("0 (scenario {name})"), "need at least 1"));
    }
    if let (Some(messages), true) =
        (scenario.messages, scenario.idle_streams + scenario.idle_connections > 0)
    {
        let cure =
            "what is idle has no end of its own to wait for; leave out messages, or what is idle";
        return Err(wrong("messages", format!("{messages} (scenario {name})"), cure));
    }
    let any_rate = rate.as_ref().map(|_| MessagesPerSecond(1.0));
    scenario.load(None, any_rate).check().map_err(|UsageError { flag, value, cure }| {
        let key = match flag {
            "--max-backlog" => "max_backlog",
            flag => flag.trim_start_matches("--"),
        };
        wrong(key, format!("{value} (scenario {name})"), cure)
    })
}

/// A share of a knee needs goals, and a server whose knee it is.
fn check_knee(scenario: &SuiteScenario, file: &File) -> Result<(), UsageError> {
    let Some(Rate::OfKnee { of, .. }) = &scenario.rate else { return Ok(()) };
    let value = |rate: &Rate| format!("{rate} (scenario {})", scenario.name);
    let value = scenario.rate.as_ref().map(value).unwrap_or_default();
    if file.suite.slo.is_none() {
        let cure = "a knee keeps goals; write slo = \"p99<10ms,errors=0\" in [suite]";
        return Err(wrong("rate", value, cure));
    }
    if (scenario.idle_streams, scenario.idle_connections) != (0, 0) {
        let cure = "a knee is searched without idle streams and connections; write a fixed rate, or leave those out";
        return Err(wrong("rate", value, cure));
    }
    match of {
        Some(name) if !file.server.iter().any(|server| server.name == *name) => {
            Err(wrong("rate", value, format!("no [[server]] is named {name}; write one's name")))
        }
        _ => Ok(()),
    }
}

/// An open loop has to last until its backlog has a trend: none of its runs would count otherwise.
fn check_length(scenario: &SuiteScenario, usual: Nanos) -> Result<(), UsageError> {
    let Some(rate) = &scenario.rate else { return Ok(()) };
    let named = |error: UsageError| {
        let value = format!("{} (scenario {})", error.value, scenario.name);
        wrong(error.flag, value, error.cure)
    };
    check_open_loop("duration", scenario.duration.unwrap_or(usual)).map_err(named)?;
    match (scenario.messages, rate) {
        (Some(messages), Rate::Fixed(rate))
            if messages.get() as f64 / rate.0 < OPEN_LOOP_NS_MIN.as_secs_f64() =>
        {
            let cure = format!(
                "at {rate} they are over before {OPEN_LOOP_NS_MIN}, from which on it can be told whether a backlog grows; \
                 write more, or leave it out"
            );
            Err(named(wrong("messages", messages, cure)))
        }
        _ => Ok(()),
    }
}

fn check_known(flag: &'static str, names: &[String], known: &[&str]) -> Result<(), UsageError> {
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(wrong(flag, name, format!("the suite has {}", known.join(", ")))),
    }
}

/// A value that is written as on the command line: `3s`, `64KiB`.
fn parsed<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(from)?;
    text.parse().map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
}

fn parsed_if_any<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    parsed(from).map(Some)
}

/// `{ "x-id" = "7" }`: keys and values as on the command line.
fn parsed_headers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Header>, D::Error> {
    let typed = BTreeMap::<String, String>::deserialize(from)?;
    let parsed = typed.iter().map(|(key, value)| format!("{key}={value}").parse());
    parsed.collect::<Result<_, String>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests;
