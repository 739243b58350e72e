//! The same bytes, cut anywhere, mean the same: of all frame types, padded, prioritised, continued.
//!
//! In: what a peer may say, in pieces. Out: what the streams made of it, the same for every cut.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::time::advance;
use tower_service::Service;

use super::chance::Chance;
use super::desk::Tray;
use crate::transport::client::{Client, client_limits};
use crate::transport::connection::{Connection, Role};
use crate::transport::counters::Counters;
use crate::transport::frame::{self, ErrorCode, HEAD_BYTES, Head, PREFACE, flag, kind, setting};
use crate::transport::hpack::{Decoder, Encoder};
use crate::transport::limits::Limits;
use crate::transport::serving::Serving;
use crate::transport::{BodyError, Exchange, RecvBody, Sending};

/// Cuts at random places, besides one cut at each.
const RANDOM_CUTS: u64 = 300;

/// What a peer says.
struct Speech {
    bytes: Vec<u8>,
    encoder: Encoder,
}

impl Speech {
    fn new(begin: &[u8]) -> Self {
        Speech { bytes: begin.to_vec(), encoder: Encoder::new(4_096) }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = Head { length: payload.len(), kind, flags, stream };
        self.bytes.extend_from_slice(&head.bytes());
        self.bytes.extend_from_slice(payload);
    }

    fn encode(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.begin(&mut block);
        for (name, value) in fields {
            self.encoder.field(name.as_bytes(), value.as_bytes(), false, &mut block);
        }
        block
    }

    fn headers(&mut self, end: u8, stream: u32, fields: &[(&str, &str)]) {
        let block = self.encode(fields);
        self.frame(kind::HEADERS, end | flag::END_HEADERS, stream, &block);
    }

    /// Padded, prioritised, and in three pieces, one of them empty.
    fn pieces(&mut self, end: u8, stream: u32, fields: &[(&str, &str)]) {
        let block = self.encode(fields);
        let (first, rest) = block.split_at(block.len() / 3);
        let payload = [&[3, 0, 0, 0, 0, 9], first, &[0; 3]].concat();
        self.frame(kind::HEADERS, end | flag::PADDED | flag::PRIORITY, stream, &payload);
        self.frame(kind::CONTINUATION, 0, stream, &[]);
        self.frame(kind::CONTINUATION, flag::END_HEADERS, stream, rest);
    }

    fn padded(&mut self, end: u8, stream: u32, data: &[u8]) {
        let payload = [&[5], data, &[0; 5]].concat();
        self.frame(kind::DATA, end | flag::PADDED, stream, &payload);
    }

    /// What means nothing to a stream.
    fn noise(&mut self, stream: u32) {
        self.frame(kind::PRIORITY, 0, stream, &[0, 0, 0, 0, 1]);
        self.frame(0xfa, 0xff, stream, b"unknown");
        frame::ping(&mut self.bytes, b"are you?", false);
        frame::window_update(&mut self.bytes, 0, 70_000);
        frame::window_update(&mut self.bytes, stream, 1_000);
    }
}

/// Polls until nobody wakes the connection any more, and audits each turn.
async fn rest<R: Role>(connection: &mut Connection<Tray, R>) {
    for _ in 0..20 {
        // Woken or not is not asked: what is left over must be done by the next turn.
        let _ = std::pin::Pin::new(&mut *connection).poll(&mut Context::from_waker(Waker::noop()));
        connection.audit(true);
    }
    tokio::task::yield_now().await;
}

/// Gives the connection the bytes in pieces that end at `cuts`, and then some time.
async fn hear<R: Role>(
    mut connection: Connection<Tray, R>,
    tray: &Tray,
    bytes: &[u8],
    cuts: &[usize],
) {
    rest(&mut connection).await;
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        tray.lay(&bytes[from..to]);
        from = to;
        rest(&mut connection).await;
    }
    advance(Duration::from_millis(10)).await;
    rest(&mut connection).await;
}

/// Every single cut, a cut after each byte, and random ones.
fn all_cuts(length: usize) -> impl Iterator<Item = Vec<usize>> {
    let random = (0..RANDOM_CUTS).map(move |seed| {
        let mut chance = Chance::new(seed);
        let mut cuts: Vec<usize> = (0..chance.below(20)).map(|_| chance.below(length)).collect();
        cuts.sort_unstable();
        cuts
    });
    (1..length).map(|cut| vec![cut]).chain([(1..length).collect()]).chain(random)
}

/// Gives back what comes, with all of the request's head in a header.
#[derive(Clone)]
struct Mirror;

impl Service<Request<RecvBody>> for Mirror {
    type Response = Response<RecvBody>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<RecvBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
        let (head, body) = request.into_parts();
        let told = format!("{} {} {:?}", head.method, head.uri, head.headers);
        let mut response = Response::new(body);
        response.headers_mut().insert("head", HeaderValue::from_str(&told).unwrap());
        std::future::ready(Ok(response))
    }
}

/// What was said on each stream: header lists, data in one piece, the end.
fn said(output: &[u8]) -> BTreeMap<u32, Vec<String>> {
    let mut decoder = Decoder::new(4_096);
    let mut said = BTreeMap::<u32, Vec<String>>::new();
    let mut rest = output;
    while let Some(head) = Head::parse(rest) {
        let payload = &rest[HEAD_BYTES..HEAD_BYTES + head.length];
        rest = &rest[HEAD_BYTES + head.length..];
        let stream = said.entry(head.stream).or_default();
        match head.kind {
            kind::HEADERS => {
                let mut fields = Vec::new();
                let decoded = decoder.decode(payload, |field| {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    fields.push((text(field.name), text(field.value)));
                });
                assert!(decoded.is_ok());
                stream.push(format!("{fields:?}"));
            }
            kind::DATA => {
                let text = String::from_utf8_lossy(payload);
                match stream.last_mut().filter(|last| last.starts_with("data: ")) {
                    Some(data) => data.push_str(&text),
                    None => stream.push(format!("data: {text}")),
                }
            }
            // When to grant again is not the peer's to know.
            kind::WINDOW_UPDATE => continue,
            kind => stream.push(format!("{kind}: {payload:?}")),
        }
        if head.stream > 0 && head.has(flag::END_STREAM) && head.kind != kind::RST_STREAM {
            stream.push("end".into());
        }
    }
    assert!(rest.is_empty(), "half a frame");
    said
}

fn spoken_by_client() -> Vec<u8> {
    let post = |path| [(":method", "POST"), (":scheme", "http"), (":path", path)];
    let mut speech = Speech::new(PREFACE);
    let entries = [(setting::INITIAL_WINDOW_SIZE, 100_000), (setting::MAX_FRAME_SIZE, 20_000)];
    frame::settings(&mut speech.bytes, &entries);
    frame::settings_ack(&mut speech.bytes);
    speech.pieces(0, 1, &[&post("/one")[..], &[("first", "yes"), ("again", "and again")]].concat());
    speech.noise(1);
    speech.padded(0, 1, b"hello, ");
    speech.headers(flag::END_STREAM, 3, &[&post("/three")[..], &[("again", "and again")]].concat());
    speech.frame(kind::DATA, 0, 1, b"");
    speech.frame(kind::DATA, 0, 1, b"world");
    speech.headers(0, 5, &[&post("/five")[..], &[("content-length", "9")]].concat());
    speech.headers(0, 7, &post("/reset"));
    frame::rst_stream(&mut speech.bytes, 7, ErrorCode::CANCEL);
    speech.frame(kind::DATA, 0, 5, b"four");
    speech.pieces(flag::END_STREAM, 1, &[("the-end", "of one"), ("again", "and again")]);
    let entries = [(setting::HEADER_TABLE_SIZE, 0), (setting::HEADER_TABLE_SIZE, 4_096)];
    frame::settings(&mut speech.bytes, &entries);
    speech.padded(flag::END_STREAM, 5, b" five");
    speech.pieces(flag::END_STREAM, 9, &post("/nine"));
    speech.noise(9);
    frame::goaway(&mut speech.bytes, 0, ErrorCode::NO_ERROR, "that was all");
    speech.bytes
}

#[tokio::test(start_paused = true)]
async fn a_server_hears_the_same_wherever_the_bytes_are_cut() {
    let bytes = spoken_by_client();
    let answers = async |cuts: &[usize], is_hurried| {
        let (tray, counters) = (Tray::roomy(), Arc::<Counters>::default());
        let (service, extensions) = (Mirror, Extensions::new());
        let serving = Serving { service, extensions, counters: counters.clone(), tasks: None };
        let limits = Arc::<Limits>::default();
        let mut connection = Connection::new(tray.clone(), serving, limits, None, counters);
        connection.is_hurried = is_hurried;
        hear(connection, &tray, &bytes, cuts).await;
        let mut said = said(&tray.came_out());
        // Whether a handler saw what was cancelled at once depends on the cut, rightly.
        said.remove(&7);
        said
    };
    let whole = answers(&[], false).await;
    let data = |stream: u32| &whole[&stream][1];
    assert_eq!((&**data(1), &**data(5)), ("data: hello, world", "data: four five"));
    assert!(whole[&1][2].contains("of one") && whole[&3][1] == "end" && whole[&9][1] == "end");
    for cuts in all_cuts(bytes.len()) {
        assert_eq!(answers(&cuts, false).await, whole, "cut at {cuts:?}");
        assert_eq!(answers(&cuts, true).await, whole, "cut at {cuts:?}, in a hurry");
    }
}

/// Notes what it is told; sends nothing.
struct Notes(usize, Arc<Mutex<BTreeMap<usize, Vec<String>>>>);

impl Notes {
    fn note(&self, what: String) {
        let mut notes = self.1.lock().unwrap();
        let notes = notes.entry(self.0).or_default();
        match notes.last_mut() {
            Some(last) if last.starts_with("data: ") && what.starts_with("data: ") => {
                last.push_str(&what["data: ".len()..]);
            }
            _ => notes.push(what),
        }
    }
}

impl Exchange for Notes {
    fn head(&mut self, status: StatusCode, headers: &HeaderMap, _: Instant) {
        self.note(format!("{status} {headers:?}"));
    }

    fn data(&mut self, payload: &[u8], _: Instant) {
        self.note(format!("data: {}", String::from_utf8_lossy(payload)));
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        self.note(format!("{end:?}"));
    }

    fn poll_send(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>, _: usize, _: Instant) -> Sending {
        Sending::Wait
    }
}

fn spoken_by_server() -> Vec<u8> {
    let ok = (":status", "200");
    let mut speech = Speech::new(&[]);
    let entries = [(setting::INITIAL_WINDOW_SIZE, 0), (setting::MAX_CONCURRENT_STREAMS, 9)];
    frame::settings(&mut speech.bytes, &entries);
    frame::settings_ack(&mut speech.bytes);
    speech.headers(0, 1, &[(":status", "103"), ("link", "</a>")]);
    speech.pieces(0, 1, &[ok, ("first", "yes"), ("again", "and again")]);
    speech.noise(1);
    speech.padded(0, 1, b"hello, ");
    speech.pieces(flag::END_STREAM, 3, &[ok, ("grpc-status", "5"), ("again", "and again")]);
    speech.headers(0, 5, &[ok, ("content-length", "9")]);
    speech.frame(kind::DATA, 0, 5, b"four");
    speech.frame(kind::DATA, 0, 1, b"world");
    frame::rst_stream(&mut speech.bytes, 7, ErrorCode::REFUSED_STREAM);
    speech.headers(0, 9, &[ok]);
    speech.padded(0, 9, b"not all");
    frame::rst_stream(&mut speech.bytes, 9, ErrorCode::INTERNAL_ERROR);
    speech.padded(flag::END_STREAM, 5, b" five");
    let entries = [(setting::HEADER_TABLE_SIZE, 0), (setting::INITIAL_WINDOW_SIZE, 65_535)];
    frame::settings(&mut speech.bytes, &entries);
    frame::goaway(&mut speech.bytes, 9, ErrorCode::NO_ERROR, "that was all");
    speech.noise(1);
    speech.pieces(flag::END_STREAM, 1, &[("the-end", "of one"), ("again", "and again")]);
    speech.bytes
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_the_same_wherever_the_bytes_are_cut() {
    let bytes = spoken_by_server();
    let heard = async |cuts: &[usize], is_hurried| {
        let tray = Tray::roomy();
        let notes = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let limits = client_limits(100_000, 1_000_000);
        let (client, mut connection) = Client::connect(tray.clone(), limits);
        connection.is_hurried = is_hurried;
        for stream in [1, 3, 5, 7, 9, 11] {
            let request = Request::post("http://cuts/").body(()).unwrap();
            assert!(client.open(request, Notes(stream, notes.clone())).is_ok());
        }
        hear(connection, &tray, &bytes, cuts).await;
        notes.lock().unwrap().clone()
    };
    let whole = heard(&[], false).await;
    assert_eq!(whole[&1][1], "data: hello, world");
    assert!(whole[&1][2].contains("of one") && whole[&3][1].contains("grpc-status"));
    assert_eq!((&*whole[&5][1], &*whole[&5][2]), ("data: four five", "Ok({})"));
    assert_eq!(whole[&7], ["Err(Reset(REFUSED_STREAM))"]);
    assert_eq!(whole[&9][1..], ["data: not all", "Err(Reset(INTERNAL_ERROR))"]);
    assert_eq!(whole[&11], ["Err(Refused)"]);
    for cuts in all_cuts(bytes.len()) {
        assert_eq!(heard(&cuts, false).await, whole, "cut at {cuts:?}");
        assert_eq!(heard(&cuts, true).await, whole, "cut at {cuts:?}, in a hurry");
    }
}
