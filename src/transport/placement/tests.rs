//! Streams on tasks of their own, as their connection and their client see them.

use super::*;
use std::convert::Infallible;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::frame::{self, ErrorCode, kind, setting};
use super::super::inside::{self, HeaderEncoder};
use super::super::limits::Limits;
use super::super::server::Server;
use super::super::stream::{Key, Wakes};

/// Answers with a body of so many pieces, in the way that it is told.
#[derive(Clone)]
struct Answers {
    pieces: usize,
    polled: Arc<AtomicUsize>,
    panics: bool,
    /// The answer's future and body panic when they are dropped.
    explodes: bool,
    waits: Option<Arc<Notify>>,
}

struct Pieces(Answers, usize, #[expect(dead_code, reason = "goes off when dropped")] Bomb);

/// Panics when it is dropped, if it is a real one.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 && !std::thread::panicking() {
            resume_unwind(Box::new(()));
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.polled.fetch_add(1, Ordering::SeqCst);
        self.1 += 1;
        let is_there = self.1 <= self.0.pieces;
        let piece = || Ok(Frame::data(Bytes::from(self.1.to_string())));
        Poll::Ready(is_there.then(piece))
    }

    fn is_end_stream(&self) -> bool {
        self.1 >= self.0.pieces
    }
}

/// Says when the call is dropped.
struct Dropped(Option<Arc<Notify>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(dropped) = &self.0 {
            dropped.notify_one();
        }
    }
}

/// A future that is there until it is dropped, with what it holds.
struct WithBomb<F>(Pin<Box<F>>, #[expect(dead_code, reason = "goes off when dropped")] Bomb);

impl<F: Future> Future for WithBomb<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl Service<Request<RecvBody>> for Answers {
    type Response = Response<Pieces>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Pieces>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<RecvBody>) -> Self::Future {
        let answers = self.clone();
        let bomb = Bomb(answers.explodes);
        let answer = Box::pin(async move {
            let _dropped = Dropped(answers.waits.clone());
            if answers.waits.is_some() {
                std::future::pending::<()>().await;
            }
            assert!(!answers.panics, "as it was told");
            let bomb = Bomb(answers.explodes);
            Ok(Response::new(Pieces(answers, 0, bomb)))
        });
        Box::pin(WithBomb(answer, bomb))
    }
}

fn answers(pieces: usize) -> Answers {
    Answers { pieces, polled: Arc::default(), panics: false, explodes: false, waits: None }
}

fn on_tasks(answers: Answers) -> OnTasks<Answers> {
    OnTasks::new(answers, Arc::default(), 1)
}

fn request() -> Request<RecvBody> {
    let shared = Shared::new(Arc::<Wakes>::default(), Key { slot: 0, generation: 0 });
    Request::new(RecvBody::new(shared, Waker::noop().clone()))
}

#[tokio::test]
async fn a_body_passes_in_order_and_ends() {
    let answer = on_tasks(answers(9)).call(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "123456789");
}

#[tokio::test]
async fn a_body_says_with_its_last_piece_that_it_is_over() {
    let mut body = on_tasks(answers(2)).call(request()).await.unwrap().into_body();
    let mut said = vec![body.is_end_stream()];
    while !body.is_end_stream() {
        body.frame().await.unwrap().unwrap();
        said.push(body.is_end_stream());
    }
    assert_eq!(said, [false, false, true]);
    let empty = on_tasks(answers(0)).call(request()).await.unwrap().into_body();
    assert!(empty.is_end_stream(), "a head that is all there is");
}

#[tokio::test]
async fn what_panics_when_it_is_dropped_costs_the_answer_nothing() {
    let answers = Answers { explodes: true, ..answers(9) };
    let counters = Arc::<Counters>::default();
    let mut service = OnTasks::new(answers, counters.clone(), 1);
    let answer = service.call(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "123456789");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(counters.snapshot().panics, 2, "the call, and then the body");
}

#[tokio::test]
async fn a_body_is_polled_for_what_is_asked_for_and_no_more() {
    let answers = answers(1_000);
    let polled = answers.polled.clone();
    let mut body = on_tasks(answers).call(request()).await.unwrap().into_body();
    for taken in 1..50 {
        body.frame().await.unwrap().unwrap();
        // The task may go as far as it can.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polled.load(Ordering::SeqCst), taken);
    }
}

/// A client of a server whose streams run on tasks; says frames, hears frames.
struct Client {
    io: DuplexStream,
    encoder: HeaderEncoder,
    heard: Vec<u8>,
}

impl Client {
    async fn of<S, B>(limits: Limits, service: S, initial_window: u32) -> Self
    where
        S: Service<Request<RecvBody>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let (io, servers) = tokio::io::duplex(1 << 20);
        let server = Server::new(limits).placement(Placement::Task);
        tokio::spawn(server.serve_connection(servers, service, http::Extensions::new()));
        let mut client = Client { io, encoder: HeaderEncoder::default(), heard: Vec::new() };
        let mut hello = frame::PREFACE.to_vec();
        frame::settings(&mut hello, &[(setting::INITIAL_WINDOW_SIZE, initial_window)]);
        frame::settings_ack(&mut hello);
        frame::window_update(&mut hello, 0, 1 << 30);
        client.io.write_all(&hello).await.unwrap();
        client
    }

    fn post(&mut self, stream: u32) -> Vec<u8> {
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")];
        let (mut block, mut out) = (Vec::new(), Vec::new());
        let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes(), false));
        self.encoder.encode(fields, &mut block);
        frame::headers(&mut out, stream, &block, false);
        out
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// Until a frame of this type has come on this stream.
    async fn hear(&mut self, kind: u8, stream: u32) {
        let is_it = |(k, _, id, _): (u8, u8, u32, &[u8])| (k, id) == (kind, stream);
        while !inside::frames(&self.heard).any(is_it) {
            assert!(self.io.read_buf(&mut self.heard).await.unwrap() > 0, "the server closed");
        }
    }
}

/// Answers with pieces like this one, without end; counts them.
fn endless(
    piece: &'static [u8],
    polled: Arc<AtomicUsize>,
) -> impl Service<
    Request<RecvBody>,
    Response = Response<impl Body<Data = Bytes, Error = Infallible> + Send + 'static>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    tower::service_fn(move |_: Request<RecvBody>| {
        let polled = polled.clone();
        let pieces = std::iter::repeat_with(move || {
            polled.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece)))
        });
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
        async move { Ok::<_, Infallible>(Response::new(body)) }
    })
}

#[tokio::test(start_paused = true)]
async fn as_little_waits_for_tiny_windows_as_if_bodies_were_polled_inline() {
    const PIECE: usize = 100_000;
    let polled = Arc::<AtomicUsize>::default();
    let service = endless(&[7; PIECE], polled.clone());
    let limits = Limits { pending_bytes_max: 1 << 20, ..Limits::default() };
    let inline = limits.pending_bytes_max / 2 / PIECE + 1;
    for (window, most) in [(0, 0), (1, inline + POLLS_MAX)] {
        polled.store(0, Ordering::SeqCst);
        let mut client = Client::of(limits.clone(), service.clone(), window).await;
        for stream in (1..800).step_by(2) {
            let post = client.post(stream);
            client.say(&post).await;
        }
        client.hear(kind::HEADERS, 799).await;
        // Time passes when nobody has anything to do any more.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let polled = polled.load(Ordering::SeqCst);
        assert!(polled <= most, "{polled} pieces for windows of {window}");
        assert!(polled >= most.min(inline), "{polled} pieces for windows of {window}");
    }
}

#[tokio::test(start_paused = true)]
async fn streams_behind_shut_windows_all_end_in_time_although_few_are_asked_at_once() {
    let stall = std::time::Duration::from_secs(10);
    let limits = Limits { stall_timeout: Some(stall), ..Limits::default() };
    let mut client = Client::of(limits, endless(b"x", Arc::default()), 0).await;
    let streams: Vec<_> = (1..).step_by(2).take(10 * POLLS_MAX).collect();
    for stream in &streams {
        let post = client.post(*stream);
        client.say(&post).await;
    }
    client.hear(kind::HEADERS, *streams.last().unwrap()).await;
    let began = tokio::time::Instant::now();
    for stream in streams {
        client.hear(kind::RST_STREAM, stream).await;
    }
    let took = began.elapsed();
    assert!((stall..2 * stall).contains(&took), "{took:?}");
}

#[tokio::test]
async fn more_bodies_than_are_asked_at_once_all_have_their_turn() {
    let service = endless(&[7; 1_000], Arc::default());
    let mut client = Client::of(Limits::default(), service, 1 << 30).await;
    let streams: Vec<_> = (1..).step_by(2).take(2 * POLLS_MAX + 1).collect();
    let mut posts = Vec::new();
    for stream in &streams {
        // The request ends with its head: nothing puts these bodies off.
        let mut post = client.post(*stream);
        post[4] |= frame::flag::END_STREAM;
        posts.extend(post);
    }
    client.say(&posts).await;
    client.hear(kind::HEADERS, *streams.last().unwrap()).await;
    let came = |client: &Client| {
        let mut came = std::collections::BTreeMap::<u32, usize>::new();
        let data = inside::frames(&client.heard).filter(|(found, ..)| *found == kind::DATA);
        data.for_each(|(_, _, stream, _)| *came.entry(stream).or_default() += 1);
        came
    };
    while client.heard.len() < 10 << 20 {
        assert!(client.io.read_buf(&mut client.heard).await.unwrap() > 0);
    }
    let came = came(&client);
    assert_eq!(came.len(), streams.len(), "{came:?}");
    let (least, most) = (came.values().min().unwrap(), came.values().max().unwrap());
    assert!(*least > 10 && most < &(4 * least), "{came:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_begin_when_handlers_before_them_are_gone() {
    let (alive, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (count, seen) = (alive.clone(), most.clone());
    let service = tower::service_fn(move |_: Request<RecvBody>| {
        seen.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let one = OneLess(count.clone());
        let body = futures_util::stream::poll_fn(move |_| {
            let _ = &one;
            Poll::<Option<Result<Frame<Bytes>, Infallible>>>::Pending
        });
        async { Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(body))) }
    });
    let limits = Limits { max_concurrent_streams: 2, ..Limits::default() };
    let mut client = Client::of(limits, service, 65_535).await;
    let mut storm = Vec::new();
    for stream in (1..200).step_by(4) {
        // Two are reset and two others begun at once, while those before are still there.
        storm.extend([client.post(stream), client.post(stream + 2)].concat());
        client.say(&storm).await;
        client.hear(kind::HEADERS, stream).await;
        client.hear(kind::HEADERS, stream + 2).await;
        storm.clear();
        frame::rst_stream(&mut storm, stream, ErrorCode::CANCEL);
        frame::rst_stream(&mut storm, stream + 2, ErrorCode::CANCEL);
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    let refused = |(kind, ..): (u8, u8, u32, &[u8])| kind == kind::RST_STREAM;
    assert!(!inside::frames(&client.heard).any(refused), "nobody is refused");
}

/// Takes one off when it is dropped, in its own time.
struct OneLess(Arc<AtomicUsize>);

impl Drop for OneLess {
    fn drop(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(2));
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_dropped() {
    let dropped = Arc::new(Notify::new());
    let answers = Answers { waits: Some(dropped.clone()), ..answers(1) };
    let mut answer = on_tasks(answers).call(request());
    assert!((&mut answer).now_or_never().is_none());
    tokio::task::yield_now().await;
    drop(answer);
    dropped.notified().await;
}

/// What ends the task drops its half of the answer first.
#[tokio::test]
async fn an_answer_whose_task_takes_a_moment_to_end_may_be_polled_meanwhile() {
    async fn goes_off(when: Arc<Notify>) {
        when.notified().await;
        resume_unwind(Box::new("as it was told"))
    }
    let mut answer = on_tasks(answers(1)).call(request());
    let (none, gone) = oneshot::channel();
    drop(none);
    answer.answer = Some(gone);
    let ends = Arc::new(Notify::new());
    answer.body.as_mut().unwrap().task = Task(tokio::spawn(goes_off(ends.clone())));
    for _ in 0..3 {
        assert!((&mut answer).now_or_never().is_none());
    }
    ends.notify_one();
    let panicked = std::panic::AssertUnwindSafe(answer).catch_unwind().await.err().unwrap();
    assert_eq!(panicked.downcast_ref(), Some(&"as it was told"));
}

#[tokio::test]
async fn a_panic_reaches_whoever_guards_the_stream() {
    let answers = Answers { panics: true, ..answers(1) };
    let answer = std::panic::AssertUnwindSafe(on_tasks(answers).call(request()));
    assert!(answer.catch_unwind().await.is_err());
}
