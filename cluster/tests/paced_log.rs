//! A log whose syncs take time, as the simulation has it: nobody learns before they are over, and what comes meanwhile is the
//! next batch.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use reveille_cluster::wal::disk::SimDisk;
use reveille_cluster::wal::{LogStore, Owner, Wal, WalConfig, WalGroup, Work};

type Works = Arc<Mutex<Vec<Work>>>;

fn open(disk: &SimDisk, create: bool, works: &Works) -> Wal {
    let config =
        WalConfig { segment_bytes: 64 * 1024, create, ..WalConfig::new(Owner { cluster: 1, node: 1 }, 1) };
    let works = works.clone();
    let pace = Box::new(move |work| {
        works.lock().unwrap().push(work);
        None
    });
    Wal::open_paced(Arc::new(disk.clone()), config, pace).unwrap()
}

fn append(group: &WalGroup, index: u64, done: &Arc<AtomicUsize>) {
    let done = done.clone();
    let told = Box::new(move |result: std::io::Result<()>| {
        result.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    });
    let entry = vec![(index, Bytes::from(vec![index as u8; 10]))];
    group.append(entry, told).now_or_never().unwrap().unwrap();
}

#[test]
fn a_batch_is_told_of_when_its_time_is_over_and_a_barrier_does_not_wait() {
    let (disk, works, done) = (SimDisk::default(), Works::default(), Arc::new(AtomicUsize::new(0)));
    let wal = open(&disk, true, &works);
    let group = wal.group(0).unwrap();
    let work = || works.lock().unwrap().remove(0);
    append(&group, 1, &done);
    append(&group, 2, &done);
    append(&group, 3, &done);
    assert_eq!(done.load(Ordering::Relaxed), 0, "the disk has nothing yet");
    assert_eq!(group.read(1, 4, 1000).now_or_never().unwrap().unwrap().len(), 3, "raft sees it at once");
    work()();
    assert_eq!(done.load(Ordering::Relaxed), 1, "what came during a sync is the next batch");
    work()();
    assert_eq!(done.load(Ordering::Relaxed), 3);
    assert!(works.lock().unwrap().is_empty(), "nothing waits");

    append(&group, 4, &done);
    let late = work();
    wal.barrier().unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 4, "all that was submitted before is durable");
    append(&group, 5, &done);
    late();
    assert_eq!(done.load(Ordering::Relaxed), 4, "a batch that is over ends no other one");
    drop((group, wal));

    disk.crash(|_, _| 0);
    let wal = open(&disk, false, &works);
    assert_eq!(wal.group(0).unwrap().last_index(), Some(4), "the fifth was on its way when the power went");
}
