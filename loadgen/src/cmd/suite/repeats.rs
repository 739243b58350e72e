//! Runs that are done again, because their figures may be loadgen's or the machine's.
//!
//! In: how a run ended. Out: whether it is to be repeated; its record is then put aside, under a name that
//! says so, and the report counts it. A server's own failures and overloads are results, and never repeated.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;

use super::{Outcome, Run, Suite};

/// Of a run: so often an invalid one is done again, in its place. A search tries a rate three times, too. A machine that
/// disturbs three in a row disturbs more than one run.
const REPEATS_MAX: usize = 2;

impl Suite {
    /// Puts the record of a run that ended so out of the way, if the run is to be done again; whether it is. Err: it
    /// cannot be renamed.
    pub(super) fn put_aside(&self, run: Run, outcome: &Outcome) -> anyhow::Result<bool> {
        let Outcome::Invalid(_) = outcome else { return Ok(false) };
        let mut asides = (1..=REPEATS_MAX).map(|number| self.aside(run, number));
        let Some(aside) = asides.find(|aside| !aside.exists()) else { return Ok(false) };
        let path = self.out.join(self.file_of(run));
        std::fs::rename(&path, &aside).with_context(|| {
            let (path, aside) = (path.display(), aside.display());
            format!("cannot rename {path} to {aside}")
        })?;
        Ok(true)
    }

    /// Where the record of a run lies that was invalid for the `number`th time: no report takes it for one of its
    /// own.
    fn aside(&self, run: Run, number: usize) -> PathBuf {
        self.out.join(self.file_of(run)).with_extension(format!("invalid-{number}"))
    }

    /// Which runs were repeated, and how often, in Markdown; nothing if none was.
    pub(super) fn repeated(&self) -> String {
        let mut text = String::new();
        for run in self.plan.runs() {
            let asides = (1..=REPEATS_MAX).map(|number| self.aside(run, number));
            let count = asides.filter(|aside| aside.exists()).count();
            if count == 0 {
                continue;
            }
            if text.is_empty() {
                text.push_str(
                    "\n## Repeated runs\n\nInvalid, and done again; what they were is in \
                     `<run>.invalid-<n>`, a record each.\n\n",
                );
            }
            let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
            writeln!(text, "- {}: {times}", self.file_of(run))
                .expect("a String takes whatever is written");
        }
        text
    }
}
