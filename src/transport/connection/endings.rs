//! How a stream ends before its time: refused, reset by the peer, or broken by it.
//!
//! Out: RST_STREAM where one is owed, counted against the flood that it may be a part of; the stream out of the
//! protocol at once, and its application in the queue of those that are dropped between frames.

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};

use super::super::frame::{self, ErrorCode, Fault, Head};
use super::super::limits::FloodKind;
use super::super::stream::BodyError;
use super::{Connection, RECENTLY_CLOSED, Role, Slot};

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    /// Ends a stream that was not begun.
    pub(super) fn refuse(
        &mut self,
        id: u32,
        code: ErrorCode,
        flood: FloodKind,
    ) -> Result<(), Fault> {
        match flood {
            FloodKind::Refused => self.counters.stream_refused(),
            _ => self.counters.stream_broken(),
        }
        self.wire.charge(flood)?;
        self.wire.control(|out| frame::rst_stream(out, id, code));
        Ok(())
    }

    /// The peer broke one stream: it is reset, the others live on.
    pub(super) fn stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        self.counters.stream_broken();
        self.wire.charge(FloodKind::ProvokedReset)?;
        if let Some(slot) = self.index.get(&id).copied() {
            let core = &mut self.streams[slot as usize].core;
            self.wire.reset(core, code);
            self.kill(slot, BodyError::Ended(reason));
        }
        Ok(())
    }

    /// A stream error of a stream that may not be there.
    pub(super) fn break_stream(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Fault> {
        if self.index.contains_key(&id) {
            return self.stream_error(id, code, reason);
        }
        if self.is_idle(id) {
            // RST_STREAM must not name an idle stream (RFC 9113, 6.4).
            return Err(Fault { code, reason });
        }
        self.refuse(id, code, FloodKind::ProvokedReset)
    }

    pub(super) fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let code = payload.try_into().map_err(|_| Fault::size("rst_stream_length"))?;
        let code = ErrorCode(u32::from_be_bytes(code));
        let Some(slot) = self.index.get(&head.stream).copied() else {
            self.frame_of_gone_stream(head)?;
            self.remember_closed(head.stream);
            return Ok(());
        };
        let core = &mut self.streams[slot as usize].core;
        // A reset of what had ended both ways, or that we had ended, costs us nothing.
        if R::IS_SERVER && !core.local_closed {
            self.wire.charge(FloodKind::RapidReset)?;
        }
        self.counters.stream_reset();
        self.remember_closed(head.stream);
        self.kill(slot, BodyError::Reset(code));
        Ok(())
    }

    /// Takes a stream out of the protocol; its application is dropped when no frame is being handled.
    pub(super) fn kill(&mut self, slot: u32, error: BodyError) {
        let Slot { core, app } = &mut self.streams[slot as usize];
        core.is_dead = true;
        core.local_closed = true;
        self.wire.abandon(core);
        self.wire.buffered -= R::buffered(app);
        self.role.broken(app, error);
        let (id, deadline) = (core.id, core.deadline.take());
        let is_untouched = R::is_untouched(app);
        self.forget(id, deadline);
        if is_untouched {
            self.streams.remove(slot as usize);
            self.counters.stream_closed();
        } else {
            self.dead.push(slot);
        }
    }

    pub(super) fn forget(&mut self, id: u32, deadline: Option<Instant>) {
        self.index.remove(&id);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    pub(super) fn remember_closed(&mut self, id: u32) {
        self.recently_closed[self.recently_closed_at] = id;
        self.recently_closed_at = (self.recently_closed_at + 1) % RECENTLY_CLOSED;
    }
}
