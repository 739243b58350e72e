//! What all connections keep together.
use super::*;

/// 64 KiB, all that a stream takes unread.
fn fill(streams: impl Iterator<Item = u32>) -> Vec<u8> {
    streams.flat_map(|n| data(id(n), 0, &[7; 16_384]).repeat(4)).collect()
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_hog_is_held_back_then_ended_and_its_neighbours_go_on(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits { connection_flow_window_bytes: 5 << 20, ..Limits::default() };
    let mut host =
        Host::on(Server::new(limits).placement(placement).buffered_bytes_max(4 << 20)).await;
    let (mut hog, serving) = host.connect(BUFFER);
    hog.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    hog.send(&[window_update(0, 1 << 30), post(1, 0)].concat()).await;
    let stuck: Vec<u8> = (1..=120).flat_map(|n| post_with(id(n), 0, &STUCK)).collect();
    hog.send(&stuck).await;
    // More than half of what all may keep, and than its part of that half.
    hog.send(&fill(1..=40)).await;
    hog.frames_until_pong().await;
    let kept = host.server.counters().snapshot().buffered_bytes;
    assert_eq!(kept, 40 << 16);
    hog.send(&post(999, 0)).await;
    assert_eq!(hog.frame().await, Frame::Reset { stream: 999, code: REFUSED_STREAM });
    // Others still come, open streams and are answered.
    let (mut newcomer, _serving) = host.greeted().await;
    newcomer.echo(1).await;
    host.neighbour.is_well().await;
    // What is done with is not granted again, neither at once nor later ...
    for _ in 0..100 {
        hog.send(&data(1, 0, &[7; 16_000])).await;
        let mut left = 16_000;
        while left > 0 {
            match hog.any_frame().await {
                Frame::Data { stream: 1, payload, .. } => left -= payload.len(),
                Frame::Headers { stream: 1, .. } | Frame::WindowUpdate { stream: 1, .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let frames = hog.frames_until_pong().await;
    let granted = |frame: &Frame| matches!(frame, Frame::WindowUpdate { stream: 0, .. });
    assert!(!frames.iter().any(granted), "{frames:?}");
    // ... until there is memory again.
    hog.send(&(1..=30).flat_map(|n| rst_stream(id(n), CANCEL)).collect::<Vec<u8>>()).await;
    while !granted(&hog.any_frame().await) {}
    assert_eq!(host.goaways(), []);
    // Grows beyond the cap, within its windows.
    for n in 41..=120 {
        if hog.try_send(&fill(n..=n)).await.is_err() {
            break;
        }
        everybody_waits().await;
    }
    assert_eq!(hog.goaway().await, (ENHANCE_YOUR_CALM, "memory_exhausted".to_owned()));
    drop(hog);
    soon(serving).await.unwrap().unwrap();
    assert_eq!(host.goaways(), [("memory_exhausted", 1)]);
    assert_eq!(host.server.counters().snapshot().buffered_bytes, 0);
    host.neighbour.is_well().await;
    newcomer.echo(3).await;
}
