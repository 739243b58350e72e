//! The client's side of calls: exchanges that send in every manner and note what they are told.
//!
//! In: a plan out of a seed. Out: what came, checked byte by byte as it comes; a panic if an exchange
//! is called in another order than head, data, end, or asked to send after its end.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, StatusCode};
use tokio::time::{Sleep, sleep};

use super::chance::Chance;
use super::services::{DEADLINE_UNITS, Kind, Outcome, pattern, patterned};
use crate::transport::{BodyError, Exchange, Sending};

/// One call to make.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) is_grpc: bool,
    announces_length: bool,
    pub(crate) request_bytes: usize,
    /// What the handler is told, as its kind takes it.
    pub(crate) size: usize,
    piece_bytes_max: usize,
    /// So many units after it was first asked for something to send, the call is wanted no more.
    cancel_after: Option<usize>,
}

impl Plan {
    pub(crate) fn random(chance: &mut Chance, bytes_max: usize) -> Self {
        let kind = chance.pick(&Kind::ALL);
        let cancels = kind == Kind::Never || chance.one_in(6);
        let bytes = |chance: &mut Chance| {
            let most = chance.pick(&[0, 1, 100, 3_000, 3_000, 70_000]).min(bytes_max);
            chance.between(most / 2, most)
        };
        let (request_bytes, size) = (bytes(chance), bytes(chance));
        Plan {
            kind,
            is_grpc: kind == Kind::Deadline || chance.one_in(2),
            announces_length: chance.one_in(4),
            request_bytes,
            size,
            piece_bytes_max: chance.pick(&[100, 1_000, 16_000, 40_000]).max(request_bytes / 20),
            cancel_after: cancels.then(|| {
                let most = chance.pick(&[1, 30, 300]);
                chance.below(most)
            }),
        }
    }

    /// The same, wanted until it ends by itself.
    pub(crate) fn never_cancelled(self) -> Self {
        Plan { cancel_after: None, ..self }
    }

    fn request(&self, number: usize, unit: Duration) -> Request<()> {
        let mut request = Request::post(format!("http://torture/{:?}", self.kind))
            .header("number", number)
            .header("size", self.size);
        if self.is_grpc {
            request = request.header("content-type", "application/grpc");
        }
        if self.announces_length {
            request = request.header("content-length", self.request_bytes);
        }
        if self.cancel_after.is_some() {
            request = request.header("cancels", "yes");
        }
        if self.kind == Kind::Deadline {
            request =
                request.header("grpc-timeout", format!("{}u", (unit * DEADLINE_UNITS).as_micros()));
        }
        request.body(()).unwrap()
    }
}

/// What a call did and heard.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) plan: Plan,
    pub(crate) number: usize,
    pub(crate) sent: usize,
    has_sent_end: bool,
    pub(crate) status: Option<u16>,
    pub(crate) received: usize,
    /// Trailers, or the head of what had nothing else; or why not.
    pub(crate) ended: Option<Result<HashMap<String, String>, BodyError>>,
    /// It is wanted no more ...
    is_cancelled: bool,
    /// ... and the connection was told so.
    is_known: bool,
    /// Times that the connection called the exchange.
    pub(crate) calls: u64,
}

/// What a call is told that was cancelled.
const CANCELLED: BodyError = BodyError::Ended("it was cancelled");

impl Heard {
    /// Whether it ended because it was cancelled.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.ended == Some(Err(CANCELLED))
    }

    /// The connection calls; it must not any more once it was told that the call is cancelled.
    fn called(&mut self) {
        self.calls += 1;
        assert!(!self.is_known, "called although it is cancelled: {self:?}");
    }

    /// Whether the handler did what it does.
    pub(crate) fn check(&self, echoed: usize) {
        let trailers = self.ended.as_ref().and_then(|ended| ended.as_ref().ok());
        let has_any = |trailers: &&HashMap<String, String>| {
            trailers.contains_key("given") || trailers.contains_key("grpc-status")
        };
        let outcome = Outcome {
            status: self.status,
            received: self.received,
            has_ended: trailers.is_some(),
            trailers: trailers.filter(has_any),
            reset: match self.ended {
                Some(Err(BodyError::Reset(code))) => Some(code),
                _ => None,
            },
        };
        let Plan { kind, is_grpc, size, .. } = self.plan;
        outcome.check(kind, is_grpc, self.number, size, echoed);
    }
}

/// All calls of a client, by number.
pub(crate) type Calls = Vec<Arc<Mutex<Heard>>>;

/// One call, as the connection drives it.
pub(crate) struct Caller {
    heard: Arc<Mutex<Heard>>,
    chance: Chance,
    unit: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    /// For something to send.
    was_asked: bool,
}

impl Caller {
    /// A call with its request, and where it notes what it hears.
    pub(crate) fn new(
        number: usize,
        plan: Plan,
        chance: &mut Chance,
        unit: Duration,
    ) -> (Request<()>, Self, Arc<Mutex<Heard>>) {
        let request = plan.request(number, unit);
        let heard = Heard {
            plan,
            number,
            sent: 0,
            has_sent_end: false,
            status: None,
            received: 0,
            ended: None,
            is_cancelled: false,
            is_known: false,
            calls: 0,
        };
        let heard = Arc::new(Mutex::new(heard));
        let chance = chance.fork();
        let caller = Caller { heard: heard.clone(), chance, unit, pause: None, was_asked: false };
        (request, caller, heard)
    }
}

fn texts(headers: &HeaderMap) -> HashMap<String, String> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

impl Exchange for Caller {
    fn head(&mut self, status: StatusCode, _: &HeaderMap, _: Instant) {
        let mut heard = self.heard.lock().unwrap();
        heard.called();
        assert!(heard.status.is_none() && heard.ended.is_none(), "a second head: {heard:?}");
        assert!(!status.is_informational());
        heard.status = Some(status.as_u16());
    }

    fn data(&mut self, payload: &[u8], _: Instant) {
        let mut heard = self.heard.lock().unwrap();
        heard.called();
        assert!(heard.status.is_some() && heard.ended.is_none(), "data out of order: {heard:?}");
        let (from, number) = (heard.received, heard.number);
        let wrong = (0..payload.len()).find(|&at| payload[at] != pattern(number, from + at));
        assert_eq!(wrong.map(|at| from + at), None, "first wrong byte of {heard:?}");
        heard.received += payload.len();
    }

    fn end(&mut self, end: Result<&HeaderMap, &BodyError>, _: Instant) {
        let mut heard = self.heard.lock().unwrap();
        heard.calls += 1;
        assert!(heard.ended.is_none(), "a second end: {heard:?}, {end:?}");
        assert_eq!(heard.is_known, end == Err(&CANCELLED), "{heard:?}, {end:?}");
        assert!(end.is_err() || heard.status.is_some(), "a good end without a head: {heard:?}");
        heard.ended = Some(end.map(texts).map_err(Clone::clone));
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut Vec<u8>,
        room: usize,
        _: Instant,
    ) -> Sending {
        let mut heard = self.heard.lock().unwrap();
        heard.called();
        assert!(room > 0 && heard.ended.is_none() && !heard.has_sent_end, "asked: {heard:?}");
        if let Some(units) = heard.plan.cancel_after.filter(|_| !self.was_asked) {
            let pause = self.unit * u32::try_from(units).expect("small");
            tokio::spawn(cancel(self.heard.clone(), pause, cx.waker().clone()));
        }
        self.was_asked = true;
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Sending::Wait;
            }
            self.pause = None;
        }
        let (from, number) = (heard.sent, heard.number);
        let left = heard.plan.request_bytes - from;
        let length = left.min(self.chance.between(1, heard.plan.piece_bytes_max));
        let manner = self.chance.below(8);
        if manner == 0 {
            let mut pause = Box::pin(sleep(self.unit * 3));
            if pause.as_mut().poll(cx) == Poll::Pending {
                self.pause = Some(pause);
                return Sending::Wait;
            }
        }
        if manner == 1 {
            cx.waker().wake_by_ref();
            return Sending::Wait;
        }
        heard.sent += length;
        heard.has_sent_end = left == length && (left == 0 || manner == 2);
        if left > 0 && manner == 3 {
            return Sending::Chunk(patterned(number, from, length));
        }
        // Now and then more than there is room for.
        frame.extend_from_slice(&patterned(number, from, length));
        match manner {
            _ if heard.has_sent_end => Sending::End,
            4 => {
                cx.waker().wake_by_ref();
                Sending::Wait
            }
            _ => Sending::More,
        }
    }

    fn is_cancelled(&self) -> bool {
        let mut heard = self.heard.lock().unwrap();
        heard.is_known |= heard.is_cancelled;
        heard.is_known
    }
}

/// After a while the call is wanted no more, whatever it waits for.
async fn cancel(call: Arc<Mutex<Heard>>, pause: Duration, waker: Waker) {
    sleep(pause).await;
    call.lock().unwrap().is_cancelled = true;
    waker.wake();
}
