//! Which build this is, as noted by the build script.
//!
//! A record that cannot say what was built proves nothing, so both binaries print these.

/// The product, and what follows it; `concat!` takes literals only, so the words that differ are passed in.
macro_rules! product {
    ($debug_assertions:literal, $after:literal) => {
        concat!(
            "bidi-echo/",
            env!("CARGO_PKG_VERSION"),
            " (",
            env!("BIDI_ECHO_REVISION"),
            "; profile ",
            env!("BIDI_ECHO_PROFILE"),
            "; opt-level ",
            env!("BIDI_ECHO_OPT_LEVEL"),
            "; debug assertions ",
            $debug_assertions,
            ")",
            $after
        )
    };
    ($after:literal) => {
        if DEBUG_ASSERTIONS { product!("on", $after) } else { product!("off", $after) }
    };
}

/// Git commit (12 hex digits, `-dirty` when sources differed from it), or `unknown`.
pub const REVISION: &str = env!("BIDI_ECHO_REVISION");

/// Cargo's profile: `release` for it and `bench`, `debug` for `dev` and `test`. The level of optimisation does not tell
/// them apart: both have 3, and `release` alone is compiled as one.
pub const PROFILE: &str = env!("BIDI_ECHO_PROFILE");

/// Optimisation level of this crate: `0` to `3`, `s` or `z`.
pub const OPT_LEVEL: &str = env!("BIDI_ECHO_OPT_LEVEL");

/// `rustc --version` of the compiler that built this crate.
pub const RUSTC: &str = env!("BIDI_ECHO_RUSTC");

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether debug assertions were compiled in; figures taken with them are not worth publishing.
pub const DEBUG_ASSERTIONS: bool = cfg!(debug_assertions);

/// Product, version, revision and how it was built; the `server` header begins with it.
///
/// The load generator compares it with its own, to warn when it measures another build.
pub const PRODUCT: &str = product!("");

/// The `server` header of the inline transport with streams in their connection's task. Headers say what
/// carries a server, so that a record can say it of servers that nobody knows otherwise.
pub const SERVER_HEADER_INLINE: &str = product!(" (transport inline; placement inline)");

/// The `server` header of the inline transport with a task per stream.
pub const SERVER_HEADER_TASK: &str = product!(" (transport inline; placement task)");

/// The `server` header of tonic's transport.
pub const SERVER_HEADER_TONIC: &str = product!(" (transport tonic; placement task)");

#[cfg(test)]
mod tests {
    use super::*;

    /// They have one level of optimisation, and not one speed.
    #[test]
    fn a_product_of_the_dev_profile_is_told_apart_from_a_release() {
        assert!(["debug", "release"].contains(&PROFILE), "{PROFILE}");
        let how = format!("; profile {PROFILE}; opt-level {OPT_LEVEL}; ");
        for product in [PRODUCT, SERVER_HEADER_INLINE, SERVER_HEADER_TASK, SERVER_HEADER_TONIC] {
            assert!(product.contains(&how), "{product}");
        }
    }
}
