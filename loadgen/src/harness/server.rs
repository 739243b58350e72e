//! The embedded server: this very program, started again in the server's role.
//!
//! In a process of its own, so that its CPU time and memory are its own; with the same allocator
//! and the same build. It listens on a free port, says which on stdout, and ends when its stdin
//! does, so it cannot outlive a loadgen that was killed.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use bidi_echo::config::{Config, LogFormat, LogLevel, Transport};
use bidi_echo::serve::serve;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::child::on_cores;

/// The verb that [`EmbeddedServer::start`] gives to the program it starts.
pub const VERB: &str = "embedded-server";

/// Time to start or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Streams are over when loadgen stops its server; what is left is not worth waiting for.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct EmbeddedServer {
    child: Child,
    _stdin: ChildStdin,
    address: SocketAddr,
}

/// Why there is no embedded server.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the embedded server: {0}; start one by hand (cargo run) and pass --target")]
pub struct StartError(io::Error);

impl EmbeddedServer {
    /// Starts the server on this transport and these cores (none: all), and waits until it listens.
    pub async fn start(transport: Transport, cpus: &[usize]) -> Result<Self, StartError> {
        Self::try_start(transport, cpus).await.map_err(StartError)
    }

    async fn try_start(transport: Transport, cpus: &[usize]) -> io::Result<Self> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(arguments(transport));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own: Ctrl-C is for loadgen, which then drains and stops the server.
        command.process_group(0);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let mut child = on_cores(cpus, || command.spawn())??;
        let stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        let mut lines = BufReader::new(stdout);
        timeout(PATIENCE, lines.read_line(&mut line))
            .await
            .map_err(|_| io::Error::other("it does not say where it listens"))??;
        let address = line.trim().parse().map_err(|_| {
            io::Error::other(format!("it says {line:?} instead of where it listens"))
        })?;
        Ok(EmbeddedServer { child, _stdin: stdin, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id, unless it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Lets it drain and waits for its end; kills it if it takes too long.
    pub async fn stop(self) {
        let EmbeddedServer { mut child, _stdin, .. } = self;
        drop(_stdin);
        let _ = timeout(PATIENCE, child.wait()).await;
    }
}

/// What makes this program a server on this transport.
pub(crate) fn arguments(transport: Transport) -> Vec<&'static str> {
    let arguments = vec![VERB, "--transport", transport.name()];
    match transport {
        Transport::Inline(placement) => [arguments, vec!["--placement", placement.name()]].concat(),
        Transport::Tonic => arguments,
    }
}

/// The server's role: serves on a free loopback port until stdin ends, with `upkeep` beside.
pub fn serve_until_stdin_ends(
    transport: Transport,
    upkeep: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    bidi_echo::logging::init(LogLevel::Warn, LogFormat::Text);
    // It is inherited from a loadgen that runs; a suite has it from nobody. Where the system forbids
    // it, the server is as good as any.
    let _ = bidi_echo::serve::keep_to_small_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.spawn(upkeep);
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stdout = io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        let config = Config { transport, drain_limit: DRAIN_LIMIT, ..Config::default() };
        serve(listener, config, stdin_ends()).await?;
        Ok(())
    })
}

/// On a thread of its own: tokio's stdin would hold the runtime's end up.
pub(super) async fn stdin_ends() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut ignored = [0; 64];
        while io::stdin().read(&mut ignored).is_ok_and(|read| read > 0) {}
        let _ = ended.send(());
    });
    let _ = end.await;
}
