//! Takes connections from the listener and lends them to the transport.
//!
//! In: a listener and a [`Drain`]. Out: a stream of [`Connection`]s with `TCP_NODELAY` set. A
//! [`Connection`] reads and writes as its socket does: it defers nothing and copies nothing, so what
//! is measured is tonic.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::ConnectionAge;
use crate::drain::{Drain, Watcher};
use crate::listen::Listener;
use crate::stats::{OpenConnection, Stats};

/// How long a closed connection is read on, so that what the client still sends does not make the
/// kernel answer with RST, which would destroy echoes on their way (RFC 9112, 9.6, for HTTP/1).
const LINGER_MAX: Duration = Duration::from_secs(1);

/// What each accepted connection is given.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    pub(crate) drain: Drain,
    pub(crate) stats: Arc<Stats>,
    pub(crate) age: Option<ConnectionAge>,
    /// One for each connection that may be open.
    pub(crate) places: Arc<Semaphore>,
}

impl Acceptor {
    /// Places for so many connections.
    pub(crate) fn places(connections_max: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)))
    }

    /// The connections of `listener`; never ends and never fails.
    pub(crate) fn accept(
        self,
        listener: TcpListener,
    ) -> impl Stream<Item = Result<Connection, io::Error>> {
        let state = (Listener::new(listener), self);
        stream::unfold(state, |(mut listener, acceptor)| async move {
            let place = acceptor.places.clone().acquire_owned().await.expect("never closed");
            let connection = Connection::new(listener.accept().await, &acceptor, place);
            Some((Ok(connection), (listener, acceptor)))
        })
    }
}

/// A socket that is counted while open, ends when cut off, and lingers when it is shut down.
#[derive(Debug)]
pub(crate) struct Connection {
    tcp: TcpStream,
    _open: OpenConnection,
    _place: OwnedSemaphorePermit,
    cut_off: Watcher,
    expiry: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn new(tcp: TcpStream, acceptor: &Acceptor, place: OwnedSemaphorePermit) -> Self {
        let lifetime =
            acceptor.age.and_then(|age| age.grace.map(|grace| age.max.saturating_add(grace)));
        Connection {
            tcp,
            _open: OpenConnection::new(acceptor.stats.clone()),
            _place: place,
            cut_off: acceptor.drain.cut_off.watch(),
            expiry: lifetime.map(|lifetime| Box::pin(sleep(lifetime))),
            linger: None,
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut_off.is_set(cx)
            || self.expiry.as_mut().is_some_and(|expiry| expiry.as_mut().poll(cx).is_ready())
    }

    /// Turns a wait into an error once the connection is cut off; costs only those who wait.
    fn unless_over<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_pending() && self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        poll
    }

    /// Reads and discards until the client closes too.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut discarded = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            let read = pin!(&mut self.tcp).poll_read(cx, &mut buf);
            if read.is_pending() && self.is_over(cx) {
                return Poll::Ready(Ok(()));
            }
            match ready!(read) {
                Ok(()) if !buf.filled().is_empty() => {}
                // The end or an error: either way there is nothing left to wait for.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = pin!(&mut self.tcp).poll_read(cx, buf);
        self.unless_over(cx, poll)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = pin!(&mut self.tcp).poll_write(cx, buf);
        self.unless_over(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = pin!(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.unless_over(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(pin!(&mut self.tcp).poll_shutdown(cx))?;
            self.linger = Some(Box::pin(sleep(LINGER_MAX)));
        }
        if self.linger.as_mut().is_some_and(|linger| linger.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        self.poll_discard(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    async fn pair(acceptor: &Acceptor) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let accepted = pin!(acceptor.clone().accept(listener)).next().await;
        (client, accepted.unwrap().unwrap())
    }

    fn acceptor() -> Acceptor {
        Acceptor {
            drain: Drain::default(),
            stats: Arc::default(),
            age: None,
            places: Acceptor::places(10),
        }
    }

    #[tokio::test]
    async fn an_accepted_connection_is_counted_and_does_not_delay_small_writes() {
        let acceptor = acceptor();
        let (_client, connection) = pair(&acceptor).await;
        assert!(connection.tcp.nodelay().unwrap());
        assert!(connection.is_write_vectored());
        assert_eq!(acceptor.stats.snapshot().connections_open, 1);
        drop(connection);
        assert_eq!(acceptor.stats.snapshot().connections_open, 0);
    }

    #[tokio::test]
    async fn a_cut_off_ends_a_read_that_waits() {
        let acceptor = acceptor();
        let (_client, mut connection) = pair(&acceptor).await;
        let reading = tokio::spawn(async move { connection.read_u8().await });
        tokio::task::yield_now().await;
        acceptor.drain.cut_off.set();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_cut_off_ends_a_write_that_waits() {
        let acceptor = acceptor();
        let (_client, mut connection) = pair(&acceptor).await;
        let writing = tokio::spawn(async move {
            loop {
                connection.write_all(&[0; 65_536]).await?;
            }
        });
        tokio::task::yield_now().await;
        acceptor.drain.cut_off.set();
        let written: io::Result<()> = writing.await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn what_the_client_still_sends_does_not_destroy_the_last_reply() {
        let acceptor = acceptor();
        let (mut client, mut connection) = pair(&acceptor).await;
        connection.write_all(b"last words").await.unwrap();
        client.write_all(&[7; 100_000]).await.unwrap();
        let closing = tokio::spawn(async move { connection.shutdown().await });
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).await.unwrap();
        assert_eq!(reply, b"last words");
        client.write_all(&[7; 100_000]).await.unwrap();
        drop(client);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_closes_is_lingered_on_for_a_bounded_time() {
        let acceptor = acceptor();
        let (_client, mut connection) = pair(&acceptor).await;
        let start = Instant::now();
        connection.shutdown().await.unwrap();
        assert!(start.elapsed() >= LINGER_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_past_its_age_and_grace_is_cut_off() {
        let (max, grace) = (Duration::from_millis(30), Duration::from_millis(20));
        let age = ConnectionAge { max, grace: Some(grace) };
        let acceptor = Acceptor { age: Some(age), ..acceptor() };
        let (_client, mut connection) = pair(&acceptor).await;
        let start = Instant::now();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(start.elapsed() >= max + grace);
    }
}
