//! Where a scenario comes from: a file, or one that came with the program, of those in which planted bugs show too.

use std::path::Path;

use anyhow::{Context, bail};
use reveille_chaos::scenario::{self, Scenario, near, shipped};

use crate::backend::sim::canaries::CANARIES;

/// The scenario of this file, with its text; or, if there is none, the shipped one of this name. `scenarios/swarm.toml`
/// stands for the shipped `swarm` where there is no such file.
pub(super) fn scenario(name: &str) -> anyhow::Result<(Scenario, String)> {
    let path = Path::new(name);
    if path.is_file() {
        return file(path);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    let planted = || Some(CANARIES.iter().find(|planted| planted.scenario.0 == stem)?.scenario.1);
    if let Some(text) = shipped::find(stem).or_else(planted) {
        return Ok((scenario::load(&format!("{stem}.toml"), text)?, text.to_owned()));
    }
    let names: Vec<&str> = shipped::SHIPPED.iter().map(|(name, _)| *name).collect();
    match near::nearest(stem, &names) {
        Some(meant) => bail!("there is no file {name:?} and no scenario {stem:?}; did you mean {meant:?}?"),
        None => {
            bail!("there is no file {name:?} and no scenario {stem:?}; `chaos list scenarios` shows them")
        }
    }
}

/// The scenario of this file.
pub(super) fn file(path: &Path) -> anyhow::Result<(Scenario, String)> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
    Ok((scenario::load(&name, &text)?, text))
}
