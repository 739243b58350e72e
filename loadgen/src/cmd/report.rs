//! `loadgen report`: draws from records and measures nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::{record, report};

/// Prints records as a Markdown table.
#[derive(Clone, Debug, Args)]
pub(super) struct ReportArgs {
    /// Records, or folders of records (*.json, in the order of their names)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let mut records = Vec::new();
    for path in &args.paths {
        for file in files(path)? {
            let record = record::read(&file)
                .with_context(|| format!("{} is no record that can be read", file.display()))?;
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            records.push((name, record));
        }
    }
    print!("{}", report::markdown(&records));
    Ok(ExitCode::SUCCESS)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let entries =
        path.read_dir().with_context(|| format!("cannot read the folder {}", path.display()))?;
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "json") {
            files.push(file);
        }
    }
    anyhow::ensure!(
        !files.is_empty(),
        "no *.json in {}; pass records or a folder of them",
        path.display()
    );
    files.sort();
    Ok(files)
}
