//! The torture test: whole connections over an unkind pipe, everything decided by a seed.
//!
//! [`model`] is a client of raw frames that keeps exact books, [`services`] are handlers of every
//! manner, [`pipe`] is between them; after each turn of the server's connection its books are
//! audited. A failure prints its seed; `BIDI_ECHO_TORTURE_SEEDS=from..to` runs others.

mod chance;
mod desk;
mod model;
mod pipe;
mod services;

use std::future::poll_fn;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use http::Extensions;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use self::chance::Chance;
use self::model::Client;
use self::pipe::{End, Manners, pipe};
use self::services::{Ended, Stage, Theatre};
use super::connection::Connection;
use super::connection::audit::Books;
use super::counters::Counters;
use super::limits::Limits;
use super::serving::Serving;

/// Longer than any seed takes; with paused time, the end of everything that hangs.
const PATIENCE: Duration = Duration::from_secs(10_000);

/// Runs `one` for these seeds, or for those that the environment names.
fn for_seeds(by_default: Range<u64>, one: impl Fn(u64)) {
    let asked = std::env::var("BIDI_ECHO_TORTURE_SEEDS").ok();
    let seeds = asked.map_or(by_default, |asked| {
        let (from, to) = asked.split_once("..").expect("BIDI_ECHO_TORTURE_SEEDS=from..to");
        from.parse().expect("a seed")..to.parse().expect("a seed")
    });
    for seed in seeds {
        let named = NameOnPanic(seed);
        one(seed);
        drop(named);
    }
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
        // A byte at a time, a call may take an hour.
        handshake_timeout: PATIENCE,
        header_block_timeout: PATIENCE,
        connection_idle_timeout: None,
        stall_timeout: None,
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
    /// Turns, and those that found nothing to do.
    turns: Mutex<(u64, u64)>,
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
async fn watch<IO: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<IO, Serving<Stage>>,
    watched: Arc<Watched>,
    events: impl Fn() -> u64,
) {
    let mut before = events();
    let ended = poll_fn(|cx| {
        let noting = Arc::new(Noting { woken: AtomicBool::new(false), task: cx.waker().clone() });
        let waker = Waker::from(noting.clone());
        let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(&waker));
        *watched.books.lock().unwrap() = connection.audit(noting.woken.load(SeqCst));
        let after = events();
        let mut turns = watched.turns.lock().unwrap();
        turns.0 += 1;
        turns.1 += u64::from(after == before);
        before = after;
        polled
    });
    // A client that vanished is an error of the byte stream; it is no failure of the server.
    let _ = ended.await;
    drop(connection);
    *watched.books.lock().unwrap() = Books::default();
}

/// One seed's life of a connection, from preface to its last byte.
async fn torture(seed: u64, pause_one_in: usize, unit: Duration) {
    let mut chance = Chance::new(seed);
    let manners = Manners::random(&mut chance, pause_one_in, unit);
    let (server_end, client_end) = pipe(manners, &mut chance);
    let limits = limits(&mut chance);
    let call_bytes_max = call_bytes_max(&manners, &limits);
    let theatre = Theatre::new(&mut chance, unit);
    let counters = Arc::new(Counters::default());
    let mut client = Client::new(client_end, &mut chance, call_bytes_max, unit);

    let watched = Arc::new(Watched::default());
    let serving = tokio::spawn(serve(server_end, limits, &theatre, &counters, watched.clone()));
    let mut serving = pin!(serving);
    let running = timeout(PATIENCE, async {
        tokio::select! {
            biased;
            stays = client.run() => stays,
            ended = &mut serving => panic!("the server ended first: {ended:?}; {}", client.state()),
        }
    });
    let stays = running.await;
    let stays = stays.unwrap_or_else(|_| panic!("hangs; {watched:?}; {}", client.state()));

    if stays {
        client.calls.iter().for_each(|call| call.check());
        let expected = Books { recv_open: client.send_window, ..*watched.books.lock().unwrap() };
        let is_settled = || {
            let books = *watched.books.lock().unwrap();
            let is_empty = (books.streams, books.buffered, books.output_bytes) == (0, 0, 0);
            is_empty && books == expected
        };
        let story = || format!("{watched:?}, but {expected:?}; {}", client.state());
        until(is_settled, || format!("the server's books are the client's: {}", story())).await;
        check_requests(&client, &theatre);
        let goes = client.farewell;
        timeout(PATIENCE, client.leave()).await.unwrap_or_else(|_| panic!("{goes:?}: stays"));
    } else {
        drop(client);
    }
    timeout(PATIENCE, serving).await.expect("the server's connection ends").unwrap();
    until(|| theatre.alive.load(SeqCst) == 0, || "no handler is left".into()).await;
    let counted = counters.snapshot();
    assert_eq!(counted.streams_opened, counted.streams_closed);
    let (turns, idle) = *watched.turns.lock().unwrap();
    assert!(idle <= 50 + turns / 2, "{idle} of {turns} turns found nothing to do");
}

fn serve(
    io: End,
    limits: Limits,
    theatre: &Arc<Theatre>,
    counters: &Arc<Counters>,
    watched: Arc<Watched>,
) -> impl Future<Output = ()> + Send + use<> {
    let service = Stage::new(theatre);
    let serving = Serving { service, extensions: Extensions::new(), counters: counters.clone() };
    let (operations, theatre) = (io.operations.clone(), theatre.clone());
    let connection = Connection::new(io, serving, Arc::new(limits), None, counters.clone());
    watch(connection, watched, move || operations.load(SeqCst) + theatre.polls.load(SeqCst))
}

/// What the handlers saw must be what the client did.
fn check_requests(client: &Client, theatre: &Theatre) {
    let seen = theatre.seen.lock().unwrap();
    for call in &client.calls {
        let Some(seen) = seen.get(&call.number) else { continue };
        assert!(seen.bytes <= call.sent, "{seen:?} of {call:?}");
        if seen.ended == Some(Ended::Clean) {
            assert!(call.client_ended, "a clean end that was none: {seen:?} of {call:?}");
            let all = call.plan.request_bytes;
            assert_eq!(seen.bytes, all, "a clean end before all of it: {seen:?} of {call:?}");
        }
        if call.plan.kind.is_echo() && !call.reset_sent && !call.refused {
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

#[test]
fn every_stream_that_is_not_reset_is_exact_and_ends() {
    for_seeds(0..200, |seed| {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(torture(seed, 8, Duration::from_millis(1)));
    });
}

#[test]
fn every_stream_that_is_not_reset_is_exact_and_ends_on_four_threads() {
    for_seeds(0..50, |seed| {
        let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build();
        let (real, torture) =
            (Duration::from_secs(60), torture(seed, 1_000, Duration::from_micros(20)));
        runtime.unwrap().block_on(async { timeout(real, torture).await.expect("hangs") });
    });
}
