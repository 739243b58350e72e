//! The services that the torture test serves: each stream's path names what its handler does.
//!
//! In: a request, whose headers say how much. Out: an answer that the client can foretell, or a
//! panic. What handlers saw of their requests is kept, and how many of their values are alive.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;

use super::Rig;
use super::chance::Chance;
use crate::transport::{BodyError, ErrorCode, RecvBody};

/// Units after which calls of [`Kind::Deadline`] must be over.
pub(crate) const DEADLINE_UNITS: u32 = 50;

/// What a handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Gives back what comes.
    Echo,
    /// So, through a channel: the request's body is read on a task of its own.
    Spawned,
    /// So, with a pause before each frame.
    Timer,
    /// Gives `size` bytes out of a channel that is always ready, and drops the request's body at once.
    Source,
    /// Reads `size` bytes, drops the body, pauses, ends.
    EarlyDrop,
    /// Gives `size` bytes at once; the request's body is read on by a task that outlives the stream.
    EarlyAnswer,
    /// Panics in `call`.
    PanicInCall,
    /// Panics before it answers.
    PanicInAnswer,
    /// Panics after `size` bytes.
    PanicInBody,
    /// An echo whose future and body panic when they are dropped.
    PanicInDrop,
    /// So does something in its answer's extensions.
    PanicInExtensions,
    /// Never answers.
    Never,
    /// Never ends, and the request has a deadline.
    Deadline,
}

impl Kind {
    pub(crate) const ALL: [Kind; 13] = [
        Kind::Echo,
        Kind::Spawned,
        Kind::Timer,
        Kind::Source,
        Kind::EarlyDrop,
        Kind::EarlyAnswer,
        Kind::PanicInCall,
        Kind::PanicInAnswer,
        Kind::PanicInBody,
        Kind::PanicInDrop,
        Kind::PanicInExtensions,
        Kind::Never,
        Kind::Deadline,
    ];

    /// Whether all of the request comes back.
    pub(crate) fn is_echo(self) -> bool {
        matches!(self, Kind::Echo | Kind::Spawned | Kind::Timer | Kind::PanicInDrop)
    }
}

/// How a call ended, as its client saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome<'a> {
    pub(crate) status: Option<u16>,
    pub(crate) received: usize,
    /// In order, perhaps with trailers.
    pub(crate) has_ended: bool,
    pub(crate) trailers: Option<&'a HashMap<String, String>>,
    pub(crate) reset: Option<ErrorCode>,
}

impl Outcome<'_> {
    /// Whether it is what a handler of this kind does. `echoed`: bytes that an echo gives.
    pub(crate) fn check(
        &self,
        kind: Kind,
        is_grpc: bool,
        number: usize,
        size: usize,
        echoed: usize,
    ) {
        let call = || format!("call {number}, {kind:?}, size {size}, echoed {echoed}: {self:?}");
        let fails = |code: &str, http: u16| {
            assert!(self.has_ended, "{}", call());
            if is_grpc {
                let status = self.trailers.and_then(|trailers| trailers.get("grpc-status"));
                assert_eq!(status.map(String::as_str), Some(code), "{}", call());
            }
            let expected = if is_grpc { 200 } else { http };
            assert_eq!(self.status, Some(expected), "{}", call());
        };
        match kind {
            kind if kind.is_echo() => self.check_good_end(number, echoed, call),
            Kind::Source | Kind::EarlyAnswer => self.check_good_end(number, size, call),
            Kind::EarlyDrop => self.check_good_end(number, 0, call),
            Kind::PanicInCall | Kind::PanicInAnswer | Kind::PanicInExtensions => fails("13", 500),
            Kind::PanicInBody => {
                if is_grpc {
                    fails("13", 500);
                } else {
                    assert_eq!(self.reset, Some(ErrorCode::INTERNAL_ERROR), "{}", call());
                }
                assert_eq!(self.received, size, "{}", call());
            }
            Kind::Deadline => fails("4", 504),
            _ => unreachable!("echoes are above, and what never answers is always reset"),
        }
    }

    fn check_good_end(&self, number: usize, bytes: usize, call: impl Fn() -> String) {
        assert_eq!((self.status, self.received), (Some(200), bytes), "{}", call());
        assert!(self.has_ended, "{}", call());
        assert!(matches!(self.reset, None | Some(ErrorCode::NO_ERROR)), "{}", call());
        match self.trailers {
            Some(trailers) => assert_eq!(trailers["given"], bytes.to_string(), "{}", call()),
            None => assert!(number.is_multiple_of(3), "no trailers; {}", call()),
        }
    }
}

/// Byte `at` of what both sides send on stream `number`.
pub(crate) fn pattern(number: usize, at: usize) -> u8 {
    u8::try_from((number * 31 + at * 7 + at / 251) % 256).expect("a remainder")
}

/// Bytes `from..from + length` of it.
pub(crate) fn patterned(number: usize, from: usize, length: usize) -> Bytes {
    (from..from + length).map(|at| pattern(number, at)).collect()
}

/// How a handler's request ended, to its eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Clean,
    Broken(BodyError),
}

/// What was seen of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) bytes: usize,
    pub(crate) ended: Option<Ended>,
    /// Its reader goes on to the end, whatever becomes of the answer.
    pub(crate) is_read_on: bool,
}

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct Theatre {
    pub(crate) seen: Mutex<HashMap<usize, Seen>>,
    /// Values of handlers that were not dropped yet.
    pub(crate) alive: AtomicI64,
    /// Times that a handler was polled.
    pub(crate) polls: AtomicU64,
    /// What handlers saw that must not be. A panic of theirs would be the connection's to catch, and nobody would hear of it.
    pub(crate) violations: Mutex<Vec<String>>,
    unready: Mutex<Chance>,
    unready_one_in: usize,
    unit: Duration,
    /// See [`Rig::is_paused`].
    is_paused: bool,
}

impl Theatre {
    pub(crate) fn new(chance: &mut Chance, rig: Rig) -> Arc<Self> {
        Arc::new(Theatre {
            seen: Mutex::default(),
            alive: AtomicI64::new(0),
            polls: AtomicU64::new(0),
            unready_one_in: chance.pick(&[0, 0, 2, 5]),
            unready: Mutex::new(chance.fork()),
            violations: Mutex::default(),
            unit: rig.unit,
            is_paused: rig.is_paused,
        })
    }

    /// Notes `what` unless `holds`.
    fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.lock().unwrap().push(what());
        }
    }

    fn note(&self, number: usize, what: &Option<Result<Frame<Bytes>, BodyError>>) {
        let mut seen = self.seen.lock().unwrap();
        let seen = seen.entry(number).or_default();
        match what {
            Some(Ok(frame)) => {
                let is_open = seen.ended.is_none();
                self.check(is_open, || format!("stream {number}: something came after its end"));
                if let Some(data) = frame.data_ref() {
                    let expected = patterned(number, seen.bytes, data.len());
                    let at = seen.bytes;
                    self.check(*data == expected, || {
                        format!("stream {number}: wrong bytes at {at}")
                    });
                    seen.bytes += data.len();
                }
            }
            Some(Err(error)) => seen.ended = Some(Ended::Broken(error.clone())),
            None => {
                // After an error every further look says that there is nothing.
                seen.ended.get_or_insert(Ended::Clean);
            }
        }
    }
}

/// Counts one value that is alive.
#[derive(Debug)]
struct Alive(Arc<Theatre>);

impl Alive {
    fn new(theatre: &Arc<Theatre>) -> Self {
        theatre.alive.fetch_add(1, SeqCst);
        Alive(theatre.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, SeqCst);
    }
}

/// A panic that prints nothing, and goes off again when it is dropped.
struct Staged;

impl Drop for Staged {
    fn drop(&mut self) {
        resume_unwind(Box::new(()));
    }
}

fn panic_quietly() -> ! {
    resume_unwind(Box::new(Staged))
}

/// Panics when it is dropped.
#[derive(Clone)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic_quietly();
        }
    }
}

/// A request's body that notes what it gives.
struct Noted {
    body: RecvBody,
    number: usize,
    alive: Alive,
}

impl Noted {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Some take what lies there in parts.
        let takes_parts = self.number.is_multiple_of(3);
        let part = |chunk: &[u8]| if takes_parts { chunk.len().div_ceil(2) } else { chunk.len() };
        let next = ready!(self.body.poll_part(cx, part));
        self.alive.0.note(self.number, &next);
        Poll::Ready(next)
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }
}

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) theatre: Arc<Theatre>,
    unready: Unready,
}

#[derive(Debug, Default)]
enum Unready {
    #[default]
    Undecided,
    Waits(Pin<Box<Sleep>>),
    Ready,
}

impl Clone for Unready {
    fn clone(&self) -> Self {
        Unready::Undecided
    }
}

impl Stage {
    pub(crate) fn new(theatre: &Arc<Theatre>) -> Self {
        Stage { theatre: theatre.clone(), unready: Unready::Undecided }
    }
}

/// The number of a request's header.
fn header(head: &HeaderMap, name: &str) -> usize {
    head[name].to_str().unwrap().parse().unwrap()
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Play>, Infallible>> + Send>>;

impl Service<Request<RecvBody>> for Stage {
    type Response = Response<Play>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.theatre.polls.fetch_add(1, SeqCst);
        loop {
            match &mut self.unready {
                Unready::Ready => return Poll::Ready(Ok(())),
                Unready::Waits(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.unready = Unready::Ready;
                }
                Unready::Undecided => {
                    let mut chance = self.theatre.unready.lock().unwrap();
                    let one_in = self.theatre.unready_one_in;
                    if one_in == 0 || !chance.one_in(one_in) {
                        drop(chance);
                        self.unready = Unready::Ready;
                    } else if chance.one_in(2) {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    } else {
                        drop(chance);
                        self.unready = Unready::Waits(Box::pin(sleep(self.theatre.unit * 3)));
                    }
                }
            }
        }
    }

    fn call(&mut self, request: Request<RecvBody>) -> Answer {
        let is_ready = matches!(self.unready, Unready::Ready);
        self.theatre.check(is_ready, || "called before it was ready".to_owned());
        let (head, body) = request.into_parts();
        let kind = Kind::ALL.into_iter().find(|kind| head.uri.path()[1..] == *format!("{kind:?}"));
        let (kind, number) = (kind.unwrap(), header(&head.headers, "number"));
        if kind == Kind::PanicInCall {
            panic_quietly();
        }
        let size = header(&head.headers, "size");
        let alive = Alive::new(&self.theatre);
        let body = Noted { body, number, alive: Alive::new(&self.theatre) };
        let bomb = matches!(kind, Kind::PanicInDrop | Kind::PanicInExtensions).then(|| Bomb);
        let unit = self.theatre.unit;
        Box::pin(async move {
            let bomb = bomb;
            let mut play = Play {
                kind,
                number,
                size,
                given: 0,
                end: false,
                role: None,
                due: None,
                alive,
                bomb,
            };
            match kind {
                Kind::Echo | Kind::PanicInDrop | Kind::PanicInExtensions => {
                    play.role = Some(Cast::Echo(body))
                }
                Kind::Timer => play.role = Some(Cast::Timer(body, unit, None)),
                Kind::Spawned => {
                    let reader = spawn_reader(body, 1 + number % 3, number % 2 == 0);
                    play.role = Some(Cast::Channel(reader))
                }
                Kind::Source => {
                    drop(body);
                    let (out, channel) = mpsc::channel(1 + size);
                    let mut from = 0;
                    while from < size {
                        let length = (size - from).min(1 + (number * 97 + from) % 3_000);
                        out.try_send(patterned(number, from, length)).unwrap();
                        from += length;
                    }
                    play.role = Some(Cast::Channel(channel));
                }
                Kind::EarlyDrop => {
                    let mut body = body;
                    let mut read = 0;
                    while read < size
                        && let Some(Ok(frame)) = body.frame().await
                    {
                        read += frame.data_ref().map_or(0, Bytes::len);
                    }
                    drop(body);
                    sleep(unit * 20).await;
                }
                Kind::EarlyAnswer => {
                    let reader = spawn_reader(body, 1 << 20, number % 2 == 0);
                    play.role = Some(Cast::Pattern(Some(reader)));
                }
                Kind::PanicInCall => unreachable!("panicked already"),
                Kind::PanicInAnswer => {
                    let mut body = body;
                    if number % 2 == 0 {
                        let _ = body.frame().await;
                    }
                    panic_quietly();
                }
                Kind::PanicInBody => play.role = Some(Cast::Pattern(None)),
                Kind::Never => std::future::pending().await,
                Kind::Deadline => {
                    play.due = Some(Due::new(&play.alive.0));
                    if number % 2 == 0 {
                        std::future::pending::<()>().await;
                    }
                    let (out, channel) = mpsc::channel(1);
                    tokio::spawn(async move { out.closed().await });
                    play.role = Some(Cast::Channel(channel));
                }
            }
            let mut response = Response::new(play);
            if kind == Kind::PanicInExtensions {
                response.extensions_mut().insert(Bomb);
            }
            Ok(response)
        })
    }
}

/// Reads a request's body on a task of its own, as long as somebody takes what it gives, or to its end.
fn spawn_reader(mut body: Noted, room: usize, is_read_on: bool) -> mpsc::Receiver<Bytes> {
    let (out, channel) = mpsc::channel(room);
    tokio::spawn(async move {
        body.alive.0.seen.lock().unwrap().entry(body.number).or_default().is_read_on = is_read_on;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            if let Ok(data) = frame.into_data()
                && out.send(data).await.is_err()
                && !is_read_on
            {
                break;
            }
        }
    });
    channel
}

/// Whatever ends a handler with a deadline, that ends it in time.
struct Due {
    theatre: Arc<Theatre>,
    latest: Instant,
}

impl Due {
    fn new(theatre: &Arc<Theatre>) -> Self {
        // The deadline counts from the request's head, which was there before. tokio's timers know milliseconds.
        let latest = Instant::now() + theatre.unit * DEADLINE_UNITS + Duration::from_millis(1);
        Due { theatre: theatre.clone(), latest }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        let late = Instant::now().saturating_duration_since(self.latest);
        let is_late = self.theatre.is_paused && !late.is_zero();
        self.theatre
            .check(!is_late, || format!("a handler lived {late:?} longer than its deadline"));
    }
}

/// A response's body.
pub(crate) struct Play {
    kind: Kind,
    number: usize,
    size: usize,
    given: usize,
    end: bool,
    /// `None`: nothing but trailers.
    role: Option<Cast>,
    due: Option<Due>,
    alive: Alive,
    #[expect(dead_code, reason = "goes off when it is dropped")]
    bomb: Option<Bomb>,
}

enum Cast {
    Echo(Noted),
    Timer(Noted, Duration, Option<Pin<Box<Sleep>>>),
    Channel(mpsc::Receiver<Bytes>),
    /// With somebody else who still reads the request, and gets no further than this.
    Pattern(#[expect(dead_code, reason = "ends when it is dropped")] Option<mpsc::Receiver<Bytes>>),
}

impl Play {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Play { number, size, given, kind, .. } = self;
        let echoed = |next: Option<Result<Frame<Bytes>, BodyError>>| {
            next.and_then(Result::ok).map(|frame| frame.into_data().unwrap_or_default())
        };
        match &mut self.role {
            None => Poll::Ready(None),
            Some(Cast::Echo(body)) => body.poll_frame(cx).map(echoed),
            Some(Cast::Channel(channel)) => channel.poll_recv(cx),
            Some(Cast::Timer(body, unit, pause)) => {
                let waits = pause.get_or_insert_with(|| Box::pin(sleep(*unit)));
                ready!(waits.as_mut().poll(cx));
                let next = ready!(body.poll_frame(cx));
                *pause = None;
                Poll::Ready(echoed(next))
            }
            Some(Cast::Pattern(_)) => {
                let length = (*size - *given).min(1 + (*number * 31 + *given) % 2_000);
                if length == 0 && *kind == Kind::PanicInBody {
                    panic_quietly();
                }
                Poll::Ready((length > 0).then(|| patterned(*number, *given, length)))
            }
        }
    }
}

impl Body for Play {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.alive.0.polls.fetch_add(1, SeqCst);
        if self.end {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.next(cx)) {
            self.given += data.len();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.end = true;
        if self.number.is_multiple_of(3) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("given", HeaderValue::from(self.given));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
