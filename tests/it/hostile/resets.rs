//! Streams that are begun to be broken off.
use super::*;

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_rapid_reset_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let wave = |n| [post(id(n), 0), rst_stream(id(n), CANCEL)].concat();
    let attack = Attack { opening: vec![], wave, waves: 5_000 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_resets").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_byte_of_data_excuses_no_reset(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let wave = |n| [post(id(n), 0), data(id(n), 0, b"x"), rst_stream(id(n), CANCEL)].concat();
    let attack = Attack { opening: vec![], wave, waves: 5_000 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_resets").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn resets_after_the_response_headers_end_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let mut host = Host::new(placement, Limits::default()).await;
    let (mut attacker, serving) = host.greeted().await;
    let mut answered = 0;
    let said = loop {
        attacker.send(&post(id(answered), 0)).await;
        match attacker.frame().await {
            Frame::Headers { .. } => answered += 1,
            Frame::GoAway { code, reason, .. } => break (code, reason),
            other => panic!("{other:?}"),
        }
        attacker.send(&rst_stream(id(answered - 1), CANCEL)).await;
    };
    assert_eq!(said, (ENHANCE_YOUR_CALM, "too_many_resets".into()));
    assert!((4_096..5_000).contains(&answered), "{answered}");
    soon(serving).await.unwrap().unwrap();
    host.neighbour.is_well().await;
    assert_eq!(host.streams_left(), 0);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn resets_that_the_server_is_provoked_to_send_end_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |provoke: &dyn Fn(u32) -> Vec<u8>, flags: u8, reason: &str| {
        let wave = |n| [post_with(id(n), flags, &STUCK), provoke(id(n))].concat();
        let attack = Attack { opening: vec![], wave, waves: 1_000 };
        check(placement, attack, ENHANCE_YOUR_CALM, reason).await;
    };
    let errors = "too_many_stream_errors";
    check(&|id| window_update(id, 0), 0, errors).await;
    check(&|id| window_update(id, (1 << 31) - 1), 0, errors).await;
    check(&|id| data(id, 0, b"x"), END_STREAM, errors).await;
    check(&|id| headers(id, END_STREAM, &[("x", "y")]), END_STREAM, errors).await;
    // Counted as what it is before it is looked at.
    check(&|id| frame(2, 0, id, &[0; 4]), 0, "too_many_priorities").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn malformed_requests_end_the_connection_after_a_while(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let wave = |n| post_with(id(n), END_STREAM, &[("connection", "close")]);
    let attack = Attack { opening: vec![], wave, waves: 1_000 };
    check(placement, attack, ENHANCE_YOUR_CALM, "too_many_stream_errors").await;
}
