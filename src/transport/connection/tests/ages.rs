//! Keepalive pings and the age of a connection, on paused time.
//!
//! The connection is polled as a task is: when its own timer or its client wakes it, and not before.

use futures_util::future::join_all;
use tokio::time::timeout;

use super::*;
use crate::transport::limits::{Age, Keepalive};

/// tokio's timers know milliseconds, and round up.
const TICK: Duration = Duration::from_millis(2);

const INTERVAL: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(7);

const AGE: Duration = Duration::from_secs(1_000);
const SOONEST: Duration = Duration::from_secs(900);
const LATEST: Duration = Duration::from_secs(1_100);
const GRACE: Duration = Duration::from_secs(300);

impl Probe {
    /// Lets time pass.
    async fn pass(&mut self, time: Duration) {
        if self.is_over {
            tokio::time::sleep(time).await;
        } else {
            self.is_over = timeout(time, &mut self.connection).await.is_ok();
        }
    }

    /// The frames of one kind that came out, in order: stream and payload.
    fn heard(&self, kind: u8) -> Vec<(u32, Vec<u8>)> {
        inside::frames(&self.connection.io.got)
            .filter(|(found, ..)| *found == kind)
            .map(|(_, _, stream, payload)| (stream, payload.to_vec()))
            .collect()
    }

    /// Keepalive pings that came out.
    fn pings(&self) -> usize {
        let pings = self.heard(kind::PING);
        pings.iter().filter(|(_, opaque)| opaque[..] == PING_KEEPALIVE).count()
    }

    /// Code and reason of the last GOAWAY.
    fn farewell(&self) -> Option<(ErrorCode, String)> {
        let (_, payload) = self.heard(kind::GOAWAY).pop()?;
        let code = u32::from_be_bytes(*payload[4..].first_chunk().unwrap());
        Some((ErrorCode(code), String::from_utf8(payload[8..].to_vec()).unwrap()))
    }

    /// `grpc-status` of a stream that ended.
    fn status(&self, stream: u32) -> Option<String> {
        let mut decoder = inside::HeaderDecoder::default();
        let mut status = None;
        for (found, block) in self.heard(kind::HEADERS) {
            let note = |name: &[u8], value: &[u8], _| {
                if (found, name) == (stream, b"grpc-status") {
                    status = Some(String::from_utf8(value.to_vec()).unwrap());
                }
            };
            decoder.decode(&block, note).unwrap();
        }
        status
    }

    /// Lets time pass until it is told to go, and less than a second more. Out: how old it was, in
    /// seconds, rounded up.
    async fn is_told_to_go(&mut self) -> u64 {
        for age in 1.. {
            self.pass(Duration::from_secs(1)).await;
            if !self.goaways().is_empty() {
                return age;
            }
        }
        unreachable!("it is told, or time goes on")
    }

    /// Whether what is said on the stream comes back.
    async fn echoes(&mut self, stream: u32) -> bool {
        let before = self.heard(kind::DATA).len();
        self.say(kind::DATA, 0, stream, b"still there?");
        self.pass(TICK).await;
        self.heard(kind::DATA)[before..] == [(stream, b"still there?".to_vec())]
    }
}

fn kept_alive() -> Probe {
    let keepalive = Some(Keepalive { interval: INTERVAL, timeout: PATIENCE });
    Probe::new(Limits { keepalive, connection_idle_timeout: None, ..Limits::default() })
}

/// A connection that ages, with an open stream: number 1.
fn aging(grace: Option<Duration>) -> Probe {
    let age = Some(Age { max: AGE, grace });
    let mut probe = Probe::new(Limits { age, ..Limits::default() });
    probe.acknowledge();
    probe.open(1, &[("content-type", "application/grpc")]);
    probe
}

#[tokio::test(start_paused = true)]
async fn a_ping_leaves_after_silence() {
    let mut probe = kept_alive();
    probe.pass(INTERVAL - TICK).await;
    assert_eq!(probe.pings(), 0);
    // Whatever the client says, it is alive.
    probe.acknowledge();
    probe.pass(INTERVAL - TICK).await;
    assert_eq!(probe.pings(), 0);
    probe.pass(2 * TICK).await;
    assert_eq!(probe.pings(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_a_ping_is_told_why_it_is_closed() {
    let mut probe = kept_alive();
    probe.open(1, &[]);
    probe.pass(INTERVAL + PATIENCE - TICK).await;
    assert_eq!((probe.pings(), probe.farewell()), (1, None));
    probe.pass(2 * TICK).await;
    let calm = ErrorCode::ENHANCE_YOUR_CALM;
    assert_eq!(probe.farewell(), Some((calm, "keepalive_timeout".to_owned())));
    assert!(probe.connection.streams.is_empty());
    probe.pass(LINGER).await;
    assert!(probe.is_over);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_answer_waits_behind_its_data_is_alive() {
    let mut probe = kept_alive();
    probe.open(1, &[]);
    probe.pass(INTERVAL + TICK).await;
    assert_eq!(probe.pings(), 1);
    for _ in 0..10 {
        probe.pass(PATIENCE - 10 * TICK).await;
        probe.say(kind::DATA, 0, 1, b"more of it");
    }
    probe.pass(TICK).await;
    assert_eq!((probe.pings(), probe.farewell()), (1, None));
    // Then it is silent.
    probe.pass(PATIENCE).await;
    assert_eq!(probe.farewell().unwrap().1, "keepalive_timeout");
}

/// A connection that keeps more than its part of a memory that is scarce, as in messages that have begun, and whose
/// client has used its window up; and what it keeps.
async fn starved(stall: Duration) -> (Probe, Held) {
    const WINDOW: u32 = WINDOW_BYTES_DEFAULT;
    let mut probe = Probe::new(Limits {
        stream_flow_window_bytes: WINDOW,
        connection_flow_window_bytes: WINDOW,
        stall_timeout: Some(stall),
        ..Limits::default()
    });
    let held = Held::new(1_000);
    let total = Total::new(1_000, Arc::default());
    let memory = Memory { share: Share::new(total), held: held.clone() };
    probe.connection = probe.connection.with_memory(memory);
    probe.acknowledge();
    probe.open(1, &[]);
    probe.pass(TICK).await;
    assert!(held.hold(700));
    probe.say(kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    probe.pass(TICK).await;
    let payload = vec![7; WINDOW as usize];
    payload.chunks(FRAME_BYTES_MAX).for_each(|chunk| probe.say(kind::DATA, 0, 1, chunk));
    probe.pass(TICK).await;
    assert_eq!(probe.connection.wire.recv.open(), 0);
    assert_eq!(probe.connection.wire.buffered, 0, "the handler has taken all");
    (probe, held)
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_window_stays_shut_because_memory_is_scarce_does_not_wait_for_ever() {
    let stall = Duration::from_secs(60);
    let (mut probe, _held) = starved(stall).await;
    probe.pass(stall - 10 * TICK).await;
    assert_eq!(probe.farewell(), None);
    probe.pass(20 * TICK).await;
    let calm = ErrorCode::ENHANCE_YOUR_CALM;
    assert_eq!(probe.farewell(), Some((calm, "memory_scarce".to_owned())));
    assert!(probe.connection.streams.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_window_opens_again_when_memory_is_there_goes_on() {
    let stall = Duration::from_secs(60);
    let (mut probe, held) = starved(stall).await;
    probe.pass(stall - 2 * SCARCITY_PATIENCE).await;
    held.release(700);
    probe.pass(2 * stall).await;
    assert_eq!(probe.farewell(), None);
    assert_eq!(probe.connection.wire.recv.open(), WINDOW_BYTES_DEFAULT);
    // And its patience begins anew.
    assert!(held.hold(700));
    probe.say(kind::WINDOW_UPDATE, 0, 0, &WINDOW_BYTES_DEFAULT.to_be_bytes());
    probe.say(kind::WINDOW_UPDATE, 0, 1, &WINDOW_BYTES_DEFAULT.to_be_bytes());
    probe.pass(TICK).await;
    let payload = vec![7; WINDOW_BYTES_DEFAULT as usize];
    payload.chunks(FRAME_BYTES_MAX).for_each(|chunk| probe.say(kind::DATA, 0, 1, chunk));
    probe.pass(stall - 10 * TICK).await;
    assert_eq!(probe.farewell(), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_each_ping_stays() {
    let mut probe = kept_alive();
    for round in 1..100 {
        probe.pass(INTERVAL + TICK).await;
        assert_eq!(probe.pings(), round);
        // As late as it may be.
        probe.pass(PATIENCE - 2 * TICK).await;
        probe.say(kind::PING, flag::ACK, 0, &PING_KEEPALIVE);
    }
    assert_eq!((probe.farewell(), probe.is_over), (None, false));
}

#[tokio::test(start_paused = true)]
async fn connections_are_told_to_go_around_their_age_and_not_all_at_once() {
    let ages = join_all((0..100).map(|_| async { aging(None).is_told_to_go().await })).await;
    let (youngest, oldest) = (*ages.iter().min().unwrap(), *ages.iter().max().unwrap());
    assert!(youngest >= SOONEST.as_secs() && oldest <= LATEST.as_secs() + 1, "{ages:?}");
    // By chance alone they are closer together once in 10^49 runs.
    assert!(oldest - youngest > 60, "{ages:?}");
}

#[tokio::test(start_paused = true)]
async fn an_aged_connection_takes_what_is_on_its_way_then_names_the_last_stream() {
    let mut probe = aging(None);
    probe.is_told_to_go().await;
    assert_eq!(probe.goaways(), [ANY]);
    assert_eq!(probe.farewell(), Some((ErrorCode::NO_ERROR, "draining".to_owned())));
    assert_eq!(probe.heard(kind::PING), [(0, PING_DRAIN.to_vec())]);
    probe.open(3, &[]);
    assert!(probe.echoes(3).await, "it was on its way");
    probe.say(kind::PING, flag::ACK, 0, &PING_DRAIN);
    probe.pass(TICK).await;
    assert_eq!(probe.goaways(), [ANY, 3]);
}

#[tokio::test(start_paused = true)]
async fn streams_of_an_aged_connection_live_on_when_no_grace_is_set() {
    let mut probe = aging(None);
    for _ in 0..100 {
        probe.pass(LATEST).await;
        assert!(probe.echoes(1).await);
    }
    assert_eq!(probe.goaways(), [ANY, 1]);
    probe.say(kind::DATA, flag::END_STREAM, 1, &[]);
    probe.pass(TICK + LINGER).await;
    assert!(probe.is_over, "its last stream is done");
}

#[tokio::test(start_paused = true)]
async fn an_aged_connection_is_cut_off_after_its_grace() {
    let mut probe = aging(Some(GRACE));
    probe.is_told_to_go().await;
    probe.pass(GRACE - Duration::from_secs(1) - 2 * TICK).await;
    assert!(probe.echoes(1).await, "it has its grace");
    probe.pass(Duration::from_secs(1) + 2 * TICK).await;
    assert!(probe.is_over);
    assert_eq!(probe.status(1).as_deref(), Some("14"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_off_before_it_answered_is_told_which_streams_were_seen() {
    let mut probe = aging(Some(Duration::from_secs(1)));
    probe.is_told_to_go().await;
    assert_eq!(probe.goaways(), [ANY]);
    probe.pass(Duration::from_secs(2)).await;
    assert!(probe.is_over);
    assert_eq!(probe.goaways(), [ANY, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_said_goodbye_itself_does_not_outlive_the_grace() {
    let mut probe = aging(Some(GRACE));
    probe.pass(TICK).await;
    probe.say(kind::GOAWAY, 0, 0, &[0; 8]);
    assert!(probe.echoes(1).await);
    assert_eq!(probe.goaways(), [1]);
    probe.pass(SOONEST + GRACE - 2 * TICK).await;
    assert!(probe.echoes(1).await, "its stream goes on");
    probe.pass(LATEST - SOONEST + TICK).await;
    assert!(probe.is_over);
    assert_eq!(probe.status(1).as_deref(), Some("14"));
}
