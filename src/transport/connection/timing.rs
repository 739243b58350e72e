//! What a connection does because time has passed or the server drains.
//!
//! In: the clock of the turn, the signals of the drain. Out: GOAWAY in two steps, streams and
//! connections that end, pings; and one timer, armed for the earliest of all that may be due.

use std::task::Context;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep_until;

use super::super::frame::{self, ErrorCode, Fault};
use super::super::output::Output;
use super::super::stream::BodyError;
use super::streams::ENDED_PER_LOOK;
use super::{
    Connection, Expiry, GOAWAY_PATIENCE, GREETING_PATIENCE, Handshake, LATER, PING_DRAIN,
    PING_KEEPALIVE, Phase, Role, SCARCITY_PATIENCE, Slot,
};

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    pub(super) fn heed_signals(&mut self, cx: &mut Context<'_>) {
        let Some(signals) = &mut self.signals else { return };
        if matches!(self.phase, Phase::Closing | Phase::Lingering) {
            if signals.cut_off.is_set(cx) {
                // Nobody has time to linger.
                self.clocks.close_by = Some(self.wire.now);
            }
            return;
        }
        if signals.leave.is_set(cx) && self.phase == Phase::Open {
            self.leave();
        }
        let Some(signals) = &mut self.signals else { return };
        if !self.stopped && signals.stop.is_set(cx) {
            self.stop();
        }
        let Some(signals) = &mut self.signals else { return };
        if signals.cut_off.is_set(cx) {
            self.cut_off();
        }
    }

    /// Says that the peer should go: GOAWAY in two steps, so that no stream that is on its way is lost,
    /// be it that of a client whose preface has not been read yet.
    fn leave(&mut self) {
        let any = (1 << 31) - 1;
        frame::goaway(&mut self.wire.out.tail, any, ErrorCode::NO_ERROR, "draining");
        frame::ping(&mut self.wire.out.tail, &PING_DRAIN, false);
        self.phase = Phase::Leaving;
        if !R::IS_SERVER {
            // Whoever would wait to be opened here is told, and goes elsewhere.
            self.role.refuse_openings(BodyError::GoAway(ErrorCode::NO_ERROR));
        }
        self.clocks.leaving_since = Some(self.wire.now);
    }

    /// When the second GOAWAY leaves, although the ping was not answered.
    fn last_stream_due(&self) -> Option<Instant> {
        let since = self.clocks.leaving_since.filter(|_| self.phase == Phase::Leaving)?;
        Some(since + if self.is_greeted() { GOAWAY_PATIENCE } else { GREETING_PATIENCE })
    }

    /// Whether the peer's preface and first SETTINGS came.
    fn is_greeted(&self) -> bool {
        matches!(self.handshake, Handshake::Ack | Handshake::Done)
    }

    /// The second GOAWAY: streams above the last that we saw will not be served.
    pub(super) fn name_last_stream(&mut self) {
        let last = self.last_peer_stream;
        frame::goaway(&mut self.wire.out.tail, last, ErrorCode::NO_ERROR, "draining");
        self.last_accepted = Some(last);
        self.phase = Phase::Draining;
    }

    /// Handlers get nothing more; what they took is still answered.
    fn stop(&mut self) {
        self.stopped = true;
        if self.phase != Phase::Draining {
            self.name_last_stream();
        }
        for (_, Slot { core, app }) in &mut self.streams {
            if core.is_dead {
                continue;
            }
            self.wire.buffered -= R::buffered(app);
            self.role.broken(app, BodyError::SHUTDOWN);
            self.wire.run(core);
        }
    }

    /// Whatever is still there ends now, or in the next turns; the output gets one more chance to leave.
    fn cut_off(&mut self) {
        // The peer may try again what it sent meanwhile only if it knows that (RFC 9113, 6.8).
        if matches!(self.phase, Phase::Open | Phase::Leaving) {
            self.name_last_stream();
        }
        let mut ended = 0;
        while self.cut_at < self.streams.capacity() {
            self.expire_stream(self.cut_at, Expiry::Drained);
            self.cut_at += 1;
            ended += 1;
            if self.has_had_its_time(&mut ended, ENDED_PER_LOOK) {
                self.clocks.cut_off_at = Some(self.wire.now);
                return;
            }
        }
        self.close();
        self.lose_streams(&BodyError::SHUTDOWN);
        self.clocks.close_by = Some(self.wire.now);
    }

    fn expire_stream(&mut self, slot: usize, why: Expiry) {
        let Some(Slot { core, app }) = self.streams.get_mut(slot) else { return };
        if core.is_dead {
            return;
        }
        self.counters.stream_expired(why.reason());
        // A client's stream goes on until its answer is whole, and whoever waits for that is told.
        if !core.local_closed || !R::IS_SERVER {
            // The peer may provoke it as often as it likes, and whatever room the output has.
            self.wire.reply(|wire| self.role.expire(core, app, wire, why));
        }
        if core.local_closed {
            let slot = core.key.slot;
            if !core.remote_closed {
                self.wire.reset(core, ErrorCode::NO_ERROR);
            }
            self.finish(slot);
        }
    }

    /// When something is due next.
    fn next_due(&self) -> Option<Instant> {
        let (clocks, limits) = (&self.clocks, &self.wire.limits);
        if let Some(close_by) = clocks.close_by {
            return Some(close_by);
        }
        let idle = limits.connection_idle_timeout.filter(|_| self.streams.is_empty());
        let keepalive = limits.keepalive.map(|keepalive| match clocks.ping_sent {
            Some(sent) => sent.max(clocks.last_read) + keepalive.timeout,
            None => clocks.last_read + keepalive.interval,
        });
        [
            (!self.is_greeted()).then(|| clocks.began + limits.handshake_timeout),
            self.block.as_ref().map(|block| block.began + limits.header_block_timeout),
            idle.map(|idle| clocks.last_busy + idle),
            keepalive,
            self.last_stream_due(),
            self.unwritable.as_ref().map(|unwritable| unwritable.until),
            limits.stall_timeout.and_then(|stall| clocks.write_stalled.map(|since| since + stall)),
            clocks.reading_paused.map(|since| since + limits.control_stall_timeout),
            clocks.leave_at,
            clocks.cut_off_at,
            self.deadlines.first().map(|(deadline, _)| *deadline),
            clocks.next_sweep.filter(|_| !self.streams.is_empty()),
            self.wire.later_begun.map(|begun| begun + LATER),
            self.wire.withheld_since.map(|since| since + SCARCITY_PATIENCE),
            limits.stall_timeout.and_then(|stall| Some(self.wire.starved_since? + stall)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Waits for the next thing that is due. Out: whether something is due already.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> bool {
        if self.expire_if_due() {
            return true;
        }
        let Some(due) = self.next_due() else { return false };
        // A timer that is armed for earlier stays: deadlines move with every read, and it is cheaper
        // to wake once for nothing than to move it each time.
        if self.armed.is_none_or(|armed| armed > due) {
            self.armed = Some(due);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(due.into()),
                None => self.timer = Some(Box::pin(sleep_until(due.into()))),
            }
        }
        let timer = self.timer.as_mut().expect("armed above");
        if Future::poll(timer.as_mut(), cx).is_pending() {
            return false;
        }
        self.armed = None;
        true
    }

    /// Does what is due. Out: whether anything was.
    pub(super) fn expire_if_due(&mut self) -> bool {
        self.plan_sweep();
        let is_due = self.next_due().is_some_and(|due| due <= self.wire.now);
        if is_due {
            self.expire();
        }
        is_due
    }

    /// Looks for streams that stall or idle, from time to time, while there are any.
    fn plan_sweep(&mut self) {
        let limits = &self.wire.limits;
        let shortest =
            [limits.stall_timeout, limits.stream_idle_timeout].into_iter().flatten().min();
        match shortest {
            Some(shortest) if !self.streams.is_empty() => {
                self.clocks.next_sweep.get_or_insert(self.wire.now + shortest / 4);
            }
            _ => self.clocks.next_sweep = None,
        }
    }

    /// Does what is due.
    fn expire(&mut self) {
        let now = self.wire.now;
        let limits = self.wire.limits.clone();
        let is_due = |since: Option<Instant>, after: Duration| {
            since.is_some_and(|since| since + after <= now)
        };
        if self.clocks.close_by.is_some_and(|at| at <= now) {
            // Shut down and lingered, or unable to write: there is nothing left to wait for.
            self.wire.out = Output::default();
            self.phase = Phase::Lingering;
            self.is_abandoned = true;
            return;
        }
        if let Some(unwritable) = self.unwritable.take_if(|it| it.until <= now) {
            self.ended = Some(Err(unwritable.error));
            return self.lose_connection();
        }
        if !self.is_greeted() && is_due(Some(self.clocks.began), limits.handshake_timeout) {
            return self.fault(Fault::calm("handshake_timeout"));
        }
        if is_due(self.block.as_ref().map(|block| block.began), limits.header_block_timeout) {
            return self.fault(Fault::calm("header_block_timeout"));
        }
        let is_stalled =
            limits.stall_timeout.is_some_and(|stall| is_due(self.clocks.write_stalled, stall));
        if is_stalled || is_due(self.clocks.reading_paused, limits.control_stall_timeout) {
            self.fault(Fault::calm("peer_does_not_read"));
            self.clocks.close_by = Some(now);
            return;
        }
        if let Some(idle) = limits.connection_idle_timeout
            && self.streams.is_empty()
            && is_due(Some(self.clocks.last_busy), idle)
        {
            return self.fault(Fault { code: ErrorCode::NO_ERROR, reason: "idle_connection" });
        }
        if self.clocks.cut_off_at.is_some_and(|at| at <= now) {
            return self.cut_off();
        }
        if self.clocks.leave_at.is_some_and(|at| at <= now) {
            self.clocks.leave_at = None;
            let grace = limits.age.and_then(|age| age.grace);
            // Whoever was leaving already gets no longer than the others.
            self.clocks.cut_off_at = grace.map(|grace| now + grace);
            if self.phase == Phase::Open {
                self.leave();
            }
        }
        if self.last_stream_due().is_some_and(|at| at <= now) {
            self.name_last_stream();
        }
        if is_due(self.wire.later_begun, LATER) {
            self.ask_again(now);
        }
        // What it keeps is waited for by nobody but itself: messages that could not be finished since.
        if limits.stall_timeout.is_some_and(|stall| is_due(self.wire.starved_since, stall)) {
            return self.fault(Fault::calm("memory_scarce"));
        }
        if is_due(self.wire.withheld_since, SCARCITY_PATIENCE) {
            // The turn that this begins grants it, or withholds it again.
            self.wire.withheld_since = None;
        }
        self.keep_alive(now);
        let mut ended = 0;
        while let Some((deadline, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.remove(&(deadline, id));
            if let Some(slot) = self.index.get(&id).copied() {
                self.expire_stream(slot as usize, Expiry::Deadline);
            }
            ended += 1;
            if self.has_had_its_time(&mut ended, ENDED_PER_LOOK) {
                // The others are still due.
                return;
            }
        }
        if self.clocks.next_sweep.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    /// Runs the streams that nothing came for since they were deferred.
    fn ask_again(&mut self, now: Instant) {
        self.wire.later_begun = None;
        for _ in 0..self.wire.later.len() {
            let Some(key) = self.wire.later.pop_front() else { break };
            let Some(Slot { core, .. }) = self.streams.get_mut(key.slot as usize) else { continue };
            if core.key != key {
                continue;
            }
            core.is_later = false;
            match core.later_since {
                Some(since) if since + LATER > now => self.wire.defer_since(core, since),
                Some(_) => {
                    // One that something came for is not asked for the sake of that.
                    core.was_deferred = !core.is_queued;
                    self.wire.run(core);
                }
                None => {}
            }
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let Some(keepalive) = self.wire.limits.keepalive else { return };
        match self.clocks.ping_sent {
            // The answer may stand behind much that is read first: whoever sends is alive.
            Some(sent) if sent.max(self.clocks.last_read) + keepalive.timeout <= now => {
                self.fault(Fault::calm("keepalive_timeout"));
            }
            None if self.clocks.last_read + keepalive.interval <= now => {
                self.clocks.ping_sent = Some(now);
                frame::ping(&mut self.wire.out.tail, &PING_KEEPALIVE, false);
            }
            _ => {}
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.clocks.next_sweep = None;
        let limits = self.wire.limits.clone();
        let over = |since: Instant, after: Option<Duration>| {
            after.is_some_and(|after| since + after <= now)
        };
        // Siblings wait for what these streams hold.
        let is_used_up = self.wire.is_used_up();
        let mut expired = Vec::new();
        for (slot, Slot { core, app }) in &mut self.streams {
            if core.stalled_since.is_some_and(|since| over(since, limits.stall_timeout)) {
                // A client's that was asked already, and has more, is not asked again.
                if core.is_flushed() && (R::IS_SERVER || !core.is_asked) {
                    core.is_asked = true;
                    self.wire.run(core);
                } else {
                    expired.push((slot, Expiry::Stalled));
                }
            } else if is_used_up
                && R::buffered(app) > 0
                && over(core.unread_since, limits.stall_timeout)
            {
                expired.push((slot, Expiry::Unread));
            } else if over(core.last_frame, limits.stream_idle_timeout) {
                expired.push((slot, Expiry::Idle));
            }
        }
        let mut ended = 0;
        for (slot, why) in expired {
            self.expire_stream(slot, why);
            ended += 1;
            if self.has_had_its_time(&mut ended, ENDED_PER_LOOK) {
                // The others will be found again.
                self.clocks.next_sweep = Some(now);
                return;
            }
        }
    }
}
