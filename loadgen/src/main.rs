//! loadgen's binary: allocator, one verb, the error chain printed once, exit code.

use std::io::Write;
use std::process::ExitCode;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    loadgen::cmd::main().unwrap_or_else(|error| {
        // A stderr that is gone changes nothing about the exit code.
        let _ = writeln!(std::io::stderr(), "loadgen: {error:#}");
        ExitCode::FAILURE
    })
}
