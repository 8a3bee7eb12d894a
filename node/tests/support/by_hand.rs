//! A node as its operator makes it: by its certificates, its configuration file and `reveille node`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reveille_protocol::hash::sha256;

use super::{PATIENCE, REVEILLE, Running, free_addresses, http_try};

/// A cluster of one node: nobody gets in without a token.
pub struct ByHand {
    pub folder: tempfile::TempDir,
    pub admin: String,
    pub session: String,
    pub http: String,
    pub token: String,
    pub enrolment_token: String,
}

pub fn command(arguments: &[&str]) -> String {
    let output = Command::new(REVEILLE).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl ByHand {
    pub fn new() -> ByHand {
        ByHand::with("localhost,127.0.0.1", "")
    }

    /// Whose node has these names and, in `[notify]`, these lines more.
    pub fn with(names: &str, notify: &str) -> ByHand {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let cluster = "00c0ffee00c0ffee";
        command(&["certs", "ca", "--out", &at("ca")]);
        command(&[
            "certs",
            "node",
            "--ca",
            &at("ca"),
            "--id",
            "1",
            "--cluster",
            cluster,
            "--names",
            names,
            "--out",
            &at(""),
        ]);
        let token = "secret".to_owned();
        let hash: String = sha256(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let enrolment_key = command(&["certs", "enrolment-key", "--out", &at("")]);
        let enrolment_token = command(&["certs", "enrolment-token", "--key", &at("enrolment.key")]);
        let ports = free_addresses(4);
        let [peer, session, http, admin] = &ports[..] else { panic!("four ports") };
        let text = format!(
            "node = 1\ndata = {:?}\n\
             [cluster]\nid = {cluster:?}\ngroups = 2\nnodes = {{ 1 = {peer:?} }}\n\
             [cluster.tenant]\nname = \"acme\"\nadmin_token_sha256 = {hash:?}\n{enrolment_key}\n\
             [tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
             [peer]\nlisten = {peer:?}\n[session]\nlisten = {session:?}\n\
             [http]\nlisten = {http:?}\ntls = false\n[admin]\nlisten = {admin:?}\n\
             [notify]\nbind = \"127.0.0.1:0\"\n{notify}\n[storage]\nsegment_bytes = 16777216\n",
            at("data"),
            at("ca/ca.pem"),
            at("node-1.pem"),
            at("node-1.key"),
        );
        std::fs::write(at("node.toml"), text).unwrap();
        ByHand {
            admin: format!("http://{admin}"),
            session: session.clone(),
            http: format!("http://{http}"),
            token,
            enrolment_token,
            folder,
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn spawn(&self) -> Running {
        let log = std::fs::File::options().append(true).create(true).open(self.path("log.txt")).unwrap();
        let child = Command::new(REVEILLE)
            .args(["node", "--create", "--log-level", "warn", "--config", &self.path("node.toml")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Running(child)
    }

    pub fn start(&self) -> Running {
        let child = self.spawn();
        let until = Instant::now() + PATIENCE;
        while http_try(&self.admin, "GET", "/readyz", &[], b"").is_none_or(|answer| answer.status != 200) {
            assert!(Instant::now() < until, "the node is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }
}
