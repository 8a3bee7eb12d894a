//! Data folders that earlier formats wrote: each is read, served from, written to and read again. `golden/format-N.tar.gz`
//! is the `data` of a cluster of one node, as the last version of that format left it.
//!
//! A new one: `reveille dev --nodes 1 --groups 2 --no-demo --data D` with the version that landed, some terminals and pushes
//! through its API, SIGTERM, then `tar --sparse -czf` of `D/node-1` as `folder`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test of real folders, which stops where it is surprised"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::link::{Identity, node_name};
use reveille_cluster::member::{MemberConfig, Start};
use reveille_cluster::query::{Answer, Query};
use reveille_cluster::{ClusterConfig, ClusterHandle};
use reveille_protocol::directory::{Directory, FORMAT, Node};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::*;
use reveille_protocol::service_list::Reply;
use reveille_protocol::wire::peer::SessionMessage;
use reveille_simulation::commands;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;

/// A folder, and what is known of it.
struct Golden {
    format: u32,
    cluster: u64,
    /// Unix time in seconds at which the folder was left: by today's nothing in it would be alive.
    left: u64,
    token: &'static str,
    /// Of the first three pushes wait, of which one was taken back; of the second two; of the third one that replaced
    /// another.
    terminals: [&'static str; 3],
}

const GOLDEN: [Golden; 2] = [
    Golden {
        format: 1,
        cluster: 0xa6bf_36b2_a8eb_c917,
        left: 1_795_525_200,
        token: "3e50089ede1539a850d0e59919c8b036e3af2a3c606fb593",
        terminals: [
            "e2812051342201009f074ab2801df6f1",
            "35b1cbd615818c4b6cb2caa3ce7451ed",
            "a7a015db96ca838258295f390c61f6e7",
        ],
    },
    Golden {
        format: 2,
        cluster: 0x68cc_c818_71bf_3a03,
        left: 1_795_549_700,
        token: "1202c11d51f96fd5478070a8e27766e773df0bfc46b571e5",
        terminals: [
            "47bebd67e55d1ee90357a5ce22b27031",
            "a65e708bf319065a6e3e2635aae02596",
            "0c5442af192dd6d3145e17f505473422",
        ],
    },
];

struct Nobody;

impl Host for Nobody {
    fn session(&self, _message: SessionMessage) -> Taken {
        Taken::NoSession
    }

    fn notify(&self, _order: NotifyOrder) -> bool {
        true
    }

    fn directory(&self, _directory: Arc<Directory>) {}

    fn go_elsewhere(&self, _whose: &dyn Fn(&TerminalId) -> bool) {}
    fn fenced(&self) {}

    fn failed(&self, why: String) {
        panic!("{why}");
    }
}

fn identity(cluster: u64) -> Identity {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let params = CertificateParams::new(vec![node_name(NodeId(1), cluster)]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Identity::new(NodeId(1), cluster, vec![ca], vec![certificate], &key).unwrap()
}

fn config(golden: &'static Golden, data: &Path, boot: u64, listener: TcpListener) -> ClusterConfig {
    let at = listener.local_addr().unwrap().to_string();
    let member = MemberConfig {
        node: NodeId(1),
        cluster: golden.cluster,
        groups: 2,
        nodes: BTreeMap::from([(NodeId(1), at)]),
        addresses: Node::default(),
        boot,
        start: Start::unaccounted(boot),
        store: 77,
        beginning: None,
        wall: Arc::new(move || (golden.left + 3600) * 1_000_000),
    };
    ClusterConfig {
        member,
        data: data.to_owned(),
        create: false,
        join: None,
        segment_bytes: 16 << 20,
        cache_bytes: 1 << 20,
        overlay_bytes: 1 << 20,
        listener,
        identity: identity(golden.cluster),
    }
}

async fn start(golden: &'static Golden, data: &Path, boot: u64) -> ClusterHandle {
    // The tasks of the start before end in their own time.
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        match ClusterHandle::start(config(golden, data, boot, listener), Arc::new(Nobody)).await {
            Ok(cluster) => return cluster,
            Err(error) if error.to_string().contains("in use") && tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("a folder of an earlier format does not open: {error}"),
        }
    }
}

fn unpack(format: u32, to: &Path) -> PathBuf {
    let packed = format!("{}/tests/golden/format-{format}.tar.gz", env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(to).status().unwrap();
    assert!(done.success());
    to.join("folder")
}

async fn pending(cluster: &ClusterHandle, terminal: TerminalId) -> u32 {
    let query = Query::Terminal { tenant: TenantId(1), terminal };
    match cluster.query(cluster.group_of(&terminal), query, Duration::from_secs(5)).await {
        Ok(Answer::Terminal(Some(row))) => row.pending,
        other => panic!("terminal {terminal}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_an_earlier_format_is_served_from_and_takes_the_next() {
    for golden in &GOLDEN {
        is_served_from(golden).await;
    }
}

async fn is_served_from(golden: &'static Golden) {
    let folder = tempfile::tempdir().unwrap();
    let data = unpack(golden.format, folder.path());
    let terminals = golden.terminals.map(|id| id.parse::<TerminalId>().unwrap());
    for boot in 1..=3 {
        let cluster = start(golden, &data, boot).await;
        let directory = cluster.directory();
        assert_eq!(directory.groups, 2);
        assert!(directory.tokens.contains_key(&KeyFingerprint(sha256(golden.token.as_bytes()))));
        assert_eq!(directory.secrets.len(), 1);
        // And what this test adds.
        let added = boot as u32 - 1;
        for (terminal, stored) in terminals.iter().zip([2, 2, 1]) {
            assert_eq!(
                pending(&cluster, *terminal).await,
                stored + added,
                "format {}, start {boot}, terminal {terminal}",
                golden.format
            );
            let push = commands::push(boot, *terminal, Bytes::from_static(b"new"));
            let reply = cluster.propose(cluster.group_of(terminal), push, Duration::from_secs(5)).await;
            assert!(matches!(reply, Ok(Reply::Enqueued { .. })), "{reply:?}");
        }
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while cluster.directory().roster.format < FORMAT {
            assert!(tokio::time::Instant::now() < until, "the format is not raised");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(cluster.directory().roster.records.len(), 1);
        cluster.shutdown().await;
    }
}

/// Whoever starts again in the same process needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_lets_its_port_go() {
    let golden = GOLDEN.last().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = unpack(golden.format, folder.path());
    let holder = start(golden, &data, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let started = ClusterHandle::start(config(golden, &data, 2, listener), Arc::new(Nobody)).await;
    let error = started.err().expect("two nodes are on one folder");
    assert!(error.to_string().contains("in use"), "{error}");
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = TcpListener::bind(at).await {
        assert!(tokio::time::Instant::now() < until, "{at}: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holder.shutdown().await;
}
