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

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use reveille_cluster::host::{Host, NotifyOrder, Taken};
use reveille_cluster::link::{Identity, node_name};
use reveille_cluster::member::MemberConfig;
use reveille_cluster::query::{Answer, Query};
use reveille_cluster::{ClusterConfig, ClusterHandle};
use reveille_protocol::directory::{Directory, FORMAT, Node};
use reveille_protocol::hash::sha256;
use reveille_protocol::id::*;
use reveille_protocol::service_list::Reply;
use reveille_protocol::wire::peer::SessionMessage;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;

const CLUSTER: u64 = 0xa6bf_36b2_a8eb_c917;
/// Unix time in seconds at which the folder was left: by today's nothing in it would be alive.
const LEFT: u64 = 1_795_525_200;
const TOKEN: &str = "3e50089ede1539a850d0e59919c8b036e3af2a3c606fb593";

struct Nobody;

impl Host for Nobody {
    fn session(&self, _message: SessionMessage) -> Taken {
        Taken::NoSession
    }

    fn notify(&self, _order: NotifyOrder) -> bool {
        true
    }

    fn directory(&self, _directory: Arc<Directory>) {}

    fn fenced(&self) {}

    fn failed(&self, why: String) {
        panic!("{why}");
    }
}

fn identity() -> Identity {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let params = CertificateParams::new(vec![node_name(NodeId(1), CLUSTER)]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Identity::new(NodeId(1), CLUSTER, vec![ca], vec![certificate], &key).unwrap()
}

async fn start(data: &Path, boot: u64) -> ClusterHandle {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let member = MemberConfig {
        node: NodeId(1),
        cluster: CLUSTER,
        groups: 2,
        nodes: BTreeMap::from([(NodeId(1), at)]),
        addresses: Node::default(),
        boot,
        store: 77,
        beginning: None,
        wall: Arc::new(|| (LEFT + 3600) * 1_000_000),
    };
    let config = ClusterConfig {
        member,
        data: data.to_owned(),
        create: false,
        join: None,
        segment_bytes: 16 << 20,
        cache_bytes: 1 << 20,
        overlay_bytes: 1 << 20,
        listener,
        identity: identity(),
    };
    ClusterHandle::start(config, Arc::new(Nobody)).await.expect("a folder of an earlier format opens")
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
async fn a_folder_of_the_first_format_is_served_from_and_takes_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let data = unpack(1, folder.path());
    let terminals: Vec<TerminalId> = [
        "e2812051342201009f074ab2801df6f1",
        "35b1cbd615818c4b6cb2caa3ce7451ed",
        "a7a015db96ca838258295f390c61f6e7",
    ]
    .map(|id| id.parse().unwrap())
    .to_vec();
    for boot in 1..=3 {
        let cluster = start(&data, boot).await;
        let directory = cluster.directory();
        assert_eq!(directory.groups, 2);
        assert!(directory.tokens.contains_key(&KeyFingerprint(sha256(TOKEN.as_bytes()))));
        assert_eq!(directory.secrets.len(), 1);
        // Three pushes of which one was taken back; two; one that replaced another; and what this test adds.
        let added = boot as u32 - 1;
        for (terminal, stored) in terminals.iter().zip([2, 2, 1]) {
            assert_eq!(
                pending(&cluster, *terminal).await,
                stored + added,
                "start {boot}, terminal {terminal}"
            );
            let push = support::push(boot, *terminal, Bytes::from_static(b"new"));
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
