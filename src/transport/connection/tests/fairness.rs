//! What all streams of a connection share, and who gets it: its window, its output.

use super::*;

/// A client with windows for as much as anybody has to say, but for the connection's, and streams that always have more.
async fn hungry(streams: &[u32]) -> Probe {
    let mut probe = Probe::new(Limits::default());
    probe.acknowledge();
    let window = [&[0, 4][..], &(1_u32 << 30).to_be_bytes()].concat();
    probe.say(kind::SETTINGS, 0, 0, &window);
    for stream in streams {
        probe.open(*stream, &[("piece", "16384"), ("pieces", "1000000")]);
    }
    probe.settle().await;
    assert_eq!(probe.connection.wire.connection_room(), 0);
    probe
}

fn grant(probe: &mut Probe, bytes: u32) {
    probe.say(kind::WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes());
}

/// In a lap four of them fill the output.
const STREAMS: [u32; 5] = [1, 3, 5, 7, 9];

#[tokio::test]
async fn streams_that_waited_for_the_connections_window_get_their_part_of_the_output() {
    let mut probe = hungry(&STREAMS).await;
    grant(&mut probe, 1 << 30);
    probe.settle().await;
    let sent = STREAMS.map(|stream| data_bytes(&probe, stream));
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(*least > 1_000_000 && most < &(2 * least), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_windows_are_open_does_not_stall_behind_its_siblings() {
    let mut probe = hungry(&STREAMS).await;
    // One of them has a piece in its hand when it queues up again.
    grant(&mut probe, 10);
    probe.settle().await;
    grant(&mut probe, 1 << 30);
    probe.settle().await;
    let stall = Limits::default().stall_timeout.unwrap();
    for _ in 0..4 {
        tokio::time::advance(stall / 2).await;
        probe.settle().await;
    }
    let resets = inside::frames(&probe.connection.io.got);
    assert_eq!(resets.filter(|(found, ..)| *found == kind::RST_STREAM).count(), 0);
    assert_eq!(probe.connection.streams.len(), STREAMS.len());
}

#[tokio::test]
async fn who_waited_for_the_connections_window_goes_before_who_just_came() {
    let mut probe = hungry(&[1]).await;
    probe.open(3, &[]);
    for round in 1..=20 {
        // Each grant comes with something to answer.
        let before = data_bytes(&probe, 1);
        grant(&mut probe, 1_000);
        probe.say(kind::DATA, 0, 3, &[3; 2_000]);
        probe.settle().await;
        let (hungry, echo) = (data_bytes(&probe, 1), data_bytes(&probe, 3));
        assert!(echo <= round * 1_000, "{echo}");
        assert!(round > 1 || hungry > before, "it waited for longer");
    }
    let (hungry, echo) = (data_bytes(&probe, 1) - 65_535, data_bytes(&probe, 3));
    assert!(hungry >= 9_000 && echo >= 9_000, "{hungry} and {echo} of 20,000");
}

#[tokio::test(start_paused = true)]
async fn a_small_connection_window_is_not_used_up_as_long_as_half_of_it_is_there() {
    let limits = Limits { connection_flow_window_bytes: 8_192, ..Limits::default() };
    let stall = limits.stall_timeout.unwrap();
    let mut probe = Probe::new(limits);
    probe.acknowledge();
    probe.open(1, &[]);
    // Beyond what every connection begins with.
    for _ in 0..70 {
        probe.say(kind::DATA, 0, 1, &[1; 1_000]);
        grant(&mut probe, 1_000);
        probe.say(kind::WINDOW_UPDATE, 0, 1, &1_000_u32.to_be_bytes());
        probe.settle().await;
    }
    assert!(probe.connection.wire.recv.open() <= 8_192);
    probe.open(3, &[("hold", "on")]);
    probe.say(kind::DATA, 0, 3, b"x");
    for _ in 0..4 {
        probe.settle().await;
        tokio::time::advance(stall / 2).await;
    }
    probe.settle().await;
    assert_eq!(probe.connection.streams.len(), 2, "a byte is in nobody's way");
    // What uses it up is.
    probe.say(kind::DATA, 0, 3, &[1; 5_000]);
    for _ in 0..4 {
        probe.settle().await;
        tokio::time::advance(stall / 2).await;
    }
    probe.settle().await;
    let left: Vec<u32> = probe.connection.streams.iter().map(|(_, slot)| slot.core.id).collect();
    assert_eq!(left, [1]);
}
