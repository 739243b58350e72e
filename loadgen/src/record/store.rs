//! Reads and writes records: whole or not at all, and never over an older one under `results/`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::{RunRecord, SCHEMA_VERSION};

/// Whether a record could be written to `path`, asked before a run is spent on it. Leaves no trace.
pub fn check_writable(path: &Path) -> io::Result<()> {
    if is_under_results(path) && path.exists() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "records under results/ are never overwritten; choose another name",
        ));
    }
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // The kind only: the rest of the error names the temporary file.
    tempfile::NamedTempFile::new_in(folder_of(path)).map(drop).map_err(|error| error.kind().into())
}

/// Writes `record` to `path` as indented JSON; a crash or a full disk leaves the older file whole.
pub fn write(record: &RunRecord, path: &Path) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
    serde_json::to_writer_pretty(&mut file, record)?;
    file.write_all(b"\n")?;
    set_usual_permissions(file.as_file())?;
    file.as_file().sync_all()?;
    if is_under_results(path) {
        file.persist_noclobber(path)?;
    } else {
        file.persist(path)?;
    }
    Ok(())
}

/// Reads a record that [`write()`] wrote.
pub fn read(path: &Path) -> io::Result<RunRecord> {
    let record: RunRecord = serde_json::from_slice(&fs::read(path)?)?;
    if record.schema_version != SCHEMA_VERSION {
        let version = record.schema_version;
        return Err(io::Error::other(format!("schema {version}, and this is {SCHEMA_VERSION}")));
    }
    Ok(record)
}

/// A temporary file is its owner's alone; a record is for everybody.
fn set_usual_permissions(file: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn is_under_results(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "results")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_under_results_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("results");
        fs::create_dir(&results).unwrap();
        let path = results.join("run.json");
        check_writable(&path).unwrap();
        fs::write(&path, "old").unwrap();
        assert_eq!(check_writable(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        check_writable(&folder.path().join("run.json")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a trace was left");
    }

    #[test]
    fn a_folder_that_is_not_there_is_noticed_before_the_run() {
        let error = check_writable(Path::new("/no/such/folder/run.json")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
