//! The server's binary: allocator, flags, logging, listener, serve, exit code.

mod allocator;

use std::io::Write;
use std::process::{ExitCode, exit};

use bidi_echo::config::{Args, Config};
use bidi_echo::error::Error;
use bidi_echo::serve::{bind_listener, keep_to_small_pages, raise_open_files_limit, serve};
use bidi_echo::{build_info, logging};
use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bidi-echo: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let config = Config::try_from(args)?;
    logging::init(args.log_level, args.log_format);
    if let Err(error) = raise_open_files_limit() {
        warn!(%error, "cannot raise the limit of open files; connections may run out");
    }
    if let Err(error) = keep_to_small_pages() {
        warn!(%error, "cannot do without huge pages; the first use of one may take milliseconds");
    }
    let runtime = runtime(args)?;
    runtime.spawn(allocator::give_back_from_time_to_time());
    runtime.block_on(listen_and_serve(args, config))
}

fn runtime(args: &Args) -> Result<Runtime, Error> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = args.threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().map_err(|source| Error::Start { what: "the runtime", source })
}

async fn listen_and_serve(args: &Args, config: Config) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    let bind = |source| Error::Bind { address: args.listen, flag: "--listen", source };
    let listener = bind_listener(args.listen).map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let (transport, placement) = (config.transport.name(), config.transport.placement().name());
    info!(
        listen = %address, transport, placement, revision = build_info::REVISION,
        profile = build_info::PROFILE, opt_level = build_info::OPT_LEVEL, "serving"
    );
    if build_info::DEBUG_ASSERTIONS {
        warn!("built with debug assertions: figures taken with this build mean nothing");
    }
    let summary = serve(listener, config, async {
        signals.next().await;
        tokio::spawn(exit_at_the_next(signals));
    })
    .await?;
    // A stdout that is gone changes nothing about how the server ended.
    let _ = writeln!(std::io::stdout(), "{summary}");
    Ok(())
}

/// The second signal means: now.
async fn exit_at_the_next(mut signals: Signals) {
    signals.next().await;
    // A stderr that is gone must not keep the server alive.
    let _ = writeln!(std::io::stderr(), "bidi-echo: second signal: ending without draining");
    exit(1);
}

/// The signals that stop the server; one that comes between two calls of `next` is not lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let handler = |kind| {
            signal(kind).map_err(|source| Error::Start { what: "the signal handlers", source })
        };
        Ok(Signals {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
