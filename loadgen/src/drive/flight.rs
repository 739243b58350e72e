//! One stream's messages between the plan and the echo: two queues and the rules between them.
//!
//! In: a message is due, the transport asks for one, an echo came, nothing more will be due. Out:
//! what to send, the instants of what was echoed, and what was lost. Reads no clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use tonic::Code;

use super::timeline::Timeline;
use crate::scenario::{Blocked, Load};
use crate::units::Nanos;

/// A message that is due and waits for the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    intended: Nanos,
    queued: Nanos,
}

/// A message that the transport took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) sequence: u64,
    pub(crate) intended: Nanos,
    pub(crate) queued: Nanos,
    pub(crate) pulled: Nanos,
}

/// What the transport gets when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pull {
    /// The message with this sequence number.
    Message(u64),
    /// Nothing yet.
    Wait,
    /// Nothing more: half-close.
    End,
}

/// What became of a message that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Whether it is one of the run's at all, sent, shed or lost: none is once the window is over, or the stream's part of
    /// the messages used up.
    pub(crate) is_due: bool,
    /// Whether another may follow; if not, the stream will half-close when all are sent.
    pub(crate) goes_on: bool,
}

/// A message that waits so long for the transport to take it blocks its stream; less is the transport's
/// usual turn.
const BLOCKED_AFTER: Nanos = Nanos(1_000_000);

/// What is pulled so long after the window still left in it: the grain of timers and turns.
const SENT_GRACE: Nanos = Nanos(1_000_000);

/// One stream's messages.
#[derive(Debug)]
pub(crate) struct Flight {
    timeline: Arc<Timeline>,
    due: VecDeque<Due>,
    sent: VecDeque<Sent>,
    in_flight_max: usize,
    blocked: Blocked,
    /// Whether each echo makes the next message due.
    pub(crate) closed_loop: bool,
    /// Messages of the measurement that may still become due.
    quota: u64,
    next_sequence: u64,
    /// Nothing more will be due.
    last: bool,
    /// Who waits for a message to send.
    waiting: Option<Waker>,
    /// When the transport was told of the end.
    pub(crate) half_closed: Option<Nanos>,
    /// How the stream ended.
    pub(crate) status: Option<Code>,
    /// Messages of the measurement that can no longer be echoed.
    lost: Lost,
    /// Messages of the measurement that became due.
    pub(crate) counted: u64,
    /// Echoes of the measurement.
    pub(crate) echoes: u64,
    /// Messages of the measurement that the transport took only after the window, echoed or not.
    pub(crate) sent_late: u64,
}

/// Messages of the measurement that were not echoed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Never taken by the transport.
    pub(crate) unsent: u64,
    /// Taken, but not echoed.
    pub(crate) unanswered: u64,
    /// Left out because the stream was blocked.
    pub(crate) shed: u64,
}

impl Flight {
    /// A stream under `load` with at most `quota` messages in the measurement.
    pub(crate) fn new(timeline: Arc<Timeline>, load: &Load, quota: u64) -> Self {
        let (closed_loop, in_flight_max, blocked) = match *load {
            Load::ClosedLoop { in_flight_max } => (true, in_flight_max, Blocked::Queue),
            Load::OpenLoop { in_flight_max, blocked, .. } => {
                (false, in_flight_max.unwrap_or(usize::MAX), blocked)
            }
        };
        Flight {
            timeline,
            due: VecDeque::new(),
            sent: VecDeque::new(),
            in_flight_max,
            blocked,
            closed_loop,
            quota,
            next_sequence: 0,
            last: false,
            waiting: None,
            half_closed: None,
            status: None,
            lost: Lost::default(),
            counted: 0,
            echoes: 0,
            sent_late: 0,
        }
    }

    /// A stream beside the load: one message is due at `now`, and then none until it is told to finish.
    pub(crate) fn idle(timeline: Arc<Timeline>, now: Nanos) -> Self {
        let mut flight = Flight::new(timeline, &Load::ClosedLoop { in_flight_max: 1 }, u64::MAX);
        flight.closed_loop = false;
        flight.queue(now, now);
        flight
    }

    /// A message is due: planned for `intended` (by which it is counted), handed over at `queued`. It is left out
    /// if [`Flight::sheds`] says so.
    pub(crate) fn queue(&mut self, intended: Nanos, queued: Nanos) -> Queued {
        let counts = intended >= self.timeline.window_begin();
        let is_over = self.last || intended >= self.timeline.window_end();
        if is_over || (counts && self.quota == 0) {
            self.finish();
            return Queued { is_due: false, goes_on: false };
        }
        self.quota -= u64::from(counts);
        self.counted += u64::from(counts);
        if self.status.is_some() {
            self.lost.unsent += u64::from(counts);
        } else if self.sheds(queued) {
            self.lost.shed += u64::from(counts);
        } else {
            self.due.push_back(Due { intended, queued });
            self.wake_if_there_is_room();
        }
        if self.quota == 0 {
            self.finish();
        }
        Queued { is_due: true, goes_on: !self.last }
    }

    /// Whether what is due at `now` is left out, because the stream is blocked and sheds.
    pub(crate) fn sheds(&self, now: Nanos) -> bool {
        self.blocked == Blocked::Shed && self.status.is_none() && self.is_blocked(now)
    }

    fn is_blocked(&self, now: Nanos) -> bool {
        self.outstanding() >= self.in_flight_max
            || self.due.front().is_some_and(|first| now.since(first.queued) > BLOCKED_AFTER)
    }

    /// Nothing more will be due.
    pub(crate) fn finish(&mut self) {
        if !self.last {
            self.last = true;
            self.wake();
        }
    }

    /// The transport asks at `now` for a message to send.
    pub(crate) fn pull(&mut self, now: impl FnOnce() -> Nanos) -> Pull {
        match self.due.front() {
            None if self.last => {
                self.half_closed.get_or_insert_with(now);
                Pull::End
            }
            Some(&Due { intended, queued }) if self.sent.len() < self.in_flight_max => {
                self.due.pop_front();
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                let pulled = now();
                if pulled > self.timeline.window_end() {
                    self.count_late(intended, pulled);
                }
                self.sent.push_back(Sent { sequence, intended, queued, pulled });
                Pull::Message(sequence)
            }
            _ => Pull::Wait,
        }
    }

    #[cold]
    fn count_late(&mut self, intended: Nanos, pulled: Nanos) {
        let is_late = pulled.since(self.timeline.window_end()) > SENT_GRACE;
        self.sent_late += u64::from(is_late && self.timeline.counts(intended));
    }

    /// Whom to wake when [`Flight::pull`] said `Wait` and something changes.
    pub(crate) fn wait(&mut self, waker: &Waker) {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(waker)) {
            self.waiting = Some(waker.clone());
        }
    }

    /// Wakes nobody until [`Flight::listen`], which takes what this gives: the one who waits is about to
    /// ask anyway.
    pub(crate) fn hush(&mut self) -> Option<Waker> {
        self.waiting.take()
    }

    /// Wakes again.
    pub(crate) fn listen(&mut self, waiting: Option<Waker>) {
        self.waiting = waiting;
    }

    /// The message that the next echo must answer, still in flight.
    pub(crate) fn expected(&self) -> Option<u64> {
        self.sent.front().map(|sent| sent.sequence)
    }

    /// The echo of the first message in flight came; there is room for another.
    pub(crate) fn land(&mut self) -> Option<Sent> {
        let landed = self.sent.pop_front();
        self.wake_if_there_is_room();
        landed
    }

    /// Message `sequence` was echoed although those before it were not: they are lost.
    ///
    /// Says how many; `None` if it is not in flight at all.
    pub(crate) fn skip_to(&mut self, sequence: u64) -> Option<usize> {
        let skipped = self.sent.iter().position(|sent| sent.sequence == sequence)?;
        for sent in self.sent.drain(..skipped) {
            self.lost.unanswered += u64::from(self.timeline.counts(sent.intended));
        }
        Some(skipped)
    }

    /// The stream ended with `status`: what was not echoed never will be.
    pub(crate) fn end(&mut self, status: Code) {
        self.status = Some(status);
        self.lost = self.lost();
        self.due.clear();
        self.sent.clear();
        self.waiting = None;
    }

    /// What is lost if nothing more comes.
    pub(crate) fn lost(&self) -> Lost {
        let counts = |intended: Nanos| self.timeline.counts(intended);
        let unsent = self.due.iter().filter(|due| counts(due.intended)).count() as u64;
        let unanswered = self.sent.iter().filter(|sent| counts(sent.intended)).count() as u64;
        Lost {
            unsent: self.lost.unsent + unsent,
            unanswered: self.lost.unanswered + unanswered,
            shed: self.lost.shed,
        }
    }

    /// Messages that are due and not echoed.
    pub(crate) fn outstanding(&self) -> usize {
        self.due.len() + self.sent.len()
    }

    fn wake_if_there_is_room(&mut self) {
        if !self.due.is_empty() && self.sent.len() < self.in_flight_max {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waiting) = &self.waiting {
            waiting.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Nanos = Nanos(100);
    const END: Nanos = Nanos(200);

    fn flight(in_flight_max: usize, quota: u64) -> Flight {
        let timeline = Timeline::unknown();
        timeline.set(Nanos(0), BEGIN, END);
        Flight::new(Arc::new(timeline), &Load::ClosedLoop { in_flight_max }, quota)
    }

    fn queue(flight: &mut Flight, at: u64) -> bool {
        flight.queue(Nanos(at), Nanos(at)).goes_on
    }

    #[test]
    fn a_message_waits_for_in_flight_room_and_keeps_its_instants() {
        let mut flight = flight(1, u64::MAX);
        assert!(queue(&mut flight, 110));
        let queued = flight.queue(Nanos(111), Nanos(112));
        assert_eq!(queued, Queued { is_due: true, goes_on: true });
        assert_eq!(flight.pull(|| Nanos(120)), Pull::Message(0));
        assert_eq!(flight.pull(|| Nanos(121)), Pull::Wait);
        assert_eq!(flight.land().unwrap().pulled, Nanos(120));
        assert_eq!(flight.pull(|| Nanos(130)), Pull::Message(1));
        let second =
            Sent { sequence: 1, intended: Nanos(111), queued: Nanos(112), pulled: Nanos(130) };
        assert_eq!(flight.land(), Some(second));
    }

    #[test]
    fn a_blocked_stream_sheds_what_is_due_if_it_was_told_to() {
        let timeline = Timeline::unknown();
        timeline.set(Nanos(0), Nanos(0), Nanos::NEVER);
        let load = Load::OpenLoop {
            rate_messages_per_s: crate::units::MessagesPerSecond(1.0),
            arrivals: crate::scenario::Arrivals::Uniform,
            in_flight_max: Some(2),
            blocked: Blocked::Shed,
            backlog_max: 9,
        };
        let mut flight = Flight::new(Arc::new(timeline), &load, u64::MAX);
        for at in 0..3 {
            assert_eq!(flight.sheds(Nanos(at)), at == 2);
            assert!(queue(&mut flight, at), "there is no room for the third, but it goes on");
        }
        assert_eq!(flight.lost().shed, 1);
        assert_eq!(flight.pull(|| Nanos(9)), Pull::Message(0));
        assert!(flight.land().is_some());
        // The second waits for the transport: a little is nothing, more is a blocked stream.
        queue(&mut flight, 1 + BLOCKED_AFTER.0);
        assert_eq!((flight.lost().shed, flight.outstanding()), (1, 2));
        assert_eq!(flight.pull(|| Nanos(9)), Pull::Message(1));
        assert!(flight.land().is_some());
        queue(&mut flight, 3 + 2 * BLOCKED_AFTER.0);
        assert_eq!((flight.lost().shed, flight.outstanding()), (2, 1));
    }

    #[test]
    fn the_window_ends_the_stream_after_what_is_due_was_sent() {
        let mut flight = flight(8, u64::MAX);
        assert!(queue(&mut flight, 199));
        assert!(!queue(&mut flight, 200));
        assert_eq!(flight.pull(|| Nanos(201)), Pull::Message(0));
        assert_eq!(flight.pull(|| Nanos(202)), Pull::End);
        assert_eq!(flight.half_closed, Some(Nanos(202)));
    }

    #[test]
    fn the_quota_counts_the_measurement_only() {
        let mut flight = flight(8, 2);
        assert!(queue(&mut flight, 50));
        assert!(queue(&mut flight, 100));
        assert!(!queue(&mut flight, 101), "the last one of the quota");
        let beyond = flight.queue(Nanos(102), Nanos(102));
        assert_eq!(beyond, Queued { is_due: false, goes_on: false });
        assert_eq!(flight.outstanding(), 3);
    }

    #[test]
    fn an_idle_stream_has_one_message_and_stays_open() {
        let mut flight = Flight::idle(Arc::new(Timeline::unknown()), Nanos(5));
        assert_eq!(flight.pull(|| Nanos(6)), Pull::Message(0));
        assert_eq!(flight.land().unwrap().queued, Nanos(5));
        assert_eq!((flight.pull(|| Nanos(7)), flight.outstanding()), (Pull::Wait, 0));
        flight.finish();
        assert_eq!(flight.pull(|| Nanos(8)), Pull::End);
        assert_eq!((flight.counted, flight.lost()), (0, Lost::default()));
    }

    #[test]
    fn what_is_lost_is_told_apart_by_how_far_it_came() {
        let mut flight = flight(2, u64::MAX);
        [50, 110, 120, 130].iter().for_each(|at| assert!(queue(&mut flight, *at)));
        assert_eq!(flight.pull(|| Nanos(140)), Pull::Message(0));
        assert_eq!(flight.pull(|| Nanos(140)), Pull::Message(1));
        assert_eq!(
            flight.lost(),
            Lost { unsent: 2, unanswered: 1, shed: 0 },
            "the warm-up is not counted"
        );
        flight.end(Code::Unavailable);
        assert!(queue(&mut flight, 150), "the schedule goes on without the stream");
        assert_eq!(flight.lost(), Lost { unsent: 3, unanswered: 1, shed: 0 });
    }

    #[test]
    fn what_leaves_after_the_window_left_late_whether_it_is_echoed_or_not() {
        let mut flight = flight(9, u64::MAX);
        [90, 110, 120, 130].iter().for_each(|at| assert!(queue(&mut flight, *at)));
        let grace = END + SENT_GRACE;
        let late = grace + Nanos(1);
        // The first is of the warm-up.
        for (sequence, pulled) in (0..).zip([late, END, grace, late]) {
            assert_eq!(flight.pull(|| pulled), Pull::Message(sequence));
        }
        assert_eq!(flight.sent_late, 1);
        flight.end(Code::Unavailable);
        assert_eq!((flight.sent_late, flight.lost().unanswered), (1, 3));
    }

    #[test]
    fn messages_that_are_skipped_are_lost() {
        let mut flight = flight(9, u64::MAX);
        for at in 110..114 {
            queue(&mut flight, at);
            flight.pull(|| Nanos(at));
        }
        assert_eq!(flight.skip_to(2), Some(2));
        assert_eq!(flight.expected(), Some(2));
        assert_eq!(flight.lost(), Lost { unsent: 0, unanswered: 4, shed: 0 });
        flight.land();
        flight.land();
        assert_eq!(flight.lost(), Lost { unsent: 0, unanswered: 2, shed: 0 });
        assert_eq!(flight.skip_to(1), None, "it is not in flight any more");
    }
}
