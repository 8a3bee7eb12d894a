//! The tables on disk against a plain map: overlay, frozen overlay and disk must look like one, also across flushes,
//! restarts, snapshots and installs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use reveille_cluster::tables::{
    FjallTables, Installer, MemoryTables, Snapshot, Store, StoreConfig, StoreError, Tables,
};
use reveille_cluster::wal::Owner;
use reveille_protocol::service_list::{Table, TableMut};

type Map = BTreeMap<Vec<u8>, Bytes>;

fn config(node: u64, create: bool) -> StoreConfig {
    let owner = Owner { cluster: 7, node };
    StoreConfig { owner, groups: 4, create, cache_bytes: 1 << 20, overlay_bytes: 1 << 20 }
}

fn open(folder: &Path) -> (Store, FjallTables) {
    let create = std::fs::read_dir(folder).unwrap().next().is_none();
    let store = Store::open(folder, &config(1, create)).unwrap();
    let group = store.group(3).unwrap();
    (store, group)
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Flush,
    Fetch(u8),
    Crash,
    Install(Vec<(u8, u8)>),
    AbandonedInstall(u8),
    Snapshot,
}

fn key(key: u8) -> Vec<u8> {
    vec![0x20, key, key % 3]
}

fn value(value: u8) -> Bytes {
    Bytes::from(vec![value; 1 + usize::from(value % 40)])
}

fn step() -> impl Strategy<Value = Step> {
    let byte = 0u8..24;
    prop_oneof![
        8 => (byte.clone(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        5 => byte.clone().prop_map(Step::Delete),
        2 => Just(Step::Flush),
        3 => byte.clone().prop_map(Step::Fetch),
        1 => Just(Step::Crash),
        1 => proptest::collection::vec((byte.clone(), any::<u8>()), 0..10).prop_map(Step::Install),
        1 => byte.prop_map(Step::AbandonedInstall),
        1 => Just(Step::Snapshot),
    ]
}

fn contents(table: &impl Table) -> Map {
    let mut found = Map::new();
    table
        .scan(&[0], &[0xff], &mut |key, value| {
            found.insert(key.to_vec(), Bytes::copy_from_slice(value));
            true
        })
        .unwrap();
    found
}

fn put(tables: &impl Tables, model: &Map, at: &[u8], value: Bytes) {
    let mut table = tables.write();
    // The hint is given where it is true, so that its short cut is tested, too.
    if model.contains_key(at) { table.put(at, value) } else { table.put_new(at, value) }
}

async fn read_snapshot(mut snapshot: impl Snapshot) -> Map {
    let mut found = Map::new();
    while let Some(chunk) = snapshot.next_chunk(100).await.unwrap() {
        assert!(!chunk.is_empty());
        found.extend(chunk.into_iter().map(|(key, value)| (key.to_vec(), value)));
    }
    found
}

async fn play(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, mut disk) = open(folder.path());
    let memory = MemoryTables::default();
    let (mut model, mut durable) = (Map::new(), Map::new());
    for step in steps {
        match step {
            Step::Put(at, new) => {
                put(&disk, &model, &key(at), value(new));
                put(&memory, &model, &key(at), value(new));
                model.insert(key(at), value(new));
            }
            Step::Delete(at) => {
                disk.write().delete(&key(at));
                memory.write().delete(&key(at));
                model.remove(&key(at));
            }
            Step::Flush => {
                disk.flush().await.unwrap();
                memory.flush().await.unwrap();
                durable = model.clone();
            }
            Step::Fetch(at) => disk.fetch(vec![key(at), key(at + 1)]).await.unwrap(),
            Step::Crash => {
                drop((disk, store));
                (store, disk) = open(folder.path());
                memory.crash();
                model = durable.clone();
            }
            Step::Install(pairs) => {
                let pairs: Map = pairs.into_iter().map(|(at, new)| (key(at), value(new))).collect();
                let list: Vec<_> =
                    pairs.iter().map(|(key, value)| (Bytes::from(key.clone()), value.clone())).collect();
                let (mut to_disk, mut to_memory) = (disk.installer().unwrap(), memory.installer().unwrap());
                to_disk.push(list.clone()).await.unwrap();
                to_memory.push(list).await.unwrap();
                assert_eq!(contents(&disk.read()), model, "until it is finished the old tables count");
                to_disk.finish().await.unwrap();
                to_memory.finish().await.unwrap();
                (model, durable) = (pairs.clone(), pairs);
            }
            Step::AbandonedInstall(at) => {
                let mut installer = disk.installer().unwrap();
                installer.push(vec![(Bytes::from(key(at)), value(at))]).await.unwrap();
            }
            Step::Snapshot => {
                let (of_disk, of_memory) = (disk.snapshot().await.unwrap(), memory.snapshot().await.unwrap());
                // What comes after is not in it.
                disk.write().put(b"later", Bytes::from_static(b"x"));
                assert_eq!(contents(&of_disk), model);
                assert_eq!(read_snapshot(of_disk).await, model);
                assert_eq!(read_snapshot(of_memory).await, model);
                disk.write().delete(b"later");
                durable = model.clone();
            }
        }
        assert_eq!(contents(&disk.read()), model);
        assert_eq!(contents(&memory.read()), model);
        for at in 0..24 {
            assert_eq!(disk.read().get(&key(at)).unwrap(), model.get(&key(at)).cloned());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn they_look_like_a_map(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps));
    }
}

#[tokio::test]
async fn a_flush_lets_writers_go_on_and_frees_the_overlay() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, tables) = open(folder.path());
    for number in 0u32..1000 {
        tables.write().put_new(&number.to_be_bytes(), Bytes::from(vec![7; 100]));
    }
    let before = tables.unflushed();
    assert!(before > 100_000);
    tables.flush().await.unwrap();
    assert_eq!(tables.unflushed(), 0);
    // A key that comes and goes between two flushes leaves nothing behind.
    for number in 2000u32..2100 {
        tables.write().put_new(&number.to_be_bytes(), Bytes::from(vec![7; 100]));
        tables.write().delete(&number.to_be_bytes());
    }
    assert_eq!(tables.unflushed(), 0);
}

/// What the log has not made durable is not flushed, and nothing is lost by that.
#[tokio::test]
async fn tables_on_disk_stay_behind_the_log_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tables) = open(folder.path());
    let synced = Arc::new(AtomicBool::new(false));
    let log = synced.clone();
    store.keep_behind(move || match log.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(std::io::Error::other("the log has stopped")),
    });
    put(&tables, &Map::new(), b"row", value(1));
    assert!(tables.flush().await.unwrap_err().to_string().contains("the log has stopped"));
    assert_eq!(tables.read().get(b"row").unwrap(), Some(value(1)));
    synced.store(true, Ordering::Relaxed);
    tables.flush().await.unwrap();
    drop((tables, store));
    let (_store, tables) = open(folder.path());
    assert_eq!(tables.read().get(b"row").unwrap(), Some(value(1)));
}

#[tokio::test]
async fn what_is_there_in_part_never_becomes_durable() {
    async fn spoilt(tables: &impl Tables) {
        tables.write().put(&key(1), value(1));
        tables.flush().await.unwrap();
        {
            let mut table = tables.write();
            table.put(&key(2), value(2));
            tables.spoil();
        }
        assert!(tables.flush().await.is_err());
        assert!(tables.snapshot().await.is_err());
    }
    let expected = Map::from([(key(1), value(1))]);
    let memory = MemoryTables::default();
    spoilt(&memory).await;
    memory.crash();
    assert_eq!(contents(&memory.read()), expected);
    let folder = tempfile::tempdir().unwrap();
    let (store, tables) = open(folder.path());
    spoilt(&tables).await;
    drop((store, tables));
    let (_store, tables) = open(folder.path());
    assert_eq!(contents(&tables.read()), expected);
    tables.flush().await.unwrap();
}

/// Two peers send their snapshots at once, or one sends a second while the first is on its way: the latest counts, and
/// nothing of the others is left.
#[tokio::test]
async fn of_several_installs_the_latest_counts_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tables) = open(folder.path());
    put(&tables, &Map::new(), b"old", value(1));
    tables.flush().await.unwrap();
    let rows = |keys: &[&'static [u8]]| {
        keys.iter().map(|key| (Bytes::from_static(key), value(2))).collect::<Vec<_>>()
    };
    let mut first = tables.installer().unwrap();
    first.push(rows(&[b"a", b"b"])).await.unwrap();
    let mut second = tables.installer().unwrap();
    second.push(rows(&[b"b", b"c"])).await.unwrap();
    assert!(first.push(rows(&[b"d"])).await.is_err(), "its rows must not mix with the later one's");
    assert!(first.finish().await.is_err());
    assert_eq!(contents(&tables.read()).into_keys().collect::<Vec<_>>(), [b"old"]);
    second.finish().await.unwrap();
    let keys = || contents(&tables.read()).into_keys().collect::<Vec<_>>();
    assert_eq!(keys(), [b"b", b"c"]);
    // One that was begun before and goes on after it must not touch what is live now.
    let mut third = tables.installer().unwrap();
    third.push(rows(&[b"x"])).await.unwrap();
    assert_eq!(keys(), [b"b", b"c"]);
    drop((third, tables, store));
    let (_store, tables) = open(folder.path());
    assert_eq!(contents(&tables.read()).into_keys().collect::<Vec<_>>(), [b"b", b"c"]);
    let mut unordered = tables.installer().unwrap();
    assert!(unordered.push(rows(&[b"b", b"a"])).await.is_err());
}

#[test]
fn a_folder_that_is_not_this_nodes_or_not_as_it_should_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(folder.path(), &config(1, false)), Err(StoreError::Missing(_))));
    let store = Store::open(folder.path(), &config(1, true)).unwrap();
    assert!(matches!(Store::open(folder.path(), &config(1, false)), Err(StoreError::Locked(_))));
    drop(store);
    assert!(matches!(Store::open(folder.path(), &config(2, false)), Err(StoreError::Owner { .. })));
    let more = StoreConfig { groups: 5, ..config(1, false) };
    let refused = Store::open(folder.path(), &more).err().unwrap();
    assert!(refused.to_string().contains("made for 3 shard groups, not 4"), "{refused}");
    // A first start that ended in the middle may be repeated, as long as nothing was stored.
    let store = Store::open(folder.path(), &config(1, true)).unwrap();
    let tables = store.group(3).unwrap();
    put(&tables, &Map::new(), b"row", value(1));
    tables.flush_blocking().unwrap();
    drop((tables, store));
    assert!(matches!(Store::open(folder.path(), &config(1, true)), Err(StoreError::NotEmpty(_))));
    Store::open(folder.path(), &config(1, false)).unwrap();
}
