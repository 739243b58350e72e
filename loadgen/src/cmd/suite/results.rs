//! What the runs of a suite gave so far, by scenario and server.

use std::collections::BTreeMap;

use super::plan::{Plan, Run, SuiteServer};
use crate::cmd::Exit;
use crate::cmd::search::steps::Found;
use crate::harness::peers::PeerError;
use crate::report::{Contender, Outcome};
use crate::units::MessagesPerSecond;

/// What the runs gave so far.
#[derive(Debug)]
pub(super) struct Results {
    /// By scenario, then by server.
    pub(super) contenders: Vec<Vec<Contender>>,
    /// What each server is.
    pub(super) about: Vec<String>,
    /// Whether some of its runs were done before, by server.
    pub(super) was_there: Vec<bool>,
    /// What each server says of itself.
    pub(super) products: Vec<Option<String>>,
    /// By scenario, what a null echo carries.
    pub(super) null_throughputs: Vec<Option<MessagesPerSecond>>,
    /// By server and shape of the load.
    pub(super) knees: BTreeMap<String, Found>,
    /// The same for those that a search of now did not find: why.
    pub(super) knees_not_found: BTreeMap<String, String>,
}

impl Results {
    pub(super) fn new(plan: &Plan) -> Self {
        let fresh = |server: &SuiteServer| Contender {
            name: server.name.clone(),
            skipped: None,
            knee_is_open: false,
            runs: Vec::new(),
        };
        let servers: Vec<_> = plan.servers.iter().map(fresh).collect();
        Results {
            about: vec![String::new(); servers.len()],
            was_there: vec![false; servers.len()],
            products: vec![None; servers.len()],
            null_throughputs: vec![None; plan.scenarios.len()],
            knees: BTreeMap::new(),
            knees_not_found: BTreeMap::new(),
            contenders: vec![servers; plan.scenarios.len()],
        }
    }

    pub(super) fn add(&mut self, run: Run, outcome: Outcome) {
        self.contenders[run.scenario][run.server].runs.push(outcome);
    }

    /// How many of this run's server and scenario there are.
    pub(super) fn count(&self, run: Run) -> usize {
        self.contenders[run.scenario][run.server].runs.len()
    }

    pub(super) fn of(&self, server: usize) -> impl Iterator<Item = &Contender> {
        self.contenders.iter().map(move |servers| &servers[server])
    }

    pub(super) fn is_skipped(&self, server: usize) -> bool {
        self.of(server).any(|contender| contender.skipped.is_some())
    }

    /// A server that never started is skipped; one that did not start again has failed a run.
    pub(super) fn not_started(&mut self, run: Run, error: &PeerError) {
        let has_none = self.of(run.server).all(|contender| contender.runs.is_empty());
        if has_none && !self.was_there[run.server] {
            self.skip(run.server, &error.to_string());
        } else {
            tell!("suite: {error}");
            self.add(run, Outcome::Failed(error.to_string()));
        }
    }

    pub(super) fn skip(&mut self, server: usize, why: &str) {
        for servers in &mut self.contenders {
            servers[server].skipped = Some(why.to_owned());
        }
        let name = self.of(server).next().map_or("", |contender| contender.name.as_str());
        tell!("suite: {name} skipped: {why}");
    }

    pub(super) fn has_runs(&self) -> bool {
        self.contenders.iter().flatten().any(|contender| !contender.runs.is_empty())
    }

    pub(super) fn exit(&self) -> Exit {
        let mut runs = self.contenders.iter().flatten().flat_map(|contender| &contender.runs);
        if !self.has_runs() || runs.any(|run| matches!(run, Outcome::Failed(_))) {
            return Exit::Failed;
        }
        let mut runs = self.contenders.iter().flatten().flat_map(|contender| &contender.runs);
        let is_invalid = runs.any(|run| !matches!(run, Outcome::Counted(_)));
        if is_invalid { Exit::Invalid } else { Exit::Done }
    }
}
