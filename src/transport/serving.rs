//! The server's side of a stream: from the request's head to the response's end.
//!
//! In: frames, as the connection hands them on; a tower service. Out: the service's answer, polled
//! in place. User code runs in [`Role::poll`], [`Role::expire`] and where an app is dropped, always
//! behind a guard: a panic costs its stream an INTERNAL, and nobody else anything.

mod failure;

use std::error::Error as StdError;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{Extensions, HeaderMap, Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::connection::{Expiry, Opening, Role, Turn};
use super::counters::Counters;
use super::fields::{self, Fields};
use super::frame::ErrorCode;
use super::guard::{Panicked, catch_unwind};
use super::placement::Tasks;
use super::stream::{BodyError, End, Inbox, Kept, Key, RecvBody, Shared, StreamEnd, Wakes, lend};
use super::wire::{Core, Ending, Flushed, OwnTurn, Wire};
use failure::{
    ANSWER_TOO_LARGE, BAD_TIMEOUT, FAILED, Failure, HEADERS_TOO_LARGE, PANICKED, expired, fail,
};

/// What one stream may put into the output in one turn before its siblings get theirs.
const TURN_BYTES: usize = 64 << 10;

/// How often one stream's user code is polled in one turn: a body may be ready for ever and give nothing, or next to
/// nothing. tonic's bodies give all that is ready at once, and never need so many.
const TURN_STEPS: usize = 256;

/// A body that gave something has to be asked again before it may be left alone, because only
/// `Pending` promises a wake. Nearly all bodies have nothing more then (tonic's has polled its source
/// to the end already), and asking at once would poll each of them a second time for every echo. So one that had
/// nothing more this often in a row is asked [`LATER`](super::connection), unless something comes for the stream before.
const CALM_MIN: i8 = 4;

/// A calm body that had more after all is asked at once again, until it was calm this often.
const CALM_AGAIN: i8 = 64;

/// Pieces from here up may be a part of what was ready: tonic hands on at 32 KiB.
const CALM_BYTES_MAX: usize = 16 << 10;

/// Serves one connection's streams with one service.
pub(crate) struct Serving<S> {
    pub(crate) service: S,
    /// What every request of the connection is given.
    pub(crate) extensions: Extensions,
    pub(crate) counters: Arc<Counters>,
    /// The service's, if it runs on tasks.
    pub(crate) tasks: Option<Arc<Tasks>>,
}

/// One stream.
pub(crate) struct Handler<S: Service<Request<RecvBody>>, B> {
    shared: Arc<Shared>,
    waker: Waker,
    /// `None` while it is lent to the body; it is never, when no user code runs.
    inbox: Option<Box<Inbox>>,
    /// The inbox is behind `shared`'s lock.
    is_remote: bool,
    /// Bytes in the inbox, wherever it is.
    buffered: usize,
    state: State<S, B>,
    /// How often in a row the body had nothing more after it had given something; negative after it
    /// had, to be made up for.
    calm: i8,
    /// The body was asked after a piece, and the answer is still on its way from another task.
    follows: bool,
    is_grpc: bool,
    is_head: bool,
    /// Why the request is refused before the service hears of it.
    refusal: Option<Failure>,
}

enum State<S: Service<Request<RecvBody>>, B> {
    /// No user code has run.
    New(Box<Request<()>>),
    /// The service is not ready.
    Unready(Box<(S, Request<RecvBody>)>),
    Answering(Pin<Box<S::Future>>),
    Sending(Pin<Box<B>>),
    /// Nothing more comes from the service.
    Done,
}

impl<S: Service<Request<RecvBody>>, B> Handler<S, B> {
    /// The inbox that is not lent.
    fn inbox(&mut self) -> &mut Inbox {
        self.inbox.get_or_insert_default()
    }

    /// Runs `with` on the inbox, wherever it is, and wakes who waits for it.
    fn deliver<T>(&mut self, with: impl FnOnce(&mut Inbox) -> T) -> T {
        let (done, waiting) = if self.is_remote {
            let mut remote = self.shared.remote();
            let inbox = remote.inbox();
            (with(inbox), inbox.take_waiting())
        } else {
            let inbox = self.inbox();
            (with(inbox), inbox.take_waiting())
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        done
    }

    /// Hands the inbox to a body that turned out to be polled elsewhere, and grants again what that
    /// took. Out: how much.
    fn settle_remote(&mut self) -> usize {
        if !self.is_remote && !self.shared.is_remote() {
            return 0;
        }
        let mut remote = self.shared.remote();
        let mut waiting = None;
        if !self.is_remote {
            self.is_remote = true;
            let inbox = self.inbox.get_or_insert_default();
            waiting = inbox.hand_over(remote.inbox());
        }
        let mut taken = std::mem::take(&mut remote.taken);
        if remote.inbox().abandoned {
            taken += remote.inbox().discard();
        }
        drop(remote);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        taken
    }
}

/// A body that outlives its stream finds what came, and then that nothing more will.
impl<S: Service<Request<RecvBody>>, B> Drop for Handler<S, B> {
    fn drop(&mut self) {
        // `shared` and `waker` are two; only a body makes it more.
        if Arc::strong_count(&self.shared) == 2 {
            return;
        }
        self.settle_remote();
        let mut remote = self.shared.remote();
        let mut waiting = None;
        if !self.is_remote {
            waiting = self.inbox.get_or_insert_default().hand_over(remote.inbox());
        }
        remote.inbox().end_if_open(BodyError::Ended("the stream is over"));
        let also_waiting = remote.inbox().take_waiting();
        drop(remote);
        [waiting, also_waiting].into_iter().flatten().for_each(Waker::wake);
    }
}

impl<S, B> Role for Serving<S>
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body,
    B::Data: Buf,
{
    type App = Handler<S, B>;

    const IS_SERVER: bool = true;

    fn accept(&mut self, core: &mut Core, wakes: &Arc<Wakes>, request: Request<()>) -> Self::App {
        let shared = Shared::new(wakes.clone(), core.key);
        let is_grpc = fields::is_grpc(request.headers());
        let mut refusal = None;
        match fields::grpc_timeout(request.headers()) {
            Ok(Some(timeout)) if is_grpc => core.deadline = core.last_frame.checked_add(timeout),
            Err(_) if is_grpc => refusal = Some(BAD_TIMEOUT),
            _ => {}
        }
        Handler {
            waker: Waker::from(shared.clone()),
            shared,
            inbox: Some(Box::default()),
            is_remote: false,
            buffered: 0,
            calm: 0,
            follows: false,
            is_grpc,
            is_head: request.method() == Method::HEAD,
            refusal,
            state: State::New(Box::new(request)),
        }
    }

    fn poll_open(
        &mut self,
        _: Key,
        _: &Arc<Wakes>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Option<Opening<Self::App>> {
        None
    }

    fn headers(
        &mut self,
        _: &mut Core,
        app: &mut Self::App,
        fields: Fields,
        end: bool,
    ) -> Result<(), &'static str> {
        if !end {
            return Err("headers_in_mid_stream");
        }
        let trailers = fields.into_trailers()?;
        let trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
        app.deliver(|inbox| inbox.end(End::Clean(trailers)));
        Ok(())
    }

    /// A stream is made by its request's head.
    fn expects_data(_: &Self::App) -> Result<(), &'static str> {
        Ok(())
    }

    fn data(
        &mut self,
        _: &mut Core,
        app: &mut Self::App,
        payload: &[u8],
        read: Option<&Bytes>,
    ) -> Kept {
        let kept = if app.is_remote {
            // Another task takes it, whenever that comes to it.
            app.deliver(|inbox| inbox.push(payload, None))
        } else {
            let inbox = app.inbox();
            let kept = inbox.push(payload, read);
            if let Some(waiting) = inbox.take_waiting() {
                waiting.wake();
            }
            kept
        };
        app.buffered += kept.bytes;
        kept
    }

    fn keep(app: &mut Self::App) {
        app.inbox().keep();
    }

    fn end(&mut self, _: &mut Core, app: &mut Self::App) {
        app.deliver(|inbox| inbox.end(End::Clean(None)));
    }

    fn broken(&mut self, app: &mut Self::App, error: BodyError) {
        app.buffered = 0;
        if error != BodyError::SHUTDOWN {
            app.shared.cancelled();
        }
        app.deliver(|inbox| inbox.end(End::Broken(error)));
    }

    fn is_on_tasks(&self) -> bool {
        self.tasks.is_some()
    }

    fn free_handlers(&self) -> usize {
        self.tasks.as_ref().map_or(0, |tasks| tasks.free_handlers())
    }

    fn all_have_begun(&self) {
        if let Some(tasks) = &self.tasks {
            tasks.all_have_begun();
        }
    }

    fn free_places(&self) -> usize {
        self.tasks.as_ref().map_or(0, |tasks| tasks.free_places())
    }

    fn is_untouched(app: &Self::App) -> bool {
        matches!(app.state, State::New(_))
    }

    fn buffered(app: &Self::App) -> usize {
        app.buffered
    }

    #[cfg(test)]
    fn unread_bytes(app: &Self::App) -> usize {
        let here = app.inbox.as_ref().map_or(0, |inbox| inbox.lying_bytes());
        here + app.shared.remote().unread_bytes()
    }

    fn poll(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire) -> Turn {
        app.shared.unmark();
        let taken = app.settle_remote();
        consume(core, app, wire, taken);
        if !core.is_flushed() {
            match wire.flush(core) {
                Flushed::All => {}
                Flushed::Shut => return Turn::Wait,
                Flushed::Full => return Turn::Again,
            }
        }
        if let Some(refusal) = app.refusal.take() {
            self.dismiss(app);
            fail(core, app.is_grpc, wire, refusal);
        }
        let before = app.inbox().bytes();
        // Lent once for all that the stream does in its turn.
        let mut inbox = app.inbox.take();
        let turn = lend(Arc::as_ptr(&app.shared), &mut inbox, || self.turn(core, app, wire));
        app.inbox = inbox;
        let inbox = app.inbox();
        let turn = if turn == Turn::Later && inbox.bytes() > 0 { Turn::Again } else { turn };
        if inbox.abandoned {
            inbox.discard();
        }
        let taken = before.saturating_sub(inbox.bytes());
        if turn != Turn::Over {
            consume(core, app, wire, taken);
        }
        turn
    }

    fn expire(&mut self, core: &mut Core, app: &mut Self::App, wire: &mut Wire, why: Expiry) {
        app.shared.end_with(expired(why).code as u8);
        self.dismiss(app);
        let was_cut = core.pending.len() < core.piece_bytes;
        wire.drop_pending(core);
        core.stalled_since = None;
        if was_cut {
            // A part of a message has left: trailers after it would be read as its end.
            wire.reset(core, ErrorCode::CANCEL);
        } else {
            fail(core, app.is_grpc, wire, expired(why));
        }
    }

    fn too_large(&mut self, core: &mut Core, fields: &Fields, wire: &mut Wire) {
        fail(core, fields::is_grpc(&fields.headers), wire, HEADERS_TOO_LARGE);
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn refuse_openings(&mut self, _: BodyError) {}
}

enum Step {
    /// User code waits for something.
    Pending,
    /// Something happened.
    Went,
    /// A small piece of the body left.
    Gave,
}

/// Our half is done; the peer is told if it still goes on (RFC 9113, 8.1).
fn finish(core: &mut Core, wire: &mut Wire) -> Turn {
    if !core.remote_closed {
        wire.reset(core, ErrorCode::NO_ERROR);
    }
    Turn::Over
}

/// Grants again what the body took.
fn consume<S: Service<Request<RecvBody>>, B>(
    core: &mut Core,
    app: &mut Handler<S, B>,
    wire: &mut Wire,
    bytes: usize,
) {
    // What broke was given up as a whole.
    let bytes = bytes.min(app.buffered);
    if bytes > 0 {
        app.buffered -= bytes;
        wire.consumed(core, bytes, app.buffered == 0);
    }
}

impl<S, B> Serving<S>
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body,
    B::Data: Buf,
{
    /// Lets the stream go on as far as it can, with its inbox lent.
    fn turn(&self, core: &mut Core, app: &mut Handler<S, B>, wire: &mut Wire) -> Turn {
        let before = wire.out.len();
        let is_on_tasks = self.tasks.is_some();
        let given = if is_on_tasks { wire.take_given(core) } else { OwnTurn::NotAwaited };
        let mut has_place = given == OwnTurn::HasPlace;
        let mut gave = false;
        // Whether the next poll tells if the body had more after a piece.
        let mut follows = core.was_deferred || app.follows;
        if follows {
            (core.was_deferred, app.follows) = (false, false);
        }
        for _ in 0..TURN_STEPS {
            if core.local_closed {
                return finish(core, wire);
            }
            if !wire.has_output_room() || wire.out.len() >= before + TURN_BYTES {
                return Turn::Again;
            }
            // The body is not asked for what could not leave. What it was asked for is taken: it keeps a
            // place from others.
            let was_owed = app.shared.owes_piece();
            if core.headers_sent && !was_owed {
                let is_shut = wire.room(core) == 0;
                if is_shut && !core.is_asked {
                    wire.block(core);
                    return Turn::Wait;
                }
                if !wire.has_pending_room(core) {
                    wire.park(core);
                    return Turn::Wait;
                }
                if is_shut {
                    return self.ask(core, app, wire);
                }
            }
            if core.is_waiting && !was_owed {
                (core.is_waiting, core.is_asked, core.stalled_since) = (false, false, None);
            }
            if gave && app.calm >= CALM_MIN && !core.remote_closed {
                return Turn::Later;
            }
            if self.must_wait_to_begin(app, wire, given == OwnTurn::MayBegin) {
                wire.want_handler(core);
                return Turn::Wait;
            }
            if is_on_tasks {
                if core.headers_sent && !was_owed && !has_place && wire.others_want_places() {
                    wire.want_place(core);
                    return Turn::Wait;
                }
                has_place = false;
            }
            let had_room = !was_owed || wire.has_pending_room(core);
            wire.steps += 1;
            let step = self.step(core, app, wire);
            if !had_room {
                wire.overshoot(core);
            }
            if follows {
                match step {
                    // The answer is still on its way from another task.
                    Step::Pending if app.shared.owes_piece() => app.follows = true,
                    Step::Pending => app.calm = app.calm.saturating_add(1).min(CALM_MIN),
                    Step::Gave | Step::Went => app.calm = -CALM_AGAIN,
                }
            }
            gave = matches!(step, Step::Gave);
            follows = gave;
            if matches!(step, Step::Pending) && was_owed && !app.shared.owes_piece() {
                // It has nothing after all, and is not asked again before the windows are looked at.
                core.stalled_since = core.stalled_since.map(|_| wire.now);
                continue;
            }
            if matches!(step, Step::Pending) || core.is_waiting {
                if app.shared.lacked_place() {
                    wire.want_place(core);
                }
                return Turn::Wait;
            }
            if !core.is_flushed() {
                return Turn::Again;
            }
        }
        Turn::Again
    }

    /// Handlers on tasks of their own outlive streams that were reset, and those count for the limit too.
    /// `is_its_turn`: it has waited for that.
    fn must_wait_to_begin(&self, app: &Handler<S, B>, wire: &Wire, is_its_turn: bool) -> bool {
        matches!(app.state, State::New(_) | State::Unready(_))
            && self.tasks.as_ref().is_some_and(|tasks| {
                !tasks.may_begin() || (!is_its_turn && wire.others_want_to_begin())
            })
    }

    /// The window has been shut for the stall timeout. Whether the stream has anything to send, only
    /// its body knows: it is asked once. What it gives stays behind the window, which
    /// is a stall, and the next sweep ends it; otherwise the stream goes on, for as long again.
    fn ask(&self, core: &mut Core, app: &mut Handler<S, B>, wire: &mut Wire) -> Turn {
        core.is_asked = false;
        let _ = self.step(core, app, wire);
        if core.local_closed {
            return finish(core, wire);
        }
        if core.is_flushed() {
            wire.block(core);
            if app.shared.lacked_place() {
                // It was not asked after all: it is when there is a place, and has waited since it did.
                core.is_asked = true;
                wire.want_place(core);
            } else if !app.shared.owes_piece() {
                core.stalled_since = Some(wire.now);
            }
        }
        Turn::Wait
    }

    /// Lets user code run once, behind the guard.
    fn step(&self, core: &mut Core, app: &mut Handler<S, B>, wire: &mut Wire) -> Step {
        let Handler { shared, waker, state, .. } = app;
        let mut cx = Context::from_waker(waker);
        let polled =
            catch_unwind(AssertUnwindSafe(|| self.poll_user(state, shared, waker, &mut cx)));
        match polled {
            Ok(Polled::Pending) => return Step::Pending,
            Ok(Polled::Called) => {
                if !matches!(app.state, State::Unready(..)) {
                    wire.release_head(core);
                }
            }
            Ok(Polled::Head(response)) => self.answer(core, app, wire, *response),
            Ok(Polled::Data(data, is_last)) => {
                if is_last {
                    self.dismiss(app);
                }
                let is_small = data.len() < CALM_BYTES_MAX;
                wire.data(core, data, is_last);
                if is_small {
                    return Step::Gave;
                }
            }
            Ok(Polled::Trailers(trailers)) => {
                self.dismiss(app);
                let trailers = bounded(trailers, wire);
                wire.end(core, Ending::Trailers(trailers));
            }
            Ok(Polled::End) => {
                self.dismiss(app);
                wire.end(core, Ending::Data);
            }
            Ok(Polled::Failed) => {
                self.give_up(core, app, wire, FAILED);
            }
            Err(_) => {
                self.counters.panicked();
                self.give_up(core, app, wire, PANICKED);
            }
        }
        Step::Went
    }

    fn poll_user(
        &self,
        state: &mut State<S, B>,
        shared: &Arc<Shared>,
        waker: &Waker,
        cx: &mut Context<'_>,
    ) -> Polled<B> {
        match state {
            State::New(_) => {
                let State::New(head) = std::mem::replace(state, State::Done) else {
                    unreachable!("matched above")
                };
                let body = RecvBody::new(shared.clone(), waker.clone());
                let mut request = head.map(|()| body);
                request.extensions_mut().extend(self.extensions.clone());
                request.extensions_mut().insert(StreamEnd::of(shared.clone()));
                *state = State::Unready(Box::new((self.service.clone(), request)));
                Polled::Called
            }
            State::Unready(waiting) => match waiting.0.poll_ready(cx) {
                Poll::Pending => Polled::Pending,
                Poll::Ready(Err(_)) => Polled::Failed,
                Poll::Ready(Ok(())) => {
                    let State::Unready(waiting) = std::mem::replace(state, State::Done) else {
                        unreachable!("matched above")
                    };
                    let (mut service, request) = *waiting;
                    *state = State::Answering(Box::pin(service.call(request)));
                    Polled::Called
                }
            },
            State::Answering(answer) => match answer.as_mut().poll(cx) {
                Poll::Pending => Polled::Pending,
                Poll::Ready(Err(_)) => Polled::Failed,
                Poll::Ready(Ok(response)) => Polled::Head(Box::new(response)),
            },
            State::Sending(body) => match body.as_mut().poll_frame(cx) {
                Poll::Pending => Polled::Pending,
                Poll::Ready(None) => Polled::End,
                Poll::Ready(Some(Err(_))) => Polled::Failed,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(mut data) => {
                        let data = data.copy_to_bytes(data.remaining());
                        Polled::Data(data, body.is_end_stream())
                    }
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Polled::Trailers(Box::new(trailers)),
                        // HTTP knows no third kind of frame.
                        Err(_) => Polled::Called,
                    },
                },
            },
            State::Done => Polled::Pending,
        }
    }

    /// The head of the answer leaves at once: clients wait for it (grpc/grpc-rust#515).
    fn answer(
        &self,
        core: &mut Core,
        app: &mut Handler<S, B>,
        wire: &mut Wire,
        response: Response<B>,
    ) {
        let (mut head, body) = response.into_parts();
        let ends = match catch_unwind(AssertUnwindSafe(|| body.is_end_stream())) {
            Ok(is_over) => app.is_head || is_over,
            Err(Panicked) => {
                self.counters.panicked();
                self.give_up(core, app, wire, PANICKED);
                let _ = self.drop_guarded(app, body);
                let _ = self.drop_guarded(app, head);
                return;
            }
        };
        // Replaces the future that gave the answer. That, the body and the user's types in the
        // extensions are each dropped behind a guard of its own: two panics at once would abort.
        let sending = State::Sending(Box::pin(body));
        let answered = std::mem::replace(&mut app.state, sending);
        let _ = self.drop_guarded(app, answered);
        if self.drop_guarded(app, std::mem::take(&mut head.extensions)).is_err() {
            return self.give_up(core, app, wire, PANICKED);
        }
        let pseudo = fields::pseudo_of_response(&head.status);
        let bytes = fields::list_bytes(pseudo, &head.headers);
        if bytes > wire.answer_list_bytes_max() {
            let Some(status) = status_alone(&head.headers).filter(|_| ends && app.is_grpc) else {
                return self.give_up(core, app, wire, ANSWER_TOO_LARGE);
            };
            head.headers = status;
        }
        wire.response(core, head.status, &head.headers, ends);
        if ends {
            self.dismiss(app);
        }
    }

    /// Ends the stream with a failure, of which the service's side hears as it is dropped.
    fn give_up(&self, core: &mut Core, app: &mut Handler<S, B>, wire: &mut Wire, failure: Failure) {
        app.shared.end_with(failure.code as u8);
        self.dismiss(app);
        fail(core, app.is_grpc, wire, failure);
    }

    /// Drops what is left of the service's side.
    fn dismiss(&self, app: &mut Handler<S, B>) {
        let state = std::mem::replace(&mut app.state, State::Done);
        let _ = self.drop_guarded(app, state);
    }

    fn drop_guarded<T>(&self, app: &mut Handler<S, B>, value: T) -> Result<(), Panicked> {
        let Handler { shared, inbox, .. } = app;
        let owner = Arc::as_ptr(shared);
        let dropped = lend(owner, inbox, || catch_unwind(AssertUnwindSafe(|| drop(value))));
        dropped.inspect_err(|_| self.counters.panicked())
    }
}

/// What user code gave.
enum Polled<B> {
    Pending,
    /// It went on without anything to send.
    Called,
    Head(Box<Response<B>>),
    Data(Bytes, bool),
    Trailers(Box<HeaderMap>),
    End,
    Failed,
}

/// Trailers that the peer takes: the status alone if all of them are too many.
fn bounded(trailers: Box<HeaderMap>, wire: &Wire) -> Box<HeaderMap> {
    if fields::list_bytes([], &trailers) <= wire.answer_list_bytes_max() {
        return trailers;
    }
    Box::new(status_alone(&trailers).unwrap_or_default())
}

/// What is left of headers or trailers with a gRPC status that are too many: how the stream ended, without the message.
fn status_alone(headers: &HeaderMap) -> Option<HeaderMap> {
    let status = headers.get("grpc-status").filter(|code| code.len() <= STATUS_BYTES_MAX)?;
    let mut alone = HeaderMap::new();
    alone.insert("grpc-status", status.clone());
    let kind = headers.get(CONTENT_TYPE).filter(|kind| kind.len() <= CONTENT_TYPE_BYTES_MAX);
    alone.extend(kind.map(|kind| (CONTENT_TYPE, kind.clone())));
    Some(alone)
}

/// gRPC's codes are numbers below 100.
const STATUS_BYTES_MAX: usize = 2;

/// "application/grpc" with a suffix for the format, and some room.
const CONTENT_TYPE_BYTES_MAX: usize = 64;
