//! The torture test: whole connections over an unkind pipe, everything decided by a seed.
//!
//! [`model`] is a client and [`host`] a server of raw frames that keep exact books, [`services`] are
//! handlers and [`calls`] exchanges of every manner, [`pipe`] is between them; after each turn of a
//! connection of ours its books are audited. A failure prints its seed;
//! `BIDI_ECHO_TORTURE_SEEDS=from..to` runs others.

mod calls;
mod chance;
mod cuts;
mod desk;
mod host;
mod model;
mod oracle;
mod pipe;
mod services;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tower_service::Service;

use self::calls::{Caller, Calls, Plan};
use self::chance::Chance;
use self::host::{Host, Left};
use self::model::{Call, Client, Drained};
use self::pipe::{End, Manners, pipe};
use self::services::{Ended, Stage, Theatre};
use super::client::{self, client_limits};
use super::connection::audit::Books;
use super::connection::{Connection, Memory, READ_BYTES, Role, Signals};
use super::counters::Counters;
use super::frame::ErrorCode;
use super::limits::Limits;
use super::memory::{Held, Share, Total};
use super::placement::{OnTasks, POLLS_MAX, Placement, Tasks};
use super::serving::Serving;
use super::stream::{BodyError, RecvBody};
use crate::drain::Drain;

/// Longer than any seed takes; with paused time, the end of everything that hangs.
const PATIENCE: Duration = Duration::from_secs(10_000);

/// A server that was cut off is gone within this, on a clock that moves only while nothing else does.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Far longer than any honest pause: whoever ends something for a stall is wrong.
const STALL: Duration = Duration::from_secs(50);

/// Of a connection's turns, so many percent may be idle ones that it had asked for, besides [`IDLE_TURNS`]; most were 30.
const IDLE_PERCENT_MAX: u64 = 40;

/// See [`IDLE_PERCENT_MAX`]: short lives.
const IDLE_TURNS: u64 = 20;

/// So many of them may come in a row; most were 8.
const IDLE_IN_A_ROW_MAX: u64 = 25;

/// On four threads a row of them, however many, may last as long as another thread is kept from its core: while one stands in the
/// midst of waking the connection, each turn begins another, because who registers with an `AtomicWaker` meanwhile is woken at
/// once. A row was longer than 25 in about one seed of 15,000, and in all of its turns somebody was waking.
const IDLE_ROW_MAX: Duration = Duration::from_secs(5);

/// Runs `one` for these seeds, or for those that the environment names.
fn for_seeds(by_default: Range<u64>, one: impl Fn(u64)) {
    for seed in seeds(by_default) {
        let named = NameOnPanic(seed);
        one(seed);
        drop(named);
    }
}

/// Seeds at the same time on four threads each, where a seed waits in real time: for a second when all is quiet.
const AT_ONCE: usize = 16;

/// Runs `one` for such seeds, [`AT_ONCE`] of them at a time, each on threads of its own.
fn for_seeds_on_four_threads(by_default: Range<u64>, one: impl AsyncFn(u64, Rig) + Sync) {
    let seeds = Mutex::new(seeds(by_default));
    let some = || {
        loop {
            let next = seeds.lock().unwrap().next();
            let Some(seed) = next else { return };
            let named = NameOnPanic(seed);
            on_four_threads(async |rig| one(seed, rig).await);
            drop(named);
        }
    };
    std::thread::scope(|scope| {
        (0..AT_ONCE).for_each(|_| drop(scope.spawn(some)));
    });
}

fn seeds(by_default: Range<u64>) -> Range<u64> {
    let asked = std::env::var("BIDI_ECHO_TORTURE_SEEDS").ok();
    asked.map_or(by_default, |asked| {
        let (from, to) = asked.split_once("..").expect("BIDI_ECHO_TORTURE_SEEDS=from..to");
        from.parse().expect("a seed")..to.parse().expect("a seed")
    })
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {0}: BIDI_ECHO_TORTURE_SEEDS={0}..{1}", self.0, self.0 + 1);
        }
    }
}

fn limits(chance: &mut Chance) -> Limits {
    let window = chance.pick(&[1, 10, 100, 5_000, 65_535, 65_536]);
    Limits {
        max_concurrent_streams: chance.pick(&[1, 2, 10, 100]),
        stream_flow_window_bytes: window,
        stream_flow_window_bytes_max: window.max(chance.pick(&[1, 1_000, 65_536, 1 << 20])),
        connection_flow_window_bytes: chance.pick(&[100, 5_000, 65_535, 100_000, 16 << 20]),
        output_bytes_max: chance.pick(&[1, 1_000, 20_000, 256 << 10]),
        pending_bytes_max: chance.pick(&[1, 1_000, 20_000, 8 << 20]),
        control_bytes_max: chance.pick(&[1, 100, 64 << 10]),
        stall_timeout: chance.pick(&[None, Some(STALL)]),
        // A byte at a time, a call may take an hour.
        handshake_timeout: PATIENCE,
        header_block_timeout: PATIENCE,
        connection_idle_timeout: None,
        ..Limits::default()
    }
}

/// Bytes of one call that such a pipe and such windows move in bearable time.
fn call_bytes_max(manners: &Manners, limits: &Limits) -> usize {
    let window = limits.stream_flow_window_bytes.min(limits.connection_flow_window_bytes);
    match manners.room_bytes.min(manners.at_once_bytes).min(window as usize) {
        0..=10 => 100,
        11..=1_000 => 2_000,
        _ => 70_000,
    }
}

/// What the test sees of a server's connection while it lives.
#[derive(Debug, Default)]
struct Watched {
    books: Mutex<Books>,
    turns: Mutex<Turns>,
    /// See [`Rig`].
    is_paused: bool,
}

/// A connection's turns.
#[derive(Debug, Default)]
struct Turns {
    all: u64,
    /// Those that the connection had asked for, and in which nothing happened: no byte moved, nobody's code was called, no
    /// stream began or was let go.
    idle: u64,
    idle_in_a_row: u64,
    /// Since when the last ones are such.
    row_since: Option<Instant>,
    /// The last one asked for another.
    has_asked: bool,
}

impl Turns {
    /// One more, which asks for another one or not.
    fn note(&mut self, nothing_happened: bool, asks: bool, is_paused: bool) {
        let is_idle = nothing_happened && self.has_asked;
        self.all += 1;
        self.idle += u64::from(is_idle);
        self.idle_in_a_row = if is_idle { self.idle_in_a_row + 1 } else { 0 };
        self.row_since = self.row_since.filter(|_| is_idle).or(is_idle.then(Instant::now));
        self.has_asked = asks;
        let spins = match is_paused {
            true => self.idle_in_a_row > IDLE_IN_A_ROW_MAX,
            false => self.row_since.is_some_and(|since| since.elapsed() > IDLE_ROW_MAX),
        };
        assert!(!spins, "spins: {self:?}");
    }

    /// At the end of a life.
    fn check(&self, is_paused: bool) {
        let max = IDLE_TURNS + self.all * IDLE_PERCENT_MAX / 100;
        assert!(self.idle <= max || !is_paused, "spins: {self:?}");
    }
}

/// A waker that notes whether it woke.
struct Noting {
    woken: AtomicBool,
    task: Waker,
}

impl Wake for Noting {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, SeqCst);
        self.task.wake_by_ref();
    }
}

/// Polls the connection to its end, and audits it after each turn.
async fn watch<IO: AsyncRead + AsyncWrite + Unpin, R: Role>(
    mut connection: Connection<IO, R>,
    watched: Arc<Watched>,
    events: impl Fn() -> u64,
) -> Instant {
    let mut before = (events(), 0);
    let ended = poll_fn(|cx| {
        let noting = Arc::new(Noting { woken: AtomicBool::new(false), task: cx.waker().clone() });
        let waker = Waker::from(noting.clone());
        let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(&waker));
        let is_woken = polled.is_ready() || noting.woken.load(SeqCst);
        *watched.books.lock().unwrap() = connection.audit(is_woken);
        let after = (events(), connection.kept());
        let mut turns = watched.turns.lock().unwrap();
        let is_idle = after == before;
        turns.note(is_idle, is_woken || connection.goes_on(), watched.is_paused);
        before = after;
        polled
    });
    // A peer that vanished is an error of the byte stream; it is no failure of the connection.
    let _ = ended.await;
    drop(connection);
    *watched.books.lock().unwrap() = Books::default();
    Instant::now()
}

/// Where time and chance come from: tokio's paused clock, or four threads.
#[derive(Clone, Copy, Debug)]
struct Rig {
    /// See [`Manners::pause_one_in`].
    pause_one_in: usize,
    unit: Duration,
    /// The clock moves only while nothing else does, so that it may be held to account.
    is_paused: bool,
}

/// One server under torture: its connection's task, and all that is known of it.
struct Server {
    drain: Drain,
    drained: Drained,
    theatre: Arc<Theatre>,
    counters: Arc<Counters>,
    watched: Arc<Watched>,
    /// Ends with the connection, and says when.
    task: JoinHandle<Instant>,
    /// When it was cut off.
    cut_off_at: Arc<Mutex<Option<Instant>>>,
    /// Its tasks, if handlers run on them.
    tasks: Option<Arc<Tasks>>,
    /// The other connections' part of its memory, if that is scarce.
    neighbours: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `io` with limits, placement and a drain that `chance` decides.
    fn new(io: End, limits: Limits, chance: &mut Chance, bytes_max: usize, rig: Rig) -> Self {
        let theatre = Theatre::new(chance, rig);
        let (drain, counters) = (Drain::default(), Arc::<Counters>::default());
        let watched = Arc::new(Watched { is_paused: rig.is_paused, ..Watched::default() });
        let service = Stage::new(&theatre);
        let is_scarce = chance.one_in(3);
        let bytes_max = if is_scarce { scarce_bytes(bytes_max) } else { usize::MAX };
        let total = Total::new(bytes_max, counters.clone());
        let crowd = chance.pick(&[10, 100, 1_000]);
        let neighbours = is_scarce.then(|| {
            let shares = (0..crowd).map(|_| Share::new(total.clone())).collect();
            tokio::spawn(come_and_go(shares, bytes_max / 2, chance.fork(), rig.unit))
        });
        let memory = Memory { share: Share::new(total), held: Held::new(limits.held_bytes_max) };
        let most = limits.max_concurrent_streams;
        let limits = (limits, memory, chance.one_in(2));
        let (task, tasks) = match chance.pick(&[Placement::Inline, Placement::Task]) {
            Placement::Inline => {
                (serve(io, (service, None), limits, &drain, &counters, &watched, &theatre), None)
            }
            Placement::Task => {
                let service = OnTasks::new(service, counters.clone(), most);
                let tasks = Some(service.tasks());
                let service = (service, tasks.clone());
                (serve(io, service, limits, &drain, &counters, &watched, &theatre), tasks)
            }
        };
        let drained = Drained::random(chance);
        let (to_drain, cut_off_at) = (drain.clone(), Arc::<Mutex<_>>::default());
        let (mut chance, noted) = (chance.fork(), cut_off_at.clone());
        tokio::spawn(async move {
            for step in [Drained::Left, Drained::Stopped, Drained::CutOff] {
                if step > drained {
                    return;
                }
                let most = chance.pick(&[1, 30, 300]);
                let units = chance.below(most);
                sleep(rig.unit * u32::try_from(units).expect("small")).await;
                match step {
                    Drained::Left => to_drain.leave.set(),
                    Drained::Stopped => to_drain.stop_reading.set(),
                    _ => {
                        *noted.lock().unwrap() = Some(Instant::now());
                        to_drain.cut_off.set();
                    }
                }
            }
        });
        Server { drain, drained, theatre, counters, watched, task, cut_off_at, tasks, neighbours }
    }

    /// Waits for the end, and looks whether anything is left.
    async fn over(self, rig: Rig) {
        let ended = timeout(PATIENCE, self.task).await.expect("the server's connection ends");
        let (ended, cut_off_at) = (ended.unwrap(), *self.cut_off_at.lock().unwrap());
        let late = cut_off_at.map_or(Duration::ZERO, |at| ended.saturating_duration_since(at));
        assert!(!rig.is_paused || late < LINGER_MAX, "cut off, and there for {late:?} more");
        let alive = || self.theatre.alive.load(SeqCst);
        until(|| alive() == 0, || format!("no handler is left, but {}", alive())).await;
        timeout(PATIENCE, self.drain.cut_off.unwatched())
            .await
            .expect("nobody waits for the drain");
        let places = || self.tasks.as_ref().map_or(POLLS_MAX, |tasks| tasks.free_places());
        until(|| places() == POLLS_MAX, || format!("all places are free, but {}", places())).await;
        if let Some(neighbours) = self.neighbours {
            neighbours.abort();
            let _ = neighbours.await;
        }
        let counted = self.counters.snapshot();
        assert_eq!(counted.streams_opened, counted.streams_closed);
        assert_eq!(counted.buffered_bytes, 0, "nothing is kept");
        let violations = self.theatre.violations.lock().unwrap();
        assert!(violations.is_empty(), "{violations:#?}");
        self.watched.turns.lock().unwrap().check(self.watched.is_paused);
    }
}

/// So much memory for a server that its connection, whose calls have at most `bytes_max` each way, never has to end for it,
/// if all others keep half.
fn scarce_bytes(bytes_max: usize) -> usize {
    let calls = 30 * 2 * (bytes_max + (1 << 10));
    2 * (calls + READ_BYTES + (64 << 10))
}

/// The neighbours of a connection: now they keep so many bytes, now nothing.
async fn come_and_go(mut shares: Vec<Share>, bytes: usize, mut chance: Chance, unit: Duration) {
    loop {
        let _ = shares[0].is(if chance.one_in(2) { bytes } else { 0 });
        let most = chance.pick(&[10, 1_000]);
        sleep(unit * u32::try_from(chance.between(1, most)).expect("small")).await;
    }
}

fn serve<S, B>(
    io: End,
    (service, tasks): (S, Option<Arc<Tasks>>),
    (limits, memory, is_hurried): (Limits, Memory, bool),
    drain: &Drain,
    counters: &Arc<Counters>,
    watched: &Arc<Watched>,
    theatre: &Arc<Theatre>,
) -> JoinHandle<Instant>
where
    S: Service<Request<RecvBody>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
{
    let serving =
        Serving { service, extensions: Extensions::new(), counters: counters.clone(), tasks };
    let signals = Signals {
        leave: drain.leave.watch(),
        stop: drain.stop_reading.watch(),
        cut_off: drain.cut_off.watch(),
    };
    let (events, theatre) = (io.events.clone(), theatre.clone());
    let connection =
        Connection::new(io, serving, Arc::new(limits), Some(signals), counters.clone());
    let mut connection = connection.with_memory(memory);
    connection.is_hurried = is_hurried;
    let events = move || events.load(SeqCst) + theatre.polls.load(SeqCst);
    tokio::spawn(watch(connection, watched.clone(), events))
}

/// One seed's life of a server's connection, from preface to its last byte.
async fn torture_server(seed: u64, rig: Rig) {
    let mut chance = Chance::new(seed);
    let manners = Manners::random(&mut chance, rig.pause_one_in, rig.unit);
    let (server_end, client_end) = pipe(manners, &mut chance);
    let limits = limits(&mut chance);
    let call_bytes_max = call_bytes_max(&manners, &limits);
    let mut server = Server::new(server_end, limits, &mut chance, call_bytes_max, rig);
    let (drained, is_scarce) = (server.drained, server.neighbours.is_some());
    let goes = (drained, is_scarce);
    let mut client = Client::new(client_end, &mut chance, call_bytes_max, rig.unit, goes);

    let running = timeout(PATIENCE, async {
        tokio::select! {
            biased;
            stays = client.run() => stays,
            ended = &mut server.task, if drained == Drained::Not => {
                panic!("the server ended first: {ended:?}; {}", client.state())
            }
        }
    });
    let stays = running.await;
    let stays = stays.unwrap_or_else(|_| panic!("hangs; {:?}; {}", server.watched, client.state()));

    if stays {
        if drained == Drained::Not {
            let watched = &server.watched;
            let books = || *watched.books.lock().unwrap();
            let expected = Books {
                recv_open: client.send_window,
                send_room: client.recv_window,
                ..Books::default()
            };
            let story = || format!("{:?}, but {expected:?}; {}", books(), client.state());
            until(
                || books() == expected,
                || format!("the server's books are the client's: {}", story()),
            )
            .await;
        }
        check_calls(&client, &server.theatre, drained);
    }
    let theatre = server.theatre.clone();
    let calls = if stays {
        let goes = client.farewell;
        timeout(PATIENCE, client.leave()).await.unwrap_or_else(|_| panic!("{goes:?}: stays"))
    } else {
        client.vanish()
    };
    server.over(rig).await;
    check_requests(&calls, &theatre, drained, !stays);
}

/// What came back must be what the plan and the drain say.
fn check_calls(client: &Client, theatre: &Theatre, drained: Drained) {
    if drained == Drained::CutOff {
        // Whatever came was right; how much of it had time to come is nobody's to say.
        return;
    }
    let seen = theatre.seen.lock().unwrap();
    for call in &client.calls {
        let taken = seen.get(&call.number).map_or(0, |seen| seen.bytes);
        let is_whole = drained < Drained::Stopped;
        call.check(if is_whole { call.plan.request_bytes } else { taken });
    }
}

/// What the handlers saw, now that none is left, must be what the client did. `is_lost`: it vanished.
fn check_requests(calls: &[Call], theatre: &Theatre, drained: Drained, is_lost: bool) {
    let seen = theatre.seen.lock().unwrap();
    for call in calls {
        let Some(seen) = seen.get(&call.number) else { continue };
        assert!(seen.bytes <= call.sent, "{seen:?} of {call:?}");
        if seen.ended == Some(Ended::Clean) {
            assert!(call.has_ended(), "a clean end that was none: {seen:?} of {call:?}");
            let all = call.plan.request_bytes;
            assert_eq!(seen.bytes, all, "a clean end before all of it: {seen:?} of {call:?}");
        }
        if let Some(Ended::Broken(error)) = &seen.ended {
            let is_explained = call.explains(error, drained, is_lost);
            assert!(is_explained, "told of what did not happen: {seen:?} of {call:?}");
        }
        assert!(!seen.is_read_on || seen.ended.is_some(), "not told how {call:?} ended");
        let is_whole = drained < Drained::Stopped && !is_lost && !call.reset_sent && !call.refused;
        if call.plan.kind.is_echo() && is_whole {
            assert_eq!(seen.ended, Some(Ended::Clean), "{call:?}");
        }
    }
}

async fn until(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    for _ in 0..5_000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {}", what());
}

/// One client under torture: its connection's task, and the calls that it was asked for.
struct Callers {
    watched: Arc<Watched>,
    task: JoinHandle<Instant>,
    calls: Calls,
    /// Opens the calls, and keeps the client's handle until it is aborted, or not at all.
    opener: JoinHandle<()>,
    keeps_handle: bool,
}

impl Callers {
    /// Calls over `io`, at random moments.
    fn new(io: End, limits: Limits, chance: &mut Chance, bytes_max: usize, rig: Rig) -> Self {
        let mut chance = chance.fork();
        let watched = Arc::new(Watched { is_paused: rig.is_paused, ..Watched::default() });
        let events = io.events.clone();
        let (client, mut connection) = client::Client::connect(io, limits);
        connection.is_hurried = chance.one_in(2);
        let count = chance.pick(&[1, 3, 10, 30]);
        let (mut calls, mut to_open) = (Calls::new(), Vec::new());
        for number in 0..count {
            let plan = Plan::random(&mut chance, bytes_max);
            let (request, caller, heard) = Caller::new(number, plan, &mut chance, rig.unit);
            calls.push(heard);
            to_open.push((request, caller));
        }
        let heard = calls.clone();
        let called = move || heard.iter().map(|call| call.lock().unwrap().calls).sum::<u64>();
        let events = move || events.load(SeqCst) + called();
        let task = tokio::spawn(watch(connection, watched.clone(), events));
        let keeps_handle = chance.one_in(2);
        let opener = tokio::spawn(async move {
            for (request, caller) in to_open {
                let units = if chance.one_in(2) { 0 } else { chance.below(20) };
                sleep(rig.unit * u32::try_from(units).expect("small")).await;
                if let Err(mut refused) = client.open(request, caller) {
                    client::Exchange::end(
                        &mut refused,
                        Err(&BodyError::ConnectionLost),
                        std::time::Instant::now(),
                    );
                }
            }
            if keeps_handle {
                std::future::pending::<()>().await;
            }
            drop(client);
        });
        Callers { watched, task, calls, opener, keeps_handle }
    }

    /// Waits for the end, and looks whether anything is left.
    async fn over(self) {
        let Callers { watched, task, calls, opener, .. } = self;
        timeout(PATIENCE, task).await.expect("the client's connection ends").unwrap();
        let is_gone = |call: &Arc<Mutex<calls::Heard>>| Arc::strong_count(call) == 1;
        let all_gone = || calls.iter().all(is_gone);
        until(all_gone, || format!("no exchange is left: {calls:?}")).await;
        opener.abort();
        for call in &calls {
            let call = call.lock().unwrap();
            assert!(call.ended.is_some(), "was not told of its end: {call:?}");
        }
        watched.turns.lock().unwrap().check(watched.is_paused);
    }
}

/// A client's limits, as far as windows go those of a server.
fn limits_of_client(chance: &mut Chance) -> Limits {
    let Limits {
        stream_flow_window_bytes,
        stream_flow_window_bytes_max,
        connection_flow_window_bytes,
        output_bytes_max,
        control_bytes_max,
        handshake_timeout,
        header_block_timeout,
        stall_timeout,
        ..
    } = limits(chance);
    Limits {
        stream_flow_window_bytes_max,
        output_bytes_max,
        control_bytes_max,
        handshake_timeout,
        header_block_timeout,
        stall_timeout,
        ..client_limits(stream_flow_window_bytes, connection_flow_window_bytes)
    }
}

/// One seed's life of a client's connection.
async fn torture_client(seed: u64, rig: Rig) {
    let mut chance = Chance::new(seed);
    let manners = Manners::random(&mut chance, rig.pause_one_in, rig.unit);
    let (server_end, client_end) = pipe(manners, &mut chance);
    let limits = limits_of_client(&mut chance);
    let bytes_max = call_bytes_max(&manners, &limits);
    let client = Callers::new(client_end, limits, &mut chance, bytes_max, rig);
    let mut host = Host::new(server_end, &mut chance, client.calls.len(), bytes_max, rig.unit);

    let left = timeout(PATIENCE, host.run()).await;
    let story = |host: &Host| format!("{:?}; {}; {:?}", client.watched, host.state(), client.calls);
    let left = left.unwrap_or_else(|_| panic!("hangs; {}", story(&host)));
    match left {
        Left::Vanished => drop(host),
        Left::Closed => check_streams(&client, &host).await,
        Left::Quiet => {
            assert!(client.keeps_handle && host.last_id.is_none(), "stays: {}", story(&host));
            let books = || *client.watched.books.lock().unwrap();
            let expected = Books {
                recv_open: host.send_window,
                send_room: host.recv_window,
                ..Books::default()
            };
            until(
                || books() == expected,
                || format!("the client's books are the server's, {expected:?}: {}", story(&host)),
            )
            .await;
            check_streams(&client, &host).await;
            client.opener.abort();
            timeout(PATIENCE, host.see_off()).await.expect("the client closes");
        }
    }
    client.over().await;
}

/// What the calls heard must be what the server did.
async fn check_streams(client: &Callers, host: &Host) {
    let streams: HashMap<usize, &host::Stream> =
        host.streams.values().map(|stream| (stream.number, stream)).collect();
    // A call that comes after a GOAWAY is told so when it comes.
    let all_ended = || client.calls.iter().all(|call| call.lock().unwrap().ended.is_some());
    until(all_ended, || format!("every call ends: {:?}; {}", client.calls, host.state())).await;
    for call in &client.calls {
        let call = call.lock().unwrap();
        let ended = call.ended.as_ref().expect("looked after above");
        let Some(stream) = streams.get(&call.number) else {
            let is_told = matches!(
                ended,
                Err(BodyError::GoAway(_)
                    | BodyError::Refused
                    | BodyError::EndedByPeer { .. }
                    | BodyError::ConnectionLost)
            );
            // One that was cancelled may have been on its way.
            let is_told = is_told || call.was_cancelled();
            assert!(host.last_id.is_some() && is_told, "never came: {call:?}");
            continue;
        };
        let story = || format!("{call:?}; {stream:?}");
        assert!(stream.received <= call.sent, "{}", story());
        if call.was_cancelled() {
            assert!(stream.client_reset && call.received <= stream.sent, "{}", story());
            continue;
        }
        if stream.client_ended {
            assert_eq!(stream.received, call.plan.request_bytes, "{}", story());
        }
        if stream.given_up {
            assert_eq!(*ended, Err(BodyError::Refused), "{}", story());
            continue;
        }
        assert_eq!(call.received, stream.sent, "{}", story());
        match (stream.ended, stream.reset, ended) {
            (true, _, Ok(trailers)) if stream.trailers => {
                assert_eq!(trailers["given"], stream.sent.to_string(), "{}", story());
            }
            (true, _, Ok(trailers)) => assert!(trailers.is_empty(), "{}", story()),
            (false, Some(code), Err(BodyError::Reset(told))) if code == *told => {}
            _ => panic!("{}", story()),
        }
    }
}

/// One seed's life of a connection whose ends are both ours.
async fn torture_both(seed: u64, rig: Rig) {
    let mut chance = Chance::new(seed);
    let manners = Manners::random(&mut chance, rig.pause_one_in, rig.unit);
    let (server_end, client_end) = pipe(manners, &mut chance);
    let control_stall_timeout = rig.unit * 50_000;
    let of_server = Limits { control_stall_timeout, ..limits(&mut chance) };
    let of_client = Limits { control_stall_timeout, ..limits_of_client(&mut chance) };
    // Two that both read nothing while replies wait are waiting for each other, until one gives up.
    let may_stall = of_server.control_bytes_max.max(of_client.control_bytes_max) <= 100;
    let streams_max = of_server.max_concurrent_streams as usize;
    let bytes_max = call_bytes_max(&manners, &of_server).min(call_bytes_max(&manners, &of_client));
    let server = Server::new(server_end, of_server, &mut chance, bytes_max, rig);
    let client = Callers::new(client_end, of_client, &mut chance, bytes_max, rig);
    let drained = server.drained;

    let all_ended = || client.calls.iter().all(|call| call.lock().unwrap().ended.is_some());
    let story = || format!("{:?}; {:?}; {:?}", server.watched, client.watched, client.calls);
    let ending = timeout(PATIENCE, async {
        while !all_ended() {
            sleep(rig.unit).await;
        }
    });
    ending.await.unwrap_or_else(|_| panic!("hangs, {drained:?}; {}", story()));
    let stalled = "peer_does_not_read";
    let gave_up = |call: &Arc<Mutex<calls::Heard>>| {
        call.lock().unwrap().ended == Some(Err(BodyError::Ended(stalled)))
    };
    let is_stalled = client.calls.iter().any(gave_up)
        || server.counters.snapshot().goaways.contains_key(stalled);
    assert!(may_stall || !is_stalled, "{}", story());
    if drained == Drained::Not && client.keeps_handle && !is_stalled {
        let books = |watched: &Watched| *watched.books.lock().unwrap();
        let are_one = || {
            let (ours, theirs) = (books(&server.watched), books(&client.watched));
            let expected = |of: Books| Books {
                recv_open: of.send_room,
                send_room: of.recv_open,
                ..Books::default()
            };
            ours == expected(theirs) && theirs == expected(ours)
        };
        until(are_one, || format!("both keep the same books: {}", story())).await;
    }
    for call in &client.calls {
        let call = call.lock().unwrap();
        let is_gone = |error: &BodyError| {
            matches!(
                error,
                BodyError::GoAway(_)
                    | BodyError::Refused
                    | BodyError::Reset(ErrorCode::REFUSED_STREAM)
                    | BodyError::EndedByPeer { .. }
                    | BodyError::ConnectionLost
            )
        };
        match &call.ended {
            // Whatever came was right; how much of it had time to come is nobody's to say.
            _ if drained == Drained::CutOff || is_stalled || call.was_cancelled() => {}
            // Opened before the client knew the limit, or after it was told to go.
            Some(Err(BodyError::Reset(ErrorCode::REFUSED_STREAM)))
                if client.calls.len() > streams_max || server.neighbours.is_some() =>
            {
                assert_eq!(call.status, None, "answered, and then refused: {call:?}");
            }
            Some(Err(error)) if drained > Drained::Not && is_gone(error) => {
                assert_eq!(call.status, None, "answered, and then given up: {call:?}");
            }
            _ => {
                let seen = server.theatre.seen.lock().unwrap();
                let taken = seen.get(&call.number).map_or(0, |seen| seen.bytes);
                let is_whole = drained < Drained::Stopped;
                call.check(if is_whole { call.plan.request_bytes } else { taken });
            }
        }
    }
    client.opener.abort();
    client.over().await;
    server.over(rig).await;
}

/// Runs a seed on tokio's paused clock.
fn on_paused_time(torture: impl AsyncFn(Rig)) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let rig = Rig { pause_one_in: 8, unit: Duration::from_millis(1), is_paused: true };
    runtime.unwrap().block_on(torture(rig));
}

/// Runs a seed on four worker threads.
fn on_four_threads(torture: impl AsyncFn(Rig)) {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let rig = Rig { pause_one_in: 1_000, unit: Duration::from_micros(20), is_paused: false };
    let real = Duration::from_secs(60);
    runtime.unwrap().block_on(async { timeout(real, torture(rig)).await.expect("hangs") });
}

#[test]
fn a_server_is_exact_and_leaves_nothing() {
    for_seeds(0..200, |seed| on_paused_time(async |rig| torture_server(seed, rig).await));
}

#[test]
fn a_server_is_exact_and_leaves_nothing_on_four_threads() {
    for_seeds_on_four_threads(0..200, torture_server);
}

#[test]
fn a_client_is_exact_and_leaves_nothing() {
    for_seeds(0..200, |seed| on_paused_time(async |rig| torture_client(seed, rig).await));
}

#[test]
fn a_client_is_exact_and_leaves_nothing_on_four_threads() {
    for_seeds_on_four_threads(0..200, torture_client);
}

#[test]
fn client_and_server_keep_the_same_books() {
    for_seeds(0..200, |seed| on_paused_time(async |rig| torture_both(seed, rig).await));
}

#[test]
fn client_and_server_keep_the_same_books_on_four_threads() {
    for_seeds_on_four_threads(0..200, torture_both);
}
