//! A backup as a folder: one file for each group, and a manifest that is written last. Reading it trusts nothing: every
//! byte is held against a checksum, and what the files say against each other. Sends nothing.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reveille_protocol::directory::{Directory, FORMAT, group_of_slot};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::{GroupId, Seq, TerminalId};
use reveille_protocol::service_list::row::{self, Message, Row};
use reveille_protocol::service_list::{Imported, key};
use reveille_protocol::wire::backup::{End, Head, Part, Reader};
use ring::digest::{self, SHA256};
use serde::{Deserialize, Serialize};

/// The manifest's name.
pub(super) const MANIFEST: &str = "manifest.json";
/// The manifest's version.
const VERSION: u32 = 1;
/// Bytes of a manifest: some hundred for each of 65,536 groups at most.
const MAX_MANIFEST: u64 = 32 << 20;
/// Bytes that are read of a file at once.
const READ: usize = 256 * 1024;
/// Bytes of pushes after which a terminal goes on in another part. Well below what a node takes, which counts what the
/// values need in memory: several times their bytes if they are small.
pub(super) const PIECE: usize = 128 * 1024;

/// What a backup consists of.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The manifest's version.
    pub(super) reveille_backup: u32,
    /// Id of the cluster that it was made of.
    pub(super) cluster: String,
    /// Format version of what is in it.
    pub(super) format: u32,
    /// Shard groups of that cluster.
    pub(super) shards: u16,
    /// Unix time in milliseconds at which it was whole, by the clock of the machine that made it.
    pub(super) made: u64,
    /// The groups, meta first.
    pub(super) groups: Vec<GroupFile>,
    /// SHA-256 of this manifest with nothing here.
    pub(super) sha256: String,
}

/// One group of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupFile {
    /// Which.
    pub(super) group: u16,
    /// Its file in the folder.
    pub(super) file: String,
    /// The file's length.
    pub(super) bytes: u64,
    /// Rows in it.
    pub(super) rows: u64,
    /// The group's log has been taken in up to here.
    pub(super) index: u64,
    /// The group's time then.
    pub(super) time: u64,
    /// SHA-256 of the file.
    pub(super) sha256: String,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file of a group.
pub(super) fn name_of(group: u16) -> String {
    format!("group-{group:03}.backup")
}

impl Manifest {
    /// A new one.
    pub(super) fn new(
        cluster: String,
        format: u32,
        shards: u16,
        made: u64,
        groups: Vec<GroupFile>,
    ) -> anyhow::Result<Manifest> {
        let sha256 = String::new();
        let mut manifest =
            Manifest { reveille_backup: VERSION, cluster, format, shards, made, groups, sha256 };
        manifest.sha256 = manifest.checksum()?;
        Ok(manifest)
    }

    fn checksum(&self) -> anyhow::Result<String> {
        let bare = Manifest {
            sha256: String::new(),
            cluster: self.cluster.clone(),
            groups: self.groups.clone(),
            ..*self
        };
        Ok(hex(&sha256(bare.text()?.as_bytes())))
    }

    /// The one text that it has.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", serde_json::to_string(self)?))
    }

    fn read(folder: &Path) -> anyhow::Result<Manifest> {
        let path = folder.join(MANIFEST);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let begun = folder.join(name_of(1)).exists();
                let why =
                    if begun { "a backup into it was not finished" } else { "it holds no manifest.json" };
                bail!("{} is no backup: {why}", folder.display());
            }
            file => file.with_context(|| format!("{}", path.display()))?,
        };
        let mut text = String::new();
        let read = Read::by_ref(&mut file).take(MAX_MANIFEST).read_to_string(&mut text);
        read.with_context(|| format!("{} is damaged", path.display()))?;
        Manifest::parse(&text).with_context(|| format!("{}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Manifest> {
        let value: serde_json::Value = serde_json::from_str(text).context("damaged")?;
        let version = value.get("reveille_backup").and_then(serde_json::Value::as_u64).context("damaged")?;
        let manifest: Result<Manifest, _> = serde_json::from_value(value);
        // A later version may look otherwise; but a flipped bit is no later version.
        ensure!(
            version <= u64::from(VERSION) || manifest.is_ok(),
            "a later build made it: version {version}, and this build reads up to {VERSION}"
        );
        let manifest = manifest.context("damaged")?;
        ensure!(
            manifest.text()? == text && manifest.checksum()? == manifest.sha256,
            "damaged: its checksum does not match"
        );
        ensure!(
            manifest.reveille_backup == VERSION && manifest.format <= FORMAT,
            "a later build made it: version {version}, format {}, and this build reads up to {VERSION} and {FORMAT}",
            manifest.format
        );
        let names = |file: &GroupFile| file.file == name_of(file.group);
        let order =
            manifest.groups.iter().map(|file| u32::from(file.group)).eq(0..=u32::from(manifest.shards));
        ensure!(order && manifest.groups.iter().all(names), "it does not name every group's file");
        Ok(manifest)
    }
}

/// Pairs of one file, as they come.
pub(super) struct Cursor {
    file: File,
    reader: Reader,
    buffer: Vec<u8>,
    hash: digest::Context,
    bytes: u64,
    pairs: std::vec::IntoIter<(Bytes, Bytes)>,
}

impl Cursor {
    fn open(path: &Path) -> anyhow::Result<Cursor> {
        Ok(Cursor {
            file: File::open(path)?,
            reader: Reader::default(),
            buffer: vec![0; READ],
            hash: digest::Context::new(&SHA256),
            bytes: 0,
            pairs: Vec::new().into_iter(),
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<(Bytes, Bytes)>> {
        loop {
            if let Some(pair) = self.pairs.next() {
                return Ok(Some(pair));
            }
            match self.reader.next_part()? {
                Some(Part::Pairs(pairs)) => self.pairs = pairs.into_iter(),
                Some(Part::Head(_) | Part::End(_)) => {}
                None => {
                    let read = self.file.read(&mut self.buffer)?;
                    if read == 0 {
                        self.reader.finish()?;
                        return Ok(None);
                    }
                    self.bytes += read as u64;
                    self.hash.update(&self.buffer[..read]);
                    self.reader.feed(&self.buffer[..read]);
                }
            }
        }
    }

    /// What the whole file is, once there are no more pairs.
    fn finish(self) -> anyhow::Result<(Head, End, u64, String)> {
        let (head, end) = self.reader.finish()?;
        Ok((head, end, self.bytes, hex(self.hash.finish().as_ref())))
    }
}

/// A backup that was found whole.
pub(super) struct Folder {
    path: PathBuf,
    /// What it consists of.
    pub(super) manifest: Manifest,
    /// What the meta group knew.
    pub(super) directory: Directory,
}

/// What there is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Content {
    pub(super) terminals: u64,
    pub(super) pushes: u64,
}

impl Folder {
    /// Reads everything, and is content with nothing less than all of it.
    pub(super) fn verify(path: &Path) -> anyhow::Result<(Folder, Content)> {
        let manifest = Manifest::read(path)?;
        let mut directory = None;
        for file in &manifest.groups {
            let path = path.join(&file.file);
            let found = check(&manifest, file, &path).with_context(|| format!("{}", path.display()))?;
            directory = directory.or(found);
        }
        let directory = directory.context("the backup holds no directory")?;
        let cluster = format!("{:016x}", directory.cluster);
        ensure!(
            cluster == manifest.cluster && directory.groups == manifest.shards,
            "the backup's directory is that of another cluster: {cluster}"
        );
        let folder = Folder { path: path.to_owned(), manifest, directory };
        let mut content = Content::default();
        for shard in 1..=folder.manifest.shards {
            let counted = folder.count(shard, &mut content);
            counted.with_context(|| format!("{}", path.join(name_of(shard)).display()))?;
        }
        Ok((folder, content))
    }

    fn count(&self, shard: u16, content: &mut Content) -> anyhow::Result<()> {
        let mut terminals = self.terminals(shard)?;
        while let Some((one, _)) = terminals.next()? {
            content.terminals += u64::from(one.from == Seq(1));
            content.pushes += one.pushes.len() as u64;
        }
        Ok(())
    }

    /// The terminals of a shard.
    pub(super) fn terminals(&self, shard: u16) -> anyhow::Result<Terminals<'_>> {
        let path = self.path.join(name_of(shard));
        let (rows, pushes) = (Cursor::open(&path)?, Cursor::open(&path)?);
        Ok(Terminals { folder: self, shard: GroupId(shard), rows, pushes, waiting: None, current: None })
    }
}

/// Holds a file against the manifest; the directory, if it has one.
fn check(manifest: &Manifest, file: &GroupFile, path: &Path) -> anyhow::Result<Option<Directory>> {
    let mut cursor = Cursor::open(path)?;
    let mut directory = None;
    while let Some((key, value)) = cursor.next()? {
        if key == key::DIRECTORY[..] {
            directory = Some(Directory::decode(&value).context("the directory is damaged")?);
        }
    }
    let (head, end, bytes, sha256) = cursor.finish()?;
    ensure!(
        bytes == file.bytes && sha256 == file.sha256,
        "it is damaged: its checksum is not that of the manifest"
    );
    ensure!(
        format!("{:016x}", head.cluster) == manifest.cluster,
        "it is of another cluster: {:016x}",
        head.cluster
    );
    let same = (head.group.0, head.shards, head.index) == (file.group, manifest.shards, file.index)
        && (end.pairs, end.time.0) == (file.rows, file.time)
        && head.format <= manifest.format;
    ensure!(same, "it is not the file that the manifest names");
    Ok(directory.filter(|_| file.group == 0))
}

/// The terminals of a shard, each with what waits for it: rows and pushes are in the same order, in two places of the file.
pub(super) struct Terminals<'a> {
    folder: &'a Folder,
    shard: GroupId,
    rows: Cursor,
    pushes: Cursor,
    waiting: Option<(TerminalId, Message, usize)>,
    current: Option<(TerminalId, Row, u64)>,
}

impl Terminals<'_> {
    /// The next terminal, or part of one, and about how many bytes it has.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(Imported, usize)>> {
        if self.waiting.is_none() && self.current.is_none() {
            self.next_push()?;
        }
        let (terminal, row, given) = match self.current.take() {
            Some(current) => current,
            None => match self.next_row()? {
                Some((terminal, row)) => (terminal, row, 0),
                None => {
                    ensure!(self.waiting.is_none(), "a push waits for no terminal");
                    return Ok(None);
                }
            },
        };
        let (mut pushes, mut bytes) = (Vec::new(), 256);
        while bytes < PIECE
            && let Some((_, push, len)) = self.waiting.take_if(|(whose, _, _)| *whose == terminal)
        {
            pushes.push(push);
            bytes += len;
            self.next_push()?;
        }
        let from = Seq(given + 1);
        let given = given + pushes.len() as u64;
        match &self.waiting {
            Some((whose, _, _)) if *whose == terminal => {
                self.current = Some((terminal, row.clone(), given));
            }
            Some((whose, _, _)) if *whose < terminal => bail!("a push waits for no terminal"),
            _ => ensure!(given == u64::from(row.pending), "pushes of terminal {terminal} are missing"),
        }
        Ok(Some((Imported { row, from, pushes }, bytes)))
    }

    fn next_row(&mut self) -> anyhow::Result<Option<(TerminalId, Row)>> {
        while let Some((key, value)) = self.rows.next()? {
            let Some(terminal) = key::parse_terminal(&key) else { continue };
            let row: Row = row::load(&value).map_err(|error| anyhow::anyhow!(error.0))?;
            let group = group_of_slot(terminal.slot(), self.folder.manifest.shards);
            ensure!(
                row.session_key.terminal() == terminal && group == self.shard,
                "terminal {terminal} does not belong here"
            );
            ensure!(
                self.folder.directory.tenants.contains_key(&row.tenant),
                "terminal {terminal} belongs to a tenant that the backup does not know"
            );
            return Ok(Some((terminal, row)));
        }
        Ok(None)
    }

    fn next_push(&mut self) -> anyhow::Result<()> {
        while let Some((key, value)) = self.pushes.next()? {
            let Some((terminal, _)) = key::parse_pending(&key) else { continue };
            let push: Message = row::load(&value).map_err(|error| anyhow::anyhow!(error.0))?;
            self.waiting = Some((terminal, push, value.len() + 16));
            break;
        }
        Ok(())
    }
}

/// What there is in a folder that a backup may be written to; refused if that is anything else than a part of one.
pub(super) fn prepare(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(name != MANIFEST, "it holds a whole backup already, which stays; give another folder");
        let ours = name.starts_with("group-") && name.ends_with(".backup") || name.ends_with(".part");
        ensure!(ours, "it holds something else: {name}; give an empty folder");
    }
    Ok(())
}
