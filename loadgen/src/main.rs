//! loadgen's binary: one verb, the error chain printed once, exit code.

use std::io::Write;
use std::process::ExitCode;

#[path = "../../src/allocator.rs"]
mod allocator;

fn main() -> ExitCode {
    loadgen::cmd::main(allocator::give_back_from_time_to_time()).unwrap_or_else(|error| {
        // A stderr that is gone changes nothing about the exit code.
        let _ = writeln!(std::io::stderr(), "loadgen: {error:#}");
        ExitCode::FAILURE
    })
}
