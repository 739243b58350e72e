//! Accepts connections and serves each with a clone of one tower service.
//!
//! In: a listener, a service, a future that says when to stop. Out: nothing before all connections
//! are over, at most the drain limit later. What tonic generates is such a service:
//! `tonic::service::Routes`, with interceptors, health, reflection and compression as they are.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::future::Either;
use http::{Extensions, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use super::connection::{Connection, Memory, Signals};
use super::counters::Counters;
use super::limits::Limits;
use super::memory::{Held, Share, Total};
use super::placement::{OnTasks, Placement, Tasks};
use super::serving::Serving;
use super::stream::RecvBody;
use crate::drain::Drain;
use crate::listen::Listener;

/// How long a drain may take, unless set.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Connections at once, unless set. Each takes a file descriptor and some KiB.
const CONNECTIONS_MAX: usize = 65_536;

/// Bytes that all connections keep together, unless set. 1 GiB: 64 connections with full windows.
const BUFFERED_BYTES_MAX: usize = 1 << 30;

type ExtensionsHook = dyn Fn(&TcpStream) -> Extensions + Send + Sync;

/// An HTTP/2 server (prior knowledge, no TLS) whose streams live inside their connection's task.
///
/// ```no_run
/// # use std::convert::Infallible;
/// # async fn example<S, B>(service: S) -> std::io::Result<()>
/// # where
/// #     S: tower_service::Service<
/// #             http::Request<bidi_echo::transport::RecvBody>,
/// #             Response = http::Response<B>,
/// #             Error = Infallible,
/// #         > + Clone + Send + Sync + 'static,
/// #     S::Future: Send,
/// #     B: http_body::Body<Data = bytes::Bytes, Error = Infallible> + Send + 'static,
/// # {
/// use bidi_echo::transport::{Limits, Server};
///
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
/// Server::new(Limits::default()).serve(listener, service, stop).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Server {
    limits: Arc<Limits>,
    counters: Arc<Counters>,
    drain_limit: Duration,
    connections_max: usize,
    total: Total,
    extensions: Option<Arc<ExtensionsHook>>,
    placement: Placement,
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// A server whose connections keep to `limits`, each taken within its range.
    pub fn new(limits: Limits) -> Self {
        let counters = Arc::<Counters>::default();
        Server {
            limits: Arc::new(limits.clamped()),
            counters: counters.clone(),
            drain_limit: DRAIN_LIMIT,
            connections_max: CONNECTIONS_MAX,
            total: Total::new(BUFFERED_BYTES_MAX, counters),
            extensions: None,
            placement: Placement::default(),
        }
    }

    /// From the moment of stopping to the end, at most; 10 s unless set. Of [`Self::serve`] and
    /// [`Self::serve_connection_with_shutdown`].
    #[must_use]
    pub fn drain_limit(self, drain_limit: Duration) -> Self {
        Server { drain_limit, ..self }
    }

    /// Connections at once; more wait in the listener's backlog. Of [`Self::serve`] alone: whoever accepts by themselves counts
    /// by themselves.
    #[must_use]
    pub fn connections_max(self, connections_max: usize) -> Self {
        Server { connections_max, ..self }
    }

    /// Bytes that all connections keep together: in inboxes, in output, of messages and headers that
    /// have begun, counted as they are on the wire. 1 GiB unless set.
    ///
    /// From half of it on, a connection that keeps more than its fair part of that half (the half,
    /// divided by the connections that are open) is granted no more window and opens no more streams
    /// (REFUSED_STREAM). One that grows nevertheless beyond `bytes_max` ends with GOAWAY,
    /// `memory_exhausted`; beyond one and a half times `bytes_max`, any that grows does. One whose window is used up and
    /// was not granted again for [`Limits::stall_timeout`] ends with `memory_scarce`. So the sum stays below
    /// that, plus what the connections being served at that moment, one a thread, take in one turn: four reads of
    /// 256 KiB and what bodies answer.
    #[must_use]
    pub fn buffered_bytes_max(self, bytes_max: usize) -> Self {
        Server { total: Total::new(bytes_max, self.counters.clone()), ..self }
    }

    /// What each request of a connection finds in its extensions: the peer's address, for example. Of [`Self::serve`]; the others
    /// are given them.
    #[must_use]
    pub fn extensions(
        self,
        hook: impl Fn(&TcpStream) -> Extensions + Send + Sync + 'static,
    ) -> Self {
        Server { extensions: Some(Arc::new(hook)), ..self }
    }

    /// Where streams run; inline unless set.
    #[must_use]
    pub fn placement(self, placement: Placement) -> Self {
        Server { placement, ..self }
    }

    /// What this server counts.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves until `stop` resolves, then drains: GOAWAY; streams go on; near the limit handlers get
    /// nothing more and what they took is answered; at the limit the rest ends with UNAVAILABLE.
    pub async fn serve<S, B>(
        self,
        listener: TcpListener,
        service: S,
        stop: impl Future<Output = ()>,
    ) where
        S: Service<Request<RecvBody>, Response = Response<B>>,
        S: Clone + Send + Sync + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Send,
    {
        let drain = Drain::default();
        let drain_limit = self.drain_limit;
        let mut over = std::pin::pin!(self.accept(listener, service, &drain));
        tokio::select! {
            () = &mut over => return,
            () = stop => drain.leave.set(),
        }
        drain.run_down(over, drain_limit).await;
    }

    /// Serves until `drain.leave` is set and all connections are over.
    pub(crate) async fn accept<S, B>(self, listener: TcpListener, service: S, drain: &Drain)
    where
        S: Service<Request<RecvBody>, Response = Response<B>>,
        S: Clone + Send + Sync + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Send,
    {
        let mut listener = Listener::new(listener);
        let places = Arc::new(Semaphore::new(self.connections_max.min(Semaphore::MAX_PERMITS)));
        let mut leave = drain.leave.watch();
        loop {
            let accepted = tokio::select! {
                () = leave.wait() => break,
                accepted = async {
                    let place = places.clone().acquire_owned().await.expect("never closed");
                    (listener.accept().await, place)
                } => accepted,
            };
            let (tcp, place) = accepted;
            let extensions = self.extensions.as_ref().map(|hook| hook(&tcp)).unwrap_or_default();
            let service = service.clone();
            match self.placement {
                Placement::Inline => {
                    spawn(self.connection(tcp, service, None, extensions, Some(drain)), place);
                }
                Placement::Task => {
                    let service = self.on_tasks(service);
                    let tasks = service.tasks();
                    let connection =
                        self.connection(tcp, service, Some(tasks), extensions, Some(drain));
                    spawn(connection, place);
                }
            }
        }
        drop((leave, listener));
        drain.cut_off.unwatched().await;
    }

    /// Serves one connection, over any byte stream: behind TLS, for example, once ALPN has agreed on `h2`.
    ///
    /// Goes on until the peer leaves; dropped, it cuts its streams off. To drain it, see
    /// [`Self::serve_connection_with_shutdown`]. Must be polled within a tokio runtime with timers. Err: the byte stream failed.
    pub fn serve_connection<IO, S, B>(
        &self,
        io: IO,
        service: S,
        extensions: Extensions,
    ) -> impl Future<Output = io::Result<()>> + use<IO, S, B>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Send,
    {
        self.placed(io, service, extensions, None)
    }

    /// The same until `stop` resolves; then drains, as [`Self::serve`] does: GOAWAY, and at most the drain limit later it is over.
    ///
    /// Must be polled within a tokio runtime with timers. Err: the byte stream failed.
    pub async fn serve_connection_with_shutdown<IO, S, B>(
        &self,
        io: IO,
        service: S,
        extensions: Extensions,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Send,
    {
        let drain = Drain::default();
        let mut over = std::pin::pin!(self.placed(io, service, extensions, Some(&drain)));
        tokio::select! {
            ended = &mut over => return ended,
            () = stop => drain.leave.set(),
        }
        drain.run_down(over, self.drain_limit).await.unwrap_or(Ok(()))
    }

    /// A connection whose streams run where this server's do.
    fn placed<IO, S, B>(
        &self,
        io: IO,
        service: S,
        extensions: Extensions,
        drain: Option<&Drain>,
    ) -> impl Future<Output = io::Result<()>> + use<IO, S, B>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Send,
    {
        match self.placement {
            Placement::Inline => {
                Either::Left(self.connection(io, service, None, extensions, drain))
            }
            Placement::Task => {
                let service = self.on_tasks(service);
                let tasks = service.tasks();
                Either::Right(self.connection(io, service, Some(tasks), extensions, drain))
            }
        }
    }

    fn on_tasks<S>(&self, service: S) -> OnTasks<S> {
        OnTasks::new(service, self.counters.clone(), self.limits.max_concurrent_streams)
    }

    fn connection<IO, S, B>(
        &self,
        io: IO,
        service: S,
        tasks: Option<Arc<Tasks>>,
        mut extensions: Extensions,
        drain: Option<&Drain>,
    ) -> Connection<IO, Serving<S>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        B: Body,
        B::Data: Buf,
    {
        let signals = drain.map(|drain| Signals {
            leave: drain.leave.watch(),
            stop: drain.stop_reading.watch(),
            cut_off: drain.cut_off.watch(),
        });
        let held = Held::new(self.limits.held_bytes_max);
        extensions.insert(held.clone());
        let memory = Memory { share: Share::new(self.total.clone()), held };
        let serving = Serving { service, extensions, counters: self.counters.clone(), tasks };
        Connection::new(io, serving, self.limits.clone(), signals, self.counters.clone())
            .with_memory(memory)
    }
}

/// Serves a connection on a task of its own; `place` is free again when that ends.
fn spawn(
    mut connection: impl Future<Output = io::Result<()>> + Unpin + Send + 'static,
    place: OwnedSemaphorePermit,
) {
    tokio::spawn(async move {
        // What ends a connection early, its streams were told. Polled where it is: a future that is
        // awaited by value moves, and its task would hold room for two (a kilobyte a connection).
        let _ = (&mut connection).await;
        drop(connection);
        drop(place);
    });
}
