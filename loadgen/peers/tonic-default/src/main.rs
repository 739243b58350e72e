//! The echo on tonic as it comes: no setting of server, runtime, allocator, generator or build is touched.
//!
//! Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
//! ends. The requests are returned as the responses, which is the least that a handler can do: the
//! channel and the task of tonic's own example would cost more.

use std::error::Error;
use std::io::{self, Read};

use tonic::metadata::MetadataValue;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::EchoMessage;
use crate::proto::echo_server::{Echo, EchoServer};

mod proto {
    tonic::include_proto!("echo.v1");
}

struct Unchanged;

#[tonic::async_trait]
impl Echo for Unchanged {
    type BidiStream = Streaming<EchoMessage>;

    async fn bidi(
        &self,
        request: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Self::BidiStream>, Status> {
        let mut response = Response::new(request.into_inner());
        let product = MetadataValue::from_static("tonic/0.14 (defaults)");
        response.metadata_mut().insert("server", product);
        Ok(response)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // As `Server::serve` binds, which does not tell the port that it got.
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?);
    std::thread::spawn(|| {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        std::process::exit(0);
    });
    Server::builder().add_service(EchoServer::new(Unchanged)).serve_with_incoming(incoming).await?;
    Ok(())
}
