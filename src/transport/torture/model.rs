//! A client of raw frames that keeps exact books of every window, and believes nothing.
//!
//! In: a seed's plan of calls, one end of a pipe. Out: when all calls are over, the books; a panic
//! as soon as the server does anything that the protocol or the plan does not allow.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::chance::Chance;
use super::pipe::End;
use super::services::{DEADLINE_UNITS, Kind, Outcome, pattern, patterned};
use crate::transport::BodyError;
use crate::transport::flow::WINDOW_BYTES_DEFAULT;
use crate::transport::frame::{
    self, ErrorCode, FRAME_BYTES_MAX, HEAD_BYTES, Head, PREFACE, Settings, flag, kind, setting,
};
use crate::transport::hpack::{Decoder, Encoder};

/// How the client ends its half of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfClose {
    WithData,
    EmptyData,
    Trailers,
}

/// One call that the client will make.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) is_grpc: bool,
    pub(crate) announces_length: bool,
    pub(crate) request_bytes: usize,
    /// What the handler is told, as its kind takes it.
    pub(crate) size: usize,
    pub(crate) half_close: HalfClose,
    /// After so many acts.
    pub(crate) reset_after: Option<usize>,
    pub(crate) data_bytes_max: usize,
    pub(crate) grant_bytes_max: usize,
}

impl Plan {
    fn random(chance: &mut Chance, bytes_max: usize) -> Self {
        let kind = chance.pick(&Kind::ALL);
        let bytes = |chance: &mut Chance| {
            let most = chance.pick(&[0, 1, 100, 3_000, 3_000, 70_000]).min(bytes_max);
            chance.between(most / 2, most)
        };
        let (request_bytes, size) = (bytes(chance), bytes(chance));
        let least = request_bytes.max(size) / 20;
        let resets = kind == Kind::Never || chance.one_in(6);
        Plan {
            kind,
            is_grpc: kind == Kind::Deadline || chance.one_in(2),
            announces_length: chance.one_in(4),
            request_bytes,
            size,
            half_close: chance.pick(&[
                HalfClose::WithData,
                HalfClose::EmptyData,
                HalfClose::Trailers,
            ]),
            reset_after: resets.then(|| {
                let most = chance.pick(&[1, 10, 100]);
                chance.below(most)
            }),
            data_bytes_max: chance.pick(&[100, 1_000, 16_000]).max(least),
            grant_bytes_max: chance.pick(&[100, 5_000, 65_535]).max(least),
        }
    }
}

/// A call, and all that is known of it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) plan: Plan,
    pub(crate) number: usize,
    pub(crate) id: u32,
    pub(crate) sent: usize,
    pub(crate) client_ended: bool,
    pub(crate) reset_sent: bool,
    /// With this code ...
    reset_code: Option<ErrorCode>,
    /// ... although all of the request had left.
    had_ended: bool,
    opened_at: Instant,
    /// Everything that the server sent before it read our reset was seen.
    sealed: bool,
    acts: usize,
    send_window: i64,
    recv_window: i64,
    status: Option<u16>,
    received: usize,
    trailers: Option<HashMap<String, String>>,
    server_ended: bool,
    reset_received: Option<ErrorCode>,
    pub(crate) refused: bool,
    /// Opened before the server had said how many streams it takes.
    is_blind: bool,
}

impl Call {
    fn is_over(&self) -> bool {
        self.refused
            || self.sealed
            || self.reset_received.is_some()
            || (self.server_ended && self.client_ended)
    }

    /// Whether all of the request left, and its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.client_ended && (!self.reset_sent || self.had_ended)
    }

    /// Whether its handler may have been told that the request broke off for this reason. `is_lost`: the client vanished.
    pub(crate) fn explains(&self, error: &BodyError, drained: Drained, is_lost: bool) -> bool {
        match error {
            BodyError::Reset(code) => self.reset_code == Some(*code),
            BodyError::Ended("the stream is over") => {
                drained == Drained::CutOff || !self.plan.kind.is_echo()
            }
            BodyError::ConnectionLost => drained == Drained::CutOff || is_lost,
            error => *error == BodyError::SHUTDOWN && drained >= Drained::Stopped,
        }
    }

    /// What the server must have done by the end, unless we reset the call. `echoed`: bytes that an
    /// echo gives.
    pub(crate) fn check(&self, echoed: usize) {
        if self.id == 0 || self.reset_sent || self.refused {
            return;
        }
        let outcome = Outcome {
            status: self.status,
            received: self.received,
            has_ended: self.server_ended,
            trailers: self.trailers.as_ref(),
            reset: self.reset_received,
        };
        let Plan { kind, is_grpc, size, .. } = self.plan;
        outcome.check(kind, is_grpc, self.number, size, echoed);
    }
}

/// How a connection's life goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// When all calls are over the client closes.
    Close,
    /// It says GOAWAY, and the server closes.
    GoAway,
    /// The client vanishes after so many turns.
    Vanish(usize),
}

/// How far the server goes while it is asked to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Drained {
    Not,
    /// It says GOAWAY; what is open goes on to its end.
    Left,
    /// Handlers get nothing more, and what they took is still answered.
    Stopped,
    /// Everything ends at once.
    CutOff,
}

impl Drained {
    pub(crate) fn random(chance: &mut Chance) -> Self {
        chance.pick(&[Drained::Not, Drained::Not, Drained::Left, Drained::Stopped, Drained::CutOff])
    }
}

/// The client.
pub(crate) struct Client {
    io: End,
    drained: Drained,
    /// The server may refuse calls although there is room for them, because its memory is scarce.
    is_refused: bool,
    chance: Chance,
    unit: Duration,
    pub(crate) farewell: Farewell,
    pub(crate) calls: Vec<Call>,
    /// Numbers of calls by stream.
    by_id: HashMap<u32, usize>,
    opened: usize,
    at_once: usize,
    input: Vec<u8>,
    out: Vec<u8>,
    /// From here on nothing is added to what waits to leave.
    out_bytes_max: usize,
    needs_flush: bool,
    encoder: Encoder,
    decoder: Decoder,
    block: Option<(Head, Vec<u8>)>,
    /// What the server lets us send.
    pub(crate) send_window: i64,
    peer_initial: i64,
    peer_streams_max: usize,
    knows_settings: bool,
    /// What we let the server send.
    pub(crate) recv_window: i64,
    acked_initial: i64,
    unacknowledged: VecDeque<Option<u32>>,
    settings_left: usize,
    noise_left: usize,
    pings: VecDeque<u64>,
    ping_count: u64,
    /// Calls that are sealed when this ping is answered.
    seals: HashMap<u64, usize>,
    pings_left: usize,
    last_id: Option<u32>,
    final_ping: Option<u64>,
    pause: Pin<Box<Sleep>>,
    pauses: usize,
    reads_paused: usize,
    stage: Stage,
    grants_at_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Calling,
    /// So many pauses without a byte until all is quiet.
    Quiet(usize),
}

/// What happened in a turn of the client.
enum Came {
    Something,
    Nothing,
    End,
}

impl Client {
    pub(crate) fn new(
        io: End,
        chance: &mut Chance,
        bytes_max: usize,
        unit: Duration,
        (drained, is_refused): (Drained, bool),
    ) -> Self {
        let mut chance = chance.fork();
        let count = chance.pick(&[1, 3, 10, 30]);
        let calls = (0..count).map(|number| Call {
            plan: Plan::random(&mut chance, bytes_max),
            number,
            id: 0,
            sent: 0,
            client_ended: false,
            reset_sent: false,
            reset_code: None,
            had_ended: false,
            opened_at: Instant::now(),
            sealed: false,
            acts: 0,
            send_window: 0,
            recv_window: 0,
            status: None,
            received: 0,
            trailers: None,
            server_ended: false,
            reset_received: None,
            refused: false,
            is_blind: false,
        });
        let calls = calls.collect();
        let mut client = Client {
            io,
            drained,
            is_refused,
            unit,
            farewell: match chance.below(8) {
                0 => Farewell::Vanish(chance.between(1, 60)),
                1 | 2 => Farewell::GoAway,
                _ => Farewell::Close,
            },
            calls,
            by_id: HashMap::new(),
            opened: 0,
            at_once: chance.pick(&[1, 3, 20]),
            input: Vec::new(),
            out: PREFACE.to_vec(),
            out_bytes_max: bytes_max,
            needs_flush: false,
            encoder: Encoder::new(chance.pick(&[0, 4_096])),
            decoder: Decoder::new(4_096),
            block: None,
            send_window: WINDOW_BYTES_DEFAULT.into(),
            peer_initial: WINDOW_BYTES_DEFAULT.into(),
            peer_streams_max: 100,
            knows_settings: false,
            recv_window: WINDOW_BYTES_DEFAULT.into(),
            acked_initial: WINDOW_BYTES_DEFAULT.into(),
            unacknowledged: VecDeque::new(),
            settings_left: chance.pick(&[0, 1, 10]),
            noise_left: 50,
            pings: VecDeque::new(),
            ping_count: 0,
            seals: HashMap::new(),
            pings_left: 20,
            last_id: None,
            final_ping: None,
            pause: Box::pin(sleep(Duration::ZERO)),
            pauses: 0,
            reads_paused: 0,
            stage: Stage::Calling,
            grants_at_once: chance.one_in(3),
            chance,
        };
        client.settings();
        client
    }

    /// Lives until all calls are over and nothing moves any more, or until a server that drains
    /// closes. `false`: it vanished before.
    pub(crate) async fn run(&mut self) -> bool {
        poll_fn(|cx| self.turn(cx)).await
    }

    /// Leaves as planned; the server must close too. Out: all of its calls.
    pub(crate) async fn leave(mut self) -> Vec<Call> {
        if self.farewell == Farewell::Close && self.chance.one_in(2) {
            return self.calls;
        }
        let says_goaway = self.farewell == Farewell::GoAway;
        if says_goaway {
            frame::goaway(&mut self.out, 0, ErrorCode::NO_ERROR, "bye");
        }
        let mut is_shut = false;
        poll_fn(|cx| {
            if is_shut {
                self.out.clear();
            }
            self.write(cx);
            if !says_goaway && self.out.is_empty() && !self.needs_flush {
                is_shut |= Pin::new(&mut self.io).poll_shutdown(cx).is_ready();
            }
            loop {
                match self.read(cx) {
                    Came::Something => self.frames(),
                    Came::Nothing => return Poll::Pending,
                    Came::End => return Poll::Ready(()),
                }
            }
        })
        .await;
        self.calls
    }

    /// Leaves without a word. Out: all of its calls.
    pub(crate) fn vanish(self) -> Vec<Call> {
        self.calls
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            while self.reads_paused == 0 {
                match self.read(cx) {
                    Came::Something => {
                        if let Stage::Quiet(pauses) = &mut self.stage {
                            *pauses = 0;
                        }
                        self.frames();
                        if self.chance.one_in(2) {
                            self.act();
                        }
                    }
                    Came::Nothing => break,
                    Came::End if self.drained > Drained::Not => return Poll::Ready(true),
                    // How the server's task ended says more.
                    Came::End => return Poll::Pending,
                }
            }
            self.write(cx);
            if self.pause.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let units = self.chance.pick(&[1, 1, 1, 2, 5]);
            self.pause = Box::pin(sleep(self.unit * units));
            self.pauses += 1;
            self.reads_paused = self.reads_paused.saturating_sub(1);
            if matches!(self.farewell, Farewell::Vanish(after) if self.pauses > after) {
                return Poll::Ready(false);
            }
            if let Stage::Quiet(pauses) = &mut self.stage {
                // What it still has to say may still be answered.
                *pauses = if self.out.is_empty() { *pauses + 1 } else { 0 };
                if *pauses > 40 {
                    return Poll::Ready(true);
                }
            }
            for _ in 0..self.chance.below(8) {
                self.act();
            }
            self.open_what_is_shut();
            self.conclude();
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Came {
        let mut buffer = [0; 20_000];
        let mut buf = ReadBuf::new(&mut buffer);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => Came::Nothing,
            Poll::Ready(ended) => {
                ended.unwrap();
                self.input.extend_from_slice(buf.filled());
                if buf.filled().is_empty() { Came::End } else { Came::Something }
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) {
        while !self.out.is_empty() {
            let Poll::Ready(count) = Pin::new(&mut self.io).poll_write(cx, &self.out) else {
                return;
            };
            // A server that closes after an error is told apart by its GOAWAY.
            let Ok(count) = count else { return self.out.clear() };
            self.out.drain(..count);
            self.needs_flush = true;
        }
        if self.needs_flush && Pin::new(&mut self.io).poll_flush(cx).is_ready() {
            self.needs_flush = false;
        }
    }

    pub(crate) fn state(&self) -> String {
        let open: Vec<_> =
            self.calls.iter().filter(|call| call.id != 0 && !call.is_over()).collect();
        format!(
            "client: {:?} after {} pauses, {} of {} opened, windows: send {} (initial {}), receive {} \
             (initial {}), {} bytes to write; open: {open:#?}",
            self.stage,
            self.pauses,
            self.opened,
            self.calls.len(),
            self.send_window,
            self.peer_initial,
            self.recv_window,
            self.acked_initial,
            self.out.len(),
        )
    }
}

// What the client does.
impl Client {
    fn act(&mut self) {
        if self.out.len() > self.out_bytes_max || self.stage != Stage::Calling {
            return;
        }
        match self.chance.below(20) {
            0..5 => self.open(),
            5..14 => self.send(),
            14..16 => self.grant_some(),
            16 if self.settings_left > 0 && self.chance.one_in(4) => {
                self.settings_left -= 1;
                self.settings();
            }
            17 if self.pings_left > 0 => {
                self.pings_left -= 1;
                self.ping();
            }
            18 if self.noise_left > 0 => {
                self.noise_left -= 1;
                self.noise();
            }
            19 if self.chance.one_in(10) => self.reads_paused = self.chance.between(1, 20),
            _ => {}
        }
    }

    /// When all calls are over: a last ping, then quiet.
    fn conclude(&mut self) {
        let all_opened = self.opened == self.calls.len() || self.last_id.is_some();
        let over = all_opened && self.calls[..self.opened].iter().all(Call::is_over);
        if self.stage == Stage::Calling && over && self.pings.is_empty() {
            match self.final_ping {
                None => self.final_ping = Some(self.ping()),
                Some(_) => self.stage = Stage::Quiet(0),
            }
        }
    }

    fn settings(&mut self) {
        let mut entries = Vec::new();
        let mut initial = None;
        if self.chance.one_in(2) {
            let window = self.chance.pick(&[0, 0, 1, 100, 5_000, 65_535]);
            initial = Some(window);
            entries.push((setting::INITIAL_WINDOW_SIZE, window));
        }
        if self.chance.one_in(3) {
            let table = self.chance.pick(&[0, 100, 4_096]);
            // Our decoder would have to wait for the ACK; it takes both sizes, as long as it is not
            // told of the smaller one.
            entries.push((setting::HEADER_TABLE_SIZE, table));
        }
        if self.chance.one_in(3) {
            entries.push((setting::MAX_FRAME_SIZE, 1 << 20));
        }
        frame::settings(&mut self.out, &entries);
        self.unacknowledged.push_back(initial);
    }

    fn ping(&mut self) -> u64 {
        self.ping_count += 1;
        frame::ping(&mut self.out, &self.ping_count.to_be_bytes(), false);
        self.pings.push_back(self.ping_count);
        self.ping_count
    }

    /// Frames that mean nothing.
    fn noise(&mut self) {
        let last = u32::try_from(self.opened * 2 + 1).expect("small");
        let (kind, length, stream) = match self.chance.below(3) {
            0 => (0xfa, self.chance.below(50), self.chance.pick(&[0, last])),
            1 => (kind::PRIORITY, 5, last),
            _ => (0x10, 7, 0),
        };
        self.out.extend_from_slice(&Head { length, kind, flags: 0, stream }.bytes());
        self.out.extend_from_slice(&vec![0; length]);
    }

    fn open(&mut self) {
        let open = self.calls[..self.opened].iter().filter(|call| !call.is_over()).count();
        let limit = self.at_once.min(self.peer_streams_max);
        if self.opened == self.calls.len() || open >= limit || self.last_id.is_some() {
            return;
        }
        let id = u32::try_from(self.opened * 2 + 1).expect("small");
        let call = &mut self.calls[self.opened];
        self.by_id.insert(id, self.opened);
        self.opened += 1;
        call.id = id;
        call.opened_at = Instant::now();
        call.is_blind = !self.knows_settings;
        call.send_window = self.peer_initial;
        call.recv_window = self.acked_initial;
        let plan = call.plan.clone();
        let mut block = Vec::new();
        self.encoder.begin(&mut block);
        let mut fields = vec![
            (":method", "POST".to_owned()),
            (":scheme", "http".to_owned()),
            (":path", format!("/{:?}", plan.kind)),
            (":authority", "torture".to_owned()),
            ("number", call.number.to_string()),
            ("size", plan.size.to_string()),
        ];
        if plan.is_grpc {
            fields.push(("content-type", "application/grpc".to_owned()));
        }
        if plan.announces_length {
            fields.push(("content-length", plan.request_bytes.to_string()));
        }
        if plan.kind == Kind::Deadline {
            fields.push(("grpc-timeout", format!("{}u", (self.unit * DEADLINE_UNITS).as_micros())));
        }
        for (name, value) in fields {
            self.encoder.field(name.as_bytes(), value.as_bytes(), false, &mut block);
        }
        call.client_ended = plan.request_bytes == 0 && plan.half_close == HalfClose::WithData;
        let cut = self.chance.below(block.len());
        let end = if call.client_ended { flag::END_STREAM } else { 0 };
        if self.chance.one_in(5) {
            let (first, rest) = block.split_at(cut);
            self.headers_frame(kind::HEADERS, end, id, first);
            self.headers_frame(kind::CONTINUATION, flag::END_HEADERS, id, rest);
        } else {
            self.headers_frame(kind::HEADERS, end | flag::END_HEADERS, id, &block);
        }
    }

    fn headers_frame(&mut self, kind: u8, flags: u8, stream: u32, fragment: &[u8]) {
        let head = Head { length: fragment.len(), kind, flags, stream };
        self.out.extend_from_slice(&head.bytes());
        self.out.extend_from_slice(fragment);
    }

    /// Lets one open call go on.
    fn send(&mut self) {
        let open: Vec<usize> =
            (0..self.opened).filter(|&number| !self.calls[number].is_over()).collect();
        if open.is_empty() {
            return;
        }
        let number = self.chance.pick(&open);
        let call = &mut self.calls[number];
        call.acts += 1;
        if !call.reset_sent && call.plan.reset_after.is_some_and(|after| call.acts > after) {
            let code = self.chance.pick(&[ErrorCode::CANCEL, ErrorCode::NO_ERROR, ErrorCode(99)]);
            call.had_ended = call.client_ended;
            (call.reset_sent, call.reset_code) = (true, Some(code));
            call.client_ended = true;
            frame::rst_stream(&mut self.out, call.id, code);
            let seal = self.ping();
            self.seals.insert(seal, number);
            return;
        }
        if call.client_ended {
            return;
        }
        let left = call.plan.request_bytes - call.sent;
        if left == 0 {
            call.client_ended = true;
            let id = call.id;
            if call.plan.half_close == HalfClose::Trailers {
                let mut block = Vec::new();
                self.encoder.begin(&mut block);
                self.encoder.field(b"the-end", b"yes", false, &mut block);
                self.headers_frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, id, &block);
            } else {
                self.headers_frame(kind::DATA, flag::END_STREAM, id, &[]);
            }
            return;
        }
        let padding = if self.chance.one_in(5) { self.chance.below(256) } else { 0 };
        let padded = padding > 0;
        let room = call.send_window.min(self.send_window).max(0);
        let room = usize::try_from(room).unwrap().min(FRAME_BYTES_MAX);
        let overhead = if padded { padding + 1 } else { 0 };
        let Some(room @ 1..) = room.checked_sub(overhead) else { return };
        let length = left.min(room).min(self.chance.between(1, call.plan.data_bytes_max));
        let (from, whole) = (call.sent, length + overhead);
        call.sent += length;
        let taken = i64::try_from(whole).unwrap();
        call.send_window -= taken;
        self.send_window -= taken;
        let ends =
            call.sent == call.plan.request_bytes && call.plan.half_close == HalfClose::WithData;
        call.client_ended = ends;
        let mut flags = if ends { flag::END_STREAM } else { 0 };
        if padded {
            flags |= flag::PADDED;
        }
        let head = Head { length: whole, kind: kind::DATA, flags, stream: call.id };
        self.out.extend_from_slice(&head.bytes());
        if padded {
            self.out.push(u8::try_from(padding).unwrap());
        }
        self.out.extend_from_slice(&patterned(number, from, length));
        self.out.resize(self.out.len() + padding, 0);
    }

    /// Grants a little ahead of need.
    fn grant_some(&mut self) {
        if self.recv_window < 1 << 20 && self.chance.one_in(2) {
            self.grant_connection();
        }
        let open: Vec<usize> = (0..self.opened)
            .filter(|&number| {
                !self.calls[number].is_over() && self.calls[number].recv_window < 1 << 18
            })
            .collect();
        if !open.is_empty() {
            let number = self.chance.pick(&open);
            self.grant(number);
        }
    }

    /// Sooner or later every window opens; in the first pauses after it shut, perhaps not.
    fn open_what_is_shut(&mut self) {
        if self.stage != Stage::Calling || self.out.len() > self.out_bytes_max {
            return;
        }
        if self.recv_window <= 0 && (self.grants_at_once || self.chance.one_in(5)) {
            self.grant_connection();
        }
        for number in 0..self.opened {
            let call = &self.calls[number];
            if call.recv_window <= 0
                && !call.is_over()
                && !call.server_ended
                && (self.grants_at_once || self.chance.one_in(5))
            {
                self.grant(number);
            }
        }
    }

    fn grant_connection(&mut self) {
        let most = self.chance.pick(&[1_000, 20_000, 65_535, 1 << 20]);
        let increment = self.chance.between(1, most);
        self.recv_window += i64::try_from(increment).unwrap();
        frame::window_update(&mut self.out, 0, u32::try_from(increment).unwrap());
    }

    fn grant(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let increment = self.chance.between(1, call.plan.grant_bytes_max);
        call.recv_window += i64::try_from(increment).unwrap();
        frame::window_update(&mut self.out, call.id, u32::try_from(increment).unwrap());
    }
}

// What the server says.
impl Client {
    fn frames(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let Some(head) = Head::parse(rest) {
            assert!(head.length <= FRAME_BYTES_MAX, "frame of {} bytes", head.length);
            let Some(payload) = rest.get(HEAD_BYTES..HEAD_BYTES + head.length) else { break };
            self.frame(head, payload);
            rest = &rest[HEAD_BYTES + head.length..];
        }
        self.input = rest.to_vec();
    }

    fn frame(&mut self, head: Head, payload: &[u8]) {
        let is_first = !self.knows_settings;
        assert!(!is_first || head.kind == kind::SETTINGS, "first frame: {head:?}");
        if self.block.is_some() {
            assert_eq!(head.kind, kind::CONTINUATION, "a header block was interrupted");
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS | kind::CONTINUATION => self.headers(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.their_settings(head, payload),
            kind::PING => self.pong(head, payload),
            kind::GOAWAY => self.goaway(payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            _ => panic!("a server sends no such frame: {head:?}"),
        }
    }

    /// The call of a frame that the server may send now.
    fn call(&mut self, head: Head) -> &mut Call {
        let number = self.by_id.get(&head.stream);
        let call = &mut self.calls[*number.unwrap_or_else(|| panic!("unknown stream: {head:?}"))];
        assert!(!call.sealed, "{head:?} although the server knew of the reset: {call:?}");
        let ended =
            call.server_ended && head.kind != kind::RST_STREAM && head.kind != kind::WINDOW_UPDATE;
        assert!(!ended, "{head:?} after the end: {call:?}");
        assert!(call.reset_received.is_none(), "{head:?} after a reset: {call:?}");
        call
    }

    fn data(&mut self, head: Head, payload: &[u8]) {
        assert!(!head.has(flag::PADDED));
        let length = i64::try_from(payload.len()).unwrap();
        self.recv_window -= length;
        assert!(
            self.recv_window >= 0 || length == 0,
            "connection window exceeded by {}",
            -self.recv_window
        );
        let call = self.call(head);
        assert_eq!(call.status, Some(200), "{call:?}");
        call.recv_window -= length;
        assert!(call.recv_window >= 0 || length == 0, "stream window exceeded: {call:?}");
        let (from, number) = (call.received, call.number);
        let wrong = (0..payload.len()).find(|&at| payload[at] != pattern(number, from + at));
        assert_eq!(wrong.map(|at| from + at), None, "first wrong byte of {call:?}");
        call.received += payload.len();
        call.server_ended |= head.has(flag::END_STREAM);
    }

    fn headers(&mut self, head: Head, payload: &[u8]) {
        let (first, block) = match self.block.take() {
            None => (head, payload.to_vec()),
            Some((first, mut block)) => {
                assert_eq!(first.stream, head.stream);
                block.extend_from_slice(payload);
                (first, block)
            }
        };
        if !head.has(flag::END_HEADERS) {
            self.block = Some((first, block));
            return;
        }
        let mut fields = HashMap::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let decoded = self.decoder.decode(&block, |field| {
            let before = fields.insert(text(field.name), text(field.value));
            assert_eq!(before, None, "repeated field");
        });
        assert!(decoded.is_ok(), "header block: {:?}", decoded.err().map(|error| error.reason()));
        let unit = self.unit;
        let call = self.call(first);
        let ends = first.has(flag::END_STREAM);
        if call.status.is_none() {
            call.status = Some(fields[":status"].parse().unwrap());
            if ends {
                call.trailers = Some(fields);
            }
        } else {
            assert!(ends, "trailers without an end: {call:?}");
            call.trailers = Some(fields);
        }
        call.server_ended |= ends;
        if call.plan.kind == Kind::Deadline
            && call
                .trailers
                .as_ref()
                .and_then(|fields| fields.get("grpc-status"))
                .is_some_and(|status| status == "4")
        {
            let after = call.opened_at.elapsed();
            assert!(after >= unit * DEADLINE_UNITS, "ended {after:?} after its begin: {call:?}");
        }
        // An answer without a body has no trailers of its own.
        if call.trailers.as_ref().is_some_and(|fields| {
            fields.contains_key(":status") && !fields.contains_key("grpc-status")
        }) {
            call.trailers = None;
        }
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) {
        let code = ErrorCode(u32::from_be_bytes(payload.try_into().unwrap()));
        let is_over_limit = self.is_refused
            || self.drained >= Drained::Stopped
            || self.calls.iter().any(|call| call.is_blind);
        let call = self.call(head);
        if code == ErrorCode::REFUSED_STREAM {
            assert!(is_over_limit, "refused although there was room: {call:?}");
            assert_eq!(call.status, None, "{call:?}");
            call.refused = true;
        }
        if code == ErrorCode::NO_ERROR && !call.reset_sent {
            assert!(call.server_ended, "reset without an error before its end: {call:?}");
        }
        call.reset_received = Some(code);
    }

    fn their_settings(&mut self, head: Head, payload: &[u8]) {
        if head.has(flag::ACK) {
            let settings = self.unacknowledged.pop_front().expect("one ACK for each SETTINGS");
            if let Some(initial) = settings {
                let delta = i64::from(initial) - self.acked_initial;
                self.acked_initial = initial.into();
                for call in &mut self.calls[..self.opened] {
                    call.recv_window += delta;
                }
            }
            return;
        }
        assert!(!self.knows_settings, "the server changes its settings");
        self.knows_settings = true;
        let settings = Settings::parse(payload).unwrap();
        if let Some(initial) = settings.initial_flow_window_bytes {
            let delta = i64::from(initial) - self.peer_initial;
            self.peer_initial = initial.into();
            for call in &mut self.calls[..self.opened] {
                call.send_window += delta;
            }
        }
        if let Some(streams) = settings.max_concurrent_streams {
            self.peer_streams_max = streams as usize;
        }
        frame::settings_ack(&mut self.out);
    }

    fn pong(&mut self, head: Head, payload: &[u8]) {
        let opaque: [u8; 8] = payload.try_into().unwrap();
        if !head.has(flag::ACK) {
            frame::ping(&mut self.out, &opaque, true);
            return;
        }
        let ping = u64::from_be_bytes(opaque);
        assert_eq!(self.pings.pop_front(), Some(ping), "pings are answered in order, once");
        if let Some(number) = self.seals.remove(&ping) {
            self.calls[number].sealed = true;
        }
    }

    fn goaway(&mut self, payload: &[u8]) {
        let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
        let reason = String::from_utf8_lossy(&payload[8..]);
        assert_eq!(ErrorCode(code), ErrorCode::NO_ERROR, "GOAWAY: {reason}; {}", self.state());
        let last = u32::from_be_bytes(payload[..4].try_into().unwrap());
        assert!(self.last_id.is_none_or(|before| last <= before), "GOAWAY takes more back");
        self.last_id = Some(last);
        for call in &mut self.calls[..self.opened] {
            if call.id > last {
                assert_eq!(call.status, None, "answered, and then given up: {call:?}");
                call.refused = true;
            }
        }
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) {
        let increment = i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
        assert!(increment > 0);
        if head.stream == 0 {
            self.send_window += increment;
            return;
        }
        self.call(head).send_window += increment;
    }
}
