//! Where a verb's text goes: to stdout, or into a file that is whole or not there at all.

use std::io::{self, Write};
use std::path::Path;

use anyhow::anyhow;

use crate::record;
use crate::scenario::UsageError;

/// Whether `--out` may be written, asked before anything is read for it.
pub(super) fn check(out: Option<&Path>) -> Result<(), UsageError> {
    let Some(path) = out else { return Ok(()) };
    record::check_writable(path).map_err(|error| UsageError {
        flag: "--out",
        value: path.display().to_string(),
        cure: format!("{error}; {}", cure(error.kind())),
    })
}

/// Writes `text` to the file `out`, or else to stdout. Err: path, reason and cure, in one line.
pub(super) fn put(text: &str, out: Option<&Path>) -> anyhow::Result<()> {
    match out {
        Some(path) => record::write_bytes(text.as_bytes(), path).map_err(|error| {
            anyhow!("cannot write {}: {error}; {}", path.display(), cure(error.kind()))
        }),
        None => print(text)
            .map_err(|error| anyhow!("cannot write to stdout: {error}; {}", cure(error.kind()))),
    }
}

/// A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

pub(super) fn cure(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "make its folder first, or pass another path",
        io::ErrorKind::PermissionDenied => "pass a path that you may write",
        io::ErrorKind::StorageFull => "make room, or pass a path on another disk",
        io::ErrorKind::FileTooLarge => {
            "raise the limit (ulimit -f), or pass a path on another disk"
        }
        io::ErrorKind::IsADirectory => "pass the path of a file",
        io::ErrorKind::ReadOnlyFilesystem => "pass a path on a disk that can be written",
        _ => "pass another path",
    }
}
