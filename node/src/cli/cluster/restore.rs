//! `reveille cluster restore`: a backup into a new cluster. All of it is read and found whole before anything is sent; then
//! it goes over in parts that may be repeated, so that the command goes on wherever it was broken off.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reveille_protocol::directory::FORMAT;
use reveille_protocol::hash::sha256;
use reveille_protocol::id::{RestoreId, Seq};
use reveille_protocol::service_list::Imported;
use reveille_protocol::wire::codec;
use serde_json::json;

use super::super::output;
use super::Operator;
use super::backup::{Failed, judge, persist};
use super::folder::{Folder, PIECE};

/// Terminals in one request at most; half of what a node takes.
const BATCH: usize = 256;
/// Requests on their way at once: enough to keep each group's log busy, too few to fill its queue.
const IN_FLIGHT: usize = 4;
/// A request must be answered within this: a node gives up after five seconds by itself.
const ANSWER: Duration = Duration::from_secs(20);

/// What is to be restored.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// Folder of the backup.
    #[arg(long, required_unless_present = "give_up")]
    from: Option<PathBuf>,
    /// Only look whether the backup is whole; ask no cluster for anything.
    #[arg(long)]
    verify: bool,
    /// End a restore that was begun and whose backup is no more at hand, so that the cluster serves again. Refused once
    /// terminals have come by it.
    #[arg(long, conflicts_with_all = ["from", "verify"])]
    give_up: bool,
    /// How long to try for one request while nodes do not answer or a group has no leader, as 2m.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
}

impl Restore {
    pub(super) async fn run(&self, operator: &Operator) -> anyhow::Result<()> {
        let Some(from) = &self.from else { return self.give_up(operator).await };
        let (folder, content) = Folder::verify(from).context("nothing was sent")?;
        let found = format!("{} terminals, {} pushes that wait", content.terminals, content.pushes);
        if self.verify {
            return operator.said(
                json!({ "whole": true, "cluster": folder.manifest.cluster, "content": content }),
                format!("the backup of cluster {} is whole: {found}", folder.manifest.cluster),
            );
        }
        if !operator.json {
            output::line(format!("the backup of cluster {} is whole: {found}", folder.manifest.cluster));
        }
        let cluster = persist(self.patience, async || {
            let overview = operator.overview().await?;
            // A new cluster takes its format when all of its nodes are there.
            if overview.format < FORMAT {
                let format = overview.format;
                return Err(Failed::ForNow(anyhow::anyhow!(
                    "the cluster still runs format {format}; are all nodes running?"
                )));
            }
            Ok(overview.cluster)
        });
        let cluster = cluster.await?;
        let mut name = [0; 16];
        name.copy_from_slice(&sha256(format!("{} {cluster}", folder.manifest.sha256).as_bytes())[..16]);
        let restore = RestoreId(name);
        let path = format!("/cluster/restore/{restore}");
        let begun = self.post(operator, &path, folder.directory.encode()).await?;
        let before = begun["finished"] == true;
        if !before {
            for shard in 1..=folder.manifest.shards {
                self.shard(operator, &folder, shard, &format!("{path}/terminals")).await?;
            }
            self.post(operator, &format!("{path}/finish"), Bytes::new()).await?;
        }
        let line = match before {
            true => format!("cluster {cluster} has this backup already: nothing was changed"),
            false => format!("restored into cluster {cluster}: {found}"),
        };
        operator.said(
            json!({ "restored": restore.to_string(), "cluster": cluster, "content": content, "before": before }),
            line,
        )
    }

    /// Ends whatever restores are open.
    async fn give_up(&self, operator: &Operator) -> anyhow::Result<()> {
        let overview = persist(self.patience, async || Ok(operator.overview().await?)).await?;
        // Its answer says nothing of shards that nobody answers for.
        let silent = overview.groups.iter().filter(|group| group.leader.is_none()).count();
        ensure!(silent == 0, "{silent} groups have no leader; see `reveille cluster status`");
        let open: BTreeSet<_> = overview.groups.into_iter().filter_map(|group| group.restoring).collect();
        let (mut given_up, mut finished) = (Vec::new(), Vec::new());
        for restore in open {
            let path = format!("/cluster/restore/{restore}/give-up");
            let answer = self.post(operator, &path, Bytes::new()).await?;
            (if answer["finished"] == true { &mut finished } else { &mut given_up }).push(restore);
        }
        let line = match (given_up.len(), finished.len()) {
            (0, 0) => "no restore is open",
            (_, 0) => {
                "the restore is given up; the cluster serves. What its directory has of the backup stays"
            }
            _ => "the backup had been brought as a whole: the restore is finished, the cluster serves",
        };
        operator.said(json!({ "given_up": given_up, "finished": finished }), line.to_owned())
    }

    /// Sends one shard of the backup. Where its terminals go is the new cluster's business.
    async fn shard(
        &self,
        operator: &Operator,
        folder: &Folder,
        shard: u16,
        path: &str,
    ) -> anyhow::Result<()> {
        let mut terminals = folder.terminals(shard)?;
        let mut flying = FuturesUnordered::new();
        let (mut batch, mut size, mut count): (Vec<Imported>, usize, u64) = (Vec::new(), 0, 0);
        loop {
            let next = terminals.next().context("the backup was changed meanwhile")?;
            // A terminal goes on only when all that came before it is there.
            let goes_on = next.as_ref().is_some_and(|(one, _)| one.from > Seq(1));
            let full = batch.len() >= BATCH || size >= PIECE;
            if (full || goes_on || next.is_none()) && !batch.is_empty() {
                let body: Bytes = codec::encode(&std::mem::take(&mut batch)).into();
                size = 0;
                flying.push(self.post(operator, path, body));
            }
            let most = if goes_on || next.is_none() { 0 } else { IN_FLIGHT - 1 };
            while flying.len() > most {
                if let Some(answer) = flying.next().await {
                    answer?;
                }
            }
            let Some((one, bytes)) = next else { break };
            count += u64::from(!goes_on);
            size += bytes;
            batch.push(one);
        }
        if !operator.json {
            output::line(format!("the backup's shard {shard}: {count} terminals"));
        }
        Ok(())
    }

    async fn post(&self, operator: &Operator, path: &str, body: Bytes) -> anyhow::Result<serde_json::Value> {
        let headers = [("content-type", "application/octet-stream".to_owned())];
        let headers = &headers;
        persist(self.patience, || {
            let body = body.clone();
            async move {
                let mut client = operator.target.connect().await?;
                let answer = client.send("POST", path, &operator.token, headers, body);
                let answer =
                    tokio::time::timeout(ANSWER, answer).await.context("the node does not answer")??;
                judge(&answer)
            }
        })
        .await
    }
}

const _: () = assert!(IN_FLIGHT > 0);
