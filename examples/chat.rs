//! The seed's client: opens one stream, says three things, and prints what comes back.
//!
//! `cargo run --example chat [URL]`, by default against http://localhost:9090. Sending and receiving
//! run side by side: the first message is on its way before the server answers with anything.

use std::env;
use std::process::ExitCode;

use bidi_echo::proto::chat::ChatMessage;
use bidi_echo::proto::chat::chat_client::ChatClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

const URL: &str = "http://localhost:9090";

const SAID: [(&str, &str); 3] = [("Sam", "Hi"), ("Ann", "Hey"), ("John", "Hello")];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let url = env::args().nth(1).unwrap_or_else(|| URL.to_owned());
    match chat(url.clone()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {url}: {}", innermost(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn chat(url: String) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = ChatClient::connect(url).await?;
    let (say, said) = mpsc::channel(1);
    // The call resolves when the server's headers are here, and a server may send them with its first
    // reply: so the reader waits for them, and the sender does not.
    let reader = tokio::spawn(async move {
        let replies = client.chat(ReceiverStream::new(said)).await?.into_inner();
        print_all(replies).await
    });
    for (name, message) in SAID {
        let message = ChatMessage { name: name.to_owned(), message: message.to_owned() };
        if say.send(message).await.is_err() {
            break; // The call is over already; the reader knows why.
        }
    }
    // Dropping the sender half-closes the stream: no more is coming, the replies may finish.
    drop(say);
    Ok(reader.await??)
}

async fn print_all(mut replies: Streaming<String>) -> Result<(), Status> {
    while let Some(reply) = replies.message().await? {
        println!("{reply}");
    }
    Ok(())
}

/// "transport error" alone helps nobody: what lies at its bottom does.
fn innermost(mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
