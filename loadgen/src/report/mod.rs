//! What is shown of a record: pure, records in, text out.

mod comparison;
mod live;
mod markdown;
mod pairs;
mod table;
mod verdict;

pub use self::comparison::{
    Compared, Comparison, Contender, Figure, Figures, Outcome, Spread, paired_ratios,
};
pub use self::live::{Live, LiveLine};
pub use self::markdown::markdown;
pub use self::pairs::{Finding, Pairs, Question, findings};
pub use self::table::{spread, table};
pub use self::verdict::{Metric, Verdicts};
