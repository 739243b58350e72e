//! The attacks, a row each: what the client does over and over, and what must become of it.
//!
//! Every row of the first survey of hostile clients and every flood that has a limit. Adding one: a
//! [`Row`] in [`all`], and a script below. Frames are built by the functions of the tests.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::attacker::{Heard, Pace, Reading, Script, append_headers, greeting};
use crate::support::hpack;
use crate::support::peer::*;
use crate::support::wire::{ECHO, echo_message, frame as message};

/// One attack, or one honest load.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the client does.
    pub(crate) what: &'static str,
    /// Connections at once; one that the server ends is replaced.
    pub(crate) connections: usize,
    pub(crate) fate: Fate,
    /// Run once in the attacker's thread; what it gives makes each connection's script.
    pub(crate) prepare: fn() -> Box<dyn Fn() -> Script>,
}

impl Row {
    /// Whether a test has it with a task for each stream, too: whoever is cut off before it has many streams leaves nothing
    /// to tasks.
    pub(crate) fn is_with_tasks_too(&self) -> bool {
        self.connections != CUT_OFF
    }
}

/// What must become of an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its connections go on to the end, nothing is reset, and echoes come.
    Carried,
    /// Each stream is answered with these statuses, of HTTP and of gRPC; the connection lives.
    Answered(&'static [&'static str]),
    /// Each stream is answered with this status, and each connection ends after some with this GOAWAY.
    AnsweredAtFirst(&'static str, u32, &'static str),
    /// Some streams are refused with REFUSED_STREAM, the others go on.
    Refused,
    /// Each connection ends with a GOAWAY of this code, for one of these reasons.
    GoAway(u32, &'static [&'static str]),
    /// The same, or, where a frame is late for its stream, with this other code and reason.
    GoAwayOr(u32, &'static [&'static str], u32, &'static str),
    /// Carried as long as the run lasts, then ended by a timer with this GOAWAY ...
    Timer(u32, &'static str),
    /// ... which takes longer than anybody wants to wait here: the tests on paused time hold it.
    LongTimer,
}

impl Fate {
    /// Whether the statuses of trailers are a part of it.
    pub(crate) fn asks_for_trailers(&self) -> bool {
        // Those of HTTP have three digits.
        matches!(self, Fate::Answered(statuses) if statuses.iter().any(|status| status.len() < 3))
    }

    pub(crate) fn goal(&self) -> String {
        match self {
            Fate::Carried => "carried".to_owned(),
            Fate::Answered(status) => {
                format!("each stream {}, the connection lives", status.join("/"))
            }
            Fate::AnsweredAtFirst(status, code, reason) => {
                format!("{status}, then GOAWAY {} {reason}", code_name(*code))
            }
            Fate::Refused => "REFUSED_STREAM above the limit".to_owned(),
            Fate::GoAway(code, reasons) => {
                format!("GOAWAY {} {}", code_name(*code), reasons.join(" or "))
            }
            Fate::GoAwayOr(code, reasons, late_code, late_reason) => {
                let late = format!("{} {late_reason}", code_name(*late_code));
                format!("GOAWAY {} {} or {late}", code_name(*code), reasons.join(" or "))
            }
            Fate::Timer(code, reason) => format!("closed by {reason} ({})", code_name(*code)),
            Fate::LongTimer => "bounded; the timer is longer than a run".to_owned(),
        }
    }
}

/// The name of an error code (RFC 9113, 7).
pub(crate) fn code_name(code: u32) -> String {
    let name = match code {
        NO_ERROR => "NO_ERROR",
        PROTOCOL_ERROR => "PROTOCOL_ERROR",
        INTERNAL_ERROR => "INTERNAL_ERROR",
        FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        STREAM_CLOSED => "STREAM_CLOSED",
        FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        REFUSED_STREAM => "REFUSED_STREAM",
        CANCEL => "CANCEL",
        COMPRESSION_ERROR => "COMPRESSION_ERROR",
        ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// The honest load beside which neighbours are compared.
pub(crate) const YARDSTICK: &str = "honest-1000";

/// Connections of an attacker that is cut off: while one learns of its end, the others go on.
const CUT_OFF: usize = 4;

/// Of one that has thousands of streams on each of its connections: more would be within the limits,
/// and measure those.
const CUT_OFF_WITH_STREAMS: usize = 1;

type Prepare = fn() -> Box<dyn Fn() -> Script>;

/// Connections of one that says too little.
const SILENT: usize = 500;

/// A row whose attacker has so many connections at once.
fn with_connections(connections: usize, row: Row) -> Row {
    Row { connections, ..row }
}

fn row(name: &'static str, what: &'static str, fate: Fate, prepare: Prepare) -> Row {
    let connections = match fate {
        Fate::GoAway(..) | Fate::GoAwayOr(..) | Fate::AnsweredAtFirst(..) => CUT_OFF,
        Fate::Timer(..) => SILENT,
        _ => 1,
    };
    Row { name, what, connections, fate, prepare }
}

fn calm(reasons: &'static [&'static str]) -> Fate {
    Fate::GoAway(ENHANCE_YOUR_CALM, reasons)
}

pub(crate) fn all() -> Vec<Row> {
    [honest(), resets(), floods(), header_lists(), windows(), streams(), silence(), faults()]
        .into_iter()
        .flatten()
        .collect()
}

fn honest() -> Vec<Row> {
    vec![
        row(
            YARDSTICK,
            "100 streams, 4 messages of 1,000 B in flight on each",
            Fate::Carried,
            || ping_pong(100, 4, 1_000),
        ),
        row(
            "honest-8",
            "100 streams, 64 messages of 8 B in flight on each, a DATA frame each",
            Fate::Carried,
            || ping_pong(100, 64, 8),
        ),
    ]
}

fn resets() -> Vec<Row> {
    const ERRORS: &[&str] = &["too_many_stream_errors"];
    vec![
        row("rapid-reset", "HEADERS, RST_STREAM", calm(&["too_many_resets"]), || {
            each_stream(0, |out, id| append_frame(out, 3, 0, id, &CANCEL.to_be_bytes()))
        }),
        row(
            "rapid-reset-short",
            "HEADERS of 6 bytes, RST_STREAM",
            calm(&["too_many_resets"]),
            || each_short_stream(0, |out, id| append_frame(out, 3, 0, id, &CANCEL.to_be_bytes())),
        ),
        row(
            "reset-after-headers",
            "RST_STREAM as soon as the answer's headers are here, 100 streams at once",
            calm(&["too_many_resets"]),
            reset_after_headers,
        ),
        row("provoked-zero-update", "HEADERS, WINDOW_UPDATE of 0", calm(ERRORS), || {
            each_stream(0, |out, id| append_frame(out, 8, 0, id, &[0; 4]))
        }),
        row(
            "provoked-data-after-end",
            "HEADERS with END_STREAM, DATA",
            // Between two reads the stream may have been answered: then nothing is left of it to reset (RFC 9113, 5.1).
            Fate::GoAwayOr(ENHANCE_YOUR_CALM, ERRORS, STREAM_CLOSED, "frame_after_end_of_stream"),
            || each_stream(END_STREAM, |out, id| append_frame(out, 0, 0, id, b"x")),
        ),
        row(
            "provoked-window-overflow",
            "HEADERS, WINDOW_UPDATE beyond the largest window",
            calm(ERRORS),
            || {
                each_stream(0, |out, id| {
                    append_frame(out, 8, 0, id, &((1_u32 << 31) - 1).to_be_bytes());
                })
            },
        ),
        row("malformed-requests", "requests with `connection: close`", calm(ERRORS), || {
            let block = hpack::encode(&[&POST[..], &[("connection", "close")]].concat());
            streams_of(END_STREAM, block, |_, _| {})
        }),
    ]
}

fn floods() -> Vec<Row> {
    const PINGS: &[&str] = &["too_many_pings"];
    const SETTINGS: &[&str] = &["too_many_settings"];
    vec![
        row("ping-flood", "PING", calm(PINGS), || flood(ping(b"12345678", 0))),
        row("ping-flood-unread", "PING, and never reads", calm(PINGS), || {
            unread(ping(b"12345678", 0))
        }),
        row("settings-flood", "empty SETTINGS", calm(SETTINGS), || flood(settings(&[]))),
        row("settings-flood-unread", "empty SETTINGS, and never reads", calm(SETTINGS), || {
            unread(settings(&[]))
        }),
        row("settings-entries", "SETTINGS of 2,700 unknown entries", calm(SETTINGS), || {
            flood(settings(&[(0x4242, 0); 2_700]))
        }),
        with_connections(
            CUT_OFF_WITH_STREAMS,
            row(
                "settings-windows",
                "4,000 streams, then SETTINGS that move the windows of all of them",
                calm(SETTINGS),
                settings_windows,
            ),
        ),
        row("empty-data", "DATA without data", calm(&["too_many_empty_data_frames"]), || {
            flood(data(1, 0, &[]))
        }),
        row("padded-data", "DATA of padding alone", calm(&["too_many_empty_data_frames"]), || {
            flood(data(1, PADDED, &[255; 256]))
        }),
        row(
            "tiny-data",
            "DATA frames of a byte, of a message of 4 MiB that never ends",
            Fate::Answered(&["200"]),
            tiny_data,
        ),
        row("window-updates", "WINDOW_UPDATE of 1", calm(&["too_many_window_updates"]), || {
            flood_after(&[(INITIAL_WINDOW_SIZE, 1_000)], window_update(1, 1))
        }),
        row("priorities", "PRIORITY", calm(&["too_many_priorities"]), || {
            flood(frame(2, 0, 99, &[0, 0, 0, 3, 15]))
        }),
        row("unknown-frames", "frames of type 0xfa", calm(&["too_many_unknown_frames"]), || {
            flood(frame(0xfa, 0, 0, b"grease"))
        }),
        row(
            "gone-streams",
            "RST_STREAM of a stream that is gone",
            calm(&["too_many_frames_for_gone_streams"]),
            || flood(rst_stream(1, CANCEL)),
        ),
        // One connection: it is granted so much that four would take seconds.
        with_connections(
            1,
            row(
                "gone-credit",
                "2 streams that are answered early, and then all that they were granted and more, in DATA of a byte",
                calm(&["too_many_frames_for_gone_streams"]),
                gone_credit,
            ),
        ),
    ]
}

fn header_lists() -> Vec<Row> {
    const REASON: &str = "too_many_large_header_lists";
    let refused = Fate::AnsweredAtFirst("431", ENHANCE_YOUR_CALM, REASON);
    vec![
        row(
            "continuation-flood",
            "HEADERS, CONTINUATION of 16 KiB without end",
            calm(&["header_block_too_large"]),
            || endless_block(&[0; 16_384]),
        ),
        row(
            "continuation-empty",
            "HEADERS, empty CONTINUATION without end",
            calm(&["too_many_continuations"]),
            || endless_block(&[]),
        ),
        row("hpack-bomb", "blocks of 12 KB that stand for 48 MB", refused, || {
            numbered(header_bomb)
        }),
        row(
            "hpack-fields",
            "blocks of 1 MiB that are a million fields",
            calm(&["too_many_header_fields"]),
            || numbered(|n| indexed_fields(id(n), 1 << 20)),
        ),
        row("headers-64k", "requests with a header of 64 KiB", refused, || {
            numbered(|n| large_post(id(n), 64 << 10))
        }),
        // One connection: four would send all that a run may before any of them is cut off.
        with_connections(
            1,
            row("headers-1m", "requests with a header of 1 MiB", refused, || {
                numbered(|n| large_post(id(n), 1 << 20))
            }),
        ),
    ]
}

fn windows() -> Vec<Row> {
    let flow = |reasons| Fate::GoAway(FLOW_CONTROL_ERROR, reasons);
    vec![
        row(
            "connection-window-overflow",
            "WINDOW_UPDATE of the connection beyond the largest window",
            flow(&["connection_window_overflow"]),
            || once(window_update(0, (1 << 31) - 1)),
        ),
        row(
            "windows-ignored",
            "DATA beyond the window, with replies shut in",
            flow(&["stream_window_exceeded", "connection_window_exceeded"]),
            || {
                let request = asking(1, 0, "POST", "application/grpc");
                let opening = [greeting(&[(INITIAL_WINDOW_SIZE, 0)]), request].concat();
                repeated(opening, data(1, 0, &message(&echo_message(&[7; 16_000]))))
            },
        ),
        row(
            "zero-window",
            "sends what the windows take, and never opens its own",
            Fate::LongTimer,
            zero_window,
        ),
        row(
            "reads-nothing",
            "sends what the windows take, and never reads",
            Fate::LongTimer,
            || filling(Reading::Greeting),
        ),
        row(
            "slow-reader",
            "sends what the windows take, and reads 16 KiB each 10 ms",
            Fate::Carried,
            || filling(Reading::Slow(16 << 10, Duration::from_millis(10))),
        ),
    ]
}

fn streams() -> Vec<Row> {
    vec![
        row("hoarding", "20,000 streams, and then nothing", Fate::Refused, || {
            let block: Rc<[u8]> = echo_block("POST", "application/grpc").into();
            Box::new(move || {
                let (mut opened, block) = (0, block.clone());
                script(greeting(&[]), move |heard, out| {
                    heard.forget();
                    if opened == 20_000 {
                        return Pace::Wait;
                    }
                    append_headers(out, id(opened), 0, &block);
                    opened += 1;
                    Pace::On
                })
            })
        }),
        with_connections(
            CUT_OFF_WITH_STREAMS,
            row(
                "refused-streams",
                "streams above the limit, on and on",
                calm(&["too_many_refused_streams"]),
                || each_stream(0, |_, _| {}),
            ),
        ),
        with_connections(
            CUT_OFF_WITH_STREAMS,
            row(
                "refused-streams-short",
                "streams above the limit, each of 15 bytes, on and on",
                calm(&["too_many_refused_streams"]),
                || each_short_stream(0, |_, _| {}),
            ),
        ),
        row(
            "vanishing",
            "4,000 streams; when all are answered the connection is closed",
            Fate::Answered(&["200"]),
            || crowds(None, |_, _| Pace::Leave),
        ),
        with_connections(
            CUT_OFF_WITH_STREAMS,
            row(
                "cancelled-at-once",
                "4,000 streams; when all are answered, RST_STREAM for each",
                calm(&["too_many_resets"]),
                || {
                    crowds(None, |out, first| {
                        for n in first..first + CROWD {
                            out.extend_from_slice(&rst_stream(id(n), CANCEL));
                        }
                        Pace::On
                    })
                },
            ),
        ),
        row(
            "expiring-at-once",
            "4,000 streams whose deadlines are over at the same instant",
            Fate::Answered(&["200", "4"]),
            || crowds(Some(Duration::from_millis(50)), |_, _| Pace::On),
        ),
        row(
            "prefix-4m",
            "200 streams, on each the prefix of a message of 4 MiB and 7 bytes of it",
            Fate::Answered(&["200"]),
            || {
                Box::new(|| {
                    let begin = |n| {
                        let request = asking(id(n), 0, "POST", "application/grpc");
                        let prefix = [0, 0, 0x40, 0, 0, 7, 7, 7, 7, 7, 7, 7];
                        [request, data(id(n), 0, &prefix)].concat()
                    };
                    let streams: Vec<u8> = (0..200).flat_map(begin).collect();
                    script([greeting(&[]), streams].concat(), |_, _| Pace::Wait)
                })
            },
        ),
        row("prefix-4g", "the prefix of a message of 4 GiB", Fate::Answered(&["200", "8"]), || {
            asked(0, "POST", "application/grpc", &[0, 0xff, 0xff, 0xff, 0xff])
        }),
        row(
            "message-over-limit",
            "the first 16 KiB of a message of 5 MiB",
            Fate::Answered(&["200", "8"]),
            || {
                let begun = [&[0, 0, 0x50, 0, 0][..], &[7; 16_379]].concat();
                asked(0, "POST", "application/grpc", &begun)
            },
        ),
        row(
            "compressed",
            "a message said to be compressed",
            Fate::Answered(&["200", "13"]),
            || asked(0, "POST", "application/grpc", &[1, 0, 0, 0, 1, 7]),
        ),
        row(
            "broken-protobuf",
            "a message that is no protobuf",
            Fate::Answered(&["200", "13"]),
            || asked(0, "POST", "application/grpc", &message(&[0xff; 9])),
        ),
        row("wrong-content-type", "POST of JSON", Fate::Answered(&["415"]), || {
            asked(END_STREAM, "POST", "application/json", &[])
        }),
        row("get", "GET", Fate::Answered(&["405"]), || {
            asked(END_STREAM, "GET", "application/grpc", &[])
        }),
    ]
}

fn silence() -> Vec<Row> {
    let handshake = Fate::Timer(ENHANCE_YOUR_CALM, "handshake_timeout");
    let mut idle =
        row("idle", "500 connections that are greeted and idle", Fate::LongTimer, || {
            silent(greeting(&[]))
        });
    idle.connections = 500;
    vec![
        row("half-prefaces", "500 connections with half a preface", handshake, || {
            silent(PREFACE[..10].to_vec())
        }),
        row("no-settings", "500 connections with a preface and no SETTINGS", handshake, || {
            silent(PREFACE.to_vec())
        }),
        row(
            "half-headers",
            "500 connections with HEADERS whose block does not end",
            Fate::Timer(ENHANCE_YOUR_CALM, "header_block_timeout"),
            || silent([greeting(&[]), frame(1, 0, 1, &hpack::encode(&POST))].concat()),
        ),
        with_connections(SILENT, idle),
        row(
            "goaway-and-on",
            "a stream, GOAWAY, and 100 requests more; then the stream ends",
            Fate::GoAway(NO_ERROR, &["draining"]),
            || {
                let more = (0..100).flat_map(|n| asking(id(n), 1, "POST", "application/grpc"));
                let more = [goaway(NO_ERROR), more.collect()].concat();
                let last = data(1, END_STREAM, &message(&echo_message(b"last")));
                once_after(asking(1, 0, "POST", "application/grpc"), [more, last].concat())
            },
        ),
        row(
            "goaway-and-flood",
            "a stream, GOAWAY, and requests on and on",
            calm(&["too_many_refused_streams"]),
            || {
                let opening = [asking(1, 0, "POST", "application/grpc"), goaway(NO_ERROR)].concat();
                let block: Rc<[u8]> = echo_block("POST", "application/grpc").into();
                Box::new(move || {
                    let (mut n, block) = (0, block.clone());
                    script([greeting(&[]), opening.clone()].concat(), move |heard, out| {
                        heard.forget();
                        append_headers(out, id(n), END_STREAM, &block);
                        n += 1;
                        Pace::On
                    })
                })
            },
        ),
    ]
}

fn faults() -> Vec<Row> {
    let protocol = |reasons| Fate::GoAway(PROTOCOL_ERROR, reasons);
    vec![
        row("no-preface", "HTTP/1.1", protocol(&["no_http2_preface"]), || {
            silent(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec())
        }),
        row(
            "idle-stream-data",
            "DATA on an idle stream",
            protocol(&["frame_on_idle_stream"]),
            || once(data(9, 0, b"x")),
        ),
        row("push-promise", "PUSH_PROMISE", protocol(&["push_promise"]), || {
            once(frame(5, END_HEADERS, 1, &[0, 0, 0, 2]))
        }),
        row("bad-padding", "padding beyond the frame", protocol(&["padding_too_long"]), || {
            once(data(1, PADDED, &[5, 0]))
        }),
        row(
            "frame-too-large",
            "a frame of 16,385 bytes",
            Fate::GoAway(FRAME_SIZE_ERROR, &["frame_too_large"]),
            || once(data(1, 0, &[0; 16_385])),
        ),
    ]
}

fn script(
    opening: Vec<u8>,
    wave: impl FnMut(&mut Heard, &mut Vec<u8>) -> Pace + 'static,
) -> Script {
    Script { opening, wave: Box::new(wave), reading: Reading::All }
}

/// The header block of a request for the echo.
fn echo_block(method: &str, content_type: &str) -> Vec<u8> {
    hpack::encode(&echo_fields(method, content_type))
}

fn echo_fields<'a>(method: &'a str, content_type: &'a str) -> [(&'a str, &'a str); 6] {
    [
        (":method", method),
        (":scheme", "http"),
        (":path", ECHO),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
    ]
}

/// Echoes on and on: each one that is back is followed by the next of its stream.
fn ping_pong(streams: u32, in_flight: usize, payload_bytes: usize) -> Box<dyn Fn() -> Script> {
    let message = message(&echo_message(&vec![7; payload_bytes]));
    Box::new(move || {
        let block = echo_block("POST", "application/grpc");
        let mut opening = greeting(&[]);
        for n in 0..streams {
            append_headers(&mut opening, id(n), 0, &block);
            for _ in 0..in_flight {
                append_frame(&mut opening, 0, 0, id(n), &message);
            }
        }
        let message = message.clone();
        // Bytes of each stream's next echo that are here already.
        let mut here = vec![0; streams as usize];
        script(opening, move |heard, out| {
            heard.answered.clear();
            for (stream, bytes) in heard.echoed.drain(..) {
                let here = &mut here[(stream as usize - 3) / 2];
                *here += bytes;
                while *here >= message.len() {
                    *here -= message.len();
                    append_frame(out, 0, 0, stream, &message);
                }
            }
            Pace::Wait
        })
    })
}

/// A new stream, and what `then` appends for it; on and on.
fn each_stream(flags: u8, then: fn(&mut Vec<u8>, u32)) -> Box<dyn Fn() -> Script> {
    streams_of(flags, echo_block("POST", "application/grpc"), then)
}

fn streams_of(flags: u8, block: Vec<u8>, then: fn(&mut Vec<u8>, u32)) -> Box<dyn Fn() -> Script> {
    let block: Rc<[u8]> = block.into();
    Box::new(move || {
        let (mut n, block) = (0, block.clone());
        script(greeting(&[]), move |heard, out| {
            heard.forget();
            append_headers(out, id(n), flags, &block);
            then(out, id(n));
            n += 1;
            Pace::On
        })
    })
}

/// The same with the shortest heads that there are: all but the first refer to the table. So a read holds most of them.
fn each_short_stream(flags: u8, then: fn(&mut Vec<u8>, u32)) -> Box<dyn Fn() -> Script> {
    let blocks = Rc::new(hpack::encode_twice(&echo_fields("POST", "application/grpc")));
    Box::new(move || {
        let (mut n, blocks) = (0, blocks.clone());
        script(greeting(&[]), move |heard, out| {
            heard.forget();
            append_headers(out, id(n), flags, &blocks[usize::from(n > 0)]);
            then(out, id(n));
            n += 1;
            Pace::On
        })
    })
}

/// Streams of a crowd: nearly as many as a connection may have.
const CROWD: u32 = 4_000;

/// A crowd; when all of it is answered, or, if its streams have a deadline, has ended, what `then` does with it from
/// the first on; then the next crowd. All deadlines are over `together` after the first stream was opened.
fn crowds(
    together: Option<Duration>,
    then: fn(&mut Vec<u8>, u32) -> Pace,
) -> Box<dyn Fn() -> Script> {
    let blocks = Rc::new(hpack::encode_twice(&echo_fields("POST", "application/grpc")));
    Box::new(move || {
        let (mut opened, mut came, blocks) = (0, 0, blocks.clone());
        let mut deadline = None;
        script(greeting(&[]), move |heard, out| {
            came = match together {
                None => came + u32::try_from(heard.answered.len()).expect("of some crowds"),
                Some(_) => heard.ended,
            };
            heard.forget();
            let is_complete = opened > 0 && opened % CROWD == 0;
            if is_complete && came < opened {
                return Pace::Wait;
            }
            if is_complete && then(out, opened - CROWD) == Pace::Leave {
                return Pace::Leave;
            }
            if opened % CROWD == 0 {
                deadline = together.map(|together| Instant::now() + together);
            }
            let mut block = blocks[usize::from(opened > 0)].clone();
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now()).as_micros();
                block.append(&mut hpack::encode(&[("grpc-timeout", &format!("{left}u"))]));
            }
            append_headers(out, id(opened), 0, &block);
            opened += 1;
            Pace::On
        })
    })
}

fn reset_after_headers() -> Box<dyn Fn() -> Script> {
    const AT_ONCE: u32 = 100;
    let block: Rc<[u8]> = echo_block("POST", "application/grpc").into();
    Box::new(move || {
        let (mut opened, mut gone, block) = (0, 0, block.clone());
        script(greeting(&[]), move |heard, out| {
            heard.echoed.clear();
            let answered = heard.answered.len();
            for stream in heard.answered.drain(..) {
                append_frame(out, 3, 0, stream, &CANCEL.to_be_bytes());
                gone += 1;
            }
            while opened < gone + AT_ONCE {
                append_headers(out, id(opened), 0, &block);
                opened += 1;
            }
            if answered == 0 { Pace::Wait } else { Pace::On }
        })
    })
}

/// `frame`, on and on, beside a stream that is open.
fn flood(frame: Vec<u8>) -> Box<dyn Fn() -> Script> {
    flood_after(&[], frame)
}

fn flood_after(entries: &[(u16, u32)], frame: Vec<u8>) -> Box<dyn Fn() -> Script> {
    let opening = [greeting(entries), asking(1, 0, "POST", "application/grpc")].concat();
    repeated(opening, frame)
}

fn unread(frame: Vec<u8>) -> Box<dyn Fn() -> Script> {
    let flood = flood(frame);
    Box::new(move || Script { reading: Reading::Nothing, ..flood() })
}

fn repeated(opening: Vec<u8>, frame: Vec<u8>) -> Box<dyn Fn() -> Script> {
    let frame: Rc<[u8]> = frame.into();
    Box::new(move || {
        let frame = frame.clone();
        script(opening.clone(), move |heard, out| {
            heard.forget();
            out.extend_from_slice(&frame);
            Pace::On
        })
    })
}

/// What `frames` gives for 0, 1, 2 and so on; prepared once for as many as the limits let through.
fn numbered(frames: fn(u32) -> Vec<u8>) -> Box<dyn Fn() -> Script> {
    const PREPARED: u32 = 128;
    let prepared: Rc<Vec<Vec<u8>>> = Rc::new((0..PREPARED).map(frames).collect());
    Box::new(move || {
        let (mut n, prepared) = (0, prepared.clone());
        script(greeting(&[]), move |heard, out| {
            heard.forget();
            match prepared.get(n as usize) {
                Some(frames) => out.extend_from_slice(frames),
                None => out.extend_from_slice(&frames(n)),
            }
            n += 1;
            Pace::On
        })
    })
}

/// The frames once, beside a stream that is open.
fn once(frames: Vec<u8>) -> Box<dyn Fn() -> Script> {
    once_after(asking(1, 0, "POST", "application/grpc"), frames)
}

fn once_after(request: Vec<u8>, frames: Vec<u8>) -> Box<dyn Fn() -> Script> {
    silent([greeting(&[]), request, frames].concat())
}

/// This, and nothing more.
fn silent(opening: Vec<u8>) -> Box<dyn Fn() -> Script> {
    Box::new(move || script(opening.clone(), |_, _| Pace::Wait))
}

fn settings_windows() -> Box<dyn Fn() -> Script> {
    let block = echo_block("POST", "application/grpc");
    let mut opening = greeting(&[(INITIAL_WINDOW_SIZE, 1)]);
    for n in 0..4_000 {
        append_headers(&mut opening, id(n), 0, &block);
    }
    let wave = [settings(&[(INITIAL_WINDOW_SIZE, 2)]), settings(&[(INITIAL_WINDOW_SIZE, 1)])];
    repeated(opening, wave.concat())
}

/// All but the last byte of a message, byte by byte; then its stream is cancelled, and the next begins.
fn tiny_data() -> Box<dyn Fn() -> Script> {
    // With the tag and the length before the payload just below the limit.
    let message: Rc<[u8]> = message(&echo_message(&vec![7; (4 << 20) - 16]))[..].into();
    Box::new(move || {
        let (mut n, mut sent, message) = (0, 0, message.clone());
        let opening = [greeting(&[]), asking(id(0), 0, "POST", "application/grpc")].concat();
        script(opening, move |heard, out| {
            heard.forget();
            if sent == message.len() - 1 {
                out.extend_from_slice(&rst_stream(id(n), CANCEL));
                n += 1;
                out.extend_from_slice(&asking(id(n), 0, "POST", "application/grpc"));
                sent = 0;
            }
            if heard.room(id(n)) == 0 {
                return Pace::Wait;
            }
            heard.spend(id(n), 1);
            append_frame(out, 0, 0, id(n), &[message[sent]]);
            sent += 1;
            Pace::On
        })
    })
}

/// Requests that are answered while they may still send; then a byte for each of them in turn, on and on.
fn gone_credit() -> Box<dyn Fn() -> Script> {
    const STREAMS: u32 = 2;
    let block = echo_block("POST", "application/json");
    let mut opening = greeting(&[]);
    for n in 0..STREAMS {
        append_headers(&mut opening, id(n), 0, &block);
    }
    let round: Rc<[u8]> = (0..STREAMS).flat_map(|n| data(id(n), 0, b"x")).collect();
    Box::new(move || {
        let round = round.clone();
        script(opening.clone(), move |heard, out| {
            heard.forget();
            if heard.ended < STREAMS {
                return Pace::Wait;
            }
            out.extend_from_slice(&round);
            Pace::On
        })
    })
}

fn endless_block(fragment: &[u8]) -> Box<dyn Fn() -> Script> {
    let opening = [greeting(&[]), frame(1, 0, 1, &hpack::encode(&POST))].concat();
    repeated(opening, continuation(1, 0, fragment))
}

/// Streams that each send what their windows take, whatever of it comes back.
fn filling(reading: Reading) -> Box<dyn Fn() -> Script> {
    Box::new(move || Script { reading, ..fill(greeting(&[]), 1_000) })
}

fn zero_window() -> Box<dyn Fn() -> Script> {
    Box::new(|| fill(greeting(&[(INITIAL_WINDOW_SIZE, 0)]), 1_000))
}

fn fill(opening: Vec<u8>, streams: u32) -> Script {
    let message = message(&echo_message(&[7; 1_000]));
    let block = echo_block("POST", "application/grpc");
    let mut opening = opening;
    for n in 0..streams {
        append_headers(&mut opening, id(n), 0, &block);
    }
    let mut next = 0;
    script(opening, move |heard, out| {
        heard.forget();
        for _ in 0..streams {
            let stream = id(next);
            next = (next + 1) % streams;
            if heard.room(stream) >= message.len() {
                heard.spend(stream, message.len());
                append_frame(out, 0, 0, stream, &message);
                return Pace::On;
            }
        }
        Pace::Wait
    })
}

/// Requests with these bytes in them, 100 at once; an answered one is followed by the next.
fn asked(flags: u8, method: &str, content_type: &str, sent: &[u8]) -> Box<dyn Fn() -> Script> {
    const AT_ONCE: u32 = 100;
    let (block, sent): (Rc<[u8]>, Rc<[u8]>) =
        (echo_block(method, content_type).into(), sent.into());
    Box::new(move || {
        let (mut n, block, sent) = (0, block.clone(), sent.clone());
        script(greeting(&[]), move |heard, out| {
            heard.forget();
            if n == heard.ended + AT_ONCE || heard.room(id(n)) < sent.len() {
                return Pace::Wait;
            }
            append_headers(out, id(n), flags, &block);
            if !sent.is_empty() {
                heard.spend(id(n), sent.len());
                append_frame(out, 0, 0, id(n), &sent);
            }
            n += 1;
            Pace::On
        })
    })
}
