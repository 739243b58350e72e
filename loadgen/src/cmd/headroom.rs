//! What loadgen can carry on this machine: the same load against a server that does nothing, measured once
//! for each machine, build and load, and then remembered.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::search::steps::{Bounds, Found, Step, Steps};
use super::trial::{Places, Trial, Tried};
use crate::harness::peers::ServerCommand;
use crate::harness::provenance;
use crate::record::{Build, GateName, Host, RunRecord};
use crate::scenario::LoadArgs;
use crate::units::{MessagesPerSecond, Nanos};

const WARMUP: Nanos = Nanos(500_000_000);
const DURATION: Nanos = Nanos(2_000_000_000);

/// Of one rate: ten or so are tried.
const OPEN_DURATION: Nanos = Nanos(500_000_000);

/// Distance of the rates between which what loadgen carries is known well enough.
const OPEN_WIDTH: f64 = 0.1;

/// From the first rate down by so much at most.
const LEAST_SHARE: f64 = 1_000.0;

/// Rates that are tried at most, some again.
const RATES_MAX: usize = 40;

/// A rate that did not leave in time has so many trials in all: noise makes loadgen look worse than it is, never better.
const TRIALS_OF_RATE_MAX: usize = 2;

/// Rates from the first on of which none could be judged. It is the machine then that is no fair judge: a far lower rate that
/// happens to be would say what the machine had to spare for a moment, not what loadgen carries, and every run would be held against it.
const UNJUDGED_MAX: usize = 4;

/// In flight on each stream, where an open loop has no bound: enough to fill the generator.
const IN_FLIGHT: usize = 16;

/// No rate could be shown to leave in time: what is measured here and now would be called invalid.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "against a null echo loadgen carried no rate in time, not even {rate}: {why}; leave it a core of its own, and try again"
)]
pub(super) struct CarriesNothing {
    /// The last that was tried.
    pub(super) rate: MessagesPerSecond,
    /// What was wrong with it.
    pub(super) why: String,
}

/// The closed loop of this shape.
fn closed(load: &LoadArgs) -> LoadArgs {
    let in_flight = load.in_flight.map_or(1, NonZeroUsize::get);
    let in_flight = if load.rate.is_some() { in_flight.max(IN_FLIGHT) } else { in_flight };
    LoadArgs { in_flight: NonZeroUsize::new(in_flight), ..load.closed_loop() }
}

impl Places<'_> {
    /// What loadgen carries of this load in these places against a server that does nothing: in closed loop its
    /// throughput, in open loop the highest rate, to a tenth, at which its messages leave in time. Err: [`CarriesNothing`],
    /// or it could not be tried.
    pub(super) async fn null_throughput(
        &self,
        load: &LoadArgs,
    ) -> anyhow::Result<MessagesPerSecond> {
        // The rate is what is asked for; all else of the plan stays.
        let shape = load.rate.map_or_else(|| load.clone(), |_| load.at(MessagesPerSecond(1.0)));
        let key = self.key(&provenance::host(), provenance::build(), &shape.flags());
        let cache = cache_file();
        let mut known = cache.as_deref().map(read).unwrap_or_default();
        if let Some(throughput) = known.get(&key) {
            return Ok(MessagesPerSecond(*throughput));
        }
        let (throughput, is_undisturbed) = match load.rate {
            None => self.closed_loop(load).await?,
            Some(_) => self.open_loop(load).await?,
        };
        if is_undisturbed {
            known.insert(key, throughput);
            // A cache that cannot be written costs some seconds the next time, and nothing else.
            let _ = cache.as_deref().map(|cache| write(cache, &known));
        }
        Ok(MessagesPerSecond(throughput))
    }

    /// What a figure is of.
    fn key(&self, host: &Host, build: Build, flags: &[String]) -> String {
        let Places { server_cpus, loadgen_cpus, shards, awake_cpus, .. } = self;
        let Host { cpu_model, cores, kernel, tcp_congestion_control } = host;
        let tcp = tcp_congestion_control.as_deref().unwrap_or("unknown");
        let shards = shards.map_or(String::new(), |shards| format!(" shards {shards}"));
        let awake = match awake_cpus.is_empty() {
            true => String::new(),
            false => format!(" awake {awake_cpus:?}"),
        };
        format!(
            "{cores} x {cpu_model}, {kernel}, tcp {tcp}; {}; cores {server_cpus:?} {loadgen_cpus:?}{shards}{awake}; {}",
            stamped(build),
            flags.join(" ")
        )
    }

    /// The throughput, and whether nobody but loadgen itself kept it from being higher.
    async fn closed_loop(&self, load: &LoadArgs) -> anyhow::Result<(f64, bool)> {
        // How busy loadgen was is the very question.
        let record = self.run(&closed(load), DURATION).await?;
        let record = record.context("calibrating against a null echo failed")?;
        let is_undisturbed = record.failed_gates().all(|gate| gate.name == GateName::ShardCpu);
        Ok((record.measured.throughput_messages_per_s, is_undisturbed))
    }

    /// The highest rate that leaves in time, and whether it does not rest on rates that could not be judged.
    async fn open_loop(&self, load: &LoadArgs) -> anyhow::Result<(f64, bool)> {
        let (most, _) = self.closed_loop(load).await?;
        let begin = most / IN_FLIGHT as f64;
        let mut steps = Steps::new(Bounds {
            begin,
            least: begin / LEAST_SHARE,
            max: most,
            width: OPEN_WIDTH,
            confirmations: 0,
            exceed_ratio: 0.0,
        });
        let mut last = None;
        let mut unjudged = 0;
        for _ in 0..RATES_MAX {
            if is_hopeless(steps.found(), unjudged) {
                break;
            }
            let Step::Try(rate) = steps.next() else { break };
            let (mut kept, mut trials) = (None, 0);
            while kept != Some(true) && trials < TRIALS_OF_RATE_MAX {
                let record = self.run(&load.at(MessagesPerSecond(rate)), OPEN_DURATION).await?;
                kept = record.as_deref().map_or(Some(false), leaves_in_time).or(kept);
                trials += 1;
                last = Some((rate, record));
            }
            match kept {
                Some(kept) => steps.tried(rate, kept),
                None => {
                    unjudged += 1;
                    steps.cannot_judge(rate);
                }
            }
        }
        let Found { lower, unjudged, .. } = steps.found();
        let carried = lower.ok_or_else(|| carries_nothing(last))?;
        Ok((carried, unjudged.is_none()))
    }

    /// `None`: messages were lost, or the run failed otherwise.
    async fn run(
        &self,
        load: &LoadArgs,
        duration: Nanos,
    ) -> anyhow::Result<Option<Box<RunRecord>>> {
        let mut flags = load.flags();
        flags.extend(["--warmup".to_owned(), format!("{}ns", WARMUP.0)]);
        flags.extend(["--duration".to_owned(), format!("{}ns", duration.0)]);
        let time = WARMUP + duration;
        let contract = load.contract;
        let trial = Trial {
            flags: &flags,
            contract,
            places: *self,
            time,
            null_throughput: None,
            preheat: None,
        };
        let folder = tempfile::tempdir().context("cannot make a folder for a record")?;
        match trial.on(&ServerCommand::null()?, &folder.path().join("null.json")).await? {
            Tried::Valid(record) | Tried::Invalid(record, _) => Ok(Some(record)),
            // More than can be carried leaves messages without an echo.
            Tried::Failed(Some(_), _) => Ok(None),
            Tried::Failed(None, why) => {
                anyhow::bail!("calibrating against a null echo failed: {why}")
            }
        }
    }
}

/// Whether so many rates could not be judged, and none was.
fn is_hopeless(found: Found, unjudged: usize) -> bool {
    !found.is_known() && unjudged >= UNJUDGED_MAX
}

/// Of the last rate that was tried, and its record, if there is one.
fn carries_nothing(last: Option<(f64, Option<Box<RunRecord>>)>) -> CarriesNothing {
    let (rate, record) = last.unwrap_or_default();
    let why = record.map_or("messages were lost".to_owned(), |record| Tried::of(*record).why());
    CarriesNothing { rate: MessagesPerSecond(rate), why }
}

/// Whether messages left as planned; `None` if others kept them from it.
fn leaves_in_time(record: &RunRecord) -> Option<bool> {
    let failed: Vec<_> = record.failed_gates().map(|gate| gate.name).collect();
    match failed.iter().any(|name| name.is_about_machine()) {
        true => None,
        false => Some(failed.is_empty()),
    }
}

/// A build that tells itself apart from all others: those of one commit and profile are alike, those of changed sources go
/// by the time of the program.
pub(super) fn stamped(build: Build) -> Build {
    Build { revision: stamp(&build.revision), ..build }
}

fn stamp(revision: &str) -> String {
    if revision != "unknown" && !revision.ends_with("-dirty") {
        return revision.to_owned();
    }
    let built = std::env::current_exe().and_then(|program| fs::metadata(program)?.modified());
    let built = built.map(|at| humantime::format_rfc3339_nanos(at).to_string());
    format!("{revision} of {}", built.unwrap_or_default())
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
    use crate::harness::calm::Calm;
    use crate::report::example;

    #[test]
    fn builds_of_changed_sources_are_told_apart_by_their_time() {
        assert_eq!(stamp("0123456789ab"), "0123456789ab");
        for revision in ["0123456789ab-dirty", "unknown"] {
            let stamp = stamp(revision);
            let at = stamp.strip_prefix(&format!("{revision} of ")).unwrap();
            humantime::parse_rfc3339(at).unwrap();
        }
    }

    #[test]
    fn what_one_build_carries_is_not_taken_for_what_another_does() {
        let calm = Calm::default();
        let places = Places {
            server_cpus: &[0],
            loadgen_cpus: &[1],
            shards: None,
            awake_cpus: &[],
            calm: &calm,
        };
        let record = example::closed_loop();
        let (host, release) = (&record.provenance.host, record.provenance.loadgen);
        let key = |build: &Build| places.key(host, build.clone(), &["--streams".to_owned()]);
        assert_eq!(key(&release), key(&release));
        let debug = Build { profile: Some("debug".to_owned()), ..release.clone() };
        let asserting = Build { debug_assertions: true, ..release.clone() };
        let newer = Build { revision: "123456789abc".to_owned(), ..release.clone() };
        for other in [debug, asserting, newer] {
            assert_ne!(key(&release), key(&other), "{other}");
        }
        let spacing = Host { tcp_congestion_control: Some("bbr".to_owned()), ..host.clone() };
        assert_ne!(places.key(&spacing, release.clone(), &["--streams".to_owned()]), key(&release));
    }

    #[test]
    fn a_machine_on_which_no_rate_can_be_judged_is_given_up_and_one_that_is_disturbed_for_a_while_is_not()
     {
        let none = Found { lower: None, upper: None, unjudged: Some(1.0), confirmed: false };
        assert!(!is_hopeless(none, 0));
        assert!(!is_hopeless(none, UNJUDGED_MAX - 1));
        assert!(is_hopeless(none, UNJUDGED_MAX));
        let late = Found { upper: Some(2.0), ..none };
        assert!(!is_hopeless(late, RATES_MAX), "one was judged, so others can be");
    }

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
