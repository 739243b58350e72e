//! What a peer may not do, and what that costs: the connection or one stream.
use super::*;

#[rstest]
#[tokio::test]
async fn these_end_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |sent: Vec<u8>, code, reason: &str| {
        let (mut peer, served) = greeted(placement).await;
        peer.send(&sent).await;
        assert_eq!(peer.goaway().await, (code, reason.to_owned()));
        drop(peer);
        soon(served.task).await.unwrap().unwrap();
        assert_eq!(served.counters.snapshot().goaways.len(), 1, "{reason}");
    };
    let open = |sent: Vec<u8>| [post(1, 0), sent].concat();
    let idle = "frame_on_idle_stream";
    check(data(1, 0, b"x"), PROTOCOL_ERROR, idle).await;
    check(data(0, 0, b"x"), PROTOCOL_ERROR, idle).await;
    check(rst_stream(1, CANCEL), PROTOCOL_ERROR, idle).await;
    check(rst_stream(0, CANCEL), PROTOCOL_ERROR, idle).await;
    check(rst_stream(2, CANCEL), PROTOCOL_ERROR, idle).await;
    check(window_update(1, 1), PROTOCOL_ERROR, idle).await;
    check(window_update(1, 0), PROTOCOL_ERROR, idle).await;
    check(window_update(0, 0), PROTOCOL_ERROR, "window_update_of_0").await;
    check(post(0, 0), PROTOCOL_ERROR, "headers_on_stream_0").await;
    check(post(2, 0), PROTOCOL_ERROR, "stream_of_the_wrong_parity").await;
    check(open(frame(5, 4, 1, &[0, 0, 0, 2])), PROTOCOL_ERROR, "push_promise").await;
    check(open(data(1, PADDED, &[2, 0])), PROTOCOL_ERROR, "padding_too_long").await;
    check(open(data(1, PADDED, &[])), FRAME_SIZE_ERROR, "frame_without_pad_length").await;
    check(frame(1, PADDED | END_HEADERS, 1, &[9, 0]), PROTOCOL_ERROR, "padding_too_long").await;
    check(open(data(1, 0, &[0; 16_385])), FRAME_SIZE_ERROR, "frame_too_large").await;
    check(frame(99, 0, 0, &[0; 16_385]), FRAME_SIZE_ERROR, "frame_too_large").await;
    check(open(frame(3, 0, 1, &[0; 3])), FRAME_SIZE_ERROR, "rst_stream_length").await;
    check(open(frame(8, 0, 1, &[0; 5])), FRAME_SIZE_ERROR, "window_update_length").await;
    check(frame(6, 0, 0, &[0; 7]), FRAME_SIZE_ERROR, "ping_length").await;
    check(frame(6, 0, 1, &[0; 8]), PROTOCOL_ERROR, "ping_on_a_stream").await;
    check(frame(7, 0, 0, &[0; 7]), FRAME_SIZE_ERROR, "goaway_length").await;
    check(frame(7, 0, 1, &[0; 8]), PROTOCOL_ERROR, "goaway_on_a_stream").await;
    check(frame(4, 0, 0, &[0; 5]), FRAME_SIZE_ERROR, "settings_length").await;
    check(frame(4, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR, "settings_ack_length").await;
    check(frame(4, 0, 1, &[]), PROTOCOL_ERROR, "settings_on_a_stream").await;
    check(frame(2, 0, 0, &[0; 5]), PROTOCOL_ERROR, "priority_on_stream_0").await;
    check(continuation(1, END_HEADERS, &[]), PROTOCOL_ERROR, "continuation_without_headers").await;
    let begun = frame(1, 0, 1, &hpack::encode(&POST));
    let interrupted = [begun.clone(), ping(b"12345678", 0)].concat();
    check(interrupted, PROTOCOL_ERROR, "header_block_interrupted").await;
    let interrupted = [begun.clone(), frame(99, 0, 0, &[])].concat();
    check(interrupted, PROTOCOL_ERROR, "header_block_interrupted").await;
    let mixed = [begun, continuation(3, END_HEADERS, &[])].concat();
    check(mixed, PROTOCOL_ERROR, "continuation_of_another_stream").await;
    let beyond = "header block refers past the end of the dynamic table";
    check(frame(1, END_HEADERS, 1, &[0xff, 0]), COMPRESSION_ERROR, beyond).await;
    let wide = window_update(0, (1 << 31) - 1);
    check(wide, FLOW_CONTROL_ERROR, "connection_window_overflow").await;
    let wide = [post(1, 0), window_update(1, 1), settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)])];
    check(wide.concat(), FLOW_CONTROL_ERROR, "stream_window_overflow_by_settings").await;
}

#[rstest]
#[tokio::test]
async fn these_end_the_connection_before_it_began(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let check = async |sent: &[u8], reason: &str| {
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, echo());
        peer.send(sent).await;
        assert_eq!(peer.goaway().await, (PROTOCOL_ERROR, reason.to_owned()));
    };
    check(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no_http2_preface").await;
    check(b"PRI * HTTP/2.0\r\n\r\nXX", "no_http2_preface").await;
    let settings_missing = "first_frame_is_not_settings";
    check(&[PREFACE, &post(1, 0)].concat(), settings_missing).await;
    check(&[PREFACE, &settings_ack()].concat(), settings_missing).await;
    check(&[PREFACE, &frame(99, 0, 0, &[])].concat(), settings_missing).await;
}

#[rstest]
#[tokio::test]
async fn these_end_one_stream_and_the_connection_lives(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = greeted(placement).await;
    let mut id = 1;
    let mut check = async |sent: &dyn Fn(u32) -> Vec<u8>, code| {
        peer.send(&sent(id)).await;
        assert_eq!(peer.frame().await, Frame::Reset { stream: id, code });
        peer.echo(id + 2).await;
        id += 4;
    };
    let with = |more: &'static [(&'static str, &'static str)]| move |id| post_with(id, 0, more);
    check(&with(&[("Upper", "x")]), PROTOCOL_ERROR).await;
    check(&with(&[("connection", "close")]), PROTOCOL_ERROR).await;
    check(&with(&[("te", "gzip")]), PROTOCOL_ERROR).await;
    check(&with(&[(":path", "/again")]), PROTOCOL_ERROR).await;
    check(&with(&[(":status", "200")]), PROTOCOL_ERROR).await;
    check(&with(&[("content-length", "x")]), PROTOCOL_ERROR).await;
    check(&with(&[("content-length", "1"), ("content-length", "2")]), PROTOCOL_ERROR).await;
    let four = |id| post_with(id, 0, &[("content-length", "4")]);
    let then = |id, more: Vec<u8>| [four(id), more].concat();
    check(&|id| then(id, data(id, 0, b"abcde")), PROTOCOL_ERROR).await;
    check(&|id| then(id, data(id, END_STREAM, b"abc")), PROTOCOL_ERROR).await;
    check(&|id| then(id, headers(id, END_STREAM, &[("x", "y")])), PROTOCOL_ERROR).await;
    check(&|id| post_with(id, END_STREAM, &[("content-length", "4")]), PROTOCOL_ERROR).await;
    let then = |id, more: Vec<u8>| [post(id, 0), more].concat();
    check(&|id| then(id, window_update(id, 0)), PROTOCOL_ERROR).await;
    check(&|id| then(id, window_update(id, (1 << 31) - 1)), FLOW_CONTROL_ERROR).await;
    check(&|id| then(id, headers(id, 0, &[("x", "y")])), PROTOCOL_ERROR).await;
    check(&|id| then(id, headers(id, END_STREAM, &[(":path", "/")])), PROTOCOL_ERROR).await;
    check(&|id| then(id, headers(id, END_STREAM, &[("Upper", "x")])), PROTOCOL_ERROR).await;
    check(&|id| then(id, frame(2, 0, id, &[0; 4])), FRAME_SIZE_ERROR).await;
    check(&|id| then(id, frame(2, 0, id, &[&id.to_be_bytes()[..], &[0]].concat())), PROTOCOL_ERROR)
        .await;
    let itself = |id: u32| [&id.to_be_bytes()[..], &[0], &hpack::encode(&POST)].concat();
    check(&|id| frame(1, PRIORITY | END_HEADERS, id, &itself(id)), PROTOCOL_ERROR).await;
}

#[rstest]
#[tokio::test]
async fn data_after_the_end_ends_the_stream(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let never = service_fn(|_: Request<RecvBody>| std::future::pending::<Reply>());
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, never);
    peer.greet(&[]).await;
    let after = [post(1, END_STREAM), data(1, 0, b"x"), post(3, END_STREAM), post(3, 0)];
    peer.send(&after.concat()).await;
    assert_eq!(peer.frame().await, Frame::Reset { stream: 1, code: STREAM_CLOSED });
    assert_eq!(peer.frame().await, Frame::Reset { stream: 3, code: STREAM_CLOSED });
    peer.expect_silence().await;
}

#[rstest]
#[tokio::test]
async fn unknown_frames_flags_and_settings_are_ignored(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = greeted(placement).await;
    peer.send(&frame(0xfa, 0xff, 7, b"grease")).await;
    peer.send(&settings(&[(0x1a1a, 7), (0x4242, 0)])).await;
    peer.send(&frame(6, 0xfe, 0, b"12345678")).await;
    assert_eq!(peer.frame().await, Frame::Pong(*b"12345678"));
    peer.echo(1).await;
}
