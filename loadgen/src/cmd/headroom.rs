//! What loadgen can carry on this machine: a closed loop against a server that does nothing, measured once
//! for each machine, build and load, and then remembered.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::trial::{Trial, Tried};
use crate::harness::peers::ServerCommand;
use crate::harness::provenance;
use crate::record::GateName;
use crate::scenario::LoadArgs;
use crate::units::{MessagesPerSecond, Nanos};

const WARMUP: Nanos = Nanos(500_000_000);
const DURATION: Nanos = Nanos(2_000_000_000);

/// In flight on each stream, where an open loop has no bound: enough to fill the generator.
const IN_FLIGHT: usize = 16;

/// Flags of the closed loop of this shape.
pub(super) fn closed(load: &LoadArgs) -> Vec<String> {
    let in_flight = load.in_flight.map_or(1, NonZeroUsize::get);
    let in_flight = if load.rate.is_some() { in_flight.max(IN_FLIGHT) } else { in_flight };
    let closed = LoadArgs {
        rate: None,
        arrivals: None,
        blocked: None,
        max_backlog: None,
        in_flight: NonZeroUsize::new(in_flight),
        ..load.clone()
    };
    closed.flags()
}

/// What a closed loop with these flags reaches against a null echo on these cores.
pub(super) async fn null_throughput(
    flags: Vec<String>,
    server_cpus: &[usize],
    loadgen_cpus: &[usize],
) -> anyhow::Result<MessagesPerSecond> {
    let key = key(&flags, server_cpus, loadgen_cpus);
    let cache = cache_file();
    let mut known = cache.as_deref().map(read).unwrap_or_default();
    if let Some(throughput) = known.get(&key) {
        return Ok(MessagesPerSecond(*throughput));
    }
    let (throughput, is_undisturbed) = measure(flags, server_cpus, loadgen_cpus).await?;
    if is_undisturbed {
        known.insert(key, throughput);
        // A cache that cannot be written costs some seconds the next time, and nothing else.
        let _ = cache.as_deref().map(|cache| write(cache, &known));
    }
    Ok(MessagesPerSecond(throughput))
}

/// The throughput, and whether nobody but loadgen itself kept it from being higher.
async fn measure(
    mut flags: Vec<String>,
    server_cpus: &[usize],
    loadgen_cpus: &[usize],
) -> anyhow::Result<(f64, bool)> {
    flags.extend(["--warmup".to_owned(), format!("{}ns", WARMUP.0)]);
    flags.extend(["--duration".to_owned(), format!("{}ns", DURATION.0)]);
    let time = WARMUP + DURATION;
    let trial = Trial { flags: &flags, server_cpus, loadgen_cpus, time, null_throughput: None };
    let folder = tempfile::tempdir().context("cannot make a folder for a record")?;
    let tried = trial.on(&ServerCommand::null()?, &folder.path().join("null.json")).await?;
    match tried {
        // How busy loadgen was is the very question.
        Tried::Valid(record) | Tried::Invalid(record, _) => {
            let is_undisturbed = record.failed_gates().all(|gate| gate.name == GateName::ShardCpu);
            Ok((record.measured.throughput_messages_per_s, is_undisturbed))
        }
        Tried::Failed(_, why) => anyhow::bail!("calibrating against a null echo failed: {why}"),
    }
}

fn key(flags: &[String], server_cpus: &[usize], loadgen_cpus: &[usize]) -> String {
    let (host, build) = (provenance::host(), provenance::build());
    format!(
        "{} x {}, {}; {} opt-level {}; cores {server_cpus:?} {loadgen_cpus:?}; {}",
        host.cores,
        host.cpu_model,
        host.kernel,
        build.revision,
        build.opt_level,
        flags.join(" ")
    )
}

/// The cache of this user's programs (XDG Base Directory Specification, `XDG_CACHE_HOME`).
fn cache_file() -> Option<PathBuf> {
    let folder =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|it| it.is_absolute());
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache"));
    Some(folder.or_else(home)?.join("bidi-echo").join("null-throughput.json"))
}

/// What is damaged is measured again.
fn read(cache: &Path) -> BTreeMap<String, f64> {
    let text = fs::read(cache).unwrap_or_default();
    let known: BTreeMap<String, f64> = serde_json::from_slice(&text).unwrap_or_default();
    known.into_iter().filter(|(_, throughput)| *throughput > 0.0).collect()
}

fn write(cache: &Path, known: &BTreeMap<String, f64>) -> io::Result<()> {
    let folder = cache.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, known)?;
    file.persist(cache)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_remembered_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("a").join("null.json");
        assert!(read(&cache).is_empty());
        let known = BTreeMap::from([("here".to_owned(), 5.0), ("there".to_owned(), 0.0)]);
        write(&cache, &known).unwrap();
        assert_eq!(read(&cache), BTreeMap::from([("here".to_owned(), 5.0)]));
        fs::write(&cache, "{").unwrap();
        assert!(read(&cache).is_empty());
    }
}
