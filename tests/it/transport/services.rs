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

/// Panics when it is asked whether it is over.
struct Undecided;

impl http_body::Body for Undecided {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, BoxError>>> {
        Poll::Ready(Some(Ok(BodyFrame::data("x".into()))))
    }

    fn is_end_stream(&self) -> bool {
        panic!("asked")
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
                        |_| -> Poll<Option<Result<BodyFrame<Bytes>, BoxError>>> { panic!("body") },
                    );
                    return Ok(Response::new(StreamBody::new(panics).boxed_unsync()));
                }
                "/panic/is-end" => return Ok(Response::new(Undecided.boxed_unsync())),
                "/panic/is-end-and-drop" => {
                    let mut response = Response::new(Undecided.boxed_unsync());
                    response.extensions_mut().insert(Arc::new(Mine));
                    return Ok(response);
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

/// Asks what its stream ended with when it is dropped.
struct Asks(StreamEnd, mpsc::UnboundedSender<Option<i32>>);

impl Drop for Asks {
    fn drop(&mut self) {
        self.1.send(self.0.grpc_code()).unwrap();
    }
}

#[rstest]
#[tokio::test]
async fn a_layer_that_the_transport_drops_learns_why(
    #[values(Placement::Inline, Placement::Task)] placement: Placement,
) {
    let (said, mut says) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<RecvBody>| {
        let end = request.extensions().get::<StreamEnd>().expect("in every request");
        let asks = Asks(end.clone(), said.clone());
        let answer = failing().call(request);
        async move {
            let body = |body: Boxed| {
                body.map_frame(move |frame| {
                    let _ = &asks;
                    frame
                })
            };
            Ok::<_, BoxError>(answer.await?.map(body))
        }
    });
    let any = u32::MAX;
    for (path, header_list_bytes_max, code) in [
        ("/panic/call", any, 13),
        ("/panic/poll", any, 13),
        ("/panic/body", any, 13),
        ("/panic/is-end", any, 13),
        ("/panic/drop-extension", any, 13),
        ("/error/body", any, 13),
        // More than the client takes.
        ("/a/b", 10, 8),
    ] {
        let (mut peer, _served) = serve(placement, Limits::default(), BUFFER, service.clone());
        peer.greet(&[(MAX_HEADER_LIST_SIZE, header_list_bytes_max)]).await;
        peer.send(&to(path, 1, END_STREAM, true)).await;
        let status = peer.answer(1).await.grpc_status().map(str::to_owned);
        assert_eq!(status, Some(code.to_string()), "{path}");
        assert_eq!(says.recv().await, Some(Some(code)), "{path}");
    }
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
    check("/panic/is-end", "13", "500").await;
    check("/panic/is-end-and-drop", "13", "500").await;
    check("/error/call", "13", "500").await;
    check("/error/body", "13", "reset 2").await;
    assert_eq!(served.counters.snapshot().panics, 14);
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
    // A number each 4 bytes: what is lost, twice there or out of order is not the same.
    let numbers = (0..4_u32 << 20).flat_map(u32::to_be_bytes);
    let sent = Bytes::from_iter(numbers);
    let server = bidi_echo::transport::Server::new(Limits::default()).placement(placement);
    tokio::spawn(server.serve_connection(far, echo(), http::Extensions::new()));
    let (mut requests, connection) = soon(h2::client::handshake(near)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://localhost/a/b").body(()).unwrap();
    let (response, mut sender) = requests.send_request(request, false).unwrap();
    let mut left = sent.clone();
    let sending = tokio::spawn(async move {
        while !left.is_empty() {
            sender.reserve_capacity(left.len());
            let room = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await;
            let room = room.unwrap().unwrap();
            sender.send_data(left.split_to(room), left.is_empty()).unwrap();
        }
    });
    let mut body = soon(response).await.unwrap().into_body();
    let mut echo = Vec::with_capacity(sent.len());
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        echo.extend_from_slice(&data);
    }
    assert!(echo == sent, "the echo is not what was sent");
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
