//! The README names what can be typed: every flag that loadgen's own help lists.

use crate::support::loadgen;

/// What the rows of the server's flags hold: some of them have loadgen's names.
const SERVERS: &str = "BIDI_ECHO_";

/// What the help's lines begin with, as `--name`; its short twin, if any, stands before it.
fn flags(help: &str) -> Vec<&str> {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .flat_map(|line| line.split_whitespace().take(2))
        .filter(|word| word.starts_with("--"))
        .collect()
}

#[test]
fn every_flag_of_loadgen_stands_in_a_table_of_the_readme() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let help =
        |verb: &[&str]| String::from_utf8(loadgen(&[verb, &["--help"]].concat()).stdout).unwrap();
    let helps = [help(&[]), help(&["report"]), help(&["merge"])].concat();
    let flags = flags(&helps);
    for expected in ["--streams", "--help", "--format", "--timing"] {
        assert!(flags.contains(&expected), "{flags:?} of:\n{helps}");
    }
    for flag in flags {
        // Open at its end: a value's name may follow inside the backquotes.
        let cell = format!("`{flag}");
        let is_its_row = |line: &str| {
            line.starts_with('|')
                && !line.contains(SERVERS)
                && line.split(&cell).skip(1).any(|after| after.starts_with(['`', ' ']))
        };
        assert!(readme.lines().any(is_its_row), "README.md has no row of {flag}");
    }
}
