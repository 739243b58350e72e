//! `loadgen suite`: scenarios x servers, interleaved, each run a process of its own, and a report.
//!
//! In: a suite file. Out: a new folder with the file, the machine, one record per run, and
//! REPORT.md with all of it, SUMMARY.md and figures.svg for a README.
//! Measures nothing itself: a run is `loadgen run` on cores of its own against a server that was
//! started for it, so that no run inherits anything from another.

mod before;
mod knees;
mod plan;
mod repeats;
mod report;
mod results;
mod vary;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

pub(super) use self::knees::KNEES;
use self::plan::{Plan, Rate, Run, ServerKind, SuiteScenario, SuiteServer};
use self::results::Results;
use super::Exit;
use super::headroom::stamped;
use super::interrupt::interrupted;
use super::servers::as_usage;
use super::trial::{Places, Preheat, Trial, TrialError, Tried, disturbance};
use crate::harness::awake::Awake;
use crate::harness::calm::Calm;
use crate::harness::peers::{Peer, PeerPayload, Peers, ServerCommand};
use crate::harness::provenance;
use crate::record::{self, Host};
use crate::report::{Figures, Mark, Outcome};
use crate::scenario::UsageError;
use crate::units::{Count, MessagesPerSecond, Nanos};

/// Compares servers: every scenario against every server, interleaved, with a table of ratios.
#[derive(Clone, Debug, Args)]
pub(super) struct SuiteArgs {
    /// The suite (TOML), such as loadgen/suites/transport.toml
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Folder for records and report; must not exist yet [default: results/<date>-<suite>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Go on in the folder of a run of this suite that was interrupted: its records count, what is missing
    /// is run
    #[arg(long)]
    resume: bool,

    /// Run this scenario only; may be repeated
    #[arg(long, value_name = "NAME")]
    only_scenario: Vec<String>,

    /// Run this server only; may be repeated
    #[arg(long, value_name = "NAME")]
    only_server: Vec<String>,
}

/// Runs a suite. The exit code is as [`super::main`] tells; valid runs are required.
pub(super) fn run(args: &SuiteArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(Suite::read(args)?.run())?.into())
}

/// A suite that can be run, and the folder for what it gives.
#[derive(Debug)]
struct Suite {
    name: String,
    text: String,
    plan: Plan,
    peers: Option<Peers>,
    out: PathBuf,
    resume: bool,
    /// The folder is another build's or machine's: what it lacks is not run, the report is drawn anew.
    is_foreign: bool,
    /// host.txt of the folder.
    host: String,
    /// How long runs may still wait for a calm machine.
    calm: Calm,
}

impl Suite {
    fn read(args: &SuiteArgs) -> anyhow::Result<Self> {
        let file = args.file.display();
        let text = std::fs::read_to_string(&args.file).map_err(|error| UsageError {
            flag: "FILE",
            value: file.to_string(),
            cure: format!("{error}; pass a suite such as loadgen/suites/transport.toml"),
        })?;
        let folder = args.file.parent().unwrap_or(Path::new(""));
        let mut plan = Plan::parse(&text, folder, &provenance::cpus())
            .with_context(|| format!("the suite {file} cannot be run"))?;
        plan.keep(&args.only_scenario, &args.only_server)?;
        let peers = plan.peers.as_deref().map(Peers::read).transpose().map_err(as_usage)?;
        for server in &plan.servers {
            if let (ServerKind::Peer(name), Some(peers)) = (&server.kind, &peers) {
                peers.find(name).map_err(as_usage)?;
            }
        }
        let name = args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let started_at = provenance::now();
        let date = started_at.get(..10).unwrap_or_default();
        let usual = || Path::new("results").join(format!("{date}-{name}"));
        let out = args.out.clone().unwrap_or_else(usual);
        let host = host(&started_at);
        let (resume, calm) = (args.resume, Calm::within(plan.calm_limit));
        Ok(Suite { name, text, plan, peers, out, resume, is_foreign: false, host, calm })
    }

    /// How it ended: well if something was measured, and every run went well and is valid.
    async fn run(mut self) -> anyhow::Result<Exit> {
        self.begin_folder()?;
        let stop = interrupted();
        let mut results = Results::new(&self.plan);
        // Read before anything is begun: whenever it is interrupted, the report has them.
        results.knees = self.knees_of_before()?;
        let mut before = self.all_before(&mut results)?;
        let all = tokio::select! {
            all = self.run_all(&mut before, &mut results) => all.map(|()| true),
            () = stop => Ok(false),
        };
        self.add_rest(before, &mut results);
        if matches!(all, Ok(false)) {
            tell!("suite: interrupted; the report holds the runs until then, and --resume goes on");
        }
        let is_whole = matches!(all, Ok(true));
        let exit = if is_whole { results.exit() } else { Exit::Failed };
        if let (Err(_), false) = (&all, results.has_runs()) {
            return all.map(|_| exit);
        }
        let comparison = self.comparison(results, is_whole);
        let report = comparison.to_string();
        // Shown first: a folder that takes no more does not hide what hours have measured.
        io::stdout().write_all(report.as_bytes()).context("cannot write to stdout")?;
        all?;
        self.write("REPORT.md", &report)?;
        self.write("SUMMARY.md", &comparison.summary())?;
        self.write("figures.svg", &comparison.picture())?;
        tell!(
            "suite: records, REPORT.md, SUMMARY.md and figures.svg are in {}",
            self.out.display()
        );
        Ok(exit)
    }

    fn begin_folder(&mut self) -> anyhow::Result<()> {
        if self.resume {
            return self.check_folder();
        }
        std::fs::create_dir(&self.out).map_err(|error| {
            let cure = match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    "is there, and is never overwritten; pass another, or --resume"
                }
                _ => "cannot be made; pass a new folder in one that is there and can be written",
            };
            let cure = format!("{cure} ({error})");
            UsageError { flag: "--out", value: self.out.display().to_string(), cure }
        })?;
        let begun =
            self.begin("suite.toml", &self.text).and_then(|()| self.begin("host.txt", &self.host));
        if begun.is_err() {
            // Nothing is in it, and neither a new suite nor --resume could go on with it.
            _ = std::fs::remove_file(self.out.join("suite.toml"));
            _ = std::fs::remove_dir(&self.out);
        }
        begun
    }

    /// Writes what a folder begins with.
    fn begin(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.out.join(name);
        record::replace_bytes(text.as_bytes(), &path)
            .with_context(|| format!("cannot write {}; make room, and begin again", path.display()))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.out.join(name);
        record::replace_bytes(text.as_bytes(), &path).with_context(|| {
            format!(
                "cannot write {}; make room, and --resume goes on with the records that are there",
                path.display()
            )
        })
    }

    /// `before`: what was done before, by the names of the records; what is added is taken out.
    async fn run_all(
        &self,
        before: &mut BTreeMap<String, Outcome>,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let commands = self.prepare(before, results).await;
        if !self.is_foreign {
            self.calibrate(before, results).await?;
        }
        self.find_knees(&commands, results).await?;
        let runs = self.plan.runs();
        let mut awake = Awake::default();
        tell!("suite: {} runs, about {}", runs.len(), self.time());
        for (number, run) in (1..).zip(&runs) {
            let file = self.file_of(*run);
            if let Some(outcome) = before.remove(&file) {
                tell!("suite: {number} of {}: {file}: there already", runs.len());
                results.add(*run, outcome);
                continue;
            }
            if results.is_skipped(run.server) {
                continue;
            }
            let command = match &commands[run.server] {
                Ok(command) => command,
                Err(why) => {
                    tell!("suite: {number} of {}: {file}: not to be had: {why}", runs.len());
                    results.add(*run, Outcome::Failed(why.clone()));
                    continue;
                }
            };
            awake.change_to(&self.plan.awake_cpus(&self.plan.scenarios[run.scenario])).await?;
            match self.run_until_valid(*run, command, &awake, results).await {
                Ok(outcome) => {
                    tell!("suite: {number} of {}: {file}: {}", runs.len(), in_short(&outcome));
                    results.add(*run, outcome);
                }
                Err(TrialError::Server(error)) => results.not_started(*run, &error),
                Err(TrialError::Unwritten(why)) => {
                    anyhow::bail!("{why}; --resume goes on with the records that are there")
                }
            }
        }
        Ok(())
    }

    /// Where every run takes place.
    fn places<'a>(&'a self, awake: &'a Awake) -> Places<'a> {
        let Plan { server_cpus, loadgen_cpus, .. } = &self.plan;
        let awake_cpus = awake.cpus();
        Places { server_cpus, loadgen_cpus, shards: None, awake_cpus, calm: &self.calm }
    }

    /// What loadgen carries of each scenario that lacks runs against a server that does nothing.
    async fn calibrate(
        &self,
        before: &BTreeMap<String, Outcome>,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let mut awake = Awake::default();
        let lacking = |run: &Run| !before.contains_key(&self.file_of(*run));
        let lacking: BTreeSet<_> =
            self.plan.runs().into_iter().filter(lacking).map(|run| run.scenario).collect();
        for place in lacking {
            let scenario = &self.plan.scenarios[place];
            let rate = scenario.rate.as_ref().map(|_| MessagesPerSecond(1.0));
            let load = scenario.load(self.plan.client, rate);
            awake.change_to(&self.plan.awake_cpus(scenario)).await?;
            let null = self.places(&awake).null_throughput(&load).await?;
            tell!("suite: {}: against a null echo loadgen carries {null}", scenario.name);
            results.null_throughputs[place] = Some(null);
        }
        Ok(())
    }

    /// Builds what has to be built, before anything is measured: servers that lack runs, of this build's folder. Out: by
    /// server, how it is started, or why it is not.
    async fn prepare(
        &self,
        before: &BTreeMap<String, Outcome>,
        results: &mut Results,
    ) -> Vec<Result<ServerCommand, String>> {
        let mut commands = Vec::new();
        for (place, server) in self.plan.servers.iter().enumerate() {
            let runs = self.plan.runs().into_iter().filter(|run| run.server == place);
            let (there, lacking): (Vec<_>, Vec<_>) =
                runs.partition(|run| before.contains_key(&self.file_of(*run)));
            results.about[place] = self.about(server);
            let command = if self.is_foreign {
                Err("it has no run in this folder, whose runs are another build's or machine's"
                    .to_owned())
            } else if lacking.is_empty() && !self.is_measure(server) {
                Err("it has all its runs".to_owned())
            } else {
                self.command(server).await.map_err(|error| error.to_string())
            };
            results.was_there[place] = !there.is_empty();
            if let (Err(why), true) = (&command, there.is_empty()) {
                results.skip(place, why);
            }
            commands.push(command);
        }
        commands
    }

    /// Whether others' rates are shares of its knee.
    fn is_measure(&self, server: &SuiteServer) -> bool {
        self.plan.scenarios.iter().any(|scenario| {
            matches!(&scenario.rate, Some(Rate::OfKnee { of: Some(of), .. }) if *of == server.name)
        })
    }

    fn peer(&self, name: &str) -> (&Peers, &Peer) {
        let peers = self.peers.as_ref().expect("a plan with a peer names peers.toml");
        (peers, peers.find(name).expect("looked up when the suite was read"))
    }

    /// What a server is, for the report.
    fn about(&self, server: &SuiteServer) -> String {
        match &server.kind {
            ServerKind::Ours(transport) => {
                let (name, placement) = (transport.name(), transport.placement().name());
                format!("ours, transport {name}, placement {placement}")
            }
            ServerKind::Peer(name) => {
                let (_, peer) = self.peer(name);
                let payload = match peer.payload {
                    PeerPayload::Typed => "typed: each message decoded and encoded",
                    PeerPayload::Raw => "raw: bytes forwarded, no message decoded",
                };
                format!("peer, {}; {payload}", peer.version)
            }
        }
    }

    async fn command(&self, server: &SuiteServer) -> anyhow::Result<ServerCommand> {
        match &server.kind {
            ServerKind::Ours(transport) => Ok(ServerCommand::embedded(*transport)?),
            ServerKind::Peer(name) => {
                tell!("suite: building {name}");
                let (peers, peer) = self.peer(name);
                Ok(peers.build(peer).await?)
            }
        }
    }

    /// Runs until nothing but the server speaks from the record, as often as is allowed.
    async fn run_until_valid(
        &self,
        run: Run,
        command: &ServerCommand,
        awake: &Awake,
        results: &mut Results,
    ) -> Result<Outcome, TrialError> {
        loop {
            let outcome = self.run_once(run, command, awake, results).await?;
            let is_aside = self.put_aside(run, &outcome);
            if !is_aside.map_err(|error| TrialError::Unwritten(format!("{error:#}")))? {
                return Ok(outcome);
            }
            tell!("suite: {}: {}, and repeated", self.file_of(run), in_short(&outcome));
        }
    }

    async fn run_once(
        &self,
        run: Run,
        command: &ServerCommand,
        awake: &Awake,
        results: &mut Results,
    ) -> Result<Outcome, TrialError> {
        let rate = match self.rate(run, results) {
            Ok(rate) => rate,
            Err(why) => return Ok(Outcome::Failed(why)),
        };
        let flags = self.flags(run, rate);
        let warmup = self.plan.warmup_of(run);
        let (scenario, server) =
            (&self.plan.scenarios[run.scenario], &self.plan.servers[run.server]);
        let SuiteScenario { watch_give_back, drain_limit, .. } = scenario;
        let after = *watch_give_back + drain_limit.unwrap_or(Nanos(0));
        let trial = Trial {
            flags: &flags,
            contract: scenario.contract,
            places: self.places(awake),
            time: warmup + self.plan.duration_of(run) + after,
            null_throughput: results.null_throughputs[run.scenario],
            preheat: Preheat::of(&scenario.load(self.plan.client, None), server.preheat),
        };
        let path = self.out.join(self.file_of(run));
        let tried = trial.on(command, &path).await?;
        Ok(self.outcome(run, tried, results))
    }

    fn outcome(&self, run: Run, tried: Tried, results: &mut Results) -> Outcome {
        let (record, mark, why) = match tried {
            Tried::Valid(record) => (record, None, String::new()),
            tried if is_overloaded(&tried) => return Outcome::Overloaded(tried.why()),
            Tried::Invalid(record, why) => match Mark::of(&record) {
                Some(mark) => (record, Some(mark), why),
                None => return Outcome::Invalid(why),
            },
            Tried::Failed(_, why) => return Outcome::Failed(why),
        };
        let figures = Figures::of(&record, self.plan.scenarios[run.scenario].figure);
        results.products[run.server] = record.provenance.server.product;
        match (figures, mark) {
            (None, _) => {
                Outcome::Failed("the server used no CPU time that could be read".to_owned())
            }
            (Some(figures), None) => Outcome::Counted(figures),
            (Some(figures), Some(mark)) => Outcome::Marked(figures, mark, why),
        }
    }

    /// Those of `loadgen run`.
    fn flags(&self, run: Run, rate: Option<MessagesPerSecond>) -> Vec<String> {
        let scenario = &self.plan.scenarios[run.scenario];
        let warmup = self.plan.warmup_of(run);
        let mut flags = scenario.load(self.plan.client, rate).flags();
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        flag("--idle-streams", scenario.idle_streams.to_string());
        flag("--idle-connections", scenario.idle_connections.to_string());
        flag("--watch-give-back", format!("{}ns", scenario.watch_give_back.0));
        flag("--warmup", format!("{}ns", warmup.0));
        flag("--duration", format!("{}ns", self.plan.duration_of(run).0));
        if let Some(messages) = scenario.messages {
            flag("--messages", messages.to_string());
        }
        if let Some(drain_limit) = scenario.drain_limit {
            flag("--drain-limit", format!("{}ns", drain_limit.0));
        }
        // The same bytes for every server of a repetition.
        let seed = scenario.seed.unwrap_or(1).wrapping_add(run.repetition as u64);
        flag("--seed", seed.to_string());
        flags
    }

    /// `<scenario>.<server>.<n>.json`, n from 1.
    fn file_of(&self, run: Run) -> String {
        let scenario = &self.plan.scenarios[run.scenario].name;
        let server = &self.plan.servers[run.server].name;
        format!("{scenario}.{server}.{}.json", run.repetition + 1)
    }

    fn time(&self) -> Nanos {
        self.plan.runs().into_iter().fold(Nanos(0), |sum, run| {
            let preheat = self.plan.servers[run.server].preheat;
            let watch = self.plan.scenarios[run.scenario].watch_give_back;
            sum + preheat + self.plan.warmup_of(run) + self.plan.duration_of(run) + watch
        })
    }
}

/// How host.txt begins; a time follows.
const BEGUN: &str = "begun: ";

/// host.txt of a folder that is begun now.
fn host(started_at: &str) -> String {
    let Host { cpu_model, cores, kernel, tcp_congestion_control } = provenance::host();
    let tcp = tcp_congestion_control.as_deref().unwrap_or("unknown");
    let build = stamped(provenance::build());
    format!(
        "{BEGUN}{started_at}\ncpu: {cpu_model}\ncores: {cores}\nkernel: {kernel}\ntcp: {tcp}\nloadgen: {build}, {}\n",
        build.rustc,
    )
}

/// Whether nothing else went wrong but that the server carries less than it was offered.
fn is_overloaded(tried: &Tried) -> bool {
    match tried {
        Tried::Invalid(record, _) => {
            record.fell_behind() && record.failed_gates().all(|gate| record.is_loss(gate))
        }
        // What fails about the load itself fails in any overload.
        Tried::Failed(Some(record), _) => {
            record.fell_behind()
                && record.measured.messages_wrong == 0
                // One that resets streams carries nothing of what is due on them.
                && record.measured.statuses.keys().all(|status| status == "OK")
                && disturbance(&record.gates).is_none()
        }
        Tried::Valid(_) | Tried::Failed(None, _) => false,
    }
}

fn in_short(outcome: &Outcome) -> String {
    let p50 = |figures: &Figures| figures.p50.map_or("unknown".to_owned(), |p50| p50.to_string());
    match outcome {
        Outcome::Counted(figures) => {
            format!("{} messages/s, p50 {}", Count(figures.messages_per_s), p50(figures))
        }
        Outcome::Marked(figures, Mark::Bound, reason) => {
            let rate = Count(figures.messages_per_s);
            format!("at least {rate} messages/s, p50 at most {}: {reason}", p50(figures))
        }
        Outcome::Marked(figures, mark, reason) => {
            format!("{} messages/s {mark}: {reason}", Count(figures.messages_per_s))
        }
        Outcome::Overloaded(reason) => format!("overloaded: {reason}"),
        Outcome::Failed(reason) => format!("failed: {reason}"),
        Outcome::Invalid(reason) => format!("invalid: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Unstable, Wrong};
    use crate::report::example;
    use bidi_echo::build_info;

    #[test]
    fn a_folder_of_one_profile_is_not_gone_on_with_by_another() {
        let host = host("2026-11-27T20:16:17Z");
        let build = host.lines().find(|line| line.starts_with("loadgen: ")).unwrap();
        let profile = format!(", profile {}, opt-level ", build_info::PROFILE);
        assert!(build.contains(&profile), "{host}");
        let after = &provenance::build().rustc;
        assert!(build.ends_with(after), "{host}");
    }

    #[test]
    fn a_server_that_ends_streams_is_not_taken_for_one_that_carries_too_little() {
        let check = |statuses: &[(&str, u64)], expected: bool| {
            let mut record = example::open_loop(1_000.0, 1);
            let measured = &mut record.measured;
            let (at_ns, since_ns) = (Nanos(2), Nanos(1));
            measured.unstable = Some(Unstable { backlog: 9, at_ns, since_ns });
            (measured.messages_wrong, measured.wrong) = (0, Wrong::default());
            measured.streams_unfinished = 1;
            measured.statuses =
                statuses.iter().map(|(status, count)| ((*status).to_owned(), *count)).collect();
            let tried = Tried::Failed(Some(Box::new(record)), String::new());
            assert_eq!(is_overloaded(&tried), expected, "{statuses:?}");
        };
        check(&[("OK", 9)], true);
        check(&[], true);
        check(&[("OK", 9), ("UNAVAILABLE", 1)], false);
    }
}
