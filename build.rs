//! Compiles `proto/` in pure Rust and notes which revision is being built.
//!
//! In: the .proto files and the git checkout, if there is one. Out, in `OUT_DIR` alone: the
//! generated code and a descriptor set for reflection; and the variables `BIDI_ECHO_REVISION`,
//! `BIDI_ECHO_PROFILE`, `BIDI_ECHO_OPT_LEVEL` and `BIDI_ECHO_RUSTC`. Needs no protoc and no network; a
//! missing git gives the revision "unknown".

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 2] = ["proto/grpc_bidirectional_streaming.proto", "proto/echo/v1/echo.proto"];

/// What a rebuild depends on besides sources; paths that are absent (no git) are left out, because cargo takes an
/// absent path for a change.
const WATCHED: [&str; 2] = [".git/HEAD", ".git/logs/HEAD"];

/// What the programs are made of.
const SOURCES: [&str; 7] =
    ["build.rs", "proto", "src", "loadgen/src", "Cargo.lock", "Cargo.toml", "loadgen/Cargo.toml"];

fn main() -> Result<(), Box<dyn Error>> {
    for path in SOURCES.iter().chain(&WATCHED).filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
    compile_protos()?;
    println!("cargo:rustc-env=BIDI_ECHO_REVISION={}", revision());
    println!("cargo:rustc-env=BIDI_ECHO_PROFILE={}", env::var("PROFILE")?);
    println!("cargo:rustc-env=BIDI_ECHO_OPT_LEVEL={}", env::var("OPT_LEVEL")?);
    println!("cargo:rustc-env=BIDI_ECHO_RUSTC={}", rustc_version());
    Ok(())
}

fn compile_protos() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` instead of `Vec<u8>`: a decoded payload can be a slice of the receive buffer.
    tonic_prost_build::configure()
        .bytes(".echo.v1")
        .codec_path("crate::services::codec::EchoCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Short commit hash, with `-dirty` when the sources differ from it.
fn revision() -> String {
    let Some(hash) = output("git", &["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = [&["status", "--porcelain", "--"], &SOURCES[..]].concat();
    match output("git", &changed) {
        Some(changes) if changes.is_empty() => hash,
        _ => format!("{hash}-dirty"),
    }
}

fn rustc_version() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    output(&rustc, &["--version"]).unwrap_or_else(|| "unknown".to_owned())
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
}
