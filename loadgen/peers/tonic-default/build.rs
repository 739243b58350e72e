//! Compiles the project's proto in pure Rust, with tonic's generator as it comes.

use std::error::Error;

const PROTOS: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTOS}");
    let descriptors = protox::compile(["echo/v1/echo.proto"], [PROTOS])?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
