//! What must not be taken for an attack.
use std::collections::BTreeMap;

use super::*;

/// Messages `from` to `to`, each its number: what is lost, twice there or out of order is not the same.
fn numbers(from: usize, to: usize) -> Vec<u8> {
    (from as u64..to as u64).flat_map(u64::to_be_bytes).collect()
}

/// A DATA frame for each of them.
fn frames(from: usize, to: usize) -> Vec<u8> {
    (from..to).flat_map(|n| data(1, 0, &numbers(n, n + 1))).collect()
}

/// Reads until as much has come as was sent, which it must be.
async fn reads(peer: &mut Peer, sent: &[u8]) {
    let mut echo = Vec::new();
    while echo.len() < sent.len() {
        match peer.frame().await {
            Frame::Headers { end: false, .. } | Frame::WindowUpdate { .. } => {}
            Frame::Data { stream: 1, payload, end: false } => echo.extend_from_slice(&payload),
            other => panic!("{other:?}"),
        }
    }
    assert!(echo == sent, "the echo is not what was sent");
}

/// Nothing was held against anybody.
async fn carried(mut host: Host) {
    host.neighbour.is_well().await;
    assert_eq!(host.goaways(), []);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_million_pipelined_messages_may_be_read_late(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    const MESSAGES: usize = 1_000_000;
    let limits = Limits {
        stream_flow_window_bytes: 16 << 20,
        stream_flow_window_bytes_max: 16 << 20,
        ..Limits::default()
    };
    let mut host = Host::new(placement, limits).await;
    let (mut peer, _serving) = host.connect(1 << 20);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    peer.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
    for thousand in 0..MESSAGES / 1_000 {
        peer.send(&frames(1_000 * thousand, 1_000 * (thousand + 1))).await;
    }
    everybody_waits().await;
    host.neighbour.is_well().await;
    reads(&mut peer, &numbers(0, MESSAGES)).await;
    carried(host).await;
}

/// As gRPC C++ 1.51 does: each message that is read opens the windows again, however many came in one
/// frame.
#[rstest]
#[tokio::test(start_paused = true)]
async fn each_of_many_messages_in_a_frame_may_be_granted_by_itself(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    const BATCH: usize = 1_000;
    let limits = Limits {
        stream_flow_window_bytes: 1 << 20,
        stream_flow_window_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let host = Host::new(placement, limits).await;
    let (mut peer, _serving) = host.connect(1 << 20);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    peer.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
    let granted = [window_update(0, 8), window_update(1, 8)].concat();
    // Read at once, and read late.
    for batches in [[1; 50].as_slice(), &[50]].concat() {
        let sent = numbers(0, BATCH * batches);
        for batch in sent.chunks(8 * BATCH) {
            peer.send(&data(1, 0, batch)).await;
        }
        reads(&mut peer, &sent).await;
        peer.send(&granted.repeat(BATCH * batches)).await;
    }
    carried(host).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn three_thousand_streams_may_open_before_the_settings_were_seen(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.connect(BUFFER);
    let streams = || (0..3_000).map(id);
    let opened = streams().flat_map(|id| [post(id, 0), data(id, END_STREAM, &id.to_be_bytes())]);
    let said: Vec<u8> =
        [PREFACE.to_vec(), settings(&[])].into_iter().chain(opened).flatten().collect();
    peer.send(&said).await;
    let mut echoes: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut ended = 0;
    while ended < 3_000 {
        match peer.frame().await {
            Frame::Headers { end: false, .. } => {}
            Frame::Data { stream, payload, end } => {
                echoes.entry(stream).or_default().extend_from_slice(&payload);
                ended += u32::from(end);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(echoes.into_iter().eq(streams().map(|id| (id, id.to_be_bytes().to_vec()))));
    carried(host).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn honest_cancels_may_come_all_at_once_and_on_and_on(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.greeted().await;
    let mut next = 0;
    let mut cancel = async |count: u32| {
        let streams = || (next..next + count).map(id);
        peer.send(&streams().flat_map(|id| post(id, 0)).collect::<Vec<u8>>()).await;
        for _ in 0..count {
            assert!(matches!(peer.frame().await, Frame::Headers { .. }));
        }
        let resets = streams().flat_map(|id| rst_stream(id, CANCEL));
        peer.send(&resets.collect::<Vec<u8>>()).await;
        next += count;
        peer.echo(id(next)).await;
        next += 1;
    };
    cancel(3_000).await;
    for _ in 0..120 {
        cancel(100).await;
        tokio::time::advance(Duration::from_secs(1) / 3).await;
    }
    carried(host).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_ping_with_each_data_frame_is_a_probe_and_no_flood(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.greeted().await;
    peer.send(&post(1, 0)).await;
    for n in 0..5_000_u64 {
        let said = n.to_be_bytes();
        peer.send(&[data(1, 0, &said), ping(&said, 0)].concat()).await;
        let mut answered = 0;
        while answered < 2 {
            match peer.frame().await {
                Frame::Headers { end: false, .. } | Frame::WindowUpdate { .. } => continue,
                Frame::Data { stream: 1, payload, end: false } => assert_eq!(payload, said[..]),
                Frame::Pong(pong) => assert_eq!(pong, said),
                other => panic!("{other:?}"),
            }
            answered += 1;
        }
    }
    carried(host).await;
}

/// A client that was let send so much on each may have sent all of it before it hears of their end.
#[rstest]
#[tokio::test(start_paused = true)]
async fn whole_windows_of_small_frames_on_their_way_to_many_streams_are_forgiven(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.greeted().await;
    let streams: Vec<_> = (0..30).map(id).collect();
    for stream in &streams {
        peer.send(&post_with(*stream, 0, &EARLY)).await;
        assert_eq!(peer.answer(*stream).await.body, b"early");
        assert_eq!(peer.frame().await, Frame::Reset { stream: *stream, code: NO_ERROR });
    }
    for stream in &streams {
        peer.send(&data(*stream, 0, b"12345678").repeat(65_535 / 8)).await;
    }
    peer.echo(id(30)).await;
    carried(host).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn frames_on_their_way_to_a_stream_that_the_server_ended_are_forgiven(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, _serving) = host.greeted().await;
    for n in 0..3 {
        let stream = id(2 * n);
        peer.send(&post_with(stream, 0, &EARLY)).await;
        assert_eq!(peer.answer(stream).await.body, b"early");
        assert_eq!(peer.frame().await, Frame::Reset { stream, code: NO_ERROR });
        // A window full of small frames, and what often comes with them.
        peer.send(&data(stream, 0, b"1234").repeat(16_384)).await;
        peer.send(&window_update(stream, 1_000)).await;
        peer.send(&rst_stream(stream, CANCEL)).await;
        peer.echo(id(2 * n + 1)).await;
    }
    carried(host).await;
}
