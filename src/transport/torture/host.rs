//! A server of raw frames that keeps exact books of every window, and believes nothing.
//!
//! In: one end of a pipe, a seed's mood. Out: when all calls are over, the books, and what became of
//! each stream; a panic as soon as the client does anything that the protocol does not allow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::chance::Chance;
use super::pipe::End;
use super::services::{pattern, patterned};
use crate::transport::flow::WINDOW_BYTES_DEFAULT;
use crate::transport::frame::{
    self, ErrorCode, FRAME_BYTES_MAX, HEAD_BYTES, Head, PREFACE, Settings, flag, kind, setting,
};
use crate::transport::hpack::{Decoder, Encoder};

/// Any last stream: the first GOAWAY of two.
const ANY_STREAM: u32 = (1 << 31) - 1;

/// What the server does with one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Gives back what comes.
    Echo,
    /// Gives so many bytes, whatever comes.
    Source,
    /// One header block that ends the stream.
    TrailersOnly,
    /// RST_STREAM at once.
    Refuse,
    /// Nothing at all, and no window behind the first bytes: the client must cancel.
    Never,
}

/// How it ends its half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    WithData,
    EmptyData,
    Trailers,
}

/// A stream, and all that is known of it.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u32,
    pub(crate) number: usize,
    manner: Manner,
    ending: Ending,
    /// After so many acts.
    reset_after: Option<usize>,
    /// Informational heads (1xx) before the answer's.
    interim: usize,
    size: usize,
    acts: usize,
    content_length: Option<usize>,
    /// The client means to cancel it.
    cancels: bool,
    has_head: bool,
    pub(crate) received: usize,
    pub(crate) client_ended: bool,
    pub(crate) client_reset: bool,
    pub(crate) sent: usize,
    pub(crate) ended: bool,
    pub(crate) trailers: bool,
    pub(crate) reset: Option<ErrorCode>,
    /// Everything that the client sent before it read our reset was seen.
    sealed: bool,
    /// Above the last stream of our GOAWAY.
    pub(crate) given_up: bool,
    send_window: i64,
    recv_window: i64,
}

impl Stream {
    fn is_over(&self) -> bool {
        self.given_up
            || self.client_reset
            || self.reset.is_some() && (self.sealed || self.ended)
            || self.ended && self.client_ended
    }

    /// For the client's limit of open streams: it knows no later than we what it ended itself.
    fn counts(&self) -> bool {
        !self.given_up && !self.client_reset && self.reset.is_none() && !self.is_over()
    }

    /// Whether the server would ever let it send more.
    fn may_be_granted(&self) -> bool {
        !self.is_over() && (self.manner != Manner::Never || self.received == 0)
    }

    /// Bytes that can be sent, as far as is known now, and whether those are all.
    fn goal(&self) -> (usize, bool) {
        match self.manner {
            Manner::Echo => (self.received, self.client_ended),
            _ => (self.size, true),
        }
    }
}

/// How the connection's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The client closes when it wants to.
    Stay,
    /// GOAWAY after so many pauses; what it takes goes on to its end.
    GoAway(usize),
    /// The server vanishes after so many.
    Vanish(usize),
}

/// The server.
pub(crate) struct Host {
    io: End,
    chance: Chance,
    unit: Duration,
    pub(crate) farewell: Farewell,
    /// Calls that the client will make.
    calls: usize,
    bytes_max: usize,
    pub(crate) streams: BTreeMap<u32, Stream>,
    input: Vec<u8>,
    has_preface: bool,
    has_settings: bool,
    out: Vec<u8>,
    needs_flush: bool,
    encoder: Encoder,
    decoder: Decoder,
    block: Option<(Head, Vec<u8>)>,
    /// What the client lets us send.
    pub(crate) send_window: i64,
    peer_initial: i64,
    /// What we let the client send.
    pub(crate) recv_window: i64,
    acked_initial: i64,
    acked_streams_max: usize,
    last_streams_max: usize,
    unacknowledged: VecDeque<(Option<u32>, Option<usize>)>,
    settings_left: usize,
    noise_left: usize,
    pings: VecDeque<u64>,
    ping_count: u64,
    /// Streams that are sealed when this ping is answered.
    seals: HashMap<u64, u32>,
    /// Last stream of the GOAWAY that we sent last.
    pub(crate) last_id: Option<u32>,
    final_ping: Option<u64>,
    quiet_pauses: usize,
    pause: Pin<Box<Sleep>>,
    pauses: usize,
    reads_paused: usize,
    grants_at_once: bool,
}

/// How the server's part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// All is quiet, and the client there.
    Quiet,
    /// The client closed.
    Closed,
    /// The server vanished.
    Vanished,
}

impl Host {
    pub(crate) fn new(
        io: End,
        chance: &mut Chance,
        calls: usize,
        bytes_max: usize,
        unit: Duration,
    ) -> Self {
        let mut chance = chance.fork();
        let mut host = Host {
            io,
            unit,
            farewell: match chance.below(8) {
                0 => Farewell::Vanish(chance.between(1, 60)),
                1 | 2 => Farewell::GoAway(chance.between(1, 60)),
                _ => Farewell::Stay,
            },
            calls,
            bytes_max,
            streams: BTreeMap::new(),
            input: Vec::new(),
            has_preface: false,
            has_settings: false,
            out: Vec::new(),
            needs_flush: false,
            encoder: Encoder::new(chance.pick(&[0, 4_096])),
            decoder: Decoder::new(4_096),
            block: None,
            send_window: WINDOW_BYTES_DEFAULT.into(),
            peer_initial: WINDOW_BYTES_DEFAULT.into(),
            recv_window: WINDOW_BYTES_DEFAULT.into(),
            acked_initial: WINDOW_BYTES_DEFAULT.into(),
            acked_streams_max: usize::MAX,
            last_streams_max: usize::MAX,
            unacknowledged: VecDeque::new(),
            settings_left: chance.pick(&[0, 1, 10]),
            noise_left: 50,
            pings: VecDeque::new(),
            ping_count: 0,
            seals: HashMap::new(),
            last_id: None,
            final_ping: None,
            quiet_pauses: 0,
            pause: Box::pin(sleep(Duration::ZERO)),
            pauses: 0,
            reads_paused: 0,
            grants_at_once: chance.one_in(3),
            chance,
        };
        host.settings();
        host
    }

    /// Lives until all calls are over and nothing moves any more, or until one side leaves.
    pub(crate) async fn run(&mut self) -> Left {
        poll_fn(|cx| self.turn(cx)).await
    }

    /// Waits until the client closes.
    pub(crate) async fn see_off(mut self) {
        poll_fn(|cx| {
            self.write(cx);
            loop {
                match self.read(cx) {
                    Poll::Ready(0) => return Poll::Ready(()),
                    Poll::Ready(_) => self.frames(),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        loop {
            while self.reads_paused == 0 {
                match self.read(cx) {
                    Poll::Ready(0) => {
                        let may_close = self.all_over_if(|stream| stream.reset.is_some());
                        assert!(may_close, "the client closed; {}", self.state());
                        return Poll::Ready(Left::Closed);
                    }
                    Poll::Ready(_) => {
                        self.quiet_pauses = 0;
                        self.frames();
                        if self.chance.one_in(2) {
                            self.act();
                        }
                    }
                    Poll::Pending => break,
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
            match self.farewell {
                Farewell::Vanish(after) if self.pauses > after => {
                    return Poll::Ready(Left::Vanished);
                }
                Farewell::GoAway(after) if self.pauses > after => self.go_away(),
                _ => {}
            }
            if !self.all_over() {
                // One more stream was on its way.
                self.final_ping = None;
            }
            if self.is_quiet() {
                self.quiet_pauses = if self.out.is_empty() { self.quiet_pauses + 1 } else { 0 };
                if self.quiet_pauses > 40 {
                    return Poll::Ready(Left::Quiet);
                }
                continue;
            }
            for _ in 0..self.chance.below(8) {
                self.act();
            }
            self.open_what_is_shut();
            if self.all_over() && self.pings.is_empty() && self.final_ping.is_none() {
                self.final_ping = Some(self.ping());
            }
        }
    }

    /// Everything is over, and the last ping was answered.
    fn is_quiet(&self) -> bool {
        self.all_over() && self.final_ping.is_some() && self.pings.is_empty()
    }

    fn all_over(&self) -> bool {
        self.all_over_if(|_| false)
    }

    fn all_over_if(&self, is_over_too: impl Fn(&Stream) -> bool) -> bool {
        let all_came = self.streams.len() == self.calls || self.last_id.is_some();
        all_came && self.streams.values().all(|stream| stream.is_over() || is_over_too(stream))
    }

    /// Out: bytes that came, 0 at the end.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut buffer = [0; 20_000];
        let mut buf = ReadBuf::new(&mut buffer);
        Pin::new(&mut self.io).poll_read(cx, &mut buf).map(|ended| {
            ended.unwrap();
            self.input.extend_from_slice(buf.filled());
            buf.filled().len()
        })
    }

    fn write(&mut self, cx: &mut Context<'_>) {
        while !self.out.is_empty() {
            let Poll::Ready(count) = Pin::new(&mut self.io).poll_write(cx, &self.out) else {
                return;
            };
            // The client has closed; reading tells whether it might.
            let Ok(count) = count else { return self.out.clear() };
            self.out.drain(..count);
            self.needs_flush = true;
        }
        if self.needs_flush && Pin::new(&mut self.io).poll_flush(cx).is_ready() {
            self.needs_flush = false;
        }
    }

    pub(crate) fn state(&self) -> String {
        let open: Vec<_> = self.streams.values().filter(|stream| !stream.is_over()).collect();
        format!(
            "server: {:?} after {} pauses, {} of {} streams, last {:?}, windows: send {} (initial \
             {}), receive {} (initial {}), {} bytes to write, {} pings; open: {open:#?}",
            self.farewell,
            self.pauses,
            self.streams.len(),
            self.calls,
            self.last_id,
            self.send_window,
            self.peer_initial,
            self.recv_window,
            self.acked_initial,
            self.out.len(),
            self.pings.len(),
        )
    }
}

// What the server does.
impl Host {
    fn act(&mut self) {
        if self.out.len() > self.bytes_max || self.final_ping.is_some() {
            return;
        }
        match self.chance.below(20) {
            0..12 => self.send(),
            12..16 => self.grant_some(),
            16 if self.settings_left > 0 && self.chance.one_in(4) => {
                self.settings_left -= 1;
                self.settings();
            }
            17 if self.noise_left > 0 => {
                self.noise_left -= 1;
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

    fn settings(&mut self) {
        let mut entries = Vec::new();
        let (mut initial, mut streams_max) = (None, None);
        if self.chance.one_in(2) {
            let window = self.chance.pick(&[0, 0, 1, 100, 5_000, 65_535]);
            initial = Some(window);
            entries.push((setting::INITIAL_WINDOW_SIZE, window));
        }
        if self.chance.one_in(2) {
            let most = self.chance.pick(&[0, 1, 3, 100]);
            streams_max = Some(most as usize);
            self.last_streams_max = most as usize;
            entries.push((setting::MAX_CONCURRENT_STREAMS, most));
        }
        if self.chance.one_in(3) {
            // Our decoder takes both sizes, as long as it is not told of the smaller one.
            let table = self.chance.pick(&[0, 100, 4_096]);
            entries.push((setting::HEADER_TABLE_SIZE, table));
        }
        if self.chance.one_in(3) {
            entries.push((setting::MAX_FRAME_SIZE, 1 << 20));
        }
        frame::settings(&mut self.out, &entries);
        self.unacknowledged.push_back((initial, streams_max));
    }

    fn ping(&mut self) -> u64 {
        self.ping_count += 1;
        frame::ping(&mut self.out, &self.ping_count.to_be_bytes(), false);
        self.pings.push_back(self.ping_count);
        self.ping_count
    }

    /// Frames that mean nothing.
    fn noise(&mut self) {
        let last = self.streams.keys().last().copied().unwrap_or(1);
        let (kind, length, stream) = match self.chance.below(3) {
            0 => (0xfa, self.chance.below(50), self.chance.pick(&[0, last])),
            1 => (kind::PRIORITY, 5, last),
            _ => (0x10, 7, 0),
        };
        self.out.extend_from_slice(&Head { length, kind, flags: 0, stream }.bytes());
        self.out.extend_from_slice(&vec![0; length]);
    }

    /// GOAWAY, perhaps in two steps; takes back nothing that was answered.
    fn go_away(&mut self) {
        if self.last_id.is_none() && self.chance.one_in(2) {
            self.last_id = Some(ANY_STREAM);
            frame::goaway(&mut self.out, ANY_STREAM, ErrorCode::NO_ERROR, "soon");
            self.farewell = Farewell::GoAway(self.pauses + self.chance.below(20));
            return;
        }
        let is_answered = |stream: &&Stream| {
            stream.has_head || stream.interim == 0 || stream.reset.is_some() || stream.ended
        };
        let least = self.streams.values().rfind(is_answered).map_or(0, |stream| stream.id);
        let above: Vec<u32> = self.streams.keys().copied().filter(|id| *id >= least).collect();
        let last = if above.is_empty() { least } else { self.chance.pick(&above) };
        let last = if self.chance.one_in(2) { least } else { last };
        frame::goaway(&mut self.out, last, ErrorCode::NO_ERROR, "now");
        self.last_id = Some(last);
        for (_, stream) in self.streams.range_mut(last + 1..) {
            stream.given_up = true;
        }
        self.farewell = Farewell::GoAway(usize::MAX);
    }

    /// Lets one open stream go on.
    fn send(&mut self) {
        let is_open = |stream: &&Stream| {
            !stream.is_over() && stream.reset.is_none() && !(stream.ended && stream.client_ended)
        };
        let open: Vec<u32> =
            self.streams.values().filter(is_open).map(|stream| stream.id).collect();
        if open.is_empty() {
            return;
        }
        let id = self.chance.pick(&open);
        let stream = self.streams.get_mut(&id).expect("open");
        stream.acts += 1;
        if stream.manner == Manner::Never {
            return;
        }
        if stream.ended {
            // The client would cancel what it still has to say; sometimes it is told before.
            if self.chance.one_in(3) {
                self.reset(id, ErrorCode::NO_ERROR);
            }
            return;
        }
        if stream.manner == Manner::Refuse {
            return self.reset(id, ErrorCode::REFUSED_STREAM);
        }
        if stream.reset_after.is_some_and(|after| stream.acts > after) {
            let codes = [ErrorCode::CANCEL, ErrorCode::NO_ERROR, ErrorCode(99)];
            let code = self.chance.pick(&codes);
            return self.reset(id, code);
        }
        if stream.interim > 0 {
            stream.interim -= 1;
            let status = self.chance.pick(&["100", "103"]);
            return self.block(id, 0, &[(":status", status), ("link", "</a>")]);
        }
        if stream.manner == Manner::TrailersOnly {
            (stream.has_head, stream.ended, stream.trailers) = (true, true, true);
            let fields = [(":status", "200"), ("grpc-status", "5"), ("given", "0")];
            return self.block(id, flag::END_STREAM, &fields);
        }
        if !stream.has_head {
            stream.has_head = true;
            let size = stream.size.to_string();
            let is_source = stream.manner == Manner::Source;
            let mut fields = vec![(":status", "200"), ("content-type", "application/grpc")];
            if is_source && self.chance.one_in(2) {
                fields.push(("content-length", &size));
            }
            return self.block(id, 0, &fields);
        }
        self.send_data(id);
    }

    fn send_data(&mut self, id: u32) {
        let stream = self.streams.get_mut(&id).expect("open");
        let (goal, is_all) = stream.goal();
        let left = goal - stream.sent;
        if left == 0 {
            if !is_all {
                return;
            }
            stream.ended = true;
            if stream.ending != Ending::Trailers {
                let head =
                    Head { length: 0, kind: kind::DATA, flags: flag::END_STREAM, stream: id };
                self.out.extend_from_slice(&head.bytes());
                return;
            }
            stream.trailers = true;
            let given = stream.sent.to_string();
            return self.block(id, flag::END_STREAM, &[("given", &given)]);
        }
        let padding = if self.chance.one_in(5) { self.chance.below(256) } else { 0 };
        let overhead = if padding > 0 { padding + 1 } else { 0 };
        let room = stream.send_window.min(self.send_window).max(0);
        let room = usize::try_from(room).unwrap().min(FRAME_BYTES_MAX);
        let Some(room @ 1..) = room.checked_sub(overhead) else { return };
        let most = self.chance.pick(&[100, 1_000, 16_384]).max(goal / 20);
        let length = left.min(room).min(self.chance.between(1, most));
        let (from, number, whole) = (stream.sent, stream.number, length + overhead);
        stream.sent += length;
        let taken = i64::try_from(whole).unwrap();
        stream.send_window -= taken;
        self.send_window -= taken;
        stream.ended = is_all && length == left && stream.ending == Ending::WithData;
        let mut flags = if stream.ended { flag::END_STREAM } else { 0 };
        if padding > 0 {
            flags |= flag::PADDED;
        }
        let head = Head { length: whole, kind: kind::DATA, flags, stream: id };
        self.out.extend_from_slice(&head.bytes());
        if padding > 0 {
            self.out.push(u8::try_from(padding).unwrap());
        }
        self.out.extend_from_slice(&patterned(number, from, length));
        self.out.resize(self.out.len() + padding, 0);
    }

    fn reset(&mut self, id: u32, code: ErrorCode) {
        self.streams.get_mut(&id).expect("open").reset = Some(code);
        frame::rst_stream(&mut self.out, id, code);
        let seal = self.ping();
        self.seals.insert(seal, id);
    }

    /// A header block: padded, prioritised, in pieces, as chance has it.
    fn block(&mut self, id: u32, end: u8, fields: &[(&str, &str)]) {
        let mut block = Vec::new();
        self.encoder.begin(&mut block);
        for (name, value) in fields {
            self.encoder.field(name.as_bytes(), value.as_bytes(), false, &mut block);
        }
        let cut = if self.chance.one_in(4) { self.chance.below(block.len()) } else { block.len() };
        let (first, rest) = block.split_at(cut);
        let (mut payload, mut flags) = (Vec::new(), end);
        let padding = if self.chance.one_in(4) { self.chance.below(256) } else { 0 };
        if padding > 0 {
            flags |= flag::PADDED;
            payload.push(u8::try_from(padding).unwrap());
        }
        if self.chance.one_in(4) {
            flags |= flag::PRIORITY;
            payload.extend_from_slice(&[0, 0, 0, 0, 7]);
        }
        payload.extend_from_slice(first);
        payload.resize(payload.len() + padding, 0);
        if rest.is_empty() {
            return self.piece(kind::HEADERS, flags | flag::END_HEADERS, id, &payload);
        }
        self.piece(kind::HEADERS, flags, id, &payload);
        self.piece(kind::CONTINUATION, flag::END_HEADERS, id, rest);
    }

    fn piece(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = Head { length: payload.len(), kind, flags, stream };
        self.out.extend_from_slice(&head.bytes());
        self.out.extend_from_slice(payload);
    }

    fn grant_some(&mut self) {
        if self.recv_window < 1 << 20 && self.chance.one_in(2) {
            self.grant_connection();
        }
        let needs = |stream: &&Stream| stream.may_be_granted() && stream.recv_window < 1 << 18;
        let open: Vec<u32> = self.streams.values().filter(needs).map(|stream| stream.id).collect();
        if !open.is_empty() {
            let id = self.chance.pick(&open);
            self.grant(id);
        }
    }

    /// Sooner or later every window opens; in the first pauses after it shut, perhaps not.
    fn open_what_is_shut(&mut self) {
        if self.out.len() > self.bytes_max || self.final_ping.is_some() {
            return;
        }
        if self.last_streams_max == 0 && self.chance.one_in(5) {
            self.last_streams_max = 1;
            frame::settings(&mut self.out, &[(setting::MAX_CONCURRENT_STREAMS, 1)]);
            self.unacknowledged.push_back((None, Some(1)));
        }
        if self.recv_window <= 0 && (self.grants_at_once || self.chance.one_in(5)) {
            self.grant_connection();
        }
        let is_shut = |stream: &&Stream| {
            stream.recv_window <= 0 && stream.may_be_granted() && !stream.client_ended
        };
        let shut: Vec<u32> =
            self.streams.values().filter(is_shut).map(|stream| stream.id).collect();
        for id in shut {
            if self.grants_at_once || self.chance.one_in(5) {
                self.grant(id);
            }
        }
    }

    fn grant_connection(&mut self) {
        let most = self.chance.pick(&[1_000, 20_000, 65_535, 1 << 20]);
        let increment = self.chance.between(1, most);
        self.recv_window += i64::try_from(increment).unwrap();
        frame::window_update(&mut self.out, 0, u32::try_from(increment).unwrap());
    }

    fn grant(&mut self, id: u32) {
        let most = self.chance.pick(&[1_000, 20_000, 65_535]);
        let increment = self.chance.between(1, most);
        let stream = self.streams.get_mut(&id).expect("open");
        stream.recv_window += i64::try_from(increment).unwrap();
        frame::window_update(&mut self.out, id, u32::try_from(increment).unwrap());
    }
}

// What the client says.
impl Host {
    fn frames(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        if !self.has_preface {
            let begin = rest.len().min(PREFACE.len());
            assert_eq!(rest[..begin], PREFACE[..begin]);
            if begin < PREFACE.len() {
                self.input = input;
                return;
            }
            self.has_preface = true;
            rest = &rest[PREFACE.len()..];
        }
        while let Some(head) = Head::parse(rest) {
            assert!(head.length <= FRAME_BYTES_MAX, "frame of {} bytes", head.length);
            let Some(payload) = rest.get(HEAD_BYTES..HEAD_BYTES + head.length) else { break };
            self.frame(head, payload);
            rest = &rest[HEAD_BYTES + head.length..];
        }
        self.input = rest.to_vec();
    }

    fn frame(&mut self, head: Head, payload: &[u8]) {
        assert!(self.has_settings || head.kind == kind::SETTINGS, "first frame: {head:?}");
        if self.block.is_some() {
            assert_eq!(head.kind, kind::CONTINUATION, "a header block was interrupted");
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS | kind::CONTINUATION => self.headers(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.their_settings(head, payload),
            kind::PING => self.pong(head, payload),
            kind::GOAWAY => panic!("GOAWAY: {}", String::from_utf8_lossy(&payload[8..])),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            _ => panic!("a client sends no such frame: {head:?}"),
        }
    }

    /// The stream of a frame that the client may send now; `None`: one that it does not know yet
    /// to be given up.
    fn stream(&mut self, head: Head) -> Option<&mut Stream> {
        let Some(stream) = self.streams.get_mut(&head.stream) else {
            let last = self.last_id.unwrap_or_else(|| panic!("unknown stream: {head:?}"));
            assert!(head.stream > last, "unknown stream: {head:?}");
            return None;
        };
        assert!(!stream.sealed, "{head:?} although the client knew of the reset: {stream:?}");
        assert!(!stream.client_reset, "{head:?} after a reset: {stream:?}");
        Some(stream)
    }

    fn data(&mut self, head: Head, payload: &[u8]) {
        assert!(!head.has(flag::PADDED));
        let length = i64::try_from(payload.len()).unwrap();
        self.recv_window -= length;
        assert!(self.recv_window >= 0 || length == 0, "connection window: {}", self.recv_window);
        let Some(stream) = self.stream(head) else { return };
        assert!(!stream.client_ended, "{head:?} after the end: {stream:?}");
        stream.recv_window -= length;
        assert!(stream.recv_window >= 0 || length == 0, "stream window exceeded: {stream:?}");
        let (from, number) = (stream.received, stream.number);
        let wrong = (0..payload.len()).find(|&at| payload[at] != pattern(number, from + at));
        assert_eq!(wrong.map(|at| from + at), None, "first wrong byte of {stream:?}");
        stream.received += payload.len();
        stream.client_ended = head.has(flag::END_STREAM);
        if let (true, Some(expected)) = (stream.client_ended, stream.content_length) {
            assert_eq!(stream.received, expected, "{stream:?}");
        }
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
        self.accept(first, &fields);
    }

    fn accept(&mut self, head: Head, fields: &HashMap<String, String>) {
        let id = head.stream;
        let newest = self.streams.keys().last().copied().unwrap_or(0);
        assert!(id % 2 == 1 && id > newest, "stream {id} after {newest}");
        assert_eq!((&*fields[":method"], &*fields[":scheme"]), ("POST", "http"));
        assert!(fields[":path"].starts_with('/') && fields[":authority"] == "torture");
        if self.last_id.is_some_and(|last| id > last) {
            return;
        }
        // What it does not know yet does not bind it.
        let limits = self.unacknowledged.iter().filter_map(|settings| settings.1);
        let limit = limits.chain([self.acked_streams_max]).max().expect("one at least");
        let open = self.streams.values().filter(|stream| stream.counts()).count();
        assert!(open < limit, "stream {id} beside {open} others, limit {limit}");
        let manners = [Manner::Echo, Manner::Echo, Manner::Source, Manner::TrailersOnly];
        let most = self.chance.pick(&[0, 1, 100, 3_000, 70_000]).min(self.bytes_max);
        let cancels = fields.contains_key("cancels");
        let stream = Stream {
            id,
            number: fields["number"].parse().unwrap(),
            manner: if cancels && self.chance.one_in(2) {
                Manner::Never
            } else if self.chance.one_in(15) {
                Manner::Refuse
            } else {
                self.chance.pick(&manners)
            },
            ending: self.chance.pick(&[Ending::WithData, Ending::EmptyData, Ending::Trailers]),
            reset_after: self.chance.one_in(6).then(|| {
                let most = self.chance.pick(&[1, 10, 100]);
                self.chance.below(most)
            }),
            interim: if self.chance.one_in(4) { self.chance.between(1, 3) } else { 0 },
            size: self.chance.between(most / 2, most),
            acts: 0,
            content_length: fields.get("content-length").map(|length| length.parse().unwrap()),
            cancels,
            has_head: false,
            received: 0,
            client_ended: head.has(flag::END_STREAM),
            client_reset: false,
            sent: 0,
            ended: false,
            trailers: false,
            reset: None,
            sealed: false,
            given_up: false,
            send_window: self.peer_initial,
            recv_window: self.acked_initial,
        };
        let before = self.streams.insert(id, stream);
        assert!(before.is_none());
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) {
        let code = ErrorCode(u32::from_be_bytes(payload.try_into().unwrap()));
        let Some(stream) = self.stream(head) else { return };
        // Only of what nobody wants, or listens to, any more.
        let is_unheard = stream.ended && !stream.client_ended;
        assert!(stream.cancels || is_unheard, "{code}: {stream:?}");
        assert_eq!(code, ErrorCode::CANCEL);
        stream.client_reset = true;
    }

    fn their_settings(&mut self, head: Head, payload: &[u8]) {
        if head.has(flag::ACK) {
            let settings = self.unacknowledged.pop_front().expect("one ACK for each SETTINGS");
            if let Some(initial) = settings.0 {
                let delta = i64::from(initial) - self.acked_initial;
                self.acked_initial = initial.into();
                for stream in self.streams.values_mut() {
                    stream.recv_window += delta;
                }
            }
            self.acked_streams_max = settings.1.unwrap_or(self.acked_streams_max);
            return;
        }
        assert!(!self.has_settings, "the client changes its settings");
        self.has_settings = true;
        let settings = Settings::parse(payload).unwrap();
        assert_eq!(settings.enable_push, Some(false));
        if let Some(initial) = settings.initial_flow_window_bytes {
            self.peer_initial = initial.into();
        }
        frame::settings_ack(&mut self.out);
    }

    fn pong(&mut self, head: Head, payload: &[u8]) {
        let opaque: [u8; 8] = payload.try_into().unwrap();
        assert!(head.has(flag::ACK), "nobody asked the client to ping");
        let ping = u64::from_be_bytes(opaque);
        assert_eq!(self.pings.pop_front(), Some(ping), "pings are answered in order, once");
        if let Some(id) = self.seals.remove(&ping) {
            self.streams.get_mut(&id).expect("sealed once").sealed = true;
        }
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) {
        let increment = i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
        assert!(increment > 0);
        if head.stream == 0 {
            self.send_window += increment;
        } else if let Some(stream) = self.stream(head) {
            stream.send_window += increment;
        }
    }
}
