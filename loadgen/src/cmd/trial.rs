//! One run as a process of its own, against a server that was started for it: what suite, compare and
//! search are made of.
//!
//! In: a server, flags of `run`, cores. Out: the run's record, or why there is none. No run inherits
//! anything from another.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::calm::Calm;
use crate::harness::child::Child;
use crate::harness::peers::{PeerError, ServerCommand, ServerProcess};
use crate::record::{self, Gate, GateName, OPEN_LOOP_NS_MIN, RunRecord, Verdict};
use crate::scenario::{ContractName, LoadArgs, PROBE_RATE, UsageError};
use crate::units::{MessagesPerSecond, Nanos};

/// What a run may take beyond warm-up and measurement: connecting, draining (5 s), writing.
const RUN_OVERTIME_MAX: Duration = Duration::from_secs(30);

/// How `run` begins to say that a record found no room.
pub(super) const UNWRITTEN: &str = "cannot write the record to";

/// Where both sides of a run are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// None: the server is not pinned.
    pub(super) server_cpus: &'a [usize],
    /// Of the shards, in turn; none: they are not pinned.
    pub(super) loadgen_cpus: &'a [usize],
    /// How many shards there are; `None`: one on each of these cores, or as many as is usual.
    pub(super) shards: Option<usize>,
    /// Which cores somebody keeps awake meanwhile.
    pub(super) awake_cpus: &'a [usize],
    /// How long runs wait for others to leave these cores.
    pub(super) calm: &'a Calm,
}

/// How a run is done.
#[derive(Clone, Debug)]
pub(super) struct Trial<'a> {
    /// Of `run`, without target, `--json`, cores and shards.
    pub(super) flags: &'a [String],
    /// What they call.
    pub(super) contract: ContractName,
    pub(super) places: Places<'a>,
    /// Warm-up, measurement, and what is watched after it.
    pub(super) time: Nanos,
    /// What a null echo carries under this load, if that was calibrated.
    pub(super) null_throughput: Option<MessagesPerSecond>,
    /// What a fresh server is loaded with first.
    pub(super) preheat: Option<Preheat>,
}

/// A closed loop against a fresh server, of which nothing is kept: a server that compiles while it runs compiles then,
/// whatever is offered afterwards.
#[derive(Clone, Debug)]
pub(super) struct Preheat {
    flags: Vec<String>,
    time: Nanos,
}

impl Preheat {
    /// For so long; `None` if that is zero.
    pub(super) fn of(load: &LoadArgs, time: Nanos) -> Option<Self> {
        let mut flags = load.closed_loop().flags();
        flags.extend(["--warmup".to_owned(), "0s".to_owned()]);
        flags.extend(["--duration".to_owned(), format!("{}ns", time.0)]);
        (time > Nanos(0)).then_some(Preheat { flags, time })
    }
}

/// Err: an open loop so short that none of its runs could be shown to be valid.
pub(super) fn check_open_loop(flag: &'static str, duration: Nanos) -> Result<(), UsageError> {
    if duration >= OPEN_LOOP_NS_MIN {
        return Ok(());
    }
    let cure = format!(
        "is too short for an open loop: whether its backlog grows can be told from {OPEN_LOOP_NS_MIN} on; give it that, or more"
    );
    Err(UsageError { flag, value: duration.to_string(), cure })
}

/// What became of a run.
#[derive(Debug)]
pub(super) enum Tried {
    /// It went well, no gate failed, and all about the load could be told.
    Valid(Box<RunRecord>),
    /// It went well, but the figures may be loadgen's: why.
    Invalid(Box<RunRecord>, String),
    /// Something was lost, wrong or failed: what; and the record, if there is one.
    Failed(Option<Box<RunRecord>>, String),
}

/// Why there was no run, or nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    /// Its server does not start.
    #[error(transparent)]
    Server(#[from] PeerError),
    /// There is no room for its record, nor for the next one: what the run said, with the cure.
    #[error("{0}")]
    Unwritten(String),
}

impl Trial<'_> {
    /// Runs against a server of this command, started for it and stopped after it.
    pub(super) async fn on(
        &self,
        server: &ServerCommand,
        json: &Path,
    ) -> Result<Tried, TrialError> {
        self.calm().await;
        let server = server.start(self.places.server_cpus, self.contract).await?;
        let tried = match self.preheat(&server).await {
            Ok(()) => self.against(&server, json).await,
            Err(error) => Ok(Tried::Failed(None, format!("it could not be preheated: {error}"))),
        };
        match server.stop().await {
            Ok(()) => tried,
            Err(error) => {
                // A record that looks well would count the next time that somebody reads it.
                _ = std::fs::rename(json, json.with_extension("failed"));
                tried.map(|_| Tried::Failed(None, format!("the server {error}")))
            }
        }
    }

    /// How a preheating ends says nothing of the run that counts. Err: it has no end.
    async fn preheat(&self, server: &ServerProcess) -> io::Result<()> {
        let Some(Preheat { flags, time }) = &self.preheat else { return Ok(()) };
        let command = self.command(&target(server), flags)?;
        let mut child = Child::start(command, self.places.loadgen_cpus)?;
        child.wait(time.as_duration() + RUN_OVERTIME_MAX).await.map(|_| ())
    }

    async fn against(&self, server: &ServerProcess, json: &Path) -> Result<Tried, TrialError> {
        let pid = server.pid().map(|pid| pid.to_string());
        self.run(&target(server), pid.as_deref(), json).await
    }

    async fn calm(&self) {
        let Places { server_cpus, loadgen_cpus, calm, .. } = self.places;
        calm.wait(server_cpus.iter().chain(loadgen_cpus).copied()).await;
    }

    /// Runs against what listens at `target` already.
    pub(super) async fn at(&self, target: &str, json: &Path) -> Result<Tried, TrialError> {
        self.calm().await;
        self.run(target, None, json).await
    }

    /// `pid`: the server's, if that is known.
    async fn run(&self, target: &str, pid: Option<&str>, json: &Path) -> Result<Tried, TrialError> {
        let done = self.process(target, pid, json).await;
        done.unwrap_or_else(|error| Ok(Tried::Failed(None, error.to_string())))
    }

    async fn process(
        &self,
        target: &str,
        pid: Option<&str>,
        json: &Path,
    ) -> io::Result<Result<Tried, TrialError>> {
        let mut command = self.command(target, self.flags)?;
        command.arg("--json").arg(json);
        if let Some(pid) = pid {
            command.args(["--server-pid", pid]);
        }
        if self.flags.iter().any(|flag| flag == "--rate") {
            command.args(["--probe-rate", &PROBE_RATE.0.to_string()]);
        }
        if let Some(null) = self.null_throughput {
            command.args(["--null-throughput", &null.0.to_string()]);
        }
        let mut child = Child::start(command, self.places.loadgen_cpus)?;
        let status = child.wait(self.time.as_duration() + RUN_OVERTIME_MAX).await?;
        if status.success() {
            return Ok(Ok(Tried::of(record::read(json)?)));
        }
        let words = child.last_words();
        if let Some(at) = words.find(UNWRITTEN) {
            return Ok(Err(TrialError::Unwritten(words[at..].to_owned())));
        }
        let record = record::read(json).ok().map(Box::new);
        let why = record.as_deref().map_or(words, what_failed);
        Ok(Ok(Tried::Failed(record, format!("{status}: {why}"))))
    }
}

impl Trial<'_> {
    /// `run` with these flags, on loadgen's cores.
    fn command(&self, target: &str, flags: &[String]) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "--target", target]).args(flags);
        command.args(["--parent", &std::process::id().to_string()]);
        let Places { loadgen_cpus, shards, awake_cpus, .. } = self.places;
        for (flag, cpus) in [("--cpus", loadgen_cpus), ("--awake-cpus", awake_cpus)] {
            if !cpus.is_empty() {
                let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
                command.args([flag, &cpus.join(",")]);
            }
        }
        let one_each = (!loadgen_cpus.is_empty()).then_some(loadgen_cpus.len());
        if let Some(shards) = shards.or(one_each) {
            command.args(["--shards", &shards.to_string()]);
        }
        Ok(command)
    }
}

fn target(server: &ServerProcess) -> String {
    format!("http://{}", server.address())
}

impl Tried {
    /// What was wrong, in words.
    pub(super) fn why(self) -> String {
        match self {
            Tried::Valid(_) => String::new(),
            Tried::Invalid(_, why) | Tried::Failed(_, why) => why,
        }
    }

    /// What a record says of its run.
    pub(super) fn of(record: RunRecord) -> Self {
        let record = Box::new(record);
        if !record.measured.is_well() {
            let why = what_failed(&record);
            return Tried::Failed(Some(record), why);
        }
        let words = |gate: &Gate| gate.message.clone();
        let failed: Vec<_> = record.failed_gates().map(words).collect();
        // Where some failed, those that could not be told add nothing.
        let why =
            if failed.is_empty() { record.untold_gates().map(words).collect() } else { failed };
        match why.is_empty() {
            true => Tried::Valid(record),
            false => Tried::Invalid(record, why.join("; ")),
        }
    }
}

/// Whether a run failed because the server could not carry the load.
pub(super) fn is_overload(record: &RunRecord) -> bool {
    let measured = &record.measured;
    measured.unstable.is_some() || measured.messages_lost > 0 || measured.streams_unfinished > 0
}

/// The gate that says that the machine was taken from those who should carry the load, or that loadgen itself could
/// not have carried it.
pub(super) fn disturbance(gates: &[Gate]) -> Option<&Gate> {
    gates.iter().find(|gate| {
        (gate.name == GateName::Headroom || gate.name.is_about_machine())
            && gate.verdict == Verdict::Failed
    })
}

fn what_failed(record: &RunRecord) -> String {
    let measured = &record.measured;
    let first = measured.first_failure.as_deref().map_or(String::new(), |why| format!("; {why}"));
    format!(
        "{} echoed, {} lost, {} wrong, {} streams unfinished{first}",
        measured.messages_received,
        measured.messages_lost,
        measured.messages_wrong,
        measured.streams_unfinished
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Measured, Wrong};
    use crate::report::example;

    const GATES: [GateName; 12] = [
        GateName::SendLag,
        GateName::Achieved,
        GateName::DepartureGaps,
        GateName::Backlog,
        GateName::LittlesLaw,
        GateName::ShardCpu,
        GateName::ShardRunDelay,
        GateName::Probe,
        GateName::Headroom,
        GateName::Steal,
        GateName::Throttling,
        GateName::Awake,
    ];

    /// All of a run went well, whichever gates it has.
    fn well(gates: &[(GateName, Verdict)]) -> RunRecord {
        let mut record = example::closed_loop();
        let measured = &mut record.measured;
        (measured.messages_lost, measured.messages_wrong) = (0, 0);
        measured.statuses.retain(|status, _| status == "OK");
        (measured.streams_unfinished, measured.first_failure) = (0, None);
        let gate = |(name, verdict): &(GateName, Verdict)| {
            example::gate(*name, *verdict, Some(1.0), "share")
        };
        record.gates = gates.iter().map(gate).collect();
        record
    }

    #[test]
    fn a_run_is_valid_unless_a_gate_failed() {
        for untold in [Verdict::Passed, Verdict::Unknown] {
            // Of the machine not all is to be known everywhere.
            let verdict =
                |name: GateName| if name.is_about_machine() { untold } else { Verdict::Passed };
            let record = well(&GATES.map(|name| (name, verdict(name))));
            let tried = Tried::of(record.clone());
            assert!(matches!(&tried, Tried::Valid(kept) if **kept == record), "{tried:?}");
            assert_eq!(tried.why(), "");
        }
    }

    #[test]
    fn each_gate_that_failed_makes_a_run_invalid_and_says_so() {
        for failed in GATES {
            let verdict = |name| if name == failed { Verdict::Failed } else { Verdict::Passed };
            let tried = Tried::of(well(&GATES.map(|name| (name, verdict(name)))));
            assert!(matches!(tried, Tried::Invalid(..)), "{tried:?}");
            assert_eq!(tried.why(), format!("{failed:?}: Some(1.0)"));
        }
        let two = [(GateName::Steal, Verdict::Failed), (GateName::Awake, Verdict::Failed)];
        assert_eq!(Tried::of(well(&two)).why(), "Steal: Some(1.0); Awake: Some(1.0)");
    }

    #[test]
    fn a_run_in_which_anything_went_wrong_has_failed_whatever_its_gates_say() {
        let check = |spoil: fn(&mut Measured), expected: &str| {
            for verdict in [Verdict::Passed, Verdict::Failed] {
                let mut record = well(&[(GateName::Headroom, verdict)]);
                spoil(&mut record.measured);
                let tried = Tried::of(record);
                assert!(matches!(tried, Tried::Failed(Some(_), _)), "{tried:?}");
                let why = tried.why();
                assert!(why.contains(expected), "{why}");
            }
        };
        check(|it| it.messages_lost = 3, "3 lost");
        check(|it| it.messages_wrong = 2, "2 wrong");
        check(|it| it.streams_unfinished = 1, "1 streams unfinished");
        check(|it| it.first_failure = Some("a reset".to_owned()), "; a reset");
        check(|it| _ = it.statuses.insert("UNAVAILABLE".to_owned(), 1), "0 lost");
        check(|it| it.messages_due = 0, "0 lost");
    }

    /// Nothing lost or wrong, and only these gates.
    fn tried(gates: Vec<Gate>) -> Tried {
        let mut record = example::open_loop(1_000.0, 1);
        let measured = &mut record.measured;
        (measured.messages_wrong, measured.wrong) = (0, Wrong::default());
        measured.first_failure = None;
        measured.statuses.retain(|status, _| status == "OK");
        record.gates = gates;
        Tried::of(record)
    }

    #[test]
    fn a_run_does_not_count_if_a_gate_about_its_load_could_not_be_told() {
        let gate = |name, verdict| example::gate(name, verdict, None, "share");
        let (passed, unknown) = (Verdict::Passed, Verdict::Unknown);
        let steal = || gate(GateName::Steal, passed);
        for name in [GateName::Backlog, GateName::SendLag, GateName::Probe] {
            assert!(matches!(tried(vec![steal(), gate(name, passed)]), Tried::Valid(_)), "{name}");
            let untold = tried(vec![steal(), gate(name, unknown)]);
            assert!(
                matches!(&untold, Tried::Invalid(_, why) if *why == format!("{name:?}: None")),
                "{name}: {untold:?}"
            );
        }
        // Of the machine not all is to be known everywhere.
        assert!(matches!(tried(vec![gate(GateName::Throttling, unknown)]), Tried::Valid(_)));
        // What failed is told alone.
        let failed = gate(GateName::Steal, Verdict::Failed);
        let why = tried(vec![gate(GateName::Backlog, unknown), failed]).why();
        assert_eq!(why, "Steal: None");
    }

    #[test]
    fn an_open_loop_is_as_long_as_its_backlog_asks_for() {
        let check =
            |ns| check_open_loop("--duration", Nanos(ns)).map_err(|error| error.to_string());
        assert_eq!(check(5_000_000_000), Ok(()));
        let refused = check(4_999_999_999).unwrap_err();
        assert!(
            refused.starts_with("--duration 5.00 s: is too short for an open loop"),
            "{refused}"
        );
    }
}
