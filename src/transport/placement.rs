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
        TaskAnswer { answer: Some(answer), body: Some(body) }
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
    /// The head, and whether there is no body; `None` once it is known that none comes.
    answer: Option<oneshot::Receiver<Result<Response<bool>, E>>>,
    body: Option<TaskBody<B>>,
}

/// Nothing in it has to stay in place.
impl<B: Body, E> Unpin for TaskAnswer<B, E> {}

impl<B: Body, E> Future for TaskAnswer<B, E> {
    type Output = Result<Response<TaskBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(answer) = &mut self.answer {
            match ready!(Pin::new(answer).poll(cx)) {
                Ok(Ok(head)) => {
                    let mut body = self.body.take().expect("polled once to its end");
                    return Poll::Ready(Ok(head.map(|is_over| {
                        body.is_over = is_over;
                        body
                    })));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => self.answer = None,
            }
        }
        // The task ends without an answer, and may take a moment: it panicked, which this passes on, or its runtime is
        // shutting down.
        if let Some(body) = &mut self.body {
            ready!(body.task.poll_over(cx));
            self.body = None;
        }
        Poll::Pending
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
mod tests;
