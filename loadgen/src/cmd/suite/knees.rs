//! The knees that a suite's rates are shares of.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context;

use super::plan::{Rate, Run, SuiteScenario, SuiteServer};
use super::report::load;
use super::{Results, Suite};
use crate::cmd::records::Records;
use crate::cmd::search::knee::{Ask, HowArgs, Searched, find};
use crate::cmd::search::steps::Found;
use crate::cmd::search::table;
use crate::cmd::servers::Supply;
use crate::harness::awake::Awake;
use crate::harness::peers::ServerCommand;
use crate::report::in_a_cell;
use crate::scenario::{Arrivals, name_of};
use crate::units::{MessagesPerSecond, Nanos};

/// Where a suite keeps the knees that it found.
pub(in crate::cmd) const KNEES: &str = "knees.json";

/// Where it keeps the trials that say so.
const TRIALS: &str = "knees.md";

/// Distance of the bounds at which a knee is known well enough to offer a share of it, in percent.
const KNEE_WIDTH: f64 = 5.0;

impl Suite {
    /// What a run offers, if it is an open loop. Err: its knee is not known.
    pub(super) fn rate(
        &self,
        run: Run,
        results: &Results,
    ) -> Result<Option<MessagesPerSecond>, String> {
        let scenario = &self.plan.scenarios[run.scenario];
        let (share, of) = match &scenario.rate {
            None => return Ok(None),
            Some(Rate::Fixed(rate)) => return Ok(Some(*rate)),
            Some(Rate::OfKnee { share, of }) => (share, of),
        };
        let server = of.as_ref().unwrap_or(&self.plan.servers[run.server].name);
        let name = self.knee_name(scenario, server);
        let knee = results.knees.get(&name);
        match (knee.map(|knee| knee.lower), results.knees_not_found.get(&name)) {
            (Some(Some(knee)), _) => Ok(Some(MessagesPerSecond(share * knee))),
            (Some(None), _) => Err(format!("{server} has no knee: it keeps the goals at no load")),
            (None, Some(why)) => {
                Err(format!("the knee of {server} is not known ({why}); --resume searches again"))
            }
            (None, None) => Err(format!("the knee of {server} is not known")),
        }
    }

    /// Which knee: of this server, in a load of this shape.
    pub(super) fn knee_name(&self, scenario: &SuiteScenario, server: &str) -> String {
        let shape = SuiteScenario { rate: None, ..scenario.clone() };
        let arrivals = name_of(scenario.arrivals.unwrap_or(Arrivals::Uniform));
        let awake = if scenario.keep_awake { ", cores kept awake" } else { "" };
        format!("{server}: {}, {arrivals} arrivals{awake}", load(&shape))
    }

    /// Searches for the knees that rates are shares of; those of an interrupted suite are known. A search
    /// that fails is told and not remembered: `--resume` searches again.
    pub(super) async fn find_knees(
        &self,
        commands: &[Result<ServerCommand, String>],
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let mut awake = Awake::default();
        for scenario in &self.plan.scenarios {
            let Some(Rate::OfKnee { of, .. }) = &scenario.rate else { continue };
            for (server, command) in self.plan.servers.iter().zip(commands) {
                let name = self.knee_name(scenario, &server.name);
                let is_wanted = of.as_ref().is_none_or(|of| *of == server.name);
                let Ok(command) = command else { continue };
                if !is_wanted || results.was_searched(&name) {
                    continue;
                }
                tell!("suite: searching for the knee of {name}");
                awake.change_to(&self.plan.awake_cpus(scenario)).await?;
                let ask = self.ask(scenario, server, command, &awake)?;
                let searched = find(&ask, std::future::pending()).await;
                let trials = searched.as_ref().map(table).unwrap_or_default();
                results.searched(name.clone(), searched.and_then(Searched::without_failure));
                self.write(KNEES, &serde_json::to_string_pretty(&results.knees)?)?;
                if !trials.is_empty() {
                    self.keep_trials(&name, &trials)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a search's trials to those of before.
    fn keep_trials(&self, knee: &str, trials: &str) -> anyhow::Result<()> {
        let before = match std::fs::read_to_string(self.out.join(TRIALS)) {
            Ok(before) => before,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "# Trials of the searches for knees\n".to_owned()
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {TRIALS}")),
        };
        self.write(TRIALS, &format!("{before}\n## {}\n\n{trials}", in_a_cell(knee)))
    }

    /// Those that this folder knows. What an older build remembered of searches that failed is left out.
    pub(super) fn knees_of_before(&self) -> anyhow::Result<BTreeMap<String, Found>> {
        let path = self.out.join(KNEES);
        if !self.resume || !path.exists() {
            return Ok(BTreeMap::new());
        }
        let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(&path)?)?);
        let mut knees: BTreeMap<String, Found> = read().with_context(|| {
            let path = path.display();
            format!("{path} cannot be read; move it away, and knees are searched anew")
        })?;
        knees.retain(|_, knee| knee.is_known());
        Ok(knees)
    }

    fn ask(
        &self,
        scenario: &SuiteScenario,
        server: &SuiteServer,
        command: &ServerCommand,
        awake: &Awake,
    ) -> anyhow::Result<Ask> {
        Ok(Ask {
            name: server.name.clone(),
            supply: Supply::Fresh(command.clone()),
            slo: self.plan.slo.clone().expect("a plan with a knee has goals"),
            load: scenario.load(self.plan.client, None),
            how: HowArgs {
                min_rate: None,
                max_rate: MessagesPerSecond(1e9),
                width: KNEE_WIDTH,
                preheat: server.preheat,
                warmup: scenario.warmup.unwrap_or(server.warmup),
                duration: self.plan.duration(scenario),
                cool_down: Nanos(0),
                confirmations: 1,
                confirmation_duration: Nanos(2 * self.plan.duration(scenario).0),
                exceed_ratio: 0.0,
            },
            server_cpus: self.plan.server_cpus.clone(),
            loadgen_cpus: self.plan.loadgen_cpus.clone(),
            awake_cpus: awake.cpus().to_vec(),
            calm: self.calm.clone(),
            records: Records::new(None)?,
        })
    }
}

impl Results {
    fn was_searched(&self, knee: &str) -> bool {
        self.knees.contains_key(knee) || self.knees_not_found.contains_key(knee)
    }

    /// Keeps what a search found, or why it found nothing: of that, nothing is written.
    fn searched(&mut self, knee: String, found: anyhow::Result<Found>) {
        let none = || anyhow::anyhow!("no load could be judged");
        match found.and_then(|found| found.is_known().then_some(found).ok_or_else(none)) {
            Ok(found) => {
                self.knees.insert(knee, found);
            }
            Err(error) => {
                tell!("suite: the knee of {knee} was not found: {error:#}");
                self.knees_not_found.insert(knee, format!("{error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::cmd::suite::plan::Plan;
    use crate::harness::calm::Calm;

    const SUITE: &str = r#"
[suite]
repetitions = 1
warmup = "1s"
duration = "5s"
server_cpus = [0]
loadgen_cpus = [1]
baseline = "ours"
slo = "p99<5ms"

[[scenario]]
name = "half"
connections = 1
streams = 4
rate = "50 %"
payload = "8B"
figure = "messages"

[[server]]
name = "ours"
transport = "inline"
"#;

    const RUN: Run = Run { repetition: 0, scenario: 0, server: 0 };

    const FOUND: Found =
        Found { lower: Some(1_000.0), upper: Some(1_010.0), unjudged: None, confirmed: true };

    fn suite(out: PathBuf) -> Suite {
        Suite {
            name: "half".to_owned(),
            text: SUITE.to_owned(),
            plan: Plan::parse(SUITE, Path::new(""), &[0, 1]).unwrap(),
            peers: None,
            out,
            resume: true,
            is_foreign: false,
            host: String::new(),
            calm: Calm::default(),
        }
    }

    #[test]
    fn a_search_that_failed_fails_its_runs_and_is_not_remembered() {
        let suite = suite(PathBuf::new());
        let mut results = Results::new(&suite.plan);
        let knee = suite.knee_name(&suite.plan.scenarios[0], "ours");
        assert!(!results.was_searched(&knee));
        results.searched(knee.clone(), Err(anyhow::anyhow!("the port was taken")));
        assert!(results.was_searched(&knee), "once in a suite is enough");
        assert!(results.knees.is_empty(), "it would be written");
        let why = suite.rate(RUN, &results).unwrap_err();
        assert!(why.contains("the port was taken") && why.contains("--resume"), "{why}");

        let mut results = Results::new(&suite.plan);
        results.searched(knee.clone(), Ok(FOUND));
        assert_eq!(suite.rate(RUN, &results), Ok(Some(MessagesPerSecond(500.0))));
        results.searched(knee, Ok(Found { lower: None, ..FOUND }));
        let why = suite.rate(RUN, &results).unwrap_err();
        assert!(why.contains("at no load"), "{why}");
    }

    #[test]
    fn the_trials_of_every_search_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let suite = suite(folder.path().to_owned());
        suite.keep_trials("ours", "| 1 |\n").unwrap();
        suite.keep_trials("theirs", "| 2 |\n").unwrap();
        let text = std::fs::read_to_string(folder.path().join(TRIALS)).unwrap();
        let expected =
            "# Trials of the searches for knees\n\n## ours\n\n| 1 |\n\n## theirs\n\n| 2 |\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_knee_that_nothing_is_known_of_is_searched_again() {
        let folder = tempfile::tempdir().unwrap();
        let suite = suite(folder.path().to_owned());
        assert!(suite.knees_of_before().unwrap().is_empty());
        let failed = Found { lower: None, upper: None, unjudged: None, confirmed: false };
        let none = Found { lower: None, ..FOUND };
        let knees = [("failed", failed), ("found", FOUND), ("none", none)];
        let text = serde_json::to_string(&BTreeMap::from(knees)).unwrap();
        suite.write(KNEES, &text).unwrap();
        let known = suite.knees_of_before().unwrap();
        assert_eq!(known.keys().collect::<Vec<_>>(), ["found", "none"]);
        std::fs::write(folder.path().join(KNEES), "{").unwrap();
        let why = suite.knees_of_before().unwrap_err().to_string();
        assert!(why.contains("move it away"), "{why}");
    }
}
