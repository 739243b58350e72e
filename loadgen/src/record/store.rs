//! Reads and writes records: whole or not at all, and never over an older one under `results/`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::check::contradiction;
use super::{Hdr, RunRecord, SCHEMA_VERSION};

/// Whether something could be written to `path`, asked before work is spent on it. Leaves no trace.
pub fn check_writable(path: &Path) -> io::Result<()> {
    if is_under_results(path) && path.exists() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "files under results/ are never overwritten; choose another name",
        ));
    }
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if is_device(path) {
        return fs::OpenOptions::new().write(true).open(path).map(drop);
    }
    new_file_beside(path).map(drop)
}

/// Writes `record` to `path` as indented JSON; a crash or a full disk leaves the older file whole.
pub fn write(record: &RunRecord, path: &Path) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(record)?;
    json.push(b'\n');
    write_bytes(&json, path)
}

/// Writes `bytes` to `path`, whole or not at all: a crash or a full disk leaves the older file as it was,
/// and one under `results/` is never replaced. Into a device or a pipe they go as they are.
///
/// Err: why not, without the path.
pub fn write_bytes(bytes: &[u8], path: &Path) -> io::Result<()> {
    if is_device(path) {
        return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    if !is_under_results(path) {
        return replace_bytes(bytes, path);
    }
    let whole = whole_file_beside(bytes, path)?;
    whole.persist_noclobber(path).map_err(|error| without_path(error.error))?;
    Ok(())
}

/// Writes `bytes` to `path`, whole or not at all, over what is there: for what is drawn anew from records.
///
/// Err: why not, without the path.
pub fn replace_bytes(bytes: &[u8], path: &Path) -> io::Result<()> {
    let whole = whole_file_beside(bytes, path)?;
    whole.persist(path).map_err(|error| without_path(error.error))?;
    Ok(())
}

fn whole_file_beside(bytes: &[u8], path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut file = new_file_beside(path)?;
    file.write_all(bytes).map_err(without_path)?;
    set_usual_permissions(file.as_file())?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn new_file_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::NamedTempFile::new_in(folder_of(path)).map_err(without_path)
}

/// The kind only: the rest of the error names the temporary file.
fn without_path(error: io::Error) -> io::Error {
    error.kind().into()
}

/// Something that is there and is neither file nor folder. A file that took its place would put the device
/// out of the world, `/dev/full` for instance.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir())
}

/// Reads a record that [`write()`] wrote. Err: it is none, a histogram of it is damaged, or its figures contradict each
/// other; without the path.
pub fn read(path: &Path) -> io::Result<RunRecord> {
    let record: RunRecord = serde_json::from_slice(&fs::read(path)?)?;
    if record.schema_version != SCHEMA_VERSION {
        let version = record.schema_version;
        return Err(io::Error::other(format!("schema {version}, and this is {SCHEMA_VERSION}")));
    }
    for second in &record.measured.seconds {
        let damaged = |error| io::Error::other(format!("second {}: {error}", second.second));
        Hdr::try_from(&second.latency).map_err(damaged)?;
    }
    if let Some(contradiction) = contradiction(&record) {
        return Err(io::Error::other(format!("it contradicts itself: {contradiction}")));
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

/// Whether a folder of the path is named so, as it is typed or as it really lies.
fn is_under_results(path: &Path) -> bool {
    let folder = folder_of(path);
    let real = fs::canonicalize(folder).unwrap_or_default();
    [folder, &real].iter().any(|path| path.components().any(|part| part.as_os_str() == "results"))
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
    fn a_link_to_results_protects_as_results_does() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("results");
        fs::create_dir(&results).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&results, &link).unwrap();
        let path = link.join("run.csv");
        write_bytes(b"old", &path).unwrap();
        assert_eq!(write_bytes(b"new", &path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(check_writable(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&results).unwrap().count(), 1, "a trace was left");
    }

    #[test]
    fn elsewhere_a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.csv");
        write_bytes(b"old and long", &path).unwrap();
        write_bytes(b"new", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a trace was left");
    }

    #[test]
    fn what_is_drawn_anew_replaces_even_under_results_and_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join("results");
        fs::create_dir(&results).unwrap();
        let path = results.join("REPORT.md");
        replace_bytes(b"old and long", &path).unwrap();
        replace_bytes(b"new", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&results).unwrap().count(), 1, "a trace was left");
    }

    #[test]
    fn a_full_device_is_an_error_and_stays_a_device() {
        let full = Path::new("/dev/full");
        check_writable(full).unwrap();
        assert_eq!(write_bytes(b"x", full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(is_device(full));
    }

    #[test]
    fn a_folder_that_is_not_there_is_noticed_before_the_run() {
        let error = check_writable(Path::new("/no/such/folder/run.json")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
