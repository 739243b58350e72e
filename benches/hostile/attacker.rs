//! The attacker: connections that say what a script tells them, as fast as the server reads it.
//!
//! In: a [`Row`]'s scripts, an address, an end in time and bytes. Out: what was sent, and what the
//! server made of it. A connection that the server ends is replaced at once. One thread, no runtime,
//! blocking nowhere but in `poll`: an attacker that is slower than the server proves nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rows::Row;
use crate::support::hpack::Decoder;
use crate::support::peer::{
    ACK, END_HEADERS, END_STREAM, INITIAL_WINDOW_SIZE, PREFACE, append_frame, settings,
    settings_ack, window_update,
};

/// What is built before it is written: large enough that a write is seldom short of bytes, small
/// enough that a script sees soon what it caused, and that the neighbour on this core gets its turn.
const WRITE_BYTES: usize = 16 << 10;

/// What one step of a connection reads at most.
const READ_BYTES: usize = 64 << 10;

/// Received bytes after which the connection's window is widened again.
const GRANT_BYTES: u32 = 256 << 20;

/// Heads of a connection that are decoded, for their status; and as many trailers, where the row asks for theirs: more
/// would make an attacker slow. No block can be left out in between, because each may fill the table of those behind it.
const DECODED_BLOCKS: u32 = 32;

/// How long connections stay after the attack.
const HOLD: Duration = Duration::from_millis(100);

/// The window that every connection and stream begins with (RFC 9113, 6.9.2).
const WINDOW_BYTES_DEFAULT: i64 = 65_535;

/// What a client does on one connection.
pub(crate) struct Script {
    /// All that it says first.
    pub(crate) opening: Vec<u8>,
    /// What it says over and over.
    pub(crate) wave: Wave,
    pub(crate) reading: Reading,
}

/// Appends what comes next to what is to be sent.
pub(crate) type Wave = Box<dyn FnMut(&mut Heard, &mut Vec<u8>) -> Pace>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// There is more to say.
    On,
    /// Nothing, before something more is heard.
    Wait,
    /// The connection is to be closed.
    Leave,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// All that comes, at once.
    All,
    /// So many bytes, and then none for so long.
    Slow(usize, Duration),
    /// The server's settings, and then nothing.
    Greeting,
    /// Nothing; only how the connection ends is noticed.
    Nothing,
}

/// Preface and settings, with both windows as wide as they get unless `entries` say otherwise, and the
/// acknowledgement of what the server is about to say.
pub(crate) fn greeting(entries: &[(u16, u32)]) -> Vec<u8> {
    const WIDE: u32 = (1 << 31) - 1;
    let wide = [(INITIAL_WINDOW_SIZE, WIDE)];
    let entries = if entries.is_empty() { &wide } else { entries };
    [PREFACE, &settings(entries), &window_update(0, WIDE - 65_535), &settings_ack()].concat()
}

/// What a script may know of what the server said on its connection.
#[derive(Default)]
pub(crate) struct Heard {
    /// Streams whose answer began, in order.
    pub(crate) answered: VecDeque<u32>,
    /// Streams that the server ended, or broke off.
    pub(crate) ended: u32,
    /// DATA: streams and how many bytes.
    pub(crate) echoed: Vec<(u32, usize)>,
    /// What the server lets us send: on the connection beyond the first window, ...
    granted: i64,
    /// ... on streams that began, ...
    rooms: HashMap<u32, i64>,
    /// ... and on those that begin.
    initial_room: Option<i64>,
    is_greeted: bool,
}

impl Heard {
    /// Forgets what this script does not ask about.
    pub(crate) fn forget(&mut self) {
        self.answered.clear();
        self.echoed.clear();
    }

    /// Bytes of DATA that the windows take now; none before the server's settings are known.
    pub(crate) fn room(&mut self, stream: u32) -> usize {
        if !self.is_greeted {
            return 0;
        }
        let connection = WINDOW_BYTES_DEFAULT + self.granted;
        let room = connection.min(*self.stream_room(stream)).max(0);
        usize::try_from(room).expect("not negative")
    }

    /// Takes `bytes` from the windows.
    pub(crate) fn spend(&mut self, stream: u32, bytes: usize) {
        let bytes = i64::try_from(bytes).expect("small");
        self.granted -= bytes;
        *self.stream_room(stream) -= bytes;
    }

    fn stream_room(&mut self, stream: u32) -> &mut i64 {
        let initial = self.initial_room.unwrap_or(WINDOW_BYTES_DEFAULT);
        self.rooms.entry(stream).or_insert(initial)
    }
}

/// What an attack was, and what became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) connections: u64,
    /// Those that the server ended.
    pub(crate) ended: u64,
    /// Those among them on which no GOAWAY was seen.
    pub(crate) ended_without_goaway: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) frames_sent: u64,
    pub(crate) frames_received: u64,
    /// Bytes of DATA.
    pub(crate) echo_bytes: u64,
    /// Last GOAWAYs of the connections that the server ended, by code and reason.
    pub(crate) goaways: BTreeMap<(u32, String), u64>,
    /// Of those that it did not.
    pub(crate) goaways_of_open: BTreeMap<(u32, String), u64>,
    /// Last GOAWAY of each of the first connections, which are as many as the row has at once.
    pub(crate) goaways_of_first: BTreeMap<u64, (u32, String)>,
    /// RST_STREAM by code.
    pub(crate) resets: BTreeMap<u32, u64>,
    /// Of the answers that were looked at: `:status` of heads and `grpc-status` of trailers.
    pub(crate) statuses: BTreeMap<String, u64>,
    /// From its begin to its end, for the connection that lasted longest among those that ended.
    pub(crate) longest_seconds: f64,
}

/// How long an attack may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) time: Duration,
    /// Until then it goes on if it has not ended as it must: a busy machine may be slow.
    pub(crate) time_max: Duration,
    pub(crate) bytes: u64,
    /// So much longer it stays, doing nothing new, to see how the server ends its connections.
    pub(crate) patience: Duration,
}

/// The end of the attack itself.
pub(crate) struct End {
    pub(crate) at: Instant,
    /// The server's CPU time then.
    pub(crate) server_ticks: u64,
}

/// Attacks `address`, whose server has used so much CPU time; `has_ended` says whether that was as it must be.
pub(crate) fn attack(
    row: &Row,
    address: SocketAddr,
    bounds: Bounds,
    server_ticks: impl Fn() -> u64,
    has_ended: impl Fn(&Tally) -> bool,
) -> (Tally, End) {
    let script = (row.prepare)();
    let mut tally = Tally::default();
    let begin = Instant::now();
    let cpu_before = cpu_seconds();
    let mut connections: Vec<Connection> = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let now = Instant::now();
        let time = now - begin;
        let is_over = time >= bounds.time && (time >= bounds.time_max || has_ended(&tally));
        if is_over || tally.bytes_sent >= bounds.bytes {
            break;
        }
        if connections.len() < row.connections {
            // Some at a time, so that the first of many are not forgotten over the last.
            for _ in connections.len()..row.connections.min(connections.len() + 64) {
                connections.extend(Connection::open(address, row, script(), &mut tally));
            }
        }
        let mut progress = false;
        connections.retain_mut(|connection| match connection.step(now, &mut buffer, &mut tally) {
            Step::Went => {
                progress = true;
                true
            }
            Step::Waits => true,
            Step::Over => false,
        });
        if !progress && connections.len() == row.connections {
            wait(&connections, bounds.time_max.saturating_sub(time));
        }
    }
    let end = End { at: Instant::now(), server_ticks: server_ticks() };
    tally.seconds = (end.at - begin).as_secs_f64();
    tally.cpu_seconds = cpu_seconds() - cpu_before;
    while end.at.elapsed() < bounds.patience && !connections.is_empty() {
        connections.retain_mut(|connection| {
            !matches!(connection.read(&mut buffer, READ_BYTES, &mut tally), Step::Over)
        });
        wait(&connections, bounds.patience.saturating_sub(end.at.elapsed()));
    }
    // What is due now is still answered beside these connections, not beside their end: closing
    // hundreds at once is not what a row is about.
    std::thread::sleep(HOLD);
    // Whoever is still there was not ended by the server, but may have been told to go.
    for mut connection in connections {
        let _ = connection.read(&mut buffer, READ_BYTES, &mut tally);
        if let Some(goaway) = connection.goaway.take() {
            *tally.goaways_of_open.entry(goaway).or_default() += 1;
        }
    }
    (tally, end)
}

/// Until something may have changed on one of them, at most `patience` and at most a few milliseconds.
fn wait(connections: &[Connection], patience: Duration) {
    const MOST: Duration = Duration::from_millis(5);
    let mut fds: Vec<PollFd> = connections
        .iter()
        .map(|connection| {
            let mut flags = PollFlags::empty();
            if connection.reads_at_once() {
                flags |= PollFlags::IN;
            }
            if connection.written < connection.out.len() {
                flags |= PollFlags::OUT;
            }
            PollFd::new(&connection.tcp, flags)
        })
        .collect();
    let patience = patience.min(MOST);
    let nanoseconds = i64::from(patience.subsec_nanos());
    let timeout = Timespec { tv_sec: patience.as_secs().try_into().unwrap(), tv_nsec: nanoseconds };
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&timeout));
}

/// CPU time of this thread.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("never negative").as_secs_f64()
}

enum Step {
    Went,
    Waits,
    Over,
}

struct Connection {
    tcp: TcpStream,
    script: Script,
    began: Instant,
    out: Vec<u8>,
    written: usize,
    /// Where the next frame in `out` begins that was not counted as sent.
    counted: usize,
    unread: Vec<u8>,
    heard: Heard,
    /// DATA for which no window was given back.
    owed: u32,
    decoder: Decoder,
    /// Heads and trailers that are still to be decoded.
    heads_left: u32,
    trailers_left: u32,
    /// A header block that goes on.
    block: Vec<u8>,
    goaway: Option<(u32, String)>,
    /// Its place among the first, if it is one of them.
    first: Option<u64>,
    resume_reading: Option<Instant>,
    /// Nothing more is said.
    is_leaving: bool,
}

impl Connection {
    fn open(address: SocketAddr, row: &Row, script: Script, tally: &mut Tally) -> Option<Self> {
        // A server that has no room for it is not told so twice in a row: the loop comes back.
        let tcp = TcpStream::connect(address).ok()?;
        tcp.set_nodelay(true).ok()?;
        tcp.set_nonblocking(true).ok()?;
        tally.connections += 1;
        let mut script = script;
        let out = std::mem::take(&mut script.opening);
        Some(Connection {
            tcp,
            script,
            began: Instant::now(),
            counted: if out.starts_with(PREFACE) { PREFACE.len() } else { 0 },
            out,
            written: 0,
            unread: Vec::new(),
            heard: Heard::default(),
            owed: 0,
            decoder: Decoder::default(),
            heads_left: DECODED_BLOCKS,
            trailers_left: if row.fate.asks_for_trailers() { DECODED_BLOCKS } else { 0 },
            block: Vec::new(),
            goaway: None,
            first: (tally.connections <= row.connections as u64).then_some(tally.connections),
            resume_reading: None,
            is_leaving: false,
        })
    }

    fn reads_at_once(&self) -> bool {
        let reads_greeting = self.script.reading == Reading::Greeting && !self.heard.is_greeted;
        self.script.reading == Reading::All || reads_greeting
    }

    fn step(&mut self, now: Instant, buffer: &mut [u8], tally: &mut Tally) -> Step {
        let mut went = false;
        let most = match self.script.reading {
            Reading::All => READ_BYTES,
            Reading::Greeting if !self.heard.is_greeted => READ_BYTES,
            Reading::Greeting | Reading::Nothing => 0,
            Reading::Slow(bytes, pause) => {
                if self.resume_reading.is_some_and(|at| now < at) {
                    0
                } else {
                    self.resume_reading = Some(now + pause);
                    bytes
                }
            }
        };
        if most > 0 {
            match self.read(buffer, most, tally) {
                Step::Went => went = true,
                Step::Waits => {}
                Step::Over => return Step::Over,
            }
        }
        match self.write(tally) {
            Ok(_) if self.is_leaving && self.written == self.out.len() => return Step::Over,
            Ok(wrote) => went |= wrote,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                // What the server said before it closed is still there.
                while matches!(self.read(buffer, READ_BYTES, tally), Step::Went) {}
                return Step::Over;
            }
        }
        if went { Step::Went } else { Step::Waits }
    }

    fn write(&mut self, tally: &mut Tally) -> io::Result<bool> {
        if self.written == self.out.len() {
            self.out.clear();
            (self.written, self.counted) = (0, 0);
            if self.owed >= GRANT_BYTES {
                self.out.extend_from_slice(&window_update(0, std::mem::take(&mut self.owed)));
            }
            while self.out.len() < WRITE_BYTES {
                match (self.script.wave)(&mut self.heard, &mut self.out) {
                    Pace::On => {}
                    Pace::Wait => break,
                    Pace::Leave => {
                        self.is_leaving = true;
                        break;
                    }
                }
            }
        }
        if self.written == self.out.len() {
            return Ok(false);
        }
        let wrote = self.tcp.write(&self.out[self.written..])?;
        self.written += wrote;
        tally.bytes_sent += wrote as u64;
        while let Some(head) = self.out.get(self.counted..self.written).filter(|it| it.len() >= 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            self.counted += 9 + length as usize;
            tally.frames_sent += 1;
        }
        Ok(true)
    }

    fn read(&mut self, buffer: &mut [u8], most: usize, tally: &mut Tally) -> Step {
        let most = most.min(buffer.len());
        match self.tcp.read(&mut buffer[..most]) {
            Ok(count) if count > 0 => {
                self.hear(&buffer[..count], tally);
                Step::Went
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Waits,
            Ok(_) | Err(_) => {
                tally.ended += 1;
                tally.ended_without_goaway += u64::from(self.goaway.is_none());
                tally.longest_seconds =
                    tally.longest_seconds.max(self.began.elapsed().as_secs_f64());
                if let Some(goaway) = self.goaway.take() {
                    *tally.goaways.entry(goaway).or_default() += 1;
                }
                Step::Over
            }
        }
    }

    fn hear(&mut self, bytes: &[u8], tally: &mut Tally) {
        let mut unread = std::mem::take(&mut self.unread);
        let joined = if unread.is_empty() {
            bytes
        } else {
            unread.extend_from_slice(bytes);
            &unread
        };
        let mut at = 0;
        while let Some(head) = joined.get(at..at + 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = joined.get(at + 9..at + 9 + length) else { break };
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            tally.frames_received += 1;
            self.frame(head[3], head[4], stream, payload, tally);
            at += 9 + length;
        }
        self.unread = joined[at..].to_vec();
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], tally: &mut Tally) {
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            0 => {
                self.owed += u32::try_from(payload.len()).expect("a frame");
                tally.echo_bytes += payload.len() as u64;
                self.heard.echoed.push((stream, payload.len()));
                self.heard.ended += u32::from(flags & END_STREAM != 0);
            }
            1 | 9 => {
                if kind == 1 {
                    self.heard.answered.push_back(stream);
                    self.heard.ended += u32::from(flags & END_STREAM != 0);
                }
                self.block.extend_from_slice(payload);
                if flags & END_HEADERS != 0 {
                    self.header_block(tally);
                }
            }
            3 => {
                *tally.resets.entry(word(0)).or_default() += 1;
                // After a whole answer it only asks us to stop.
                self.heard.ended += u32::from(word(0) != 0);
            }
            4 if flags & ACK == 0 => {
                for entry in payload.chunks_exact(6) {
                    if u16::from_be_bytes([entry[0], entry[1]]) == INITIAL_WINDOW_SIZE {
                        let window = u32::from_be_bytes(entry[2..].try_into().unwrap());
                        self.heard.initial_room = Some(window.into());
                    }
                }
                self.heard.is_greeted = true;
            }
            7 => {
                let goaway = (word(4), String::from_utf8_lossy(&payload[8..]).into_owned());
                if let Some(first) = self.first {
                    tally.goaways_of_first.insert(first, goaway.clone());
                }
                self.goaway = Some(goaway);
            }
            8 if stream == 0 => self.heard.granted += i64::from(word(0)),
            8 => *self.heard.stream_room(stream) += i64::from(word(0)),
            _ => {}
        }
    }

    fn header_block(&mut self, tally: &mut Tally) {
        let block = std::mem::take(&mut self.block);
        if self.heads_left == 0 && self.trailers_left == 0 {
            return;
        }
        let fields = self.decoder.decode(&block);
        let value = |name: &str| fields.iter().find(|(known, _)| known == name);
        let (status, grpc_status) = (value(":status"), value("grpc-status"));
        let left = if status.is_some() { &mut self.heads_left } else { &mut self.trailers_left };
        let Some(less) = left.checked_sub(1) else { return };
        *left = less;
        let words = [status, grpc_status].into_iter().flatten();
        let words: Vec<&str> = words.map(|(_, value)| value.as_str()).collect();
        *tally.statuses.entry(words.join("/")).or_default() += 1;
    }
}

/// Appends a HEADERS frame whose block is encoded already.
pub(crate) fn append_headers(out: &mut Vec<u8>, stream: u32, flags: u8, block: &[u8]) {
    append_frame(out, 1, flags | END_HEADERS, stream, block);
}
