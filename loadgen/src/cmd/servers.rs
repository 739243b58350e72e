//! Servers as they are typed: ours by transport, a peer by name, a command, or what listens somewhere.

use std::fmt::{self, Display};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bidi_echo::config::{Placement, Transport};
use clap::Args;

use crate::harness::awake::Awake;
use crate::harness::calm::Calm;
use crate::harness::peers::{PeerError, Peers, ServerCommand};
use crate::scenario::UsageError;
use crate::units::Nanos;

/// A server as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerName {
    /// `inline`, `inline-task`, `tonic`: ours, on this transport.
    Ours(Transport),
    /// `peer:NAME`: of peers.toml.
    Peer(String),
    /// `cmd:PROGRAM ARGUMENTS`: says its address as the first line of stdout, ends when its stdin ends.
    Command(Vec<String>),
    /// `http://HOST:PORT`: it runs already, wherever.
    Running(String),
}

/// Where runs take place, and where their records go.
#[derive(Clone, Debug, Args)]
pub(super) struct WhereArgs {
    /// Cores of the servers, such as 0,1 [default: the first half]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub(super) server_cpus: Vec<usize>,

    /// Cores of loadgen, a shard on each [default: the rest]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub(super) cpus: Vec<usize>,

    /// Keep these cores from idling: a thread of the lowest priority on each, so that none has to be woken. For cores that
    /// nobody else uses
    #[arg(long)]
    pub(super) keep_awake: bool,

    /// Before each run, wait until others take at most 2 % of each of these cores, for so long at most over all runs
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub(super) calm_limit: Nanos,

    /// Where peers are described
    #[arg(long, value_name = "PATH", default_value = "loadgen/peers/peers.toml")]
    pub(super) peers: PathBuf,

    /// New folder to keep the records of all runs in [default: they are not kept]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

impl WhereArgs {
    pub(super) fn calm(&self) -> Calm {
        Calm::within(self.calm_limit)
    }

    /// Keeps the cores of both sides awake if that was asked for: of loadgen alone where a server runs already, wherever.
    pub(super) async fn awake(
        &self,
        server_cpus: &[usize],
        loadgen_cpus: &[usize],
        servers: &[&ServerName],
    ) -> anyhow::Result<Awake> {
        let is_running = |server: &&ServerName| matches!(server, ServerName::Running(_));
        let ours = if servers.iter().any(is_running) { &[] } else { server_cpus };
        let cpus = if self.keep_awake { [ours, loadgen_cpus].concat() } else { Vec::new() };
        if self.keep_awake && cpus.is_empty() {
            return Err(UsageError {
                flag: "--keep-awake",
                value: "without a core".to_owned(),
                cure: "there is but one, and nothing is pinned to it; leave it out".to_owned(),
            }
            .into());
        }
        Ok(Awake::on(&cpus).await?)
    }
}

/// How a server is had for a run.
#[derive(Clone, Debug)]
pub(super) enum Supply {
    /// A fresh process for each run.
    Fresh(ServerCommand),
    /// The one that listens there.
    Running(String),
}

impl FromStr for ServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "inline" => return Ok(ServerName::Ours(Transport::Inline(Placement::Inline))),
            "inline-task" => return Ok(ServerName::Ours(Transport::Inline(Placement::Task))),
            "tonic" => return Ok(ServerName::Ours(Transport::Tonic)),
            _ if text.starts_with("http://") => return Ok(ServerName::Running(text.to_owned())),
            _ => {}
        }
        if let Some(peer) = text.strip_prefix("peer:") {
            return Ok(ServerName::Peer(peer.to_owned()));
        }
        let command = text.strip_prefix("cmd:").map(|command| command.split_whitespace());
        let words: Vec<_> = command.into_iter().flatten().map(str::to_owned).collect();
        if !words.is_empty() {
            return Ok(ServerName::Command(words));
        }
        Err("need inline, inline-task, tonic, peer:NAME, cmd:PROGRAM, or http://HOST:PORT"
            .to_owned())
    }
}

impl Display for ServerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerName::Ours(Transport::Inline(Placement::Inline)) => out.write_str("inline"),
            ServerName::Ours(Transport::Inline(Placement::Task)) => out.write_str("inline-task"),
            ServerName::Ours(Transport::Tonic) => out.write_str("tonic"),
            ServerName::Peer(name) => write!(out, "peer:{name}"),
            ServerName::Command(words) => write!(out, "cmd:{}", words.join(" ")),
            ServerName::Running(target) => out.write_str(target),
        }
    }
}

impl ServerName {
    /// Builds what has to be built. `peers`: peers.toml.
    pub(super) async fn supply(&self, peers: &Path) -> anyhow::Result<Supply> {
        Ok(match self {
            ServerName::Ours(transport) => Supply::Fresh(ServerCommand::embedded(*transport)?),
            ServerName::Peer(name) => {
                let peers = Peers::read(peers).map_err(as_usage)?;
                let peer = peers.find(name).map_err(as_usage)?;
                // It may take minutes. A stderr that is gone changes nothing.
                _ = writeln!(io::stderr(), "loadgen: building {name}");
                Supply::Fresh(peers.build(peer).await?)
            }
            ServerName::Command(words) => Supply::Fresh(ServerCommand::of(words.clone())),
            ServerName::Running(target) => Supply::Running(target.clone()),
        })
    }
}

/// What runs already is as warm as it is.
pub(super) fn check_preheat(preheat: Nanos, servers: &[&ServerName]) -> Result<(), UsageError> {
    let mut running = servers.iter().filter(|server| matches!(server, ServerName::Running(_)));
    match running.next() {
        Some(server) if preheat > Nanos(0) => Err(UsageError {
            flag: "--preheat",
            value: preheat.to_string(),
            cure: format!(
                "is for servers that are started for each run, and {server} runs already; leave it out"
            ),
        }),
        _ => Ok(()),
    }
}

/// A file or a name that is wrong is bad usage; a peer that cannot be built is not.
pub(super) fn as_usage(error: PeerError) -> anyhow::Error {
    let usage = |flag, value, cure| anyhow::Error::new(UsageError { flag, value, cure });
    match error {
        PeerError::Unreadable { path, error } => {
            usage("peers", path, format!("{error}; pass a file such as loadgen/peers/peers.toml"))
        }
        PeerError::Unknown { name, known } => {
            usage("peer", name, format!("peers.toml has no such peer; it has {known}"))
        }
        error => error.into(),
    }
}

/// Cores for the server and for loadgen, apart from each other: as typed, else the first half of what
/// there is for the server and the rest for loadgen. Not pinned if there is but one.
pub(super) fn cores(
    server: &[usize],
    loadgen: &[usize],
    all: &[usize],
) -> Result<(Vec<usize>, Vec<usize>), UsageError> {
    let wrong = |flag, value: &dyn Display, cure: String| UsageError {
        flag,
        value: value.to_string(),
        cure,
    };
    for (flag, chosen) in [("--server-cpus", server), ("--cpus", loadgen)] {
        if let Some(cpu) = chosen.iter().find(|cpu| !all.contains(cpu)) {
            let cure = format!("this process may use the cores {all:?}; pass some of them");
            return Err(wrong(flag, cpu, cure));
        }
    }
    if let Some(both) = loadgen.iter().find(|cpu| server.contains(cpu)) {
        let cure =
            "is the server's too: each would measure the other; pass another core".to_owned();
        return Err(wrong("--cpus", both, cure));
    }
    let without = |flag, taken: &[usize], other| -> Result<Vec<usize>, UsageError> {
        let rest: Vec<_> = all.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
        if rest.is_empty() {
            let cure =
                format!("leaves no core for {other}: each would measure the other; pass fewer");
            return Err(wrong(flag, &format!("{taken:?}"), cure));
        }
        Ok(rest)
    };
    Ok(match (server.is_empty(), loadgen.is_empty()) {
        (false, false) => (server.to_vec(), loadgen.to_vec()),
        (false, true) => (server.to_vec(), without("--server-cpus", server, "loadgen")?),
        (true, false) => (without("--cpus", loadgen, "the server")?, loadgen.to_vec()),
        (true, true) if all.len() < 2 => (Vec::new(), Vec::new()),
        (true, true) => {
            let (first, rest) = all.split_at(all.len() / 2);
            (first.to_vec(), rest.to_vec())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_shown_alike() {
        for text in [
            "inline",
            "inline-task",
            "tonic",
            "peer:grpc-go",
            "cmd:./echo --slow 5",
            "http://[::1]:9",
        ] {
            assert_eq!(text.parse::<ServerName>().unwrap().to_string(), text);
        }
        for text in ["", "stock", "cmd:", "https://a:1"] {
            assert!(text.parse::<ServerName>().unwrap_err().contains("need inline"), "{text}");
        }
    }

    #[test]
    fn cores_are_shared_out_and_never_shared() {
        let all = [0, 1, 2, 3];
        assert_eq!(cores(&[], &[], &all).unwrap(), (vec![0, 1], vec![2, 3]));
        assert_eq!(cores(&[3], &[], &all).unwrap(), (vec![3], vec![0, 1, 2]));
        assert_eq!(cores(&[], &[0], &all).unwrap(), (vec![1, 2, 3], vec![0]));
        assert_eq!(cores(&[], &[], &[5]).unwrap(), (vec![], vec![]));
        assert_eq!(cores(&[7], &[], &all).unwrap_err().flag, "--server-cpus");
        assert_eq!(cores(&[1], &[2, 1], &all).unwrap_err().value, "1");
        let none_left = cores(&all, &[], &all).unwrap_err();
        assert_eq!((none_left.flag, none_left.value.as_str()), ("--server-cpus", "[0, 1, 2, 3]"));
        assert_eq!(cores(&[], &[5], &[5]).unwrap_err().flag, "--cpus");
    }
}
