//! Frames that bring nothing.
use super::*;

#[rstest]
#[tokio::test(start_paused = true)]
async fn frames_that_bring_nothing_end_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |frame: Vec<u8>, waves: u32, reason: &str| {
        let attack = Attack { opening: post_with(1, 0, &STUCK), wave: again(frame), waves };
        check(placement, attack, ENHANCE_YOUR_CALM, reason).await;
    };
    check(ping(b"12345678", 0), 1_000, "too_many_pings").await;
    check(ping(b"12345678", ACK), 1_000, "too_many_pings").await;
    check(settings(&[]), 1_000, "too_many_settings").await;
    check(settings(&[(INITIAL_WINDOW_SIZE, 1_000)]), 1_000, "too_many_settings").await;
    check(settings(&[(0x4242, 0); 2_700]), 10, "too_many_settings").await;
    check(settings_ack(), 1_000, "too_many_settings").await;
    check(data(1, 0, &[]), 1_000, "too_many_empty_data_frames").await;
    check(data(1, PADDED, &[9; 10]), 1_000, "too_many_empty_data_frames").await;
    check(window_update(0, 1), 11_000, "too_many_window_updates").await;
    check(window_update(1, 1), 11_000, "too_many_window_updates").await;
    check(frame(2, 0, 1, &[0, 0, 0, 3, 15]), 1_000, "too_many_priorities").await;
    check(frame(2, 0, 99, &[0, 0, 0, 3, 15]), 1_000, "too_many_priorities").await;
    check(frame(0xfa, 0, 0, b"grease"), 1_000, "too_many_unknown_frames").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn frames_for_streams_that_are_gone_end_the_connection_after_many(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let opening = [post_with(1, 0, &STUCK), rst_stream(1, CANCEL)].concat();
    let wave = again(rst_stream(1, CANCEL).repeat(100));
    let attack = Attack { opening, wave, waves: 1_100 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_frames_for_gone_streams").await;
}

/// What was granted to streams that were answered early is forgiven to the byte, whatever is charged otherwise.
#[rstest]
#[tokio::test(start_paused = true)]
async fn bytes_for_streams_that_are_gone_are_forgiven_as_far_as_they_were_granted(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    const STREAMS: u32 = 3;
    let mut limits = Limits::default();
    let granted = STREAMS * limits.stream_flow_window_bytes;
    let none = Flood { burst: 10, per_second: 0, per_useful_frame: 0 };
    limits.floods.set(FloodKind::GoneStream, none);
    let mut host = Host::new(placement, limits).await;
    let (mut attacker, serving) = host.greeted().await;
    for stream in (0..STREAMS).map(id) {
        attacker.send(&post_with(stream, 0, &EARLY)).await;
        assert_eq!(attacker.answer(stream).await.body, b"early");
        assert_eq!(attacker.frame().await, Frame::Reset { stream, code: NO_ERROR });
    }
    // For one of them alone: it is not asked whose they were.
    let bytes = |count: u32| data(1, 0, b"x").repeat(count as usize);
    attacker.send(&bytes(granted + none.burst)).await;
    attacker.echo(id(STREAMS)).await;
    attacker.send(&bytes(1)).await;
    let reason = "too_many_frames_for_gone_streams";
    assert_eq!(attacker.goaway().await, (ENHANCE_YOUR_CALM, reason.to_owned()));
    soon(serving).await.unwrap().unwrap();
    host.neighbour.is_well().await;
    assert_eq!(host.goaways(), [(reason, 1)]);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn whoever_provokes_replies_and_reads_none_is_gone_at_once_too(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let check = async |host: &Host, frame: Vec<u8>, reason: &str| {
        let (mut attacker, serving) = host.connect(1_000);
        attacker.greet(&[]).await;
        for _ in 0..1_000 {
            if attacker.try_send(&frame).await.is_err() {
                break;
            }
        }
        soon(serving).await.unwrap().unwrap();
        assert!(host.goaways().contains(&(reason, 1)), "{:?}", host.goaways());
    };
    check(&host, ping(b"12345678", 0), "too_many_pings").await;
    check(&host, settings(&[]), "too_many_settings").await;
    host.neighbour.is_well().await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn streams_above_the_limit_are_refused_and_a_flood_of_them_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut hoarder, _serving) = host.greeted().await;
    let open: Vec<u8> = (0..6_000).flat_map(|n| post_with(id(n), 0, &STUCK)).collect();
    hoarder.send(&open).await;
    let refused = hoarder.frames_until_pong().await;
    let mut refused =
        refused.into_iter().filter(|frame| !matches!(frame, Frame::WindowUpdate { .. }));
    for n in 4_096..6_000 {
        let reset = Frame::Reset { stream: id(n), code: REFUSED_STREAM };
        assert_eq!(refused.next(), Some(reset));
    }
    assert_eq!(refused.next(), None);
    assert_eq!(host.streams_left(), 4_096);
    host.neighbour.is_well().await;

    let wave = |n| post_with(id(n), 0, &STUCK);
    let attack = Attack { opening: vec![], wave, waves: 21_000 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_refused_streams").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn requests_after_the_goaway_are_not_served_and_a_flood_of_them_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let opening = [post_with(1, 0, &STUCK), goaway(NO_ERROR)].concat();
    let wave = |n| post(id(n), END_STREAM);
    let attack = Attack { opening, wave, waves: 17_000 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_refused_streams").await;
}
