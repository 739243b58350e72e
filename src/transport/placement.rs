//! Where streams run: in their connection's task, or each on a task of its own.
//!
//! In: a service. Out: the same service, each call on a task, its answer and body handed back over a
//! channel; so both placements go through the same inbox and output. Costs a task and two hops a
//! turn; worth it for handlers that compute long, which inline would hold their siblings up.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tower_service::Service;

use super::counters::Counters;
use super::guard::{Panicked, catch_unwind};
use super::stream::{RecvBody, Shared};

/// Where a server's streams run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// In the task of their connection: nothing is spawned, no reply leaves alone that could have left
    /// with others. For handlers that wait more than they compute.
    #[default]
    Inline,
    /// Each on a task of its own. For handlers that compute long.
    Task,
}

/// Bodies of one connection that are polled at once: what they give is taken whatever the windows have
/// become meanwhile. More than most machines have cores.
pub(crate) const POLLS_MAX: usize = 16;

/// Runs the calls of one connection on tasks of their own.
#[derive(Clone, Debug)]
pub(crate) struct OnTasks<S> {
    service: S,
    counters: Arc<Counters>,
    tasks: Arc<Tasks>,
}

/// What a connection knows of all its tasks.
#[derive(Debug)]
pub(crate) struct Tasks {
    /// Those that are not gone. A task whose stream has ended goes on until it next waits.
    alive: AtomicUsize,
    /// More must not be.
    alive_max: usize,
    /// A stream waits for one of them to go.
    is_awaited: AtomicBool,
    /// Bodies that were asked and have not answered yet. Only the connection's task writes to it.
    asked: AtomicUsize,
}

impl Tasks {
    fn new(alive_max: usize) -> Self {
        Tasks {
            alive: AtomicUsize::new(0),
            alive_max,
            is_awaited: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        }
    }

    /// So many more handlers may begin now.
    pub(crate) fn free_handlers(&self) -> usize {
        // In one order with `is_awaited`: either whoever goes sees it, or this sees that it went.
        self.alive_max.saturating_sub(self.alive.load(Ordering::SeqCst))
    }

    /// Whether one may begin; if not, the connection is woken when one may.
    pub(crate) fn may_begin(&self) -> bool {
        if self.free_handlers() > 0 {
            return true;
        }
        self.is_awaited.store(true, Ordering::SeqCst);
        self.free_handlers() > 0
    }

    /// No stream waits to begin any more.
    pub(crate) fn all_have_begun(&self) {
        self.is_awaited.store(false, Ordering::SeqCst);
    }

    /// So many more bodies may be asked now.
    pub(crate) fn free_places(&self) -> usize {
        POLLS_MAX - self.asked.load(Ordering::Relaxed)
    }

    /// Takes a place, if there is one.
    fn ask(&self) -> bool {
        let is_free = self.free_places() > 0;
        self.asked.fetch_add(usize::from(is_free), Ordering::Relaxed);
        is_free
    }

    fn answered(&self) {
        self.asked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One handler's life, from its call on.
#[derive(Debug)]
struct Life {
    tasks: Arc<Tasks>,
    stream: Arc<Shared>,
}

impl Life {
    fn new(tasks: &Arc<Tasks>, stream: &Arc<Shared>) -> Self {
        tasks.alive.fetch_add(1, Ordering::SeqCst);
        Life { tasks: tasks.clone(), stream: stream.clone() }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.tasks.alive.fetch_sub(1, Ordering::SeqCst);
        if self.tasks.is_awaited.load(Ordering::SeqCst) {
            self.stream.wake_connection();
        }
    }
}

impl<S> OnTasks<S> {
    /// For one connection; clones share its bounds. At most so many handlers are alive at once.
    pub(crate) fn new(service: S, counters: Arc<Counters>, alive_max: u32) -> Self {
        OnTasks { service, counters, tasks: Arc::new(Tasks::new(alive_max as usize)) }
    }

    pub(crate) fn tasks(&self) -> Arc<Tasks> {
        self.tasks.clone()
    }
}

impl<S, B> Service<Request<RecvBody>> for OnTasks<S>
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
{
    type Response = Response<TaskBody<B>>;
    type Error = S::Error;
    type Future = TaskAnswer<B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RecvBody>) -> Self::Future {
        // The one that is ready goes; the clone stays.
        let ready = self.service.clone();
        let mut ready = std::mem::replace(&mut self.service, ready);
        let counters = self.counters.clone();
        let (answered, answer) = oneshot::channel();
        let (answers, told) = mpsc::channel(1);
        let ask = Arc::new(Ask {
            asked: Notify::new(),
            is_worth_it: AtomicBool::new(true),
            stream: request.body().shared(),
        });
        let asks = ask.clone();
        let life = Life::new(&self.tasks, &ask.stream);
        let task = tokio::spawn(async move {
            // Dropped last: until then user code may be alive.
            let _life = life;
            let mut call = UserCode::new(ready.call(request), counters.clone());
            let answer = call.as_mut().await;
            drop(call);
            match answer {
                Err(error) => _ = answered.send(Err(error)),
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let mut body = UserCode::new(body, counters);
                    let is_over = catch_unwind(AssertUnwindSafe(|| body.as_mut().is_end_stream()));
                    let Ok(is_over) = is_over else {
                        // The user's types in it may panic too; two panics at once would abort.
                        if catch_unwind(AssertUnwindSafe(|| drop(head))).is_err() {
                            body.counters.panicked();
                        }
                        // Without an answer, as where the call panics: whoever guards the stream counts it.
                        resume_unwind(Box::new(Panicked));
                    };
                    // Fails only if nobody waits for the answer: then this task is being aborted.
                    let is_wanted = answered.send(Ok(Response::from_parts(head, is_over))).is_ok();
                    if is_wanted && !is_over {
                        pump(body.as_mut(), answers, asks).await;
                    }
                }
            }
        });
        let task = Task(task);
        let tasks = self.tasks.clone();
        let body = TaskBody { told, ask, has_asked: false, tasks, task, is_over: false };
        TaskAnswer { answer, body: Some(body) }
    }
}

/// What a body said when it was asked.
enum Told<B: Body> {
    /// Nothing yet.
    Pending,
    /// Only a body that panicked ends without a last one.
    Piece {
        frame: Option<Result<Frame<B::Data>, B::Error>>,
        /// Nothing follows: the stream ends with it, not with an empty frame of its own.
        is_last: bool,
    },
}

/// How the connection asks a body on a task: once for each poll, and only when the windows and the output
/// have room, so that as little is kept as if the body were polled inline.
#[derive(Debug)]
struct Ask {
    asked: Notify,
    /// The body was not asked since it last woke somebody.
    is_worth_it: AtomicBool,
    /// Polled by the connection, it asks again.
    stream: Arc<Shared>,
}

/// The body's waker.
impl Wake for Ask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_worth_it.store(true, Ordering::Release);
        self.stream.wake_by_ref();
    }
}

/// Polls a body whenever it is asked, and tells what that gave.
async fn pump<B: Body>(mut body: Pin<&mut B>, answers: mpsc::Sender<Told<B>>, ask: Arc<Ask>) {
    let waker = Waker::from(ask.clone());
    loop {
        ask.asked.notified().await;
        let told = match body.as_mut().poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Pending => Told::Pending,
            Poll::Ready(frame) => {
                let is_last = frame.is_none() || body.is_end_stream();
                Told::Piece { frame, is_last }
            }
        };
        let is_last = matches!(told, Told::Piece { is_last: true, .. });
        // The end is told before the body is dropped, which may panic.
        if answers.send(told).await.is_err() || is_last {
            return;
        }
    }
}

/// A call or a body. That it panics when it is dropped is counted, and costs the answer nothing, as inline.
struct UserCode<T> {
    /// There until it is dropped.
    inner: Option<Pin<Box<T>>>,
    counters: Arc<Counters>,
}

impl<T> UserCode<T> {
    fn new(inner: T, counters: Arc<Counters>) -> Self {
        UserCode { inner: Some(Box::pin(inner)), counters }
    }

    fn as_mut(&mut self) -> Pin<&mut T> {
        self.inner.as_mut().expect("not dropped yet").as_mut()
    }
}

impl<T> Drop for UserCode<T> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        if catch_unwind(AssertUnwindSafe(|| drop(inner))).is_err() {
            self.counters.panicked();
        }
    }
}

/// A task that ends with the stream that it works for.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    /// Resolves when the task is over; passes a panic on, to whoever guards this stream.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.0).poll(cx)) {
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            _ => Poll::Ready(()),
        }
    }
}

/// The answer of a call on a task.
pub(crate) struct TaskAnswer<B: Body, E> {
    /// The head, and whether there is no body.
    answer: oneshot::Receiver<Result<Response<bool>, E>>,
    body: Option<TaskBody<B>>,
}

/// Nothing in it has to stay in place.
impl<B: Body, E> Unpin for TaskAnswer<B, E> {}

impl<B: Body, E> Future for TaskAnswer<B, E> {
    type Output = Result<Response<TaskBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match ready!(Pin::new(&mut self.answer).poll(cx)) {
            Ok(Ok(head)) => {
                let mut body = self.body.take().expect("polled once to its end");
                Poll::Ready(Ok(head.map(|is_over| {
                    body.is_over = is_over;
                    body
                })))
            }
            Ok(Err(error)) => Poll::Ready(Err(error)),
            // The task ended without an answer: it panicked, which this passes on, or its runtime is
            // shutting down, and then nobody will poll again.
            Err(_) => {
                if let Some(body) = &mut self.body {
                    ready!(body.task.poll_over(cx));
                }
                Poll::Pending
            }
        }
    }
}

/// The body of an answer whose call runs on a task.
pub(crate) struct TaskBody<B: Body> {
    told: mpsc::Receiver<Told<B>>,
    ask: Arc<Ask>,
    has_asked: bool,
    tasks: Arc<Tasks>,
    task: Task,
    is_over: bool,
}

/// Nothing in it has to stay in place.
impl<B: Body> Unpin for TaskBody<B> {}

impl<B: Body> TaskBody<B> {
    /// Whether the body has been asked, now or before.
    fn has_asked(&mut self) -> bool {
        if self.has_asked {
            return true;
        }
        if !self.ask.is_worth_it.load(Ordering::Acquire) {
            return false;
        }
        if !self.tasks.ask() {
            self.ask.stream.lack_place();
            return false;
        }
        self.ask.is_worth_it.store(false, Ordering::Release);
        self.has_asked = true;
        self.ask.stream.owe_piece(true);
        self.ask.asked.notify_one();
        true
    }

    fn answered(&mut self) {
        self.has_asked = false;
        self.ask.stream.owe_piece(false);
        self.tasks.answered();
    }
}

impl<B: Body> Body for TaskBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        while self.has_asked() {
            match ready!(self.told.poll_recv(cx)) {
                Some(Told::Pending) => self.answered(),
                Some(Told::Piece { frame, is_last }) => {
                    self.answered();
                    self.is_over = is_last;
                    // There may be more.
                    self.ask.is_worth_it.store(true, Ordering::Release);
                    return Poll::Ready(frame);
                }
                None => {
                    ready!(self.task.poll_over(cx));
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Pending
    }

    /// A head that is all there is has to say so: gRPC's "Trailers-Only" is one frame.
    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

impl<B: Body> Drop for TaskBody<B> {
    fn drop(&mut self) {
        if self.has_asked {
            self.answered();
        }
    }
}

#[cfg(test)]
mod tests {
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
            let fields =
                fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes(), false));
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

    #[tokio::test]
    async fn a_panic_reaches_whoever_guards_the_stream() {
        let answers = Answers { panics: true, ..answers(1) };
        let answer = std::panic::AssertUnwindSafe(on_tasks(answers).call(request()));
        assert!(answer.catch_unwind().await.is_err());
    }
}
