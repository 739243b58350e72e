//! RFC 9113, sections 5.2 and 6.9.
use super::*;

/// A connection whose service answers `bytes` bytes to anything.
async fn answering(placement: Placement, bytes: usize, entries: &[(u16, u32)]) -> (Peer, Served) {
    let service = service_fn(move |_: Request<RecvBody>| async move { full(vec![7; bytes]) });
    let (mut peer, served) = serve(placement, Limits::default(), BUFFER, service);
    peer.greet(entries).await;
    (peer, served)
}

/// Bytes of DATA, and whether a stream ended.
fn received(frames: &[Frame]) -> (usize, bool) {
    let data = frames.iter().filter_map(|frame| match frame {
        Frame::Data { payload, end, .. } => Some((payload.len(), *end)),
        _ => None,
    });
    data.fold((0, false), |(sum, ended), (length, end)| (sum + length, ended || end))
}

#[rstest]
#[tokio::test]
async fn blocked_data_follows_a_window_that_shrinks_and_grows(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = answering(placement, 100, &[(INITIAL_WINDOW_SIZE, 10)]).await;
    let mut check = async |sent: &[u8], expected| {
        peer.send(sent).await;
        assert_eq!(received(&peer.frames_until_pong().await), expected);
    };
    check(&post(1, END_STREAM), (10, false)).await;
    // 10 were sent: -6 after this.
    check(&settings(&[(INITIAL_WINDOW_SIZE, 4)]), (0, false)).await;
    check(&window_update(1, 6), (0, false)).await;
    check(&window_update(1, 2), (2, false)).await;
    check(&settings(&[(INITIAL_WINDOW_SIZE, 5)]), (1, false)).await;
    check(&settings(&[(INITIAL_WINDOW_SIZE, 0)]), (0, false)).await;
    check(&settings(&[(INITIAL_WINDOW_SIZE, 1_000)]), (87, true)).await;
}

#[rstest]
#[tokio::test]
async fn a_window_of_0_is_respected(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = answering(placement, 5, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    peer.send(&post(1, END_STREAM)).await;
    assert!(matches!(peer.frame().await, Frame::Headers { end: false, .. }));
    peer.expect_silence().await;
    peer.send(&window_update(1, 5)).await;
    let last = Frame::Data { stream: 1, payload: vec![7; 5].into(), end: true };
    assert_eq!(peer.frame().await, last);
}

#[rstest]
#[tokio::test]
async fn the_connection_window_is_shared(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = answering(placement, 50_000, &[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
    peer.send(&[post(1, END_STREAM), post(3, END_STREAM)].concat()).await;
    assert_eq!(received(&peer.frames_until_pong().await), (65_535, true));
    peer.send(&window_update(0, 4_465)).await;
    assert_eq!(received(&peer.frames_until_pong().await), (4_465, false));
    peer.send(&window_update(0, 1 << 20)).await;
    assert_eq!(received(&peer.frames_until_pong().await), (30_000, true));
}

#[rstest]
#[tokio::test]
async fn a_stream_that_waited_for_the_connection_is_polled_once_when_that_opens(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (told, polls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = polls.clone();
    let (first, wakes) = (told.clone(), mpsc::unbounded_channel::<std::task::Waker>());
    let waker = wakes.0;
    // Gives one message of the connection's whole window, then nothing, and counts its polls.
    let service = service_fn(move |_: Request<RecvBody>| {
        let (polls, first, waker) = (polls.clone(), first.clone(), waker.clone());
        let body = futures_util::stream::poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            let _ = waker.send(cx.waker().clone());
            if first.fetch_add(1, Ordering::Relaxed) > 0 {
                return std::task::Poll::Pending;
            }
            let data = BodyFrame::data(Bytes::from(vec![7; 65_535]));
            std::task::Poll::Ready(Some(Ok::<_, BoxError>(data)))
        });
        async move { Reply::Ok(Response::new(StreamBody::new(body).boxed_unsync())) }
    });
    // More pings than this client has a reason for.
    let mut limits = Limits::default();
    let pings = Flood { burst: 1_000, per_second: 0, per_useful_frame: 0 };
    limits.floods.set(FloodKind::Ping, pings);
    let (mut peer, _served) = serve(placement, limits, BUFFER, service);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
    peer.send(&post(1, 0)).await;
    assert_eq!(received(&peer.frames_until_pong().await), (65_535, false));
    // Each of these lets the stream have a turn, in which it finds the window shut.
    for _ in 0..100 {
        peer.send(&data(1, 0, b"x")).await;
        peer.expect_silence().await;
    }
    let before = counted.load(Ordering::Relaxed);
    peer.send(&window_update(0, 1_000)).await;
    peer.expect_silence().await;
    let polled = counted.load(Ordering::Relaxed) - before;
    assert!(polled <= 2, "{polled} polls");
}

#[rstest]
#[tokio::test]
async fn a_window_that_we_announced_smaller_than_the_default_does_not_get_stuck(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits {
        stream_flow_window_bytes: 1_000,
        stream_flow_window_bytes_max: 1_000,
        ..Limits::default()
    };
    let started = Arc::new(tokio::sync::Notify::new());
    let start = started.clone();
    let service = service_fn(move |request: Request<RecvBody>| {
        let start = start.clone();
        async move {
            start.notified().await;
            let length = request.into_body().collect().await?.to_bytes().len();
            full(length.to_string())
        }
    });
    let (mut peer, _served) = serve(placement, limits, BUFFER, service);
    peer.send(&[PREFACE, &settings(&[]), &post(1, 0)].concat()).await;
    // Before our settings bind it, a client may send the default window.
    for length in [16_384, 16_384, 16_384, 16_383] {
        peer.send(&data(1, 0, &vec![7; length])).await;
    }
    assert!(matches!(peer.any_frame().await, Frame::Settings(_)));
    peer.send(&settings_ack()).await;
    peer.expect_silence().await;
    started.notify_one();
    let mut room = -64_535_i64;
    let mut left = 100_000_usize;
    while left > 0 {
        while room <= 0 {
            if let Frame::WindowUpdate { stream: 1, increment } = peer.any_frame().await {
                room += i64::from(increment);
            }
        }
        let length = left.min(usize::try_from(room).unwrap()).min(16_384);
        peer.send(&data(1, 0, &vec![7; length])).await;
        room -= i64::try_from(length).unwrap();
        left -= length;
    }
    peer.send(&data(1, END_STREAM, &[])).await;
    assert_eq!(peer.answer(1).await.body, b"165535");
}

#[rstest]
#[tokio::test]
async fn more_than_a_window_ends_the_connection(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    // Kept, not dropped: what nobody wants is granted again at once.
    let unread = || {
        service_fn(|request: Request<RecvBody>| async {
            let _unread = request;
            std::future::pending::<Reply>().await
        })
    };
    let check = async |limits: Limits, reason: &str| {
        let (mut peer, _served) = serve(placement, limits, BUFFER, unread());
        peer.greet(&[]).await;
        peer.send(&[post(1, 0), post(3, 0)].concat()).await;
        for stream in [1, 1, 1, 3, 3, 3, 1, 1] {
            peer.send(&data(stream, 0, &[7; 16_384])).await;
        }
        assert_eq!(peer.goaway().await, (FLOW_CONTROL_ERROR, reason.to_owned()));
    };
    check(Limits::default(), "stream_window_exceeded").await;
    let limits = Limits { connection_flow_window_bytes: 65_535, ..Limits::default() };
    check(limits, "connection_window_exceeded").await;
}

/// Answers with a body that the test gives.
fn given(
    to: mpsc::UnboundedSender<Sender>,
) -> impl Service<Request<RecvBody>, Response = Response<Boxed>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ Unpin
+ 'static {
    service_fn(move |_unread: Request<RecvBody>| {
        let (sender, body) = channel();
        to.send(sender).unwrap();
        async { Ok(Response::new(body)) }
    })
}

/// Bodies that give a piece a poll, as a channel's or a proxy's: after each one they are asked later, if they had nothing more
/// so far, and that must not become their speed.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_body_that_was_calm_and_then_has_much_gives_it_at_once(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (to, mut senders) = mpsc::unbounded_channel();
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, given(to));
    peer.greet(&[]).await;
    peer.send(&post_with(1, 0, &[])).await;
    let sender = senders.recv().await.unwrap();
    let give = |piece| sender.send(Ok(BodyFrame::data(Bytes::from_static(piece)))).unwrap();
    assert!(matches!(peer.frame().await, Frame::Headers { .. }));
    for _ in 0..10 {
        give(b"calm");
        assert!(matches!(peer.frame().await, Frame::Data { .. }));
        peer.expect_silence().await;
    }
    let began = tokio::time::Instant::now();
    (0..100).for_each(|_| give(b"much"));
    let mut came = 0;
    while came < 400 {
        let Frame::Data { payload, .. } = peer.frame().await else { panic!("data comes") };
        came += payload.len();
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(20), "{took:?} for a hundred pieces");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_body_behind_a_shut_window_is_stalled_as_soon_as_it_has_something_and_not_before(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    const STALL: Duration = Duration::from_secs(8);
    let limits = Limits { stall_timeout: Some(STALL), ..Limits::default() };
    let (to, mut senders) = mpsc::unbounded_channel();
    let (mut peer, _served) = serve(placement, limits, BUFFER, given(to));
    peer.greet(&[(INITIAL_WINDOW_SIZE, 4)]).await;
    let grpc = [("content-type", "application/grpc")];
    peer.send(&[post_with(1, 0, &grpc), post_with(3, 0, &grpc)].concat()).await;
    let idle = senders.recv().await.unwrap();
    let busy = senders.recv().await.unwrap();
    for sender in [&idle, &busy] {
        sender.send(Ok(BodyFrame::data(Bytes::from_static(b"ping")))).unwrap();
    }
    for _ in 0..4 {
        assert!(matches!(peer.frame().await, Frame::Headers { .. } | Frame::Data { .. }));
    }
    // Both windows are used up to the byte, both clients are still there; nothing is in any inbox.
    for _ in 0..8 {
        tokio::time::advance(STALL / 2).await;
        peer.expect_silence().await;
    }
    busy.send(Ok(BodyFrame::data(Bytes::from_static(b"more")))).unwrap();
    let began = tokio::time::Instant::now();
    let end = peer.frame().await;
    assert_eq!((end.stream(), end.header("grpc-status")), (3, Some("8")));
    assert_eq!(peer.frame().await, Frame::Reset { stream: 3, code: NO_ERROR });
    assert!(began.elapsed() <= STALL * 3 / 2, "after {:?}", began.elapsed());
    // The other one lives, and ends in order although its window is shut: trailers need none.
    idle.send(Ok(trailers("0"))).unwrap();
    drop(idle);
    let end = peer.frame().await;
    assert_eq!((end.stream(), end.header("grpc-status")), (1, Some("0")));
}

#[rstest]
#[tokio::test]
async fn pieces_that_wait_for_tiny_windows_are_bounded_and_starve_no_sibling_that_is_read(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let polled = Arc::new(AtomicUsize::new(0));
    let counted = polled.clone();
    let service = service_fn(move |request: Request<RecvBody>| {
        let counted = counted.clone();
        let body = if request.headers().contains_key("x-echo") {
            request.into_body().map_err(BoxError::from).boxed_unsync()
        } else {
            let pieces = std::iter::repeat_with(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(BodyFrame::data(Bytes::from_static(&[7; 100_000])))
            });
            StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync()
        };
        async { Ok::<_, BoxError>(Response::new(body)) }
    });
    let limits = Limits { pending_bytes_max: 1 << 20, ..Limits::default() };
    let (mut peer, _served) = serve(placement, limits, BUFFER, service);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 1)]).await;
    for id in (1..400).step_by(2) {
        peer.send(&post(id, 0)).await;
    }
    // A byte of each that was polled.
    let (mut heads, mut bytes) = (0, 0);
    while heads < 200 || bytes < 6 {
        match peer.frame().await {
            Frame::Headers { .. } => heads += 1,
            Frame::Data { payload, .. } => bytes += payload.len(),
            other => panic!("{other:?}"),
        }
    }
    // Half a MiB of pieces, and the one that went beyond; so many tasks may be asked at once.
    let ahead = if placement == Placement::Task { 16 } else { 0 };
    let polled = || polled.load(Ordering::SeqCst);
    assert!((6..=6 + ahead).contains(&polled()), "{} polls", polled());
    let widen = [window_update(0, 1 << 30), window_update(401, 1 << 30)];
    peer.send(&[post_with(401, 0, &[("x-echo", "1")]), widen.concat()].concat()).await;
    for _ in 0..100 {
        peer.send(&data(401, 0, &[7; 10_000])).await;
        let mut left = 10_000;
        while left > 0 {
            match peer.frame().await {
                Frame::Data { stream: 401, payload, .. } => left -= payload.len(),
                Frame::Headers { stream: 401, .. } => {}
                Frame::Data { payload, .. } if ahead > 0 => bytes += payload.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((6..=6 + ahead).contains(&polled()), "{} polls", polled());
    // Those that are read make room for others.
    for id in (1..400).step_by(2) {
        peer.send(&window_update(id, 99_999)).await;
    }
    // A piece each, of which a few bytes have been read before.
    let mut left = 200 * 100_000 - bytes;
    while left > 0 {
        if let Frame::Data { payload, .. } = peer.frame().await {
            left -= payload.len();
        }
    }
    peer.frames_until_pong().await;
    assert!((200..=200 + ahead).contains(&polled()), "{} polls", polled());
}

#[rstest]
#[tokio::test]
async fn stuck_streams_do_not_starve_their_siblings(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let service = service_fn(|request: Request<RecvBody>| async move {
        if request.headers().contains_key("x-stuck") {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
    peer.greet(&[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    peer.send(&window_update(0, 1 << 30)).await;
    for id in (1..400).step_by(2) {
        peer.send(&post_with(id, 0, &[("x-stuck", "1")])).await;
        for _ in 0..4 {
            peer.send(&data(id, 0, &[7; 16_384])).await;
        }
    }
    peer.send(&post(401, 0)).await;
    // Far more than is left of the connection's window, never more than of the stream's.
    for _ in 0..400 {
        peer.send(&data(401, 0, &[7; 16_000])).await;
        let mut left = 16_000;
        while left > 0 {
            match peer.frame().await {
                Frame::Data { stream: 401, payload, .. } => left -= payload.len(),
                Frame::Headers { stream: 401, .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[rstest]
#[tokio::test]
async fn padding_and_what_nobody_reads_is_granted_again(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let service = service_fn(|request: Request<RecvBody>| async move {
        drop(request);
        std::future::pending::<Reply>().await
    });
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
    peer.greet(&[]).await;
    peer.send(&post(1, 0)).await;
    // Those that the greeting took and did not keep.
    let (mut stream, mut connection) = (65_536_i64, 16_i64 << 20);
    let padded = [&[255][..], &[7; 16_000], &[0; 255]].concat();
    let length = i64::try_from(padded.len()).unwrap();
    for _ in 0..1_500 {
        while stream < length || connection < length {
            match peer.any_frame().await {
                Frame::WindowUpdate { stream: 0, increment } => {
                    connection += i64::from(increment);
                }
                Frame::WindowUpdate { increment, .. } => stream += i64::from(increment),
                other => panic!("{other:?}"),
            }
        }
        peer.send(&data(1, PADDED, &padded)).await;
        stream -= length;
        connection -= length;
    }
}

#[rstest]
#[tokio::test]
async fn an_empty_increment_on_a_stream_that_is_over_is_answered(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = serve(
        placement,
        Limits::default(),
        BUFFER,
        service_fn(|_: Request<RecvBody>| async { full("x") }),
    );
    peer.greet(&[]).await;
    peer.send(&post(1, END_STREAM)).await;
    peer.answer(1).await;
    peer.send(&window_update(1, 0)).await;
    assert_eq!(peer.frame().await, Frame::Reset { stream: 1, code: PROTOCOL_ERROR });
}
