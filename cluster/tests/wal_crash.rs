//! The log against a disk at its worst: the power goes at every write and sync of a recorded run, writes are torn at
//! random bytes, bits flip. Nothing that was acknowledged may be missing, nothing may appear that was never written,
//! and damage must be refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::executor::block_on;
use proptest::prelude::*;
use reveille_cluster::wal::disk::{Disk, Fault, RealDisk, SimDisk};
use reveille_cluster::wal::{Held, LogStore, Owner, Wal, WalConfig, WalError};

const OWNER: Owner = Owner { cluster: 7, node: 1 };
const GROUPS: u16 = 3;

fn config(create: bool) -> WalConfig {
    WalConfig {
        segment_bytes: 4096,
        max_segments: 4,
        cache_bytes: 512,
        create,
        ..WalConfig::new(OWNER, GROUPS)
    }
}

fn open(disk: &SimDisk, create: bool) -> Result<Wal, WalError> {
    Wal::open_inline(Arc::new(disk.clone()), config(create))
}

/// One thing done to the log.
#[derive(Debug, Clone)]
enum Step {
    Append(u16, usize, usize),
    Truncate(u16, u64),
    Purge(u16, u64),
    Vote(u16, u8),
}

/// What one group must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<u64, Bytes>,
    next: u64,
    purged: Option<u64>,
    vote: Option<Bytes>,
}

type State = Vec<Model>;

fn payload(group: u16, index: u64, number: usize, len: usize) -> Bytes {
    let text = format!("group {group} entry {index} step {number} ");
    Bytes::from(text.repeat(len / text.len() + 1).into_bytes()).slice(..len.max(1))
}

/// Does one step to the log and to the model; the error is the disk's.
fn act(wal: &Wal, model: &mut State, number: usize, step: &Step) -> io::Result<()> {
    match step {
        Step::Append(group, count, len) => {
            let state = &mut model[usize::from(*group)];
            let entries: Vec<_> = (0..*count as u64)
                .map(|at| (state.next + at, payload(*group, state.next + at, number, *len)))
                .collect();
            let done = Arc::new(Mutex::new(None));
            let told = done.clone();
            let callback = Box::new(move |result: io::Result<()>| *told.lock().unwrap() = Some(result));
            block_on(wal.group(*group).unwrap().append(entries.clone(), callback))?;
            done.lock().unwrap().take().expect("inline: done when it returns")?;
            state.next += *count as u64;
            state.entries.extend(entries);
        }
        Step::Truncate(group, back) => {
            let state = &mut model[usize::from(*group)];
            let least = state.purged.map_or(0, |purged| purged + 1);
            let keep = state.next.saturating_sub(*back).max(least);
            block_on(wal.group(*group).unwrap().truncate_after(keep.checked_sub(1)))?;
            if let Some(failed) = wal.failed() {
                return Err(io::Error::other(failed));
            }
            state.entries.split_off(&keep);
            state.next = keep;
        }
        Step::Purge(group, keep) => {
            let state = &mut model[usize::from(*group)];
            let Some(upto) = state.next.checked_sub(1 + *keep) else { return Ok(()) };
            if state.purged.is_some_and(|purged| purged >= upto) {
                return Ok(());
            }
            block_on(wal.group(*group).unwrap().purge(upto, Bytes::from(format!("id {upto}"))))?;
            state.entries = state.entries.split_off(&(upto + 1));
            state.purged = Some(upto);
        }
        Step::Vote(group, vote) => {
            let vote = Bytes::from(vec![*vote; 8]);
            block_on(wal.group(*group).unwrap().save_vote(vote.clone()))?;
            model[usize::from(*group)].vote = Some(vote);
        }
    }
    Ok(())
}

fn read_back(wal: &Wal) -> State {
    (0..GROUPS)
        .map(|group| {
            let log = wal.group(group).unwrap();
            let entries: BTreeMap<_, _> =
                block_on(log.read(0, u64::MAX, usize::MAX)).unwrap().into_iter().collect();
            let purged = log.purged().map(|(index, _)| index);
            let next = log.last_index().map_or(purged.map_or(0, |purged| purged + 1), |last| last + 1);
            Model { entries, next, purged, vote: log.vote() }
        })
        .collect()
}

fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    for round in 0..14u64 {
        for group in 0..GROUPS {
            steps.push(Step::Append(group, 1 + round as usize % 3, 90 + 40 * group as usize));
        }
        steps.push(Step::Vote((round % 3) as u16, round as u8));
        match round % 4 {
            1 => steps.push(Step::Truncate(1, 2)),
            2 => steps.push(Step::Purge(0, 2)),
            3 => steps.push(Step::Purge(1, 1)),
            _ => {}
        }
    }
    steps
}

/// Groups that write much and purge soon, and one that does not: its entries are copied from segment to segment.
fn churn() -> Vec<Step> {
    let mut steps = vec![Step::Append(2, 3, 80), Step::Vote(2, 9)];
    for round in 0..22u64 {
        steps.push(Step::Append(0, 2, 250));
        steps.push(Step::Append(1, 1 + round as usize % 2, 210));
        steps.push(Step::Purge(0, 1));
        match round % 3 {
            0 => steps.push(Step::Truncate(1, 1)),
            1 => steps.push(Step::Purge(1, 1)),
            _ => {}
        }
        if round == 12 {
            steps.push(Step::Append(2, 1, 40));
            steps.push(Step::Purge(2, 2));
        }
    }
    steps
}

/// A log that was too long for a while: files of it are removed.
fn growth() -> Vec<Step> {
    let long = (0..40).map(|_| Step::Append(1, 2, 400)).chain([Step::Purge(1, 3)]);
    long.chain((0..12).flat_map(|_| [Step::Append(1, 2, 400), Step::Purge(1, 3)])).collect()
}

#[test]
fn the_churn_copies_entries_and_grows_the_log() {
    let disk = SimDisk::default();
    drop(open(&disk, true).unwrap());
    let (sure, unsure) = run_until(&disk, usize::MAX, &churn());
    assert!(unsure.is_none() && sure[2].entries.len() == 2, "{unsure:?} {sure:?}");
    assert!(!segments(&disk).contains(&"0000000003.wal".to_owned()), "what was there is copied: {sure:?}");
    assert!(segments(&disk).len() <= 4);
}

#[test]
fn the_power_may_go_at_every_write_and_sync() {
    for steps in [steps(), churn(), growth()] {
        let torn = power_goes_everywhere(&steps);
        assert!(torn > 100, "the faults must fall into the run: {torn}");
    }
}

fn power_goes_everywhere(steps: &[Step]) -> usize {
    let fresh = SimDisk::default();
    drop(open(&fresh, true).unwrap());
    let (mut reached_end, mut torn) = (false, 0);
    for after in 0.. {
        for keep in [0usize, 1, 37, 200, usize::MAX] {
            let disk = fresh.fork();
            let (sure, unsure) = run_until(&disk, after, steps);
            disk.crash(|_, len| keep.min(len));
            let wal =
                open(&disk, false).unwrap_or_else(|error| panic!("power {after}, keep {keep}: {error}"));
            let found = read_back(&wal);
            match &unsure {
                None => assert_eq!(found, sure, "power {after}, keep {keep}"),
                Some((number, step)) => {
                    torn += 1;
                    check_unsure(
                        &found,
                        &sure,
                        *number,
                        step,
                        &format!("power {after}, keep {keep}, {step:?}"),
                    );
                }
            }
            // And it goes on from there.
            let mut more = found;
            act(&wal, &mut more, 999, &Step::Append(2, 2, 50)).unwrap();
            drop(wal);
            assert_eq!(
                read_back(&open(&disk, false).unwrap()),
                more,
                "after going on: power {after}, keep {keep}"
            );
            reached_end = unsure.is_none();
        }
        if reached_end {
            break;
        }
    }
    torn
}

/// What an interrupted step may have left: nothing of it, all of it, or of an append the first entries.
fn check_unsure(found: &State, sure: &State, number: usize, step: &Step, what: &str) {
    for (group, (found, sure)) in found.iter().zip(sure).enumerate() {
        let touched = match step {
            Step::Append(touched, ..)
            | Step::Truncate(touched, _)
            | Step::Purge(touched, _)
            | Step::Vote(touched, _) => usize::from(*touched) == group,
        };
        if !touched {
            assert_eq!(found, sure, "group {group}: {what}");
            continue;
        }
        match step {
            Step::Append(group, count, len) => {
                let mut may = sure.clone();
                let matches = std::iter::once(may == *found)
                    .chain((0..*count).map(|_| {
                        may.entries.insert(may.next, payload(*group, may.next, number, *len));
                        may.next += 1;
                        may == *found
                    }))
                    .collect::<Vec<_>>();
                assert!(matches.contains(&true), "{what}: found {found:?}, sure of {sure:?}");
            }
            Step::Truncate(_, _) | Step::Purge(_, _) | Step::Vote(_, _) => {
                let (mut a, mut b) = (found.clone(), sure.clone());
                if matches!(step, Step::Vote(..)) {
                    (a.vote, b.vote) = (None, None);
                    assert_eq!(a, b, "{what}");
                } else {
                    // Entries may only be missing, and only from the end that was being cut.
                    assert!(
                        found.entries.iter().all(|(index, entry)| sure.entries.get(index) == Some(entry)),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_refused_or_falls_into_the_last_unsealed_batch() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    for (number, step) in steps().iter().take(9).enumerate() {
        act(&wal, &mut model, number, step).unwrap();
    }
    let sealed = model.clone();
    let mark = disk.operations();
    act(&wal, &mut model, 99, &Step::Append(0, 1, 60)).unwrap();
    assert!(disk.operations() > mark);
    drop(wal);
    let name = disk.list().unwrap().into_iter().find(|name| name.ends_with(".wal")).unwrap();
    let mut bytes = vec![0; disk.len(&name).unwrap() as usize];
    disk.read_at(&name, 0, &mut bytes).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut refused, mut shorter) = (0, 0);
    for at in 0..used {
        let bent = disk.fork();
        bent.flip(&name, at, (at % 8) as u8);
        match open(&bent, false) {
            Err(WalError::Damaged { offset, .. }) => {
                assert!(offset <= at, "byte {at} was bent, {offset} was blamed");
                refused += 1;
            }
            Err(WalError::Owner { .. } | WalError::Format { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
            Ok(wal) => {
                // Only the very last batch looks like a torn write; everything before it must be there.
                let found = read_back(&wal);
                assert_eq!(found, sealed, "byte {at} was bent and the log was taken as it is");
                shorter += 1;
            }
        }
    }
    assert!(refused > shorter && shorter > 0, "{refused} refused, {shorter} shorter");
}

#[test]
fn what_is_not_ours_is_refused_with_its_reason() {
    let disk = SimDisk::default();
    assert!(matches!(open(&disk, false), Err(WalError::Missing { .. })), "never read as no data");
    drop(open(&disk, true).unwrap());
    assert!(matches!(open(&disk, true), Err(WalError::Exists { .. })));
    let other = WalConfig { owner: Owner { cluster: 7, node: 2 }, ..config(false) };
    assert!(matches!(Wal::open_inline(Arc::new(disk.clone()), other), Err(WalError::Owner { .. })));
    let wal = open(&disk, false).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    for (number, step) in steps().iter().enumerate() {
        act(&wal, &mut model, number, step).unwrap();
    }
    drop(wal);
    let segments: Vec<_> = disk.list().unwrap().into_iter().filter(|name| name.ends_with(".wal")).collect();
    assert!(segments.len() > 2, "{segments:?}");
    let gap = disk.fork();
    gap.lose(&segments[1]);
    assert!(matches!(open(&gap, false), Err(WalError::Damaged { .. })), "a segment in the middle");
    let last = disk.fork();
    last.lose(segments.last().unwrap());
    assert!(matches!(open(&last, false), Err(WalError::Damaged { .. })), "the last segment");
}

#[test]
fn the_first_failed_write_or_sync_is_the_last_thing_that_happens() {
    for fault in [Fault::Sync { after: 2 }, Fault::Write { after: 2, keep: 5 }] {
        let disk = SimDisk::default();
        let wal = open(&disk, true).unwrap();
        disk.set_fault(Some(fault));
        let mut model: State = vec![Model::default(); GROUPS as usize];
        let failed = (0..10).find(|number| act(&wal, &mut model, *number, &Step::Append(0, 1, 40)).is_err());
        assert_eq!(failed, Some(2), "{fault:?}");
        assert!(wal.failed().is_some());
        for number in 3..6 {
            let later = act(&wal, &mut model, number, &Step::Append(0, 1, 40));
            assert!(later.is_err(), "a sync that failed is never tried again");
        }
    }
}

#[test]
fn a_log_that_stopped_says_what_helps() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let too_large = vec![(0, Bytes::from(vec![1; 5000]))];
    let appended = block_on(wal.group(0).unwrap().append(too_large, Box::new(|_| ())));
    let failed = wal.failed().unwrap();
    assert!(
        failed.contains("larger log segments") && !failed.contains("disk is sound"),
        "{failed} {appended:?}"
    );

    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    disk.set_fault(Some(Fault::Sync { after: 0 }));
    let mut model: State = vec![Model::default(); GROUPS as usize];
    act(&wal, &mut model, 0, &Step::Append(0, 1, 40)).unwrap_err();
    let failed = wal.failed().unwrap();
    assert!(failed.contains("disk is sound"), "{failed}");
    drop(wal);
    // A disk that is restarted on after a failure has what was acknowledged, and goes on.
    act(&open(&disk, false).unwrap(), &mut model, 1, &Step::Append(1, 1, 40)).unwrap();
}

#[test]
fn damage_is_not_copied_under_a_new_checksum() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    act(&wal, &mut model, 0, &Step::Append(0, 3, 100)).unwrap();
    disk.flip("0000000001.wal", 300, 1);
    let failed = (1..200).find_map(|number| {
        let acted = act(&wal, &mut model, number, &Step::Append(1, 2, 200))
            .and_then(|()| act(&wal, &mut model, number, &Step::Purge(1, 3)));
        acted.err().and_then(|_| wal.failed())
    });
    let failed = failed.expect("the damaged segment is to be freed");
    assert!(failed.contains("damaged") && failed.contains("reveille cluster replace"), "{failed}");
}

#[test]
fn two_processes_cannot_write_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _disk = RealDisk::open(folder.path()).unwrap();
    let error = RealDisk::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

#[test]
fn a_slow_group_does_not_keep_old_segments() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    act(&wal, &mut model, 0, &Step::Append(0, 3, 100)).unwrap();
    for number in 1..400 {
        act(&wal, &mut model, number, &Step::Append(1, 2, 200)).unwrap();
        act(&wal, &mut model, number, &Step::Purge(1, 3)).unwrap();
    }
    let files = disk.list().unwrap().len();
    assert!(files <= 7, "{files} files for what fits one");
    drop(wal);
    assert_eq!(read_back(&open(&disk, false).unwrap()), model);
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.ends_with(".wal")).collect()
}

#[test]
fn a_log_full_of_live_entries_grows_and_neither_copies_them_nor_fails() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    let mut appended = 0;
    for number in 0..100 {
        act(&wal, &mut model, number, &Step::Append(1, 2, 400)).unwrap();
        appended += 2 * 400;
    }
    // The checkpoints grow: what was a segment's worth of entries fits the next one no more.
    for group in 0..GROUPS {
        let vote = Bytes::from(vec![7; 400]);
        block_on(wal.group(group).unwrap().save_vote(vote.clone())).unwrap();
        model[usize::from(group)].vote = Some(vote);
    }
    for number in 100..200 {
        act(&wal, &mut model, number, &Step::Append(1, 2, 400)).unwrap();
        appended += 2 * 400;
    }
    assert!(segments(&disk).len() > 16, "nothing of it may go");
    assert!(disk.written() < appended * 2, "{} bytes written for {appended}", disk.written());
    drop(wal);
    let wal = open(&disk, false).unwrap();
    assert_eq!(read_back(&wal), model);
    act(&wal, &mut model, 200, &Step::Purge(1, 3)).unwrap();
    for number in 201..212 {
        act(&wal, &mut model, number, &Step::Append(1, 2, 400)).unwrap();
        act(&wal, &mut model, number, &Step::Purge(1, 3)).unwrap();
    }
    assert!(segments(&disk).len() <= 4, "purged, it is short again: {:?}", segments(&disk));
    let files = disk.list().unwrap();
    assert!(files.len() <= 6 && files.len() > segments(&disk).len(), "the disk has the rest back: {files:?}");
    drop(wal);
    assert_eq!(read_back(&open(&disk, false).unwrap()), model);
}

#[test]
fn spares_that_an_earlier_start_left_go_unless_the_log_is_not_this_nodes() {
    let disk = SimDisk::default();
    drop(open(&disk, true).unwrap());
    (10..30).for_each(|number| disk.create(&format!("spare-{number:010}"), 4096).unwrap());
    disk.create("spare-0000000099", 100).unwrap();
    let left = disk.list().unwrap();
    let other = WalConfig { owner: Owner { cluster: 7, node: 2 }, ..config(false) };
    Wal::open_inline(Arc::new(disk.clone()), other).err().unwrap();
    assert_eq!(disk.list().unwrap(), left);
    drop(open(&disk, false).unwrap());
    let files = disk.list().unwrap();
    assert_eq!(files.len(), 6, "{files:?}");
    assert!(!files.contains(&"spare-0000000099".to_owned()), "it was not made to its end");
}

#[test]
fn a_removed_file_is_gone_from_the_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(folder.path()).unwrap();
    disk.create("spare-1", 10).unwrap();
    disk.remove("spare-1").unwrap();
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
    assert_eq!(disk.len("spare-1").unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_third_of_a_segment_is_not_copied() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    let mut appended = 0;
    for number in 0..120 {
        act(&wal, &mut model, number, &Step::Append(0, 1, 400)).unwrap();
        act(&wal, &mut model, number, &Step::Append(1, 2, 400)).unwrap();
        act(&wal, &mut model, number, &Step::Purge(1, 1)).unwrap();
        appended += 3 * 400;
    }
    assert_eq!(segments(&disk)[0], "0000000001.wal");
    assert!(disk.written() < appended * 5 / 4, "{} bytes written for {appended}", disk.written());
}

#[test]
fn a_copy_leaves_room_for_the_largest_record() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    act(&wal, &mut model, 0, &Step::Append(0, 3, 280)).unwrap();
    for group in 0..GROUPS {
        block_on(wal.group(group).unwrap().save_vote(Bytes::from(vec![7; 400]))).unwrap();
    }
    for number in 1..30 {
        act(&wal, &mut model, number, &Step::Append(1, 1, 1950)).unwrap();
        act(&wal, &mut model, number, &Step::Purge(1, 1)).unwrap();
    }
    assert!(segments(&disk).contains(&"0000000001.wal".to_owned()), "its few live entries do not fit");
}

#[test]
fn a_group_learns_what_it_holds_and_what_must_go() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    let log = wal.group(0).unwrap();
    assert_eq!(log.held(), Held { live: 0, span: 0, capacity: 4 * 4096 });
    act(&wal, &mut model, 0, &Step::Append(0, 2, 69)).unwrap();
    assert_eq!(log.held(), Held { live: 200, span: 4096, capacity: 4 * 4096 });
    assert_eq!((log.excess(200, 4096), log.excess(199, 4096), log.excess(0, 4096)), (None, Some(0), Some(1)));
    for number in 1..9 {
        act(&wal, &mut model, number, &Step::Append(1, 4, 369)).unwrap();
    }
    act(&wal, &mut model, 9, &Step::Append(0, 1, 69)).unwrap();
    let held = log.held();
    assert_eq!(
        (held.live, held.span),
        (300, segments(&disk).len() as u64 * 4096),
        "two entries hold them all"
    );
    assert_eq!((log.excess(300, held.span), log.excess(300, held.span - 1)), (None, Some(1)));
    act(&wal, &mut model, 10, &Step::Append(0, 2, 69)).unwrap();
    act(&wal, &mut model, 10, &Step::Truncate(0, 2)).unwrap();
    assert_eq!(log.held(), held, "appended and truncated");
    act(&wal, &mut model, 10, &Step::Purge(0, 2)).unwrap();
    assert_eq!((log.held().live, log.held().span), (200, held.span));
    act(&wal, &mut model, 11, &Step::Purge(0, 1)).unwrap();
    assert_eq!((log.held().live, log.held().span), (100, 4096));
    drop(wal);
    let wal = open(&disk, false).unwrap();
    assert_eq!(wal.group(0).unwrap().held().live, 100, "also after a restart");
}

/// Runs the steps until the power (here: the process) goes at an operation; what was sure then, and what was not.
fn run_until(disk: &SimDisk, after: usize, steps: &[Step]) -> (State, Option<(usize, Step)>) {
    let wal = open(disk, false).unwrap();
    disk.set_fault(Some(Fault::Power { after }));
    let mut sure: State = vec![Model::default(); GROUPS as usize];
    for (number, step) in steps.iter().enumerate() {
        let mut next = sure.clone();
        if act(&wal, &mut next, number, step).is_err() || wal.failed().is_some() {
            return (sure, Some((number, step.clone())));
        }
        sure = next;
    }
    (sure, None)
}

#[test]
fn what_a_restart_read_from_the_page_cache_stays_when_the_power_goes_after_it() {
    for steps in [steps(), churn()] {
        killed_everywhere(&steps);
    }
}

fn killed_everywhere(steps: &[Step]) {
    let fresh = SimDisk::default();
    drop(open(&fresh, true).unwrap());
    for after in 0.. {
        let (mut reached_end, what) = (false, format!("killed at {after}"));
        for goes_on in [false, true] {
            let disk = fresh.fork();
            let (sure, unsure) = run_until(&disk, after, steps);
            disk.kill();
            let wal = open(&disk, false).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut told = read_back(&wal);
            match &unsure {
                None => assert_eq!(told, sure, "{what}"),
                Some((number, step)) => check_unsure(&told, &sure, *number, step, &what),
            }
            if goes_on {
                act(&wal, &mut told, 999, &Step::Append(2, 2, 50)).unwrap();
            }
            drop(wal);
            disk.crash(|_, _| 0);
            let wal = open(&disk, false).unwrap_or_else(|error| panic!("{what}, then no power: {error}"));
            assert_eq!(read_back(&wal), told, "{what}, then no power: raft counts on what it was told");
            reached_end = unsure.is_none();
        }
        if reached_end {
            break;
        }
    }
}

#[test]
fn a_restart_may_be_cut_short_at_every_write_and_sync() {
    let fresh = SimDisk::default();
    drop(open(&fresh, true).unwrap());
    let (steps, mut cut_short) = (churn(), 0);
    for after in (0..).step_by(3) {
        let ran = fresh.fork();
        let (sure, unsure) = run_until(&ran, after, &steps);
        for killed in [false, true] {
            for again in 0..12 {
                let disk = ran.fork();
                match killed {
                    true => disk.kill(),
                    false => disk.crash(|_, len| 37.min(len)),
                }
                disk.set_fault(Some(Fault::Power { after: again }));
                cut_short += usize::from(open(&disk, false).is_err());
                disk.crash(|_, len| 11.min(len));
                let what = format!("power {after}, killed {killed}, again at {again}");
                let found = read_back(&open(&disk, false).unwrap_or_else(|error| panic!("{what}: {error}")));
                match &unsure {
                    None => assert_eq!(found, sure, "{what}"),
                    Some((number, step)) => check_unsure(&found, &sure, *number, step, &what),
                }
            }
        }
        if unsure.is_none() {
            break;
        }
    }
    assert!(cut_short > 100, "{cut_short}");
}

#[test]
fn what_a_restart_read_after_a_failed_sync_stays_when_the_power_goes() {
    let fresh = SimDisk::default();
    drop(open(&fresh, true).unwrap());
    let mut failed = 0;
    for after in 0..40 {
        let disk = fresh.fork();
        let wal = open(&disk, false).unwrap();
        disk.set_fault(Some(Fault::Sync { after }));
        let mut model: State = vec![Model::default(); GROUPS as usize];
        for (number, step) in steps().iter().enumerate() {
            if act(&wal, &mut model, number, step).is_err() || wal.failed().is_some() {
                failed += 1;
                break;
            }
        }
        drop(wal);
        let told = read_back(&open(&disk, false).unwrap());
        disk.crash(|_, _| 0);
        assert_eq!(read_back(&open(&disk, false).unwrap()), told, "sync {after} failed");
    }
    assert_eq!(failed, 40);
}

/// A disk with a log in which something is.
fn written() -> SimDisk {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    for (number, step) in steps().iter().take(9).enumerate() {
        act(&wal, &mut model, number, step).unwrap();
    }
    disk
}

#[test]
fn what_a_restart_found_is_sealed() {
    let disk = written();
    drop(open(&disk, false).unwrap());
    let name = segments(&disk).pop().unwrap();
    let mut bytes = vec![0; disk.len(&name).unwrap() as usize];
    disk.read_at(&name, 0, &mut bytes).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let seal = used - reveille_cluster::wal::record::RECORD;
    for at in 0..seal {
        let bent = disk.fork();
        bent.flip(&name, at, (at % 8) as u8);
        assert!(open(&bent, false).is_err(), "byte {at} of {seal} was bent and the log was taken as it is");
    }
}

/// What was cut off may have been acknowledged, and nothing behind it tells.
#[test]
fn a_file_that_was_cut_short_is_refused_wherever_it_ends() {
    let disk = written();
    for name in segments(&disk) {
        let made = disk.len(&name).unwrap() as usize;
        for len in (0..made).step_by(5).chain([made - 1]) {
            let cut = disk.fork();
            cut.truncate(&name, len);
            let opened = open(&cut, false).err();
            assert!(matches!(opened, Some(WalError::Damaged { .. })), "{len} of {made} bytes: {opened:?}");
        }
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// A disk that lets something happen right before an operation: what another thread could do there.
struct Hooked {
    disk: SimDisk,
    before_read: Mutex<Option<Hook>>,
    before_sync: Mutex<Option<Hook>>,
    after_rename: Mutex<Option<(String, Hook)>>,
}

impl Hooked {
    fn new(disk: &SimDisk) -> Arc<Hooked> {
        Arc::new(Hooked {
            disk: disk.clone(),
            before_read: Mutex::default(),
            before_sync: Mutex::default(),
            after_rename: Mutex::default(),
        })
    }
}

fn fire(hook: &Mutex<Option<Hook>>) {
    let hook = hook.lock().unwrap().take();
    if let Some(hook) = hook {
        hook();
    }
}

impl Disk for Hooked {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.disk.len(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.disk.create(name, len)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)?;
        let hook = self.after_rename.lock().unwrap().take_if(|(name, _)| name == from);
        if let Some((_, hook)) = hook {
            hook();
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        fire(&self.before_read);
        self.disk.read_at(name, offset, buffer)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(name, offset, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        fire(&self.before_sync);
        self.disk.sync(name)
    }

    fn location(&self) -> String {
        self.disk.location()
    }
}

/// Does something from another thread and waits for it.
#[allow(clippy::disallowed_methods, reason = "no simulation here, and the hook is inside an executor")]
fn elsewhere(what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(what).join().unwrap();
}

#[test]
fn a_read_that_meets_a_recycled_segment_looks_again() {
    for purged in [false, true] {
        let disk = SimDisk::default();
        let hooked = Hooked::new(&disk);
        let wal = Arc::new(Wal::open_inline(hooked.clone(), config(true)).unwrap());
        let mut model: State = vec![Model::default(); GROUPS as usize];
        act(&wal, &mut model, 0, &Step::Append(0, 3, 250)).unwrap();
        let before: Vec<_> = model[0].entries.clone().into_iter().collect();
        let meanwhile = wal.clone();
        *hooked.before_read.lock().unwrap() = Some(Box::new(move || {
            elsewhere(move || {
                if purged {
                    act(&meanwhile, &mut model, 1, &Step::Purge(0, 1)).unwrap();
                }
                for number in 2..200 {
                    act(&meanwhile, &mut model, number, &Step::Append(1, 2, 200)).unwrap();
                    act(&meanwhile, &mut model, number, &Step::Purge(1, 3)).unwrap();
                }
            });
        }));
        let found = block_on(wal.group(0).unwrap().read(0, 3, usize::MAX)).unwrap();
        assert!(
            !disk.list().unwrap().contains(&"0000000001.wal".to_owned()),
            "the segment is another by now"
        );
        assert_eq!(found, if purged { before[2..].to_vec() } else { before });
    }
}

#[test]
fn damage_met_by_a_read_is_an_error() {
    let disk = SimDisk::default();
    let wal = open(&disk, true).unwrap();
    let mut model: State = vec![Model::default(); GROUPS as usize];
    act(&wal, &mut model, 0, &Step::Append(0, 3, 250)).unwrap();
    disk.flip("0000000001.wal", 400, 1);
    let error = block_on(wal.group(0).unwrap().read(0, 3, usize::MAX)).unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[test]
fn a_segment_is_not_freed_for_a_truncation_that_is_not_in_the_log_yet() {
    let disk = SimDisk::default();
    let hooked = Hooked::new(&disk);
    let config = |create| WalConfig { cache_bytes: 0, ..config(create) };
    let wal = Wal::open(hooked.clone(), config(true)).unwrap();
    let append = |group: u16, from: u64, count: u64| {
        let entries = (from..from + count).map(|index| (index, payload(group, index, 0, 300))).collect();
        let (done, outcome) = std::sync::mpsc::channel();
        let log = wal.group(group).unwrap();
        block_on(log.append(entries, Box::new(move |result| done.send(result).unwrap()))).unwrap();
        outcome.recv().unwrap()
    };
    // Group 0 from 5 on: some in the first segment, the rest in the second, which group 1 holds as well.
    append(0, 0, 10).unwrap();
    block_on(wal.group(0).unwrap().purge(4, Bytes::from_static(b"id 4"))).unwrap();
    append(0, 10, 6).unwrap();
    append(1, 0, 2).unwrap();
    assert_eq!(segments(&disk).len(), 2);
    // While the next batch begins a segment, raft truncates; the power goes before that is in the log.
    let log = wal.group(0).unwrap();
    *hooked.before_sync.lock().unwrap() =
        Some(Box::new(move || block_on(log.truncate_after(Some(4))).unwrap()));
    let power = disk.clone();
    let cut = Box::new(move || power.set_fault(Some(Fault::Power { after: 0 })));
    *hooked.after_rename.lock().unwrap() = Some(("0000000001.wal".to_owned(), cut));
    // It fails where the power goes while it is under way.
    let _ = append(1, 2, 12);
    assert!(hooked.before_sync.lock().unwrap().is_none(), "a segment was begun");
    drop(wal);
    disk.crash(|_, _| 0);
    let wal = Wal::open(Arc::new(disk.clone()), config(false)).unwrap();
    let first = block_on(wal.group(0).unwrap().read(0, 100, 1)).unwrap();
    assert!(first.is_empty() || first[0].0 == 5, "{first:?}");
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..GROUPS;
    prop_oneof![
        4 => (group.clone(), 1usize..5, 1usize..400).prop_map(|(group, count, len)| Step::Append(group, count, len)),
        1 => (group.clone(), 0u64..6).prop_map(|(group, back)| Step::Truncate(group, back)),
        2 => (group.clone(), 0u64..8).prop_map(|(group, keep)| Step::Purge(group, keep)),
        1 => (group, any::<u8>()).prop_map(|(group, vote)| Step::Vote(group, vote)),
    ]
}

/// How a round of the model ends: at which operation, if not after all steps; the process killed first, or the power
/// gone at once; and how many bytes are left of each write that was not synced.
fn ending() -> impl Strategy<Value = (usize, bool, usize)> {
    let after = prop_oneof![1 => Just(usize::MAX), 2 => 0usize..60];
    (after, any::<bool>(), prop_oneof![Just(0), Just(usize::MAX), 0usize..600])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_that_is_opened_again_holds_what_the_model_holds(
        rounds in proptest::collection::vec((proptest::collection::vec(step(), 1..40), ending()), 1..7),
    ) {
        let disk = SimDisk::default();
        let mut model: State = vec![Model::default(); GROUPS as usize];
        let mut wal = open(&disk, true).unwrap();
        let mut number = 0;
        for (round, (after, killed, keep)) in rounds {
            disk.set_fault(Some(Fault::Power { after }));
            let mut unsure = None;
            for step in round {
                number += 1;
                let mut next = model.clone();
                if act(&wal, &mut next, number, &step).is_err() || wal.failed().is_some() {
                    unsure = Some(step);
                    break;
                }
                model = next;
            }
            if unsure.is_none() {
                prop_assert_eq!(&read_back(&wal), &model);
            }
            drop(wal);
            if killed {
                disk.kill();
            } else {
                disk.crash(|_, len| keep.min(len));
            }
            wal = open(&disk, false).unwrap();
            let found = read_back(&wal);
            match &unsure {
                None => prop_assert_eq!(&found, &model),
                Some(step) => check_unsure(&found, &model, number, step, "the model"),
            }
            if killed {
                drop(wal);
                disk.crash(|_, len| keep.min(len));
                wal = open(&disk, false).unwrap();
                prop_assert_eq!(&read_back(&wal), &found, "killed, then no power");
            }
            model = found;
        }
    }
}
