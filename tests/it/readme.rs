//! Holds the papers to what they speak of: each flag of the server stands in the README, and what a
//! paper links to is there.

use std::path::Path;
use std::{fs, iter};

use bidi_echo::config::Args;
use clap::CommandFactory;

const PAPERS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "results/README.md",
    "results/METHODOLOGY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(paper: &str) -> String {
    fs::read_to_string(root().join(paper)).unwrap_or_else(|error| panic!("{paper}: {error}"))
}

/// What stands between single backquotes on `line`.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Targets of the Markdown links in `text`, as written.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    iter::from_fn(move || {
        let (_, after) = rest.split_once("](")?;
        let (target, after) = after.split_once(')')?;
        rest = after;
        Some(target)
    })
}

/// The path in a link to a file of the project; `None` for other sites and for headings.
fn path_in(link: &str) -> Option<&str> {
    let path = link.split_once('#').map_or(link, |(path, _heading)| path);
    (!path.is_empty() && !link.contains(':')).then_some(path)
}

/// In one row of a table: a variable is of no use beside another flag.
#[test]
fn every_flag_of_the_server_stands_in_the_readme_beside_its_variable() {
    let readme = read("README.md");
    for flag in Args::command().get_arguments() {
        let Some(long) = flag.get_long() else { continue };
        let typed = format!("--{long}");
        let env = flag.get_env().map(|name| name.to_str().unwrap());
        let is_its_row = |line: &str| {
            line.starts_with('|')
                && code(line).any(|code| code == typed)
                && env.is_none_or(|env| code(line).any(|code| code == env))
        };
        assert!(readme.lines().any(is_its_row), "README.md has no row of {typed} and {env:?}");
    }
}

#[test]
fn what_the_papers_link_to_is_there() {
    for paper in PAPERS {
        let folder = root().join(paper).parent().unwrap().to_owned();
        let text = read(paper);
        for path in links(&text).filter_map(path_in) {
            assert!(folder.join(path).exists(), "{paper} links to {path}, which is not there");
        }
    }
}

/// What stands in `text` behind `begin` and before the next `end`.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once(end).unwrap().0
}

/// What stands between `<!-- KIND:begin PATH -->` and its end, with PATH.
fn generated<'a>(text: &'a str, kind: &str) -> Vec<(&'a str, &'a str)> {
    let (begin, end) = (format!("<!-- {kind}:begin "), format!("<!-- {kind}:end -->"));
    let parts = text.split(&begin).skip(1).map(|rest| rest.split_once(" -->\n").unwrap());
    parts.map(|(path, rest)| (path, between(rest, "", &end).trim_end())).collect()
}

/// `.ci/figures` puts them there.
#[test]
fn the_tables_and_pictures_of_the_readme_are_those_of_the_records() {
    let readme = read("README.md");
    let (tables, pictures) = (generated(&readme, "table"), generated(&readme, "picture"));
    assert!(!tables.is_empty(), "README.md shows no table");
    for (path, table) in &tables {
        assert_eq!(*table, read(path).trim_end(), "run .ci/figures: {path} says otherwise");
    }
    assert!(!pictures.is_empty(), "README.md shows no picture");
    for (path, picture) in &pictures {
        let svg = read(path);
        let title = between(&svg, "<title>", "</title>");
        assert_eq!(
            *picture,
            format!("![{title}]({path})"),
            "run .ci/figures: {path} says otherwise"
        );
    }
    let folder = |(path, _): &(&str, &str)| Path::new(path).parent().map(Path::to_owned);
    assert_eq!(
        tables.first().map(folder),
        pictures.first().map(folder),
        "the picture is not of the records that the table is of"
    );
}

#[test]
fn links_are_found_and_told_apart() {
    let check = |text, expected: &[Option<&str>]| {
        let found: Vec<_> = links(text).map(path_in).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("no link (at all) [x]", &[]);
    check("[a](b.md) and [c](d/e.md#f)", &[Some("b.md"), Some("d/e.md")]);
    check("[a](https://b.example/c) [d](#e) ![f](g.svg)", &[None, None, Some("g.svg")]);
}
