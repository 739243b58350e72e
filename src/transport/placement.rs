//! Where streams run: in their connection's task, or each on a task of its own.
//!
//! In: a service. Out: the same service, each call on a task, its answer and body handed back over a
//! channel; so both placements go through the same inbox and output. Costs a task and two hops a
//! turn; worth it for handlers that compute long, which inline would hold their siblings up.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower_service::Service;

use super::counters::Counters;
use super::guard::catch_unwind;
use super::stream::RecvBody;

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

/// Pieces of a body between its task and its connection. The body is not polled for more.
const PIECES_MAX: usize = 2;

/// Runs the calls of a service on tasks of their own.
#[derive(Clone, Debug)]
pub(crate) struct OnTasks<S> {
    service: S,
    counters: Arc<Counters>,
}

impl<S> OnTasks<S> {
    pub(crate) fn new(service: S, counters: Arc<Counters>) -> Self {
        OnTasks { service, counters }
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
        let (pieces, body) = mpsc::channel(PIECES_MAX);
        let task = tokio::spawn(async move {
            let mut call = UserCode::new(ready.call(request), counters.clone());
            let answer = call.as_mut().await;
            drop(call);
            match answer {
                Err(error) => _ = answered.send(Err(error)),
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let mut body = UserCode::new(body, counters);
                    let is_over = catch_unwind(AssertUnwindSafe(|| body.as_mut().is_end_stream()));
                    let is_over = is_over.unwrap_or(false);
                    // Fails only if nobody waits for the answer: then this task is being aborted.
                    let is_wanted = answered.send(Ok(Response::from_parts(head, is_over))).is_ok();
                    if is_wanted && !is_over {
                        pump(body.as_mut(), pieces).await;
                    }
                }
            }
        });
        let body = TaskBody { pieces: body, task: Task(task), is_over: false };
        TaskAnswer { answer, body: Some(body) }
    }
}

/// A piece of a body. Only a body that panicked ends without a last one.
struct Piece<B: Body> {
    frame: Option<Result<Frame<B::Data>, B::Error>>,
    /// Nothing follows: the stream ends with it, not with an empty frame of its own.
    is_last: bool,
}

/// Moves a body's pieces and its end into the channel, as far as there is room.
async fn pump<B: Body>(mut body: Pin<&mut B>, pieces: mpsc::Sender<Piece<B>>) {
    loop {
        let Ok(place) = pieces.reserve().await else { return };
        let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
        let is_last = frame.is_none() || body.is_end_stream();
        // The end is told before the body is dropped, which may panic.
        place.send(Piece { frame, is_last });
        if is_last {
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
    pieces: mpsc::Receiver<Piece<B>>,
    task: Task,
    is_over: bool,
}

/// Nothing in it has to stay in place.
impl<B: Body> Unpin for TaskBody<B> {}

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
        match ready!(self.pieces.poll_recv(cx)) {
            Some(piece) => {
                self.is_over = piece.is_last;
                Poll::Ready(piece.frame)
            }
            None => {
                ready!(self.task.poll_over(cx));
                Poll::Ready(None)
            }
        }
    }

    /// A head that is all there is has to say so: gRPC's "Trailers-Only" is one frame.
    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tokio::sync::Notify;

    use super::super::stream::{Key, Shared, Wakes};

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
        OnTasks::new(answers, Arc::default())
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
        let mut service = OnTasks::new(answers, counters.clone());
        let answer = service.call(request()).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "123456789");
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counters.snapshot().panics, 2, "the call, and then the body");
    }

    #[tokio::test]
    async fn a_body_is_not_polled_for_more_than_there_is_room() {
        let answers = answers(1_000);
        let polled = answers.polled.clone();
        let mut body = on_tasks(answers).call(request()).await.unwrap().into_body();
        for taken in 1..50 {
            body.frame().await.unwrap().unwrap();
            // The task may go as far as it can.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(polled.load(Ordering::SeqCst) <= taken + PIECES_MAX);
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
