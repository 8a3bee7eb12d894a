//! Hooks: the commands of a cluster's user by which nodes are struck and what was done is undone. Each is a list of
//! arguments that is run as it is, without a shell, one at a time, and within a bounded time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reveille_chaos::scenario::{Share, Time, near};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::cluster::Cluster;
use super::journal::now;

/// The longest that a hook may be given.
const LONGEST: Duration = Duration::from_secs(300);
/// A hook that outlives this program is killed so long after its time.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// The most of a log that is read.
const LOG: u64 = 64 << 20;
/// What a failed hook said last is told up to here.
const SAID: usize = 300;
/// The most of a hook's output that is looked at for that.
const TAIL: usize = 4096;

/// What hooks are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct On {
    /// A node; with `to`, what it sends.
    pub(super) node: u64,
    /// To whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<u64>,
}

/// The commands. One that is missing cannot be done.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lists {
    /// How long each may take.
    pub(super) within: Time,
    kill: Option<Vec<String>>,
    stop: Option<Vec<String>>,
    start: Option<Vec<String>>,
    pause: Option<Vec<String>>,
    resume: Option<Vec<String>>,
    cut: Option<Vec<String>>,
    loss: Option<Vec<String>>,
    heal: Option<Vec<String>>,
    cpu: Option<Vec<String>>,
    release: Option<Vec<String>>,
    logs: Option<Vec<String>>,
}

impl Default for Lists {
    fn default() -> Lists {
        let within = Time(Duration::from_secs(10));
        let (kill, stop, start, pause, resume, cut) = (None, None, None, None, None, None);
        let (loss, heal, cpu, release, logs) = (None, None, None, None, None);
        Lists { within, kill, stop, start, pause, resume, cut, loss, heal, cpu, release, logs }
    }
}

impl Lists {
    /// Each by its name.
    fn all(&self) -> [(&'static str, &Option<Vec<String>>); 11] {
        [
            ("kill", &self.kill),
            ("stop", &self.stop),
            ("start", &self.start),
            ("pause", &self.pause),
            ("resume", &self.resume),
            ("cut", &self.cut),
            ("loss", &self.loss),
            ("heal", &self.heal),
            ("cpu", &self.cpu),
            ("release", &self.release),
            ("logs", &self.logs),
        ]
    }

    pub(super) fn get(&self, name: &str) -> Option<&[String]> {
        let found = self.all().into_iter().find(|(known, _)| *known == name);
        found.and_then(|(_, list)| list.as_deref())
    }

    /// Whether what is written can be run at all.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.within.0.is_zero() && self.within.0 <= LONGEST,
            "[hooks] within = {:?}: more than nothing, at most {}",
            self.within.to_string(),
            Time(LONGEST)
        );
        for (name, list) in self.all() {
            let Some(list) = list else { continue };
            ensure!(list.first().is_some_and(|program| !program.is_empty()), "[hooks] {name}: no program");
            for argument in list {
                filled(argument, |word| match names(name).contains(&word) {
                    true => Ok(String::new()),
                    false => bail!("[hooks] {name}: {}", near::unknown("placeholder", word, names(name))),
                })?;
            }
        }
        Ok(())
    }
}

/// Placeholders of a hook.
fn names(hook: &str) -> &'static [&'static str] {
    match hook {
        "cut" | "heal" => &["cluster", "from", "from_host", "to", "to_host"],
        "loss" => &["cluster", "from", "from_host", "to", "to_host", "share"],
        "cpu" => &["cluster", "node", "host", "share"],
        "logs" => &["cluster", "node", "host", "since"],
        _ => &["cluster", "node", "host"],
    }
}

/// An argument with its `{placeholders}` filled in; other braces stand for themselves.
fn filled(argument: &str, of: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let word = after.split_once('}').filter(|(word, _)| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        });
        match word {
            Some((word, after)) => {
                out.push_str(&of(word)?);
                rest = after;
            }
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// A command as a shell would take it, for who runs it by hand.
pub(super) fn quoted(command: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    let one = |word: &String| match !word.is_empty() && word.bytes().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    command.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// See the module.
#[derive(Clone)]
pub(super) struct Hooks {
    cluster: Arc<Cluster>,
    /// What hooks print.
    said: PathBuf,
    /// Milliseconds of the Unix epoch since when logs are of interest.
    since: u64,
    /// One at a time: what undoes never overtakes what it undoes.
    turn: Arc<Mutex<()>>,
}

impl Hooks {
    /// Of a run that begins now. What they print goes to the end of this file.
    pub(super) fn new(cluster: Arc<Cluster>, said: PathBuf) -> Hooks {
        Hooks { cluster, said, since: now(), turn: Arc::default() }
    }

    /// Where there is no run: what they print goes beside the journal until it is forgotten.
    pub(super) fn before(cluster: Arc<Cluster>) -> Hooks {
        let said = cluster.journal.with_added_extension("log");
        Hooks::new(cluster, said)
    }

    /// What they printed is of no more use: where one failed, it was told.
    pub(super) fn forget(&self) {
        // If nothing was run, there is nothing.
        let _ = std::fs::remove_file(&self.said);
    }

    /// The command of a hook, with everything filled in; `share` is how much of it the fault wants.
    ///
    /// # Errors
    /// If there is none, or no such node.
    pub(super) fn command(&self, hook: &str, on: On, share: Option<Share>) -> anyhow::Result<Vec<String>> {
        let list = self.cluster.hooks.get(hook).with_context(|| format!("there is no hook {hook:?}"))?;
        let mut words: BTreeMap<&str, String> = self.cluster.words(on)?;
        words.insert("since", (self.since / 1000).to_string());
        words.extend(share.map(|share| ("share", share.0.to_string())));
        let word =
            |word: &str| words.get(word).cloned().with_context(|| format!("{{{word}}} is nothing here"));
        list.iter().map(|argument| filled(argument, word)).collect()
    }

    /// Runs one to its end. If whoever waits for it goes away, it goes on, and the next one waits for it.
    ///
    /// # Errors
    /// If it cannot be run, fails, or takes too long; then it is killed with what it started.
    pub(super) async fn run(&self, command: Vec<String>) -> anyhow::Result<()> {
        let turn = self.turn.clone().lock_owned().await;
        let hooks = self.clone();
        let task = tokio::spawn(async move {
            let _turn = turn;
            hooks.run_now(command).await
        });
        task.await.context("a hook's task")?
    }

    async fn run_now(&self, command: Vec<String>) -> anyhow::Result<()> {
        let named = || format!("hook {}", quoted(&command));
        // Where its words cannot be kept it is run all the same: it may be what undoes something.
        let out = File::options().create(true).append(true).open(&self.said);
        let out = out.or_else(|_| File::options().write(true).open("/dev/null")).context("/dev/null")?;
        let begin = out.metadata()?.len();
        let child = self.spawn(&command, Stdio::from(out.try_clone()?), out).with_context(named)?;
        let failed = match self.ended(child).await {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        let said = std::fs::read(&self.said).unwrap_or_default();
        let said = &said[said.len().min(begin as usize).max(said.len().saturating_sub(TAIL))..];
        let said = String::from_utf8_lossy(said).into_owned();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
        let last: String = last.chars().take(SAID).collect();
        Err(failed.context(format!("{}; it said last: {last}", named())))
    }

    fn spawn(&self, command: &[String], out: Stdio, said: File) -> anyhow::Result<Child> {
        let [program, arguments @ ..] = command else { bail!("no program") };
        let program = found(program, &self.cluster.folder)?;
        // Its bound holds also if this program dies meanwhile: it must not strike after it was undone.
        let bound = (self.cluster.hooks.within.0 + GRACE).as_secs_f64().to_string();
        let child = Command::new(found("timeout", &self.cluster.folder)?)
            .args(["--signal=KILL", &bound])
            .arg(program)
            .args(arguments)
            .current_dir(&self.cluster.folder)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(said)
            // Ctrl-C at this program's terminal is not for it: it is waited for.
            .process_group(0)
            .spawn()?;
        Ok(child)
    }

    async fn ended(&self, mut child: Child) -> anyhow::Result<()> {
        let within = self.cluster.hooks.within;
        let Ok(status) = timeout(within.0, child.wait()).await else {
            kill(&mut child).await;
            bail!("it took longer than {within}, and was killed");
        };
        let status = status?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    /// Has a node's log, at most [`LOG`] bytes of it, written to this file; whether that was all of it.
    ///
    /// # Errors
    /// As of [`Hooks::run`].
    pub(super) async fn logs(&self, node: u64, into: &Path) -> anyhow::Result<bool> {
        let command = self.command("logs", On { node, to: None }, None)?;
        let said = File::options().create(true).append(true).open(&self.said)?;
        let mut child = self.spawn(&command, Stdio::piped(), said)?;
        let mut out = child.stdout.take().context("its output")?;
        let mut file = tokio::fs::File::create(into).await.with_context(|| into.display().to_string())?;
        let copy = async {
            let copied = tokio::io::copy(&mut (&mut out).take(LOG), &mut file).await?;
            tokio::io::AsyncWriteExt::flush(&mut file).await.map(|()| copied)
        };
        let within = self.cluster.hooks.within;
        let Ok(copied) = timeout(within.0, copy).await else {
            kill(&mut child).await;
            bail!("hook logs: it took longer than {within}, and was killed");
        };
        if copied? == LOG {
            kill(&mut child).await;
            return Ok(false);
        }
        self.ended(child).await.context("hook logs")?;
        Ok(true)
    }

    /// What of these hooks cannot be run: no such program.
    pub(super) fn missing(&self, hooks: &[&'static str]) -> Vec<String> {
        let missing = |hook: &&'static str| {
            let program = self.cluster.hooks.get(hook)?.first()?;
            found(program, &self.cluster.folder).err().map(|error| format!("hook {hook}: {error:#}"))
        };
        hooks.iter().filter_map(missing).collect()
    }
}

/// Kills a hook with everything in its group. By the program for it: there is no safe function for it in the standard
/// library.
async fn kill(child: &mut Child) {
    if let Some(pid) = child.id() {
        // One that has just ended needs no killing.
        let _ = Command::new("kill").args(["-s", "KILL", "--", &format!("-{pid}")]).status().await;
    }
    let _ = child.kill().await;
}

/// The program's file: as it is written, from the cluster's folder, or from `PATH`.
fn found(program: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    let places: Vec<PathBuf> = match program.contains('/') {
        true => vec![folder.join(program)],
        false => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|place| place.join(program)).collect()
        }
    };
    places.into_iter().find(runs).with_context(|| format!("there is no program {program:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_can_be_typed_again() {
        let command = ["ssh", "n1", "kill -9 $(cat 'pid')", ""].map(str::to_owned);
        assert_eq!(quoted(&command), r"ssh n1 'kill -9 $(cat '\''pid'\'')' ''");
    }

    #[test]
    fn only_placeholders_are_filled() {
        let word = |word: &str| if word == "node" { Ok("2".to_owned()) } else { bail!("no {word}") };
        assert_eq!(filled("n{node}.pid", word).unwrap(), "n2.pid");
        assert_eq!(filled("{ type filter; } {} {", word).unwrap(), "{ type filter; } {} {");
        assert!(filled("{nod}", word).is_err());
    }
}
