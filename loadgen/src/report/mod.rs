//! What is shown of a record: pure, records in, text out.

mod added;
mod chart;
mod comparison;
mod csv;
#[cfg(test)]
pub(crate) mod example;
mod hgrm;
mod html;
mod live;
mod looks;
mod mark;
mod markdown;
mod pairs;
mod summary;
mod svg;
mod table;
mod verdict;

pub use self::added::Added;
pub use self::comparison::{
    Compared, Comparison, Contender, Figure, Figures, Outcome, Spread, paired_ratios,
};
pub use self::csv::{COLUMNS, csv, csv_of_log};
pub use self::hgrm::hgrm;
pub use self::html::html;
pub use self::live::{Live, LiveLine};
pub use self::looks::Looks;
pub use self::mark::Mark;
pub use self::markdown::{in_a_cell, markdown};
pub use self::pairs::{Finding, Look, Pairs, Question};
pub use self::svg::svg;
pub use self::table::{spread, table};
pub use self::verdict::{Metric, NoValue, Verdicts};

use crate::record::RunRecord;
use crate::scenario::{Arrivals, Load};

/// How messages were planned. Runs of different models answer different questions: they share no axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LoadModel {
    OpenUniform,
    OpenPoisson,
    Closed,
}

impl LoadModel {
    fn of(load: &Load) -> Self {
        match load {
            Load::OpenLoop { arrivals: Arrivals::Uniform, .. } => LoadModel::OpenUniform,
            Load::OpenLoop { arrivals: Arrivals::Poisson, .. } => LoadModel::OpenPoisson,
            Load::ClosedLoop { .. } => LoadModel::Closed,
        }
    }

    /// The model, and by which time its messages are judged.
    fn name(self) -> &'static str {
        match self {
            LoadModel::OpenUniform => "open loop, uniform arrivals: response time R",
            LoadModel::OpenPoisson => "open loop, Poisson arrivals: response time R",
            LoadModel::Closed => "closed loop: service time S",
        }
    }
}

/// The records by their load models; within a model in their order. An invalid run says so in its name: a figure
/// is looked at without its page.
fn loads(records: &[(String, RunRecord)]) -> Vec<(LoadModel, Vec<(String, &RunRecord)>)> {
    let mut models = std::collections::BTreeMap::<LoadModel, Vec<_>>::new();
    for (name, record) in records {
        let model = LoadModel::of(&record.scenario.load);
        let mark = if record.is_valid() == Some(false) { " (INVALID)" } else { "" };
        models.entry(model).or_default().push((format!("{name}{mark}"), record));
    }
    models.into_iter().collect()
}
