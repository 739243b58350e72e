//! What a suite says of its runs: the parts of REPORT.md around its tables.
//!
//! In: the plan and what its runs gave. Out: a [`Comparison`] with its preface and appendix.

use std::fmt::Write as _;

use super::plan::{Plan, Rate, SuiteScenario, SuiteServer};
use super::{BEGUN, Results, Suite};
use crate::cmd::search::steps::Found;
use crate::harness::calm::LOST_SHARE_MAX;
use crate::harness::provenance;
use crate::report::{Compared, Comparison, in_a_cell};
use crate::scenario::{Arrivals, Blocked, ContractName, Header, name_of};
use crate::units::{MessagesPerSecond, Nanos};

impl Suite {
    /// The report on these runs. `all`: they are all that there are to be.
    pub(super) fn comparison(&self, results: Results, all: bool) -> Comparison {
        let Results { mut contenders, about, products, knees, .. } = results;
        for (scenario, servers) in self.plan.scenarios.iter().zip(&mut contenders) {
            let Some(Rate::OfKnee { of, .. }) = &scenario.rate else { continue };
            for server in servers {
                let name = self.knee_name(scenario, of.as_ref().unwrap_or(&server.name));
                server.knee_is_open = knees.get(&name).is_some_and(Found::may_be_more);
            }
        }
        let mut appendix = "## Servers\n\n".to_owned();
        for (place, server) in self.plan.servers.iter().enumerate() {
            let product = products[place].as_deref().unwrap_or("says nothing of itself");
            let product = in_a_cell(product);
            let SuiteServer { name, preheat, warmup, duration_min, .. } = server;
            let about = in_a_cell(&about[place]);
            appendix.push_str(&format!("- {name}: {about}; {product}; warm-up {warmup}"));
            if *preheat > Nanos(0) {
                appendix.push_str(&format!(", after {preheat} of a closed loop"));
            }
            if *duration_min > Nanos(0) {
                appendix.push_str(&format!(", measured for at least {duration_min}"));
            }
            appendix.push('\n');
        }
        appendix.push_str(&self.repeated());
        if let Some(slo) = self.plan.slo.as_ref().filter(|_| !knees.is_empty()) {
            appendix.push_str(&format!("\n## Knees: the highest load that keeps {slo}\n\n"));
            for (name, knee) in &knees {
                let bound = |bound: Option<f64>| {
                    bound.map_or("not known".to_owned(), |rate| MessagesPerSecond(rate).to_string())
                };
                let (lower, upper) = (bound(knee.lower), bound(knee.upper));
                let unjudged = knee.unjudged.map(MessagesPerSecond);
                let unjudged = unjudged
                    .map_or(String::new(), |rate| format!("; could not be judged at {rate}"));
                let unconfirmed = match knee.confirmed {
                    true => "",
                    false => "; not confirmed",
                };
                let name = in_a_cell(name);
                appendix.push_str(&format!(
                    "- {name}: {lower} (misses it at: {upper}{unjudged}{unconfirmed})\n"
                ));
            }
        }
        let drawn = match self.is_foreign {
            true => {
                format!("report by: loadgen {}\n", provenance::build())
            }
            false => String::new(),
        };
        appendix.push_str(&format!("\n## Host\n\n```text\n{}{drawn}```\n", self.host));
        let scenarios = self.plan.scenarios.iter().zip(contenders);
        let compared = |(scenario, servers): (&SuiteScenario, _)| Compared {
            name: scenario.name.clone(),
            load: load(scenario),
            figure: scenario.figure,
            open_loop: scenario.rate.is_some(),
            servers,
        };
        Comparison {
            preface: self.preface(all),
            baseline: self.plan.baseline.clone(),
            subject: self.plan.subject.clone(),
            scenarios: scenarios.map(compared).collect(),
            appendix,
        }
    }

    fn preface(&self, all: bool) -> String {
        let Plan { repetitions, duration, server_cpus, loadgen_cpus, client, .. } = &self.plan;
        let date =
            self.host.strip_prefix(BEGUN).and_then(|begun| begun.get(..10)).unwrap_or_default();
        let mut text = format!("# Suite {}, {date}\n\n", self.name);
        if !all {
            text.push_str("**Interrupted: not all of it was run.**\n\n");
        }
        let client = client.map_or(String::new(), |it| format!(", client {}", name_of(it)));
        writeln!(
            text,
            "Repetitions: {repetitions}, interleaved: a round of all scenarios and servers, then the \
             next with the servers in reverse. Every run has a fresh server (cores {server_cpus:?}) and a fresh loadgen (cores \
             {loadgen_cpus:?}{client}), measures for {duration} after the server's warm-up, and checks \
             every echo. Medians, with min .. max; a ratio is the median of the ratios \
             of runs in one repetition. The records lie beside this file; every term is in \
             METHODOLOGY.md."
        )
        .expect("a String takes whatever is written");
        if self.plan.calm_limit > Nanos(0) {
            text.push_str(&format!(
                "Before each run others were waited for until they took at most {} % of each of these cores, {} at most over all \
                 runs of one start of the suite.\n",
                100.0 * LOST_SHARE_MAX,
                self.plan.calm_limit
            ));
        }
        for scenario in &self.plan.scenarios {
            if scenario.keep_awake {
                text.push_str(&format!(
                    "During runs of {} these cores are kept awake.\n",
                    scenario.name
                ));
            }
            let SuiteScenario { name, duration, warmup, drain_limit, seed, .. } = scenario;
            let own = [
                duration.map(|time| format!("Runs of {name} measure for {time}.\n")),
                warmup.map(|time| {
                    format!("Before runs of {name} the warm-up is {time}, whatever the server.\n")
                }),
                drain_limit.map(|time| {
                    format!("After runs of {name} missing echoes are waited for for {time}.\n")
                }),
                seed.map(|seed| {
                    format!("The first repetition's seed in runs of {name} is {seed}.\n")
                }),
            ];
            text.extend(own.into_iter().flatten());
        }
        text
    }
}

/// What a scenario's runs have in common, in words.
pub(super) fn load(scenario: &SuiteScenario) -> String {
    let SuiteScenario { connections, streams, payload, .. } = scenario;
    let mut text = if streams % connections == 0 {
        format!("{connections} x {} streams", streams / connections)
    } else {
        format!("{streams} streams on {connections} connections")
    };
    let mut say = |words: String| text.push_str(&words);
    match (scenario.idle_streams, scenario.idle_connections) {
        (0, 0) => {}
        (idle, 0) => say(format!(", besides {idle} idle")),
        (idle, connections) => {
            say(format!(", besides {idle} idle and {connections} idle connections"));
        }
    }
    match scenario.in_flight {
        Some(in_flight) => say(format!(", {in_flight} in flight")),
        None => say(", unbounded in flight".to_owned()),
    }
    say(format!(", {payload}"));
    if let Some(rate) = &scenario.rate {
        let arrivals = scenario.arrivals.unwrap_or(Arrivals::Uniform);
        say(format!(", {rate} offered ({} arrivals)", name_of(arrivals)));
    }
    if scenario.blocked == Some(Blocked::Shed) {
        say(", shed while blocked".to_owned());
    }
    if let Some(most) = scenario.max_backlog {
        say(format!(", backlog at most {most}"));
    }
    if let Some(messages) = scenario.messages {
        say(format!(", at most {messages} messages"));
    }
    if scenario.contract == ContractName::Chat {
        say(", Chat/chat".to_owned());
    }
    if let Some(client) = scenario.client {
        say(format!(", client {}", name_of(client)));
    }
    for Header { key, value } in &scenario.headers {
        say(format!(", metadata {key}={value}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::harness::calm::Calm;

    #[test]
    fn a_preface_names_what_runs_of_a_scenario_have_of_their_own() {
        let text = r#"
[suite]
repetitions = 1
warmup = "500ms"
duration = "2s"
server_cpus = [0]
loadgen_cpus = [1]
calm_limit = "30s"
baseline = "ours"

[[scenario]]
name = "usual"
connections = 1
streams = 4
in_flight = 1
payload = "8B"
figure = "messages"

[[scenario]]
name = "own"
connections = 1
streams = 4
in_flight = 1
payload = "8B"
figure = "messages"
warmup = "4s"
duration = "6s"
drain_limit = "9s"
seed = 7

[[server]]
name = "ours"
transport = "inline"
"#;
        let suite = Suite {
            name: "a".to_owned(),
            text: text.to_owned(),
            plan: Plan::parse(text, Path::new(""), &[0, 1]).unwrap(),
            peers: None,
            out: PathBuf::new(),
            resume: false,
            is_foreign: false,
            host: String::new(),
            calm: Calm::default(),
        };
        let preface = suite.preface(true);
        for line in [
            "Before each run others were waited for until they took at most 2 % of each of these cores, 30 s at most over all runs of one \
             start of the suite.",
            "Runs of own measure for 6 s.",
            "Before runs of own the warm-up is 4 s, whatever the server.",
            "After runs of own missing echoes are waited for for 9 s.",
            "The first repetition's seed in runs of own is 7.",
        ] {
            assert!(preface.lines().any(|it| it == line), "{line:?} is not in\n{preface}");
        }
        assert!(!preface.contains("usual"), "{preface}");
    }
}
