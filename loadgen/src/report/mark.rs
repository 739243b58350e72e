//! Marks: what a figure in a suite's tables does not say, as a sign behind it and a sentence below.

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use crate::record::RunRecord;

/// Why a figure says less than others do. In the order in which the signs are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Loadgen, or the round trip, was the limit ([`RunRecord::is_bound`]), or the server had time to spare
    /// ([`RunRecord::server_cpu_share_if_unsaturated`]).
    Bound,
    /// Times are of answered messages, and not all were ([`RunRecord::is_of_answered`]).
    Answered,
    /// Some runs of the server ended in a failure or an overload of its own: what is shown is of the others.
    Survivors,
    /// An open loop's rate is a share of a knee that could not be judged to its end.
    OpenKnee,
    /// What else ran on the machine took so much of a core that p99 of an open loop may be of that
    /// ([`RunRecord::others_in_p99`]).
    Others,
}

impl Mark {
    /// All of them.
    pub(super) const ALL: [Mark; 5] =
        [Mark::Bound, Mark::Answered, Mark::Survivors, Mark::OpenKnee, Mark::Others];

    /// That of a run which failed a gate and yet says something.
    pub fn of(record: &RunRecord) -> Option<Self> {
        if record.is_bound() {
            return Some(Mark::Bound);
        }
        record.is_of_answered().then_some(Mark::Answered)
    }

    /// What it means.
    pub(super) fn legend(self) -> &'static str {
        match self {
            Mark::Bound => {
                "† loadgen's core was full, or the server's was not, because messages were on their way: messages/s \
                 are at least, and S at most, what the server can do. CPU time for a message is the server's own, at \
                 that load."
            }
            Mark::Answered => {
                "§ fewer messages came back than were in flight, because the server answered some streams and let others \
                 wait: messages/s and CPU time for a message are the server's, S would be of those that it answered \
                 and is left out."
            }
            Mark::Survivors => {
                "¶ in some of its runs the server was overloaded or failed, and those are not counted: figures are of the others."
            }
            Mark::OpenKnee => {
                "‡ the rate is a share of the highest load that loadgen could judge here; the server may carry more."
            }
            Mark::Others => {
                "‖ other programs, or the kernel's own threads, used a hundredth of a core or more in some of its runs: as many messages \
                 may have waited for those, so the server's own p99 is at most what is shown."
            }
        }
    }
}

impl Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Mark::Bound => "†",
            Mark::Answered => "§",
            Mark::Survivors => "¶",
            Mark::OpenKnee => "‡",
            Mark::Others => "‖",
        })
    }
}

/// What stands behind a figure: nothing, or a space and its marks.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(BTreeSet<Mark>);

impl Marks {
    pub(super) fn contains(&self, mark: Mark) -> bool {
        self.0.contains(&mark)
    }
}

impl FromIterator<Mark> for Marks {
    fn from_iter<I: IntoIterator<Item = Mark>>(marks: I) -> Self {
        Marks(marks.into_iter().collect())
    }
}

impl IntoIterator for Marks {
    type Item = Mark;
    type IntoIter = std::collections::btree_set::IntoIter<Mark>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Display for Marks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, mark) in self.0.iter().enumerate() {
            write!(out, "{}{mark}", if place == 0 { " " } else { "" })?;
        }
        Ok(())
    }
}
