//! The servers that a suite compares: ours by its transport, others from `peers.toml`.
//!
//! In: a name. Out: a command that was checked and built, and from it a process that answers; or
//! why there is none, in words for a report. A peer keeps to the embedded server's manners: it says
//! its address as the first line of stdout, and ends when its stdin does.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bidi_echo::config::Transport;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdin;
use tokio::time::timeout;

use super::child::Child;
use super::null;
use super::probe::{self, ProbeError};
use super::server;
use crate::scenario::ContractName;

/// Time to start or to stop; a JVM on a busy core takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time to find out whether a peer's tools are there.
const CHECK_TIME_MAX: Duration = Duration::from_secs(30);

/// Time to build a peer, with the downloads of the first time.
const BUILD_TIME_MAX: Duration = Duration::from_secs(900);

/// What `peers.toml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    #[serde(skip)]
    path: PathBuf,
    #[serde(rename = "peer")]
    peers: Vec<Peer>,
}

/// One peer; its commands run in the folder of its name beside `peers.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// As suites name it; also its folder.
    pub name: String,
    /// Versions of what it stands for.
    pub version: String,
    /// Whether it decodes messages.
    pub payload: PeerPayload,
    /// What must be installed, for people.
    pub requires: String,
    /// Succeeds where `requires` holds.
    check: Vec<String>,
    /// Builds it; again and again at no cost.
    build: Vec<String>,
    /// Serves on a free loopback port.
    run: Vec<String>,
}

/// What a peer does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerPayload {
    /// Decodes and encodes each.
    Typed,
    /// Forwards its bytes.
    Raw,
}

/// Why a server cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PeerError {
    #[error("cannot read {path}: {error}")]
    Unreadable { path: String, error: String },
    #[error("peers.toml has no peer {name}; it has {known}")]
    Unknown { name: String, known: String },
    #[error("needs {0}")]
    Requires(String),
    #[error("its build failed ({command}): {reason}")]
    Build { command: String, reason: String },
    #[error("cannot start it ({command}): {reason}")]
    Start { command: String, reason: String },
    #[error(transparent)]
    Silent(#[from] ProbeError),
}

impl Peers {
    /// Reads `peers.toml`.
    pub fn read(path: &Path) -> Result<Self, PeerError> {
        let unreadable =
            |error: String| PeerError::Unreadable { path: path.display().to_string(), error };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let peers: Peers = toml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        let idle =
            |peer: &&Peer| [&peer.check, &peer.build, &peer.run].iter().any(|it| it.is_empty());
        if let Some(peer) = peers.peers.iter().find(idle) {
            let cure = "check, build and run need a program each; write true where there is none";
            return Err(unreadable(format!("peer {}: {cure}", peer.name)));
        }
        let path = path.canonicalize().map_err(|error| unreadable(error.to_string()))?;
        Ok(Peers { path, ..peers })
    }

    /// The peer of this name.
    pub fn find(&self, name: &str) -> Result<&Peer, PeerError> {
        self.peers.iter().find(|peer| peer.name == name).ok_or_else(|| {
            let known: Vec<_> = self.peers.iter().map(|peer| peer.name.as_str()).collect();
            PeerError::Unknown { name: name.to_owned(), known: known.join(", ") }
        })
    }

    /// Checks what `peer` requires and builds it.
    pub async fn build(&self, peer: &Peer) -> Result<ServerCommand, PeerError> {
        let checked = self.finish(peer, &peer.check, CHECK_TIME_MAX).await;
        checked.map_err(|_| PeerError::Requires(peer.requires.clone()))?;
        let built = self.finish(peer, &peer.build, BUILD_TIME_MAX).await;
        built.map_err(|reason| PeerError::Build { command: peer.build.join(" "), reason })?;
        Ok(ServerCommand { folder: Some(self.folder_of(peer)), words: peer.run.clone() })
    }

    fn folder_of(&self, peer: &Peer) -> PathBuf {
        self.path.with_file_name(&peer.name)
    }

    async fn finish(&self, peer: &Peer, words: &[String], limit: Duration) -> Result<(), String> {
        let in_words = |error: io::Error| error.to_string();
        let mut child =
            Child::start(command(Some(&self.folder_of(peer)), words), &[]).map_err(in_words)?;
        let status = child.wait(limit).await.map_err(in_words)?;
        if status.success() { Ok(()) } else { Err(child.last_words()) }
    }
}

/// How a server is started; as often as wanted.
#[derive(Clone, Debug)]
pub struct ServerCommand {
    folder: Option<PathBuf>,
    words: Vec<String>,
}

impl ServerCommand {
    /// Our server on this transport: this very program in its hidden role.
    pub fn embedded(transport: Transport) -> io::Result<Self> {
        Self::own_role(server::arguments(transport))
    }

    /// The server that does nothing: this program in its other hidden role.
    pub fn null() -> io::Result<Self> {
        Self::own_role(vec![null::VERB])
    }

    fn own_role(arguments: Vec<&str>) -> io::Result<Self> {
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        let arguments = arguments.into_iter().map(str::to_owned);
        Ok(Self::of(std::iter::once(program).chain(arguments).collect()))
    }

    /// A program with its arguments, in a peer's manners.
    pub fn of(words: Vec<String>) -> Self {
        ServerCommand { folder: None, words }
    }

    /// Starts the server on `cpus` and waits until it answers calls of this contract.
    pub async fn start(
        &self,
        cpus: &[usize],
        contract: ContractName,
    ) -> Result<ServerProcess, PeerError> {
        let refused = |reason: String| PeerError::Start { command: self.in_words(), reason };
        let started = Child::start_piped(command(self.folder.as_deref(), &self.words), cpus);
        let (mut child, stdin, stdout) = started.map_err(|error| refused(error.to_string()))?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let said = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        let address: Option<SocketAddr> =
            said.ok().and_then(Result::ok).and_then(|_| line.trim().parse().ok());
        let address = address.ok_or_else(|| refused(child.last_words()))?;
        let uri = probe::parse(&format!("http://{address}"))?;
        probe::look(&uri).await?;
        probe::answers(&uri, contract).await?;
        // Whatever else it says is nobody's; a pipe that nobody empties would stop it in the end.
        tokio::spawn(async move { _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await });
        Ok(ServerProcess { child, stdin, address })
    }

    /// For reports, which tell no folders.
    fn in_words(&self) -> String {
        let (program, arguments) = self.words.split_first().expect("a command has a program");
        let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        [&[program.into_owned()], arguments].concat().join(" ")
    }
}

/// A server that answers; killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    stdin: ChildStdin,
    address: SocketAddr,
}

impl ServerProcess {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id, unless it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.pid()
    }

    /// Ends its stdin and waits for its end; kills it if that takes too long. Err: it did not end
    /// well, so what was measured of it is suspect.
    pub async fn stop(self) -> io::Result<()> {
        let ServerProcess { mut child, stdin, address: _ } = self;
        drop(stdin);
        let status = child.wait(PATIENCE).await?;
        if status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("ended with {status}: {}", child.last_words())))
    }
}

/// A program with a slash in its name is meant from `folder`, whatever folder loadgen runs in.
fn command(folder: Option<&Path>, words: &[String]) -> Command {
    let program = words.first().map_or("", String::as_str);
    let own = folder.filter(|_| program.contains('/')).map(|folder| folder.join(program));
    let mut command = Command::new(own.as_deref().unwrap_or(Path::new(program)));
    command.args(words.iter().skip(1));
    folder.into_iter().for_each(|folder| _ = command.current_dir(folder));
    command
}

#[cfg(test)]
mod tests {
    use bidi_echo::transport::{Limits, Server};
    use tokio::net::TcpListener;

    use super::*;

    const PEER: &str = r#"
[[peer]]
name = "nobody"
version = "none"
payload = "raw"
requires = "nothing"
check = ["true"]
build = ["true"]
run = ["sh", "-c", "echo 'error: no port is free' >&2; exit 1"]
"#;

    fn read(text: &str) -> (tempfile::TempDir, Result<Peers, PeerError>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("nobody")).unwrap();
        let path = folder.path().join("peers.toml");
        std::fs::write(&path, text).unwrap();
        let peers = Peers::read(&path);
        (folder, peers)
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_reason() {
        let check = |from: &str, to: &str, expected: &str| {
            let error = read(&PEER.replacen(from, to, 1)).1.unwrap_err().to_string();
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        };
        check("run = ", "runs = ", "unknown field `runs`");
        check("\"raw\"", "\"cooked\"", "unknown variant `cooked`");
        check("check = [\"true\"]", "check = []", "peer nobody: check, build and run need");
        let error = read(PEER).1.unwrap().find("somebody").unwrap_err().to_string();
        assert_eq!(error, "peers.toml has no peer somebody; it has nobody");
    }

    #[tokio::test]
    async fn a_server_that_says_more_than_its_address_is_not_stopped_by_that() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let never = std::future::pending();
        tokio::spawn(Server::new(Limits::default()).serve(listener, null::NullEcho, never));
        // More than a pipe holds, and only then it ends with its stdin.
        let script = format!("echo {address}; head -c 1000000 /dev/zero; cat >/dev/null");
        let command = ServerCommand::of(["sh", "-c", &script].map(str::to_owned).into());
        let process = command.start(&[], ContractName::Echo).await.unwrap();
        process.stop().await.unwrap();
    }

    #[tokio::test]
    async fn what_keeps_a_peer_from_serving_is_told_in_its_words() {
        let reason = async |from: &str, to: &str| {
            let (_folder, peers) = read(&PEER.replacen(from, to, 1));
            let peers = peers.unwrap();
            match peers.build(peers.find("nobody").unwrap()).await {
                Ok(command) => {
                    let started = command.start(&[], ContractName::Echo).await;
                    started.map(drop).unwrap_err().to_string()
                }
                Err(error) => error.to_string(),
            }
        };
        assert_eq!(reason("check = [\"true\"]", "check = [\"false\"]").await, "needs nothing");
        let build = "build = [\"sh\", \"-c\", \"echo no such header; exit 1\"]";
        assert_eq!(
            reason("build = [\"true\"]", build).await,
            "its build failed (sh -c echo no such header; exit 1): no such header"
        );
        assert!(reason("", "").await.ends_with("error: no port is free"));
    }
}
