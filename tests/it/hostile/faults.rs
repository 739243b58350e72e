//! What a frame must not be.
use super::*;

#[rstest]
#[tokio::test(start_paused = true)]
async fn these_end_the_connection_and_the_neighbour_lives(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |frame: Vec<u8>, code, reason: &str| {
        let attack = Attack { opening: post(1, 0), wave: again(frame), waves: 1 };
        check(placement, attack, code, reason).await;
    };
    check(data(9, 0, b"x"), PROTOCOL_ERROR, "frame_on_idle_stream").await;
    check(frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR, "push_promise").await;
    check(data(1, PADDED, &[5, 0]), PROTOCOL_ERROR, "padding_too_long").await;
    check(data(1, 0, &[0; 16_385]), FRAME_SIZE_ERROR, "frame_too_large").await;
    check(post(2, 0), PROTOCOL_ERROR, "stream_of_the_wrong_parity").await;
    let beyond = "header block refers past the end of the dynamic table";
    check(frame(1, END_HEADERS, 3, &[0xff, 0]), COMPRESSION_ERROR, beyond).await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn what_waits_to_be_written_is_tried_when_the_client_closes_its_half(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let host = Host::new(placement, Limits::default()).await;
    let (mut peer, serving) = host.connect(100);
    peer.greet(&[]).await;
    peer.send(&ping(b"12345678", 0).repeat(10)).await;
    everybody_waits().await;
    // The pipe holds 100 of 170 bytes; the server does not run before it sees both.
    for _ in 0..5 {
        assert!(matches!(peer.frame().await, Frame::Pong(_)));
    }
    peer.shut_down().await;
    for _ in 0..5 {
        assert!(matches!(peer.frame().await, Frame::Pong(_)));
    }
    assert_eq!(peer.try_frame().await, None);
    soon(serving).await.unwrap().unwrap();
}
