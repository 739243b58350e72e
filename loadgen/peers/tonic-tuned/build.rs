//! Compiles the project's proto in pure Rust.

use std::error::Error;

const PROTOS: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTOS}");
    let descriptors = protox::compile(["echo/v1/echo.proto"], [PROTOS])?;
    // `Bytes` instead of `Vec<u8>`: a decoded payload is a slice of the receive buffer.
    tonic_prost_build::configure().build_client(false).bytes(".").compile_fds(descriptors)?;
    Ok(())
}
