//! Whether a run met its goals.

use super::{Hdr, Measured, is_supported};
use crate::slo::{Goal, Metric, Slo};
use crate::units::Nanos;

impl Measured {
    /// R, or in closed loop, which plans nothing, S.
    pub fn latency(&self) -> &Hdr {
        self.response_time.as_ref().unwrap_or(&self.service_time)
    }

    /// Messages without an echo, lost or shed: later than all that have one.
    pub fn missing(&self) -> u64 {
        self.messages_lost + self.messages_shed
    }

    /// A percentile of [`Measured::latency`], with what is [`Measured::missing`]; and whether it falls among
    /// that, so that all that is known is that it lies beyond the value.
    pub fn percentile(&self, percent: f64) -> (Nanos, bool) {
        self.latency().percentile_among(percent, self.missing())
    }

    /// Messages lost, shed or wrong, and streams that did not end with OK or at all.
    pub fn errors(&self) -> u64 {
        let statuses = self.statuses.iter().filter(|(status, _)| *status != "OK");
        let streams: u64 = statuses.map(|(_, streams)| streams).sum();
        self.messages_lost
            + self.messages_shed
            + self.messages_wrong
            + streams
            + self.streams_unfinished
    }

    /// Something measured, nothing lost, nothing wrong, every stream ended with OK.
    pub fn is_well(&self) -> bool {
        self.messages_due > 0
            && self.messages_lost == 0
            && self.messages_wrong == 0
            && self.streams_unfinished == 0
            && self.first_failure.is_none()
            && self.statuses.keys().all(|status| status == "OK")
    }

    /// What keeps `slo` from being met, a line for each goal; none if all are.
    pub fn missed(&self, slo: &Slo) -> Vec<String> {
        slo.0.iter().filter_map(|goal| self.missed_goal(*goal)).collect()
    }

    /// Why a run is too short to tell whether it met its goals: the first percentile that its messages do not hold up.
    pub fn too_few(&self, slo: &Slo) -> Option<String> {
        slo.0.iter().find_map(|goal| match goal.metric {
            Metric::Percentile(percent) => self.too_few_for(*goal, percent),
            _ => None,
        })
    }

    fn too_few_for(&self, goal: Goal, percent: f64) -> Option<String> {
        let count = self.latency().count();
        let (_, is_beyond) = self.percentile(percent);
        let is_shown = is_beyond || is_supported(count, percent);
        (!is_shown).then(|| format!("{goal}: not shown, {count} messages are too few for it"))
    }

    fn missed_goal(&self, goal: Goal) -> Option<String> {
        let latency = self.latency();
        let missing = self.missing();
        let figure = match goal.metric {
            Metric::Percentile(percent) => {
                let (value, is_beyond) = self.percentile(percent);
                if is_beyond {
                    return Some(format!("{goal}: >{value}, {missing} messages have no echo"));
                }
                if let Some(why) = self.too_few_for(goal, percent) {
                    return Some(why);
                }
                value.0 as f64
            }
            Metric::Mean if missing > 0 => {
                return Some(format!("{goal}: not known, {missing} messages have no echo"));
            }
            Metric::Max if missing > 0 => {
                let longest = latency.max();
                return Some(format!("{goal}: >{longest}, {missing} messages have no echo"));
            }
            Metric::Max => latency.max().0 as f64,
            Metric::Mean => latency.mean_ns(),
            Metric::Errors => self.errors() as f64,
            Metric::Throughput => self.throughput_messages_per_s,
        };
        (!goal.is_met(figure)).then(|| format!("{goal}: {}", goal.metric.show(figure)))
    }
}
