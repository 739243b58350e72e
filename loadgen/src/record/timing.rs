//! The times of a record by name: one list for logs, tables, charts and flags.

use clap::ValueEnum;

use super::{Hdr, Measured};

/// Messages without an echo, lost or shed: later than all that have one, and in no histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Of the load.
    pub load: u64,
    /// Of the probe stream beside it.
    pub probe: u64,
}

impl Missing {
    /// Those of a run.
    pub fn of(measured: &Measured) -> Self {
        let of_probe = measured.probe.as_ref().map_or(0, |probe| probe.messages_lost);
        Missing { load: measured.missing(), probe: of_probe }
    }

    /// Both runs'.
    #[must_use]
    pub fn and(self, other: Missing) -> Missing {
        Missing {
            load: self.load.saturating_add(other.load),
            probe: self.probe.saturating_add(other.probe),
        }
    }
}

/// A time that [`Measured`] holds a histogram of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Timing {
    /// R, received - intended. Open loop only.
    ResponseTime,
    /// L, queued - intended. Open loop only.
    SendLag,
    /// W, pulled - queued.
    FlowWait,
    /// S, received - pulled.
    ServiceTime,
    /// How far gaps between a stream's departures were from the plan's. Open loop only.
    GapError,
    /// R of the probe stream. Open loop with a probe only.
    ProbeResponseTime,
    /// S of the probe stream. Open loop with a probe only.
    ProbeServiceTime,
    /// A connection's TCP handshake.
    Connect,
    /// From a stream's call to its response headers.
    ResponseHeaders,
    /// A stream's first message, pulled to received.
    FirstMessage,
    /// From a stream's half-close to its status.
    HalfClose,
}

impl Timing {
    /// All of them, in the record's order.
    pub const ALL: [Timing; 11] = [
        Timing::ResponseTime,
        Timing::SendLag,
        Timing::FlowWait,
        Timing::ServiceTime,
        Timing::GapError,
        Timing::ProbeResponseTime,
        Timing::ProbeServiceTime,
        Timing::Connect,
        Timing::ResponseHeaders,
        Timing::FirstMessage,
        Timing::HalfClose,
    ];

    /// The four that a message's way is made of, in the record's order.
    pub const OF_MESSAGES: [Timing; 4] =
        [Timing::ResponseTime, Timing::SendLag, Timing::FlowWait, Timing::ServiceTime];

    /// Where it stands in the record, below `measured`.
    pub fn path(self) -> &'static str {
        match self {
            Timing::ProbeResponseTime => "probe.response_time",
            Timing::ProbeServiceTime => "probe.service_time",
            other => other.key(),
        }
    }

    /// Its name: a tag in a log, and what is typed.
    pub fn key(self) -> &'static str {
        match self {
            Timing::ResponseTime => "response_time",
            Timing::SendLag => "send_lag",
            Timing::FlowWait => "flow_wait",
            Timing::ServiceTime => "service_time",
            Timing::GapError => "gap_error",
            Timing::ProbeResponseTime => "probe_response_time",
            Timing::ProbeServiceTime => "probe_service_time",
            Timing::Connect => "connect",
            Timing::ResponseHeaders => "response_headers",
            Timing::FirstMessage => "first_message",
            Timing::HalfClose => "half_close",
        }
    }

    /// What a message is judged by: R in open loop; S in closed loop, which has no plan to be late for.
    pub fn headline(measured: &Measured) -> Timing {
        match measured.response_time {
            Some(_) => Timing::ResponseTime,
            None => Timing::ServiceTime,
        }
    }

    /// The tag of a run's seconds in logs and tables: which time they are of. Response times and service times are
    /// never added.
    pub fn seconds_tag(measured: &Measured) -> &'static str {
        match Timing::headline(measured) {
            Timing::ResponseTime => "response_time_by_second",
            _ => "service_time_by_second",
        }
    }

    /// Messages that have no echo, and so waited longer than those that have one. What happens before a message
    /// leaves does not know of them.
    pub fn missing(self, measured: &Measured) -> u64 {
        self.of_missing(Missing::of(measured))
    }

    /// The same of those that are told elsewhere than in a record.
    pub fn of_missing(self, missing: Missing) -> u64 {
        match self {
            Timing::ResponseTime | Timing::ServiceTime => missing.load,
            Timing::ProbeResponseTime | Timing::ProbeServiceTime => missing.probe,
            _ => 0,
        }
    }

    /// Its histogram; `None` in closed loop for what only an open loop has.
    pub fn of(self, measured: &Measured) -> Option<&Hdr> {
        match self {
            Timing::ResponseTime => measured.response_time.as_ref(),
            Timing::SendLag => measured.send_lag.as_ref(),
            Timing::FlowWait => measured.flow_wait.as_ref(),
            Timing::ServiceTime => Some(&measured.service_time),
            Timing::GapError => measured.gap_error.as_ref(),
            Timing::ProbeResponseTime => measured.probe.as_ref().map(|probe| &probe.response_time),
            Timing::ProbeServiceTime => measured.probe.as_ref().map(|probe| &probe.service_time),
            Timing::Connect => Some(&measured.connect),
            Timing::ResponseHeaders => Some(&measured.response_headers),
            Timing::FirstMessage => Some(&measured.first_message),
            Timing::HalfClose => Some(&measured.half_close),
        }
    }
}
