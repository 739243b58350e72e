//! Compiles the project's proto in pure Rust, with volo's generator.

use std::error::Error;

const PROTOS: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTOS}");
    volo_build::Builder::protobuf()
        .add_service(format!("{PROTOS}/echo/v1/echo.proto"))
        .include_dirs(vec![PROTOS.into()])
        .write()?;
    Ok(())
}
