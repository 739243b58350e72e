//! The knees that a suite's rates are shares of.

use std::io::{self, Write as _};

use anyhow::Context;

use super::plan::{Rate, Run, SuiteScenario, SuiteServer};
use super::{Results, Suite, load};
use crate::cmd::records::Records;
use crate::cmd::search::knee::{Ask, HowArgs, find};
use crate::cmd::search::steps::Found;
use crate::cmd::servers::Supply;
use crate::harness::peers::ServerCommand;
use crate::scenario::{Arrivals, LoadArgs, name_of};
use crate::units::{MessagesPerSecond, Nanos};

/// Where a suite keeps the knees that it found.
pub(in crate::cmd) const KNEES: &str = "knees.json";

/// Distance of the bounds at which a knee is known well enough to offer a share of it, in percent.
const KNEE_WIDTH: f64 = 5.0;

/// A line to stderr, which may be gone: a suite does not end for that.
macro_rules! tell {
    ($($line:tt)*) => {
        _ = writeln!(io::stderr(), $($line)*)
    };
}

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
        let knee = results.knees.get(&self.knee_name(scenario, server));
        match knee.and_then(|knee| knee.lower) {
            Some(knee) => Ok(Some(MessagesPerSecond(share * knee))),
            None => Err(format!("the knee of {server} is not known")),
        }
    }

    /// Which knee: of this server, in a load of this shape.
    pub(super) fn knee_name(&self, scenario: &SuiteScenario, server: &str) -> String {
        let shape = SuiteScenario { rate: None, ..scenario.clone() };
        let arrivals = name_of(scenario.arrivals.unwrap_or(Arrivals::Uniform));
        format!("{server}: {}, {arrivals} arrivals", load(&shape))
    }

    /// Searches for the knees that rates are shares of; those of an interrupted suite are known.
    pub(super) async fn find_knees(
        &self,
        commands: &[Option<ServerCommand>],
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let path = self.out.join(KNEES);
        if self.resume && path.exists() {
            let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(&path)?)?);
            results.knees = read().with_context(|| {
                format!(
                    "{} cannot be read; move it away, and knees are searched anew",
                    path.display()
                )
            })?;
        }
        for scenario in &self.plan.scenarios {
            let Some(Rate::OfKnee { of, .. }) = &scenario.rate else { continue };
            for (server, command) in self.plan.servers.iter().zip(commands) {
                let name = self.knee_name(scenario, &server.name);
                let is_wanted = of.as_ref().is_none_or(|of| *of == server.name);
                let Some(command) = command else { continue };
                if !is_wanted || results.knees.contains_key(&name) {
                    continue;
                }
                tell!("suite: searching for the knee of {name}");
                let knee = match find(&self.ask(scenario, server, command)?, std::future::pending())
                    .await
                {
                    Ok(searched) => searched.found,
                    Err(error) => {
                        tell!("suite: {name} has no knee: {error:#}");
                        Found { lower: None, upper: None, unjudged: None, confirmed: false }
                    }
                };
                results.knees.insert(name, knee);
                self.write(KNEES, &serde_json::to_string_pretty(&results.knees)?)?;
            }
        }
        Ok(())
    }

    fn ask(
        &self,
        scenario: &SuiteScenario,
        server: &SuiteServer,
        command: &ServerCommand,
    ) -> anyhow::Result<Ask> {
        Ok(Ask {
            name: server.name.clone(),
            supply: Supply::Fresh(command.clone()),
            slo: self.plan.slo.clone().expect("a plan with a knee has goals"),
            load: LoadArgs { arrivals: scenario.arrivals, ..self.load(scenario, None) },
            how: HowArgs {
                min_rate: None,
                max_rate: MessagesPerSecond(1e9),
                width: KNEE_WIDTH,
                warmup: server.warmup,
                duration: self.plan.duration(scenario),
                cool_down: Nanos(0),
                confirmations: 1,
                confirmation_duration: Nanos(2 * self.plan.duration(scenario).0),
                exceed_ratio: 0.0,
            },
            server_cpus: self.plan.server_cpus.clone(),
            loadgen_cpus: self.plan.loadgen_cpus.clone(),
            records: Records::new(None)?,
        })
    }
}
