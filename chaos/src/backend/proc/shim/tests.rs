//! A process under the shim does what it is told, is killed, and what is then left of its folder is that of a model, which
//! goes forwards from what was synced where `undo` goes backwards from what was written. Skipped where there is no `cc`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use reveille_links::draw::Draws;

use super::*;

/// What the process does: each line an operation on its folder, answered when it is done.
#[test]
#[ignore = "no test: the process that the others start"]
fn process() {
    let data = PathBuf::from(std::env::var_os("CHAOS_DATA").unwrap());
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let said = match act(&data, &words) {
            Ok(said) => said,
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or_default()),
        };
        // The test's own words stand before the first.
        println!("\n={said}");
    }
}

fn act(data: &Path, words: &[&str]) -> io::Result<String> {
    let path = data.join(words.get(1).unwrap_or(&""));
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let bytes = |at: usize| vec![number(at + 1) as u8; number(at) as usize];
    match words[0] {
        "create" => drop(File::create_new(path)?),
        "write" => OpenOptions::new().write(true).open(path)?.write_all_at(&bytes(3), number(2))?,
        "append" => OpenOptions::new().append(true).open(path)?.write_all(&bytes(2))?,
        "put" => fs::write(path, bytes(2))?,
        "cut" => OpenOptions::new().write(true).open(path)?.set_len(number(2))?,
        "read" => return Ok(fs::read(path)?.len().to_string()),
        "sync" => File::open(path)?.sync_data()?,
        "sync-folder" => File::open(path)?.sync_all()?,
        "rename" => fs::rename(path, data.join(words[2]))?,
        "remove" => fs::remove_file(path)?,
        "mkdir" => fs::create_dir(path)?,
        "copy" => return Ok(fs::copy(path, data.join(words[2]))?.to_string()),
        "now" => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            return Ok(now.as_millis().to_string());
        }
        // Until it is killed: numbers, each synced before it is said.
        "count" => {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            for n in number(2).. {
                file.write_all_at(&n.to_le_bytes(), n * 8)?;
                file.sync_data()?;
                println!("\n={n}");
            }
        }
        other => panic!("{other}"),
    }
    Ok("done".to_owned())
}

/// A folder and its shim.
struct Lab {
    folder: tempfile::TempDir,
    shim: Shim,
}

/// A process under it.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

const SCENARIO: &str = r#"
name = "lab"
about = "everything that a shim does"
[phases]
warmup = "0s"
chaos = "1s"
heal = "0s"
drain = "1s"
[[fault]]
at = "0s"
kind = "power"
target = "n1"
FAULT
"#;

/// A fault as a scenario has it.
fn fault(lines: &str) -> Fault {
    let text = SCENARIO.replace("kind = \"power\"", lines).replace("FAULT", "");
    let scenario = reveille_chaos::scenario::load("lab.toml", &text).unwrap();
    scenario.faults().next().unwrap().clone()
}

impl Lab {
    /// `None`, with a word, where nothing can be compiled.
    fn new(seed: u64, lies: bool) -> Option<Lab> {
        if let Some(why) = missing() {
            eprintln!("skipped: {why}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("log")).unwrap();
        let scenario = reveille_chaos::scenario::load("lab.toml", &SCENARIO.replace("FAULT", "")).unwrap();
        let at = folder.path().join("shim");
        let shim = Shim::make(&at, Path::new("/bin/true"), &scenario, (seed, lies), &[(1, &data)]).unwrap();
        Some(Lab { folder, shim })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn start(&mut self) -> Process {
        let environment = self.shim.starts(1).unwrap();
        let name = format!("{}::process", module_path!().split_once("::").unwrap().1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture"])
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, lines) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        Process { child, stdin, lines }
    }

    fn undo(&mut self, kept: Kept) -> Undone {
        let node = &self.shim.nodes[&1];
        undo::undo(&node.data, &node.folder, &Loss { kept, names: true, files: FileKind::Any }).unwrap()
    }
}

impl Process {
    fn says(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| Some(line.strip_prefix('=')?.to_owned()))
    }

    fn tell(&mut self, what: &str) -> String {
        writeln!(self.stdin, "{what}").unwrap();
        self.says().unwrap()
    }

    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.says()).collect()
    }
}

// --- The model

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Resize(u64),
}

#[derive(Debug, Clone)]
enum Named {
    Made(String, usize),
    Taken(String),
    Moved(String, String),
}

#[derive(Debug, Default)]
struct Contents {
    synced: Vec<u8>,
    cached: Vec<u8>,
    pending: Vec<(u64, Change)>,
}

#[derive(Debug, Default)]
struct Model {
    seq: u64,
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    /// In which folder, and what.
    pending: Vec<(String, Named)>,
}

fn apply(bytes: &mut Vec<u8>, change: &Change, kept: impl FnOnce(u64) -> u64) {
    match change {
        Change::Write(at, new) => {
            let new = &new[..kept(new.len() as u64) as usize];
            if !new.is_empty() {
                bytes.resize(bytes.len().max(*at as usize + new.len()), 0);
                bytes[*at as usize..][..new.len()].copy_from_slice(new);
            }
        }
        Change::Resize(len) => {
            if kept(1) == 1 {
                bytes.resize(*len as usize, 0);
            }
        }
    }
}

fn name(names: &mut BTreeMap<String, usize>, named: &Named) {
    match named {
        Named::Made(path, file) => drop(names.insert(path.clone(), *file)),
        Named::Taken(path) => drop(names.remove(path)),
        Named::Moved(from, to) => {
            let file = names.remove(from).unwrap();
            names.insert(to.clone(), file);
        }
    }
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned())
}

impl Model {
    fn change(&mut self, path: &str, change: Change) {
        self.seq += 1;
        let file = &mut self.files[self.names[path]];
        apply(&mut file.cached, &change, |all| all);
        file.pending.push((self.seq, change));
    }

    fn name(&mut self, path: &str, named: Named) {
        self.seq += 1;
        name(&mut self.names, &named);
        self.pending.push((folder(path), named));
    }

    fn create(&mut self, path: &str) {
        self.files.push(Contents::default());
        self.name(path, Named::Made(path.to_owned(), self.files.len() - 1));
    }

    /// Some operation, as the process is told it.
    fn some(&mut self, draws: &mut Draws) -> String {
        let folders = ["", "log/"];
        let new = format!("{}{}", folders[draws.below(2) as usize], draws.below(6));
        let old: Vec<String> = self.names.keys().cloned().collect();
        let old = old.get(draws.below(old.len() as u64) as usize).cloned();
        let (len, byte) = (1 + draws.below(5000), 1 + draws.below(255));
        let bytes = vec![byte as u8; len as usize];
        let Some(old) = old.filter(|_| draws.below(8) > 0) else {
            if self.names.contains_key(&new) {
                if self.files[self.names[&new]].cached.is_empty() {
                    return "now".to_owned();
                }
                self.change(&new, Change::Resize(0));
            } else {
                self.create(&new);
            }
            self.change(&new, Change::Write(0, bytes));
            return format!("put {new} {len} {byte}");
        };
        let size = self.files[self.names[&old]].cached.len() as u64;
        match draws.below(12) {
            0..=3 => {
                let at = draws.below(size + 100);
                self.change(&old, Change::Write(at, bytes));
                format!("write {old} {at} {len} {byte}")
            }
            4 => {
                self.change(&old, Change::Write(size, bytes));
                format!("append {old} {len} {byte}")
            }
            5 => {
                let to = draws.below(size + 1000);
                self.change(&old, Change::Resize(to));
                format!("cut {old} {to}")
            }
            6..=7 => {
                let file = &mut self.files[self.names[&old]];
                (file.synced, file.pending) = (file.cached.clone(), Vec::new());
                format!("sync {old}")
            }
            8 => {
                let at = folder(&old);
                let pending = std::mem::take(&mut self.pending);
                let (now, later) = pending.into_iter().partition(|(folder, _)| *folder == at);
                self.pending = later;
                let now: Vec<(String, Named)> = now;
                now.iter().for_each(|(_, named)| name(&mut self.synced, named));
                format!("sync-folder {at}")
            }
            9 => {
                self.name(&old, Named::Taken(old.clone()));
                format!("remove {old}")
            }
            10 if folder(&old) == folder(&new) && old != new => {
                self.name(&new, Named::Moved(old.clone(), new.clone()));
                format!("rename {old} {new}")
            }
            _ => format!("read {old}"),
        }
    }

    /// The power fails.
    fn fail(&mut self, kept: &Kept) {
        let all = self.pending.len() as u64;
        for (_, named) in self.pending.drain(..).take(kept.of(0, all) as usize) {
            name(&mut self.synced, &named);
        }
        self.names = self.synced.clone();
        for file in &mut self.files {
            for (seq, change) in file.pending.drain(..) {
                apply(&mut file.synced, &change, |all| kept.of(seq, all));
            }
            file.cached = file.synced.clone();
        }
    }

    fn is(&self, data: &Path) {
        let mut found = BTreeMap::new();
        for at in ["", "log"] {
            for entry in fs::read_dir(data.join(at)).unwrap().flatten().filter(|entry| entry.path().is_file())
            {
                let path = entry.path();
                found.insert(
                    path.strip_prefix(data).unwrap().to_str().unwrap().to_owned(),
                    fs::read(path).unwrap(),
                );
            }
        }
        let names = |of: Vec<&String>| of.into_iter().cloned().collect::<Vec<String>>();
        assert_eq!(names(found.keys().collect()), names(self.names.keys().collect()));
        for (path, file) in &self.names {
            assert!(found[path] == self.files[*file].cached, "{path} holds something else");
        }
    }
}

#[test]
fn what_is_left_is_that_of_a_model() {
    const SEEDS: u64 = 4;
    let mut sum = Undone::default();
    for seed in 1..=SEEDS {
        let Some(mut lab) = Lab::new(seed, false) else { return };
        let (mut draws, mut model) = (Draws::new(seed, "model"), Model::default());
        for round in 0..10 {
            // A process that is killed loses nothing, and what it had not synced its successor has not either.
            for _ in 0..=draws.below(2) {
                let mut process = lab.start();
                for _ in 0..draws.below(60) {
                    let what = model.some(&mut draws);
                    let said = process.tell(&what);
                    assert!(!said.starts_with("error"), "seed {seed}, {what}: {said}");
                }
                process.kill();
                model.is(&lab.data());
            }
            let kept =
                if round % 3 == 0 { Kept::Nothing } else { Kept::Part(Draws::new(draws.draw(), "kept")) };
            sum += lab.undo(kept.clone());
            model.fail(&kept);
            model.is(&lab.data());
        }
        lab.shim.check().unwrap();
    }
    eprintln!("{sum:?}");
    assert!(sum.lost > 50 && sum.torn > 50 && sum.names_lost > 25, "{sum:?}");
}

/// Kills a process again and again while it writes and syncs; whether all that it said was synced was there each time.
fn counts(lies: bool) -> Option<bool> {
    let mut lab = Lab::new(1, lies)?;
    let path = lab.data().join("log/counted");
    File::create(&path).unwrap();
    let mut next = 0;
    for round in 0..12 {
        let mut process = lab.start();
        writeln!(process.stdin, "count log/counted {next}").unwrap();
        let began = Instant::now();
        let mut said = process.says().unwrap();
        while began.elapsed() < Duration::from_millis(20 + 7 * round) {
            said = process.says().unwrap();
        }
        let last: u64 = process.kill().last().unwrap_or(&said).parse().unwrap();
        lab.undo(if round % 2 == 0 { Kept::Nothing } else { Kept::Part(Draws::new(round, "kept")) });
        let left = fs::read(&path).unwrap();
        let numbers = left.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
        if !numbers.take(last as usize + 1).eq(0..=last) {
            return Some(false);
        }
        next = last + 1;
    }
    lab.shim.check().unwrap();
    Some(true)
}

#[test]
fn what_was_synced_is_there_whenever_the_power_fails() {
    assert_ne!(counts(false), Some(false));
}

#[test]
fn a_disk_that_lies_is_found_out() {
    assert_ne!(counts(true), Some(true));
}

#[test]
fn disks_and_clocks_fail_as_they_are_told_and_are_well_again() {
    let Some(mut lab) = Lab::new(3, false) else { return };
    let mut process = lab.start();
    let told = |process: &mut Process, what: &[&str], want: &[&str]| {
        let said: Vec<String> = what.iter().map(|what| process.tell(what)).collect();
        assert_eq!(said, want, "{what:?}");
    };
    let (eio, full) = ("error 5", "error 28");
    told(&mut process, &["put log/1 100 1", "sync log/1", "copy log/1 log/2"], &["done", "done", "100"]);

    lab.shim.strike(1, &fault("kind = \"io-error\"\nshare = 1.0"), &[1]).unwrap();
    told(
        &mut process,
        &["write log/1 0 9 2", "append log/1 9 2", "read log/1", "sync log/1"],
        &[eio, eio, eio, "done"],
    );
    assert!(lab.shim.may_end(1));
    assert_eq!(lab.shim.heal(1).unwrap(), "tried 3, failed 3");

    lab.shim.strike(2, &fault("kind = \"io-error\"\nshare = 0.25"), &[1]).unwrap();
    let failed = (0..200).filter(|_| process.tell("write log/1 0 9 2") == eio).count();
    assert!((20..80).contains(&failed), "{failed}");
    assert_eq!(lab.shim.heal(2).unwrap(), format!("tried 200, failed {failed}"));

    lab.shim.strike(3, &fault("kind = \"disk-full\""), &[1]).unwrap();
    told(
        &mut process,
        &["write log/1 50 50 3", "write log/1 50 51 3", "append log/1 1 3"],
        &["done", full, full],
    );
    told(
        &mut process,
        &["create log/3", "mkdir log/4", "cut log/1 200", "remove log/2"],
        &[full, full, full, "done"],
    );
    assert_eq!(lab.shim.heal(3).unwrap(), "refused 5");
    told(&mut process, &["create log/3", "append log/1 1 3", "read log/1"], &["done", "done", "101"]);

    lab.shim.fail_sync(1).unwrap();
    told(&mut process, &["sync log/1", "sync log/1", "sync-folder log"], &[eio, "done", "done"]);

    lab.shim.strike(4, &fault("kind = \"slow-disk\"\nby = \"300ms\""), &[1]).unwrap();
    let began = Instant::now();
    told(&mut process, &["sync log/1"], &["done"]);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    // One that goes on when the fault is over ends with it.
    writeln!(process.stdin, "sync log/1").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.shim.heal(4).unwrap(), "slowed 2");
    assert_eq!(process.says().unwrap(), "done");

    let ahead = |process: &mut Process| {
        let told: i128 = process.tell("now").parse().unwrap();
        told - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i128
    };
    lab.shim.strike(5, &fault("kind = \"clock-step\"\nby = \"1h\""), &[1]).unwrap();
    assert!((3_590_000..=3_600_000).contains(&ahead(&mut process)));
    lab.shim.heal(5).unwrap();
    assert!((-10_000..=0).contains(&ahead(&mut process)));
    lab.shim.strike(6, &fault("kind = \"clock-drift\"\nshare = 1.0"), &[1]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    lab.shim.tell().unwrap();
    assert!(ahead(&mut process) >= 900, "{}", ahead(&mut process));
    lab.shim.heal(6).unwrap();
    process.kill();
    lab.shim.check().unwrap();
}
