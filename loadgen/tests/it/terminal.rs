//! What a terminal shows while a run goes on.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::pty::{Winsize, openpty};

/// Takes back the line that a terminal shows.
const AGAIN: &str = "\r\x1b[2K";

/// What loadgen writes to a terminal so wide.
fn shown(columns: u16, args: &[&str]) -> String {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(args)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    let mut screen = File::from(terminal.master);
    let (mut written, mut chunk) = (Vec::new(), [0; 4096]);
    // An error is the end, too: nobody holds the other side any more.
    while let Ok(length @ 1..) = screen.read(&mut chunk) {
        written.extend_from_slice(&chunk[..length]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(written).unwrap()
}

fn check(columns: u16, has_course: bool) {
    let time = ["--duration", "3s", "--warmup", "100ms"];
    let load = ["--rate", "1000", "--streams", "4", "--connections", "1"];
    let text = shown(columns, &[&load[..], &time].concat());
    let seconds: Vec<_> = text.split(AGAIN).filter(|line| line.contains("messages/s")).collect();
    // The last second may be over only when the drain has begun, which shows none.
    assert!([2, 3].contains(&seconds.len()), "{text:?}");
    for line in seconds {
        assert!(line.chars().count() < usize::from(columns), "{columns}: {line:?}");
        assert!(!line.contains('\n'), "a line that stays: {line:?}");
        assert_eq!(line.contains("p50") && line.contains("  errors 0"), has_course, "{line:?}");
        assert_eq!(line.ends_with(|last| ('▁'..='█').contains(&last)), has_course, "{line:?}");
    }
    assert!(text.contains(&format!("{AGAIN}measuring{AGAIN}")), "{text:?}");
    assert!(text.ends_with(AGAIN), "the last line is left: {text:?}");
}

#[test]
fn a_terminal_shows_one_line_that_changes_with_the_course_of_p99() {
    check(240, true);
}

#[test]
fn a_narrow_terminal_shows_as_much_of_the_line_as_it_has_room_for() {
    check(40, false);
}
