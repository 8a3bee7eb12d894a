//! `reveille cluster backup`: every group's tables into a folder, each as it was at one moment, and a manifest last. A
//! folder without a manifest is no backup, and the command begins it anew.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Limited};
use reveille_cluster::overview::Overview;
use reveille_protocol::wire::backup::Reader;
use ring::digest::{self, SHA256};
use serde_json::json;

use super::super::client::Answer;
use super::super::output;
use super::Operator;
use super::folder::{GroupFile, MANIFEST, Manifest, hex, name_of, prepare};

/// A node that streams must give something within this: a chunk from another node, which is tried three times.
const CHUNK: Duration = Duration::from_secs(40);
/// Bytes of an answer that says why not.
const MAX_REASON: usize = 64 * 1024;
/// Times that something long may be broken off under way: nodes do not die more often while one group is read.
const MIDWAY: u32 = 10;
/// Between two tries.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// What is to be written, and where.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Folder to write to. It is made if it is not there.
    #[arg(long)]
    to: PathBuf,
    /// How long to try for one group while nodes do not answer or a group has no leader, as 2m.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// Whether it is worth to try again.
pub(super) enum Failed {
    /// Later, or by another node.
    ForNow(anyhow::Error),
    /// The same, and it was under way: patience begins anew.
    Midway(anyhow::Error),
    /// It will not be otherwise.
    ForGood(anyhow::Error),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Failed {
        Failed::ForNow(error)
    }
}

/// Does something until it is done, or failed for good, or the patience is over.
pub(super) async fn persist<T, F: Future<Output = Result<T, Failed>>>(
    patience: Duration,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let mut until = tokio::time::Instant::now() + patience;
    let mut midway = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(Failed::ForGood(error)) => return Err(error),
            Err(Failed::ForNow(error)) if tokio::time::Instant::now() >= until => {
                return Err(error.context("not done in time; repeat the command, perhaps at another node"));
            }
            Err(Failed::ForNow(error)) => tracing::debug!("{error:#}; trying again"),
            Err(Failed::Midway(error)) if midway >= MIDWAY => return Err(error),
            Err(Failed::Midway(error)) => {
                tracing::debug!("{error:#}; beginning again");
                midway += 1;
                until = tokio::time::Instant::now() + patience;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What an answer that is no success comes to.
pub(super) fn judge(answer: &Answer) -> Result<serde_json::Value, Failed> {
    if answer.status.as_u16() == 204 {
        return Ok(serde_json::Value::Null);
    }
    match answer.json() {
        Ok(value) => Ok(value),
        Err(error) if answer.status.is_client_error() => Err(Failed::ForGood(error)),
        Err(error) => Err(Failed::ForNow(error)),
    }
}

/// Makes a file's name, or its absence, outlive a loss of power.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file that only its owner reads: pushes are in it, and what secrets derive from.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Backup {
    pub(super) async fn run(&self, operator: &Operator) -> anyhow::Result<()> {
        prepare(&self.to).with_context(|| format!("{}", self.to.display()))?;
        let overview = persist(self.patience, async || Ok(operator.overview().await?)).await?;
        let mut files = Vec::new();
        let mut format = 0;
        // Meta last: so it knows every tenant that a terminal in the others belongs to.
        for group in (1..=overview.shards).chain([0]) {
            let (file, has) = persist(self.patience, || self.group(operator, &overview, group))
                .await
                .with_context(|| format!("group {group}"))?;
            if !operator.json {
                output::line(format!("group {group}: {} rows, {} bytes", file.rows, file.bytes));
            }
            format = format.max(has);
            files.push(file);
        }
        files.sort_by_key(|file| file.group);
        let made = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let (rows, bytes) =
            files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
        let manifest = Manifest::new(overview.cluster, format, overview.shards, made, files)?;
        let text = manifest.text()?;
        self.put(MANIFEST, |file| file.write_all(text.as_bytes()))?;
        operator.said(
            json!({
                "backup": self.to, "cluster": manifest.cluster, "groups": manifest.groups.len(), "rows": rows,
                "bytes": bytes,
            }),
            format!("backup of cluster {} is whole: {}", manifest.cluster, self.to.display()),
        )
    }

    /// Writes a small file in one step.
    fn put(&self, name: &str, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> anyhow::Result<()> {
        let part = self.to.join(format!("{name}.part"));
        let put = || {
            let mut file = create(&part)?;
            write(&mut file)?;
            file.sync_all()?;
            fs::rename(&part, self.to.join(name))?;
            sync_folder(&self.to)
        };
        put().with_context(|| format!("{}", part.display()))
    }

    /// Writes one group's file; the format of what is in it beside.
    async fn group(
        &self,
        operator: &Operator,
        overview: &Overview,
        group: u16,
    ) -> Result<(GroupFile, u32), Failed> {
        let mut client = operator.target.connect().await?;
        let path = format!("/cluster/backup/{group}");
        let asked = client.begin("GET", &path, &operator.token, &[], Bytes::new());
        let response = tokio::time::timeout(CHUNK, asked).await.context("the node does not answer")??;
        let status = response.status();
        if !status.is_success() {
            let body = Limited::new(response.into_body(), MAX_REASON).collect().await;
            let body =
                body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes();
            judge(&Answer { status, retry_after: None, body })?;
            return Err(Failed::ForNow(anyhow::anyhow!("{status}")));
        }
        let mut body = response.into_body();
        let name = name_of(group);
        let part = self.to.join(format!("{name}.part"));
        // A full disk is not mended by trying again.
        let here = |error| Failed::ForGood(anyhow::Error::new(error).context(format!("{}", part.display())));
        let mut file = create(&part).map_err(here)?;
        let (mut reader, mut hash, mut bytes) = (Reader::default(), digest::Context::new(&SHA256), 0);
        loop {
            let frame = tokio::time::timeout(CHUNK, body.frame()).await;
            let frame = frame.context("the node does not go on").map_err(Failed::Midway)?;
            let Some(frame) = frame else { break };
            let frame = frame.context("the node broke off").map_err(Failed::Midway)?;
            let Some(data) = frame.data_ref() else { continue };
            bytes += data.len() as u64;
            hash.update(data);
            reader.feed(data);
            while reader.next_part().context("the node sent no backup")?.is_some() {}
            file.write_all(data).map_err(here)?;
        }
        let (head, end) = reader.finish().context("the node broke off").map_err(Failed::Midway)?;
        ensure_same(head.cluster, head.group.0, head.shards, overview, group)?;
        file.sync_all().map_err(here)?;
        fs::rename(&part, self.to.join(&name)).map_err(here)?;
        sync_folder(&self.to).map_err(here)?;
        let file = GroupFile {
            group,
            file: name,
            bytes,
            rows: end.pairs,
            index: head.index,
            time: end.time.0,
            sha256: hex(hash.finish().as_ref()),
        };
        Ok((file, head.format))
    }
}

fn ensure_same(
    cluster: u64,
    group: u16,
    shards: u16,
    overview: &Overview,
    wanted: u16,
) -> Result<(), Failed> {
    let check = || {
        ensure!(
            (format!("{cluster:016x}"), group, shards) == (overview.cluster.clone(), wanted, overview.shards),
            "the node gave group {group} of cluster {cluster:016x}, which was not asked for"
        );
        Ok(())
    };
    check().map_err(Failed::ForGood)
}
