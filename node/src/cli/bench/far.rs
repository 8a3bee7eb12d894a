//! Terminals that are far away: links with a round trip between them and the nodes of a cluster on loopback. A node sees
//! such a terminal at an address of its own, where its notifications enter a link, too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use reveille_links::{Faults, Link, Route, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::super::dev::cluster::DevCluster;

/// Where terminals and nodes are.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where nodes see the terminals.
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
/// Round trips that are measured.
const LOOKS: usize = 21;

/// The links of a cluster.
pub(super) struct Far {
    faults: Faults,
    sessions: Vec<Link>,
    notifications: Vec<Link>,
}

impl Far {
    /// A link to the session port of each node.
    pub(super) async fn new(cluster: &DevCluster, rtt: Duration) -> anyhow::Result<Far> {
        let mut far = Far {
            faults: Faults::both(Way { delay: rtt / 2, ..Way::default() }),
            sessions: Vec::new(),
            notifications: Vec::new(),
        };
        for node in &cluster.nodes {
            let link = Link::tcp(far.route(SocketAddr::new(HERE, 0), node.session.parse()?)).await?;
            link.set(far.faults);
            far.sessions.push(link);
        }
        Ok(far)
    }

    fn route(&self, listen: SocketAddr, to: SocketAddr) -> Route {
        let name = format!("far {}", self.sessions.len() + self.notifications.len());
        Route { name, seed: 0, listen, to, from: Some(THERE) }
    }

    /// Where terminals find the nodes.
    pub(super) fn servers(&self) -> Vec<String> {
        self.sessions.iter().map(|link| link.address().to_string()).collect()
    }

    /// A link for the notifications of one more terminal; where it must listen. Nodes dial it at the port that it names,
    /// so the link has the same one.
    pub(super) async fn terminal(&mut self) -> anyhow::Result<SocketAddr> {
        let listen = UdpSocket::bind(SocketAddr::new(HERE, 0)).await?.local_addr()?;
        // Nodes are at the loopback address whose answers come from everywhere: no address of their own is needed.
        let route = Route { from: None, ..self.route(SocketAddr::new(THERE, listen.port()), listen) };
        let link = Link::udp(route).await?;
        link.set(self.faults);
        self.notifications.push(link);
        Ok(listen)
    }

    /// What a round trip through such a link takes on this machine now: the median of some.
    pub(super) async fn round_trip(&self) -> anyhow::Result<Duration> {
        let echo = TcpListener::bind(SocketAddr::new(HERE, 0)).await?;
        let link = Link::tcp(self.route(SocketAddr::new(HERE, 0), echo.local_addr()?)).await?;
        link.set(self.faults);
        let (mut here, there) = tokio::join!(TcpStream::connect(link.address()), echo.accept());
        let (mut there, _) = there?;
        let here = here.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?;
        here.set_nodelay(true)?;
        let mut took = Vec::new();
        let mut byte = [0];
        for _ in 0..LOOKS {
            let began = Instant::now();
            here.write_all(&byte).await?;
            there.read_exact(&mut byte).await?;
            there.write_all(&byte).await?;
            here.read_exact(&mut byte).await?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        Ok(took[LOOKS / 2])
    }
}
