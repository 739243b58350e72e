//! Looks at a server before a run: is it there, does it speak HTTP/2, how many streams does it
//! allow, does it serve the contract?
//!
//! In: an address. Out: [`Peer`], or a [`ProbeError`] that says what answered instead. A run against
//! the wrong port should end with one clear line, not with a hang.

use std::time::Duration;

use bidi_echo::proto::chat::chat_client::ChatClient;
use bidi_echo::proto::echo::echo_client::EchoClient;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Endpoint;

use crate::scenario::ContractName;

/// How long a server may take for each step of the look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Client preface of HTTP/2 (RFC 9113, 3.4), followed by empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// SETTINGS longer than this hold nothing that HTTP/2 knows.
const SETTINGS_BYTES_MAX: usize = 6 * 256;

/// First byte of a TLS alert: the answer of a TLS server to our preface.
const TLS_ALERT: u8 = 0x15;

/// What a server said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// MAX_CONCURRENT_STREAMS, if announced.
    pub streams_per_connection_max: Option<u32>,
}

/// Why a server cannot be measured.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProbeError {
    #[error("{target}: not a target; pass http://HOST:PORT")]
    NotATarget { target: String },
    #[error("{target}: loadgen speaks HTTP/2 without TLS only; pass http://HOST:PORT")]
    Tls { target: String },
    #[error(
        "cannot connect to {target}: {error}; start a server there, or leave --target out for an embedded one"
    )]
    Connect { target: String, error: std::io::Error },
    #[error("{target} does not accept connections within {PATIENCE:?}; is the address right?")]
    ConnectTimeout { target: String },
    #[error("{target} speaks TLS: loadgen measures HTTP/2 without TLS; pass a plaintext port")]
    SpeaksTls { target: String },
    #[error(
        "{target} speaks HTTP/1, not HTTP/2 without TLS (h2c with prior knowledge); pass a gRPC port"
    )]
    SpeaksHttp1 { target: String },
    #[error(
        "{target} does not answer HTTP/2's preface with SETTINGS ({found}); is it a gRPC port without TLS?"
    )]
    NotHttp2 { target: String, found: String },
    #[error("{target} speaks HTTP/2 but does not serve {contract}: {status}")]
    NoService { target: String, contract: &'static str, status: String },
}

/// Parses a target, which must be plain `http`.
pub fn parse(target: &str) -> Result<http::Uri, ProbeError> {
    let wrong = || ProbeError::NotATarget { target: target.to_owned() };
    let uri: http::Uri = target.parse().map_err(|_| wrong())?;
    if uri.scheme_str() == Some("https") {
        return Err(ProbeError::Tls { target: target.to_owned() });
    }
    let nobody = !uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let plain = uri.scheme_str() == Some("http") && uri.host().is_some() && nobody;
    let bare = uri.path_and_query().is_none_or(|path| path == "/");
    if plain && bare { Ok(uri) } else { Err(wrong()) }
}

/// Connects once and reads the server's SETTINGS.
pub async fn look(target: &http::Uri) -> Result<Peer, ProbeError> {
    let name = target.authority().map_or(String::new(), ToString::to_string);
    let (Some(host), port) = (target.host(), target.port_u16().unwrap_or(80)) else {
        return Err(ProbeError::NotATarget { target: name });
    };
    // An IPv6 address stands in brackets in a URI, and without them everywhere else.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut tcp = match timeout(PATIENCE, TcpStream::connect((host, port))).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            return Err(ProbeError::Connect { target: name, error });
        }
        Err(_) => return Err(ProbeError::ConnectTimeout { target: name }),
    };
    match timeout(PATIENCE, read_settings(&mut tcp)).await {
        Ok(Ok(peer)) => Ok(peer),
        Ok(Err(found)) => Err(found.into_error(name)),
        Err(_) => Err(ProbeError::NotHttp2 { target: name, found: "silence".to_owned() }),
    }
}

/// What came instead of SETTINGS.
#[derive(Debug, PartialEq, Eq)]
enum Instead {
    TlsAlert,
    Http1,
    Other(String),
}

impl Instead {
    fn into_error(self, target: String) -> ProbeError {
        match self {
            Instead::TlsAlert => ProbeError::SpeaksTls { target },
            Instead::Http1 => ProbeError::SpeaksHttp1 { target },
            Instead::Other(found) => ProbeError::NotHttp2 { target, found },
        }
    }
}

async fn read_settings(tcp: &mut TcpStream) -> Result<Peer, Instead> {
    let broken = |error: std::io::Error| Instead::Other(error.to_string());
    tcp.write_all(PREFACE).await.map_err(broken)?;
    let mut head = [0; FRAME_HEAD_BYTES];
    let mut read = 0;
    while read < head.len() {
        match tcp.read(&mut head[read..]).await.map_err(broken)? {
            0 if head[0] == TLS_ALERT && read > 0 => return Err(Instead::TlsAlert),
            0 => return Err(Instead::Other("it closed the connection".to_owned())),
            more => read += more,
        }
    }
    let length = frame_length(&head)?;
    let mut payload = vec![0; length];
    tcp.read_exact(&mut payload).await.map_err(broken)?;
    Ok(Peer { streams_per_connection_max: max_concurrent_streams(&payload) })
}

/// Length of the SETTINGS frame that `head` begins, or what it is instead.
fn frame_length(head: &[u8; FRAME_HEAD_BYTES]) -> Result<usize, Instead> {
    if head.starts_with(b"HTTP/1.") {
        return Err(Instead::Http1);
    }
    if head[0] == TLS_ALERT && head[1] == 3 {
        return Err(Instead::TlsAlert);
    }
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if head[3] != SETTINGS || length > SETTINGS_BYTES_MAX || length % 6 != 0 {
        return Err(Instead::Other("it sent something else".to_owned()));
    }
    Ok(length)
}

fn max_concurrent_streams(settings: &[u8]) -> Option<u32> {
    let mut limit = None;
    for setting in settings.chunks_exact(6) {
        if u16::from_be_bytes([setting[0], setting[1]]) == MAX_CONCURRENT_STREAMS {
            limit = Some(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
        }
    }
    limit
}

/// Opens an empty stream and wants it to end with OK: the service is there.
///
/// Empty, so that a server's counters of messages hold the run and nothing else.
pub async fn answers(target: &http::Uri, contract: ContractName) -> Result<(), ProbeError> {
    let name = target.authority().map_or(String::new(), ToString::to_string);
    let path = match contract {
        ContractName::Echo => "echo.v1.Echo/Bidi",
        ContractName::Chat => "Chat/chat",
    };
    let status = match timeout(PATIENCE, empty_stream(target, contract)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(status)) => {
            format!("{}: {}", bidi_echo::stats::code_name(status.code()), status.message())
        }
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    Err(ProbeError::NoService { target: name, contract: path, status })
}

async fn empty_stream(target: &http::Uri, contract: ContractName) -> Result<(), Status> {
    let channel = Endpoint::from(target.clone())
        .connect()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let ended = match contract {
        ContractName::Echo => EchoClient::new(channel)
            .bidi(stream::empty())
            .await?
            .into_inner()
            .message()
            .await?
            .is_none(),
        ContractName::Chat => ChatClient::new(channel)
            .chat(stream::empty())
            .await?
            .into_inner()
            .message()
            .await?
            .is_none(),
    };
    if ended { Ok(()) } else { Err(Status::internal("it answered what nobody had asked")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_plain_http_with_a_host_and_no_path() {
        for good in ["http://127.0.0.1:9090", "http://localhost:1/", "http://[::1]:9090"] {
            parse(good).unwrap();
        }
        for wrong in [
            "127.0.0.1:9090",
            "ftp://a:1",
            "http://a:1/path",
            "http://me:secret@a:1",
            "",
            "http://",
        ] {
            assert!(matches!(parse(wrong), Err(ProbeError::NotATarget { .. })), "{wrong}");
        }
        assert!(matches!(parse("https://a:1"), Err(ProbeError::Tls { .. })));
    }

    #[test]
    fn settings_are_told_from_what_other_servers_send() {
        let check = |head: &[u8; 9], expected| assert_eq!(frame_length(head), expected);
        check(b"\0\0\x06\x04\0\0\0\0\0", Ok(6));
        check(b"\0\0\0\x04\0\0\0\0\0", Ok(0));
        check(b"HTTP/1.1 ", Err(Instead::Http1));
        check(b"\x15\x03\x01\0\x02\x02\x46\0\0", Err(Instead::TlsAlert));
        check(b"SSH-2.0-O", Err(Instead::Other("it sent something else".to_owned())));
    }

    #[test]
    fn the_stream_limit_is_read_from_settings() {
        assert_eq!(max_concurrent_streams(&[]), None);
        assert_eq!(max_concurrent_streams(&[0, 4, 0, 0, 1, 0, 0, 3, 0, 0, 0, 100]), Some(100));
    }
}
