//! `loadgen run`: one scenario against one server, measured, shown, recorded.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bidi_echo::build_info;
use bidi_echo::config::{Config, LISTEN, Transport};
use bidi_echo::error::Error;

use super::servers::cores;
use super::trial::{Places, UNWRITTEN};
use super::{Exit, interrupt, output};
use crate::drive::{self, Opened, Phase, Progress};
use crate::harness::awake::Awake;
use crate::harness::bystanders::Bystanders;
use crate::harness::calm::Calm;
use crate::harness::child::end_with;
use crate::harness::disturbance::Disturbances;
use crate::harness::probe::{self, Peer, ProbeError};
use crate::harness::server::EmbeddedServer;
use crate::harness::usage::Watched;
use crate::harness::{provenance, server};
use crate::record::{
    self, Bystander, Gate, Hdr, Measured, Origin, Provenance, Resident, RunRecord, SCHEMA_VERSION,
    Server, Warning, WarningKind,
};
use crate::report;
use crate::scenario::{
    Arrivals, Blocked, Load, LoadArgs, RunArgs, Scenario, Surroundings, UsageError,
};
use crate::units::{MessagesPerSecond, Nanos};

/// Share of the median R that the median L may be without a word.
const LAG_SHARE_MAX: f64 = 0.1;

/// Why what comes after a run is left out.
const ENDED_EARLY: &str = "the run was ended before its plan";

/// What goes on beside a server that should give memory back.
const TRICKLE: Load = Load::OpenLoop {
    rate_messages_per_s: MessagesPerSecond(200.0),
    arrivals: Arrivals::Uniform,
    in_flight_max: None,
    blocked: Blocked::Queue,
    backlog_max: 10_000,
};

/// Measures what `args` say. The exit code is as [`super::main`] tells.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if let Some(parent) = args.parent {
        end_with(parent)?;
    }
    if let Err(error) = bidi_echo::serve::keep_to_small_pages() {
        tell!(
            "loadgen: cannot do without huge pages: {error}; the first use of one may look like lag"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(measure(args)) {
        Ok(record) => {
            show(&record, args)?;
            Ok(exit(&record, args).into())
        }
        Err(error) if is_bad_usage(&error) => {
            tell!("loadgen: {error:#}");
            Ok(Exit::Usage.into())
        }
        Err(error) => Err(error),
    }
}

fn exit(record: &RunRecord, args: &RunArgs) -> Exit {
    let misses = args.slo.as_ref().map_or(Vec::new(), |slo| record.measured.missed(slo));
    for miss in &misses {
        tell!("loadgen: goal missed: {miss}");
    }
    if !record.measured.is_well() {
        return Exit::Failed;
    }
    if args.require_valid && !is_proven(record) {
        return Exit::Invalid;
    }
    if misses.is_empty() { Exit::Done } else { Exit::GoalMissed }
}

/// Whether no gate failed, that of loadgen's own headroom among them, and all about the load could be told.
fn is_proven(record: &RunRecord) -> bool {
    for gate in record.untold_gates() {
        tell!("loadgen: not shown to be valid: {}", gate.message);
    }
    let has_headroom = record.scenario.null_throughput_messages_per_s.is_some();
    record.is_valid() == Some(true) && has_headroom && record.untold_gates().next().is_none()
}

fn is_bad_usage(error: &anyhow::Error) -> bool {
    let probe = error.downcast_ref::<ProbeError>();
    error.is::<UsageError>()
        || matches!(probe, Some(ProbeError::NotATarget { .. } | ProbeError::Tls { .. }))
}

async fn measure(args: &RunArgs) -> anyhow::Result<RunRecord> {
    if let Some(path) = file(args) {
        record::check_writable(path)
            .map_err(|error| usage("--json", path.display(), error.to_string()))?;
    }
    let target = Target::choose(args).await?;
    let scenario = Scenario::resolve(args, &surroundings(args, &target)?)?;
    tell!("loadgen: {}", target.describe());
    // Those that somebody else keeps awake are not this run's to care for.
    let awake = if args.keep_awake { &scenario.awake_cpus[..] } else { &[] };
    let awake = Awake::on(awake).await?;
    let mut watched = Processes::of(args, &target, &scenario.awake_cpus)?;
    watched.resident(|resident| &mut resident.before_bytes);
    let started_at = provenance::now();
    let mut screen = Screen::new(&scenario);
    let mut late_headers = 0;
    let mut window_began_at = None;
    let ran = drive::run(&scenario, target.uri.clone(), interrupted(), &mut |mut progress| {
        match progress {
            Progress::Phase(Phase::Measure) => {
                watched.begin();
                window_began_at = Some(provenance::now_in_millis());
            }
            Progress::Phase(Phase::Drain) => watched.end(),
            Progress::Open(Opened::Streams) => {
                watched.resident(|resident| &mut resident.streams_open_bytes);
            }
            Progress::Open(Opened::IdleStreams) => {
                watched.resident(|resident| &mut resident.idle_streams_open_bytes);
            }
            Progress::Open(Opened::IdleConnections) => {
                watched.resident(|resident| &mut resident.all_open_bytes);
            }
            Progress::Phase(Phase::WarmUp { streams_without_headers }) => {
                late_headers = streams_without_headers;
            }
            _ => {}
        }
        if let Progress::Second { gates, .. } = &mut progress {
            watched.add_gates(gates);
        }
        screen.show(&progress);
    })
    .await;
    screen.clear();
    let (mut measured, product) = match ran {
        Ok(ran) => ran,
        Err(error) => {
            target.stop().await;
            return Err(error).context(format!("no figures from {}", args_target(args)));
        }
    };
    measured.bystanders = watched.look_around();
    let mut not_watched = None;
    if scenario.watch_give_back_ns > Nanos(0) {
        let watch = match measured.stopped_early {
            true => Err(anyhow::anyhow!(ENDED_EARLY)),
            false => watch_give_back(&scenario, &target, &mut watched, &screen).await,
        };
        if let Err(error) = watch {
            // The run was well until then, and is not to be had again.
            watched.forget_closed();
            not_watched = Some(format!("{error:#}"));
        }
    }
    watched.fill(&mut measured);
    let server = target.server(product);
    let server_cpus = server_cpus(args, &watched, &scenario)?;
    target.stop().await;
    let mut record = RunRecord {
        schema_version: SCHEMA_VERSION,
        provenance: Provenance {
            started_at,
            window_began_at,
            loadgen: provenance::build(),
            server,
            host: provenance::host(),
        },
        gates: record::gates(&scenario, &measured),
        scenario,
        measured,
        warnings: Vec::new(),
    };
    if args.require_valid
        && let Err(error) = add_headroom(&mut record, &args.load, &server_cpus).await
    {
        // The run's figures stand, and are not to be had again.
        tell!("loadgen: whether it could have carried more is not known: {error:#}");
    }
    drop(awake);
    record.warnings = warnings(&record, late_headers, watched.not_the_server.take());
    let warning = |message| Warning { kind: WarningKind::MemoryNotWatched, message };
    record.warnings.extend(not_watched.map(warning));
    Ok(record)
}

/// Where a server that does nothing takes the measured one's place: its cores, if they are known.
fn server_cpus(
    args: &RunArgs,
    watched: &Processes,
    scenario: &Scenario,
) -> Result<Vec<usize>, UsageError> {
    match &watched.server {
        Some(server) => Ok(server.cpus()),
        None if scenario.cpus.is_empty() => Ok(Vec::new()),
        None => Ok(apart(args)?.0),
    }
}

/// Holds the run against what loadgen carries of its load on its cores. What is not valid anyway needs no seconds for that.
async fn add_headroom(
    record: &mut RunRecord,
    load: &LoadArgs,
    server_cpus: &[usize],
) -> anyhow::Result<()> {
    let is_valid = record.is_valid() == Some(true) && record.measured.is_well();
    let RunRecord { scenario, measured, .. } = record;
    if !is_valid || scenario.null_throughput_messages_per_s.is_some() {
        return Ok(());
    }
    anyhow::ensure!(!measured.stopped_early, ENDED_EARLY);
    let connections = NonZeroUsize::new(scenario.connections);
    let load = LoadArgs { connections, ..load.clone() };
    let Scenario { cpus: loadgen_cpus, awake_cpus, .. } = &*scenario;
    // As suite, compare and search write it, so that what one has measured is known to all.
    let shards = (scenario.shards != loadgen_cpus.len()).then_some(scenario.shards);
    let calm = Calm::default();
    let places = Places { server_cpus, loadgen_cpus, shards, awake_cpus, calm: &calm };
    tell!("loadgen: what it carries against a null echo is measured once, and remembered");
    let null = tokio::select! {
        null = places.null_throughput(&load) => null?,
        () = interrupted() => anyhow::bail!("interrupted"),
    };
    tell!("loadgen: against a null echo it carries {null}");
    scenario.null_throughput_messages_per_s = Some(null);
    record.gates = record::gates(scenario, measured);
    Ok(())
}

/// Notes the server's memory each second after the run has closed everything, while a single stream keeps
/// the server a little busy.
async fn watch_give_back(
    scenario: &Scenario,
    target: &Target,
    watched: &mut Processes,
    screen: &Screen<'_>,
) -> anyhow::Result<()> {
    let trickle = trickle(scenario);
    screen.say("watching the server's memory");
    let seconds = scenario.watch_give_back_ns.0.div_ceil(Nanos::SECOND.0);
    let mut noted = 0;
    let mut watch = |progress| {
        // An echo that comes after the window begins one more second, which nobody asked for.
        if let Progress::Second { second, .. } = progress
            && second.second < seconds
        {
            noted += 1;
            watched.closed();
        }
    };
    let ran = drive::run(&trickle, target.uri.clone(), interrupted(), &mut watch).await;
    screen.clear();
    let ran = ran.context("the server's memory could not be watched to the end")?;
    // The window may be over before its last second was told.
    if noted + 1 == seconds && ran.0.window_ns >= scenario.watch_give_back_ns {
        watched.closed();
    }
    Ok(())
}

/// A single stream on a connection of its own.
fn trickle(scenario: &Scenario) -> Scenario {
    Scenario {
        streams: 1,
        connections: 1,
        idle_streams: 0,
        idle_connections: 0,
        shards: 1,
        load: TRICKLE,
        warmup_ns: Nanos(0),
        duration_ns: Some(scenario.watch_give_back_ns),
        messages_max: None,
        probe_rate_messages_per_s: None,
        ..scenario.clone()
    }
}

fn args_target(args: &RunArgs) -> &str {
    args.target.as_deref().unwrap_or("the server")
}

/// Transport and placement of a server of ours, as its `server` header ends.
fn carried(product: &str) -> Option<(String, String)> {
    let (_, carried) = product.strip_prefix("bidi-echo/")?.rsplit_once(" (transport ")?;
    let (transport, placement) = carried.strip_suffix(')')?.split_once("; placement ")?;
    Some((transport.to_owned(), placement.to_owned()))
}

fn usage(flag: &'static str, value: impl ToString, cure: String) -> UsageError {
    UsageError { flag, value: value.to_string(), cure }
}

/// The path of `--json`, unless that is stdout.
fn file(args: &RunArgs) -> Option<&Path> {
    args.json.as_deref().filter(|path| *path != Path::new("-"))
}

/// The first Ctrl-C or SIGTERM ends the run in order; the second ends the program.
async fn interrupted() {
    interrupt::interrupted().await;
    let again = interrupt::interrupted();
    tokio::spawn(async {
        again.await;
        tell!("loadgen: asked a second time to end: without figures");
        process::exit(1);
    });
}

/// Cores of an embedded server and of loadgen: each would measure the other if they shared one.
fn apart(args: &RunArgs) -> Result<(Vec<usize>, Vec<usize>), UsageError> {
    cores(&[], &args.cpus, &provenance::cpus())
}

fn surroundings(args: &RunArgs, target: &Target) -> Result<Surroundings, UsageError> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Below 2^53, so that a JSON reader with floats only repeats it exactly.
    let fresh_seed = Nanos::from(since_epoch).0 & ((1 << 53) - 1);
    let (server_cpus, usual_cpus) = match target.origin {
        Origin::Embedded => apart(args)?,
        _ => (Vec::new(), Vec::new()),
    };
    Ok(Surroundings {
        cpus: provenance::cpus(),
        usual_cpus,
        server_cpus,
        streams_per_connection_max: target.peer.streams_per_connection_max,
        fresh_seed,
    })
}

/// The server that is measured.
#[derive(Debug)]
struct Target {
    origin: Origin,
    uri: http::Uri,
    peer: Peer,
    embedded: Option<EmbeddedServer>,
    note: Option<String>,
}

impl Target {
    async fn choose(args: &RunArgs) -> anyhow::Result<Self> {
        let (origin, uri) = match &args.target {
            Some(target) => (Origin::Target, probe::parse(target)?),
            None => (Origin::Found, probe::parse(&format!("http://{LISTEN}"))?),
        };
        let found = match probe::look(&uri).await {
            Ok(peer) if origin == Origin::Found => {
                probe::answers(&uri, args.load.contract).await.map(|()| peer)
            }
            looked => looked,
        };
        let transport = args.transport.unwrap_or(Config::default().transport);
        let transport = transport.placed(args.placement).map_err(|error| match error {
            Error::Config { flag, value, cure } => anyhow::Error::new(usage(flag, value, cure)),
            error => error.into(),
        })?;
        match found {
            Ok(peer) => {
                let cure = "the server runs already; start it with that, or let loadgen start one";
                if let Some(transport) = args.transport {
                    return Err(usage("--transport", transport.name(), cure.to_owned()).into());
                }
                if let Some(placement) = args.placement {
                    return Err(usage("--placement", placement.name(), cure.to_owned()).into());
                }
                Ok(Target { origin, uri, peer, embedded: None, note: None })
            }
            Err(error) if origin == Origin::Target => Err(error.into()),
            Err(ProbeError::Connect { .. }) => Self::embed(args, transport, None).await,
            Err(error) => Self::embed(args, transport, Some(error.to_string())).await,
        }
    }

    async fn embed(
        args: &RunArgs,
        transport: Transport,
        note: Option<String>,
    ) -> anyhow::Result<Self> {
        let (server_cpus, _) = apart(args)?;
        let embedded = EmbeddedServer::start(transport, &server_cpus).await?;
        let uri = probe::parse(&format!("http://{}", embedded.address()))?;
        let peer = probe::look(&uri).await?;
        let origin = Origin::Embedded;
        Ok(Target { origin, uri, peer, embedded: Some(embedded), note })
    }

    fn describe(&self) -> String {
        let address = self.address();
        match (self.origin, &self.note) {
            (Origin::Target, _) => format!("measuring {address}"),
            (Origin::Found, _) => format!("measuring the server found on {address}"),
            (Origin::Embedded, None) => {
                format!("nothing listens on {LISTEN}: measuring an embedded server on {address}")
            }
            (Origin::Embedded, Some(note)) => {
                format!("{note}: measuring an embedded server on {address}")
            }
        }
    }

    fn address(&self) -> String {
        self.uri.authority().map_or(String::new(), ToString::to_string)
    }

    /// The address without a name: a record tells nobody's hosts.
    fn recorded_address(&self) -> String {
        let host = self.uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok() {
            return self.address();
        }
        format!("(a named host):{}", self.uri.port_u16().unwrap_or(80))
    }

    fn server(&self, product: Option<String>) -> Server {
        let (transport, placement) = product.as_deref().and_then(carried).unzip();
        let target = self.recorded_address();
        Server { origin: self.origin, target, product, transport, placement }
    }

    async fn stop(self) {
        if let Some(embedded) = self.embedded {
            server::EmbeddedServer::stop(embedded).await;
        }
    }
}

/// The two processes of a run.
#[derive(Debug)]
struct Processes {
    loadgen: Option<Watched>,
    server: Option<Watched>,
    used: Option<[Option<record::Usage>; 2]>,
    resident: Option<Resident>,
    disturbances: Disturbances,
    bystanders: Bystanders,
    /// When the window was opened.
    began: Option<Instant>,
    /// Why its CPU time and memory are not the server's.
    not_the_server: Option<String>,
}

impl Processes {
    fn of(args: &RunArgs, target: &Target, awake_cpus: &[usize]) -> Result<Self, UsageError> {
        let embedded = target.embedded.as_ref().and_then(EmbeddedServer::pid);
        let server = match (embedded, args.server_pid) {
            (Some(_), Some(pid)) => {
                let cure = "loadgen started the server itself and knows its process; leave it out";
                return Err(usage("--server-pid", pid, cure.to_owned()));
            }
            (Some(pid), None) => Watched::of(pid),
            (None, None) => None,
            (None, Some(pid)) => Some(Watched::of(pid).ok_or_else(|| {
                usage("--server-pid", pid, "no such process here; pass the server's".to_owned())
            })?),
        };
        let resident = server.as_ref().map(|_| Resident::default());
        let loadgen = Watched::of(std::process::id());
        let disturbances = Disturbances::of(server.iter().flat_map(Watched::cpus), awake_cpus);
        Ok(Processes {
            loadgen,
            server,
            used: None,
            resident,
            disturbances,
            bystanders: Bystanders::begin(),
            began: None,
            not_the_server: None,
        })
    }

    /// Notes the server's memory now, as the one that `moment` names.
    fn resident(&mut self, moment: impl FnOnce(&mut Resident) -> &mut u64) {
        if let Some(resident) = &mut self.resident {
            let now = self.server.as_ref().and_then(Watched::resident_bytes);
            *moment(resident) = now.unwrap_or_default();
        }
    }

    /// Notes it as that of one more second after everything has closed.
    fn closed(&mut self) {
        self.resident(|resident| {
            resident.closed_bytes.push(0);
            resident.closed_bytes.last_mut().expect("pushed just now")
        });
    }

    /// Part of that tells nothing of what goes back in the end.
    fn forget_closed(&mut self) {
        self.resident.iter_mut().for_each(|resident| resident.closed_bytes.clear());
    }

    fn begin(&mut self) {
        self.began = Some(Instant::now());
        self.disturbances.begin();
        [&mut self.loadgen, &mut self.server].into_iter().flatten().for_each(Watched::begin);
        self.not_the_server = self.server.as_ref().and_then(|server| {
            let (pid, children) = (server.pid(), server.children());
            (!children.is_empty()).then(|| {
                format!(
                    "the server's CPU time and memory are not known: process {pid} has others of its own ({children:?}); \
                     pass or start the server itself, from a shell script with exec"
                )
            })
        });
    }

    /// Adds those about this machine to the gates about the load, while the window is open.
    fn add_gates(&self, gates: &mut Vec<Gate>) {
        let window = self.began.map_or(Nanos(0), |began| began.elapsed().into());
        let so_far = self.disturbances.so_far();
        record::add_machine_gates(gates, window, &so_far.shard_threads(), so_far.of_machine());
    }

    fn end(&mut self) {
        self.disturbances.end();
        let used = |watched: &Option<Watched>| watched.as_ref().and_then(Watched::end);
        self.used = Some([used(&self.loadgen), used(&self.server)]);
        self.resident(|resident| &mut resident.end_bytes);
    }

    /// Who else took the machine's time; not before the last echo, which a look at all processes would delay.
    fn look_around(&self) -> Vec<Bystander> {
        self.bystanders.busiest(self.server.as_ref())
    }

    fn fill(&mut self, measured: &mut Measured) {
        measured.server_resident = self.resident.take();
        measured.shard_threads = self.disturbances.shard_threads();
        measured.disturbance = self.disturbances.of_machine();
        [measured.loadgen, measured.server] = self.used.unwrap_or_default();
        if self.not_the_server.is_some() {
            (measured.server, measured.server_resident) = (None, None);
        }
        let cores = self.server.as_ref().map(|server| server.cpus().len());
        let cores = cores.filter(|cores| *cores > 0);
        measured.server_cpu_share = measured.server.zip(cores).map(|(used, cores)| {
            used.cpu().as_secs_f64() / (measured.window_ns.as_secs_f64() * cores as f64)
        });
        let echoes = measured.throughput_messages_per_s * measured.window_ns.as_secs_f64();
        measured.messages_per_server_cpu_s = measured
            .server
            .map(|server| server.cpu().as_secs_f64())
            .filter(|cpu_s| *cpu_s > 0.0)
            .map(|cpu_s| echoes / cpu_s);
    }
}

/// What makes the figures suspect.
fn warnings(
    record: &RunRecord,
    late_headers: usize,
    not_the_server: Option<String>,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |kind, message: String| warnings.push(Warning { kind, message });
    let RunRecord { provenance, measured, .. } = record;
    let build = &provenance.loadgen;
    if build.opt_level != "3" || build.debug_assertions {
        let assertions = if build.debug_assertions { " with debug assertions" } else { "" };
        let message = format!("loadgen is built at opt-level {}{assertions}", build.opt_level);
        warn(WarningKind::SlowBuild, message);
    }
    let product = provenance.server.product.as_deref().unwrap_or_default();
    if product.starts_with("bidi-echo/") && !product.starts_with(build_info::PRODUCT) {
        let ours = build_info::PRODUCT;
        let message = format!("the server is {product}, loadgen comes from {ours}");
        warn(WarningKind::RevisionDiffers, message);
    }
    if late_headers > 0 {
        let message =
            format!("{late_headers} streams had no response headers before their first message");
        warn(WarningKind::LateHeaders, message);
    }
    if measured.server.is_none() && provenance.server.origin != Origin::Embedded {
        let usual =
            || "the server's CPU time and memory are not known; pass --server-pid".to_owned();
        warn(WarningKind::ServerUsageUnknown, not_the_server.unwrap_or_else(usual));
    }
    if let Some((share, lag)) = lag_in_response(measured) {
        let message = format!(
            "of the median response time {:.0} % is loadgen's own lag (L p50 {lag}): fewer messages a second on \
             each shard, or --cpus and more --shards, make it less",
            100.0 * share
        );
        warn(WarningKind::LagInResponse, message);
    }
    if measured.stopped_early {
        warn(WarningKind::StoppedEarly, "the run ended before its plan".to_owned());
    }
    warnings
}

/// The share of the median R that the median L is, if that is more than a little, and the latter.
fn lag_in_response(measured: &Measured) -> Option<(f64, Nanos)> {
    let median = |hdr: &Option<Hdr>| Some(hdr.as_ref()?.percentile(50.0));
    let (response, lag) = (median(&measured.response_time)?, median(&measured.send_lag)?);
    let share = lag.as_secs_f64() / response.as_secs_f64();
    (share > LAG_SHARE_MAX).then_some((share, lag))
}

/// The lines on stderr while a run goes on.
struct Screen<'a> {
    scenario: &'a Scenario,
    live: report::Live,
    is_terminal: bool,
    draining: bool,
}

impl<'a> Screen<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        Screen {
            scenario,
            live: report::Live::default(),
            is_terminal: io::stderr().is_terminal(),
            draining: false,
        }
    }

    fn show(&mut self, progress: &Progress) {
        let text = match progress {
            Progress::Phase(Phase::Connect) => {
                format!("connecting: {}", report::spread(self.scenario))
            }
            Progress::Open(_) => return,
            Progress::Phase(Phase::WarmUp { .. }) if self.scenario.warmup_ns == Nanos(0) => return,
            Progress::Phase(Phase::WarmUp { .. }) => {
                format!("warming up for {}", self.scenario.warmup_ns)
            }
            Progress::Phase(Phase::Measure) => "measuring".to_owned(),
            Progress::Phase(Phase::Drain) => {
                self.draining = true;
                "draining".to_owned()
            }
            // What arrives in the drain is counted, but it is no second of the measurement.
            Progress::Second { .. } if self.draining => return,
            Progress::Second { second, .. } if self.is_past_the_end(second.second) => return,
            Progress::Second { second, failed, gates } => {
                let line = self.live.line(self.scenario, second, *failed, gates);
                if self.is_terminal { line.within(columns()) } else { line.to_string() }
            }
        };
        self.say(&text);
    }

    fn say(&self, text: &str) {
        let mut stderr = io::stderr();
        // A terminal shows one line that changes; nothing can be done about a stderr that is gone.
        let _ = if self.is_terminal {
            write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{text}")
        };
    }

    fn is_past_the_end(&self, second: u64) -> bool {
        self.scenario.duration_ns.is_some_and(|duration| second * Nanos::SECOND.0 >= duration.0)
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

/// Of the terminal; what most have if it does not say.
fn columns() -> usize {
    let size = terminal_size::terminal_size_of(io::stderr());
    size.map_or(80, |(terminal_size::Width(columns), _)| usize::from(columns))
}

/// The record where it is wanted, and the table.
fn show(record: &RunRecord, args: &RunArgs) -> anyhow::Result<()> {
    let table = report::table(record);
    let mut stdout = io::stdout().lock();
    if args.json == Some(PathBuf::from("-")) {
        tell!("{}", table.trim_end());
        serde_json::to_writer_pretty(&mut stdout, record).context("cannot write to stdout")?;
        return writeln!(stdout).context("cannot write to stdout");
    }
    // Each is tried, whatever became of the other: the run is not to be had again.
    let written = file(args).map_or(Ok(()), |path| {
        record::write(record, path).map_err(|error| {
            let (path, cure) = (path.display(), output::cure(error.kind()));
            anyhow::anyhow!("{UNWRITTEN} {path}: {error}; {cure}")
        })
    });
    stdout.write_all(table.as_bytes()).context("cannot write to stdout")?;
    written
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cmd::Cli;
    use crate::record::{GateName, Verdict, Wrong};
    use crate::report::example;

    #[test]
    fn of_several_exit_codes_failure_goes_before_invalid_before_a_missed_goal() {
        let check = |is_lost: bool, is_invalid: bool, slo: &str, flags: &[&str], expected: Exit| {
            let mut record = example::closed_loop();
            record.scenario.null_throughput_messages_per_s = Some(MessagesPerSecond(1e6));
            record.measured.statuses.retain(|status, _| status == "OK");
            record.measured.first_failure = None;
            record.measured.messages_wrong = 0;
            record.measured.wrong = Wrong::default();
            record.measured.messages_lost = u64::from(is_lost);
            let verdict = if is_invalid { Verdict::Failed } else { Verdict::Passed };
            record.gates = vec![example::gate(GateName::Steal, verdict, Some(1.0), "share")];
            let typed = [&["loadgen", "--slo", slo], flags].concat();
            let args = Cli::try_parse_from(typed).unwrap().run;
            assert_eq!(exit(&record, &args), expected, "{is_lost} {is_invalid} {slo} {flags:?}");
        };
        let (kept, missed) = ("p50<1h", "p50<1ns");
        let required: &[&str] = &["--require-valid"];
        check(false, false, kept, required, Exit::Done);
        check(false, false, missed, required, Exit::GoalMissed);
        check(false, true, kept, &[], Exit::Done);
        check(false, true, missed, &[], Exit::GoalMissed);
        check(false, true, kept, required, Exit::Invalid);
        check(false, true, missed, required, Exit::Invalid);
        check(true, true, missed, required, Exit::Failed);
        check(true, false, kept, &[], Exit::Failed);
        check(true, false, missed, &[], Exit::Failed);
    }

    #[test]
    fn what_trickles_while_memory_is_watched_has_no_probe_beside_it() {
        let mut scenario = example::open_loop(1_000.0, 1).scenario;
        scenario.probe_rate_messages_per_s = Some(MessagesPerSecond(100.0));
        assert!(scenario.probe().is_some());
        assert!(trickle(&scenario).probe().is_none());
    }

    #[test]
    fn a_run_is_not_proven_valid_by_a_gate_that_could_not_be_told() {
        for (name, is_needed) in [
            (GateName::Backlog, true),
            (GateName::SendLag, true),
            (GateName::Probe, true),
            (GateName::Throttling, false),
            (GateName::Awake, false),
            (GateName::ShardCpu, false),
        ] {
            let mut record = example::closed_loop();
            record.scenario.null_throughput_messages_per_s = Some(MessagesPerSecond(1e6));
            record.gates = vec![example::gate(name, Verdict::Unknown, None, "share")];
            assert_eq!(is_proven(&record), !is_needed, "{name}");
        }
    }

    #[test]
    fn a_run_whose_headroom_is_not_known_is_not_proven_valid() {
        let mut record = example::closed_loop();
        record.gates = vec![example::gate(GateName::Steal, Verdict::Passed, Some(0.0), "share")];
        assert!(!is_proven(&record));
        record.scenario.null_throughput_messages_per_s = Some(MessagesPerSecond(1e6));
        assert!(is_proven(&record));
        record.gates.clear();
        assert!(!is_proven(&record), "of a loadgen without gates");
    }
}
