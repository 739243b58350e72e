//! Streams at once, and the end of a connection.
use super::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[rstest]
#[tokio::test]
async fn streams_above_the_limit_are_refused_and_places_are_given_again(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let limits = Limits { max_concurrent_streams: 2, ..Limits::default() };
    let (mut peer, _served) = serve(placement, limits, BUFFER, echo());
    peer.greet(&[]).await;
    peer.send(&[post(1, 0), post(3, 0), post(5, 0), data(5, END_STREAM, b"x")].concat()).await;
    let mut frames = peer.frames_until_pong().await;
    frames.retain(|frame| matches!(frame, Frame::Reset { .. }));
    assert_eq!(frames, [Frame::Reset { stream: 5, code: REFUSED_STREAM }]);
    peer.send(&data(1, END_STREAM, b"x")).await;
    while !matches!(peer.frame().await, Frame::Data { stream: 1, end: true, .. }) {}
    peer.echo(7).await;
}

/// What a server with these limits announces is legal, and a byte makes it there and back.
async fn check_extremes(placement: Placement, limits: Limits) {
    let (mut peer, _served) = serve(placement, limits, BUFFER, echo());
    peer.send(&[PREFACE, &settings(&[])].concat()).await;
    let Frame::Settings(entries) = peer.any_frame().await else { panic!("SETTINGS come first") };
    let window = entries.iter().find(|(name, _)| *name == INITIAL_WINDOW_SIZE).unwrap().1;
    assert!((1..=WINDOW_MAX).contains(&window), "{window}");
    peer.send(&[settings_ack(), post(1, 0), data(1, END_STREAM, b"x")].concat()).await;
    let (mut open, mut echoed) = (65_535, Vec::new());
    loop {
        match peer.any_frame().await {
            Frame::WindowUpdate { stream, increment } => {
                open += if stream == 0 { increment } else { 0 };
                assert!((1..=WINDOW_MAX).contains(&increment), "{increment} on {stream}");
                assert!(open <= WINDOW_MAX, "the connection's window grows to {open}");
            }
            Frame::Data { payload, end, .. } => {
                echoed.extend_from_slice(&payload);
                if end {
                    break;
                }
            }
            Frame::SettingsAck | Frame::Headers { .. } | Frame::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(echoed, b"x");
}

/// RFC 9113, 6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

#[rstest]
#[tokio::test]
async fn limits_that_the_protocol_or_the_clock_does_not_know_are_the_last_that_it_does(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    check_extremes(
        placement,
        Limits {
            max_concurrent_streams: u32::MAX,
            header_list_bytes_max: u32::MAX,
            stream_flow_window_bytes: u32::MAX,
            stream_flow_window_bytes_max: u32::MAX,
            connection_flow_window_bytes: u32::MAX,
            output_bytes_max: usize::MAX,
            pending_bytes_max: usize::MAX,
            held_bytes_max: usize::MAX,
            heads_bytes_max: usize::MAX,
            control_bytes_max: usize::MAX,
            ..Limits::default()
        },
    )
    .await;
    check_extremes(
        placement,
        Limits {
            stream_flow_window_bytes: 0,
            stream_flow_window_bytes_max: 0,
            connection_flow_window_bytes: 0,
            output_bytes_max: 0,
            pending_bytes_max: 0,
            heads_bytes_max: 0,
            control_bytes_max: 0,
            ..Limits::default()
        },
    )
    .await;
    let max = Duration::MAX;
    check_extremes(
        placement,
        Limits {
            handshake_timeout: max,
            header_block_timeout: max,
            connection_idle_timeout: Some(max),
            stream_idle_timeout: Some(max),
            stall_timeout: Some(max),
            keepalive: Some(Keepalive { interval: max, timeout: max }),
            age: Some(Age { max, grace: Some(max) }),
            ..Limits::default()
        },
    )
    .await;
}

/// Inline alone: a task may go on for a while, and keeps its place until it is gone.
#[tokio::test]
async fn a_stream_that_was_cancelled_frees_its_place_at_once() {
    let limits = Limits { max_concurrent_streams: 2, ..Limits::default() };
    let (mut peer, _served) = serve(Placement::Inline, limits, BUFFER, echo());
    peer.greet(&[]).await;
    peer.send(&[post(1, 0), post(3, 0)].concat()).await;
    peer.frames_until_pong().await;
    let cancel = |stream| rst_stream(stream, CANCEL);
    let again = [cancel(1), post(5, 0), cancel(3), post(7, END_STREAM), cancel(5), post(9, 0)];
    peer.send(&again.concat()).await;
    let mut frames = peer.frames_until_pong().await;
    frames.retain(|frame| matches!(frame, Frame::Reset { .. }));
    assert_eq!(frames, []);
}

#[rstest]
#[tokio::test]
async fn three_thousand_streams_may_open_before_the_settings_were_seen(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, echo());
    let mut sent = [PREFACE, &settings(&[])].concat();
    for id in (1..6_000).step_by(2) {
        sent.extend(post(id, 0));
    }
    for id in (1..6_000).step_by(2) {
        sent.extend(data(id, END_STREAM, b"ping"));
    }
    peer.send(&sent).await;
    let mut ended = 0;
    while ended < 3_000 {
        match peer.frame().await {
            Frame::Headers { .. } => {}
            Frame::Data { payload, end, .. } => {
                assert!(payload == "ping" || payload.is_empty());
                ended += u32::from(end);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_client_that_says_goaway_is_served_to_the_end_of_its_streams_and_no_further(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (mut peer, served) = greeted(placement).await;
    peer.send(&[post(1, 0), data(1, 0, b"a"), goaway(NO_ERROR), post(3, 0)].concat()).await;
    assert!(matches!(peer.frame().await, Frame::GoAway { last: 1, code: NO_ERROR, .. }));
    assert!(matches!(peer.frame().await, Frame::Headers { stream: 1, .. }));
    assert!(matches!(peer.frame().await, Frame::Data { stream: 1, .. }));
    peer.send(&[post(5, END_STREAM), data(3, 0, b"x"), data(1, END_STREAM, b"b")].concat()).await;
    assert_eq!(rest(&mut peer, 1).await, b"b");
    assert_eq!(peer.try_frame().await, None);
    let counted = served.counters.snapshot();
    assert_eq!(
        (counted.streams_opened, counted.streams_refused),
        (1, 2),
        "3 came behind GOAWAY, too"
    );
    drop(peer);
    soon(served.task).await.unwrap().unwrap();
}

#[rstest]
#[tokio::test]
async fn a_drain_says_goaway_twice_and_lets_streams_end(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = bidi_echo::transport::Server::new(Limits::default()).placement(placement);
    let stopped = async { stopped.await.unwrap_or(()) };
    let serving = tokio::spawn(server.serve(listener, echo(), stopped));
    let peer = Peer::new(TcpStream::connect(address).await.unwrap());
    drains(peer, stop).await;
    soon(serving).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// A connection that is not TCP, or that somebody else accepted.
#[rstest]
#[tokio::test]
async fn a_connection_of_ones_own_drains_as_a_server_does(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let serve = |drain_limit| {
        let (near, far) = tokio::io::duplex(BUFFER);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or(()) };
        let server = bidi_echo::transport::Server::new(Limits::default());
        let server = server.placement(placement).drain_limit(drain_limit);
        let serving = tokio::spawn(async move {
            let none = http::Extensions::new();
            server.serve_connection_with_shutdown(far, echo(), none, stopped).await
        });
        (Peer::new(near), stop, serving)
    };
    let (peer, stop, serving) = serve(Duration::from_secs(10));
    drains(peer, stop).await;
    soon(serving).await.unwrap().unwrap();
    // A stream that does not end is ended.
    let (mut peer, stop, serving) = serve(Duration::from_millis(100));
    peer.greet(&[]).await;
    peer.send(&grpc(1, 0, &[])).await;
    peer.frame().await;
    stop.send(()).unwrap();
    let mut statuses = Vec::new();
    while let Some(frame) = peer.try_frame().await {
        if let Frame::Headers { .. } = &frame {
            statuses.extend(frame.header("grpc-status").map(str::to_owned));
        }
    }
    assert_eq!(statuses.len(), 1, "{statuses:?}");
    soon(serving).await.unwrap().unwrap();
    // One that nobody stops goes on until its client leaves.
    let (mut peer, _stop, serving) = serve(Duration::from_millis(100));
    peer.greet(&[]).await;
    peer.echo(1).await;
    drop(peer);
    soon(serving).await.unwrap().unwrap();
}

async fn drains<IO: AsyncRead + AsyncWrite + Unpin>(mut peer: Peer<IO>, stop: oneshot::Sender<()>) {
    peer.greet(&[]).await;
    peer.send(&post(1, 0)).await;
    peer.frame().await;
    stop.send(()).unwrap();
    assert!(matches!(peer.frame().await, Frame::GoAway { last: 0x7fff_ffff, code: 0, .. }));
    let Frame::Ping(opaque) = peer.frame().await else { panic!("a ping between") };
    peer.echo(3).await;
    peer.send(&ping(&opaque, ACK)).await;
    assert!(matches!(peer.frame().await, Frame::GoAway { last: 3, code: 0, .. }));
    peer.send(&post(5, END_STREAM)).await;
    peer.send(&data(1, END_STREAM, b"late")).await;
    assert_eq!(rest(&mut peer, 1).await, b"late");
    assert_eq!(peer.try_frame().await, None);
}

#[rstest]
#[tokio::test]
async fn a_stopped_body_gets_nothing_behind_a_gap(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (ended, mut end) = mpsc::unbounded_channel();
    // Reads on another task, but not before the connection has been stopped and got more.
    let (go, gone) = tokio::sync::watch::channel(false);
    let service = service_fn(move |request: Request<RecvBody>| {
        let (ended, mut gone) = (ended.clone(), gone.clone());
        async move {
            tokio::spawn(async move {
                gone.wait_for(|gone| *gone).await.unwrap();
                ended.send(request.into_body().collect().await.map(|all| all.to_bytes()))
            });
            std::future::pending::<Reply>().await
        }
    });
    let server = bidi_echo::transport::Server::new(Limits::default()).placement(placement);
    let limit = std::time::Duration::from_millis(600);
    let stopped = async { stopped.await.unwrap_or(()) };
    let serving = server.drain_limit(limit).serve(listener, service, stopped);
    let serving = tokio::spawn(serving);
    let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
    peer.greet(&[]).await;
    peer.send(&[post(1, 0), data(1, 0, b"before")].concat()).await;
    peer.expect_silence().await;
    stop.send(()).unwrap();
    // The second GOAWAY says that handlers get nothing more: nobody answered the ping.
    while !matches!(peer.frame().await, Frame::GoAway { last: 1, .. }) {}
    peer.send(&data(1, END_STREAM, b"behind")).await;
    peer.send(&ping(b"all well", 0)).await;
    assert_eq!(peer.frame().await, Frame::Pong(*b"all well"));
    go.send(true).unwrap();
    let ended = soon(end.recv()).await.unwrap();
    assert!(matches!(ended, Err(BodyError::Ended(_))), "{ended:?}");
    soon(serving).await.unwrap();
}
