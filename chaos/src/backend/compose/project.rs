//! A run's project: docker-compose.yml with what is laid over it, brought up under a name of its own, and taken down by its
//! label. A project is dead when nobody has its lock any more; the next run takes it down.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::docker::{SHORT, compose, docker, run};
use crate::cli::output;

/// The file that the repository had when this was built.
const COMPOSE: &str = include_str!("../../../../docker-compose.yml");
/// Its nodes.
pub(super) const NODES: u64 = 3;
/// Its volumes.
const VOLUMES: [&str; 7] =
    ["authority", "node-1", "node-2", "node-3", "terminal-1", "terminal-2", "publisher"];
/// On everything of a run: the path of its lock.
const LABEL: &str = "reveille.chaos";
/// Until all containers are started, and all are gone: seconds, minutes on a machine that is busy.
const START: Duration = Duration::from_secs(300);

/// By what its nodes are struck: arguments, as `cluster.toml` has them. `{hosts}` is what an id makes an address of.
pub(super) const HOOKS: [(&str, &[&str]); 11] = [
    ("kill", &["docker", "kill", "{host}"]),
    ("stop", &["docker", "stop", "-t", "10", "{host}"]),
    ("start", &["docker", "start", "{host}"]),
    ("pause", &["sh", "hook.sh", "pause", "{host}"]),
    ("resume", &["sh", "hook.sh", "resume", "{host}"]),
    ("cut", &["sh", "hook.sh", "cut", "{to_host}", "{hosts}{from}"]),
    ("loss", &["sh", "hook.sh", "loss", "{to_host}", "{hosts}{from}", "{share}"]),
    ("heal", &["sh", "hook.sh", "heal", "{to_host}", "{hosts}{from}"]),
    ("cpu", &["sh", "hook.sh", "cpu", "{host}", "{share}"]),
    ("release", &["sh", "hook.sh", "release", "{host}"]),
    ("logs", &["sh", "hook.sh", "logs", "{host}"]),
];

/// See the module.
pub(super) struct Project {
    name: String,
    folder: PathBuf,
    /// Locked for as long as this lives.
    _lock: File,
    lock: String,
    down: bool,
}

impl Project {
    /// Makes its folder, after what dead runs have left is taken down. Nothing is started.
    ///
    /// # Errors
    /// If the folder cannot be made, or Docker does not answer.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Project> {
        sweep()?;
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("lock");
        let lock = File::create_new(&path).with_context(|| path.display().to_string())?;
        lock.try_lock().with_context(|| path.display().to_string())?;
        let path = path.to_str().context("a path that is no text cannot be a label")?.to_owned();
        // Two runs of one moment have two processes.
        let name = format!("chaos-{}", std::process::id());
        Ok(Project { name, folder: folder.to_owned(), _lock: lock, lock: path, down: false })
    }

    /// Where attach finds everything about it.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.join("cluster.toml")
    }

    /// Of its nodes, in their order.
    pub(super) fn containers(&self) -> Vec<String> {
        (1..=NODES).map(|id| format!("{}-node-{id}", self.name)).collect()
    }

    /// The folders that its nodes write to, where this machine shows them.
    pub(super) fn data(&self) -> Vec<PathBuf> {
        let folder = |id: u64| {
            let volume = format!("{}_node-{id}", self.name);
            let place = docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]);
            place.map(|place| Path::new(&place).join("data")).unwrap_or_default()
        };
        (1..=NODES).map(folder).collect()
    }

    /// Founds the cluster and starts its nodes; what is needed to reach them is in the folder then.
    ///
    /// # Errors
    /// What failed; what was started stays until this is dropped.
    pub(super) fn up(&self, shards: u64) -> anyhow::Result<()> {
        let subnet = self.subnet()?;
        let hosts = hosts(&subnet)?;
        let over = serde_json::to_vec_pretty(&self.over(&subnet, &hosts, shards))?;
        self.write("docker-compose.yml", COMPOSE.as_bytes())?;
        // JSON is YAML.
        self.write("over.yml", &over)?;
        self.write("hook.sh", include_bytes!("hook.sh"))?;
        let (base, over) = (self.path("docker-compose.yml"), self.path("over.yml"));
        let files = ["--project-name", &self.name, "--file", &base, "--file", &over];
        let up = ["up", "--no-build", "--detach", "node-1", "node-2", "node-3"];
        run(START, &[compose()?, &files, &up].concat()).context("the cluster could not be started")?;
        let init = self.init();
        for (from, to) in [
            ("publisher/ca.pem", "ca.pem"),
            ("publisher/token", "token"),
            ("terminal-1/enrolment", "enrolment"),
        ] {
            docker(&["cp", &format!("{init}:/init/{from}"), &self.path(to)])?;
        }
        self.write("cluster.toml", self.cluster(&hosts).as_bytes())
    }

    fn init(&self) -> String {
        format!("{}-init", self.name)
    }

    /// Keeps what the containers have said, of a cluster with which nothing could be begun.
    pub(super) fn logs(&self) {
        for container in self.containers().into_iter().chain([self.init()]) {
            let log = run(SHORT, &["sh", &self.path("hook.sh"), "logs", &container]);
            let kept = log.and_then(|log| self.write(&format!("{container}.log"), log.as_bytes()));
            if let Err(error) = kept {
                output::complain(format!("{container}: its log is not kept: {error:#}"));
            }
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &[u8]) -> anyhow::Result<()> {
        let path = self.path(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text)).with_context(|| path)
    }

    /// A network that Docker has no other use for. It gives fixed addresses only in one that somebody else has chosen, so it is
    /// asked for one, and then that is chosen.
    fn subnet(&self) -> anyhow::Result<String> {
        let label = format!("{LABEL}={}", self.lock);
        let trial = format!("{}_trial", self.name);
        docker(&["network", "create", "--label", &label, &trial])?;
        let subnet = docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", &trial]);
        docker(&["network", "rm", &trial])?;
        subnet
    }

    /// What is laid over docker-compose.yml: labels, fixed addresses that this host can reach, and an operator's port at them.
    fn over(&self, subnet: &str, hosts: &str, shards: u64) -> Value {
        let labels = json!({ LABEL: self.lock });
        let volumes: serde_json::Map<String, Value> =
            VOLUMES.iter().map(|name| ((*name).to_owned(), json!({ "labels": labels }))).collect();
        let addresses: Vec<String> = (1..=NODES).map(|id| format!("{hosts}{id}")).collect();
        let mut services = serde_json::Map::new();
        services.insert(
            "init".to_owned(),
            json!({
                "container_name": self.init(),
                "labels": labels,
                "environment": { "REVEILLE_NAMES": addresses.join(",") },
            }),
        );
        for (id, address) in (1..=NODES).zip(&addresses) {
            services.insert(
                format!("node-{id}"),
                json!({
                    "container_name": format!("{}-node-{id}", self.name),
                    "labels": labels,
                    // It asks at loopback, where no operator listens then; it cannot be left out, and this run looks itself.
                    "healthcheck": { "test": ["CMD", "true"], "interval": "1h" },
                    "networks": { "default": { "aliases": ["push"], "ipv4_address": address } },
                    "environment": {
                        "REVEILLE_CLUSTER__GROUPS": shards.to_string(),
                        "REVEILLE_SESSION__ADVERTISE": format!("{address}:8443"),
                        "REVEILLE_HTTP__ADVERTISE": format!("https://{address}:8080"),
                        "REVEILLE_ADMIN__LISTEN": "0.0.0.0:9100",
                    },
                }),
            );
        }
        json!({
            "networks": { "default": { "labels": labels, "ipam": { "config": [{ "subnet": subnet }] } } },
            "volumes": volumes,
            "services": services,
        })
    }

    /// `cluster.toml`, as somebody writes it whose own cluster it is.
    fn cluster(&self, hosts: &str) -> String {
        let mut text = format!(
            "name = \"{}\"\nca = \"ca.pem\"\ntoken = \"token\"\nadmin_token = \"token\"\nenrolment = \"enrolment\"\n",
            self.name
        );
        for (id, container) in (1..=NODES).zip(self.containers()) {
            text.push_str(&format!(
                "[[node]]\nid = {id}\nhost = \"{container}\"\nhttp = \"https://{hosts}{id}:8080\"\n\
                 session = \"{hosts}{id}:8443\"\nadmin = \"https://{hosts}{id}:9100\"\n"
            ));
        }
        text.push_str("[hooks]\nwithin = \"30s\"\n");
        for (name, arguments) in HOOKS {
            let arguments: Vec<String> = arguments
                .iter()
                .map(|argument| format!("{:?}", argument.replace("{hosts}", hosts)))
                .collect();
            text.push_str(&format!("{name} = [{}]\n", arguments.join(", ")));
        }
        text
    }

    /// Takes it down.
    ///
    /// # Errors
    /// What is left.
    pub(super) fn down(mut self) -> anyhow::Result<()> {
        self.down = true;
        remove(&self.lock)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if !self.down
            && let Err(error) = remove(&self.lock)
        {
            output::complain(format!("{}: {error:#}; the next run tries again", self.name));
        }
    }
}

/// What the addresses of a network begin with for containers, so that an id behind it makes one of them.
fn hosts(subnet: &str) -> anyhow::Result<String> {
    let network = subnet.split('/').next().and_then(|network| network.strip_suffix(".0"));
    // The first ones are the gateway's and those of containers that want no certain one.
    network.map(|network| format!("{network}.1")).with_context(|| {
        format!("Docker's next network is {subnet}; one of IPv4 that begins at .0 is needed: default-address-pools")
    })
}

/// Everything that has this label: by what it is, and how it is removed.
const THINGS: [(&[&str], &[&str]); 3] = [
    (&["ps", "--all"], &["rm", "--force", "--volumes"]),
    (&["network", "ls"], &["network", "rm"]),
    (&["volume", "ls"], &["volume", "rm"]),
];

/// Removes everything of the run that has this lock, and nothing else.
fn remove(lock: &str) -> anyhow::Result<()> {
    let label = format!("label={LABEL}={lock}");
    for (list, remove) in THINGS {
        let all = docker(&[list, &["--quiet", "--filter", &label]].concat())?;
        let all: Vec<&str> = all.lines().collect();
        if !all.is_empty() {
            run(START, &[&["docker"], remove, &all].concat())?;
        }
    }
    Ok(())
}

/// Takes down what runs have left that are dead. Whether one is whose folder is gone nobody can say, so it is only told.
fn sweep() -> anyhow::Result<()> {
    let format = format!("{{{{.Label \"{LABEL}\"}}}}");
    let mut locks = BTreeSet::new();
    for (list, _) in THINGS {
        let found = docker(&[list, &["--filter", &format!("label={LABEL}"), "--format", &format]].concat())?;
        locks.extend(found.lines().map(str::to_owned));
    }
    for lock in locks {
        let Ok(file) = File::open(&lock) else {
            output::complain(format!(
                "containers, networks or volumes with the label {LABEL}={lock} are left alone: the run's folder is not \
                 there; if it is over: docker rm, docker network rm, docker volume rm"
            ));
            continue;
        };
        if file.try_lock().is_ok() {
            output::line(format!("a run that is dead left containers; they are taken down ({lock})"));
            remove(&lock)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_those_of_the_network() {
        assert_eq!(hosts("172.18.0.0/16").unwrap(), "172.18.0.1");
        assert_eq!(hosts("192.168.16.0/20").unwrap(), "192.168.16.1");
        assert!(hosts("10.0.0.16/28").is_err());
        assert!(hosts("fd00::/64").is_err());
    }
}
