//! From names to addresses: every address of every server, in random order, nodes that a notification hinted
//! first; and how long to wait before trying again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;

/// Addresses that are tried in one round: a name may stand for hundreds.
const MAX_ADDRESSES: usize = 16;
/// A name that has no address by then has none in this round: a resolver may take minutes to give up.
const LOOKUP: Duration = Duration::from_secs(5);
/// First and longest wait between rounds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// An address to try, and the name that its certificate must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// Host name or address, without port.
    pub host: String,
}

/// The addresses to try, best first; `avoid` last, because it has just failed.
pub async fn targets(servers: &[String], hints: &[String], avoid: Option<SocketAddr>) -> Vec<Target> {
    let (mut hinted, mut others) = futures::join!(resolve(hints), resolve(servers));
    others.shuffle(&mut rand::rng());
    hinted.retain(|hint| {
        // A hint only orders what the terminal would try anyway: it cannot send it somewhere else.
        let known = others.iter().position(|other| other.address == hint.address);
        known.is_some_and(|known| {
            others.remove(known);
            true
        })
    });
    hinted.append(&mut others);
    // Stable: the others keep their order.
    hinted.sort_by_key(|target| Some(target.address) == avoid);
    hinted.truncate(MAX_ADDRESSES);
    hinted
}

async fn resolve(names: &[String]) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    // All at once: one dead name server must not cost its wait for each name.
    let lookups = names.iter().map(|name| tokio::time::timeout(LOOKUP, tokio::net::lookup_host(name)));
    for (name, found) in names.iter().zip(futures::future::join_all(lookups).await) {
        let Some((host, _)) = name.rsplit_once(':') else {
            tracing::warn!(%name, "server name without a port");
            continue;
        };
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(found) => {
                for address in found {
                    let host = host.trim_matches(['[', ']']).to_owned();
                    if targets.iter().all(|known| known.address != address) {
                        targets.push(Target { address, host });
                    }
                }
            }
            Err(error) => tracing::warn!(%name, %error, "server name cannot be resolved"),
        }
    }
    targets
}

/// The wait before the `n`-th repetition (from 0): doubling, of which a random part is taken, so that terminals which
/// lost their node together do not come back together.
pub fn backoff(n: u32) -> Duration {
    let most = (BACKOFF.0 * 2u32.saturating_pow(n.min(16))).min(BACKOFF.1);
    let least = most / 4;
    least + (most - least).mul_f64(rand::rng().random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_come_first_but_only_if_they_are_servers() {
        let servers = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(str::to_owned);
        let hints = ["127.0.0.9:9".to_owned(), "127.0.0.1:3".to_owned()];
        let first = targets(&servers, &hints, None).await;
        assert_eq!(first.len(), 3);
        assert_eq!(first[0].address.port(), 3);
        assert_eq!(first[0].host, "127.0.0.1");
        let second = targets(&servers, &hints, Some(first[0].address)).await;
        assert_eq!(second.len(), 3);
        assert_eq!(second[2], first[0], "it has just failed");
    }

    #[test]
    fn backoff_rises_to_its_bound() {
        for n in 0..40 {
            let wait = backoff(n);
            assert!(wait >= BACKOFF.0 / 4 && wait <= BACKOFF.1, "{n}: {wait:?}");
        }
        assert!(backoff(30) >= BACKOFF.1 / 4);
    }
}
