//! A project of `docker-compose.yml`: a clone's files with this build's binary, under a name of its own; nothing of it is
//! left when the test ends, however it ends.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The base image, unless REVEILLE_BASE names another.
const BASE: &str = "reveille-base";
/// Making an image, starting everything, and tearing it down: each.
const START: Duration = Duration::from_secs(120);
/// Any other command.
pub const COMMAND: Duration = Duration::from_secs(30);

/// Why a command failed, and what it said: lines stay lines when `unwrap` shows it.
pub struct Failed(String);

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub type Outcome = Result<String, Failed>;

/// Runs a command to its end, or ends it.
fn run(limit: Duration, command: &[&str], set: impl FnOnce(&mut Command)) -> Outcome {
    let mut bounded = Command::new("timeout");
    bounded.arg(limit.as_secs().to_string()).args(command).stdin(Stdio::null());
    set(&mut bounded);
    let output = bounded.output().map_err(|error| Failed(format!("timeout: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let why = match output.status.code() {
        Some(124) => format!("took more than {limit:?}"),
        _ => output.status.to_string(),
    };
    let said = [output.stdout, output.stderr].concat();
    Err(Failed(format!("{}: {why}\n{}", command.join(" "), String::from_utf8_lossy(&said))))
}

pub fn docker(arguments: &[&str]) -> Outcome {
    run(COMMAND, &[&["docker"], arguments].concat(), |_| {})
}

/// What building leaves in Docker beside the image.
fn left_by_builds() -> BTreeSet<String> {
    let filters = ["--filter", "dangling=true", "--filter", "label=stage=reveille-build"];
    let left = docker(&[&["images", "--quiet", "--no-trunc"], &filters[..]].concat()).unwrap();
    left.lines().map(str::to_owned).collect()
}

pub struct Compose {
    pub project: String,
    clone: tempfile::TempDir,
    made_base: bool,
    left_before: BTreeSet<String>,
}

impl Compose {
    /// Makes the image of this binary, and where none is named the base for it.
    pub fn build(reveille: &Path) -> Compose {
        let clone = tempfile::tempdir().unwrap();
        for file in ["docker-compose.yml", "Dockerfile", ".dockerignore", "docker"] {
            let file = Path::new(SOURCE).join(file);
            run(COMMAND, &["cp", "-r", file.to_str().unwrap(), clone.path().to_str().unwrap()], |_| {})
                .unwrap();
        }
        let binary = clone.path().join("target/release/reveille");
        fs::create_dir_all(binary.parent().unwrap()).unwrap();
        run(COMMAND, &["strip", "-o", binary.to_str().unwrap(), reveille.to_str().unwrap()], |_| {}).unwrap();
        let base = std::env::var("REVEILLE_BASE").unwrap_or_else(|_| BASE.to_owned());
        let made_base = base == BASE && docker(&["image", "inspect", BASE]).is_err();
        let compose = Compose {
            project: format!("reveille-test-{}", std::process::id()),
            clone,
            made_base,
            left_before: left_by_builds(),
        };
        let settings = match made_base {
            true => run(START, &[&format!("{SOURCE}/docker/base-image.sh"), BASE], |_| {}).unwrap(),
            false => format!(
                "REVEILLE_BUILDER={base}\nREVEILLE_BASE={base}\nREVEILLE_BINARY=target/release/reveille"
            ),
        };
        fs::write(compose.clone.path().join(".env"), settings).unwrap();
        // All services have the same image.
        compose.run(START, &["build", "init"]).unwrap();
        compose
    }

    fn run(&self, limit: Duration, arguments: &[&str]) -> Outcome {
        let command = [&["docker-compose", "--project-name", &self.project], arguments].concat();
        run(limit, &command, |command| {
            command
                .current_dir(self.clone.path())
                .env("REVEILLE_IMAGE", &self.project)
                .env("REVEILLE_TERMINAL_FLAGS", "--json");
        })
    }

    /// Starts services and what they depend on, and waits for what they wait for.
    pub fn up(&self, services: &[&str]) {
        self.run(START, &[&["up", "--no-build", "--detach"], services].concat()).unwrap();
    }

    /// Starts a container of a service that does nothing; its name.
    pub fn idle(&self, service: &str) -> String {
        self.run(COMMAND, &["run", "--detach", "--no-deps", "--entrypoint", "sleep", service, "infinity"])
            .unwrap()
    }

    pub fn container(&self, service: &str) -> String {
        let id = self.run(COMMAND, &["ps", "--quiet", service]).unwrap();
        assert!(!id.is_empty(), "{service} has no container");
        id
    }

    pub fn wait_ready(&self, node: &str) {
        let deadline = Instant::now() + COMMAND;
        let container = self.container(node);
        while let Err(why) = docker(&["exec", &container, "reveille", "status", "--check"]) {
            assert!(Instant::now() < deadline, "{node} is not ready: {why:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            match self.run(COMMAND, &["logs", "--no-color", "--tail", "15"]) {
                Ok(logs) => eprintln!("the last lines of the containers:\n{logs}"),
                Err(why) => eprintln!("no logs: {why:?}"),
            }
        }
        // Stopping does not end what is paused. Fails where nothing is.
        let _ = self.run(COMMAND, &["unpause"]);
        let down = ["down", "--volumes", "--remove-orphans", "--rmi", "all", "--timeout", "2"];
        if let Err(why) = self.run(START, &down) {
            eprintln!("not everything is torn down: {why:?}");
        }
        let mut images: Vec<_> = left_by_builds().difference(&self.left_before).cloned().collect();
        images.extend(self.made_base.then(|| BASE.to_owned()));
        for image in images {
            if let Err(why) = docker(&["image", "rm", &image]) {
                eprintln!("an image is left: {why:?}");
            }
        }
    }
}
