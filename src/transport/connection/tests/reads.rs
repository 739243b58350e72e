//! Payloads that wait where they were read.

use super::*;

/// Lengths on both sides of the bounds within which a payload may wait in place.
const LENGTHS: [usize; 7] = [1, 511, 512, 1_000, 4_096, FRAME_BYTES_MAX - 1, FRAME_BYTES_MAX];

impl Probe {
    fn reads_kept(&self) -> u64 {
        self.connection.counters.snapshot().reads_kept
    }

    /// What came back on a stream.
    fn echoed(&self, stream: u32) -> Vec<u8> {
        inside::frames(&self.connection.io.got)
            .filter(|(kind, _, of, _)| (*kind, *of) == (kind::DATA, stream))
            .flat_map(|(.., payload)| payload.to_vec())
            .collect()
    }

    /// The peer's windows for streams from now on, and that of its connection as large as can be.
    fn windows(&mut self, stream: u32) {
        let mut payload = setting::INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        payload.extend(stream.to_be_bytes());
        self.say(kind::SETTINGS, 0, 0, &payload);
        self.say(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
        self.acknowledge();
    }
}

/// No two are alike.
fn payload(length: usize, seed: usize) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation, reason = "the lowest bits are what is wanted")]
    (0..length).map(|at| (at * 31 + seed * 7 + at / 251) as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_at_once_comes_back_whole() {
    let mut probe = Probe::new(Limits::default());
    probe.windows(1 << 20);
    let stream = |at: usize| u32::try_from(2 * at + 1).unwrap();
    for at in 0..LENGTHS.len() {
        probe.open(stream(at), &[]);
    }
    let mut expected = vec![Vec::new(); LENGTHS.len()];
    for round in 0..3 {
        for (at, length) in LENGTHS.into_iter().enumerate() {
            // One frame, then two of a stream in one read, then two of the same bytes apart.
            for part in 0..=round.min(1) {
                let payload = payload(length, 10 * round + part);
                probe.say(kind::DATA, 0, stream(at), &payload);
                expected[at].extend(payload);
                if round == 2 {
                    probe.settle().await;
                }
            }
        }
        probe.settle().await;
    }
    for (at, expected) in expected.into_iter().enumerate() {
        assert!(probe.echoed(stream(at)) == expected, "{} bytes", LENGTHS[at]);
    }
    assert_eq!(probe.reads_kept(), 0);
    assert!(probe.connection.reading.is_none());
}

/// More payloads than may lie where they were read, and no more bytes than a stream's window has.
fn many() -> impl Iterator<Item = Vec<u8>> {
    let lengths =
        [FRAME_BYTES_MAX, 9].into_iter().chain([1_000, 1, 600, 9, 2_000].into_iter().cycle());
    lengths.take(40).zip(0..).map(|(length, seed)| payload(length, seed))
}

#[tokio::test(start_paused = true)]
async fn however_many_payloads_a_stream_has_in_one_read_their_order_stays() {
    let mut probe = Probe::new(Limits::default());
    probe.windows(1 << 20);
    probe.open(1, &[]);
    probe.open(3, &[("hold", "")]);
    probe.settle().await;
    // Reads are as long as they may be only behind some short laps.
    probe.connection.read_bytes = READ_BYTES;
    for payload in many() {
        probe.say(kind::DATA, 0, 1, &payload);
        probe.say(kind::DATA, 0, 3, &payload);
    }
    probe.settle().await;
    let expected = many().collect::<Vec<_>>().concat();
    let echoed = probe.echoed(1);
    let differs = echoed.iter().zip(&expected).position(|(got, expected)| got != expected);
    assert_eq!((echoed.len(), differs), (expected.len(), None));
    assert_eq!(probe.connection.wire.buffered, expected.len());
    assert!(probe.connection.reading.is_none());
    assert_eq!(probe.reads_kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_in_parts_comes_back_whole() {
    for part in ["0", "1", "7", "512", "100000"] {
        let mut probe = Probe::new(Limits::default());
        probe.windows(1 << 20);
        probe.open(1, &[("part", part)]);
        probe.settle().await;
        probe.connection.read_bytes = READ_BYTES;
        // In place, then chunks of their own and small ones that are gathered.
        let lengths = [3_000, 9, 600, 1, 4_096, 5_000, 200];
        let mut expected = Vec::new();
        for (length, seed) in lengths.into_iter().zip(0..) {
            let payload = payload(length, seed);
            probe.say(kind::DATA, 0, 1, &payload);
            expected.extend(payload);
            if seed == 2 {
                probe.settle().await;
            }
        }
        while probe.echoed(1).len() < expected.len() {
            let before = probe.echoed(1).len();
            probe.settle().await;
            assert!(probe.echoed(1).len() > before, "{before} of {}", expected.len());
        }
        assert!(probe.echoed(1) == expected, "{part} at once");
        assert_eq!(probe.connection.wire.buffered, 0);
        assert_eq!(probe.reads_kept(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_leaves_of_a_payload_is_copied_out_and_nothing_is_left_of_a_copy() {
    // In place, and gathered: of the second a rest would keep more than is counted.
    for (length, taken) in [(3_000, 200), (300, 300)] {
        let mut probe = Probe::new(Limits::default());
        probe.windows(1 << 20);
        probe.open(1, &[("part", "100"), ("parts", "2")]);
        probe.say(kind::DATA, 0, 1, &payload(length, 1));
        probe.settle().await;
        assert_eq!(probe.echoed(1), payload(length, 1)[..taken]);
        assert_eq!(probe.connection.wire.buffered, length - taken, "its window waits");
        assert!(probe.connection.reading.is_none());
        assert_eq!(probe.reads_kept(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_window_is_not_overwritten_by_what_is_read_later() {
    let mut probe = Probe::new(Limits::default());
    probe.windows(0);
    let streams = [1, 3, 5, 7, 9, 11, 13];
    for (stream, length) in streams.into_iter().zip(LENGTHS) {
        probe.open(stream, &[]);
        probe.say(kind::DATA, 0, stream, &payload(length, 1));
    }
    probe.settle().await;
    assert!(probe.connection.reading.is_none(), "the thread has its buffer back");
    assert_eq!(probe.reads_kept(), 0, "nothing lies in it any more");
    for (stream, length) in streams.into_iter().zip(LENGTHS) {
        probe.say(kind::DATA, flag::END_STREAM, stream, &payload(length, 2));
        probe.settle().await;
        assert!(probe.echoed(stream).is_empty());
        probe.say(kind::WINDOW_UPDATE, 0, stream, &(1_u32 << 20).to_be_bytes());
    }
    probe.settle().await;
    for (stream, length) in streams.into_iter().zip(LENGTHS) {
        let expected = [payload(length, 1), payload(length, 2)].concat();
        assert!(probe.echoed(stream) == expected, "{length} bytes");
    }
    assert_eq!(probe.reads_kept(), 0);
}

/// Room that no list of readers has by itself: what tells one buffer from the next, which may lie at the
/// same address.
const MARK: usize = 1_000;

/// Marks the buffer that the thread has.
fn mark_buffer() {
    let (bytes, _) = reading::READ.take().expect("the thread has one");
    reading::READ.set(Some((bytes, Vec::with_capacity(MARK))));
}

/// Whether the thread still has the buffer that was marked.
fn has_marked_buffer() -> bool {
    let buffer = reading::READ.take();
    let is_marked = buffer.as_ref().is_some_and(|(_, readers)| readers.capacity() >= MARK);
    reading::READ.set(buffer);
    is_marked
}

#[tokio::test(start_paused = true)]
async fn the_buffer_of_a_thread_is_lost_only_to_who_keeps_something_of_it() {
    let mut probe = Probe::new(Limits::default());
    probe.windows(1 << 20);
    probe.open(1, &[]);
    probe.open(3, &[("keep", "")]);
    probe.settle().await;
    mark_buffer();
    for length in LENGTHS {
        probe.say(kind::DATA, 0, 1, &payload(length, 1));
        probe.say(kind::PING, 0, 0, &[0; 8]);
        probe.settle().await;
        assert!(has_marked_buffer(), "{length} bytes");
    }
    probe.say(kind::DATA, 0, 3, &payload(1_000, 1));
    probe.settle().await;
    assert!(!has_marked_buffer(), "it is kept");
    mark_buffer();
    for length in LENGTHS {
        probe.say(kind::DATA, 0, 3, &payload(length, 2));
        probe.settle().await;
        assert!(has_marked_buffer(), "{length} bytes, copied");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_is_copied_out() {
    let mut probe = Probe::new(Limits::default());
    for stream in [1, 3, 5] {
        probe.open(stream, &[("hold", "")]);
        probe.say(kind::DATA, 0, stream, &payload(1_000, 1));
    }
    probe.settle().await;
    assert!(probe.connection.reading.is_none());
    assert_eq!(probe.reads_kept(), 0);
    assert_eq!(probe.connection.wire.buffered, 3_000);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_keeps_a_payload_is_given_copies_from_then_on() {
    let mut probe = Probe::new(Limits::default());
    probe.open(1, &[("keep", "")]);
    let mut expected = Vec::new();
    for round in 0..10 {
        let payload = payload(1_000, round);
        probe.say(kind::DATA, 0, 1, &payload);
        expected.extend(payload);
        probe.settle().await;
        assert_eq!(probe.reads_kept(), 1, "round {round}");
    }
    probe.say(kind::DATA, flag::END_STREAM, 1, &[]);
    probe.settle().await;
    assert!(probe.echoed(1) == expected);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_behind_much_data_is_not_taken_for_a_service_that_keeps_some()
 {
    const STREAMS: usize = 100;
    let mut probe = Probe::new(Limits::default());
    probe.acknowledge();
    let streams = || (1..).step_by(2).take(STREAMS);
    streams().for_each(|stream| probe.open(stream, &[("hold", "")]));
    probe.settle().await;
    streams().for_each(|stream| probe.say(kind::DATA, 0, stream, &payload(600, 1)));
    probe.say(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0; 4]);
    // All in one read, after which the turn has no time for all of the streams that are lost by it.
    let connection = &mut probe.connection;
    (connection.read_bytes, connection.turn_ends) = (READ_BYTES, now());
    let read = poll_fn(|cx| Poll::Ready(connection.read(cx))).await;
    assert!(matches!(read, Read::Some));
    assert!(connection.lost.is_some(), "some are told of it in the next turn");
    connection.settle_reads();
    assert_eq!(probe.reads_kept(), 0);
    probe.settle().await;
    assert_eq!(probe.goaways().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_deaf_peer_is_owed_is_not_overwritten() {
    let mut probe = Probe::new(Limits::default());
    probe.windows(1 << 20);
    probe.settle().await;
    probe.open(1, &[]);
    probe.settle().await;
    probe.connection.io.is_deaf = true;
    let mut expected = Vec::new();
    for round in 0..10 {
        // Long enough to leave from where it is.
        let payload = payload(4_000, round);
        probe.say(kind::DATA, 0, 1, &payload);
        expected.extend(payload);
        probe.settle().await;
    }
    assert!(probe.reads_kept() <= 1, "the output held it");
    probe.connection.io.is_deaf = false;
    probe.settle().await;
    assert!(probe.echoed(1) == expected);
}

#[tokio::test(start_paused = true)]
async fn frames_that_a_turn_has_no_time_for_are_handled_in_the_next_ones() {
    const STREAMS: u32 = 100;
    let mut probe = Probe::new(Limits::default());
    probe.settle().await;
    for n in 0..STREAMS {
        probe.open(2 * n + 1, &[]);
    }
    // Half a frame.
    probe.connection.io.said.extend([0, 0, 5, kind::DATA, 0, 0, 0, 0, 1, b'h']);
    probe.connection.read_bytes = READ_BYTES;
    // The turn had had its time before it began.
    probe.connection.turn_ends = now();
    let (mut opened, mut reads) = (vec![0], 0);
    while opened.last() != Some(&(STREAMS as usize)) {
        let read = poll_fn(|cx| Poll::Ready(probe.connection.read(cx))).await;
        assert!(matches!(read, Read::Some));
        opened.push(probe.connection.streams.len());
        reads += 1;
        assert!(probe.connection.io.said.is_empty(), "one read");
        assert_eq!(probe.connection.left.is_empty(), reads == 4, "{opened:?}");
    }
    assert_eq!(opened, [0, 32, 64, 96, 100]);
    assert_eq!(probe.connection.tail.len(), 10);
    probe.connection.io.said.extend(b"ello");
    probe.settle().await;
    assert_eq!(probe.echoed(1), b"hello");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_drain_is_served_though_no_turn_had_time_for_it() {
    let drain = Drain::default();
    let mut probe = Probe::silent(Limits::default(), Some(&drain));
    probe.connection.is_hurried = true;
    probe.greet();
    for stream in [1, 3, 5] {
        probe.open(stream, &[]);
        probe.say(kind::DATA, flag::END_STREAM, stream, b"on its way");
    }
    drain.leave.set();
    probe.say(kind::PING, flag::ACK, 0, &PING_DRAIN);
    probe.settle().await;
    assert_eq!(probe.goaways(), [ANY, 5]);
    for stream in [1, 3, 5] {
        assert_eq!(probe.echoed(stream), b"on its way");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_is_as_much_as_half_a_turn_to_a_whole_one_handles_whatever_came_before() {
    let mut probe = Probe::new(Limits::default());
    for nanos_per_byte in [0.01, 1.0, 4.0, 7.0, 9.0, 30.0, 1_000.0] {
        for before in [READ_BYTES_MIN, READ_BYTES_FIRST, READ_BYTES] {
            let connection = &mut probe.connection;
            connection.read_bytes = before;
            let lap = |bytes: usize| Duration::from_secs_f64(bytes as f64 * nanos_per_byte / 1e9);
            let settle = |connection: &mut Connection<_, _>| {
                for _ in 0..16 {
                    connection.fit_reads(lap(connection.read_bytes));
                }
                let (bytes, time) = (connection.read_bytes, lap(connection.read_bytes));
                assert!(time <= TURN_TIME_MAX || bytes == READ_BYTES_MIN, "{bytes}, {time:?}");
                assert!(time >= TURN_TIME_MAX / 2 || bytes == READ_BYTES, "{bytes}, {time:?}");
            };
            settle(connection);
            // The host took the core away for a while.
            for _ in 0..8 {
                connection.fit_reads(Duration::from_secs(1));
            }
            assert_eq!(connection.read_bytes, READ_BYTES_MIN);
            settle(connection);
        }
    }
}
