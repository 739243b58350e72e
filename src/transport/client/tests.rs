//! A client's connection against frames written by hand.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::transport::frame::{Head, PREFACE, flag, kind, setting};
use crate::transport::inside;
use crate::transport::limits::{Age, Flood, FloodKind};

/// The end of everything that hangs, on paused time.
const PATIENCE: Duration = Duration::from_secs(1_000);

/// On paused time this passes when nobody has anything to do.
const TICK: Duration = Duration::from_millis(1);

/// Sends nothing, and notes how it ended.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<Option<Result<(), BodyError>>>>);

impl Exchange for Silent {
    fn head(&mut self, _: StatusCode, _: &HeaderMap, _: Instant) {}

    fn data(&mut self, _: &[u8], _: Instant) {}

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        *self.0.lock().unwrap() = Some(end.map(drop).map_err(BodyError::clone));
    }

    fn poll_send(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>, _: usize, _: Instant) -> Sending {
        Sending::Wait
    }
}

/// Sends what this appends, for so much room as it is told, at the instant that it is told; hears nothing.
struct Sends<F>(F);

impl<F: FnMut(&mut Vec<u8>, usize, Instant) -> Sending + 'static> Exchange for Sends<F> {
    fn head(&mut self, _: StatusCode, _: &HeaderMap, _: Instant) {}

    fn data(&mut self, _: &[u8], _: Instant) {}

    fn end(&mut self, _: Result<&HeaderMap, &BodyError>, _: Instant) {}

    fn poll_send(
        &mut self,
        _: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        now: Instant,
    ) -> Sending {
        (self.0)(frame, room, now)
    }
}

/// Always has more to send.
fn endless(frame: &mut Vec<u8>, room: usize, _: Instant) -> Sending {
    frame.resize(frame.len() + room.min(1_000), 0);
    Sending::More
}

/// Sends so many bytes at once, whatever the room, and then waits.
fn once(mut bytes: usize) -> impl FnMut(&mut Vec<u8>, usize, Instant) -> Sending {
    move |frame, _, _| {
        frame.resize(frame.len() + std::mem::take(&mut bytes), 0);
        Sending::Wait
    }
}

/// A server that says what it is told to, and remembers what it was told.
struct Peer {
    io: DuplexStream,
    heard: Vec<u8>,
}

impl Peer {
    /// With the connection of a client whose server's first frame is these settings.
    async fn new(settings: &[u8]) -> (Self, Client<Silent>, JoinHandle<io::Result<()>>) {
        let (mut peer, client, connection) =
            Self::silent(client_limits(65_535, 65_535), 1 << 16).await;
        peer.say(kind::SETTINGS, 0, 0, settings).await;
        peer.hear(kind::SETTINGS, flag::ACK, 0).await;
        (peer, client, connection)
    }

    /// With the connection of a client whose server has said nothing yet, over a pipe that holds so
    /// many bytes each way.
    async fn silent<X: Exchange + Send>(
        limits: Limits,
        room_bytes: usize,
    ) -> (Self, Client<X>, JoinHandle<io::Result<()>>) {
        let (near, far) = duplex(room_bytes);
        let (client, connection) = Client::new(near, limits);
        let connection = tokio::spawn(connection);
        let mut peer = Peer { io: far, heard: Vec::new() };
        let mut preface = vec![0; PREFACE.len()];
        peer.io.read_exact(&mut preface).await.unwrap();
        (peer, client, connection)
    }

    /// Reads all that comes until nothing does.
    async fn hear_all(&mut self) {
        while let Ok(read) = timeout(TICK, self.io.read_buf(&mut self.heard)).await {
            assert_ne!(read.unwrap(), 0, "closed");
        }
    }

    /// Reads all that comes. Out: how many streams began so far.
    async fn streams_begun(&mut self) -> usize {
        self.hear_all().await;
        inside::frames(&self.heard).filter(|(kind, ..)| *kind == kind::HEADERS).count()
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = Head { length: payload.len(), kind, flags, stream };
        self.io.write_all(&head.bytes()).await.unwrap();
        self.io.write_all(payload).await.unwrap();
    }

    /// Reads until there is a frame of this kind with these flags on this stream. Out: its payload.
    async fn hear(&mut self, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
        loop {
            let heard = inside::frames(&self.heard)
                .find(|frame| (frame.0, frame.1 & flags, frame.2) == (kind, flags, stream));
            if let Some((.., payload)) = heard {
                return payload.to_vec();
            }
            let reading = timeout(PATIENCE, self.io.read_buf(&mut self.heard));
            let count = reading.await.expect("the frame comes").unwrap();
            assert_ne!(count, 0, "closed before it said {kind} on {stream}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn data_before_the_head_of_the_response_is_malformed() {
    let cases: [(u8, &[u8]); 4] =
        [(0, b"early"), (0, b""), (flag::PADDED, &[1, 0]), (flag::END_STREAM, b"early")];
    for (flags, payload) in cases {
        let (mut peer, client, connection) = Peer::new(&[]).await;
        let call = Silent::default();
        let request = Request::post("http://a/b").body(()).unwrap();
        assert!(client.open(request, call.clone()).is_ok());
        peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
        peer.say(kind::DATA, flags, 1, payload).await;
        let code = peer.hear(kind::RST_STREAM, 0, 1).await;
        assert_eq!(code, ErrorCode::PROTOCOL_ERROR.0.to_be_bytes(), "{flags}, {payload:?}");
        let told = call.0.lock().unwrap().clone();
        assert_eq!(told, Some(Err(BodyError::Ended("data_before_headers"))));
        // It cost the stream, not the connection.
        drop(client);
        timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_the_content_that_it_announces_is_malformed() {
    // :status 200 and 304, by the static table; content-length: 4.
    let content_length = [0x0f, 0x0d, 1, b'4'];
    for (status, expected) in [(0x88, Some("content_length_mismatch")), (0x8b, None)] {
        let (mut peer, client, connection) = Peer::new(&[]).await;
        let call = Silent::default();
        let request = Request::post("http://a/b").body(()).unwrap();
        assert!(client.open(request, call.clone()).is_ok());
        peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
        let block = [&[status][..], &content_length].concat();
        peer.say(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &block).await;
        let code = peer.hear(kind::RST_STREAM, 0, 1).await;
        // Ours was not over when the answer was.
        let expected_code =
            if expected.is_some() { ErrorCode::PROTOCOL_ERROR } else { ErrorCode::CANCEL };
        assert_eq!(code, expected_code.0.to_be_bytes());
        let told = call.0.lock().unwrap().clone();
        assert_eq!(told, Some(expected.map_or(Ok(()), |why| Err(BodyError::Ended(why)))));
        drop(client);
        timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
    }
}

/// One entry of SETTINGS.
fn entry(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

#[tokio::test(start_paused = true)]
async fn what_has_no_content_may_tell_its_length_and_end_with_an_empty_frame() {
    // content-length: 4.
    let content_length = [0x0f, 0x0d, 1, b'4'];
    // 304, and 200 for a HEAD.
    for (method, status, payload, is_well) in [
        (Method::POST, 0x8b, &b""[..], true),
        (Method::HEAD, 0x88, b"", true),
        (Method::HEAD, 0x88, b"four", false),
        (Method::POST, 0x88, b"", false),
        (Method::POST, 0x88, b"four", true),
    ] {
        let (mut peer, client, connection) = Peer::new(&[]).await;
        let told = Silent::default();
        let request = Request::builder().method(method).uri("http://a/b").body(()).unwrap();
        assert!(client.open(request, told.clone()).is_ok());
        peer.hear(kind::HEADERS, 0, 1).await;
        let head = [&[status][..], &content_length].concat();
        peer.say(kind::HEADERS, flag::END_HEADERS, 1, &head).await;
        peer.say(kind::DATA, flag::END_STREAM, 1, payload).await;
        drop(client);
        timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
        let told = told.0.lock().unwrap().take().unwrap();
        let expected =
            if is_well { Ok(()) } else { Err(BodyError::Ended("content_length_mismatch")) };
        assert_eq!(told, expected, "{status:x} {payload:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_too_old_tells_those_that_wait_to_be_opened() {
    let age = Some(Age { max: Duration::from_secs(10), grace: None });
    let limits = Limits { age, ..client_limits(65_535, 65_535) };
    let (mut peer, client, connection) = Peer::silent(limits, 1 << 16).await;
    peer.say(kind::SETTINGS, 0, 0, &entry(setting::MAX_CONCURRENT_STREAMS, 1)).await;
    peer.hear(kind::SETTINGS, flag::ACK, 0).await;
    let (open, waiting) = (Silent::default(), Silent::default());
    for call in [&open, &waiting] {
        assert!(client.open(Request::post("http://a/b").body(()).unwrap(), call.clone()).is_ok());
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    let gone = Some(Err(BodyError::GoAway(ErrorCode::NO_ERROR)));
    assert_eq!((open.0.lock().unwrap().clone(), waiting.0.lock().unwrap().clone()), (None, gone));
    let late = client.open(Request::post("http://a/b").body(()).unwrap(), Silent::default());
    assert!(late.is_err(), "another connection takes it");
    drop((peer, connection));
}

#[tokio::test(start_paused = true)]
async fn a_window_is_not_opened_for_a_stream_that_is_over() {
    let (mut peer, client, connection) = Peer::new(&[]).await;
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), Silent::default()).is_ok());
    peer.hear(kind::HEADERS, 0, 1).await;
    peer.say(kind::HEADERS, flag::END_HEADERS, 1, &[0x88]).await;
    peer.say(kind::DATA, 0, 1, &[0; 16_000]).await;
    peer.say(kind::DATA, 0, 1, &[0; 16_000]).await;
    // The window is half used up with this one.
    peer.say(kind::DATA, flag::END_STREAM, 1, &[0; 16_000]).await;
    drop(client);
    timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
    while peer.io.read_buf(&mut peer.heard).await.is_ok_and(|read| read > 0) {}
    let of_stream = |(found, _, stream, _): &(u8, u8, u32, &[u8])| {
        (*found, *stream) == (kind::WINDOW_UPDATE, 1)
    };
    assert_eq!(inside::frames(&peer.heard).filter(of_stream).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_head_the_server_would_not_take_is_refused_here() {
    // RFC 9113, 6.5.2: POST, http, /b and a, with the names of their pseudo-headers and 32 each.
    let bytes = (7 + 4) + (7 + 4) + (5 + 2) + (10 + 1) + 4 * 32;
    let (mut peer, client, connection) =
        Peer::new(&entry(setting::MAX_HEADER_LIST_SIZE, bytes - 1)).await;
    let request = || Request::post("http://a/b").body(()).unwrap();
    let refused = Silent::default();
    assert!(client.open(request(), refused.clone()).is_ok());
    peer.say(kind::PING, 0, 0, &[0; 8]).await;
    peer.hear(kind::PING, flag::ACK, 0).await;
    let told = refused.0.lock().unwrap().clone();
    let error = BodyError::HeadTooLarge { bytes: bytes.into(), bytes_max: bytes - 1 };
    assert_eq!(told, Some(Err(error.clone())));
    let words = error.to_string();
    assert!(words.contains("168 bytes") && words.contains("at most 167"), "{words}");
    // The limit may change, and what is refused takes no stream's place.
    peer.say(kind::SETTINGS, 0, 0, &entry(setting::MAX_HEADER_LIST_SIZE, bytes)).await;
    peer.say(kind::PING, 0, 0, &[1; 8]).await;
    while peer.hear(kind::PING, flag::ACK, 0).await != [1; 8] {
        peer.heard.clear();
    }
    let call = Silent::default();
    assert!(client.open(request(), call.clone()).is_ok());
    peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
    drop((client, peer));
    assert!(timeout(PATIENCE, connection).await.expect("ends").unwrap().is_err());
    assert_eq!(*call.0.lock().unwrap(), Some(Err(BodyError::ConnectionLost)));
}

#[tokio::test(start_paused = true)]
async fn a_client_without_handles_ends_even_if_its_server_takes_no_streams() {
    let none = entry(setting::MAX_CONCURRENT_STREAMS, 0);
    let (_peer, client, connection) = Peer::new(&none).await;
    drop(client);
    timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn before_the_servers_settings_came_a_hundred_streams_begin_and_the_rest_waits() {
    // What the server allows, and how many of 250 have begun when it has said so.
    for (settings, begun) in [
        (vec![], 250),
        (entry(setting::MAX_CONCURRENT_STREAMS, 120), 120),
        (entry(setting::MAX_CONCURRENT_STREAMS, 50), 100),
    ] {
        let (mut peer, client, connection) =
            Peer::silent(client_limits(65_535, 65_535), 1 << 16).await;
        for _ in 0..250 {
            let request = Request::post("http://a/b").body(()).unwrap();
            assert!(client.open(request, Silent::default()).is_ok());
        }
        assert_eq!(peer.streams_begun().await, 100);
        peer.say(kind::SETTINGS, 0, 0, &settings).await;
        assert_eq!(peer.streams_begun().await, begun);
        drop(peer);
        assert!(timeout(PATIENCE, connection).await.expect("ends").unwrap().is_err());
    }
}

/// Asks for pongs until the client reads no more, whose own output the peer does not read.
async fn ask_for_pongs(peer: &mut Peer) {
    let pings = async {
        loop {
            peer.say(kind::PING, 0, 0, &[0; 8]).await;
        }
    };
    assert!(timeout(TICK, pings).await.is_err(), "the client stops reading");
}

/// Limits under which a client's reading pauses soon.
fn easily_paused() -> Limits {
    let mut limits = Limits { control_bytes_max: 100, ..client_limits(65_535, 65_535) };
    limits
        .floods
        .set(FloodKind::Ping, Flood { burst: 1_000_000, per_second: 0, per_useful_frame: 0 });
    limits
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_replies_nobody_reads_does_not_wait_for_ever() {
    let limits = easily_paused();
    let time = limits.control_stall_timeout;
    let (mut peer, client, mut connection) = Peer::silent(limits, 1_000).await;
    peer.say(kind::SETTINGS, 0, 0, &[]).await;
    let call = Silent::default();
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), call.clone()).is_ok());
    // It may idle for as long as it likes.
    peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
    assert!(timeout(100 * time, &mut connection).await.is_err());
    ask_for_pongs(&mut peer).await;
    // What leaves begins its time anew.
    assert!(timeout(time - 2 * TICK, &mut connection).await.is_err());
    peer.io.read_exact(&mut [0; 100]).await.unwrap();
    assert!(timeout(time - TICK, &mut connection).await.is_err());
    assert_eq!(*call.0.lock().unwrap(), None);
    timeout(2 * TICK, connection).await.expect("its time is over").unwrap().unwrap();
    let told = call.0.lock().unwrap().clone();
    assert_eq!(told, Some(Err(BodyError::Ended("peer_does_not_read"))));
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_for_a_server_that_is_slow_to_read_its_data() {
    let limits = easily_paused();
    let time = limits.control_stall_timeout;
    let (mut peer, client, mut connection) = Peer::silent(limits, 1_000).await;
    peer.say(kind::SETTINGS, 0, 0, &[]).await;
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), Sends(endless)).is_ok());
    // The pipe is full, and windows are not: a server may take as long as it likes.
    assert!(timeout(100 * time, &mut connection).await.is_err());
    // Only now replies wait.
    ask_for_pongs(&mut peer).await;
    assert!(timeout(time - 2 * TICK, &mut connection).await.is_err());
    timeout(3 * TICK, connection).await.expect("its time is over").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_more_than_the_output_takes_leaves_although_there_is_nothing_behind_it() {
    let limits = Limits { output_bytes_max: 1_000, ..client_limits(65_535, 65_535) };
    let (mut peer, client, connection) = Peer::silent(limits, 1 << 16).await;
    peer.say(kind::SETTINGS, 0, 0, &[]).await;
    // More than a frame, less than the windows.
    let bytes = 50_000;
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), Sends(once(bytes))).is_ok());
    peer.hear_all().await;
    let data = inside::frames(&peer.heard).filter(|(kind, ..)| *kind == kind::DATA);
    assert_eq!(data.map(|(.., payload)| payload.len()).sum::<usize>(), bytes);
    drop((client, peer));
    assert!(timeout(PATIENCE, connection).await.expect("ends").unwrap().is_err());
}

/// A server that said this and takes nothing more, as who writes to it learns first: nothing comes before a write has
/// failed.
struct Deaf {
    said: io::Cursor<Vec<u8>>,
    /// Its end comes behind what it said.
    closed: bool,
    was_written_to: bool,
}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_over = self.said.position() == self.said.get_ref().len() as u64;
        if !self.was_written_to || is_over && !self.closed {
            return Poll::Pending;
        }
        Pin::new(&mut self.said).poll_read(cx, bytes)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.was_written_to = true;
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_lies_there_is_heard_although_nothing_can_be_written_any_more() {
    let frame = inside::frame;
    let settings = frame(kind::SETTINGS, 0, 0, &[]);
    // :status 200 by the static table.
    let answer = frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[0x88]);
    // Both streams are begun; the second one is above the last that the server took.
    let goaway = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
    let calm = [&[0, 0, 0, 1, 0, 0, 0, 11][..], b"too_many_data_frames"].concat();
    let calm = frame(kind::GOAWAY, 0, 0, &calm);
    let cut = || {
        let (code, debug_data) = (ErrorCode::ENHANCE_YOUR_CALM, "too_many_data_frames".into());
        Some(Err(BodyError::EndedByPeer { code, debug_data }))
    };
    let lost = || Some(Err(BodyError::ConnectionLost));
    let refused = || Some(Err(BodyError::Refused));
    for (said, expected) in [
        (vec![], [lost(), lost()]),
        (settings.clone(), [lost(), lost()]),
        ([&settings[..], &answer].concat(), [Some(Ok(())), lost()]),
        ([&settings[..], &answer, &goaway].concat(), [Some(Ok(())), refused()]),
        ([&settings[..], &goaway].concat(), [lost(), refused()]),
        // The last reason counts.
        ([&settings[..], &goaway, &calm].concat(), [cut(), refused()]),
        ([&settings[..], &answer, &calm].concat(), [Some(Ok(())), refused()]),
    ] {
        for closed in [true, false] {
            let said = io::Cursor::new(said.clone());
            let io = Deaf { said, closed, was_written_to: false };
            let (client, connection) = Client::new(io, client_limits(65_535, 65_535));
            let calls = [Silent::default(), Silent::default()];
            for call in &calls {
                let request = Request::post("http://a/b").body(()).unwrap();
                assert!(client.open(request, call.clone()).is_ok());
            }
            let begin = tokio::time::Instant::now();
            let ended = timeout(PATIENCE, connection).await.expect("ends");
            let told = calls.map(|call| call.0.lock().unwrap().take());
            assert_eq!(told, expected, "{closed}");
            let was_cut = told.contains(&lost()) || told.contains(&cut());
            assert_eq!(ended.is_err(), was_cut, "{closed}, {expected:?}: {ended:?}");
            assert_eq!(begin.elapsed() > TICK, !closed, "it waits for its end: {expected:?}");
            let late =
                client.open(Request::post("http://a/b").body(()).unwrap(), Silent::default());
            assert!(late.is_err(), "another connection takes it");
        }
    }
}

/// Half-closes at once, and notes how it ended.
struct Asks(Silent);

impl Exchange for Asks {
    fn head(&mut self, _: StatusCode, _: &HeaderMap, _: Instant) {}

    fn data(&mut self, _: &[u8], _: Instant) {}

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, now: Instant) {
        self.0.end(end, now);
    }

    fn poll_send(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>, _: usize, _: Instant) -> Sending {
        Sending::End
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_answer_learns_that_its_time_is_over_and_so_does_the_server() {
    let idle = Duration::from_secs(10);
    let limits = Limits { stream_idle_timeout: Some(idle), ..client_limits(65_535, 65_535) };
    let (mut peer, client, connection) = Peer::silent(limits, 1 << 16).await;
    peer.say(kind::SETTINGS, 0, 0, &[]).await;
    let told = Silent::default();
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), Asks(told.clone())).is_ok());
    let code = peer.hear(kind::RST_STREAM, 0, 1).await;
    assert_eq!(code, ErrorCode::CANCEL.0.to_be_bytes());
    let end = told.0.lock().unwrap().take();
    assert_eq!(end, Some(Err(BodyError::Ended("the stream's time is over"))));
    drop((client, connection));
}

/// Sends as told until a payload came, of which one is enough.
struct Choosy {
    told: Silent,
    sends: Sending,
    has_enough: bool,
}

impl Exchange for Choosy {
    fn head(&mut self, _: StatusCode, _: &HeaderMap, _: Instant) {}

    fn data(&mut self, _: &[u8], _: Instant) {
        assert!(!std::mem::replace(&mut self.has_enough, true), "it wanted no more");
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, now: Instant) {
        self.told.end(end, now);
    }

    fn poll_send(
        &mut self,
        _: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        now: Instant,
    ) -> Sending {
        if self.sends == Sending::More {
            return endless(frame, room, now);
        }
        self.sends.clone()
    }

    fn is_cancelled(&self) -> bool {
        self.has_enough
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_wants_no_more_is_reset_whatever_it_still_had_to_send() {
    // Before and behind a shut window, half-closed, and with nothing to send.
    let chunk = Sending::Chunk(Bytes::from_static(&[0; 100_000]));
    for sends in [Sending::More, chunk, Sending::End, Sending::Wait] {
        let (mut peer, client, connection) =
            Peer::silent(client_limits(65_535, 65_535), 1 << 20).await;
        peer.say(kind::SETTINGS, 0, 0, &[]).await;
        let told = Silent::default();
        let call = Choosy { told: told.clone(), sends: sends.clone(), has_enough: false };
        assert!(client.open(Request::post("http://a/b").body(()).unwrap(), call).is_ok());
        peer.hear_all().await;
        // :status 200 by the static table.
        peer.say(kind::HEADERS, flag::END_HEADERS, 1, &[0x88]).await;
        peer.say(kind::DATA, 0, 1, b"enough").await;
        let code = peer.hear(kind::RST_STREAM, 0, 1).await;
        assert_eq!(code, ErrorCode::CANCEL.0.to_be_bytes(), "{sends:?}");
        let end = told.0.lock().unwrap().take();
        assert_eq!(end, Some(Err(BodyError::Ended("it was cancelled"))), "{sends:?}");
        // What was on its way costs neither the connection nor its window.
        for _ in 0..100 {
            peer.say(kind::DATA, 0, 1, &[0; 1_000]).await;
        }
        peer.hear_all().await;
        let updates = inside::frames(&peer.heard)
            .filter(|(kind, _, stream, _)| (*kind, *stream) == (kind::WINDOW_UPDATE, 0));
        let credit: u32 =
            updates.map(|(.., add)| u32::from_be_bytes(add.try_into().unwrap())).sum();
        assert!(credit >= 50_000, "{credit}");
        drop(client);
        timeout(PATIENCE, connection).await.expect("ends").unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_for_the_connections_window_is_asked_for_now_and_not_earlier() {
    let wait = Duration::from_secs(10);
    let (mut peer, client, connection) = Peer::silent(client_limits(65_535, 65_535), 1 << 20).await;
    // The stream's window is larger than the connection's.
    peer.say(kind::SETTINGS, 0, 0, &entry(setting::INITIAL_WINDOW_SIZE, 1 << 20)).await;
    peer.hear_all().await;
    let asked = Arc::<Mutex<Vec<Instant>>>::default();
    let notes = asked.clone();
    let timed = Sends(move |frame: &mut Vec<u8>, room, now| {
        notes.lock().unwrap().push(now);
        endless(frame, room, now)
    });
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), timed).is_ok());
    peer.hear_all().await;
    let before = asked.lock().unwrap().len();
    tokio::time::sleep(wait).await;
    assert_eq!(asked.lock().unwrap().len(), before, "the window is shut");
    let opened = tokio::time::Instant::now().into_std();
    peer.say(kind::WINDOW_UPDATE, 0, 0, &1_000_u32.to_be_bytes()).await;
    peer.hear_all().await;
    let asked = asked.lock().unwrap()[before..].to_vec();
    assert!(!asked.is_empty() && asked.iter().all(|at| *at >= opened), "{:?}", opened - asked[0]);
    drop((client, connection));
}

#[tokio::test(start_paused = true)]
async fn behind_a_shut_window_only_who_has_something_to_send_is_stalled() {
    let stall = Duration::from_secs(10);
    let limits = Limits { stall_timeout: Some(stall), ..client_limits(65_535, 65_535) };
    // What the exchange has to send, and whether the stream ends for it.
    let none: fn(&mut Vec<u8>, usize, Instant) -> Sending = |_, _, _| Sending::Wait;
    let as_much_as_there_is_room_for = endless;
    let in_spite_of_the_room: fn(&mut Vec<u8>, usize, Instant) -> Sending = |frame, _, _| {
        frame.push(0);
        Sending::Wait
    };
    let not_copied: fn(&mut Vec<u8>, usize, Instant) -> Sending =
        |_, _, _| Sending::Chunk(Bytes::from_static(b"x"));
    for (sends, is_stalled) in [
        (none, false),
        (as_much_as_there_is_room_for, true),
        (in_spite_of_the_room, true),
        (not_copied, true),
    ] {
        let (mut peer, client, connection) = Peer::silent(limits.clone(), 1 << 16).await;
        peer.say(kind::SETTINGS, 0, 0, &entry(setting::INITIAL_WINDOW_SIZE, 0)).await;
        peer.hear_all().await;
        let request = Request::post("http://a/b").body(()).unwrap();
        assert!(client.open(request, Sends(sends)).is_ok());
        peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
        let began = tokio::time::Instant::now();
        let reset = timeout(10 * stall, peer.hear(kind::RST_STREAM, 0, 1)).await;
        assert_eq!(reset.is_ok(), is_stalled);
        if is_stalled {
            let took = began.elapsed();
            assert!((stall..2 * stall).contains(&took), "{took:?}");
        }
        drop((client, connection));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_shut_window_leaves_when_it_opens_however_often_it_was_asked() {
    let stall = Duration::from_secs(10);
    let limits = Limits { stall_timeout: Some(stall), ..client_limits(65_535, 65_535) };
    let (mut peer, client, connection) = Peer::silent(limits, 1 << 16).await;
    peer.say(kind::SETTINGS, 0, 0, &entry(setting::INITIAL_WINDOW_SIZE, 0)).await;
    peer.hear_all().await;
    // Whether it has something, and whether it was asked for it in vain.
    let (has_some, in_vain) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(false)));
    let (told, tells) = (has_some.clone(), in_vain.clone());
    let sends = Sends(move |frame: &mut Vec<u8>, room, now| {
        if !*told.lock().unwrap() {
            return Sending::Wait;
        }
        *tells.lock().unwrap() |= room == 0;
        endless(frame, room, now)
    });
    assert!(client.open(Request::post("http://a/b").body(()).unwrap(), sends).is_ok());
    peer.hear(kind::HEADERS, flag::END_HEADERS, 1).await;
    tokio::time::sleep(5 * stall).await;
    *has_some.lock().unwrap() = true;
    let is_asked = async {
        while !*in_vain.lock().unwrap() {
            tokio::time::sleep(TICK).await;
        }
    };
    timeout(PATIENCE, is_asked).await.expect("it is asked");
    peer.say(kind::WINDOW_UPDATE, 0, 1, &5_u32.to_be_bytes()).await;
    assert_eq!(peer.hear(kind::DATA, 0, 1).await.len(), 5);
    drop((client, connection));
}
