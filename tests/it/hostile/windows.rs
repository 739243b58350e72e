//! Flow control that is broken, or used against us.
use super::*;

const STALL: Duration = Duration::from_secs(8);

fn stalling() -> Limits {
    Limits { stall_timeout: Some(STALL), ..Limits::default() }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_sender_that_ignores_its_windows_ends_its_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let full = |stream| data(stream, 0, &[7; 16_384]);
    let attack = Attack { opening: post_with(1, 0, &STUCK), wave: again(full(1)), waves: 1_000 };
    check(placement, attack, FLOW_CONTROL_ERROR, "stream_window_exceeded").await;
    // No stream takes more than its own, all together more than the connection's.
    let wave = |n| [post_with(id(n), 0, &STUCK), full(id(n)).repeat(4)].concat();
    let attack = Attack { opening: vec![], wave, waves: 1_000 };
    check(placement, attack, FLOW_CONTROL_ERROR, "connection_window_exceeded").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn windows_that_overflow_end_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |frames: Vec<u8>, reason: &str| {
        let attack = Attack { opening: post(1, 0), wave: again(frames), waves: 3 };
        check(placement, attack, FLOW_CONTROL_ERROR, reason).await;
    };
    check(window_update(0, (1 << 31) - 1), "connection_window_overflow").await;
    check(window_update(0, 1 << 30), "connection_window_overflow").await;
    let wide = settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
    check([window_update(1, 1), wide].concat(), "stream_window_overflow_by_settings").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_that_never_opens_its_window_is_bounded_and_ended_by_the_stall_timer(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, stalling()).await;
    let (mut attacker, _serving) = host.connect(BUFFER);
    attacker.greet(&[(INITIAL_WINDOW_SIZE, 0)]).await;
    attacker.send(&grpc(1, 0, &[])).await;
    attacker.send(&data(1, 0, &[7; 16_384]).repeat(4)).await;
    let frames = attacker.frames_until_pong().await;
    let granted = frames.iter().map(|frame| match frame {
        Frame::WindowUpdate { stream: 1, increment } => *increment,
        _ => 0,
    });
    // A task may be a piece of the answer ahead of its connection.
    let ahead = if placement == Placement::Task { 2 * 16_384 } else { 0 };
    assert!(granted.sum::<u32>() <= ahead, "it may send no more: {frames:?}");
    host.neighbour.is_well().await;
    // The next that comes is the end.
    let end = attacker.frame().await;
    assert_eq!(end.header("grpc-status"), Some("8"), "{end:?}");
    attacker.send(&grpc(3, END_STREAM, &[])).await;
    assert!(matches!(attacker.frame().await, Frame::Reset { stream: 1, code: NO_ERROR }));
    assert!(matches!(attacker.frame().await, Frame::Headers { stream: 3, .. }));
    host.neighbour.is_well().await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_bounded_and_cut_off_by_the_stall_timer(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, stalling()).await;
    let (mut attacker, serving) = host.connect(10_000);
    attacker.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    attacker.send(&window_update(0, 1 << 30)).await;
    let mut sent = 0;
    'attack: for n in 0.. {
        for frame in [post(id(n), 0), data(id(n), 0, &[7; 16_000]).repeat(4)] {
            if attacker.try_send(&frame).await.is_err() {
                break 'attack;
            }
            sent += frame.len();
        }
        if n < 100 {
            host.neighbour.is_well().await;
        }
        if n > 255 {
            // All that it may send before something is granted, which it does not read.
            everybody_waits().await;
            assert!(soon(serving).await.unwrap().is_ok());
            break;
        }
    }
    assert!(sent < 17 << 20, "{sent} bytes were taken");
    assert_eq!(host.goaways(), [("peer_does_not_read", 1)]);
    host.neighbour.is_well().await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn window_updates_that_nobody_reads_are_bounded_as_all_replies_are(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits {
        stream_flow_window_bytes: 1_024,
        stream_flow_window_bytes_max: 1_024,
        control_bytes_max: 1_024,
        ..stalling()
    };
    let mut host = Host::new(placement, limits).await;
    let (mut attacker, serving) = host.connect(4_096);
    attacker.greet(&[]).await;
    attacker.send(&post_with(1, 0, &DEAF)).await;
    everybody_waits().await;
    // Each is thrown away and granted again with 13 bytes.
    let (frame, mut sent) = (data(1, 0, &[7; 512]), 0);
    while sent < 8 << 20 && attacker.try_send(&frame).await.is_ok() {
        sent += frame.len();
    }
    assert!(
        sent < 512 << 10,
        "{sent} bytes were read while no reply could leave: {:?}",
        host.goaways()
    );
    soon(serving).await.unwrap().unwrap();
    assert_eq!(host.goaways(), [("peer_does_not_read", 1)]);
    host.neighbour.is_well().await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_carried(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, stalling()).await;
    let (mut slow, _serving) = host.connect(4_096);
    slow.greet(&[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
    slow.send(&[window_update(0, 1 << 20), post(1, 0)].concat()).await;
    slow.send(&data(1, 0, &[7; 15_000]).repeat(4)).await;
    let mut left = 60_000;
    while left > 0 {
        if let Frame::Data { payload, .. } = slow.frame().await {
            left -= payload.len();
        }
        host.neighbour.is_well().await;
        tokio::time::advance(STALL / 2).await;
    }
    slow.echo(3).await;
    assert_eq!(host.goaways(), []);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_stream_whose_window_is_used_up_to_the_byte_is_not_stalled_if_it_has_nothing_to_send(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, stalling()).await;
    let (mut peer, _serving) = host.connect(BUFFER);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 4)]).await;
    peer.send(&[post(1, 0), data(1, 0, b"ping")].concat()).await;
    while !matches!(peer.frame().await, Frame::Data { .. }) {}
    let mut quiet = async |peer: &mut Peer| {
        for _ in 0..8 {
            tokio::time::advance(STALL / 2).await;
            peer.expect_silence().await;
        }
        host.neighbour.is_well().await;
    };
    quiet(&mut peer).await;
    // Nor is it once the window is open again.
    peer.send(&window_update(1, 4)).await;
    quiet(&mut peer).await;
    peer.send(&data(1, 0, b"pong")).await;
    let pong = Frame::Data { stream: 1, payload: "pong".into(), end: false };
    assert_eq!(peer.frame().await, pong);
    // But now there is something.
    peer.send(&data(1, 0, b"late")).await;
    let end = peer.frame().await;
    assert_eq!(end, Frame::Reset { stream: 1, code: INTERNAL_ERROR });
}
