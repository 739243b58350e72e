//! RFC 9113, sections 4.3, 6.10 and 8; gRPC over HTTP/2.
use super::*;

#[rstest]
#[tokio::test]
async fn trailers_pass_both_ways(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = greeted(placement).await;
    peer.send(&[post(1, 0), data(1, 0, b"abc")].concat()).await;
    peer.send(&headers(1, END_STREAM, &[("x-sum", "294")])).await;
    let answer = peer.answer(1).await;
    assert_eq!((answer.status(), &answer.body[..]), ("200", &b"abc"[..]));
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "294".to_owned())]);
    peer.expect_silence().await;
}

#[rstest]
#[tokio::test]
async fn a_header_block_may_come_in_pieces_with_padding_and_priority(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = greeted(placement).await;
    let block = hpack::encode(&POST);
    let first = [&[3, 0, 0, 0, 0, 9][..], &block[..5], &[0; 3]].concat();
    peer.send(&frame(1, PADDED | PRIORITY, 1, &first)).await;
    for piece in block[5..].chunks(7) {
        peer.send(&continuation(1, 0, piece)).await;
    }
    peer.send(&continuation(1, END_HEADERS, &[])).await;
    peer.send(&data(1, PADDED | END_STREAM, b"\x02ping\0\0")).await;
    assert_eq!(peer.answer(1).await.body, b"ping");
}

#[rstest]
#[tokio::test]
async fn an_answer_with_a_long_header_goes_on_in_continuations(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let long = service_fn(|_: Request<RecvBody>| async {
        let mut response = full("")?;
        let value = "x".repeat(40_000).parse().unwrap();
        response.headers_mut().insert("x-long", value);
        Reply::Ok(response)
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, long);
    peer.greet(&[]).await;
    peer.send(&post(1, END_STREAM)).await;
    let head = peer.frame().await;
    assert_eq!(head.header("x-long").map(str::len), Some(40_000));
}

#[rstest]
#[tokio::test]
async fn a_smaller_header_table_is_announced_first_thing_in_the_next_block(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let named = service_fn(|_: Request<RecvBody>| async {
        let mut response = full("")?;
        response.headers_mut().insert("x-name", "value".parse().unwrap());
        Reply::Ok(response)
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, named);
    peer.greet(&[]).await;
    let mut id = 1;
    let mut check = async |entries: &[(u16, u32)], updates: &[usize]| {
        peer.send(&settings(entries)).await;
        while peer.any_frame().await != Frame::SettingsAck {}
        if let Some((_, last)) = entries.last() {
            peer.decoder.allowed_bytes = *last as usize;
        }
        for updates in [updates, &[]] {
            peer.send(&post(id, END_STREAM)).await;
            assert_eq!(peer.frame().await.header("x-name"), Some("value"));
            assert_eq!(peer.decoder.size_updates, updates);
            id += 2;
        }
    };
    check(&[], &[]).await;
    check(&[(HEADER_TABLE_SIZE, 0)], &[0]).await;
    check(&[(HEADER_TABLE_SIZE, 4_096)], &[4_096]).await;
    check(&[(HEADER_TABLE_SIZE, 0), (HEADER_TABLE_SIZE, 4_096)], &[0, 4_096]).await;
    check(&[(HEADER_TABLE_SIZE, 65_536)], &[]).await;
    check(&[(HEADER_TABLE_SIZE, 100)], &[100]).await;
}

#[rstest]
#[tokio::test]
async fn a_header_list_that_is_too_large_costs_one_stream(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits { header_list_bytes_max: 1_000, ..Limits::default() };
    let (mut peer, served) = serve(placement, limits, BUFFER, echo());
    peer.greet(&[]).await;
    let large = "x".repeat(1_000);
    peer.send(&grpc(1, END_STREAM, &[("x-large", &large)])).await;
    let answer = peer.answer(1).await;
    assert_eq!((answer.status(), answer.grpc_status()), ("200", Some("8")));
    assert!(answer.trailers.is_empty(), "trailers-only");
    peer.send(&post_with(3, 0, &[("x-large", &large)])).await;
    assert_eq!(peer.answer(3).await.status(), "431");
    assert_eq!(peer.frame().await, Frame::Reset { stream: 3, code: NO_ERROR });
    // What was on its way.
    peer.send(&data(3, END_STREAM, b"x")).await;
    peer.echo(5).await;
    peer.send(&[post(7, 0), headers(7, END_STREAM, &[("x-large", &large)])].concat()).await;
    assert_eq!(peer.frame().await, Frame::Reset { stream: 7, code: CANCEL });
    peer.echo(9).await;
    let counted = served.counters.snapshot();
    assert_eq!((counted.streams_refused, counted.streams_broken), (2, 1));
}

#[rstest]
#[tokio::test]
async fn a_header_list_that_was_refused_still_counts_for_the_table(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits { header_list_bytes_max: 1_000, ..Limits::default() };
    let named = service_fn(|request: Request<RecvBody>| async move {
        full(request.headers()["x-kept"].as_bytes().to_vec())
    });
    let (mut peer, _served) = serve(placement, limits, BUFFER, named);
    peer.greet(&[]).await;
    let large = "x".repeat(1_000);
    let inserted = [&[0x40, 6][..], b"x-kept", &[5], b"value"].concat();
    let block = [hpack::encode(&POST), hpack::encode(&[("x", &large)]), inserted].concat();
    peer.send(&frame(1, END_HEADERS | END_STREAM, 1, &block)).await;
    assert_eq!(peer.answer(1).await.status(), "431");
    let block = [hpack::encode(&POST), vec![0x80 | 62]].concat();
    peer.send(&frame(1, END_HEADERS | END_STREAM, 3, &block)).await;
    assert_eq!(peer.answer(3).await.body, b"value");
}

#[rstest]
#[tokio::test]
async fn an_answer_that_the_client_does_not_take_becomes_a_failure(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let large = service_fn(|_: Request<RecvBody>| async {
        let mut response = full("")?;
        response.headers_mut().insert("x-large", "x".repeat(1_000).parse().unwrap());
        Reply::Ok(response)
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, large);
    peer.greet(&[(MAX_HEADER_LIST_SIZE, 500)]).await;
    peer.send(&[grpc(1, END_STREAM, &[]), post(3, END_STREAM)].concat()).await;
    assert_eq!(peer.answer(1).await.grpc_status(), Some("8"));
    assert_eq!(peer.answer(3).await.status(), "500");
}

/// 64 KiB, whatever the client would take.
#[rstest]
#[tokio::test]
async fn an_answer_that_is_longer_than_a_server_sends_keeps_its_status_and_nothing_else(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let large = service_fn(|request: Request<RecvBody>| async move {
        let mut fields = http::HeaderMap::new();
        fields.insert("grpc-status", "5".parse().unwrap());
        fields.insert("grpc-message", "x".repeat(100_000).parse().unwrap());
        if request.headers().contains_key("x-body") {
            let (sender, body) = channel();
            sender.send(Ok(BodyFrame::data(Bytes::from("piece")))).unwrap();
            sender.send(Ok(BodyFrame::trailers(fields))).unwrap();
            return Reply::Ok(Response::new(body));
        }
        let mut response = full("")?;
        *response.headers_mut() = fields;
        response.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        Reply::Ok(response)
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, large);
    peer.greet(&[]).await;
    peer.send(&grpc(1, END_STREAM, &[])).await;
    let answer = peer.answer(1).await;
    assert_eq!((answer.status(), answer.grpc_status()), ("200", Some("5")));
    let fields = |fields: &[(String, String)]| {
        fields.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(fields(&answer.head), [":status", "grpc-status", "content-type"]);
    peer.send(&grpc(3, END_STREAM, &[("x-body", "yes")])).await;
    let answer = peer.answer(3).await;
    assert_eq!((&answer.body[..], answer.grpc_status()), (&b"piece"[..], Some("5")));
    assert_eq!(fields(&answer.trailers), ["grpc-status"]);
    // What is not gRPC has no status to keep.
    peer.send(&post(5, END_STREAM)).await;
    assert_eq!(peer.answer(5).await.status(), "500");
}

#[rstest]
#[tokio::test]
async fn the_status_counts_for_what_the_client_takes(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let answers = service_fn(|_: Request<RecvBody>| async {
        let mut response = full("")?;
        response.headers_mut().insert("x-a", "x".repeat(57).parse().unwrap());
        Reply::Ok(response)
    });
    // RFC 9113, 6.5.2: `:status` and `x-a`, their values, and 32 each.
    let bytes = (7 + 3 + 32) + (3 + 57 + 32);
    for (bytes_max, status) in [(bytes, "200"), (bytes - 1, "500")] {
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, answers);
        peer.greet(&[(MAX_HEADER_LIST_SIZE, bytes_max)]).await;
        peer.send(&post(1, END_STREAM)).await;
        assert_eq!(peer.answer(1).await.status(), status, "at most {bytes_max} bytes");
    }
}

#[rstest]
#[tokio::test]
async fn a_service_sees_one_cookie_however_many_fields_the_client_made_of_it(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let cookies = service_fn(|request: Request<RecvBody>| async move {
        let all: Vec<_> = request.headers().get_all("cookie").iter().collect();
        full(format!("{all:?} of {}", request.headers().len()))
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, cookies);
    peer.greet(&[]).await;
    let mut id = 1;
    let mut check = async |more: &[(&str, &str)], expected: &str| {
        peer.send(&post_with(id, END_STREAM, more)).await;
        assert_eq!(String::from_utf8(peer.answer(id).await.body).unwrap(), expected);
        id += 2;
    };
    check(&[("a", "b")], "[] of 1").await;
    check(&[("cookie", "a=b; c=d")], r#"["a=b; c=d"] of 1"#).await;
    // RFC 9113, 8.2.3.
    let crumbs = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("cookie", "e=f")];
    check(&crumbs, r#"["a=b; c=d; e=f"] of 2"#).await;
}

#[rstest]
#[tokio::test]
async fn the_authority_may_be_missing_odd_or_the_host(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let named = service_fn(|request: Request<RecvBody>| async move {
        full(request.uri().authority().map(ToString::to_string).unwrap_or_default())
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, named);
    peer.greet(&[]).await;
    let mut id = 1;
    let mut check = async |more: &[(&str, &str)], expected: &str| {
        peer.send(&headers(id, END_STREAM, &[&POST[..3], more].concat())).await;
        assert_eq!(String::from_utf8(peer.answer(id).await.body).unwrap(), expected);
        id += 2;
    };
    check(&[], "").await;
    check(&[(":authority", "a:1")], "a:1").await;
    check(&[(":authority", "")], "").await;
    check(&[(":authority", "not an authority")], "").await;
    check(&[("host", "b:2")], "b:2").await;
    check(&[(":authority", "a:1"), ("host", "b:2")], "a:1").await;
}
