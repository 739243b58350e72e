//! What a connection does with the frames that carry nothing of a stream: SETTINGS, PING, GOAWAY, WINDOW_UPDATE,
//! PRIORITY.
//!
//! SETTINGS walk all streams; they are rare, and a flood of them is cut off early. GOAWAY walks those that it gives up.

use tokio::io::{AsyncRead, AsyncWrite};

use super::super::flow::WINDOW_BYTES_DEFAULT;
use super::super::frame::{self, ErrorCode, Fault, Head, Settings, flag};
use super::super::limits::FloodKind;
use super::super::stream::BodyError;
use super::{Connection, Handshake, PING_DRAIN, Phase, Role, Slot};

/// What is kept of a GOAWAY's Additional Debug Data, to tell streams.
const DEBUG_DATA_BYTES_MAX: usize = 256;

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Role> Connection<IO, R> {
    pub(super) fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("priority_on_stream_0"));
        }
        self.wire.charge(FloodKind::Priority)?;
        let Ok(priority) = payload.try_into() else {
            return self.break_stream(head.stream, ErrorCode::FRAME_SIZE_ERROR, "priority_length");
        };
        if frame::dependency(priority) == head.stream {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "stream_depends_on_itself");
        }
        Ok(())
    }

    pub(super) fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("settings_on_a_stream"));
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(Fault::size("settings_ack_length"));
            }
            return self.settings_acknowledged();
        }
        let is_first = self.handshake == Handshake::Settings;
        for _ in 0..=payload.len() / 36 {
            self.wire.charge(FloodKind::Settings)?;
        }
        let settings = Settings::parse(payload)?;
        if is_first {
            self.handshake = Handshake::Ack;
        }
        if let Some(least) = settings.header_table_bytes_min {
            self.wire.encoder.set_peer_table_bytes_max(least as usize);
        }
        if let Some(size) = settings.header_table_bytes {
            self.wire.encoder.set_peer_table_bytes_max(size as usize);
        }
        if settings.enable_push == Some(true) && !R::IS_SERVER {
            return Err(Fault::protocol("push_enabled_by_server"));
        }
        let peer = &mut self.wire.peer;
        if is_first {
            // Whoever does not name a limit has none.
            peer.max_concurrent_streams = u32::MAX;
        }
        if let Some(streams) = settings.max_concurrent_streams {
            peer.max_concurrent_streams = streams;
        }
        if let Some(bytes) = settings.header_list_bytes_max {
            peer.header_list_bytes_max = bytes;
        }
        if let Some(window) = settings.initial_flow_window_bytes {
            let before = std::mem::replace(&mut peer.initial_flow_window_bytes, window);
            if window > before {
                self.windows_grew(window)?;
            }
        }
        self.wire.control(frame::settings_ack);
        Ok(())
    }

    /// A larger initial window frees what waits for it. All streams are walked: SETTINGS are rare, and
    /// a flood of them is cut off early.
    fn windows_grew(&mut self, initial: u32) -> Result<(), Fault> {
        for (_, Slot { core, .. }) in self.streams.iter_mut().filter(|(_, slot)| !slot.core.is_dead)
        {
            if core.send.grant(0, initial).is_err() {
                return Err(Fault::flow("stream_window_overflow_by_settings"));
            }
            if core.is_waiting || core.is_set_aside {
                self.wire.run(core);
            }
        }
        Ok(())
    }

    /// From here on our settings bind the peer; streams that it opened before get the difference.
    fn settings_acknowledged(&mut self) -> Result<(), Fault> {
        if self.handshake != Handshake::Ack {
            return self.wire.charge(FloodKind::Settings);
        }
        self.handshake = Handshake::Done;
        let shift =
            i64::from(self.wire.limits.stream_flow_window_bytes) - i64::from(WINDOW_BYTES_DEFAULT);
        for (_, Slot { core, .. }) in self.streams.iter_mut().filter(|(_, slot)| !slot.core.is_dead)
        {
            core.recv.shift(shift);
            // What was too little to grant in the window of before may be all of this one.
            self.wire.released(core, 0, false);
        }
        Ok(())
    }

    pub(super) fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("ping_on_a_stream"));
        }
        let opaque: &[u8; 8] = payload.try_into().map_err(|_| Fault::size("ping_length"))?;
        if !head.has(flag::ACK) {
            self.wire.charge(FloodKind::Ping)?;
            self.wire.control(|out| frame::ping(out, opaque, true));
            return Ok(());
        }
        if *opaque == PING_DRAIN && self.phase == Phase::Leaving {
            self.name_last_stream();
        } else if self.clocks.ping_sent.take().is_none() {
            return self.wire.charge(FloodKind::Ping);
        }
        Ok(())
    }

    pub(super) fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("goaway_on_a_stream"));
        }
        let (last, rest) = payload.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (code, debug_data) = rest.split_first_chunk().ok_or(Fault::size("goaway_length"))?;
        let (last, code) = (frame::u31(last), ErrorCode(u32::from_be_bytes(*code)));
        if std::mem::replace(&mut self.peer_left, true) {
            // It has said so, and with the second one where it ends.
            self.wire.charge(FloodKind::Unknown)?;
        }
        if R::IS_SERVER {
            // It will open nothing more: what is open goes on, then the connection ends.
            if matches!(self.phase, Phase::Open | Phase::Leaving) {
                self.name_last_stream();
            }
            return Ok(());
        }
        if code != ErrorCode::NO_ERROR {
            let shown = &debug_data[..debug_data.len().min(DEBUG_DATA_BYTES_MAX)];
            let debug_data = String::from_utf8_lossy(shown).into();
            self.farewell = Some(Box::new(BodyError::EndedByPeer { code, debug_data }));
        }
        self.role.refuse_openings(BodyError::GoAway(code));
        self.give_up_above(last);
        Ok(())
    }

    /// Ends our streams above `last`, which the peer will not begin.
    ///
    /// However many GOAWAYs come, they cost no more in all than the streams that we opened: each looks
    /// only at what the ones before left, and a `last` that has risen (which RFC 9113, 6.8 forbids) at
    /// none.
    fn give_up_above(&mut self, last: u32) {
        let end = self.given_up_from.min(self.next_own_stream);
        let begin = (last + 1) | 1;
        if begin >= end {
            return;
        }
        self.given_up_from = begin;
        let (ids, places) = ((end - begin) as usize / 2, self.index.capacity());
        #[cfg(test)]
        {
            self.given_up_looks += ids.min(places);
        }
        let above: Vec<u32> = if ids <= places {
            (begin..end).step_by(2).filter_map(|id| self.index.get(&id).copied()).collect()
        } else {
            self.index.iter().filter(|(id, _)| **id >= begin).map(|(_, slot)| *slot).collect()
        };
        for slot in above {
            self.kill(slot, BodyError::Refused);
        }
    }

    pub(super) fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let increment = payload.try_into().map_err(|_| Fault::size("window_update_length"))?;
        let increment = frame::u31(increment);
        self.wire.charge(FloodKind::WindowUpdate)?;
        if head.stream == 0 {
            if increment == 0 {
                return Err(Fault::protocol("window_update_of_0"));
            }
            return self.wire.granted(increment);
        }
        if increment == 0 && !self.is_idle(head.stream) {
            let code = ErrorCode::PROTOCOL_ERROR;
            return self.break_stream(head.stream, code, "window_update_of_0");
        }
        let Some(slot) = self.index.get(&head.stream) else {
            return self.frame_of_gone_stream(head);
        };
        let core = &mut self.streams[*slot as usize].core;
        let initial = self.wire.peer.initial_flow_window_bytes;
        if core.send.grant(increment, initial).is_err() {
            let code = ErrorCode::FLOW_CONTROL_ERROR;
            return self.stream_error(head.stream, code, "stream_window_overflow");
        }
        if core.is_waiting || core.is_set_aside {
            self.wire.run(core);
        }
        Ok(())
    }
}
