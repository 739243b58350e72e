//! What a folder holds that a suite goes on in.
//!
//! In: the folder and the plan. Out: whether it is this suite's, and what its runs gave: they count, and are neither
//! done again nor forgotten, whatever can be built now.

use std::collections::BTreeMap;

use anyhow::Context;

use super::plan::Run;
use super::{Outcome, Results, Suite};
use crate::cmd::report::is_record;
use crate::cmd::trial::Tried;
use crate::record;
use crate::scenario::UsageError;

impl Suite {
    /// Whether the folder holds runs of this very suite. What another build or machine left may be drawn anew, but
    /// not added to.
    pub(super) fn check_folder(&mut self) -> anyhow::Result<()> {
        let refuse = |cure: String| UsageError {
            flag: "--resume",
            value: self.out.display().to_string(),
            cure,
        };
        let read = |name: &str| {
            let text = std::fs::read_to_string(self.out.join(name));
            text.map_err(|error| refuse(format!("has no {name} ({error}); pass a suite's folder")))
        };
        if read("suite.toml")? != self.text {
            let cure = "holds runs of another text of the suite; begin anew in another folder";
            return Err(refuse(cure.to_owned()).into());
        }
        let planned: Vec<_> = self.plan.runs().into_iter().map(|run| self.file_of(run)).collect();
        let records = self.records()?;
        // Its report would forget them.
        if let Some(name) = records.iter().find(|name| !planned.contains(name)) {
            let cure = "which --only-scenario and --only-server leave out; pass those of before";
            return Err(refuse(format!("holds {name}, {cure}")).into());
        }
        let host = read("host.txt")?;
        let without_time = |host: &str| host.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        self.is_foreign = without_time(&host) != without_time(&self.host);
        if self.is_foreign && self.is_unfinished(&records) {
            let cure =
                "holds runs of another build or machine (host.txt); begin anew in another folder";
            return Err(refuse(cure.to_owned()).into());
        }
        self.host = host;
        Ok(())
    }

    /// Whether a server that has runs lacks some.
    fn is_unfinished(&self, records: &[String]) -> bool {
        let runs = self.plan.runs();
        let is_there = |run: &Run| records.contains(&self.file_of(*run));
        let has_begun = |run: &&Run| runs.iter().any(|it| it.server == run.server && is_there(it));
        records.is_empty() || runs.iter().filter(has_begun).any(|run| !is_there(run))
    }

    /// Names of the records that are in the folder.
    fn records(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.out.read_dir()? {
            let entry = entry?;
            if is_record(&entry.path()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// What a run that was done before gave; `None` if it is still to be done, or to be repeated. Err: its record
    /// is damaged.
    fn done_before(&self, run: Run, results: &mut Results) -> anyhow::Result<Option<Outcome>> {
        let path = self.out.join(self.file_of(run));
        if !self.resume || !path.exists() {
            return Ok(None);
        }
        let record = record::read(&path).with_context(|| {
            let path = path.display();
            format!("{path} cannot be read; move it away, and --resume repeats that run")
        })?;
        let outcome = self.outcome(run, Tried::of(record), results);
        let is_kept = self.is_foreign || !self.put_aside(run, &outcome)?;
        Ok(is_kept.then_some(outcome))
    }

    /// What all runs gave that were done before, by the names of their records.
    pub(super) fn all_before(
        &self,
        results: &mut Results,
    ) -> anyhow::Result<BTreeMap<String, Outcome>> {
        let mut before = BTreeMap::new();
        for run in self.plan.runs() {
            if let Some(outcome) = self.done_before(run, results)? {
                before.insert(self.file_of(run), outcome);
            }
        }
        Ok(before)
    }

    /// Adds what was done before and was not come to again, because the suite ended before: it is not forgotten either. A
    /// run stands in the place of its repetition, by which ratios are of pairs.
    pub(super) fn add_rest(&self, mut before: BTreeMap<String, Outcome>, results: &mut Results) {
        let mut runs = self.plan.runs();
        runs.sort_by_key(|run| run.repetition);
        for run in runs {
            let Some(outcome) = before.remove(&self.file_of(run)) else { continue };
            while results.count(run) < run.repetition {
                results.add(run, Outcome::Failed("it was not come to".to_owned()));
            }
            results.add(run, outcome);
        }
    }
}
