//! Connections that always have something to do.
use super::*;

/// A body without end, of which some is always there.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"more")))))
    }
}

/// Says what was laid in, and takes whatever comes.
struct Greedy(&'static [u8]);

impl AsyncRead for Greedy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        buf.put_slice(std::mem::take(&mut self.0));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Greedy {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A runtime that asks the system for events only when no task is ready: usually it does so after
/// some dozens of polls, and a test could not tell whom a neighbour owes its turn to.
#[test]
fn a_connection_that_is_never_idle_lets_the_runtime_look_at_sockets() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(u32::MAX).build().unwrap();
    runtime.block_on(async {
        let server = Server::new(Limits::default());
        let windows = settings(&[(INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
        let wide = window_update(0, (1 << 31) - 1 - 65_535);
        let said = [PREFACE, &windows, &wide, &post(1, END_STREAM)].concat().leak();
        let endless = service_fn(|_: Request<RecvBody>| async {
            Ok::<_, Infallible>(Response::new(Endless))
        });
        let busy = server.serve_connection(Greedy(said), endless, http::Extensions::new());
        tokio::spawn(busy);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        tokio::spawn(server.serve_connection(far, service(), http::Extensions::new()));
        let mut peer = Peer::new(near);
        peer.greet(&[]).await;
        peer.echo(1).await;
    });
}
