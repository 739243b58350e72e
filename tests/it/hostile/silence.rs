//! Clients that say too little.
use super::*;

/// `count` connections on which this was said end with that GOAWAY.
async fn check(is_greeted: bool, said: &[u8], count: u64, code: u32, reason: &str) {
    let idle = Some(Duration::from_secs(12));
    let limits = Limits { connection_idle_timeout: idle, ..Limits::default() };
    // Nothing of theirs runs anywhere.
    let mut host = Host::new(Placement::Inline, limits).await;
    let mut silent = Vec::new();
    for _ in 0..count {
        let (mut peer, serving) = host.connect(BUFFER);
        if is_greeted {
            peer.greet(&[]).await;
        }
        peer.send(said).await;
        silent.push((peer, serving));
    }
    host.neighbour.is_well().await;
    for (mut peer, serving) in silent {
        assert_eq!(peer.goaway().await, (code, reason.to_owned()));
        soon(serving).await.unwrap().unwrap();
    }
    assert_eq!(host.goaways(), [(reason, count)]);
    host.neighbour.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed_by_their_timers() {
    let calm = ENHANCE_YOUR_CALM;
    check(false, b"", 500, calm, "handshake_timeout").await;
    check(false, &PREFACE[..10], 500, calm, "handshake_timeout").await;
    check(false, PREFACE, 500, calm, "handshake_timeout").await;
    let half = frame(1, 0, 1, &hpack::encode(&POST));
    check(true, &half, 500, calm, "header_block_timeout").await;
    check(true, &half[..20], 500, NO_ERROR, "idle_connection").await;
    check(true, b"", 500, NO_ERROR, "idle_connection").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn whoever_says_goaway_and_goes_on_is_served_to_the_end_of_its_streams(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut peer, serving) = host.greeted().await;
    peer.send(&[post(1, 0), goaway(NO_ERROR), post(3, END_STREAM)].concat()).await;
    peer.send(&[data(3, 0, b"x"), data(1, END_STREAM, b"last")].concat()).await;
    assert!(matches!(peer.frame().await, Frame::GoAway { last: 1, code: NO_ERROR, .. }));
    assert_eq!(peer.answer(1).await.body, b"last");
    assert_eq!(peer.try_frame().await, None);
    drop(peer);
    soon(serving).await.unwrap().unwrap();
    host.neighbour.is_well().await;
    assert_eq!(host.goaways(), []);
}
