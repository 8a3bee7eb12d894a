//! Sessions against a real cluster of one node, with what they are told in an order that the test decides. No sockets of
//! terminals.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::RwLock;
use std::time::{SystemTime, UNIX_EPOCH};

use actix::Addr;
use bytes::BytesMut;
use reveille_cluster::ClusterConfig;
use reveille_cluster::link::Identity;
use reveille_cluster::member::{Beginning, MemberConfig, Start};
use reveille_cluster::query::{Answer, Query};
use reveille_protocol::directory::{Directory, Node, Tenant};
use reveille_protocol::service_list::row::{Linger, Urgency};
use reveille_protocol::wire::session::{Bye, ByeReason, Cause, Hello, NodeFrame, Nonce, Offer};
use reveille_terminal::ground::TcpListener;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::cli::certs::Ca;
use crate::host::NodeHost;
use crate::session::tls::Tickets;

const CLUSTER: u64 = 7;
const TENANT: TenantId = TenantId(1);
const KEY: KeyFingerprint = KeyFingerprint([9; 32]);
const PATIENCE: Duration = Duration::from_secs(10);

/// A cluster of one node that lets everyone in, and its sessions.
async fn node(folder: &tempfile::TempDir) -> Arc<Context> {
    let (ca, _) = Ca::new().unwrap();
    let (certificate, key) = ca.node(1, CLUSTER, Vec::new(), 1).unwrap();
    let identity = Identity::new(
        NodeId(1),
        CLUSTER,
        vec![CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()],
        vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
        &PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = BTreeMap::from([(NodeId(1), Node::default())]);
    let tenant = Tenant { name: "open".to_owned(), enrolment_key: None, open: true };
    let member = MemberConfig {
        node: NodeId(1),
        cluster: CLUSTER,
        groups: 1,
        nodes: BTreeMap::from([(NodeId(1), listener.local_addr().unwrap().to_string())]),
        addresses: Node::default(),
        boot: 1,
        start: Start::unaccounted(1),
        store: 1,
        beginning: Some(Beginning {
            nodes,
            tenants: BTreeMap::from([(TENANT, tenant)]),
            tokens: BTreeMap::new(),
            secret: [7; 32],
        }),
        wall: Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64),
    };
    let config = ClusterConfig {
        member,
        data: folder.path().to_owned(),
        create: true,
        join: None,
        segment_bytes: 10 << 20,
        cache_bytes: 1 << 20,
        overlay_bytes: 1 << 20,
        listener,
        identity: identity.unwrap(),
    };
    let registry = Registry::default();
    let host = NodeHost {
        registry: registry.clone(),
        notifier: None,
        per_second: const { NonZeroU32::new(1000).unwrap() },
        tickets: Arc::new(Tickets::default()),
        latest: Arc::new(RwLock::new(Arc::new(Directory::default()))),
        failed: mpsc::channel(1).0,
    };
    let cluster = ClusterHandle::start(config, Arc::new(host)).await.unwrap();
    Arc::new(Context {
        cluster: OnceLock::from(cluster),
        registry,
        node: NodeId(1),
        check_in: Duration::from_secs(3600),
        linger_max: Some(Duration::from_secs(5)),
        notifier: None,
        anchor: AnchorAt { port: 1, period: 25 },
        origin: Clock::now(),
    })
}

/// A session without a connection.
struct Session {
    actor: Addr<SessionActor>,
    said: mpsc::Receiver<Vec<u8>>,
    buffer: BytesMut,
}

impl Session {
    fn open(context: &Arc<Context>) -> Session {
        let (outgoing, said) = mpsc::channel(super::super::listener::WRITES);
        let actor =
            SessionActor::new(context.clone(), KEY, IpAddr::from([127, 0, 0, 1]), outgoing, None).start();
        Session { actor, said, buffer: BytesMut::new() }
    }

    /// Puts a frame into the actor's mailbox; it is looked at when the test waits for something.
    fn tell(&self, frame: TerminalFrame) {
        self.actor.do_send(Incoming { frames: vec![frame], malformed: false });
    }

    async fn hear(&mut self) -> Option<NodeFrame> {
        loop {
            if let Some(frame) = NodeFrame::take(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            self.buffer.extend(tokio::time::timeout(PATIENCE, self.said.recv()).await.unwrap()?);
        }
    }
}

fn hello(attempt: u64) -> TerminalFrame {
    TerminalFrame::Hello(Hello {
        terminal: KEY.terminal(),
        attempt: Attempt(attempt),
        stream: Stream(0),
        last: Seq(0),
        listening: None,
        linger: Linger::Forever,
        min_urgency: Urgency::VeryLow,
        enrolment: None,
    })
}

async fn online(context: &Arc<Context>) -> bool {
    let cluster = context.cluster.get().unwrap();
    let terminal = KEY.terminal();
    let query = Query::Terminal { tenant: TENANT, terminal };
    match cluster.query(cluster.group_of(&terminal), query, PATIENCE).await.unwrap() {
        Answer::Terminal(Some(row)) => row.current.is_some(),
        other => panic!("{other:?}"),
    }
}

/// Of a terminal that lost its memory, or of a copy of one. They would have one epoch for two sessions: what the one
/// proposes would count for the other, and what was handed to the one would not come to the other.
#[test]
fn an_attempt_is_one_sessions_and_the_next_takes_its_place() {
    actix::System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let context = node(&folder).await;
        let mut older = Session::open(&context);
        older.tell(hello(1));
        assert!(matches!(older.hear().await, Some(NodeFrame::Welcome(_))));

        let mut same = Session::open(&context);
        same.tell(hello(1));
        let used = Bye { reason: ByeReason::StaleAttempt(Attempt(1)), retry_after: 0 };
        assert_eq!(same.hear().await, Some(NodeFrame::Bye(used)));
        assert!(online(&context).await);

        let mut next = Session::open(&context);
        next.tell(hello(2));
        let Some(NodeFrame::Welcome(welcome)) = next.hear().await else { panic!() };
        assert_eq!(welcome.epoch, Epoch(2));
        let superseded = Bye { reason: ByeReason::Superseded, retry_after: 0 };
        assert_eq!(older.hear().await, Some(NodeFrame::Bye(superseded)));
        assert!(online(&context).await);
        context.cluster.get().unwrap().shutdown().await;
    });
}

#[test]
fn a_session_of_a_cluster_that_has_just_begun_hears_of_its_anchor() {
    actix::System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let context = node(&folder).await;
        let mut session = Session::open(&context);
        session.tell(TerminalFrame::Offer(Offer::default()));
        session.tell(hello(1));
        // A terminal says something now and then; a node asks it to after a minute.
        let heard = async {
            loop {
                match session.hear().await {
                    Some(NodeFrame::Anchor(anchor)) => return anchor,
                    Some(_) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        session.tell(TerminalFrame::Ping(Nonce(1)));
                    }
                    None => panic!("the session has ended"),
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, heard).await.unwrap().port, context.anchor.port);
        context.cluster.get().unwrap().shutdown().await;
    });
}

#[test]
fn a_terminal_stays_no_longer_than_the_node_lets_it() {
    actix::System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let context = node(&folder).await;
        let classes =
            [None, Some(Class::Untried), Some(Class::None), Some(Class::Direct), Some(Class::Pinned)];
        let wishes = [Linger::AtOnce, Linger::Seconds(4), Linger::Seconds(100), Linger::Forever];
        let mut attempt = 0;
        for class in classes {
            for wish in wishes {
                attempt += 1;
                let mut session = Session::open(&context);
                if let Some(class) = class {
                    session.tell(TerminalFrame::Offer(Offer { class, cause: Cause::Start }));
                }
                let TerminalFrame::Hello(hello) = hello(attempt) else { panic!() };
                session.tell(TerminalFrame::Hello(Hello { linger: wish, ..hello }));
                let granted = loop {
                    if let NodeFrame::Welcome(welcome) = session.hear().await.unwrap() {
                        break welcome.linger;
                    }
                };
                let reached = matches!(class, Some(Class::Direct | Class::Pinned));
                let expected = match wish {
                    Linger::Seconds(100) => Linger::Seconds(5),
                    // Whoever is not reached by a notification would be out of reach.
                    Linger::Forever if reached => Linger::Seconds(5),
                    wish => wish,
                };
                assert_eq!(granted, expected, "{class:?} wishes {wish:?}");
            }
        }
        context.cluster.get().unwrap().shutdown().await;
    });
}
