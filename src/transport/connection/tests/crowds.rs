//! Streams that come, go or end together: in slices, and behind other tasks.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Wake, Waker};

use super::*;

/// Counts.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn streams_that_come_and_go_in_a_turn_do_not_bring_the_next_one_forward() {
    let mut probe = Probe::new(Limits::default());
    probe.settle().await;
    for stream in 0..10_u32 {
        probe.open(2 * stream + 1, &[]);
    }
    probe.settle().await;
    for stream in 0..10_u32 {
        probe.say(kind::RST_STREAM, 0, 2 * stream + 1, &8_u32.to_be_bytes());
    }
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    let mut turns = 0;
    loop {
        let polled = Pin::new(&mut probe.connection).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        turns += 1;
        // The runtime's own way to go on is no wake before it has looked at the other tasks.
        assert_eq!(counting.0.load(SeqCst), 0, "woken in turn {turns}");
        if !probe.connection.goes_on() {
            break;
        }
    }
    assert_eq!(probe.connection.audit(false).streams, 0);
}

/// How many streams end at once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crowd {
    Cancelled,
    Expires,
    /// With its connection.
    Vanishes,
    /// With its connection, which did what it must not do.
    Offends,
    /// With its connection, which had its time.
    IsCutOff,
}

#[rstest::rstest]
#[tokio::test]
async fn many_streams_that_end_at_once_do_so_in_many_turns(
    #[values(Crowd::Cancelled, Crowd::Expires, Crowd::Vanishes, Crowd::Offends, Crowd::IsCutOff)]
    crowd: Crowd,
) {
    const STREAMS: u32 = 640;
    let timeout: &[_] = match crowd {
        Crowd::Expires => &[("content-type", "application/grpc"), ("grpc-timeout", "200m")],
        _ => &[],
    };
    let drain = Drain::default();
    let mut probe = Probe::silent(Limits::default(), Some(&drain));
    probe.greet();
    let ids = (0..STREAMS).map(|n| 2 * n + 1);
    for stream in ids.clone() {
        probe.open(stream, &[&[("dear", "")], timeout].concat());
    }
    while !probe.connection.io.said.is_empty() {
        probe.settle().await;
    }
    probe.settle().await;
    match crowd {
        Crowd::Cancelled => {
            ids.for_each(|stream| probe.say(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        Crowd::Expires => {}
        Crowd::Vanishes => probe.connection.io.is_gone = true,
        Crowd::Offends => probe.say(kind::PUSH_PROMISE, 0, 1, &[]),
        Crowd::IsCutOff => drain.cut_off.set(),
    }
    // Streams that are still there after each turn in which some ended.
    let counters = probe.connection.counters.clone();
    let open = || {
        let counted = counters.snapshot();
        counted.streams_opened - counted.streams_closed
    };
    let mut left = vec![open()];
    assert_eq!(left, [u64::from(STREAMS)]);
    let mut is_over = false;
    while left.last() != Some(&0) {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut probe.connection).poll(cx))).await;
        assert!(!is_over, "over, with {left:?} streams");
        is_over = polled.is_ready();
        let now_left = open();
        if left.last() != Some(&now_left) {
            left.push(now_left);
        }
        probe.connection.audit(true);
        tokio::task::yield_now().await;
    }
    let most = left.windows(2).map(|turn| turn[0] - turn[1]).max();
    // A turn looks after each 64; the last lap begins before its time is over.
    assert!(most.is_some_and(|most| most <= 2 * 64), "{left:?}");
    if crowd != Crowd::IsCutOff {
        assert_eq!(is_over, crowd == Crowd::Vanishes, "nobody ends before its streams did");
    }
}
