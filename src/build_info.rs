//! Which build this is, as noted by the build script.
//!
//! A record that cannot say what was built proves nothing, so both binaries print these.

/// `concat!` takes literals only, so the one word that differs is passed in.
macro_rules! server_header {
    ($debug_assertions:literal) => {
        concat!(
            "bidi-echo/",
            env!("CARGO_PKG_VERSION"),
            " (",
            env!("BIDI_ECHO_REVISION"),
            "; opt-level ",
            env!("BIDI_ECHO_OPT_LEVEL"),
            "; debug assertions ",
            $debug_assertions,
            ")"
        )
    };
}

/// Git commit (12 hex digits, `-dirty` when sources differed from it), or `unknown`.
pub const REVISION: &str = env!("BIDI_ECHO_REVISION");

/// Optimisation level of this crate: `0` to `3`, `s` or `z`.
pub const OPT_LEVEL: &str = env!("BIDI_ECHO_OPT_LEVEL");

/// `rustc --version` of the compiler that built this crate.
pub const RUSTC: &str = env!("BIDI_ECHO_RUSTC");

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether debug assertions were compiled in; figures taken with them are not worth publishing.
pub const DEBUG_ASSERTIONS: bool = cfg!(debug_assertions);

/// Value of the `server` header of every response: product, version, revision and how it was built.
///
/// The load generator compares it with its own, to warn when it measures another build.
pub const SERVER_HEADER: &str =
    if DEBUG_ASSERTIONS { server_header!("on") } else { server_header!("off") };
