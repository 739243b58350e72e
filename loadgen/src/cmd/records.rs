//! Where the records of many runs go: a new folder that is kept, or one that is dropped.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::scenario::UsageError;

#[derive(Debug)]
pub(super) enum Records {
    Kept(PathBuf),
    Dropped(tempfile::TempDir),
}

impl Records {
    /// Err: `out`, the value of `--out`, is there already or cannot be made.
    pub(super) fn new(out: Option<&Path>) -> anyhow::Result<Self> {
        let Some(out) = out else {
            let folder = tempfile::tempdir().context("cannot make a folder for the records")?;
            return Ok(Records::Dropped(folder));
        };
        std::fs::create_dir(out).map_err(|error| UsageError {
            flag: "--out",
            value: out.display().to_string(),
            cure: format!("need a new folder in one that is there ({error})"),
        })?;
        Ok(Records::Kept(out.to_owned()))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        match self {
            Records::Kept(folder) => folder.join(name),
            Records::Dropped(folder) => folder.path().join(name),
        }
    }
}
