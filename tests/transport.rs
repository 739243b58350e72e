//! The inline transport from outside, frame by frame: what RFC 9113 and gRPC over HTTP/2 ask of a
//! server where h2spec does not look, and what services may rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bidi_echo::transport::{
    Age, BodyError, Flood, FloodKind, Keepalive, Limits, Placement, RecvBody,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame as BodyFrame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use rstest::rstest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::service_fn;
use tower_service::Service;

use support::peer::*;
use support::{hpack, soon};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Boxed = UnsyncBoxBody<Bytes, BoxError>;
type Reply = Result<Response<Boxed>, BoxError>;

const BUFFER: usize = 1 << 20;

/// Sends back what comes, trailers too.
fn echo()
-> impl Service<Request<RecvBody>, Response = Response<RecvBody>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ Unpin
+ 'static {
    service_fn(|request: Request<RecvBody>| async {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    })
}

fn full(body: impl Into<Bytes>) -> Reply {
    Ok(Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()))
}

/// What a handler sends, frame by frame; dropping it ends the body.
type Sender = mpsc::UnboundedSender<Result<BodyFrame<Bytes>, BoxError>>;

fn channel() -> (Sender, Boxed) {
    let (sender, frames) = mpsc::unbounded_channel();
    (sender, StreamBody::new(UnboundedReceiverStream::new(frames)).boxed_unsync())
}

fn trailers(status: &'static str) -> BodyFrame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(status));
    BodyFrame::trailers(trailers)
}

/// A connection to the echo, greeted, with default limits.
async fn greeted(placement: Placement) -> (Peer, Served) {
    let (mut peer, served) = serve(placement, Limits::default(), BUFFER, echo());
    peer.greet(&[]).await;
    (peer, served)
}

/// What an echo still has to say, to its end. On a task of its own it learns of that after its last piece.
async fn rest<IO: AsyncRead + AsyncWrite + Unpin>(peer: &mut Peer<IO>, echo: u32) -> Vec<u8> {
    let mut rest = Vec::new();
    loop {
        match peer.frame().await {
            Frame::Data { stream, payload, end } if stream == echo => {
                rest.extend_from_slice(&payload);
                if end {
                    return rest;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

mod streams {
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
        for (wrong, code) in [(&[0, 0, 0, 1, 15][..], PROTOCOL_ERROR), (&[0; 4], FRAME_SIZE_ERROR)]
        {
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
}

mod limits {
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
        let Frame::Settings(entries) = peer.any_frame().await else {
            panic!("SETTINGS come first")
        };
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
        peer.send(&[post(5, END_STREAM), data(3, 0, b"x"), data(1, END_STREAM, b"b")].concat())
            .await;
        assert_eq!(rest(&mut peer, 1).await, b"b");
        assert_eq!(peer.try_frame().await, None);
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
        let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
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
        drop(peer);
        soon(serving).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
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
}

mod services {
    //! What a service may do, and what it may rely on.
    use super::*;
    use std::task::{Context, Poll};
    use std::time::{Duration, Instant};
    use tokio::net::TcpSocket;

    /// Panics when it is dropped.
    struct Mine;

    impl Drop for Mine {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("dropped");
            }
        }
    }

    /// Fails or works as the path says; `/a/b` echoes.
    fn failing()
    -> impl Service<Request<RecvBody>, Response = Response<Boxed>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + Unpin
    + 'static {
        service_fn(|request: Request<RecvBody>| {
            let mine = match request.uri().path() {
                "/panic/call" => panic!("called"),
                "/panic/drop" | "/panic/drop-done" => Some(Mine),
                _ => None,
            };
            async move {
                let (sender, body) = channel();
                let send = |frame| sender.send(frame).unwrap();
                match request.uri().path() {
                    "/panic/poll" => panic!("polled"),
                    "/panic/drop" => std::future::pending::<()>().await,
                    "/panic/drop-done" => drop(mine),
                    "/panic/body" => {
                        let panics = futures_util::stream::poll_fn(
                            |_| -> Poll<Option<Result<BodyFrame<Bytes>, BoxError>>> {
                                panic!("body")
                            },
                        );
                        return Ok(Response::new(StreamBody::new(panics).boxed_unsync()));
                    }
                    "/panic/drop-body" => {
                        let mine = Mine;
                        let stream = futures_util::stream::poll_fn(
                            move |_| -> Poll<Option<Result<BodyFrame<Bytes>, BoxError>>> {
                                let _ = &mine;
                                Poll::Ready(None)
                            },
                        );
                        return Ok(Response::new(StreamBody::new(stream).boxed_unsync()));
                    }
                    "/panic/drop-extension" => {
                        let mut response = full("x")?;
                        response.extensions_mut().insert(Arc::new(Mine));
                        return Ok(response);
                    }
                    "/error/call" => return Err("failed".into()),
                    "/error/body" => send(Err("failed".into())),
                    "/trailers" => {
                        send(Ok(BodyFrame::data("x".into())));
                        send(Ok(trailers("0")));
                    }
                    _ => {
                        let body = request.into_body().map_err(Into::into);
                        return Ok(Response::new(body.boxed_unsync()));
                    }
                }
                drop(sender);
                Ok(Response::new(body))
            }
        })
    }

    fn to(path: &str, stream: u32, flags: u8, is_grpc: bool) -> Vec<u8> {
        let mut fields = POST.to_vec();
        fields[2].1 = path;
        if is_grpc {
            fields.push(("content-type", "application/grpc"));
        }
        headers(stream, flags, &fields)
    }

    #[rstest]
    #[tokio::test]
    async fn a_failure_or_a_panic_ends_one_stream_and_the_neighbours_live(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (mut peer, served) = serve(placement, Limits::default(), BUFFER, failing());
        peer.greet(&[]).await;
        // The neighbour, open all the time.
        peer.send(&[post(1, 0), data(1, 0, b"ping")].concat()).await;
        while !matches!(peer.frame().await, Frame::Data { stream: 1, .. }) {}
        let mut id = 3;
        let mut check = async |path: &str, grpc, http| {
            for is_grpc in [true, false] {
                peer.send(&to(path, id, END_STREAM, is_grpc)).await;
                let found = match is_grpc {
                    true => peer.answer(id).await.grpc_status().map(str::to_owned),
                    false => match peer.frame().await {
                        head @ Frame::Headers { end: true, .. } => {
                            head.header(":status").map(str::to_owned)
                        }
                        Frame::Headers { .. } => match peer.frame().await {
                            Frame::Reset { code, .. } => Some(format!("reset {code}")),
                            other => panic!("{other:?}"),
                        },
                        other => panic!("{other:?}"),
                    },
                };
                assert_eq!(found.as_deref(), Some(if is_grpc { grpc } else { http }), "{path}");
                peer.send(&data(1, 0, b"ping")).await;
                let pong = Frame::Data { stream: 1, payload: "ping".into(), end: false };
                assert_eq!(peer.frame().await, pong);
                id += 2;
            }
        };
        check("/panic/call", "13", "500").await;
        check("/panic/poll", "13", "500").await;
        check("/panic/drop-done", "13", "500").await;
        check("/panic/body", "13", "reset 2").await;
        check("/error/call", "13", "500").await;
        check("/error/body", "13", "reset 2").await;
        assert_eq!(served.counters.snapshot().panics, 8);
    }

    #[rstest]
    #[tokio::test]
    async fn a_panic_in_a_drop_costs_nobody_else_anything(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (mut peer, served) = serve(placement, Limits::default(), BUFFER, failing());
        peer.greet(&[]).await;
        peer.send(&to("/panic/drop", 1, 0, true)).await;
        peer.expect_silence().await;
        peer.send(&rst_stream(1, CANCEL)).await;
        peer.echo(3).await;
        peer.send(&to("/panic/drop-body", 5, END_STREAM, false)).await;
        peer.answer(5).await;
        peer.echo(7).await;
        peer.send(&to("/panic/drop-extension", 9, END_STREAM, false)).await;
        assert_eq!(peer.answer(9).await.status(), "500");
        peer.echo(11).await;
        assert_eq!(served.counters.snapshot().panics, 3);
    }

    #[rstest]
    #[tokio::test]
    async fn an_early_answer_leaves_whole_before_the_reset_and_what_still_comes_is_granted_again(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, failing());
        peer.greet(&[]).await;
        peer.send(&to("/trailers", 1, 0, true)).await;
        let answer = peer.answer(1).await;
        assert_eq!((&answer.body[..], answer.grpc_status()), (&b"x"[..], Some("0")));
        assert_eq!(peer.frame().await, Frame::Reset { stream: 1, code: NO_ERROR });
        for _ in 0..1_000 {
            peer.send(&data(1, 0, &[7; 16_384])).await;
        }
        let mut granted = 0;
        while granted < 8 << 20 {
            match peer.any_frame().await {
                Frame::WindowUpdate { stream: 0, increment } => granted += increment,
                other => panic!("{other:?}"),
            }
        }
        peer.echo(3).await;
    }

    #[rstest]
    #[tokio::test]
    async fn a_deadline_ends_the_stream_wherever_it_is(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (held, mut holding) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<RecvBody>| {
            let held = held.clone();
            async move {
                let bytes: usize = match request.headers().get("x-bytes") {
                    Some(bytes) => bytes.to_str().unwrap().parse().unwrap(),
                    None => std::future::pending().await,
                };
                let (sender, body) = channel();
                sender.send(Ok(BodyFrame::data(vec![7; bytes].into()))).unwrap();
                held.send(sender).unwrap();
                Reply::Ok(Response::new(body))
            }
        });
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
        peer.greet(&[(INITIAL_WINDOW_SIZE, 10)]).await;
        let begun = Instant::now();
        peer.send(&grpc(1, 0, &[("grpc-timeout", "20m")])).await;
        assert_eq!(peer.answer(1).await.grpc_status(), Some("4"));
        assert_eq!(peer.frame().await, Frame::Reset { stream: 1, code: NO_ERROR });
        assert!(begun.elapsed() >= Duration::from_millis(20));
        // In the middle of the answer: trailers.
        peer.send(&grpc(3, END_STREAM, &[("grpc-timeout", "20000u"), ("x-bytes", "5")])).await;
        let answer = peer.answer(3).await;
        assert_eq!((answer.body.len(), answer.grpc_status()), (5, Some("4")));
        assert!(soon(holding.recv()).await.unwrap().is_closed(), "the body is dropped");
        // In the middle of a message, which trailers would end.
        peer.send(&grpc(5, END_STREAM, &[("grpc-timeout", "20m"), ("x-bytes", "50")])).await;
        assert!(matches!(peer.frame().await, Frame::Headers { .. }));
        assert!(matches!(peer.frame().await, Frame::Data { .. }));
        assert_eq!(peer.frame().await, Frame::Reset { stream: 5, code: CANCEL });
        for bad in ["", "20", "m", "20x", "123456789m", "-1S"] {
            let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, failing());
            peer.greet(&[]).await;
            peer.send(&grpc(1, END_STREAM, &[("grpc-timeout", bad)])).await;
            assert_eq!(peer.answer(1).await.grpc_status(), Some("3"), "{bad}");
        }
    }

    #[rstest]
    #[tokio::test]
    async fn a_deadline_is_kept_while_the_connection_is_never_idle(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let service = service_fn(|request: Request<RecvBody>| async move {
            if request.headers().contains_key("grpc-timeout") {
                std::future::pending::<()>().await;
            }
            let always = futures_util::stream::poll_fn(|_| {
                Poll::Ready(Some(Ok::<_, BoxError>(BodyFrame::data(vec![7; 1_000].into()))))
            });
            Reply::Ok(Response::new(StreamBody::new(always).boxed_unsync()))
        });
        // Room for everything: the connection always has something to do.
        const ROOM: usize = 64 << 20;
        let (mut peer, _served) = serve(placement, Limits::default(), 2 * ROOM, service);
        peer.greet(&[(INITIAL_WINDOW_SIZE, u32::try_from(ROOM).unwrap())]).await;
        peer.send(&window_update(0, 1 << 30)).await;
        let timed = grpc(3, END_STREAM, &[("grpc-timeout", "1m")]);
        peer.send(&[post(1, END_STREAM), timed].concat()).await;
        let mut before = 0;
        loop {
            match peer.frame().await {
                Frame::Data { payload, .. } => before += payload.len(),
                head if head.stream() == 3 => {
                    assert_eq!(head.header("grpc-status"), Some("4"));
                    break;
                }
                _ => {}
            }
        }
        assert!(before < ROOM, "it came when the connection fell idle");
    }

    #[rstest]
    #[tokio::test]
    async fn a_body_of_nothing_without_end_does_not_hold_the_thread(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let service = service_fn(|_: Request<RecvBody>| async move {
            let nothing = futures_util::stream::poll_fn(|_| {
                Poll::Ready(Some(Ok::<_, BoxError>(BodyFrame::data(Bytes::new()))))
            });
            Reply::Ok(Response::new(StreamBody::new(nothing).boxed_unsync()))
        });
        // A thread of its own: held, it would hold the test's time-outs too.
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
                peer.greet(&[]).await;
                peer.send(&post(1, END_STREAM)).await;
                peer.frames_until_pong().await;
                done.send(()).unwrap();
            });
        });
        wait.recv_timeout(Duration::from_secs(20)).expect("the thread is held");
    }

    #[rstest]
    #[tokio::test]
    async fn a_body_may_be_read_on_another_task_and_gets_its_window_back(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let service = service_fn(|request: Request<RecvBody>| async move {
            let reading = tokio::spawn(request.into_body().collect());
            let all = reading.await.unwrap()?;
            let sum = all.trailers().map(|trailers| trailers["x-sum"].clone());
            assert_eq!(sum.unwrap(), "all");
            full(all.to_bytes().len().to_string())
        });
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service);
        peer.greet(&[]).await;
        peer.send(&post(1, 0)).await;
        let mut room = 65_536_i64;
        for _ in 0..1_000 {
            while room < 16_384 {
                if let Frame::WindowUpdate { stream: 1, increment } = peer.any_frame().await {
                    room += i64::from(increment);
                }
            }
            peer.send(&data(1, 0, &[7; 16_384])).await;
            room -= 16_384;
        }
        peer.send(&headers(1, END_STREAM, &[("x-sum", "all")])).await;
        assert_eq!(peer.answer(1).await.body, (16_384 * 1_000).to_string().as_bytes());
    }

    /// Hands each request's body out.
    fn bodies(
        to: mpsc::UnboundedSender<RecvBody>,
    ) -> impl Service<Request<RecvBody>, Response = Response<Boxed>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + Unpin
    + 'static {
        service_fn(move |request: Request<RecvBody>| {
            let is_held = request.headers().contains_key("x-held");
            to.send(request.into_body()).unwrap();
            async move {
                if is_held {
                    std::future::pending::<()>().await;
                }
                full("answered")
            }
        })
    }

    #[rstest]
    #[tokio::test]
    async fn a_body_tells_a_cancel_from_an_end_and_outlives_stream_and_connection(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (to, mut bodies_of) = mpsc::unbounded_channel();
        let (mut peer, served) = serve(placement, Limits::default(), BUFFER, bodies(to));
        peer.greet(&[]).await;
        let held = |stream| post_with(stream, 0, &[("x-held", "1")]);
        peer.send(&[held(1), data(1, 0, b"x")].concat()).await;
        let cancelled = soon(bodies_of.recv()).await.unwrap();
        peer.send(&rst_stream(1, CANCEL)).await;
        let error = soon(cancelled.collect()).await.unwrap_err();
        assert!(matches!(error, BodyError::Reset(code) if code.0 == CANCEL), "{error:?}");
        let status = tonic::Status::from_error(Box::new(error));
        assert_ne!(status.code(), tonic::Code::Cancelled, "tonic would make that a clean end");

        peer.send(&[post(3, 0), data(3, 0, b"abc")].concat()).await;
        let mut outlived = soon(bodies_of.recv()).await.unwrap();
        assert_eq!(peer.answer(3).await.body, b"answered");
        let first = soon(outlived.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "abc");
        let error = soon(outlived.frame()).await.unwrap().unwrap_err();
        assert!(matches!(error, BodyError::Ended(_)), "{error:?}");
        assert!(soon(outlived.frame()).await.is_none());

        peer.send(&held(5)).await;
        let lost = soon(bodies_of.recv()).await.unwrap();
        let reading = tokio::spawn(lost.collect());
        peer.frames_until_pong().await;
        drop(peer);
        soon(served.task).await.unwrap().unwrap();
        assert_eq!(soon(reading).await.unwrap().unwrap_err(), BodyError::ConnectionLost);
    }

    /// Not ready for its first stream before it is told.
    #[derive(Default)]
    struct Gate {
        clones: Arc<AtomicUsize>,
        mine: usize,
        opened: Arc<(std::sync::atomic::AtomicBool, futures_util::task::AtomicWaker)>,
    }

    impl Clone for Gate {
        fn clone(&self) -> Self {
            let mine = self.clones.fetch_add(1, Ordering::Relaxed) + 1;
            Gate { clones: self.clones.clone(), mine, opened: self.opened.clone() }
        }
    }

    impl Service<Request<RecvBody>> for Gate {
        type Response = Response<RecvBody>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            let (opened, waker) = &*self.opened;
            if self.mine == 1 && !opened.load(Ordering::SeqCst) {
                waker.register(cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
            std::future::ready(Ok(Response::new(request.into_body())))
        }
    }

    #[rstest]
    #[tokio::test]
    async fn a_service_that_is_not_ready_for_one_stream_stalls_no_other(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let gate = Gate::default();
        let opened = gate.opened.clone();
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, gate);
        peer.greet(&[]).await;
        peer.send(&[post(1, 0), data(1, END_STREAM, b"late")].concat()).await;
        peer.expect_silence().await;
        peer.echo(3).await;
        opened.0.store(true, Ordering::SeqCst);
        opened.1.wake();
        assert_eq!(peer.answer(1).await.body, b"late");
    }

    #[rstest]
    #[tokio::test]
    async fn sixteen_mib_both_ways_at_once_pass_a_pipe_of_four_kib(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (near, far) = tokio::io::duplex(4_096);
        both_ways_at_once(near, far, placement).await;
    }

    #[rstest]
    #[tokio::test]
    async fn sixteen_mib_both_ways_at_once_pass_socket_buffers_of_four_kib(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let socket = || {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_send_buffer_size(4_096).unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            socket
        };
        let listening = socket();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Accepted sockets have the listener's buffers.
        let listener = listening.listen(1).unwrap();
        let near = soon(socket().connect(listener.local_addr().unwrap())).await.unwrap();
        let (far, _) = soon(listener.accept()).await.unwrap();
        both_ways_at_once(near, far, placement).await;
    }

    async fn both_ways_at_once<IO>(near: IO, far: IO, placement: Placement)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const LENGTH: usize = 16 << 20;
        let server = bidi_echo::transport::Server::new(Limits::default()).placement(placement);
        tokio::spawn(server.serve_connection(far, echo(), http::Extensions::new()));
        let (mut requests, connection) = soon(h2::client::handshake(near)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://localhost/a/b").body(()).unwrap();
        let (response, mut sender) = requests.send_request(request, false).unwrap();
        let sending = tokio::spawn(async move {
            let mut left = Bytes::from(vec![7; LENGTH]);
            while !left.is_empty() {
                sender.reserve_capacity(left.len());
                let room = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await;
                let room = room.unwrap().unwrap();
                sender.send_data(left.split_to(room), left.is_empty()).unwrap();
            }
        });
        let mut body = soon(response).await.unwrap().into_body();
        let mut length = 0;
        while let Some(data) = soon(body.data()).await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
            length += data.len();
        }
        assert_eq!(length, LENGTH);
        soon(sending).await.unwrap();
    }

    #[rstest]
    #[tokio::test]
    async fn a_pipe_of_one_byte_carries_everything(
        #[values(Placement::Inline, Placement::Task)] placement: Placement,
    ) {
        let (mut peer, _served) = serve(placement, Limits::default(), 1, echo());
        peer.greet(&[]).await;
        peer.echo(1).await;
        peer.send(&[post(3, 0), data(3, 0, &[7; 5_000])].concat()).await;
        peer.send(&headers(3, END_STREAM, &[("x-sum", "1")])).await;
        let answer = peer.answer(3).await;
        assert_eq!((answer.body, answer.trailers.len()), (vec![7; 5_000], 1));
    }
}

mod faults {
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
        check(continuation(1, END_HEADERS, &[]), PROTOCOL_ERROR, "continuation_without_headers")
            .await;
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
        let wide =
            [post(1, 0), window_update(1, 1), settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)])];
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
        check(
            &|id| then(id, frame(2, 0, id, &[&id.to_be_bytes()[..], &[0]].concat())),
            PROTOCOL_ERROR,
        )
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
}

mod headers_and_trailers {
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
        let (mut peer, _served) = serve(placement, limits, BUFFER, echo());
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
}

mod flow_control {
    //! RFC 9113, sections 5.2 and 6.9.
    use super::*;

    /// A connection whose service answers `bytes` bytes to anything.
    async fn answering(
        placement: Placement,
        bytes: usize,
        entries: &[(u16, u32)],
    ) -> (Peer, Served) {
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
        let (mut peer, _served) =
            answering(placement, 50_000, &[(INITIAL_WINDOW_SIZE, 1 << 20)]).await;
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
}
