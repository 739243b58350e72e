//! RFC 9113, section 5.1.
use super::*;

#[rstest]
#[tokio::test]
async fn a_request_on_a_smaller_stream_than_the_last_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = greeted(placement).await;
    peer.send(&[post(5, 0), post(3, 0)].concat()).await;
    assert_eq!(peer.goaway().await, (PROTOCOL_ERROR, "stream_smaller_than_the_last".into()));
}

#[rstest]
#[tokio::test]
async fn a_priority_that_is_wrong_ends_the_connection_if_nobody_opened_its_stream(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    for (wrong, code) in [(&[0, 0, 0, 1, 15][..], PROTOCOL_ERROR), (&[0; 4], FRAME_SIZE_ERROR)] {
        let (mut peer, _served) = greeted(placement).await;
        peer.send(&frame(2, 0, 1, wrong)).await;
        // Not RST_STREAM, which must not name an idle stream (6.4).
        let Frame::GoAway { code: said, .. } = peer.frame().await else { panic!("no GOAWAY") };
        assert_eq!(said, code);
    }
}

#[rstest]
#[tokio::test]
async fn late_trailers_of_a_stream_that_we_ended_are_ignored(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = serve(
        placement,
        Limits::default(),
        BUFFER,
        service_fn(|_: Request<RecvBody>| async { full("x") }),
    );
    peer.greet(&[]).await;
    peer.send(&post(1, 0)).await;
    assert_eq!(peer.answer(1).await.body, b"x");
    assert_eq!(peer.frame().await, Frame::Reset { stream: 1, code: NO_ERROR });
    peer.send(&headers(1, END_STREAM, &[("x-sum", "1")])).await;
    peer.expect_silence().await;
}

#[rstest]
#[tokio::test]
async fn a_client_that_sends_on_after_its_own_reset_broke_the_protocol_even_when_we_ended_first(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = serve(
        placement,
        Limits::default(),
        BUFFER,
        service_fn(|_: Request<RecvBody>| async { full("x") }),
    );
    peer.greet(&[]).await;
    peer.send(&post(1, 0)).await;
    peer.answer(1).await;
    peer.send(&[rst_stream(1, CANCEL), data(1, 0, b"more")].concat()).await;
    assert_eq!(peer.goaway().await.0, STREAM_CLOSED);
}

/// With a head alone, gRPC's "Trailers-Only", grpcio takes an end that comes later for a failure.
#[rstest]
#[tokio::test]
async fn the_last_frame_of_an_answer_ends_the_stream(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let service = service_fn(|request: Request<RecvBody>| async move {
        match request.headers().contains_key("x-empty") {
            true => full(""),
            false => full("x"),
        }
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
    peer.greet(&[]).await;
    peer.send(&post(1, END_STREAM)).await;
    assert!(matches!(peer.frame().await, Frame::Headers { end: false, .. }));
    let last = Frame::Data { stream: 1, payload: "x".into(), end: true };
    assert_eq!(peer.frame().await, last);
    peer.send(&post_with(3, END_STREAM, &[("x-empty", "")])).await;
    assert!(matches!(peer.frame().await, Frame::Headers { stream: 3, end: true, .. }));
}
