//! The echo on ntex-grpc, typed by its generator: the fastest other gRPC stack in Rust.
//!
//! Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
//! ends. One worker, as the suite gives it one core. Response headers leave with the first reply:
//! ntex-grpc has no way to send them earlier.

mod echo;

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::TcpListener;

use ntex::http::header::{HeaderName, HeaderValue};
use ntex::io::IoConfig;
use ntex::util::BytePageSize;
use ntex::{ServiceFactory, SharedCfg, server::Server};
use ntex_grpc::server::ServerError;
use ntex_grpc::{RecvStream, SendStream, server};
use ntex_h2::ServiceConfig;

use crate::echo::EchoMessage;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
const CONNECTION_FLOW_WINDOW_BYTES: i32 = 16 << 20;
const STREAM_FLOW_WINDOW_BYTES: i32 = 1 << 20;
const STREAMS_MAX: u32 = 4096;

/// Output of a connection that is not yet with the kernel; the default of 16 KiB stops a large
/// message at each frame.
const WRITE_BYTES_MAX: usize = 256 << 10;

#[derive(Clone)]
struct Echo;

#[server(crate::echo::Echo)]
impl Echo {
    #[method(Bidi)]
    async fn bidi(
        &self,
        mut messages: RecvStream<EchoMessage>,
        replies: SendStream<EchoMessage>,
    ) -> Result<(), ServerError> {
        let product = HeaderValue::from_static("ntex-grpc/4");
        replies.header(HeaderName::from_static("server"), product);
        while let Some(message) = messages.recv().await {
            replies.send(&message?).await?;
        }
        Ok(())
    }
}

impl ServiceFactory<(), server::ServerRequest> for Echo {
    type Res = server::ServerResponse;
    type Error = ServerError;
    type Service = Echo;
    type InitError = Infallible;

    async fn create(&self, _: &()) -> Result<Echo, Infallible> {
        Ok(Echo)
    }
}

#[ntex::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let http2 = ServiceConfig::new()
        .set_initial_connection_window_size(CONNECTION_FLOW_WINDOW_BYTES)
        .set_initial_window_size(STREAM_FLOW_WINDOW_BYTES)
        .set_max_concurrent_streams(STREAMS_MAX);
    let io = IoConfig::new()
        .set_read_size(BytePageSize::Size64, BytePageSize::Size256)
        .set_read_backpressure(BytePageSize::Size256.capacity())
        .set_write_size(BytePageSize::Size64)
        .set_write_buf_threshold(WRITE_BYTES_MAX)
        .set_write_backpressure(WRITE_BYTES_MAX);
    let server = Server::builder()
        .workers(1)
        .listen("echo", listener, SharedCfg::new("echo").add(http2).add(io), async |_| {
            server::GrpcServer::new(Echo)
        })?
        .run();
    std::thread::spawn(|| {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    writeln!(io::stdout(), "{address}")?;
    server.await
}
